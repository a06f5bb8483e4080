"""Floors carry their source, and a malformed file is refused with one sentence."""

from dataclasses import replace

import pytest

from conformance.errors import SpecError
from conformance.internevo.flops import logged_flops_per_token
from conformance.spec import all_workloads, load_workload
from conformance.spec.floors import find_floor, load_floors

ENTRY = """
[[floor]]
workload = "llama2-7b-perf"
device = "*"
metric = "tgs"
value = 3345.72
unit = "tokens/device/s"
source = "somewhere"
date = 2024-03-27
runs = 1
status = "published"
"""


def test_every_floor_is_for_a_workload_and_has_a_source():
    floors = load_floors()
    assert {floor.workload for floor in floors} <= {workload.name for workload in all_workloads()}
    assert all(floor.source and floor.date and floor.runs >= 1 for floor in floors)


def test_the_7b_floor_is_the_published_line_and_the_70b_floor_follows_from_it():
    seven = find_floor(load_floors(), "llama2-7b-perf", "tgs", None)
    flops = find_floor(load_floors(), "llama2-7b-perf", "tflops", "any device")
    assert (seven.value, flops.value, seven.status, seven.provisional) == (3345.72, 180.457, "published", False)
    seventy = find_floor(load_floors(), "llama2-70b-perf", "tgs", None)
    model = load_workload("llama2-70b-perf").model
    assert seventy.value == pytest.approx(flops.value * 1e12 / logged_flops_per_token(model, False), rel=1e-4)
    assert (seventy.status, seventy.provisional) == ("derived", True)


def test_the_device_decides_and_the_later_entry_overrides():
    (base,) = [f for f in load_floors() if (f.workload, f.metric) == ("llama2-7b-perf", "tgs")]
    mine, stricter = replace(base, device="D9", value=5.0), replace(base, value=4000.0, status="policy")
    assert find_floor([base, mine], base.workload, "tgs", "D9") == mine
    assert find_floor([base, mine], base.workload, "tgs", "D8") == base
    assert find_floor([base, stricter], base.workload, "tgs", None) == stricter
    assert find_floor([mine], base.workload, "tgs", None) is None
    assert find_floor([], base.workload, "tgs", "D9") is None


def test_a_floor_of_one_layout_holds_for_no_other():
    (base,) = [f for f in load_floors() if (f.workload, f.metric) == ("llama2-7b-perf", "tgs")]
    two = replace(base, layout={"num_layers": 32, "tensor_parallel": 2})
    run = {"num_layers": 32, "data_parallel": 4, "tensor_parallel": 2, "pipeline_parallel": 1}
    assert find_floor([two], base.workload, "tgs", None, run) == two
    assert find_floor([two], base.workload, "tgs", None, run | {"num_layers": 24}) is None
    assert find_floor([two], base.workload, "tgs", None, run | {"tensor_parallel": None}) is None
    assert find_floor([two], base.workload, "tgs", None) is None
    for order in ([two, base], [base, two]):  # the one that says more, wherever it stands
        assert find_floor(order, base.workload, "tgs", None, run) == two
        assert find_floor(order, base.workload, "tgs", None) == base


def test_two_layouts_may_have_a_floor_each_and_one_layout_only_one(tmp_path):
    path, doubled = tmp_path / "floors.toml", tmp_path / "doubled.toml"
    one, other = ENTRY + "layout = { tensor_parallel = 1 }\n", ENTRY + "layout = { tensor_parallel = 2 }\n"
    path.write_text(one + other)
    assert [floor.layout for floor in load_floors(path)] == [{"tensor_parallel": 1}, {"tensor_parallel": 2}]
    doubled.write_text(one + other + one)
    with pytest.raises(SpecError, match="twice"):
        load_floors(doubled)


@pytest.mark.parametrize(
    ("honest", "broken", "told"),
    [
        ("value = 3345.72", "value = 0.0", "expected both above 0"),
        ("value = 3345.72", "value = nan", "expected both above 0"),
        ("value = 3345.72", 'value = "fast"', "value is 'fast', expected float"),
        ("value = 3345.72", "value = true", "value is True"),
        ("runs = 1", "runs = 0", "expected both above 0"),
        ("runs = 1", "", "missing or unknown: runs"),
        ("runs = 1", "runs = 1\nnote = 1", "missing or unknown: note"),
        ("runs = 1", "runs = 1\nspread = 1.5", "a share from 0 to 1"),
        ("runs = 1", "runs = 1\nlayout = { layers = 2 }", "for some of num_layers"),
        ("runs = 1", "runs = 1\nlayout = { num_layers = 0 }", "expected numbers from 1"),
        ("runs = 1", "runs = 1\nlayout = { num_layers = true }", "expected numbers from 1"),
        ('metric = "tgs"', 'metric = "mfu"', "expected one of"),
        ('unit = "tokens/device/s"', 'unit = "TFLOPS/device"', "expected one of"),
        ('status = "published"', 'status = "hoped"', "status is 'hoped'"),
        ("[[floor]]", "[[flor]]", "expected [[floor]] tables only"),
        ("[[floor]]", "[floor]", "expected [[floor]] tables only"),
        ("[[floor]]", "[[floor", "not valid TOML"),
    ],
)
def test_a_malformed_floor_is_refused(tmp_path, honest, broken, told):
    path = tmp_path / "floors.toml"
    path.write_text(ENTRY.replace(honest, broken))
    with pytest.raises(SpecError) as refused:
        load_floors(path)
    assert told in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_floor_given_twice_and_a_file_that_is_not_there(tmp_path):
    path = tmp_path / "floors.toml"
    path.write_text(ENTRY * 2)
    with pytest.raises(SpecError, match="twice"):
        load_floors(path)
    with pytest.raises(SpecError, match="cannot be read"):
        load_floors(tmp_path / "none.toml")
