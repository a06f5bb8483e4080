"""Run-time patches: every way in which the InternEvo that runs differs from the InternEvo that was published."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Patch:
    """One declared deviation.

    Args:
        id: Name that reports and policies use.
        reason: Why InternEvo cannot run as published.
        affects: Which InternEvo versions need it.
        needed: Whether the InternEvo about to run needs it.
        apply: Makes the change in this process; called before InternEvo's training entry.
    """

    id: str
    reason: str
    affects: str
    needed: Callable[[], bool]
    apply: Callable[[], None]

    @property
    def digest(self) -> str:
        """sha256, hex, of the source of ``apply``: what exactly was changed."""
        return hashlib.sha256(inspect.getsource(self.apply).encode()).hexdigest()


def _strip_ipv4_brackets() -> None:
    import torch.distributed as dist

    create = dist.init_process_group

    @wraps(create)
    def init_process_group(*args: Any, init_method: str | None = None, **kwargs: Any) -> Any:
        if init_method is not None:
            init_method = re.sub(r"\[([^\]:]+)\]", r"\1", init_method)  # IPv6 holds colons and keeps its brackets
        return create(*args, init_method=init_method, **kwargs)

    dist.init_process_group = init_process_group


def _supply_moe_placeholders() -> None:
    from conformance.kernels.standins import placeholder

    # internlm/__init__ imports the module that imports these, so they must be there before internlm is.
    for name, classes in {
        "internlm.moe": (),
        "internlm.moe.experts": ("Experts",),
        "internlm.moe.sharded_moe": ("MOELayer", "TopKGate"),
    }.items():
        module = ModuleType(name, "Stand-in of the conformance suite.")
        module.__path__ = []
        for cls in classes:
            setattr(module, cls, placeholder(f"{name}.{cls}"))
        sys.modules[name] = module


def _load_own_checkpoints() -> None:
    import torch

    load = torch.load

    @wraps(load)
    def load_whole(*args: Any, **kwargs: Any) -> Any:
        return load(*args, **{"weights_only": False, **kwargs})

    torch.load = load_whole


def _loads_weights_only() -> bool:
    import torch

    return tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 6)


def _reset_exhausted_sampler() -> None:
    training: Any = importlib.import_module("internlm.train.training_internlm")
    package: Any = importlib.import_module("internlm.train")
    load_new_batch = training.load_new_batch

    class ResetOnExhaustion:
        """An iterator that puts the copied sampler back to its start when the data end, before it is used again."""

        def __init__(self, batches: Any, sampler: Any) -> None:
            self.batches = batches
            self.sampler = sampler

        def __next__(self) -> Any:
            try:
                return next(self.batches)
            except StopIteration:
                self.sampler.batch_count = 0
                # This counts from 0 again, and shuffles as the loader's own sampler does at the end of a pass: the copy
                # goes into the checkpoints, and one that kept the first pass's order would resume in that.
                self.sampler.get_indices()
                raise

    @wraps(load_new_batch)
    def load(train_dl: Any, train_iter: Any, train_state: Any) -> Any:
        watched = ResetOnExhaustion(train_iter, train_state.batch_sampler)
        batch, following = load_new_batch(train_dl=train_dl, train_iter=watched, train_state=train_state)
        return batch, train_iter if following is watched else following

    # train.py takes the function from the package, which took it from the module.
    training.load_new_batch = load
    package.load_new_batch = load


def _is_wheel_without_moe() -> bool:
    spec = importlib.util.find_spec("internlm")
    roots = [] if spec is None else list(spec.submodule_search_locations or [])
    return not any(importlib.machinery.PathFinder.find_spec("internlm.moe", [root]) for root in roots)


# Applied in this order; the last one imports internlm, the others come before that.
PATCHES = (
    Patch(
        "ipv4-brackets",
        "init_method holds an IPv4 address in brackets, which Python 3.11.4 and later refuse",
        "every version up to 0.3.1dev20240229",
        lambda: True,
        _strip_ipv4_brackets,
    ),
    Patch(
        "wheel-moe",
        "the 0.2.2 wheel omits the package internlm.moe, which its own internlm/model/moe.py imports; never called",
        "internevo 0.2.2 from a package registry",
        _is_wheel_without_moe,
        _supply_moe_placeholders,
    ),
    Patch(
        "torch-load",
        "torch 2.6 and later load nothing but tensors unless told to; InternEvo's checkpoints hold the sampler's state",
        "every version, with torch 2.6 or later",
        _loads_weights_only,
        _load_own_checkpoints,
    ),
    Patch(
        "issue-77",
        "training stops with StopIteration when the data end within total_steps (InternLM/InternEvo#77, PR 102), and a "
        "checkpoint of a later pass resumes in the first pass's order of the data",
        "both reference tags and 0.2.2",
        lambda: True,
        _reset_exhausted_sampler,
    ),
)


def apply_patches() -> tuple[Patch, ...]:
    """Apply every patch that the importable InternEvo needs.

    Returns:
        The patches applied, in order.
    """
    applied = tuple(patch for patch in PATCHES if patch.needed())
    for patch in applied:
        patch.apply()
    return applied
