"""The nodes: limits, space, memory, processors, network and software."""

from __future__ import annotations

import math
from collections.abc import Iterator

from conformance.checks.finding import Finding, Result
from conformance.checks.preflight.records import (
    GIB,
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

CLOCK_SECONDS = 1.0
# torch's loaders, gloo and the collective library keep a file or socket for each other rank and channel.
FILES_PER_RANK, FILES_BASE = 64, 1024
SHM_BYTES = 1 << 30
MEMLOCK_BYTES = -1
DISK_FREE_BYTES, DISK_BYTES_PER_S = 2 << 30, 20e6
MEMORY_PER_RANK, REHEARSAL_MEMORY_PER_RANK = 8 << 30, 1 << 30


def _hosts(preflight: Preflight) -> list[Record]:
    return [record for _, record in every(preflight, "host", "description of the node", of="nodes")]


def _lowest(
    check: str, preflight: Preflight, field: str, limit: float, told: str, source: str, unit: str, scale: float
) -> Finding:
    """Hold the smallest value of all nodes against a lower limit."""
    hosts = _hosts(preflight)
    if all(host.get(field) is None for host in hosts):
        return skip(check, f"This system has no {told}.")
    worst = min(hosts, key=lambda host: low(host[field]))
    value = number(worst[field])
    good = value >= limit
    found = "none" if worst[field] is None else f"{value / scale:.4g} {unit}"
    message = f"{told} of {worst['host']}: {found}; needed {limit / scale:.4g} {unit}."
    return made(
        check,
        good,
        message,
        value=value / scale,
        unit=unit,
        limit=limit / scale,
        limit_source=source,
        margin=value / limit - 1,
    )


def limits(check: str, preflight: Preflight) -> Finding:
    """Whether open files and locked memory are not limited too low.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    needed = FILES_BASE + FILES_PER_RANK * min(preflight.setup["ranks"], 512)
    faults = []
    for host in _hosts(preflight):
        if 0 <= host["nofile"] < needed:
            faults.append(f"{host['host']} allows {host['nofile']} open files, needed {needed}")
        if host["rdma_ports"] and host["memlock_bytes"] != MEMLOCK_BYTES:
            faults.append(f"{host['host']} has RDMA and locks at most {host['memlock_bytes']} bytes, needed unlimited")
    good = f"At least {needed} open files; locked memory is unlimited wherever RDMA needs it"
    source = "this suite: 1024 and 64 for each rank; NCCL user guide, troubleshooting: memlock unlimited"
    return faultless(check, faults, good, "open files", source, value=None, limit=float(needed))


def shm(check: str, preflight: Preflight) -> Finding:
    """Whether /dev/shm has room.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    source = "NCCL user guide, troubleshooting: shared memory in containers"
    return _lowest(check, preflight, "shm_free_bytes", SHM_BYTES, "Free space in /dev/shm", source, "GiB", GIB)


def disk(check: str, preflight: Preflight) -> Finding:
    """Whether the run folder has space and takes writes at a usable speed.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    problems = [f"{host['host']}: {host['disk_problem']}" for host in _hosts(preflight) if host["disk_problem"]]
    if problems:
        return made(check, False, f"The run folder cannot be written to: {'; '.join(problems)}.")
    source = "this suite: a run's logs and journal fit many times over"
    space = _lowest(
        check, preflight, "disk_free_bytes", DISK_FREE_BYTES, "Free space of the run folder", source, "GiB", GIB
    )
    speed = _lowest(
        check, preflight, "disk_bytes_per_s", DISK_BYTES_PER_S, "Write speed of the run folder", source, "MB/s", 1e6
    )
    return space if space.result is Result.FAIL else speed


def memory(check: str, preflight: Preflight) -> Finding:
    """Whether every node has free memory for its ranks.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    per_rank = REHEARSAL_MEMORY_PER_RANK if preflight.setup["rehearsal"] else MEMORY_PER_RANK
    needed = per_rank * preflight.setup["ranks"] / preflight.setup["nodes"]
    source = f"this suite: {per_rank / GIB:.0f} GiB a rank for imports, loaders and pinned buffers"
    return _lowest(check, preflight, "memory_available_bytes", needed, "Free memory", source, "GiB", GIB)


def numa(check: str, preflight: Preflight) -> Finding:
    """Whether ranks may use the CPUs near their device.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    hosts = {process["rank"]: record for process, record in preflight.records("host")}
    if not hosts:
        raise Unmeasured("no node was written down")
    if all(host["numa_nodes"] <= 1 for host in hosts.values()):
        return skip(check, "Every node has one memory node, so nothing is far.")
    far = []
    for process, record in preflight.records("health"):
        near = set(cpu_list(str(record.get("local_cpus", ""))))
        if near and not near & set(hosts[process["rank"]]["cpus_allowed"]):
            place = f"device {record['index']} of {hosts[process['rank']]['host']} is near CPUs {record['local_cpus']}"
            far.append(f"{place}, where this process may not run")
    return faultless(check, far, "Every device has CPUs near it that ranks may use", "devices", "sysfs: local_cpulist")


def cpu_list(text: str) -> Iterator[int]:
    """Read the kernel's notation of a set of CPUs.

    Args:
        text: For example "0-3,8".

    Yields:
        CPU numbers.
    """
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            yield from range(int(first), int(last or first) + 1)


def frequency(check: str, preflight: Preflight) -> Finding:
    """Whether no CPU is held below its frequency.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    known = [host for host in _hosts(preflight) if host["governor"]]
    if not known:
        return skip(check, "The kernel does not tell how it chooses the CPU's frequency, as in most virtual machines.")
    slow = [f"{host['host']}: governor powersave" for host in known if host["governor"] == "powersave"]
    for host in known:
        share = number(host["frequency_limit_khz"]) / number(host["frequency_max_khz"])
        if math.isnan(share):
            raise Unmeasured(f"{host['host']} does not tell its CPU's highest frequency and its limit")
        if share < 0.95:
            slow.append(f"{host['host']}: limited to {share:.0%} of its frequency")
    return faultless(check, slow, "No CPU is held below its frequency", "nodes", "the CPU's own maximum")


def rdma(check: str, preflight: Preflight) -> Finding:
    """Whether RDMA ports are active, alike on all nodes.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    hosts = _hosts(preflight)
    if not any(host["rdma_ports"] for host in hosts):
        return skip(check, "No node has RDMA ports.")
    faults = [
        f"{host['host']} {port['port']} is {port['state']} with its cable in"
        for host in hosts
        for port in host["rdma_ports"]
        if "LinkUp" in port["physical"] and "ACTIVE" not in port["state"]
    ]
    active = {
        f"node {process['rank']} ({host['host']})": sum("ACTIVE" in port["state"] for port in host["rdma_ports"])
        for process, host in preflight.records("host")
    }
    rates = {port["rate"] for host in hosts for port in host["rdma_ports"] if "ACTIVE" in port["state"]}
    if len(set(active.values())) > 1 or not all(active.values()):
        faults.append("active ports: " + ", ".join(f"{host} {count}" for host, count in active.items()))
    if len(rates) > 1:
        faults.append(f"active ports of different rates: {', '.join(sorted(rates))}")
    count = sum(active.values())
    good = f"{count} active ports, {', '.join(rates)}"
    source = "this suite: the slowest port is every rank's"
    return faultless(check, faults, good, "ports", source, value=float(count), limit="alike on all nodes")


def clock(check: str, preflight: Preflight) -> Finding:
    """Whether the nodes' clocks agree.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    offsets = [(abs(number(r["offset_s"])), process) for process, r in every(preflight, "clock", "clock")]
    if len(offsets) == 1:
        return skip(check, "One rank has no other's clock to agree with.")
    worst, process = max(offsets, key=lambda pair: high(pair[0]))
    good = all(offset <= CLOCK_SECONDS for offset, _ in offsets)
    return made(
        check,
        good,
        f"The clock of rank {process['rank']} is {worst:.6f} s off rank 0's, the most of {len(offsets)} ranks.",
        value=worst,
        unit="s",
        limit=CLOCK_SECONDS,
        limit_source="this suite: logs of several nodes are read side by side, and steps take seconds",
    )


def software(check: str, preflight: Preflight) -> Finding:
    """Whether all nodes run the same software.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    nodes = every(preflight, "host", "description of the node", of="nodes")
    stacks = {f"node {process['rank']} ({host['host']})": dict(host["software"]) for process, host in nodes}
    loaded = {
        process["rank"]: {
            **dict.fromkeys(record["libraries"], ""),
            **record.get("digests", {}),
            **record.get("versions", {}),
        }
        for process, record in preflight.records("backend")
    }
    faults = []
    for package in sorted({name for stack in stacks.values() for name in stack}):
        versions = {host: stack.get(package, "absent") for host, stack in stacks.items()}
        if len(set(versions.values())) > 1:
            faults.append(f"{package}: " + ", ".join(f"{host} {version}" for host, version in versions.items()))
    for library in sorted({name for names in loaded.values() for name in names}):
        versions = {f"rank {rank}": names.get(library, "absent") for rank, names in loaded.items()}
        if len(set(versions.values())) > 1:
            told = ", ".join(f"{rank} {version[:16]}" for rank, version in versions.items())
            faults.append(f"{library}: {told}")
    one = next(iter(stacks.values()))
    return faultless(
        check,
        faults,
        f"{len(stacks)} node(s) alike: " + ", ".join(f"{k} {v}" for k, v in one.items()),
        "differences",
        "this suite",
    )
