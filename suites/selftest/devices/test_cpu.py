"""The CPU in place of a device, whatever torch was built for."""

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch")]

# What a torch built for CUDA says on a machine without a driver; InternEvo's loader pins memory.
BUILT_FOR_CUDA = """
import torch
if hasattr(torch, "accelerator"):
    torch.accelerator.current_accelerator = lambda check_available=False: torch.device("cuda")
from conformance.devices.cpu import CpuDevice
CpuDevice().activate()
loader = torch.utils.data.DataLoader(torch.arange(8), batch_size=2, num_workers=1, pin_memory=True)
print([batch.tolist() for batch in loader])
"""


def test_data_are_loaded_by_a_torch_that_was_built_for_cuda():
    done = subprocess.run(
        [sys.executable, "-c", BUILT_FOR_CUDA], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout == "[[0, 1], [2, 3], [4, 5], [6, 7]]\n", done.stderr
