"""A device that computes on the CPU and has the faults that the variable FAULTS names, separated by commas.

SEEN has them all, each with the checks that must turn red for it; docs/faults.md is written from it.
"""

import os
import sys
import time

from conformance.devices.cpu import CpuDevice

RANK = int(os.environ.get("RANK", "0"))
FAULTS = set(filter(None, os.environ.get("FAULTS", "").split(",")))
# More than a busy machine makes a process slower than its neighbour.
TIMES_SLOWER = 20
# What any link of the simulated device takes for a block of bytes; far more than the machine's own takes.
LINK_SECONDS = 0.2
AT_WORK = {"throttled-at-work", "slow-link-at-work"}
SEEN = {
    "hang-in-broadcast-on-rank-1": "preflight-ended",
    "crash-on-rank-1": "preflight-ended",
    "crash-in-scatter": "preflight-ended",
    "count-imports-torch": "device-contract",
    "no-model": "device-contract",
    "events-do-not-time": "device-contract",
    "rng-is-not-restored": "device-contract",
    "memory-is-not-counted": "device-contract",
    "no-streams": "device-contract",
    "other-driver-on-node-1": "device-identity",
    "throttled-at-work": "device-health",
    "busy-on-node-1": "device-busy",
    "slow-link-at-work": "device-bus",
    "half-of-the-memory": "device-capacity",
    "clock-5-s-off-on-rank-1": "host-clock",
    "nan-in-one-element-of-products": "gemm-correct",
    "cpu-that-is-called-h200": "gemm-speed copy-speed",
    "slow-products-on-rank-1": "speed-even arrival-even",
    "slow-copies-on-rank-1": "speed-even",
    "dropped-row-of-the-attention-gradient": "kernel-attention",
    "hang-in-rotary-rms-norm-and-scatter-on-rank-1": "kernel-rotary kernel-rms-norm kernel-scatter",
    "rotary-off-by-2-percent": "kernel-rotary",
    "hang-in-rms-norm": "kernel-rms-norm",
    "rms-norm-off-by-2-percent": "kernel-rms-norm",
    "silent-fp16-in-linear": "kernel-linear",
    "cross-entropy-off-by-2-percent": "kernel-cross-entropy training-step",
    "embedding-off-by-2-percent": "kernel-embedding",
    "adamw-off-by-2-percent": "kernel-adamw",
    "grad-norm-off-by-2-percent": "kernel-grad-norm",
    "scatter-off-by-2-percent": "kernel-scatter",
    "scatter-not-the-same-twice": "kernel-determinism",
    "float64-in-float32-over-ranks": "shim-numerics",
    "wrong-sum-on-rank-1": "collective-correct",
    "slow-large-sums": "collective-speed",
    "half-bandwidth-from-rank-1": "link-even",
}


class FaultyDevice(CpuDevice):
    name = "faulty"

    def count(self):
        if "count-imports-torch" in FAULTS:
            import torch  # noqa: F401
        return super().count()

    def identity(self, index):
        identity = super().identity(index)
        if "no-model" in FAULTS:
            del identity["model"]
        if "other-driver-on-node-1" in FAULTS:  # one process a node looks at devices
            identity["driver"] = "580.2" if RANK == 1 else "580.1"
        if "cpu-that-is-called-h200" in FAULTS:
            identity["model"] = "NVIDIA H200"
        return identity

    def health(self, index):
        health = {"throttle_thermal": "Not Active", "link_generation": "5", "link_generation_max": "5", "processes": ""}
        if FAULTS.isdisjoint(AT_WORK | {"busy-on-node-1"}):
            return {}
        if "busy-on-node-1" in FAULTS and RANK == 1:
            health["processes"] = "4711"
        at_work = "torch" in sys.modules
        if "throttled-at-work" in FAULTS and at_work:
            health["throttle_thermal"] = "Active"
        if "slow-link-at-work" in FAULTS and at_work:
            health["link_generation"] = "3"
        return {**health, "ecc_uncorrected": "0", "link_width": "16", "link_width_max": "16"}

    def activate(self):
        super().activate()
        for fault, inject in INJECTIONS.items():
            if fault in FAULTS:
                inject()


def wrong_sum_on_rank_1():
    import torch.distributed as dist

    real = dist.all_reduce

    def all_reduce(tensor, *args, **kwargs):
        handle = real(tensor, *args, **kwargs)
        if RANK == 1:
            tensor.view(-1)[0] += tensor.view(-1)[0]
        return handle

    dist.all_reduce = all_reduce


def hang_in_broadcast_on_rank_1():
    import torch.distributed as dist

    real = dist.broadcast

    def broadcast(tensor, *args, **kwargs):
        while RANK == 1 and tensor.numel() > 1000:
            time.sleep(1)
        return real(tensor, *args, **kwargs)

    dist.broadcast = broadcast


def crash_on_rank_1():
    import torch.distributed as dist

    def reduce_scatter_tensor(*args, **kwargs):
        if RANK == 1:
            print("the driver is gone", flush=True)
            os._exit(3)
        raise RuntimeError("peer lost")

    dist.reduce_scatter_tensor = reduce_scatter_tensor


def hanging(*args, **kwargs):
    while True:
        time.sleep(1)


def hang_in_rotary_rms_norm_and_scatter_on_rank_1():
    if RANK == 1:
        for module, kernel in (("rotary_emb", "apply_rotary"), ("torch_scatter", "scatter")):
            stand_in(module, kernel, lambda real: hanging)
        hang_in_rms_norm()


def hang_in_rms_norm():
    def change(module_class):
        class Hanging(module_class):
            forward = hanging

        return Hanging

    stand_in("apex.normalization.fused_layer_norm", "MixedFusedRMSNorm", change)


def crash_in_scatter():
    def change(real):
        def crash(*args, **kwargs):
            print("the driver is gone", flush=True)
            os._exit(3)

        return crash

    stand_in("torch_scatter", "scatter", change)


def clock_5_s_off_on_rank_1():
    real = time.time
    if RANK == 1:
        time.time = lambda: real() + 5


def nan_in_one_element_of_products():
    import torch

    real = torch.mm

    def mm(*args, out=None, **kwargs):
        result = real(*args, out=out, **kwargs)
        result[3, 5] = float("nan")
        return result

    torch.mm = mm


def slow_products_on_rank_1():
    import torch

    real = torch.mm

    def mm(*args, **kwargs):
        for _ in range(TIMES_SLOWER - 1):
            real(*args, **kwargs)
        return real(*args, **kwargs)

    if RANK == 1:
        torch.mm = mm


def dropped_row_of_the_attention_gradient():
    import torch

    from conformance.kernels import _register, standins

    class DropRow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q):
            return q.clone()

        @staticmethod
        def backward(ctx, grad):
            grad = grad.clone()
            grad[grad.shape[0] // 2] = 0
            return grad

    real = standins.flash_attn_varlen_kvpacked_func
    modules = {name: dict(module) for name, module in standins.MODULES.items() if name.startswith("flash_attn")}
    modules["flash_attn"]["flash_attn_varlen_kvpacked_func"] = lambda q, *rest: real(DropRow.apply(q), *rest)
    _register(modules)


def silent_fp16_in_linear():
    import torch.nn.functional as functional

    real = functional.linear
    functional.linear = lambda x, w, b=None: real(x.half(), w.half(), b).to(x.dtype)


def events_do_not_time():
    import torch

    class Event(torch.cuda.Event):
        def elapsed_time(self, end):
            return 1.0

    torch.cuda.Event = Event


def rng_is_not_restored():
    import torch

    torch.cuda.set_rng_state = lambda state, device=None: None


def memory_is_not_counted():
    import torch

    torch.cuda.memory_allocated = lambda device=None: 0


def no_streams():
    import torch

    del torch.cuda.Stream


def stand_in(module, attribute, change):
    """Let another function or class stand in for a kernel."""
    from conformance.kernels import standins

    standins.MODULES[module][attribute] = change(standins.MODULES[module][attribute])


def larger_by_2_percent(call):
    return lambda *args, **kwargs: call(*args, **kwargs) * 1.02


def forward_larger_by_2_percent(module_class):
    class Larger(module_class):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs) * 1.02

    return Larger


def rotary_off_by_2_percent():
    def change(real):
        def apply_rotary(x1, x2, cos, sin, out1, out2, conjugate):
            real(x1, x2, cos, sin, out1, out2, conjugate)
            out1.mul_(1.02)

        return apply_rotary

    stand_in("rotary_emb", "apply_rotary", change)


def rms_norm_off_by_2_percent():
    stand_in("apex.normalization.fused_layer_norm", "MixedFusedRMSNorm", forward_larger_by_2_percent)


def cross_entropy_off_by_2_percent():
    stand_in("flash_attn.losses.cross_entropy", "CrossEntropyLoss", forward_larger_by_2_percent)


def scatter_off_by_2_percent():
    stand_in("torch_scatter", "scatter", larger_by_2_percent)


def scatter_not_the_same_twice():
    import torch

    def change(real):
        return lambda *args, **kwargs: real(*args, **kwargs) * (1 + torch.rand(()) * 2e-6)

    stand_in("torch_scatter", "scatter", change)


def embedding_off_by_2_percent():
    import torch.nn.functional as functional

    functional.embedding = larger_by_2_percent(functional.embedding)


def adamw_off_by_2_percent():
    import torch

    class AdamW(torch.optim.AdamW):
        def __init__(self, parameters, lr, **kwargs):
            super().__init__(parameters, lr=lr * 1.02, **kwargs)

    torch.optim.AdamW = AdamW


def grad_norm_off_by_2_percent():
    import torch

    torch.norm = larger_by_2_percent(torch.norm)


def slow_copies_on_rank_1():
    import torch

    real = torch.Tensor.copy_

    def copy_(self, source, *args):
        for _ in range(TIMES_SLOWER if self.numel() > 1 << 20 else 1):
            real(self, source, *args)
        return self

    if RANK == 1:
        torch.Tensor.copy_ = copy_


def half_bandwidth_from_rank_1():
    import torch.distributed as dist

    real = dist.send

    def send(tensor, *args, **kwargs):
        if tensor.numel() > 1 << 20:
            time.sleep(LINK_SECONDS * (1 + RANK))
        return real(tensor, *args, **kwargs)

    dist.send = send


def slow_large_sums():
    import torch.distributed as dist

    real = dist.all_reduce

    def all_reduce(tensor, *args, **kwargs):
        if tensor.numel() > 1 << 20:
            time.sleep(0.5)
        return real(tensor, *args, **kwargs)

    dist.all_reduce = all_reduce


def float64_in_float32_over_ranks():
    import torch
    import torch.distributed as dist

    real = dist.all_reduce

    def all_reduce(tensor, *args, group=None, **kwargs):
        if group is None and tensor.dtype == torch.float64:
            tensor.copy_(tensor.float())
        return real(tensor, *args, group=group, **kwargs)

    dist.all_reduce = all_reduce


def half_of_the_memory():
    import torch

    real, held = torch.full, []

    def full(size, value, *args, **kwargs):
        if kwargs.get("dtype") == torch.uint8:
            held.append(size)
            if len(held) > 4:
                raise RuntimeError("out of memory")
        return real(size, value, *args, **kwargs)

    torch.full = full


INJECTIONS = {
    function.__name__.replace("_", "-"): function
    for function in (
        wrong_sum_on_rank_1,
        hang_in_broadcast_on_rank_1,
        hang_in_rms_norm,
        hang_in_rotary_rms_norm_and_scatter_on_rank_1,
        crash_on_rank_1,
        crash_in_scatter,
        clock_5_s_off_on_rank_1,
        nan_in_one_element_of_products,
        slow_products_on_rank_1,
        dropped_row_of_the_attention_gradient,
        silent_fp16_in_linear,
        events_do_not_time,
        rng_is_not_restored,
        memory_is_not_counted,
        no_streams,
        rotary_off_by_2_percent,
        rms_norm_off_by_2_percent,
        cross_entropy_off_by_2_percent,
        scatter_off_by_2_percent,
        scatter_not_the_same_twice,
        embedding_off_by_2_percent,
        adamw_off_by_2_percent,
        grad_norm_off_by_2_percent,
        slow_copies_on_rank_1,
        half_bandwidth_from_rank_1,
        slow_large_sums,
        float64_in_float32_over_ranks,
        half_of_the_memory,
    )
}
if unknown := FAULTS - set(SEEN):
    sys.exit(f"unknown faults: {unknown}")
