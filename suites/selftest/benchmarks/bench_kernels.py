"""What could stand in for each kernel on this device: time and error of every candidate, at the 7B shapes.

The candidate that the suite takes is marked with an arrow; the others are why. Times are medians between device events,
forward and backward; errors are relative norms against fp64 (attention: fp32), the worst of output and gradients.

    python suites/selftest/benchmarks/bench_kernels.py
"""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from conformance.kernels import fast, reference

TOKENS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY, SEQ_LEN = 8192, 4096, 32, 8, 128, 32000, 4096
EPS = 1e-5
BF16 = torch.bfloat16


def main() -> int:
    """Measure and print.

    Returns:
        0; 4 without a CUDA device.
    """
    if not torch.cuda.is_available():
        print("bench_kernels: no CUDA device here; nothing was measured.")
        return 4
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {TOKENS} tokens, forward and backward")
    rms_norm()
    rotary()
    cross_entropy()
    attention("two documents of 4096", [SEQ_LEN, SEQ_LEN])
    attention("documents as InternEvo's dummy data has them", dummy_lengths())
    return 0


def compare(title: str, run: Callable[[], Sequence[Tensor]], exact: Sequence[Tensor], operations: float = 0.0) -> None:
    """Time one candidate, say how wrong it is, and print a line."""
    try:
        wrong = max(error(got, want) for got, want in zip(run(), exact, strict=True))
        seconds = median_seconds(run)
    except Exception as failure:  # a candidate that this PyTorch lacks is a finding too
        print(f"  {title:44s} not here: {str(failure).splitlines()[0][:90]}")
        return
    speed = f"{operations / seconds / 1e12:6.0f} TFLOPS" if operations else ""
    print(f"  {title:44s} {seconds * 1e3:8.3f} ms   error {wrong:.1e} {speed}", flush=True)


def error(got: Tensor, want: Tensor) -> float:
    """Relative norm of the difference."""
    return float((got.detach().double() - want.detach().double()).norm() / want.detach().double().norm())


def median_seconds(run: Callable[[], object], samples: int = 10) -> float:
    """Median time between device events, after three runs that are not counted."""
    times = []
    for number in range(samples + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if number >= 3:
            times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def bf16(*shape: int, grad: bool = True) -> Tensor:
    """Random numbers on the device."""
    return torch.randn(*shape, device="cuda", dtype=BF16).requires_grad_(grad)


def rms_norm() -> None:
    """RMSNorm: the plain one that InternEvo falls back to, PyTorch's fused one, and the reference compiled."""
    x, gain, upstream = bf16(TOKENS, HIDDEN), bf16(HIDDEN), bf16(TOKENS, HIDDEN, grad=False)

    def gradients(norm: Callable[[Tensor, Tensor], Tensor], x: Tensor, gain: Tensor, up: Tensor) -> list[Tensor]:
        out = norm(x, gain)
        return [out, *torch.autograd.grad(out, (x, gain), up)]

    wide = [t.detach().double().requires_grad_() for t in (x, gain)]
    exact = gradients(lambda x, g: reference.rms_norm(x, g, EPS), *wide, upstream.double())
    fused = torch.compile(reference.rms_norm)
    print("RMSNorm")
    compare(
        "plain, the mean in fp32",
        lambda: gradients(
            lambda x, g: g * (x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPS)).to(BF16),
            x, gain, upstream,
        ),
        exact,
    )  # fmt: skip
    compare(
        "-> torch.nn.functional.rms_norm",
        lambda: gradients(lambda x, g: F.rms_norm(x, (HIDDEN,), g, EPS), x, gain, upstream),
        exact,
    )
    compare("torch.compile", lambda: gradients(lambda x, g: fused(x, g, EPS), x, gain, upstream), exact)


def rotary() -> None:
    """Rotary embedding of the queries, forward only; backward is the same kernel."""
    x, angles = bf16(TOKENS, HEADS, HEAD_DIM, grad=False), torch.rand(TOKENS, 1, HEAD_DIM // 2, device="cuda")
    cos, sin, output = angles.cos().to(BF16), angles.sin().to(BF16), torch.empty_like(x)
    halves, into = x.chunk(2, dim=-1), output.chunk(2, dim=-1)
    exact = torch.cat(reference.rotate(*(t.double() for t in (*halves, cos, sin)), conjugate=False), dim=-1)

    def plain() -> list[Tensor]:
        for target, result in zip(into, reference.rotate(*halves, cos, sin, conjugate=False), strict=True):
            target.copy_(result)
        return [output]

    def fused() -> list[Tensor]:
        fast.rotate_into(*halves, cos, sin, *into, False)
        return [output]

    print("rotary embedding of the queries, forward")
    compare("plain, in fp32", plain, [exact])
    compare("-> torch.compile", fused, [exact])


def cross_entropy() -> None:
    """Cross-entropy of fp32 logits, as InternEvo hands them over."""
    logits = torch.randn(TOKENS, VOCABULARY, device="cuda").requires_grad_()
    labels = torch.randint(0, VOCABULARY, (TOKENS,), device="cuda")

    def gradients(loss: Callable[[Tensor], Tensor], logits: Tensor) -> list[Tensor]:
        mean = loss(logits).mean()
        return [mean, *torch.autograd.grad(mean, logits)]

    exact = gradients(lambda t: F.cross_entropy(t, labels, reduction="none"), logits.detach().double().requires_grad_())
    print(f"cross-entropy over {VOCABULARY}")
    compare("plain", lambda: gradients(lambda t: reference.cross_entropy(t, labels), logits), exact)
    compare("torch.nn.functional.cross_entropy",
            lambda: gradients(lambda t: F.cross_entropy(t, labels, reduction="none"), logits), exact)  # fmt: skip
    compare("-> torch.compile", lambda: gradients(lambda t: fast.cross_entropy(t, labels, -100), logits), exact)


def dummy_lengths() -> list[int]:
    """Document lengths drawn as InternEvo's dummy data set draws them: 1 to 29 numbers, 10 to 199 times, and two."""
    rng, lengths = random.Random(1999), [0]
    while sum(lengths) < TOKENS:
        lengths.append(min(SEQ_LEN, 2 + rng.randint(1, 29) * rng.randint(10, 199), TOKENS - sum(lengths)))
    return lengths[1:]


def attention(title: str, lengths: list[int]) -> None:
    """Causal attention over packed documents with grouped KV heads."""
    ends = list(itertools.accumulate(lengths))
    bounds = torch.tensor([0, *ends], dtype=torch.int32, device="cuda")
    q, k, v = bf16(TOKENS, HEADS, HEAD_DIM), bf16(TOKENS, KV_HEADS, HEAD_DIM), bf16(TOKENS, KV_HEADS, HEAD_DIM)
    upstream, longest = bf16(TOKENS, HEADS, HEAD_DIM, grad=False), max(lengths)
    pieces = []
    for start, end in zip([0, *ends], ends, strict=False):
        part = [t[start:end].detach().float().requires_grad_() for t in (q, k, v)]
        out = reference.attention(*part, causal=True)
        pieces.append([out, *torch.autograd.grad(out, part, upstream[start:end].float())])
    exact = [torch.cat(parts).detach() for parts in zip(*pieces, strict=True)]

    def gradients(out: Tensor) -> list[Tensor]:
        return [out, *torch.autograd.grad(out, (q, k, v), upstream)]

    # Forward 4 operations a pair, head and channel; backward 2.5 times that.
    operations = 3.5 * 4 * sum(n * (n + 1) / 2 for n in lengths) * HEADS * HEAD_DIM
    print(f"attention, {title}: {len(lengths)} documents")
    compare("-> torch's FlashAttention, varlen", lambda: gradients(
        fast.varlen_attention(q, k, v, bounds, bounds, longest, longest, causal=True)), exact, operations)  # fmt: skip
    compare("flex_attention, torch.compile", flex(lengths, q, k, v, gradients), exact, operations)
    if len(set(lengths)) == 1:  # cuDNN's takes sequences of one length; its varlen form was slow and wrong here
        compare("cuDNN, dense", dense_cudnn(lengths[0], q, k, v, gradients), exact, operations)


def flex(lengths: list[int], q: Tensor, k: Tensor, v: Tensor, gradients: Callable) -> Callable:
    """Attention by flex_attention with a mask of documents; making the mask is not counted."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).cuda()
    mask = create_block_mask(
        lambda b, h, i, j: (document[i] == document[j]) & (i >= j), None, None, TOKENS, TOKENS, device="cuda"
    )
    fused = torch.compile(flex_attention, dynamic=False)
    rows = [t.transpose(0, 1)[None] for t in (q, k, v)]
    return lambda: gradients(fused(*rows, block_mask=mask, enable_gqa=True)[0].transpose(0, 1))


def dense_cudnn(length: int, q: Tensor, k: Tensor, v: Tensor, gradients: Callable) -> Callable:
    """Attention by cuDNN over sequences of one length."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    rows = [t.unflatten(0, (-1, length)).transpose(1, 2) for t in (q, k, v)]

    def run() -> list[Tensor]:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            out = F.scaled_dot_product_attention(*rows, is_causal=True, enable_gqa=True)
        return gradients(out.transpose(1, 2).flatten(0, 1))

    return run


if __name__ == "__main__":
    raise SystemExit(main())
