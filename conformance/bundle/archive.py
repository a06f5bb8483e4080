"""The bundle's container: a USTAR archive, plain or gzip, of which every content has exactly one accepted spelling.

The reader rebuilds each header from the name and the size that it reads there and demands the same 512 bytes, so a
header has no room for links, devices, extensions, owners, times or hidden text. Nothing is ever extracted to disk.
``tarfile`` is not used: it reads a header's claimed extension into memory whole, and accepts a dozen spellings.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
import secrets
import stat
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from gzip import GzipFile
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, TypeAlias

from conformance.errors import ArchiveError
from conformance.strictjson import quoted

REPORT_NAME = "report.dsse.json"
SUBMISSION_NAME = "submission.dsse.json"
# What an archive begins with: the report of its one run, or the statement about several.
FIRST_NAMES = (REPORT_NAME, SUBMISSION_NAME)

# 1024 cards with two logs each, times three runs, and a few hundred small files.
MAX_MEMBERS = 10_000
# What a USTAR size field of 11 octal digits holds; a log of 200,000 steps takes about 150 MB.
MAX_MEMBER_BYTES = 8 * 2**30 - 1
# 64 logging ranks over 200,000 steps; it also bounds a hostile bundle's time, to about a minute of decompression.
MAX_TOTAL_BYTES = 16 * 2**30
# Training logs compress 5 to 20 times; a bomb reaches 1000.
MAX_GZIP_RATIO = 100
# Below this much output no ratio is judged: small repetitive files compress well, and cost nothing.
_RATIO_FREE_BYTES = 64 * 2**20

_BLOCK = 512
_CHUNK = 2**18  # which a processor's cache holds, to be hashed and read
_READ_AHEAD = 2**16  # who reads more at a time reads into his own memory, without a copy
_GZIP_INPUT = 2**16
# One 40 KiB copy of the decompressor for each of these, so that a late member needs no decompression from the start.
_CHECKPOINT_BYTES = 32 * 2**20
# Ten thousand small files may lie far behind one of these, and be read in any order: where files began and ended that
# were read, a copy is kept too, at least so many bytes apart, the last so many of them.
_RECENT_POINTS = 256
_RECENT_BYTES = 2**18
# What GzipFile writes without a file name and time; any other header could carry text that nothing signs.
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"

_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"
_NAME = re.compile(
    r"submission\.dsse\.json|system\.json|"
    rf"(?:runs/{_SEGMENT}/)?"
    rf"(?:report\.dsse\.json|challenge\.dsse\.json|journal\.jsonl|configs/{_SEGMENT}"
    rf"|(?:logs|environment|patches)(?:/{_SEGMENT})+)"
)
_MAX_SEGMENTS = 6
_ALLOWED = (
    "report.dsse.json, journal.jsonl, challenge.dsse.json, configs/NAME, logs/..., environment/..., patches/..., "
    "the same below runs/RUN/, and submission.dsse.json with system.json"
)

_REPACK = "Send the file that `conformance bundle` wrote; one packed again by another tool is refused."

# The fields of a USTAR header (POSIX.1-1988): name, offset, length.
_FIELDS = (
    ("name", 0, 100),
    ("mode", 100, 8),
    ("uid", 108, 8),
    ("gid", 116, 8),
    ("size", 124, 12),
    ("mtime", 136, 12),
    ("checksum", 148, 8),
    ("type", 156, 1),
    ("link name", 157, 100),
    ("magic", 257, 6),
    ("version", 263, 2),
    ("user name", 265, 32),
    ("group name", 297, 32),
    ("device major", 329, 8),
    ("device minor", 337, 8),
    ("prefix", 345, 155),
    ("padding", 500, 12),
)
_TYPES = {
    b"\0": "a file of the pre-POSIX format",
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"5": "a directory",
    b"6": "a FIFO",
    b"7": "a contiguous file",
    b"x": "a pax extended header",
    b"g": "a pax global header",
    b"L": "a GNU long name",
    b"K": "a GNU long link name",
    b"S": "a GNU sparse file",
}


@dataclass(frozen=True)
class Limits:
    """What a reader accepts at most; a policy may narrow it.

    Args:
        members: Files.
        member_bytes: Bytes of one file.
        total_bytes: Bytes of the archive, decompressed.
    """

    members: int = MAX_MEMBERS
    member_bytes: int = MAX_MEMBER_BYTES
    total_bytes: int = MAX_TOTAL_BYTES


@dataclass(frozen=True)
class Member:
    """One file of a bundle.

    Args:
        name: Its name in the archive.
        size: Bytes.
        sha256: Of its content, in hex.
        offset: Of its content in the decompressed archive, in bytes.
    """

    name: str
    size: int
    sha256: str
    offset: int


@dataclass(frozen=True)
class BundleIndex:
    """What one full pass over a bundle found.

    Args:
        path: The archive.
        members: Its files by name, in the archive's order.
        checkpoints: Where decompression can be resumed; empty for a plain archive.
        recent: The same where files began and ended that were read; it changes with every one.
    """

    path: Path
    members: Mapping[str, Member]
    checkpoints: tuple[_Checkpoint, ...] = field(default=(), repr=False)
    recent: deque[_Checkpoint] = field(default_factory=partial(deque, maxlen=_RECENT_POINTS), repr=False, compare=False)


@dataclass(frozen=True)
class Packed:
    """A file inside a bundle, as content of another one.

    Args:
        index: The bundle that holds it.
        name: Its name there.
    """

    index: BundleIndex
    name: str


class _Inflate(Protocol):
    """The part of zlib's decompressor, a type without a public name, that is used here."""

    @property
    def unused_data(self) -> bytes: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    @property
    def eof(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int = 0, /) -> bytes: ...
    def copy(self) -> Any: ...


@dataclass(frozen=True)
class _Checkpoint:
    """A state of decompression: bytes put out, bytes taken in, and the decompressor at that point."""

    output: int
    input: int
    inflate: _Inflate


def write_bundle(path: Path, members: Mapping[str, Path | bytes | Packed]) -> BundleIndex:
    """Write a bundle whole or not at all; the same members give the same bytes.

    The archive is written beside ``path``, read back by the strict reader, and only then takes the name.

    Args:
        path: The archive, ``.tar`` or ``.tar.gz``; an existing file is replaced.
        members: Content by name: a regular file, bytes, or a file of another bundle. ``report.dsse.json`` or, for
            several runs, ``submission.dsse.json`` must be among them, and becomes the first file.

    Returns:
        The index of what was written, for comparing the digests with the signed ones.

    Raises:
        ArchiveError: A name, file or size that the reader would refuse; a file that changes meanwhile; a full disk.
    """
    if not path.name.endswith((".tar", ".tar.gz")):
        raise ArchiveError(f"The bundle's name {quoted(path.name)} must end in .tar or .tar.gz.")
    if len(set(FIRST_NAMES) & set(members)) != 1:
        raise ArchiveError(f"A bundle needs {REPORT_NAME} or {SUBMISSION_NAME} as its first file, one of the two.")
    names = sorted(members, key=_order)
    _check_names(names)
    _check_sizes(names, members)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        try:
            with temporary.open("xb") as file:
                if path.name.endswith(".gz"):
                    with GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as packed:
                        _write_members(packed, names, members)
                else:
                    _write_members(file, names, members)
                file.flush()
                os.fsync(file.fileno())
            index = read_index(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ArchiveError(f"The bundle {path} cannot be written: {error.strerror}.") from error
    return dataclasses.replace(index, path=path)


def read_index(path: Path, limits: Limits = Limits()) -> BundleIndex:
    """Read a bundle once from end to end, in constant memory, and hash every file.

    Args:
        path: The archive, plain or gzip by its first bytes.
        limits: What to accept at most.

    Returns:
        The index; every byte of the archive has been accounted for.

    Raises:
        ArchiveError: Anything but the one accepted spelling of a bundle; names the place and the fault.
    """
    stream = _open(path)
    blocks: io.BufferedReader = io.BufferedReader(stream, _CHUNK) if isinstance(stream, _GzipStream) else stream
    with blocks:
        members = {member.name: member for member in _scan(blocks, limits)}
    return BundleIndex(path, members, tuple(stream.checkpoints) if isinstance(stream, _GzipStream) else ())


def open_member(index: BundleIndex, name: str) -> BinaryIO:
    """Open one file of a bundle as a stream; its last read compares the digest with the index.

    Args:
        index: The bundle's index.
        name: The file's name.

    Returns:
        A readable binary stream. What was read counts only once the stream has been read to its end.

    Raises:
        ArchiveError: No such file; while reading: the archive is not the one that was indexed.
    """
    member = index.members.get(name)
    if member is None:
        raise ArchiveError(f"The bundle {index.path} has no file {quoted(name)}.")
    stream = _open(index.path, member.offset, _nearest(index, member.offset))
    _remember(index, stream)
    return io.BufferedReader(_MemberStream(index, stream, member), _READ_AHEAD)


def read_member(index: BundleIndex, name: str, max_bytes: int) -> bytes:
    """Read one small file of a bundle whole.

    Args:
        index: The bundle's index.
        name: The file's name.
        max_bytes: Largest accepted size in bytes.

    Returns:
        Its content, equal to the index's digest.

    Raises:
        ArchiveError: No such file, a larger one, or the archive has changed since it was indexed.
    """
    with open_member(index, name) as stream:
        size = index.members[name].size
        if size > max_bytes:
            raise ArchiveError(f"{quoted(name)} in the bundle has {size} bytes, at most {max_bytes} are read.")
        return stream.read()


# --- names ---------------------------------------------------------------------------------------------------------


def _order(name: str) -> tuple[bool, str]:
    return (name not in FIRST_NAMES, name)


def _check_name(name: str) -> tuple[bytes, bytes]:
    """Refuse a name off the allow-list; split an accepted one into USTAR's prefix and name, at the first place."""
    shown = quoted(name)
    segments = name.split("/")
    if name.startswith("/"):
        raise ArchiveError(f"The name {shown} is refused: it is absolute.")
    if ".." in segments:
        raise ArchiveError(f"The name {shown} is refused: it climbs with '..'.")
    if not re.fullmatch("[A-Za-z0-9._/-]*", name):
        raise ArchiveError(f"The name {shown} is refused: only the letters A-Z and a-z, digits, '.', '_' and '-'.")
    if len(segments) > _MAX_SEGMENTS or not _NAME.fullmatch(name):
        raise ArchiveError(f"The name {shown} is refused: a bundle holds only {_ALLOWED}.")
    for cut in range(len(segments)):
        prefix, rest = "/".join(segments[:cut]), "/".join(segments[cut:])
        if len(prefix) <= 155 and len(rest) <= 100:
            return prefix.encode(), rest.encode()
    raise ArchiveError(f"The name {shown} is refused: {len(name)} characters do not fit a USTAR header.")


def _claim(seen: dict[str, tuple[str, bool]], name: str) -> None:
    """Add a name to those seen, or refuse it if the two could not stand side by side in every file system.

    ``seen`` holds spelling and is-a-file of every file and folder, by its lower-case path.
    """
    for path in [*(name[: match.start()] for match in re.finditer("/", name)), name]:
        if path.lower() not in seen:
            seen[path.lower()] = (path, path == name)
            continue
        spelling, is_file = seen[path.lower()]
        if spelling != path:
            raise ArchiveError(f"The names {quoted(spelling)} and {quoted(path)} differ only in case.")
        if is_file and path == name:
            raise ArchiveError(f"The file {quoted(name)} occurs twice.")
        if is_file or path == name:
            raise ArchiveError(f"The name {quoted(path)} is used for a file and for a folder.")


def _check_names(names: list[str]) -> None:
    seen: dict[str, tuple[str, bool]] = {}
    for name in names:
        _check_name(name)
        _claim(seen, name)


# --- headers -------------------------------------------------------------------------------------------------------


def _header(name: str, size: int) -> bytes:
    """Build the one accepted header of a file."""
    prefix, rest = _check_name(name)
    values = {
        "name": rest,
        "mode": b"0000644\0",
        "uid": b"0000000\0",
        "gid": b"0000000\0",
        "size": b"%011o\0" % size,
        "mtime": b"00000000000\0",
        "checksum": b" " * 8,
        "type": b"0",
        "magic": b"ustar\0",
        "version": b"00",
        "device major": b"0000000\0",
        "device minor": b"0000000\0",
        "prefix": prefix,
    }
    block = b"".join(values.get(label, b"").ljust(length, b"\0") for label, _, length in _FIELDS)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _parse_header(block: bytes, at: int) -> tuple[str, int]:
    """Read name and size from a header and demand that the rest is what ``_header`` makes of them."""
    raw = {label: block[offset : offset + length] for label, offset, length in _FIELDS}
    place = f"The header at byte {at} is refused"
    if raw["magic"] != b"ustar\0":
        kind = "the GNU format" if raw["magic"] == b"ustar " else "no USTAR header"
        raise ArchiveError(f"{place}: {kind}, expected POSIX USTAR.", _REPACK)
    if raw["type"] != b"0":
        kind = _TYPES.get(raw["type"], f"an entry of type {quoted(raw['type'])}")
        raise ArchiveError(f"{place}: {kind}, and only regular files are accepted.", _REPACK)
    if raw["size"][0] & 0x80:
        raise ArchiveError(f"{place}: its size is a base-256 number, expected 11 octal digits.")
    if not re.fullmatch(rb"[0-7]{11}\0", raw["size"]):
        raise ArchiveError(f"{place}: its size {quoted(raw['size'])} is not 11 octal digits and a NUL.")
    prefix, rest = (raw[label].split(b"\0", 1)[0].decode("latin-1") for label in ("prefix", "name"))
    name = f"{prefix}/{rest}" if prefix else rest
    size = int(raw["size"][:-1], 8)
    expected = _header(name, size)
    # The checksum last: it differs with every other field, and would hide which one.
    for label, offset, length in sorted(_FIELDS, key=lambda item: item[0] == "checksum"):
        wanted = expected[offset : offset + length]
        if raw[label] != wanted:
            got, want = (quoted(value.rstrip(b"\0")) for value in (raw[label], wanted))
            raise ArchiveError(f"{place} ({quoted(name)}): its {label} is {got}, expected {want}.", _REPACK)
    return name, size


# --- writing -------------------------------------------------------------------------------------------------------


def _check_sizes(names: list[str], members: Mapping[str, Path | bytes | Packed]) -> None:
    """Before writing: many gigabytes are not copied for the reader to refuse them."""
    sizes = {}
    for name in names:
        source, sizes[name] = _open_content(members[name])
        source.close()
    largest = max(names, key=sizes.__getitem__)
    told = f"{quoted(largest)} has {sizes[largest]}"
    if sizes[largest] > MAX_MEMBER_BYTES:
        raise ArchiveError(f"The file for {told} bytes, at most {MAX_MEMBER_BYTES} fit.")
    total = sum(_BLOCK + size + -size % _BLOCK for size in sizes.values())
    if total > MAX_TOTAL_BYTES:
        raise ArchiveError(
            f"The bundle would have {total} bytes, at most {MAX_TOTAL_BYTES} fit; nothing was written.",
            f"The largest file is {told}. Submit fewer runs in one bundle.",
        )


def _write_members(out: IO[bytes] | GzipFile, names: list[str], members: Mapping[str, Path | bytes | Packed]) -> None:
    for name in names:
        source, size = _open_content(members[name])
        with source:
            out.write(_header(name, size))
            left = size
            while left and (chunk := source.read(min(left, _CHUNK))):
                out.write(chunk)
                left -= len(chunk)
            if left or source.read(1):
                raise ArchiveError(f"The file for {quoted(name)} changed its size while it was packed.")
        out.write(bytes(-size % _BLOCK))
    out.write(bytes(2 * _BLOCK))


def _open_content(content: Path | bytes | Packed) -> tuple[BinaryIO, int]:
    """The content as a stream, and its size."""
    if isinstance(content, bytes):
        return io.BytesIO(content), len(content)
    if isinstance(content, Packed):
        return open_member(content.index, content.name), content.index.members[content.name].size
    source = _open_source(content)
    return source, os.fstat(source.fileno()).st_size


def _open_source(path: Path) -> BinaryIO:
    """Open a file to pack; a link is refused, because it could carry any file of the machine into the bundle."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ArchiveError(f"{path} is not a regular file and cannot be packed.")
        return open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")  # noqa: PTH123
    except OSError as error:
        raise ArchiveError(f"{path} cannot be packed: {error.strerror}.") from error


# --- reading -------------------------------------------------------------------------------------------------------


class _GzipStream(io.RawIOBase):
    """One gzip stream, decompressed into the caller's buffer; keeps checkpoints, and resumes from one."""

    def __init__(self, file: BinaryIO, start: _Checkpoint | None) -> None:
        super().__init__()
        self._file = file
        self.output = start.output if start else 0
        self._inflate: _Inflate = start.inflate.copy() if start else zlib.decompressobj(wbits=31)
        self.checkpoints: list[_Checkpoint] = []
        file.seek(start.input if start else 0)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._inflate.eof:
            data = self._inflate.unconsumed_tail or self._file.read(_GZIP_INPUT)
            try:
                output = self._inflate.decompress(data, len(buffer))
            except zlib.error as error:
                raise ArchiveError(f"The gzip stream is damaged ({error}).") from error
            if output:
                buffer[: len(output)] = output
                self._count(len(output))
                return len(output)
            if not data:
                raise ArchiveError("The gzip stream is truncated.")
        if self._inflate.unused_data or self._file.read(1):
            raise ArchiveError("The archive is refused: bytes follow its gzip stream.")
        return 0

    def _count(self, size: int) -> None:
        self.output += size
        taken = self._file.tell()
        if self.output > _RATIO_FREE_BYTES and self.output > MAX_GZIP_RATIO * taken:
            raise ArchiveError(
                f"The archive is refused as a gzip bomb: {taken} bytes became {self.output}, and more than "
                f"{MAX_GZIP_RATIO} times as many are not accepted.",
                "If the content is honest, pack it as plain .tar.",
            )
        if self.output - (self.checkpoints[-1].output if self.checkpoints else 0) >= _CHECKPOINT_BYTES:
            self.checkpoints.append(self.point())

    def point(self) -> _Checkpoint:
        return _Checkpoint(self.output, self._file.tell(), self._inflate.copy())


_Stream: TypeAlias = io.BufferedReader | _GzipStream


class _MemberStream(io.RawIOBase):
    """One file of a bundle; its last bytes are handed out only if the whole has the indexed digest."""

    def __init__(self, index: BundleIndex, stream: _Stream, member: Member) -> None:
        super().__init__()
        self._index = index
        self._stream = stream
        self._member = member
        self._left = member.size
        self._digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._stream.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: self._left]
        _fill(self._stream, view)
        self._digest.update(view)
        self._left -= len(view)
        if not self._left:
            if self._digest.hexdigest() != self._member.sha256:
                raise ArchiveError(f"{quoted(self._member.name)} in the bundle changed while it was being read.")
            _remember(self._index, self._stream)
        return len(view)


def _nearest(index: BundleIndex, offset: int) -> _Checkpoint | None:
    """The last point at or before an offset."""
    before = (point for point in (*index.checkpoints, *index.recent) if point.output <= offset)
    return max(before, key=lambda point: point.output, default=None)


def _remember(index: BundleIndex, stream: _Stream) -> None:
    """Keep the point that a stream has come to, for the next file, unless another lies close before it."""
    if isinstance(stream, _GzipStream):
        near = _nearest(index, stream.output)
        if stream.output - (near.output if near else 0) >= _RECENT_BYTES:
            index.recent.append(stream.point())


def _open(path: Path, offset: int = 0, start: _Checkpoint | None = None) -> _Stream:
    """Open the archive's decompressed bytes at an offset; from a point before it, if it is compressed."""
    try:
        if not path.is_file():
            raise ArchiveError(f"{path} is not a file, so it is no bundle.")
        file = path.open("rb")
        head = file.read(len(_GZIP_HEADER))
        if head[:2] != _GZIP_HEADER[:2]:
            file.seek(offset)
            return file
    except OSError as error:
        raise ArchiveError(f"The bundle {path} cannot be read: {error.strerror}.") from error
    stream = _GzipStream(file, start)
    try:
        if head != _GZIP_HEADER:
            raise ArchiveError("The gzip header is refused: it carries a file name, a time or a comment.", _REPACK)
        left = offset - (start.output if start else 0)
        buffer = memoryview(bytearray(min(left, _CHUNK)))
        while left:
            _fill(stream, buffer[:left])
            left -= len(buffer[:left])
    except ArchiveError:
        stream.close()
        raise
    return stream


def _read_into(stream: _Stream, view: memoryview) -> int:
    try:
        return stream.readinto(view)
    except OSError as error:
        raise ArchiveError(f"The bundle cannot be read: {error.strerror}.") from error


def _fill(stream: _Stream, view: memoryview) -> None:
    """Read exactly as many bytes as the view holds."""
    while view:
        count = _read_into(stream, view)
        if not count:
            raise ArchiveError("The archive is truncated: it ends within a file or before its end mark.")
        view = view[count:]


def _scan(stream: _Stream, limits: Limits) -> Iterator[Member]:
    """Walk the archive from its first byte to its last, yielding each file once it is hashed."""
    seen: dict[str, tuple[str, bool]] = {}
    block, buffer = memoryview(bytearray(_BLOCK)), memoryview(bytearray(_CHUNK))
    count, offset, last = 0, 0, ""
    while True:
        _fill(stream, block)
        if not any(block):
            break
        name, size = _parse_header(bytes(block), offset)
        _claim(seen, name)
        # Of the two first names no archive has both: the second of them would be out of order.
        if (name not in FIRST_NAMES) if not last else (name in FIRST_NAMES or _order(name) <= _order(last)):
            wanted = f"a name after {quoted(last)}" if last else f"{REPORT_NAME} or {SUBMISSION_NAME}"
            raise ArchiveError(f"The file {quoted(name)} is out of order: expected {wanted}.")
        count, offset, last = count + 1, offset + _BLOCK, name
        _check_limits(count, name, size, offset, limits)
        digest, left = hashlib.sha256(), size
        while left:
            view = buffer[:left]
            _fill(stream, view)
            digest.update(view)
            left -= len(view)
        padding = buffer[: -size % _BLOCK]
        _fill(stream, padding)
        if any(padding):
            raise ArchiveError(f"The padding after {quoted(name)} is not zero.")
        yield Member(name, size, digest.hexdigest(), offset)
        offset += size + len(padding)
    if not last:
        raise ArchiveError(f"The archive is empty: expected {REPORT_NAME} or {SUBMISSION_NAME} as its first file.")
    _fill(stream, block)
    if any(block) or _read_into(stream, block):
        raise ArchiveError("The archive is refused: bytes follow its end mark of two zero blocks.", _REPACK)


def _check_limits(count: int, name: str, size: int, offset: int, limits: Limits) -> None:
    if count > limits.members:
        raise ArchiveError(f"The archive holds more than the {limits.members} files allowed.")
    if size > limits.member_bytes:
        raise ArchiveError(f"The file {quoted(name)} has {size} bytes, more than the {limits.member_bytes} allowed.")
    if offset + size > limits.total_bytes:
        raise ArchiveError(f"The archive has more than the {limits.total_bytes} bytes allowed.")
