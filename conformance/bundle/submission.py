"""A submission: several runs of one system under one signed statement.

submission.dsse.json     the statement, signed by the vendor, and by others where a policy asks for it
system.json              what the system is
challenge.dsse.json      the lab's challenge that the runs answered, if any
environment/signer.pub   the public key whose private half signed the statement
runs/NAME/...            whole run directories, each with its own report.dsse.json

All that the statement says follows from the runs' reports and system.json, so that a verifier computes it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from conformance import strictjson
from conformance.bundle import system
from conformance.errors import EvidenceError, SignatureError
from conformance.evidence import CHALLENGE, REPORT, SIGNER, device_identity
from conformance.report import statement
from conformance.report.statement import SUBMISSION, Statement
from conformance.strictjson import quoted

STATEMENT = "submission.dsse.json"
SYSTEM = "system.json"
RUNS = "runs/"
# More differences than these are one and the same: other devices.
MAX_DIFFERENCES = 20


def load(payload: bytes) -> Statement:
    """Read a submission's payload, whose signature the caller has verified.

    Args:
        payload: The signed bytes.

    Returns:
        The statement; its runs and its subjects fit each other.

    Raises:
        SignatureError: Not strict JSON, against its schema or the system's, or its runs and subjects contradict each
            other.
    """
    submitted = statement.load(payload, SUBMISSION)
    system.check(submitted.predicate["system"])
    runs = [run["name"] for run in submitted.predicate["runs"]]
    if runs != sorted(set(runs)):
        raise SignatureError("The submission is refused: its runs are not in strictly ascending order of names.")
    expected = {SYSTEM, SIGNER, *(f"{RUNS}{run}/{REPORT}" for run in runs)}
    if submitted.predicate["challenge"] is not None:
        expected.add(CHALLENGE)
    if missing := sorted(expected - submitted.subjects.keys()):
        raise SignatureError(f"The submission is refused: it describes {missing[0]} and does not sign it.")
    below = tuple(f"{RUNS}{run}/" for run in runs)
    strange = sorted(name for name in submitted.subjects if name not in expected and not name.startswith(below))
    if strange:
        raise SignatureError(f"The submission is refused: {quoted(strange[0])} belongs to none of its runs.")
    return submitted


def system_file(facts: Mapping[str, Any]) -> bytes:
    """The one spelling of system.json.

    Args:
        facts: The description of the system.

    Returns:
        Its content.
    """
    return strictjson.dumps(dict(facts), what="The system description") + b"\n"


def describe(vendor: str, facts: Mapping[str, Any], reports: Mapping[str, Statement]) -> dict[str, Any]:
    """What a submission says of its runs.

    Args:
        vendor: Who submits.
        facts: The content of system.json.
        reports: The runs' reports, by the name of the run.

    Returns:
        The predicate without ``suite`` and ``signer``, which tell of the writing and not of the runs.

    Raises:
        EvidenceError: The runs answer different challenges.
    """
    return {
        "vendor": vendor,
        "system": dict(facts),
        "runs": [
            {
                "name": name,
                "kind": report.predicate["kind"],
                "workload": report.predicate["workload"]["name"],
                "report_id": report.report_id,
                "verdict": report.predicate["verdict"],
            }
            for name, report in sorted(reports.items())
        ],
        "devices": compare_devices({name: report.predicate["devices"] for name, report in reports.items()}),
        "challenge": one_challenge(reports),
        "redactions": [
            {**redaction, "file": f"{RUNS}{name}/{redaction['file']}"}
            for name, report in sorted(reports.items())
            for redaction in report.predicate["redactions"]
        ],
    }


def one_challenge(reports: Mapping[str, Statement]) -> dict[str, str] | None:
    """The challenge that the runs answered; a run that answered none, as a preflight, has no say.

    Args:
        reports: The runs' reports, by the name of the run.

    Returns:
        Nonce and digest; None where no run answered any.

    Raises:
        EvidenceError: Two runs answered different ones.
    """
    answered = {name: report.predicate["challenge"] for name, report in sorted(reports.items())}
    found = [(name, challenge) for name, challenge in answered.items() if challenge is not None]
    for name, challenge in found[1:]:
        if challenge != found[0][1]:
            raise EvidenceError(
                f"The runs {found[0][0]} and {name} answer different challenges; expected one for all runs.",
                "Submit each challenge's runs on their own.",
            )
    return dict(found[0][1]) if found else None


def compare_devices(devices: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, Any]:
    """Whether all runs were made on one set of devices.

    A run on fewer devices is on the same ones when each of them took part in the run with the most. A device is known
    by its UUID or serial number; where it tells neither, by its host and place there.

    Args:
        devices: What each run's report says of its devices, by the name of the run.

    Returns:
        ``same``, and ``differences``, a sentence for each.
    """
    known = {name: {device_identity(device): device for device in found} for name, found in sorted(devices.items())}
    # Of two runs with as many devices the first by name, so that the answer does not depend on their order.
    whole = max(known, key=lambda name: len(known[name]))
    differences = []
    for name, found in known.items():
        if not found:
            differences.append(f"{name} tells of no device.")
        if strange := sorted(found.keys() - known[whole].keys()):
            shown = ", ".join(strange[:4]) + (", ..." if len(strange) > 4 else "")
            differences.append(f"{name} used {len(strange)} of {len(found)} devices that {whole} did not: {shown}.")
        differences += _changed(name, found, whole, known[whole])
    return {"same": not differences, "differences": differences[:MAX_DIFFERENCES]}


def _changed(
    name: str, found: Mapping[str, Mapping[str, Any]], whole: str, reference: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """One device that tells different things of itself in two runs: another host, driver, firmware or size."""
    return [
        f"{device}: its {field} is {quoted(str(found[device].get(field, 'not told')))} in {name} and "
        f"{quoted(str(reference[device].get(field, 'not told')))} in {whole}."
        for device in sorted(found.keys() & reference.keys())
        for field in ("vendor", "model", "host", "driver", "firmware", "memory")
        if found[device].get(field) != reference[device].get(field)
    ]


def contradictions(submitted: Statement, reports: Mapping[str, Statement]) -> list[str]:
    """Where a submission says something else than its files and its runs' reports do.

    Args:
        submitted: The submission; its files have the digests that it signs.
        reports: The reports of its runs, each verified, by the name of the run.

    Returns:
        A phrase for each; also for a system description that the evidence refutes.

    Raises:
        EvidenceError: The runs answer different challenges.
    """
    said, subjects = submitted.predicate, submitted.subjects
    again = describe(said["vendor"], said["system"], reports)
    found = [f"its {name} is not what the runs' reports say" for name in sorted(again) if again[name] != said[name]]
    if subjects[SYSTEM] != hashlib.sha256(system_file(said["system"])).hexdigest():
        found.append(f"its {SYSTEM} is not the system that it describes")
    answered = {name: report.subjects[CHALLENGE] for name, report in reports.items() if CHALLENGE in report.subjects}
    other = sorted(name for name, digest in answered.items() if digest != subjects.get(CHALLENGE))
    if other:
        found.append(f"its {CHALLENGE} is not the one that {other[0]} answered")
    return found + system.contradictions(said["system"], [report.predicate for report in reports.values()])
