"""Text files, cut into blocks of whole documents; the same blocks however many workers take them."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from conformance.errors import DataError

KINDS = ("jsonl", "txt", "json")
PACKED = ("gz", "zst")
# A fraction of a second of a worker's time: little is lost by a kill, and eight times as much keeps eight workers busy.
BLOCK_BYTES = 4 * 2**20
# Ids take at most 8 bytes for each byte of text, so a block's output stays under 2 GiB.
MAX_DOCUMENT_BYTES = 128 * 2**20
# Of a json file that are read at a time.
READ_CHARS = 2**20
# A line ends where Python's text mode ends it, in which InternEvo's tools/tokenizer.py reads.
LINE = re.compile(rb"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+")


@dataclass(frozen=True)
class Input:
    """A text file.

    Attributes:
        path: The file.
        name: Its name without suffixes, which its shards will bear.
        kind: jsonl, txt or json.
        packing: gz, zst, or "" for a plain file.
        size: Bytes of the file as it lies there.
    """

    path: Path
    name: str
    kind: str
    packing: str
    size: int


@dataclass(frozen=True)
class Block:
    """Some whole documents of an input.

    Attributes:
        source: The input.
        start: Where it begins: a byte of the unpacked text, or for json the number of a record.
        end: Where the next one begins.
        consumed: Bytes of the file read so far.
        records: The documents where only reading in order can find them: lines as bytes, or each record of a json file
            as text; None for a range of a plain file.
    """

    source: Input
    start: int
    end: int
    consumed: int
    records: bytes | list[str] | None


def find_inputs(paths: list[Path]) -> list[Input]:
    """Look at the files to prepare.

    Args:
        paths: Files; a folder stands for the text files in it, by name.

    Returns:
        One input for each file, in order.

    Raises:
        DataError: A file is missing or of an unknown kind, two would make shards of one name, or there is none.
    """
    files = [file for path in paths for file in (_text_files(path) if path.is_dir() else [path])]
    inputs = [_input(path) for path in files]
    names = [source.name for source in inputs]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise DataError(
                f"{inputs[names.index(name)].path} and {inputs[number].path} would both become {name}-00000.bin.",
                "Rename one of them, or prepare them into two folders.",
            )
    if not inputs:
        raise DataError("There is no text file to prepare.", f"Name files that end in {_endings()}.")
    return inputs


def blocks(source: Input, start: int) -> Iterator[Block]:
    """Cut an input into blocks.

    Args:
        source: The input.
        start: Where to begin, the end of an earlier block.

    Yields:
        Blocks of about BLOCK_BYTES, in order.

    Raises:
        DataError: The file cannot be read or unpacked, a document is too long, or a json file is no array.
    """
    foreign = (_zstd().ZstdError,) if source.packing == "zst" else ()
    try:
        yield from (_record_blocks if source.kind == "json" else _line_blocks)(source, start)
    except (OSError, EOFError, ValueError, RecursionError, zlib.error, *foreign) as error:
        raise _unreadable(source, str(error)) from error


def lines(block: Block) -> list[bytes]:
    """Read the lines of a block.

    Args:
        block: A block of a jsonl or txt file.

    Returns:
        Lines with their ends, as bytes.
    """
    if block.records is None:
        with block.source.path.open("rb") as file:
            file.seek(block.start)
            data = file.read(block.end - block.start)
    else:
        data = cast(bytes, block.records)
    if b"\r" in data:
        return LINE.findall(data)
    return data.splitlines(keepends=True)  # of bytes: at newlines only


def _line_blocks(source: Input, start: int) -> Iterator[Block]:
    with source.path.open("rb") as file:
        stream = _unpacked(file, source.packing)
        stream.seek(start)
        while True:
            if source.packing:
                records: bytes | None = stream.read(BLOCK_BYTES)
            else:
                records = None
                stream.seek(min(start + BLOCK_BYTES, source.size))
            rest = stream.readline(MAX_DOCUMENT_BYTES)
            if len(rest) == MAX_DOCUMENT_BYTES:
                raise DataError(
                    f"{source.path} has a line of more than {MAX_DOCUMENT_BYTES // 2**20} MiB after byte {start}.",
                    "Split the line; no shard could hold its ids.",
                )
            if records is not None:
                records += rest
            end = start + len(records) if records is not None else stream.tell()
            if end == start:
                return
            yield Block(source, start, end, file.tell(), records)
            start = end


def _record_blocks(source: Input, start: int) -> Iterator[Block]:
    with source.path.open("rb") as file:
        stream = io.TextIOWrapper(cast(IO[bytes], _unpacked(file, source.packing)), encoding="utf-8")
        batch: list[str] = []
        size = number = 0
        for number, record in enumerate(_records(stream, source), 1):
            if number <= start:
                continue
            batch.append(record)
            size += len(record)
            if size >= BLOCK_BYTES:
                yield Block(source, start, number, file.tell(), batch)
                batch, size, start = [], 0, number
        if batch:
            yield Block(source, start, number, file.tell(), batch)


def _records(stream: io.TextIOWrapper, source: Input) -> Iterator[str]:
    """The records of a JSON array as texts, without ever holding the array."""
    decoder = json.JSONDecoder()
    text, step = stream.read(READ_CHARS).lstrip(), READ_CHARS
    if not text.startswith("["):
        raise _unreadable(source, "it is no JSON array of records")
    at = _skip(text, 1)
    closed = text[at:].rstrip() == "]"
    while not closed:
        at = _skip(text, at)
        try:
            end = decoder.raw_decode(text, at)[1]
            after = _skip(text, end)
            if after == len(text):
                raise json.JSONDecodeError("the array does not end", text, after)
            if text[after] not in ",]":
                raise json.JSONDecodeError("no comma after a record", text, after)
        except json.JSONDecodeError as error:
            # Cut by the end of what was read, most likely. Twice as much each time, or a long record costs its square.
            more = stream.read(step)
            if not more or len(text) - at > MAX_DOCUMENT_BYTES:
                raise _unreadable(source, f"it is not JSON: {error.msg}") from error
            text, at, step = text[at:] + more, 0, 2 * step
            continue
        yield text[at:end]
        closed = text[after] == "]"
        at, step = after + 1, READ_CHARS


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\n", "\r"):
        at += 1
    return at


def _unpacked(file: IO[bytes], packing: str) -> Any:
    if packing == "gz":
        return gzip.GzipFile(fileobj=file)
    return _zstd().ZstdFile(file) if packing == "zst" else file


def _zstd() -> Any:
    try:
        from backports import zstd
    except ImportError as error:
        raise DataError(
            "A .zst file needs the package backports.zstd, which is not installed.",
            "Install it: pip install '.[data]' in the suite's checkout.",
        ) from error
    return zstd


def _text_files(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.is_file() and _suffixes(path.name)[0])
    if not found:
        raise DataError(f"{folder} holds no text file.", f"Name files that end in {_endings()}.")
    return found


def _suffixes(name: str) -> tuple[str, str]:
    """Kind and packing by the name's end; ("", "") where it says neither."""
    stem, _, last = name.rpartition(".")
    packing = last if last in PACKED else ""
    kind = stem.rpartition(".")[2] if packing and "." in stem else last
    return (kind, packing) if kind in KINDS else ("", "")


def _input(path: Path) -> Input:
    kind, packing = _suffixes(path.name)
    if not path.is_file():
        raise DataError(f"There is no file {path}.", "Name the text files to prepare, or their folder.")
    if not kind:
        raise DataError(f"{path} is no kind of text that is known here.", f"Name files that end in {_endings()}.")
    name = path.name.removesuffix(f".{packing}").removesuffix(f".{kind}") if packing else path.name[: -len(kind) - 1]
    return Input(path, name, kind, packing, path.stat().st_size)


def _endings() -> str:
    return (
        f"{', '.join('.' + kind for kind in KINDS)}, or these with {' or '.join('.' + packing for packing in PACKED)}"
    )


def _unreadable(source: Input, reason: str) -> DataError:
    return DataError(f"{source.path} cannot be read: {reason}.", "Download the file again and compare its checksum.")
