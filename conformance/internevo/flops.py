"""Floating-point operations per trained token, counted the way InternEvo logs them and the way they happen."""

from __future__ import annotations

from dataclasses import dataclass

from conformance.spec.model import Model


@dataclass(frozen=True)
class FlopsPerToken:
    """Floating-point operations that training one token takes.

    Args:
        logged: As InternEvo's log counts them.
        model: With grouped-query attention counted right, the full attention matrix, no recomputation.
        model_causal: The same with the causal half of the attention matrix.
    """

    logged: float
    model: float
    model_causal: float


def flops_per_token(model: Model, checkpoint: bool) -> FlopsPerToken:
    """Count all three ways.

    Args:
        model: Shape of the model.
        checkpoint: Whether activation checkpointing is on.
    """
    return FlopsPerToken(
        logged=logged_flops_per_token(model, checkpoint),
        model=model_flops_per_token(model, causal=False),
        model_causal=model_flops_per_token(model, causal=True),
    )


def logged_flops_per_token(model: Model, checkpoint: bool) -> float:
    """Count as InternEvo's ``get_megatron_flops`` does: f ((8 + 4r) h^2 + 4 s h) L + 6 h V, r = 1.5 mlp_ratio.

    It takes the key and value projections as wide as the query's, and raises f from 3 to 4 for recomputation.

    Args:
        model: Shape of the model.
        checkpoint: Whether activation checkpointing is on.

    Returns:
        Operations per token; times TGS over 1e12 it is the ``tflops`` of the log.
    """
    h, ratio = model.hidden_size, 1.5 * model.mlp_ratio
    factor = 4 if checkpoint else 3
    layer = (8 + 4 * ratio) * h * h + 4 * model.seq_len * h
    return factor * layer * model.num_layers + 6 * h * model.vocab_size


def model_flops_per_token(model: Model, causal: bool) -> float:
    """Count what the model needs: 2 operations a weight and token forward, twice that backward, and attention.

    Args:
        model: Shape of the model.
        causal: Whether only the causal half of the attention matrix counts.

    Returns:
        Operations per token, without recomputation.
    """
    h = model.hidden_size
    weights = 2 * h * h + 2 * h * model.kv_size + 3 * h * model.ffn_size
    attention = 4 * model.seq_len * h / (2 if causal else 1)
    return 3 * (2 * weights + attention) * model.num_layers + 6 * h * model.vocab_size
