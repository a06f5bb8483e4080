"""What the suite costs the training: TGS under the suite over TGS of the bare torchrun command, in interleaved pairs.

The bare run is the very command that the suite recorded, with the same configuration, started alone: no supervisor, no
telemetry, no live display. Pairs alternate in order, so that a drifting clock or temperature favours neither: let their
number be even. A pair's ratio is the median of its steps' ratios: documents differ in length from step to step, and
attention's work with them, by more than the suite costs, but the same step of both runs has the same documents.

    python suites/selftest/benchmarks/bench_overhead.py --pairs 4 -m slice --internevo PATH
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from conformance import evidence
from conformance.launch import torchrun
from conformance.launch.detect import STEP

ROOT = Path(__file__).resolve().parents[3]
# The first steps warm up: allocator, kernels, graph compilation.
WARM_UP_STEPS = 2


def main() -> int:
    """Measure and print.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4, metavar="N", help="pairs of runs (default: 4)")
    args, options = parser.parse_known_args()
    options = options or ["-m", "tiny"]
    ratios = []
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        place = Path(folder)
        model = under_suite(place / "model", options)  # warms every cache, and says what the bare command is
        print(f"warm-up: {statistics.median(warm_tgs(model).values()):.1f} TGS", flush=True)
        for pair in range(args.pairs):
            tgs: dict[str, dict[int, float]] = {}
            for side in ("suite", "bare") if pair % 2 == 0 else ("bare", "suite"):
                run = place / f"{side}{pair}"
                tgs[side] = warm_tgs(under_suite(run, options) if side == "suite" else bare(run, model))
                shutil.rmtree(run)
            suite, alone = tgs["suite"], tgs["bare"]
            ratios.append(statistics.median(suite[step] / alone[step] for step in suite.keys() & alone.keys()))
            medians = (
                f"suite {statistics.median(suite.values()):.1f} TGS, bare {statistics.median(alone.values()):.1f} TGS"
            )
            print(f"pair {pair}: {medians}, ratio {ratios[-1]:.4f}", flush=True)
    print(
        f"median of {len(ratios)} ratios: {statistics.median(ratios):.4f}, from {min(ratios):.4f} to {max(ratios):.4f}"
    )
    return 0


def under_suite(run: Path, options: list[str]) -> Path:
    """Make a run with the suite; the verdict does not matter here, the steps do."""
    told = subprocess.run(suite_command(run, options), cwd=ROOT, capture_output=True, text=True)
    if not (run / evidence.RUN).exists():
        raise SystemExit(f"The suite made no run:\n{told.stdout[-2000:]}{told.stderr[-2000:]}")
    return run


def suite_command(run: Path, options: list[str]) -> list[str]:
    """What makes a run with the suite."""
    command = [sys.executable, "-m", "pytest", "suites/perf", "-q", "--run-dir", str(run)]
    return [*command, "--reports", str(run.parent), *options]


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


def logged_tgs(run: Path) -> dict[int, float]:
    """TGS by step, as far as it is logged."""
    logs = b"".join(log.read_bytes() for log in sorted(run.glob("logs/node*/rank*.log")))
    return {int(match["step"]): float(match["tgs"]) for match in STEP.finditer(logs)}


def warm_tgs(run: Path) -> dict[int, float]:
    """TGS by step after the warm-up."""
    warm = {step: tgs for step, tgs in logged_tgs(run).items() if step >= WARM_UP_STEPS}
    if not warm:
        raise SystemExit(f"The run in {run} logged no step after its warm-up; its logs are in {run / 'logs'}.")
    return warm


if __name__ == "__main__":
    raise SystemExit(main())
