"""Preflight's figures beside a plain measurement on the same device: GEMM, copy and attention.

The plain side is what one would type: a loop between two device events, nothing flushed, nothing rotated.

    python suites/selftest/benchmarks/bench_preflight.py [--internevo PATH]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

from conformance.kernels import fast

ROOT = Path(__file__).resolve().parents[3]
LOOPS = 20
SQUARE = 8192
COPY_BYTES = 4 << 30
TOKENS, SEQ_LEN, HEADS, KV_HEADS, HEAD_DIM = 8192, 4096, 32, 8, 128


def main() -> int:
    """Measure and print.

    Returns:
        0; 3 when a figure differs by more than 2%; 4 without a CUDA device.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _, options = parser.parse_known_args()
    if shutil.which("nvidia-smi") is None:
        print("bench_preflight: no CUDA device here; nothing was measured.")
        return 4
    before = plain_elsewhere()
    with tempfile.TemporaryDirectory(prefix="preflight-") as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "pytest", "suites/preflight", "-q", "--device", "cuda"]
        told = subprocess.run([*command, "--run-dir", str(run), *options], cwd=ROOT, capture_output=True, text=True)
        print(told.stdout[-200:].strip().splitlines()[-1])
        found = measured(run)
    after = plain_elsewhere()
    worst = 0.0
    for name, (unit, first) in before.items():
        typed = (first + after[name][1]) / 2
        worst = max(worst, abs(found[name] / typed - 1))
        ratio = found[name] / typed
        print(f"{name:10s} preflight {found[name]:7.1f}, plain {typed:7.1f} {unit}, ratio {ratio:.4f}")
    return 3 if worst > 0.02 else 0


def measured(run: Path) -> dict[str, float]:
    """Preflight's own figures, from its evidence."""
    records = [
        json.loads(line) for file in run.rglob("*.jsonl") for line in file.read_text().splitlines() if '"kind"' in line
    ]

    def one(kind: str, value: str, **fields: str) -> float:
        return next(
            float(r[value])
            for r in records
            if r["kind"] == kind and all(str(r.get(name, "")).startswith(text) for name, text in fields.items())
        )

    return {
        "GEMM": one("gemm", "tflops", name="square", setting="alone"),
        "copy": one("copy", "gb_per_s", setting="alone"),
        "attention": one("kernel-speed", "tflops", kernel="attention", case="full"),
    }


def plain_elsewhere() -> dict[str, tuple[str, float]]:
    """The plain figures from a process of their own, so that preflight finds the device idle."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(plain).result()


def plain() -> dict[str, tuple[str, float]]:
    """The same three, typed plainly."""
    a, b = (torch.randn(SQUARE, SQUARE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    gemm = 2 * SQUARE**3 / seconds(lambda: a @ b) / 1e12
    source = torch.randint(0, 256, (COPY_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * COPY_BYTES / seconds(partial(target.copy_, source)) / 1e9
    del source, target
    q, k, v = (
        torch.randn(TOKENS, heads, HEAD_DIM, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    bounds = torch.arange(0, TOKENS + 1, SEQ_LEN, device="cuda", dtype=torch.int32)
    upstream = torch.randn_like(q)

    def attend() -> None:
        out = fast.varlen_attention(q, k, v, bounds, bounds, SEQ_LEN, SEQ_LEN, causal=True)
        torch.autograd.grad(out, (q, k, v), upstream)

    pairs = TOKENS // SEQ_LEN * SEQ_LEN * (SEQ_LEN + 1) / 2
    attention = 3.5 * 4 * pairs * HEADS * HEAD_DIM / seconds(attend) / 1e12
    torch.cuda.empty_cache()
    return {"GEMM": ("TFLOPS", gemm), "copy": ("GB/s", copy), "attention": ("TFLOPS", attention)}


def seconds(work: Callable[[], object]) -> float:
    """Mean time of a loop between two device events, after three runs that are not counted."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        work()
    start.record()
    for _ in range(LOOPS):
        work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / LOOPS


if __name__ == "__main__":
    raise SystemExit(main())
