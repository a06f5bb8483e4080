"""The whole system under load for long: nothing is lost, and memory stays flat.

    python suites/selftest/benchmarks/soak.py logs              200 rehearsals' logs, judged, journalled, signed
    python suites/selftest/benchmarks/soak.py bundles           50 bundles verified and countersigned at once
    python suites/selftest/benchmarks/soak.py folder            a run folder of 20 GB, from redaction to its bundle
    python suites/selftest/benchmarks/soak.py resume --hours 3  tiny accuracy training, killed at random, and resumed

Each prints what it counted, the time, and the memory held at each quarter of the way; the exit code is 1 when something
was lost or memory grew. `resume` kills a rank, the supervisor, or everything at once, after a random number of steps,
until the time is up; then it lets the run end, trains the same once without a kill, and demands the same losses to the
last digit. For that it sets PYTORCH_JIT=0: InternEvo's feed-forward is TorchScript, whose first executions in a process
round otherwise than those it has optimized, so that a resumed process's first gradients differ from a running one's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil

from conformance import evidence, journal
from conformance.bundle.pack import pack
from conformance.bundle.verify import verify
from conformance.checks.finding import Result
from conformance.evidence import RunDirectory
from conformance.judgement import judge
from conformance.launch.torchrun import RUN_MARK
from conformance.redaction import redact_run
from conformance.report.build import write_report
from conformance.selftest.run import end_journal, good_run
from conformance.spec import load_workload

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "fixtures"))
MIB = 2**20
GIB = 2**30
RUNS, BUNDLES = 200, 50
# What a process may hold at the end more than after its first quarter: allocators keep some, caches fill.
GROWTH = 1.2
# A lab's laptop; a gigabyte of log must not be a gigabyte of memory.
FOLDER_PEAK_MIB = 1024
FOLDER_BYTES = 20 * 10**9
DISK_LEFT_BYTES = 8 * GIB
# Steps of the rehearsal that is killed and resumed; on 2 idle cores one takes about 0.4 s.
STEPS_PER_HOUR = 2000
KILLED_WITHIN_STEPS = 80
CHECKPOINT_EVERY = 20
WAIT_SECONDS = 600
# The rehearsal interrupts itself once, which would leave no run without an interruption to compare with.
LAUNCH = """
import sys
import pytest
from conformance import pipeline
watch = pipeline.Watch
pipeline.Watch = lambda *given, interrupt_at, **named: watch(*given, **named)
sys.exit(pytest.main(sys.argv[1:]))
"""
# Of the report on the last attempt: what says that the attempts are one whole run.
WHOLE = ("run-steps", "run-attempts", "run-complete", "log-steps", "log-overlap", "log-tokens")
STEP_LINE = re.compile(rb"\sstep=(\d+) loss=(\S+)")


def held() -> float:
    """Memory that this process holds, in MiB."""
    return psutil.Process().memory_info().rss / MIB


def verdict(failures: Sequence[str]) -> int:
    """Print what went wrong, and say so in one word.

    Args:
        failures: One sentence each.

    Returns:
        The exit code.
    """
    for failure in failures:
        print(f"  LOST  {failure}")
    print("  something was lost, or memory grew" if failures else "  nothing lost, memory flat")
    return int(bool(failures))


def quarters(work: Callable[[int], object], count: int) -> list[float]:
    """Do something often, and look at this process's memory after each quarter.

    Args:
        work: Is given a number from 0.
        count: How often.

    Returns:
        MiB held at four points.
    """
    points = []
    for number in range(count):
        work(number)
        if (number + 1) * 4 // count > number * 4 // count:
            points.append(held())
            print(f"  {number + 1:6} done, {points[-1]:6.0f} MiB held", flush=True)
    return points


def grown(points: Sequence[float]) -> list[str]:
    """Judge whether memory grew after the first quarter."""
    if points[-1] <= points[0] * GROWTH:
        return []
    return [f"memory grew from {points[0]:.0f} to {points[-1]:.0f} MiB"]


def logs(folder: Path, _: argparse.Namespace) -> list[str]:
    """Judge, journal and sign many runs in one reports folder, and read every report back."""
    reports = folder / "reports"
    reports.mkdir()
    attempts = reports / evidence.JOURNAL
    ids = []

    def one(number: int) -> None:
        scratch = Path(tempfile.mkdtemp(dir=folder))
        run = good_run(scratch).rename(reports / f"run{number:03}")
        plan = evidence.digests(RunDirectory(run))[evidence.PLAN]
        journal.append(attempts, "started", run.name, workload="tiny-perf", plan=plan)
        digest = evidence.attempt_digest(RunDirectory(run))
        journal.append(attempts, "ended", run.name, outcome="ended", evidence=digest)
        shutil.copyfile(attempts, run / evidence.JOURNAL)
        ids.append(write_report(run, judge(RunDirectory(run)), None)[0])

    points = quarters(one, RUNS)
    entries = journal.parse(attempts.read_bytes()).entries
    failures = grown(points)
    if len(entries) != 2 * RUNS:
        failures.append(f"the journal has {len(entries)} entries, expected {2 * RUNS}")
    for number, report_id in enumerate(ids):
        pack(reports / f"run{number:03}", folder / "x.tar")
        verification = verify(folder / "x.tar")
        refused = [answer.id for answer in verification.answers if answer.answer == "no"]
        if refused or verification.report_id != report_id:
            failures.append(f"run{number:03} is answered no: {', '.join(refused) or 'another report'}")
    print(f"  {RUNS} reports verified, {len(entries)} entries in one chain")
    return failures


def bundles(folder: Path, _: argparse.Namespace) -> list[str]:
    """Countersign many submissions at once that answer challenges of one list."""
    from lab import Lab

    lab = Lab(folder)
    document = lab.document()
    document |= {"issued": "2020-01-01T00:00:00Z", "expires": "2099-01-01T00:00:00Z"}
    for key in document["keys"]:
        key |= {"valid_from": "2020-01-01T00:00:00Z", "valid_until": "2099-01-01T00:00:00Z"}
    (folder / "policy.dsse.json").write_bytes(lab.envelope(document))
    (folder / "spent.jsonl").touch()
    for number in range(BUNDLES):
        run = lab.run(f"run{number}", lab.challenge(days=3650))
        end_journal(run)
        lab.bundle(run, name=f"b{number}.tar")
    print(f"  {BUNDLES} bundles are made", flush=True)
    start = time.monotonic()
    command = [sys.executable, "-m", "conformance.cli", "countersign", "--policy", "policy.dsse.json"]
    command += ["--spent", "spent.jsonl", "--signing-key", "lab.pem"]
    processes = [
        subprocess.Popen(
            [*command, f"b{number}.tar", "-o", f"b{number}.vsa.json"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(BUNDLES)
    ]
    failures = []
    for number, process in enumerate(processes):
        said, _ = process.communicate()
        if process.returncode or not (folder / f"b{number}.vsa.json").is_file():
            failures.append(f"b{number}.tar ended with {process.returncode}: {said.strip()[-300:]}")
    spent = (folder / "spent.jsonl").read_text().splitlines()
    if len(set(spent)) != BUNDLES or len(spent) != BUNDLES:
        failures.append(f"{len(set(spent))} challenges of {len(spent)} lines are spent, expected {BUNDLES}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"  {BUNDLES} at once in {time.monotonic() - start:.1f} s, at most {peak:.0f} MiB in one, {len(spent)} spent")
    return failures


def _stage(name: str, work: Callable[..., None], *given: Any) -> list[str]:
    """Run one stage in a process of its own, whose peak memory is that of this stage alone."""
    start = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    process = multiprocessing.get_context("spawn").Process(target=work, args=given)
    process.start()
    process.join()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    least = "at most " if peak * 1024 == before else ""
    print(f"  {name:8} {time.monotonic() - start:7.1f} s, {least}{peak:.0f} MiB at its peak", flush=True)
    failures = [f"{name} ended with {process.exitcode}"] if process.exitcode else []
    return failures + ([f"{name} took {peak:.0f} MiB"] if peak > FOLDER_PEAK_MIB else [])


def _judge_and_sign(run: Path) -> None:
    end_journal(run)
    write_report(run, judge(RunDirectory(run)), None)


def _pack(run: Path, output: Path) -> None:
    pack(run, output)


def _verify(bundle: Path) -> None:
    refused = [answer.message for answer in verify(bundle).answers if answer.answer == "no"]
    if refused:
        raise SystemExit(f"answered no: {refused}")


def folder_of_gigabytes(folder: Path, _: argparse.Namespace) -> list[str]:
    """Take a run folder of which a third is logs, and the rest checkpoints, to a verified bundle."""
    # The bundle and its copy while it is written lie beside it.
    size = min(FOLDER_BYTES, int((shutil.disk_usage(folder).free - DISK_LEFT_BYTES) / 1.4))
    run = good_run(folder)
    line = "2026-11-23 21:19:55,%03d INFO launch.py:%d in report -- rank 1 is alive at http://10.1.2.3/ , beat %d\n"
    block = "".join(line % (n % 1000, n % 900, n) for n in range(10_000)).encode()
    noise = os.urandom(64 * MIB)
    with (run / "logs/node0/agent.log").open("wb") as out:
        while out.tell() < size // 3:
            out.write(block)
    checkpoint = run / "work/checkpoints/20"
    checkpoint.mkdir(parents=True)
    with (checkpoint / "model_tp0_pp0.pt").open("wb") as out:
        while out.tell() < size - size // 3:
            out.write(noise)
    total = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    print(f"  {total / 1e9:.1f} GB, {size / 3e9:.1f} GB of it logs", flush=True)
    bundle = folder / "x.tar"
    stages = (("redact", redact_run, run), ("judge", _judge_and_sign, run), ("pack", _pack, run, bundle))
    failures = [failure for name, work, *given in stages for failure in _stage(name, work, *given)]
    failures += _stage("verify", _verify, bundle)
    print(f"  bundle of {bundle.stat().st_size / 1e9:.1f} GB")
    return failures


def processes_of(run: Path) -> list[psutil.Process]:
    """Every process that a run started, whatever became of its parent."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_MARK, "").startswith(f"{run}:"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait(condition: Callable[[], bool]) -> bool:
    """Poll until something holds; whether it did in time."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def losses(paths: Iterable[Path]) -> dict[int, list[str]]:
    """The loss of every step as it was printed, once for each attempt that made it."""
    found: dict[int, list[str]] = {}
    for path in paths:
        for step, loss in STEP_LINE.findall(path.read_bytes()):
            found.setdefault(int(step), []).append(loss.decode())
    return found


class Training:
    """The accuracy rehearsal as a user starts it, once or over and over.

    Args:
        folder: Its reports folder is made there.
        steps: Optimizer steps.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        self.attempts: list[Path] = []
        self.peaks: list[float] = []

    def start(self, resume: Path | None = None) -> subprocess.Popen[bytes]:
        """Start an attempt."""
        run = self.folder / f"attempt{len(self.attempts):03}"
        self.attempts.append(run)
        command = [sys.executable, "-c", LAUNCH, "-p", "no:cacheprovider", "-q", "suites/accuracy", "-m", "tiny"]
        command += ["--device", "cpu", "--run-dir", str(run), "--reports", str(self.folder / "reports")]
        command += ["--set", f"total_steps={self.steps}"]
        command += [] if resume is None else ["--resume", str(resume)]
        with (self.folder / f"{run.name}.out").open("wb") as out:
            return subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)

    def finish(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for the end of an attempt; note the most memory that the supervisor held."""
        _, status, usage = os.wait4(process.pid, 0)
        self.peaks.append(usage.ru_maxrss / 1024)
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode

    def made(self) -> int:
        """Steps that the newest attempt has logged."""
        log = self.attempts[-1] / "logs/node0/rank0.log"
        return len(STEP_LINE.findall(log.read_bytes())) if log.is_file() else 0


def strike(random_: random.Random, process: subprocess.Popen[bytes], run: Path) -> str:
    """Kill something of an attempt, as chance has it."""
    what = random_.choice(("a rank", "the supervisor", "everything"))
    mine = processes_of(run)
    ranks = [one for one in mine if "RANK" in one.environ()]
    struck = {"a rank": ranks[:1], "the supervisor": [], "everything": mine}[what]
    if what != "a rank":
        process.send_signal(signal.SIGKILL)
    for one in struck:
        try:
            one.kill()
        except psutil.Error:
            continue
    return what


def ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has ended; its status stays there to be collected, with its memory."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def resume(folder: Path, args: argparse.Namespace) -> list[str]:
    """Kill and resume until the time is up, then compare with the same training that nobody killed."""
    deadline = time.monotonic() + args.hours * 3600
    steps = max(100, int(args.hours * STEPS_PER_HOUR))
    # InternEvo resumes a warm-up one step ahead: all rates would be others than those of the run that is left alone.
    first = int(steps * load_workload("tiny-accuracy").optimizer.warmup_ratio) + CHECKPOINT_EVERY
    random_ = random.Random(args.seed)
    (folder / "killed").mkdir()
    training, kills, lasting = Training(folder / "killed", steps), 0, []
    newest: Path | None = None
    while True:
        process = training.start(newest)
        run = training.attempts[-1]
        after = random_.randint(1, KILLED_WITHIN_STEPS) + first * (newest is None)
        wait(lambda process=process, after=after: training.made() >= after or ended(process))
        if ended(process) or time.monotonic() > deadline:
            break
        kills += 1
        made = training.made()
        print(f"  {run.name}: {strike(random_, process, run)} killed after {made} steps", flush=True)
        training.finish(process)
        if not wait(lambda run=run: not processes_of(run)):
            lasting.append(f"{run.name}: {len(processes_of(run))} processes outlived it")
        newest = run
    code = training.finish(process)
    print(f"  {len(training.attempts)} attempts, {kills} kills; the last one ended with {code}", flush=True)
    if not (training.attempts[-1] / evidence.REPORT).is_file():
        return [
            *lasting,
            f"the last attempt left no report: {(folder / 'killed' / f'{run.name}.out').read_text()[-600:]}",
        ]
    (folder / "left alone").mkdir()
    alone = Training(folder / "left alone", steps)
    alone.finish(alone.start())
    told = ", ".join(f"{peak:.0f}" for peak in training.peaks)
    print(f"  peak memory of each attempt's largest process, MiB: {told}; left alone: {alone.peaks[0]:.0f}")
    # Of the two that ended by themselves: what was killed had not collected its ranks, whose memory counts here too.
    memory = grown([alone.peaks[0], training.peaks[-1]])
    return lasting + one_whole_run(training, steps) + compared(training, alone, steps) + memory


def one_whole_run(training: Training, steps: int) -> list[str]:
    """Demand of the last attempt's evidence that it has every step, each once when merged, and every attempt's log."""
    last = training.attempts[-1]
    judgement = judge(RunDirectory(last))
    found = {finding.check: finding for finding in judgement.findings}
    failures = [f"{name}: {found[name].message}" for name in WHOLE if found[name].result is not Result.PASS]
    metrics = judgement.metrics
    if (metrics["steps_logged"], metrics["segments"]) != (steps, len(training.attempts)):
        failures.append(f"{metrics['steps_logged']} steps of {metrics['segments']} attempts, expected {steps}")
    made = losses(path / "logs/node0/rank0.log" for path in training.attempts)
    kept = losses([*sorted(last.glob("logs/segment*/node0/rank0.log")), last / "logs/node0/rank0.log"])
    if {step: sorted(values) for step, values in made.items()} != {step: sorted(v) for step, v in kept.items()}:
        failures.append("the last attempt's evidence has not every line of every attempt")
    red = [name for name, finding in found.items() if finding.result in (Result.FAIL, Result.ERROR)]
    verdict_ = f"{sum(map(len, made.values()))} steps made, {steps} when merged; the report says "
    verdict_ += f"{judgement.verdict.value} ({', '.join(red) or 'nothing is red'})"
    print(f"  {verdict_}; {found['log-overlap'].message}")
    return failures


def compared(training: Training, alone: Training, steps: int) -> list[str]:
    """Demand the losses of the run that was left alone, as they were printed, of every attempt."""
    expected = losses([alone.attempts[0] / "logs/node0/rank0.log"])
    if sorted(expected) != list(range(steps)):
        return [f"the run that was left alone logged {len(expected)} steps, expected {steps}"]
    made = losses(path / "logs/node0/rank0.log" for path in training.attempts)
    differing = [step for step in range(steps) if set(made.get(step, ())) != set(expected[step])]
    if differing:
        step = differing[0]
        return [
            f"{len(differing)} of {steps} losses differ from those of the run that was left alone; the first is step "
            f"{step}: {', '.join(made.get(step, ())) or 'none'}, expected {expected[step][0]}"
        ]
    print(f"  bit for bit: all {steps} losses, those made twice too, are those of the run that was left alone")
    return []


MODES = {"logs": logs, "bundles": bundles, "folder": folder_of_gigabytes, "resume": resume}


def main() -> int:
    """Run one mode in a folder that is removed afterwards.

    Returns:
        0 when nothing was lost and memory stayed flat, else 1.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--hours", type=float, default=3.0, help="how long `resume` kills (default: 3)")
    parser.add_argument("--seed", type=int, default=1, help="seed of what is killed and when (default: 1)")
    args = parser.parse_args()
    print(f"{args.mode}: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        os.environ["PYTORCH_JIT"] = "0"
        os.environ["XDG_CONFIG_HOME"] = name  # the keys of a benchmark are nobody's
        failures = MODES[args.mode](Path(name), args)
    print(f"  {time.monotonic() - start:.0f} s in all")
    return verdict(failures)


if __name__ == "__main__":
    raise SystemExit(main())
