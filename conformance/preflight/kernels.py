"""Every kernel that InternEvo calls, forward and backward, at the plan's shapes, beside a plain reference.

Inputs are fresh random numbers, scaled beyond fp16's range where the kernel is linear in them; memory that results will
take is poisoned with NaN first. A kernel is what InternEvo would import here: the platform's own, or a stand-in.
"""

from __future__ import annotations

import importlib
import itertools
import math
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conformance.kernels import install, reference
from conformance.preflight.probe import BEYOND_FP16, Journal, exact_products, poison, relative_error, time_on_device
from conformance.preflight.worker import KERNEL_HANGS, Task
from conformance.spec.model import Model

Results = dict[str, Tensor]
BF16 = torch.bfloat16
DOCUMENTS = 64
# AdamW as the official workloads set it.
LR, BETA1, BETA2, EPS, WEIGHT_DECAY = 1e-4, 0.9, 0.95, 1e-8, 0.01
CLIP, LOSS_SCALE = 1.0, 65536.0
REHEARSAL_ADAM_ELEMENTS = 1 << 20
# Of memory for each element: two steps, kept twice, and the same in fp64 with what its norms need.
ADAM_BYTES = 256


@dataclass(frozen=True)
class Case:
    """A kernel on given inputs.

    Args:
        kernel: Name of the kernel.
        case: What distinguishes it from the kernel's other cases.
        provider: Which implementation runs.
        dtype: Dtype that the kernel computes in.
        run: Computes all results, always from the same inputs.
        expected: Computes the same by the reference.
        flops: Operations of one run; None where they say nothing.
        view: How results are looked at; not timed.
    """

    kernel: str
    case: str
    provider: str
    dtype: str
    run: Callable[[], Results]
    expected: Callable[[], Results]
    flops: float | None = None
    view: Callable[[Results], Results] = lambda results: results


def measure(task: Task, journal: Journal) -> None:
    """Run every kernel.

    Args:
        task: What is planned.
        journal: Gets a record "kernel" for each result of each case, and a record "kernel-speed" for each case.
    """
    journal.phase("kernels: import")
    providers = {source.module: f"{source.provider} {source.version}" for source in install()}
    model = Model(**task.model)  # type: ignore[arg-type]
    seed = task.seed + int(os.environ["RANK"])
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)
    behind, hung = journal.behind(), journal.hung()
    for build in (_attention, _rotary, _rms_norm, _linear, _cross_entropy, _embedding, _adamw, _grad_norm, _scatter):
        name = build.__name__.strip("_").replace("_", "-")
        part = f"kernel {name}"
        if part in behind:
            continue
        error = {"kind": "kernel-error", "part": part, "kernel": name}
        if len(hung) >= KERNEL_HANGS:
            journal.record("kernel-error", **error, problem=f"not measured, because {' and '.join(hung)} hung")
            continue
        hang = f"hang, no end after {task.kernel_seconds:g} s"
        limit = task.kernel_seconds, {**error, "problem": hang, "hung": True}
        journal.phase(part, *limit)
        try:
            for case in build(model, task, providers):
                journal.phase(f"{part}: {case.case}", *limit)
                _measure_case(case, task, journal)
                torch.cuda.empty_cache()
            journal.over(part)
        except Exception as fault:  # the platform's code: one broken kernel hides no other
            journal.record("kernel-error", **error, problem=f"{type(fault).__name__}: {fault}".splitlines()[0])


def _measure_case(case: Case, task: Task, journal: Journal) -> None:
    raw = case.run()
    for dtype in {result.dtype for result in raw.values() if result.dtype.is_floating_point}:
        poison(*(tuple(result.shape) for result in raw.values()), dtype=dtype)
    first = case.view(raw)
    second = case.view(case.run())
    exact_products()
    for name, exact in case.view(case.expected()).items():
        journal.record(
            "kernel",
            kernel=case.kernel,
            case=case.case,
            result=name,
            provider=case.provider,
            dtype=case.dtype,
            shape=list(second[name].shape),
            seed=task.seed,
            same_twice=_same_bits(first[name], second[name]),
            **relative_error(second[name], exact),
        )
    del raw, first, second
    timing = time_on_device(
        lambda number: case.run(), warmup=1, samples=5, budget_seconds=0.1 if task.rehearsal else 0.3
    )
    speed = {} if case.flops is None else {"tflops": case.flops / timing["seconds"] / 1e12}
    journal.record("kernel-speed", kernel=case.kernel, case=case.case, provider=case.provider, **timing, **speed)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    # As bytes: nan equals nothing, not even itself.
    return bool(torch.equal(*(result.contiguous().view(torch.uint8) for result in (one, other))))


def _randn(*shape: int, scale: float = 1.0, dtype: torch.dtype = BF16) -> Tensor:
    return (torch.randn(*shape, device="cuda") * scale).to(dtype)


def _gradients(output: Tensor, inputs: dict[str, Tensor], upstream: Tensor) -> Results:
    gradients = torch.autograd.grad(output, list(inputs.values()), upstream)
    return {"out": output.detach(), **{f"d{name}": grad for name, grad in zip(inputs, gradients, strict=True)}}


# --- attention ---


def document_lengths(tokens: int, seq_len: int, seed: int) -> dict[str, list[int]]:
    """How documents lie in a pack.

    Args:
        tokens: Length of the pack.
        seq_len: Longest document.
        seed: Seed of the random lengths.

    Returns:
        Lengths by case: full sequences; odd lengths with 1 among them; many documents of random length.
    """
    full = _filled([], tokens, seq_len)
    odd = _filled([1, 2, seq_len // 8 - 1, seq_len // 4 + 1, 1], tokens, seq_len)
    cuts = random.Random(seed).sample(range(1, tokens), min(DOCUMENTS, tokens // 4) - 1)
    bounds = [0, *sorted(cuts), tokens]
    many = _filled([min(end - start, seq_len) for start, end in itertools.pairwise(bounds)], tokens, seq_len)
    return {"full": full, "odd": odd, "many": many}


def _filled(lengths: list[int], tokens: int, seq_len: int) -> list[int]:
    rest = tokens - sum(lengths)
    return lengths + [seq_len] * (rest // seq_len) + [rest % seq_len] * (rest % seq_len > 0)


def _attention(model: Model, task: Task, providers: dict[str, str]) -> Iterator[Case]:
    attend: Any = importlib.import_module("flash_attn").flash_attn_varlen_kvpacked_func
    heads, kv_heads, dim = model.num_attention_heads, model.num_kv_attention_heads, model.head_dim
    heads, kv_heads = heads // task.tensor, max(1, kv_heads // task.tensor)
    for name, lengths in document_lengths(task.tokens, model.seq_len, task.seed).items():
        tokens = sum(lengths)
        q = _randn(tokens, heads, dim).requires_grad_()
        kv = _randn(tokens, 2, kv_heads, dim)
        kv[:, 1] *= BEYOND_FP16
        kv.requires_grad_()
        upstream = _randn(tokens, heads, dim, scale=BEYOND_FP16)
        ends = torch.tensor(lengths).cumsum(0).tolist()
        bounds = torch.tensor([0, *ends], dtype=torch.int32, device="cuda")
        longest = max(lengths)

        def run(q: Tensor = q, kv: Tensor = kv, b: Tensor = bounds, n: int = longest, up: Tensor = upstream) -> Results:
            out = attend(q, kv, b, b, n, n, 0.0, None, True)
            return _gradients(out, {"q": q, "kv": kv}, up)

        def expected(q: Tensor = q, kv: Tensor = kv, ends: list[int] = ends, up: Tensor = upstream) -> Results:
            return _attention_reference(q, kv, ends, up)

        pairs = sum(length * (length + 1) / 2 for length in lengths)
        # Forward 4 operations a pair, head and channel; backward 2.5 times that.
        flops = 3.5 * 4 * pairs * heads * dim
        told = f"{name}: {len(lengths)} documents, {heads} heads on {kv_heads}"
        yield Case("attention", told, providers["flash_attn"], "bfloat16", run, expected, flops, _by_token)


def _by_token(results: Results) -> Results:
    """A row for each token, so that a token that was left out is seen."""
    split = {
        "out": results["out"],
        "dq": results["dq"],
        "dk": results["dkv"][:, 0],
        "dv": results["dkv"][:, 1],
    }
    return {name: result.reshape(result.shape[0], -1) for name, result in split.items()}


def _attention_reference(q: Tensor, kv: Tensor, ends: list[int], upstream: Tensor) -> Results:
    """One document after the other, so that only one score matrix is held at a time."""
    pieces = []
    for start, end in zip([0, *ends], ends, strict=False):
        part_q = q[start:end].detach().float().requires_grad_()
        part_kv = kv[start:end].detach().float().requires_grad_()
        out = reference.attention(part_q, *part_kv.unbind(1), causal=True)
        pieces.append(_gradients(out, {"q": part_q, "kv": part_kv}, upstream[start:end].float()))
    return {name: torch.cat([piece[name] for piece in pieces]) for name in ("out", "dq", "dkv")}


# --- elementwise layers ---


def _rotary(model: Model, task: Task, providers: dict[str, str]) -> Iterator[Case]:
    apply_rotary: Any = importlib.import_module("rotary_emb").apply_rotary
    rotate_heads: Any = importlib.import_module("flash_attn.layers.rotary").ApplyRotaryEmb
    heads, half = model.num_attention_heads // task.tensor, model.head_dim // 2
    x = _randn(task.tokens, heads, 2 * half, scale=BEYOND_FP16)
    positions = torch.arange(task.tokens, device="cuda") % model.seq_len
    frequencies = 10000.0 ** (-torch.arange(half, device="cuda") / half)
    angles = positions[:, None] * frequencies
    cos, sin = angles.cos().to(BF16), angles.sin().to(BF16)

    for conjugate in (False, True):

        def run(conjugate: bool = conjugate) -> Results:
            turned = x.clone()
            first, second = turned.chunk(2, dim=-1)
            apply_rotary(first, second, cos[:, None], sin[:, None], first, second, conjugate)
            return {"out": turned.flatten(1)}

        def expected(conjugate: bool = conjugate) -> Results:
            first, second = x.float().chunk(2, dim=-1)
            turned = reference.rotate(first, second, cos[:, None], sin[:, None], conjugate=conjugate)
            return {"out": torch.cat(turned, dim=-1).flatten(1)}

        told = "in place, backwards" if conjugate else "in place"
        yield Case("rotary", told, providers["rotary_emb"], "bfloat16", run, expected)

    leaf, upstream = x[None].requires_grad_(), _randn(1, task.tokens, heads, 2 * half, scale=BEYOND_FP16)

    def run_heads() -> Results:
        results = _gradients(rotate_heads.apply(leaf, cos, sin), {"x": leaf}, upstream)
        return {name: result.reshape(task.tokens, -1) for name, result in results.items()}

    def expected_heads() -> Results:
        def turned(whole: Tensor, conjugate: bool) -> Tensor:
            first, second = whole[0].detach().float().chunk(2, dim=-1)
            return torch.cat(reference.rotate(first, second, cos[:, None], sin[:, None], conjugate=conjugate), dim=-1)

        return {"out": turned(leaf, False).flatten(1), "dx": turned(upstream, True).flatten(1)}

    yield Case("rotary", "heads", providers["flash_attn.layers.rotary"], "bfloat16", run_heads, expected_heads)


def _rms_norm(model: Model, task: Task, providers: dict[str, str]) -> Iterator[Case]:
    h, eps = model.hidden_size, model.layer_norm_epsilon
    x = _randn(task.tokens, h, scale=BEYOND_FP16).requires_grad_()
    weight = _randn(h).requires_grad_()
    upstream = _randn(task.tokens, h, scale=BEYOND_FP16)
    try:
        norm = importlib.import_module("apex.normalization.fused_layer_norm").MixedFusedRMSNorm(h, eps=eps).to("cuda")
        provider = providers["apex.normalization.fused_layer_norm"]
    except ImportError:
        norm, provider = None, "torch"

    def run() -> Results:
        if norm is not None:
            with torch.no_grad():
                norm.weight = torch.nn.Parameter(weight.detach())
            return _gradients(norm(x), {"x": x, "weight": norm.weight}, upstream)
        # What InternEvo computes without apex: the mean in fp32, the gain in the model's dtype.
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
        return _gradients(weight * (x * scale).to(BF16), {"x": x, "weight": weight}, upstream)

    def expected() -> Results:
        wide, gain = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
        return _gradients(reference.rms_norm(wide, gain, eps), {"x": wide, "weight": gain}, upstream.double())

    yield Case("rms-norm", f"{task.tokens} x {h}", provider, "bfloat16", run, expected)


def _embedding(model: Model, task: Task, providers: dict[str, str]) -> Iterator[Case]:
    width = model.hidden_size // task.tensor
    weight = _randn(model.vocab_size, width).requires_grad_()
    ids = torch.randint(0, model.vocab_size, (task.tokens,), device="cuda")
    upstream = _randn(task.tokens, width, scale=BEYOND_FP16)

    def run() -> Results:
        return _gradients(F.embedding(ids, weight), {"weight": weight}, upstream)

    def expected() -> Results:
        gradient = torch.zeros(model.vocab_size, width, device="cuda")
        return {"out": weight.detach()[ids].float(), "dweight": gradient.index_add_(0, ids, upstream.float())}

    yield Case("embedding", f"{model.vocab_size} x {width}", "torch", "bfloat16", run, expected)


# --- linear and loss ---


def _linear(model: Model, task: Task, providers: dict[str, str]) -> Iterator[Case]:
    fused: Any = importlib.import_module("flash_attn.ops.fused_dense").FusedDenseFunc
    wgrad: Any = importlib.import_module("fused_dense_lib").linear_bias_wgrad
    rows, columns = model.ffn_size // task.tensor, model.hidden_size
    x = _randn(task.tokens, columns, scale=BEYOND_FP16).requires_grad_()
    weight = _randn(rows, columns, scale=columns**-0.5).requires_grad_()
    upstream = _randn(task.tokens, rows, scale=BEYOND_FP16)

    def expected() -> Results:
        wide, tall, up = x.detach().float(), weight.detach().float(), upstream.float()
        return {"out": wide @ tall.t(), "dx": up @ tall, "dweight": up.t() @ wide}

    def run() -> Results:
        return _gradients(fused.apply(x, weight, None, False, None, False), {"x": x, "weight": weight}, upstream)

    flops = 2.0 * task.tokens * rows * columns
    shape, provider = f"{task.tokens} x {columns} x {rows}", providers["flash_attn.ops.fused_dense"]
    yield Case("linear", shape, provider, "bfloat16", run, expected, 3 * flops)
    yield Case(
        "linear",
        f"weight gradient {shape}",
        providers["fused_dense_lib"],
        "bfloat16",
        lambda: {"dweight": wgrad(x.detach(), upstream, False)[0]},
        lambda: {"dweight": expected()["dweight"]},
        flops,
    )


def _cross_entropy(model: Model, task: Task, providers: dict[str, str]) -> Iterator[Case]:
    loss_type: Any = importlib.import_module("flash_attn.losses.cross_entropy").CrossEntropyLoss
    tokens = min(task.tokens, model.seq_len)
    logits = torch.randn(tokens, model.vocab_size, device="cuda") * 4
    labels = torch.randint(0, model.vocab_size, (tokens,), device="cuda")
    labels[::17] = -100
    provider = providers["flash_attn.losses.cross_entropy"]

    def run() -> Results:
        leaf = logits.clone().requires_grad_()
        # The loss as InternEvo constructs it; its backward may overwrite the logits.
        loss = loss_type(reduction="mean", inplace_backward=True, process_group=None, label_smoothing=0)(leaf, labels)
        results = _gradients(loss, {"logits": leaf}, torch.tensor(LOSS_SCALE, device="cuda"))
        return {"loss": results["out"].reshape(1), "dlogits": results["dlogits"]}

    def expected() -> Results:
        counted = labels != -100
        chances = logits.double().log_softmax(-1)
        safe = labels.clamp(min=0)[:, None]
        loss = -(chances.gather(1, safe)[:, 0] * counted).sum() / counted.sum()
        gradient = chances.exp().scatter_add_(1, safe, -torch.ones_like(safe, dtype=torch.float64))
        return {"loss": loss.reshape(1), "dlogits": gradient * counted[:, None] * LOSS_SCALE / counted.sum()}

    yield Case("cross-entropy", f"{tokens} x {model.vocab_size}", provider, "float32", run, expected)


# --- optimizer and metrics ---


def _adamw(model: Model, task: Task, providers: dict[str, str]) -> Iterator[Case]:
    # As many as the plan gives a rank, where they fit beside their reference.
    fitting = int(torch.cuda.mem_get_info()[0]) // ADAM_BYTES
    size = min(REHEARSAL_ADAM_ELEMENTS if task.rehearsal else task.optimizer_elements, fitting)
    start = torch.randn(size, device="cuda") * 0.02
    gradients = [torch.randn(size, device="cuda") * 1e-3 for _ in range(2)]

    def run() -> Results:
        parameter = torch.nn.Parameter(start.clone())
        optimizer = torch.optim.AdamW([parameter], lr=LR, betas=(BETA1, BETA2), eps=EPS, weight_decay=WEIGHT_DECAY)
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        state = optimizer.state[parameter]
        moments = {"first": state["exp_avg"], "second": state["exp_avg_sq"]}
        return {"update": parameter.detach() - start, **moments}

    def expected() -> Results:
        p = start.double()
        first, second = torch.zeros_like(p), torch.zeros_like(p)
        for step, gradient in enumerate(gradients, 1):
            g = gradient.double()
            p = p * (1 - LR * WEIGHT_DECAY)
            first, second = BETA1 * first + (1 - BETA1) * g, BETA2 * second + (1 - BETA2) * g * g
            p = p - LR * first / (1 - BETA1**step) / ((second / (1 - BETA2**step)).sqrt() + EPS)
        return {"update": p - start.double(), "first": first, "second": second}

    yield Case("adamw", f"2 steps of {size}", "torch", "float32", run, expected)


def _grad_norm(model: Model, task: Task, providers: dict[str, str]) -> Iterator[Case]:
    h = model.hidden_size
    parts = [torch.randn(n, device="cuda") * LOSS_SCALE for n in (h * h // task.tensor, model.kv_size * h, h, 1)]
    try:
        amp = importlib.import_module("amp_C")
        apply = importlib.import_module("apex.multi_tensor_apply").multi_tensor_applier
        provider = "native amp_C"
    except ImportError:
        amp, provider = None, "torch"

    def run() -> Results:
        if amp is not None:
            overflow = torch.zeros(1, dtype=torch.int32, device="cuda")
            norm = apply(amp.multi_tensor_l2norm, overflow, [parts], False)[0].reshape(1)
        else:
            norm = torch.stack([torch.norm(part) for part in parts]).square().sum().sqrt().reshape(1)
        clip = max(1.0, (float(norm) / LOSS_SCALE + 1e-6) / CLIP)
        return {"norm": norm, "clipped": parts[0] * (1.0 / (clip * LOSS_SCALE))}

    def expected() -> Results:
        norm = math.sqrt(sum(float(part.double().square().sum()) for part in parts))
        clip = max(1.0, (norm / LOSS_SCALE + 1e-6) / CLIP)
        exact = torch.tensor([norm], dtype=torch.float64, device="cuda")
        return {"norm": exact, "clipped": parts[0].double() / (clip * LOSS_SCALE)}

    yield Case("grad-norm", f"{len(parts)} tensors", provider, "float32", run, expected)


def _scatter(model: Model, task: Task, providers: dict[str, str]) -> Iterator[Case]:
    scatter: Any = importlib.import_module("torch_scatter").scatter
    values = torch.rand(task.tokens, device="cuda")
    bins = torch.randint(0, 6, (task.tokens,), device="cuda")
    bins[:6] = torch.arange(6, device="cuda")

    def expected() -> Results:
        return {"out": torch.zeros(6, dtype=torch.float64, device="cuda").index_add_(0, bins, values.double())}

    run = lambda: {"out": scatter(values, bins, dim=0, reduce="sum")}  # noqa: E731
    yield Case("scatter", f"{task.tokens} in 6", providers["torch_scatter"], "float32", run, expected)
