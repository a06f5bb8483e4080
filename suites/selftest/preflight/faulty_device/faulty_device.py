"""A device that computes on the CPU and has the faults that the variable FAULTS names, separated by commas."""

import os
import sys
import time

from conformance.devices.cpu import CpuDevice

RANK = int(os.environ.get("RANK", "0"))
FAULTS = set(filter(None, os.environ.get("FAULTS", "").split(",")))


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
        return identity

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


def hang_on_rank_1():
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


def clock_5_s_off_on_rank_1():
    real = time.time
    if RANK == 1:
        time.time = lambda: real() + 5


def nan_in_one_element():
    import torch

    real = torch.mm

    def mm(*args, out=None, **kwargs):
        result = real(*args, out=out, **kwargs)
        result[3, 5] = float("nan")
        return result

    torch.mm = mm


def half_speed_on_rank_1():
    import torch

    real = torch.mm

    def mm(*args, **kwargs):
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


def linear_in_fp16():
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


INJECTIONS = {
    function.__name__.replace("_", "-"): function
    for function in (
        wrong_sum_on_rank_1,
        hang_on_rank_1,
        crash_on_rank_1,
        clock_5_s_off_on_rank_1,
        nan_in_one_element,
        half_speed_on_rank_1,
        dropped_row_of_the_attention_gradient,
        linear_in_fp16,
        events_do_not_time,
        rng_is_not_restored,
        memory_is_not_counted,
        no_streams,
    )
}
unknown = FAULTS - set(INJECTIONS) - {"count-imports-torch", "no-model"}
if unknown:
    sys.exit(f"unknown faults: {unknown}")
