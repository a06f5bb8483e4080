"""System descriptions: filled from the evidence, checked against it, asked for where it is silent."""

import json
import sys
from importlib import resources

import pytest

from conformance.bundle import system
from conformance.errors import EvidenceError, SignatureError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HOST = {
    "host": "n0",
    "processor": "EPYC 9654",
    "processors": 2,
    "cores": 192,
    "memory_bytes": 2 * 2**40,
    "system": "Debian 12",
    "kernel": "6.1.0",
    "rdma_ports": [{"port": "mlx5_0:1", "rate": "400 Gb/sec"}, {"port": "mlx5_1:1", "rate": "400 Gb/sec"}],
}
DEVICE = {"vendor": "ACME", "model": "X1", "memory": "96 GiB", "driver": "1.2.3", "firmware": "0.9"}


def report(nodes=4, **environment):
    told = {"hosts": [HOST], "packages": {"torch": "2.6.0"}, **environment}
    return {"plan": {"nodes": nodes, "devices_per_node": 8}, "devices": [DEVICE], "environment": told}


ASKED = {
    "system_name": "rack one",
    "availability": "available",
    "storage": "NVMe",
    "accelerator_interconnect": "LinkX 900 GB/s",
    "network": "8 x 400 Gb/s InfiniBand",
    "topology": "fat tree",
    "power_watts_per_node": 10200,
    "cooling": "air",
}


def test_the_evidence_fills_what_it_tells():
    assert system.facts([report()]) == {
        "nodes": 4,
        "processor": "EPYC 9654",
        "processors_per_node": 2,
        "cores_per_node": 192,
        "memory_gib_per_node": 2048.0,
        "accelerator": "ACME X1",
        "accelerators_per_node": 8,
        "accelerator_memory": "96 GiB",
        "driver": "1.2.3",
        "firmware": "0.9",
        "network_ports_per_node": "400 Gb/sec, 400 Gb/sec",
        "operating_system": "Debian 12",
        "kernel": "6.1.0",
        "framework": "2.6.0",
    }


def test_what_is_asked_and_what_is_told_make_a_whole_description():
    whole = system.complete(ASKED, [report()])
    assert set(whole) == {field.name for field in system.FIELDS}
    assert whole["power_watts_per_node"] == 10200
    rented = system.complete({**ASKED, "power_watts_per_node": "unknown"}, [report()])
    assert rented["power_watts_per_node"] == "unknown"
    assert system.contradictions(whole, [report()]) == []


def test_the_schema_has_the_same_fields():
    text = resources.files("conformance.report").joinpath("schema/system-v1.schema.json").read_text("utf-8")
    schema = json.loads(text)
    assert schema["required"] == list(schema["properties"]) == [field.name for field in system.FIELDS]


@pytest.mark.parametrize(
    "odd",
    [
        {"environment": {"hosts": [1]}},
        {"environment": {"hosts": 5}},
        {"environment": {"hosts": [{"rdma_ports": [{}]}]}},
        {"environment": {"hosts": [{"rdma_ports": 1, "processor": [1], "kernel": {"a": 1}}]}},
        {"environment": {"hosts": [{"memory_bytes": "x", "cores": True}]}},
        {"environment": {"packages": 5}},
        {"environment": {"packages": {"torch": [1]}}},
        {"environment": {}},
        {"plan": {}},
        {"plan": {"nodes": [1]}},
        {"devices": [{"vendor": "ACME", "model": "X1", "memory": [1], "driver": {}}]},
    ],
    ids=str,
)
def test_what_a_report_may_hold_is_read_or_left_alone(odd):
    found = system.contradictions(ASKED, [{**report(), **odd}])
    assert all(isinstance(phrase, str) for phrase in found)
    known = system.facts([{**report(), **odd}])
    assert all(isinstance(value, str | int | float) and not isinstance(value, bool) for value in known.values())


def test_numbers_and_texts_of_one_field_do_not_meet():
    hosts = [{**HOST, "processors": 2}, {**HOST, "processors": "two"}]
    assert system.facts([report(hosts=hosts)])["processors_per_node"] == 2


def test_runs_on_a_part_of_the_system_count_as_a_part():
    assert system.facts([report(nodes=1), report(nodes=4)])["nodes"] == 4


def test_what_differs_stands_side_by_side():
    other = report(hosts=[{**HOST, "kernel": "6.5.0"}])
    assert system.facts([report(), other])["kernel"] == "6.1.0 | 6.5.0"


@pytest.mark.parametrize("name", sorted(ASKED))
def test_each_thing_asked_for_is_needed(name):
    with pytest.raises(EvidenceError, match=f"lacks {name}, and the evidence does not tell"):
        system.complete({key: value for key, value in ASKED.items() if key != name}, [report()])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nodes", 5),
        ("processor", "EPYC 7742"),
        ("processors_per_node", 1),
        ("cores_per_node", 96),
        ("memory_gib_per_node", 4096),
        ("accelerator", "ACME X2"),
        ("accelerators_per_node", 4),
        ("accelerator_memory", "192 GiB"),
        ("driver", "1.2.4"),
        ("firmware", "1.0"),
        ("network_ports_per_node", "100 Gb/sec"),
        ("operating_system", "Ubuntu 24.04"),
        ("kernel", "6.1.1"),
        ("framework", "2.7.0"),
    ],
)
def test_what_the_evidence_refutes_is_refused(name, value):
    with pytest.raises(EvidenceError, match=f"contradicts the evidence: {name} is"):
        system.complete({**ASKED, name: value}, [report()])


@pytest.mark.parametrize("value", ["1", True, None, [1]])
def test_what_is_no_number_agrees_with_none(value):
    whole = {**system.complete(ASKED, [report(nodes=1)]), "nodes": value}
    assert system.contradictions(whole, [report(nodes=1)]) == [f"nodes is '{value}' and the evidence says '1'"]


@pytest.mark.parametrize("memory", [2048, 2200.0, 1900])
def test_installed_memory_may_differ_from_what_the_kernel_sees(memory):
    assert system.complete({**ASKED, "memory_gib_per_node": memory}, [report()])["memory_gib_per_node"] == memory


def test_stated_facts_stand_where_the_evidence_is_silent():
    silent = report(hosts=[{"host": "n0", "kernel": "6.1.0"}])
    stated = {"processor": "X", "processors_per_node": 1, "cores_per_node": 8, "memory_gib_per_node": 64}
    stated |= {"network_ports_per_node": "none", "operating_system": "Debian 12"}
    assert system.complete({**ASKED, **stated}, [silent])["processor"] == "X"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"availability": "soon"}, "availability"),
        ({"power_watts_per_node": "10 kW"}, "power_watts_per_node"),
        ({"power_watts_per_node": 0}, "power_watts_per_node"),
        ({"power_watts_per_node": "much"}, "power_watts_per_node"),
        ({"power_watts_per_node": True}, "power_watts_per_node"),
        ({"topology": "x" * 1001}, "topology"),
        ({"topology": []}, "topology"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(change, told):
    with pytest.raises(SignatureError, match=f"The system description is refused: at '{told}'"):
        system.complete({**ASKED, **change}, [report()])


def test_a_field_that_does_not_exist_is_refused():
    with pytest.raises(EvidenceError, match="has a field 'colour'; known are system_name"):
        system.complete({**ASKED, "colour": "red"}, [report()])


def test_the_template_asks_only_for_what_is_not_known():
    text = system.template([report()])
    assert tomllib.loads(text) == dict.fromkeys(ASKED, "")
    assert '# driver = "1.2.3"' in text
    assert all(f"# {field.asks}" in text for field in system.FIELDS)


def test_an_evil_value_cannot_leave_its_line_in_the_template():
    evil = report(hosts=[{**HOST, "kernel": '6"\nsystem_name = "owned'}])
    assert tomllib.loads(system.template([evil])) == dict.fromkeys(ASKED, "")


def test_a_file_of_64_kib_is_read(tmp_path):
    (tmp_path / "s.toml").write_bytes(b"#" * 65536)
    assert system.read(tmp_path / "s.toml") == {}


def test_an_empty_text_counts_as_not_stated(tmp_path):
    (tmp_path / "s.toml").write_text('cooling = "air"\nstorage = ""\n')
    assert system.read(tmp_path / "s.toml") == {"cooling": "air"}


@pytest.mark.parametrize(
    ("data", "told"), [(b"cooling = ", "is no TOML"), (b"\xff", "is no TOML"), (b"#" * 65537, "more than")]
)
def test_a_file_that_cannot_be_read_is_said_in_a_sentence(tmp_path, data, told):
    (tmp_path / "s.toml").write_bytes(data)
    with pytest.raises(EvidenceError, match=told):
        system.read(tmp_path / "s.toml")
