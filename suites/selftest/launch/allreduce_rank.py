"""One rank of a small training for the launch tests, run by a real torchrun: a sum over all ranks makes each step.

It logs as InternEvo does, and like InternEvo's train.py it logs an exception and ends with exit code 0.
Arguments: run directory, steps, seconds a step, and optionally the rank and step at which to raise. The variable WORK
makes each step multiply so many matrices instead of sleeping; HANG names a rank that hangs after step 5.
"""

import datetime
import os
import socket
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from conformance.internevo.worker import _write_to


def log(text):
    print(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S,%f}\tINFO t.py:1 in f -- {text}", flush=True)


def hang():
    time.sleep(600)


def train(rank, steps, pause, raises):
    dist.init_process_group("gloo", timeout=datetime.timedelta(minutes=10))
    loss, work, matrix = torch.ones(1), int(os.environ.get("WORK", "0")), torch.ones(400, 400)
    torch.set_num_threads(1)
    for step in range(steps):
        if step > 5 and os.environ.get("HANG") == str(rank):
            hang()
        if raises == (rank, step):
            raise StopIteration("the data have run out")
        dist.all_reduce(loss)
        loss /= dist.get_world_size()
        for _ in range(work):
            matrix @ matrix
        time.sleep(0 if work else pause)
        if rank == 0:
            log(f"tflops=1.0 step={step} loss={loss.item()} tgs (tokens/gpu/second)=100.5 ")


def main():
    run, steps, pause, *raises = sys.argv[1:]
    rank, node = int(os.environ["RANK"]), os.environ["GROUP_RANK"]
    _write_to(Path(run) / "logs" / f"node{node}" / f"rank{rank}.log")
    try:
        train(rank, int(steps), float(pause), tuple(map(int, raises)))
    except Exception:
        log(f"Raise exception from {socket.gethostname()} with rank id: {rank}\n{traceback.format_exc()}")


if __name__ == "__main__":
    main()
