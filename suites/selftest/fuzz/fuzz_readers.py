"""Coverage-guided fuzzing of what reads foreign bytes.

Run as ``python suites/selftest/fuzz/fuzz_readers.py TARGET -max_total_time=60``; TARGET is one of TARGETS below, and
further arguments are libFuzzer's. It needs ``pip install atheris``, and ends with a traceback and the input when a
reader raises anything but its own error, or accepts what the writer would not write.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path

import atheris
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

with atheris.instrument_imports(include=["conformance", "json"]):
    from conformance import journal, strictjson
    from conformance.analysis import analyze
    from conformance.bundle import policy, submission
    from conformance.bundle.archive import read_index, read_member, write_bundle
    from conformance.bundle.verify import differences, verify
    from conformance.checks.finding import Verdict
    from conformance.commands.verify import print_verification
    from conformance.errors import ArchiveError, ConformanceError, JsonError, SignatureError
    from conformance.report import challenge, dsse, html, keys, statement

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "fixtures"))
from honest_log import Run
from lab import STATED, Lab, members_of, payload_of

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


def fuzz_log(data: bytes, _: Path) -> None:
    """Whatever a log holds: its figures and findings are made, and are JSON."""
    for run in analyze(io.BytesIO(data), name="rank0.log"):
        json.dumps(run.to_json(), allow_nan=False)


def chained(data: bytes) -> bytes:
    """Let every line that is an object quote the line before it: no fuzzer guesses a digest."""
    lines, head = [], journal.GENESIS
    for line in data.split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                line = json.dumps({**entry, "previous": head}).encode()
        lines.append(line)
        head = hashlib.sha256(line).hexdigest()
    return b"\n".join(lines)


def fuzz_journal(data: bytes, _: Path) -> None:
    """Whatever a journal holds: its attempts are counted, each with a start of its own."""
    try:
        read = journal.parse(chained(data))
    except ConformanceError as error:
        assert str(error)
        return
    assert len(journal.attempts(read.entries)) <= len(read.entries)


def fuzz_submission(data: bytes, _: Path) -> None:
    """Whatever is signed as a submission: what is accepted signs a report for each of its runs."""
    try:
        read = submission.load(data)
    except SignatureError as error:
        assert str(error)
        return
    assert all(f"runs/{run['name']}/report.dsse.json" in read.subjects for run in read.predicate["runs"])


class Verified:
    """A submission of a run and a preflight, one member of which is replaced and everything signed again."""

    def __init__(self, folder: Path) -> None:
        self.lab = Lab(folder)
        self.members = members_of(self.lab.with_preflight())
        # Any file of a run, and what its report claims.
        self.names = sorted(name for name in self.members if name.startswith("runs/"))
        self.bench = self.lab.bench()

    def seeds(self) -> list[bytes]:
        claims = {name: json.dumps(self.claim(name)).encode() for name in self.names if name.endswith(REPORT)}
        return [bytes([place]) + claims.get(name, self.members[name]) for place, name in enumerate(self.names)]

    def claim(self, name: str) -> dict:
        return payload_of(self.members[name])["predicate"]

    def spoiled(self, name: str, content: bytes) -> Path | None:
        run = name.split("/")[1]
        if not name.endswith(REPORT):
            return self.lab.resubmitted(self.members, run, changed={name.split("/", 2)[2]: content})
        try:
            claim = strictjson.loads(content)
            return self.lab.resubmitted(self.members, run, lambda said: (said.clear(), said.update(claim)))
        except (ConformanceError, TypeError, ValueError):  # no claim that its schema lets pass
            return None

    def __call__(self, data: bytes, _: Path) -> None:
        """Whatever stands in a signed bundle: it is answered, printed and drawn, and is refused if it is not honest."""
        name, content = self.names[data[0] % len(self.names)] if data else self.names[0], data[1:]
        path = self.spoiled(name, content)
        if path is None:
            return
        verification = verify(path, self.bench)
        with contextlib.redirect_stdout(io.StringIO()):
            print_verification(verification)
        json.dumps(verification.to_json(), allow_nan=False)
        html.render_verification(verification, "x", self.bench.told())
        if name.endswith(REPORT):  # who signed when, and with which suite, the evidence cannot refute
            claim = strictjson.loads(content)
            honest = {**self.claim(name), **{part: claim[part] for part in ("suite", "signer")}}
            assert verification.verdict is not Verdict.REHEARSAL or not list(differences(claim, honest))
        else:
            assert verification.verdict is Verdict.NOT_CONFORMANT or content == self.members[name]


REPORT = "report.dsse.json"
SUBMISSION = {
    "suite": {"name": "internevo-conformance", "version": "0.1.0", "tree_digest": "0" * 64},
    "vendor": "v",
    "system": {**STATED, "nodes": 1, "accelerator": "A", "accelerators_per_node": 1, "kernel": "6"}
    | {"framework": "2"},
    "runs": [{"name": "a", "kind": "perf", "workload": "w", "report_id": "0" * 64, "verdict": "REHEARSAL"}],
    "devices": {"same": True, "differences": []},
    "challenge": None,
    "redactions": [],
    "signer": {"self_issued": True, "time": "2026-11-23T21:20:39Z"},
}
SIGNED = ("environment/signer.pub", "runs/a/report.dsse.json", "system.json")

TARGETS = {
    "log": fuzz_log,
    "journal": fuzz_journal,
    "submission": fuzz_submission,
    "verify": Verified,
    "archive": fuzz_archive,
    "gzip": fuzz_gzip,
    "json": fuzz_json,
    "envelope": fuzz_envelope,
    "policy": fuzz_policy,
    "challenge": fuzz_challenge,
}


def main() -> None:
    target = TARGETS[sys.argv.pop(1)]
    longest = 2**17 if target is Verified else 8192
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
        (corpus / "log").write_bytes(Run(micro_num=2).text(last=3))
        (corpus / "journal").write_bytes((ROOT / "fixtures/tiny-accuracy-run/journal.jsonl").read_bytes())
        signed = statement.build(SUBMISSION, dict.fromkeys(SIGNED, "0" * 64), statement.SUBMISSION)
        (corpus / "submission").write_bytes(signed)
        if target is Verified:
            target = Verified(folder)
            for number, seed in enumerate(target.seeds()):
                (corpus / f"verify{number}").write_bytes(seed)
        atheris.Setup([*sys.argv, str(corpus), f"-max_len={longest}"], lambda data: target(data, folder))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
