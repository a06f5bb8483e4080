"""The shapes and groups that are measured are those of the plan."""

import sys
import types
from importlib.util import find_spec, module_from_spec, spec_from_file_location

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.spec import load_workload

pytestmark = pytest.mark.needs("torch")
DTYPES = ("bfloat16", "float32", "int64")


@pytest.fixture(autouse=True)
def imported():
    """Importing torch takes seconds, which collecting the tests need not wait for."""
    global torch, SCALE, WHOLE, bus_factor, contribution, link_pairs, parallel_groups, gemm_shapes, document_lengths
    import torch

    from conformance.preflight.collectives import SCALE, WHOLE, bus_factor, contribution, link_pairs, parallel_groups
    from conformance.preflight.compute import gemm_shapes
    from conformance.preflight.kernels import document_lengths


@given(st.integers(6, 14).map(lambda n: 2**n), st.integers(1, 4), st.integers(0, 100))
def test_documents_fill_the_pack(seq_len, sequences, seed):
    tokens = seq_len * sequences
    for name, lengths in document_lengths(tokens, seq_len, seed).items():
        assert sum(lengths) == tokens, name
        assert all(1 <= length <= seq_len for length in lengths), name


def test_the_packs_of_the_7b_plan_hold_what_breaks_kernels():
    packs = document_lengths(8192, 4096, 7)
    assert packs["full"] == [4096, 4096]
    assert 1 in packs["odd"]
    assert any(length % 2 for length in packs["odd"] if length > 100)
    assert 4096 in packs["odd"]
    assert len(packs["many"]) >= 64


def test_products_are_those_of_the_7b_layer():
    model = load_workload("llama2-7b-perf").model
    shapes = {name: sizes for name, *sizes in gemm_shapes(model, 8192, 1, rehearsal=False)}
    assert shapes["square"] == [8192, 8192, 8192]
    assert shapes["mlp-up"] == [8192, 14336, 4096]
    assert shapes["key-value"] == [8192, 2048, 4096]
    cut = {name: sizes for name, *sizes in gemm_shapes(model, 8192, 2, rehearsal=False)}
    assert cut["mlp-down"] == [8192, 4096, 7168]


def test_products_of_both_official_workloads_are_measured_beside_the_plans():
    tiny = load_workload("tiny-perf").model
    shapes = {name: sizes for name, *sizes in gemm_shapes(tiny, 256, 1, rehearsal=False)}
    assert shapes["7b-mlp-up"] == [8192, 14336, 4096]
    assert shapes["70b-mlp-up"] == [8192, 28672 // 8, 8192]
    assert shapes["70b-key-value"] == [8192, 2 * 1024 // 8, 8192]
    assert shapes["key-value-4096"] == [4096, 1024, 4096]
    official = load_workload("llama2-7b-perf").model
    names = [name for name, *_ in gemm_shapes(official, 8192, 1, rehearsal=False)]
    assert not any(name.startswith("7b-") for name in names)  # the plan's own already
    assert sum(name.startswith("70b-") for name in names) == 6
    assert len(gemm_shapes(tiny, 256, 1, rehearsal=True)) == 7


def test_links_lead_to_the_next_rank_and_to_the_same_device_of_the_next_node():
    assert link_pairs(1, 1) == []
    assert link_pairs(4, 4) == [(0, 1), (1, 2), (2, 3), (3, 0)]
    assert link_pairs(2, 1) == [(0, 1), (1, 0)]
    pairs = link_pairs(8, 4)
    assert {(0, 4), (3, 7), (7, 3), (3, 4)} <= set(pairs)
    assert len(pairs) == len(set(pairs)) == 16


@pytest.mark.needs("internlm")
@pytest.mark.parametrize(
    ("world", "tensor", "pipeline", "zero1"),
    [(16, 2, 2, 4), (16, 2, 2, 2), (32, 8, 4, 1), (128, 8, 4, 4), (24, 2, 3, 2)],
)
def test_groups_are_those_that_the_performance_versions_make(monkeypatch, world, tensor, pipeline, zero1):
    """Their own code, asked by every rank which group it is in; only torch's making of a group is left out."""
    place = find_spec("internlm").submodule_search_locations[0]
    for name in ("internlm", "internlm.utils", "internlm.utils.timeout"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["internlm.utils.timeout"].LLM_NCCL_TIMEOUT = None
    spec = spec_from_file_location("initializers", f"{place}/core/context/process_group_initializer.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(torch.distributed, "new_group", lambda ranks, **_: ranks)
    data = world // tensor // pipeline

    def made(kind):
        asked = (
            getattr(module, f"Initializer_{kind}")(rank, world, data, pipeline, tensor, zero1, 1, 1).init_dist_group()
            for rank in range(world)
        )
        return {tuple(ranks) for _, _, _, _, ranks, *_ in asked}

    ours = {
        kind: {tuple(ranks) for ranks in groups}
        for kind, groups in parallel_groups(world, tensor, pipeline, zero1, data_outermost=True).items()
    }
    theirs = {"tensor": made("Tensor"), "pipeline": made("Pipeline"), "data": made("Data"), "zero1": made("Zero1")}
    if zero1 == data:
        assert theirs.pop("zero1") == theirs["data"]
        theirs["data and zero1"] = theirs.pop("data")
    assert ours == {kind: groups for kind, groups in theirs.items() if len(next(iter(groups))) > 1}


def test_groups_of_the_accuracy_version_lie_inside_a_stage():
    # Initializer_Data and Initializer_Zero1 of v0.3.1dev20240229: i * ranks_num_per_pp + j + k * tensor.
    groups = parallel_groups(16, tensor=2, pipeline=2, zero1=2)
    assert groups["zero1"][:4] == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert groups["data"][2] == [8, 10, 12, 14]
    assert groups["pipeline"][0] == [0, 8]


def test_groups_are_laid_out_as_internevo_lays_them_out():
    groups = parallel_groups(16, tensor=2, pipeline=2)
    assert groups["tensor"][0] == [0, 1]
    assert groups["pipeline"][0] == [0, 8]
    assert groups["data and zero1"][:2] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert groups["data and zero1"][2] == [8, 10, 12, 14]
    assert set(parallel_groups(8, tensor=1, pipeline=1)) == {"data and zero1"}


@given(st.sampled_from([(8, 2, 2), (32, 8, 4), (64, 8, 4), (128, 8, 4), (12, 1, 3)]))
def test_every_rank_is_in_one_group_of_each_kind(sizes):
    world, tensor, pipeline = sizes
    for members in parallel_groups(world, tensor, pipeline).values():
        assert sorted(rank for group in members for rank in group) == list(range(world))


def test_every_type_that_is_reduced_is_tested_here():
    assert {str(dtype).removeprefix("torch.") for dtype in WHOLE} == set(DTYPES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 3, 8, 100])
def test_sums_are_exact_and_lose_what_a_rank_gives(dtype, size):
    dtype = getattr(torch, dtype)
    ranks = list(range(size))
    parts = [contribution(rank, ranks, dtype) for rank in ranks]
    total = torch.stack([part.double() for part in parts]).sum(0)
    assert torch.equal(total.to(dtype).double(), total)
    for left_out in (0, size - 1):
        assert not torch.equal(total - parts[left_out].double(), total)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_silent_downcast_changes_the_sum(dtype):
    dtype = getattr(torch, dtype)
    lower = {torch.bfloat16: torch.float16, torch.float32: torch.bfloat16, torch.int64: torch.float32}[dtype]
    given_values = contribution(0, [0, 1], dtype)
    assert not torch.equal(given_values.to(lower).double(), given_values.double())
    assert SCALE[dtype] * WHOLE[dtype] > 65504


def test_bus_bandwidth_formulas():
    assert bus_factor("all_reduce", 8) == pytest.approx(1.75)
    assert bus_factor("all_gather_into_tensor", 8) == pytest.approx(0.875)
    assert bus_factor("broadcast", 8) == 1
