"""A floor is reached, missed, or too close to tell; and a vendor's own floor certifies nothing."""

from dataclasses import replace

import numpy as np
import pytest

from conformance.checks.finding import Result
from conformance.checks.throughput import check_floors, declared_floor, floor_reached, pool
from conformance.checks.timing import utilisation
from conformance.internevo.log import Steps
from conformance.metrics.throughput import Tflops, throughput
from conformance.spec.floors import Floor

FLOOR = Floor("w", "*", "tgs", 100.0, "tokens/device/s", "a paper", "2024-01-01", 1, "published")
SPREAD = Floor("w", "*", "tgs", 100.0, "tokens/device/s", "3 runs", "2024-01-01", 3, "measured", spread=0.02)


@pytest.mark.parametrize(
    ("value", "half_width", "floor", "result"),
    [
        (103.0, 1.0, FLOOR, Result.PASS),
        (97.0, 1.0, FLOOR, Result.FAIL),
        (100.5, 1.0, FLOOR, Result.ERROR),
        (99.5, 1.0, FLOOR, Result.ERROR),
        (100.0, 0.0, FLOOR, Result.ERROR),
        (103.0, None, FLOOR, Result.ERROR),
        (103.0, 1.0, SPREAD, Result.ERROR),
        (106.0, 1.0, SPREAD, Result.PASS),
        (94.0, 1.0, SPREAD, Result.FAIL),
        (1e-9, 0.0, FLOOR, Result.FAIL),
    ],
)
def test_a_floor_within_the_noise_is_inconclusive(value, half_width, floor, result):
    finding = floor_reached("tgs-floor", value, half_width, floor)
    assert finding.result is result
    assert ("inconclusive" in finding.message) == (result is Result.ERROR)
    assert finding.margin == pytest.approx(value / 100 - 1)
    assert floor.source in finding.limit_source


@pytest.mark.parametrize(
    ("value", "half_width", "told"),
    [
        (100.5, 1.0, "3 further runs like it"),  # (1 / 0.5)^2 = 4 runs in all
        (100.9, 1.0, "1 further run like it"),
        (100.1, 1.0, "99 further runs like it"),
        (100.0, 1.0, "no number of further runs"),
        (100.0001, 1.0, "no number of further runs"),
    ],
)
def test_it_says_how_many_further_runs_would_settle_it(value, half_width, told):
    assert told in floor_reached("tgs-floor", value, half_width, FLOOR).message


def test_the_floors_own_spread_no_number_of_runs_can_settle():
    assert "no number of further runs" in floor_reached("tgs-floor", 102.0, 1.0, SPREAD).message
    # Beyond the floor's 3.92 only the rest of the gap is to be won: 5^2 / (4.5^2 - 3.92^2) = 5.1, so 6 runs in all.
    assert "5 further runs" in floor_reached("tgs-floor", 104.5, 5.0, SPREAD).message


SPEED = throughput(Steps.of({"step": range(20), "tgs": [60.0, *np.tile([101.0, 102.0, 103.0], 7)[:19]]}))


def results(floors, flops=Tflops(100, 100, 90, 85), workload="w", device=None):  # noqa: B008
    return {f.check: f for f in check_floors(SPEED, flops, floors, workload, device)}


def test_without_a_floor_nothing_is_reached():
    for workload, device in (("w", None), ("w", "D9"), (None, None)):
        found = results({"tgs": None, "tflops": None}, workload=workload, device=device)
        assert {f.result for f in found.values()} == {Result.SKIP}
    assert "D9" in results({"tgs": None}, device="D9")["tgs-floor"].message


def test_recomputation_does_not_raise_the_tflops_that_count():
    floor = Floor("w", "*", "tflops", 120.0, "TFLOPS/device", "a paper", "2024-01-01", 1, "published")
    found = results({"tgs": FLOOR, "tflops": floor}, Tflops(logged=133, recomputed=100, model=90, model_causal=85))
    assert (found["tgs-floor"].result, found["tflops-floor"].result) == (Result.PASS, Result.FAIL)
    assert results({"tflops": floor}, Tflops(133, None, None, None))["tflops-floor"].result is Result.ERROR


@pytest.mark.parametrize(("second", "result"), [(135.0, Result.PASS), (None, Result.ERROR)])
def test_runs_together_have_tflops_where_each_of_them_has(second, result):
    floor = Floor("w", "*", "tflops", 120.0, "TFLOPS/device", "a paper", "2024-01-01", 1, "published")
    runs = {place: (SPEED, Tflops(None, recomputed, 90, 85)) for place, recomputed in enumerate((133.0, second))}
    found = {finding.check: finding for finding in pool(runs, {"tgs": FLOOR, "tflops": floor}, "w", None).findings}
    assert (found["tgs-floor"].result, found["tflops-floor"].result) == (Result.PASS, result)
    assert found["tflops-floor"].value == (134.0 if second else None)


def test_a_self_declared_floor_has_a_check_of_its_own():
    assert declared_floor(SPEED, 90.0).result is Result.PASS
    assert declared_floor(SPEED, 102.0).result is Result.PASS
    assert declared_floor(SPEED, 102.01).result is Result.FAIL
    assert declared_floor(SPEED, 85.0).margin == pytest.approx(0.2)
    assert declared_floor(SPEED, 90.0).check == "tgs-floor-declared"
    assert "certifies nothing" in declared_floor(SPEED, 90.0).message


@pytest.mark.parametrize(
    ("needed", "peak", "ceilings", "result"),
    [
        (400, 989, [700], Result.PASS),
        (990, 989, [], Result.FAIL),
        (800, 989, [700], Result.FAIL),
        (800, 989, [900, 700], Result.FAIL),
        (720, 989, [700], Result.PASS),
        (400, None, [], Result.SKIP),
    ],
)
def test_no_device_does_more_than_it_can(needed, peak, ceilings, result):
    assert utilisation(needed, peak, {f"run {tflops}": tflops for tflops in ceilings}).result is result


def test_how_much_of_the_ceiling_was_needed_and_how_much_room_is_left_is_told():
    found = utilisation(441.0, 989.0, {"a preflight": 700.0})
    assert "needed 441 TFLOPS/device, 63.0% of 700, the GEMM ceiling of a preflight" in found.message
    assert (found.limit, found.margin) == (pytest.approx(735.0), pytest.approx(0.4))
    assert utilisation(989.0, 989.0, {}).margin == 0


def test_runs_together_have_the_t_interval_of_their_mean():
    """4.302653 is exceeded in 2.5 of 100 cases with 2 degrees of freedom, by a printed table."""
    flops = Tflops(None, 1, 1, 1)
    runs = {place: (replace(SPEED, median=median), flops) for place, median in enumerate((100, 104, 108))}
    found = pool(runs, {"tgs": None, "tflops": None}, "w", None)
    half = 4.302653 * 4 / np.sqrt(3)
    assert (found.mean, *found.ci95) == pytest.approx((104, 104 - half, 104 + half), rel=1e-6)
