"""The pytest side: the choice of workloads, one run for each, one test for each check, the summary."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from conformance.checks.finding import Result, Verdict
from conformance.errors import ConformanceError
from conformance.options import declare, prepare, require_names
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
    declare(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks, so that the suite also runs from outside this project's configuration.

    Args:
        config: pytest's configuration.

    Raises:
        pytest.UsageError: An option names what the evidence could not hold.
    """
    try:
        require_names(config.option)
    except ConformanceError as error:
        raise pytest.UsageError(str(error)) from error
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
            prepare(config.option, workload)
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
    try:
        what, site = prepare(config.option, workload)  # once more: what was free before the tests may be taken now
        with shown(config):
            console = Console(highlight=False)
            console.print()
            with LiveProgress(console, workload.name) as progress:
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
