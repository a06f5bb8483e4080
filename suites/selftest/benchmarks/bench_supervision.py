"""What supervision and telemetry cost the training, told apart from a card's warming up and from the spread of runs.

Two runs under the suite, one after the other. In turn for ten steps, the supervisor, its telemetry and its display are
stopped (SIGSTOP), so that the training is as alone as under the bare torchrun command; the second run is stopped where
the first was not. A step is compared with the same step of the other run, which has the same documents. What differs
between the runs is in one phase's ratio and, turned over, in the next one's: their geometric mean is free of it.

    python suites/selftest/benchmarks/bench_supervision.py --steps 200 -m slice --set num_layers=6 --internevo PATH

bench_overhead.py compares whole runs; they differ by more than this for no reason that the suite has a part in.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil
from bench_overhead import ROOT, WARM_UP_STEPS, logged_tgs, suite_command, warm_tgs

from conformance import evidence

PHASE_STEPS = 10
POLL_SECONDS = 0.05


def main() -> int:
    """Measure and print.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="optimizer steps of a run (default: 200)")
    args, options = parser.parse_known_args()
    options = [*(options or ["-m", "tiny"]), "--set", f"total_steps={args.steps}"]
    with tempfile.TemporaryDirectory(prefix="supervision-") as folder:
        runs = []
        for stopped_in in (1, 0):
            runs.append(run_in_phases(Path(folder) / f"run{stopped_in}", args.steps, stopped_in, options))
            print(f"run {len(runs)}: {statistics.median(runs[-1].values()):.1f} TGS", flush=True)
    ratios = ratio_by_phase(*runs)
    costs = [math.sqrt(first * second) for first, second in zip(ratios[::2], ratios[1::2], strict=False)]
    print("supervised over stopped, by phase:", " ".join(f"{ratio:.4f}" for ratio in ratios))
    extent = f"from {min(costs):.4f} to {max(costs):.4f}"
    print(f"median of {len(costs)} pairs of phases: {statistics.median(costs):.4f}, {extent}")
    return 0


def phase_of(step: int) -> int:
    """Index of the phase that a step belongs to; negative during the warm-up."""
    return (step - WARM_UP_STEPS) // PHASE_STEPS


def run_in_phases(run: Path, steps: int, stopped_in: int, options: list[str]) -> dict[int, float]:
    """Train under the suite, and stop the suite in every second phase.

    Args:
        run: Run directory to make.
        steps: Optimizer steps that it has.
        stopped_in: 0 to stop the suite in the first phase, the third and so on; 1 in the others.
        options: Options for pytest.

    Returns:
        TGS by step.
    """
    with (run.parent / f"{run.name}.out").open("w+") as told:
        suite = subprocess.Popen(suite_command(run, options), cwd=ROOT, stdout=told, stderr=subprocess.STDOUT)
        stopped: list[psutil.Process] = []
        try:
            while suite.poll() is None:
                made = len(logged_tgs(run))
                stop = made < steps and phase_of(made) >= 0 and phase_of(made) % 2 == stopped_in
                if stop and not stopped:
                    stopped = parts(psutil.Process(suite.pid))
                    signalled(stopped, signal.SIGSTOP)
                elif stopped and not stop:
                    signalled(stopped, signal.SIGCONT)
                    stopped = []
                time.sleep(POLL_SECONDS)
        finally:
            signalled(stopped, signal.SIGCONT)
        if len(logged_tgs(run)) < steps or not (run / evidence.REPORT).exists():
            told.seek(0)
            raise SystemExit(f"The run did not come to its end:\n{told.read()[-3000:]}")
    return warm_tgs(run)


def parts(suite: psutil.Process) -> list[psutil.Process]:
    """The supervisor, and its telemetry with the vendor's tool: all that runs beside the training."""
    sampler = [child for child in suite.children() if "conformance.launch.telemetry" in child.cmdline()]
    if not sampler:
        raise SystemExit("The suite takes no samples here; there is no cost to measure.")
    return [suite, *sampler, *(tool for one in sampler for tool in one.children(recursive=True))]


def signalled(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to those that are still there."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def ratio_by_phase(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """Median ratio of TGS, supervised over stopped, of each phase; its first step, where the suite stops, is not in."""
    phases: dict[int, list[float]] = {}
    for step in sorted(first.keys() & second.keys()):
        if (step - WARM_UP_STEPS) % PHASE_STEPS:
            ratio = first[step] / second[step]
            phases.setdefault(phase_of(step), []).append(ratio if phase_of(step) % 2 == 0 else 1 / ratio)
    return [statistics.median(ratios) for _, ratios in sorted(phases.items())]


if __name__ == "__main__":
    raise SystemExit(main())
