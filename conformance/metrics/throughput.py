"""Training speed from a run's steps: steady state, tokens per device and second, TFLOPS counted three ways."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from conformance.internevo.flops import flops_per_token
from conformance.internevo.log import Steps
from conformance.metrics.statistics import Series, median_interval, robust_sigma, slope
from conformance.spec.model import Model

# Warm-up may take no more than this share of the steps: a slow run is not to be cut down to its fast part.
MAX_WARM_UP = 0.25
# So many steps in a row must be in the band before warm-up is over, so that one lucky step does not end it.
IN_A_ROW = 3
# Half-width of the band: this many robust standard deviations of the second half, and at least this share of it.
BAND_SIGMAS = 3.0
BAND_SHARE = 0.02
# The sister benchmarks drop so many steps at each end.
TRIM = 10


@dataclass(frozen=True)
class SteadyState:
    """Which steps the figures rest on.

    Args:
        first: First step that counts.
        last: Last step that counts.
        used: How many steps count.
        excluded: How many steps before ``first`` are left out.
        settled: Whether the speed had reached its band by then.
        rule: The rule and what it did, in words.
    """

    first: int
    last: int
    used: int
    excluded: int
    settled: bool
    rule: str


@dataclass(frozen=True)
class Throughput:
    """Tokens per device and second (TGS) of a run.

    Args:
        steady: The steps that the figures rest on.
        median: Median TGS.
        ci95: 95% interval of the median; None for too few steps.
        mean: Mean TGS.
        min: Least TGS.
        cov: Coefficient of variation: standard deviation over mean.
        drift: Relative change of TGS over the steady steps, by a straight line through them.
        outliers: Steps outside BAND_SIGMAS of the median, the first hundred.
        last: TGS of the last step, as one sister benchmark takes it.
        last_tgs_10: The last ``tgs/last_tgs_10`` logged; None where none is.
        trimmed_mean: Mean without the first and last 10 steps, as another takes it; None for 20 steps or fewer.
    """

    steady: SteadyState
    median: float
    ci95: tuple[float, float] | None
    mean: float
    min: float
    cov: float
    drift: float
    outliers: tuple[int, ...]
    last: float
    last_tgs_10: float | None
    trimmed_mean: float | None


@dataclass(frozen=True)
class Tflops:
    """TFLOPS per device over the steady steps.

    Args:
        logged: Median of what InternEvo logged: with recomputation, without GQA, with the full attention matrix.
        recomputed: InternEvo's formula at the median TGS, without recomputation (f = 3); None without a known shape.
        model: What the model needs, GQA counted right, full attention matrix; None without a known shape.
        model_causal: The same with the causal half of the attention matrix.
    """

    logged: float | None
    recomputed: float | None
    model: float | None
    model_causal: float | None


def throughput(steps: Steps) -> Throughput | None:
    """Measure the speed of a run.

    Args:
        steps: The steps of one run.

    Returns:
        The figures; None for a run without a step of positive speed.
    """
    tgs = steps["tgs"]
    counted = np.isfinite(tgs) & (tgs > 0)
    if not counted.any():
        return None
    # A process that resumes a run warms up again in its first step.
    segments = steps["segment"][counted] if "segment" in steps else np.zeros(counted.sum())
    resumed = np.diff(segments, prepend=segments[0]) != 0
    tgs, numbers = tgs[counted][~resumed], steps["step"][counted][~resumed]
    excluded, settled, why = _warm_up(tgs)
    used, used_steps = tgs[excluded:], numbers[excluded:]
    rule = f"steps {used_steps[0]}..{used_steps[-1]} count ({len(used)} of {counted.sum()}); {why}"
    if resumed.any():
        rule += f"; the first step after each resumption ({resumed.sum()}) does not count"
    median, mean = float(np.median(used)), float(used.mean())
    outside = np.abs(used - median) > max(BAND_SIGMAS * robust_sigma(used), BAND_SHARE * median)
    tens = steps["tgs/last_tgs_10"][counted] if "tgs/last_tgs_10" in steps else np.zeros(1)
    return Throughput(
        steady=SteadyState(int(used_steps[0]), int(used_steps[-1]), len(used), excluded, settled, rule),
        median=median,
        ci95=median_interval(used),
        mean=mean,
        min=float(used.min()),
        cov=float(used.std(ddof=1) / mean) if len(used) > 1 else 0.0,
        drift=slope(used) * (len(used) - 1) / median,
        outliers=tuple(int(step) for step in used_steps[outside][:100]),
        last=float(tgs[-1]),
        last_tgs_10=float(tens[-1]) if tens[-1] > 0 else None,
        trimmed_mean=float(tgs[TRIM:-TRIM].mean()) if len(tgs) > 2 * TRIM else None,
    )


def _warm_up(tgs: Series) -> tuple[int, bool, str]:
    """How many steps warm-up takes, whether the speed had settled then, and the rule in words."""
    n = len(tgs)
    if n < 4:
        return 0, False, "fewer than 4 steps, so none is left out as warm-up"
    half = tgs[n // 2 :]
    level = float(np.median(half))
    width = max(BAND_SIGMAS * robust_sigma(half), BAND_SHARE * level)
    inside = np.abs(tgs - level) <= width
    most = max(1, int(n * MAX_WARM_UP))
    # The benchmark lets a vendor with a graph compiler leave out the first step; here it counts for nobody.
    in_a_row = np.convolve(inside, np.ones(IN_A_ROW), mode="valid") == IN_A_ROW
    calm = np.flatnonzero(in_a_row[1 : most + 1]) + 1
    excluded = int(calm[0]) if len(calm) else most
    band = f"within {width / level:.1%} of the second half's median of {level:.6g}"
    if len(calm):
        why = (
            f"the first step never counts (it loads kernels and builds graphs), and warm-up ends once {IN_A_ROW} steps "
        )
        why += f"in a row lie {band}"
    else:
        why = f"no {IN_A_ROW} steps in a row lie {band} within the first {MAX_WARM_UP:.0%} of the steps, which is the "
        why += "most that may be left out: the speed had not settled"
    return excluded, bool(len(calm)), why


def tflops(steps: Steps, speed: Throughput, model: Model | None) -> Tflops:
    """Turn speed into TFLOPS.

    Args:
        steps: The steps of one run.
        speed: Its throughput.
        model: Shape of what was trained; None where it is not known.

    Returns:
        The three counts, of which only the logged one stands without a shape.
    """
    logged = None
    if "tflops" in steps:
        numbers, steady = steps["step"], speed.steady
        chosen = steps["tflops"][(numbers >= steady.first) & (numbers <= steady.last)]
        logged = float(np.nanmedian(chosen)) if np.isfinite(chosen).any() else None
    if model is None:
        return Tflops(logged, None, None, None)
    per_token = flops_per_token(model, checkpoint=False)
    return Tflops(
        logged,
        speed.median * per_token.logged / 1e12,
        speed.median * per_token.model / 1e12,
        speed.median * per_token.model_causal / 1e12,
    )
