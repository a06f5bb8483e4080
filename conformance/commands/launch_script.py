"""``conformance launch-script``: an sbatch script or a PyTorchJob manifest for a run on several nodes."""

from __future__ import annotations

import argparse
import shlex

SLURM = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:{devices}
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --signal=B:TERM@120
#SBATCH --output={name}-%j.out
# One pytest, on the first node, starts an agent on every node through srun, and judges the run.
# This folder must be visible on every node. --signal leaves 2 minutes to end the run in order and sign its report.
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
export SRUN_CPUS_PER_TASK="${{SLURM_CPUS_ON_NODE:-1}}"
# exec: the batch shell would keep the signal to itself.
exec {command} --launcher slurm
"""

KUBERNETES = """\
# The same command in every pod; the training operator tells each its index and where pod 0 is.
# {note}
apiVersion: kubeflow.org/v1
kind: PyTorchJob
metadata:
  name: {name}
spec:
  runPolicy:
    cleanPodPolicy: None
    backoffLimit: 0
  pytorchReplicaSpecs:
"""

REPLICAS = """\
    {role}:
      replicas: {replicas}
      restartPolicy: Never
      template:
        spec:
          containers:
            - name: pytorch
              image: IMAGE  # the suite, InternEvo and the vendor's stack
              command: {command}
              resources:
                limits:
                  {resource}: {devices}
              volumeMounts:
                - {{name: shm, mountPath: /dev/shm}}
                - {{name: reports, mountPath: /reports}}
{mounts}          volumes:
            - {{name: shm, emptyDir: {{medium: Memory}}}}
{volumes}"""
RESOURCE = "nvidia.com/gpu"
OWN_NOTE = "The pod of rank 0 judges the run and holds the report: mount a volume at /reports to keep it."
OWN = """\
            - {name: reports, emptyDir: {}}
"""
SHARED_NOTE = "CLAIM and DATA-CLAIM are volumes that all pods share (ReadWriteMany): checkpoints lie on the first."
SHARED = """\
            - {name: reports, persistentVolumeClaim: {claimName: CLAIM}}
            - {name: data, persistentVolumeClaim: {claimName: DATA-CLAIM, readOnly: true}}
"""

EPILOG = """\
examples:
  conformance launch-script slurm llama2-7b-perf --nodes 4 > run.sbatch && sbatch run.sbatch
  conformance launch-script slurm llama2-7b-accuracy --nodes 8 --data data --pytest "--until-target" > run.sbatch
  conformance launch-script kubernetes llama2-70b-perf --nodes 16 | kubectl apply -f -
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: The command's parser.
    """
    parser.description = "Print what starts a run on several nodes; edit it to fit the site."
    parser.epilog = EPILOG
    parser.add_argument("scheduler", choices=("slurm", "kubernetes"))
    parser.add_argument("workload", metavar="WORKLOAD", help="such as llama2-7b-perf")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="number of nodes (default: 1)")
    parser.add_argument("--devices-per-node", type=int, default=8, metavar="N", help="devices on each (default: 8)")
    parser.add_argument(
        "--data", metavar="DIR", help="folder of prepared data, as every node sees it; an accuracy run needs it"
    )
    parser.add_argument(
        "--pytest", default="", metavar="OPTIONS", help="more options of pytest, such as '--resume reports/RUN'"
    )
    parser.add_argument("--resource", metavar="NAME", help=f"Kubernetes' name of the device (default: {RESOURCE})")


def run(args: argparse.Namespace) -> int:
    """Print the script.

    Args:
        args: Parsed arguments.

    Returns:
        0.

    Raises:
        ConformanceError: The workload is unknown, no such run is legal, or the options for pytest cannot be read.
    """
    import json

    from conformance.errors import ConformanceError
    from conformance.plan import Topology, make_plan
    from conformance.spec import load_workload

    workload = load_workload(args.workload)
    make_plan(workload, Topology(args.nodes, args.devices_per_node))
    trains_on_data = workload.data != "dummy"
    if trains_on_data != (args.data is not None):
        named = "no data were" if trains_on_data else "--data was"
        raise ConformanceError(
            f"{workload.name} trains on {workload.data}, and {named} named.",
            "Name the folder of prepared data with --data." if trains_on_data else "Leave --data out.",
        )
    if args.scheduler == "slurm" and args.resource is not None:
        raise ConformanceError("Slurm knows no --resource.", "Leave it out, and edit the script's --gres.")
    try:
        more = shlex.split(args.pytest)
    except ValueError as error:
        raise ConformanceError(
            f"--pytest {args.pytest!r} is no list of options: {str(error).lower()}.",
            "Close every quotation mark that it opens.",
        ) from error
    command = [
        *("pytest", f"suites/{workload.kind}", "-m", workload.mark),
        *("--nodes", str(args.nodes), "--devices-per-node", str(args.devices_per_node)),
        *(("--data", args.data) if trains_on_data else ()),
        *more,
    ]
    fields: dict[str, object] = {
        "name": workload.name,
        "nodes": args.nodes,
        "devices": args.devices_per_node,
        "resource": args.resource or RESOURCE,
    }
    if args.scheduler == "slurm":
        print(SLURM.format(command=shlex.join(command), **fields), end="")
    else:
        fields["command"] = json.dumps([*command, "--reports", "/reports"])
        mount = f"                - {{name: data, mountPath: {json.dumps(args.data)}, readOnly: true}}\n"
        fields |= {"mounts": mount, "volumes": SHARED} if trains_on_data else {"mounts": "", "volumes": OWN}
        print(KUBERNETES.format(note=SHARED_NOTE if trains_on_data else OWN_NOTE, **fields), end="")
        for role, replicas in (("Master", 1), ("Worker", args.nodes - 1)):
            if replicas:
                print(REPLICAS.format(role=role, replicas=replicas, **fields), end="")
    return 0
