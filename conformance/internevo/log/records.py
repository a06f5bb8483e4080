"""What a training log holds, as values: the steps, the head, the events and the count of lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from conformance.internevo.log.steps import Steps

# The columns of RunLog.steps: unit, and what InternEvo means by it. Besides these a log has one column for each data
# type (acc/en, tokens/en, loss/en) and for each parameter group (grad_norm/0_default), named as in the line itself.
COLUMNS: Mapping[str, tuple[str, str]] = {
    "line": ("", "line of the log, counted from 1"),
    "time": ("ms", "when the line was written, by the clock of the logging host, without time zone"),
    "step": ("", "batch count, from 0"),
    "tflops": ("TFLOPS/device", "InternEvo's own figure: counts recomputation, ignores GQA and causality"),
    "loss": ("nats/token", "training loss of the logging rank's data-parallel shard"),
    "tgs": ("tokens/device/s", "tokens of this step over devices and step time"),
    "real_tgs": ("tokens/device/s", "the same without padding; later versions only"),
    "tgs/last_tgs_1": ("tokens/device/s", "the same, timed some microseconds earlier"),
    "tgs/tgs_all": ("tokens/device/s", "all tokens over all step time since the process started"),
    "tgs/tgs_avg": ("tokens/device/s", "mean of last_tgs_1 since the process started"),
    "tgs/tgs_SMA": ("tokens/device/s", "tokens over step time of the last 50 logged steps"),
    "tgs/last_tgs_10": ("tokens/device/s", "tokens over step time of the last full ten logged steps; 0 before"),
    "tgs/last_tgs_50": ("tokens/device/s", "tokens over step time of the last full fifty logged steps; 0 before"),
    "lr": ("", "learning rate that the next step will use"),
    "loss_scale": ("", "scale of the loss in mixed precision"),
    "grad_norm": ("", "norm of the gradient; by parameter group where the log says so"),
    "moe_loss": ("", "auxiliary loss of a mixture of experts"),
    "micro_num": ("", "micro batches of this step on one rank"),
    "num_consumed_tokens": ("tokens", "tokens of all steps so far, over all devices, padding included"),
    "inf_nan_skip_batches": ("steps", "updates skipped so far for an infinite or undefined gradient"),
    "num_samples_in_batch": ("", "samples packed into this step on the logging rank"),
    "largest_length": ("tokens", "longest sample of this step on the logging rank"),
    "largest_batch": ("", "most samples in one of its micro batches"),
    "smallest_batch": ("", "fewest samples in one of its micro batches"),
    "adam_beta2": ("", "Adam's second beta"),
    "fwd_bwd_time": ("s", "forward and backward time of this step"),
    "bwd_time": ("s", "backward time of this step; later versions only"),
    "acc": ("", "share of tokens predicted right, over all data-parallel ranks"),
    "perplexity": ("", "exp of the token loss, over all data-parallel ranks"),
    "loss_from_metric": ("nats/token", "token loss over all data-parallel ranks"),
}

# Kinds of Event.
EXCEPTION = "exception"
KILLED = "killed"
SKIPPED_BATCH = "skipped_batch"
OVERFLOW = "overflow"
LOSS_SCALE = "loss_scale"
CHECKPOINT_SAVED = "checkpoint_saved"
CHECKPOINT_LOADED = "checkpoint_loaded"
ALLOCATOR_FLUSH = "allocator_flush"


@dataclass(frozen=True)
class Event:
    """Something that the log tells besides its steps.

    Args:
        kind: One of the kinds named above.
        message: What the log says, shortened to some hundred characters.
        line: Line of the log, counted from 1.
        time: When, where the line says so.
        type: Type of an exception, or the name of a signal.
        host: Host that it happened on, where the log says so.
        rank: Global rank, where the log says so.
        raised_by_train: Whether InternEvo's train.py caught it and ended the training for it.
        traceback: An exception's traceback, shortened.
        value: The step, loss scale or count that the message names.
    """

    kind: str
    message: str
    line: int
    time: datetime | None = None
    type: str = ""
    host: str | None = None
    rank: int | None = None
    raised_by_train: bool = False
    traceback: tuple[str, ...] = ()
    value: float | None = None


@dataclass(frozen=True)
class LogHead:
    """What InternEvo says of a run before its first step; None where the log does not say.

    Args:
        data_parallel: Data-parallel size.
        pipeline: Pipeline-parallel size.
        tensor: Tensor-parallel size.
        weight: Weight-parallel size; later versions only.
        seed: Seed of the initialisation.
        settings: The ``name: number`` lines: seq_len, micro_num, micro_bsz, packed_length, clip_grad_norm and others.
        model: The ``Model`` dict: hidden_size, num_layers, checkpoint, dtype and others.
        adam: The ``adam`` dict: lr, adam_beta2 and others.
        grad_scaler: Numbers of the ``grad_scaler`` dict: initial_scale, growth_interval and others.
        elements: Sum of the element counts of the optimizer's groups that the logging rank printed.
        stage_layers: Layers of each pipeline stage.
        data: Shards found, packs in them, and documents dropped for being short; None where no data were loaded.
        resumed_from: Checkpoint that the run continued from.
        hosts: Hosts that ranks said they run on.
        code_lines: Line of the source file that wrote a message, by file and function; tells versions apart.
        peak_reserved_gib: Largest device memory that the allocator reserved, as far as logged, in GiB.
        begun: When its ranks had found one another, by the clock of the logging host.
    """

    data_parallel: int | None = None
    pipeline: int | None = None
    tensor: int | None = None
    weight: int | None = None
    seed: int | None = None
    settings: Mapping[str, float | str] = field(default_factory=dict)
    model: Mapping[str, float | str] = field(default_factory=dict)
    adam: Mapping[str, float | str] = field(default_factory=dict)
    grad_scaler: Mapping[str, float | str] = field(default_factory=dict)
    elements: int | None = None
    stage_layers: tuple[int, ...] = ()
    data: tuple[int, int, int] | None = None
    resumed_from: str | None = None
    hosts: tuple[str, ...] = ()
    code_lines: Mapping[str, int] = field(default_factory=dict)
    peak_reserved_gib: float | None = None
    begun: datetime | None = None

    @property
    def empty(self) -> bool:
        """Whether the log has no head: neither parallel sizes nor a shape."""
        return self.data_parallel is None and not self.model

    @property
    def cards(self) -> int | None:
        """Devices in all, where the head names every parallel size."""
        if self.data_parallel is None or self.tensor is None or self.pipeline is None:
            return None
        return self.data_parallel * self.tensor * self.pipeline


@dataclass(frozen=True)
class LineCounts:
    """Where every line of the file went; nothing is dropped in silence.

    Args:
        lines: Lines of the file.
        steps: Lines that became a row of the frame; a wrapped line counts once for each of its pieces.
        known: Lines read as head, event or traceback, or as a line of metrics that another handler printed again.
        refused: Lines, or pieces of lines, that carry metrics but cannot be trusted.
        other: The rest: warnings, progress bars, prints.
        examples: Some of the refused, each with its line number and the reason.
        cut: Whether the file ends in the middle of a line of metrics.
        events_dropped: Events that are counted as known but not kept, where one kind has thousands.
    """

    lines: int
    steps: int
    known: int
    refused: int
    other: int
    examples: tuple[str, ...]
    cut: bool
    events_dropped: int = 0


@dataclass(frozen=True)
class Refused:
    """What of one run carries metrics but cannot be trusted.

    Args:
        lines: Lines, or pieces of lines.
        examples: Some of them, each with its line number and the reason.
        cut: Whether the last of them is a write that the end of the file cut off.
    """

    lines: int = 0
    examples: tuple[str, ...] = ()
    cut: bool = False


@dataclass(frozen=True)
class RunLog:
    """One run, or one segment of a resumed run, found in a log.

    Args:
        steps: One row for each logged step, in the order of the file; see COLUMNS.
        head: What stands before the first step.
        events: What else the log tells, in the order of the file.
        counts: Where the lines of the whole file went.
        name: Name of the file, for findings.
        refused: Which of the refused lines stand where this run does.
    """

    steps: Steps
    head: LogHead
    events: tuple[Event, ...]
    counts: LineCounts
    name: str = ""
    refused: Refused = Refused()

    @property
    def exceptions(self) -> tuple[Event, ...]:
        """The events that end a process: exceptions and signals."""
        return tuple(event for event in self.events if event.kind in (EXCEPTION, KILLED))
