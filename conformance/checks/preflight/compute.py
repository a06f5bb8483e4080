"""Matrix products and copies: right, fast, and alike on all devices."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from conformance.checks.finding import Finding, Result
from conformance.checks.preflight.records import (
    EVIDENCE,
    ROUNDOFF,
    Preflight,
    Record,
    Unmeasured,
    every,
    faultless,
    high,
    low,
    made,
    number,
    skip,
)
from conformance.metrics.preflight import by_device, ceiling

# A product that is split along its inner size may round its parts before it adds them.
PRODUCT_ROUNDINGS = 3
BELOW_EXPECTED = 0.05
UNEVEN = 0.05
TOGETHER = 0.10


def gemm_correct(check: str, preflight: Preflight) -> Finding:
    """Whether matrix products and copies are right.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    products = every(preflight, "gemm", "matrix product", _product)
    limit = PRODUCT_ROUNDINGS * ROUNDOFF["bfloat16"]
    bad = [
        f"{preflight.where(process)}, {record['name']}: error {record['error']}, whole {record['whole_error']}, "
        f"{record['not_finite']} elements not finite"
        for process, record in products
        if not number(record["error"]) <= limit
        or not number(record["whole_error"]) <= limit
        or record["not_finite"] != 0
    ]
    told = every(preflight, "copy", "copy", lambda record: record["setting"])
    copies = [preflight.where(process) for process, record in told if record["intact"] is not True]
    bad += [f"{where}: a copy on the device changes the data" for where in copies]
    worst = max(high(record["error"]) for _, record in products)
    source = f"{PRODUCT_ROUNDINGS} roundings to bf16, 2^-9 each"
    good = f"{len(products)} products agree with fp64, worst relative error {worst:.2e}"
    return faultless(check, bad[:4], good, "", source, value=worst, limit=limit)


def _product(record: Record) -> tuple[str, str]:
    return record["setting"], record["name"]


def _speeds(preflight: Preflight, setting: str) -> tuple[dict[int, float], dict[int, float]]:
    """TFLOPS of the square product and GB/s of the copy, by rank."""
    products = {
        process["rank"]: number(record["tflops"])
        for process, record in every(preflight, "gemm", "matrix product", _product)
        if record["name"] == "square" and record["setting"] == setting
    }
    copies = {
        process["rank"]: number(record["gb_per_s"])
        for process, record in every(preflight, "copy", "copy", lambda record: record["setting"])
        if record["setting"] == setting
    }
    if not products or not copies:
        raise Unmeasured(f"no speed {setting} was written down")
    return products, copies


def gemm_speed(check: str, preflight: Preflight) -> Finding:
    """Whether matrix products reach what the device is known to reach.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    _speeds(preflight, "alone")
    speeds: dict[str, dict[int, float]] = {}
    for process, record in preflight.records("gemm"):
        if record["setting"] == "alone":
            speeds.setdefault(record["name"], {})[process["rank"]] = number(record["tflops"])
    told = ", ".join(f"{name} {min(map(low, of.values())):.4g}" for name, of in speeds.items())
    top = ceiling(by_device(preflight.tasks))
    extra = f"TFLOPS: {told}; MFU's ceiling is {'unknown' if top is None else f'{top:.4g}'}"
    return _against_expected(check, preflight, {f"gemm-{name}": of for name, of in speeds.items()}, "TFLOPS", extra)


def copy_speed(check: str, preflight: Preflight) -> Finding:
    """Whether copies reach what the device is known to reach.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    copies = {"copy": _speeds(preflight, "alone")[1]}
    return _against_expected(check, preflight, copies, "GB/s", "read and written both counted")


def _against_expected(
    check: str, preflight: Preflight, speeds: Mapping[str, Mapping[int, float]], unit: str, extra: str
) -> Finding:
    """Hold the slowest device's speeds against what the model is known to reach; the first measurement is the main one.

    How far each lies from the known figure is told both ways: above it, the figure is old or the clock is wrong.
    """
    models = {str(record.get("model")) for _, record in preflight.records("identity")}
    known = {f["measurement"]: f for f in preflight.expected if f["device"] in models and f["measurement"] in speeds}
    slowest = {name: min(of.items(), key=lambda item: low(item[1])) for name, of in speeds.items()}
    main = next(iter(speeds))
    rank, speed = slowest[main]
    told = f"Slowest is rank {rank}, {speed:.4g} {unit}"
    if main not in known:
        message = f"{told} ({extra}); no figure is known of this device."
        return Finding(check, Result.SKIP, message, speed, unit, evidence=EVIDENCE)
    deviations = [
        f"{name} {number(slowest[name][1]) / figure['value'] - 1:+.1%} from {figure['value']:.4g}"
        for name, figure in known.items()
    ]
    low_ones = [name for name, f in known.items() if not slowest[name][1] >= f["value"] * (1 - BELOW_EXPECTED)]
    name = low_ones[0] if low_ones else main
    limit = known[name]["value"] * (1 - BELOW_EXPECTED)
    value = slowest[name][1]
    return made(
        check,
        not low_ones,
        f"{told}; of what this device is known to reach: {', '.join(deviations)} ({extra}).",
        value=value,
        unit=unit,
        limit=limit,
        limit_source=f"{BELOW_EXPECTED:.0%} below {known[name]['source']}",
        margin=value / limit - 1,
    )


def even(check: str, preflight: Preflight) -> Finding:
    """Whether no device is slower than its neighbours, or than itself alone.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    alone, together = _speeds(preflight, "alone"), _speeds(preflight, "together")
    if preflight.setup["ranks"] == 1:
        return skip(check, "One device has no neighbour.")
    if preflight.shared:
        return skip(check, "All ranks share one processor; their speeds say nothing about each other.")
    faults = []
    for what, first, second in zip(("product", "copy"), alone, together, strict=True):
        for setting, speeds in (("alone", first), ("together", second)):
            typical = statistics.median(speeds.values())
            faults += [
                f"rank {rank} does its {what} {setting} at {speed / typical:.0%} of the typical device's speed"
                for rank, speed in speeds.items()
                if not speed >= typical * (1 - UNEVEN)
            ]
        faults += [
            f"rank {rank} falls to {second[rank] / speed:.0%} of its {what} speed when its neighbours work too"
            for rank, speed in first.items()
            if rank in second and not second[rank] >= speed * (1 - TOGETHER)
        ]
    slowest = min(
        low(speed / statistics.median(speeds.values())) for speeds in (*alone, *together) for speed in speeds.values()
    )
    good = f"{len(alone[0])} devices alike: the slowest at {slowest:.1%} of the typical"
    source = f"this suite: {UNEVEN:.0%} below the median device; {TOGETHER:.0%} below its own speed alone"
    return faultless(check, faults, good, "", source, value=slowest, limit=1 - UNEVEN)
