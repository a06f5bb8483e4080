"""The suite's options for pytest, and what they ask for: a request that a plan exists for, or why it is refused."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance import journal
from conformance.data import read_fingerprint
from conformance.devices import Device, count_devices, detect_device, load_device
from conformance.errors import ConformanceError
from conformance.evidence import DATA, JOURNAL, PLAN, REQUEST, Request, RunDirectory, read_json, request_from_json
from conformance.plan import DEFAULT_SEED, Topology, make_plan, parse_overrides
from conformance.spec import Workload
from conformance.strictjson import quoted

if TYPE_CHECKING:  # pandas and cryptography come with it; collecting tests needs neither
    import pytest

    from conformance.pipeline import Site


def declare(parser: pytest.Parser) -> None:
    """Declare the suite's options.

    Args:
        parser: pytest's parser.
    """
    group = parser.getgroup("conformance", "LLaMA2 pretraining conformance")
    group.addoption("--nodes", type=int, metavar="N", help="number of nodes (default: 1)")
    group.addoption("--devices-per-node", type=int, metavar="N", help="devices on each node (default: what it has)")
    group.addoption("--workload", metavar="NAME", help="workload whose shapes the preflight measures")
    group.addoption("--device", metavar="NAME", help="device plugin (default: the accelerator found, or cpu)")
    group.addoption(
        "--internevo",
        type=Path,
        metavar="PATH",
        help="InternEvo checkout (default: what `conformance internevo get` fetched; to rehearse, the installed wheel)",
    )
    group.addoption(
        "--patch",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="your own change to InternEvo, as a diff",
    )
    group.addoption(
        "--run-dir", type=Path, metavar="PATH", help="directory of this run (default: reports/TIME-WORKLOAD)"
    )
    group.addoption(
        "--reports", type=Path, default=Path("reports"), metavar="PATH", help="where runs and their journal go"
    )
    group.addoption("--signing-key", type=Path, metavar="FILE", help="private key (default: this machine's own)")
    group.addoption(
        "--launcher",
        choices=("torchrun", "slurm", "local"),
        help="torchrun: this command on every node; slurm: srun starts the nodes (default inside an allocation, "
        "without --node-rank and --master-addr); local: all nodes on this machine",
    )
    group.addoption(
        "--node-rank", type=int, metavar="N", help="this node (default: NODE_RANK, GROUP_RANK, PET_NODE_RANK, RANK)"
    )
    group.addoption("--master-addr", metavar="HOST", help="node 0 (default: MASTER_ADDR)")
    group.addoption(
        "--master-port",
        type=int,
        metavar="PORT",
        help="port on node 0, 1 to 65534, and the one after it (default: MASTER_PORT)",
    )
    group.addoption(
        "--seed",
        type=int,
        metavar="N",
        help=f"InternEvo's seed (default: {DEFAULT_SEED}; of a preflight a fresh one)",
    )
    group.addoption(
        "--challenge", type=Path, metavar="FILE", help="the lab's challenge, which gives the seed that answers it"
    )
    group.addoption("--data", type=Path, metavar="DIR", help="prepared data (conformance data prepare)")
    group.addoption(
        "--resume", type=Path, metavar="RUN", help="go on from the checkpoints of this run, as it was asked for"
    )
    group.addoption(
        "--until-target", action="store_true", help="stop once the loss is below the target and has stayed there"
    )
    group.addoption(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override micro_bsz, micro_num, tensor, ..."
    )


def require_names(option: Any) -> None:
    """Refuse names that the evidence, which is UTF-8, could not hold.

    Args:
        option: The options' values.

    Raises:
        ConformanceError: The run directory's name or a patch file's is not UTF-8.
    """
    named = [("--run-dir", path.resolve()) for path in (option.run_dir,) if path]
    for name, path in [*named, *(("--patch", path) for path in option.patch)]:
        try:
            path.name.encode()
        except UnicodeEncodeError:
            raise ConformanceError(
                f"{name} names {quoted(path.name)}; expected UTF-8, for journal and evidence hold the name.",
                "Give it another name.",
            ) from None


def prepare(option: Any, workload: Workload) -> tuple[Request, Site]:
    """What the command line asks for, for one workload.

    Args:
        option: The options' values.
        workload: The workload.

    Returns:
        The request, which a plan exists for, and the site.

    Raises:
        ConformanceError: The machine lacks the devices, the request breaks the benchmark's rules, or something that it
            names cannot be used: a port, a directory, a run to go on from.
    """
    device = load_device(option.device) if option.device else detect_device()
    request, challenge = _request(option, workload, device)
    _require_data(option, workload)
    from conformance.internevo.source import find_source, require_pinned
    from conformance.judgement import plan_of
    from conformance.launch.launcher import find_place
    from conformance.pipeline import require_startable  # heavy; a request that is refused needs none of it
    from conformance.report.build import signer

    place = find_place(
        request.nodes, option.launcher, option.node_rank, option.master_addr, option.master_port, dict(os.environ)
    )
    site = _site(option, device, challenge)
    if place.node_rank == 0:
        signer(option.signing_key)  # now, and not after days of training
        if option.resume is not None:
            _require_journalled(option.resume, option.reports, request)
            _require_as_begun(option.resume, option.data, option.patch)
        require_startable(plan_of(request), site, place)
    require_pinned(find_source(option.internevo, workload.tag), workload)
    return request, site


def _site(option: Any, device: Device, challenge: bytes | None) -> Site:
    """Where and with what the options ask for a run."""
    from conformance.pipeline import Site

    return Site(
        device=device.name,
        internevo=option.internevo,
        reports=option.reports,
        patches=tuple(option.patch),
        run_dir=option.run_dir,
        signing_key=option.signing_key,
        master_port=option.master_port,
        launcher=option.launcher,
        node_rank=option.node_rank,
        master_addr=option.master_addr,
        data=option.data,
        resume=option.resume,
        until_target=option.until_target,
        challenge=challenge,
    )


def _request(option: Any, workload: Workload, device: Device) -> tuple[Request, bytes | None]:
    """What the options ask for of a workload, which a plan exists for, and the challenge that it answers, if any."""
    if option.resume is None:
        nodes = nodes_asked(option)
        request = Request(
            workload.name,
            nodes,
            _devices_per_node(workload, device, nodes, option.devices_per_node),
            parse_overrides(option.set),
            DEFAULT_SEED if option.seed is None else option.seed,
        )
    else:
        request = _resumed_request(workload, option)
        # Another day, or another machine: it may show fewer devices now, or none.
        _devices_per_node(workload, device, request.nodes, request.devices_per_node)
    challenge = None
    if option.challenge is not None:
        request, challenge = _answering(request, option.challenge, option.resume is None and option.seed is None)
    make_plan(workload, Topology(request.nodes, request.devices_per_node), request.overrides, seed=request.seed)
    return request, challenge


def _require_data(option: Any, workload: Workload) -> None:
    """That a new run's data are named, and can be read."""
    if workload.data == "dummy" or option.resume is not None:
        return
    if option.data is None:
        raise ConformanceError(
            f"{workload.name} trains on {workload.data}, and no data were named.",
            "Prepare them with `conformance data prepare`, and name the folder with --data.",
        )
    read_fingerprint(option.data)


def _answering(request: Request, path: Path, free: bool) -> tuple[Request, bytes]:
    """The request with the seed that answers a challenge, if it has that or is free to take it; and the challenge."""
    from conformance.report import challenge

    asked, envelope = challenge.read(path)
    challenge.require_valid(asked, request.workload, datetime.now(timezone.utc))
    seed = challenge.seed(asked.nonce, request.workload)
    if request.seed != seed and not free:
        raise ConformanceError(
            f"The run's seed is {request.seed}; the challenge {path} asks for {seed}.",
            "Leave --seed out; a run that goes on answers the challenge that it began with, or none.",
        )
    return replace(request, seed=seed), envelope


def _resumed_request(workload: Workload, option: Any) -> Request:
    """The request of the run that is to go on; what the command line says besides has to agree with it."""
    if workload.checkpoint_every is None:
        raise ConformanceError(f"{workload.name} writes no checkpoints to resume from.", "Leave out --resume.")
    if not option.resume.is_dir():
        raise ConformanceError(
            f"--resume {option.resume}: there is no such directory.",
            "Name the run directory of the attempt to go on from.",
        )
    earlier = request_from_json(read_json(RunDirectory(option.resume), REQUEST))
    said = {
        "nodes": option.nodes,
        "devices_per_node": option.devices_per_node,
        "overrides": parse_overrides(option.set) or None,
        "seed": option.seed,
        "workload": workload.name,
    }
    for name, value in said.items():
        if value is not None and value != getattr(earlier, name):
            raise ConformanceError(
                f"--resume {option.resume} was asked for with {name} {getattr(earlier, name)}; now it is {value}.",
                "A run goes on as it began: leave out what it was asked for with.",
            )
    return earlier


def _require_journalled(resumed: Path, reports: Path, request: Request) -> None:
    """That the reports folder's journal shows the run that is to go on, with the plan that it would go on with."""
    from conformance.judgement import plan_of

    path, name = reports / JOURNAL, resumed.resolve().name
    entries = journal.parse(path.read_bytes()).entries if path.is_file() else ()
    digest = hashlib.sha256((resumed / PLAN).read_bytes()).hexdigest() if (resumed / PLAN).is_file() else ""
    if not any((one.run, one.plan) == (name, digest) for one in journal.attempts(entries)):
        raise ConformanceError(
            f"The journal {path} shows no attempt {name} with the plan that stands in {resumed}.",
            "A run goes on where it was made: name the folder of its journal with --reports.",
        )
    if read_json(RunDirectory(resumed), PLAN) != json.loads(json.dumps(plan_of(request).to_json())):
        raise ConformanceError(
            f"--resume {resumed} began with another plan than this build of the suite makes of the same request.",
            "A run goes on as it began: use the build of the suite that began it.",
        )


def _require_as_begun(resumed: Path, data: Path | None, patches: Sequence[Path]) -> None:
    """That the run that is to go on is given the data and the patch files that it began with."""
    from conformance.internevo.patchfile import patch_digests
    from conformance.judgement import kept_patches
    from conformance.pipeline import data_of

    files, folder = RunDirectory(resumed), data or data_of(resumed)
    began, now = str(read_json(files, DATA).get("digest")), read_fingerprint(folder).digest
    if began != now:
        raise ConformanceError(
            f"--resume {resumed} trained on the data set {began[:16]}; the one in {folder} is {now[:16]}.",
            "A run goes on as it began: name the folder of its data with --data.",
        )
    kept, given = kept_patches(files), patch_digests(patches)
    if kept != given:
        raise ConformanceError(
            f"--resume {resumed} began with the patch files {_listed(kept)}; now they are {_listed(given)}.",
            f"A run goes on as it began: give --patch the files that it keeps in {resumed / 'patches'}, and no other.",
        )


def _listed(digests: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({digest[:16]})" for name, digest in sorted(digests.items())) or "none"


def nodes_asked(option: Any) -> int:
    """Tell how many nodes were asked for.

    Args:
        option: pytest's parsed options.

    Returns:
        The number of nodes; 1 where none was given.

    Raises:
        ConformanceError: No node was asked for, or no device on each.
    """
    nodes = 1 if option.nodes is None else option.nodes
    if nodes < 1 or (option.devices_per_node is not None and option.devices_per_node < 1):
        raise ConformanceError("--nodes and --devices-per-node count nodes and devices; expected 1 or more.")
    return int(nodes)


def _devices_per_node(workload: Workload, device: Device, nodes: int, asked: int | None) -> int:
    """The number that was asked for, else the reference's or what is here; refused where this node has fewer."""
    reference = max(1, workload.reference.cards // nodes)
    if device.name == "cpu" and workload.mark == "tiny":
        return asked or reference
    if device.name == "cpu":
        each = asked or min(reference, 8)
        least = math.ceil(workload.reference.tensor * workload.reference.pipeline / each)
        raise ConformanceError(
            f"{workload.name} needs {max(nodes, least)} x {each} accelerators; this machine has none that an installed "
            "device plugin can see.",
            "Rehearse on the CPU with -m tiny, or name the vendor's plugin with --device.",
        )
    found = count_devices(device)
    if found < 1:
        raise ConformanceError(
            f"{workload.name} needs accelerators; this node shows none ({device.name}){_absence(device)}.",
            f"`conformance device-check {device.name}` tells what is missing.",
        )
    wanted = asked or min(reference, found)
    if found < wanted:
        raise ConformanceError(
            f"{workload.name} needs {nodes} x {wanted} accelerators; this node has {found} ({device.name}).",
            f"Make the others visible, or begin anew with --devices-per-node {found}.",
        )
    return wanted


def _absence(device: Device) -> str:
    """What a plugin says of why it shows no device."""
    try:
        why = getattr(device, "absence", str)()
    except Exception:  # a third party's code, and device-check tells of it
        return ""
    return f": {why}" if why else ""
