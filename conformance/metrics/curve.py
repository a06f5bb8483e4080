"""A run's first steps against a reference curve: how far apart they are, and how far seeds alone put runs apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from conformance.metrics.statistics import student_t
from conformance.spec.curves import Curve

Matrix = npt.NDArray[np.float64]

STEPS = 100
# Deviations are means over so many steps: what persists is a fault, what changes from step to step is noise.
BLOCK = 10
# Two runs that begin alike differ by little for so long; then their rounding grows into another run within ten steps.
PAIRED_STEPS = 6
# Half of the last decimal that InternEvo logs of a loss of ten, relative to it: what is smaller is not told apart.
LOGGED = 5e-6
# One-sided, for each of the two statistics. Both are sizes, whose tail is longer than a normal one's: by simulation two
# to four of a hundred honest runs are refused.
CONFIDENCE = 0.995


@dataclass(frozen=True)
class Paired:
    """How a run's loss differs from that of the reference run which had its initial weights and its order of data.

    Args:
        pairs: Number of reference runs with a twin, which differs in its rounding alone.
        steps: Steps compared, from step 0.
        relative_rms: Root mean square of the deviation, relative to that run, not below ``LOGGED``; of more
            runs, the geometric mean.
        bound: What the t interval over the twins allows it to be.
        leaves_at: First step whose deviation is beyond ``bound`` of a run that is; None where it is not.
        detectable: Smallest constant deviation that would be refused in 19 of 20 cases.
    """

    pairs: int
    steps: int
    relative_rms: float
    bound: float
    leaves_at: int | None
    detectable: float

    @property
    def agrees(self) -> bool:
        """Whether it is within its bound; not so where it is undefined."""
        return self.relative_rms <= self.bound


@dataclass(frozen=True)
class Comparison:
    """How a run's loss differs from a reference curve's, all relative to the curve.

    Args:
        reference: Workload of the curve and number of its runs.
        runs: Number of its runs.
        steps: Steps compared, from step 0.
        relative_rms: Root mean square of the deviation, its offset included.
        bound: What the t interval allows it to be.
        max_deviation: Largest mean deviation of a block of steps, signed.
        max_bound: What the t interval allows its size to be.
        at_step: First step of that block.
        leaves_at: First step of the first block that is beyond ``max_bound``; None where none is.
        detectable: Smallest constant deviation that would be refused in 19 of 20 cases.
        points: (step, mean, low, high) of the curve, in nats/token: what a run of another seed may be at that step.
        paired: Comparison with the reference runs of the same seeds; None where the curve has none that began alike.
    """

    reference: str
    runs: int
    steps: int
    relative_rms: float
    bound: float
    max_deviation: float
    max_bound: float
    at_step: int
    leaves_at: int | None
    detectable: float
    points: tuple[tuple[int, float, float, float], ...]
    paired: Paired | None = None

    @property
    def agrees(self) -> bool:
        """Whether all are within their bounds; not so where one is undefined."""
        alike = self.paired is None or self.paired.agrees
        return alike and self.relative_rms <= self.bound and abs(self.max_deviation) <= self.max_bound


def compare(curve: Curve, losses: Matrix, seeds: Sequence[int] = (), origin: str = "") -> Comparison | None:
    """Compare runs with a curve.

    The bound of a statistic for one further run is mean + t s sqrt(1 + 1/n), one-sided, with mean and standard
    deviation s over the n reference runs, each held against the mean of the others. The mean of k runs deviates less
    from that of n, in the ratio of sqrt(1/k + 1/n) to sqrt(1 + 1/n), and so does its bound.

    Args:
        curve: The reference.
        losses: Losses of k runs in nats/token, by step from 0; shape (k, steps).
        seeds: The seed of each.
        origin: What gave them, besides the seed, their initial weights and order of data: where it is the curve's, each
            is held against the reference run of its own seed as well.

    Returns:
        The comparison of their mean; None where there are fewer than ten steps to compare.
    """
    reference = np.array(curve.losses)
    size = min(STEPS, reference.shape[1], losses.shape[1]) // BLOCK * BLOCK
    if not size:
        return None
    reference, run = reference[:, :size], losses[:, :size].mean(axis=0)
    n, k = len(reference), len(losses)
    mean = reference.mean(axis=0)
    others = (reference.sum(axis=0) - reference) / (n - 1)
    noise, own = _blocks(reference / others - 1), _blocks((run / mean - 1)[None])[0]
    t, one, several = student_t(CONFIDENCE, n - 1), np.sqrt(1 + 1 / n), np.sqrt(1 / k + 1 / n)
    noise *= several / one

    def bound(values: Matrix) -> float:
        return float(values.mean() + t * values.std(ddof=1) * one)

    rms_bound, max_bound = bound(_rms(noise)), bound(np.abs(noise).max(axis=1))
    worst = int(np.argmax(np.abs(own)))
    beyond = np.flatnonzero(~(np.abs(own) <= max_bound))
    half = t * reference.std(axis=0, ddof=1) * several
    return Comparison(
        reference=curve.workload,
        runs=n,
        steps=size,
        relative_rms=float(_rms(own[None])[0]),
        bound=rms_bound,
        max_deviation=float(own[worst]),
        max_bound=max_bound,
        at_step=worst * BLOCK,
        leaves_at=int(beyond[0]) * BLOCK if len(beyond) else None,
        detectable=_detectable(noise, rms_bound),
        points=tuple(
            (i, float(m), float(m - h), float(m + h)) for i, (m, h) in enumerate(zip(mean, half, strict=True))
        ),
        paired=_pair(curve, losses, seeds) if origin and origin == curve.origin else None,
    )


def _pair(curve: Curve, losses: Matrix, seeds: Sequence[int]) -> Paired | None:
    """Hold each run against the reference run of its seed, by what rounding alone makes of such a pair.

    Rounding grows by a factor from step to step, and so differs by a factor from pair to pair: the t interval is one of
    the logarithm.
    """
    if not curve.twins or not seeds or not set(seeds) <= set(curve.seeds):
        return None
    size = min(PAIRED_STEPS, losses.shape[1])
    reference, twins = np.array(curve.losses)[:, :size], np.array(curve.twins)[:, :size]
    noise = twins / reference - 1
    own = losses[:, :size] / reference[[curve.seeds.index(seed) for seed in seeds]] - 1
    values, found = (np.log(np.maximum(_rms(deviations), LOGGED)) for deviations in (noise, own))
    n, k = len(noise), len(own)
    half = student_t(CONFIDENCE, n - 1) * values.std(ddof=1) * np.sqrt(1 / k + 1 / n)
    bound, rms = float(np.exp(values.mean() + half)), float(np.exp(found.mean()))
    beyond = np.flatnonzero(~(np.abs(own) <= bound).all(axis=0))
    leaves_at = None if rms <= bound else int(beyond[0])
    return Paired(n, size, rms, bound, leaves_at, _detectable(noise, bound))


def _blocks(deviations: Matrix) -> Matrix:
    """Means over blocks of steps, shape (runs, blocks)."""
    return np.asarray(deviations.reshape(len(deviations), -1, BLOCK).mean(axis=2))


def _rms(deviations: Matrix) -> Matrix:
    return np.asarray(np.sqrt(np.square(deviations).mean(axis=1)))


def _detectable(noise: Matrix, bound: float) -> float:
    """The smallest constant deviation which, added to a reference run, is beyond the bound in 19 of 20 cases."""
    t = student_t(0.95, len(noise) - 1)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        # The less favourable sign: an offset may first make up for what a run deviates by itself.
        seen = [_rms(noise + sign * middle) for sign in (1, -1)]
        sure = all(values.mean() - t * values.std(ddof=1) > bound for values in seen)
        low, high = (low, middle) if sure else (middle, high)
    return high
