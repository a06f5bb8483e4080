from __future__ import annotations

import ast
from typing import Any

import pytest

from conformance.internevo.config import config_values, render_config
from conformance.plan import Topology, make_plan
from conformance.spec import all_workloads, load_workload


def execute(text: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(text, "internevo.py", "exec"), {"__builtins__": {"dict": dict}}, names)
    return names


@pytest.mark.parametrize("workload", all_workloads(), ids=lambda workload: workload.name)
def test_the_rendered_file_holds_the_values(workload: Any) -> None:
    plan = make_plan(workload, Topology(1, workload.reference.cards), {"checkpoint": True, "zero1": 1})
    text = render_config(plan)
    assert execute(text) == config_values(plan)
    assert text == render_config(plan)
    assert text.endswith(")\n") and max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("workload", all_workloads(), ids=lambda workload: workload.name)
def test_no_path_of_a_machine_is_in_it(workload: Any) -> None:
    text = render_config(make_plan(workload, Topology(1, workload.reference.cards)))
    strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    assert not [value for value in strings if isinstance(value, str) and ("/" in value or "\\" in value)]


def test_every_freedom_reaches_the_file() -> None:
    overrides = {
        "tensor": 2,
        "pipeline": 4,
        "zero1": 2,
        "micro_bsz": 1,
        "micro_num": 4,
        "checkpoint": True,
        "num_layers": 8,
        "total_steps": 7,
    }
    values = config_values(make_plan(load_workload("slice-7b-perf"), Topology(1, 16), overrides))
    assert values["parallel"]["tensor"]["size"] == 2
    assert values["parallel"]["pipeline"]["size"] == 4
    assert values["parallel"]["zero1"]["size"] == 2
    assert (values["data"]["micro_bsz"], values["data"]["micro_num"]) == (1, 4)
    assert values["model"]["checkpoint"] is True
    assert values["model"]["num_layers"] == 8
    assert values["data"]["total_steps"] == values["lr_scheduler"]["total_steps"] == 7


@pytest.mark.parametrize(
    ("name", "cards", "interval"), [("tiny-accuracy", 2, 401), ("slice-7b-perf", 1, 200), ("llama2-7b-perf", 8, 200)]
)
def test_a_rehearsal_on_the_cpu_is_not_held_up_by_measurements_of_the_device(
    name: str, cards: int, interval: int
) -> None:
    plan = make_plan(load_workload(name), Topology(1, cards), {} if "llama2" in name else {"total_steps": 400})
    assert config_values(plan)["data"]["empty_cache_and_diag_interval"] == interval


def test_the_accuracy_configuration_has_the_published_values() -> None:
    # The published files import modules that nobody has, so the values that the benchmark states are the reference.
    values = config_values(make_plan(load_workload("llama2-7b-accuracy"), Topology(8, 8)))
    assert values["adam"] == {
        "lr": 4e-5,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "adam_beta2_c": 0,
        "adam_eps": 1e-8,
        "weight_decay": 0.01,
    }
    assert values["lr_scheduler"] == {
        "total_steps": 200_000,
        "init_steps": 0,
        "warmup_ratio": 0.025,
        "eta_min": 4e-6,
        "last_epoch": -1,
    }
    assert values["hybrid_zero_optimizer"] == {
        "overlap_sync_grad": True,
        "overlap_sync_param": False,
        "reduce_bucket_size": 512 * 1024 * 1024,
        "clip_grad_norm": 1.0,
    }
    assert values["grad_scaler"]["fp16"]["initial_scale"] == 2**14
    assert values["data"]["train_folder"] == "data"
    assert values["data"]["min_length"] == 50
    assert values["ckpt"]["enable_save_ckpt"] is True
    assert values["ckpt"]["save_ckpt_folder"] == "local:checkpoints"
    assert values["ckpt"]["stop_file_path"] == "stop"


def test_a_performance_run_saves_nothing() -> None:
    values = config_values(make_plan(load_workload("llama2-7b-perf"), Topology(4, 8)))
    assert values["ckpt"] == {"enable_save_ckpt": False, "auto_resume": False}
    assert values["data"]["train_folder"] is None
