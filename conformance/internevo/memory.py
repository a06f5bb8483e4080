"""An estimate of the device memory that InternEvo allocates, from how its HybridZeroOptimizer works."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from conformance.spec.model import Model, Optimizer

GIB = 2**30
# Bytes of one element.
BF16 = 2
FP32 = 4
# Bytes of one logit at the peak: bf16 output, its fp32 copy, the fp32 gradient, the bf16 gradient.
LOGIT_BYTES = 2 * (BF16 + FP32)


@dataclass(frozen=True)
class Parallel:
    """How a training step is cut.

    Args:
        tensor: Tensor-parallel size.
        pipeline: Pipeline-parallel size.
        zero1: Devices that share one copy of the optimizer state.
        micro_bsz: Sequences in a micro batch.
        micro_num: Micro batches in a step.
        checkpoint: Whether activation checkpointing is on.
    """

    tensor: int
    pipeline: int
    zero1: int
    micro_bsz: int
    micro_num: int
    checkpoint: bool


@dataclass(frozen=True)
class Memory:
    """Memory of the fullest device, in GiB.

    Args:
        parameters: bf16 parameters.
        gradients: bf16 gradients.
        optimizer: fp32 master parameters and Adam's two moments.
        activations: What the backward pass needs of the micro batches in flight.
        logits: Output of the head with its fp32 copy and gradients.
        peak: The most that is allocated at once; less than the sum, or more, see `estimate`.
    """

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    peak: float


def estimate(model: Model, optimizer: Optimizer, parallel: Parallel) -> Memory:
    """Estimate the memory of the fullest pipeline stage.

    With P the parameters of the device and Z the largest share of them that one device of the ZeRO-1 group updates,
    InternEvo (internlm/solver/optimizer/hybrid_zero_optim.py) holds, in bytes:

    * 2 P, parameters, as views of one flat bf16 buffer;
    * 4 Z, fp32 master copy, and 8 Z, Adam's moments, from the first step on;
    * 2 P, bf16 gradients, from the first backward pass of a step to its end; only the last micro batch reduces them,
      so between micro batches they are never sharded.

    Three moments compete for the peak:

    * the end of a forward pass: all of these, the activations in flight and the logits;
    * the end of the last backward pass: all of these and two flat gradient buckets, one being filled while the
      other is reduced;
    * the optimizer step: parameters, master and moments, 4 Z for the flat fp32 gradient, and 4 Z for the square root
      of the second moment, which torch's foreach AdamW takes of the whole flat parameter at once.

    Not counted: what the driver, the collective library and the kernels hold outside torch's allocator, and the
    allocator's own fragmentation.

    Args:
        model: Shape of the model.
        optimizer: Optimisation settings, for the bucket size.
        parallel: How the step is cut.

    Returns:
        The estimate for the stage with the highest peak.
    """
    stages = (_stage(model, optimizer, parallel, stage) for stage in range(parallel.pipeline))
    return max(stages, key=lambda memory: memory.peak)


def _stage(model: Model, optimizer: Optimizer, parallel: Parallel, stage: int) -> Memory:
    """Estimate the memory of a device of one pipeline stage."""
    tensors = _parameter_tensors(model, parallel, stage)
    local, shard = sum(tensors), max(partition(tensors, parallel.zero1))
    last = stage == parallel.pipeline - 1
    # One forward, one backward: a stage holds as many micro batches as there are stages from it to the last.
    in_flight = min(parallel.pipeline - stage, parallel.micro_num)
    tokens = parallel.micro_bsz * model.seq_len

    parameters = BF16 * local
    gradients = BF16 * local
    state = 3 * FP32 * shard
    activations = in_flight * tokens * _activation_bytes_per_token(model, parallel)
    if parallel.checkpoint:
        activations += tokens * layer_bytes_per_token(model, parallel.tensor)
    logits = LOGIT_BYTES * tokens * model.vocab_size // parallel.tensor if last else 0

    held = gradients if parallel.micro_num > 1 else 0
    buckets = 2 * BF16 * min(optimizer.reduce_bucket_size, local)
    peak = parameters + state + max(held + activations + logits, gradients + buckets, 2 * FP32 * shard)
    return Memory(*(size / GIB for size in (parameters, gradients, state, activations, logits, peak)))


def _parameter_tensors(model: Model, parallel: Parallel, stage: int) -> list[int]:
    """Give the element count of each parameter tensor on a device of one pipeline stage."""
    h, tp = model.hidden_size, parallel.tensor
    layer = [h * h // tp] * 2 + [h * model.kv_size // tp] * 2 + [h * model.ffn_size // tp] * 3 + [h] * 2
    tensors = layer * (model.num_layers // parallel.pipeline)
    if stage == 0:
        tensors.append(model.vocab_size * h // tp)
    if stage == parallel.pipeline - 1:
        tensors += [model.vocab_size * h // tp, h]
    return tensors


def partition(tensors: list[int], ranks: int) -> list[int]:
    """Share parameter tensors over a ZeRO-1 group as InternEvo does: largest first, each to the rank with least.

    Tensors stay whole, so the shares differ.

    Args:
        tensors: Element count of each tensor.
        ranks: Size of the group.

    Returns:
        Elements of each rank, in the order of the log's ``Number of elements on ranks``.
    """
    heap = [(0, rank) for rank in range(ranks)]
    for tensor in sorted(tensors, reverse=True):
        elements, rank = heap[0]
        heapq.heapreplace(heap, (elements + tensor, rank))
    return [elements for elements, _ in sorted(heap, key=lambda share: share[1])]


def _activation_bytes_per_token(model: Model, parallel: Parallel) -> int:
    """Bytes per token that the layers of one stage keep for the backward pass."""
    layers = model.num_layers // parallel.pipeline
    if parallel.checkpoint:
        return layers * BF16 * model.hidden_size  # the input of each layer; the rest is recomputed
    return layers * layer_bytes_per_token(model, parallel.tensor)


def layer_bytes_per_token(model: Model, tensor: int) -> int:
    """Count what one layer keeps for its backward pass when it is not checkpointed.

    InternEvo recomputes the two norms (dropout_selective_checkpoint). Whole on every tensor-parallel rank: the layer's
    input, both normed inputs, the attention block's output. Split over the ranks: query, key, value and output of
    attention, its fp32 log-sum-exp, and four tensors of the feed-forward width (gate, its activation, up, product).

    Args:
        model: Shape of the model.
        tensor: Tensor-parallel size.

    Returns:
        Bytes per token.
    """
    h = model.hidden_size
    whole = BF16 * 4 * h
    split = BF16 * (2 * h + 2 * model.kv_size + 4 * model.ffn_size) + FP32 * model.num_attention_heads
    return whole + split // tensor
