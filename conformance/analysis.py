"""From a log to figures and findings: what `conformance analyze`, the suites and the verifier share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, BinaryIO

import numpy as np

from conformance.checks import completion, consistency, timing
from conformance.checks import loss as loss_checks
from conformance.checks import throughput as throughput_checks
from conformance.checks.finding import Finding
from conformance.checks.subject import Subject
from conformance.internevo.log import Event, LineCounts, RunLog, Steps, parse_log
from conformance.internevo.log.records import CHECKPOINT_SAVED, EXCEPTION, KILLED, OVERFLOW
from conformance.metrics.facts import Facts, gather, updates_at
from conformance.metrics.loss import Loss, loss_of
from conformance.metrics.segments import Clock, join, merge, share_out
from conformance.metrics.target import held
from conformance.metrics.throughput import Tflops, Throughput, tflops, throughput
from conformance.plan import Plan
from conformance.spec import Workload, all_workloads
from conformance.spec.floors import Floor, find_floor, load_floors

# Signals and exceptions by which somebody ends a run on purpose.
STOPS = ("KeyboardInterrupt", "SignalException", "SIGTERM", "SIGINT")

# What is shown of a flood: of exceptions and of other events each, and of one traceback its last lines.
MAX_TOLD = 100
MAX_TRACEBACK = 40


@dataclass(frozen=True)
class Limits:
    """What the figures are held against, besides plan and workload.

    Args:
        floors: Floors to choose from; None for the suite's own.
        device: Model name of the device.
        declared_tgs: A floor that the vendor set itself, in tokens per device and second; it certifies nothing.
        peak_tflops: Declared peak of one device, dense bf16.
        ceilings: GEMM ceilings of one device, in TFLOPS, by where they come from; MFU is quoted against the first.
    """

    floors: Sequence[Floor] | None = None
    device: str | None = None
    declared_tgs: float | None = None
    peak_tflops: float | None = None
    ceilings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Mfu:
    """Model FLOPs utilisation: the TFLOPS that the model needs, GQA counted right, over what a device can do.

    Args:
        declared_peak: Over the declared dense bf16 peak; None where none was declared.
        measured_ceiling: Over the GEMM ceiling; None where none is known.
        declared_peak_causal: Over the declared peak, with the causal half of the attention matrix.
        measured_ceiling_causal: Over the ceiling, likewise.
        ceiling: Where the ceiling comes from.
    """

    declared_peak: float | None
    measured_ceiling: float | None
    declared_peak_causal: float | None = None
    measured_ceiling_causal: float | None = None
    ceiling: str | None = None


@dataclass(frozen=True)
class RunAnalysis:
    """One run, from its first segment to its last, with every figure and finding.

    Args:
        segments: The logs of its segments.
        steps: Its steps, each once; where a resumed run made one twice, the later, from which it went on.
        facts: What it was.
        outcome: completed, crashed, out_of_memory, stopped, truncated or unknown.
        complete: Whether the last step of the schedule was reached without an exception; None where nothing tells.
        speed: Its throughput; None without steps.
        tflops: Its TFLOPS; None without steps.
        mfu: Its model FLOPs utilisation.
        loss: Its loss; None without steps.
        exceptions: Exceptions and signals of all segments and all ranks.
        findings: What every check found.
    """

    segments: tuple[RunLog, ...]
    steps: Steps
    facts: Facts
    outcome: str
    complete: bool | None
    speed: Throughput | None
    tflops: Tflops | None
    mfu: Mfu
    loss: Loss | None
    exceptions: tuple[Event, ...]
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """One element of the ``runs`` that ``conformance analyze --json`` prints.

        Returns:
            Plain values; null for what the log cannot tell and for undefined numbers.
        """
        facts, numbers = self.facts, self.steps["step"]
        model = facts.model
        shown = {
            "outcome": self.outcome,
            "complete": self.complete,
            "steps_logged": len(self.steps),
            "first_step": int(numbers[0]) if len(numbers) else None,
            "last_step": int(numbers[-1]) if len(numbers) else None,
            "total_steps": facts.total_steps,
            "segments": len(self.segments),
            "cards": facts.cards,
            **facts.layout,
            "micro_bsz": facts.micro_bsz,
            "micro_num": facts.micro_num,
            "global_batch_size": facts.global_batch_size,
            "seq_len": model.seq_len if model else None,
            "hidden_size": model.hidden_size if model else None,
            "checkpoint_factor": facts.checkpoint_factor,
            "published_layout": asdict(facts.published_layout) if facts.published_layout else None,
            "sources": dict(facts.sources),
            "tgs": _speed_json(self.speed),
            "tflops": asdict(self.tflops) if self.tflops else None,
            "mfu": asdict(self.mfu),
            "loss": asdict(self.loss) if self.loss else None,
            "exceptions": self._exceptions_json(),
            "findings": [{**asdict(finding), "result": finding.result.value} for finding in self.findings],
            "event_counts": dict(Counter(event.kind for event in self._events())),
            "events": [_event_json(event) for event in self._events() if event.kind not in (EXCEPTION, KILLED)][
                :MAX_TOLD
            ],
            "lines": [{"file": name, **asdict(counts)} for name, counts in self._counts()],
            "code_lines": {k: v for segment in self.segments for k, v in segment.head.code_lines.items()},
        }
        result: dict[str, Any] = plain(shown)
        return result

    def _events(self) -> list[Event]:
        """What the segments' own logs tell, and the exceptions of the other ranks'."""
        told = [e for segment in self.segments for e in segment.events if e.kind not in (EXCEPTION, KILLED)]
        return [*told, *self.exceptions]

    def _counts(self) -> list[tuple[str, LineCounts]]:
        """Each file once, in order, however many segments stand in it."""
        return list(dict.fromkeys((segment.name, segment.counts) for segment in self.segments))

    def _exceptions_json(self) -> list[dict[str, Any]]:
        names, clock = ("type", "message", "host", "rank", "line"), Clock(self.segments)
        # Of a flood, what train.py caught comes first: it has ended the training.
        told = self.exceptions
        if len(told) > MAX_TOLD:
            told = tuple(sorted(told, key=lambda event: not event.raised_by_train)[:MAX_TOLD])
        return [
            {
                **{name: getattr(event, name) for name in names},
                "after_step": clock.after_step(event),
                "traceback": list(event.traceback[-MAX_TRACEBACK:]),
            }
            for event in told
        ]


def _event_json(event: Event) -> dict[str, Any]:
    time = event.time.isoformat(timespec="milliseconds") if event.time else None
    return {"kind": event.kind, "line": event.line, "time": time, "value": event.value, "message": event.message}


def analyze(
    stream: BinaryIO,
    *,
    plan: Plan | None = None,
    workload: Workload | None = None,
    limits: Limits | None = None,
    others: Iterable[Event] = (),
    name: str = "",
) -> list[RunAnalysis]:
    """Analyse one log.

    Args:
        stream: The log.
        plan: What the run was planned to be.
        workload: The workload it claims to be, where there is no plan.
        limits: What else its figures are held against.
        others: Events of the other ranks' logs.
        name: Name of the log, for findings.

    Returns:
        One analysis for each run in it, resumed segments put together; none where nothing in it is InternEvo's.
    """
    return analyze_logs(parse_log(stream, name), plan=plan, workload=workload, limits=limits, others=others)


def pool_runs(runs: Sequence[RunAnalysis], workload: Workload | None, limits: Limits) -> list[throughput_checks.Pooled]:
    """Take runs together that repeat one another.

    Args:
        runs: The runs.
        workload: The workload that they claim to be; without one nothing is taken together.
        limits: What their figures are held against.

    Returns:
        One for each layout of which there are two complete runs or more.
    """
    if workload is None or workload.kind != "perf":
        return []
    groups: dict[tuple[Any, ...], dict[int, tuple[Throughput, Tflops]]] = {}
    for place, run in enumerate(runs):
        if run.complete and run.speed is not None and run.tflops is not None:
            facts = run.facts
            layout = (facts.model, facts.cards, facts.data_parallel, facts.tensor, facts.pipeline, facts.micro_bsz)
            groups.setdefault((*layout, facts.tokens_per_step), {})[place] = run.speed, run.tflops
    return [
        throughput_checks.pool(
            group, _floors(workload.name, limits, runs[min(group)].facts), workload.name, limits.device
        )
        for group in groups.values()
        if len(group) > 1
    ]


def _floors(workload: str | None, limits: Limits, facts: Facts) -> dict[str, Floor | None]:
    if workload is None:
        return {}
    floors = load_floors() if limits.floors is None else limits.floors
    return {m: find_floor(floors, workload, m, limits.device, facts.layout) for m in ("tgs", "tflops")}


def analyze_logs(
    logs: Sequence[RunLog],
    *,
    plan: Plan | None = None,
    workload: Workload | None = None,
    limits: Limits | None = None,
    others: Iterable[Event] = (),
) -> list[RunAnalysis]:
    """Analyse logs that were already read, of one file or of several.

    Args:
        logs: Runs and segments, in the order of time.
        plan: What the run was planned to be.
        workload: The workload it claims to be, where there is no plan.
        limits: What else its figures are held against.
        others: Events of the other ranks' logs; each is told of the run that was under way.

    Returns:
        One analysis for each run, resumed segments put together.
    """
    workload = plan.workload if plan is not None else workload
    runs = join(logs)
    theirs = share_out(runs, others)
    # Figures of any size are judged by what comes of them: infinite or undefined, which no relation holds for.
    with np.errstate(all="ignore"):
        return [_analyze(run, plan, workload, limits or Limits(), told) for run, told in zip(runs, theirs, strict=True)]


def _analyze(
    segments: list[RunLog], plan: Plan | None, workload: Workload | None, limits: Limits, others: tuple[Event, ...]
) -> RunAnalysis:
    steps, overlaps = merge(segments)
    last = segments[-1]
    head = next((s.head for s in reversed(segments) if s.head.model), last.head)
    head = replace(head, resumed_from=segments[0].head.resumed_from)
    facts = gather(steps, head, plan, workload, all_workloads())
    speed = throughput(steps)
    flops = tflops(steps, speed, facts.model) if speed else None
    target = workload.loss_target if workload else None
    loss = loss_of(steps, target)
    outcome, complete = _outcome(last, steps, facts.total_steps, (*last.exceptions, *others))
    subject = Subject(
        steps=steps,
        head=head,
        facts=facts,
        plan=plan,
        workload=workload,
        refused=tuple(segment.refused for segment in segments),
        overlaps=overlaps,
        continued=head.resumed_from is not None,
        heads=tuple(segment.head for segment in segments if len(segment.steps)),
    )
    exceptions = tuple(event for segment in segments for event in segment.exceptions) + others
    skipped = _skipped_at_end(last)
    at_target = outcome == "stopped" and not (last.exceptions or skipped) and _held_long_enough(steps, target)
    complete = at_target or complete
    last_step = int(steps["step"][-1]) if len(steps) else None
    fatal = (*last.exceptions, *others)
    findings = [completion.completed(outcome, len(steps), last_step, facts.total_steps, fatal, at_target, skipped)]
    findings += consistency.check_consistency(subject)
    findings += _judge_figures(speed, flops, loss, workload, limits, facts)
    names = ", ".join(dict.fromkeys(segment.name for segment in segments if segment.name))
    findings = [replace(finding, evidence=finding.evidence or names) for finding in findings]
    return RunAnalysis(
        tuple(segments),
        steps,
        facts,
        outcome,
        complete,
        speed,
        flops,
        _mfu(flops, limits),
        loss,
        exceptions,
        tuple(findings),
    )


def _mfu(flops: Tflops | None, limits: Limits) -> Mfu:
    def share(needed: float | None, limit: float | None) -> float | None:
        return needed / limit if needed and limit else None

    full, causal = (flops.model, flops.model_causal) if flops else (None, None)
    peak, (source, ceiling) = limits.peak_tflops, next(iter(limits.ceilings.items()), (None, None))
    return Mfu(share(full, peak), share(full, ceiling), share(causal, peak), share(causal, ceiling), source)


def _judge_figures(
    speed: Throughput | None,
    flops: Tflops | None,
    loss: Loss | None,
    workload: Workload | None,
    limits: Limits,
    facts: Facts,
) -> list[Finding]:
    findings = []
    if speed is not None and flops is not None:
        if flops.model_causal is not None:
            findings.append(timing.utilisation(flops.model_causal, limits.peak_tflops, limits.ceilings))
        if workload is None or workload.kind == "perf":
            name = workload.name if workload else None
            findings += throughput_checks.check_floors(speed, flops, _floors(name, limits, facts), name, limits.device)
        if limits.declared_tgs is not None:
            findings.append(throughput_checks.declared_floor(speed, limits.declared_tgs))
    if loss is not None:
        findings.append(loss_checks.defined(loss))
        if workload is not None and workload.loss_target is not None:
            source = workload.source_of("loss_target")
            findings.append(loss_checks.target_reached(loss, workload.loss_target, source))
    return findings


def _outcome(
    last: RunLog, steps: Steps, total_steps: int | None, exceptions: Sequence[Event]
) -> tuple[str, bool | None]:
    """How the last segment ended, and whether it was complete."""
    # A step whose update was skipped leaves no line: the last one must have made its update.
    reached = None if total_steps is None else len(steps) > 0 and int(steps["step"][-1]) + 1 >= total_steps
    # After its last step a process may still fail to close a connection; what train.py caught has stopped the training.
    fatal = [event for event in exceptions if event.raised_by_train or not reached]
    if fatal:
        if any(completion.is_out_of_memory(event) for event in fatal):
            return "out_of_memory", False
        return ("stopped" if all(event.type in STOPS for event in fatal) else "crashed"), False
    if reached:
        # The end of a run whose beginning nobody has shown is a fragment.
        whole = last.head.resumed_from is not None or updates_at(steps)[0] <= 1
        return ("completed", True) if whole else ("unknown", None)
    if last.refused.cut:
        return "truncated", False
    if _was_stopped(last):
        return "stopped", False
    return ("unknown", None) if reached is None else ("truncated", False)


def _held_long_enough(steps: Steps, target: float | None) -> bool:
    """Whether the loss was below the target for so long that a run may stop."""
    series = [steps[name] for name in ("loss", "loss_from_metric") if name in steps]
    return target is not None and held(target, *series)


def _skipped_at_end(last: RunLog) -> int:
    """Steps after the last line whose update was skipped for an infinite or undefined gradient."""
    line = last.steps["line"][-1] if len(last.steps) else 0
    return sum(event.kind == OVERFLOW and event.line > line for event in last.events)


def _was_stopped(log: RunLog) -> bool:
    """Whether the log ends with the checkpoint that InternEvo saves when it is told to stop."""
    saved = [event for event in log.events if event.kind == CHECKPOINT_SAVED]
    if not saved or not len(log.steps):
        return False
    return bool(saved[-1].line > log.steps["line"][-1] and saved[-1].value == updates_at(log.steps)[-1])


def _speed_json(speed: Throughput | None) -> dict[str, Any] | None:
    if speed is None:
        return None
    shown = asdict(speed)
    steady = shown.pop("steady")
    shown |= {"steps_used": [steady["first"], steady["last"]], "steps_counted": steady["used"]}
    return {**shown, "steps_excluded": steady["excluded"], "settled": steady["settled"], "rule": steady["rule"]}


def plain(value: Any) -> Any:
    """Give values that strict JSON holds and gives back the same.

    Args:
        value: Dictionaries, lists, tuples and plain values.

    Returns:
        The same with lists for tuples, and None for undefined numbers.
    """
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
