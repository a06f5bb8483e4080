from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import jsonschema
import pytest

from conformance.errors import SpecError
from conformance.spec import all_workloads, load_checks, load_workload, read_workload
from conformance.spec.loader import CHECKS_SCHEMA, WORKLOAD_DIR, WORKLOAD_SCHEMA

# (cards, micro_bsz, micro_num, tensor, pipeline), global batch, parameters, as the benchmark publishes them.
PUBLISHED = {
    "llama2-7b-perf": ((32, 2, 4, 1, 1), 256, 7_241_732_096),
    "llama2-70b-perf": ((128, 2, 128, 8, 4), 1024, 68_976_648_192),
    "llama2-7b-accuracy": ((64, 2, 4, 2, 1), 256, 7_241_732_096),
    "llama2-70b-accuracy": ((64, 2, 12, 8, 4), 48, 68_976_648_192),
}
TOML = (WORKLOAD_DIR / "tiny-accuracy.toml").read_text("utf-8")


@pytest.mark.parametrize("name", PUBLISHED)
def test_official_workloads_are_the_published_ones(name: str) -> None:
    sizes, batch, parameters = PUBLISHED[name]
    workload = load_workload(name)
    reference = workload.reference
    assert workload.official and not workload.free
    assert dataclasses.astuple(reference)[:5] == sizes
    assert reference.zero1 == -1
    assert reference.global_batch_size == batch
    assert workload.model.parameters == parameters
    assert workload.model.ffn_size == 3.5 * workload.model.hidden_size


def test_exactly_four_workloads_are_official() -> None:
    assert {workload.name for workload in all_workloads() if workload.official} == set(PUBLISHED)


def test_loss_targets_and_steps_are_the_published_ones() -> None:
    targets = {workload.name: (workload.loss_target, workload.total_steps) for workload in all_workloads()[:4]}
    assert targets == {
        "llama2-70b-accuracy": (2.617, 200_000),
        "llama2-70b-perf": (None, 20),
        "llama2-7b-accuracy": (1.716, 200_000),
        "llama2-7b-perf": (None, 20),
    }


def test_tiny_keeps_the_proportions_of_7b_but_for_the_head_and_the_rounded_ffn() -> None:
    tiny, full = load_workload("tiny-perf").model, load_workload("llama2-7b-perf").model
    for big in ("seq_len", "vocab_size", "hidden_size", "num_layers"):
        assert getattr(tiny, big) * 16 == getattr(full, big), big
    assert tiny.mlp_ratio == full.mlp_ratio
    assert tiny.num_attention_heads // tiny.num_kv_attention_heads == 4
    assert (tiny.head_dim, full.head_dim) == (32, 128)
    assert (tiny.ffn_size, full.ffn_size) == (1024, 14336)


def test_schemas_are_draft_2020_12_and_refer_to_nothing_outside() -> None:
    for path in (WORKLOAD_SCHEMA, CHECKS_SCHEMA):
        schema = json.loads(path.read_text("utf-8"))
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        jsonschema.Draft202012Validator.check_schema(schema)
        assert all(ref.startswith("#/") for ref in re.findall(r'"\$ref": "([^"]*)"', path.read_text("utf-8")))


def test_every_value_names_its_source() -> None:
    for workload in all_workloads():
        for table in ("model", "optimizer", "reference"):
            for field in dataclasses.fields(getattr(workload, table)):
                assert workload.source_of(f"{table}.{field.name}")
        with pytest.raises(KeyError):
            workload.source_of("nothing.like.it")


def test_the_nearest_source_speaks_for_a_value() -> None:
    workload = load_workload("llama2-7b-perf")
    assert "7B_llama2.py" in workload.source_of("model.dtype")
    assert workload.source_of("model.num_layers") == workload.source_of("model")


def test_an_unknown_workload_is_answered_with_the_known_ones() -> None:
    with pytest.raises(SpecError, match=r"'llama2-7b-pref'.*Did you mean llama2-7b-perf\?.*tiny-accuracy"):
        load_workload("llama2-7b-pref")


@pytest.mark.parametrize("name", ["../workloads/tiny-perf", "", "/etc/passwd"])
def test_a_path_is_no_workload_name(name: str) -> None:
    with pytest.raises(SpecError, match="There is no workload named"):
        load_workload(name)


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "tiny-accuracy.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_copy_of_a_workload_reads_equal(tmp_path: Path) -> None:
    assert read_workload(write(tmp_path, TOML)) == load_workload("tiny-accuracy")


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    assert read_workload(write(tmp_path, TOML + "\n")).digest != load_workload("tiny-accuracy").digest


# One change of a good file, and what the sentence about it must hold.
FAULTS = {
    "not TOML": ("[model]", "[model", r"line \d+, column \d+"),
    "unknown key": ('mark = "tiny"', 'mark = "tiny"\ncolour = "red"', "'colour' was unexpected"),
    "unknown key in a table": ("clip_grad_norm = 1.0", "clip_grad_norm = 1.0\nclip = 2", "optimizer: .*'clip'"),
    "missing key": ('kind = "accuracy"\n', "", "'kind' is a required property"),
    "wrong type": ("num_layers = 2", 'num_layers = "4"', "model.num_layers: '4' is not of type 'integer'"),
    "boolean for a number": ("num_layers = 2", "num_layers = true", "model.num_layers: True is not of type"),
    "float for an integer": ("num_layers = 2", "num_layers = 4.0", "model.num_layers: 4.0 is not of type"),
    "not a number": ("lr = 2e-3", "lr = nan", "optimizer.lr: nan is not of type 'number'"),
    "infinite": ("lr = 2e-3", "lr = inf", "optimizer.lr: inf is not of type 'number'"),
    "zero": ("micro_num = 2", "micro_num = 0", "reference.micro_num: 0 is less than the minimum of 1"),
    "negative": ("total_steps = 100", "total_steps = -1", "total_steps: -1 is less than the minimum"),
    "loss target of a dummy run": ('data = "rehearsal-corpus"', 'data = "dummy"', "data: 'dummy' should not be valid"),
    "no source": ('reference = "this suite', 'cards = "this suite', "no source for reference.cards"),
    "cards that do not divide": ("tensor = 1", "tensor = 4", "2 cards do not divide by tensor 4 x pipeline 1"),
    "heads that do not divide": ("num_attention_heads = 8", "num_attention_heads = 7", "does not divide by 7 heads"),
    "another name": ('name = "tiny-accuracy"', 'name = "tiny"', "its name is 'tiny', expected that of the file"),
    "layers free without a bound": (
        'free = ["total_steps"]',
        'free = ["num_layers"]',
        "full_layers goes with num_layers",
    ),
    "freedom of an official one": ("official = false", "official = true", "an official workload frees nothing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(tmp_path: Path, fault: str) -> None:
    good, bad, told = FAULTS[fault]
    assert TOML.count(good) == 1
    path = write(tmp_path, TOML.replace(good, bad))
    with pytest.raises(SpecError, match=told) as raised:
        read_workload(path)
    assert str(path) in raised.value.message


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, TOML.replace("num_layers = 2", "num_layers = 0").replace("lr = 2e-3", "lr = -1"))
    with pytest.raises(SpecError, match=r"model.num_layers.*optimizer.lr"):
        read_workload(path)


def test_a_file_that_is_not_utf8_or_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="not UTF-8: byte 9 is 0xff"):
        read_workload(write(tmp_path, b'name = "a\xff"'))
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        read_workload(tmp_path / "absent.toml")


def test_every_check_is_described() -> None:
    checks = load_checks()
    assert checks
    for check_id, check in checks.items():
        assert check.id == check_id
        assert check.title and check.remedy and check.applies
