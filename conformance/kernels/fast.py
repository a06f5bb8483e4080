"""The fastest that PyTorch itself offers, behind the interface of kernels/reference.py, where the device has it."""

from __future__ import annotations

import torch
from torch import Tensor


def has_flash_attention(q: Tensor) -> bool:
    """Whether PyTorch's own FlashAttention kernels take this tensor.

    Args:
        q: Queries.

    Returns:
        True on a CUDA device for the half precisions that the kernels are built for.
    """
    return q.is_cuda and q.dtype in (torch.bfloat16, torch.float16)


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    causal: bool,
    softmax_scale: float | None = None,
) -> Tensor:
    """Attention over packed documents by PyTorch's FlashAttention kernels, forward and backward.

    Args:
        q: Queries of all documents, (tokens, heads, head dim).
        k: Keys, (tokens, KV heads, head dim).
        v: Values, shaped as ``k``.
        cu_seqlens_q: Document boundaries in ``q``, (documents + 1), int32.
        cu_seqlens_k: Document boundaries in ``k``.
        max_seqlen_q: Longest document in ``q``.
        max_seqlen_k: Longest document in ``k``.
        causal: Whether a token sees only the tokens before it.
        softmax_scale: Factor on the scores; 1/sqrt(head dim) when None.

    Returns:
        (tokens, heads, head dim) in ``q``'s dtype.
    """
    output: Tensor = torch.ops.aten._flash_attention_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, int(max_seqlen_q), int(max_seqlen_k), 0.0, causal, False,
        scale=softmax_scale,
    )[0]  # fmt: skip
    return output
