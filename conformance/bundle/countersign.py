"""The lab's own statement about a bundle: SLSA's verification summary, signed, about the digest of the vendor's."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from conformance import __version__, strictjson
from conformance.bundle.policy import Policy
from conformance.bundle.submission import STATEMENT
from conformance.bundle.verify import Verification
from conformance.checks.finding import Verdict
from conformance.errors import PolicyError, SignatureError
from conformance.evidence import REPORT
from conformance.report import dsse, keys, schemas
from conformance.report.challenge import TIME_FORMAT
from conformance.report.statement import PAYLOAD_TYPE, STATEMENT_TYPE

PREDICATE_TYPE = "https://slsa.dev/verification_summary/v1"
LEVELS = {
    Verdict.CONFORMANT: ("PASSED", "INTERNEVO_CONFORMANT"),
    Verdict.REHEARSAL: ("PASSED", "INTERNEVO_REHEARSAL"),
    Verdict.NOT_CONFORMANT: ("FAILED", "FAILED"),
}


@dataclass(frozen=True)
class Countersignature:
    """What a lab states about a bundle.

    Args:
        report_id: sha256 of the payload of the vendor's statement.
        result: PASSED or FAILED.
        level: INTERNEVO_CONFORMANT, INTERNEVO_REHEARSAL (which certifies nothing) or FAILED.
        policy: sha256 of the policy's payload.
        time: When the lab verified the bundle.
        key_id: The lab's key.
    """

    report_id: str
    result: str
    level: str
    policy: str
    time: str
    key_id: str


def countersign(verification: Verification, policy: Policy, now: datetime, key: Ed25519PrivateKey) -> bytes:
    """State what the verification came to.

    Args:
        verification: The verification, made under the policy.
        policy: The policy.
        now: The time.
        key: The lab's private key.

    Returns:
        The signed envelope.

    Raises:
        PolicyError: The verdict is open, or the key is not one of the policy's lab keys that is valid now.
        SignatureError: There is no report to state anything about.
    """
    name = keys.key_id(key.public_key())
    known = policy.keys.get(name)
    if known is None or known.role != "lab" or known.revoked or not known.valid_from <= now <= known.valid_until:
        raise PolicyError(f"The key {name} is not a lab key that the policy accepts now.", "Sign with the lab's key.")
    if verification.verdict not in LEVELS:
        raise PolicyError("The verdict is INCONCLUSIVE, and a lab states no opinion.", "Settle the open questions.")
    if not verification.report_id:
        raise SignatureError("The bundle has no report that its own signature holds for; there is nothing to sign.")
    result, level = LEVELS[verification.verdict]
    subject = {"sha256": verification.report_id}
    uri = f"urn:sha256:{verification.report_id}"
    document: dict[str, Any] = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": STATEMENT if "runs" in verification.predicate else REPORT, "digest": subject}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "verifier": {"id": f"urn:sha256:{name}", "version": {"internevo-conformance": __version__}},
            "timeVerified": now.strftime(TIME_FORMAT),
            "resourceUri": uri,
            "policy": {"uri": f"urn:sha256:{policy.digest}", "digest": {"sha256": policy.digest}},
            "inputAttestations": [{"uri": uri, "digest": subject}],
            "verificationResult": result,
            "verifiedLevels": [level],
        },
    }
    schemas.check(document, "vsa-v1", "The countersignature", SignatureError)
    return dsse.sign(strictjson.dumps(document, what="The countersignature"), PAYLOAD_TYPE, [key])


def check(envelope: bytes, lab_key: Ed25519PublicKey, report_id: str) -> Countersignature:
    """Verify a countersignature.

    Args:
        envelope: The signed envelope.
        lab_key: The lab's public key.
        report_id: sha256 of the payload of the vendor's statement, as found in the bundle.

    Returns:
        What the lab states.

    Raises:
        SignatureError: It is malformed, signed by another key, or about another bundle.
        JsonError: Its payload is no strict JSON.
    """
    name = keys.key_id(lab_key)
    payload = dsse.verify(envelope, {name: lab_key}, payload_type=PAYLOAD_TYPE).payload
    document = strictjson.loads(payload, what="The countersignature")
    schemas.check(document, "vsa-v1", "The countersignature", SignatureError)
    stated = document["subject"][0]["digest"]["sha256"]
    if stated != report_id:
        raise SignatureError(f"The countersignature is about the report {stated}; the bundle's is {report_id}.")
    said = document["predicate"]
    return Countersignature(
        stated,
        said["verificationResult"],
        said["verifiedLevels"][0],
        said["policy"]["digest"]["sha256"],
        said["timeVerified"],
        name,
    )
