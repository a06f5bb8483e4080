"""The benchmark as data: workloads, checks and their sources, read from TOML."""

from __future__ import annotations

from conformance.spec.loader import all_workloads, load_checks, load_workload, read_workload
from conformance.spec.model import CheckSpec, Model, Optimizer, Reading, Reference, Workload

__all__ = [
    "CheckSpec",
    "Model",
    "Optimizer",
    "Reading",
    "Reference",
    "Workload",
    "all_workloads",
    "load_checks",
    "load_workload",
    "read_workload",
]
