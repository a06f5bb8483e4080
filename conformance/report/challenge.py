"""Challenges: what a lab signs before a run, so that the run cannot have been made before, or for somebody else."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from conformance import journal, strictjson
from conformance.claim import lock
from conformance.errors import ChallengeError, EvidenceError
from conformance.report import dsse, schemas
from conformance.strictjson import quoted

PAYLOAD_TYPE = "application/vnd.internevo-conformance.challenge+json"
# A challenge has some hundred bytes, and names at most a hundred workloads.
MAX_BYTES = 64 * 2**10
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class Challenge:
    """A challenge as read; whose signature it carries, the caller decides.

    Args:
        nonce: 32 random bytes, in hex.
        vendor: Name of the vendor that it was issued to.
        workloads: Workloads that may answer it.
        issued: When it was issued.
        expires: When the runs that answer it must have ended.
        digest: SHA-256, in hex, of the signed bytes.
    """

    nonce: str
    vendor: str
    workloads: tuple[str, ...]
    issued: datetime
    expires: datetime
    digest: str


def issue(vendor: str, workloads: Sequence[str], valid: timedelta, now: datetime, key: Ed25519PrivateKey) -> bytes:
    """Sign a new challenge.

    Args:
        vendor: Name of the vendor.
        workloads: Names of the workloads that it is for.
        valid: How long it is valid.
        now: The time.
        key: The lab's private key.

    Returns:
        The envelope.

    Raises:
        ChallengeError: A name or the time breaks the schema.
    """
    document = {
        "version": 1,
        "nonce": secrets.token_hex(32),
        "vendor": vendor,
        "workloads": list(workloads),
        "issued": now.strftime(TIME_FORMAT),
        "expires": (now + valid).strftime(TIME_FORMAT),
    }
    payload = strictjson.dumps(document, what="The challenge")
    envelope = dsse.sign(payload, PAYLOAD_TYPE, [key])
    parse(envelope)
    return envelope


def parse(envelope: bytes) -> Challenge:
    """Read a challenge; its signature is not looked at.

    Args:
        envelope: The signed envelope.

    Returns:
        The challenge.

    Raises:
        ChallengeError: Too large, of another type, against the schema, or it expires before it is issued.
        SignatureError: It is no envelope.
        JsonError: Its payload is no strict JSON.
    """
    if len(envelope) > MAX_BYTES:
        raise ChallengeError(f"The challenge has more than {MAX_BYTES} bytes.")
    signed = dsse.parse(envelope)
    if signed.payload_type != PAYLOAD_TYPE:
        raise ChallengeError(f"The challenge is of type {quoted(signed.payload_type)}, expected {PAYLOAD_TYPE!r}.")
    document = strictjson.loads(signed.payload, max_bytes=MAX_BYTES, what="The challenge")
    schemas.check(document, "challenge-v1", "The challenge", ChallengeError)
    issued, expires = (time_of(document[name], f"The challenge's {name}") for name in ("issued", "expires"))
    if not issued < expires:
        raise ChallengeError(f"The challenge expires {document['expires']}, not after its issue {document['issued']}.")
    return Challenge(
        document["nonce"],
        document["vendor"],
        tuple(document["workloads"]),
        issued,
        expires,
        hashlib.sha256(signed.payload).hexdigest(),
    )


def read(path: Path) -> tuple[Challenge, bytes]:
    """Read a challenge from a file.

    Args:
        path: The file that the lab sent.

    Returns:
        The challenge, and the file's bytes to keep with the run.

    Raises:
        ChallengeError: It cannot be read, or is malformed.
    """
    try:
        with path.open("rb") as stream:
            envelope = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ChallengeError(f"The challenge {path} cannot be read: {error.strerror}.") from error
    return parse(envelope), envelope


def require_valid(challenge: Challenge, workload: str, now: datetime) -> None:
    """Refuse to start a run that could not answer the challenge.

    Args:
        challenge: The challenge.
        workload: Name of the workload that is about to run.
        now: The time.

    Raises:
        ChallengeError: It is for other workloads, or has expired.
    """
    if workload not in challenge.workloads:
        raise ChallengeError(
            f"The challenge is for {', '.join(challenge.workloads)}, not for {workload}.",
            "Ask the lab for one that names this workload.",
        )
    if now >= challenge.expires:
        raise ChallengeError(
            f"The challenge expired {challenge.expires.strftime(TIME_FORMAT)}.", "Ask the lab for a new one."
        )


def seed(nonce: str, workload: str) -> int:
    """Derive the seed that a run must use, so that no earlier log can have it.

    Args:
        nonce: The challenge's nonce, in hex.
        workload: Name of the workload.

    Returns:
        The first four bytes of SHA-256 over nonce and name, big-endian, without the sign bit.
    """
    digest = hashlib.sha256(f"{nonce}\n{workload}\n".encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF


def answered(envelope: bytes | None) -> dict[str, Any] | None:
    """What a report says of the challenge that its run answered.

    Args:
        envelope: challenge.dsse.json of the run; None where there is none.

    Returns:
        Nonce and digest of the signed bytes; None where there is none.
    """
    if envelope is None:
        return None
    challenge = parse(envelope)
    return {"nonce": challenge.nonce, "digest": challenge.digest}


def time_of(text: str, what: str) -> datetime:
    """Read a time of a signed document.

    Args:
        text: UTC, to the second, ending in Z.
        what: What the time is, to begin the error's sentence with.

    Returns:
        The time, with its zone.

    Raises:
        ChallengeError: There is no such time.
    """
    try:
        return datetime.strptime(text, TIME_FORMAT).replace(tzinfo=timezone.utc)
    except ValueError as error:
        raise ChallengeError(f"{what} is {quoted(text)}; expected a UTC time as 2026-01-31T12:00:00Z.") from error


def time_text(moment: datetime) -> str:
    """Write a time as signed documents have it.

    Args:
        moment: The time, with its zone.

    Returns:
        UTC, to the second, ending in Z.
    """
    return moment.astimezone(timezone.utc).strftime(TIME_FORMAT)


# --- the lab's list of challenges that were answered -----------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """Which challenges were answered, and by what.

    Args:
        nonces: Report id by nonce.
        series: Report id by the digest of what a run logged, as ``judgement.series_digest`` gives it.
    """

    nonces: Mapping[str, str] = field(default_factory=dict)
    series: Mapping[str, str] = field(default_factory=dict)


def read_spent(path: Path) -> Spent:
    """Read which challenges were answered, and by what.

    Args:
        path: The lab's list: one JSON object a line, with nonce, report_id and series.

    Returns:
        What it holds.

    Raises:
        EvidenceError: The list cannot be read; a list that is absent is not taken for an empty one.
        JsonError: A line is no strict JSON.
    """
    try:
        return _parse_spent(path.read_bytes(), path)
    except OSError as error:
        raise EvidenceError(
            f"The list of spent challenges {path} cannot be read: {error.strerror}.",
            "Begin an empty one with `touch`, or name the lab's own.",
        ) from error


def _parse_spent(data: bytes, path: Path) -> Spent:
    nonces: dict[str, str] = {}
    found: dict[str, str] = {}
    for number, line in enumerate(data.splitlines(), 1):
        entry = strictjson.loads(line, what=f"Line {number} of {path}")
        series = entry.get("series", []) if isinstance(entry, dict) else []  # an older suite wrote none
        match entry:
            # Without a challenge a run is noted by what it logged alone.
            case {"nonce": None, "report_id": str(report_id)} if isinstance(series, list):
                pass
            case {"nonce": str(nonce), "report_id": str(report_id)} if nonces.get(
                nonce, report_id
            ) == report_id and isinstance(series, list):
                nonces[nonce] = report_id
            case _:
                raise EvidenceError(f"Line {number} of {path} is not a new nonce with its report_id.")
        for one in series:
            found.setdefault(str(one), report_id)
    return Spent(nonces, found)


def spend(path: Path, nonces: Sequence[str], series: Sequence[str], report_id: str) -> None:
    """Note which challenges were answered, and by which runs; of two reports with the same, the second is refused.

    Args:
        path: The lab's list.
        nonces: Nonces of the challenges; none where the policy requires none.
        series: Digests of what the runs logged.
        report_id: The report's id.

    Raises:
        EvidenceError: Another report has spent one or has such a run; or the list cannot be read or written.
        JsonError: A line of it is no strict JSON.
    """
    try:
        with path.open("r+b") as stream:
            lock(stream)
            data = stream.read()
            stream.seek(0, os.SEEK_END)
            known = _parse_spent(data, path)
            for nonce in nonces:
                if known.nonces.get(nonce, report_id) != report_id:
                    raise EvidenceError(
                        f"The challenge {nonce[:16]} was spent meanwhile by the report {known.nonces[nonce]}.",
                        "Verify the bundle again.",
                    )
            for one in series:
                if known.series.get(one, report_id) != report_id:
                    raise EvidenceError(
                        f"A run of it became known meanwhile by the report {known.series[one]}.",
                        "Verify the bundle again.",
                    )
            new: list[str | None] = [nonce for nonce in nonces if nonce not in known.nonces]
            if not nonces and not known.series.keys() >= set(series):
                new = [None]
            lines = [{"nonce": nonce, "report_id": report_id, "series": sorted(series)} for nonce in new]
            whole = b"" if data.endswith(b"\n") or not data else b"\n"
            journal.append_whole(stream.fileno(), whole + b"".join(strictjson.dumps(line) + b"\n" for line in lines))
    except OSError as error:
        raise EvidenceError(f"The list of spent challenges {path} cannot be written: {error.strerror}.") from error
