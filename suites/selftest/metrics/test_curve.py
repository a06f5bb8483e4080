"""The curve comparison: honest seeds pass, what trains differently does not."""

import numpy as np
import pytest

from conformance.metrics.curve import BLOCK, PAIRED_STEPS, compare
from conformance.spec.curves import Curve

STEPS = 100
ORIGIN = "cpu, dp 2 x tp 1 x pp 1, 2 x 1 sequences"
CURVE = 6 + 4.4 * np.exp(-np.arange(STEPS) / 15)


def runs(count, seed, persistent=0.003, noise=0.01):
    """Loss curves as seeds make them: each a little off for good, and noisy."""
    rng = np.random.default_rng(seed)
    return CURVE * (1 + rng.normal(0, persistent, (count, 1)) + rng.normal(0, noise, (count, STEPS)))


def curve(losses, twins=()):
    seeds = tuple(range(len(losses)))
    made, again = (tuple(map(tuple, np.asarray(values).tolist())) for values in (losses, twins))
    return Curve("tiny-accuracy", 2, STEPS, 1024, "dummy", seeds, made, "made up", ORIGIN, again)


def rounded(losses, seed, size=1e-4):
    """The same runs on a device that rounds in another way."""
    return losses * (1 + np.random.default_rng(seed).normal(0, size, losses.shape))


def pairs(count, seed):
    losses = runs(count, seed)
    return curve(losses, rounded(losses, seed)[:, :PAIRED_STEPS])


def refused(found):
    return not found.agrees


@pytest.mark.parametrize(("count", "further"), [(3, 1), (5, 1), (8, 1), (12, 1), (5, 4), (12, 4)])
def test_honest_runs_are_rarely_refused(count, further):
    """Two to four of a hundred."""
    refusals = [refused(compare(curve(runs(count, seed)), runs(further, 10_000 + seed))) for seed in range(400)]
    assert np.mean(refusals) < 0.06


def test_the_bound_of_several_runs_is_no_wider_than_theirs_needs_to_be():
    """They use as much of it as one run uses of its own."""

    def used(further):
        found = [compare(curve(runs(12, seed)), runs(further, 10_000 + seed)) for seed in range(400)]
        return np.quantile([each.relative_rms / each.bound for each in found], 0.98)

    assert used(4) == pytest.approx(used(1), rel=0.12)


# Student's t of 4 and of 11 degrees of freedom that is exceeded in 5 of 1000 cases, from a printed table.
T = {5: 4.604095, 12: 3.105807}


@pytest.mark.parametrize("further", [1, 4])
def test_the_bound_is_the_t_interval_of_one_more_run_and_less_for_the_mean_of_several(further):
    reference = curve(runs(5, 1))
    others = [np.delete(reference.losses, place, axis=0).mean(axis=0) for place in range(5)]
    noise = np.array([run / mean - 1 for run, mean in zip(reference.losses, others, strict=True)])
    blocks = noise.reshape(5, -1, BLOCK).mean(axis=2)
    rms = np.sqrt((blocks**2).mean(axis=1))
    narrower = np.sqrt((1 / further + 1 / 5) / (1 + 1 / 5))
    bound = narrower * (rms.mean() + T[5] * rms.std(ddof=1) * np.sqrt(1 + 1 / 5))
    assert compare(reference, runs(further, 2)).bound == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2, 3]])
def test_the_bound_of_a_pair_is_the_t_interval_of_the_logarithm(seeds):
    reference = pairs(12, 1)
    twins = np.array(reference.twins) / np.array(reference.losses)[:, :PAIRED_STEPS] - 1
    logs = np.log(np.sqrt((twins**2).mean(axis=1)))
    bound = np.exp(logs.mean() + T[12] * logs.std(ddof=1) * np.sqrt(1 / len(seeds) + 1 / 12))
    assert paired(reference, seeds).paired.bound == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize("further", [1, 4])
def test_a_constant_offset_is_seen_as_often_as_it_says(further):
    seen = []
    for seed in range(300):
        reference = curve(runs(5, seed))
        offset = compare(reference, runs(further, seed)).detectable
        seen.append(refused(compare(reference, runs(further, 10_000 + seed) * (1 + offset))))
    assert np.mean(seen) > 0.85


# Student's t that is exceeded in 5 of 100 cases, from the same table.
T95 = {5: 2.131847, 12: 1.795885}


@pytest.mark.parametrize(("count", "further"), [(5, 1), (12, 4)])
def test_the_offset_that_is_seen_is_the_smallest_whose_t_bound_is_beyond(count, further):
    reference = runs(count, 1)
    found = compare(curve(reference), runs(further, 2))
    others = (reference.sum(axis=0) - reference) / (count - 1)
    noise = (reference / others - 1).reshape(count, -1, BLOCK).mean(axis=2)
    noise *= np.sqrt((1 / further + 1 / count) / (1 + 1 / count))

    def sure(offset):
        beyond = [np.sqrt(np.square(noise + sign * offset).mean(axis=1)) for sign in (1, -1)]
        return all(rms.mean() - T95[count] * rms.std(ddof=1) > found.bound for rms in beyond)

    assert sure(found.detectable * 1.0001)
    assert not sure(found.detectable * 0.9999)


@pytest.mark.parametrize("seed", range(6))
def test_an_offset_up_is_seen_as_soon_as_one_down(seed):
    losses = runs(5, seed)
    turned = 2 * losses.mean(axis=0) - losses
    found = [compare(curve(reference), runs(1, 99)).detectable for reference in (losses, turned)]
    assert found[0] == pytest.approx(found[1], rel=0.01)


def test_more_runs_narrow_the_bound():
    reference = curve(runs(5, 1))
    assert compare(reference, runs(4, 2)).bound < compare(reference, runs(1, 2)).bound
    assert compare(curve(runs(12, 1)), runs(1, 2)).bound < compare(curve(runs(3, 1)), runs(1, 2)).bound


def test_where_it_leaves_the_curve_is_told():
    run = runs(1, 3)
    run[:, 60:] *= 1.1
    found = compare(curve(runs(5, 1)), run)
    assert found.leaves_at == 60
    assert found.max_deviation > 0.08
    assert refused(found)


def test_an_undefined_loss_is_not_on_the_curve():
    run = runs(1, 3)
    run[0, 42] = np.nan
    found = compare(curve(runs(5, 1)), run)
    assert not found.relative_rms <= found.bound
    assert found.leaves_at == 40


def test_only_whole_blocks_that_both_have_are_compared():
    assert compare(curve(runs(3, 1)), runs(1, 2)[:, : BLOCK - 1]) is None
    assert compare(curve(runs(3, 1)), runs(1, 2)[:, : 3 * BLOCK + 4]).steps == 3 * BLOCK


def test_points_enclose_what_seeds_do():
    found = compare(curve(runs(5, 1)), runs(1, 2))
    inside = [low <= loss <= high for (_, _, low, high), loss in zip(found.points, runs(1, 9)[0], strict=True)]
    assert np.mean(inside) > 0.95
    assert [point[0] for point in found.points] == list(range(STEPS))


@pytest.mark.parametrize("further", [1, 4])
def test_points_are_the_t_interval_of_each_step(further):
    reference = runs(5, 1)
    points = np.array(compare(curve(reference), runs(further, 2)).points)
    mean = reference.mean(axis=0)
    half = T[5] * reference.std(axis=0, ddof=1) * np.sqrt(1 / further + 1 / 5)
    assert points[:, 1:] == pytest.approx(np.transpose([mean, mean - half, mean + half]), rel=1e-6)


def paired(reference, seeds, factor=1.0, seed=9, origin=ORIGIN):
    """Further runs of seeds of the curve, each with its own rounding and a fault."""
    again = rounded(np.array(reference.losses)[list(seeds)], seed) * factor
    return compare(reference, again, seeds, origin)


def test_what_a_seed_hides_its_own_reference_run_shows():
    reference = pairs(12, 1)
    assert paired(reference, [3]).agrees
    found = paired(reference, [3], 1.002)
    assert found.relative_rms < found.bound
    assert not found.agrees
    assert (found.paired.pairs, found.paired.steps, found.paired.leaves_at) == (12, PAIRED_STEPS, 0)


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2, 3]])
def test_honest_pairs_are_rarely_refused(seeds):
    """Of the bound alone, not of the curve's."""
    refusals = [not paired(pairs(12, seed), seeds, seed=10_000 + seed).paired.agrees for seed in range(300)]
    assert np.mean(refusals) < 0.03


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2, 3]])
def test_a_constant_offset_from_its_own_run_is_seen_as_often_as_it_says(seeds):
    seen = []
    for seed in range(200):
        reference = pairs(12, seed)
        offset = paired(reference, seeds).paired.detectable
        seen.append(not paired(reference, seeds, 1 + offset, 10_000 + seed).paired.agrees)
    assert np.mean(seen) > 0.85


def test_the_step_at_which_it_leaves_its_own_run_is_told():
    reference = pairs(12, 1)
    assert paired(reference, [3], np.where(np.arange(STEPS) < 4, 1.0, 1.002)).paired.leaves_at == 4


def test_an_undefined_loss_is_not_on_its_own_run():
    assert not paired(pairs(12, 1), [3], np.where(np.arange(STEPS) == 5, np.nan, 1.0)).paired.agrees


@pytest.mark.parametrize(
    ("seeds", "origin"), [([3], ""), ([3], "cuda" + ORIGIN[3:]), ([99], ORIGIN), ([3, 99], ORIGIN), ([], ORIGIN)]
)
def test_runs_that_did_not_begin_alike_are_no_pair(seeds, origin):
    reference = pairs(12, 1)
    assert compare(reference, runs(max(1, len(seeds)), 2), seeds, origin).paired is None


def test_without_twins_there_is_no_pair():
    reference = curve(runs(12, 1))
    assert compare(reference, np.array(reference.losses[:1]), [0], ORIGIN).paired is None
