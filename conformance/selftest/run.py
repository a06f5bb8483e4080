"""The good run: real evidence of a rehearsal, and what can be wrong with it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from conformance import evidence, journal
from conformance.checks import run as run_checks
from conformance.checks.finding import Finding
from conformance.errors import EvidenceError
from conformance.evidence import RunDirectory, request_from_json
from conformance.internevo.config import render_config
from conformance.internevo.patches import PATCHES
from conformance.judgement import judge, plan_of
from conformance.selftest.bench import Bench, Fault
from conformance.spec import load_checks

FIXTURE = Path(__file__).resolve().parents[2] / "fixtures" / "tiny-perf-run"
LOG, OTHER_LOG = "logs/node0/rank0.log", "logs/node0/rank1.log"
TELEMETRY = "environment/telemetry-node0.csv"
STEP = 6  # the step whose line is changed


def good_run(folder: Path) -> Path:
    """Lay out a run directory with a real log and everything else as today's suite writes it.

    Args:
        folder: Where; a folder that exists.

    Returns:
        The run directory.

    Raises:
        EvidenceError: This is an installed package; the evidence lies in the source tree.
    """
    if not FIXTURE.is_dir():
        raise EvidenceError(f"{FIXTURE} does not exist.", "Run this from a checkout of the suite's source.")
    run = folder / "run"
    shutil.copytree(FIXTURE, run)
    refresh(run)
    # Two devices that hold their clock; the rehearsal's CPU tells none.
    (run / TELEMETRY).write_text(telemetry({0: 1980, 1: 1965}))
    return run


def refresh(run: Path) -> None:
    """Bring what follows from the spec, and not from the training, up to date; end the journal with this evidence.

    Args:
        run: The run directory.
    """
    plan = plan_of(request_from_json(json.loads((run / evidence.REQUEST).read_text())))
    evidence.write_json(run, evidence.PLAN, plan.to_json())
    (run / evidence.CONFIG).write_text(render_config(plan))
    for path in (run / "environment").glob("rank*.json"):
        record = json.loads(path.read_text())
        for applied in record["patches"]:
            applied["sha256"] = next(patch.digest for patch in PATCHES if patch.id == applied["id"])
        path.write_text(json.dumps(record))
    evidence.write_json(run, evidence.FAULTS, {"faults": [], "limits": {}, "notices": []})
    end_journal(run)


def end_journal(run: Path) -> None:
    """Write the journal anew, ending with the evidence as it stands.

    Args:
        run: The run directory.
    """
    (run / evidence.JOURNAL).unlink(missing_ok=True)
    files = RunDirectory(run)
    plan = evidence.digests(files)[evidence.PLAN]
    journal.append(run / evidence.JOURNAL, "started", run.name, workload="tiny-perf", plan=plan)
    digest = evidence.attempt_digest(files)
    journal.append(run / evidence.JOURNAL, "ended", run.name, outcome="ended", evidence=digest)


def keep_preflight(run: Path, tflops: float) -> Path:
    """Let a run have kept a preflight of its devices.

    Args:
        run: The run directory.
        tflops: What each device reached in a large matrix product.

    Returns:
        The run directory.
    """
    ranks = [json.loads(path.read_text()) for path in sorted((run / "environment").glob("rank*.json"))]
    identities = [{**rank["device"], "kind": "identity"} for rank in ranks]
    product = {"kind": "gemm", "name": "square", "setting": "together", "tflops": tflops}
    host = [{"rank": 0, "records": [{"kind": "host", "host": ranks[0]["host"]}, *identities]}]
    (run / evidence.CEILING).mkdir()
    evidence.write_json(run, evidence.CEILING_OF, {"run": "a-preflight"})
    setup = {"started": "2026-11-23T20:00:00+00:00", "device": "cpu", "rehearsal": False}
    evidence.write_json(run, f"{evidence.CEILING}preflight.json", setup)
    measured = [{"rank": rank["rank"], "records": [product]} for rank in ranks]
    for task, processes in {"host": host, "device": measured}.items():
        evidence.write_json(run, f"{evidence.CEILING}preflight-{task}.json", {"task": task, "processes": processes})
    end_journal(run)
    return run


def telemetry(clocks_mhz: Mapping[int, int]) -> str:
    """Two minutes of samples of busy devices.

    Args:
        clocks_mhz: The clock that each device holds, in MHz, by index.

    Returns:
        CSV as nvidia-smi prints it.
    """
    rows = [f"{index}, 98 %, {clock} MHz" for _ in range(120) for index, clock in clocks_mhz.items()]
    return "\n".join(["index, utilization.gpu [%], clocks.current.sm [MHz]", *rows]) + "\n"


RUN = Bench("run", good_run, lambda run: judge(RunDirectory(run)).findings)
MEASURED = Bench("run that kept a preflight", lambda folder: keep_preflight(good_run(folder), 1.0), RUN.judge)

Change = Callable[[Path], object]


def edit_json(path: str, change: Callable[[Any], object]) -> Change:
    """A fault in a JSON file.

    Args:
        path: Its name in the run directory.
        change: Changes the value in place.

    Returns:
        What injects it.
    """

    def inject(run: Path) -> None:
        value = json.loads((run / path).read_text())
        change(value)
        (run / path).write_text(json.dumps(value))

    return inject


def edit_log(pattern: str, replacement: str | Callable[[re.Match[str]], str]) -> Change:
    """A fault in the log.

    Args:
        pattern: Where: a regular expression whose first match is replaced.
        replacement: By what.

    Returns:
        What injects it.
    """

    def inject(run: Path) -> None:
        text = (run / LOG).read_text()
        changed, count = re.subn(pattern, replacement, text, count=1, flags=re.M)
        if not count or changed == text:
            raise EvidenceError(f"{LOG} of the good run has nothing like {pattern!r}.")
        (run / LOG).write_text(changed)

    return inject


def field(name: str, value: str | float, step: int = STEP) -> Change:
    """A forged field on one line of metrics.

    Args:
        name: Name of the field.
        value: What it becomes: a text as it stands, or a factor on the number that was there.
        step: Step of the line.

    Returns:
        What injects it.
    """

    def forge(match: re.Match[str]) -> str:
        return match[1] + (value if isinstance(value, str) else repr(float(match[2]) * value))

    before = rf"^(?=.* step={step} )(.*?[ ,{{]'?{re.escape(name)}'?(?:=|: ))"
    return edit_log(rf"{before}([^ ,}}]+)", forge)


def several(*changes: Change) -> Change:
    """Faults that belong together.

    Args:
        changes: What injects each.

    Returns:
        What injects all.
    """

    def inject(run: Path) -> None:
        for change in changes:
            change(run)

    return inject


def drop(path: str) -> Change:
    """A file that is missing.

    Args:
        path: Its name in the run directory.

    Returns:
        What injects it.
    """
    return lambda run: (run / path).unlink()


def append(path: str, text: str) -> Change:
    """A file that goes on.

    Args:
        path: Its name in the run directory.
        text: What stands at its end.

    Returns:
        What injects it.
    """
    return lambda run: (run / path).write_text((run / path).read_text() + text)


def _fault(check: str, name: str, inject: Change, *also: str) -> Fault:
    return Fault(check, name, RUN, inject, frozenset(also))


# What needs a log to be judged at all.
_WITHOUT_A_LOG = {id for id in load_checks() if id.startswith(("run-", "source-", "patches-"))} - {"run-complete"}
_OVER_A_LOG = frozenset(load_checks()) - _WITHOUT_A_LOG
SEEN = {"kind": "rank-died", "message": "Rank 1 was killed by SIGKILL.", "next_step": "Look at the system log."}
FOREIGN = {"id": "faster", "sha256": "0" * 64}
NO_STEP = "2026-11-23 21:20:31,900\tINFO a.py:1 in metrics -- tflops=0.01 loss=4.5 tgs (tokens/gpu/second)=700.0\n"
RAISED = (
    "2026-11-23 21:20:31,900\tERROR train.py:324 in <module> -- Raise exception from vm with rank id: 0\n"
    "Traceback (most recent call last):\nValueError: broken\n"
)

_ON_A_RUN = (
    _fault(
        "source-pinned",
        "InternEvo was edited",
        edit_json(evidence.RUN, lambda r: r["internevo"].update(pristine=False)),
    ),
    _fault(
        "patches-declared",
        "a patch of somebody's own",
        edit_json("environment/rank0.json", lambda r: r["patches"].append(FOREIGN)),
    ),
    _fault("run-ended", "interrupted", edit_json(evidence.RUN, lambda r: r.update(outcome="interrupted"))),
    _fault("run-ranks", "a rank left no record", drop("environment/rank1.json")),
    Fault("run-steps", "the log of the logging rank is missing", RUN, drop(LOG), frozenset({"run-ranks"}), _OVER_A_LOG),
    Fault(
        "run-steps",
        "a second log with steps",
        RUN,
        lambda run: shutil.copy(run / LOG, run / OTHER_LOG),
        silences=_OVER_A_LOG,
    ),
    _fault("run-config", "the rendered configuration was edited", append(evidence.CONFIG, "# edited\n")),
    _fault(
        "run-uniform",
        "another model of device on one rank",
        edit_json("environment/rank1.json", lambda r: r["device"].update(model="Other")),
    ),
    _fault(
        "run-computing",
        "TF32 forced on one node alone",
        edit_json(evidence.RUN, lambda r: r.update(environment_differs={"1": {"NVIDIA_TF32_OVERRIDE": "1"}})),
    ),
    _fault(
        "run-environment",
        "other threads on one node",
        edit_json(evidence.RUN, lambda r: r.update(environment_differs={"1": {"OMP_NUM_THREADS": None}})),
    ),
    _fault("run-faults", "a rank was killed", edit_json(evidence.FAULTS, lambda f: f["faults"].append(SEEN))),
    _fault(
        "run-pace",
        "a rank that the others waited for",
        edit_json(evidence.FAULTS, lambda f: f.setdefault("notices", []).append(SEEN)),
    ),
    _fault(
        "run-clocks",
        "a device at a lower clock",
        lambda run: (run / TELEMETRY).write_text(telemetry({0: 1980, 1: 1200})),
    ),
    _fault("run-complete", "the last step is missing", edit_log(r"^.* step=19 .*\n", "")),
    _fault("run-complete", "an exception after the last step, caught by train.py", append(LOG, RAISED)),
    _fault("log-readable", "a line of metrics without a step", append(LOG, NO_STEP)),
    _fault("log-steps", "a step is missing", edit_log(rf"^.* step={STEP} .*\n", ""), "log-speeds"),
    _fault(
        "log-clock",
        "a line a year older than the one before",
        edit_log(rf"^\d{{4}}(?=-.* step={STEP} )", "2025"),
        "log-step-time",
    ),
    _fault("log-head", "another weight decay", edit_log(r"'weight_decay': [\d.]+", "'weight_decay': 0.5")),
    _fault("log-elements", "a model of other size", edit_log(r"\[1463040,", "[1463041,")),
    _fault("log-flops", "tflops raised by half", field("tflops", 1.5)),
    _fault("log-tokens", "more tokens than were trained on", field("num_consumed_tokens", "9999")),
    _fault("log-step-time", "forward and backward take longer than the step", field("fwd_bwd_time", "99.0")),
    _fault("log-speeds", "tgs_all raised by 1%", field("tgs/tgs_all", 1.01)),
    _fault("log-lr", "a rate off the schedule", field("lr", 1.0001)),
    _fault("log-loss", "one rank's loss lowered", field("loss", 0.3)),
    _fault("log-perplexity", "perplexity lowered by 10%", field("perplexity", 0.9)),
    _fault("log-types", "accuracy on a type of data that had no tokens", field("acc/cn", "0.5")),
    _fault("log-packing", "fewer samples than fill the batch", field("largest_length", "1")),
    _fault("log-loss-scale", "a loss scale that no rule gives", field("loss_scale", 1.1)),
    _fault("log-ranges", "an undefined gradient norm", field("0_default", "nan")),
    _fault(
        "log-initial-loss",
        "trained weights were loaded before the first step",
        several(
            *(field(name, "2.1", 0) for name in ("loss", "loss_from_metric", "loss/en")),
            field("perplexity", "8.1662", 0),
        ),
    ),
    _fault(
        "loss-defined",
        "an undefined loss",
        several(*(field(name, "nan") for name in ("loss", "loss_from_metric", "loss/en", "perplexity"))),
    ),
)


def _slow_products(told: dict[str, Any]) -> None:
    for process in told["processes"]:
        process["records"][0]["tflops"] = 0.001


def _good_attempts(_: Path) -> dict[str, Any]:
    entries = [
        {"event": "started", "run": "a"},
        {"event": "ended", "run": "a", "outcome": "interrupted", "evidence": "1" * 64},
        {"event": "started", "run": "b", "resumes": "a"},
    ]
    return {"digests": ["1" * 64], "entries": entries}


def _judge_attempts(subject: Mapping[str, Any]) -> list[Finding]:
    return [run_checks.attempts(subject["digests"], subject["entries"])]


ATTEMPTS = Bench("resumed run", _good_attempts, _judge_attempts)
FAULTS = (
    *_ON_A_RUN,
    Fault(
        "log-utilisation",
        "a speed beyond what its own preflight measured",
        MEASURED,
        edit_json(f"{evidence.CEILING}preflight-device.json", _slow_products),
    ),
    Fault(
        "run-attempts", "an earlier attempt was edited", ATTEMPTS, lambda subject: subject.update(digests=["2" * 64])
    ),
)
