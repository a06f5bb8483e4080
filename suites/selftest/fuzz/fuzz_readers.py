"""Coverage-guided fuzzing of what reads foreign bytes.

Run as ``python suites/selftest/fuzz/fuzz_readers.py TARGET -runs=100000``; TARGET is archive, gzip, json or envelope,
and further arguments are libFuzzer's. It needs ``pip install atheris``, and ends with a traceback and the input when a
reader raises anything but its own error, or accepts what the writer would not write.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["conformance", "json"]):
    from conformance import strictjson
    from conformance.bundle.archive import read_index, read_member, write_bundle
    from conformance.errors import ArchiveError, JsonError, SignatureError
    from conformance.report import dsse

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


TARGETS = {"archive": fuzz_archive, "gzip": fuzz_gzip, "json": fuzz_json, "envelope": fuzz_envelope}


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
        atheris.Setup([*sys.argv, str(corpus), "-max_len=8192"], lambda data: target(data, folder))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
