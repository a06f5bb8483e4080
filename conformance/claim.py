"""A folder that one process alone may work in: claimed by a lock of the kernel's, which no killed process keeps."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from conformance.errors import ConformanceError

LOCK = "lock"


@contextlib.contextmanager
def claimed(folder: Path, refused: ConformanceError) -> Iterator[None]:
    """Claim a folder until this is left or the process ends, however it ends; what it starts inherits nothing of it.

    Args:
        folder: The folder; made when absent. A file ``lock`` stays in it, and means nothing by itself.
        refused: What to raise where another process has claimed it, on this machine or, as far as the file system
            tells of locks, on another.

    Raises:
        ConformanceError: ``refused``, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / LOCK).open("ab")  # a network file system grants it only to who may write
    except OSError as error:
        raise ConformanceError(f"{folder} cannot be written: {error.strerror}.", "Choose another folder.") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refused from None
        except OSError:  # a file system without locks: nobody can be refused there
            pass
        yield
