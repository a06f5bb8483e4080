"""Forward and backward of one training step: InternEvo under the suite beside a plain Hugging Face Llama of its shape.

Both take the slice workload's model and micro batches on one device, one after the other. InternEvo's time is the
median ``fwd_bwd_time`` of its log (packed documents of dummy data); the peer's is measured between device events, with
sequences of the full length, once for each attention that PyTorch offers it. torch.compile of the whole peer is left
out: it takes minutes and was no faster than cuDNN's attention alone.

    python suites/selftest/benchmarks/bench_peer.py [-m slice] --internevo PATH [--set num_layers=6]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from conformance.spec import load_workload

ROOT = Path(__file__).resolve().parents[3]
# The first steps warm up: allocator, kernels, graph compilation.
WARM_UP_STEPS = 2
PEER_STEPS = 6


def main() -> int:
    """Measure and print.

    Returns:
        0; 3 when InternEvo was slower than the fastest peer; 4 without a CUDA device or without transformers.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _, options = parser.parse_known_args()
    if shutil.which("nvidia-smi") is None or importlib.util.find_spec("transformers") is None:
        print("bench_peer: no CUDA device here, or transformers is not installed; nothing was measured.")
        return 4
    if not any(option.startswith("-m") for option in options):
        options += ["-m", "slice"]
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "pytest", "suites/perf", "-q", "--run-dir", str(run), "--reports", folder]
        told = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
        logs = "".join(log.read_text(errors="replace") for log in sorted(run.glob("logs/node*/rank*.log")))
        times = [float(found) for found in re.findall(r"fwd_bwd_time=([\d.]+)", logs)][WARM_UP_STEPS:]
        if not times:
            raise SystemExit(f"The suite made no run:\n{told.stdout[-2000:]}{told.stderr[-2000:]}")
        plan = json.loads((run / "configs/plan.json").read_text())
    ours = statistics.median(times)
    print(f"InternEvo under the suite: {ours:.2f} s, median of {len(times)} steps", flush=True)
    peers = [peer(plan, attention) for attention in ("FLASH_ATTENTION", "CUDNN_ATTENTION")]
    print(f"ratio to the fastest peer: {ours / min(peers):.3f}")
    return 3 if ours > min(peers) else 0


def peer(plan: dict, attention: str) -> float:
    """Median seconds of forward and backward over a step's micro batches."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from transformers import LlamaConfig, LlamaForCausalLM

    model_shape = load_workload(plan["workload"]).model
    config = LlamaConfig(
        hidden_size=model_shape.hidden_size,
        intermediate_size=model_shape.ffn_size,
        num_hidden_layers=plan["num_layers"],
        num_attention_heads=model_shape.num_attention_heads,
        num_key_value_heads=model_shape.num_kv_attention_heads,
        vocab_size=model_shape.vocab_size,
        attn_implementation="sdpa",
        use_cache=False,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    batch = (plan["micro_bsz"], model_shape.seq_len)
    times = []
    with sdpa_kernel(getattr(SDPBackend, attention)):
        for number in range(WARM_UP_STEPS + PEER_STEPS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(plan["micro_num"]):
                ids = torch.randint(0, model_shape.vocab_size, batch, device="cuda")
                model(input_ids=ids, labels=ids).loss.backward()
            end.record()
            torch.cuda.synchronize()
            model.zero_grad(set_to_none=False)
            if number >= WARM_UP_STEPS:
                times.append(start.elapsed_time(end) / 1e3)
    del model
    torch.cuda.empty_cache()
    name = attention.split("_")[0].lower()
    print(
        f"Hugging Face Llama, {name} attention: {statistics.median(times):.3f} s, median of {len(times)} steps",
        flush=True,
    )
    return statistics.median(times)


if __name__ == "__main__":
    raise SystemExit(main())
