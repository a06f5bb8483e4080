"""The learning-rate schedule: what it should be, and what a log says of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from conformance.metrics.statistics import Series
from conformance.spec.model import Optimizer

# Rates are printed in full; only the arithmetic of 64-bit floats stands between them and the curve.
FIT_TOLERANCE = 1e-6
# Through so many of them, evenly spread, the curve is fitted; through all of a long run's it would take much memory.
_FITTED = 20_000


def expected_lr(optimizer: Optimizer, total_steps: int, updates: Series) -> tuple[Series, Series]:
    """Learning rates of a linear warm-up and a cosine decay, as InternEvo logs them: the one that the next step uses.

    PyTorch's cosine schedule computes each rate from the one before. Depending on its version the cosine begins at the
    peak, or reaches it one update later and is higher by one constant factor throughout; both forms are honest.

    Args:
        optimizer: Peak and final rate and the share of warm-up.
        total_steps: Steps of the schedule.
        updates: Updates made when each line was written, shape (n,).

    Returns:
        Both forms, each of shape (n,).
    """
    warm_up = int(total_steps * optimizer.warmup_ratio)
    period = max(1, total_steps - warm_up)
    span = optimizer.lr - optimizer.eta_min
    phase = (updates - warm_up) * math.pi / period
    closed = optimizer.eta_min + span * (1 + np.cos(phase)) / 2
    kept = optimizer.eta_min + span * (1 + np.cos(phase)) / (1 + math.cos(math.pi / period)) if period > 1 else closed
    if warm_up:
        rising = optimizer.lr * (updates + 1) / warm_up
        closed, kept = (np.where(updates < warm_up, rising, series) for series in (closed, kept))
    return closed, kept


@dataclass(frozen=True)
class Cosine:
    """A cosine through logged rates.

    Args:
        rates: What it gives for each rate that was fitted, shape (n,).
        start: Index of the first rate that was fitted.
        end: Updates at its minimum: the length of the schedule.
    """

    rates: Series
    start: int
    end: float


def fit_cosine(lr: Series, updates: Series) -> Cosine | None:
    """Put a cosine through the rates after their peak.

    A cosine obeys lr[i-s] + lr[i+s] = 2 cos(w s) lr[i] + constant, so a straight line through these pairs gives w; the
    rest is linear.

    Args:
        lr: Logged rates, shape (n,).
        updates: Updates made when each was written, shape (n,).

    Returns:
        The cosine; None where there are too few rates, or steps between them are missing.
    """
    if not len(lr):
        return None
    # The rate right after the peak may be the peak's once more.
    start = int(np.argmax(lr)) + 1
    falling, at = lr[start:], updates[start:]
    stride = (len(falling) - 1) // 3
    if stride < 1 or not np.isfinite(falling).all() or np.any(np.diff(at) != 1):
        return None
    middle, outer = falling[stride:-stride], falling[: -2 * stride] + falling[2 * stride :]
    if len(middle) < 2 or np.ptp(middle) == 0:
        return None
    # The median of the slopes is deaf to a rate that was changed.
    slopes = np.diff(outer) / np.diff(middle)
    cosine = float(np.median(slopes[np.isfinite(slopes)])) / 2 if np.isfinite(slopes).any() else 2.0
    if not -1 < cosine < 1:
        return None
    w = math.acos(cosine) / stride
    x = np.arange(len(falling))
    some = slice(None, None, 1 + len(x) // _FITTED)
    design = np.column_stack([np.ones(len(x[some])), np.cos(w * x[some]), np.sin(w * x[some])])
    level, a, b = np.linalg.lstsq(design, falling[some], rcond=None)[0]
    phase = math.atan2(-b, a)  # the rate is level + r cos(w x + phase)
    rates = level + a * np.cos(w * x) + b * np.sin(w * x)
    return Cosine(rates, start, float(at[0]) + ((math.pi - phase) % (2 * math.pi)) / w)


def fit_total_steps(lr: Series, updates: Series) -> int | None:
    """Tell the length of the schedule from the logged rates alone: it ends at the minimum of their cosine.

    Args:
        lr: Logged rates, shape (n,).
        updates: Updates made when each was written, shape (n,).

    Returns:
        Total steps; None where the rates do not lie on one cosine, or too few of them do.
    """
    cosine = fit_cosine(lr, updates)
    if cosine is None or np.max(np.abs(cosine.rates - lr[cosine.start :])) > FIT_TOLERANCE * np.max(lr):
        return None
    return round(cosine.end) if abs(cosine.end - round(cosine.end)) < 0.05 else None


def fit_residual(lr: Series, updates: Series) -> Series | None:
    """How far each logged rate is from the line and the cosine through all of them.

    Args:
        lr: Logged rates, shape (n,).
        updates: Updates made when each was written, shape (n,).

    Returns:
        Distances, shape (n,); None where there are too few rates.
    """
    cosine = fit_cosine(lr, updates)
    if cosine is None:
        return None
    rising = lr[: cosine.start]
    bend = np.zeros(len(rising))
    if len(rising) > 3:
        with np.errstate(divide="ignore", invalid="ignore"):  # updates that do not grow are on no line
            bend[1:-1] = np.abs(np.diff(np.diff(rising) / np.diff(updates[: cosine.start]))) / 2
        bend[-2:] = 0.0  # the kept peak bends the line
    residual: Series = np.concatenate([bend, np.abs(cosine.rates - lr[cosine.start :])])
    return residual
