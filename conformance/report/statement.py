"""The report's payload: an in-toto Statement v1 about every file of a bundle, held to a JSON Schema."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry

from conformance import strictjson
from conformance.errors import JsonError, SignatureError
from conformance.strictjson import quoted

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
# in-toto wants a URI. The project owns no domain; ".invalid" (RFC 6761) is one that nobody can ever own, so the
# name neither claims a site nor can be taken over by whoever registers it.
PREDICATE_TYPE = "https://internevo-conformance.invalid/report/v1"


@dataclass(frozen=True)
class Statement:
    """A report as read from verified bytes.

    Args:
        subjects: SHA-256, in hex, of every file of the bundle but the report, by name.
        predicate: What was run and found, as schema/report-v1.schema.json describes it.
        report_id: SHA-256, in hex, of the payload.
    """

    subjects: Mapping[str, str]
    predicate: Mapping[str, Any]
    report_id: str


def build(predicate: Mapping[str, Any], subjects: Mapping[str, str]) -> bytes:
    """Write the payload to sign.

    Args:
        predicate: The report's content.
        subjects: SHA-256, in hex, of every file of the bundle but the report, by name.

    Returns:
        The statement as JSON, the same bytes for the same values.

    Raises:
        SignatureError: The statement breaks the schema.
        JsonError: A value has no place in strict JSON, such as NaN.
    """
    document = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": subjects[name]}} for name in sorted(subjects)],
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }
    payload = strictjson.dumps(document, what="The report")
    load(payload)
    return payload


def load(payload: bytes) -> Statement:
    """Read a payload, whose signature the caller has verified.

    Args:
        payload: The signed bytes.

    Returns:
        The statement.

    Raises:
        SignatureError: Not strict JSON, against the schema, or subjects out of order or doubled.
    """
    try:
        document = strictjson.loads(payload, what="The report")
    except JsonError as error:
        raise SignatureError(error.message) from error
    validate(document)
    names = [subject["name"] for subject in document["subject"]]
    if any(first >= second for first, second in pairwise(names)):
        raise SignatureError("The report is refused: its subjects are not in strictly ascending order of names.")
    subjects = {subject["name"]: subject["digest"]["sha256"] for subject in document["subject"]}
    return Statement(subjects, document["predicate"], report_id(payload))


def validate(document: object) -> None:
    """Hold a statement against schema/report-v1.schema.json.

    Args:
        document: The parsed statement.

    Raises:
        SignatureError: It breaks the schema; names the place and the rule.
    """
    error = next(_validator().iter_errors(document), None)
    if error is not None:
        place = error.json_path.removeprefix("$.") if error.json_path != "$" else "the top level"
        raise SignatureError(
            f"The report is refused: at {quoted(place)}, {error.validator} of the schema (version 1) is broken: "
            f"{quoted(error.message, 200)}."
        )


def report_id(payload: bytes) -> str:
    """Name a report.

    Args:
        payload: The signed bytes.

    Returns:
        Their SHA-256 in hex.
    """
    return hashlib.sha256(payload).hexdigest()


@cache
def _validator() -> Draft202012Validator:
    text = resources.files("conformance.report").joinpath("schema/report-v1.schema.json").read_text("utf-8")
    # An explicit empty registry: the default one would fetch a foreign $ref over the network.
    return Draft202012Validator(json.loads(text), registry=Registry())
