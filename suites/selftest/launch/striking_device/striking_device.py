"""A device that computes on the CPU and does harm in a training step, as the variable STRIKE says.

What it does harm with is real: an allocation that the allocator refuses, parameters that are no numbers, an exception.
It leaves the time in struck.json of its working directory, the run's work folder.
"""

import json
import os
import time
from pathlib import Path

from conformance.devices.cpu import CpuDevice

RANK = int(os.environ.get("RANK", "0"))
# Two or more steps of the rehearsal; each call is counted twice, for the device redirects it once.
AFTER_BACKWARDS = 20


class StrikingDevice(CpuDevice):
    name = "striking"

    def activate(self):
        super().activate()
        import torch

        done = 0
        backward, embedding = torch.Tensor.backward, torch.nn.functional.embedding
        strike = {"oom": out_of_memory, "raise": run_out, "nan": lambda: None}[os.environ["STRIKE"]]

        def count_and_strike(*args, **kwargs):
            nonlocal done
            done += 1
            if done == AFTER_BACKWARDS + 1 and int(os.environ["STRIKE_RANK"]) == RANK:
                Path("struck.json").write_text(json.dumps({"time": time.time()}))
                strike()
            return backward(*args, **kwargs)

        def poisoned(*args, **kwargs):
            found = embedding(*args, **kwargs)
            return found * float("nan") if os.environ["STRIKE"] == "nan" and done > AFTER_BACKWARDS else found

        torch.Tensor.backward, torch.nn.functional.embedding = count_and_strike, poisoned


def out_of_memory():
    import torch

    torch.empty(1 << 50, dtype=torch.uint8)


def run_out():
    raise StopIteration
