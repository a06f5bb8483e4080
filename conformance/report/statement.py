"""What is signed: an in-toto Statement v1 about every other file of a bundle, held to a JSON Schema.

Two predicates exist: a report, about one run, and a submission, about several runs of one system.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from conformance import strictjson
from conformance.errors import JsonError, SignatureError
from conformance.report import schemas

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
# in-toto wants a URI. The project owns no domain; ".invalid" (RFC 6761) is one that nobody can ever own, so the
# name neither claims a site nor can be taken over by whoever registers it.
PREDICATE_TYPE = "https://internevo-conformance.invalid/report/v1"


@dataclass(frozen=True)
class Form:
    """A kind of statement.

    Args:
        name: What it is called.
        predicate_type: URI of its predicate.
        schema: Name and version of its schema in ``schema/``.
    """

    name: str
    predicate_type: str
    schema: str


REPORT = Form("report", PREDICATE_TYPE, "report-v1")
SUBMISSION = Form("submission", "https://internevo-conformance.invalid/submission/v1", "submission-v1")
# Every version that was ever written: a statement is read under its own for ever. REPORT and SUBMISSION are written.
FORMS = (REPORT, SUBMISSION)


@dataclass(frozen=True)
class Statement:
    """A report or submission as read from verified bytes.

    Args:
        subjects: SHA-256, in hex, of every file of the bundle but the statement, by name.
        predicate: What was run and found, as the form's schema describes it.
        report_id: SHA-256, in hex, of the payload.
        form: The form, in its own version.
    """

    subjects: Mapping[str, str]
    predicate: Mapping[str, Any]
    report_id: str
    form: Form = REPORT


def build(predicate: Mapping[str, Any], subjects: Mapping[str, str], form: Form = REPORT) -> bytes:
    """Write the payload to sign.

    Args:
        predicate: The statement's content.
        subjects: SHA-256, in hex, of every file of the bundle but the statement, by name.
        form: What the statement is.

    Returns:
        The statement as JSON, the same bytes for the same values.

    Raises:
        SignatureError: The statement breaks the schema.
        JsonError: A value has no place in strict JSON, such as NaN.
    """
    document = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": subjects[name]}} for name in sorted(subjects)],
        "predicateType": form.predicate_type,
        "predicate": predicate,
    }
    payload = strictjson.dumps(document, what=f"The {form.name}")
    load(payload, form)
    return payload


def load(payload: bytes, form: Form = REPORT) -> Statement:
    """Read a payload, whose signature the caller has verified.

    Args:
        payload: The signed bytes.
        form: What the statement has to be, in any version.

    Returns:
        The statement.

    Raises:
        SignatureError: Not strict JSON, against the schema, or subjects out of order or doubled.
    """
    what = f"The {form.name}"
    try:
        document = strictjson.loads(payload, what=what)
    except JsonError as error:
        raise SignatureError(error.message) from error
    stated = document.get("predicateType") if isinstance(document, dict) else None
    # Where no version is called so, the schema of the current one refuses it.
    form = next((one for one in FORMS if (one.name, one.predicate_type) == (form.name, stated)), form)
    schemas.check(document, form.schema, what, SignatureError)
    names = [subject["name"] for subject in document["subject"]]
    if any(first >= second for first, second in pairwise(names)):
        raise SignatureError(f"{what} is refused: its subjects are not in strictly ascending order of names.")
    subjects = {subject["name"]: subject["digest"]["sha256"] for subject in document["subject"]}
    return Statement(subjects, document["predicate"], report_id(payload), form)


def report_id(payload: bytes) -> str:
    """Name a report or submission.

    Args:
        payload: The signed bytes.

    Returns:
        Their SHA-256 in hex.
    """
    return hashlib.sha256(payload).hexdigest()
