"""Brings what each node has together: one process a node, over gloo, which needs no device."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from conformance.preflight.probe import Journal
from conformance.preflight.worker import Task

MEETING_SECONDS = 60


def measure(task: Task, journal: Journal) -> None:
    """Exchange what each node gives.

    Args:
        task: Names the file that this node gives.
        journal: Gets one record "gathered" for each node, in their order.
    """
    journal.phase("gather: meeting the other nodes")
    dist.init_process_group(backend="gloo", timeout=timedelta(seconds=MEETING_SECONDS))
    everybody: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, json.loads(Path(f"{task.out}.given.json").read_text()))
    for given in everybody:
        journal.record("gathered", of_node=given)
    dist.destroy_process_group()
