#!/usr/bin/env bash
# The official configurations on all accelerators of one machine: preflight, LLaMA2 7B performance, and the beginning of LLaMA2
# 7B accuracy. One stage a call, since each takes minutes; what came of all so far lies in OUT/reports, and without checkpoints and
# caches in OUT/reports.tgz, from which `conformance bundle` makes a submission elsewhere.
#
#   reference_logs/official_7b.sh preflight|perf|accuracy|resume OUT INTERNEVO [DATA]
#
#   preflight  the whole preflight, one worker a device
#   perf       `pytest suites/perf -m 7b --nodes 1` once; call it three times
#   accuracy   `pytest suites/accuracy -m 7b --nodes 1` on DATA, ended after STEPS steps by InternEvo's stop file
#   resume     the same run, gone on with from its checkpoint and ended after twice as many
#
# INTERNEVO is a checkout of v0.2.3dev20240201, for accuracy and resume of v0.3.1dev20240229. The checkpoints of 7B take 304 GB
# under OUT; a tmpfs will do. STEPS is 12. MARK=slice takes the slices for one device instead. NVLink multicast stays off:
# it can take a shared host's devices down.
set -euo pipefail
cd "$(dirname "$0")/.."
stage=$1 out=$(realpath -m "$2") internevo=$3 data=${4:-}
mark=${MARK:-7b} steps=${STEPS:-12}
mkdir -p "$out/reports"
export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 NVSHMEM_DISABLE_NVLS=1
failed=0

suite() {
  local name=$1; shift
  echo "== $name: pytest $*"
  python3 -m pytest "$@" -q -p no:cacheprovider --internevo "$internevo" --reports "$out/reports" --run-dir "$out/reports/$name"
}

# Ends a training run after a number of steps, as a person would: InternEvo looks into the file after each step, and saves.
# It empties the file when it starts; so the order is given once it trains.
stop_after() {
  local name=$1 steps=$2; shift 2
  suite "$name" "$@" &
  local run=$out/reports/$name
  while kill -0 $! 2>/dev/null && ! grep -qs ' step=[0-9]' "$run/logs/node0/rank0.log"; do sleep 1; done
  echo "== $name: told to stop after $steps steps"
  (cd "$run/work" && echo -n "$steps" >stop.new && mv stop.new stop)
  wait $!
}

# A red check is evidence too, and what ends early is not complete: the files are packed in any case.
case $stage in
  preflight) suite preflight suites/preflight -n auto || failed=1 ;;
  perf) suite "perf$(find "$out/reports" -maxdepth 1 -name 'perf*' | wc -l)" suites/perf -m "$mark" --nodes 1 || failed=1 ;;
  accuracy) stop_after accuracy "$steps" suites/accuracy -m "$mark" --nodes 1 --data "$data" || failed=1 ;;
  resume) stop_after resumed $((2 * steps)) suites/accuracy -m "$mark" --nodes 1 --resume "$out/reports/accuracy" || failed=1 ;;
  *) echo "Unknown stage $stage; expected preflight, perf, accuracy or resume." >&2; exit 2 ;;
esac
tar --exclude='*/work' --exclude='*.html' -czf "$out/reports.tgz" -C "$out" reports
exit $failed
