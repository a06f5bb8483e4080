"""``conformance analyze``: figures and findings from raw training logs."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conformance.errors import EvidenceError

if TYPE_CHECKING:
    from conformance.analysis import RunAnalysis
    from conformance.checks.finding import Finding
    from conformance.internevo.log import Event, RunLog


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options.

    Args:
        parser: The command's own parser.
    """
    parser.description = (
        "Read training logs of InternEvo: one file with one or several runs, the files of a run's ranks, or those of a "
        "resumed run. Exit code 0: nothing failed; 1: a check failed; 2: a log could not be read."
    )
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="a log file; - is standard input")
    parser.add_argument("--workload", metavar="W", help="hold the runs against this workload")
    parser.add_argument("--device", metavar="MODEL", help="model name of the device, which selects the floors")
    parser.add_argument("--tgs-floor", type=_positive, metavar="TGS", help="a floor of your own; it certifies nothing")
    parser.add_argument("--peak-tflops", type=_positive, metavar="TFLOPS", help="the device's dense bf16 peak, for MFU")
    parser.add_argument(
        "--ceiling-tflops", type=_positive, metavar="TFLOPS", help="the GEMM ceiling that preflight measured, for MFU"
    )
    parser.add_argument("--json", action="store_true", help="print the figures and findings as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write them as one self-contained page as well")


def run(args: argparse.Namespace) -> int:
    """Analyse the logs and print what they show.

    Args:
        args: The parsed options.

    Returns:
        0 when nothing failed, 1 when a check did.

    Raises:
        ConformanceError: A log cannot be read or is none of InternEvo's, or the workload is unknown.
    """
    import json
    from dataclasses import asdict

    from conformance.analysis import Limits, analyze_logs, plain, pool_runs
    from conformance.checks.finding import Result
    from conformance.spec import load_workload

    if args.device is not None and args.workload is None:
        raise EvidenceError(
            "--device selects the floors of a workload, and none was named.", "Name it with --workload."
        )
    workload = load_workload(args.workload) if args.workload is not None else None
    logs, others = _read(args.logs)
    limits = Limits(
        device=args.device,
        declared_tgs=args.tgs_floor,
        peak_tflops=args.peak_tflops,
        ceilings={} if args.ceiling_tflops is None else {"--ceiling-tflops": args.ceiling_tflops},
    )
    runs = analyze_logs(logs, workload=workload, limits=limits, others=others)
    pooled = pool_runs(runs, workload, limits)
    if args.html is not None:
        _write(args.html, runs)
    if args.json:
        together = [plain(asdict(group)) for group in pooled]
        shown = {"runs": [analysis.to_json() for analysis in runs], "pooled": together}
        print(json.dumps(shown, indent=2, allow_nan=False))
    else:
        for analysis in runs:
            print("\n".join(_lines(analysis)), end="\n\n")
        for group in pooled:
            print(f"runs {', '.join(str(place + 1) for place in group.runs)} together")
            print(f"  TGS      mean of their medians {group.mean:.6g}, 95% {group.ci95[0]:.6g} to {group.ci95[1]:.6g}")
            print("".join(f"  {f.result.value:<5} {f.check:<18} {f.message}\n" for f in group.findings))
    findings = [f for run in runs for f in run.findings] + [f for group in pooled for f in group.findings]
    return int(any(finding.result is Result.FAIL for finding in findings))


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def _read(paths: Sequence[Path]) -> tuple[list[RunLog], list[Event]]:
    """Read every file; give the runs in them by time, and the events of ranks whose logs hold no run."""
    from conformance.internevo.log import parse_log

    found: list[RunLog] = []
    for path in paths:
        try:
            with contextlib.nullcontext(sys.stdin.buffer) if str(path) == "-" else path.open("rb") as stream:
                runs = parse_log(stream, "standard input" if str(path) == "-" else str(path))
        except OSError as error:
            raise EvidenceError(f"{path} cannot be read: {error.strerror}.", "Name a training log.") from error
        if not runs:
            raise EvidenceError(
                f"{path} holds no line of InternEvo's: no training step, no head, no exception.",
                "Name the output of a training process; logs/nodeN/rankR.log in a run directory.",
            )
        found += runs
    speaking = [run for run in found if len(run.steps) or not run.head.empty]
    silent = [run for run in found if not (len(run.steps) or not run.head.empty)]
    if not speaking:
        return found, []
    # The ranks that do not log metrics still tell what they raised.
    others = [event for run in silent for event in run.exceptions]
    return sorted(speaking, key=_begin), others


def _begin(run: RunLog) -> float:
    """When a run's first step was logged, in seconds; runs without a time keep their place behind the others."""
    import numpy as np

    times = run.steps["time"]
    known = times[~np.isnat(times)]
    return float(known[0].astype(int)) / 1000 if len(known) else float("inf")


def _lines(analysis: RunAnalysis) -> list[str]:
    """One run as text, in which nothing that the log says can move a cursor."""
    from conformance.report.told import rows
    from conformance.report.visible import visible

    shown = analysis.to_json()
    name = ", ".join(dict.fromkeys(segment.name for segment in analysis.segments))
    lines = [f"{name}: {shown['outcome']}, {shown['steps_logged']} steps logged"]
    lines += [f"  {label:<8} {text}" for label, text in rows(shown)]
    lines += [f"  {f.result.value:<5} {f.check:<18} {f.message}" for f in analysis.findings]
    return [visible(line) for line in (*lines, f"  verdict  {_verdict(analysis.findings)}")]


def _verdict(findings: Sequence[Finding]) -> str:
    """What may be said of a run of which there is only a log."""
    from conformance.checks.finding import Result

    failed = [finding.check for finding in findings if finding.result is Result.FAIL]
    if failed:
        return f"FAIL: {len(failed)} of {len(findings)} checks failed: {', '.join(failed)}."
    passed, open_, skipped = (
        sum(f.result is result for f in findings) for result in (Result.PASS, Result.ERROR, Result.SKIP)
    )
    told = f"nothing failed: {passed} checks passed, {open_} could not be made, {skipped} had nothing to check"
    return f"{told}; a log alone certifies nothing."


def _write(path: Path, runs: Sequence[RunAnalysis]) -> None:
    """Write the page."""
    from conformance.report.html import render_analysis

    try:
        path.write_text(render_analysis(runs), encoding="utf-8")
    except OSError as error:
        raise EvidenceError(
            f"{path} cannot be written: {error.strerror}.", "Name a file in a folder that exists."
        ) from error
