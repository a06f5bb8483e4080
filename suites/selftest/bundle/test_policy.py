"""A policy is read strictly: what it does not say, it does not allow, and only the lab's key makes it a policy."""

import pytest
from lab import Lab

from conformance import strictjson
from conformance.bundle import policy
from conformance.errors import ConformanceError, SignatureError
from conformance.report import dsse, schemas


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("lab"))


def test_a_policy_reads_back_as_written(lab):
    document = lab.document()
    read = policy.load(lab.envelope(document))
    assert read.name == "Example Lab"
    assert read.signed_by == (lab.key_id("lab"),)
    assert read.keys[lab.key_id("vendor")].role == "vendor"
    assert read.workloads["tiny-perf"].runs == 1
    assert read.limits.members == 10000


def twice(document):
    document["keys"].append({**document["keys"][1], "role": "operator"})


def floor_of(**changes):
    entry = {
        "workload": "tiny-perf",
        "device": "*",
        "metric": "tgs",
        "value": 1.0,
        "unit": "tokens/device/s",
        "source": "the lab",
        "date": "2026-11-01",
        "runs": 3,
        "status": "policy",
    }
    return {**entry, **changes}


FAULTS = {
    "one key in two roles": (twice, "as vendor and as operator: one key cannot act in two roles"),
    "a field missing": (lambda d: d.pop("waivers"), "'waivers' is a required property"),
    "an unknown field": (lambda d: d.update(relax=True), "relax"),
    "an unknown role": (lambda d: d["keys"][1].update(role="root"), "is not one of"),
    "no key": (lambda d: d.update(keys=[]), "minItems|non-empty"),
    "no required role": (lambda d: d.update(required_roles=[]), "minItems|non-empty"),
    "a lab as a required role": (lambda d: d.update(required_roles=["lab"]), "is not one of"),
    "a key that is none": (lambda d: d["keys"][1].update(public_key="hello"), "cannot be loaded"),
    "a waiver without a reason": (
        lambda d: d["waivers"].append(
            {"check": "log-lr", "vendor": "x", "workload": "y", "reason": "", "expires": "2027-01-01T00:00:00Z"}
        ),
        "minLength|too short|non-empty",
    ),
    "a waiver without an end": (
        lambda d: d["waivers"].append({"check": "log-lr", "vendor": "x", "workload": "y", "reason": "z"}),
        "'expires' is a required property",
    ),
    "a time that is none": (lambda d: d.update(expires="2026-13-01T00:00:00Z"), "expected a UTC time"),
    "a local time": (lambda d: d.update(expires="2027-01-01T00:00:00+08:00"), "pattern"),
    "over before it begins": (lambda d: d.update(expires="2026-01-01T00:00:00Z"), "not after its issue"),
    "two rulings on a workload": (lambda d: d["workloads"].append(d["workloads"][0]), "rules twice on tiny-perf"),
    "two floors for one thing": (lambda d: d.update(floors=[floor_of(), floor_of(value=2.0)]), "twice"),
    "a floor of nothing": (lambda d: d.update(floors=[floor_of(value=-1.0)]), "expected both above 0"),
    "a floor in another unit": (lambda d: d.update(floors=[floor_of(unit="TFLOPS/device")]), "expected one of"),
    "runs that need none": (lambda d: d["workloads"][0].update(runs=0), "minimum"),
    "limits wider than the suite's": (lambda d: d["limits"].update(members=10**6), "maximum"),
    "another version": (lambda d: d.update(version=2), "const|1 was expected"),
    "a revocation without a reason": (lambda d: d["keys"][1].update(revoked=""), "minLength|too short|non-empty"),
    "issued when its signer was not valid": (
        lambda d: d["keys"][0].update(valid_from="2026-11-15T00:00:00Z"),
        "was not valid",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refused_with_a_sentence(lab, fault):
    change, reason = FAULTS[fault]
    document = lab.document()
    change(document)
    with pytest.raises(ConformanceError, match=reason) as caught:
        policy.load(lab.envelope(document))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("end", ["valid_from", "valid_until"])
def test_a_policy_issued_in_the_first_or_last_second_of_its_signers_key_holds(lab, end):
    document = lab.document()
    document["keys"][0][end] = document["issued"]
    assert policy.load(lab.envelope(document)).signed_by == (lab.key_id("lab"),)


@pytest.mark.parametrize("signer", ["vendor", "operator", "stranger"])
def test_only_a_lab_key_signs_a_policy(lab, signer):
    with pytest.raises(SignatureError, match="0 of the accepted keys"):
        policy.load(lab.envelope(lab.document(), signer))


def test_a_revoked_lab_key_signs_no_policy(lab):
    document = lab.document()
    document["keys"][0]["revoked"] = "lost"
    with pytest.raises(SignatureError, match="0 of the accepted keys"):
        policy.load(lab.envelope(document))


def test_a_report_is_no_policy(lab):
    envelope = dsse.sign(strictjson.dumps(lab.document()), "application/vnd.in-toto+json", [lab.key["lab"]])
    with pytest.raises(ConformanceError, match=r"conformance sign POLICY\.json --type policy"):
        policy.load(envelope)


@pytest.mark.parametrize("at", [10, 200, 800])
def test_a_changed_byte_is_refused(lab, at):
    envelope = bytearray(lab.envelope(lab.document()))
    envelope[at] ^= 1
    with pytest.raises(ConformanceError):
        policy.load(bytes(envelope))


@pytest.mark.parametrize("name", ["challenge-v1", "policy-v1", "vsa-v1"])
def test_the_schemas_are_sound_and_local(name):
    from jsonschema import Draft202012Validator

    schema = schemas._validator(name).schema
    Draft202012Validator.check_schema(schema)
    text = strictjson.dumps(schema).decode()
    assert '"$ref":"http' not in text
    assert text.count('"pattern":') == text.count("$(?!\\\\n)")
