"""From evidence to findings and a verdict: the one function that the vendor's run and the lab's verifier share."""

from __future__ import annotations

import contextlib
import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from conformance import evidence, journal, strictjson
from conformance.analysis import Limits, RunAnalysis, analyze_logs, plain
from conformance.checks import curve as curve_checks
from conformance.checks import data as data_checks
from conformance.checks import preflight as preflight_checks
from conformance.checks import run as run_checks
from conformance.checks import supervision
from conformance.checks.finding import Finding, Result, Verdict, verdict
from conformance.errors import ConformanceError, EvidenceError, JsonError
from conformance.evidence import Evidence, KeptPreflight, Request, device_identity, request_from_json
from conformance.internevo.log import RunLog, Steps, parse_log
from conformance.launch.samples import uuids_of
from conformance.metrics.curve import Comparison, Matrix, compare
from conformance.metrics.drawn import DrawnSteps
from conformance.metrics.preflight import by_device, ceiling, devices, figures
from conformance.plan import Plan, Topology, make_plan
from conformance.spec import load_checks, load_workload
from conformance.spec.curves import Curve, load_curves
from conformance.spec.expected import known_ceiling, load_expected


@dataclass(frozen=True)
class Judgement:
    """What one run's evidence says.

    Args:
        plan: The plan, made again from the request.
        findings: Every check's finding.
        metrics: Figures recomputed from the raw log, as ``analyze --json`` gives them for one run.
        verdict: What may be claimed.
        steps: step, tgs and loss of every logged step, and mean_loss, over all ranks, of the first ones; for drawing.
        losses: Loss over all data-parallel ranks by step from 0, in nats/token, as a reference curve holds it.
        series: Digest of the logged losses and gradient norms; empty where no step was logged.
        origin: What decided, besides the seed, its initial weights and order of data; empty where it is not known.
    """

    plan: Plan
    findings: tuple[Finding, ...]
    metrics: Mapping[str, Any]
    verdict: Verdict
    steps: Sequence[Mapping[str, float]] = ()
    losses: Sequence[float] = ()
    series: str = ""
    origin: str = ""


# What a workload without a data set of its own names as its data.
DUMMY = "dummy"


def plan_of(request: Request) -> Plan:
    """Plan a request.

    Args:
        request: What was asked for.

    Returns:
        The plan.

    Raises:
        ConformanceError: The workload is unknown or the request breaks the benchmark's rules.
    """
    return make_plan(
        load_workload(request.workload),
        Topology(request.nodes, request.devices_per_node),
        request.overrides,
        seed=request.seed,
    )


def judge(files: Evidence) -> Judgement:
    """Judge a run from nothing but its evidence and the spec.

    Args:
        files: The run's evidence.

    Returns:
        The judgement.

    Raises:
        ConformanceError: The evidence is too broken to say which plan it claims to follow.
    """
    if evidence.PREFLIGHT in files.names():
        return _judge_preflight(files)
    # What is smaller than a block that was ever given back, glibc keeps for the next one that is asked for: otherwise a
    # fifth of the time would go into getting each chunk's memory anew.
    len(bytes(1 << 21))
    plan = plan_of(request_from_json(evidence.read_json(files, evidence.REQUEST)))
    with files.open(evidence.CONFIG) as stream:
        config = stream.read(evidence.MAX_JSON_BYTES).decode(errors="replace")
    attempts = [_read_attempt(each) for each in (*evidence.segments(files), files)]
    last = attempts[-1]
    findings = _without_a_log(files, plan, config, attempts)
    metrics: dict[str, Any] = {}
    steps: Sequence[Mapping[str, float]] = ()
    losses = array("d")  # a long run's list would take as much memory as its figures
    series = ""
    origin = origin_of(plan, attempts[0].record, attempts[0].ranks)
    try:
        limits = Limits(device=_model(last.ranks), ceilings=_ceilings(files, last.ranks))
        name, analysed = analyse_attempts(attempts, plan, limits)
    except EvidenceError as error:
        findings.append(run_checks.no_steps(error))
    else:
        findings.append(run_checks.steps_found(name))
        findings += analysed.findings
        metrics = {**analysed.to_json(), "log": name}
        if plan.workload.kind == "accuracy":
            found, told = _judge_data(plan, attempts, analysed)
            findings += found
            metrics["data"] = told
        comparison, why_not = compare_with_curve(plan, metrics.get("data"), analysed.steps, origin)
        findings.append(curve_checks.agrees(comparison, why_not))
        metrics["curve"] = None if comparison is None else plain(asdict(comparison))
        first_losses = losses_of(analysed.steps)
        losses.frombytes(b"" if first_losses is None else first_losses.tobytes())
        steps = DrawnSteps(analysed.steps, losses)
        series = series_digest(analysed.steps)
        del metrics["findings"]  # they stand beside the metrics, with those of the other checks
    checks = load_checks()
    required = [
        check.id for check in checks.values() if check.severity == "required" and plan.workload.kind in check.applies
    ]
    # What is advisory is reported with its own result, and decides nothing.
    decisive = [found for found in findings if checks[found.check].severity != "advisory"]
    claim = verdict(decisive, required, plan.workload.official)
    return Judgement(plan, tuple(findings), metrics, claim, steps, losses, series, origin)


def _ceilings(files: Evidence, ranks: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    """What one device of a run can do: by the preflight that it kept, and by what its model is known to do."""
    of = (_optional(files, evidence.CEILING_OF) or {}).get("run")
    system = [{"host": rank["host"], **rank["device"]} for rank in ranks.values()]
    measured = newest_ceiling({str(of): KeptPreflight(files)}, system) if of else None
    known = known_ceiling(_model(ranks))
    told = {} if measured is None else {measured[0]: measured[1]}
    source = "expected.toml" if measured else "expected.toml, for want of a preflight of these devices"
    return told if known is None else {**told, source: known}


def newest_ceiling(preflights: Mapping[str, Evidence], system: Iterable[Mapping[str, Any]]) -> tuple[str, float] | None:
    """The GEMM ceiling that the newest preflight of a system measured; a rehearsal's small products show none.

    Args:
        preflights: Their evidence by name; what cannot be read of it counts as not measured.
        system: The devices that are meant, each of which the preflight must have measured.

    Returns:
        Name and TFLOPS; None where no such preflight measured it.
    """
    return newest_ceilings(preflights, [system])[0]


def newest_ceilings(
    preflights: Mapping[str, Evidence], systems: Iterable[Iterable[Mapping[str, Any]]]
) -> list[tuple[str, float] | None]:
    """The same of several systems; each preflight is read once, and none is held while the next is read.

    Args:
        preflights: Their evidence by name.
        systems: The devices of each.

    Returns:
        Name and TFLOPS, or None, for each.
    """
    wanted = [{device_identity(device) for device in system} for system in systems]
    found: list[list[tuple[str, str, float]]] = [[] for _ in wanted]
    for name, files in preflights.items():
        with contextlib.suppress(ConformanceError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            started, top, known = _measured(files)
            for identities, ceilings in zip(wanted, found, strict=True):
                if top is not None and set() < identities <= known:
                    ceilings.append((started, name, top))
    return [max(ceilings)[1:] if ceilings else None for ceilings in found]


def _measured(files: Evidence) -> tuple[str, float | None, set[str]]:
    """When a preflight began, the ceiling that it measured, none for a rehearsal, and on which devices."""
    setup, tasks = evidence.read_json(files, evidence.PREFLIGHT), read_tasks(files)
    top = ceiling(by_device(tasks)) if setup["rehearsal"] is False else None
    return str(setup["started"]), top, {device_identity(device) for device in devices(tasks, setup["device"])}


def _without_a_log(files: Evidence, plan: Plan, config: str, attempts: Sequence[Attempt]) -> list[Finding]:
    """What is judged by the records of a run, whatever its logs say."""
    kept = kept_patches(files)  # the same for all attempts
    findings = [
        run_checks.ended(attempts[-1].record),
        _of_all(attempts, lambda each: run_checks.ranks(plan, each.ranks, tuple(each.logs))),
        run_checks.config(plan, config),
        _of_all(attempts, lambda each: run_checks.source(plan.workload, each.record)),
        _of_all(attempts, lambda each: run_checks.patches(each.record, kept, each.ranks)),
        run_checks.uniform(_all_ranks(attempts)),
        _of_all(attempts, lambda each: run_checks.computing(each.record)),
        _of_all(attempts, lambda each: run_checks.environment(each.record)),
        *supervision.faults(_optional(files, evidence.FAULTS)),
        *supervision.pace(_optional(files, evidence.FAULTS)),
        _even(files, attempts[-1].ranks),
    ]
    if plan.workload.kind == "accuracy" or len(attempts) > 1:
        findings.append(_chained(files, attempts, plan.workload.checkpoint_every is not None))
    return findings


# The tasks of a preflight on a thousand devices take some MiB each.
MAX_PREFLIGHT_BYTES = 64 << 20


def _judge_preflight(files: Evidence) -> Judgement:
    """Judge a preflight: a rehearsal at best, because it trains no official workload; it may skip what is absent."""
    setup = evidence.read_json(files, evidence.PREFLIGHT)
    tasks = read_tasks(files)
    try:
        per_node, chosen = setup["ranks"] // setup["nodes"], setup.get("overrides", {})
        request = Request(setup["workload"], setup["nodes"], per_node, chosen, setup["seed"])
        plan = plan_of(request)
        findings = preflight_checks.judge(preflight_checks.Preflight(setup, tasks, load_expected()))
        metrics = figures(tasks)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        # Only our own processes write these files; whatever else is wrong in one that was edited, it is no evidence.
        raise EvidenceError(
            f"The preflight's evidence cannot be judged: {type(error).__name__} ({ascii(str(error))[:80]}) in "
            "environment/preflight*.json.",
            "Measure again; these files are never edited.",
        ) from error
    checks = load_checks()
    required = [check.id for check in checks.values() if check.severity == "required" and "preflight" in check.applies]
    decisive = [found for found in findings if checks[found.check].severity != "advisory"]
    return Judgement(plan, tuple(findings), metrics, verdict(decisive, required, official=False))


def read_tasks(files: Evidence) -> dict[str, Any]:
    """Read what a preflight measured.

    Args:
        files: The preflight's evidence.

    Returns:
        What the processes of each task wrote, by task.

    Raises:
        EvidenceError: A file is not of the form that the preflight writes.
    """
    tasks = {}
    for name in files.names():
        if name.startswith("environment/preflight-") and not name.endswith("-findings.json"):
            with files.open(name) as stream:
                data = stream.read(MAX_PREFLIGHT_BYTES + 1)
            match strictjson.loads(data, max_bytes=MAX_PREFLIGHT_BYTES, what=name):
                case {"task": str(task), "processes": list(processes)}:
                    tasks[task] = processes
                case _:
                    raise EvidenceError(f"{name} is refused: expected an object of task and processes.")
    return tasks


def kept_patches(files: Evidence) -> dict[str, str]:
    """The vendor's patch files among the evidence.

    Args:
        files: The run's evidence.

    Returns:
        sha256, hex, by file name.
    """
    kept = {}
    for name in files.names():
        if name.startswith("patches/"):
            digest = hashlib.sha256()
            for piece in _pieces(files, name):
                digest.update(piece)
            kept[name.removeprefix("patches/")] = digest.hexdigest()
    return kept


def _even(files: Evidence, ranks: Mapping[int, Mapping[str, Any]]) -> Finding:
    return supervision.even(telemetry(files), uuids_of(rank.get("device") for rank in ranks.values()))


def telemetry(files: Evidence) -> dict[str, Iterator[bytes]]:
    """What each node's devices told while a run went on.

    Args:
        files: The run's evidence.

    Returns:
        Each telemetry CSV in pieces, by name.
    """
    names = [name for name in files.names() if name.startswith("environment/telemetry-node")]
    return {name: _pieces(files, name) for name in names}


def _pieces(files: Evidence, name: str) -> Iterator[bytes]:
    """Read a large file; it is open only while it is read, for there may be one of each node."""
    with files.open(name) as stream:
        yield from iter(partial(stream.read, 1 << 20), b"")


def _optional(files: Evidence, name: str) -> dict[str, Any] | None:
    return evidence.read_json(files, name) if name in files.names() else None


def rank_logs(files: Evidence) -> tuple[str, ...]:
    """Names of the logs that ranks wrote.

    Args:
        files: The run's evidence.

    Returns:
        Names such as logs/node0/rank0.log.
    """
    return tuple(n for n in files.names() if n.startswith("logs/node") and n.rsplit("/", 1)[-1].startswith("rank"))


def _model(ranks: Mapping[int, Mapping[str, Any]]) -> str | None:
    """The model of the devices, by which their floors are found; all ranks have the same, or run-uniform fails."""
    return next((str(record["device"]["model"]) for record in ranks.values() if "model" in record["device"]), None)


@dataclass(frozen=True)
class Attempt:
    """One attempt of a run: the only one, or one of those that a resumed run is made of.

    Args:
        files: Its evidence.
        record: environment/run.json.
        ranks: environment/rankR.json by rank.
        logs: What the logs of its ranks hold, by name.
    """

    files: Evidence
    record: Mapping[str, Any]
    ranks: Mapping[int, Mapping[str, Any]]
    logs: Mapping[str, Sequence[RunLog]]

    @property
    def made_steps(self) -> bool:
        """Whether it logged a training step."""
        return any(len(run.steps) for runs in self.logs.values() for run in runs)


def rank_records(files: Evidence) -> dict[int, dict[str, Any]]:
    """What the ranks of an attempt told of themselves, as far as it can be read.

    A rank that was killed, or whose disk was full, may have left a part of its record: then it has left none.

    Args:
        files: The attempt's evidence.

    Returns:
        environment/rankR.json by rank, in the order of the names.
    """
    records = {}
    for name in files.names():
        if name.startswith("environment/rank") and name.endswith(".json"):
            rank = int(name.removeprefix("environment/rank").removesuffix(".json"))
            with contextlib.suppress(EvidenceError, JsonError):
                records[rank] = evidence.read_json(files, name)
    return records


def _read_attempt(files: Evidence) -> Attempt:
    logs = {}
    for name in rank_logs(files):
        with files.open(name) as stream:
            logs[name] = parse_log(stream, name)
    return Attempt(files, evidence.read_json(files, evidence.RUN), rank_records(files), logs)


def _all_ranks(attempts: Sequence[Attempt]) -> dict[int, Mapping[str, Any]]:
    """The ranks of all attempts that made steps: a resumed run goes on with the same software, on the same devices."""
    made = [each for each in attempts if each.made_steps or each is attempts[-1]]
    return dict(enumerate(record for each in made for record in each.ranks.values()))


def _of_all(attempts: Sequence[Attempt], check: Callable[[Attempt], Finding]) -> Finding:
    """The first finding of all attempts that is no PASS, else the last one's; what made no step adds nothing."""
    found = [check(each) for each in attempts if each.made_steps or each is attempts[-1]]
    number, bad = next(((n, one) for n, one in enumerate(found) if one.result is not Result.PASS), (0, found[-1]))
    if len(found) == 1 or bad.result is Result.PASS:
        return bad
    return replace(bad, message=f"Attempt {number + 1} of {len(found)}: {bad.message}")


def _judge_data(
    plan: Plan, attempts: Sequence[Attempt], analysed: RunAnalysis
) -> tuple[list[Finding], dict[str, Any] | None]:
    """What is found about the data that the run trained on, and what they are."""
    made = [each for each in attempts if each.made_steps]
    recorded, data = data_checks.recorded(plan, [_optional(each.files, evidence.DATA) for each in made])
    spans = []
    for each in made:
        name, log = next((n, run) for n, runs in each.logs.items() for run in runs if len(run.steps))
        rank = int(name.rsplit("/rank", 1)[1].removesuffix(".log"))
        spans.append((each.record, each.ranks.get(rank, {}), log.steps["time"]))
    findings = [recorded, data_checks.in_time(spans)]
    if data is None:
        return findings, None
    steps = analysed.steps
    types = {name.removeprefix("tokens/") for name in steps if name.startswith("tokens/") and (steps[name] > 0).any()}
    heads = [run.head for each in made for runs in each.logs.values() for run in runs if len(run.steps)]
    findings += [
        data_checks.pinned(plan, data, plan.workload.data_digest),
        data_checks.loaded(plan, data, heads, types),
    ]
    # A step whose update is skipped has no line, and has consumed its tokens all the same.
    consumed = (int(steps["step"][-1]) + 1) * plan.tokens_per_step
    told = {"digest": data.digest, "tokens": data.tokens, "documents": data.documents, "mode": data.mode}
    return findings, {**told, "consumed_tokens": consumed, "passes": consumed / data.tokens}


def compare_with_curve(
    plan: Plan, data: Mapping[str, Any] | None, steps: Steps, origin: str
) -> tuple[Comparison | None, str]:
    """Compare a run with the reference curve of its plan.

    Args:
        plan: The plan.
        data: What it trained on, as the metrics have it; None for dummy data.
        steps: Its steps.
        origin: What decided, besides the seed, its initial weights and order of data.

    Returns:
        The comparison, or None and why there is none.
    """
    digest = DUMMY if plan.workload.data == DUMMY else (data or {}).get("digest")
    curve = curve_of(plan, digest)
    if curve is None:
        return None, f"There is no reference curve of {plan.workload.name} as it was run here."
    losses = losses_of(steps)
    found = None if losses is None else compare(curve, losses[None], [plan.seed], origin)
    return found, "" if found is not None else "Too few steps, or not from step 0, to compare with the curve."


def curve_of(plan: Plan, data: str | None, curves: Iterable[Curve] | None = None) -> Curve | None:
    """Find the reference curve of a plan.

    Args:
        plan: The plan.
        data: Digest of the data's fingerprint, or ``dummy``; None where it is not known.
        curves: Curves to choose from; None for the suite's own.

    Returns:
        The curve; None where there is none of this workload, shape, batch and schedule on these data.
    """
    wanted = (plan.workload.name, plan.model.num_layers, plan.total_steps, plan.tokens_per_step)
    for curve in load_curves() if curves is None else curves:
        told = (curve.workload, curve.num_layers, curve.total_steps, curve.tokens_per_step)
        if told == wanted and data == curve.data:
            return curve
    return None


def origin_of(plan: Plan, record: Mapping[str, Any], ranks: Mapping[int, Mapping[str, Any]]) -> str:
    """Say what decides, besides the seed, the initial weights of a run and its order of data.

    InternEvo draws weights on the device, whose generator is often one of its kind, for each rank's part of them, and
    from version to version in another order.

    Args:
        plan: The plan.
        record: environment/run.json.
        ranks: environment/rankR.json by rank.

    Returns:
        InternEvo, the generator, and the division of weights and data; empty where a rank does not tell its generator.
    """
    devices, source = [rank.get("device") for rank in ranks.values()], record.get("internevo")
    told = {str(device.get("generator", "")) if isinstance(device, dict) else "" for device in devices}
    version = source.get("tag") or source.get("version") if isinstance(source, dict) else None
    if len(told) != 1 or not version or told == {""}:
        return ""
    (generator,) = told
    divided = f"dp {plan.data_parallel} x tp {plan.tensor} x pp {plan.pipeline}"
    return f"InternEvo {version}, {generator}, {divided}, {plan.micro_num} x {plan.micro_bsz} sequences"


def losses_of(steps: Steps) -> Matrix | None:
    """The loss of a run as a curve holds it.

    Args:
        steps: Its steps.

    Returns:
        Loss over all data-parallel ranks by step from 0, as far as no step is missing; None where step 0 is.
    """
    name = "loss_from_metric" if "loss_from_metric" in steps else "loss"
    whole = steps["step"] == np.arange(len(steps))
    count = len(whole) if whole.all() else int(np.argmin(whole))
    return np.asarray(steps[name][:count], dtype=np.float64) if count else None


def series_digest(steps: Steps) -> str:
    """Name what a run computed, so that a copy of its log is known again whatever seed, clock or speed it shows.

    Args:
        steps: Its steps.

    Returns:
        sha256, hex, over every logged loss and gradient norm.
    """
    columns = sorted(name for name in steps if name == "loss" or name.startswith("grad_norm"))
    digest = hashlib.sha256()
    for part in steps.parts():
        digest.update(np.array([part[name] for name in columns], "<f8").T.tobytes())
    return digest.hexdigest()


def _chained(files: Evidence, attempts: Sequence[Attempt], resumable: bool) -> Finding:
    with files.open(evidence.JOURNAL) as stream:
        entries = journal.parse(stream.read(journal.MAX_JOURNAL_BYTES + 1)).entries
    return run_checks.attempts([evidence.attempt_digest(each.files) for each in attempts[:-1]], entries, resumable)


def analyse_attempts(attempts: Sequence[Attempt], plan: Plan, limits: Limits) -> tuple[str, RunAnalysis]:
    """Find in each attempt the log that carries the training metrics, and analyse them as one run.

    Args:
        attempts: The attempts, the oldest first.
        plan: What the run should have done.
        limits: What the figures are held against, besides the plan.

    Returns:
        The last attempt's log and the analysis, with the exceptions of all its other ranks' logs in it.

    Raises:
        EvidenceError: No log of the last attempt, or more than one of any, shows steps; or they are no one run.
    """
    speaking = []
    for each in attempts:
        names = [name for name, runs in each.logs.items() for run in runs if len(run.steps)]
        if len(set(names)) > 1:
            told = ", ".join(dict.fromkeys(names))
            raise EvidenceError(f"The training metrics stand in {len(set(names))} logs: {told}; expected one.")
        if len(names) > 1:
            raise EvidenceError(
                f"{names[0]} holds the steps of {len(names)} processes; expected the one that an attempt starts.",
                "Give each attempt's logs as they were written.",
            )
        speaking.append(names[0] if names else "")
    last = attempts[-1]
    # Without any step the first rank's log still tells which exception came first.
    chosen = speaking[-1] or next((name for name, runs in last.logs.items() if runs), "")
    segments = [run for each, name in zip(attempts, speaking, strict=True) for run in each.logs.get(name, ())]
    if not speaking[-1]:
        segments = list(last.logs.get(chosen, ()))
    others = [event for name, runs in last.logs.items() if name != chosen for run in runs for event in run.exceptions]
    runs = analyze_logs(segments, plan=plan, limits=limits, others=others)
    if len(runs) != 1 or not speaking[-1]:
        told = next((f.message for run in runs for f in run.findings if f.result is not Result.PASS), "")
        found = (
            f"{len(runs)} runs stand in {chosen}; expected one." if speaking[-1] else "No log shows a training step."
        )
        raise EvidenceError(f"{found} {told}".strip(), f"Read the end of {chosen or 'logs/node0/agent.log'}.")
    return chosen, runs[0]
