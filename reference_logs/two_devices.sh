#!/usr/bin/env bash
# What two accelerators of one machine show that one cannot: collectives, parallelism, and two nodes of one device each.
# One stage a call, since each takes minutes; what came of it lies in OUT/reports, and without its checkpoints and caches
# in OUT/STAGE.tgz.
#
#   reference_logs/two_devices.sh preflight|layers|losses|nodes OUT INTERNEVO
#
#   preflight  the whole preflight, one worker a device
#   layers     all 32 layers of the 7B shape, 20 steps: data parallel with ZeRO-1, tensor parallel, pipeline parallel
#   losses     8 layers on one device, tensor parallel and pipeline parallel: the same model and batch, loss by loss
#   nodes      8 layers on two nodes of one device each: one command a node, and one command under Slurm (as root)
#
# INTERNEVO is a checkout of v0.2.3dev20240201. NVLink multicast stays off: it can take a shared host's devices down.
set -euo pipefail
cd "$(dirname "$0")/.."
stage=$1 out=$(realpath -m "$2") internevo=$3
mkdir -p "$out/reports"
export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 NVSHMEM_DISABLE_NVLS=1
failed=0

# pytest with the suite's options; a red check is evidence too, so the stage goes on.
suite() {
  local name=$1; shift
  echo "== $name: pytest $*"
  python3 -m pytest "$@" -q -p no:cacheprovider --reports "$out/reports" --run-dir "$out/reports/$name" || failed=1
}
slice() {
  local name=$1; shift
  suite "$name" suites/perf -m slice --internevo "$internevo" "$@"
}

case $stage in
  preflight) suite preflight suites/preflight -n auto --internevo "$internevo" ;;
  layers)
    slice dp2-32-layers --devices-per-node 2 --set num_layers=32
    slice tp2-32-layers --devices-per-node 2 --set num_layers=32 --set tensor=2
    slice pp2-32-layers --devices-per-node 2 --set num_layers=32 --set pipeline=2
    ;;
  losses)
    slice one-8-layers --devices-per-node 1 --set num_layers=8
    slice tp2-8-layers --devices-per-node 2 --set num_layers=8 --set tensor=2
    slice pp2-8-layers --devices-per-node 2 --set num_layers=8 --set pipeline=2
    ;;
  nodes)
    # Each node has a reports folder of its own, as on two machines.
    two=(--nodes 2 --devices-per-node 1 --set num_layers=8 --set total_steps=10 --master-addr 127.0.0.1 --master-port 29650)
    CUDA_VISIBLE_DEVICES=1 python3 -m pytest suites/perf -m slice -q -p no:cacheprovider --internevo "$internevo" \
      "${two[@]}" --node-rank 1 --reports "$out/node1" >"$out/node1.txt" 2>&1 &
    CUDA_VISIBLE_DEVICES=0 slice torchrun-2-nodes "${two[@]}" --node-rank 0
    wait $! || failed=1
    cat "$out/node1.txt"
    python3 suites/selftest/launch/slurm_cluster.py "$out/slurm" salloc --nodes=2 --gres=gpu:1 \
      python3 -m pytest suites/perf -m slice -q -p no:cacheprovider --internevo "$internevo" --nodes 2 --devices-per-node 1 \
      --set num_layers=8 --set total_steps=10 --reports "$out/reports" --run-dir "$out/reports/slurm-2-nodes" || failed=1
    ;;
  *) echo "Unknown stage $stage; expected preflight, layers, losses or nodes." >&2; exit 2 ;;
esac
tar --exclude='*/work' --exclude='*.html' -czf "$out/$stage.tgz" -C "$out" reports
exit $failed
