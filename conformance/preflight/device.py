"""Everything about one device that needs no collective: speed alone and beside its neighbours, kernels, capacity."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

from conformance.devices import load_device
from conformance.preflight import compute, kernels
from conformance.preflight.probe import Journal
from conformance.preflight.worker import Task

MEETING_SECONDS = 300


def measure(task: Task, journal: Journal) -> None:
    """Measure this process's device.

    Args:
        task: What is planned.
        journal: Gets all records.
    """
    import torch

    local_rank, local = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    journal.phase("device: activate")
    device = load_device(task.device)
    device.activate()
    torch.cuda.set_device(local_rank)
    if "compute" not in journal.behind():
        journal.record("process", host=socket.gethostname(), local_rank=local_rank, threads=torch.get_num_threads())
        _compute(task, journal, local_rank, local)
        compute.loaded_health(task, journal, device, local_rank)
        journal.over("compute")
    kernels.measure(task, journal)
    compute.capacity(task, journal)


def _compute(task: Task, journal: Journal, local_rank: int, local: int) -> None:
    """Measure this device's speed alone, in its turn, and with all others at work."""
    meet = _Meeting(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    for turn in range(local):
        journal.phase(f"device: waiting for turn {turn}")
        meet.all()
        if turn == local_rank:
            compute.measure(task, journal, "alone")
    meet.all()
    compute.measure(task, journal, "together")


class _Meeting:
    """A barrier that needs no device: ranks count themselves in a store of rank 0."""

    def __init__(self, rank: int, world: int) -> None:
        import torch.distributed as dist

        self._world = world
        self._number = 0
        self._store: Any = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            world,
            rank == 0,
            timedelta(seconds=MEETING_SECONDS),
        )

    def all(self) -> None:
        """Wait for every rank."""
        self._number += 1
        if self._store.add(f"meeting-{self._number}", 1) == self._world:
            self._store.set(f"met-{self._number}", "yes")
        self._store.wait([f"met-{self._number}"])
