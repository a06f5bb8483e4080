"""One digest for a folder of training data: tokenizer, options, order and content."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance import strictjson
from conformance.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FINGERPRINT = "fingerprint.json"
TOKENIZER = "tokenizer.model"
TRAIN = "train"
VERSION = 1
AGAIN = "Make it again: conformance data prepare."


@dataclass(frozen=True)
class Shard:
    """A ``.bin`` file and its ``.meta``.

    Attributes:
        name: Path of the bin file inside the training folder, such as ``en/arxiv_sample-00000.bin``.
        bytes: Size of the bin file.
        sha256: Digest of the bin file.
        meta_sha256: Digest of the meta file.
        documents: Documents that the meta file lists.
        tokens: Their tokens, BOS and EOS included.
    """

    name: str
    bytes: int
    sha256: str
    meta_sha256: str
    documents: int
    tokens: int


@dataclass(frozen=True)
class Fingerprint:
    """What a folder of training data is.

    Attributes:
        mode: ``raw``, as InternEvo's tools/tokenizer.py encodes, or ``field:NAME``.
        tokenizer: sha256 of the tokenizer's model file.
        vocabulary: Entries of the tokenizer; every token id is below.
        shards: In the order in which InternEvo reads them.
    """

    mode: str
    tokenizer: str
    vocabulary: int
    shards: tuple[Shard, ...]

    @property
    def documents(self) -> int:
        """Documents of all shards."""
        return sum(shard.documents for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Tokens of all shards."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def repeated(self) -> tuple[str, ...]:
        """Names of the shards that hold the very bytes of an earlier one."""
        first: dict[str, Shard] = {}
        return tuple(shard.name for shard in self.shards if first.setdefault(shard.sha256, shard) is not shard)

    @cached_property
    def digest(self) -> str:
        """sha256 over tokenizer, options, and the shards' bytes in order; the shards' names do not matter."""
        content = [[shard.sha256, shard.meta_sha256] for shard in self.shards]
        value = [VERSION, self.tokenizer, self.vocabulary, self.mode, content]
        return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Give the object that ``fingerprint.json`` and a run's evidence hold.

        Returns:
            version, digest, mode, tokenizer, vocabulary, documents, tokens, shards.
        """
        return {
            "version": VERSION,
            "digest": self.digest,
            "mode": self.mode,
            "tokenizer": self.tokenizer,
            "vocabulary": self.vocabulary,
            "documents": self.documents,
            "tokens": self.tokens,
            "shards": [asdict(shard) for shard in self.shards],
        }

    @classmethod
    def from_json(cls, value: object) -> Fingerprint:
        """Read the object back.

        Args:
            value: What ``to_json`` gave.

        Returns:
            The fingerprint.

        Raises:
            DataError: A field is missing or of another type, or the digest or the sums are not those of the shards.
        """
        try:
            mode, tokenizer, vocabulary, shards = (value[key] for key in ("mode", "tokenizer", "vocabulary", "shards"))  # type: ignore[index]
            found = cls(str(mode), str(tokenizer), int(vocabulary), tuple(map(_shard_from_json, shards)))
            expected = found.to_json()
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"A data fingerprint is malformed: {error!r}.", AGAIN) from error
        assert isinstance(value, dict)
        for key, own in expected.items():
            if value.get(key) != own:
                raise DataError(f"A data fingerprint contradicts itself: its {key} is not that of its shards.", AGAIN)
        return found


def train_folder(folder: Path) -> Path:
    """Tell which folder InternEvo trains on.

    Args:
        folder: A prepared folder.

    Returns:
        InternEvo's ``train_folder``.
    """
    return folder / TRAIN


def fingerprint(folder: Path) -> Fingerprint:
    """Recompute a prepared folder's fingerprint from its files; only the options are taken from its record.

    Args:
        folder: A prepared folder, of any size; it is read once, by all cores.

    Returns:
        The fingerprint of what lies there now, whatever the record says.

    Raises:
        DataError: The folder was not prepared, or a file is missing or malformed.
    """
    recorded = read_fingerprint(folder)
    return measure(folder, recorded.mode, recorded.vocabulary)


def measure(folder: Path, mode: str, vocabulary: int) -> Fingerprint:
    """Fingerprint the files of a folder.

    Args:
        folder: A prepared folder; it needs no record.
        mode: How its documents were encoded.
        vocabulary: Entries of its tokenizer.

    Returns:
        The fingerprint.

    Raises:
        DataError: A file is missing or malformed.
    """
    train = train_folder(folder)
    with ThreadPoolExecutor(_cores()) as threads:  # hashing lets other threads run
        shards = tuple(threads.map(lambda path: _shard(train, path), bins(train)))
    if not shards:
        raise DataError(f"{train} holds no .bin file.", "Prepare it: conformance data prepare.")
    return Fingerprint(mode, _sha256(folder / TOKENIZER), vocabulary, shards)


def read_fingerprint(folder: Path) -> Fingerprint:
    """Read what was recorded when a folder was prepared.

    Args:
        folder: A prepared folder.

    Returns:
        The recorded fingerprint; nothing says yet that the files are still the same.

    Raises:
        DataError: There is no record, or it is malformed.
    """
    path = folder / FINGERPRINT
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{folder} is no finished data folder: {path} cannot be read ({error.strerror}).",
            "Finish it, or make it: conformance data prepare.",
        ) from error
    return Fingerprint.from_json(strictjson.loads(data, what=str(path)))


def bins(train: Path) -> list[Path]:
    """List the shards in the order in which InternEvo reads them: a folder's files by name.

    InternEvo takes several folders in the order of the file system; a prepared folder has one.

    Args:
        train: InternEvo's training folder.

    Returns:
        The ``.bin`` files in that order.
    """
    found: list[Path] = []
    # followlinks, as in InternEvo's internlm/data/packed_dataset.py.
    for root, folders, files in os.walk(train, followlinks=True):
        folders.sort()
        found += [Path(root, name) for name in sorted(files) if name.endswith(".bin")]
    return found


def read_meta(path: Path) -> NDArray[np.int32]:
    """Open a shard's index.

    Args:
        path: The bin file.

    Returns:
        Rows of (byte offset, tokens), shape (documents, 2), not loaded into memory.

    Raises:
        DataError: It is missing or not InternEvo's index.
    """
    import numpy as np

    meta = meta_path(path)
    try:
        rows = np.load(meta, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{meta} is no index of documents: {error}.", "Prepare the data again.") from error
    if not isinstance(rows, np.ndarray) or rows.dtype != np.dtype("<i4") or rows.ndim != 2 or rows.shape[1] != 2:
        raise DataError(f"{meta} is no index of documents: not an int32 array of two columns.", "Prepare it again.")
    return rows


def meta_path(path: Path) -> Path:
    """Give the path of a bin file's index.

    Args:
        path: The bin file.

    Returns:
        The meta file.
    """
    return path.with_name(path.name + ".meta")


def _shard_from_json(value: dict[str, Any]) -> Shard:
    shard = Shard(**value)
    for name, kind in {
        "name": str,
        "sha256": str,
        "meta_sha256": str,
        "bytes": int,
        "documents": int,
        "tokens": int,
    }.items():
        # A negative count would let a sum fit.
        if type(value[name]) is not kind or (kind is int and value[name] < 0):
            raise TypeError(f"{name} of a shard is {value[name]!r}")
    return shard


def _shard(train: Path, path: Path) -> Shard:
    import numpy as np

    rows = read_meta(path)
    return Shard(
        name=path.relative_to(train).as_posix(),
        bytes=path.stat().st_size,
        sha256=_sha256(path),
        meta_sha256=_sha256(meta_path(path)),
        documents=len(rows),
        tokens=int(rows[:, 1].sum(dtype=np.int64)),
    )


def _sha256(path: Path) -> str:
    digest, buffer = hashlib.sha256(), bytearray(2**20)
    try:
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                digest.update(memoryview(buffer)[:size])
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", "Prepare the data again.") from error
    return digest.hexdigest()


def _cores() -> int:
    return len(os.sched_getaffinity(0))
