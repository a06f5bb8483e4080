"""``conformance curve make``: a reference curve from several runs that differ in nothing but their seed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conformance.judgement import Judgement
    from conformance.spec.curves import Curve

EPILOG = """\
exit codes: 0 written; 2 the runs make no curve

example:
  for s in 1 2 3; do pytest suites/perf -m slice --seed $s --set total_steps=100 --run-dir runs/$s; done
  conformance curve make runs/1 runs/2 runs/3 -o slice-7b.json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: The command's parser.
    """
    parser.description = "Make a reference curve, which the first steps of later runs are compared with."
    parser.epilog = EPILOG
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    make = commands.add_parser("make", help="make a curve from finished runs")
    make.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory; one for each seed, 3 or more")
    make.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="curve to write, .json")


def run(args: argparse.Namespace) -> int:
    """Judge the runs again and write their curve.

    Args:
        args: Parsed arguments.

    Returns:
        0 when it is written.
    """
    from conformance.evidence import RunDirectory
    from conformance.judgement import judge
    from conformance.spec.curves import write_curve

    curve = _curve([(path, judge(RunDirectory(path))) for path in args.runs])
    write_curve(args.output, curve)
    first, last = (sum(run[i] for run in curve.losses) / len(curve.losses) for i in (0, -1))
    print(
        f"{args.output}: {curve.workload}, {len(curve.losses)} runs of {curve.steps} steps, "
        f"mean loss {first:.4f} to {last:.4f}."
    )
    return 0


def _curve(judged: list[tuple[Path, Judgement]]) -> Curve:
    """Put runs together that are sound, of one plan and data, and of different seeds."""
    import dataclasses

    from conformance import __version__
    from conformance.checks.finding import Result
    from conformance.errors import EvidenceError
    from conformance.judgement import DUMMY
    from conformance.metrics.curve import STEPS
    from conformance.spec import load_checks
    from conformance.spec.curves import MIN_RUNS, Curve

    if len(judged) < MIN_RUNS:
        raise EvidenceError(f"A curve takes {MIN_RUNS} runs or more; got {len(judged)}.", "Run with other seeds.")
    made, first, checks = [], judged[0][1], load_checks()
    for path, judgement in judged:
        plan, losses = judgement.plan, judgement.losses
        bad = [f.check for f in judgement.findings if f.result in (Result.FAIL, Result.ERROR)]
        bad = [check for check in bad if checks[check].severity == "required" and check not in NOT_ASKED]
        if bad or not losses:
            raise EvidenceError(f"{path} is no reference: {', '.join(bad) or 'it has no steps'}.", "Run it again.")
        if dataclasses.replace(plan, seed=first.plan.seed) != first.plan or _data(judgement) != _data(first):
            raise EvidenceError(f"{path} and {judged[0][0]} differ in more than their seed.", "Run all of them alike.")
        made.append((plan.seed, tuple(losses[:STEPS])))
    if len(dict(made)) < len(made) or len({len(losses) for _, losses in made}) > 1:
        raise EvidenceError(
            "Two runs have the same seed, or some have fewer steps.", "Run each with a seed of its own."
        )
    plan = first.plan
    return Curve(
        workload=plan.workload.name,
        num_layers=plan.model.num_layers,
        total_steps=plan.total_steps,
        tokens_per_step=plan.tokens_per_step,
        data=_data(first) or DUMMY,
        seeds=tuple(seed for seed, _ in made),
        losses=tuple(losses for _, losses in made),
        source=f"{_source(judged[0][0])}; suite {__version__}",
    )


def _source(path: Path) -> str:
    """What made a run, for people."""
    from conformance.evidence import RUN, RunDirectory, read_json

    files = RunDirectory(path)
    record, rank = read_json(files, RUN), read_json(files, "environment/rank0.json")
    device, torch = rank["device"].get("model", rank["device"]["plugin"]), rank["packages"].get("torch")
    source = record["internevo"]
    return f"{device}, torch {torch}, InternEvo {source['tag'] or source['version']}, {record['started'][:10]}"


# A reference is the measure of the curve and of the target, not held against them.
NOT_ASKED = ("curve-agrees", "loss-target")


def _data(judgement: Judgement) -> str:
    return str((judgement.metrics.get("data") or {}).get("digest", ""))
