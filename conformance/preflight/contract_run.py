"""Runs the contract's probes in processes of their own and adds what only a second process can tell."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from conformance.devices import Device
from conformance.preflight.driver import Measured, Ranks, run_task
from conformance.preflight.worker import Task

ASPECTS = (
    "count", "identity", "serial and driver", "smi", "activate", "set", "synchronise", "streams", "events", "memory",
    "rng", "bf16", "autocast", "float64", "collectives", "visible devices",
)  # fmt: skip


def check_contract(device: Device, folder: Path, limit_seconds: float) -> list[dict[str, Any]]:
    """Hold a plugin against the contract.

    Args:
        device: The plugin.
        folder: Where the processes leave what they find.
        limit_seconds: Limit of each of the two processes.

    Returns:
        For every aspect its name, ``state`` (ok, n/a, missing or wrong) and ``detail``.
    """
    (measured,) = run_task(_task(device, "contract", folder), Ranks(1), limit_seconds)
    found = {record["aspect"]: record for record in measured.records if record["kind"] == "contract"}
    # Nothing of the plugin but its name is asked for in this process: whatever hangs or raises does so in its own.
    for last in (record for record in measured.records if record["kind"] == "last"):
        found["visible devices"] = _visible(device, last, folder, limit_seconds)
    return [found.get(aspect) or _absent(aspect, measured) for aspect in ASPECTS]


def _task(device: Device, name: str, folder: Path) -> Task:
    return Task(name, device.name, str(folder / name), 0, True, {}, 0, 1, 1, 0.0)


def _absent(aspect: str, measured: Measured) -> dict[str, Any]:
    """An aspect that was not reached, because of what came before it."""
    if measured.outcome == "done":
        told = "not reached: an aspect that it needs is missing"
    else:
        ending = "hung" if measured.outcome == "timeout" else "died"
        told = f"the process {ending} in {measured.phase!r} after {measured.seconds:.0f} s"
        last = measured.output.strip().splitlines()[-1:]
        told += f": {last[0]}" if last else ""
    return {"kind": "contract", "aspect": aspect, "state": "missing", "detail": told}


def _visible(device: Device, last: dict[str, Any], folder: Path, limit_seconds: float) -> dict[str, Any]:
    """Choose the last device alone, and ask a fresh process what it sees."""
    told: dict[str, Any] = {"kind": "contract", "aspect": "visible devices"}
    variable, index = last["variable"], last["index"]
    if variable is None:
        return {**told, "state": "n/a", "detail": "this device has no such variable"}
    chosen = os.environ.get(variable, "").split(",")
    token = chosen[index] if len(chosen) > index and chosen[index] else str(index)
    (measured,) = run_task(_task(device, "visible", folder), Ranks(1), limit_seconds, {variable: token})
    if not measured.records:
        return _absent("visible devices", measured)
    seen = measured.records[0]
    detail = f"{variable}={token} shows {seen['count']} device, {seen['uuid'] or 'without uuid'}"
    if seen["count"] == 1 and seen["uuid"] == last["uuid"]:
        return {**told, "state": "ok", "detail": detail}
    return {**told, "state": "wrong", "detail": f"{detail}; expected {last['uuid']}"}
