"""One training process: run by torchrun, it prepares device, kernels and patches, then hands over to InternEvo.

The training entry is the checkout's own train.py; the wheel ships none, so there a driver of ours stands in.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import platform
import runpy
import signal
import socket
import sys
import time
from importlib import metadata
from pathlib import Path

from conformance.devices import Device, load_device
from conformance.errors import DeviceError
from conformance.internevo.patches import Patch, apply_patches
from conformance.kernels import KernelSource, install

SETTINGS = "worker.json"
# Versions that decide what was computed.
PACKAGES = ("torch", "InternEvo", "flash-attn", "numpy", "triton", "einops", "internevo-conformance")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the launcher tells every worker of a run, besides InternEvo's own arguments.

    Args:
        device: Name of the device plugin.
        internevo: Root of an InternEvo checkout; None for the installed wheel.
    """

    device: str
    internevo: str | None

    def write(self, run: Path) -> None:
        """Leave the settings where the workers look for them.

        Args:
            run: Run directory.
        """
        (run / "work" / SETTINGS).write_text(json.dumps(dataclasses.asdict(self)))


def main(argv: list[str]) -> None:
    """Run one rank to its end.

    Settings come from a file, not from options: torchrun's parser takes an option of ours for one of its own.

    Args:
        argv: The run directory, then the arguments of InternEvo's train.py.
    """
    run, training = Path(argv[0]).resolve(), argv[1:]
    rank, node, local_rank = (int(os.environ[name]) for name in ("RANK", "GROUP_RANK", "LOCAL_RANK"))
    _write_to(run / "logs" / f"node{node}" / f"rank{rank}.log")
    settings = Settings(**json.loads((run / "work" / SETTINGS).read_text()))

    device = load_device(settings.device)
    device.activate()
    kernels = install()
    # From here on InternEvo is imported. Its tree stays as it was published; bytecode that lies in it is not believed.
    sys.pycache_prefix = str(run / "work" / "pycache")
    if settings.internevo:
        sys.path.insert(0, settings.internevo)
    patches = apply_patches()
    identity = {"plugin": settings.device, "index": str(local_rank), **_identity(device, local_rank)}
    record = _record(rank, identity, kernels, patches)
    _leave(record, run, f"rank{rank}.json")

    os.chdir(run / "work")  # InternEvo writes RUN/ and its checkpoints relative to where it runs
    sys.argv = ["train.py", *training]
    if settings.internevo:
        runpy.run_path(str(Path(settings.internevo) / "train.py"), run_name="__main__")
    else:
        from conformance.internevo import driver

        driver.main()


def _write_to(log: Path) -> None:
    """Send everything that this process prints, C code included, to its own log, unbuffered by line."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # the supervisor asks a hung rank for its stack this way


def _identity(device: Device, index: int) -> dict[str, str]:
    """Ask a device who it is, twice where a tool that all ranks ask at once is late; without an answer, train nothing.

    A report that names no device is none, and so would be found at the end, after days.
    """
    for _ in range(2):
        told = device.identity(index)
        lacking = [field for field in ("vendor", "model") if not told.get(field)]
        if not lacking:
            return told
    raise DeviceError(
        f"Device {index} on {socket.gethostname()} ({device.name}) tells no {' and no '.join(lacking)}, asked twice; "
        f"it tells {', '.join(told) or 'nothing'}.",
        f"`conformance device-check {device.name}` asks it again; NVIDIA's tool is late without persistence mode "
        "(nvidia-smi -pm 1).",
    )


def _record(
    rank: int, device: dict[str, str], kernels: tuple[KernelSource, ...], patches: tuple[Patch, ...]
) -> dict[str, object]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "rank": rank,
        "host": socket.gethostname(),
        "device": device,
        "utc_offset_seconds": time.localtime().tm_gmtoff,  # InternEvo's log has local times
        "python": platform.python_version(),
        "kernel": platform.release(),
        "packages": versions,
        "kernels": [dataclasses.asdict(kernel) for kernel in kernels],
        "patches": [
            {"id": patch.id, "reason": patch.reason, "affects": patch.affects, "sha256": patch.digest}
            for patch in patches
        ],
    }


def _leave(record: dict[str, object], run: Path, name: str) -> None:
    """Leave a record among the evidence, whole or not at all: a full disk, or whatever kills a rank, may cut it."""
    written = run / "work" / name
    written.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    written.replace(run / "environment" / name)


if __name__ == "__main__":
    main(sys.argv[1:])
