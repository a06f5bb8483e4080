"""Device telemetry once a second, by a process of its own: the training and its supervisor never wait for it.

A device plugin may name a command that prints CSV until it is ended, with a method
``telemetry_command() -> list[str]``: NVIDIA's is conformance/devices/nvml.py. The CPU's is sampled here.

A run of days would leave gigabytes: from FULL_RATE_SECONDS on, which no performance run reaches, one sample a minute of
each device is kept, as the tool printed it; nothing is averaged, and each row tells its own time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import psutil

from conformance.devices import load_device
from conformance.launch import samples
from conformance.launch.torchrun import RUN_MARK, mark, telemetry_mark

INTERVAL_SECONDS = 1.0
# The longest performance run, 70B on 32 cards, takes about 2 h at the reference's speed. 6 h of 8 devices are 25 MB.
FULL_RATE_SECONDS = 6 * 3600.0
# 8 devices: 1.7 MB a day.
THIN_SECONDS = float(samples.MAX_SECONDS)


@contextlib.contextmanager
def sampled(device: str, run: Path, node_rank: int) -> Iterator[None]:
    """Sample this node's devices meanwhile, into environment/telemetry-nodeN.csv.

    Args:
        device: Name of the device plugin.
        run: Run directory.
        node_rank: Index of this node.
    """
    tool = _tool(device)
    if tool is None:
        # In the place of the samples, so that their absence is evidence too; it has none of the columns that are read.
        told = f"no telemetry: the device plugin {device} names no tool that prints it\n"
        (run / "environment" / f"telemetry-node{node_rank}.csv").write_text(told)
        yield
        return
    command = [sys.executable, "-m", "conformance.launch.telemetry", str(os.getpid()), *tool]
    variables = os.environ | {RUN_MARK: telemetry_mark(mark(run, node_rank))}
    with (run / "environment" / f"telemetry-node{node_rank}.csv").open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.DEVNULL, env=variables, start_new_session=True
        )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the vendor's tool too, whatever it does about signals
        process.wait()


def _tool(device: str) -> list[str] | None:
    """The vendor's tool; empty where the samples are taken here, None where there is none."""
    if device == "cpu":
        return []
    own = getattr(load_device(device), "telemetry_command", None)
    return None if own is None else list(own())


def thinned(rows: Iterable[tuple[float, str]]) -> Iterator[str]:
    """Keep every row of the first hours, and one a minute of each device from then on.

    Args:
        rows: Seconds since the start, and a line of the CSV; the header first.

    Yields:
        The lines that are kept, unchanged.
    """
    place: int | None = None
    last: dict[str, float] = {}
    for number, (seconds, line) in enumerate(rows):
        cells = samples.split(line)
        if number == 0:
            place = samples.column(cells, samples.INDEX)
        device = cells[place] if place is not None and place < len(cells) else ""
        # Half an interval less, so that a tool that is a little early does not make it two minutes.
        if seconds > FULL_RATE_SECONDS and seconds - last.get(device, 0.0) < THIN_SECONDS - INTERVAL_SECONDS / 2:
            continue
        last[device] = seconds
        yield line


def main(parent: int, tool: list[str]) -> None:
    """Print samples until the parent is gone.

    Args:
        parent: Process id of the suite.
        tool: Command of the vendor's tool; empty for the CPU's own figures.
    """
    begun = time.monotonic()
    for line in thinned((time.monotonic() - begun, line) for line in (_printed_by(tool) if tool else _of_cpu())):
        if os.getppid() != parent:  # the suite was killed; its guard ends a tool that says no more
            break
        print(line, flush=True)


def _printed_by(tool: list[str]) -> Iterator[str]:
    with subprocess.Popen(
        tool, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
    ) as process:
        for line in process.stdout or ():
            yield line.rstrip("\n")


def _of_cpu() -> Iterator[str]:
    yield "timestamp, index, utilization.cpu [%], memory.used [MiB], temperature.cpu [C], clocks.cpu [MHz]"
    psutil.cpu_percent()
    while True:
        time.sleep(INTERVAL_SECONDS)
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
        clock = f"{frequency.current:.0f}" if frequency else "[N/A]"
        memory = psutil.virtual_memory().used >> 20
        yield f"{now}, 0, {psutil.cpu_percent():.1f}, {memory}, {_temperature()}, {clock}"


def _temperature() -> str:
    with contextlib.suppress(AttributeError, OSError):
        groups = psutil.sensors_temperatures()
        readings = [reading.current for name in ("coretemp", "k10temp") for reading in groups.get(name, [])]
        if readings:
            return f"{max(readings):.0f}"
    return "[N/A]"


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
