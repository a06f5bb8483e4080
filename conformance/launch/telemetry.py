"""Device telemetry once a second, by a process of its own: the training and its supervisor never wait for it.

NVIDIA's is nvidia-smi's own CSV. A device plugin may name a command of its vendor's tool, which prints CSV until it is
ended, with a method ``telemetry_command() -> list[str]``. The CPU's is sampled here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import psutil

from conformance.devices import load_device

NVIDIA_FIELDS = (
    "timestamp,index,uuid,utilization.gpu,memory.used,power.draw,temperature.gpu,clocks.sm,clocks.mem,"
    "clocks_throttle_reasons.active"
)
INTERVAL_SECONDS = 1.0


@contextlib.contextmanager
def sampled(device: str, run: Path, node_rank: int) -> Iterator[None]:
    """Sample this node's devices meanwhile, into environment/telemetry-nodeN.csv.

    Args:
        device: Name of the device plugin.
        run: Run directory.
        node_rank: Index of this node.
    """
    command = _command(device)
    if command is None:
        yield
        return
    with (run / "environment" / f"telemetry-node{node_rank}.csv").open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _command(device: str) -> list[str] | None:
    """What samples; None where there is no tool."""
    if device == "cpu":
        return [sys.executable, "-m", "conformance.launch.telemetry", str(os.getpid())]
    own = getattr(load_device(device), "telemetry_command", None)
    if own is not None:
        return list(own())
    tool = shutil.which("nvidia-smi") if device == "cuda" else None
    return [tool, f"--query-gpu={NVIDIA_FIELDS}", "--format=csv", "--loop=1"] if tool else None


def main(parent: int) -> None:
    """Print the CPU's utilisation, frequency, temperature and the memory in use until the parent is gone.

    Args:
        parent: Process id.
    """
    print("timestamp, index, utilization.cpu [%], memory.used [MiB], temperature.cpu [C], clocks.cpu [MHz]", flush=True)
    psutil.cpu_percent()
    while psutil.pid_exists(parent):
        time.sleep(INTERVAL_SECONDS)
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
        clock = f"{frequency.current:.0f}" if frequency else "[N/A]"
        memory = psutil.virtual_memory().used >> 20
        print(f"{now}, 0, {psutil.cpu_percent():.1f}, {memory}, {_temperature()}, {clock}", flush=True)


def _temperature() -> str:
    with contextlib.suppress(AttributeError, OSError):
        groups = psutil.sensors_temperatures()
        readings = [reading.current for name in ("coretemp", "k10temp") for reading in groups.get(name, [])]
        if readings:
            return f"{max(readings):.0f}"
    return "[N/A]"


if __name__ == "__main__":
    main(int(sys.argv[1]))
