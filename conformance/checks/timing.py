"""Relations between the speeds, times and FLOPs of an honest log."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from conformance.checks.finding import Finding, Result
from conformance.checks.subject import HALF_CENT, RAW, Bools, Series, Subject, apart, judge, skip
from conformance.internevo.flops import logged_flops_per_token
from conformance.internevo.log import Steps
from conformance.metrics.facts import gaps_between

# For one line InternEvo reads the clock for last_tgs_1, then for tflops, then for tgs, some ten microseconds apart. In
# between another thread may hold Python's lock for its 5 ms, and now and then a busy host takes a process off its core:
# Linux gives a share of the cores that is used up back within 0.1 s. But time never goes backwards.
CLOCK_LAG = 5e-3  # s
CLOCK_PAUSE = 0.1  # s
PAUSED = 0.1  # share of the lines, and one of few
CLOCK_BACK = 1e-3  # s
CLOCK_SHARE = 1e-4
# Between two steps InternEvo logs, checks for overflow and looks after its allocator: 3 to 6 ms on an H200's host,
# up to 25 ms on a busy CPU.
GAP_SECONDS = 0.03
GAP_SHARE = 0.005
TIMESTAMP = 2e-3  # s; timestamps are cut to 1 ms at both ends of a gap
FEW_GAPS = 3  # too few for a median
CEILING_SLACK = 1.05  # the attention of packed samples needs less than that of whole sequences


def clock(subject: Subject) -> Finding:
    """Check that time does not run backwards.

    Args:
        subject: The run.

    Returns:
        The finding of check log-clock.
    """
    check, times = "log-clock", subject.steps["time"]
    if len(times) < 2 or np.isnat(times).all():
        return skip(check, "Fewer than two lines have a time.")
    bad: Bools = (gaps_between(subject.steps) < 0) | np.isnat(times)
    return judge(check, subject, bad, "no line is older than the one before", "one host's clock writes all lines")


def flops(subject: Subject) -> Finding:
    """Check that tflops over tgs is the FLOPs per token of the shape: its layers, width, sequence length and f.

    Args:
        subject: The run.

    Returns:
        The finding of check log-flops.
    """
    check, model = "log-flops", subject.facts.model
    if model is None or not subject.has("tflops"):
        return skip(check, "The shape is not known, or the log has no tflops.")
    factor = subject.facts.checkpoint_factor or 3
    if subject.plan is not None:
        factor = 4 if subject.plan.checkpoint else 3
    per_token = logged_flops_per_token(model, factor == 4)
    bad = _timed_apart(subject, lambda part: part.column("tflops") * 1e12 / per_token)
    relation = (
        f"tflops / tgs is {per_token:.6e} FLOPs per token: {model.num_layers} layers, hidden size {model.hidden_size}, "
        f"sequence length {model.seq_len}, f = {factor}"
    )
    values = subject.column("tflops") * 1e12 / subject.column("tgs"), np.full(len(bad), per_token)
    return judge(check, subject, bad, relation, "one time, read twice", values)


def _timed_apart(subject: Subject, earlier: Callable[[Subject], Series]) -> Bools:
    """Where tgs and a speed that was timed before it are further apart than readings of the clock are."""
    late = subject.where(lambda part: _further_apart(part, earlier(part), CLOCK_LAG))
    if 0 < late.sum() <= max(1, PAUSED * len(late)):
        return subject.where(lambda part: _further_apart(part, earlier(part), CLOCK_PAUSE))
    return late


def _further_apart(subject: Subject, earlier: Series, lag_seconds: float) -> Bools:
    """Where a speed that was timed before tgs is not it, read up to a time earlier."""
    later, seconds = subject.column("tgs"), subject.step_seconds()
    seconds = np.ones(len(later)) if seconds is None else seconds
    # What was read before a pause is a speed over the time without it.
    without = np.maximum(1 - lag_seconds / seconds, 0)
    above = later * (1 + CLOCK_SHARE) + 2 * HALF_CENT
    below = later * (1 - CLOCK_SHARE - CLOCK_BACK / seconds) - 2 * HALF_CENT
    inside: Bools = (earlier * without <= above) & (earlier >= below)
    return ~inside


def step_time(subject: Subject) -> Finding:
    """Check that the step that TGS implies fits between the timestamps, and is nearly all of the time between them.

    Args:
        subject: The run.

    Returns:
        The finding of check log-step-time.
    """
    check, seconds, gaps = "log-step-time", subject.step_seconds(), _gaps(subject)
    if seconds is None:
        return skip(check, "Tokens of a step or cards are not known, so TGS implies no step time.")
    known = np.isfinite(gaps)
    if not subject.has("fwd_bwd_time") and not known.any():
        return skip(check, "The log has neither fwd_bwd_time nor the times of two steps in a row.")
    excess = gaps[known] - seconds[known] * (1 + GAP_SHARE) - GAP_SECONDS
    if len(excess) >= FEW_GAPS and np.median(excess) > 0:
        ratio = float(np.median(gaps[known] / seconds[known]))
        message = f"Two lines are {ratio:.3f} times as far apart as TGS implies, in the median: TGS is too high."
        return Finding(check, Result.FAIL, message, ratio, "", 1 + GAP_SHARE, "the log's own clock", next_step=RAW)
    # A TGS that is rounded up by half a cent makes the step that much shorter.
    rounding = seconds * (CLOCK_SHARE + HALF_CENT / subject.column("tgs"))
    bad: Bools = known & (seconds - rounding > gaps + TIMESTAMP)
    relation = "the step that TGS implies fits between two lines"
    if subject.has("fwd_bwd_time"):
        bad |= subject.column("fwd_bwd_time") > seconds + rounding + 2 * HALF_CENT
        relation += ", and fwd_bwd_time into it"
    return judge(check, subject, bad, relation, "one clock", (seconds, gaps))


def _gaps(subject: Subject) -> Series:
    """Seconds since the line before, shape (n,); nan where that is not the step before, or another process's."""
    gaps = gaps_between(subject.steps)
    follows = np.diff(subject.column("step"), prepend=np.nan) == 1
    follows &= np.diff(subject.column("segment"), prepend=-1) == 0
    gaps[~follows] = np.nan
    return gaps


def speeds(subject: Subject) -> Finding:
    """Check that every running statistic of speed follows from the steps since the process started.

    Args:
        subject: The run.

    Returns:
        The finding of check log-speeds.
    """
    check, names = "log-speeds", ("last_tgs_1", "tgs_all", "tgs_avg", "tgs_SMA", "last_tgs_10", "last_tgs_50")
    columns = [f"tgs/{name}" for name in names]
    if not subject.has(*columns):
        return skip(check, "The log has no running statistics of speed.")
    bad = _timed_apart(subject, lambda part: part.column("tgs/last_tgs_1"))
    relation = "last_tgs_1 is tgs"
    for segment in np.unique(subject.column("segment")):
        at = np.flatnonzero(subject.column("segment") == segment)
        (rows,) = subject.steps.only(["step", *columns]).take(slice(at[0], at[-1] + 1))
        # The sums begin with the process; where its first line is not in the log, they are not known.
        if rows["step"][0] == 0 or segment > 0 or rows["tgs/last_tgs_1"][0] == rows["tgs/tgs_all"][0]:
            bad[at] |= _wrong_statistics(rows)
            relation = "last_tgs_1 is tgs, and tgs_all, tgs_avg, tgs_SMA, last_tgs_10 and last_tgs_50 follow from it"
    return judge(check, subject, bad, relation, "sums over the steps, rounded to two decimals")


def _wrong_statistics(rows: Steps) -> Bools:
    """Where a process's statistics do not follow from its own last_tgs_1."""
    one = rows["tgs/last_tgs_1"]
    # A step's time is its tokens over last_tgs_1, and the error of that time is its rounding.
    total, time, error = (np.concatenate([[0.0], np.cumsum(one**power)]) for power in (1, -1, -2))
    wrong, done = [np.zeros(0, np.bool_)], 0
    for part in rows.parts():
        n = np.arange(done + 1, done + len(part) + 1)
        done += len(part)
        mean = total[n] / n
        bad = apart(part["tgs/tgs_avg"], mean, 2 * HALF_CENT + 1e-9 * mean)
        ten, fifty = (n // size * size for size in (10, 50))
        spans = {"tgs_all": (0 * n, n), "tgs_SMA": (n - 50, n), "last_tgs_10": (ten - 10, ten)}
        for name, (begin, end) in {**spans, "last_tgs_50": (fifty - 50, fifty)}.items():
            # The speed over these steps; 0 stands for none yet.
            begin = np.maximum(begin, 0)
            count = end - begin
            speed = np.where(count > 0, count / (time[end] - time[begin]), 0.0)
            rounding = np.where(count > 0, speed**2 * (error[end] - error[begin]) / count, 0.0)
            bad |= apart(part[f"tgs/{name}"], speed, HALF_CENT * (1 + rounding) + 1e-9 * speed)
        wrong.append(bad)
    return np.concatenate(wrong)


def utilisation(needed_tflops: float, peak_tflops: float | None, ceilings: Mapping[str, float]) -> Finding:
    """Check that the device can do what the log says: no more than its declared peak, nor than preflight measured.

    Args:
        needed_tflops: TFLOPS that the model needs with causal attention: what was done at the least.
        peak_tflops: Declared peak of one device, dense bf16.
        ceilings: GEMM ceilings of one device, in TFLOPS, by where they come from.

    Returns:
        The finding of check log-utilisation.
    """
    check = "log-utilisation"
    known = [(peak_tflops, 1.0, "the declared peak")] if peak_tflops else []
    known += [(tflops, CEILING_SLACK, f"the GEMM ceiling of {source}") for source, tflops in ceilings.items()]
    if not known:
        return skip(check, "Neither a declared peak nor a measured GEMM ceiling is known.")
    limit, slack, name = min(known, key=lambda known: known[0] * known[1])
    passed = needed_tflops <= limit * slack
    return Finding(
        check,
        Result.PASS if passed else Result.FAIL,
        f"The model needed {needed_tflops:.4g} TFLOPS/device, {needed_tflops / limit:.1%} of {limit:.4g}, {name}.",
        needed_tflops,
        "TFLOPS/device",
        limit * slack,
        name,
        1 - needed_tflops / (limit * slack),
        next_step="" if passed else RAW,
    )
