"""Plain PyTorch references, fp32 inside, of every kernel that LLaMA2 pretraining through InternEvo calls.

They serve twice: as the numerical truth that a platform's own kernels are held against, and as what runs where a
platform has none. Inputs may be any floating dtype; arithmetic is fp32 (fp64 stays fp64) and results return in the
input's dtype.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, softmax_scale: float | None = None) -> Tensor:
    """Attention of one document, with grouped query heads.

    Args:
        q: Queries, (query length, heads, head dim).
        k: Keys, (key length, KV heads, head dim); heads is a multiple of KV heads.
        v: Values, shaped as ``k``.
        causal: Whether query i sees only keys up to i, aligned at the last key as FlashAttention 2.1 does.
        softmax_scale: Factor on the scores; 1/sqrt(head dim) when None.

    Returns:
        (query length, heads, head dim) in ``q``'s dtype.
    """
    length_q, heads, dim = q.shape
    length_k, kv_heads, _ = k.shape
    scale = 1.0 / math.sqrt(dim) if softmax_scale is None else softmax_scale
    # Heads in (KV head, member) order: query head h reads KV head h // (heads / kv_heads).
    grouped = _wide(q).reshape(length_q, kv_heads, heads // kv_heads, dim)
    scores = torch.einsum("qkgd,skd->kgqs", grouped, _wide(k)) * scale
    if causal:
        visible = torch.ones(length_q, length_k, dtype=torch.bool, device=q.device).tril(length_k - length_q)
        scores = scores.masked_fill(~visible, float("-inf"))
    context = torch.einsum("kgqs,skd->qkgd", scores.softmax(dim=-1), _wide(v))
    return context.reshape(length_q, heads, dim).to(q.dtype)


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    causal: bool,
    softmax_scale: float | None = None,
) -> Tensor:
    """Attention over packed documents that do not see each other.

    Args:
        q: Queries of all documents, (tokens, heads, head dim).
        k: Keys, (tokens, KV heads, head dim).
        v: Values, shaped as ``k``.
        cu_seqlens_q: Document boundaries in ``q``, (documents + 1), starting at 0.
        cu_seqlens_k: Document boundaries in ``k``.
        causal: As in :func:`attention`.
        softmax_scale: As in :func:`attention`.

    Returns:
        (tokens, heads, head dim) in ``q``'s dtype.
    """
    bounds_q, bounds_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    documents = [
        attention(q[q0:q1], k[k0:k1], v[k0:k1], causal=causal, softmax_scale=softmax_scale)
        for q0, q1, k0, k1 in zip(bounds_q, bounds_q[1:], bounds_k, bounds_k[1:], strict=False)
        if q1 > q0
    ]
    return torch.cat(documents) if documents else torch.zeros_like(q)


def rotate(x1: Tensor, x2: Tensor, cos: Tensor, sin: Tensor, *, conjugate: bool = False) -> tuple[Tensor, Tensor]:
    """Rotary embedding of the two halves of a head (RoFormer, arXiv:2104.09864).

    Args:
        x1: First half of each head, (..., head dim / 2).
        x2: Second half, shaped as ``x1``.
        cos: Cosines of the angles, broadcastable to ``x1``.
        sin: Sines of the angles, broadcastable to ``x1``.
        conjugate: Rotate backwards, which is also the gradient of the forward rotation.

    Returns:
        The two rotated halves in ``x1``'s dtype.
    """
    a, b, c, s = _wide(x1), _wide(x2), _wide(cos), _wide(sin)
    if conjugate:
        s = -s
    return (a * c - b * s).to(x1.dtype), (a * s + b * c).to(x2.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalisation over the last dimension (arXiv:1910.07467).

    Args:
        x: Input, (..., hidden size).
        weight: Gain, (hidden size).
        eps: Added to the mean square.

    Returns:
        Normalised and scaled input in ``x``'s dtype.
    """
    wide = _wide(x)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * _wide(weight)).to(x.dtype)


def linear_wgrad(x: Tensor, grad_output: Tensor, with_bias: bool) -> tuple[Tensor, Tensor | None]:
    """Gradient of a linear layer's weight and bias.

    Args:
        x: Layer input, (tokens, in features).
        grad_output: Gradient of the output, (tokens, out features).
        with_bias: Whether the bias gradient is wanted.

    Returns:
        Weight gradient, (out features, in features), and bias gradient, (out features) or None.
    """
    grad_weight = (_wide(grad_output).t() @ _wide(x)).to(x.dtype)
    return grad_weight, _wide(grad_output).sum(0).to(x.dtype) if with_bias else None


def scatter_sum(values: Tensor, index: Tensor, size: int | None = None) -> Tensor:
    """Sum the values that share an index.

    Args:
        values: (n).
        index: Bin of each value, (n), int64.
        size: Number of bins; one more than the largest index when None.

    Returns:
        (size) in ``values``'s dtype.
    """
    if size is None:
        size = int(index.max()) + 1 if index.numel() else 0
    return values.new_zeros(size).index_add_(0, index, values)


class _VocabParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, logits: Tensor, labels: Tensor, ignore_index: int, group: dist.ProcessGroup | None
    ) -> Tensor:
        wide = _wide(logits)
        parallel = group is not None and dist.get_world_size(group) > 1
        offset = dist.get_rank(group) * logits.shape[-1] if parallel else 0
        peak = wide.max(dim=-1).values
        if parallel:
            dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
        shifted = wide - peak[:, None]
        local = labels - offset
        mine = (local >= 0) & (local < logits.shape[-1]) & (labels != ignore_index)
        column = torch.where(mine, local, torch.zeros_like(local))
        target = torch.where(mine, shifted.gather(1, column[:, None])[:, 0], torch.zeros_like(peak))
        total = shifted.exp().sum(-1)
        if parallel:
            dist.all_reduce(target, group=group)
            dist.all_reduce(total, group=group)
        counted = labels != ignore_index
        ctx.save_for_backward(shifted, total, column, mine, counted)
        ctx.dtype = logits.dtype
        return torch.where(counted, total.log() - target, torch.zeros_like(total))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[no-untyped-def]
        shifted, total, column, mine, counted = ctx.saved_tensors
        probability = shifted.exp() / total[:, None]
        probability.scatter_add_(1, column[:, None], -mine.to(probability.dtype)[:, None])
        weight = torch.where(counted, grad, torch.zeros_like(grad))
        return (probability * weight[:, None]).to(ctx.dtype), None, None, None


def cross_entropy(
    logits: Tensor, labels: Tensor, *, ignore_index: int = -100, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Cross-entropy of each token, over a vocabulary that a tensor-parallel group may share.

    Args:
        logits: This rank's slice, (tokens, vocabulary / group size).
        labels: Token ids over the whole vocabulary, (tokens), int64.
        ignore_index: Label that counts as loss 0 and gradient 0.
        group: Tensor-parallel group that holds the other slices; None when the vocabulary is whole.

    Returns:
        Loss of each token, (tokens), fp32 (fp64 for fp64 logits).
    """
    loss: Tensor = _VocabParallelCrossEntropy.apply(logits, labels, ignore_index, group)
    return loss
