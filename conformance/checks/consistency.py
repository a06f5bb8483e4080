"""The relations that the lines of an honest log obey; a figure that was changed by hand breaks at least one.

Each relation follows from how InternEvo computes the line. Its tolerance is the rounding of what is printed, and the
time between two readings of the clock in one line.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from conformance.checks.finding import Finding, Result
from conformance.internevo.flops import logged_flops_per_token
from conformance.internevo.log import Event, LineCounts, LogHead
from conformance.internevo.log.records import SKIPPED_BATCH
from conformance.metrics.facts import Facts, head_model, updates_at
from conformance.metrics.schedule import expected_lr, fit_residual
from conformance.metrics.statistics import robust_sigma
from conformance.plan import Plan
from conformance.spec import Workload

Bools = npt.NDArray[np.bool_]
Series = npt.NDArray[np.float64]

HALF_CENT = 0.005 + 1e-6  # InternEvo rounds its speeds to two decimals
HALF_DIGIT = 5e-5 + 1e-9  # and its metrics to four
# InternEvo reads the clock several times for one line, some ten microseconds apart; a busy host needs longer.
CLOCK_LAG = 1e-3  # s
CLOCK_SHARE = 1e-4
# Between two steps InternEvo logs, checks for overflow and looks after its allocator: 3 to 6 ms on an H200's host.
GAP_SECONDS = 0.03
GAP_SHARE = 0.02
TIMESTAMP = 2e-3  # s; timestamps are cut to 1 ms at both ends
LR_TOLERANCE = 1e-9
INITIAL_LOSS = 1.5  # nats; random weights gave 10.51 and 10.87 where log(32000) is 10.37
CEILING_SLACK = 1.05  # the attention of packed samples needs less than that of whole sequences
_RAW = "Give the log as the run wrote it. If it is, the log is evidence against this check: report it."


@dataclass(frozen=True)
class Subject:
    """A run under examination.

    Args:
        steps: Its steps, each once, with column ``segment``: which process wrote them.
        head: Its head, of the last segment.
        facts: What it was.
        plan: What it was planned to be.
        workload: The workload it claims to be.
        counts: Where the lines of its files went.
        events: What its logs tell besides.
        overlaps: Steps that two segments both made, as pairs of frames of equal length: the earlier, the later.
        continued: Whether the first step continues a checkpoint whose own log is not here.
        peak_tflops: Declared peak of one device.
        ceiling_tflops: GEMM ceiling of one device as preflight measured it.
    """

    steps: pd.DataFrame
    head: LogHead
    facts: Facts
    plan: Plan | None = None
    workload: Workload | None = None
    counts: tuple[LineCounts, ...] = ()
    events: tuple[Event, ...] = ()
    overlaps: tuple[tuple[pd.DataFrame, pd.DataFrame], ...] = ()
    continued: bool = False
    peak_tflops: float | None = None
    ceiling_tflops: float | None = None

    def has(self, *columns: str) -> bool:
        """Whether the log has all these columns."""
        return all(column in self.steps for column in columns)

    def column(self, name: str) -> Series:
        """One column as an array, shape (n,)."""
        return np.asarray(self.steps[name].to_numpy(), dtype=np.float64)

    def step_seconds(self) -> Series | None:
        """Time of each step by its TGS, shape (n,); None where tokens or cards are not known."""
        tokens = self.facts.tokens_per_card
        return None if tokens is None else tokens / self.column("tgs")


def check_consistency(subject: Subject) -> list[Finding]:
    """Test every relation.

    Args:
        subject: The run.

    Returns:
        One finding for each relation, SKIP where the log does not carry what it needs.
    """
    with np.errstate(all="ignore"):
        return [relation(subject) for relation in RELATIONS]


def _judge(check: str, subject: Subject, bad: Bools, relation: str, why: str) -> Finding:
    """PASS where no step is bad; else FAIL, naming the first."""
    if not bad.any():
        return Finding(check, Result.PASS, f"{relation}, at all {len(bad)} steps.", 0.0, "steps", 0.0, why)
    first = subject.steps.iloc[int(np.argmax(bad))]
    place = f"first at step {int(first['step'])}, line {int(first['line'])}"
    message = f"Not so at {int(bad.sum())} of {len(bad)} steps, {place}: {relation}."
    return Finding(check, Result.FAIL, message, float(bad.sum()), "steps", 0.0, why, next_step=_RAW)


def _skip(check: str, why: str) -> Finding:
    return Finding(check, Result.SKIP, why)


def _apart(a: Series, b: Series | float, tolerance: Series | float) -> Bools:
    """Where two series differ by more than a tolerance; two undefined values do not differ."""
    a, b = np.broadcast_arrays(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))
    apart: Bools = ~(np.abs(a - b) <= tolerance) & ~(np.isnan(a) & np.isnan(b)) & ~(a == b)
    return apart


def readable(subject: Subject) -> Finding:
    """Every line that carries metrics can be read; only the very last may be cut off."""
    refused = sum(counts.refused for counts in subject.counts) - sum(counts.cut for counts in subject.counts)
    if refused <= 0:
        return Finding("log-readable", Result.PASS, "Every line of metrics can be read.", 0.0, "lines", 0.0)
    examples = [example for counts in subject.counts for example in counts.examples]
    message = f"{refused} lines of metrics cannot be read, such as {examples[0] if examples else 'none shown'}"
    return Finding("log-readable", Result.FAIL, message, float(refused), "lines", 0.0, next_step=_RAW)


def steps_complete(subject: Subject) -> Finding:
    """Steps increase by one; a step is missing only where its update or its batch was skipped."""
    check, numbers = "log-steps", subject.column("step")
    if not len(numbers):
        return _skip(check, "The log has no steps.")
    if len(numbers) == 1 and numbers[0] > 0 and not subject.continued and subject.head == LogHead():
        return _skip(check, "A single line shows no order of steps.")
    before = np.concatenate([[numbers[0] - 1 if subject.continued else -1], numbers[:-1]])
    missing = numbers - before - 1
    skipped = subject.column("inf_nan_skip_batches") if subject.has("inf_nan_skip_batches") else np.zeros_like(numbers)
    first_skipped = skipped[0] if subject.continued else 0.0
    excused = np.diff(skipped, prepend=first_skipped)
    for event in subject.events:
        if event.kind == SKIPPED_BATCH and event.value is not None:
            where = int(np.searchsorted(numbers, event.value))
            if where < len(excused):
                excused[where] += 1
    relation = "each step follows the one before, and inf_nan_skip_batches counts those whose update was skipped"
    return _judge(check, subject, missing != excused, relation, "InternEvo logs every step but those")


def clock(subject: Subject) -> Finding:
    """Time does not run backwards."""
    check, times = "log-clock", subject.steps["time"]
    if len(times) < 2 or times.isna().all():
        return _skip(check, "Fewer than two lines have a time.")
    back = (times.diff().dt.total_seconds() < 0).to_numpy() | times.isna().to_numpy()
    return _judge(check, subject, back, "no line is older than the one before", "one host's clock writes all lines")


def head_matches(subject: Subject) -> Finding:
    """The head says what was planned."""
    check, head, plan = "log-head", subject.head, subject.plan
    wanted: dict[str, object] = {}
    if plan is not None:
        names = {"data_parallel": "data_parallel", "tensor": "tensor", "pipeline": "pipeline", "seed": "seed"}
        wanted = {name: getattr(plan, attribute) for name, attribute in names.items()}
        wanted |= {"micro_bsz": plan.micro_bsz, "micro_num": plan.micro_num, "checkpoint": float(plan.checkpoint)}
    model = plan.model if plan is not None else subject.workload.model if subject.workload is not None else None
    optimizer = (plan.workload if plan else subject.workload).optimizer if model else None  # type: ignore[union-attr]
    if model is None or optimizer is None:
        return _skip(check, "Neither plan nor workload was named, so the head has nothing to match.")
    if head == LogHead():
        return Finding(check, Result.ERROR, "The log has no head: what ran cannot be told.", next_step=_RAW)
    wanted |= {name: getattr(model, name) for name in model.__dataclass_fields__}
    wanted |= {"lr": optimizer.lr, "adam_beta1": optimizer.beta1, "adam_beta2": optimizer.beta2}
    wanted |= {"adam_eps": optimizer.eps, "weight_decay": optimizer.weight_decay}
    wanted |= {"clip_grad_norm": optimizer.clip_grad_norm, "initial_scale": float(optimizer.initial_loss_scale)}
    told: dict[str, object] = {**head.settings, **head.grad_scaler, **head.adam, **head.model}
    told |= {name: getattr(head, name) for name in ("data_parallel", "tensor", "pipeline", "seed")}
    told["dtype"] = str(told.get("dtype", "")).removeprefix("torch.")
    wrong = [f"{name} is {told.get(name)}, expected {value}" for name, value in wanted.items() if told.get(name) != value]
    if not wrong:
        return Finding(check, Result.PASS, f"The log's head says what was expected, in all {len(wanted)} settings.")
    message = f"The log's head differs in {len(wrong)} settings: {'; '.join(wrong[:6])}."
    return Finding(check, Result.FAIL, message, float(len(wrong)), "settings", 0.0, next_step="Run what was planned.")


def elements(subject: Subject) -> Finding:
    """The optimizer's element counts sum to the parameters of the logging rank's share of the model."""
    check, head, model = "log-elements", subject.head, head_model(subject.head) or subject.facts.model
    if head.elements is None or model is None:
        return _skip(check, "The log's head has no element counts, or no shape to hold them against.")
    tensor, pipeline = head.tensor or 1, head.pipeline or 1
    layers = head.stage_layers[-1] if head.stage_layers else model.num_layers if pipeline == 1 else None
    if layers is None or sum(head.stage_layers or (model.num_layers,)) != model.num_layers:
        message = f"The layers of the stages, {head.stage_layers}, do not sum to {model.num_layers}."
        return Finding(check, Result.FAIL, message, next_step=_RAW)
    # Norms are on every tensor-parallel rank, the rest is cut; the last stage holds the head, the first the embedding.
    norms = 2 * model.hidden_size * layers
    cut = (model.parameters_per_layer - 2 * model.hidden_size) * layers
    cut += model.vocab_size * model.hidden_size * (2 if pipeline == 1 else 1)
    expected = norms + model.hidden_size + cut // tensor
    passed = head.elements == expected
    message = f"The element counts sum to {head.elements}; this rank's share of the model has {expected} parameters."
    common = {"value": float(head.elements), "unit": "parameters", "limit": float(expected)}
    return Finding(check, Result.PASS if passed else Result.FAIL, message, **common, next_step="" if passed else _RAW)


def flops(subject: Subject) -> Finding:
    """tflops over tgs is the FLOPs per token of the shape, with f = 3 or 4."""
    check, model, plan = "log-flops", subject.facts.model, subject.plan
    if model is None or not subject.has("tflops"):
        return _skip(check, "The shape is not known, or the log has no tflops.")
    factor = (4 if plan.checkpoint else 3) if plan is not None else subject.facts.checkpoint_factor or 3
    per_token = logged_flops_per_token(model, factor == 4)
    tgs = subject.column("tgs")
    seconds = subject.step_seconds()
    lag = CLOCK_LAG / seconds if seconds is not None else CLOCK_LAG
    # tflops is timed first, so it may only be the larger by what the clock went on.
    tolerance = tgs * (CLOCK_SHARE + lag) + HALF_CENT
    bad = _apart(subject.column("tflops") * 1e12 / per_token, tgs, tolerance)
    relation = f"tflops / tgs is {per_token:.6e} FLOPs per token, that of {model.num_layers} layers, "
    relation += f"hidden size {model.hidden_size}, sequence length {model.seq_len} and f = {factor}"
    return _judge(check, subject, bad, relation, "one time, read twice some microseconds apart")


def tokens(subject: Subject) -> Finding:
    """Consumed tokens are steps times batch times sequence length."""
    check, per_step = "log-tokens", subject.facts.tokens_per_step
    if per_step is None or not subject.has("num_consumed_tokens"):
        return _skip(check, "The tokens of a step are not known.")
    skipped = sorted(e.value for e in subject.events if e.kind == SKIPPED_BATCH and e.value is not None)
    numbers = subject.column("step")
    batches = numbers + 1 - np.searchsorted(skipped, numbers)
    bad = subject.column("num_consumed_tokens") != batches * per_step
    return _judge(check, subject, bad, f"num_consumed_tokens is the steps so far times {per_step}", "counted, not timed")


def step_time(subject: Subject) -> Finding:
    """The step that TGS implies fits between the timestamps, and is nearly all of the time between them."""
    check, seconds = "log-step-time", subject.step_seconds()
    if seconds is None:
        return _skip(check, "Tokens of a step or cards are not known, so TGS implies no step time.")
    bad = np.zeros(len(seconds), dtype=bool)
    relation = []
    if subject.has("fwd_bwd_time"):
        bad |= subject.column("fwd_bwd_time") > seconds * (1 + CLOCK_SHARE) + 2 * HALF_CENT
        relation.append("the step holds fwd_bwd_time")
    gaps = _gaps(subject)
    known = np.isfinite(gaps)
    # The last line before a gap was written up to a ms late, the one after it up to a ms early.
    bad |= known & (seconds * (1 - CLOCK_SHARE) - HALF_CENT * seconds / subject.column("tgs") > gaps + TIMESTAMP)
    if known.sum() >= 3:
        relation.append(f"it fits between two lines and leaves at most {GAP_SHARE:.0%} and {GAP_SECONDS * 1000:.0f} ms")
        slack = np.median(gaps[known] - seconds[known] * (1 + GAP_SHARE)) - GAP_SECONDS
        if slack > 0:
            ratio = float(np.median(gaps[known] / seconds[known]))
            message = f"The time between two lines is {ratio:.3f} times the step that TGS implies, in the median: TGS is "
            message += "too high for the clock of the log."
            return Finding(check, Result.FAIL, message, ratio, "", 1 + GAP_SHARE, "the log's own clock", next_step=_RAW)
    if not relation:
        return _skip(check, "The log has neither fwd_bwd_time nor two times in a row.")
    return _judge(check, subject, bad, "tokens / cards / tgs is the step's time: " + ", and ".join(relation), "one clock")


def _gaps(subject: Subject) -> Series:
    """Seconds since the line before, shape (n,); nan where that is not the step before, or another process's."""
    gaps = subject.steps["time"].diff().dt.total_seconds().to_numpy(copy=True)
    follows = (np.diff(subject.column("step"), prepend=np.nan) == 1) & (np.diff(subject.column("segment"), prepend=-1) == 0)
    gaps[~follows] = np.nan
    return np.asarray(gaps)


def speeds(subject: Subject) -> Finding:
    """Every running statistic of speed follows from the steps since the process started."""
    check, names = "log-speeds", ["tgs/last_tgs_1", "tgs/tgs_all", "tgs/tgs_avg", "tgs/tgs_SMA"]
    names += ["tgs/last_tgs_10", "tgs/last_tgs_50"]
    if not subject.has(*names):
        return _skip(check, "The log has no running statistics of speed.")
    one, tgs = subject.column("tgs/last_tgs_1"), subject.column("tgs")
    seconds = subject.step_seconds()
    lag = CLOCK_LAG / seconds if seconds is not None else np.full(len(tgs), CLOCK_LAG)
    bad = _apart(one, tgs, tgs * (CLOCK_SHARE + lag) + 2 * HALF_CENT)
    judged = 1
    for _, rows in subject.steps.reset_index(drop=True).groupby("segment"):
        at = rows.index.to_numpy()
        # Without the process's first line the sums are not known.
        if one[at[0]] == rows["tgs/tgs_all"].iloc[0]:
            bad[at] |= _wrong_statistics(rows)
            judged += 1
    relation = "last_tgs_1 is tgs" + ("; tgs_all, tgs_avg, tgs_SMA, last_tgs_10 and last_tgs_50 follow from it" if judged > 1 else "")
    if judged == 1 and len(one) == 1:
        return _judge(check, subject, bad, relation, "rounded to two decimals")
    if judged == 1 and not bad.any():
        return _skip(check, "The first line of the process is not in the log, so its sums cannot be formed again.")
    return _judge(check, subject, bad, relation, "rounded to two decimals")


def _wrong_statistics(rows: pd.DataFrame) -> Bools:
    """Where a process's statistics do not follow from its own last_tgs_1."""
    one = rows["tgs/last_tgs_1"].to_numpy()
    n = np.arange(1, len(one) + 1)
    # A step's time is its tokens over last_tgs_1, and its error that of the rounding.
    time, error = (np.concatenate([[0.0], np.cumsum(1 / one**power)]) for power in (1, 2))

    def wrong(name: str, begin: Series, end: Series) -> Bools:
        """Where a column is not the speed over the steps from ``begin`` to ``end``; 0 stands for none yet."""
        count, spent = end - begin, time[end] - time[begin]
        speed = np.where(count > 0, count / spent, 0.0)
        rounding = HALF_CENT + HALF_CENT * np.where(count > 0, speed**2 * (error[end] - error[begin]) / count, 0.0)
        return _apart(rows[name].to_numpy(), speed, rounding + 1e-9 * speed)

    bad = _apart(rows["tgs/tgs_avg"].to_numpy(), np.cumsum(one) / n, 2 * HALF_CENT + 1e-9 * one.max())
    bad |= wrong("tgs/tgs_all", np.zeros_like(n), n)
    bad |= wrong("tgs/tgs_SMA", np.maximum(n - 50, 0), n)
    for size in (10, 50):
        end = n // size * size
        bad |= wrong(f"tgs/last_tgs_{size}", np.maximum(end - size, 0), end)
    return bad


def learning_rate(subject: Subject) -> Finding:
    """The learning rate is on its schedule."""
    check, facts = "log-lr", subject.facts
    if not subject.has("lr"):
        return _skip(check, "The log has no learning rate.")
    rates, updates = subject.column("lr"), updates_at(subject.steps)
    optimizer = subject.plan.workload.optimizer if subject.plan else subject.workload.optimizer if subject.workload else None
    if optimizer is None or facts.total_steps is None:
        residual = fit_residual(rates, updates)
        if residual is None:
            return _skip(check, "No workload was named, and so few rates show no schedule.")
        relation = "the rates lie on a linear warm-up and one cosine"
        return _judge(check, subject, residual > LR_TOLERANCE * rates.max(), relation, "computed, not measured")
    closed, kept = expected_lr(optimizer, facts.total_steps, updates)
    bad = min((_apart(rates, form, LR_TOLERANCE * optimizer.lr) for form in (closed, kept)), key=np.count_nonzero)
    relation = f"the rate warms up to {optimizer.lr:g} and falls to {optimizer.eta_min:g} at step {facts.total_steps}"
    return _judge(check, subject, bad, relation, "computed, not measured")


def loss(subject: Subject) -> Finding:
    """The loss of one rank agrees with the loss over all ranks."""
    check = "log-loss"
    if not subject.has("loss_from_metric"):
        return _skip(check, "The log has no loss_from_metric.")
    one, all_ranks = subject.column("loss"), subject.column("loss_from_metric")
    relative = (one - all_ranks) / np.abs(all_ranks)
    if subject.facts.data_parallel == 1:
        # The mean of the micro batches against the mean of their tokens.
        relation, tolerance = "loss and loss_from_metric are the same within 3%", 0.03 * np.abs(all_ranks) + 5e-4
    else:
        known = relative[np.isfinite(relative)]
        spread = 10 * robust_sigma(known) if len(known) >= 20 else 0.0
        share = min(max(spread, 0.15), 0.5)
        relation = f"one rank's loss is within {share:.0%} of loss_from_metric"
        tolerance = share * np.abs(all_ranks) + 0.01
        if len(known) >= 20:
            # One rank's data are drawn like all the others', so nothing pulls its loss to one side.
            pull = abs(float(known.mean())) - 5 * float(known.std()) / math.sqrt(len(known)) - 0.01
            if pull > 0:
                message = f"One rank's loss is {known.mean():+.1%} from loss_from_metric on average; expected no difference."
                return Finding(check, Result.FAIL, message, float(known.mean()), "", 0.01, "the same data", next_step=_RAW)
    return _judge(check, subject, _apart(one, all_ranks, tolerance), relation, "the same batch, weighted differently")


def perplexity(subject: Subject) -> Finding:
    """The perplexity is the exponential of the loss over all ranks."""
    check = "log-perplexity"
    if not subject.has("loss_from_metric", "perplexity"):
        return _skip(check, "The log has no loss_from_metric or no perplexity.")
    mean, shown = subject.column("loss_from_metric"), subject.column("perplexity")
    # The one goes through bf16 logits where the other does not, which showed as 0.7 parts in a thousand.
    tolerance = HALF_DIGIT + HALF_DIGIT / shown + 5e-5 + 2e-3 * np.abs(mean)
    return _judge(check, subject, _apart(np.log(shown), mean, tolerance), "log(perplexity) is loss_from_metric",
                  "rounded to four decimals, and bf16")


def data_types(subject: Subject) -> Finding:
    """The figures by type of data sum to those over all, and their tokens are no more than there were."""
    check = "log-types"
    names = [name.removeprefix("tokens/") for name in subject.steps if name.startswith("tokens/")]
    names = [name for name in names if subject.has(f"acc/{name}", f"loss/{name}")]
    if not names or not subject.has("acc", "loss_from_metric"):
        return _skip(check, "The log has no figures by type of data.")
    count, right, cost = (np.array([subject.column(f"{kind}/{name}") for name in names]) for kind in ("tokens", "acc", "loss"))
    total = count.sum(axis=0)
    bad = ((count < 0) | (count != np.floor(count))).any(axis=0)
    # A type without tokens in a batch has accuracy 0 and no loss.
    bad |= ((count == 0) & ((right != 0) | ~np.isnan(cost))).any(axis=0)
    for values, name in ((right, "acc"), (cost, "loss_from_metric")):
        mean = np.where(count > 0, count * values, 0.0).sum(axis=0) / total
        whole = subject.column(name)
        bad |= (total > 0) & _apart(mean, whole, 2 * HALF_DIGIT + 1e-3 * np.abs(whole))
    relation = "accuracy and loss by type of data, weighted by their tokens, are those over all"
    if subject.facts.tokens_per_step is not None:
        bad |= total > subject.facts.tokens_per_step
        relation += ", and their tokens no more than the batch's"
        if subject.has("real_tgs"):
            real = subject.column("tgs") * total / subject.facts.tokens_per_step
            bad |= _apart(subject.column("real_tgs"), real, 5e-3 * real)
    return _judge(check, subject, bad, relation, "rounded to four decimals")


def packing(subject: Subject) -> Finding:
    """The samples fill the micro batches: no fewer, no longer and no more than fit."""
    check, facts = "log-packing", subject.facts
    names = ("micro_num", "num_samples_in_batch", "largest_length", "largest_batch", "smallest_batch")
    if not subject.has(*names):
        return _skip(check, "The log does not tell how its micro batches were filled.")
    micro_num, samples, longest, most, fewest = (subject.column(name) for name in names)
    bad = (fewest < 1) | (most < fewest) | (longest < 1) | (micro_num < 1)
    # One micro batch has the most samples, another the fewest, unless there is but one.
    bad |= samples > (micro_num - 1) * most + np.where(micro_num > 1, fewest, most)
    bad |= samples < (micro_num - 1) * fewest + most
    relation = "samples lie between micro_num times the fewest and the most in one"
    if facts.model is not None:
        bad |= longest > facts.model.seq_len
        relation += f", none is longer than {facts.model.seq_len}"
        if facts.micro_bsz is not None:
            room = facts.micro_bsz * facts.model.seq_len
            bad |= (fewest * longest < room) | (samples * longest < micro_num * room)
            relation += f", and they fill micro batches of {room} tokens"
    if facts.micro_num is not None:
        bad |= micro_num != facts.micro_num
        relation += f"; micro_num is {facts.micro_num}"
    return _judge(check, subject, bad, relation, "counted, not timed")


def loss_scale(subject: Subject) -> Finding:
    """The loss scale begins where it should and changes only by the rules of its scaler."""
    check = "log-loss-scale"
    if not subject.has("loss_scale", "inf_nan_skip_batches"):
        return _skip(check, "The log has no loss scale.")
    scales, skipped = subject.column("loss_scale"), subject.column("inf_nan_skip_batches")
    optimizer = subject.facts.optimizer
    begin = float(optimizer.initial_loss_scale) if optimizer else subject.head.grad_scaler.get("initial_scale")
    interval = subject.head.grad_scaler.get("growth_interval", 1000.0)
    before = np.concatenate([[scales[0]], scales[:-1]])
    grows = np.log2(scales / before)
    skips = np.diff(skipped, prepend=skipped[0])
    # It is halved at most once for each skipped update, and doubled after so many good ones.
    bad = ~np.isfinite(grows) | (grows != np.round(grows)) | (grows < -skips) | (scales <= 0)
    risen = np.flatnonzero(grows > 0)
    good = updates_at(subject.steps)
    for index in risen[:100_000]:
        since = good[risen[np.searchsorted(risen, index) - 1]] if index != risen[0] else 0.0
        bad[index] |= grows[index] > 1 or (not subject.continued and good[index] - since < float(interval) - 1)
    relation = f"it is halved only with a skipped update and doubled only after {interval:g} good ones"
    if begin is not None and not subject.continued and len(scales) and subject.column("step")[0] == 0:
        # The first update may already have been skipped, and the scale halved with it.
        bad[0] |= scales[0] != begin and not (skipped[0] > 0 and scales[0] < begin)
        relation += f"; it begins at {begin}"
    return _judge(check, subject, bad, relation, "InternEvo's dynamic gradient scaler")


def ranges(subject: Subject) -> Finding:
    """What no relation covers is at least possible: accuracy a share, beta2 the configured one, norms not negative."""
    check = "log-ranges"
    bad = np.zeros(len(subject.steps), dtype=bool)
    relation = ["loss and speed are not negative"]
    for name in ("loss", "tgs", "tflops", "real_tgs", "fwd_bwd_time", "lr"):
        if subject.has(name):
            bad |= subject.column(name) < 0
    for name in [name for name in subject.steps if name == "acc" or name.startswith("acc/")]:
        bad |= ~((subject.column(name) >= 0) & (subject.column(name) <= 1))
    for name in [name for name in subject.steps if name.startswith("grad_norm")]:
        bad |= ~(np.isfinite(subject.column(name)) & (subject.column(name) >= 0))
    if subject.has("bwd_time", "fwd_bwd_time"):
        bad |= subject.column("bwd_time") > subject.column("fwd_bwd_time") + 2 * HALF_CENT
        relation.append("the backward pass is part of forward and backward")
    optimizer = subject.facts.optimizer
    beta2 = optimizer.beta2 if optimizer else subject.head.adam.get("adam_beta2")
    if subject.has("adam_beta2"):
        wanted = beta2 if isinstance(beta2, float) else float(np.median(subject.column("adam_beta2")))
        bad |= subject.column("adam_beta2") != wanted
        relation.append(f"adam_beta2 is {wanted}")
    relation += ["accuracies are shares", "gradient norms are finite"]
    return _judge(check, subject, bad, ", ".join(relation), "what the fields mean")


def initial_loss(subject: Subject) -> Finding:
    """A fresh model knows nothing: its first loss is about the logarithm of the vocabulary."""
    check, model = "log-initial-loss", subject.facts.model
    if subject.continued or subject.steps.empty or subject.column("step")[0] != 0 or model is None:
        return _skip(check, "The first step of a fresh model is not in the log, or its vocabulary is not known.")
    first, expected = float(subject.column("loss")[0]), math.log(model.vocab_size)
    passed = abs(first - expected) <= INITIAL_LOSS
    message = f"The first loss is {first:.3f}; a fresh model over {model.vocab_size} tokens begins near {expected:.3f}."
    step = "" if passed else "Begin from initial weights: nothing may be loaded before step 0."
    common = {"value": first, "unit": "nats/token", "limit": expected, "limit_source": f"log(vocab_size) +- {INITIAL_LOSS}"}
    return Finding(check, Result.PASS if passed else Result.FAIL, message, **common, next_step=step)


def overlap(subject: Subject) -> Finding:
    """Steps that were made twice, before and after a resumption, came out the same."""
    check = "log-overlap"
    if subject.continued:
        return Finding(check, Result.ERROR, "The log continues a checkpoint whose own log is not here.",
                       next_step="Give the logs of all segments together.")
    if not subject.overlaps:
        return Finding(check, Result.PASS, "No step was made twice.", 0.0, "steps", 0.0)
    wrong: list[int] = []
    total = 0
    for earlier, later in subject.overlaps:
        total += len(earlier)
        bad = np.zeros(len(earlier), dtype=bool)
        for name, share in (("num_consumed_tokens", 0.0), ("lr", 1e-6), ("loss_from_metric", 0.05), ("loss", 0.05)):
            if name in earlier and name in later:
                values = earlier[name].to_numpy()
                bad |= _apart(later[name].to_numpy(), values, share * np.abs(values))
        wrong += earlier["step"][bad].tolist()
    if not wrong:
        message = f"All {total} steps that were made twice came out the same: tokens, rate, and loss within 5%."
        return Finding(check, Result.PASS, message, 0.0, "steps", 0.0, "the same data and weights")
    message = f"Of {total} steps that were made twice, {len(wrong)} came out differently, first step {min(wrong)}."
    step = "Resume from the run's own checkpoint, with its data position."
    return Finding(check, Result.FAIL, message, float(len(wrong)), "steps", 0.0, "the same data and weights", next_step=step)


RELATIONS: tuple[Callable[[Subject], Finding], ...] = (
    readable,
    steps_complete,
    clock,
    head_matches,
    elements,
    flops,
    tokens,
    step_time,
    speeds,
    learning_rate,
    loss,
    perplexity,
    data_types,
    packing,
    loss_scale,
    ranges,
    initial_loss,
    overlap,
)


def utilisation(needed_tflops: float, peak_tflops: float | None, ceiling_tflops: float | None) -> Finding:
    """The hardware can do what the log says: no more than its declared peak, nor than preflight measured.

    Args:
        needed_tflops: TFLOPS that the model needs, with causal attention; what was done at the least.
        peak_tflops: Declared peak of one device, dense bf16.
        ceiling_tflops: GEMM ceiling of one device as preflight measured it.

    Returns:
        The finding of check log-utilisation.
    """
    check = "log-utilisation"
    limits = [(peak_tflops, 1.0, "the declared peak"), (ceiling_tflops, CEILING_SLACK, "preflight's GEMM ceiling")]
    known = [(limit * slack, name) for limit, slack, name in limits if limit]
    if not known:
        return _skip(check, "Neither a declared peak nor a measured GEMM ceiling is known.")
    limit, name = min(known)
    passed = needed_tflops <= limit
    message = f"The model needed {needed_tflops:.1f} TFLOPS/device, {needed_tflops / limit:.1%} of {name} of {limit:.1f}."
    common = {"value": needed_tflops, "unit": "TFLOPS/device", "limit": limit, "limit_source": name}
    return Finding(check, Result.PASS if passed else Result.FAIL, message, **common, next_step="" if passed else _RAW)
