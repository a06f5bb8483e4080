from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import resource
import subprocess
import tarfile
import tempfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.bundle import archive
from conformance.bundle.archive import Limits, open_member, read_index, read_member, write_bundle
from conformance.errors import ArchiveError

REPORT = "report.dsse.json"
LOG = "logs/node0/rank0.log"
CONTENT: dict[str, bytes] = {
    REPORT: b'{"payload":"e30="}',
    "challenge.dsse.json": b"{}",
    "configs/internevo.py": b"x" * 512,
    "environment/run.json": b"",
    "journal.jsonl": b"{}\n",
    LOG: b"step=0 loss=10.5\n" * 70,
}
END = bytes(1024)

# Name, offset and length of a USTAR header's fields, written down again here: the reader's own table is under test.
FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "gid": (116, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "checksum": (148, 8),
    "type": (156, 1),
    "link": (157, 100),
    "magic": (257, 6),
    "version": (263, 2),
    "uname": (265, 32),
    "gname": (297, 32),
    "major": (329, 8),
    "minor": (337, 8),
    "prefix": (345, 155),
    "padding": (500, 12),
}


def header(name: bytes, length: int, **fields: bytes) -> bytes:
    """A good header with some fields replaced, and a checksum to match unless that is replaced too."""
    values = {
        "name": name,
        "mode": b"0000644",
        "uid": b"0000000",
        "gid": b"0000000",
        "size": b"%011o" % length,
        "mtime": b"00000000000",
        "checksum": b" " * 8,
        "type": b"0",
        "magic": b"ustar",
        "version": b"00",
        "major": b"0000000",
        "minor": b"0000000",
        **fields,
    }
    block = bytearray(512)
    for label, value in values.items():
        offset, width = FIELDS[label]
        assert len(value) <= width
        block[offset : offset + len(value)] = value
    if "checksum" not in fields:
        block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def entry(name: str | bytes, data: bytes = b"", **fields: bytes) -> bytes:
    raw = name.encode() if isinstance(name, str) else name
    return header(raw, len(data), **fields) + data + bytes(-len(data) % 512)


FIRST = entry(REPORT, b"{}")
GOOD = FIRST + entry(LOG, b"step=0\n") + END


def after_report(*entries: bytes) -> bytes:
    return FIRST + b"".join(entries) + END


def pax(**records: str) -> bytes:
    """What Python's own tarfile writes for a file with pax records."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as writer:
        member = tarfile.TarInfo(LOG)
        member.pax_headers = records
        writer.addfile(member)
    return FIRST + out.getvalue()


def gnu_long(name: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as writer:
        writer.addfile(tarfile.TarInfo(name))
    return FIRST + out.getvalue()


def bomb(mebibytes: int) -> bytes:
    """A sound archive of one large file of zeros, which gzip makes a thousand times smaller."""
    pack = zlib.compressobj(9, wbits=31)
    size = mebibytes * 2**20
    parts = [pack.compress(FIRST + header(LOG.encode(), size))]
    parts += [pack.compress(bytes(2**20)) for _ in range(mebibytes)]
    return plain_header(b"".join(parts) + pack.compress(END) + pack.flush())


def plain_header(packed: bytes) -> bytes:
    """Give a gzip stream without optional fields the header that GzipFile writes."""
    assert packed[3] == 0
    return b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff" + packed[10:]


def packed(data: bytes) -> bytes:
    return plain_header(gzip.compress(data, 6, mtime=0))


def zip_file() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as writer:
        writer.writestr(REPORT, "{}")
    return out.getvalue()


REGULAR = "only regular files are accepted"
# What is attacked: the archive, and what the refusal must say.
ATTACKS: dict[str, tuple[bytes | Callable[[], bytes], str]] = {
    "symbolic link": (after_report(entry(LOG, type=b"2", link=b"/etc/passwd")), f"a symbolic link, and {REGULAR}"),
    "hard link": (after_report(entry(LOG, type=b"1", link=REPORT.encode())), f"a hard link, and {REGULAR}"),
    "character device": (after_report(entry(LOG, type=b"3", major=b"0000001")), f"a character device, and {REGULAR}"),
    "block device": (after_report(entry(LOG, type=b"4")), f"a block device, and {REGULAR}"),
    "directory": (after_report(entry("logs/", type=b"5")), f"a directory, and {REGULAR}"),
    "FIFO": (after_report(entry(LOG, type=b"6")), f"a FIFO, and {REGULAR}"),
    "contiguous file": (after_report(entry(LOG, type=b"7")), f"a contiguous file, and {REGULAR}"),
    "sparse file": (after_report(entry(LOG, type=b"S")), f"a GNU sparse file, and {REGULAR}"),
    "sparse file by pax": (pax(**{"GNU.sparse.major": "1", "GNU.sparse.realsize": "9"}), "a pax extended header"),
    "pax header": (pax(path="logs/other.log"), "a pax extended header"),
    "pax header of 8 GiB": (FIRST + header(b"x", 8**11 - 1, type=b"x"), "a pax extended header"),
    "pax global header": (after_report(entry("x", b"20 comment=hidden\n", type=b"g")), "a pax global header"),
    "GNU long name": (gnu_long("logs/" + "a" * 300), "the GNU format, expected POSIX USTAR"),
    "GNU long name in USTAR": (after_report(entry("././@LongLink", b"logs/x\0", type=b"L")), "a GNU long name"),
    "GNU long link name": (after_report(entry("././@LongLink", b"/etc\0", type=b"K")), "a GNU long link name"),
    "huge name header": (FIRST + header(b"././@LongLink", 2**32, type=b"L"), "a GNU long name"),
    "unknown type": (after_report(entry(LOG, type=b"Z")), "an entry of type b'Z'"),
    "type of the old format": (after_report(entry(LOG, type=b"\0")), "a file of the pre-POSIX format"),
    "old header without magic": (after_report(entry(LOG, magic=b"", version=b"")), "no USTAR header"),
    "absolute name": (after_report(entry("/etc/passwd")), "'/etc/passwd' is refused: it is absolute"),
    "absolute name by prefix": (after_report(entry("passwd", prefix=b"/etc")), "it is absolute"),
    "name that climbs": (after_report(entry("logs/../../etc/passwd")), "it climbs with '..'"),
    "name that climbs by prefix": (after_report(entry("x", prefix=b"logs/..")), "it climbs with '..'"),
    "name with a dot segment": (after_report(entry("logs/./x")), "a bundle holds only"),
    "name with an empty segment": (after_report(entry("logs//x")), "a bundle holds only"),
    "name of a folder": (after_report(entry("logs/")), "a bundle holds only"),
    "name with a backslash": (after_report(entry("logs\\..\\x")), "only the letters"),
    "name with a drive": (after_report(entry("C:/x")), "only the letters"),
    "hidden name": (after_report(entry("logs/.ssh")), "a bundle holds only"),
    "name like an option": (after_report(entry("logs/-rf")), "a bundle holds only"),
    "name off the list": (after_report(entry("report.html")), "a bundle holds only report.dsse.json, journal.jsonl"),
    "name without its folder": (after_report(entry("rank0.log")), "a bundle holds only"),
    "config in a subfolder": (after_report(entry("configs/a/b")), "a bundle holds only"),
    "run within a run": (after_report(entry("runs/a/runs/b/logs/x")), "a bundle holds only"),
    "name of 7 segments": (after_report(entry("logs/1/2/3/4/5/6")), "a bundle holds only"),
    "segment of 101 characters": (after_report(entry("x", prefix=b"logs/" + b"a" * 101)), "a bundle holds only"),
    "empty name": (after_report(entry("")), "a bundle holds only"),
    "terminal escape in a name": (
        after_report(entry("logs/\x1b[2Jx")),
        r"'logs/\x1b[2Jx' is refused: only the letters",
    ),
    "newline in a name": (after_report(entry("logs/x\n")), "only the letters"),
    "text after the name's NUL": (after_report(entry(b"logs/x\0hidden")), "its name is"),
    "Unicode name, composed": (after_report(entry("logs/\u00e9")), "only the letters"),
    "Unicode name, decomposed": (after_report(entry("logs/e\u0301")), "only the letters"),
    "Unicode look-alike (Kelvin sign)": (after_report(entry("logs/\u212a")), "only the letters"),
    "right-to-left override": (after_report(entry("logs/\u202egol.txt")), "only the letters"),
    "name not UTF-8": (after_report(entry(b"logs/\xff")), "only the letters"),
    "names that differ in case": (after_report(entry("logs/A"), entry("logs/a")), "differ only in case"),
    "folders that differ in case": (after_report(entry("logs/A/x"), entry("logs/a/y")), "differ only in case"),
    "file used as a folder": (after_report(entry("logs/a"), entry("logs/a/b")), "for a file and for a folder"),
    "folder used as a file": (
        after_report(entry("logs/a.d"), entry("logs/a/b"), entry("logs/a")),
        "for a file and for a folder",
    ),
    "duplicate": (after_report(entry(LOG, b"1"), entry(LOG, b"2")), "occurs twice"),
    "duplicate report": (after_report(entry(REPORT, b"{}")), "'report.dsse.json' occurs twice"),
    "reordered": (after_report(entry("logs/b"), entry("logs/a")), "'logs/a' is out of order"),
    "report not first": (entry(LOG) + FIRST + END, "out of order: expected report.dsse.json"),
    "no report": (entry(LOG) + END, "out of order: expected report.dsse.json"),
    "report in another case": (entry("Report.dsse.json") + END, "a bundle holds only"),
    "no entry": (END, "The archive is empty"),
    "no byte": (b"", "truncated"),
    "text": (b"hello, lab\n" * 100, "no USTAR header"),
    "zip": (zip_file() + bytes(512), "no USTAR header"),
    "checksum wrong": (after_report(entry(LOG, checksum=b"000000\0 ")), "its checksum is"),
    "checksum spelt otherwise": (FIRST[:154] + b" \0" + FIRST[156:] + END, "its checksum is"),
    "size in base 256": (FIRST + header(LOG.encode(), 0, size=b"\x80" + bytes(10) + b"\x01"), "base-256 number"),
    "negative size": (FIRST + header(LOG.encode(), 0, size=b"\xff" * 12), "base-256 number"),
    "size with spaces": (after_report(entry(LOG, size=b"         0 \0")), "is not 11 octal digits"),
    "size with a sign": (after_report(entry(LOG, size=b"-0000000001\0")), "is not 11 octal digits"),
    "size with an underscore": (after_report(entry(LOG, size=b"0000000_001\0")), "is not 11 octal digits"),
    "size without its NUL": (after_report(entry(LOG, size=b"000000000000")), "is not 11 octal digits"),
    "size beyond the file": (FIRST + header(LOG.encode(), 4096) + bytes(1024), "truncated"),
    "time set": (after_report(entry(LOG, mtime=b"14403165000")), "its mtime is b'14403165000"),
    "mode executable": (after_report(entry(LOG, mode=b"0000755")), "its mode is"),
    "mode set-uid": (after_report(entry(LOG, mode=b"0004644")), "its mode is"),
    "owner set": (after_report(entry(LOG, uid=b"0001750")), "its uid is"),
    "group set": (after_report(entry(LOG, gid=b"0001750")), "its gid is"),
    "owner named": (after_report(entry(LOG, uname=b"root")), "its user name is b'root"),
    "group named": (after_report(entry(LOG, gname=b"wheel")), "its group name is b'wheel"),
    "link name on a file": (after_report(entry(LOG, link=b"/etc")), "its link name is b'/etc"),
    "device number on a file": (after_report(entry(LOG, minor=b"0000007")), "its device minor is"),
    "version otherwise": (after_report(entry(LOG, version=b"0\0")), "its version is"),
    "name split elsewhere": (after_report(entry("x/y", prefix=b"logs")), "its name is b'x/y"),
    "text in the header's padding": (after_report(entry(LOG, padding=b"hidden")), "its padding is b'hidden"),
    "text in a file's padding": (
        FIRST + header(LOG.encode(), 1) + b"1" + b"hidden".ljust(511, b"\0") + END,
        "The padding after 'logs/node0/rank0.log' is not zero",
    ),
    "cut within a header": (GOOD[:1300], "truncated"),
    "cut within a file": (GOOD[:1540], "truncated"),
    "cut within the padding": (GOOD[:2000], "truncated"),
    "cut before the end mark": (GOOD[:-1024], "truncated"),
    "half an end mark": (GOOD[:-512], "truncated"),
    "end mark within": (FIRST + bytes(512) + entry(LOG) + END, "bytes follow its end mark"),
    "trailing byte": (GOOD + b"\0", "bytes follow its end mark"),
    "trailing zeros to a full record": (GOOD.ljust(10240, b"\0"), "bytes follow its end mark"),
    "trailing archive": (GOOD + GOOD, "bytes follow its end mark"),
    "gzip bomb": (lambda: bomb(80), "as a gzip bomb"),
    "gzip cut": (packed(GOOD)[:-20], "gzip stream is truncated"),
    "gzip without its trailer": (packed(GOOD)[:-8], "gzip stream is truncated"),
    "gzip with a trailing byte": (packed(GOOD) + b"\0", "bytes follow its gzip stream"),
    "gzip of two streams": (packed(GOOD) + packed(b""), "bytes follow its gzip stream"),
    "gzip split into two streams": (packed(GOOD[:1024]) + packed(GOOD[1024:]), "bytes follow its gzip stream"),
    "gzip checksum wrong": (packed(GOOD)[:-8] + bytes(4) + packed(GOOD)[-4:], "gzip stream is damaged"),
    "gzip length wrong": (packed(GOOD)[:-4] + bytes(4), "gzip stream is damaged"),
    "gzip with a time": (gzip.compress(GOOD, 6, mtime=1), "carries a file name, a time or a comment"),
    "gzip with a file name": (
        b"\x1f\x8b\x08\x08" + bytes(5) + b"\xff" + b"hidden\0" + packed(GOOD)[10:],
        "carries a file name, a time or a comment",
    ),
    "gzip of gzip": (packed(packed(GOOD).ljust(1024, b"\0")), "no USTAR header"),
    "gzip with bytes after the archive": (packed(GOOD + b"x"), "bytes follow its end mark"),
    "gzip with a broken block": (packed(GOOD)[:10] + b"\xff" * 20, "gzip stream is damaged"),
    "bzip2": (b"BZh9" + bytes(600), "no USTAR header"),
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tmp_path / "bundle.tar"


@pytest.mark.parametrize("attack", ATTACKS)
def test_refused_with_a_sentence(bundle: Path, attack: str) -> None:
    made, reason = ATTACKS[attack]
    data = made if isinstance(made, bytes) else made()
    bundle.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError) as caught:
            read_index(bundle)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    sentence = str(caught.value)
    assert reason in sentence
    assert sentence.isascii()
    assert sentence.isprintable()
    assert len(sentence) < 400
    assert peak < 16 * 2**20


def test_the_attacks_start_from_what_is_accepted(bundle: Path) -> None:
    for data in (GOOD, packed(GOOD)):
        bundle.write_bytes(data)
        assert list(read_index(bundle).members) == [REPORT, LOG]


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(members=1), "more than the 1 files"),
        (Limits(member_bytes=6), "has 7 bytes, more than the 6 allowed"),
        (Limits(total_bytes=1500), "more than the 1500 bytes"),
        (Limits(total_bytes=1542), "more than the 1542 bytes"),  # the last file of 7 bytes begins at 1536
    ],
)
def test_caps(bundle: Path, limits: Limits, reason: str) -> None:
    bundle.write_bytes(GOOD)
    with pytest.raises(ArchiveError, match=reason):
        read_index(bundle, limits)


def test_too_many_files(bundle: Path) -> None:
    with bundle.open("wb") as file:
        file.write(FIRST)
        for number in range(archive.MAX_MEMBERS):
            file.write(header(b"logs/%06d" % number, 0))
        file.write(END)
    with pytest.raises(ArchiveError, match="more than the 10000 files"):
        read_index(bundle)


@pytest.mark.parametrize("kind", ["absent", "folder", "fifo"])
def test_what_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(ArchiveError, match="is not a file"):
        read_index(path)


# --- what is written and read back ---


@pytest.fixture(params=["bundle.tar", "bundle.tar.gz"])
def either(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path: Path = tmp_path / request.param
    return path


def content(path: Path) -> dict[str, bytes]:
    index = read_index(path)
    return {name: read_member(index, name, 2**30) for name in index.members}


def test_round_trip(either: Path) -> None:
    index = write_bundle(either, CONTENT)
    assert index.path == either
    assert index == read_index(either)
    assert content(either) == CONTENT
    assert list(index.members) == [REPORT, *sorted(set(CONTENT) - {REPORT})]
    assert {name: member.sha256 for name, member in index.members.items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in CONTENT.items()
    }
    assert {name: member.size for name, member in index.members.items()} == {n: len(d) for n, d in CONTENT.items()}
    assert [path.name for path in either.parent.iterdir()] == [either.name]


def test_packing_twice_gives_the_same_bytes(either: Path, tmp_path: Path) -> None:
    write_bundle(either, CONTENT)
    before = either.read_bytes()
    files: dict[str, Path | bytes] = {}
    for name, data in reversed(CONTENT.items()):
        files[name] = tmp_path / name.replace("/", "-")
        (tmp_path / name.replace("/", "-")).write_bytes(data)
        os.utime(tmp_path / name.replace("/", "-"), (10**9, 10**9))
    write_bundle(either, files)
    assert either.read_bytes() == before


def test_other_tools_read_the_same(either: Path) -> None:
    write_bundle(either, CONTENT)
    listing = subprocess.run(["tar", "tf", either], check=True, capture_output=True, text=True)
    assert (listing.stdout.split(), listing.stderr) == (list(read_index(either).members), "")
    with tarfile.open(either) as reader:
        for name, data in CONTENT.items():
            stream = reader.extractfile(name)
            assert stream is not None
            assert stream.read() == data
        assert all(
            (m.mode, m.mtime, m.uid, m.gid, m.uname, m.gname, m.isreg()) == (0o644, 0, 0, 0, "", "", True)
            for m in reader.getmembers()
        )


def test_longest_names(either: Path) -> None:
    names = ["logs/" + "a" * 100, f"logs/{'b' * 100}/{'c' * 100}", f"runs/{'d' * 49}/logs/{'e' * 94}/{'f' * 100}"]
    write_bundle(either, {REPORT: b"", **dict.fromkeys(names, b"x")})
    assert set(content(either)) == {REPORT, *names}


SEGMENT = st.from_regex(r"\A[a-z0-9_][a-z0-9._-]{0,12}\Z")
NAMES = st.builds(
    lambda folder, parts: f"{folder}/{'/'.join(parts)}",
    st.sampled_from(["logs", "environment", "patches", "runs/r1/logs"]),
    st.lists(SEGMENT, min_size=1, max_size=3),
)


@settings(deadline=None)
@given(st.dictionaries(NAMES, st.binary(max_size=1500), max_size=6), st.sampled_from([".tar", ".tar.gz"]))
def test_any_content_round_trips(files: dict[str, bytes], suffix: str) -> None:
    members = {REPORT: b"{}", **files}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"b{suffix}"
        try:
            write_bundle(path, members)
        except ArchiveError as error:
            assert "for a file and for a folder" in str(error)
            return
        assert content(path) == members


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({LOG: b""}, "needs report.dsse.json"),
        ({REPORT: b"", "/etc/passwd": b""}, "absolute"),
        ({REPORT: b"", "logs/../x": b""}, "climbs"),
        ({REPORT: b"", "report.html": b""}, "a bundle holds only"),
        ({REPORT: b"", "logs/é": b""}, "only the letters"),
        ({REPORT: b"", "logs/a": b"", "logs/A": b""}, "differ only in case"),
        ({REPORT: b"", "logs/a": b"", "logs/a/b": b""}, "for a file and for a folder"),
        ({REPORT: b"", f"logs/{'a' * 100}/{'b' * 100}/{'c' * 40}": b""}, "247 characters do not fit a USTAR header"),
        ({REPORT: b"", "logs/x": Path("/etc/absent")}, "/etc/absent cannot be packed: No such file"),
        ({REPORT: b"", "logs/x": Path("/dev/zero")}, "/dev/zero is not a regular file"),
        ({REPORT: b"", "logs/x": Path("/etc")}, "/etc is not a regular file"),
        # Its size reads 0, and yet it has content: a file that grows while it is packed.
        ({REPORT: b"", "logs/x": Path("/proc/self/status")}, "changed its size while it was packed"),
    ],
)
def test_what_is_refused_on_writing_leaves_the_old_bundle(
    either: Path, members: dict[str, Path | bytes], reason: str
) -> None:
    either.write_bytes(b"the old bundle")
    with pytest.raises(ArchiveError, match=reason):
        write_bundle(either, members)
    assert [path.name for path in either.parent.iterdir()] == [either.name]
    assert either.read_bytes() == b"the old bundle"


def test_links_are_not_followed_into_the_bundle(either: Path, tmp_path: Path) -> None:
    (tmp_path / "rank0.log").symlink_to("/etc/passwd")
    with pytest.raises(ArchiveError, match="is not a regular file"):
        write_bundle(either, {REPORT: b"", LOG: tmp_path / "rank0.log"})


def test_too_many_files_on_writing(either: Path) -> None:
    names = [f"logs/{number}" for number in range(archive.MAX_MEMBERS)]
    with pytest.raises(ArchiveError, match="more than the 10000 files"):
        write_bundle(either, {REPORT: b"", **dict.fromkeys(names, b"")})
    assert not either.exists()


def test_other_suffixes(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"must end in \.tar or \.tar\.gz"):
        write_bundle(tmp_path / "bundle.zip", CONTENT)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let every write beyond a size fail, as a full disk does."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_write_that_fails_leaves_nothing_half(either: Path) -> None:
    either.write_bytes(b"the old bundle")
    with largest_file(100_000), pytest.raises(ArchiveError, match="cannot be written: File too large"):
        write_bundle(either, {**CONTENT, "logs/random": random.Random(1).randbytes(10**6)})
    assert [path.name for path in either.parent.iterdir()] == [either.name]
    assert either.read_bytes() == b"the old bundle"


def test_what_does_not_fit_is_refused_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_write_members", lambda *_: pytest.fail("writing had begun"))
    large = tmp_path / "large.log"
    large.touch()
    os.truncate(large, 7 * 2**30)  # sparse: no block of it is on the disk
    runs = {f"logs/node{node}/rank0.log": large for node in range(3)}
    with pytest.raises(ArchiveError, match=f"at most {16 * 2**30} fit; nothing was written.*Submit fewer runs"):
        write_bundle(tmp_path / "x.tar", {REPORT: b"{}", **runs})
    os.truncate(large, 8 * 2**30 - 1)
    with pytest.raises(pytest.fail.Exception, match="writing had begun"):
        write_bundle(tmp_path / "x.tar", {REPORT: b"{}", LOG: large})
    os.truncate(large, 8 * 2**30)
    with pytest.raises(ArchiveError, match=f"'{LOG}' has {8 * 2**30} bytes, at most {8 * 2**30 - 1} fit"):
        write_bundle(tmp_path / "x.tar", {REPORT: b"{}", LOG: large})


def test_no_folder_to_write_into(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="cannot be written: No such file or directory"):
        write_bundle(tmp_path / "absent" / "b.tar", CONTENT)


def test_a_bomb_is_not_written_either(tmp_path: Path) -> None:
    with (tmp_path / "zeros").open("wb") as file:
        file.truncate(80 * 2**20)
    with pytest.raises(ArchiveError, match=r"gzip bomb.*pack it as plain \.tar"):
        write_bundle(tmp_path / "b.tar.gz", {REPORT: b"", LOG: tmp_path / "zeros"})
    write_bundle(tmp_path / "b.tar", {REPORT: b"", LOG: tmp_path / "zeros"})


# --- reading files of a bundle ---


def test_absent_member(either: Path) -> None:
    index = write_bundle(either, CONTENT)
    with pytest.raises(ArchiveError, match="has no file 'logs/none'"):
        open_member(index, "logs/none")


def test_member_larger_than_asked_for(either: Path) -> None:
    index = write_bundle(either, CONTENT)
    with pytest.raises(ArchiveError, match="has 1190 bytes, at most 1189 are read"):
        read_member(index, LOG, 1189)
    assert read_member(index, LOG, 1190) == CONTENT[LOG]


def test_member_streams_by_line(either: Path) -> None:
    index = write_bundle(either, CONTENT)
    with open_member(index, LOG) as stream:
        assert list(stream) == [b"step=0 loss=10.5\n"] * 70


def test_members_of_a_large_gzip_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_CHECKPOINT_BYTES", 2**20)
    rng = random.Random(5)
    files = {f"logs/{number}": rng.randbytes(rng.randrange(900_000)) + bytes(10**6) for number in range(9)}
    index = write_bundle(tmp_path / "b.tar.gz", {REPORT: b"{}", **files})
    assert len(index.checkpoints) >= 8
    for name in rng.sample(sorted(files), len(files)):
        assert read_member(index, name, 2**24) == files[name]


def test_small_files_behind_a_large_one_do_not_decompress_it_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = archive._GzipStream._count
    taken: list[int] = []

    def counted(stream: archive._GzipStream, size: int) -> None:
        taken.append(size)
        count(stream, size)

    size = 8 * 2**20
    small = {f"logs/{number:03}": b"%d" % number for number in range(200)}
    index = write_bundle(tmp_path / "b.tar.gz", {REPORT: b"{}", "environment/large": bytes(size), **small})
    monkeypatch.setattr(archive._GzipStream, "_count", counted)
    for name in [*small, *sorted(small, reverse=True), *random.Random(2).sample(sorted(small), 100)]:
        assert read_member(index, name, 9) == small[name]
    assert size < sum(taken) < 12 * size  # not 500 times
    assert 0 < len(index.recent) < 5
    assert index.recent.maxlen == archive._RECENT_POINTS


def test_archive_swapped_after_it_was_indexed(either: Path) -> None:
    index = write_bundle(either, CONTENT)
    write_bundle(either, {**CONTENT, LOG: b"step=0 loss=01.5\n" * 70})
    with open_member(index, LOG) as stream, pytest.raises(ArchiveError, match="changed while it was being read"):
        stream.read()


def test_archive_cut_after_it_was_indexed(either: Path) -> None:
    index = write_bundle(either, CONTENT)
    either.write_bytes(either.read_bytes()[: either.stat().st_size // 2])
    with pytest.raises(ArchiveError, match="truncated"), open_member(index, LOG) as stream:
        stream.read()


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_memory_is_constant(tmp_path: Path, suffix: str) -> None:
    with (tmp_path / "log").open("wb") as file:
        block = random.Random(3).randbytes(2**18) + bytes(3 * 2**18)
        for _ in range(100):
            file.write(block)
    path = tmp_path / f"b{suffix}"
    write_bundle(path, {REPORT: b"", LOG: tmp_path / "log"})
    tracemalloc.start()
    try:
        index = read_index(path)
        with open_member(index, LOG) as stream:
            while stream.read(2**16):
                pass
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


# --- every change is seen ---


def outcome(path: Path) -> str:
    """What reading comes to: "refused", "unsigned" (some digest is not the signed one), or "original"."""
    try:
        index = read_index(path)
        found = {name: read_member(index, name, 2**20) for name in index.members}
    except ArchiveError as error:
        assert str(error).isascii()
        assert str(error).isprintable()
        return "refused"
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}
    assert digests == {name: member.sha256 for name, member in index.members.items()}
    if digests != {name: hashlib.sha256(data).hexdigest() for name, data in CONTENT.items()}:
        return "unsigned"
    assert found == CONTENT
    return "original"


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80])
def test_any_byte_changed(bundle: Path, flip: int) -> None:
    write_bundle(bundle, CONTENT)
    data = bytearray(bundle.read_bytes())
    with bundle.open("r+b", buffering=0) as file:
        for place, byte in enumerate(data):
            file.seek(place)
            file.write(bytes([byte ^ flip]))
            assert outcome(bundle) in ("refused", "unsigned"), place
            file.seek(place)
            file.write(bytes([byte]))
    assert outcome(bundle) == "original"


EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 2**14), st.binary(min_size=1, max_size=16)),
        st.tuples(st.just("insert"), st.integers(0, 2**14), st.binary(min_size=1, max_size=16)),
        st.tuples(st.just("delete"), st.integers(0, 2**14), st.integers(1, 600)),
        st.tuples(st.just("copy"), st.integers(0, 28), st.integers(0, 28)),
        st.tuples(st.just("cut"), st.integers(0, 2**14), st.just(0)),
        st.tuples(
            st.just("octal"), st.integers(0, 28), st.tuples(st.sampled_from(sorted(FIELDS)), st.binary(max_size=12))
        ),
    ),
    max_size=4,
)


def mutate(data: bytes, edits: list[tuple[str, int, object]]) -> bytes:
    """Apply edits; "copy" moves whole blocks, "octal" sets a header's field and corrects its checksum."""
    for kind, place, value in edits:
        at = place % (len(data) + 1)
        match kind, value:
            case "set", bytes(raw):
                data = data[:at] + raw + data[at + len(raw) :]
            case "insert", bytes(raw):
                data = data[:at] + raw + data[at:]
            case "delete", int(count):
                data = data[:at] + data[at + count :]
            case "copy", int(source):
                data = data[: place * 512] + data[source * 512 : source * 512 + 512] + data[place * 512 :]
            case "cut", _:
                data = data[:at]
            case "octal", (str(field), bytes(raw)):
                block = bytearray(data[place * 512 : place * 512 + 512].ljust(512, b"\0"))
                offset, length = FIELDS[field]
                block[offset : offset + length] = raw[:length].ljust(length, b"\0")
                block[148:156] = b" " * 8
                block[148:156] = b"%06o\0 " % sum(block)
                data = data[: place * 512] + bytes(block) + data[place * 512 + 512 :]
    return data


@settings(deadline=None, max_examples=400)
@given(EDITS)
def test_mutated_archive(edits: list[tuple[str, int, object]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, again = Path(folder) / "b.tar", Path(folder) / "again.tar"
        write_bundle(path, CONTENT)
        original = path.read_bytes()
        changed = mutate(original, edits)
        path.write_bytes(changed)
        result = outcome(path)
        assert (result == "original") == (changed == original)
        if result != "refused":
            # One accepted spelling: packing what was read gives the very bytes that were read.
            write_bundle(again, content(path))
            assert again.read_bytes() == changed


@settings(deadline=None, max_examples=400)
@given(EDITS)
def test_mutated_gzip(edits: list[tuple[str, int, object]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "b.tar.gz"
        write_bundle(path, CONTENT)
        changed = mutate(path.read_bytes(), edits)
        path.write_bytes(changed)
        outcome(path)


@settings(deadline=None, max_examples=200)
@given(EDITS)
def test_mutated_archive_within_gzip(edits: list[tuple[str, int, object]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "b.tar"
        write_bundle(path, CONTENT)
        original = path.read_bytes()
        changed = mutate(original, edits)
        path.write_bytes(packed(changed))
        assert (outcome(path) == "original") == (changed == original)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=2048))
def test_arbitrary_bytes(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "b.tar"
        for prefix in (b"", FIRST, b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"):
            path.write_bytes(prefix + data)
            assert outcome(path) in ("refused", "unsigned")
