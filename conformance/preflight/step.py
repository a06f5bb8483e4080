"""One training step of a two-layer model of the real width through InternEvo, beside the same step in plain fp32."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from conformance.devices import load_device
from conformance.internevo.config import render_config
from conformance.internevo.patches import apply_patches
from conformance.kernels import install, reference
from conformance.plan import Plan, Topology, make_plan
from conformance.preflight.probe import Journal, exact_products
from conformance.preflight.worker import Task
from conformance.spec import Model, load_workload

LAYERS = 2
ROPE_BASE = 10000.0
# How a weight is cut over tensor parallelism, by the last part of its module's name; the feed-forward is told by shape.
CUT = {"tok_embeddings": 1, "wq": 0, "wk": 0, "wv": 0, "wo": 1, "output": 0}


def measure(task: Task, journal: Journal) -> None:
    """Train one step.

    Args:
        task: What is planned; ``tensor`` is the tensor-parallel size of this step.
        journal: Gets one record "step".
    """
    journal.phase("step: activate")
    load_device(task.device).activate()
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    install()
    if task.internevo:
        sys.path.insert(0, task.internevo)
    apply_patches()
    plan = _plan(task)
    folder = Path(f"{task.out}.rank{os.environ['RANK']}")
    folder.mkdir()
    config = folder / "internevo.py"
    config.write_text(render_config(plan), encoding="utf-8")
    os.chdir(folder)  # InternEvo writes RUN/ relative to where it runs
    weights = Weights(task.seed, plan.model)
    batch = _batch(plan, task.seed)
    journal.phase(f"step: InternEvo with tensor parallel {task.tensor}")
    loss, norm = _internevo_step(config, plan, weights, batch, task.seed)
    journal.phase("step: fp32 reference")
    torch.cuda.empty_cache()
    expected_loss, expected_norm = _reference_step(plan.model, weights, batch)
    journal.record(
        "step",
        tensor=task.tensor,
        layers=LAYERS,
        loss=loss,
        grad_norm=norm,
        expected_loss=expected_loss,
        expected_grad_norm=expected_norm,
    )
    dist.destroy_process_group()


def _plan(task: Task) -> Plan:
    workload = load_workload(task.workload)
    world = int(os.environ["WORLD_SIZE"])
    nodes = world // int(os.environ["LOCAL_WORLD_SIZE"])
    plan = make_plan(workload, Topology(nodes, world // nodes), seed=task.seed)
    model = dataclasses.replace(plan.model, num_layers=LAYERS)
    return dataclasses.replace(
        plan, model=model, tensor=task.tensor, pipeline=1, zero1=-1, micro_bsz=1, micro_num=1, total_steps=10
    )


class Weights:
    """Every weight of the model by name, the same on all ranks however it is cut.

    Args:
        seed: Seed of all of them.
        model: Shape of the model.
    """

    def __init__(self, seed: int, model: Model) -> None:
        self._seed = seed
        self._made: dict[str, Tensor] = {}
        h, kv, ffn = model.hidden_size, model.kv_size, model.ffn_size
        layer: dict[str, tuple[int, ...]] = {
            "attention.wq": (h, h),
            "attention.wk": (kv, h),
            "attention.wv": (kv, h),
            "attention.wo": (h, h),
        }
        layer |= {"feed_forward.gate": (ffn, h), "feed_forward.up": (ffn, h), "feed_forward.down": (h, ffn)}
        layer |= {"attention_norm": (h,), "ffn_norm": (h,)}
        self.shapes: dict[str, tuple[int, ...]] = {"tok_embeddings": (model.vocab_size, h), "norm": (h,)}
        self.shapes["output"] = (model.vocab_size, h)
        for number in range(LAYERS):
            self.shapes |= {f"layers.{number}.{name}": shape for name, shape in layer.items()}

    def full(self, name: str) -> Tensor:
        """A whole weight, rounded to bf16 as the model holds it.

        Args:
            name: A key of ``shapes``.

        Returns:
            fp32, on the CPU.
        """
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name].float()

    def _make(self, name: str) -> Tensor:
        shape = self.shapes[name]
        generator = torch.Generator().manual_seed(self._seed + zlib.crc32(name.encode()))
        values = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            values = 1 + 0.1 * values
        elif name != "tok_embeddings":
            values *= float(shape[1]) ** -0.5
        return values.to(torch.bfloat16)


def _batch(plan: Plan, seed: int) -> dict[str, Tensor]:
    """Random tokens in three documents, one of them of length 1."""
    length = plan.model.seq_len
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, plan.model.vocab_size, (length,), generator=generator)
    labels = torch.randint(1, plan.model.vocab_size, (length,), generator=generator)
    labels[::13] = -100
    bounds = torch.tensor([0, length // 3, length // 3 + 1, length], dtype=torch.int32)
    indexes = torch.cat([torch.arange(int(end - start)) for start, end in itertools.pairwise(bounds)])
    return {"tokens": tokens, "labels": labels, "bounds": bounds, "indexes": indexes}


# --- through InternEvo ---


def _internevo_step(
    config: Path, plan: Plan, weights: Weights, batch: dict[str, Tensor], seed: int
) -> tuple[float, float]:
    import internlm
    from internlm.initialize import initialize_distributed_env
    from internlm.model.loss import FlashGPTLMLoss
    from internlm.train import initialize_model, initialize_optimizer

    sys.argv = ["train.py", "--config", str(config), "--launcher", "torch"]
    initialize_distributed_env(config=str(config), launcher="torch", seed=seed)
    model = initialize_model()
    _load(model, weights, plan)
    optimizer, beta2_scheduler, lr_scheduler = initialize_optimizer(model=model)
    trainer, _, _, _ = internlm.initialize_trainer(
        model=model,
        optimizer=optimizer,
        criterion=FlashGPTLMLoss(parallel_output=True, label_smoothing=0),
        train_dataloader=None,
        lr_scheduler=lr_scheduler,
        beta2_scheduler=beta2_scheduler,
        scheduler_hooks=[],
    )
    trainer.train()
    trainer.zero_grad()
    data = {
        "input_ids": batch["tokens"][None],
        "cu_seqlens": batch["bounds"][None],
        "indexes": batch["indexes"][None],
    }
    loss = trainer.execute_schedule(
        [data, batch["labels"][None]], forward_only=False, return_loss=True, return_output_label=False
    )[2]
    _, norms = trainer.step()
    torch.cuda.synchronize()
    # One norm for each parameter group; together they are the norm of the whole.
    total = sum(float(norm) ** 2 for norm in norms.values()) ** 0.5
    return float(loss), total


def _load(model: Any, weights: Weights, plan: Plan) -> None:
    """Put the weights into InternEvo's model, each rank its part."""
    from internlm.core.context import ParallelMode
    from internlm.core.context import global_context as gpc

    size, rank = plan.tensor, gpc.get_local_rank(ParallelMode.TENSOR)
    names = dict.fromkeys(weights.shapes)
    with torch.no_grad():
        for full_name, parameter in model.named_parameters():
            name = _our_name(full_name, tuple(parameter.shape), plan)
            whole, cut = weights.full(name), _cut(name)
            part = whole if cut is None else whole.chunk(size, dim=cut)[rank]
            parameter.copy_(part.to(parameter.dtype))
            del names[name]
    if names:
        raise RuntimeError(f"InternEvo's model has no parameter for {', '.join(names)}.")


def _our_name(name: str, shape: tuple[int, ...], plan: Plan) -> str:
    name = name.removeprefix("model.").removesuffix(".weight").replace("embedding.", "tok_embeddings.")
    if ".feed_forward." not in name:
        return name
    layer, _, which = name.rpartition(".")
    if shape[0] == plan.model.hidden_size and shape[1] != plan.model.hidden_size:
        return f"{layer}.down"
    return f"{layer}.gate" if which == "w1" else f"{layer}.up"


def _cut(name: str) -> int | None:
    last = name.rpartition(".")[2]
    return {**CUT, "gate": 0, "up": 0, "down": 1}.get(last)


# --- the reference ---


def _reference_step(model: Model, weights: Weights, batch: dict[str, Tensor]) -> tuple[float, float]:
    exact_products()
    parameters = {name: weights.full(name).to("cuda").requires_grad_() for name in weights.shapes}
    placed = {name: value.to("cuda") for name, value in batch.items()}
    loss = reference_loss(model, parameters, placed)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    norm = torch.stack([gradient.double().square().sum() for gradient in gradients]).sum().sqrt()
    return float(loss), float(norm)


def reference_loss(model: Model, parameters: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """LLaMA2 in plain fp32 (arXiv:2307.09288): pre-norm, rotary positions, grouped queries, SwiGLU.

    Args:
        model: Shape of the model, but for the number of layers, which is LAYERS.
        parameters: Weights by name, as `Weights.shapes`.
        batch: ``tokens``, ``labels`` (-100 is not counted), ``bounds`` of the documents, ``indexes``, the positions.

    Returns:
        Mean cross-entropy of the counted tokens.
    """
    half, eps = model.head_dim // 2, model.layer_norm_epsilon
    frequencies = ROPE_BASE ** (-torch.arange(half, device=batch["tokens"].device) / half)
    angles = batch["indexes"][:, None] * frequencies
    # The model keeps sines and cosines in its own dtype.
    cos, sin = (turn.to(torch.bfloat16).float()[:, None] for turn in (angles.cos(), angles.sin()))
    hidden = parameters["tok_embeddings"][batch["tokens"]]
    for number in range(LAYERS):
        weight = {name: parameters[f"layers.{number}.{name}"] for name in _LAYER_WEIGHTS}
        x = reference.rms_norm(hidden, weight["attention_norm"], eps)
        q, k, v = (
            F.linear(x, weight[f"attention.{name}"]).unflatten(-1, (-1, 2 * half)) for name in ("wq", "wk", "wv")
        )
        q, k = (torch.cat(reference.rotate(part[..., ::2], part[..., 1::2], cos, sin), dim=-1) for part in (q, k))
        context = reference.varlen_attention(q, k, v, batch["bounds"], batch["bounds"], causal=True)
        hidden = hidden + F.linear(context.flatten(1), weight["attention.wo"])
        x = reference.rms_norm(hidden, weight["ffn_norm"], eps)
        inner = F.silu(F.linear(x, weight["feed_forward.gate"])) * F.linear(x, weight["feed_forward.up"])
        hidden = hidden + F.linear(inner, weight["feed_forward.down"])
    logits = F.linear(reference.rms_norm(hidden, parameters["norm"], eps), parameters["output"])
    return F.cross_entropy(logits, batch["labels"])


_LAYER_WEIGHTS = (
    "attention_norm", "attention.wq", "attention.wk", "attention.wv", "attention.wo",
    "ffn_norm", "feed_forward.gate", "feed_forward.up", "feed_forward.down",
)  # fmt: skip
