"""Write docs/spec.md from the workloads, the floors and the planner: python docs/spec.py"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from conformance.plan import FREEDOMS, PlanRefused, Topology, make_plan, parse_overrides
from conformance.spec import Workload, all_workloads, load_workload
from conformance.spec.floors import load_floors

PAGE = Path(__file__).with_name("spec.md")
TEXT = """\
# The spec, and how it is read

<!-- Written by docs/spec.py from conformance/spec/ and conformance/plan.py: change those, then run it. -->

A workload is a file of `conformance/spec/workloads/`, in which every value has its source. What follows is read from
these files and from the planner, and a test fails when this page is behind them. How to add a workload, see
[extending.md](extending.md).

## Workloads

{workloads}

Four are the benchmark's own. The others are rehearsals, whose verdict certifies nothing. Global batch size =
micro_bsz x micro_num x data-parallel size, where that size is cards / tensor / pipeline; a zero1 of -1 is all of it.

## Model and optimisation

What no setting may change, unless the last line names it.

{values}

## Floors

What a performance run must reach, in the median over its steady steps ([metrics.md](metrics.md)).

{floors}

## Where the benchmark's text contradicts itself

A report prints the readings that its run relied on.

{readings}

## What the planner refuses

What may be set: {freedoms}, and what a rehearsal frees (above).
A rule that is broken is named with its source and with the nearest legal settings, before a device is touched. These
are answers of `conformance plan`; sets are its `--set` options.

{rules}

## What the planner allows and discloses

The global batch size is the invariant: where micro_num is not set, it follows the data-parallel size. A run may depart
from its reference in these ways, and its plan and its report say so.

{disclosures}

## Where each value comes from

{sources}
"""
# For every rule of the planner settings that break it: workload, nodes, devices of a node, overrides.
BROKEN = (
    ("llama2-7b-perf", 4, 8, "lr=1e-3"),
    ("llama2-7b-perf", 4, 8, "micro_bsz=0"),
    ("llama2-7b-perf", 4, 8, "tensor=3"),
    ("llama2-7b-perf", 3, 8, "pipeline=3"),
    ("llama2-70b-perf", 4, 8, "pipeline=4 micro_num=2"),
    ("llama2-7b-perf", 3, 4, "tensor=8"),
    ("llama2-7b-perf", 4, 8, "zero1=3"),
    ("llama2-7b-perf", 4, 8, "micro_num=8"),
    ("slice-7b-perf", 1, 1, "num_layers=40"),
)
# And for every departure that is allowed.
ALLOWED = (
    ("llama2-7b-perf", 3, 8, ""),
    ("llama2-7b-perf", 1, 8, "micro_bsz=1 tensor=2"),
    ("llama2-70b-perf", 4, 8, "pipeline=2 zero1=1 checkpoint=true"),
    ("slice-7b-perf", 1, 1, "num_layers=12 total_steps=30"),
)


def page() -> str:
    """Make the page.

    Returns:
        Markdown.
    """
    workloads = sorted(all_workloads(), key=lambda workload: (not workload.official, workload.name))
    return TEXT.format(
        workloads=_workloads(workloads),
        values=_values(workloads),
        floors=_floors(),
        readings=_readings(workloads),
        freedoms=", ".join(FREEDOMS),
        rules=_rules(),
        disclosures=_disclosures(),
        sources=_sources(workloads),
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _workloads(workloads: Sequence[Workload]) -> str:
    head = ("workload", "InternEvo", "data", "cards", "micro_bsz x micro_num", "tensor / pipeline / zero1")
    floors = {floor.workload for floor in load_floors()}
    rows = []
    for one in workloads:
        reference = one.reference
        reach = f"loss < {one.loss_target}" if one.loss_target is not None else "its floors" * (one.name in floors)
        cut = f"{reference.tensor} / {reference.pipeline} / {reference.zero1}"
        sizes = (reference.cards, f"{reference.micro_bsz} x {reference.micro_num}", cut, reference.global_batch_size)
        rows.append((f"`{one.name}`", one.tag, one.data, *sizes, one.total_steps, reach or "-"))
    return _table((*head, "global batch", "steps", "must reach"), rows)


def _values(workloads: Sequence[Workload]) -> str:
    tables = [{**dataclasses.asdict(one.model), **dataclasses.asdict(one.optimizer)} for one in workloads]
    rows: list[tuple[object, ...]] = [(key, *(table[key] for table in tables)) for key in tables[0]]
    rows.append(("parameters", *(f"{one.model.parameters:,}" for one in workloads)))
    rows.append(("may be set", *(", ".join(one.free) or "-" for one in workloads)))
    return _table(("", *(f"`{one.name}`" for one in workloads)), rows)


def _floors() -> str:
    rows = [
        (f"`{one.workload}`", one.device, one.metric, f"{one.value:g} {one.unit}", one.status, one.source)
        for one in load_floors()
    ]
    return _table(("workload", "device", "metric", "floor", "status", "source"), rows)


def _readings(workloads: Sequence[Workload]) -> str:
    found: dict[tuple[str, ...], list[str]] = {}
    for one in workloads:
        for reading in one.readings:
            found.setdefault(dataclasses.astuple(reading), []).append(f"`{one.name}`")
    rows = [
        (f"`{name}`", ", ".join(names), says, also, taken, source)
        for (name, says, also, taken, source), names in sorted(found.items())
    ]
    return _table(("reading", "of", "the text says", "and also", "taken", "source"), rows)


def _typed(name: str, nodes: int, devices: int, overrides: str) -> str:
    return " ".join((f"`{name}` on {nodes} x {devices}", *(f"`{each}`" for each in overrides.split())))


def _rules() -> str:
    rows = []
    for name, nodes, devices, overrides in BROKEN:
        try:
            make_plan(load_workload(name), Topology(nodes, devices), parse_overrides(overrides.split()))
        except PlanRefused as refused:
            rows += [
                (f"`{each.rule}`", _typed(name, nodes, devices, overrides), each.message, each.source)
                for each in refused.violations
            ]
    return _table(("rule", "workload, nodes x devices, sets", "the answer", "source"), rows)


def _disclosures() -> str:
    rows = [
        (_typed(name, nodes, devices, overrides), "; ".join(plan.disclosures))
        for name, nodes, devices, overrides in ALLOWED
        for plan in [make_plan(load_workload(name), Topology(nodes, devices), parse_overrides(overrides.split()))]
    ]
    return _table(("workload, nodes x devices, sets", "what is disclosed"), rows)


def _sources(workloads: Sequence[Workload]) -> str:
    rows = [(f"`{one.name}`", f"`{key}`", source) for one in workloads for key, source in one.sources]
    return _table(("workload", "value", "source"), rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
