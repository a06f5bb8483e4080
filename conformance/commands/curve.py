"""``conformance curve``: a reference curve from runs that differ in nothing but their seed; other runs against it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conformance.judgement import Judgement
    from conformance.spec.curves import Curve

EPILOG = """\
exit codes: 0 written, or on the curve; 1 off the curve; 2 the runs make no curve, or there is none of theirs

examples:
  for s in 1 2 3; do pytest suites/perf -m slice --seed $s --set total_steps=100 --run-dir runs/$s; done
  conformance curve make runs/1 runs/2 runs/3 -o slice-7b.json
  conformance curve compare other/1 other/2 --curve slice-7b.json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: The command's parser.
    """
    parser.description = "Make a reference curve, and compare the first steps of other runs with one."
    parser.epilog = EPILOG
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    make = commands.add_parser("make", help="make a curve from finished runs")
    make.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory; one for each seed, 3 or more")
    make.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="curve to write, .json")
    make.add_argument("--twins", nargs="+", type=Path, default=[], metavar="RUN", help=TWINS)
    compare = commands.add_parser("compare", help="hold the mean of one run or several against a curve")
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory; one for each seed")
    compare.add_argument("--curve", type=Path, metavar="FILE", help="the curve (default: the suite's own of such runs)")


def run(args: argparse.Namespace) -> int:
    """Judge the runs again, and write their curve or compare them with one.

    Args:
        args: Parsed arguments.

    Returns:
        0 when it is written, or when they are on it; 1 when they are not.
    """
    from conformance.evidence import RunDirectory
    from conformance.judgement import judge

    judged = [(path, judge(RunDirectory(path))) for path in args.runs]
    if args.action == "compare":
        return _compare(judged, args.curve)
    return _make(judged, [(path, judge(RunDirectory(path))) for path in args.twins], args.output)


def _make(judged: list[tuple[Path, Judgement]], twins: list[tuple[Path, Judgement]], output: Path) -> int:
    from conformance.spec.curves import write_curve

    curve = _with_twins(_curve(judged), _curve(twins)) if twins else _curve(judged)
    write_curve(output, curve)
    first, last = (sum(run[i] for run in curve.losses) / len(curve.losses) for i in (0, -1))
    print(
        f"{output}: {curve.workload}, {len(curve.losses)} runs of {curve.steps} steps, "
        f"mean loss {first:.4f} to {last:.4f}."
    )
    return 0


def _compare(judged: list[tuple[Path, Judgement]], file: Path | None) -> int:
    import numpy as np

    from conformance.checks.curve import agrees
    from conformance.checks.finding import Result
    from conformance.errors import EvidenceError
    from conformance.judgement import DUMMY, curve_of
    from conformance.metrics.curve import compare
    from conformance.spec.curves import read_curve

    _require_alike(judged)
    plan, data = judged[0][1].plan, _data(judged[0][1]) or DUMMY
    own = curve_of(plan, data, None if file is None else (read_curve(file),))
    if own is None:
        raise EvidenceError(
            f"{file or 'No curve of the suite'} is {'no' if file else 'a'} curve of {plan.workload.name} as it was run "
            "here: workload, layers, steps, tokens of a step and data must be the same.",
            "Make one: conformance curve make.",
        )
    steps = min(len(judgement.losses) for _, judgement in judged)
    seeds = [judgement.plan.seed for _, judgement in judged]
    losses = np.array([judgement.losses[:steps] for _, judgement in judged])
    found = compare(own, losses, seeds, _origin(judged))
    if found is None:
        raise EvidenceError(
            f"The runs have {steps} steps in common from step 0; a comparison takes ten.", "Run longer."
        )
    finding = agrees(found)
    told = ", ".join(map(str, seeds))
    print(f"{plan.workload.name}, mean of {len(judged)} run{'s' * (len(judged) > 1)} of seed {told}.")
    print(f"{finding.result.value}: {finding.message} {finding.next_step}".rstrip())
    return 0 if finding.result is Result.PASS else 1


def _require_alike(judged: list[tuple[Path, Judgement]]) -> None:
    """Refuse runs that differ in more than their seed, or not in that."""
    import dataclasses

    from conformance.errors import EvidenceError

    (path, first), seeds = judged[0], [judgement.plan.seed for _, judgement in judged]
    for other, judgement in judged:
        if dataclasses.replace(judgement.plan, seed=first.plan.seed) != first.plan or _data(judgement) != _data(first):
            raise EvidenceError(f"{other} and {path} differ in more than their seed.", "Run all of them alike.")
    if len(set(seeds)) < len(seeds):
        raise EvidenceError("Two runs have the same seed.", "Run each with a seed of its own.")


def _curve(judged: list[tuple[Path, Judgement]]) -> Curve:
    """Put runs together that are sound, of one plan and data, and of different seeds."""
    from conformance import __version__
    from conformance.errors import EvidenceError
    from conformance.judgement import DUMMY
    from conformance.spec.curves import MIN_RUNS, Curve

    if len(judged) < MIN_RUNS:
        raise EvidenceError(f"A curve takes {MIN_RUNS} runs or more; got {len(judged)}.", "Run with other seeds.")
    _require_alike(judged)
    made, first = [(judgement.plan.seed, _losses(path, judgement)) for path, judgement in judged], judged[0][1]
    if len({len(losses) for _, losses in made}) > 1:
        raise EvidenceError("Some runs have fewer steps than others.", "Run them again, to their end.")
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
        origin=_origin(judged),
    )


def _losses(path: Path, judgement: Judgement) -> tuple[float, ...]:
    """The losses of a run that is fit to be a reference."""
    from conformance.checks.finding import Result
    from conformance.errors import EvidenceError
    from conformance.metrics.curve import STEPS
    from conformance.spec import load_checks

    checks = load_checks()
    bad = [f.check for f in judgement.findings if f.result in (Result.FAIL, Result.ERROR)]
    bad = [check for check in bad if checks[check].severity == "required" and check not in NOT_ASKED]
    if bad or not judgement.losses:
        raise EvidenceError(f"{path} is no reference: {', '.join(bad) or 'it has no steps'}.", "Run it again.")
    return tuple(judgement.losses[:STEPS])


def _origin(judged: list[tuple[Path, Judgement]]) -> str:
    """What gave all of them their weights and order of data; empty where that is not one and the same."""
    (origin, *others) = {judgement.origin for _, judgement in judged}
    return "" if others else origin


def _with_twins(curve: Curve, again: Curve) -> Curve:
    """Add what a curve of the same seeds made of them on a device that rounds in another way."""
    import dataclasses

    from conformance.errors import EvidenceError
    from conformance.metrics.curve import PAIRED_STEPS

    twins = {seed: losses[:PAIRED_STEPS] for seed, losses in zip(again.seeds, again.losses, strict=True)}
    like = dataclasses.replace(again, seeds=curve.seeds, losses=curve.losses, source=curve.source)
    copied = any(twins.get(seed) == run[:PAIRED_STEPS] for seed, run in zip(curve.seeds, curve.losses, strict=True))
    if not curve.origin or like != curve or set(twins) != set(curve.seeds) or copied:
        raise EvidenceError(
            "The twins are no second runs of the same seeds, initial weights and order of data.",
            "Run each seed once more, alike, on a device of the same random numbers.",
        )
    return dataclasses.replace(curve, twins=tuple(twins[seed] for seed in curve.seeds))


def _source(path: Path) -> str:
    """What made a run, for people."""
    from conformance.evidence import RUN, RunDirectory, read_json

    files = RunDirectory(path)
    record, rank = read_json(files, RUN), read_json(files, "environment/rank0.json")
    device, torch = rank["device"].get("model", rank["device"]["plugin"]), rank["packages"].get("torch")
    source = record["internevo"]
    return f"{device}, torch {torch}, InternEvo {source['tag'] or source['version']}, {record['started'][:10]}"


TWINS = "run directories, one of each seed again, on a device that rounds in another way: what rounding alone does"

# A reference is the measure of the curve and of the target, not held against them.
NOT_ASKED = ("curve-agrees", "loss-target")


def _data(judgement: Judgement) -> str:
    return str((judgement.metrics.get("data") or {}).get("digest", ""))
