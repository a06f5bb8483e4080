"""Would this cluster train? Judgement of the preflight measurements: pure, from what was written down alone."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conformance.checks.finding import Finding, Result

Record = Mapping[str, Any]

# Unit roundoff: the largest relative error of one rounding to nearest (IEEE 754; bf16 keeps 8 significant bits).
ROUNDOFF = {"bfloat16": 2.0**-9, "float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53, "int64": 0.0}
# A product that is split along its inner size may round its parts before it adds them.
PRODUCT_ROUNDINGS = 3
# How many roundings a result may have gone through: one for a result that is computed in fp32 and rounded once, more
# where intermediate values are kept in the dtype (attention probabilities, gradients through them) or are sums.
ROUNDINGS = {
    ("attention", "out"): 4,
    ("attention", "dq"): 8,
    ("attention", "dk"): 8,
    ("attention", "dv"): 6,
    ("rotary", "out"): 3,
    ("rotary", "dx"): 3,
    ("rms-norm", "out"): 3,
    ("rms-norm", "dx"): 5,
    ("rms-norm", "dweight"): 5,
    ("linear", "out"): 3,
    ("linear", "dx"): 3,
    ("linear", "dweight"): 3,
    ("embedding", "out"): 1,
    ("embedding", "dweight"): 4,
    # fp32: exponentials and sums of thousands of terms.
    ("cross-entropy", "loss"): 256,
    ("cross-entropy", "dlogits"): 256,
    # An update of 1e-4 is the difference of parameters two hundred times as large.
    ("adamw", "update"): 2048,
    ("adamw", "first"): 16,
    ("adamw", "second"): 16,
    ("grad-norm", "norm"): 1024,
    ("grad-norm", "clipped"): 1024,
    ("scatter", "out"): 256,
}
# Aspects of the device contract without which a device still trains.
NOT_NEEDED = ("serial and driver", "smi", "float64")
# One row may be this many times worse than the whole; a row that was left out is off by 1.
ROW_FACTOR = 16
ROW_LIMIT = 0.5

# Tasks of one process a node; the others have one a rank.
PER_NODE = ("contract", "host")

GIB = 1 << 30
CLOCK_SECONDS = 1.0
# torch's loaders, gloo and the collective library keep a file or socket for each other rank and channel.
FILES_PER_RANK, FILES_BASE = 64, 1024
SHM_BYTES = 1 << 30
MEMLOCK_BYTES = -1
DISK_FREE_BYTES, DISK_BYTES_PER_S = 2 << 30, 20e6
MEMORY_PER_RANK, REHEARSAL_MEMORY_PER_RANK = 8 << 30, 1 << 30
BELOW_EXPECTED = 0.05
UNEVEN = 0.05
TOGETHER = 0.10
LINK_UNEVEN = 0.20
LATE_SHARE = 0.10
STEP_LOSS = 2.0**-8
STEP_NORM = 2.0**-6
TENSOR_PARALLEL_LOSS = 2.0**-10


@dataclass(frozen=True)
class Preflight:
    """Everything that was measured.

    Args:
        setup: environment/preflight.json: device, backend, nodes, ranks, rehearsal, seed, workload.
        tasks: What the processes of each task wrote, by task.
        expected: Known figures of devices, as in preflight/expected.toml.
    """

    setup: Record
    tasks: Mapping[str, Sequence[Record]]
    expected: Sequence[Record] = ()

    @property
    def shared(self) -> bool:
        """Whether all ranks share one processor, so that their speeds say nothing about each other."""
        return bool(self.setup["backend"] == "gloo")

    def records(self, kind: str) -> list[tuple[Record, Record]]:
        """Every record of a kind, with the process that wrote it.

        Args:
            kind: What was measured.

        Returns:
            Pairs (process, record), in the order of ranks.
        """
        return [
            (process, record)
            for processes in self.tasks.values()
            for process in processes
            for record in process["records"]
            if record["kind"] == kind
        ]

    def where(self, process: Record) -> str:
        """How a process is named to people.

        Args:
            process: What it wrote.

        Returns:
            For example "rank 3 (device 3 of node-a)".
        """
        for record in process["records"]:
            if record["kind"] == "process":
                return f"rank {process['rank']} (device {record['local_rank']} of {record['host']})"
        return f"rank {process['rank']}"


def judge(preflight: Preflight) -> list[Finding]:
    """Make every check.

    Args:
        preflight: What was measured.

    Returns:
        One finding for each check, in the order of CHECKS.
    """
    findings = []
    for check, (task, make) in CHECKS.items():
        if task and (lost := _unfinished(preflight, task)) and not _complete(preflight, check):
            findings.append(_not_made(check, lost))
            continue
        try:
            findings.append(make(check, preflight))
        except _Unmeasured as reason:
            findings.append(_not_made(check, str(reason)))
    return findings


class _Unmeasured(Exception):  # noqa: N818  a result, not an error
    """Nothing was measured that the check could judge."""


def _not_made(check: str, reason: str) -> Finding:
    return Finding(check, Result.ERROR, f"Not measured: {reason}.", evidence=EVIDENCE, next_step="Fix that and repeat.")


def _unfinished(preflight: Preflight, task: str) -> str:
    processes = preflight.tasks.get(task, ())
    if not processes:
        return f"the task {task!r} left nothing"
    expected = preflight.setup["nodes" if task in PER_NODE else "ranks"]
    seen = {process["rank"] for process in processes}
    absent = [f"rank {rank} left nothing" for rank in range(expected) if rank not in seen]
    lost = [_ending(process) for process in processes if process["outcome"] != "done"]
    return "; ".join(lost + absent)


def _complete(preflight: Preflight, check: str) -> bool:
    """Whether a check can be made although its task did not end well: its own phase was over on every rank."""
    kind = {"host-clock": "clock"}.get(check)
    processes = {id(process) for process, _ in preflight.records(kind)} if kind else set()
    return bool(kind) and len(processes) == preflight.setup["ranks"]


def _ending(process: Record) -> str:
    how = "hung and was ended" if process["outcome"] == "timeout" else "died"
    last = [line for line in process["output"].splitlines() if line.strip()][-1:]
    told = f": {last[0].strip()}" if last and process["outcome"] == "failed" else ""
    return f"rank {process['rank']} {how} after {process['seconds']:.0f} s in {process['phase']!r}{told}"


EVIDENCE = "environment/"


def _made(check: str, good: bool, message: str, **fields: Any) -> Finding:
    return Finding(check, Result.PASS if good else Result.FAIL, message, evidence=EVIDENCE, **fields)


def _skip(check: str, message: str) -> Finding:
    return Finding(check, Result.SKIP, message, evidence=EVIDENCE)


def _some(records: list[tuple[Record, Record]], what: str) -> list[tuple[Record, Record]]:
    if not records:
        raise _Unmeasured(f"no {what} was written down")
    return records


def number(value: Any) -> float:
    """A number as the measuring process wrote it.

    Args:
        value: A number, or "nan", "inf", "-inf".

    Returns:
        The number; nan for anything else, which passes no limit.
    """
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


# --- the measurement itself ---


def _ended(check: str, preflight: Preflight) -> Finding:
    lost = [
        f"{task}: {_ending(process)}"
        for task, processes in preflight.tasks.items()
        for process in processes
        if process["outcome"] != "done"
    ]
    limit = "every process ends by itself"
    if lost:
        return _made(check, False, "; ".join(lost) + ".", value=float(len(lost)), unit="processes", limit=limit)
    seconds = sum(max(p["seconds"] for p in processes) for processes in preflight.tasks.values() if processes)
    return _made(check, True, f"All measuring processes ended by themselves, {seconds:.0f} s in all.", limit=limit)


# --- devices ---


def breaks_contract(row: Record) -> bool:
    """Whether one aspect of the device contract is not kept.

    Args:
        row: A record "contract".

    Returns:
        True for a wrong answer, and for no answer where training needs one.
    """
    return bool(row["state"] == "wrong" or (row["state"] == "missing" and row["aspect"] not in NOT_NEEDED))


def _contract(check: str, preflight: Preflight) -> Finding:
    rows = [record for _, record in _some(preflight.records("contract"), "aspect of the device contract")]
    bad = [f"{row['aspect']}: {row['detail']}" for row in rows if breaks_contract(row)]
    silent = [row["aspect"] for row in rows if row["state"] == "missing" and not breaks_contract(row)]
    told = "; ".join(bad) or f"The plugin {preflight.setup['device']} keeps the contract: {len(rows)} aspects"
    told += f"; not told: {', '.join(silent)}" if silent else ""
    source = "docs/devices.md"
    return _made(check, not bad, f"{told}.", value=float(len(bad)), unit="aspects", limit=0.0, limit_source=source)


def _identity(check: str, preflight: Preflight) -> Finding:
    devices = [record for _, record in _some(preflight.records("identity"), "device identity")]
    faults = []
    for field in ("vendor", "model", "firmware", "driver", "memory"):
        values = sorted({str(device.get(field, "not told")) for device in devices})
        if len(values) > 1:
            faults.append(f"{field} differs: {', '.join(values)}")
    names = [device.get("uuid") or device.get("serial") for device in devices]
    known = [name for name in names if name]
    if len(set(known)) < len(known):
        faults.append("two ranks have the same device")
    told = "; ".join(faults) or f"{len(devices)} x {devices[0].get('vendor')} {devices[0].get('model')}, all alike"
    return _made(check, not faults, f"{told}.", value=str(devices[0].get("model")), limit="equal on all nodes")


def _health(preflight: Preflight) -> list[tuple[str, Record]]:
    told = [
        (f"device {record['index']} of node {process['rank']}", record)
        for process, record in preflight.records("health")
        if len(record) > 2
    ]
    silent = [process for process, record in preflight.records("health") if len(record) <= 2]
    if not told:
        raise _Silent("The device plugin tells nothing of the device's health.")
    if silent:
        raise _Unmeasured(f"{len(silent)} devices tell nothing of their health, the others do")
    return told


class _Silent(Exception):  # noqa: N818  a result, not an error
    """The platform has no such figure."""


def _or_skip(make: Callable[[str, Preflight], Finding]) -> Callable[[str, Preflight], Finding]:
    def made(check: str, preflight: Preflight) -> Finding:
        try:
            return make(check, preflight)
        except _Silent as reason:
            return _skip(check, str(reason))

    return made


@_or_skip
def _healthy(check: str, preflight: Preflight) -> Finding:
    bad = ("Active", "Yes", "1", "True")
    fields = ("remapping_pending", "remapping_failed", "throttle_thermal", "throttle_power_brake")
    faults = []
    for where, record in _health(preflight):
        faults += [f"{where}: {field} is {record[field]}" for field in fields if str(record.get(field)) in bad]
        errors = number(record.get("ecc_uncorrected", 0))
        if not errors <= 0:
            faults.append(f"{where}: {record['ecc_uncorrected']} uncorrected memory errors")
    told = "; ".join(faults) or "No uncorrected memory error, no failed or pending row remapping, no throttling"
    return _made(
        check,
        not faults,
        f"{told}.",
        value=float(len(faults)),
        unit="faults",
        limit=0.0,
        limit_source="the device's own counters",
    )


@_or_skip
def _busy(check: str, preflight: Preflight) -> Finding:
    told = [(where, record) for where, record in _health(preflight) if "processes" in record]
    if not told:
        raise _Silent("The device plugin does not tell which processes use the device.")
    busy = [
        f"{where} is used by process {record['processes']}" for where, record in told if record["processes"].strip()
    ]
    message = "; ".join(busy) or "No other process uses a device"
    return _made(
        check, not busy, f"{message}.", value=float(len(busy)), unit="devices", limit=0.0, limit_source="this suite"
    )


@_or_skip
def _bus(check: str, preflight: Preflight) -> Finding:
    told = [(where, record) for where, record in _health(preflight) if "link_width_max" in record]
    if not told:
        raise _Silent("The device plugin does not tell the width of the device's link to its host.")
    # The generation falls while the device rests; the width does not.
    slow = [
        f"{where}: x{record['link_width']} of x{record['link_width_max']}"
        for where, record in told
        if number(record["link_width"]) < number(record["link_width_max"])
    ]
    generations = sorted({str(record.get("link_generation_max")) for _, record in told})
    if len(generations) > 1:
        slow.append(f"the links' generations differ: {', '.join(generations)}")
    message = "; ".join(slow) or f"Every device has its full x{told[0][1]['link_width_max']} link"
    return _made(
        check,
        not slow,
        f"{message}.",
        value=float(len(slow)),
        unit="links",
        limit=0.0,
        limit_source="the device's own maximum",
    )


# --- hosts ---


def _hosts(preflight: Preflight) -> list[Record]:
    return [record for _, record in _some(preflight.records("host"), "node")]


def _lowest(
    check: str, preflight: Preflight, field: str, limit: float, told: str, source: str, unit: str, scale: float
) -> Finding:
    """Hold the smallest value of all nodes against a lower limit."""
    hosts = _hosts(preflight)
    if all(host.get(field) is None for host in hosts):
        return _skip(check, f"This system has no {told}.")
    worst = min(hosts, key=lambda host: number(host[field]))
    value = number(worst[field])
    good = value >= limit
    message = f"{told} of {worst['host']}: {value / scale:.4g} {unit}; needed {limit / scale:.4g}."
    return _made(
        check,
        good,
        message,
        value=value / scale,
        unit=unit,
        limit=limit / scale,
        limit_source=source,
        margin=value / limit - 1,
    )


def _limits(check: str, preflight: Preflight) -> Finding:
    needed = FILES_BASE + FILES_PER_RANK * min(preflight.setup["ranks"], 512)
    faults = []
    for host in _hosts(preflight):
        if 0 <= host["nofile"] < needed:
            faults.append(f"{host['host']} allows {host['nofile']} open files, needed {needed}")
        if host["rdma_ports"] and host["memlock_bytes"] != MEMLOCK_BYTES:
            faults.append(f"{host['host']} has RDMA and locks at most {host['memlock_bytes']} bytes, needed unlimited")
    told = "; ".join(faults) or f"At least {needed} open files; locked memory is unlimited wherever RDMA needs it"
    return _made(
        check,
        not faults,
        f"{told}.",
        limit=float(needed),
        unit="open files",
        limit_source="this suite: 1024 and 64 for each rank; NCCL user guide, troubleshooting: memlock unlimited",
    )


def _shm(check: str, preflight: Preflight) -> Finding:
    source = "NCCL user guide, troubleshooting: shared memory in containers"
    return _lowest(check, preflight, "shm_free_bytes", SHM_BYTES, "Free space in /dev/shm", source, "GiB", GIB)


def _disk(check: str, preflight: Preflight) -> Finding:
    problems = [f"{host['host']}: {host['disk_problem']}" for host in _hosts(preflight) if host["disk_problem"]]
    if problems:
        return _made(check, False, f"The run folder cannot be written to: {'; '.join(problems)}.")
    source = "this suite: a run's logs and journal fit many times over"
    space = _lowest(
        check, preflight, "disk_free_bytes", DISK_FREE_BYTES, "Free space of the run folder", source, "GiB", GIB
    )
    speed = _lowest(
        check, preflight, "disk_bytes_per_s", DISK_BYTES_PER_S, "Write speed of the run folder", source, "MB/s", 1e6
    )
    return space if space.result is Result.FAIL else speed


def _memory(check: str, preflight: Preflight) -> Finding:
    per_rank = REHEARSAL_MEMORY_PER_RANK if preflight.setup["rehearsal"] else MEMORY_PER_RANK
    needed = per_rank * preflight.setup["ranks"] / preflight.setup["nodes"]
    source = f"this suite: {per_rank / GIB:.0f} GiB a rank for imports, loaders and pinned buffers"
    return _lowest(check, preflight, "memory_available_bytes", needed, "Free memory", source, "GiB", GIB)


def _numa(check: str, preflight: Preflight) -> Finding:
    hosts = {process["rank"]: record for process, record in preflight.records("host")}
    if not hosts:
        raise _Unmeasured("no node was written down")
    if all(host["numa_nodes"] <= 1 for host in hosts.values()):
        return _skip(check, "Every node has one memory node, so nothing is far.")
    far = []
    for process, record in preflight.records("health"):
        near = set(cpu_list(str(record.get("local_cpus", ""))))
        if near and not near & set(hosts[process["rank"]]["cpus_allowed"]):
            far.append(
                f"device {record['index']} of {hosts[process['rank']]['host']} is near CPUs {record['local_cpus']}"
            )
    told = (
        "; ".join(far) + ", where this process may not run"
        if far
        else "Every device has CPUs near it that ranks may use"
    )
    return _made(
        check,
        not far,
        f"{told}.",
        value=float(len(far)),
        unit="devices",
        limit=0.0,
        limit_source="sysfs: local_cpulist",
    )


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


def _frequency(check: str, preflight: Preflight) -> Finding:
    known = [host for host in _hosts(preflight) if host["governor"]]
    if not known:
        return _skip(check, "The kernel does not tell how it chooses the CPU's frequency, as in most virtual machines.")
    slow = [f"{host['host']}: governor powersave" for host in known if host["governor"] == "powersave"]
    slow += [
        f"{host['host']}: limited to {limit / most:.0%} of its frequency"
        for host in known
        for limit, most in [(number(host["frequency_limit_khz"]), number(host["frequency_max_khz"]))]
        if limit < 0.95 * most
    ]
    told = "; ".join(slow) or "No CPU is held below its frequency"
    return _made(
        check,
        not slow,
        f"{told}.",
        value=float(len(slow)),
        unit="nodes",
        limit=0.0,
        limit_source="the CPU's own maximum",
    )


def _rdma(check: str, preflight: Preflight) -> Finding:
    hosts = _hosts(preflight)
    if not any(host["rdma_ports"] for host in hosts):
        return _skip(check, "No node has RDMA ports.")
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
    told = "; ".join(faults) or f"{sum(active.values())} active ports, {', '.join(rates)}"
    return _made(
        check, not faults, f"{told}.", value=float(sum(active.values())), unit="ports", limit="alike on all nodes"
    )


def _clock(check: str, preflight: Preflight) -> Finding:
    offsets = [(abs(number(r["offset_s"])), process) for process, r in _some(preflight.records("clock"), "clock")]
    worst, process = max(offsets, key=lambda pair: -1.0 if math.isnan(pair[0]) else pair[0])
    good = all(offset <= CLOCK_SECONDS for offset, _ in offsets)
    return _made(
        check,
        good,
        f"The clock of rank {process['rank']} is {worst:.6f} s off rank 0's, the most of {len(offsets)} ranks.",
        value=worst,
        unit="s",
        limit=CLOCK_SECONDS,
        limit_source="this suite: logs of several nodes are read side by side, and steps take seconds",
    )


def _software(check: str, preflight: Preflight) -> Finding:
    nodes = _some(preflight.records("host"), "node")
    stacks = {f"node {process['rank']} ({host['host']})": dict(host["software"]) for process, host in nodes}
    libraries = {process["rank"]: tuple(r["libraries"]) for process, r in preflight.records("backend")}
    faults = []
    for package in sorted({name for stack in stacks.values() for name in stack}):
        versions = {host: stack.get(package, "absent") for host, stack in stacks.items()}
        if len(set(versions.values())) > 1:
            faults.append(f"{package}: " + ", ".join(f"{host} {version}" for host, version in versions.items()))
    if len(set(libraries.values())) > 1:
        faults.append(f"collective libraries differ between ranks: {sorted(set(libraries.values()))}")
    one = next(iter(stacks.values()))
    told = "; ".join(faults) or f"{len(stacks)} node(s) alike: " + ", ".join(f"{k} {v}" for k, v in one.items())
    return _made(
        check,
        not faults,
        f"{told}.",
        value=float(len(faults)),
        unit="differences",
        limit=0.0,
        limit_source="this suite",
    )


# --- compute ---


def _gemm_correct(check: str, preflight: Preflight) -> Finding:
    products = _some(preflight.records("gemm"), "matrix product")
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
    message = "; ".join(bad[:4]) or f"{len(products)} products agree with fp64, worst relative error {worst:.2e}"
    return _made(check, not bad, f"{message}.", value=worst, limit=limit, limit_source=source)


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
        raise _Unmeasured("no speed was written down")
    return products, copies


def _gemm_speed(check: str, preflight: Preflight) -> Finding:
    products, _ = _speeds(preflight, "alone")
    shapes: dict[str, list[float]] = {}
    for _, record in preflight.records("gemm"):
        if record["setting"] == "alone":
            shapes.setdefault(record["name"], []).append(number(record["tflops"]))
    told = ", ".join(f"{name} {min(values):.4g}" for name, values in shapes.items())
    ceiling = max(statistics.median(values) for values in shapes.values())
    extra = f"TFLOPS: {told}; MFU's ceiling is {ceiling:.4g}"
    return _against_expected(check, preflight, "gemm-square", products, "TFLOPS", extra)


def _copy_speed(check: str, preflight: Preflight) -> Finding:
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
    return _made(
        check,
        slowest >= limit,
        f"{told}; this device is known to reach {figure['value']:.4g} ({extra}).",
        value=slowest,
        unit=unit,
        limit=limit,
        limit_source=f"{BELOW_EXPECTED:.0%} below {figure['source']}",
        margin=slowest / limit - 1,
    )


def _even(check: str, preflight: Preflight) -> Finding:
    alone, together = _speeds(preflight, "alone"), _speeds(preflight, "together")
    if preflight.shared:
        return _skip(check, "All ranks share one processor; their speeds say nothing about each other.")
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
    message = "; ".join(faults) or f"{len(alone[0])} devices alike: the slowest at {slowest:.1%} of the typical"
    return _made(
        check,
        not faults,
        f"{message}.",
        value=slowest,
        limit=1 - UNEVEN,
        limit_source=f"this suite: {UNEVEN:.0%} below the median device; {TOGETHER:.0%} below its own speed alone",
    )


def _capacity(check: str, preflight: Preflight) -> Finding:
    held = _some(preflight.records("capacity"), "capacity")
    process, worst = min(held, key=lambda item: number(item[1]["held_gib"]))
    needed = number(worst["needed_gib"])
    broken = [preflight.where(p) for p, record in held if record["intact"] is not True]
    good = number(worst["held_gib"]) >= needed and not broken
    message = (
        f"{preflight.where(process)} held {number(worst['held_gib']):.3g} of the {needed:.3g} GiB that "
        f"{preflight.setup['workload']} needs at its peak"
    )
    message += f"; memory does not keep what is written on {', '.join(broken)}" if broken else ""
    message += f": {worst['problem']}" if worst["problem"] else ""
    return _made(
        check,
        good,
        f"{message}.",
        value=number(worst["held_gib"]),
        unit="GiB",
        limit=needed,
        limit_source="the plan's estimate",
    )


# --- kernels ---


def _kernel(check: str, preflight: Preflight) -> Finding:
    name = check.removeprefix("kernel-")
    errors = [(p, r) for p, r in preflight.records("kernel-error") if r["kernel"] == name]
    if errors:
        process, record = errors[0]
        return _made(check, False, f"{preflight.where(process)}: {name} cannot run: {record['problem']}.")
    results = _some([(p, r) for p, r in preflight.records("kernel") if r["kernel"] == name], f"result of {name}")
    judged = [(process, record, *_kernel_limits(record)) for process, record in results]
    bad = [item for item in judged if not _kernel_good(*item[1:])]
    providers = sorted({record["provider"] for _, record in results})
    process, record, limit, _ = max(
        bad or judged, key=lambda item: _rank_of(number(item[1]["error"])) / (item[2] or math.inf)
    )
    told = f"{record['case']}, {record['result']}: relative error {number(record['error']):.2e}"
    if bad:
        told = (
            f"{preflight.where(process)}: {told}, worst row {record['row']} {number(record['worst_row']):.2e}, "
            f"{record['not_finite']} elements not finite; seed {record['seed']}, {len(bad)} of {len(judged)} wrong"
        )
    else:
        told = f"{len(judged)} results agree; worst is {told}"
    source = f"roundings to {record['dtype']}, {ROUNDOFF[record['dtype']]:.3g} each"
    return _made(
        check,
        not bad,
        f"{told} ({', '.join(providers)}{_kernel_speed(preflight, name)}).",
        value=number(record["error"]),
        limit=limit,
        limit_source=source,
    )


def _kernel_limits(record: Record) -> tuple[float, float]:
    limit = ROUNDINGS[(record["kernel"], record["result"])] * ROUNDOFF[record["dtype"]]
    return limit, min(ROW_LIMIT, ROW_FACTOR * limit)


def _kernel_good(record: Record, limit: float, row_limit: float) -> bool:
    # "not <=" and not ">": nan passes no limit.
    return number(record["error"]) <= limit and number(record["worst_row"]) <= row_limit and record["not_finite"] == 0


def _rank_of(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _kernel_speed(preflight: Preflight, name: str) -> str:
    speeds = [record for _, record in preflight.records("kernel-speed") if record["kernel"] == name]
    if not speeds:
        return ""
    first = speeds[0]
    rate = f", {number(first['tflops']):.3g} TFLOPS" if "tflops" in first else ""
    return f"; {first['case']}: {number(first['seconds']) * 1e3:.3g} ms{rate}"


def _determinism(check: str, preflight: Preflight) -> Finding:
    results = _some(preflight.records("kernel"), "kernel result")
    different = sorted({f"{r['kernel']} {r['result']}" for _, r in results if r["same_twice"] is not True})
    told = (
        f"Not the same twice, bit by bit: {', '.join(different)}"
        if different
        else "Every kernel gives the same bits twice"
    )
    return _made(
        check,
        not different,
        f"{told}.",
        value=float(len(different)),
        unit="results",
        limit=0.0,
        limit_source="two runs on the same inputs",
    )


def _shim(check: str, preflight: Preflight) -> Finding:
    told = [record for _, record in _some(preflight.records("reduction"), "reduction")]
    lost = [
        row["detail"] for _, row in preflight.records("contract") if row["aspect"] == "float64" and row["state"] != "ok"
    ]
    good = not lost and all(record["float64"] == "kept" for record in told)
    message = f"AVG {told[0]['avg']}; float64 in a sum over ranks is {told[0]['float64']}"
    message += f"; on the device: {lost[0]}" if lost else ""
    return _made(
        check, good, f"{message}.", value=str(told[0]["avg"]), limit="float64 is kept", limit_source="this suite"
    )


# --- collectives ---


def _collective_correct(check: str, preflight: Preflight) -> Finding:
    made = _some(preflight.records("collective"), "collective")
    bad = []
    for process, record in made:
        limit = collective_limit(record)
        if record["problem"] or not number(record["error"]) <= limit:
            told = record["problem"] or f"off by {number(record['error']):.2e}, allowed {limit:.2e}"
            bad.append(
                f"{preflight.where(process)}: {record['operation']} of {record['dtype']} in {record['group']}: {told}"
            )
    groups = len({record["group"] for _, record in made})
    operations = len({record["operation"] for _, record in made})
    message = "; ".join(bad[:3]) + (f"; and {len(bad) - 3} more" if len(bad) > 3 else "")
    message = message or f"{len(made)} results of {operations} collectives in {groups} kinds of group are right"
    return _made(
        check,
        not bad,
        f"{message}.",
        value=float(len(bad)),
        unit="wrong results",
        limit=0.0,
        limit_source="sums of two whole numbers are exact in every dtype",
    )


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


def _collective_speed(check: str, preflight: Preflight) -> Finding:
    made = [r for p, r in _some(preflight.records("bandwidth"), "bandwidth") if p["rank"] == 0]
    largest = max(r["bytes"] for r in made)
    told = ", ".join(f"{r['operation']} {number(r['busbw_gb_per_s']):.4g}" for r in made if r["bytes"] == largest)
    if preflight.setup["ranks"] == 1:
        return _skip(check, "One rank has nobody to speak to.")
    bad = [f"{r['operation']} of {r['bytes']} bytes" for r in made if not number(r["algbw_gb_per_s"]) > 0]
    grown = _grows(made)
    message = f"busbw at {largest / 2**20:.4g} MiB in GB/s: {told}"
    message += f"; slower for large messages than for smaller ones: {', '.join(grown)}" if grown else ""
    return _made(
        check,
        not bad and not (grown and not preflight.shared),
        f"{message}.",
        value=max(number(r["busbw_gb_per_s"]) for r in made),
        unit="GB/s",
        limit="a larger message is no slower",
        limit_source=f"this suite: within {LINK_UNEVEN:.0%}",
    )


def _grows(made: Iterable[Record]) -> list[str]:
    """Collectives whose bandwidth falls where the message grows: a protocol or a path that breaks down."""
    fallen = []
    by_operation: dict[str, list[tuple[int, float]]] = {}
    for record in made:
        by_operation.setdefault(record["operation"], []).append((record["bytes"], number(record["algbw_gb_per_s"])))
    for operation, points in by_operation.items():
        for (size, speed), (larger, after) in itertools.pairwise(sorted(points)):
            if not after >= speed * (1 - LINK_UNEVEN):
                fallen.append(f"{operation} {speed:.4g} GB/s at {size} bytes, {after:.4g} at {larger}")
    return fallen


def _links(check: str, preflight: Preflight) -> Finding:
    if preflight.setup["ranks"] == 1:
        return _skip(check, "One rank has no link.")
    made = [record for _, record in _some(preflight.records("link"), "link")]
    if preflight.shared:
        return _skip(check, "All ranks share one processor; their links say nothing about each other.")
    # Links inside a node and between nodes are of different kinds; each is held against its own.
    per_node = preflight.setup["ranks"] // preflight.setup["nodes"]
    kinds: dict[bool, list[Record]] = {}
    for record in made:
        kinds.setdefault(record["sender"] // per_node == record["receiver"] // per_node, []).append(record)
    faults, slowest = [], 1.0
    for inside, links in kinds.items():
        typical = statistics.median(number(link["gb_per_s"]) for link in links)
        slowest = min(slowest, *(number(link["gb_per_s"]) / typical for link in links))
        faults += [
            f"rank {link['sender']} to {link['receiver']}: {number(link['gb_per_s']):.4g} GB/s, typical "
            f"{'inside a node' if inside else 'between nodes'} is {typical:.4g}"
            for link in links
            if not number(link["gb_per_s"]) >= typical * (1 - LINK_UNEVEN)
        ]
    message = "; ".join(faults) or f"{len(made)} links alike: the slowest at {slowest:.1%} of the typical"
    return _made(
        check,
        not faults,
        f"{message}.",
        value=slowest,
        limit=1 - LINK_UNEVEN,
        limit_source="this suite: below the median link of its kind",
    )


def _arrivals(check: str, preflight: Preflight) -> Finding:
    made = _some(preflight.records("arrival"), "arrival")
    if preflight.setup["ranks"] == 1:
        return _skip(check, "One rank waits for nobody.")
    process, worst = max(made, key=lambda item: number(item[1]["late_seconds"]))
    work = statistics.median(number(record["work_seconds"]) for _, record in made)
    late = number(worst["late_seconds"])
    message = f"Rank {process['rank']} comes last, {late * 1e3:.2f} ms late after {work * 1e3:.2f} ms of the same work"
    if preflight.shared:
        return _skip(check, f"{message}; all ranks share one processor.")
    limit = max(LATE_SHARE * work, 1e-3)
    return _made(
        check,
        late <= limit,
        f"{message}.",
        value=late,
        unit="s",
        limit=limit,
        limit_source=f"this suite: {LATE_SHARE:.0%} of the work, at least 1 ms",
    )


# --- one step ---


def _step(check: str, preflight: Preflight) -> Finding:
    made = _some(preflight.records("step"), "training step")
    faults = []
    for process, record in made:
        for name, limit in (("loss", STEP_LOSS), ("grad_norm", STEP_NORM)):
            got, expected = number(record[name]), number(record[f"expected_{name}"])
            if not abs(got - expected) <= limit * abs(expected):
                faults.append(
                    f"rank {process['rank']}, tensor {record['tensor']}: {name} {got:.6g}, fp32 {expected:.6g}"
                )
    losses = {record["tensor"]: number(record["loss"]) for _, record in made}
    if len(losses) > 1 and not max(losses.values()) - min(losses.values()) <= TENSOR_PARALLEL_LOSS * min(
        losses.values()
    ):
        faults.append("loss by tensor-parallel size: " + ", ".join(f"{t}: {loss:.6g}" for t, loss in losses.items()))
    record = made[0][1]
    sizes = " and ".join(str(size) for size in sorted(losses))
    message = "; ".join(faults) or (
        f"Loss {number(record['loss']):.6g} (fp32 {number(record['expected_loss']):.6g}), gradient norm "
        f"{number(record['grad_norm']):.6g} (fp32 {number(record['expected_grad_norm']):.6g}), tensor size {sizes}"
    )
    return _made(
        check,
        not faults,
        f"{message}.",
        value=number(record["loss"]),
        limit=STEP_LOSS,
        limit_source="this suite: 2^-8 for the loss and 2^-6 for the gradient norm, after two layers in bf16",
    )


KERNELS = ("attention", "rotary", "rms-norm", "linear", "cross-entropy", "embedding", "adamw", "grad-norm", "scatter")
# Check -> the task whose processes must have ended well, and the function that makes it.
CHECKS: dict[str, tuple[str, Callable[[str, Preflight], Finding]]] = {
    "preflight-ended": ("", _ended),
    "device-contract": ("contract", _contract),
    "device-identity": ("host", _identity),
    "device-health": ("host", _healthy),
    "device-busy": ("host", _busy),
    "device-bus": ("host", _bus),
    "host-limits": ("host", _limits),
    "host-shm": ("host", _shm),
    "host-disk": ("host", _disk),
    "host-memory": ("host", _memory),
    "host-numa": ("host", _numa),
    "host-frequency": ("host", _frequency),
    "host-rdma": ("host", _rdma),
    "host-software": ("host", _software),
    "host-clock": ("collectives", _clock),
    "gemm-correct": ("device", _gemm_correct),
    "gemm-speed": ("device", _gemm_speed),
    "copy-speed": ("device", _copy_speed),
    "speed-even": ("device", _even),
    "device-capacity": ("device", _capacity),
    **{f"kernel-{name}": ("device", _kernel) for name in KERNELS},
    "kernel-determinism": ("device", _determinism),
    "shim-numerics": ("collectives", _shim),
    "collective-correct": ("collectives", _collective_correct),
    "collective-speed": ("collectives", _collective_speed),
    "link-even": ("collectives", _links),
    "arrival-even": ("collectives", _arrivals),
    "training-step": ("step", _step),
}
