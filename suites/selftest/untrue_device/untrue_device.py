"""A device that computes on the CPU, and trains untruly, or truly with other rounding, as the variable FAULT names."""

import os
import sys

from conformance.devices.cpu import CpuDevice


class UntrueDevice(CpuDevice):
    name = "untrue"

    def activate(self):
        super().activate()
        if FAULT:
            (FAULTS | ROUNDINGS)[FAULT]()


def bf16_accumulation():
    """Matrix products whose partial sums, of 32 terms each, are added in bf16."""
    import torch.nn.functional as functional

    real = functional.linear

    def linear(x, weight, bias=None):
        total = 0
        for begin in range(0, x.shape[-1], 32):
            part = slice(begin, begin + 32)
            total = total + real(x[..., part], weight[:, part])
        return total if bias is None else total + bias

    functional.linear = linear


def attention_scale(factor):
    from conformance.kernels import reference

    real = reference.varlen_attention

    def attention(q, k, v, *lengths, softmax_scale=None, **kwargs):
        right = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
        return real(q, k, v, *lengths, softmax_scale=right * factor, **kwargs)

    reference.varlen_attention = attention


def attention_without_scale():
    """Scores that are not divided by the root of the head dimension, 32."""
    attention_scale(32**0.5)


def attention_scale_of_the_whole_width():
    """Scores divided by the root of the hidden size, 256, in place of that of the head dimension."""
    attention_scale((32 / 256) ** 0.5)


def attention_sees_the_future():
    """Attention whose causal mask is missing."""
    from conformance.kernels import reference

    real = reference.varlen_attention

    def attention(*args, causal=False, **kwargs):
        return real(*args, causal=False, **kwargs)

    reference.varlen_attention = attention


def rms_norm_of_the_sum():
    """RMSNorm that divides by the root of the sum of squares in place of their mean."""
    import torch.nn.functional as functional

    def rms_norm(x, shape, weight, eps):
        wide = x.float()
        return (wide * (wide.square().sum(-1, keepdim=True) + eps).rsqrt() * weight.float()).to(x.dtype)

    functional.rms_norm = rms_norm


def rms_norm_without_weight():
    """RMSNorm that forgets its gain, whose gradient is 0."""
    import torch.nn.functional as functional

    real = functional.rms_norm
    functional.rms_norm = lambda x, shape, weight, eps: real(x, shape, 1 + 0 * weight, eps)


def rotary_not_applied():
    """Queries and keys that know no position."""
    from conformance.kernels import reference

    reference.rotate = lambda x1, x2, cos, sin, *, conjugate=False: (x1.clone(), x2.clone())


def dropped_all_reduce():
    """Gradients that are not summed over the data-parallel ranks: each rank's own are taken for the mean."""
    import torch.distributed as dist

    class Done:
        def wait(self):
            return True

    for name in ("all_reduce", "reduce"):
        setattr(dist, name, _unless_large(getattr(dist, name), Done()))


def _unless_large(real, done):
    def call(*args, **kwargs):
        tensor = kwargs.get("tensor", args[0] if args else None)
        return done if tensor.numel() > 1000 else real(*args, **kwargs)

    return call


def update_of_a_tenth():
    """An optimizer kernel that moves the weights by a tenth of the learning rate that is logged."""
    import torch

    real = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        for group in self.param_groups:
            group["lr"] *= 0.1
        try:
            return real(self, *args, **kwargs)
        finally:
            for group in self.param_groups:
                group["lr"] *= 10

    torch.optim.AdamW.step = step


def products_in_fp32():
    """Matrix products, forward and backward, of fp32 whose result alone is rounded to bf16."""
    import torch.nn.functional as functional

    real = functional.linear
    functional.linear = lambda x, weight, bias=None: real(x.float(), weight.float(), bias).to(weight.dtype)


def products_in_two():
    """Matrix products of two halves that are added in bf16: torch allows a device this unless it is told otherwise."""
    import torch.nn.functional as functional

    real = functional.linear

    def linear(x, weight, bias=None):
        half = x.shape[-1] // 2
        return real(x[..., :half], weight[:, :half], bias) + real(x[..., half:], weight[:, half:])

    functional.linear = linear


def products_of_32():
    """Matrix products whose partial sums, of 32 terms each, are added in fp32."""
    import torch.nn.functional as functional

    real = functional.linear

    def linear(x, weight, bias=None):
        parts = zip(x.float().split(32, -1), weight.float().split(32, -1), strict=True)
        total = sum(real(part, of_weight) for part, of_weight in parts)
        return (total if bias is None else total + bias).to(weight.dtype)

    functional.linear = linear


def attention_by_torch():
    """The attention that torch has for the CPU, in bf16, in place of the reference in fp32."""
    import torch.nn.functional as functional

    from conformance.kernels import reference

    def attention(q, k, v, *, causal, softmax_scale=None):
        members = q.shape[1] // k.shape[1]
        heads = (q, k.repeat_interleave(members, 1), v.repeat_interleave(members, 1))
        first = [each.transpose(0, 1)[None] for each in heads]
        context = functional.scaled_dot_product_attention(*first, is_causal=causal, scale=softmax_scale)
        return context[0].transpose(0, 1).contiguous()

    reference.attention = attention


def every_kernel_otherwise():
    """Products in fp32, attention by torch, and RMSNorm that is rounded before its gain, at once."""
    import torch.nn.functional as functional

    def rms_norm(x, shape, weight, eps):
        wide = x.float()
        return (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype) * weight

    products_in_fp32()
    attention_by_torch()
    functional.rms_norm = rms_norm


def _by_name(*functions):
    return {function.__name__.replace("_", "-"): function for function in functions}


ROUNDINGS = _by_name(products_in_fp32, products_in_two, products_of_32, attention_by_torch, every_kernel_otherwise)
FAULTS = _by_name(
    bf16_accumulation,
    attention_without_scale,
    attention_scale_of_the_whole_width,
    attention_sees_the_future,
    rms_norm_of_the_sum,
    rms_norm_without_weight,
    rotary_not_applied,
    dropped_all_reduce,
    update_of_a_tenth,
)
FAULT = os.environ.get("FAULT", "")
if FAULT and FAULT not in FAULTS | ROUNDINGS:
    sys.exit(f"unknown fault: {FAULT}")
