"""Was the run fast enough? Speed held against a floor, with the noise of both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from conformance.checks.finding import Finding, Result
from conformance.metrics.statistics import Z95, student_t
from conformance.metrics.throughput import Tflops, Throughput
from conformance.spec.floors import Floor

# A gap so small that more runs than this would be needed is no gap.
MAX_RUNS = 1000


def floor_reached(check: str, value: float, half_width: float | None, floor: Floor, runs: int = 1) -> Finding:
    """Hold a measured value against a floor.

    Args:
        check: Id of the check.
        value: Median of the run, in the floor's unit.
        half_width: Half the 95% interval of that median; None where the run is too short to have one.
        floor: The floor.
        runs: Runs that the value is the mean of.

    Returns:
        PASS or FAIL where value and floor differ by more than their noise; else ERROR with what would settle it.
    """
    margin = value / floor.value - 1
    told = f"{value:.6g} {floor.unit} against a floor of {floor.value:.6g}, {margin:+.2%}"
    base = Finding(check, Result.ERROR, told, value, floor.unit, floor.value, str(floor), margin)
    if half_width is None:
        message = f"inconclusive: {told}; the run has too few steps for an interval."
        return replace(base, message=message, next_step="Run it again with all its steps.")
    floor_noise = Z95 * (floor.spread or 0.0) * floor.value
    noise = math.hypot(half_width, floor_noise)
    message = f"{told}; the noise is {noise / floor.value:.2%}"
    gap = abs(value - floor.value)
    if gap > noise and margin > 0:
        return replace(base, result=Result.PASS, message=f"{message}.")
    if gap > noise:
        step = "`pytest suites/preflight` shows which device, link or kernel is slow."
        return replace(base, result=Result.FAIL, message=f"{message}.", next_step=step)
    step = "Repeat the run and analyse all of them, each with all its steps."
    return replace(
        base, message=f"inconclusive: {message}; {_settled_by(gap, half_width, floor_noise, runs)}.", next_step=step
    )


def _settled_by(gap: float, half_width: float, floor_noise: float, made: int) -> str:
    """How many further runs bring the noise of their mean below the gap."""
    # The floor's own noise stays, however many runs are made.
    room = gap**2 - floor_noise**2
    runs = math.ceil(made * half_width**2 / room - 1e-9) if room > 0 else MAX_RUNS + 1
    if runs > MAX_RUNS:
        return "no number of further runs up to 1000 would settle it: the speed is the floor's"
    further = max(1, runs - made)
    return f"{further} further run{'s' if further > 1 else ''} like it would settle it"


def no_floor(check: str, workload: str | None, device: str | None) -> Finding:
    """The finding where no floor holds.

    Args:
        check: Id of the check.
        workload: Name of the workload; None where none was named.
        device: Model name of the device; None where it is not known.

    Returns:
        SKIP.
    """
    if workload is None:
        return Finding(
            check, Result.SKIP, "No workload was named, so no floor holds.", next_step="Name it: --workload."
        )
    return Finding(check, Result.SKIP, f"There is no floor for {workload} on {device or 'an unnamed device'}.")


def check_floors(
    speed: Throughput, flops: Tflops, floors: dict[str, Floor | None], workload: str | None, device: str | None
) -> list[Finding]:
    """Hold a run's TGS and TFLOPS against their floors.

    Args:
        speed: Its throughput.
        flops: Its TFLOPS; the recomputed ones count, which activation checkpointing cannot raise.
        floors: The floor for each metric, if any. A self-declared one never counts.
        workload: Name of the workload.
        device: Model name of the device.

    Returns:
        Findings of tgs-floor and tflops-floor.
    """
    half = None if speed.ci95 is None else max(speed.median - speed.ci95[0], speed.ci95[1] - speed.median)
    return _hold(speed.median, half, flops.recomputed, floors, workload, device)


@dataclass(frozen=True)
class Pooled:
    """Several runs of one workload and layout, taken together.

    Args:
        runs: Their places among the runs that were analysed, from 0.
        mean: Mean of their median TGS, in tokens per device and second.
        ci95: 95% interval of that mean, from their scatter.
        findings: tgs-floor and tflops-floor of the mean.
    """

    runs: tuple[int, ...]
    mean: float
    ci95: tuple[float, float]
    findings: tuple[Finding, ...]


def pool(
    runs: Mapping[int, tuple[Throughput, Tflops]], floors: dict[str, Floor | None], workload: str, device: str | None
) -> Pooled:
    """Hold several runs together against their floors.

    Args:
        runs: Throughput and TFLOPS of two runs or more, by their place.
        floors: The floor for each metric, if any.
        workload: Name of the workload.
        device: Model name of the device.

    Returns:
        The mean of their medians, with the half width t s / sqrt(n) of its interval, and its findings.
    """
    medians = np.array([speed.median for speed, _ in runs.values()])
    mean = float(medians.mean())
    half = student_t(0.975, len(medians) - 1) * float(medians.std(ddof=1)) / math.sqrt(len(medians))
    counted = [flops.recomputed for _, flops in runs.values() if flops.recomputed is not None]
    recomputed = float(np.mean(counted)) if len(counted) == len(medians) else None
    findings = _hold(mean, half, recomputed, floors, workload, device, len(medians))
    told = f"Mean of {len(medians)} runs: "
    findings = [replace(f, message=told + f.message) if f.limit is not None else f for f in findings]
    return Pooled(tuple(runs), mean, (mean - half, mean + half), tuple(findings))


def _hold(
    tgs: float,
    half: float | None,
    recomputed: float | None,
    floors: dict[str, Floor | None],
    workload: str | None,
    device: str | None,
    runs: int = 1,
) -> list[Finding]:
    findings = []
    for metric, value in (("tgs", tgs), ("tflops", recomputed)):
        check, floor = f"{metric}-floor", floors.get(metric)
        if floor is None:
            findings.append(no_floor(check, workload, device))
        elif value is None:
            findings.append(
                Finding(check, Result.ERROR, "The model's shape is not known, so its TFLOPS are not either.")
            )
        else:
            width = None if half is None else half * value / tgs
            findings.append(floor_reached(check, value, width, floor, runs))
    return findings


def declared_floor(speed: Throughput, tgs: float) -> Finding:
    """Hold a run against the floor that its own vendor set.

    Args:
        speed: Its throughput.
        tgs: The floor, in tokens per device and second.

    Returns:
        PASS or FAIL of tgs-floor-declared, which certifies nothing.
    """
    passed = speed.median >= tgs
    message = f"Median TGS {speed.median:.6g} against the self-declared floor of {tgs:.6g}; this certifies nothing."
    return Finding(
        "tgs-floor-declared",
        Result.PASS if passed else Result.FAIL,
        message,
        speed.median,
        "tokens/device/s",
        tgs,
        "self-declared by the vendor: --tgs-floor",
        speed.median / tgs - 1,
    )
