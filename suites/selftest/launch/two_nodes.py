"""One node of a run of two for the launch tests: the suite's own host and member, training by allreduce_rank.py.

Arguments: host ADDRESS PORT RUN STEPS LIMIT_SECONDS, which prints how the run ended as JSON; or member PORT's ADDRESS,
PORT, RUN, STEPS.
"""

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from conformance.launch import follow, torchrun
from conformance.launch.detect import Detector, Limits
from conformance.launch.node import Launch
from conformance.launch.progress import LiveProgress
from conformance.launch.supervise import supervise
from conformance.launch.team import Host, Member

PAUSE = "0.3"


def command(run, steps, rendezvous):
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"),
        *(f"--node_rank={rendezvous.node_rank}", f"--master_addr={rendezvous.address}"),
        f"--master_port={rendezvous.port}",
        *(str(Path(__file__).with_name("allreduce_rank.py")), str(run), steps, PAUSE),
    ]


def host(address, port, run, steps, limit):
    run, port = Path(run), int(port)
    limits = Limits(start_seconds=60, stall_floor_seconds=60, lost_node_seconds=float(limit), min_free_bytes=1)
    team = Host(port + 1, [1], run)
    (run / "work" / follow.TOKEN).write_text("token")
    job = {"run": run.name, "token": "token", "config": "", "settings": {"device": "cpu", "internevo": None}}
    job |= {"nodes": 2, "devices_per_node": 1, "seed": 1, "address": address, "port": port}
    job["lost_node_seconds"] = limits.lost_node_seconds
    display = LiveProgress(Console(stderr=True), "two nodes")
    team.gather({"asked": steps}, lambda hellos: job, waiting=display.waiting, seconds=60)
    launch = Launch(command(run, steps, torchrun.Rendezvous(address, port, 0)), torchrun.environment(run, 0), run, 0)
    ending = supervise(run, launch, Detector(1, int(steps), limits, time.monotonic()), display, team)
    team.publish({"told": "all"})
    print(json.dumps(asdict(ending)), flush=True)


def member(address, port, run, steps):
    torchrun.command = lambda run, rendezvous, **rest: command(run, steps, rendezvous)
    joined = Member(address, int(port) + 1, 1, {"asked": steps}, seconds=60)
    display = LiveProgress(Console(stderr=True), "node 1")
    _, told, _ = follow.follow(joined, Path(run), Path(run).parent, display=display)
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    code = 0
    try:
        {"host": host, "member": member}[sys.argv[1]](*sys.argv[2:])
    except Exception as error:
        print(error, file=sys.stderr, flush=True)
        code = 2
    os._exit(code)
