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
# The same command in every pod; the training operator sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in each.
# The pod of rank 0 judges the run and holds the report: mount a volume at /reports to keep it.
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
          volumes:
            - {{name: shm, emptyDir: {{medium: Memory}}}}
            - {{name: reports, emptyDir: {{}}}}
"""

EPILOG = """\
examples:
  conformance launch-script slurm llama2-7b-perf --nodes 4 > run.sbatch && sbatch run.sbatch
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
        "--resource", default="nvidia.com/gpu", metavar="NAME", help="Kubernetes' name of the device (nvidia.com/gpu)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the script.

    Args:
        args: Parsed arguments.

    Returns:
        0.

    Raises:
        ConformanceError: The workload is unknown, or no such run is legal.
    """
    import json

    from conformance.plan import Topology, make_plan
    from conformance.spec import load_workload

    workload = load_workload(args.workload)
    make_plan(workload, Topology(args.nodes, args.devices_per_node))
    command = [
        *("pytest", f"suites/{workload.kind}", "-m", workload.mark),
        *("--nodes", str(args.nodes), "--devices-per-node", str(args.devices_per_node)),
    ]
    fields: dict[str, object] = {
        "name": workload.name,
        "nodes": args.nodes,
        "devices": args.devices_per_node,
        "resource": args.resource,
    }
    if args.scheduler == "slurm":
        print(SLURM.format(command=shlex.join(command), **fields), end="")
    else:
        fields["command"] = json.dumps([*command, "--reports", "/reports"])
        print(KUBERNETES.format(**fields), end="")
        for role, replicas in (("Master", 1), ("Worker", args.nodes - 1)):
            if replicas:
                print(REPLICAS.format(role=role, replicas=replicas, **fields), end="")
    return 0
