"""A preflight's measurements by device: the same figures for the report, its page and the terminal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
Tasks = Mapping[str, Sequence[Record]]

# Column -> kind, name and setting of the record that it is read from, and its field.
COLUMNS = {
    "gemm_alone_tflops": (("gemm", "square", "alone"), "tflops"),
    "gemm_together_tflops": (("gemm", "square", "together"), "tflops"),
    "copy_alone_gb_per_s": (("copy", None, "alone"), "gb_per_s"),
    "copy_together_gb_per_s": (("copy", None, "together"), "gb_per_s"),
    "held_gib": (("capacity", None, None), "held_gib"),
    "needed_gib": (("capacity", None, None), "needed_gib"),
}


def figures(tasks: Tasks) -> dict[str, Any]:
    """Everything that is drawn of a preflight.

    Args:
        tasks: What the processes of each task wrote, by task.

    Returns:
        ``by_device``: a row for each rank; ``bus``: collective, bytes and gb_per_s, as rank 0 saw it; ``links``:
        sender, receiver and gb_per_s. None for what was not measured.
    """
    return {"by_device": by_device(tasks), "bus": list(_bus(tasks)), "links": _links(tasks)}


def by_device(tasks: Tasks) -> list[dict[str, Any]]:
    """One row for each rank.

    Args:
        tasks: What the processes of each task wrote, by task.

    Returns:
        rank, host, the figures of COLUMNS and late_ms, in the order of ranks; None for what was not measured.
    """
    late = {process["rank"]: record for process, record in _records(tasks, "collectives", "arrival")}
    rows = []
    for process in sorted(tasks.get("device", ()), key=lambda process: int(process["rank"])):
        found = {(r["kind"], r.get("name"), r.get("setting")): r for r in process["records"]}
        host = found.get(("process", None, None), {}).get("host", "?")
        row: dict[str, Any] = {"rank": int(process["rank"]), "host": str(host)}
        row |= {column: _number(found.get(key, {}).get(field)) for column, (key, field) in COLUMNS.items()}
        seconds = _number(late.get(process["rank"], {}).get("late_seconds"))
        rows.append({**row, "late_ms": None if seconds is None else seconds * 1e3})
    return rows


def devices(tasks: Tasks, plugin: str) -> list[dict[str, str]]:
    """What every device told of itself.

    Args:
        tasks: What the processes of each task wrote, by task.
        plugin: Name of the device plugin.

    Returns:
        One table for each device that tells at least its vendor and model, with the name of its host.
    """
    found = []
    for process in tasks.get("host", ()):
        host = next((str(record["host"]) for record in process["records"] if record["kind"] == "host"), "")
        found += [
            {"host": host, "plugin": plugin, **{name: str(value) for name, value in record.items() if name != "kind"}}
            for record in process["records"]
            if record["kind"] == "identity" and {"vendor", "model"} <= record.keys()
        ]
    return found


def ceiling(rows: Sequence[Record]) -> float | None:
    """What MFU is quoted against: the bf16 product of 8192 x 8192 x 8192, every device at work, on the median device.

    Args:
        rows: As `by_device` gives them.

    Returns:
        TFLOPS; None where it was not measured.
    """
    measured = [row["gemm_together_tflops"] for row in rows if row["gemm_together_tflops"] is not None]
    return statistics.median(measured) if measured else None


def _bus(tasks: Tasks) -> Iterator[dict[str, Any]]:
    for process, record in _records(tasks, "collectives", "bandwidth"):
        if process["rank"] == 0:
            speed = _number(record["busbw_gb_per_s"])
            yield {"collective": str(record["operation"]), "bytes": int(record["bytes"]), "gb_per_s": speed}


def _links(tasks: Tasks) -> list[dict[str, Any]]:
    made = [record for _, record in _records(tasks, "collectives", "link")]
    found = [
        {"sender": int(r["sender"]), "receiver": int(r["receiver"]), "gb_per_s": _number(r["gb_per_s"])} for r in made
    ]
    return sorted(found, key=lambda link: (link["sender"], link["receiver"]))


def _records(tasks: Tasks, task: str, kind: str) -> list[tuple[Record, Record]]:
    return [(p, record) for p in tasks.get(task, ()) for record in p["records"] if record["kind"] == kind]


def _number(value: Any) -> float | None:
    """A finite number, or None; measuring processes write nan as a string."""
    try:
        return float(value) if math.isfinite(float(value)) else None
    except (TypeError, ValueError):
        return None
