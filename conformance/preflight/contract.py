"""Does a device plugin keep its contract? One small probe for each thing that InternEvo or this suite asks of it."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conformance.devices import Device, load_device
from conformance.devices.health import misunderstood
from conformance.preflight.probe import Journal

MIB = 1 << 20
# Of a probe that a busy machine can disturb.
ATTEMPTS = 3
COLLECTIVE_LIBRARIES = re.compile(
    r"lib(?:nccl|rccl|hccl|cncl|mccl|eccl|bccl|bkcl|xccl|tccl|ccl|ixccl)[\w.-]*\.so[\w.]*"
)


class Wrong(Exception):  # noqa: N818  a result, not an error of this program
    """The plugin answered, and the answer is not right."""


def demand(condition: object, told: str) -> None:
    """Raise Wrong unless a condition holds.

    Args:
        condition: What should hold.
        told: What does not, for people.
    """
    if not condition:
        raise Wrong(told)


def measure(name: str, journal: Journal, index: int = 0) -> None:
    """Probe a device plugin, in a process that has not imported torch.

    Args:
        name: Name of the plugin or vendor.
        journal: Gets one record "contract" for each aspect, and one record "last", the last device as it is seen here.
        index: Device to probe, of the visible ones.
    """
    device = load_device(name)

    def run(aspect: str, probe: Callable[[], str]) -> bool:
        journal.phase(f"contract: {aspect}")
        try:
            state, detail = "ok", probe()
        except Wrong as error:
            state, detail = "wrong", str(error)
        except Exception as error:  # a third party's code: told, whatever it raised
            state, detail = "missing", f"{type(error).__name__}: {error}".splitlines()[0]
        journal.record("contract", aspect=aspect, state=state, detail=detail)
        return state == "ok"

    found = run("count", lambda: _count(device))
    run("identity", lambda: _identity(device, index))
    run("serial and driver", lambda: _serial(device, index))
    run("smi", lambda: _health(device, index))
    if found:
        run("visible devices", lambda: _last(device, journal))
    if not found or not run("activate", lambda: _activate(device)):
        return
    run("set", lambda: _set(device, index))
    for aspect, probe in _PROBES.items():
        run(aspect, lambda probe=probe: probe(index))  # type: ignore[misc]
    run("collectives", lambda: _collectives(device))


def _count(device: Device) -> str:
    count = device.count()
    demand("torch" not in sys.modules, "count() imported torch; it must answer without")
    if count == 0:
        # Optional: a plugin that can say why there is none.
        why = getattr(device, "absence", str)() or "this machine shows no such device"
        raise Wrong(f"count() is 0: {why}")
    return f"{count}"


def _last(device: Device, journal: Journal) -> str:
    """What a process that sees the last device alone should see."""
    last = device.count() - 1
    told = {"variable": device.visible_devices, "index": last}
    journal.record("last", **told, uuid="" if device.visible_devices is None else name_of(device.identity(last)))
    return "not asked yet"


def name_of(identity: dict[str, str]) -> str:
    """What tells one device from all others.

    Args:
        identity: What ``Device.identity`` returned.

    Returns:
        Its uuid or serial number; empty where it has neither.
    """
    return identity.get("uuid") or identity.get("serial", "")


def _identity(device: Device, index: int) -> str:
    identity = device.identity(index)
    lacking = [field for field in ("vendor", "model") if identity.get(field, "unknown") == "unknown"]
    demand(not lacking, f"identity() lacks {', '.join(lacking)}")
    return ", ".join(f"{key} {value}" for key, value in identity.items() if value)


def _serial(device: Device, index: int) -> str:
    identity = device.identity(index)
    name = name_of(identity)
    if device.backend == "gloo" and not name:
        return "none: a CPU has neither"
    if not name or not identity.get("driver"):
        raise NotImplementedError("identity() lacks driver, or uuid and serial: devices and nodes cannot be told apart")
    return f"{name}, driver {identity['driver']}"


def _health(device: Device, index: int) -> str:
    health = device.health(index)
    if device.backend == "gloo" and not health:
        return "none: a CPU has no management tool"
    faults = misunderstood(health)
    demand(not faults, f"health(): {'; '.join(faults)}")
    if not health:
        raise NotImplementedError("health() tells nothing: error counters, throttling, other processes go unchecked")
    return ", ".join(sorted(health))


def _activate(device: Device) -> str:
    device.activate()
    import torch

    demand(torch.cuda.is_available(), "torch.cuda.is_available() is False after activate()")
    tensor = torch.ones(2, device="cuda")
    return f"torch {torch.__version__}; a tensor on 'cuda' lies on {tensor.device.type!r}"


def _set(device: Device, index: int) -> str:
    import torch

    seen = torch.cuda.device_count()
    demand(seen > 0, "torch.cuda.device_count() is 0")
    # A processor is one device that all ranks share: its count is that of its cores, and no core is chosen by number.
    last = index
    if not _is_processor(device):
        demand(seen == device.count(), f"count() is {device.count()}, torch.cuda.device_count() is {seen}")
        last = seen - 1
    for number in (last, index):
        torch.cuda.set_device(number)
        current = torch.cuda.current_device()
        demand(current == number, f"set_device({number}), then current_device() is {current}")
    return f"device {last} of {seen}, and back to {index}"


def _is_processor(device: Device) -> bool:
    return device.backend == "gloo" and device.visible_devices is None


def _synchronise(index: int) -> str:
    import torch

    side = 1024
    x = torch.ones(side, side, device="cuda")
    y = x @ x
    torch.cuda.synchronize()
    torch.cuda.synchronize(torch.cuda.current_device())
    demand(bool((y == side).all()), "a product of ones is wrong after synchronize()")
    return "ok"


def _streams(index: int) -> str:
    import torch

    x = torch.zeros(1 << 20, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(20):
            x += 1
    torch.cuda.current_stream().wait_stream(side)
    x.record_stream(side) if x.device.type != "cpu" else None
    x *= 2
    demand(bool((x == 40).all()), "work on a side stream was not ordered by wait_stream()")
    return "a side stream, ordered with the current one"


def _events(index: int) -> str:
    import torch

    side = 1024
    x = torch.randn(side, side, device="cuda")

    def timed(repetitions: int) -> tuple[float, float]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        wall = time.perf_counter()
        start.record()
        for _ in range(repetitions):
            torch.mm(x, x)
        end.record()
        end.synchronize()
        return start.elapsed_time(end), (time.perf_counter() - wall) * 1e3

    timed(4)
    # Long enough that starting the work does not count: doubled until 20 ms.
    repetitions, (_, wall) = 4, timed(4)
    while wall < 20 and repetitions < 1 << 16:
        repetitions *= 2
        _, wall = timed(repetitions)
    # The work is compared with the wall clock, never with other work: on a busy machine four times the work may take
    # twenty times as long. Whoever is put aside between the two clocks is asked again; a wrong event stays wrong.
    for _ in range(ATTEMPTS):
        pairs = [timed(repetitions), timed(4 * repetitions)]
        if all(0.5 < events / wall < 1.1 for events, wall in pairs):
            break
    told = " and ".join(f"{events:.1f} ms where the wall clock says {wall:.1f} ms" for events, wall in pairs)
    demand(all(0.5 < events / wall < 1.1 for events, wall in pairs), f"events say {told}")
    return f"by events {told}"


def _memory(index: int) -> str:
    import torch

    before = torch.cuda.memory_allocated()
    block = torch.ones(64 * MIB, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    grown = torch.cuda.memory_allocated() - before
    peak = torch.cuda.max_memory_allocated()
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    del block
    demand(60 * MIB <= grown <= 96 * MIB, f"64 MiB allocated, memory_allocated() grew by {grown / MIB:.1f} MiB")
    demand(peak >= grown, f"max_memory_allocated() is {peak / MIB:.1f} MiB, below what was allocated")
    demand(total > 0, "get_device_properties().total_memory is 0")
    return f"64 MiB seen as {grown / MIB:.1f}; {total / (1 << 30):.1f} GiB in all"


def _rng(index: int) -> str:
    import torch

    torch.cuda.manual_seed_all(7)
    first = torch.randn(64, device="cuda")
    torch.cuda.manual_seed_all(7)
    state = torch.cuda.get_rng_state()
    second = torch.randn(64, device="cuda")
    torch.cuda.set_rng_state(state)
    third = torch.randn(64, device="cuda")
    demand(torch.equal(first, second), "manual_seed_all() with the same seed gives other numbers")
    demand(torch.equal(second, third), "set_rng_state() does not restore what get_rng_state() gave")
    demand(not torch.equal(first, torch.randn(64, device="cuda")), "the generator repeats itself")
    return "seeded and restored"


def _bf16(index: int) -> str:
    import torch

    # The first is beyond fp16's range; the second lies between two bf16 numbers.
    x = torch.tensor([1e30, 1.00390625], dtype=torch.float32, device="cuda").to(torch.bfloat16)
    y = (x * torch.ones_like(x)).float().tolist()
    demand(y[0] > 9e29, f"1e30 in bf16 comes back as {y[0]}: the range is not bf16's")
    demand(y[1] in (1.0, 1.0078125), f"1.00390625 in bf16 comes back as {y[1]}: the precision is not bf16's")
    a = torch.full((64, 64), 1e15, dtype=torch.bfloat16, device="cuda")
    product = float((a @ a)[0, 0])
    demand(abs(product / 64e30 - 1) < 0.02, f"a bf16 product of 6.4e31 comes back as {product}")
    return "range and precision are bf16's"


def _autocast(index: int) -> str:
    import torch

    x = torch.ones(32, 32, device="cuda")
    with torch.autocast(device_type="cuda", dtype=torch.bfloat16):
        inside = (x @ x).dtype
    outside = (x @ x).dtype
    demand(inside == torch.bfloat16, f"under autocast to bf16 a product is {inside}")
    demand(outside == torch.float32, f"after autocast a product is {outside}")
    return "bf16 inside, fp32 outside"


def _double(index: int) -> str:
    import torch

    x = torch.tensor([1.0], dtype=torch.float64, device="cuda")
    y = x + 1e-12
    if y.dtype != torch.float64 or not float(y - x) > 0:
        # Told, not demanded: training needs no float64, but whoever reads a figure should know.
        raise NotImplementedError(f"float64 becomes {y.dtype}, 1 + 1e-12 is {float(y)!r}")
    return "float64 stays float64"


_PROBES: dict[str, Callable[[int], str]] = {
    "synchronise": _synchronise,
    "streams": _streams,
    "events": _events,
    "memory": _memory,
    "rng": _rng,
    "bf16": _bf16,
    "autocast": _autocast,
    "float64": _double,
}


def mapped_libraries() -> dict[str, Path]:
    """Collective libraries that are mapped into this process: what its groups really use.

    Returns:
        Paths by file name; empty where the system does not tell, and for gloo, which is part of torch.
    """
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    paths = {Path(line[line.index("/") :]) for line in lines if "/" in line}
    return {path.name: path for path in sorted(paths) if COLLECTIVE_LIBRARIES.fullmatch(path.name)}


def _collectives(device: Device) -> str:
    import torch
    import torch.distributed as dist

    store = dist.HashStore()
    dist.init_process_group(backend="nccl", store=store, rank=0, world_size=1)
    try:
        x = torch.ones(8, device="cuda")
        dist.all_reduce(x)
        torch.cuda.synchronize()
        backend = dist.get_backend()
        demand(bool((x == 1).all()), "all_reduce over one rank changes the value")
        demand(backend == device.backend, f"'nccl' becomes {backend!r}; the plugin says {device.backend!r}")
        return f"{backend}, {', '.join(mapped_libraries()) or 'no library of its own'}"
    finally:
        dist.destroy_process_group()


def visible_devices(name: str, journal: Journal) -> None:
    """Probe the variable that chooses the visible devices; this process runs with its last device chosen.

    Args:
        name: Name of the plugin or vendor.
        journal: Gets the record of what this process sees.
    """
    device: Any = load_device(name)
    identity = device.identity(0)
    journal.record("visible", count=device.count(), uuid=name_of(identity))
