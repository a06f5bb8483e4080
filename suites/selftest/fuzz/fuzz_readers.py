"""Coverage-guided fuzzing of what reads foreign bytes.

Run as ``python suites/selftest/fuzz/fuzz_readers.py TARGET -runs=100000``; TARGET is archive, gzip, json, envelope,
policy or challenge, and further arguments are libFuzzer's. It needs ``pip install atheris``, and ends with a traceback
and the input when a reader raises anything but its own error, or accepts what the writer would not write.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import atheris
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

with atheris.instrument_imports(include=["conformance", "json"]):
    from conformance import strictjson
    from conformance.bundle import policy
    from conformance.bundle.archive import read_index, read_member, write_bundle
    from conformance.errors import ArchiveError, ConformanceError, JsonError, SignatureError
    from conformance.report import challenge, dsse, keys

FILES = {
    "report.dsse.json": b"{}",
    "configs/internevo.py": b"x" * 513,
    "logs/node0/rank0.log": b"step=0\n",
    "runs/a/journal.jsonl": b"",
}
ENVELOPE = b'{"payload":"e30=","payloadType":"t","signatures":[{"keyid":"%b","sig":"%b"}]}' % (
    b"0" * 64,
    b"A" * 86 + b"==",
)
JSON = b'{"a": [1, -2.5e3, "\\u00e9\\ud83d\\ude00", null, true], "b": {"c": 9223372036854775807}}'

LAB = Ed25519PrivateKey.from_private_bytes(b"a key of nobody, for fuzzing only"[:32])
POLICY = {
    "version": 1,
    "name": "Lab",
    "issued": "2026-11-01T00:00:00Z",
    "expires": "2027-11-01T00:00:00Z",
    "keys": [
        {
            "public_key": keys.public_pem(LAB.public_key()).decode(),
            "name": "Lab",
            "role": "lab",
            "valid_from": "2026-01-01T00:00:00Z",
            "valid_until": "2028-01-01T00:00:00Z",
            "revoked": None,
        }
    ],
    "required_roles": ["vendor"],
    "challenge_required": True,
    "suites": [{"version": "0.1.0", "tree_digest": "0" * 64}],
    "workloads": [{"name": "w", "digest": "0" * 64, "runs": 1, "preflights": 0, "max_attempts": None}],
    "data": [{"name": "d", "sha256": "1" * 64}],
    "floors": [],
    "patches": [{"sha256": "2" * 64, "accepted": True, "reason": "r"}],
    "waivers": [{"check": "c", "vendor": "v", "workload": "w", "reason": "r", "expires": "2027-01-01T00:00:00Z"}],
    "limits": {"members": 100, "member_bytes": 1000, "total_bytes": 1000},
}
CHALLENGE = {
    "version": 1,
    "nonce": "0" * 64,
    "vendor": "v",
    "workloads": ["tiny-perf"],
    "issued": "2026-11-01T00:00:00Z",
    "expires": "2026-12-01T00:00:00Z",
}


def with_checksums(data: bytes) -> bytes:
    """Correct the checksum of every block that says it is a header: no fuzzer guesses six octal digits."""
    blocks = [bytearray(data[at : at + 512]) for at in range(0, len(data), 512)]
    for block in blocks:
        if len(block) == 512 and block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(blocks)


def fuzz_archive(data: bytes, folder: Path) -> None:
    """What is accepted is exactly what the writer makes of the content."""
    path, again = folder / "b.tar", folder / "again.tar"
    data = with_checksums(data)
    path.write_bytes(data)
    try:
        index = read_index(path)
    except ArchiveError:
        return
    write_bundle(again, {name: read_member(index, name, 2**20) for name in index.members})
    assert data[:2] == b"\x1f\x8b" or again.read_bytes() == data


def fuzz_gzip(data: bytes, folder: Path) -> None:
    """Damaged or not, a gzip stream is read to its end or refused."""
    path = folder / "b.tar.gz"
    path.write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff" + data)
    try:
        index = read_index(path)
        for name in index.members:
            read_member(index, name, 2**20)
    except ArchiveError:
        return


def fuzz_json(data: bytes, _: Path) -> None:
    """What is accepted means what Python's reader makes of it, and survives being written."""
    try:
        value = strictjson.loads(data)
    except JsonError:
        return
    assert value == json.loads(data)
    assert strictjson.loads(strictjson.dumps(value)) == value


def fuzz_envelope(data: bytes, _: Path) -> None:
    """What is accepted has one spelling."""
    try:
        envelope = dsse.parse(data)
    except SignatureError:
        return
    assert dsse._dump(envelope) == data


def fuzz_policy(data: bytes, _: Path) -> None:
    """A policy that its lab signed, whatever it holds: what is accepted names its signer as a lab, for a time."""
    try:
        read = policy.load(dsse.sign(data, policy.PAYLOAD_TYPE, [LAB]))
    except ConformanceError as error:
        assert str(error)
        return
    assert read.signed_by == (keys.key_id(LAB.public_key()),)
    assert read.keys[read.signed_by[0]].role == "lab"
    assert read.issued < read.expires


def fuzz_challenge(data: bytes, _: Path) -> None:
    """Whatever is signed as a challenge: what is accepted has a whole nonce, a workload and a span of time."""
    try:
        read = challenge.parse(dsse.sign(data, challenge.PAYLOAD_TYPE, [LAB]))
    except ConformanceError as error:
        assert str(error)
        return
    assert len(bytes.fromhex(read.nonce)) == 32
    assert read.workloads
    assert read.issued < read.expires


TARGETS = {
    "archive": fuzz_archive,
    "gzip": fuzz_gzip,
    "json": fuzz_json,
    "envelope": fuzz_envelope,
    "policy": fuzz_policy,
    "challenge": fuzz_challenge,
}


def main() -> None:
    target = TARGETS[sys.argv.pop(1)]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        folder, corpus = Path(name), Path(name) / "corpus"
        corpus.mkdir()
        write_bundle(folder / "seed.tar", dict(FILES))
        write_bundle(folder / "seed.tar.gz", dict(FILES))
        (corpus / "tar").write_bytes((folder / "seed.tar").read_bytes())
        (corpus / "gzip").write_bytes((folder / "seed.tar.gz").read_bytes()[10:])
        (corpus / "envelope").write_bytes(ENVELOPE)
        (corpus / "json").write_bytes(JSON)
        (corpus / "policy").write_text(json.dumps(POLICY))
        (corpus / "challenge").write_text(json.dumps(CHALLENGE))
        atheris.Setup([*sys.argv, str(corpus), "-max_len=8192"], lambda data: target(data, folder))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
