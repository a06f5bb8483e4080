"""Rehearses the accuracy run on a device with each fault, once or with several seeds, and writes down its losses.

Beside the faults stand the twins of the reference runs: the same seeds on a device that rounds in another way. Started
again, it goes on where it stopped. On 2 cores it takes about an hour.
"""

import argparse
import csv
import os
import subprocess
import sys
from pathlib import Path

from untrue_device import FAULTS

from conformance.evidence import REPORT, RunDirectory
from conformance.judgement import judge

ROOT = Path(__file__).resolve().parents[3]
TABLE = ROOT / "fixtures" / "untrue-losses.csv"
HONEST = "none"
SEED = 1024
# What one run hides among the seeds is run with several.
SEVERAL = {"bf16-accumulation": (SEED, 1, 2, 3), "attention-without-scale": (SEED, 1, 2)}
# Each seed of the reference once more; and a rounding that the twins do not have, to hold against them.
TWINS = ("products-in-fp32", "products-in-two", "attention-by-torch", "every-kernel-otherwise")
ROUNDED = {name: [seed for n, seed in enumerate((SEED, *range(1, 12))) if n % 4 == at] for at, name in enumerate(TWINS)}
ROUNDED["products-of-32"] = [SEED, 1, 2]
COLUMNS = ("step", "loss", "mean_loss")


def rehearse(runs: Path, fault: str, seed: int) -> Path:
    """Make the run with a fault, interrupted and resumed as every rehearsal is; its last attempt's directory."""
    run = runs / f"{fault}-{seed}"
    resumed = run.with_name(f"{run.name}-resumed")
    if not (resumed / REPORT).exists():
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "suites/accuracy", "-m", "tiny"]
        command += ["--device", "untrue", "--seed", str(seed), "--run-dir", str(run)]
        command += ["--reports", str(runs / "reports")]
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        chosen = "" if fault == HONEST else fault
        subprocess.run(command, cwd=ROOT, env={**os.environ, "FAULT": chosen, "PYTHONPATH": path}, check=False)
    return resumed


def main() -> None:
    """Make what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder for the runs")
    runs = parser.parse_args().runs.resolve()
    with TABLE.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("fault", "seed", *COLUMNS))
        for fault in (*ROUNDED, HONEST, *FAULTS):
            for seed in (SEVERAL | ROUNDED).get(fault, (SEED,)):
                steps = judge(RunDirectory(rehearse(runs, fault, seed))).steps
                table.writerows((fault, seed, *(f"{row[column]:.6g}" for column in COLUMNS)) for row in steps)


if __name__ == "__main__":
    main()
