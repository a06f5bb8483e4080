"""The torchrun command, as the benchmark text gives it, and the environment that it runs in."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from conformance.devices.vendors import load_vendors
from conformance.errors import LaunchError

# Names that say how a run was done; everything else may hold secrets and stays out of the evidence.
RECORDED_PREFIXES = (
    "ASCEND_", "BCCL_", "BKCL_", "CNCL_", "CUDA_", "DIPU_", "ECCL_", "FI_", "GLOO_", "HABANA_", "HCCL_", "HIP_", "HSA_",
    "KMP_", "MACA_", "MCCL_", "MLU_", "MUSA_", "NCCL_", "NPU_", "OMP_", "PYTORCH_", "ROCR_", "SUPA_", "TORCH_", "TOPS_",
    "TRITON_", "UCX_", "XPU_",
)  # fmt: skip
# Settings of these names' kind have no business in a public report, whatever they begin with.
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.I)
RECORDED_NAMES = (
    "CUBLAS_WORKSPACE_CONFIG", "LD_PRELOAD", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "NVIDIA_TF32_OVERRIDE",
    "PET_NODE_RANK", "RANK", "TZ", "WORLD_SIZE",
)  # fmt: skip
PLACE_NAMES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "PET_NODE_RANK", "RANK", "WORLD_SIZE")
# torchrun takes any of its options from a variable of this family: restarts, another rendezvous.
TORCHRUN_OPTIONS = "PET_"
# InternEvo logs local times without their zone: where the clock is set to or from summer time, an hour of a run of days
# would be missing or come twice. CUDA counts the fastest device first, and nvidia-smi, which tells who a device is, by
# bus: on a node of two models a rank would be taken for the other.
SETTLED = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "TZ": "UTC"}
# Set on every process that a run starts, so that it can find its own, whatever became of their parents.
RUN_MARK = "CONFORMANCE_RUN"


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks of a run meet.

    Args:
        address: Host name or address of node 0.
        port: TCP port on node 0.
        node_rank: Index of this node.
    """

    address: str
    port: int
    node_rank: int


def command(
    run: Path, *, nodes: int, devices_per_node: int, rendezvous: Rendezvous, config: str, seed: int
) -> list[str]:
    """The command that trains.

    Args:
        run: Run directory.
        nodes: Number of nodes.
        devices_per_node: Processes on each node.
        rendezvous: Where the ranks meet.
        config: InternEvo configuration, relative to the run's work folder.
        seed: InternEvo's --seed.

    Returns:
        Arguments for the operating system.
    """
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nnodes={nodes}",
        f"--nproc_per_node={devices_per_node}",
        f"--node_rank={rendezvous.node_rank}",
        f"--master_addr={rendezvous.address}",
        f"--master_port={rendezvous.port}",
        "-m",
        "conformance.internevo.worker",
        str(run),
        "--config",
        config,
        "--launcher",
        "torch",
        "--seed",
        str(seed),
    ]


def environment(run: Path, node_rank: int = 0) -> dict[str, str]:
    """The environment of the training processes of a node.

    Args:
        run: Run directory.
        node_rank: Index of the node.

    Returns:
        This process's environment, without what would be options to torchrun beside the recorded ones; what the suite
        settles on every node, whatever is set there; the folder for torchrun's own scratch files; and the mark.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(TORCHRUN_OPTIONS)}
    # Without it each torchrun leaves a folder in /tmp; as an option it would be part of the recorded command.
    scratch = {f"{TORCHRUN_OPTIONS}LOG_DIR": str(run / "work" / "torchrun")}
    return {**kept, **scratch, **SETTLED, RUN_MARK: mark(run, node_rank)}


def mark(run: Path, node_rank: int | str) -> str:
    """What marks the processes of one node of a run; agents of several nodes may share a machine.

    Args:
        run: Run directory.
        node_rank: Index of the node, or the word agents for what follows node 0 on the others.

    Returns:
        Value of RUN_MARK.
    """
    return f"{run}:{node_rank}"


def telemetry_mark(mark: str) -> str:
    """What marks the process that samples a node's devices; it is no part of the training, and ends after it.

    Args:
        mark: The node's :func:`mark`.

    Returns:
        Value of RUN_MARK.
    """
    return f"{mark}:telemetry"


def recorded(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that go into the evidence.

    Args:
        variables: An environment.

    Returns:
        The allow-listed part of it; bytes that are no UTF-8 as ``\\udce4``-like escapes, which JSON can hold.
    """
    return {
        name: value.encode("utf-8", "backslashreplace").decode()
        for name, value in sorted(variables.items())
        if name in RECORDED_NAMES or (name.startswith(RECORDED_PREFIXES) and not SECRET.search(name))
    }


def differing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, str | None]:
    """What is set otherwise on another node, besides what tells each node its place and its devices, or is settled.

    Args:
        ours: Recorded variables of node 0.
        theirs: Those of the other node.

    Returns:
        Its values by name; None for what is not set there.
    """
    names = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
    # Which of its devices a scheduler gives a node is the node's own; whether they are alike, their identities tell.
    devices = {name for vendor in load_vendors().values() for name in vendor.visible_devices}
    return {name: theirs.get(name) for name in sorted(names - devices - {*PLACE_NAMES, *SETTLED})}


def free_port() -> int:
    """A TCP port that nothing listens on right now.

    Returns:
        The port.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_free_port(port: int) -> None:
    """Refuse a port that is taken, before anything is started on it.

    Args:
        port: TCP port on this machine.

    Raises:
        LaunchError: Something listens there, or the port may not be used.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch does: a closing socket is no obstacle
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            raise LaunchError(
                f"Port {port} on this machine cannot be used for the rendezvous: {error}.",
                "Choose another --master-port, or leave it out and one is found.",
            ) from error
