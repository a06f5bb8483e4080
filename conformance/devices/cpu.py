"""The CPU as a training device: unmodified InternEvo, its torch.cuda calls answered by the CPU, NCCL by gloo."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from conformance.devices.redirect import Answers, redirect


class CpuDevice:
    """The rehearsal device."""

    name = "cpu"
    backend = "gloo"
    visible_devices = None

    def count(self) -> int:
        """Processor cores that this process may use.

        Returns:
            Number of cores.
        """
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def activate(self) -> None:
        """Answer torch.cuda from the CPU and NCCL from gloo, for this process."""
        import torch

        redirect("cpu", _answers(), self.backend)
        if hasattr(torch, "accelerator"):
            # A build for CUDA would take the answers above for a real device, and pin memory for it.
            torch.accelerator.current_accelerator = lambda check_available=False: None
            torch.accelerator.is_available = lambda: False
        # Each rank gets its share of the cores; torch would give every rank all of them.
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, self.count() // ranks_here))

    def identity(self, index: int) -> dict[str, str]:
        """Processor of this machine.

        Args:
            index: Not needed; every rank shares the processor.

        Returns:
            Vendor, model, architecture, and what draws its random numbers: every processor draws the same ones.
        """
        fields: dict[str, str] = {}
        with contextlib.suppress(OSError):
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                key, _, value = line.partition(":")
                fields.setdefault(key.strip(), value.strip())
        return {
            "vendor": fields.get("vendor_id", "unknown"),
            "model": fields.get("model name", platform.processor() or "unknown"),
            "architecture": platform.machine(),
            "generator": "cpu",
        }

    def health(self, index: int) -> dict[str, str]:
        """Nothing: a processor has no such counters of its own.

        Args:
            index: Not needed.

        Returns:
            An empty dictionary.
        """
        return {}


class CpuStream:
    """Stands where torch.cuda has a stream: the CPU computes in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accept what a stream accepts."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None

    def __enter__(self) -> CpuStream:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


class CpuEvent:
    """An event that notes the time at which the CPU reached it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accept what torch.cuda.Event accepts."""
        self._time: float | None = None

    def record(self, stream: object = None) -> None:
        """Note the time.

        Args:
            stream: Not needed; there is one.
        """
        self._time = time.perf_counter()

    def wait(self, stream: object = None) -> None:
        """Do nothing: what was recorded is over.

        Args:
            stream: Not needed.
        """

    def synchronize(self) -> None:
        """Do nothing: what was recorded is over."""

    def query(self) -> bool:
        """Whether the event is over.

        Returns:
            True.
        """
        return True

    def elapsed_time(self, end: CpuEvent) -> float:
        """Time between two events.

        Args:
            end: The later event.

        Returns:
            Milliseconds.

        Raises:
            RuntimeError: One of them was not recorded.
        """
        if self._time is None or end._time is None:
            raise RuntimeError("Both events must be recorded before the time between them is asked for.")
        return (end._time - self._time) * 1e3


def _answers() -> Answers:
    import torch

    def seed(value: int) -> None:
        # The generator itself: torch.manual_seed would call back into torch.cuda.
        torch.default_generator.manual_seed(value)

    answers: Answers = {
        "is_available": lambda: True,
        "is_bf16_supported": lambda *args, **kwargs: True,
        "device_count": lambda: int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "manual_seed": seed,
        "manual_seed_all": seed,
        "get_rng_state": lambda device=None: torch.default_generator.get_state(),
        "set_rng_state": lambda state, device=None: torch.default_generator.set_state(state),
        "memory_stats": lambda device=None: {},
        "mem_get_info": _memory_info,
        "get_device_properties": lambda device=None: SimpleNamespace(name="cpu", total_memory=_memory_info()[1]),
        "get_device_name": lambda device=None: "cpu",
        "reset_peak_memory_stats": lambda device=None: None,
        "Stream": CpuStream,
        "Event": CpuEvent,
        "current_stream": lambda device=None: CpuStream(),
        "default_stream": lambda device=None: CpuStream(),
        "stream": lambda stream: CpuStream(),
    }
    return answers | dict.fromkeys(
        ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"), _resident_bytes
    )


def _resident_bytes(device: object = None) -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _memory_info(device: object = None) -> tuple[int, int]:
    import psutil

    memory = psutil.virtual_memory()
    return int(memory.available), int(memory.total)
