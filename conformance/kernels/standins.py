"""Modules in the shape that InternEvo imports (flash_attn and its companions), computed by reference.py or fast.py.

Only what LLaMA2 pretraining calls is computed; what InternEvo merely imports is a placeholder that refuses to be used,
so that a kernel which ran is a kernel which exists.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from conformance.kernels import fast, reference

Group: TypeAlias = "dist.ProcessGroup | None"

# InternEvo's subclass wraps backward in custom_bwd, which reads what custom_fwd leaves; torch 2.4 moved the pair.
_custom_fwd: Any = (
    partial(torch.amp.custom_fwd, device_type="cuda") if hasattr(torch.amp, "custom_fwd") else torch.cuda.amp.custom_fwd
)


def placeholder(name: str) -> type:
    """A class that can be imported and tested with isinstance, and raises when it is used.

    Args:
        name: Dotted name that InternEvo imports.

    Returns:
        The class; constructing or applying it raises NotImplementedError.
    """

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{name} is not part of LLaMA2 pretraining and has no stand-in.")

    return type(name.rsplit(".", 1)[-1], (), {"__init__": refuse, "apply": staticmethod(refuse)})


# --- collectives (flash_attn.utils.distributed) ---


def all_gather_raw(input_: Tensor, process_group: Group, async_op: bool = False) -> tuple[Tensor, Any]:
    """Gather along the first dimension.

    Args:
        input_: This rank's part, (n, ...).
        process_group: Group to gather over.
        async_op: Whether to return before completion.

    Returns:
        (n * group size, ...) and the handle to wait for.
    """
    world = dist.get_world_size(process_group)
    output = input_.new_empty(input_.shape[0] * world, *input_.shape[1:])
    return output, dist.all_gather_into_tensor(output, input_.contiguous(), group=process_group, async_op=async_op)


def reduce_scatter_raw(input_: Tensor, process_group: Group, async_op: bool = False) -> tuple[Tensor, Any]:
    """Sum over the group and keep this rank's part of the first dimension.

    Args:
        input_: (n * group size, ...).
        process_group: Group to reduce over.
        async_op: Whether to return before completion.

    Returns:
        (n, ...) and the handle to wait for.
    """
    world = dist.get_world_size(process_group)
    output = input_.new_empty(input_.shape[0] // world, *input_.shape[1:])
    return output, dist.reduce_scatter_tensor(output, input_.contiguous(), group=process_group, async_op=async_op)


def all_reduce_raw(input_: Tensor, process_group: Group, async_op: bool = False) -> tuple[Tensor, Any]:
    """Sum over the group, in place where the input is contiguous.

    Args:
        input_: Any shape.
        process_group: Group to reduce over.
        async_op: Whether to return before completion.

    Returns:
        The sum and the handle to wait for.
    """
    input_ = input_.contiguous()
    return input_, dist.all_reduce(input_, group=process_group, async_op=async_op)


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input_: Tensor, group: Group) -> Tensor:  # type: ignore[no-untyped-def]
        return all_reduce_raw(input_.clone(), group)[0]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return grad, None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input_: Tensor, group: Group) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.group = group
        return reduce_scatter_raw(input_, group)[0]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return all_gather_raw(grad, ctx.group)[0], None


# --- linear layers (flash_attn.ops.fused_dense, fused_dense_lib) ---


class FusedDenseFunc(torch.autograd.Function):
    """Linear layer with tensor-parallel communication; InternEvo subclasses it and reads the ctx fields set here."""

    @staticmethod
    @_custom_fwd
    def forward(  # type: ignore[no-untyped-def]
        ctx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        return_residual: bool = False,
        process_group: Group = None,
        sequence_parallel: bool = True,
    ) -> Any:
        """Compute x @ weight.T + bias, gathering x first under sequence parallelism.

        Args:
            ctx: Autograd context.
            x: (..., in features).
            weight: (out features, in features).
            bias: (out features) or None.
            return_residual: Also return ``x``.
            process_group: Tensor-parallel group.
            sequence_parallel: Whether ``x`` is split over the group.

        Returns:
            (..., out features), and ``x`` when asked for.
        """
        ctx.compute_weight_gradient = weight.requires_grad
        ctx.return_residual = return_residual
        ctx.process_group = process_group
        ctx.sequence_parallel = sequence_parallel
        gather = process_group is not None and sequence_parallel
        total_x = all_gather_raw(x, process_group)[0] if gather else x
        ctx.save_for_backward(*((x, weight) if ctx.compute_weight_gradient else (weight,)))
        output = F.linear(total_x, weight, bias)
        return (output, x) if return_residual else output

    @staticmethod
    def backward(ctx, grad_output: Tensor, *residual: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        """Gradients of x, weight and bias.

        Args:
            ctx: Autograd context.
            grad_output: (..., out features).
            residual: Gradient of the returned ``x``, when it was returned.

        Returns:
            Gradients of x, weight and bias, then None for each option.
        """
        *saved_x, weight = ctx.saved_tensors
        group, sequence_parallel = ctx.process_group, ctx.sequence_parallel
        flat = grad_output.reshape(-1, grad_output.shape[-1])
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = (flat @ weight).reshape(*grad_output.shape[:-1], weight.shape[1])
            if residual:
                grad_x = grad_x + residual[0]
            if group is not None:
                grad_x = (reduce_scatter_raw if sequence_parallel else all_reduce_raw)(grad_x, group)[0]
        if ctx.needs_input_grad[1]:
            x = saved_x[0]
            if group is not None and sequence_parallel:
                x = all_gather_raw(x, group)[0]
            grad_weight = flat.t() @ x.reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[2]:
            grad_bias = flat.sum(0)
        return grad_x, grad_weight, grad_bias, None, None, None


def _shard(features: int, group: Group, what: str) -> int:
    world: int = dist.get_world_size(group)
    if features % world:
        raise ValueError(f"{what} ({features}) does not divide over the tensor-parallel group of {world}.")
    return features // world


class ColumnParallelLinear(nn.Linear):
    """Linear layer whose output features are split over the tensor-parallel group; InternEvo supplies forward."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        process_group: Group,
        bias: bool = True,
        sequence_parallel: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_features, _shard(out_features, process_group, "out features"), bias=bias, device=device, dtype=dtype
        )
        self.process_group = process_group
        self.sequence_parallel = sequence_parallel


class RowParallelLinear(nn.Linear):
    """Linear layer whose input features are split over the tensor-parallel group; InternEvo supplies forward."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        process_group: Group,
        bias: bool = True,
        sequence_parallel: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        # The bias is added once, by the first rank, because the partial outputs are summed.
        super().__init__(
            _shard(in_features, process_group, "in features"),
            out_features,
            bias=bias and dist.get_rank(process_group) == 0,
            device=device,
            dtype=dtype,
        )
        self.process_group = process_group
        self.sequence_parallel = sequence_parallel


def linear_bias_wgrad(x: Tensor, grad_output: Tensor, with_bias: bool) -> tuple[Tensor, Tensor | None]:
    """Gradient of a linear layer's weight and bias.

    Args:
        x: Layer input, (tokens, in features).
        grad_output: Gradient of the output, (tokens, out features).
        with_bias: Whether the bias gradient is wanted.

    Returns:
        Weight gradient, (out features, in features), and bias gradient, (out features) or None.
    """
    if x.is_cuda:  # the device's own GEMM accumulates in fp32, at many times the speed of fp32 operands
        return grad_output.t() @ x, grad_output.sum(0) if with_bias else None
    return reference.linear_wgrad(x, grad_output, with_bias)


# --- attention (flash_attn, flash_attn.modules.mha) ---


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """Attention over packed documents.

    Args:
        q: (tokens, heads, head dim).
        kv: Keys and values, (tokens, 2, KV heads, head dim).
        cu_seqlens_q: Document boundaries in ``q``.
        cu_seqlens_k: Document boundaries in ``kv``.
        max_seqlen_q: Longest document in ``q``.
        max_seqlen_k: Longest document in ``kv``.
        dropout_p: Must be 0, as in pretraining.
        softmax_scale: Factor on the scores; 1/sqrt(head dim) when None.
        causal: Whether a token sees only the tokens before it.

    Returns:
        (tokens, heads, head dim).

    Raises:
        NotImplementedError: Dropout was asked for.
    """
    if dropout_p:
        raise NotImplementedError(f"attention dropout {dropout_p} is not part of LLaMA2 pretraining; expected 0.")
    k, v = kv.unbind(1)
    if fast.has_flash_attention(q):
        return fast.varlen_attention(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal=causal, softmax_scale=softmax_scale
        )
    return reference.varlen_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, causal=causal, softmax_scale=softmax_scale)


class CrossAttention(nn.Module):
    """Attention of inference; training constructs it and never calls it, and it refuses when called."""

    def __init__(
        self, causal: bool = False, softmax_scale: float | None = None, attention_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.causal = causal
        self.softmax_scale = softmax_scale

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Refuse.

        Args:
            args: Not looked at.
            kwargs: Not looked at.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"{type(self).__name__} is not part of LLaMA2 pretraining and has no stand-in.")


class FlashSelfAttention(CrossAttention):
    """Attention of equally long sequences; InternEvo's periodic device diagnosis times it."""

    def forward(self, qkv: Tensor) -> Tensor:
        """Attend within each sequence.

        Args:
            qkv: (batch, length, 3, heads, head dim).

        Returns:
            (batch, length, heads, head dim).
        """
        return torch.stack(
            [
                reference.attention(*sequence.unbind(1), causal=self.causal, softmax_scale=self.softmax_scale)
                for sequence in qkv
            ]
        )


# --- rotary embedding (flash_attn.layers.rotary, rotary_emb) ---


class ApplyRotaryEmb(torch.autograd.Function):
    """Rotary embedding of whole heads, halves split (not interleaved)."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        """Rotate.

        Args:
            ctx: Autograd context.
            x: (batch, length, heads, head dim).
            cos: (length, head dim / 2).
            sin: (length, head dim / 2).

        Returns:
            ``x`` rotated, same shape and dtype.
        """
        ctx.save_for_backward(cos, sin)
        return _rotate_heads(x, cos, sin, conjugate=False)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        """Rotate the gradient back.

        Args:
            ctx: Autograd context.
            grad: (batch, length, heads, head dim).

        Returns:
            Gradient of ``x``.
        """
        cos, sin = ctx.saved_tensors
        return _rotate_heads(grad, cos, sin, conjugate=True), None, None


def _rotate_heads(x: Tensor, cos: Tensor, sin: Tensor, *, conjugate: bool) -> Tensor:
    half = cos.shape[-1]
    output = torch.empty_like(x)
    output[..., 2 * half :] = x[..., 2 * half :]
    x1, x2, out1, out2 = (part[..., i : i + half] for part in (x, output) for i in (0, half))
    apply_rotary(x1, x2, cos[:, None, :], sin[:, None, :], out1, out2, conjugate)
    return output


def apply_rotary(x1: Tensor, x2: Tensor, cos: Tensor, sin: Tensor, out1: Tensor, out2: Tensor, conjugate: bool) -> None:
    """Rotate two halves into given outputs, which may be the inputs.

    Args:
        x1: First halves.
        x2: Second halves.
        cos: Cosines, broadcastable to ``x1``.
        sin: Sines, broadcastable to ``x1``.
        out1: Receives the first rotated half.
        out2: Receives the second.
        conjugate: Rotate backwards.
    """
    if x1.is_cuda:
        fast.rotate_into(x1, x2, cos, sin, out1, out2, conjugate)
        return
    first, second = reference.rotate(x1, x2, cos, sin, conjugate=conjugate)
    out1.copy_(first)
    out2.copy_(second)


# --- normalisation (apex.normalization.fused_layer_norm) ---


class MixedFusedRMSNorm(nn.Module):
    """RMSNorm by PyTorch's own fused kernel; InternEvo has a plain one for where there is neither.

    Args:
        normalized_shape: Size of the last dimension.
        eps: Added to the mean square.
    """

    def __init__(self, normalized_shape: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.normalized_shape = (normalized_shape,)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(normalized_shape))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise.

        Args:
            x: (..., normalized shape).

        Returns:
            The same shape, in the gain's dtype.
        """
        return F.rms_norm(x.to(self.weight.dtype), self.normalized_shape, self.weight, self.eps)


# --- loss and metrics (flash_attn.losses.cross_entropy, torch_scatter) ---


class CrossEntropyLoss(nn.Module):
    """Cross-entropy over a vocabulary that the tensor-parallel group may share."""

    def __init__(
        self,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        inplace_backward: bool = False,
        process_group: Group = None,
    ) -> None:
        super().__init__()
        if label_smoothing or reduction not in ("mean", "none"):
            raise NotImplementedError(
                f"expected label_smoothing 0 and reduction mean or none, got {label_smoothing} and {reduction}."
            )
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.process_group = process_group

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of the tokens.

        Args:
            logits: (tokens, vocabulary / group size).
            labels: (tokens), int64.

        Returns:
            Mean over the counted tokens, or (tokens) for reduction none.
        """
        whole = self.process_group is None or dist.get_world_size(self.process_group) == 1
        if logits.is_cuda and whole:
            loss = fast.cross_entropy(logits, labels, self.ignore_index)
        else:
            loss = reference.cross_entropy(logits, labels, ignore_index=self.ignore_index, group=self.process_group)
        return loss.sum() / (labels != self.ignore_index).sum() if self.reduction == "mean" else loss


def scatter(src: Tensor, index: Tensor, dim: int = 0, reduce: str = "sum") -> Tensor:
    """Sum values by index, as InternEvo's per-data-type metrics need.

    Args:
        src: (n).
        index: (n), int64.
        dim: Must be 0.
        reduce: Must be "sum".

    Returns:
        (largest index + 1).

    Raises:
        NotImplementedError: Another dimension or reduction was asked for.
    """
    if dim != 0 or reduce != "sum":
        raise NotImplementedError(f"scatter stand-in sums over dim 0; asked for {reduce} over dim {dim}.")
    return reference.scatter_sum(src, index)


# What InternEvo imports, by module. A placeholder is imported and never called on the LLaMA2 pretraining path.
MODULES: dict[str, dict[str, Any]] = {
    **(
        {"apex.normalization.fused_layer_norm": {"MixedFusedRMSNorm": MixedFusedRMSNorm}}
        if hasattr(F, "rms_norm")  # since torch 2.4
        else {}
    ),
    "flash_attn": {"flash_attn_varlen_kvpacked_func": flash_attn_varlen_kvpacked_func},
    "flash_attn.flash_attn_interface": {
        "flash_attn_unpadded_func": placeholder("flash_attn.flash_attn_interface.flash_attn_unpadded_func"),
        "flash_attn_varlen_kvpacked_func": flash_attn_varlen_kvpacked_func,
        "FlashAttnVarlenKVPackedFunc": placeholder("flash_attn.flash_attn_interface.FlashAttnVarlenKVPackedFunc"),
    },
    "flash_attn.layers.rotary": {
        "ApplyRotaryEmb": ApplyRotaryEmb,
        "ApplyRotaryEmbQKV_": placeholder("flash_attn.layers.rotary.ApplyRotaryEmbQKV_"),
    },
    "flash_attn.losses.cross_entropy": {"CrossEntropyLoss": CrossEntropyLoss},
    "flash_attn.modules.embedding": {
        name: placeholder(f"flash_attn.modules.embedding.{name}")
        for name in ("ParallelGPT2Embeddings", "VocabParallelEmbedding")
    },
    "flash_attn.modules.mha": {
        "CrossAttention": CrossAttention,
        "FlashCrossAttention": CrossAttention,
        "FlashSelfAttention": FlashSelfAttention,
        "SelfAttention": FlashSelfAttention,
        "_update_kv_cache": placeholder("flash_attn.modules.mha._update_kv_cache"),
    },
    "flash_attn.modules.mlp": {"ParallelFusedMLP": placeholder("flash_attn.modules.mlp.ParallelFusedMLP")},
    "flash_attn.ops.fused_dense": {
        "ColumnParallelLinear": ColumnParallelLinear,
        "FusedDenseFunc": FusedDenseFunc,
        "RowParallelLinear": RowParallelLinear,
    },
    "flash_attn.ops.layer_norm": {
        "dropout_add_layer_norm": placeholder("flash_attn.ops.layer_norm.dropout_add_layer_norm")
    },
    "flash_attn.utils.distributed": {
        "all_gather_raw": all_gather_raw,
        "all_reduce": _AllReduce.apply,
        "all_reduce_raw": all_reduce_raw,
        "reduce_scatter": _ReduceScatter.apply,
        "reduce_scatter_raw": reduce_scatter_raw,
    },
    "fused_dense_lib": {"linear_bias_wgrad": linear_bias_wgrad},
    "rotary_emb": {"apply_rotary": apply_rotary},
    "torch_scatter": {"scatter": scatter},
}
