from __future__ import annotations

import dataclasses

import pytest

from conformance.internevo.flops import flops_per_token, logged_flops_per_token
from conformance.spec import load_workload


@pytest.mark.parametrize(
    ("name", "logged", "model"),
    [("llama2-7b-perf", 5.393665e10, 4.910481e10), ("llama2-70b-perf", 5.008628e11, 4.444914e11)],
)
def test_the_known_counts(name: str, logged: float, model: float) -> None:
    flops = flops_per_token(load_workload(name).model, checkpoint=False)
    assert flops.logged == pytest.approx(logged, rel=1e-6)
    assert flops.model == pytest.approx(model, rel=1e-6)
    assert flops.model_causal < flops.model


def test_the_sample_line_of_the_benchmark_text() -> None:
    # tflops and tgs of the one line that the benchmark text prints; its own rounding is 2 parts in a million.
    logged = logged_flops_per_token(load_workload("llama2-7b-perf").model, checkpoint=False)
    sample = 180.4572540886346e12 / 3345.72
    assert sample == pytest.approx(logged, rel=3e-6)


def test_checkpointing_raises_what_is_logged_and_not_what_the_model_needs() -> None:
    model = load_workload("llama2-7b-perf").model
    off, on = flops_per_token(model, False), flops_per_token(model, True)
    head = 6 * model.hidden_size * model.vocab_size
    assert (on.logged - head) / (off.logged - head) == pytest.approx(4 / 3)
    assert (on.model, on.model_causal) == (off.model, off.model_causal)


def test_without_grouped_queries_and_rounding_both_counts_agree() -> None:
    model = dataclasses.replace(load_workload("llama2-7b-perf").model, num_kv_attention_heads=32)
    flops = flops_per_token(model, checkpoint=False)
    assert flops.model == pytest.approx(flops.logged, rel=1e-12)
