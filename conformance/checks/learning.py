"""Relations between the losses, rates and scales of an honest log."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from conformance.checks.finding import Finding, Result
from conformance.checks.subject import HALF_CENT, HALF_DIGIT, RAW, Bools, Series, Subject, apart, judge, skip
from conformance.internevo.config import GROWTH_INTERVAL
from conformance.metrics.facts import updates_at
from conformance.metrics.loss import window_of
from conformance.metrics.schedule import FIT_TOLERANCE, expected_lr, fit_residual
from conformance.metrics.statistics import robust_sigma

LR_TOLERANCE = 1e-9  # of the peak: rates are printed in full
PEAK_TOLERANCE = 0.1
INITIAL_LOSS = 1.5  # nats/token; random weights gave 10.51 and 10.87 where log(32000) is 10.37
FEW_STEPS = 20  # fewer do not show how far one rank's loss strays
STRAY = (0.1, 0.5)  # it is allowed at least and at most so much
# Of less than a nat, samples that are known by heart and others stray by more than their mean.
LOW_LOSS = 1.0  # nats/token
# Alone it has the same tokens, but the mean of micro batches: up to 2.1% apart with dummy data, 0.01% with text.
ONE_RANK_STRAY = (5e-3, 0.03)
PULL = 0.01  # on average, besides five standard errors


def learning_rate(subject: Subject) -> Finding:
    """Check that the learning rate is on its schedule.

    Args:
        subject: The run.

    Returns:
        The finding of check log-lr.
    """
    check, optimizer, total = "log-lr", subject.optimizer, subject.facts.total_steps
    if not subject.has("lr"):
        return skip(check, "The log has no learning rate.")
    rates, updates = subject.column("lr"), updates_at(subject.steps)
    why = "computed, not measured"
    if optimizer is None or total is None:
        positions = _positions(subject, updates, updates[np.argmax(rates)])
        residuals = [residual for at in positions if (residual := fit_residual(rates, at)) is not None]
        if not residuals:
            return skip(check, "No workload was named, and so few rates show no schedule.")
        bads: list[Bools] = [~(residual <= FIT_TOLERANCE * rates.max()) for residual in residuals]
        bad = min(bads, key=np.count_nonzero)
        relation, peak = "the rates lie on a linear warm-up and one cosine", subject.head.adam.get("lr")
        if isinstance(peak, float) and subject.column("step")[0] == 0:
            # The cosine may begin a step before its peak or after it.
            bad |= abs(rates.max() / peak - 1) > PEAK_TOLERANCE
            relation += f" with the peak of {peak:g} in the log's head"
        return judge(check, subject, bad, relation, why)
    positions = _positions(subject, updates, int(total * optimizer.warmup_ratio))
    forms = [form for at in positions for form in expected_lr(optimizer, total, at)]
    form = min(forms, key=lambda form: np.count_nonzero(apart(rates, form, LR_TOLERANCE * optimizer.lr)))
    relation = f"the rate warms up to {optimizer.lr:g} and falls on a cosine to {optimizer.eta_min:g} at step {total}"
    return judge(check, subject, apart(rates, form, LR_TOLERANCE * optimizer.lr), relation, why, (rates, form))


def _positions(subject: Subject, updates: Series, warm_up: float) -> list[Series]:
    """Where on its schedule each line may be, in updates: where the log says, or from a resumption on a step ahead.

    InternEvo sets last_epoch to step_count + 1 when it loads a checkpoint (load_scheduler in model_checkpoint.py): from
    a resumption within the warm-up on, every rate is the one that was due a step later.
    """
    begins = np.flatnonzero(np.diff(subject.column("segment"))) + 1 if subject.has("segment") else np.zeros(0, np.intp)
    within = begins[updates[begins] < warm_up]
    return [updates, updates + (np.arange(len(updates)) >= within[0])] if len(within) else [updates]


def loss(subject: Subject) -> Finding:
    """Check that the loss of one rank agrees with the loss over all ranks.

    Args:
        subject: The run.

    Returns:
        The finding of check log-loss.
    """
    check = "log-loss"
    if not subject.has("loss_from_metric"):
        return skip(check, "The log has no loss_from_metric.")
    one, every = subject.column("loss"), subject.column("loss_from_metric")
    alone = subject.facts.data_parallel == 1
    why = "the same tokens, weighted by micro batch" if alone else "samples drawn alike"
    least, share = ONE_RANK_STRAY if alone else STRAY
    relative = (one - every) / np.abs(every)
    relative, tail = (part[np.isfinite(part)] for part in (relative, relative[-window_of(len(relative)) :]))
    if len(relative) >= FEW_STEPS:
        # How far the loss of one rank's samples strays, the log itself shows.
        share = min(max(10 * robust_sigma(relative), least), share)
        for part, steps in ((relative, "all steps"), (tail, f"the last {len(tail)} steps")):
            if len(part) >= FEW_STEPS and _pulled(part):
                pull = float(part.mean())
                message = f"Over {steps} one rank's loss is {pull:+.1%} from loss_from_metric, expected no difference."
                return Finding(check, Result.FAIL, message, pull, "", PULL, why, next_step=RAW)
    size = np.abs(every) if alone else np.maximum(np.abs(every), LOW_LOSS)
    bad = apart(one, every, share * size + (10 * HALF_DIGIT if alone else 0.01))
    return judge(check, subject, bad, f"loss is within {share:.1%} of loss_from_metric", why, (one, every))


def _pulled(relative: Series) -> bool:
    """Whether one rank's loss is pulled to one side: its samples are drawn like all the others', so nothing does."""
    return abs(float(relative.mean())) > PULL + 5 * float(relative.std()) / math.sqrt(len(relative))


def perplexity(subject: Subject) -> Finding:
    """Check that the perplexity is the exponential of the loss over all ranks.

    Args:
        subject: The run.

    Returns:
        The finding of check log-perplexity.
    """
    check = "log-perplexity"
    if not subject.has("loss_from_metric", "perplexity"):
        return skip(check, "The log has no loss_from_metric or no perplexity.")
    mean, shown = subject.column("loss_from_metric"), subject.column("perplexity")
    # Up to v0.2.3 the perplexity alone goes through sums in bf16: 2 parts in a thousand on real runs, at the most.
    bad = apart(np.log(shown), mean, 2 * HALF_DIGIT + HALF_DIGIT / shown + 4e-3 * np.abs(mean)) | (shown <= 0)
    relation = "the logarithm of the perplexity is loss_from_metric"
    return judge(check, subject, bad, relation, "rounded to four decimals, and bf16", (np.log(shown), mean))


def data_types(subject: Subject) -> Finding:
    """Check that the figures by type of data sum to those over all, and their tokens are no more than there were.

    Args:
        subject: The run.

    Returns:
        The finding of check log-types.
    """
    check = "log-types"
    names = [column.removeprefix("tokens/") for column in subject.columns("tokens/")]
    names = [name for name in names if subject.has(f"acc/{name}", f"loss/{name}")]
    if not names or not subject.has("acc", "loss_from_metric"):
        return skip(check, "The log has no figures by type of data.")
    relation = "accuracy and loss by type of data, weighted by their tokens, are those over all"
    if subject.facts.tokens_per_step is not None:
        relation += ", and their tokens no more than the batch's"
        relation += ", which real_tgs counts" * subject.has("real_tgs")
    return judge(
        check, subject, subject.where(lambda part: _types_apart(part, names)), relation, "rounded to four decimals"
    )


def _types_apart(subject: Subject, names: Sequence[str]) -> Bools:
    """Where the figures of these types of data are not those over all."""
    count, right, cost = (
        np.array([subject.column(f"{kind}/{name}") for name in names]) for kind in ("tokens", "acc", "loss")
    )
    bad = (count < 0) | (count != np.floor(count))
    # A type without tokens in a batch has accuracy 0 and no loss.
    bad |= (count == 0) & ((right != 0) | ~np.isnan(cost))
    wrong: Bools = bad.any(axis=0)
    total = count.sum(axis=0)
    for shares, name in ((right, "acc"), (cost, "loss_from_metric")):
        mean = np.where(count > 0, count * shares, 0.0).sum(axis=0) / total
        wrong |= (total > 0) & apart(mean, subject.column(name), 2 * HALF_DIGIT + 1e-3 * np.abs(mean))
    if subject.facts.tokens_per_step is not None:
        wrong |= total > subject.facts.tokens_per_step
        if subject.has("real_tgs"):
            real = subject.column("tgs") * total / subject.facts.tokens_per_step
            wrong |= apart(subject.column("real_tgs"), real, 5e-3 * real)
    return wrong


def loss_scale(subject: Subject) -> Finding:
    """Check that the loss scale begins where it should and changes only by the rules of InternEvo's gradient scaler.

    Args:
        subject: The run.

    Returns:
        The finding of check log-loss-scale.
    """
    check, scaler = "log-loss-scale", subject.head.grad_scaler
    if not subject.has("loss_scale", "inf_nan_skip_batches"):
        return skip(check, "The log has no loss scale.")
    scales, skipped = subject.column("loss_scale"), subject.column("inf_nan_skip_batches")
    told = scaler.get("growth_interval")
    interval = told if isinstance(told, float) else GROWTH_INTERVAL
    doublings = np.diff(np.log2(scales), prepend=np.log2(scales[0]))
    # It is halved at most once for each skipped update, and doubled only after so many good ones.
    bad: Bools = ~np.isfinite(doublings) | (doublings != np.round(doublings)) | (doublings > 1)
    bad |= doublings < -np.diff(skipped, prepend=skipped[0])
    risen = np.flatnonzero(doublings > 0)
    bad[risen] |= np.diff(updates_at(subject.steps)[risen], prepend=0.0) < interval - 1
    relation = f"loss_scale is halved only with a skipped update and doubled only after {interval:g} good ones"
    begin = float(subject.optimizer.initial_loss_scale) if subject.optimizer else scaler.get("initial_scale")
    if begin is not None and subject.column("step")[0] == 0 and skipped[0] == 0:
        bad[0] |= scales[0] != begin
        relation += f", and begins at {begin}"
    return judge(check, subject, bad, relation, "InternEvo's dynamic gradient scaler")


def ranges(subject: Subject) -> Finding:
    """Check that what no relation covers is at least possible.

    Args:
        subject: The run.

    Returns:
        The finding of check log-ranges.
    """
    check, steps = "log-ranges", subject.steps
    if not len(steps):
        return skip(check, "The log has no steps.")
    bad = np.zeros(len(steps), dtype=bool)
    for name in ("loss", "tgs", "tflops", "real_tgs", "fwd_bwd_time", "lr"):
        bad |= subject.has(name) and subject.column(name) < 0
    for name in ["acc"] * subject.has("acc") + subject.columns("acc/"):
        bad |= ~((subject.column(name) >= 0) & (subject.column(name) <= 1))
    for name in subject.columns("grad_norm"):
        bad |= ~(np.isfinite(subject.column(name)) & (subject.column(name) >= 0))
    relation = "loss and speed are not negative, accuracies are shares, gradient norms are finite"
    if subject.has("bwd_time", "fwd_bwd_time"):
        bad |= subject.column("bwd_time") > subject.column("fwd_bwd_time") + 2 * HALF_CENT
        relation += ", the backward pass is part of forward and backward"
    if subject.has("adam_beta2"):
        wanted = subject.optimizer.beta2 if subject.optimizer else subject.head.adam.get("adam_beta2")
        wanted = wanted if isinstance(wanted, float) else float(np.median(subject.column("adam_beta2")))
        bad |= subject.column("adam_beta2") != wanted
        relation += f", adam_beta2 is {wanted}"
    return judge(check, subject, bad, relation, "what the fields mean")


def initial_loss(subject: Subject) -> Finding:
    """Check that the model was fresh: its first loss is about the logarithm of the vocabulary.

    Args:
        subject: The run.

    Returns:
        The finding of check log-initial-loss.
    """
    check, model = "log-initial-loss", subject.facts.model
    if not len(subject.steps) or subject.column("step")[0] != 0 or model is None:
        return skip(check, "The first step of a fresh model is not in the log, or its vocabulary is not known.")
    first, expected = float(subject.column("loss")[0]), math.log(model.vocab_size)
    passed = abs(first - expected) <= INITIAL_LOSS
    return Finding(
        check,
        Result.PASS if passed else Result.FAIL,
        f"The first loss is {first:.3f}; a fresh model over {model.vocab_size} tokens begins near {expected:.3f}.",
        first,
        "nats/token",
        expected,
        f"log(vocab_size), within {INITIAL_LOSS}",
        next_step="" if passed else "Begin from initial weights: nothing may be loaded before step 0.",
    )
