"""What a workload is: frozen values, without I/O."""

from __future__ import annotations

from dataclasses import dataclass

# InternEvo rounds the width of the feed-forward layer up to a multiple of this (FeedForward, multiple_of).
FFN_MULTIPLE = 256


@dataclass(frozen=True)
class Model:
    """The shape of a LLaMA2 model.

    Args:
        seq_len: Tokens in a sequence.
        vocab_size: Entries of the vocabulary.
        hidden_size: Width of the residual stream.
        num_attention_heads: Query heads.
        num_kv_attention_heads: Key and value heads; fewer than the query heads under grouped-query attention.
        num_layers: Transformer layers.
        mlp_ratio: Width of the feed-forward layer over ``hidden_size``.
        layer_norm_epsilon: Epsilon of RMSNorm.
        dtype: The torch dtype that parameters and activations have, without the ``torch.`` prefix.
    """

    seq_len: int
    vocab_size: int
    hidden_size: int
    num_attention_heads: int
    num_kv_attention_heads: int
    num_layers: int
    mlp_ratio: float
    layer_norm_epsilon: float
    dtype: str

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def kv_size(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.head_dim * self.num_kv_attention_heads

    @property
    def ffn_size(self) -> int:
        """Width of the feed-forward layer as InternEvo builds it."""
        return -(-int(self.hidden_size * self.mlp_ratio) // FFN_MULTIPLE) * FFN_MULTIPLE

    @property
    def parameters_per_layer(self) -> int:
        """Parameters of one transformer layer: attention, SwiGLU feed-forward, two norms."""
        h = self.hidden_size
        return 2 * h * h + 2 * h * self.kv_size + 3 * h * self.ffn_size + 2 * h

    @property
    def parameters(self) -> int:
        """Parameters of the whole model; embedding and head are not tied."""
        return self.num_layers * self.parameters_per_layer + 2 * self.vocab_size * self.hidden_size + self.hidden_size


@dataclass(frozen=True)
class Optimizer:
    """AdamW, its learning-rate schedule, and InternEvo's mixed-precision and communication settings.

    Args:
        lr: Peak learning rate.
        eta_min: Learning rate at the end of the cosine schedule.
        warmup_ratio: Share of the steps in linear warm-up.
        beta1: Adam's decay of the first moment.
        beta2: Adam's decay of the second moment.
        eps: Adam's epsilon.
        weight_decay: AdamW's weight decay.
        clip_grad_norm: Largest gradient norm.
        initial_loss_scale: Loss scale at step 0.
        reduce_bucket_size: Elements of one gradient bucket.
        overlap_sync_grad: Whether the gradient reduction overlaps the backward pass.
        overlap_sync_param: Whether the parameter broadcast overlaps the next forward pass.
    """

    lr: float
    eta_min: float
    warmup_ratio: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip_grad_norm: float
    initial_loss_scale: int
    reduce_bucket_size: int
    overlap_sync_grad: bool
    overlap_sync_param: bool


@dataclass(frozen=True)
class Reference:
    """The published run that fixes the global batch size.

    Args:
        cards: Devices of the published run.
        micro_bsz: Sequences in a micro batch.
        micro_num: Micro batches in a step.
        tensor: Tensor-parallel size.
        pipeline: Pipeline-parallel size.
        zero1: ZeRO-1 group size as InternEvo reads it: <= 0 the data-parallel group, 1 none, else the group's size.
    """

    cards: int
    micro_bsz: int
    micro_num: int
    tensor: int
    pipeline: int
    zero1: int

    @property
    def data_parallel(self) -> int:
        """Data-parallel size."""
        return self.cards // (self.tensor * self.pipeline)

    @property
    def global_batch_size(self) -> int:
        """Sequences in a step over all devices: the invariant of the benchmark."""
        return self.micro_bsz * self.micro_num * self.data_parallel


@dataclass(frozen=True)
class Reading:
    """How the suite reads a place where the benchmark text contradicts itself.

    Args:
        id: Short name, unique in its workload.
        says: What the text says.
        also: What it says elsewhere.
        taken: What the suite takes.
        source: Where both stand.
    """

    id: str
    says: str
    also: str
    taken: str
    source: str


@dataclass(frozen=True)
class Workload:
    """One benchmark run as the spec defines it.

    Args:
        name: Name of the workload and of its file.
        title: One line for people.
        kind: ``perf`` or ``accuracy``.
        mark: The pytest mark that selects it: ``7b``, ``70b``, ``tiny`` or ``slice``.
        official: Whether it is one of the benchmark's own; a rehearsal never certifies.
        tag: InternEvo's tag, or the version of its wheel.
        model: Shape of the model.
        optimizer: Optimisation settings.
        reference: The published run.
        total_steps: Optimizer steps.
        data: ``dummy``, or the name of the data set.
        loss_target: The training loss must be below it; None where no loss is demanded.
        checkpoint_every: Steps between checkpoints of the training state; None where none are written.
        interrupt_at: Step after which a rehearsal is interrupted on purpose, to be resumed; None for none.
        data_digest: Digest that the data's fingerprint must have; None where a lab's policy names it.
        full_layers: Layers of the shape that a slice is cut from, the most it may have; None where it is no slice.
        free: What an override may change beyond the freedoms that every workload has.
        readings: Readings of the contradictions that touch this workload.
        sources: (key, source) pairs; see `source_of`.
        digest: sha256 of the TOML file, in hex.
    """

    name: str
    title: str
    kind: str
    mark: str
    official: bool
    tag: str
    model: Model
    optimizer: Optimizer
    reference: Reference
    total_steps: int
    data: str
    loss_target: float | None
    checkpoint_every: int | None
    interrupt_at: int | None
    data_digest: str | None
    full_layers: int | None
    free: tuple[str, ...]
    readings: tuple[Reading, ...]
    sources: tuple[tuple[str, str], ...]
    digest: str

    def source_of(self, key: str) -> str:
        """Tell where a value of this workload comes from.

        Args:
            key: Dotted key, such as ``model.num_layers``.

        Returns:
            The source given for the key or, failing that, for the nearest table above it.

        Raises:
            KeyError: No source is given; the loader admits no such value.
        """
        sources = dict(self.sources)
        while key not in sources:
            parent, dot, _ = key.rpartition(".")
            if not dot:
                raise KeyError(key)
            key = parent
        return sources[key]


@dataclass(frozen=True)
class CheckSpec:
    """What a check is, apart from how it judges.

    Args:
        id: Id that findings carry.
        title: What holds when it passes.
        severity: ``required``, ``when_known`` or ``advisory``, as spec/checks.toml explains.
        owner: Who acts on a result that is not PASS: ``vendor``, ``site`` or ``suite``.
        remedy: What they do.
        applies: The suites that it belongs to: ``perf``, ``accuracy``, ``preflight``.
    """

    id: str
    title: str
    severity: str
    owner: str
    remedy: str
    applies: tuple[str, ...]
