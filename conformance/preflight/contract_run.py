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
    found = {record["aspect"]: record for record in measured.records}
    found["visible devices"] = _visible(device, folder, limit_seconds)
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


def _visible(device: Device, folder: Path, limit_seconds: float) -> dict[str, Any]:
    """Choose the last device alone, and ask a fresh process what it sees."""
    told: dict[str, Any] = {"kind": "contract", "aspect": "visible devices"}
    if device.visible_devices is None:
        return {**told, "state": "n/a", "detail": "this device has no such variable"}
    last = device.count() - 1
    if last < 0:
        return {**told, "state": "missing", "detail": "no device to choose"}
    chosen = os.environ.get(device.visible_devices, "").split(",")
    token = chosen[last] if len(chosen) > last and chosen[last] else str(last)
    expected = device.identity(last)
    (measured,) = run_task(_task(device, "visible", folder), Ranks(1), limit_seconds, {device.visible_devices: token})
    seen: dict[str, Any] = measured.records[0] if measured.records else {}
    uuid = expected.get("uuid") or expected.get("serial", "")
    good = seen.get("count") == 1 and seen.get("uuid") == uuid
    detail = f"{device.visible_devices}={token} shows {seen.get('count')} device, {seen.get('uuid') or 'without uuid'}"
    return {**told, "state": "ok" if good else "wrong", "detail": detail + ("" if good else f"; expected {uuid}")}
