"""One measuring process: ``python -m conformance.preflight.worker TASK.json``; ends by itself or is ended.

Everything that touches a device happens in such a process, so that a driver which hangs or crashes takes no more than
its own measurement with it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

# After so many kernels of a device that hung, its other ones are not tried: all devices wait for it meanwhile.
KERNEL_HANGS = 2
KERNEL_SECONDS = 30.0


@dataclass(frozen=True)
class Task:
    """What one process, or one process a rank, measures.

    Args:
        name: Name of the measurement, a key of TASKS.
        device: Name of the device plugin.
        out: Path of the journals, without rank and suffix.
        seed: Seed of all random inputs.
        rehearsal: Whether the small shapes of a CPU are measured.
        model: Sizes of the planned model, as `conformance.spec.Model` has them.
        tokens: Tokens of a micro batch.
        tensor: Tensor-parallel size of the plan.
        pipeline: Pipeline-parallel size of the plan.
        capacity_gib: Memory that the plan needs on a device.
        zero1: Ranks that share one copy of the optimizer state; 0 for all of the data-parallel group.
        optimizer_elements: Parameters whose optimizer state lies on one rank.
        devices: Devices of this node that are measured.
        workload: Name of the planned workload.
        internevo: Root of an InternEvo checkout; None for the installed wheel.
        kernel_seconds: After so long in one case of a kernel, it counts as hanging: several times what one takes, the
            compiling of it included.
    """

    name: str
    device: str
    out: str
    seed: int
    rehearsal: bool
    model: dict[str, float | str]
    tokens: int
    tensor: int
    pipeline: int
    capacity_gib: float
    zero1: int = 0
    optimizer_elements: int = 0
    devices: int = 1
    workload: str = ""
    internevo: str | None = None
    kernel_seconds: float = KERNEL_SECONDS

    def write(self, path: Path) -> None:
        """Write the task where its process reads it.

        Args:
            path: A file.
        """
        path.write_text(json.dumps(asdict(self)))


def main(argv: list[str]) -> int:
    """Run one task.

    Args:
        argv: Path of the task file.

    Returns:
        0; a measurement that fails raises.
    """
    task = Task(**json.loads(Path(argv[0]).read_text()))
    rank = int(os.environ.get("RANK", "0"))
    from conformance.preflight.probe import Journal

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    journal = Journal(Path(f"{task.out}.rank{rank}.jsonl"))
    journal.phase("start")
    _run(task, journal)
    journal.phase("done")
    return 0


def _end_with(parent: int) -> None:
    """End this process when the one that watches its time limit is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _run(task: Task, journal: object) -> None:
    # Imported here: each measurement brings its own weight, and the contract must begin without torch.
    from importlib import import_module

    module, function = TASKS[task.name]
    measure = getattr(import_module(f"conformance.preflight.{module}"), function)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if task.name == "contract":
        measure(task.device, journal, local_rank)
    elif task.name == "visible":
        measure(task.device, journal)
    else:
        measure(task, journal)


# Name -> module and function of conformance.preflight.
TASKS = {
    "contract": ("contract", "measure"),
    "visible": ("contract", "visible_devices"),
    "host": ("host", "measure"),
    "device": ("device", "measure"),
    "collectives": ("collectives", "measure"),
    "step": ("step", "measure"),
    "gather": ("gather", "measure"),
}

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
