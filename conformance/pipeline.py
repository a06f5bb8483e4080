"""One run from request to signed report: plan, launch, evidence, judgement, report."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from conformance import evidence, journal
from conformance.checks.finding import Finding, Result, Verdict
from conformance.claim import LOCK, claimed
from conformance.data import fingerprint, read_fingerprint, train_folder
from conformance.errors import DataError, EvidenceError, LaunchError
from conformance.evidence import Request, RunDirectory
from conformance.internevo.config import CHECKPOINT_FOLDER, DATA_FOLDER, render_config
from conformance.internevo.patchfile import PatchFile, apply_patch_files, patch_digests
from conformance.internevo.source import Source, find_source, require_pinned
from conformance.internevo.worker import SETTINGS, Settings
from conformance.judgement import Judgement, newest_ceiling, plan_of, rank_records
from conformance.launch import telemetry, torchrun
from conformance.launch.advice import memory_advice
from conformance.launch.detect import Detector, Limits, limits_for, told_late
from conformance.launch.disk import FULL
from conformance.launch.follow import TOKEN, follow
from conformance.launch.launcher import Place, agent_commands, agents, find_place
from conformance.launch.node import Launch, signals_heeded
from conformance.launch.supervise import Display, Ending, Interrupted, reserve, supervise
from conformance.launch.team import Host, Member
from conformance.plan import Plan
from conformance.redaction import redact_run, redact_segment
from conformance.report.build import report_on, suite_digest
from conformance.watch import Watch, checkpoint_bytes, complete_checkpoints, disk_bytes, reference_of

# A performance run leaves some MiB of logs; far less than this free is a disk that will be full before the end.
MIN_FREE_BYTES = 256 << 20


@dataclass(frozen=True)
class Site:
    """Where and with what a run is made.

    Args:
        device: Name of the device plugin.
        internevo: Root of an InternEvo checkout; None for the installed wheel or what was fetched.
        patches: Patch files of the vendor's own, applied to a copy of the checkout.
        reports: The reports folder, which holds run directories and the journal.
        run_dir: This run's directory; None to make one in ``reports``.
        signing_key: Private key file; None for this machine's own key.
        master_port: Rendezvous port; None for the environment's, or a free one where there is one node.
        launcher: torchrun, slurm or local; None to tell from the environment.
        node_rank: Index of this node; None to tell from the environment.
        master_addr: Address of node 0; None to tell from the environment.
        data: Folder of prepared data; None where the workload trains on none, or the resumed run's.
        resume: Run directory of the attempt to go on from; None to begin at step 0.
        until_target: Whether to stop once the loss is below the target and has stayed there.
        challenge: The lab's signed challenge that the run's seed answers; None where it answers none.
    """

    device: str
    internevo: Path | None
    reports: Path
    patches: tuple[Path, ...] = ()
    run_dir: Path | None = None
    signing_key: Path | None = None
    master_port: int | None = None
    launcher: str | None = None
    node_rank: int | None = None
    master_addr: str | None = None
    data: Path | None = None
    resume: Path | None = None
    until_target: bool = False
    challenge: bytes | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of one run.

    Args:
        run: Its directory, with report and evidence.
        judgement: Findings, metrics and verdict.
        ending: How the launcher ended.
        report_id: sha256 of the report's payload.
        key_id: Id of the key that signed it.
        self_issued: Whether that key is this machine's own, vouched for by nobody.
        judged_on: Host of node 0, where the report lies; empty on node 0 itself.
        told_to_end: Whether a signal came on this node, be it while the run, which had ended, was judged and signed.
    """

    run: Path
    judgement: Judgement
    ending: Ending
    report_id: str
    key_id: str
    self_issued: bool
    judged_on: str = ""
    told_to_end: bool = False


def run_workload(request: Request, site: Site, watch: Callable[[Plan], Display]) -> Outcome:
    """Make a run and report on it.

    Args:
        request: What to run.
        site: Where and with what.
        watch: Called with the plan when the run starts; gives what shows it.

    Returns:
        The outcome, also of a run that failed or was interrupted.

    Raises:
        ConformanceError: The run could not be started, or its evidence not be written.
    """
    plan = plan_of(request)
    source = find_source(site.internevo, plan.workload.tag)
    require_pinned(source, plan.workload)
    place = find_place(
        request.nodes, site.launcher, site.node_rank, site.master_addr, site.master_port, dict(os.environ)
    )
    job = _Job(request, plan, source, site, place)
    if place.node_rank > 0:
        return _follow(job, watch(plan))
    require_startable(plan, site, place)
    with _run_directory(plan, site) as run:
        return _lead(job, run, watch)


def require_startable(plan: Plan, site: Site, place: Place) -> None:
    """Refuse, on node 0 and before anything starts, a run that lacks a port, a directory or a checkpoint.

    Args:
        plan: What is to be run.
        site: Where and with what.
        place: Node 0's place.

    Raises:
        ConformanceError: The port is taken, the run directory is not new, or there is nothing to go on from.
    """
    if place.launcher != "slurm":
        torchrun.require_free_port(place.port)
    if site.run_dir is not None:
        evidence.require_new(site.run_dir)
    if site.resume is not None:
        _require_checkpoint(site.resume, plan)


@dataclass(frozen=True)
class _Job:
    """What is to be run, of what source, where and with what, and which node of the run this is."""

    request: Request
    plan: Plan
    source: Source
    site: Site
    place: Place


def _lead(job: _Job, run: Path, watch: Callable[[Plan], Display]) -> Outcome:
    """Make a run as node 0, which judges it."""
    plan, site = job.plan, job.site
    ending: Ending | None = None
    try:
        _require_space(run, plan, site.resume)
        display = watch(plan)
        patched = _prepare(job, run)
        display = Watch(
            plan,
            run,
            display,
            until_target=site.until_target,
            curve=reference_of(plan, run),
            interrupt_at=plan.workload.interrupt_at if site.resume is None else None,
        )
        course = _Course(display)
        with signals_heeded(course.heed), agents(job.place, run) as agents_failed:
            team = _gather(job, run, agents_failed, display)
            ending = _train(job, patched, run, team, course)
            judgement, report_id, key_id, self_issued = report_on(run, site.signing_key)
            if team is not None:
                team.host.publish(_published(judgement, ending, report_id, key_id, self_issued))
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise _unwritable(run, ending, error) from error
    told_to_end = course.told_to_end or bool(ending.signal)
    return Outcome(run, judgement, ending, report_id, key_id, self_issued, told_to_end=told_to_end)


class _Course:
    """How far a run has come, which decides what a signal does: end the training, or wait for the report.

    Args:
        display: What shows the run.
    """

    def __init__(self, display: Display) -> None:
        self.display = display
        self.trained = False
        self.told_to_end = False

    def heed(self, signal: str) -> None:
        """Heed a signal.

        Args:
            signal: Its name.

        Raises:
            Interrupted: The run is not over yet, and is to be ended.
        """
        if not self.trained:
            raise Interrupted(signal)
        self.told_to_end = True
        self.display.notice(told_late(signal))


@contextlib.contextmanager
def _run_directory(plan: Plan, site: Site) -> Iterator[Path]:
    """Make the run's directory; while this run lives, none other takes it for ended or writes its checkpoints.

    It is gone again where the run could not begin: the same command, given again, is to find it free.
    """
    with contextlib.ExitStack() as claims:
        if site.resume is not None:
            claims.enter_context(_claimed_checkpoints(site.resume))
        run = evidence.create_run_directory(site.run_dir or _new_run_name(site.reports, plan.workload.name))
        try:
            with contextlib.ExitStack() as own:
                own.enter_context(claimed(run / "work", LaunchError(f"{run} is in use.")))
                if site.resume is None and plan.workload.checkpoint_every is not None:
                    own.enter_context(_claimed_checkpoints(run))
                yield run
        except BaseException:
            if not (run / evidence.RUN).exists():
                shutil.rmtree(run, ignore_errors=True)
            raise


def _claimed_checkpoints(run: Path) -> contextlib.AbstractContextManager[None]:
    """Claim the folder that a run, and each that goes on from it, writes its checkpoints to."""
    folder = (run / "work" / CHECKPOINT_FOLDER).resolve()
    refused = LaunchError(
        f"The checkpoints in {folder} are those of a run that still goes on.",
        "Let it end, or end it, and go on from what it leaves. Where it is gone with its machine, and a network file "
        f"system still keeps its lock, remove {folder / LOCK}.",
    )
    return claimed(folder, refused)


@dataclass(frozen=True)
class _Team:
    """The nodes of a run that take orders, and the address that torchrun's agents meet at."""

    host: Host
    address: str
    hosts: dict[int, str]
    environments: dict[int, Mapping[str, str]]


def _prepare(job: _Job, run: Path) -> tuple[Source, tuple[PatchFile, ...]]:
    """Write what the workers and the judgement read; return the source with the vendor's patches, and these."""
    plan, site = job.plan, job.site
    evidence.write_json(run, evidence.REQUEST, job.request.to_json())
    evidence.write_json(run, evidence.PLAN, plan.to_json())
    (run / evidence.CONFIG).write_text(render_config(plan), encoding="utf-8")
    if site.challenge is not None:
        (run / evidence.CHALLENGE).write_bytes(site.challenge)
    source, changes = _patched(job.source, site.patches, run)
    _settings(source, site).write(run)
    if plan.workload.data != "dummy":
        _link_training_state(run, site, plan)
    return source, changes


def _take_over(earlier: Path, run: Path) -> None:
    evidence.take_over(earlier, run)
    # An attempt that was killed was not redacted at its end.
    redact_segment(run, len(evidence.segments(RunDirectory(run))) - 1)


def _require_checkpoint(earlier: Path, plan: Plan) -> None:
    complete = [step for step, _ in complete_checkpoints((earlier / "work" / CHECKPOINT_FOLDER).resolve())]
    if not complete or complete[-1] >= plan.total_steps:
        found = f"its newest is of step {complete[-1]}, the last" if complete else "none is complete"
        raise LaunchError(f"{earlier} has no checkpoint to go on from: {found}.", "Begin anew, without --resume.")


def data_of(run: Path) -> Path:
    """Tell what a run trains on.

    Args:
        run: Run directory of a workload that trains on prepared data.

    Returns:
        The folder of prepared data that it was given.
    """
    return (run / "work" / DATA_FOLDER).resolve().parent


def _link_training_state(run: Path, site: Site, plan: Plan) -> None:
    """Show InternEvo, in the folder that it runs in, the data and the checkpoints to go on from; record the data."""
    data, earlier = site.data, site.resume
    if earlier is not None:
        data = data or data_of(earlier)
        checkpoints = (earlier / "work" / CHECKPOINT_FOLDER).resolve()
        _take_over(earlier, run)
        (run / "work" / CHECKPOINT_FOLDER).symlink_to(checkpoints)
    if data is None:
        raise LaunchError("This workload trains on real data.", "Name a folder of prepared data with --data.")
    lies_there, prepared = fingerprint(data), read_fingerprint(data)
    if lies_there.digest != prepared.digest:
        raise DataError(
            f"The data in {data} are not those that were prepared: their fingerprint is {lies_there.digest[:16]}, and "
            f"was {prepared.digest[:16]}.",
            f"`conformance data check {data}` says what is wrong; prepare them anew.",
        )
    evidence.write_json(run, evidence.DATA, lies_there.to_json())
    (run / "work" / DATA_FOLDER).symlink_to(train_folder(data).resolve())


def _settings(source: Source, site: Site) -> Settings:
    return Settings(site.device, str(source.root) if source.kind == "checkout" else None)


def _asked(job: _Job) -> dict[str, Any]:
    """What has to be the same on every node."""
    # Nodes that share no folder apply their own.
    patches = {f"--patch {name}": digest for name, digest in patch_digests(job.site.patches).items()}
    described = json.loads(json.dumps(_describe(job.source)))
    internevo = {f"InternEvo's {name}": value for name, value in described.items()}
    return {
        "request": job.request.to_json(),
        "internevo": internevo,
        "patches": patches,
        "the suite's digest": suite_digest(),
    }


def _gather(job: _Job, run: Path, agents_failed: Callable[[], str], display: Display) -> _Team | None:
    """Wait for the other nodes and give them the work."""
    request, plan, place = job.request, job.plan, job.place
    if place.nodes == 1:
        return None
    token = secrets.token_hex(16)
    (run / "work" / TOKEN).write_text(token)
    address = place.address
    told: dict[int, str] = {}
    environments: dict[int, Mapping[str, str]] = {}

    def orders(hellos: Mapping[int, Any]) -> dict[str, Any]:
        nonlocal address
        address = address or hellos[0]["address"]
        told.update({node: hello["host"] for node, hello in hellos.items()})
        environments.update({node: hello["environment"] for node, hello in hellos.items()})
        return {
            "run": run.name,
            "token": token,
            "config": render_config(plan),
            "settings": json.loads((run / "work" / SETTINGS).read_text()),
            "nodes": request.nodes,
            "devices_per_node": request.devices_per_node,
            "seed": request.seed,
            "address": address,
            "port": place.port,
            "lost_node_seconds": _limits(plan).lost_node_seconds,
        }

    host = Host(place.port + 1, range(place.launcher != "slurm", place.nodes), run)
    host.gather(_asked(job), orders, agents_failed, display.waiting)
    if place.launcher != "slurm":
        told[0] = socket.gethostname()
    return _Team(host, address, told, environments)


def _follow(job: _Job, display: Display) -> Outcome:
    """Take part in a run that node 0 judges."""
    plan, site, place = job.plan, job.site, job.place
    member = Member(place.address, place.port + 1, place.node_rank, _asked(job), waiting=display.waiting)

    def settings(run: Path) -> Settings:
        if plan.workload.checkpoint_every is not None:
            raise LaunchError(
                f"{run} is not node 0's run directory: what node 0 writes is not seen here, and a run that is to be "
                "resumed needs its checkpoints on all nodes.",
                "Name a --reports folder on a file system that all nodes share.",
            )
        return _settings(_patched(job.source, site.patches, run)[0], site)

    run, told, interrupted = follow(member, site.run_dir, site.reports, settings, display)
    findings = tuple(Finding(**{**one, "result": Result(one["result"])}) for one in told["findings"])
    judgement = Judgement(plan, findings, told["metrics"], Verdict(told["verdict"]))
    ending = Ending(told["exit_code"], interrupted or told["interrupted"], 0)
    return Outcome(
        run, judgement, ending, told["report_id"], told["key_id"], told["self_issued"], told["host"], interrupted
    )


def _published(judgement: Judgement, ending: Ending, report_id: str, key_id: str, self_issued: bool) -> dict[str, Any]:
    """What the other nodes are told, so that the same command ends with the same results everywhere."""
    return {
        "findings": [asdict(finding) for finding in judgement.findings],
        "metrics": judgement.metrics,
        "verdict": judgement.verdict,
        "exit_code": ending.exit_code,
        "interrupted": ending.interrupted,
        "report_id": report_id,
        "key_id": key_id,
        "self_issued": self_issued,
        "host": socket.gethostname(),
    }


def _train(
    job: _Job, patched: tuple[Source, tuple[PatchFile, ...]], run: Path, team: _Team | None, course: _Course
) -> Ending:
    request, plan, site, place = job.request, job.plan, job.site, job.place
    command = torchrun.command(
        run,
        nodes=request.nodes,
        devices_per_node=request.devices_per_node,
        rendezvous=torchrun.Rendezvous(team.address if team else place.address, place.port, 0),
        config=f"../{evidence.CONFIG}",
        seed=request.seed,
    )
    variables = torchrun.environment(run)
    record = {
        "command": _portable(command, run),
        "environment": torchrun.recorded(variables),
        "environment_differs": _differing(torchrun.recorded(os.environ), team),
        **_begun(patched, place, run, team),
    }
    attempts = site.reports / evidence.JOURNAL
    plan_digest = evidence.digests(RunDirectory(run))[evidence.PLAN]
    resumes = {} if site.resume is None else {"resumes": site.resume.resolve().name}
    journal.append(attempts, "started", run.name, workload=request.workload, plan=plan_digest, **resumes)
    outcome, ending = "failed", None
    try:
        evidence.write_json(run, evidence.RUN, record)
        reserve(run)
        # Under Slurm every rank is started by srun, on this node too.
        launch = None if place.launcher == "slurm" and team else Launch(command, variables, run, 0)
        sampling = telemetry.sampled(site.device, run, 0) if launch else contextlib.nullcontext()
        with sampling:
            ending = supervise(run, launch, _detector(plan), course.display, team.host if team else None)
            course.trained = True
        outcome = "interrupted" if ending.interrupted else "ended" if ending.fault is None else "stopped"
    finally:
        course.trained = True
        # Also when starting failed: an attempt that left no entry would be an attempt hidden.
        record |= {"ended": _now(), "outcome": outcome, "exit_code": None if ending is None else ending.exit_code}
        _record_end(record, plan, ending, attempts, run)
        shutil.copyfile(attempts, run / evidence.JOURNAL)
    return ending


def _begun(
    patched: tuple[Source, tuple[PatchFile, ...]], place: Place, run: Path, team: _Team | None
) -> dict[str, Any]:
    """What is known of a run when it begins: where, of what, and that it has no end yet."""
    source, changes = patched
    hosts = team.hosts if team else {0: socket.gethostname()}
    return {
        "agents": [_portable(agent, run) for agent in agent_commands(place, run)],
        "host": socket.gethostname(),
        "hosts": {str(node): host for node, host in sorted(hosts.items())},
        "launcher": place.launcher,
        "internevo": _describe(source),
        "patch_files": [asdict(change) for change in changes],
        "started": _now(),
        "outcome": "running",
    }


def _record_end(record: Mapping[str, Any], plan: Plan, ending: Ending | None, attempts: Path, run: Path) -> None:
    """Write down how a run ended; the journal learns it in any case, or the attempt would seem to have had no end."""
    try:
        evidence.write_json(run, evidence.RUN, record)
        if ending is not None:
            faults = [] if ending.fault is None else [ending.fault.to_json()]
            notices = [notice.to_json() for notice in ending.notices]
            seen = {"limits": asdict(_limits(plan)), "faults": faults, "notices": notices}
            evidence.write_json(run, evidence.FAULTS, seen)
        redact_run(run)
        _keep_ceiling(attempts.parent, run)
    except OSError as error:
        raise _unwritable(run, ending, error) from error
    finally:
        digest = evidence.attempt_digest(RunDirectory(run))
        journal.append(attempts, "ended", run.name, outcome=record["outcome"], evidence=digest)


def _keep_ceiling(reports: Path, run: Path) -> None:
    """Keep of the newest preflight of this run's devices what its GEMM ceiling follows from, as evidence of the run."""
    ranks = rank_records(RunDirectory(run)).values()
    signed = [path.parent for path in reports.glob(f"*/{evidence.REPORT}")]
    preflights = {path.name: RunDirectory(path) for path in signed if (path / evidence.PREFLIGHT).is_file()}
    found = newest_ceiling(preflights, [{"host": rank["host"], **rank["device"]} for rank in ranks])
    if found is not None:
        (run / evidence.CEILING).mkdir()
        for task in ("", "-host", "-device"):
            name = evidence.PREFLIGHT.replace(".json", f"{task}.json")
            shutil.copyfile(reports / found[0] / name, run / name.replace("/", "/ceiling/", 1))
        evidence.write_json(run, evidence.CEILING_OF, {"run": found[0]})


def _unwritable(run: Path, ending: Ending | None, error: OSError) -> EvidenceError:
    fault = ending.fault.message if ending is not None and ending.fault is not None else ""
    return evidence.unwritable(run, fault, error)


def _limits(plan: Plan) -> Limits:
    return limits_for(plan, checkpoint_bytes(plan))


def _detector(plan: Plan) -> Detector:
    return Detector(
        plan.topology.devices_per_node, plan.total_steps, _limits(plan), time.monotonic(), memory_advice(plan)
    )


def _differing(ours: Mapping[str, str], team: _Team | None) -> dict[str, dict[str, str | None]]:
    """What is set otherwise on which other node."""
    theirs = team.environments if team else {}
    found = {str(node): torchrun.differing(ours, variables) for node, variables in sorted(theirs.items())}
    return {node: names for node, names in found.items() if names}


def _portable(command: list[str], run: Path) -> list[str]:
    """A command as evidence: without where things lie on this machine."""
    parts = {sys.executable: Path(sys.executable).name, str(run): "RUN"}
    return [parts.get(part, part) for part in command]


def _patched(source: Source, files: tuple[Path, ...], run: Path) -> tuple[Source, tuple[PatchFile, ...]]:
    """Apply the vendor's patch files to a copy inside the run's work folder, and keep them as evidence."""
    if not files:
        return source, ()
    patched = apply_patch_files(source, files, run / "work" / "internevo")
    (run / "patches").mkdir()
    for file in files:
        shutil.copyfile(file, run / "patches" / file.name)
    return patched


def _describe(source: Source) -> dict[str, Any]:
    """The source as evidence: what it is, not where it lies on this machine."""
    fields = asdict(source)
    del fields["root"]
    return fields


def _new_run_name(reports: Path, workload: str) -> Path:
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    return reports / f"{stamp}-{workload}"


def _require_space(run: Path, plan: Plan, resume: Path | None) -> None:
    """Refuse a run whose disk would be full before its end; a resumed one's checkpoints lie with the first one's."""
    held = run if resume is None else (resume / "work" / CHECKPOINT_FOLDER).resolve()
    places = {run: 0, held: disk_bytes(plan, len(complete_checkpoints(held)))}
    for place, checkpoints in places.items():
        if not place.is_dir():
            continue  # nothing to go on from: that is told when it is looked for
        free, needed = shutil.disk_usage(place).free, MIN_FREE_BYTES + checkpoints
        if free < needed:
            raise LaunchError(
                f"The disk that holds {place} has {free >> 20} MiB free; this run needs {needed >> 20} MiB more there, "
                f"{checkpoints >> 20} MiB of it for checkpoints.",
                "Free space or choose another --run-dir." if place == run else "Free space there.",
            )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
