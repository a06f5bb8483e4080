"""Signed envelopes: DSSE v1 with Ed25519, https://github.com/secure-systems-lab/dsse.

The verify loop is our own and stricter than the protocol asks: an envelope has exactly one accepted spelling, a
threshold counts keys and not names of keys, and the payload's type is the caller's to demand.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from conformance import strictjson
from conformance.errors import JsonError, SignatureError
from conformance.report.keys import key_id
from conformance.strictjson import quoted

# The payload in base64, and 4 KiB for the rest: a signature with its names takes about 180 bytes.
MAX_ENVELOPE_BYTES = strictjson.MAX_BYTES // 3 * 4 + 4096
# A vendor, an integrator, an operator and a lab are four; each costs one Ed25519 check.
MAX_SIGNATURES = 16
_SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class Signature:
    """One signature of an envelope.

    Args:
        keyid: The signer's claimed key id, a hint until the key itself confirms it.
        sig: 64 bytes.
    """

    keyid: str
    sig: bytes


@dataclass(frozen=True)
class Envelope:
    """An envelope as read; nothing in it has been verified.

    Args:
        payload: The signed bytes.
        payload_type: What the signer says that the payload is.
        signatures: At least one, no two with one key id.
    """

    payload: bytes
    payload_type: str
    signatures: tuple[Signature, ...]


@dataclass(frozen=True)
class Verified:
    """What the verification of an envelope established.

    Args:
        payload: The signed bytes.
        key_ids: The keys whose signatures over the payload hold.
        unknown_key_ids: Claimed key ids of further signatures, which no given key could check.
    """

    payload: bytes
    key_ids: frozenset[str]
    unknown_key_ids: frozenset[str]


def pae(payload: bytes, payload_type: str) -> bytes:
    """Encode what is signed: type and payload with their lengths, so that neither can pass for the other.

    Args:
        payload: The bytes to sign.
        payload_type: Their media type.

    Returns:
        ``"DSSEv1" SP len(type) SP type SP len(payload) SP payload`` (DSSE protocol, section "Signature Definition").
    """
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload: bytes, payload_type: str, signers: Sequence[Ed25519PrivateKey]) -> bytes:
    """Sign a payload with one or several keys.

    Args:
        payload: The bytes to sign.
        payload_type: Their media type.
        signers: Distinct private keys, at least one.

    Returns:
        The envelope, JSON in its one accepted spelling.

    Raises:
        SignatureError: No key, one key twice, or an envelope beyond the size caps.
    """
    message = pae(payload, payload_type)
    signatures = tuple(Signature(key_id(key.public_key()), key.sign(message)) for key in signers)
    data = _dump(Envelope(payload, payload_type, signatures))
    parse(data)
    return data


def add_signatures(envelope: bytes, signers: Sequence[Ed25519PrivateKey]) -> bytes:
    """Add signatures over the same payload bytes to an envelope; the existing ones stay as they are, unverified.

    Args:
        envelope: The envelope as read.
        signers: Private keys that have not signed it yet.

    Returns:
        The envelope with all signatures.

    Raises:
        SignatureError: The envelope is malformed, or a key has already signed it.
    """
    old = parse(envelope)
    new = parse(sign(old.payload, old.payload_type, signers))
    data = _dump(Envelope(old.payload, old.payload_type, old.signatures + new.signatures))
    parse(data)
    return data


def parse(envelope: bytes) -> Envelope:
    """Read an envelope's form without trusting a word of it.

    Args:
        envelope: The envelope's bytes.

    Returns:
        Its parts, unverified.

    Raises:
        SignatureError: Not exactly the JSON that ``sign`` writes, too large, no or too many signatures, or one key id
            twice.
    """
    try:
        document = strictjson.loads(envelope, max_bytes=MAX_ENVELOPE_BYTES, max_depth=3, what="The signed envelope")
    except JsonError as error:
        raise SignatureError(error.message) from error
    match document:
        case {"payload": str(payload), "payloadType": str(payload_type), "signatures": [_, *_] as signatures}:
            pass
        case _:
            raise SignatureError(
                "The signed envelope is refused: expected an object of payload, payloadType and signatures."
            )
    if len(signatures) > MAX_SIGNATURES:
        raise SignatureError(f"The signed envelope is refused: {len(signatures)} signatures, at most {MAX_SIGNATURES}.")
    result = Envelope(_base64(payload, "payload"), payload_type, tuple(_signature(entry) for entry in signatures))
    key_ids = [signature.keyid for signature in result.signatures]
    if len(set(key_ids)) != len(key_ids):
        raise SignatureError("The signed envelope is refused: two signatures name the same key.")
    if _dump(result) != envelope:
        # White space, order, escapes and further fields carry no meaning here, so none may carry any elsewhere.
        raise SignatureError(
            "The signed envelope is refused: expected compact JSON of payload, payloadType and signatures, sorted by "
            "key and by keyid, in canonical base64, and no other field."
        )
    return result


def verify(
    envelope: bytes, public_keys: Mapping[str, Ed25519PublicKey], *, payload_type: str, threshold: int = 1
) -> Verified:
    """Verify an envelope under known keys.

    Args:
        envelope: The envelope's bytes.
        public_keys: The keys to accept, by key id.
        payload_type: The one media type to accept.
        threshold: How many distinct keys must have signed.

    Returns:
        The payload and the keys that signed it.

    Raises:
        SignatureError: The envelope is malformed or of another type, a signature under a known key does not hold, or
            fewer than ``threshold`` known keys signed.
    """
    if threshold < 1:
        raise SignatureError(f"A signature threshold of {threshold} would accept an unsigned payload.")
    for name, key in public_keys.items():
        if name != key_id(key):
            raise SignatureError(f"The key known as {quoted(name)} is in truth {key_id(key)}.", "Correct the key id.")
    parsed = parse(envelope)
    if parsed.payload_type != payload_type:
        raise SignatureError(f"The payload is of type {quoted(parsed.payload_type)}, expected {quoted(payload_type)}.")
    message = pae(parsed.payload, parsed.payload_type)
    claimed = {signature.keyid for signature in parsed.signatures}
    for signature in parsed.signatures:
        if signature.keyid in public_keys:
            try:
                public_keys[signature.keyid].verify(signature.sig, message)
            except InvalidSignature as error:
                raise SignatureError(
                    f"The signature by key {signature.keyid} does not hold: payload or signature was changed."
                ) from error
    good = frozenset(claimed & public_keys.keys())
    unknown = frozenset(claimed - public_keys.keys())
    if len(good) < threshold:
        others = ", ".join(sorted(unknown)) or "none"
        raise SignatureError(
            f"{len(good)} of the accepted keys signed the envelope, {threshold} needed; keys not known here: {others}."
        )
    return Verified(parsed.payload, good, unknown)


def _dump(envelope: Envelope) -> bytes:
    """Write an envelope's one accepted spelling; by hand, because strictjson's size cap is for payloads."""
    head = b'{"payload":"%b","payloadType":%b,"signatures":' % (
        base64.b64encode(envelope.payload),
        strictjson.dumps(envelope.payload_type),
    )
    in_order = sorted(envelope.signatures, key=lambda signature: signature.keyid)
    signatures = [{"keyid": s.keyid, "sig": base64.b64encode(s.sig).decode()} for s in in_order]
    return head + strictjson.dumps(signatures) + b"}"


def _signature(entry: object) -> Signature:
    match entry:
        case {"keyid": str(keyid), "sig": str(text)} if re.fullmatch("[0-9a-f]{64}", keyid):
            sig = _base64(text, "signature")
        case _:
            raise SignatureError(
                "The signed envelope is refused: a signature needs keyid (64 hex digits of SHA-256) and sig."
            )
    if len(sig) != _SIGNATURE_BYTES:
        raise SignatureError(f"The signed envelope is refused: a signature of {len(sig)} bytes, Ed25519 has 64.")
    return Signature(keyid, sig)


def _base64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureError(f"The signed envelope is refused: its {what} is not standard base64.") from error
