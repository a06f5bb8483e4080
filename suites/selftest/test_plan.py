from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.errors import ConformanceError
from conformance.plan import Plan, PlanRefused, Topology, make_plan, parse_overrides
from conformance.spec import all_workloads, load_workload

SIZE = st.one_of(st.integers(-1, 9), st.sampled_from([12, 16, 24, 32, 64, 128, 512, 1000]))
OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "tensor": SIZE,
        "pipeline": SIZE,
        "zero1": SIZE,
        "micro_bsz": SIZE,
        "micro_num": SIZE,
        "checkpoint": st.booleans(),
    },
)
WORKLOADS = st.sampled_from(all_workloads())
TOPOLOGIES = st.builds(Topology, st.sampled_from([1, 2, 3, 4, 8, 16, 64]), st.sampled_from([1, 2, 5, 8, 16]))


def plan(name: str, nodes: int, *pairs: str, per_node: int = 8) -> Plan:
    return make_plan(load_workload(name), Topology(nodes, per_node), parse_overrides(pairs))


def refusal(name: str, nodes: int, *pairs: str, per_node: int = 8) -> PlanRefused:
    with pytest.raises(PlanRefused) as raised:
        plan(name, nodes, *pairs, per_node=per_node)
    return raised.value


@pytest.mark.parametrize(
    ("name", "nodes", "micro_bsz", "micro_num", "data_parallel"),
    [
        ("llama2-7b-perf", 1, 2, 16, 8),
        ("llama2-7b-perf", 2, 2, 8, 16),
        ("llama2-7b-perf", 4, 2, 4, 32),
        ("llama2-7b-perf", 8, 2, 2, 64),
        ("llama2-7b-perf", 16, 2, 1, 128),
        ("llama2-7b-perf", 32, 1, 1, 256),
        ("llama2-70b-perf", 4, 2, 512, 1),
        ("llama2-70b-perf", 8, 2, 256, 2),
        ("llama2-70b-perf", 16, 2, 128, 4),
        ("llama2-7b-accuracy", 1, 2, 32, 4),
        ("llama2-7b-accuracy", 8, 2, 4, 32),
        ("llama2-70b-accuracy", 4, 2, 24, 1),
        ("llama2-70b-accuracy", 8, 2, 12, 2),
    ],
)
def test_the_batch_is_the_reference_on_any_number_of_cards(
    name: str, nodes: int, micro_bsz: int, micro_num: int, data_parallel: int
) -> None:
    made = plan(name, nodes)
    assert (made.micro_bsz, made.micro_num, made.data_parallel) == (micro_bsz, micro_num, data_parallel)
    assert made.global_batch_size == made.workload.reference.global_batch_size
    assert made.tokens_per_step == made.global_batch_size * 4096


def test_the_reference_topology_needs_no_disclosure() -> None:
    for workload in all_workloads():
        assert make_plan(workload, Topology(1, workload.reference.cards)).disclosures == ()


def test_a_batch_that_cannot_divide_becomes_the_nearest_smaller_one() -> None:
    made = plan("llama2-7b-perf", 3)
    assert (made.micro_bsz, made.micro_num, made.global_batch_size) == (2, 5, 240)
    assert "240, below the reference's 256" in made.disclosures[0]


def test_a_smaller_batch_on_request_is_disclosed() -> None:
    made = plan("llama2-7b-perf", 2, "micro_num=4")
    assert (made.micro_bsz, made.global_batch_size) == (2, 128)
    assert made.disclosures == ("global batch size 2 x 4 x 16 = 128, below the reference's 256",)


def test_a_larger_batch_is_refused_with_the_nearest_legal_settings() -> None:
    (violation,) = refusal("llama2-7b-perf", 4, "micro_num=8").violations
    assert violation.rule == "global-batch"
    assert "2 x 8 x 32 = 512 is above the reference's 256" in violation.message
    assert "README.md" in violation.source
    assert violation.nearest == (
        "--set micro_num=4",
        "--set micro_bsz=1 --set micro_num=8",
        "--set tensor=2 --set micro_num=8",
    )


def test_too_many_cards_for_the_batch_are_refused_unless_recut() -> None:
    (violation,) = refusal("llama2-7b-perf", 64).violations
    assert "= 512 is above" in violation.message
    assert violation.nearest[0] == "--set tensor=2"
    assert plan("llama2-7b-perf", 64, "tensor=2").global_batch_size == 256


def test_what_is_suggested_comes_nearest_first() -> None:
    def nearest(*pairs: str, nodes: int = 4, per_node: int = 8) -> tuple[str, ...]:
        return refusal("llama2-7b-perf", nodes, *pairs, per_node=per_node).violations[0].nearest

    # From 3 it is 0.42 doublings up to 4 and 0.58 down to 2; micro_num, which nobody asked for, follows either.
    assert nearest("tensor=3") == ("--set tensor=4", "--set tensor=2", "--set tensor=4 --set micro_bsz=1")
    # Asked for, it counts: 0 is nearer to 1 than to the 128 of a full batch.
    assert nearest("micro_num=0", nodes=1, per_node=1)[:2] == ("--set micro_num=1", "--set micro_num=128")
    # No group of 2 is part of 3 ranks; the nearest are all of them, and none.
    assert nearest("zero1=2", nodes=1, per_node=3)[:2] == (
        "--set zero1=3 --set micro_bsz=2",
        "--set zero1=1 --set micro_bsz=2",
    )
    # Sharding nothing is a choice, kept where something else is wrong.
    assert all("zero1=1" in option for option in nearest("zero1=1", "micro_num=0", nodes=1, per_node=3))


@pytest.mark.parametrize(
    ("cards", "pairs", "options"),
    [
        (1, ["tensor=3", "micro_bsz=3", "micro_num=1"], ["3 1", "3 85", "2 1"]),
        (1, ["tensor=8", "zero1=2", "micro_bsz=3", "micro_num=1"], ["3 1", "3 85", "2 1"]),
        (1, ["micro_bsz=1", "micro_num=0"], ["1 1", "2 1", "1 256"]),
        (4, ["pipeline=1", "micro_bsz=8", "micro_num=16"], ["8 8", "8 16", "8 16"]),
        (32, ["micro_bsz=4", "micro_num=8"], ["1 8", "2 4", "4 2"]),
    ],
)
def test_how_far_a_suggestion_is(cards: int, pairs: list[str], options: list[str]) -> None:
    """Re-cutting the model weighs twice, micro sizes and ZeRO-1 once: micro_bsz and micro_num of the nearest three."""
    found = refusal("llama2-7b-perf", 1, *pairs, per_node=cards).violations[0].nearest
    chosen = [parse_overrides(option.removeprefix("--set ").split(" --set ")) for option in found]
    assert [f"{values['micro_bsz']} {values['micro_num']}" for values in chosen] == options


def test_as_many_micro_batches_as_stages_are_enough() -> None:
    made = plan("llama2-70b-accuracy", 24, "pipeline=8")
    assert (made.data_parallel, made.micro_bsz, made.micro_num) == (3, 2, 8)


def test_micro_sizes_may_be_traded_at_their_product() -> None:
    assert plan("llama2-7b-perf", 4, "micro_bsz=1").micro_num == 8
    assert plan("llama2-7b-perf", 4, "micro_bsz=8").micro_num == 1


def test_the_recut_that_the_benchmark_text_names_is_legal() -> None:
    made = plan("llama2-7b-perf", 4, "zero1=1", "tensor=8")
    assert (made.data_parallel, made.zero1_size, made.global_batch_size) == (4, 1, 256)
    assert "tensor-parallel size 8 in place of 1" in made.disclosures
    assert "optimizer state sharded over 1 of 4 data-parallel ranks" in made.disclosures


@pytest.mark.parametrize(("zero1", "size"), [(-1, 32), (0, 32), (-7, 32), (1, 1), (2, 2), (32, 32)])
def test_the_three_meanings_of_zero1(zero1: int, size: int) -> None:
    made = plan("llama2-7b-perf", 4, f"zero1={zero1}")
    assert (made.zero1, made.zero1_size) == (zero1, size)


@pytest.mark.parametrize("zero1", [3, 64])
def test_a_zero1_that_is_no_part_of_the_data_parallel_size_is_refused(zero1: int) -> None:
    (violation,) = refusal("llama2-7b-perf", 4, f"zero1={zero1}").violations
    assert violation.rule == "zero1"


def test_all_violations_are_listed_at_once() -> None:
    refused = refusal("llama2-7b-perf", 4, "tensor=3", "pipeline=5", "micro_num=2", "seq_len=2048")
    assert [violation.rule for violation in refused.violations] == [
        "fixed",
        "tensor-heads",
        "tensor-kv-heads",
        "tensor-vocabulary",
        "tensor-ffn",
        "pipeline-layers",
        "pipeline-micro-num",
        "cards",
    ]
    for violation in refused.violations:
        assert violation.message in refused.message
        assert violation.source and violation.nearest


@pytest.mark.parametrize(
    "pair", ["seq_len=2048", "dtype=float16", "lr=1e-3", "data=other", "tag=v1", "total_steps=10", "num_layers=2"]
)
def test_what_the_benchmark_fixes_cannot_be_set(pair: str) -> None:
    (violation,) = refusal("llama2-7b-perf", 4, pair).violations
    key = pair.partition("=")[0]
    assert violation.rule == "fixed"
    assert key in violation.message and "cannot be set" in violation.message
    assert violation.nearest == (f"leave out --set {key}",)


def test_a_slice_may_have_other_layers_and_steps() -> None:
    made = plan("slice-7b-perf", 1, "num_layers=28", "total_steps=100", "micro_bsz=1", "micro_num=8", per_node=1)
    assert (made.model.num_layers, made.total_steps) == (28, 100)
    assert "28 layers in place of 24" in made.disclosures
    fewer = make_plan(load_workload("slice-7b-perf"), Topology(1, 1), {"num_layers": 6, "total_steps": 12}).disclosures
    assert {"6 layers in place of 24", "12 steps in place of 20"} <= set(fewer)
    assert "100 steps in place of 20" in made.disclosures
    least = plan("slice-7b-perf", 1, "num_layers=1", "total_steps=1", per_node=1)
    assert (least.model.num_layers, least.total_steps) == (1, 1)


@pytest.mark.parametrize("pair", ["num_layers=0", "total_steps=-3"])
def test_a_slice_of_nothing_is_refused(pair: str) -> None:
    (violation,) = refusal("slice-7b-perf", 1, pair, per_node=1).violations
    assert violation.rule == "positive"
    assert violation.nearest == (f"--set {pair.partition('=')[0]}=1",)


def test_a_slice_is_never_larger_than_the_whole() -> None:
    (violation,) = refusal("slice-7b-perf", 1, f"num_layers={10**15}", per_node=1).violations
    assert violation.rule == "slice"
    assert violation.nearest == ("--set num_layers=32",)


def test_absurd_sizes_are_refused_at_once() -> None:
    assert refusal("llama2-7b-perf", 10**15, "zero1=16", f"micro_bsz={10**17}").violations
    assert refusal("llama2-7b-perf", 4, *(f"{key}={10**17}" for key in ("tensor", "pipeline", "zero1", "micro_num")))


def test_no_topology_without_devices() -> None:
    with pytest.raises(ConformanceError, match="--nodes is 0, expected at least 1"):
        Topology(0, 8)
    with pytest.raises(ConformanceError, match="--devices-per-node is -2"):
        Topology(1, -2)


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        ("micro_num", "expected key=value"),
        ("=4", "expected key=value"),
        ("micro_num=", "expected key=value"),
        ("", "expected key=value"),
    ],
)
def test_an_override_without_key_or_value_is_refused(pair: str, told: str) -> None:
    with pytest.raises(ConformanceError, match=told):
        parse_overrides([pair])


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        ("micro=4", "does not know 'micro'.*Did you mean micro_num"),
        ("colour=red", "It may set tensor, pipeline, zero1, micro_bsz, micro_num, checkpoint"),
        ("micro_num=four", "micro_num is 'four', expected an integer"),
        ("micro_num=4.0", "micro_num is 4.0, expected an integer"),
        ("micro_num=true", "micro_num is True, expected an integer"),
        ("checkpoint=1", "checkpoint is 1, expected true or false"),
    ],
)
def test_a_key_or_type_that_does_not_exist_is_named(pair: str, told: str) -> None:
    with pytest.raises(ConformanceError, match=told) as raised:
        plan("llama2-7b-perf", 4, pair)
    assert not isinstance(raised.value, PlanRefused)


def test_contradictory_overrides_are_refused_and_repeated_ones_are_not() -> None:
    with pytest.raises(ConformanceError, match="gives micro_num two values, 4 and 8"):
        parse_overrides(["micro_num=4", "micro_num=8"])
    assert parse_overrides(["micro_num=4", " micro_num = 4 "]) == {"micro_num": 4}


def is_legal(made: Settings, topology: Topology, workload: Any) -> bool:
    """The rules once more, from the text, without the planner."""
    model = workload.model
    tensor, pipeline, zero1, micro_bsz, micro_num = made
    if min(tensor, pipeline, micro_bsz, micro_num) < 1 or topology.cards % (tensor * pipeline):
        return False
    data_parallel = topology.cards // tensor // pipeline
    return (
        model.num_attention_heads % tensor == 0
        and model.num_kv_attention_heads % tensor == 0
        and model.vocab_size % tensor == 0
        and model.num_layers % pipeline == 0
        and micro_num >= pipeline
        and (zero1 <= 1 or data_parallel % zero1 == 0)
        and micro_bsz * micro_num * data_parallel <= workload.reference.global_batch_size
    )


Settings = tuple[int, int, int, int, int]


@settings(max_examples=400, deadline=None)
@given(WORKLOADS, TOPOLOGIES, OVERRIDES)
def test_no_accepted_plan_breaks_an_invariant(workload: Any, topology: Topology, overrides: dict[str, Any]) -> None:
    try:
        made = make_plan(workload, topology, overrides)
    except PlanRefused as refused:
        assert refused.violations
        return
    sizes = (made.tensor, made.pipeline, made.zero1, made.micro_bsz, made.micro_num)
    assert is_legal(sizes, topology, workload)
    assert all(getattr(made, key) == value for key, value in overrides.items())
    assert made.model == workload.model and made.total_steps == workload.total_steps
    assert made.cards == made.tensor * made.pipeline * made.data_parallel
    assert 1 <= made.zero1_size <= made.data_parallel
    smaller = made.global_batch_size < workload.reference.global_batch_size
    assert smaller == any(text.startswith("global batch size") for text in made.disclosures)
    memory = made.memory
    assert memory.peak >= memory.parameters + memory.optimizer > 0
    assert json.loads(json.dumps(made.to_json(), allow_nan=False)) == made.to_json()


@settings(max_examples=400, deadline=None)
@given(WORKLOADS, TOPOLOGIES, OVERRIDES)
def test_what_is_refused_is_illegal_and_what_is_suggested_is_legal(
    workload: Any, topology: Topology, overrides: dict[str, Any]
) -> None:
    try:
        make_plan(workload, topology, overrides)
    except PlanRefused as refused:
        sizes = {key: value for key, value in overrides.items() if key != "checkpoint"}
        if len(sizes) == 5:  # with every size given there is nothing that the planner could have chosen better
            order = ("tensor", "pipeline", "zero1", "micro_bsz", "micro_num")
            assert not is_legal(tuple(sizes[key] for key in order), topology, workload)  # type: ignore[arg-type]
        for option in {option for violation in refused.violations for option in violation.nearest}:
            suggested = parse_overrides(option.removeprefix("--set ").split(" --set "))
            assert set(sizes) <= set(suggested)
            make_plan(workload, topology, suggested)


@settings(max_examples=200, deadline=None)
@given(WORKLOADS, TOPOLOGIES)
def test_a_plan_without_overrides_has_the_largest_batch_that_its_parallelism_allows(
    workload: Any, topology: Topology
) -> None:
    try:
        made = make_plan(workload, topology)
    except PlanRefused:
        return
    larger = made.global_batch_size + made.data_parallel
    assert larger > workload.reference.global_batch_size


def test_the_json_of_a_plan_has_the_agreed_keys() -> None:
    document = plan("llama2-70b-perf", 16).to_json()
    assert document["legal"] is True
    assert document["violations"] == []
    assert document["disclosures"] == []
    expected = {
        "workload": "llama2-70b-perf",
        "cards": 128,
        "data_parallel": 4,
        "tensor_parallel": 8,
        "pipeline_parallel": 4,
        "zero1": -1,
        "micro_bsz": 2,
        "micro_num": 128,
        "global_batch_size": 1024,
        "tokens_per_step": 4_194_304,
        "steps": 20,
        "parameters": 68_976_648_192,
    }
    assert expected.items() <= document.items()
    assert set(document["flops_per_token"]) == {"logged", "model", "model_causal"}
    assert set(document["memory_gib_per_device"]) == {
        "parameters",
        "gradients",
        "optimizer",
        "activations",
        "logits",
        "peak",
    }


def test_the_json_of_a_refusal_lists_rule_message_source_and_nearest() -> None:
    document = refusal("llama2-7b-perf", 4, "micro_num=8").to_json()
    assert document["legal"] is False
    assert (document["cards"], document["micro_bsz"], document["micro_num"]) == (32, 2, 8)
    (violation,) = document["violations"]
    assert set(violation) == {"rule", "message", "source", "nearest"}


def test_seconds_at_a_speed() -> None:
    made = plan("llama2-7b-perf", 2, "micro_num=4")
    # 20 steps of 524288 tokens on 16 cards.
    assert made.seconds_at(3345.72) == pytest.approx(20 * 524288 / 16 / 3345.72)


def test_a_plan_does_not_change() -> None:
    refused = refusal("llama2-7b-perf", 4, "micro_num=8")
    made = plan("llama2-7b-perf", 4)
    assert made.seed == 1024
    for value in (made, made.topology, refused.settings, refused.violations[0]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, dataclasses.fields(value)[0].name, None)
