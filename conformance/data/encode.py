"""What a worker process does: one block of documents in, their lines and lengths out."""

from __future__ import annotations

import json
import os
import signal
import threading
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path

from conformance.data.inputs import Block, lines
from conformance.data.tokenizer import Encode, line_encoder, load_tokenizer

# Examples of broken documents that a block tells of; the others are only counted.
MAX_EXAMPLES = 20
# Of texts that are encoded at once: short ones share what a call costs, and the arrays of more would leave the caches.
BATCH_CHARS = 2**17


@dataclass(frozen=True)
class Encoded:
    """What became of a block.

    Attributes:
        lines: Lines, or records of a json file, in it.
        sizes: Bytes of each document's line in the ``.bin``.
        tokens: Tokens of each document.
        broken: How many lines are not what they should be.
        examples: Number within the block, from 0, and fault of the first of them.
    """

    lines: int
    sizes: array[int]
    tokens: array[int]
    broken: int
    examples: tuple[tuple[int, str], ...]


_encode: Encode


def start_worker(model: Path) -> None:
    """Make ready a worker process, and let it end with its parent, however that ends.

    Args:
        model: The tokenizer's model file.
    """
    global _encode
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encode = line_encoder(load_tokenizer(model))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def encode_block(block: Block, field: str | None, part: Path) -> Encoded:
    """Encode a block's documents into a file of their own.

    Args:
        block: The block.
        field: The field to encode; None for whole lines.
        part: File to write the documents' lines to.

    Returns:
        What became of it.
    """
    found = list(documents(block, field))
    examples = [(number, fault) for number, (_, fault) in enumerate(found) if fault]
    sizes, tokens = array("i"), array("i")
    with part.open("wb") as file:
        for texts in _batches(text for text, _ in found if text is not None):
            encoded = _encode(texts)
            file.write(encoded)
            for line in encoded.splitlines(keepends=True):
                sizes.append(len(line))
                tokens.append(line.count(b",") + 1)
    return Encoded(len(found), sizes, tokens, len(examples), tuple(examples[:MAX_EXAMPLES]))


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    chars = 0
    for text in texts:
        batch.append(text)
        chars += len(text)
        if chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def documents(block: Block, field: str | None) -> Iterator[tuple[str | None, str]]:
    """Find the text to encode in every line.

    Args:
        block: The block.
        field: The field to encode; None for whole lines, as InternEvo's tools/tokenizer.py takes them.

    Yields:
        For each line or record the text, or None where there is nothing to encode; and its fault, else "".
    """
    if isinstance(block.records, list):
        for record in block.records:
            yield (json.dumps(json.loads(record)), "") if field is None else _field(json.loads(record), field)
        return
    for line in lines(block):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            yield None, f"byte {error.start} of the line is not UTF-8"
            continue
        if block.source.kind == "txt":
            yield text.strip() or None, ""
            continue
        if text.endswith("\r\n"):
            text = text[:-2] + "\n"
        elif text.endswith("\r"):
            text = text[:-1] + "\n"
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            # The reference never parses a line, so such a line is a document of its.
            yield (text if field is None else None), "the line is not JSON"
            continue
        if field is not None:
            yield _field(value, field)
        else:
            yield text, "" if isinstance(value, dict) else "the line is no JSON object"


def _field(value: object, field: str) -> tuple[str | None, str]:
    text = value.get(field) if isinstance(value, dict) else None
    if not isinstance(text, str):
        return None, f"it has no text in the field {field!r}"
    try:
        text.encode()
    except UnicodeEncodeError:
        return None, f"its field {field!r} holds half of a surrogate pair"
    return text, ""
