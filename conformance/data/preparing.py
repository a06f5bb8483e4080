"""Text files into a folder that InternEvo trains on: by all cores, the same bytes by any number, and resumable."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from conformance import strictjson
from conformance.claim import LOCK, claimed
from conformance.data import inputs as texts
from conformance.data.encode import MAX_EXAMPLES, Encoded, encode_block, start_worker
from conformance.data.fingerprints import (
    FINGERPRINT,
    TOKENIZER,
    TRAIN,
    Fingerprint,
    measure,
    meta_path,
    read_fingerprint,
)
from conformance.data.inputs import Block, Input, find_inputs
from conformance.data.tokenizer import load_tokenizer
from conformance.errors import DataError

# InternEvo's name for English; it knows also cn, code, ja, ar and kaoshi.
TYPE = "en"
# The index holds byte offsets as int32.
SHARD_BYTES = 2**31 - 1
# Work that a kill may cost, beside the blocks in the workers.
CHECKPOINT_SECONDS = 2.0
STATE, ROWS, PARTS = "prepare.json", "rows", "parts-"
AGAIN = "Run the same command again: it goes on where it stopped."
ROW_BYTES = 8


@dataclass(frozen=True)
class Broken:
    """A line that is not what it should be.

    Attributes:
        path: The file.
        line: Number of the line or record, from 1.
        fault: What is wrong.
    """

    path: str
    line: int
    fault: str

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {self.fault}"


@dataclass(frozen=True)
class Progress:
    """How far the preparation is.

    Attributes:
        bytes: Bytes of the input files that are done, as they lie there.
        total_bytes: Bytes of all of them.
        documents: Documents written.
        tokens: Tokens written.
        broken: Broken lines so far.
    """

    bytes: int
    total_bytes: int
    documents: int
    tokens: int
    broken: int


@dataclass(frozen=True)
class Prepared:
    """A finished folder.

    Attributes:
        fingerprint: What it is.
        broken: How many lines were broken. Raw mode leaves out those that are not UTF-8 and keeps the others, as
            InternEvo's script does; a field is encoded where there is one.
        examples: The first of them.
    """

    fingerprint: Fingerprint
    broken: int
    examples: tuple[Broken, ...]


@dataclass(frozen=True)
class _State:
    """Everything that a resumed preparation needs: what was asked, and up to where the files are good."""

    asked: dict[str, Any]
    done: Progress
    source: int = 0  # index of the input in work
    position: int = 0  # where its next block begins
    lines: int = 0  # of this input that are done
    shard: int = 0  # number of the shard in work
    bin_bytes: int = 0  # of that shard
    documents: int = 0  # of that shard
    examples: tuple[Broken, ...] = ()


def prepare(
    inputs: Sequence[Path],
    tokenizer: Path,
    out: Path,
    *,
    field: str | None = None,
    workers: int | None = None,
    strict: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Prepared:
    """Encode text files into ``out``; started again after a kill at any moment, go on and end with the same bytes.

    Args:
        inputs: ``.jsonl``, ``.txt`` and ``.json`` files, also with ``.gz`` or ``.zst``, or folders of them.
        tokenizer: sentencepiece model file.
        out: Folder to make.
        field: The field of each record to encode; None encodes as InternEvo's tools/tokenizer.py does, byte for byte.
        workers: Worker processes; one for each core when None.
        strict: Stop at the first broken line.
        on_progress: Told after every block.

    Returns:
        The finished folder's fingerprint, and what was broken. Where ``out`` is finished already, nothing is done.

    Raises:
        DataError: An input, the tokenizer or the folder cannot be used, or a line is broken and ``strict`` is set.
    """
    sources = find_inputs(list(inputs))
    for source in sources:
        if field is not None and source.kind == "txt":
            raise DataError(f"{source.path} has no fields.", "Leave --field out, or name .jsonl or .json files.")
    vocabulary = load_tokenizer(tokenizer).get_piece_size()
    mode = "raw" if field is None else f"field:{field}"
    asked = _asked(sources, mode, tokenizer)
    try:
        with claimed(out, DataError(f"Another process prepares {out}.", "Wait for it, or name another folder.")):
            state = _load(out, asked)
            if not (out / FINGERPRINT).exists():
                shutil.copyfile(tokenizer, out / TOKENIZER)
                state = _run(out, sources, state, field, workers or len(os.sched_getaffinity(0)), strict, on_progress)
                if not state.done.documents:
                    raise _nothing_to_encode(sources, field, state)
                result = measure(out, mode, vocabulary)
                (out / ROWS).unlink(missing_ok=True)
                _write(out / FINGERPRINT, json.dumps(result.to_json(), indent=1) + "\n")
    except BrokenProcessPool as error:
        raise DataError("A worker process was killed, most likely for memory.", f"{AGAIN} Give --workers.") from error
    except OSError as error:
        raise DataError(f"{error.filename or out}: {error.strerror or error}.", f"Mend that. {AGAIN}") from error
    return Prepared(read_fingerprint(out), state.done.broken, state.examples)


def _nothing_to_encode(sources: Sequence[Input], field: str | None, state: _State) -> DataError:
    size = sum(source.size for source in sources)
    what = "no text" if field is None else f"no record with a text in the field {field!r}"
    told = f"{sources[0].path} holds" if len(sources) == 1 else f"The {len(sources)} input files hold"
    broken = f"; {state.done.broken:,} lines are broken, first {state.examples[0]}" if state.examples else ""
    return DataError(f"{told} {what} in {size:,} bytes{broken}.", "Name other inputs, and another folder.")


def _run(
    out: Path,
    sources: Sequence[Input],
    state: _State,
    field: str | None,
    workers: int,
    strict: bool,
    on_progress: Callable[[Progress], None],
) -> _State:
    """Encode every input from where the state says; give the last state."""
    parts = Path(tempfile.mkdtemp(prefix=PARTS, dir=out))
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=(out / TOKENIZER,))
    with pool:
        try:
            while state.source < len(sources):
                writer = _Writer(out, sources, state)
                source, ahead = sources[state.source], 2 * workers
                for block, encoded, part in _encoded(pool, source, state.position, field, parts, ahead):
                    writer.add(block, encoded, part, strict)
                    on_progress(writer.state.done)
                state = writer.finish_input()
            return state
        finally:
            pool.shutdown(cancel_futures=True)
            for old in out.glob(PARTS + "*"):  # those of a killed preparation, too
                shutil.rmtree(old, ignore_errors=True)


def _encoded(
    pool: ProcessPoolExecutor, source: Input, start: int, field: str | None, parts: Path, ahead: int
) -> Iterator[tuple[Block, Encoded, Path]]:
    """Blocks in order, each with what became of it; a few are in work ahead, so memory stays constant."""
    waiting: deque[tuple[Block, Future[Encoded], Path]] = deque()
    for number, block in enumerate(texts.blocks(source, start)):
        part = parts / f"{number}"
        waiting.append((block, pool.submit(encode_block, block, field, part), part))
        if len(waiting) > ahead:
            first, future, path = waiting.popleft()
            yield first, future.result(), path
    for first, future, path in waiting:
        yield first, future.result(), path


class _Writer:
    """Appends an input's blocks to its shards, and knows at every moment what of them survives a kill.

    Args:
        out: The folder.
        sources: All inputs.
        state: Which of them is in work, and up to where its files are good; what lies behind is cut off.
    """

    def __init__(self, out: Path, sources: Sequence[Input], state: _State) -> None:
        self.state = state
        self._out = out
        self._name = sources[state.source].name
        self._path = str(sources[state.source].path)
        self._before = sum(source.size for source in sources[: state.source])
        self._after = self._before + sources[state.source].size
        self._saved = time.monotonic()
        self._open()

    def add(self, block: Block, encoded: Encoded, part: Path, strict: bool) -> None:
        """Append a block's documents.

        Args:
            block: The block that follows the last one.
            encoded: What became of it.
            part: File with its documents' lines; it is removed.
            strict: Raise at a broken line.

        Raises:
            DataError: A line is broken and ``strict`` is set.
        """
        faults = [Broken(self._path, self.state.lines + number + 1, fault) for number, fault in encoded.examples]
        if strict and faults:
            self._save()
            raise DataError(f"{faults[0]}.", f"Mend it or leave --strict out. {AGAIN}")
        size = part.stat().st_size
        if self.state.bin_bytes + size > SHARD_BYTES:
            self._close_shard()
            self._open()
        self._rows.write(_rows(self.state.bin_bytes, encoded))
        with part.open("rb") as file:
            shutil.copyfileobj(file, self._bin, 2**20)
        part.unlink()
        done = self.state.done
        self.state = replace(
            self.state,
            position=block.end,
            lines=self.state.lines + encoded.lines,
            bin_bytes=self.state.bin_bytes + size,
            documents=self.state.documents + len(encoded.sizes),
            done=replace(
                done,
                bytes=self._before + block.consumed,
                documents=done.documents + len(encoded.sizes),
                tokens=done.tokens + sum(encoded.tokens),
                broken=done.broken + encoded.broken,
            ),
            examples=(*self.state.examples, *faults)[:MAX_EXAMPLES],
        )
        if time.monotonic() - self._saved >= CHECKPOINT_SECONDS:
            self._save()

    def finish_input(self) -> _State:
        """Close the last shard.

        Returns:
            The state at the next input's beginning, which is saved.
        """
        self._close_shard()
        done = replace(self.state.done, bytes=self._after)
        self.state = replace(self.state, source=self.state.source + 1, position=0, lines=0, shard=0, done=done)
        _save_state(self._out, self.state)
        return self.state

    def _open(self) -> None:
        """Open the state's shard and its rows, and cut off what the state does not know."""
        folder = self._out / TRAIN / TYPE
        folder.mkdir(parents=True, exist_ok=True)
        self._shard = folder / f"{self._name}-{self.state.shard:05d}.bin"
        self._bin = _cut(self._shard, self.state.bin_bytes)
        self._rows = _cut(self._out / ROWS, self.state.documents * ROW_BYTES)

    def _close_shard(self) -> None:
        """Write the shard's index, and let the next one begin; a shard without documents is none."""
        import numpy as np

        _sync(self._bin)
        self._bin.close()
        self._rows.close()
        if self.state.documents:
            # The rows may be many: mapped, they cost no memory.
            rows = np.memmap(self._out / ROWS, dtype="<i4", mode="r").reshape(-1, 2)
            with (self._out / ROWS).with_suffix(".npy").open("wb") as file:
                np.save(file, rows)
                _sync(file)
            Path(file.name).replace(meta_path(self._shard))
        else:
            self._shard.unlink()
        self.state = replace(self.state, shard=self.state.shard + 1, bin_bytes=0, documents=0)
        _save_state(self._out, self.state)

    def _save(self) -> None:
        """Bring to disk what was written, and then the state that relies on it."""
        _sync(self._bin)
        _sync(self._rows)
        _save_state(self._out, self.state)
        self._saved = time.monotonic()


def _rows(begin: int, encoded: Encoded) -> bytes:
    """A block's part of the index: int32 rows of (byte offset, tokens)."""
    import numpy as np

    sizes = np.asarray(encoded.sizes, dtype=np.int64)
    rows = np.empty((len(sizes), 2), dtype="<i4")
    rows[:, 0] = begin + np.cumsum(sizes) - sizes
    rows[:, 1] = encoded.tokens
    return rows.tobytes()


def _cut(path: Path, size: int) -> BinaryIO:
    file = path.open("ab")
    if file.tell() < size:
        raise DataError(f"{path} lost what was written to it.", "Remove the output folder and start anew.")
    file.truncate(size)
    return file


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _write(path: Path, text: str) -> None:
    """Replace a file such that a kill leaves the old or the new one."""
    with path.with_name(path.name + ".new").open("wb") as file:
        file.write(text.encode())
        _sync(file)
    Path(file.name).replace(path)


def _asked(sources: Sequence[Input], mode: str, tokenizer: Path) -> dict[str, Any]:
    """What must be the same when a preparation goes on."""
    return {
        "mode": mode,
        "tokenizer": hashlib.sha256(tokenizer.read_bytes()).hexdigest(),
        "block_bytes": texts.BLOCK_BYTES,
        "inputs": [[source.path.name, source.size, source.path.stat().st_mtime_ns] for source in sources],
    }


def _save_state(out: Path, state: _State) -> None:
    _write(out / STATE, json.dumps(asdict(state), indent=1) + "\n")


def _load(out: Path, asked: dict[str, Any]) -> _State:
    """Read the state of an earlier preparation, or begin one."""
    path = out / STATE
    if not path.exists():
        if foreign := sorted({file.name for file in out.iterdir()} - {LOCK, STATE + ".new"}):
            raise DataError(f"{out} holds {foreign[0]}, and no preparation was begun there.", "Name a new folder.")
        total = sum(size for _, size, _ in asked["inputs"])
        _save_state(out, _State(asked, Progress(0, total, 0, 0, 0)))
    value = strictjson.loads(path.read_bytes(), what=str(path))
    try:
        state = _State(
            **{
                **value,
                "done": Progress(**value["done"]),
                "examples": tuple(Broken(**example) for example in value["examples"]),
            }
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is malformed: {error!r}.", "Remove the output folder and start anew.") from error
    for key, wanted in asked.items():
        if state.asked.get(key) != wanted:
            raise DataError(
                f"{out} was begun with other {key}: {state.asked.get(key)!r}, now {wanted!r}.",
                "Give the same command as before, or name a new folder.",
            )
    return state
