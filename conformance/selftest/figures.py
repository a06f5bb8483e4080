"""Good figures: a rehearsal's log held against limits that it keeps, and against such that it does not."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conformance.analysis import Limits, analyze
from conformance.checks.finding import Finding
from conformance.errors import EvidenceError
from conformance.selftest.bench import Bench, Fault
from conformance.selftest.run import LOG, good_run
from conformance.spec import Workload, load_workload
from conformance.spec.floors import Floor


@dataclass
class Figures:
    """A log, and what it is held against.

    Args:
        log: The log's bytes.
        workload: The workload that it claims to be.
        limits: Floors, peak and ceilings.
    """

    log: bytes
    workload: Workload
    limits: Limits


def _floor(metric: str, value: float) -> Floor:
    unit = {"tgs": "tokens/device/s", "tflops": "TFLOPS/device"}[metric]
    return Floor("tiny-perf", "CPU", metric, value, unit, "this suite", "2026-01-01", 1, "measured")


# Far below what the log shows: 800 tokens a second, with the noise of a busy CPU.
LOW = {"tgs": 100.0, "tflops": 0.001}


def _perf(folder: Path) -> Figures:
    floors = [_floor(metric, value) for metric, value in LOW.items()]
    limits = Limits(floors, "CPU", declared_tgs=100.0, peak_tflops=2.0, ceilings={"a preflight": 1.0})
    return Figures((good_run(folder) / LOG).read_bytes(), load_workload("tiny-perf"), limits)


def _accuracy(folder: Path) -> Figures:
    figures = _perf(folder)
    # Above what this log's loss falls to.
    workload = replace(figures.workload, kind="accuracy", loss_target=7.0)
    return replace(figures, workload=replace(workload, sources=(*workload.sources, ("loss_target", "this suite"))))


# Running statistics of speed and figures by type of data: they repeat what the other fields say, so a fault in those is
# a fault in these. Logs without them are older ones.
_REPEATED = re.compile(rb" (?:tgs/\w+|(?:acc|tokens|loss)/\w+)=\S+")
_DAY, _DAY_AFTER, _DAY_BEFORE = b"2026-11-24", b"2026-11-25", b"2026-11-23"


def _resumed(folder: Path) -> Figures:
    """A log without repeated fields, whose last two steps a resumed process made again a day later."""
    figures = _perf(folder)
    log = _REPEATED.sub(b"", figures.log)
    last = [line for line in log.splitlines(keepends=True) if b" tflops=" in line][-2:]
    return replace(figures, log=log + b"".join(line.replace(_DAY, _DAY_AFTER, 1) for line in last))


def _judge(figures: Figures) -> Sequence[Finding]:
    runs = analyze(io.BytesIO(figures.log), workload=figures.workload, limits=figures.limits)
    return [finding for run in runs for finding in run.findings]


PERF = Bench("log and limits", _perf, _judge)
RESUMED = Bench("older log of a resumed run", _resumed, _judge)
ACCURACY = Bench("log and target", _accuracy, _judge)


def _raise_floor(metric: str) -> Fault:
    def inject(figures: Figures) -> None:
        floors = [_floor(m, value * (1000 if m == metric else 1)) for m, value in LOW.items()]
        figures.limits = replace(figures.limits, floors=floors)

    return Fault(f"{metric}-floor", f"slower than the floor of {metric}", PERF, inject)


def _limit(check: str, name: str, **limits: Any) -> Fault:
    def inject(figures: Figures) -> None:
        figures.limits = replace(figures.limits, **limits)

    return Fault(check, name, PERF, inject)


def _edit(check: str, name: str, pattern: bytes, replacement: bytes | Callable[[re.Match[bytes]], bytes]) -> Fault:
    """Lines of the resumed log that are others."""

    def inject(figures: Figures) -> None:
        figures.log, count = re.subn(pattern, replacement, figures.log, flags=re.MULTILINE)
        if not count:
            raise EvidenceError(f"The good log has nothing like {pattern!r}.")

    return Fault(check, name, RESUMED, inject)


def _miss_target(figures: Figures) -> None:
    figures.workload = replace(figures.workload, loss_target=1.0)


FAULTS = (
    _raise_floor("tgs"),
    _raise_floor("tflops"),
    _limit("tgs-floor-declared", "slower than its vendor declared", declared_tgs=1e6),
    _limit("log-utilisation", "more FLOPs than the declared peak", peak_tflops=0.001),
    _limit("log-utilisation", "more FLOPs than preflight measured", ceilings={"a preflight": 0.001}),
    _edit("log-steps", "a step is missing before the process was resumed", rb"^.* step=6 .*\n", b""),
    _edit("log-clock", "the resumed process's lines are a day older", b"^" + _DAY_AFTER, _DAY_BEFORE),
    _edit(
        "log-overlap",
        "a resumed step that came out otherwise",
        b"(^" + _DAY_AFTER + rb".* loss=)([\d.]+)",
        lambda match: match[1] + b"%.6f" % (float(match[2]) * 1.08),
    ),
    Fault("loss-target", "the loss stays above the target", ACCURACY, _miss_target),
)
