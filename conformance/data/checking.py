"""Every offset, token count and token id of a prepared folder, held against its index, vocabulary and record."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import count, pairwise
from pathlib import Path

from conformance.data.fingerprints import (
    TOKENIZER,
    bins,
    fingerprint,
    meta_path,
    read_fingerprint,
    read_meta,
    train_folder,
)
from conformance.data.tokenizer import load_tokenizer
from conformance.errors import DataError
from conformance.strictjson import quoted

# Documents that a worker takes at a time hold about so many bytes.
SLICE_BYTES = 32 * 2**20
# A folder with one fault often has thousands.
MAX_FAULTS = 20
HEAD, TAIL = b'{"tokens": [', b"]}\n"

_ids: frozenset[bytes]


def check(folder: Path, on_progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """Find what is wrong with a prepared folder.

    Args:
        folder: The folder.
        on_progress: Told bytes checked and bytes of all.

    Returns:
        One sentence for each fault, the first MAX_FAULTS of them; empty for a good folder.

    Raises:
        DataError: The folder was not prepared, a file is missing or no index, sentencepiece is not installed, or a
            worker process was killed.
    """
    recorded = read_fingerprint(folder)
    found = fingerprint(folder)
    shards = bins(train_folder(folder))
    faults = []
    if found.digest != recorded.digest:
        faults.append(f"The files' fingerprint is {found.digest}; recorded is {recorded.digest}.")
    vocabulary = load_tokenizer(folder / TOKENIZER).get_piece_size()
    if recorded.vocabulary != vocabulary:
        faults.append(f"{folder / TOKENIZER} has {vocabulary} entries; recorded is {recorded.vocabulary}.")
    faults += [f"{name} holds the same bytes as an earlier shard." for name in found.repeated]
    faults += [f"{path} is no shard; InternEvo reads all of this folder." for path in _strays(folder, shards)]
    total, done = sum(shard.bytes for shard in found.shards), 0
    tasks = [task for path in shards for task in slices(path)]
    context = multiprocessing.get_context("spawn")
    cores = len(os.sched_getaffinity(0))
    pool = ProcessPoolExecutor(cores, context, initializer=_start_worker, initargs=(vocabulary,))
    try:
        for size, told in pool.map(check_slice, *zip(*tasks, strict=True)):
            done += size
            faults += told
            on_progress(done, total)
    except BrokenProcessPool as error:
        raise DataError(
            "A worker process was killed, most likely for memory.", "Free some, and check again."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    return faults[:MAX_FAULTS]


def _strays(folder: Path, shards: list[Path]) -> list[Path]:
    """What lies among the shards and is none: a name beside ``en`` would be a type of data, and stand in the log."""
    train = train_folder(folder)
    own = {*shards, *map(meta_path, shards)}
    own |= {parent for path in shards for parent in path.parents if parent != train}
    in_train = {path for path in shards if path.parent == train}  # InternEvo takes a shard's folder for its type
    return sorted(path for path in train.rglob("*") if path not in own or path in in_train)


def slices(path: Path) -> list[tuple[Path, int, int]]:
    """Cut a shard's documents into tasks.

    Args:
        path: The bin file.

    Returns:
        The file, the first document and the one behind the last, for about SLICE_BYTES each.
    """
    import numpy as np

    offsets = read_meta(path)[:, 0]
    size = path.stat().st_size
    cuts = np.searchsorted(offsets, range(SLICE_BYTES, size, SLICE_BYTES))
    edges = sorted({0, len(offsets), *cuts.tolist()})
    # An index of no documents makes a task too: whose file is not empty.
    return [(path, first, last) for first, last in pairwise(edges)] or [(path, 0, 0)]


def check_slice(path: Path, first: int, last: int) -> tuple[int, list[str]]:
    """Check some documents of a shard; in a worker process.

    Args:
        path: The bin file.
        first: Number of the first document.
        last: Number of the one behind the last.

    Returns:
        Bytes checked, and the faults.
    """
    rows = read_meta(path)
    offsets = rows[first : last + 1, 0].tolist()
    if last == len(rows):
        offsets.append(path.stat().st_size)
    faults: list[str] = []
    if not len(rows):
        return offsets[-1], [f"{path}: its index lists no document; the file has {offsets[-1]} bytes."]
    if first == 0 and offsets[0] != 0:
        faults.append(f"{path}: the first document begins at byte {offsets[0]}, not 0.")
    with path.open("rb") as file:
        counts = rows[first:last, 1].tolist()
        for number, (begin, end), tokens in zip(count(first), pairwise(offsets), counts, strict=False):
            if len(faults) >= MAX_FAULTS:
                break
            if not 0 <= begin < end:
                faults.append(f"{path}, document {number}: it begins at byte {begin}, the next one at {end}.")
                continue
            file.seek(begin)
            if fault := _fault(file.read(end - begin), tokens):
                faults.append(f"{path}, document {number} at byte {begin}: {fault}.")
    return offsets[-1] - offsets[0], faults


def _fault(line: bytes, tokens: int) -> str:
    """What is wrong with a document's line, else ""."""
    if not line.startswith(HEAD) or line.find(b"\n") != len(line) - 1 or not line.endswith(TAIL):
        return 'it is not one line of the form {"tokens": [1, 2]}'
    found = line[len(HEAD) : -len(TAIL)].split(b", ")
    if not _ids.issuperset(found):
        wrong = next(token for token in found if token not in _ids)
        return f"{quoted(wrong, 24)} is no token id below {len(_ids)}"
    return "" if len(found) == tokens else f"it has {len(found)} tokens, its index says {tokens}"


def _start_worker(vocabulary: int) -> None:
    global _ids
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells
    # Every id as it is written: looking up what stands there checks its form and its range at once.
    _ids = frozenset(b"%d" % number for number in range(vocabulary))
