"""What a run was, from the best source that says so: the log's head, the plan, the workload, the lines themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conformance.internevo.flops import logged_flops_per_token
from conformance.internevo.log import LogHead, Steps
from conformance.metrics.schedule import fit_total_steps
from conformance.plan import Plan
from conformance.spec.model import Model, Optimizer, Workload

# tflops over tgs equals the FLOPs per token to some ten parts in a million; no two shapes of ours are that close.
SHAPE_TOLERANCE = 5e-4
# The time between two lines is the step's and some ms of logging: so much more, at most, in the median.
GAP_SHARE = 0.05
# fwd_bwd_time is logged to 10 ms.
FWD_BWD_ROUNDING = 0.005
MAX_MODEL_PARALLEL = 64


@dataclass(frozen=True)
class PublishedLayout:
    """What the published configuration would make of lines that cannot have come from it.

    Args:
        micro_bsz: Sequences in a micro batch, as published.
        data_parallel: Data-parallel size at which the lines' batch is reached with it.
        cards: Devices in all.
        contradicted_by: What in the lines contradicts it, in words.
    """

    micro_bsz: int
    data_parallel: int
    cards: int
    contradicted_by: str


@dataclass(frozen=True)
class Facts:
    """What a run was; None where nothing tells.

    Args:
        model: Shape of the model.
        checkpoint_factor: InternEvo's f: 3, or 4 with activation checkpointing; as tflops and tgs of the lines show it.
        cards: Devices in all.
        data_parallel: Data-parallel size.
        tensor: Tensor-parallel size.
        pipeline: Pipeline-parallel size.
        micro_bsz: Sequences in a micro batch.
        micro_num: Micro batches in a step.
        tokens_per_step: Tokens in a step over all devices.
        total_steps: Steps that the run was to have.
        optimizer: Optimisation settings.
        published_layout: Another reading of lines without a head, where they contradict the published configuration.
        sources: Where each of these comes from, in words, by name.
    """

    model: Model | None = None
    checkpoint_factor: int | None = None
    cards: int | None = None
    data_parallel: int | None = None
    tensor: int | None = None
    pipeline: int | None = None
    micro_bsz: int | None = None
    micro_num: int | None = None
    tokens_per_step: int | None = None
    total_steps: int | None = None
    optimizer: Optimizer | None = None
    published_layout: PublishedLayout | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def global_batch_size(self) -> int | None:
        """Sequences in a step over all devices."""
        if self.tokens_per_step is None or self.model is None:
            return None
        return self.tokens_per_step // self.model.seq_len

    @property
    def layout(self) -> dict[str, int | None]:
        """Layers and parallel sizes, by which a floor may tell which runs it is for."""
        return {
            "num_layers": self.model.num_layers if self.model else None,
            "data_parallel": self.data_parallel,
            "tensor_parallel": self.tensor,
            "pipeline_parallel": self.pipeline,
        }

    @property
    def tokens_per_card(self) -> float | None:
        """Tokens of a step on one device; over TGS it is the step's time in seconds."""
        return self.tokens_per_step / self.cards if self.tokens_per_step and self.cards else None


class _Gathered(dict[str, Any]):
    """Facts as they come in: the first source of a fact stays, and is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: dict[str, str] = {}

    def add(self, source: str, **values: Any) -> None:
        for name, value in values.items():
            if value is not None and name not in self:
                self[name] = value
                self.sources[name] = source


def gather(
    steps: Steps, head: LogHead, plan: Plan | None, workload: Workload | None, known: Sequence[Workload]
) -> Facts:
    """Find out what a run was.

    Args:
        steps: Its steps.
        head: Its head.
        plan: What it was planned to be, if there was a plan.
        workload: The workload it claims to be, if it does.
        known: Workloads whose shapes a bare line may reveal.

    Returns:
        The facts, each with its source.
    """
    found = _Gathered()
    found.add("the log's head", **_from_head(head))
    if plan is not None:
        found.add("the plan", **_from_plan(plan))
    elif workload is not None:
        given = {"model": workload.model, "total_steps": workload.total_steps, "optimizer": workload.optimizer}
        found.add(f"workload {workload.name}", **given)
    if len(steps):
        _add_from_lines(found, steps, workload, known)
    return Facts(**found, sources=found.sources)


def _from_head(head: LogHead) -> dict[str, Any]:
    model = head_model(head)
    values: dict[str, Any] = {"model": model, "cards": head.cards, "data_parallel": head.data_parallel}
    values |= {"tensor": head.tensor, "pipeline": head.pipeline}
    for name in ("micro_bsz", "micro_num"):
        setting = head.settings.get(name)
        values[name] = int(setting) if isinstance(setting, float) and setting.is_integer() else None
    sizes = (values["micro_bsz"], values["micro_num"], head.data_parallel, model.seq_len if model else None)
    if None not in sizes:
        values["tokens_per_step"] = int(np.prod([int(size) for size in sizes if size is not None]))
    return values


def head_model(head: LogHead) -> Model | None:
    """The shape that a log's head tells.

    Args:
        head: The head.

    Returns:
        The shape; None where the head does not give all of it.
    """
    told = {**head.model, "seq_len": head.settings.get("seq_len")}
    told.setdefault("num_kv_attention_heads", told.get("num_attention_heads"))
    sizes: dict[str, Any] = {}
    for name in Model.__dataclass_fields__:
        value = told.get(name)
        if name == "dtype":
            sizes[name] = str(value).removeprefix("torch.")
        elif not isinstance(value, float) or not 0 < value < 1e12:
            return None
        elif name in ("mlp_ratio", "layer_norm_epsilon"):
            sizes[name] = value
        elif value.is_integer():
            sizes[name] = int(value)
        else:
            return None
    return Model(**sizes)


def _from_plan(plan: Plan) -> dict[str, Any]:
    names = ("model", "cards", "data_parallel", "tensor", "pipeline", "micro_bsz", "micro_num", "tokens_per_step")
    return {
        **{name: getattr(plan, name) for name in names},
        "total_steps": plan.total_steps,
        "optimizer": plan.workload.optimizer,
    }


def _add_from_lines(found: _Gathered, steps: Steps, workload: Workload | None, known: Sequence[Workload]) -> None:
    found.add("num_consumed_tokens of the lines", tokens_per_step=_tokens_per_step(steps))
    ratio = flops_per_token_logged(steps)
    if ratio is not None:
        shown = _shapes(ratio, [found["model"]] if "model" in found else [w.model for w in known if w.official])
        # A slice is looked for only where no official shape fits: 24 layers with checkpointing, f = 4, take as many
        # FLOPs per token as 32 layers without.
        shown = shown or _shapes(ratio, [] if "model" in found else [w.model for w in known])
        if len(shown) == 1:
            reason = f"tflops / tgs of the lines: {ratio:.6e} FLOPs per token"
            found.add(reason, model=shown[0][0], checkpoint_factor=shown[0][1])
    if "lr" in steps and "step" in steps:
        updates = updates_at(steps)
        found.add("the learning rates of the lines", total_steps=fit_total_steps(steps["lr"], updates))
    numbers = np.unique(steps["micro_num"]).tolist() if "micro_num" in steps else []
    if len(numbers) == 1 and (number := numbers[0]) >= 1 and float(number).is_integer():
        found.add("micro_num of the lines", micro_num=int(number))
    if "cards" not in found:
        _add_cards(found, steps, workload, known)


def flops_per_token_logged(steps: Steps) -> float | None:
    """FLOPs per token that InternEvo counted, as its tflops and tgs tell.

    Args:
        steps: The steps of one run.

    Returns:
        The median over the steps; None where they do not tell.
    """
    if "tflops" not in steps:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = steps["tflops"] * 1e12 / steps["tgs"]
    ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
    return float(np.median(ratios)) if len(ratios) else None


def updates_at(steps: Steps) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Updates that had been made when each line was written.

    Args:
        steps: The steps of one run.

    Returns:
        Batches so far less those whose update was skipped, shape (n,).
    """
    skipped = steps.get("inf_nan_skip_batches", 0.0)
    return np.asarray(steps["step"] + 1.0 - skipped)


def gaps_between(steps: Steps) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Seconds between the lines of a log.

    Args:
        steps: The steps of one run.

    Returns:
        Seconds since the line before, shape (n,); nan for the first line and where a time is missing.
    """
    times = steps["time"]
    gaps = np.full(len(times), np.nan)
    gaps[1:] = np.where(np.isnat(times[1:]) | np.isnat(times[:-1]), np.nan, np.diff(times).astype(np.float64) / 1000)
    return gaps


def _shapes(flops: float, models: Sequence[Model]) -> list[tuple[Model, int]]:
    """The shapes, each with its f, that take so many FLOPs per token."""
    pairs = [(model, f) for model in dict.fromkeys(models) for f in (3, 4)]
    return [p for p in pairs if abs(flops / logged_flops_per_token(p[0], p[1] == 4) - 1) <= SHAPE_TOLERANCE]


def _tokens_per_step(steps: Steps) -> int | None:
    if "num_consumed_tokens" not in steps:
        return None
    tokens, numbers = steps["num_consumed_tokens"], steps["step"]
    if len(steps) > 1 and np.all(np.diff(numbers) > 0):
        each = float(np.median(np.diff(tokens) / np.diff(numbers)))
    else:
        each = float(tokens[0] / (numbers[0] + 1))
    return int(each) if each > 0 and each.is_integer() else None


def _add_cards(found: _Gathered, steps: Steps, workload: Workload | None, known: Sequence[Workload]) -> None:
    """Infer data-parallel size and cards where exactly one layout can have written the lines."""
    if not {"model", "tokens_per_step", "micro_num"} <= set(found):
        return
    low, high = _cards_by_time(steps, found["tokens_per_step"])
    layouts = list(_layouts(steps, found, low, high))
    taken = "of all layouts, only this one can have written the lines: their samples fill the micro batches and the "
    taken += "forward and backward pass fits into the step"
    same_shape = [workload] if workload else [w for w in known if w.model == found["model"] and w.official]
    usual = {w.reference.micro_bsz for w in same_shape}
    if len({cards for _, _, cards in layouts}) > 1 and len(usual) == 1 and usual & {bsz for bsz, _, _ in layouts}:
        layouts = [layout for layout in layouts if layout[0] in usual]
        taken = f"the lines, taking micro_bsz {usual.pop()} of the published configuration"
    elif len(usual) == 1 and layouts and not usual & {bsz for bsz, _, _ in layouts}:
        published = usual.pop()
        sequences = found["tokens_per_step"] / found["model"].seq_len / found["micro_num"]
        taken += f"; the published micro_bsz {published} would mean data-parallel size {sequences / published:g}, but "
        taken += f"their samples do not fill micro batches of {published * found['model'].seq_len} tokens"
        if sequences % published == 0:
            reading = _published(steps, found, published, int(sequences) // published)
            found.add("the published configuration", published_layout=reading)
    for position, name in enumerate(("micro_bsz", "data_parallel", "cards")):
        values = {layout[position] for layout in layouts}
        if len(values) == 1:
            found.add(taken, **{name: values.pop()})


def _published(steps: Steps, found: _Gathered, micro_bsz: int, data_parallel: int) -> PublishedLayout:
    """The published configuration's reading of lines that are too short of samples for it, and why they are."""
    line, pack, packs = {name: steps[name][0] for name in steps}, micro_bsz * found["model"].seq_len, found["micro_num"]
    why = f"a step would take {found['tokens_per_step'] / data_parallel / line['tgs']:.2f} s"
    if "fwd_bwd_time" in steps:
        why += f" beside a fwd_bwd_time of {line['fwd_bwd_time']:.2f} s"
    if "num_samples_in_batch" in steps:
        why += f", and {line['num_samples_in_batch']:g} samples of at most {line['largest_length']:g} tokens, no fewer "
        why += f"than {line['smallest_batch']:g} of them in each, cannot fill {packs} micro batches of {pack} tokens"
    return PublishedLayout(micro_bsz, data_parallel, data_parallel, why)


def _cards_by_time(steps: Steps, tokens: int) -> tuple[float, float]:
    """Least and most cards that the times of the lines allow: card-seconds of a step over its seconds."""
    card_seconds = tokens / steps["tgs"]
    low, high = 1.0, np.inf
    if "fwd_bwd_time" in steps:
        # Forward and backward pass are part of the step.
        seconds = steps["fwd_bwd_time"] - FWD_BWD_ROUNDING
        bounds = card_seconds[seconds > 0] / seconds[seconds > 0]
        high = float(bounds.min()) if len(bounds) else high
    gaps = gaps_between(steps)[1:]
    gaps = np.where(np.diff(steps["step"]) == 1, gaps, np.nan)
    if np.isfinite(gaps).sum() >= 3:
        # The step is all of the gap between two lines, but for a little.
        with np.errstate(divide="ignore"):
            estimate = float(np.nanmedian(card_seconds[1:] / gaps))
        low, high = max(low, estimate * 0.999), min(high, estimate * (1 + GAP_SHARE))
    return low, high


def _layouts(steps: Steps, found: _Gathered, low: float, high: float) -> Iterator[tuple[int, int, int]]:
    """Yield each (micro_bsz, data_parallel, cards) that can have written the lines."""
    seq_len, micro_num = found["model"].seq_len, found["micro_num"]
    if "smallest_batch" not in steps or "largest_length" not in steps or not np.isfinite(high):
        return
    # A micro batch is filled with samples, none longer than the longest; so is the one with the fewest of them.
    room = steps["smallest_batch"] * steps["largest_length"]
    if not np.isfinite(room).all():
        return
    for micro_bsz in range(1, min(int(room.min()) // seq_len, 4096) + 1):
        data_parallel, rest = divmod(found["tokens_per_step"], micro_bsz * micro_num * seq_len)
        if rest or not data_parallel:
            continue
        for model_parallel in range(1, MAX_MODEL_PARALLEL + 1):
            if low <= data_parallel * model_parallel <= high:
                yield micro_bsz, data_parallel, data_parallel * model_parallel
