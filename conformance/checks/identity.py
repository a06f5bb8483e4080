"""Is it the run that it claims to be: all of its steps, its settings, its shape, its batch?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

import numpy as np

from conformance.checks.finding import Finding, Result
from conformance.checks.subject import RAW, Bools, Subject, apart, judge, skip
from conformance.internevo.config import GROWTH_INTERVAL
from conformance.internevo.log import LogHead, Steps
from conformance.metrics.facts import head_model, updates_at
from conformance.metrics.statistics import robust_sigma

# Two makings of one step agree but for the order of sums in reductions, which training then amplifies.
OVERLAP_LOSS = 0.05
# Other data put two makings apart by 1.4 times the noise from step to step, the same data by a small part of it.
OVERLAP_NOISE = 0.5
OVERLAP_STEPS = 10  # fewer do not show how large that noise is


def readable(subject: Subject) -> Finding:
    """Check that every line that carries metrics can be read; only the very last may be cut off.

    Args:
        subject: The run.

    Returns:
        The finding of check log-readable.
    """
    refused = sum(part.lines - part.cut for part in subject.refused)
    if refused <= 0:
        return Finding("log-readable", Result.PASS, "Every line of metrics can be read.", 0.0, "lines", 0.0)
    examples = [example for part in subject.refused for example in part.examples]
    message = f"{refused} lines of metrics cannot be read, such as {examples[0] if examples else 'none shown'}"
    return Finding("log-readable", Result.FAIL, message, float(refused), "lines", 0.0, next_step=RAW)


def steps_complete(subject: Subject) -> Finding:
    """Check that steps increase by one, but for those whose update was skipped, which InternEvo does not log.

    Args:
        subject: The run.

    Returns:
        The finding of check log-steps.
    """
    check, numbers = "log-steps", subject.column("step")
    if not len(numbers):
        return skip(check, "The log has no steps.")
    if len(numbers) == 1 and numbers[0] > 0 and subject.head.empty:
        return skip(check, "A single line shows no order of steps.")
    skipped = subject.column("inf_nan_skip_batches") if subject.has("inf_nan_skip_batches") else np.zeros_like(numbers)
    begin = (numbers[0] - 1, skipped[0]) if subject.continued else (-1.0, 0.0)
    expected = np.concatenate([[begin[0]], numbers[:-1]]) + 1 + np.diff(skipped, prepend=begin[1])
    relation = "the step is the one after that of the line before, inf_nan_skip_batches being the steps without a line"
    return judge(check, subject, numbers != expected, relation, "InternEvo logs every other step", (numbers, expected))


def head_matches(subject: Subject) -> Finding:
    """Check that the head says what was planned, and that of each process of a resumed run.

    Args:
        subject: The run.

    Returns:
        The finding of check log-head.
    """
    check, heads, optimizer = "log-head", subject.heads or (subject.head,), subject.optimizer
    if subject.workload is None or optimizer is None:
        return skip(check, "Neither plan nor workload was named, so the head has nothing to match.")
    if any(head.empty for head in heads):
        return Finding(check, Result.ERROR, "The log has no head: what ran cannot be told.", next_step=RAW)
    plan = subject.plan
    wanted: dict[str, object] = asdict(plan.model if plan is not None else subject.workload.model)
    wanted |= {"lr": optimizer.lr, "adam_beta1": optimizer.beta1, "adam_beta2": optimizer.beta2}
    wanted |= {"adam_eps": optimizer.eps, "weight_decay": optimizer.weight_decay}
    wanted |= {"clip_grad_norm": optimizer.clip_grad_norm, "initial_scale": optimizer.initial_loss_scale}
    wanted |= {"growth_interval": GROWTH_INTERVAL}
    if plan is not None:
        names = ("data_parallel", "tensor", "pipeline", "seed", "micro_bsz", "micro_num", "checkpoint")
        wanted |= {name: getattr(plan, name) for name in names}
    faults = [
        f"{name} is {told.get(name)}, expected {value}"
        for told in map(_told, heads)
        for name, value in wanted.items()
        if told.get(name) != value
    ]
    wrong = list(dict.fromkeys(faults))
    count = float(len(wrong))
    if not wrong:
        message = f"The log's head says what was expected, in all {len(wanted)} settings."
        return Finding(check, Result.PASS, message, count, "settings", 0.0)
    message = f"The log's head differs in {len(wrong)} settings: {'; '.join(wrong[:6])}."
    return Finding(
        check, Result.FAIL, message, count, "settings", 0.0, next_step="Run what was planned, and only that."
    )


def _told(head: LogHead) -> Mapping[str, object]:
    """The settings that a head tells, by the names of the plan."""
    return {
        **head.settings,
        **head.grad_scaler,
        **head.adam,
        **head.model,
        **{name: getattr(head, name) for name in ("data_parallel", "tensor", "pipeline", "seed")},
        "dtype": str(head.model.get("dtype", "")).removeprefix("torch."),
    }


def elements(subject: Subject) -> Finding:
    """Check that the optimizer's elements are the parameters of the logging rank's share of the model.

    Args:
        subject: The run.

    Returns:
        The finding of check log-elements.
    """
    check, head, model = "log-elements", subject.head, head_model(subject.head) or subject.facts.model
    if head.elements is None or model is None:
        return skip(check, "The log's head has no element counts, or there is no shape to hold them against.")
    tensor, pipeline = head.tensor or 1, head.pipeline or 1
    last = model.num_layers // pipeline
    last, layers = (head.stage_layers[-1], sum(head.stage_layers)) if head.stage_layers else (last, last * pipeline)
    # Norms are whole on every tensor-parallel rank, the rest is cut. The logging rank is in the last stage, which holds
    # the head and, where it is also the first, the embedding.
    norms = model.hidden_size * (2 * last + 1)
    cut = (model.parameters_per_layer - 2 * model.hidden_size) * last
    cut += model.vocab_size * model.hidden_size * (2 if pipeline == 1 else 1)
    expected = norms + cut // tensor
    passed = head.elements == expected and layers == model.num_layers
    return Finding(
        check,
        Result.PASS if passed else Result.FAIL,
        f"The element counts sum to {head.elements}; this rank's share, {last} of {model.num_layers} layers, has "
        f"{expected} parameters.",
        float(head.elements),
        "parameters",
        float(expected),
        "the shape and the parallel sizes in the log's head",
        next_step="" if passed else RAW,
    )


def tokens(subject: Subject) -> Finding:
    """Check that the consumed tokens are steps times batch times sequence length, of a batch that the workload allows.

    Args:
        subject: The run.

    Returns:
        The finding of check log-tokens.
    """
    check, per_step = "log-tokens", subject.facts.tokens_per_step
    if per_step is None or not subject.has("num_consumed_tokens"):
        return skip(check, "The tokens of a step are not known.")
    counted, expected = subject.column("num_consumed_tokens"), (subject.column("step") + 1) * per_step
    relation = f"num_consumed_tokens is the steps so far times {per_step}"
    finding = judge(check, subject, counted != expected, relation, "counted, not timed", (counted, expected))
    batch = subject.facts.global_batch_size
    # A plan has been held against the benchmark's rules before; a log that only names its workload has not.
    if finding.result is not Result.PASS or batch is None or subject.workload is None or subject.plan is not None:
        return finding
    wanted = subject.workload.reference.global_batch_size
    if batch == wanted:
        return finding
    message = f"The global batch size is {batch}, that of {subject.workload.name} is {wanted}"
    if batch < wanted:
        return replace(finding, message=f"{finding.message} {message}: a reduction, which is to be disclosed.")
    return Finding(
        check,
        Result.FAIL,
        f"{message}; it may shrink, never grow.",
        float(batch),
        "sequences",
        float(wanted),
        subject.workload.source_of("reference"),
        wanted / batch - 1,
        next_step=f"Choose micro_num so that micro_bsz x micro_num x data-parallel size is {wanted}.",
    )


def packing(subject: Subject) -> Finding:
    """Check that the samples fill the micro batches: no fewer, no longer and no more than fit.

    Args:
        subject: The run.

    Returns:
        The finding of check log-packing.
    """
    check, facts = "log-packing", subject.facts
    if not subject.has("micro_num", "num_samples_in_batch", "largest_length", "largest_batch", "smallest_batch"):
        return skip(check, "The log does not tell how its micro batches were filled.")
    relation = "num_samples_in_batch agrees with smallest_batch and largest_batch"
    if facts.micro_num is not None:
        relation += f", micro_num is {facts.micro_num}"
    if facts.model is not None:
        relation += f", no sample is longer than {facts.model.seq_len}"
        if facts.micro_bsz is not None:
            room = facts.micro_bsz * facts.model.seq_len
            relation += f", and samples no longer than largest_length fill micro batches of {room} tokens"
    return judge(check, subject, subject.where(_misfilled), relation, "counted, not timed")


def _misfilled(subject: Subject) -> Bools:
    """Where the samples cannot be what fills the micro batches."""
    names = ("micro_num", "num_samples_in_batch", "largest_length", "largest_batch", "smallest_batch")
    micro_num, samples, longest, most, fewest = (subject.column(name) for name in names)
    facts = subject.facts
    bad: Bools = (fewest < 1) | (most < fewest) | (longest < 1) | (micro_num < 1)
    # One micro batch has the most samples, another the fewest, unless there is but one.
    bad |= samples > (micro_num - 1) * most + np.where(micro_num > 1, fewest, most)
    bad |= samples < (micro_num - 1) * fewest + most
    if facts.micro_num is not None:
        bad |= micro_num != facts.micro_num
    if facts.model is not None:
        bad |= longest > facts.model.seq_len
        if facts.micro_bsz is not None:
            room = facts.micro_bsz * facts.model.seq_len
            bad |= fewest * longest < room  # and so all of a step, whose samples are no fewer than these
    return bad


def overlap(subject: Subject) -> Finding:
    """Check that steps that were made twice, before and after a resumption, came out the same.

    Args:
        subject: The run.

    Returns:
        The finding of check log-overlap.
    """
    check = "log-overlap"
    if subject.continued:
        message = "The log continues a checkpoint whose own log is not here."
        return Finding(check, Result.ERROR, message, next_step="Give the logs of all segments together.")
    wrong = [step for earlier, later in subject.overlaps for step in earlier["step"][_differ(earlier, later)].tolist()]
    total = sum(len(earlier) for earlier, _ in subject.overlaps)
    common = ("steps", 0.0, "the same weights and data")
    if not wrong:
        message = f"The {total} steps that were made twice came out the same." if total else "No step was made twice."
        return Finding(check, Result.PASS, message, 0.0, *common)
    message = (
        f"Of {total} steps that were made twice, {len(wrong)} came out differently, the first of them {min(wrong)}."
    )
    step = "Resume from the run's own checkpoint, with its data position."
    return Finding(check, Result.FAIL, message, float(len(wrong)), *common, next_step=step)


def _differ(earlier: Steps, later: Steps) -> Bools:
    # A rate may be that of the next step of a warm-up, which InternEvo resumes one ahead; log-lr has the schedule.
    shares = {"num_consumed_tokens": 0.0, "lr": 1e-6 + 1 / np.maximum(updates_at(earlier), 1.0)}
    shares |= {"loss_from_metric": OVERLAP_LOSS, "loss": OVERLAP_LOSS}
    bad = np.zeros(len(earlier), dtype=bool)
    for name in shares.keys() & set(earlier) & set(later):
        values = earlier[name]
        bad |= apart(later[name], values, shares[name] * np.abs(values))
    name = "loss_from_metric" if "loss_from_metric" in earlier and "loss_from_metric" in later else "loss"
    if len(earlier) >= OVERLAP_STEPS:
        values, again = earlier[name], later[name]
        noise = robust_sigma(np.diff(values)) / np.sqrt(2)
        difference = np.sqrt(np.square(again - values).mean())
        # Below a ten-thousandth it is rounding, however quiet the loss.
        bad |= difference > max(OVERLAP_NOISE * noise, 1e-4 * np.abs(values).mean())
    return bad
