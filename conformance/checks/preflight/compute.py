"""Matrix products and copies: right, fast, and alike on all devices."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from conformance.checks.finding import Finding, Result
from conformance.checks.preflight.records import (
    EVIDENCE,
    ROUNDOFF,
    Preflight,
    Unmeasured,
    faultless,
    made,
    number,
    skip,
    some,
)

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
    products = some(preflight.records("gemm"), "matrix product")
    limit = PRODUCT_ROUNDINGS * ROUNDOFF["bfloat16"]
    bad = [
        f"{preflight.where(process)}, {record['name']}: error {record['error']}, whole {record['whole_error']}, "
        f"{record['not_finite']} elements not finite"
        for process, record in products
        if not number(record["error"]) <= limit
        or not number(record["whole_error"]) <= limit
        or record["not_finite"] != 0
    ]
    copies = [preflight.where(process) for process, record in preflight.records("copy") if record["intact"] is not True]
    bad += [f"{where}: a copy on the device changes the data" for where in copies]
    worst = max(number(record["error"]) for _, record in products)
    source = f"{PRODUCT_ROUNDINGS} roundings to bf16, 2^-9 each"
    good = f"{len(products)} products agree with fp64, worst relative error {worst:.2e}"
    return faultless(check, bad[:4], good, "", source, value=worst, limit=limit)


def _speeds(preflight: Preflight, setting: str) -> tuple[dict[int, float], dict[int, float]]:
    """TFLOPS of the square product and GB/s of the copy, by rank."""
    products = {
        process["rank"]: number(record["tflops"])
        for process, record in preflight.records("gemm")
        if record["name"] == "square" and record["setting"] == setting
    }
    copies = {
        process["rank"]: number(record["gb_per_s"])
        for process, record in preflight.records("copy")
        if record["setting"] == setting
    }
    if not products or not copies:
        raise Unmeasured("no speed was written down")
    return products, copies


def gemm_speed(check: str, preflight: Preflight) -> Finding:
    """Whether matrix products reach what the device is known to reach.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    products, _ = _speeds(preflight, "alone")
    shapes: dict[str, list[float]] = {}
    for _, record in preflight.records("gemm"):
        if record["setting"] == "alone":
            shapes.setdefault(record["name"], []).append(number(record["tflops"]))
    told = ", ".join(f"{name} {min(values):.4g}" for name, values in shapes.items())
    ceiling = max(statistics.median(values) for values in shapes.values())
    extra = f"TFLOPS: {told}; MFU's ceiling is {ceiling:.4g}"
    return _against_expected(check, preflight, "gemm-square", products, "TFLOPS", extra)


def copy_speed(check: str, preflight: Preflight) -> Finding:
    """Whether copies reach what the device is known to reach.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    return _against_expected(
        check, preflight, "copy", _speeds(preflight, "alone")[1], "GB/s", "read and written both counted"
    )


def _against_expected(
    check: str, preflight: Preflight, measurement: str, speeds: Mapping[int, float], unit: str, extra: str
) -> Finding:
    models = {str(record.get("model")) for _, record in preflight.records("identity")}
    known = [
        figure for figure in preflight.expected if figure["device"] in models and figure["measurement"] == measurement
    ]
    rank, slowest = min(speeds.items(), key=lambda item: item[1] if item[1] == item[1] else -1.0)
    told = f"Slowest is rank {rank}, {slowest:.4g} {unit}"
    if not known:
        return Finding(
            check,
            Result.SKIP,
            f"{told} ({extra}); no figure is known of this device.",
            slowest,
            unit,
            evidence=EVIDENCE,
        )
    figure = known[0]
    limit = figure["value"] * (1 - BELOW_EXPECTED)
    return made(
        check,
        slowest >= limit,
        f"{told}; this device is known to reach {figure['value']:.4g} ({extra}).",
        value=slowest,
        unit=unit,
        limit=limit,
        limit_source=f"{BELOW_EXPECTED:.0%} below {figure['source']}",
        margin=slowest / limit - 1,
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
        speed / statistics.median(speeds.values()) for speeds in (*alone, *together) for speed in speeds.values()
    )
    good = f"{len(alone[0])} devices alike: the slowest at {slowest:.1%} of the typical"
    source = f"this suite: {UNEVEN:.0%} below the median device; {TOGETHER:.0%} below its own speed alone"
    return faultless(check, faults, good, "", source, value=slowest, limit=1 - UNEVEN)
