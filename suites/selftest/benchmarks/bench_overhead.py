"""What the suite costs the training: TGS under the suite over TGS of the bare torchrun command, in interleaved pairs.

The bare run is the very command that the suite recorded, with the same configuration, started alone: no supervisor, no
telemetry, no live display. Pairs alternate in order, so that a drifting clock or temperature favours neither.

    python suites/selftest/benchmarks/bench_overhead.py --pairs 5 -m slice --internevo PATH

Two runs of one command differ by more than the suite costs, so ``--rounds N`` looks closer: within one run under the
suite, its supervisor and its telemetry are stopped (SIGSTOP) and continued by turns, each alone and both, while the
training goes on. Every second round goes backwards. Give it steps enough: a round is four phases of PHASE_SECONDS.

    python suites/selftest/benchmarks/bench_overhead.py --rounds 4 -m slice --set total_steps=120 --internevo PATH
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from conformance import evidence
from conformance.launch import torchrun
from conformance.launch.detect import STEP

ROOT = Path(__file__).resolve().parents[3]
# The first steps warm up: allocator, kernels, graph compilation.
WARM_UP_STEPS = 2
PHASE_SECONDS = 15.0
# What of the suite goes on in a phase; the first is what the others are compared with.
PHASES = {
    "nothing": set(),
    "telemetry": {"telemetry"},
    "supervisor": {"supervisor"},
    "both": {"telemetry", "supervisor"},
}


def main() -> int:
    """Measure and print.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, metavar="N", help="pairs of runs (default: 3)")
    parser.add_argument("--rounds", type=int, metavar="N", help="one run, N times with parts of the suite stopped")
    args, options = parser.parse_known_args()
    options = options or ["-m", "tiny"]
    ratios = []
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        place = Path(folder)
        if args.rounds:
            return in_phases(place / "phases", args.rounds, options)
        model = under_suite(place / "model", options)  # warms every cache, and says what the bare command is
        print(f"warm-up: {median_tgs(model):.1f} TGS", flush=True)
        for pair in range(args.pairs):
            tgs: dict[str, float] = {}
            for side in ("suite", "bare") if pair % 2 == 0 else ("bare", "suite"):
                run = place / f"{side}{pair}"
                tgs[side] = median_tgs(under_suite(run, options) if side == "suite" else bare(run, model))
                shutil.rmtree(run)
            ratios.append(tgs["suite"] / tgs["bare"])
            print(
                f"pair {pair}: suite {tgs['suite']:.1f} TGS, bare {tgs['bare']:.1f} TGS, ratio {ratios[-1]:.4f}",
                flush=True,
            )
    report(ratios)
    return 0


def in_phases(run: Path, rounds: int, options: list[str]) -> int:
    """Print, for each part of the suite, TGS with it going over TGS with the suite stopped, within one run."""
    command = [sys.executable, "-m", "pytest", "suites/perf", "-q", "--run-dir", str(run), "--reports", str(run.parent)]
    with (run.parent / "suite.log").open("wb") as output:
        suite = psutil.Popen([*command, *options], cwd=ROOT, stdout=output, stderr=output)
    while WARM_UP_STEPS not in steps_tgs(run):
        if suite.poll() is not None:
            raise SystemExit(f"The suite ended before the warm-up:\n{(run.parent / 'suite.log').read_text()[-2000:]}")
        time.sleep(1.0)
    parts = {"supervisor": [suite], "telemetry": telemetry_of(suite)}
    ratios: dict[str, list[float]] = {name: [] for name in PHASES}
    for turn in range(rounds):
        tgs = {}
        for name in PHASES if turn % 2 == 0 else reversed(PHASES):
            tgs[name] = phase(run, suite, parts, PHASES[name])
            print(f"round {turn}: {name} going, {tgs[name]:.1f} TGS", flush=True)
        for name in PHASES:
            ratios[name].append(tgs[name] / tgs["nothing"])
    signal_all(parts, set(parts))
    suite.wait()
    for name in list(PHASES)[1:]:
        print(f"{name}: ", end="")
        report(ratios[name])
    return 0


def phase(run: Path, suite: psutil.Popen, parts: dict[str, list[psutil.Process]], going: set[str]) -> float:
    """Median TGS of the steps that began and ended while only these parts of the suite were going."""
    signal_all(parts, going)
    before = max(steps_tgs(run))
    time.sleep(PHASE_SECONDS)
    logged = steps_tgs(run)
    if suite.poll() is not None or max(logged) < before + 2:
        signal_all(parts, set(parts))
        raise SystemExit("A phase saw fewer than 2 steps: run more or shorter steps (--set total_steps=).")
    # The step that the phase cut belongs to neither side.
    return statistics.median(tgs for step, tgs in logged.items() if step > before + 1)


def signal_all(parts: dict[str, list[psutil.Process]], going: set[str]) -> None:
    """Stop the processes of every part of the suite but these, which go on."""
    for name, processes in parts.items():
        for process in processes:
            with contextlib.suppress(psutil.Error):  # the run is over
                process.send_signal(signal.SIGCONT if name in going else signal.SIGSTOP)


def telemetry_of(suite: psutil.Popen) -> list[psutil.Process]:
    """The suite's sampler and the vendor's tool that it reads."""
    found = []
    for child in suite.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "conformance.launch.telemetry" in child.cmdline():
                found += [child, *child.children(recursive=True)]
    return found


def report(ratios: list[float]) -> None:
    """Print the ratios' median and range."""
    print(
        f"median of {len(ratios)} ratios: {statistics.median(ratios):.4f}, from {min(ratios):.4f} to {max(ratios):.4f}"
    )


def under_suite(run: Path, options: list[str]) -> Path:
    """Make a run with the suite; the verdict does not matter here, the steps do."""
    command = [sys.executable, "-m", "pytest", "suites/perf", "-q", "--run-dir", str(run)]
    told = subprocess.run([*command, "--reports", str(run.parent), *options], cwd=ROOT, capture_output=True, text=True)
    if not (run / evidence.RUN).exists():
        raise SystemExit(f"The suite made no run:\n{told.stdout[-2000:]}{told.stderr[-2000:]}")
    return run


def bare(run: Path, model: Path) -> Path:
    """Run the recorded command alone, in a run directory with the same configuration."""
    evidence.create_run_directory(run)
    shutil.copytree(model / "configs", run / "configs", dirs_exist_ok=True)
    shutil.copyfile(model / "work/worker.json", run / "work/worker.json")
    recorded = json.loads((model / evidence.RUN).read_text())["command"]
    port = f"--master_port={torchrun.free_port()}"
    command = [
        str(run) if part == "RUN" else port if part.startswith("--master_port=") else part for part in recorded[1:]
    ]
    with (run / "agent.log").open("wb") as output:
        subprocess.run(
            [sys.executable, *command], cwd=run / "work", env=torchrun.environment(run), stdout=output, stderr=output
        )
    return run


def median_tgs(run: Path) -> float:
    """Median TGS of a run's steps after the warm-up."""
    speeds = [tgs for step, tgs in steps_tgs(run).items() if step >= WARM_UP_STEPS]
    if not speeds:
        raise SystemExit(f"The run in {run} logged no step after its warm-up; its logs are in {run / 'logs'}.")
    return statistics.median(speeds)


def steps_tgs(run: Path) -> dict[int, float]:
    """TGS by step, as logged until now."""
    logs = b"".join(log.read_bytes() for log in sorted(run.glob("logs/node*/rank*.log")))
    return {int(match["step"]): float(match["tgs"]) for match in STEP.finditer(logs)}


if __name__ == "__main__":
    raise SystemExit(main())
