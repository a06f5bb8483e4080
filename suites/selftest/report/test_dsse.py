from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from conformance import strictjson
from conformance.errors import SignatureError
from conformance.report import dsse
from conformance.report.keys import key_id

TYPE = "application/vnd.in-toto+json"
PAYLOAD = b'{"loss":1.5}'
VENDOR, LAB, STRANGER = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2, 3))
KNOWN = {key_id(key.public_key()): key.public_key() for key in (VENDOR, LAB)}
VENDOR_ID, LAB_ID, STRANGER_ID = (key_id(key.public_key()) for key in (VENDOR, LAB, STRANGER))
SIGNED = dsse.sign(PAYLOAD, TYPE, [VENDOR])


def test_pae_of_the_specification() -> None:
    # https://github.com/secure-systems-lab/dsse/blob/master/protocol.md, "Test Vectors".
    assert dsse.pae(b"hello world", "http://example.com/HelloWorld") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert dsse.pae(b"x", "中") == b"DSSEv1 3 \xe4\xb8\xad 1 x"


def test_signed_payload_verifies() -> None:
    assert dsse.verify(SIGNED, KNOWN, payload_type=TYPE) == dsse.Verified(PAYLOAD, frozenset({VENDOR_ID}), frozenset())


def test_envelope_is_plain_dsse() -> None:
    document = json.loads(SIGNED)
    assert base64.b64decode(document["payload"]) == PAYLOAD
    VENDOR.public_key().verify(base64.b64decode(document["signatures"][0]["sig"]), dsse.pae(PAYLOAD, TYPE))
    assert strictjson.dumps(document) == SIGNED


def test_several_roles_in_any_order() -> None:
    both = dsse.sign(PAYLOAD, TYPE, [VENDOR, LAB])
    assert both == dsse.sign(PAYLOAD, TYPE, [LAB, VENDOR])
    assert both == dsse.add_signatures(SIGNED, [LAB])
    assert dsse.verify(both, KNOWN, payload_type=TYPE, threshold=2).key_ids == {VENDOR_ID, LAB_ID}


def test_signature_of_an_unknown_key_is_told_and_does_not_count() -> None:
    envelope = dsse.sign(PAYLOAD, TYPE, [VENDOR, STRANGER])
    verified = dsse.verify(envelope, KNOWN, payload_type=TYPE)
    assert verified == dsse.Verified(PAYLOAD, frozenset({VENDOR_ID}), frozenset({STRANGER_ID}))
    with pytest.raises(SignatureError, match="1 of the accepted keys signed the envelope, 2 needed"):
        dsse.verify(envelope, KNOWN, payload_type=TYPE, threshold=2)


def test_largest_payload() -> None:
    payload = bytes(strictjson.MAX_BYTES)
    keys = [Ed25519PrivateKey.generate() for _ in range(dsse.MAX_SIGNATURES)]
    envelope = dsse.sign(payload, TYPE, keys)
    known = {key_id(key.public_key()): key.public_key() for key in keys}
    assert dsse.verify(envelope, known, payload_type=TYPE, threshold=len(keys)).payload == payload


def edit(change: Callable[[dict[str, Any]], None], envelope: bytes = SIGNED) -> bytes:
    """Change the envelope's document and write it as the suite would."""
    document = json.loads(envelope)
    change(document)
    return strictjson.dumps(document)


def resigned_by(key: Ed25519PrivateKey, payload: bytes, payload_type: str) -> str:
    return base64.b64encode(key.sign(dsse.pae(payload, payload_type))).decode()


def first(document: dict[str, Any]) -> dict[str, Any]:
    return document["signatures"][0]  # type: ignore[no-any-return]


def spare_bits(text: str) -> str:
    """Other base64 of the same bytes: of the last character before "==", four bits are not used."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = text[:-3] + alphabet[alphabet.index(text[-3]) + 1] + "=="
    assert base64.b64decode(other) == base64.b64decode(text)
    return other


def plus_order(text: str) -> str:
    """The other solution of the verification equation, S + L, which RFC 8032 tells a verifier to refuse."""
    signature = base64.b64decode(text)
    order = 2**252 + 27742317777372353535851937790883648493
    scalar = int.from_bytes(signature[32:], "little") + order
    return base64.b64encode(signature[:32] + scalar.to_bytes(32, "little")).decode()


def url_safe(text: str) -> str:
    assert "+" in text or "/" in text
    return text.replace("+", "-").replace("/", "_")


B64 = base64.b64encode(PAYLOAD).decode()
BOTH = dsse.sign(PAYLOAD, TYPE, [VENDOR, LAB])

ATTACKS: dict[str, tuple[bytes, str]] = {
    "signed by another key": (
        dsse.sign(PAYLOAD, TYPE, [STRANGER]),
        f"0 of the accepted.*not known here: {STRANGER_ID}",
    ),
    "another key under the vendor's id": (
        edit(lambda d: first(d).update(sig=resigned_by(STRANGER, PAYLOAD, TYPE))),
        f"The signature by key {VENDOR_ID} does not hold",
    ),
    "payload changed": (
        edit(lambda d: d.update(payload=base64.b64encode(b'{"loss":1.4}').decode())),
        "does not hold: payload or signature was changed",
    ),
    "payloadType changed": (edit(lambda d: d.update(payloadType="text/plain")), "of type 'text/plain', expected"),
    "payloadType in another case": (edit(lambda d: d.update(payloadType=TYPE.upper())), "expected"),
    "payloadType empty": (edit(lambda d: d.update(payloadType="")), "of type '', expected"),
    "validly signed as another type": (dsse.sign(PAYLOAD, "text/plain", [VENDOR]), "of type 'text/plain', expected"),
    "signed without the type (bare payload)": (
        edit(lambda d: first(d).update(sig=base64.b64encode(VENDOR.sign(PAYLOAD)).decode())),
        "does not hold",
    ),
    "unsigned": (edit(lambda d: d.update(signatures=[])), "expected an object of payload, payloadType and signatures"),
    "signatures missing": (edit(lambda d: d.pop("signatures")), "expected an object of"),
    "signatures null": (edit(lambda d: d.update(signatures=None)), "expected an object of"),
    "signature empty": (edit(lambda d: first(d).update(sig="")), "a signature of 0 bytes, Ed25519 has 64"),
    "signature of zeros": (edit(lambda d: first(d).update(sig=base64.b64encode(bytes(64)).decode())), "does not hold"),
    "signature too long": (
        edit(lambda d: first(d).update(sig=base64.b64encode(bytes(65)).decode())),
        "a signature of 65 bytes",
    ),
    "signature a number": (edit(lambda d: first(d).update(sig=1)), "a signature needs keyid"),
    "signature malleable (S + L)": (edit(lambda d: first(d).update(sig=plus_order(first(d)["sig"]))), "does not hold"),
    "keyid missing": (edit(lambda d: first(d).pop("keyid")), "a signature needs keyid"),
    "keyid empty": (edit(lambda d: first(d).update(keyid="")), "a signature needs keyid"),
    "keyid in capitals": (edit(lambda d: first(d).update(keyid=VENDOR_ID.upper())), "a signature needs keyid"),
    "keyid with a newline": (edit(lambda d: first(d).update(keyid=VENDOR_ID + "\n")), "a signature needs keyid"),
    "one key under two ids": (
        edit(lambda d: d["signatures"].append({**first(d), "keyid": "f" * 64})),
        "1 of the accepted keys signed the envelope, 2 needed",
    ),
    "one key twice": (edit(lambda d: d["signatures"].append(first(d))), "two signatures name the same key"),
    "one key twice, once invalid": (
        edit(lambda d: d["signatures"].append({**first(d), "sig": base64.b64encode(bytes(64)).decode()})),
        "two signatures name the same key",
    ),
    "an invalid second signature": (
        edit(lambda d: d["signatures"][1].update(sig=base64.b64encode(bytes(64)).decode()), BOTH),
        "does not hold",
    ),
    "signatures reordered": (edit(lambda d: d["signatures"].reverse(), BOTH), "sorted by key and by keyid"),
    "algorithm named": (edit(lambda d: first(d).update(alg="none")), "no other field"),
    "unknown field": (edit(lambda d: d.update(note="x")), "no other field"),
    "unknown field in a signature": (edit(lambda d: first(d).update(cert="x")), "no other field"),
    "17 signatures": (edit(lambda d: d.update(signatures=d["signatures"] * 17)), "17 signatures, at most 16"),
    "base64 for URLs": (
        edit(lambda d: first(d).update(sig=url_safe(first(d)["sig"]))),
        "signature is not standard base64",
    ),
    "base64 without padding": (edit(lambda d: first(d).update(sig=first(d)["sig"].rstrip("="))), "not standard base64"),
    "base64 with a line break": (edit(lambda d: d.update(payload=B64[:4] + "\n" + B64[4:])), "payload is not standard"),
    "base64 with padding inside": (edit(lambda d: d.update(payload=B64[:2] + "==" + B64[2:])), "not standard base64"),
    "base64 with spare bits set": (
        edit(lambda d: first(d).update(sig=spare_bits(first(d)["sig"]))),
        "canonical base64",
    ),
    "base64 beyond ASCII": (edit(lambda d: d.update(payload="é" * 8)), "not standard base64"),
    "white space": (SIGNED.replace(b",", b", "), "expected compact JSON"),
    "trailing newline": (SIGNED + b"\n", "expected compact JSON"),
    "escaped characters": (SIGNED.replace(b'payload"', b'p\\u0061yload"'), "expected compact JSON"),
    "keys reordered": (json.dumps(dict(reversed(json.loads(SIGNED).items()))).encode(), "expected compact JSON"),
    "duplicate payload": (SIGNED.replace(b"{", b'{"payload":"e30=",', 1), "the key 'payload' occurs twice"),
    "not an object": (b"[]", "expected an object of"),
    "not JSON": (b"\x1b[31m", "not JSON"),
    "too deep": (SIGNED.replace(b'"' + B64.encode() + b'"', b"[[[[]]]]"), "deeper than 3"),
    "too large": (b" " * (dsse.MAX_ENVELOPE_BYTES + 1), "allowed"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_refused_with_a_sentence(attack: str) -> None:
    envelope, reason = ATTACKS[attack]
    threshold = 2 if attack == "one key under two ids" else 1
    with pytest.raises(SignatureError, match=reason) as caught:
        dsse.verify(envelope, KNOWN, payload_type=TYPE, threshold=threshold)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80])
def test_any_byte_changed(flip: int) -> None:
    for place in range(len(SIGNED)):
        changed = bytearray(SIGNED)
        changed[place] ^= flip
        with pytest.raises(SignatureError):
            dsse.verify(bytes(changed), KNOWN, payload_type=TYPE)


def test_any_truncation() -> None:
    for length in range(len(SIGNED)):
        with pytest.raises(SignatureError):
            dsse.verify(SIGNED[:length], KNOWN, payload_type=TYPE)


def test_a_key_cannot_be_given_under_another_name() -> None:
    with pytest.raises(SignatureError, match=f"is in truth {VENDOR_ID}"):
        dsse.verify(SIGNED, {LAB_ID: VENDOR.public_key()}, payload_type=TYPE)


def test_no_known_key() -> None:
    with pytest.raises(SignatureError, match="0 of the accepted keys"):
        dsse.verify(SIGNED, {}, payload_type=TYPE)


@pytest.mark.parametrize("threshold", [0, -1])
def test_a_threshold_that_asks_for_nothing(threshold: int) -> None:
    with pytest.raises(SignatureError, match="would accept an unsigned payload"):
        dsse.verify(SIGNED, KNOWN, payload_type=TYPE, threshold=threshold)


def test_signing_refuses_what_verifying_would() -> None:
    with pytest.raises(SignatureError, match="expected an object of"):
        dsse.sign(PAYLOAD, TYPE, [])
    with pytest.raises(SignatureError, match="name the same key"):
        dsse.sign(PAYLOAD, TYPE, [VENDOR, VENDOR])
    with pytest.raises(SignatureError, match="name the same key"):
        dsse.add_signatures(SIGNED, [VENDOR])
    with pytest.raises(SignatureError, match="17 signatures"):
        dsse.sign(PAYLOAD, TYPE, [Ed25519PrivateKey.generate() for _ in range(17)])
    with pytest.raises(SignatureError, match="allowed"):
        dsse.sign(bytes(strictjson.MAX_BYTES + 4096), TYPE, [VENDOR])
