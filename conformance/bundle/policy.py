"""A lab's policy: whom and what it accepts. Nothing has a default; what a policy does not name, it does not accept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from conformance import __version__, strictjson
from conformance.bundle.archive import Limits
from conformance.errors import PolicyError
from conformance.report import dsse, keys, schemas
from conformance.report.build import suite_digest
from conformance.report.challenge import TIME_FORMAT, Spent, time_of, time_text
from conformance.spec import load_workload
from conformance.spec.floors import Floor, floor_from, refuse_twice
from conformance.strictjson import quoted

PAYLOAD_TYPE = "application/vnd.internevo-conformance.policy+json"
# Ten thousand keys take about 4 MB.
MAX_BYTES = dsse.MAX_ENVELOPE_BYTES
LAB = "lab"


@dataclass(frozen=True)
class Key:
    """A key that may sign.

    Args:
        id: Key id.
        public_key: The key.
        name: Who holds it.
        role: vendor, integrator, operator or lab.
        valid_from: From when it is accepted.
        valid_until: Until when.
        revoked: Why it no longer is, whenever it signed; None while it is.
    """

    id: str
    public_key: Ed25519PublicKey
    name: str
    role: str
    valid_from: datetime
    valid_until: datetime
    revoked: str | None

    def fault(self, when: datetime) -> str:
        """Why the key is not accepted, whenever it signed if it is revoked: who has it can antedate.

        Args:
            when: The time.

        Returns:
            A sentence; empty where it is accepted.
        """
        if self.revoked is not None:
            return f"The key {self.id} of {quoted(self.name)} is revoked: {self.revoked}"
        if not self.valid_from <= when <= self.valid_until:
            return (
                f"The key {self.id} of {quoted(self.name)} is valid from {time_text(self.valid_from)} to "
                f"{time_text(self.valid_until)}, not at {time_text(when)}."
            )
        return ""


@dataclass(frozen=True)
class Accepted:
    """An accepted workload.

    Args:
        digest: sha256 of its spec.
        runs: Training runs that a submission of it needs.
        preflights: Preflights that a submission of it needs.
        max_attempts: Attempts that a journal may show; None for any number.
    """

    digest: str
    runs: int
    preflights: int
    max_attempts: int | None


@dataclass(frozen=True)
class Waiver:
    """A check that need not pass.

    Args:
        check: Id of the check.
        vendor: For whom.
        workload: In which workload.
        reason: Why; told with every verdict that rests on it.
        expires: Until when.
    """

    check: str
    vendor: str
    workload: str
    reason: str
    expires: datetime


@dataclass(frozen=True)
class Policy:
    """A policy whose own signature holds.

    Args:
        name: Its name.
        digest: SHA-256, in hex, of the signed bytes.
        signed_by: The lab keys that signed it.
        issued: From when it holds.
        expires: Until when.
        keys: Who may sign, by key id.
        required_roles: Roles that must have signed a bundle.
        challenge_required: Whether every training run must answer a challenge.
        suites: Accepted builds of the suite: (version, tree digest).
        workloads: Accepted workloads by name.
        data: Names of accepted prepared data sets, by the digest of their fingerprint.
        floors: What must be reached, before the suite's own floors.
        patches: Rulings on vendors' patch files by digest: accepted or not, and why.
        waivers: Checks that need not pass.
        limits: Largest accepted archive.
    """

    name: str
    digest: str
    signed_by: tuple[str, ...]
    issued: datetime
    expires: datetime
    keys: Mapping[str, Key]
    required_roles: tuple[str, ...]
    challenge_required: bool
    suites: frozenset[tuple[str, str]]
    workloads: Mapping[str, Accepted]
    data: Mapping[str, str]
    floors: tuple[Floor, ...]
    patches: Mapping[str, tuple[bool, str]]
    waivers: tuple[Waiver, ...]
    limits: Limits

    def public_keys(self, *roles: str) -> dict[str, Ed25519PublicKey]:
        """The keys of some roles, valid or not.

        Args:
            roles: The roles; none for all.

        Returns:
            Public keys by key id.
        """
        return {name: key.public_key for name, key in self.keys.items() if not roles or key.role in roles}


@dataclass(frozen=True)
class Bench:
    """What a lab judges with.

    Args:
        policy: Its policy; None where nobody is to be trusted.
        now: The time.
        spent: The challenges that were answered; None where the lab's list is not at hand.
    """

    policy: Policy | None
    now: datetime
    spent: Spent | None = None

    def told(self) -> dict[str, str]:
        """By what is judged, for a page.

        Returns:
            time; with a policy also policy, digest and lab_key.
        """
        told = {"time": time_text(self.now)}
        if self.policy is None:
            return told
        keys = ", ".join(self.policy.signed_by)
        return {**told, "policy": self.policy.name, "digest": self.policy.digest, "lab_key": keys}


def draft(
    name: str,
    holders: Sequence[tuple[str, str, Ed25519PublicKey]],
    workloads: Sequence[str],
    valid: timedelta,
    now: datetime,
) -> dict[str, Any]:
    """A policy to begin with: strict, and of this build of the suite.

    Args:
        name: What it is called.
        holders: Name, role and public key of each who may sign.
        workloads: Names of the workloads that it accepts.
        valid: How long it and the keys hold.
        now: The time.

    Returns:
        The document, for the lab to edit and to sign.

    Raises:
        SpecError: A workload is unknown.
    """
    held = {"issued": now.strftime(TIME_FORMAT), "expires": (now + valid).strftime(TIME_FORMAT)}
    return {
        "version": 1,
        "name": name,
        **held,
        "keys": [
            {
                "public_key": keys.public_pem(public).decode(),
                "name": holder,
                "role": role,
                "valid_from": held["issued"],
                "valid_until": held["expires"],
                "revoked": None,
            }
            for holder, role, public in holders
        ],
        "required_roles": ["vendor"],
        "challenge_required": True,
        "suites": [{"version": __version__, "tree_digest": suite_digest()}],
        "workloads": [
            {"name": one, "digest": load_workload(one).digest, "runs": 1, "preflights": 1, "max_attempts": None}
            for one in workloads
        ],
        "data": [],
        "floors": [],
        "patches": [],
        "waivers": [],
        "limits": asdict(Limits()),
    }


def read(path: Path) -> Policy:
    """Read a policy from a file.

    Args:
        path: The signed envelope.

    Returns:
        The policy.

    Raises:
        ConformanceError: It cannot be read, is malformed, or is not signed by a lab key that it names.
    """
    try:
        with path.open("rb") as stream:
            envelope = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise PolicyError(f"The policy {path} cannot be read: {error.strerror}.") from error
    return load(envelope)


def load(envelope: bytes) -> Policy:
    """Read a policy. That its signer is the reader's own lab, the reader knows by the key id; see ``signed_by``.

    Args:
        envelope: The signed envelope.

    Returns:
        The policy.

    Raises:
        PolicyError: It breaks the schema, names a key twice, or is signed by no lab key that it names.
        SignatureError: The envelope is malformed, or a signature does not hold.
        JsonError: Its payload is no strict JSON.
        KeyFileError: A key in it cannot be read.
    """
    document = _document(dsse.parse(envelope))
    known = _keys(document["keys"])
    lab = {name: key.public_key for name, key in known.items() if key.role == LAB and key.revoked is None}
    verified = dsse.verify(envelope, lab, payload_type=PAYLOAD_TYPE)
    signers = tuple(sorted(verified.key_ids))
    issued, expires = _time(document, "issued"), _time(document, "expires")
    for signer in signers:
        # A key that expired since may not go on making policies; only one that is renewed may.
        if not known[signer].valid_from <= issued <= known[signer].valid_until:
            raise PolicyError(
                f"The policy was issued {document['issued']}, when its signer's key {signer} was not valid."
            )
    if not issued < expires:
        raise PolicyError(f"The policy expires {document['expires']}, not after its issue {document['issued']}.")
    return Policy(
        name=document["name"],
        digest=hashlib.sha256(verified.payload).hexdigest(),
        signed_by=signers,
        issued=issued,
        expires=expires,
        keys=known,
        required_roles=tuple(document["required_roles"]),
        challenge_required=document["challenge_required"],
        suites=frozenset((suite["version"], suite["tree_digest"]) for suite in document["suites"]),
        workloads=_once(document["workloads"], "name", lambda e: Accepted(**{k: e[k] for k in e if k != "name"})),
        data=_once(document["data"], "sha256", lambda entry: str(entry["name"])),
        floors=_floors(document["floors"]),
        patches=_once(document["patches"], "sha256", lambda entry: (entry["accepted"], entry["reason"])),
        waivers=tuple(Waiver(**{**entry, "expires": _time(entry, "expires")}) for entry in document["waivers"]),
        limits=Limits(**document["limits"]),
    )


def _document(parsed: dsse.Envelope) -> dict[str, Any]:
    if parsed.payload_type != PAYLOAD_TYPE:
        raise PolicyError(
            f"The policy is of type {strictjson.quoted(parsed.payload_type)}, expected {PAYLOAD_TYPE!r}.",
            "Sign it with: conformance sign POLICY.json --type policy",
        )
    document: dict[str, Any] = strictjson.loads(parsed.payload, what="The policy")
    schemas.check(document, "policy-v1", "The policy", PolicyError)
    return document


def _keys(entries: list[dict[str, Any]]) -> dict[str, Key]:
    found: dict[str, Key] = {}
    for entry in entries:
        public = keys.load_public_key(entry["public_key"].encode())
        name = keys.key_id(public)
        if name in found:
            raise PolicyError(
                f"The policy names the key {name} twice, as {found[name].role} and as {entry['role']}: one key cannot "
                "act in two roles.",
                "Give each role a key of its own.",
            )
        found[name] = Key(
            name,
            public,
            entry["name"],
            entry["role"],
            _time(entry, "valid_from"),
            _time(entry, "valid_until"),
            entry["revoked"],
        )
    return found


def _once(entries: list[dict[str, Any]], field: str, value: Any) -> dict[str, Any]:
    """Entries by a field that no two may share: of two rulings, a reader could pick either."""
    result: dict[str, Any] = {}
    for entry in entries:
        if entry[field] in result:
            raise PolicyError(f"The policy rules twice on {entry[field]}.", "Remove one of the two.")
        result[entry[field]] = value(entry)
    return result


def _floors(entries: list[dict[str, Any]]) -> tuple[Floor, ...]:
    floors = tuple(floor_from(entry, f"The policy's floor {number}") for number, entry in enumerate(entries, 1))
    refuse_twice(floors, "The policy")
    return floors


def _time(entry: Mapping[str, Any], field: str) -> datetime:
    return time_of(entry[field], f"The policy's {field}")
