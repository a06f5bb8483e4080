"""Measures once a session, also under pytest-xdist, where each worker stands for one device of the node."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import tempfile
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from conformance.claim import lock
from conformance.devices import count_devices, detect_device, load_device
from conformance.errors import ConformanceError
from conformance.evidence import require_new

WAIT_SECONDS = 2400  # more than all nodes may take to arrive, and all tasks together
ERROR = "preflight-error.txt"
RUN = pytest.StashKey[Path]()
REQUEST = pytest.StashKey()


def _device(config):
    return load_device(config.option.device) if config.option.device else detect_device()


def _found(config):
    from conformance.preflight.session import REHEARSAL_DEVICES

    device = _device(config)
    return REHEARSAL_DEVICES if device.backend == "gloo" else count_devices(device)


def pytest_xdist_auto_num_workers(config):
    try:
        return max(1, _found(config))
    except ConformanceError as error:
        raise pytest.UsageError(str(error)) from error


def _seed(config):
    """The seed that was asked for, else a fresh one; of several nodes that of node 0 counts."""
    return secrets.randbelow(1 << 31) if config.option.seed is None else config.option.seed


def _request(config):
    """What is to be measured, refused before anything starts where it cannot be; one device a worker under xdist."""
    from conformance.internevo.source import find_source, require_pinned
    from conformance.launch.launcher import find_place
    from conformance.options import nodes_asked
    from conformance.plan import Topology, make_plan, parse_overrides
    from conformance.preflight.session import Request, default_workload
    from conformance.report.build import signer
    from conformance.spec import load_workload

    option = config.option
    device, found = _device(config), _found(config)
    nodes = nodes_asked(option)
    place = find_place(
        nodes, option.launcher, option.node_rank, option.master_addr, option.master_port, dict(os.environ)
    )
    devices = option.devices_per_node or getattr(option, "numprocesses", None) or max(1, found)
    if device.backend != "gloo" and found < devices:
        raise ConformanceError(
            f"{devices} device(s) were asked for; this node has {found} ({device.name}).",
            f"`conformance device-check {device.name}` tells what is missing.",
        )
    workload = load_workload(option.workload or default_workload(device, nodes * devices))
    seed, overrides = _seed(config), parse_overrides(option.set)
    make_plan(workload, Topology(nodes, devices), overrides, seed=seed)
    checkout = None
    if not option.collectonly:
        require_pinned(source := find_source(option.internevo, workload.tag), workload)
        checkout = source.root if source.kind == "checkout" else None
        if place.node_rank == 0:
            signer(option.signing_key)  # now, and not after the measuring
    return Request(workload.name, place, devices, seed, checkout, overrides)


def _require_own_options(config):
    """That nothing was asked for which only runs heed, unless runs were asked for too."""
    paths = (Path(config.invocation_params.dir, str(arg).partition("::")[0]) for arg in config.args)
    if not all(path.resolve().is_relative_to(Path(__file__).parent) for path in paths):
        return
    option = config.option
    given = {
        "--patch": option.patch,
        "--challenge": option.challenge,
        "--data": option.data,
        "--resume": option.resume,
        "--until-target": option.until_target,
    }
    if unheeded := [name for name, value in given.items() if value]:
        raise ConformanceError(
            f"A preflight trains nothing, and heeds no {' or '.join(unheeded)}.",
            "Leave it out here, and give it to suites/perf or suites/accuracy.",
        )


def _require_writable(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConformanceError(
            f"{folder} cannot be written to: {error.strerror}.", "Choose another folder with --reports or --run-dir."
        ) from error


def _run_directory(option, node_rank):
    """A node's own: where nodes share a folder, one would wait for the lock of another that waits for it to arrive."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    run = (option.run_dir or option.reports / f"{stamp}-preflight").absolute()
    return run.with_name(f"node{node_rank}-{run.name}") if node_rank else run


def pytest_configure(config):
    given = getattr(config, "workerinput", None)
    try:
        if given is not None:
            config.option.devices_per_node = given["preflight_devices"]
            config.stash[RUN] = Path(given["preflight_run"])
            config.stash[REQUEST] = replace(_request(config), seed=given["preflight_seed"])
            return
        if config.option.help:
            return
        _require_own_options(config)
        config.stash[REQUEST] = _request(config)
        run = _run_directory(config.option, config.stash[REQUEST].place.node_rank)
        for folder in () if config.option.collectonly else {run.parent, config.option.reports}:
            _require_writable(folder)
        require_new(run)
    except ConformanceError as error:
        raise pytest.UsageError(str(error)) from error
    config.stash[RUN] = run


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    node.workerinput["preflight_run"] = str(node.config.stash[RUN])
    node.workerinput["preflight_devices"] = node.config.stash[REQUEST].devices
    node.workerinput["preflight_seed"] = node.config.stash[REQUEST].seed


@pytest.fixture(scope="session")
def preflight(request):
    """Findings by check, or why there are none; the first worker of this node measures, the others wait for it."""
    from conformance.preflight.session import FINDINGS, read_findings

    config = request.config
    run = config.stash[RUN]
    with _turn(run):
        if not (run / FINDINGS).is_file() and not (run / ERROR).is_file():
            fault = _measure_once(config, run)
            if fault:
                return fault
    if (run / ERROR).is_file():
        return (run / ERROR).read_text()
    return {finding.check: finding for finding in read_findings(run)}


@contextlib.contextmanager
def _turn(run):
    """One worker at a time; a lock of the kernel's, which a worker that was killed holds no longer."""
    run.parent.mkdir(parents=True, exist_ok=True)
    claim = run.with_name(f"{run.name}.claim")
    end = time.monotonic() + WAIT_SECONDS
    with claim.open("w") as stream:
        while True:
            try:
                locked = lock(stream, wait=False)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    pytest.fail(
                        f"No findings after {WAIT_SECONDS} s of waiting for the measuring worker.", pytrace=False
                    )
                time.sleep(0.2)
        try:
            if not locked and "PYTEST_XDIST_WORKER" in os.environ:
                pytest.fail(
                    f"The workers of pytest-xdist take turns by a lock; the file system of {run.parent} knows none. "
                    "Leave out -n, or choose another folder with --reports or --run-dir.",
                    pytrace=False,
                )
            yield
        finally:
            claim.unlink(missing_ok=True)


def _measure_once(config, run):
    """What went wrong, in words; nothing where it was measured."""
    from conformance.evidence import create_run_directory

    try:
        if run.exists() and any(run.iterdir()):
            raise ConformanceError(f"The worker that measured into {run} was ended.", "Measure again, into a new one.")
        create_run_directory(run)
        _measure(config, run)
    except Exception as error:  # whatever it is, the other workers wait for it
        told = str(error) if isinstance(error, ConformanceError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            run.mkdir(parents=True, exist_ok=True)
            (run / ERROR).write_text(told)
        return told
    return ""


def _measure(config, run):
    from conformance.launch.node import signals_raise
    from conformance.launch.supervise import Interrupted
    from conformance.plugin import shown
    from conformance.preflight.attempt import attempt

    def told(what):
        with shown(config):  # a worker of pytest-xdist has the terminal's stderr alone
            print(f"\npreflight: {what}", end="", file=sys.stderr, flush=True)

    with signals_raise(Interrupted):  # a scheduler's SIGTERM and a closed terminal end it as Ctrl-C does
        attempt(_device(config), config.stash[REQUEST], run, config.option.reports, config.option.signing_key, told)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    """A bad verdict is never green, whichever checks were selected."""
    from conformance.evidence import RunDirectory
    from conformance.judgement import judge
    from conformance.plugin import NOT_GOOD
    from conformance.preflight.session import FINDINGS

    run = session.config.stash.get(RUN, None)
    if exitstatus != 0 or run is None or not (run / FINDINGS).is_file():
        return
    if judge(RunDirectory(run)).verdict in NOT_GOOD:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    from conformance.preflight.session import FINDINGS

    run = config.stash.get(RUN, None)
    if run is None or not (run / FINDINGS).is_file():
        return
    from rich.console import Console

    from conformance.preflight.table import picture

    console = Console(file=terminalreporter._tw._file, highlight=False)
    console.print(picture(run))
    if (run / "report.html").is_file():  # node 0 judges for all
        console.print(f"page: {run}/report.html", style="dim", soft_wrap=True)
