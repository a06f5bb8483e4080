"""The pytest side: options, the choice of workloads, one run for each, one test for each check, the summary."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import resource
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from conformance import journal
from conformance.checks.finding import Result, Verdict
from conformance.data import read_fingerprint
from conformance.devices import Device, count_devices, detect_device, load_device
from conformance.errors import ConformanceError
from conformance.evidence import JOURNAL, PLAN, REQUEST, Request, RunDirectory, read_json, request_from_json
from conformance.plan import DEFAULT_SEED, Topology, make_plan, parse_overrides
from conformance.spec import Workload, all_workloads, load_checks, load_workload

if TYPE_CHECKING:  # pandas and cryptography come with it; collecting tests needs neither
    from conformance.pipeline import Outcome, Site

MARKS = {
    "7b": "official LLaMA2 7B workload",
    "70b": "official LLaMA2 70B workload",
    "tiny": "rehearsal on a CPU",
    "slice": "the 7B shape with fewer layers, for one device",
    "slow": "takes more than a few seconds",
}

# What 512 ranks on a node would need, twice over; a limit without bounds slows programs that close every file.
OPEN_FILES = 65536


@dataclass
class SuiteState:
    """What the plugin keeps during a session.

    Args:
        outcomes: What came of each workload, by name.
        preflight: Whether tests of the preflight were collected, selected or not.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    preflight: bool = False


STATE = pytest.StashKey[SuiteState]()
# Why runs could not be made, as far as a test has said it.
_TOLD: list[ConformanceError] = []
# What a green session would belie, whichever checks were selected.
NOT_GOOD = (Verdict.NOT_CONFORMANT, Verdict.INCONCLUSIVE)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the suite's options.

    Args:
        parser: pytest's parser.
    """
    group = parser.getgroup("conformance", "LLaMA2 pretraining conformance")
    group.addoption("--nodes", type=int, metavar="N", help="number of nodes (default: 1)")
    group.addoption("--devices-per-node", type=int, metavar="N", help="devices on each node (default: what it has)")
    group.addoption("--workload", metavar="NAME", help="workload whose shapes the preflight measures")
    group.addoption("--device", metavar="NAME", help="device plugin (default: the accelerator found, or cpu)")
    group.addoption(
        "--internevo",
        type=Path,
        metavar="PATH",
        help="InternEvo checkout (default: what `conformance internevo get` fetched; to rehearse, the installed wheel)",
    )
    group.addoption(
        "--patch",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="your own change to InternEvo, as a diff",
    )
    group.addoption(
        "--run-dir", type=Path, metavar="PATH", help="directory of this run (default: reports/TIME-WORKLOAD)"
    )
    group.addoption(
        "--reports", type=Path, default=Path("reports"), metavar="PATH", help="where runs and their journal go"
    )
    group.addoption("--signing-key", type=Path, metavar="FILE", help="private key (default: this machine's own)")
    group.addoption(
        "--launcher",
        choices=("torchrun", "slurm", "local"),
        help="torchrun: this command on every node; slurm: srun starts the nodes (default inside an allocation); "
        "local: all nodes on this machine",
    )
    group.addoption(
        "--node-rank", type=int, metavar="N", help="this node (default: NODE_RANK, GROUP_RANK, PET_NODE_RANK, RANK)"
    )
    group.addoption("--master-addr", metavar="HOST", help="node 0 (default: MASTER_ADDR)")
    group.addoption(
        "--master-port", type=int, metavar="PORT", help="port on node 0, and the one after it (default: MASTER_PORT)"
    )
    group.addoption(
        "--seed",
        type=int,
        metavar="N",
        help=f"InternEvo's seed (default: {DEFAULT_SEED}; of a preflight a fresh one)",
    )
    group.addoption(
        "--challenge", type=Path, metavar="FILE", help="the lab's challenge, which gives the seed that answers it"
    )
    group.addoption("--data", type=Path, metavar="DIR", help="prepared data (conformance data prepare)")
    group.addoption(
        "--resume", type=Path, metavar="RUN", help="go on from the checkpoints of this run, as it was asked for"
    )
    group.addoption(
        "--until-target", action="store_true", help="stop once the loss is below the target and has stayed there"
    )
    group.addoption(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override micro_bsz, micro_num, tensor, ..."
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks, so that the suite also runs from outside this project's configuration.

    Args:
        config: pytest's configuration.
    """
    config.stash[STATE] = SuiteState()
    _allow_open_files()
    for name, meaning in MARKS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def _allow_open_files() -> None:
    """Raise the soft limit, often 1024, as far as the hard one lets it: ranks and loaders inherit it, and need more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def workloads(kind: str) -> list[Any]:
    """The workloads of a kind, as parameters of the fixture ``outcome``.

    Args:
        kind: "perf" or "accuracy".

    Returns:
        Workload names, each marked with the workload's mark.
    """
    return [pytest.param(w.name, marks=getattr(pytest.mark, w.mark)) for w in all_workloads() if w.kind == kind]


def checks(kind: str) -> list[str]:
    """The checks that a kind of suite makes.

    Args:
        kind: "perf" or "accuracy".

    Returns:
        Check ids, in the order of spec/checks.toml.
    """
    return [check.id for check in load_checks().values() if kind in check.applies]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out rehearsals that were not named, and note whether a preflight was asked for before -m and -k select.

    Args:
        config: pytest's configuration.
        items: Collected tests; changed in place.
    """
    config.stash[STATE].preflight = any(map(_is_preflight, items))
    unnamed = {w.name for w in all_workloads() if not w.official and not _is_named(config, w)}
    dropped = [item for item in items if _workload_of(item) in unnamed]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if _workload_of(item) not in unnamed]


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse, before anything starts, a named workload that cannot run here; skip one that was not named.

    Args:
        session: pytest's session, with the selected tests.

    Raises:
        pytest.UsageError: A workload was named and cannot run here, or no selected test heeds an option.
    """
    config = session.config
    if config.option.collectonly or hasattr(config, "workerinput"):  # a worker's are refused by its controller
        return
    selected = [load_workload(name) for name in dict.fromkeys(filter(None, map(_workload_of, session.items)))]
    _require_heeded(config, selected)
    running = ["the preflight"] if any(map(_is_preflight, session.items)) else []
    for workload in selected:
        try:
            prepare(config, workload)
            running.append(workload.name)
        except ConformanceError as error:
            if _is_named(config, workload):
                raise pytest.UsageError(str(error)) from error
            for item in session.items:
                if _workload_of(item) == workload.name:
                    item.add_marker(pytest.mark.skip(reason=str(error)))
    if config.option.run_dir is not None and len(running) > 1:
        raise pytest.UsageError(
            f"--run-dir names one directory; {' and '.join(running)} need one each. Select one of them with -m or -k, "
            "or leave --run-dir out."
        )


def _require_heeded(config: pytest.Config, selected: list[Workload]) -> None:
    """That no option was given which none of the runs heeds; the preflight's conftest.py says so of its own."""
    option = config.option
    ignored = {
        "--workload": option.workload and not config.stash[STATE].preflight,
        "--data": option.data and all(workload.data == "dummy" for workload in selected),
        "--until-target": option.until_target and all(workload.loss_target is None for workload in selected),
    }
    unheeded = [name for name, given in ignored.items() if given]
    if selected and unheeded:
        names = " and ".join(workload.name for workload in selected)
        raise pytest.UsageError(
            f"{names}: no such run heeds {' or '.join(unheeded)}. Leave it out: --workload is for suites/preflight, "
            "--data and --until-target are for suites/accuracy."
        )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(ids: Sequence[str]) -> None:
    """Refuse workloads under pytest-xdist, before anything starts: each worker would make a run of its own.

    Args:
        ids: Ids of the tests that a worker selected.

    Raises:
        pytest.UsageError: Tests of a workload are among them.
    """
    for workload in all_workloads():
        # Other tests may have a workload's name among their parameters.
        its_own = {f"[{workload.name}-{check}]" for check in checks(workload.kind)}
        if any(each[each.rfind("[") :] in its_own for each in ids):
            raise pytest.UsageError(
                f"Each worker of pytest-xdist would run {workload.name} on the same devices. Leave out -n, which only "
                "suites/preflight takes."
            )


def prepare(config: pytest.Config, workload: Workload) -> tuple[Request, Site]:
    """What the command line asks for, for one workload.

    Args:
        config: pytest's configuration.
        workload: The workload.

    Returns:
        The request, which a plan exists for, and the site.

    Raises:
        ConformanceError: The machine lacks the devices, the request breaks the benchmark's rules, or something that it
            names cannot be used.
    """
    option = config.option
    device = load_device(option.device) if option.device else detect_device()
    request, challenge = _request(option, workload, device)
    _require_data(option, workload)
    from conformance.internevo.source import find_source, require_pinned
    from conformance.launch.launcher import find_place
    from conformance.pipeline import Site  # heavy; a request that is refused needs none of it
    from conformance.report.build import signer

    place = find_place(
        request.nodes, option.launcher, option.node_rank, option.master_addr, option.master_port, dict(os.environ)
    )
    if place.node_rank == 0:
        signer(option.signing_key)  # now, and not after days of training
        if option.resume is not None:
            _require_journalled(option.resume, option.reports, request)
    require_pinned(find_source(option.internevo, workload.tag), workload)
    site = Site(
        device=device.name,
        internevo=option.internevo,
        reports=option.reports,
        patches=tuple(option.patch),
        run_dir=option.run_dir,
        signing_key=option.signing_key,
        master_port=option.master_port,
        launcher=option.launcher,
        node_rank=option.node_rank,
        master_addr=option.master_addr,
        data=option.data,
        resume=option.resume,
        until_target=option.until_target,
        challenge=challenge,
    )
    return request, site


def _request(option: Any, workload: Workload, device: Device) -> tuple[Request, bytes | None]:
    """What the options ask for of a workload, which a plan exists for, and the challenge that it answers, if any."""
    if option.resume is None:
        nodes = 1 if option.nodes is None else option.nodes
        request = Request(
            workload.name,
            nodes,
            _devices_per_node(workload, device, nodes, option),
            parse_overrides(option.set),
            DEFAULT_SEED if option.seed is None else option.seed,
        )
    else:
        request = _resumed_request(workload, option)
    challenge = None
    if option.challenge is not None:
        request, challenge = _answering(request, option.challenge, option.resume is None and option.seed is None)
    make_plan(workload, Topology(request.nodes, request.devices_per_node), request.overrides, seed=request.seed)
    return request, challenge


def _require_data(option: Any, workload: Workload) -> None:
    """That a new run's data are named, and can be read."""
    if workload.data == "dummy" or option.resume is not None:
        return
    if option.data is None:
        raise ConformanceError(
            f"{workload.name} trains on {workload.data}, and no data were named.",
            "Prepare them with `conformance data prepare`, and name the folder with --data.",
        )
    read_fingerprint(option.data)


def _answering(request: Request, path: Path, free: bool) -> tuple[Request, bytes]:
    """The request with the seed that answers a challenge, if it has that or is free to take it; and the challenge."""
    from conformance.report import challenge

    asked, envelope = challenge.read(path)
    challenge.require_valid(asked, request.workload, datetime.now(timezone.utc))
    seed = challenge.seed(asked.nonce, request.workload)
    if request.seed != seed and not free:
        raise ConformanceError(
            f"The run's seed is {request.seed}; the challenge {path} asks for {seed}.",
            "Leave --seed out; a run that goes on answers the challenge that it began with, or none.",
        )
    return replace(request, seed=seed), envelope


def _resumed_request(workload: Workload, option: Any) -> Request:
    """The request of the run that is to go on; what the command line says besides has to agree with it."""
    if workload.checkpoint_every is None:
        raise ConformanceError(f"{workload.name} writes no checkpoints to resume from.", "Leave out --resume.")
    if not option.resume.is_dir():
        raise ConformanceError(
            f"--resume {option.resume}: there is no such directory.",
            "Name the run directory of the attempt to go on from.",
        )
    earlier = request_from_json(read_json(RunDirectory(option.resume), REQUEST))
    said = {
        "nodes": option.nodes,
        "devices_per_node": option.devices_per_node,
        "overrides": parse_overrides(option.set) or None,
        "seed": option.seed,
        "workload": workload.name,
    }
    for name, value in said.items():
        if value is not None and value != getattr(earlier, name):
            raise ConformanceError(
                f"--resume {option.resume} was asked for with {name} {getattr(earlier, name)}; now it is {value}.",
                "A run goes on as it began: leave out what it was asked for with.",
            )
    return earlier


def _require_journalled(resumed: Path, reports: Path, request: Request) -> None:
    """That the reports folder's journal shows the run that is to go on, with the plan that it would go on with."""
    from conformance.judgement import plan_of

    path, name = reports / JOURNAL, resumed.resolve().name
    entries = journal.parse(path.read_bytes()).entries if path.is_file() else ()
    digest = hashlib.sha256((resumed / PLAN).read_bytes()).hexdigest() if (resumed / PLAN).is_file() else ""
    if not any((one.run, one.plan) == (name, digest) for one in journal.attempts(entries)):
        raise ConformanceError(
            f"The journal {path} shows no attempt {name} with the plan that stands in {resumed}.",
            "A run goes on where it was made: name the folder of its journal with --reports.",
        )
    if read_json(RunDirectory(resumed), PLAN) != json.loads(json.dumps(plan_of(request).to_json())):
        raise ConformanceError(
            f"--resume {resumed} began with another plan than this build of the suite makes of the same request.",
            "A run goes on as it began: use the build of the suite that began it.",
        )


def _devices_per_node(workload: Workload, device: Device, nodes: int, option: Any) -> int:
    if nodes < 1 or (option.devices_per_node is not None and option.devices_per_node < 1):
        raise ConformanceError("--nodes and --devices-per-node count nodes and devices; expected 1 or more.")
    reference = max(1, workload.reference.cards // nodes)
    if device.name == "cpu" and workload.mark == "tiny":
        return option.devices_per_node or reference
    if device.name == "cpu":
        each = option.devices_per_node or min(reference, 8)
        least = math.ceil(workload.reference.tensor * workload.reference.pipeline / each)
        raise ConformanceError(
            f"{workload.name} needs {max(nodes, least)} x {each} accelerators; this machine has none that an installed "
            "device plugin can see.",
            "Rehearse on the CPU with -m tiny, or name the vendor's plugin with --device.",
        )
    found = count_devices(device)
    if found < 1:
        raise ConformanceError(
            f"{workload.name} needs accelerators; this node shows none ({device.name}){_absence(device)}.",
            f"`conformance device-check {device.name}` tells what is missing.",
        )
    wanted: int = option.devices_per_node or min(reference, found)
    if found < wanted:
        raise ConformanceError(
            f"{workload.name} needs {nodes} x {wanted} accelerators; this node has {found} ({device.name}).",
            f"Run with --devices-per-node {found}, or make the others visible.",
        )
    return wanted


def _absence(device: Device) -> str:
    """What a plugin says of why it shows no device."""
    try:
        why = getattr(device, "absence", str)()
    except Exception:  # a third party's code, and device-check tells of it
        return ""
    return f": {why}" if why else ""


def _workload_of(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get("outcome")


def _is_preflight(item: pytest.Item) -> bool:
    return "preflight" in getattr(item, "fixturenames", ())


def _is_named(config: pytest.Config, workload: Workload) -> bool:
    """Whether the user asked for this workload by its mark or name."""
    words = set(re.findall(r"[\w-]+", " ".join([config.option.markexpr, config.option.keyword, *config.args])))
    return workload.mark in words or workload.name in words


@pytest.fixture(scope="session")
def outcome(request: pytest.FixtureRequest) -> Iterator[Outcome | ConformanceError]:
    """Run a workload, once a session, with a live progress line.

    Args:
        request: pytest's request; its param is the workload's name.

    Yields:
        The outcome, whose findings the tests look up; or why the run could not be made.
    """
    from rich.console import Console

    from conformance.launch.progress import LiveProgress
    from conformance.pipeline import run_workload

    config = request.config
    workload = load_workload(request.param)
    what, site = prepare(config, workload)
    with shown(config):
        console = Console(highlight=False)
        console.print()
        with LiveProgress(console, workload.name) as progress:
            try:
                result = run_workload(what, site, progress.watch)
                if _was_interrupted_on_purpose(workload, site, result):
                    result = run_workload(what, _going_on(site, result.run), progress.watch)
            except ConformanceError as error:
                yield error
                return
    config.stash[STATE].outcomes[workload.name] = result
    if result.ending.interrupted or result.told_to_end:
        raise KeyboardInterrupt
    yield result


def shown(config: pytest.Config) -> AbstractContextManager[None]:
    """Let what is printed reach the terminal, as it does anyway where pytest captures nothing (-p no:capture).

    Args:
        config: pytest's configuration.

    Returns:
        The context in which it does.
    """
    capture = config.pluginmanager.getplugin("capturemanager")
    disabled: AbstractContextManager[None] = nullcontext() if capture is None else capture.global_and_fixture_disabled()
    return disabled


def _was_interrupted_on_purpose(workload: Workload, site: Site, result: Outcome) -> bool:
    last = result.judgement.metrics.get("last_step") or 0
    return (
        site.resume is None
        and workload.interrupt_at is not None
        and result.ending.interrupted
        and not result.told_to_end
        and last >= workload.interrupt_at
    )


def _going_on(site: Site, run: Path) -> Site:
    """The site of the attempt that resumes a rehearsal's first one."""
    run_dir = None if site.run_dir is None else site.run_dir.with_name(f"{site.run_dir.name}-resumed")
    return replace(site, resume=run, run_dir=run_dir)


def require(outcome: Outcome | ConformanceError, check: str) -> None:
    """Turn the findings of one check into a test's result.

    Args:
        outcome: The run's outcome, or why it could not be made.
        check: Id of the check.
    """
    if isinstance(outcome, ConformanceError):
        if outcome not in _TOLD:  # said once, not once for every check
            _TOLD.append(outcome)
            pytest.fail(str(outcome), pytrace=False)
        pytest.skip("the run could not be made")
    found = [finding for finding in outcome.judgement.findings if finding.check == check]
    if not found:
        if load_checks()[check].severity != "required":
            pytest.skip("nothing to check")
        if any(f.check == "run-steps" and f.result is not Result.PASS for f in outcome.judgement.findings):
            pytest.skip("no training step was logged; run-steps says why")
        pytest.fail(f"{check}: the check was not made.", pytrace=False)
    bad = [finding for finding in found if finding.result in (Result.FAIL, Result.ERROR)]
    told = "\n".join(f"{f.check}: {f.message} {f.next_step}".strip() for f in bad)
    if bad and load_checks()[check].severity == "advisory":  # decides nothing, as in the preflight
        pytest.xfail(f"advisory: {told}")
    if bad:
        pytest.fail(told, pytrace=False)
    if all(finding.result is Result.SKIP for finding in found):
        pytest.skip(found[0].message)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Nothing tested is never green, nor a bad verdict: with every check skipped 5, as without tests, else 1.

    Args:
        session: pytest's session.
        exitstatus: Its exit code so far.
    """
    asked = any(_workload_of(item) for item in session.items)
    state = session.config.stash[STATE]
    if asked and not state.outcomes and exitstatus == 0 and not session.config.option.collectonly:
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
    if any(o.judgement.verdict in NOT_GOOD for o in state.outcomes.values()) and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print what a person wants to know of each run.

    Args:
        terminalreporter: pytest's reporter.
        config: pytest's configuration.
    """
    outcomes = config.stash[STATE].outcomes
    if not outcomes:
        return
    from rich.console import Console

    from conformance.summary import summary

    console = Console(file=terminalreporter._tw._file, highlight=False)
    for result in outcomes.values():
        console.print(summary(result))
