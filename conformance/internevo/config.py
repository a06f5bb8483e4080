"""InternEvo's configuration file, rendered from a plan. No path in it is absolute: training runs in its own folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from conformance.plan import Plan
from conformance.spec.model import Optimizer

# Relative to the folder that training runs in.
DATA_FOLDER = "data"
CHECKPOINT_FOLDER = "checkpoints"
STOP_FILE = "stop"
GROWTH_INTERVAL = 1000  # updates; InternEvo's default
# Shorter documents are dropped by InternEvo's loader.
MIN_DOCUMENT_TOKENS = 50
# Steps between InternEvo's own measurements of the device, as in the reference files.
DIAGNOSIS_INTERVAL = 200

_NOTES = {
    "data.micro_num": "micro batches in a step",
    "data.micro_bsz": "sequences in a micro batch",
    "data.train_folder": "None trains on InternEvo's random tokens",
    "data.valid_every": "0: no evaluation",
    "data.min_length": "tokens; shorter documents are dropped",
    "ckpt.stop_file_path": "the number of the step to stop after is written here",
    "hybrid_zero_optimizer.reduce_bucket_size": "elements",
    "model.checkpoint": "activation checkpointing",
    "parallel.zero1": "size <= 0: the data-parallel group",
}


def render_config(plan: Plan) -> str:
    """Render the configuration file of a plan.

    Args:
        plan: A legal plan.

    Returns:
        Python source that InternEvo's ``Config.from_file`` loads at every pinned version; the same for the same plan.
    """
    lines = [f"# {plan.workload.title}.", "# Written by the conformance suite from the plan; do not edit."]
    for name, value in config_values(plan).items():
        lines += _render(name, value, name, "")
    return "\n".join(lines) + "\n"


def config_values(plan: Plan) -> dict[str, Any]:
    """Give the configuration of a plan as plain values, by section."""
    return {
        "JOB_NAME": plan.workload.name,
        "model_type": "LLAMA2",
        "use_fp32_norm": False,
        "cudnn_deterministic": False,
        "cudnn_benchmark": False,
        "data": _data_values(plan),
        "model": _model_values(plan),
        "parallel": {
            "zero1": {"size": plan.zero1},
            "tensor": {"size": plan.tensor, "mode": "mtp"},
            "pipeline": {"size": plan.pipeline, "interleaved_overlap": True},
            "weight": {"size": 1, "overlap": True, "memory_pool": True},
        },
        **_optimizer_values(plan.workload.optimizer, plan.total_steps),
        "loss": {"label_smoothing": 0},
        "ckpt": _checkpoint_values(plan),
        "monitor": {
            "alert": {
                "enable_feishu_alert": False,
                "feishu_alert_address": None,
                "light_monitor_address": None,
                "alert_file_path": None,
            },
            "tensorboard": {"queue_max_length": 10},
        },
    }


def _data_values(plan: Plan) -> dict[str, Any]:
    trains_on_dummy = plan.workload.data == "dummy"
    return {
        "seq_len": plan.model.seq_len,
        "micro_num": plan.micro_num,
        "micro_bsz": plan.micro_bsz,
        "train_folder": None if trains_on_dummy else DATA_FOLDER,
        "total_steps": plan.total_steps,
        "pack_sample_into_one": False,
        "min_length": MIN_DOCUMENT_TOKENS,
        "skip_batches": "",
        "rampup_batch_size": "",
        "valid_folder": None,
        "valid_every": 0,
        "valid_micro_num": 4 if trains_on_dummy else 1,
        "empty_cache_and_diag_interval": _diagnosis_interval(plan),
        "diag_outlier_ratio": 1.1,
    }


def _diagnosis_interval(plan: Plan) -> int:
    """As the reference has it, but beyond a CPU's rehearsal: there one measurement takes longer than the training."""
    return max(DIAGNOSIS_INTERVAL, plan.total_steps + 1) if plan.workload.mark == "tiny" else DIAGNOSIS_INTERVAL


def _model_values(plan: Plan) -> dict[str, Any]:
    model = plan.model
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_kv_attention_heads": model.num_kv_attention_heads,
        "mlp_ratio": model.mlp_ratio,
        "vocab_size": model.vocab_size,
        "dtype": f"torch.{model.dtype}",
        "norm_type": "rmsnorm",
        "layer_norm_epsilon": model.layer_norm_epsilon,
        "apply_post_layer_norm": False,
        "no_bias": True,
        "use_flash_attn": True,
        "embed_split_hidden": True,
        "embed_grad_scale": 1,
        "parallel_output": True,
        "num_chunks": 1,
        "checkpoint": plan.checkpoint,
    }


def _optimizer_values(optimizer: Optimizer, total_steps: int) -> dict[str, Any]:
    return {
        "adam": {
            "lr": optimizer.lr,
            "adam_beta1": optimizer.beta1,
            "adam_beta2": optimizer.beta2,
            "adam_beta2_c": 0,
            "adam_eps": optimizer.eps,
            "weight_decay": optimizer.weight_decay,
        },
        "lr_scheduler": {
            "total_steps": total_steps,
            "init_steps": 0,
            "warmup_ratio": optimizer.warmup_ratio,
            "eta_min": optimizer.eta_min,
            "last_epoch": -1,
        },
        "beta2_scheduler": {"init_beta2": optimizer.beta2, "c": 0, "cur_iter": -1},
        "hybrid_zero_optimizer": {
            "overlap_sync_grad": optimizer.overlap_sync_grad,
            "overlap_sync_param": optimizer.overlap_sync_param,
            "reduce_bucket_size": optimizer.reduce_bucket_size,
            "clip_grad_norm": optimizer.clip_grad_norm,
        },
        "grad_scaler": {
            "fp16": {"initial_scale": optimizer.initial_loss_scale, "min_scale": 1, "growth_interval": GROWTH_INTERVAL},
            "growth_factor": 2,
            "backoff_factor": 0.5,
            "max_scale": 2**24,
            "hysteresis": 2,
        },
    }


def _checkpoint_values(plan: Plan) -> dict[str, Any]:
    every = plan.workload.checkpoint_every
    if every is None:
        return {"enable_save_ckpt": False, "auto_resume": False}
    return {
        "enable_save_ckpt": True,
        "save_ckpt_folder": f"local:{CHECKPOINT_FOLDER}",
        "checkpoint_every": every,
        "auto_resume": True,  # a fresh run finds no checkpoint and starts at step 0
        "stop_file_path": STOP_FILE,
    }


def _render(name: str, value: object, path: str, indent: str) -> Iterator[str]:
    """Yield the lines of one assignment or keyword argument."""
    sign, end = (" = ", "") if not indent else ("=", ",")
    note = f"  # {_NOTES[path]}" if path in _NOTES else ""
    if not isinstance(value, dict):
        yield f"{indent}{name}{sign}{value!r}{end}{note}"
        return
    yield f"{indent}{name}{sign}dict({note}"
    for key, item in value.items():
        yield from _render(key, item, f"{path}.{key}", indent + "    ")
    yield f"{indent}){end}"
