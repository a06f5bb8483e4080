"""Collectives and links: right, no slower where messages grow, and alike."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable

from conformance.checks.finding import Finding
from conformance.checks.preflight.records import (
    ROUNDOFF,
    Preflight,
    Record,
    every,
    faultless,
    high,
    low,
    made,
    number,
    skip,
)

LINK_UNEVEN = 0.20
LATE_SHARE = 0.10


def shim(check: str, preflight: Preflight) -> Finding:
    """Whether the compatibility layer computes what was asked for.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    told = [record for _, record in every(preflight, "reduction", "reduction")]
    ways = sorted({str(record["avg"]) for record in told})
    lost = [
        row["detail"] for _, row in preflight.records("contract") if row["aspect"] == "float64" and row["state"] != "ok"
    ]
    kept = sorted({str(record["float64"]) for record in told})
    good = not lost and len(ways) == 1 and kept == ["kept"]
    message = f"AVG {' on some ranks, on others '.join(ways)}; float64 in a sum over ranks is {', '.join(kept)}"
    message += f"; on the device: {lost[0]}" if lost else ""
    return made(
        check, good, f"{message}.", value=", ".join(ways), limit="float64 is kept, AVG alike", limit_source="this suite"
    )


def collective_correct(check: str, preflight: Preflight) -> Finding:
    """Whether every collective is right.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    measured = every(preflight, "collective", "result of", lambda r: (r["operation"], r["dtype"], r["group"]))
    bad = []
    for process, record in measured:
        limit = collective_limit(record)
        if record["problem"] or not number(record["error"]) <= limit:
            told = record["problem"] or f"off by {number(record['error']):.2e}, allowed {limit:.2e}"
            bad.append(
                f"{preflight.where(process)}: {record['operation']} of {record['dtype']} in {record['group']}: {told}"
            )
    groups = len({record["group"] for _, record in measured})
    operations = len({record["operation"] for _, record in measured})
    shown = bad[:3] + ([f"and {len(bad) - 3} more"] if len(bad) > 3 else [])
    good = f"{len(measured)} results of {operations} collectives in {groups} kinds of group are right"
    source = "sums of two whole numbers are exact in every dtype"
    return faultless(check, shown, good, "wrong results", source, value=float(len(bad)))


def collective_limit(record: Record) -> float:
    """How far off a collective may be.

    Args:
        record: A record "collective".

    Returns:
        Relative to the largest element: 0 where the result is exact; a rounding where AVG divides; for random numbers
        one rounding for each addition, growing as a random walk's, sqrt(ranks - 1).
    """
    roundoff = ROUNDOFF[record["dtype"]]
    if "random" in record["operation"]:
        return roundoff * (1 + math.sqrt(max(1, record["size"] - 1)))
    return 2 * roundoff if "AVG" in record["operation"] else 0.0


def collective_speed(check: str, preflight: Preflight) -> Finding:
    """Whether collectives are no slower for large messages.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    told_by_all = every(preflight, "bandwidth", "speed of", lambda r: (r["operation"], r["bytes"]))
    measured = [r for p, r in told_by_all if p["rank"] == 0]
    largest = {r["operation"]: r for r in sorted(measured, key=lambda r: r["bytes"])}
    told = ", ".join(
        f"{name} {number(r['busbw_gb_per_s']):.4g} at {r['bytes'] / 2**20:.4g} MiB" for name, r in largest.items()
    )
    if preflight.setup["ranks"] == 1:
        return skip(check, "One rank has nobody to speak to.")
    bad = [f"{r['operation']} of {r['bytes']} bytes" for r in measured if not number(r["algbw_gb_per_s"]) > 0]
    grown = _grows(measured)
    uneven, in_groups = _in_groups(preflight)
    message = f"busbw in GB/s: {told}"
    message += f"; {in_groups}" if in_groups else ""
    message += f"; slower for large messages than for smaller ones: {', '.join(grown)}" if grown else ""
    message += f"; {', '.join(uneven)}" if uneven else ""
    below, known = _below_known(preflight, measured)
    message += known
    return made(
        check,
        not bad and not below and (preflight.shared or not (grown or uneven)),
        f"{message}.",
        value=max(low(r["busbw_gb_per_s"]) for r in measured),
        unit="GB/s",
        limit="a larger message is no slower",
        limit_source=f"this suite: within {LINK_UNEVEN:.0%}",
    )


def _in_groups(preflight: Preflight) -> tuple[list[str], str]:
    """Groups that are slower than the typical of their kind, and the slowest busbw of each kind, in words."""
    if not preflight.records("group-bandwidth"):
        return [], ""
    kinds: dict[tuple[str, str, int], dict[int, float]] = {}
    for process, r in every(preflight, "group-bandwidth", "speed in a group", lambda r: r["group"]):
        kinds.setdefault((r["operation"], r["group"], r["bytes"]), {})[process["rank"]] = number(r["busbw_gb_per_s"])
    uneven, told = [], []
    for (operation, group, size), speeds in kinds.items():
        typical = statistics.median(speeds.values())
        told.append(f"{operation} in {group} of {size / 2**20:.4g} MiB {min(map(low, speeds.values())):.4g}")
        uneven += [
            f"rank {rank} in {group} {speed:.4g}, typical {typical:.4g}"
            for rank, speed in speeds.items()
            if not speed >= typical * (1 - LINK_UNEVEN)
        ]
    return uneven[:3], ", ".join(told)


def _below_known(preflight: Preflight, measured: Iterable[Record]) -> tuple[bool, str]:
    """Whether all_reduce misses what so many of these devices on one node are known to reach, and that in words."""
    models = {str(record.get("model")) for _, record in preflight.records("identity")}
    name = f"busbw-all_reduce-{preflight.setup['ranks']}-in-a-node"
    known = [f for f in preflight.expected if f["device"] in models and f["measurement"] == name]
    if not known or preflight.setup["nodes"] > 1:
        return False, ""
    best = max(low(r["busbw_gb_per_s"]) for r in measured if r["operation"] == "all_reduce")
    figure = known[0]["value"]
    told = f"; all_reduce's best is {best / figure - 1:+.1%} from {figure:.4g}, {known[0]['source']}"
    return not best >= figure * (1 - LINK_UNEVEN), told


def _grows(measured: Iterable[Record]) -> list[str]:
    """Collectives whose bandwidth falls where the message grows: a protocol or a path that breaks down."""
    fallen = []
    by_operation: dict[str, list[tuple[int, float]]] = {}
    for record in measured:
        by_operation.setdefault(record["operation"], []).append((record["bytes"], number(record["algbw_gb_per_s"])))
    for operation, points in by_operation.items():
        for (size, speed), (larger, after) in itertools.pairwise(sorted(points)):
            if not after >= speed * (1 - LINK_UNEVEN):
                fallen.append(f"{operation} {speed:.4g} GB/s at {size} bytes, {after:.4g} at {larger}")
    return fallen


def links(check: str, preflight: Preflight) -> Finding:
    """Whether no link is slower than the others of its kind.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    if preflight.setup["ranks"] == 1:
        return skip(check, "One rank has no link.")
    measured = [record for _, record in every(preflight, "link", "link")]
    if preflight.shared:
        return skip(check, "All ranks share one processor; their links say nothing about each other.")
    # Links inside a node and between nodes are of different kinds; each is held against its own.
    per_node = preflight.setup["ranks"] // preflight.setup["nodes"]
    kinds: dict[bool, list[Record]] = {}
    for record in measured:
        kinds.setdefault(record["sender"] // per_node == record["receiver"] // per_node, []).append(record)
    faults, slowest = [], 1.0
    for inside, links in kinds.items():
        typical = statistics.median(number(link["gb_per_s"]) for link in links)
        slowest = min(slowest, *(low(number(link["gb_per_s"]) / typical) for link in links))
        faults += [
            f"rank {link['sender']} to {link['receiver']}: {number(link['gb_per_s']):.4g} GB/s, typical "
            f"{'inside a node' if inside else 'between nodes'} is {typical:.4g}"
            for link in links
            if not number(link["gb_per_s"]) >= typical * (1 - LINK_UNEVEN)
        ]
    good = f"{len(measured)} links alike: the slowest at {slowest:.1%} of the typical"
    source = "this suite: below the median link of its kind"
    return faultless(check, faults, good, "", source, value=slowest, limit=1 - LINK_UNEVEN)


def arrivals(check: str, preflight: Preflight) -> Finding:
    """Whether no rank comes late after the same work.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    measured = every(preflight, "arrival", "arrival")
    if preflight.setup["ranks"] == 1:
        return skip(check, "One rank waits for nobody.")
    process, worst = max(measured, key=lambda item: high(item[1]["late_seconds"]))
    work = statistics.median(number(record["work_seconds"]) for _, record in measured)
    late = number(worst["late_seconds"])
    message = f"Rank {process['rank']} comes last, {late * 1e3:.2f} ms late after {work * 1e3:.2f} ms of the same work"
    if preflight.shared:
        return skip(check, f"{message}; all ranks share one processor.")
    limit = max(LATE_SHARE * work, 1e-3)
    return made(
        check,
        late <= limit,
        f"{message}.",
        value=late,
        unit="s",
        limit=limit,
        limit_source=f"this suite: {LATE_SHARE:.0%} of the work, at least 1 ms",
    )
