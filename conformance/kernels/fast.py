"""The fastest that PyTorch itself offers, behind the interface of kernels/reference.py, where the device has it.

What is fastest was measured on an H200 by suites/selftest/benchmarks/bench_kernels.py; reference_logs/README.md has the
figures, and those of the candidates that lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from conformance.kernels import reference

# Never the root logger: logging.warning would give it a handler, which prints each of InternEvo's lines a second time.
logger = logging.getLogger(__name__)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def compiled(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Fuse a function by torch.compile at its first call; where the platform cannot compile, it runs as it stands.

    Args:
        function: Pure but for the tensors that it is given to fill.

    Returns:
        The same function of the same arguments.
    """
    chosen: list[Callable[Parameters, Result]] = []

    @wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if not chosen:
            fused: Callable[Parameters, Result] = torch.compile(function, dynamic=False)
            try:
                result = fused(*args, **kwargs)
            except Exception as error:  # no C compiler, no Triton, an unknown device: each fails in its own way
                logger.warning("%s is not fused: torch.compile failed: %s", function.__name__, str(error)[:200])
                chosen.append(function)
            else:
                chosen.append(fused)
                return result
        return chosen[0](*args, **kwargs)

    return call


@compiled
def rotate_into(x1: Tensor, x2: Tensor, cos: Tensor, sin: Tensor, out1: Tensor, out2: Tensor, conjugate: bool) -> None:
    """Rotary embedding of two halves in one pass over memory.

    Args:
        x1: First halves.
        x2: Second halves.
        cos: Cosines, broadcastable to ``x1``.
        sin: Sines, broadcastable to ``x1``.
        out1: Receives the first rotated half; may be ``x1``.
        out2: Receives the second; may be ``x2``.
        conjugate: Rotate backwards.
    """
    first, second = reference.rotate(x1, x2, cos, sin, conjugate=conjugate)
    out1.copy_(first)
    out2.copy_(second)


@compiled
def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Cross-entropy of each token over a whole vocabulary.

    Args:
        logits: (tokens, vocabulary).
        labels: (tokens), int64.
        ignore_index: Label that counts as loss 0.

    Returns:
        Loss of each token, (tokens), fp32.
    """
    return F.cross_entropy(logits.float(), labels, ignore_index=ignore_index, reduction="none")


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
