from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from conformance import strictjson
from conformance.checks.finding import Result, Verdict
from conformance.errors import JsonError, SignatureError
from conformance.report import schemas, statement

SCHEMA_FOLDER = resources.files("conformance.report").joinpath("schema")
SCHEMA = json.loads(SCHEMA_FOLDER.joinpath("report-v1.schema.json").read_text("utf-8"))
SUBJECTS = {"logs/node0/rank0.log": "a" * 64, "configs/plan.json": "b" * 64}
READING = {"id": "batch", "says": "32 cards", "also": "128 cards", "taken": "1024 on both", "source": "README"}
PATCH = {"id": "ipv4", "reason": "Python refuses the address", "digest": "c" * 64}
PREDICATE: dict[str, Any] = {
    "suite": {"name": "internevo-conformance", "version": "0.1.0", "tree_digest": "0" * 64},
    "kind": "perf",
    "workload": {"name": "llama2-7b-perf", "digest": "1" * 64, "official": True, "readings": [READING]},
    "plan": {"cards": 8},
    "internevo": {
        "kind": "checkout",
        "version": "0.2.3",
        "tag": "v0.2.3dev20240201",
        "tree": "f" * 40,
        "pristine": True,
        "patches": [PATCH],
        "kernels": [{"name": "rotary_emb", "provider": "plain"}],
    },
    "devices": [{"vendor": "ACME", "model": "X1", "uuid": "u-1"}],
    "environment": {"python": "3.11.7"},
    "findings": [{"check": "tgs", "result": "PASS", "message": "3345 tokens/s.", "value": 3345.7, "margin": None}],
    "metrics": {"tgs": 3345.7},
    "journal": {"entries": 2, "head": "d" * 64},
    "challenge": {"nonce": "9" * 64, "digest": "8" * 64},
    "verdict": "CONFORMANT",
    "redactions": [{"rule": "address", "file": "logs/node0/rank0.log", "count": 3}],
    "signer": {"self_issued": True, "time": "2026-11-23T21:20:39Z"},
}


def at(document: Any, path: str) -> Any:
    for part in path.split("."):
        document = document[int(part) if part.isdigit() else part]
    return document


def with_change(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(PREDICATE)
    parent, _, name = path.rpartition(".")
    holder: Any = at(document, parent) if parent else document
    holder[int(name) if name.isdigit() else name] = value
    return document


def test_built_statement_loads_again() -> None:
    payload = statement.build(PREDICATE, SUBJECTS)
    loaded = statement.load(payload)
    assert loaded == statement.Statement(SUBJECTS, PREDICATE, hashlib.sha256(payload).hexdigest())
    assert list(loaded.subjects) == sorted(SUBJECTS)
    assert payload == statement.build(dict(reversed(PREDICATE.items())), dict(reversed(SUBJECTS.items())))


def test_it_is_an_in_toto_statement() -> None:
    document = json.loads(statement.build(PREDICATE, SUBJECTS))
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert document["predicateType"] == statement.PREDICATE_TYPE
    assert document["subject"][0] == {"name": "configs/plan.json", "digest": {"sha256": "b" * 64}}
    # RFC 3986: a scheme, then the rest; the host's top-level domain is one that nobody can register (RFC 6761).
    assert re.fullmatch(r"https://[a-z-]+\.invalid/report/v1", statement.PREDICATE_TYPE)


def test_verdicts_and_results_are_those_of_the_findings() -> None:
    definitions = SCHEMA["$defs"]["predicate"]["properties"]
    assert definitions["verdict"]["enum"] == [verdict.value for verdict in Verdict]
    assert definitions["findings"]["items"]["properties"]["result"]["enum"] == [result.value for result in Result]


FREE = {"plan", "environment", "metrics"}


def paths(value: Any, prefix: str = "") -> Iterator[str]:
    """Every member of every object below ``value``, by dotted path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, dict):
            yield path
        if key not in FREE:
            yield from paths(inner, path)


OPTIONAL = {
    "findings.0.value",
    "findings.0.margin",
    "devices.0.uuid",
    "internevo.kernels.0.name",
    "internevo.kernels.0.provider",
}


def test_each_field_is_needed() -> None:
    needed = set(paths(PREDICATE)) - OPTIONAL
    assert len(needed) > 40
    for path in needed:
        document = copy.deepcopy(PREDICATE)
        parent, _, name = path.rpartition(".")
        del (at(document, parent) if parent else document)[name]
        with pytest.raises(SignatureError, match=rf"required of the schema.*{name}\W+ is a required property"):
            statement.build(document, SUBJECTS)


@pytest.mark.parametrize(
    "path", ["", "suite", "workload", "workload.readings.0", "internevo", "findings.0", "journal", "signer"]
)
def test_unknown_fields_are_refused(path: str) -> None:
    with pytest.raises(SignatureError, match="additionalProperties of the schema"):
        statement.build(with_change(f"{path}.floor".lstrip("."), 0), SUBJECTS)


WRONG = {
    "verdict unknown": ("verdict", "conformant"),
    "verdict with newline": ("verdict", "CONFORMANT\n"),
    "result unknown": ("findings.0.result", "WAIVED"),
    "no findings": ("findings", []),
    "official as text": ("workload.official", "true"),
    "official as number": ("workload.official", 1),
    "digest short": ("workload.digest", "1" * 63),
    "digest in capitals": ("workload.digest", "A" * 64),
    "digest with newline": ("workload.digest", "1" * 64 + "\n"),
    "tree with newline": ("internevo.tree", "f" * 40 + "\n"),
    "name with newline": ("workload.name", "llama2-7b-perf\n"),
    "name with escape": ("workload.name", "\x1b[2J"),
    "name a path": ("workload.name", "../7b"),
    "suite foreign": ("suite.name", "mlperf"),
    "journal empty": ("journal.entries", 0),
    "journal by half": ("journal.entries", 1.5),
    "journal true": ("journal.entries", True),
    "margin text": ("findings.0.margin", "0.1"),
    "message long": ("findings.0.message", "x" * 10_001),
    "challenge a text": ("challenge", "nonce"),
    "challenge of other fields": ("challenge", {"nonce": "9" * 64, "seed": 1}),
    "kind unknown": ("kind", "inference"),
    "redaction of nothing": ("redactions.0.count", 0),
    "time with a zone": ("signer.time", "2026-11-23T21:20:39+00:00"),
    "patch without a digest": ("internevo.patches.0", {"id": "a", "reason": "b"}),
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_values_are_refused_at_their_place(fault: str) -> None:
    path, value = WRONG[fault]
    with pytest.raises(SignatureError, match="The report is refused: at 'predicate") as caught:
        statement.build(with_change(path, value), SUBJECTS)
    assert re.sub(r"\.(\d+)", r"[\1]", path) in str(caught.value)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../x",
        "logs/../x",
        "logs//x",
        "logs/.ssh",
        "-rf",
        "logs/x\n",
        "logs/é",
        "a/" * 6 + "a",
        "x" * 101,
        "",
    ],
)
def test_subject_names_are_plain_and_relative(name: str) -> None:
    with pytest.raises(SignatureError, match=r"subject\[0\].name"):
        statement.build(PREDICATE, {name: "a" * 64})


def test_nan_is_refused_before_the_schema_sees_it() -> None:
    with pytest.raises(JsonError, match="cannot be written"):
        statement.build(with_change("metrics", {"tgs": float("nan")}), SUBJECTS)
    payload = statement.build(PREDICATE, SUBJECTS).replace(b"3345.7", b"NaN")
    with pytest.raises(SignatureError, match="NaN is not a JSON number"):
        statement.load(payload)


def changed(**fields: Any) -> bytes:
    return strictjson.dumps({**json.loads(statement.build(PREDICATE, SUBJECTS)), **fields})


SUBJECT = json.loads(statement.build(PREDICATE, SUBJECTS))["subject"]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (changed(_type="https://in-toto.io/Statement/v0.1"), "_type"),
        (changed(predicateType="https://slsa.dev/verification_summary/v1"), "predicateType"),
        (changed(predicateType=statement.PREDICATE_TYPE.replace("v1", "v2")), "predicateType"),
        (changed(policy={}), "additionalProperties"),
        (changed(subject=[]), "subject"),
        (changed(subject=SUBJECT[::-1]), "ascending"),
        (changed(subject=[SUBJECT[0], SUBJECT[0]]), "ascending"),
        (changed(subject=[{**SUBJECT[0], "digest": {"sha1": "0" * 40}}]), "digest"),
        (b"[]", "top level"),
        (b"{", "not JSON"),
    ],
)
def test_other_statements_are_refused(payload: bytes, reason: str) -> None:
    with pytest.raises(SignatureError, match=reason):
        statement.load(payload)


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of the schema."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(inner)


@pytest.mark.parametrize("name", ["report-v1", "submission-v1"])
def test_the_schema_is_sound_local_and_anchored(name: str) -> None:
    schema = json.loads(SCHEMA_FOLDER.joinpath(f"{name}.schema.json").read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    found = list(nodes(schema))
    references = [node["$ref"] for node in found if isinstance(node.get("$ref"), str)]
    assert references
    assert all(reference.startswith("#/$defs/") for reference in references)
    patterns = [node["pattern"] for node in found if isinstance(node.get("pattern"), str)]
    assert patterns
    assert all(pattern.startswith("^") and pattern.endswith(r"$(?!\n)") for pattern in patterns)
    arrays = [list(node) for node in found if node.get("type") == "array"]
    assert arrays
    # The cap comes first, so that a million items are refused before one is looked at.
    assert all(keys.index("maxItems") < keys.index("items") for keys in arrays)
    assert not any("uniqueItems" in node for node in found), "quadratic in jsonschema"


def test_a_foreign_reference_never_opens_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    monkeypatch.setattr("urllib.request.urlopen", lambda *arguments, **_: opened.append(arguments))
    monkeypatch.setattr("socket.create_connection", lambda *arguments, **_: opened.append(arguments))
    validator = schemas._validator("report-v1").evolve(schema={"$ref": "https://example.com/schema.json"})
    with pytest.raises(Exception, match="Unresolvable"):
        validator.validate({})
    assert opened == []


def test_a_statement_is_read_under_its_own_version(monkeypatch):
    """With a second version beside the first, each is held to the schema that it names."""
    second = statement.Form("report", "https://internevo-conformance.invalid/report/v2", "report-v2")
    monkeypatch.setattr(statement, "FORMS", (second, *statement.FORMS))
    asked = []
    monkeypatch.setattr(statement.schemas, "check", lambda document, schema, *_: asked.append(schema))
    document = {"subject": [], "predicate": {}}
    read = [
        statement.load(strictjson.dumps({**document, "predicateType": form.predicate_type}))
        for form in (statement.REPORT, second)
    ]
    assert asked == ["report-v1", "report-v2"]
    assert [one.form for one in read] == [statement.REPORT, second]


def test_every_version_of_a_report_can_be_made_again():
    from conformance.bundle.verify import REBUILDERS

    assert set(REBUILDERS) == {form for form in statement.FORMS if form.name == "report"}
