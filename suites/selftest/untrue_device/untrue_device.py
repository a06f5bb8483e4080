"""A device that computes on the CPU, and trains untruly in the way that the variable FAULT names."""

import os
import sys

from conformance.devices.cpu import CpuDevice


class UntrueDevice(CpuDevice):
    name = "untrue"

    def activate(self):
        super().activate()
        if FAULT:
            FAULTS[FAULT]()


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


FAULTS = {
    function.__name__.replace("_", "-"): function
    for function in (
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
}
FAULT = os.environ.get("FAULT", "")
if FAULT and FAULT not in FAULTS:
    sys.exit(f"unknown fault: {FAULT}")
