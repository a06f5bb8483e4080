"""What InternEvo asks of torch.cuda, asked of the CPU in its place."""

import os
import subprocess
import sys

import pytest

from conformance.launch.torchrun import free_port

pytestmark = pytest.mark.needs("torch")

# InternEvo's own sorting of gradients by type, and its reduction, on two ranks with different gradients.
REDUCE = """
import os
import torch
import torch.distributed as dist
from conformance.devices.cpu import CpuDevice
from conformance.internevo.patches import apply_patches
from conformance.kernels import install

CpuDevice().activate()
install()
apply_patches()
from internlm.solver.optimizer.utils import split_half_float_double

dist.init_process_group(backend="nccl")
rank = dist.get_rank()
gradients = [torch.full((3,), rank + 1.0, dtype=dtype, device="cuda") for dtype in (torch.bfloat16, torch.float32)]
buckets = split_half_float_double(gradients)
assert [len(bucket) for bucket in buckets] == [1, 1], f"sorted into {buckets}"
for bucket in buckets:
    dist.all_reduce(tensor=bucket[0], op=dist.ReduceOp.AVG, async_op=True).wait()
assert all(gradient.tolist() == [1.5] * 3 for gradient in gradients), gradients
assert gradients[0].type() == "torch.cuda.BFloat16Tensor" and gradients[0].type(torch.float32).dtype == torch.float32
dist.destroy_process_group()  # torch's threads that still run at the end abort a process on a busy machine
"""


def test_gradients_of_every_type_are_averaged_over_the_ranks():
    """A type whose name InternEvo does not know would be left out of every bucket, in silence."""
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "LOCAL_WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", REDUCE],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, told = rank.communicate(timeout=300)
        assert rank.returncode == 0, told[-1500:]
