"""What the suite costs the training: TGS under the suite over TGS of the bare torchrun command, in interleaved pairs.

The bare run is the very command that the suite recorded, with the same configuration, started alone: no supervisor, no
telemetry, no live display. Pairs alternate in order, so that a drifting clock or temperature favours neither.

    python suites/selftest/benchmarks/bench_overhead.py --pairs 5 -m slice --internevo PATH

Two runs of one command differ by more than the suite costs, so ``--phases N`` looks closer: within one run under the
suite, its supervisor and its telemetry are stopped (SIGSTOP) and continued by turns, off on, on off, and so on, while
the training goes on alone. Give it steps enough: a phase lasts PHASE_SECONDS.

    python suites/selftest/benchmarks/bench_overhead.py --phases 12 -m slice --set total_steps=400 --internevo PATH
"""

from __future__ import annotations

import argparse
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


def main() -> int:
    """Measure and print.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, metavar="N", help="pairs of runs (default: 3)")
    parser.add_argument("--phases", type=int, metavar="N", help="one run, in N phases with the suite stopped or not")
    args, options = parser.parse_known_args()
    options = options or ["-m", "tiny"]
    ratios = []
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        place = Path(folder)
        if args.phases:
            return in_phases(place / "phases", args.phases, options)
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


def in_phases(run: Path, phases: int, options: list[str]) -> int:
    """Print TGS with the suite going over TGS with it stopped, by pairs of phases of one run."""
    command = [sys.executable, "-m", "pytest", "suites/perf", "-q", "--run-dir", str(run), "--reports", str(run.parent)]
    with (run.parent / "suite.log").open("wb") as output:
        suite = psutil.Popen([*command, *options], cwd=ROOT, stdout=output, stderr=output)
    while WARM_UP_STEPS not in (logged := steps_tgs(run)):
        if suite.poll() is not None:
            raise SystemExit(f"The suite ended before the warm-up:\n{(run.parent / 'suite.log').read_text()[-2000:]}")
        time.sleep(1.0)
    medians = []
    for phase in range(phases):
        stopped = phase % 4 in (0, 3)
        own = [suite, *(part for part in suite.children(recursive=True) if "telemetry" in " ".join(part.cmdline()))]
        own += [tool for part in own[1:] for tool in part.children(recursive=True)]
        for process in own:
            process.send_signal(signal.SIGSTOP if stopped else signal.SIGCONT)
        before = max(logged)
        time.sleep(PHASE_SECONDS)
        logged = steps_tgs(run)
        if suite.poll() is not None or max(logged) < before + 2:
            raise SystemExit(f"Phase {phase} saw fewer than 2 steps: run more or shorter steps (--set total_steps=).")
        # The step that the phase cut belongs to neither side.
        medians.append(statistics.median(tgs for step, tgs in logged.items() if before + 1 < step <= max(logged)))
        print(f"phase {phase}: suite {'stopped' if stopped else 'going'}, {medians[-1]:.1f} TGS", flush=True)
        for process in own:
            process.send_signal(signal.SIGCONT)
    suite.wait()
    pairs = [(medians[i], medians[i + 1]) if i % 4 else (medians[i + 1], medians[i]) for i in range(0, phases - 1, 2)]
    ratios = [going / stopped for going, stopped in pairs]
    print(
        f"median of {len(ratios)} ratios: {statistics.median(ratios):.4f}, from {min(ratios):.4f} to {max(ratios):.4f}"
    )
    return 0


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
