"""The devices themselves: the plugin's contract, identity, health, load, link and memory."""

from __future__ import annotations

from conformance.checks.finding import Finding
from conformance.checks.preflight.records import (
    Preflight,
    Record,
    Silent,
    Unmeasured,
    every,
    faultless,
    low,
    made,
    number,
    some,
)
from conformance.devices.health import FLAGS, SOUND
from conformance.evidence import device_name

# Aspects of the device contract without which a device still trains.
NOT_NEEDED = ("serial and driver", "smi", "float64")
# What a driver keeps for itself is below 1 GiB; whoever uses a device from another container shows in its memory alone.
USED_MIB = 2048


def breaks_contract(row: Record) -> bool:
    """Whether one aspect of the device contract is not kept.

    Args:
        row: A record "contract".

    Returns:
        True for a wrong answer, and for no answer where training needs one.
    """
    return bool(row["state"] == "wrong" or (row["state"] == "missing" and row["aspect"] not in NOT_NEEDED))


def contract(check: str, preflight: Preflight) -> Finding:
    """Whether the plugin keeps the device contract.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    rows = [record for _, record in some(preflight.records("contract"), "aspect of the device contract")]
    bad = [f"{row['aspect']}: {row['detail']}" for row in rows if breaks_contract(row)]
    silent = [row["aspect"] for row in rows if row["state"] == "missing" and not breaks_contract(row)]
    untold = f"; not told: {', '.join(silent)}" if silent else ""
    good = f"The plugin {preflight.setup['device']} keeps the contract: {len(rows)} aspects{untold}"
    return faultless(check, bad, good, "aspects", "docs/devices.md")


def identity(check: str, preflight: Preflight) -> Finding:
    """Whether all devices are alike, and none is counted twice.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    devices = [record for _, record in _of_all_devices(preflight, "identity", "device identity")]
    faults = []
    for field in ("vendor", "model", "firmware", "driver", "memory"):
        values = sorted({str(device.get(field, "not told")) for device in devices})
        if len(values) > 1:
            faults.append(f"{field} differs: {', '.join(values)}")
    names = [device.get("uuid") or device.get("serial") for device in devices]
    known = [name for name in names if name]
    if len(set(known)) < len(known):
        faults.append("two ranks have the same device")
    first = devices[0]
    good = f"{len(devices)} x {device_name(str(first.get('vendor')), str(first.get('model')))}, all alike"
    told = {"value": str(first.get("model")), "limit": "equal on all nodes"}
    return faultless(check, faults, good, "", "this suite: the slowest or oddest device is everybody's", **told)


def _of_all_devices(preflight: Preflight, kind: str, what: str) -> list[tuple[Record, Record]]:
    records = every(preflight, kind, what, of="nodes")
    if len(records) != preflight.setup["ranks"]:
        raise Unmeasured(f"{preflight.setup['ranks']} devices are measured, {len(records)} of them wrote down a {what}")
    return records


def _health(preflight: Preflight) -> list[tuple[str, Record]]:
    records = _of_all_devices(preflight, "health", "device health")
    told = [
        (f"device {record['index']} of node {process['rank']}", record)
        for process, record in records
        if len(record) > 2
    ]
    silent = [process for process, record in records if len(record) <= 2]
    if not told:
        raise Silent("The device plugin tells nothing of the device's health.")
    if silent:
        raise Unmeasured(f"{len(silent)} devices tell nothing of their health, the others do")
    return told


def _loaded(preflight: Preflight) -> list[tuple[str, Record]]:
    """Health as it was read while every device worked; nothing where the plugin tells nothing at rest either."""
    if not preflight.records("loaded-health"):
        return []
    told = [
        (f"{preflight.where(process)} at work", record)
        for process, record in every(preflight, "loaded-health", "health at work")
    ]
    for where, record in told:
        if "problem" in record:
            raise Unmeasured(f"{where}: {record['problem']}")
    return told


def healthy(check: str, preflight: Preflight) -> Finding:
    """Whether no device counts errors, waits for repair or is throttled.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    faults = []
    told = _health(preflight)
    for where, record in (*told, *_loaded(preflight)):
        faults += [f"{where}: {field} is {record[field]}" for field in FLAGS if record.get(field, "No") not in SOUND]
        if "ecc_uncorrected" in record and not number(record["ecc_uncorrected"]) <= 0:
            faults.append(f"{where}: {record['ecc_uncorrected']} uncorrected memory errors")
    # A counter that nobody read is no counter at zero.
    unread = [where for where, record in told if "ecc_uncorrected" not in record]
    if len(unread) == len(told) and not faults:
        raise Silent("The device plugin does not tell how many uncorrected memory errors a device has counted.")
    if unread and not faults:
        raise Unmeasured(f"{unread[0]} does not tell its uncorrected memory errors, others do")
    good = "No uncorrected memory error, no failed or pending row remapping, no throttling"
    return faultless(check, faults, good, "faults", "the device's own counters")


def busy(check: str, preflight: Preflight) -> Finding:
    """Whether no other process uses a device.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    told = [(where, record) for where, record in _health(preflight) if "processes" in record]
    if not told:
        raise Silent("The device plugin does not tell which processes use the device.")
    busy = [
        f"{where} is used by process {record['processes']}" for where, record in told if record["processes"].strip()
    ]
    busy += [
        f"{where} holds {record['memory_used_mib']} MiB before anything was started"
        for where, record in told
        if not number(record.get("memory_used_mib", 0)) <= USED_MIB
    ]
    return faultless(check, busy, "No other process uses a device", "devices", "this suite")


def bus(check: str, preflight: Preflight) -> Finding:
    """Whether every device has its full link to its host.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    told = [(where, record) for where, record in _health(preflight) if "link_width_max" in record]
    if not told:
        raise Silent("The device plugin does not tell the width of the device's link to its host.")
    untold = [where for where, record in told if "link_width" not in record]
    if untold:
        raise Unmeasured(f"{untold[0]} tells the widest link that it can have and not the one that it has")
    slow = [
        f"{where}: x{record['link_width']} of x{record['link_width_max']}"
        for where, record in told
        if not number(record["link_width"]) >= number(record["link_width_max"])
    ]
    # The generation falls while the device rests; the width does not.
    slow += [
        f"{where}: generation {record['link_generation']} of {record['link_generation_max']}"
        for where, record in _loaded(preflight)
        if {"link_generation", "link_generation_max"} <= set(record)
        and not number(record["link_generation"]) >= number(record["link_generation_max"])
    ]
    generations = sorted({str(record.get("link_generation_max")) for _, record in told})
    if len(generations) > 1:
        slow.append(f"the links' generations differ: {', '.join(generations)}")
    return faultless(
        check,
        slow,
        f"Every device has its full x{told[0][1]['link_width_max']} link",
        "links",
        "the device's own maximum",
    )


def capacity(check: str, preflight: Preflight) -> Finding:
    """Whether a device holds what the plan needs.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    held = every(preflight, "capacity", "capacity")
    process, worst = min(held, key=lambda item: low(item[1]["held_gib"]))
    needed = number(worst["needed_gib"])
    broken = [preflight.where(p) for p, record in held if record["intact"] is not True]
    good = number(worst["held_gib"]) >= needed and not broken
    message = (
        f"{preflight.where(process)} held {number(worst['held_gib']):.3g} of the {needed:.3g} GiB that "
        f"{preflight.setup['workload']} needs at its peak"
    )
    message += f"; memory does not keep what is written on {', '.join(broken)}" if broken else ""
    message += f": {worst['problem']}" if worst["problem"] else ""
    return made(
        check,
        good,
        f"{message}.",
        value=number(worst["held_gib"]),
        unit="GiB",
        limit=needed,
        limit_source="the plan's estimate",
    )
