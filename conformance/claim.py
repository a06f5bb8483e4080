"""A file or a folder that one process alone may work on: by a lock of the kernel's, which no killed process keeps."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from conformance.errors import ConformanceError

LOCK = "lock"


def lock(stream: IO[Any], wait: bool = True) -> bool:
    """Lock an open file until it is closed or the process ends, however it ends.

    Args:
        stream: The file, open for writing.
        wait: Whether to wait for a process that has locked it.

    Returns:
        Whether it is locked; False where its file system knows no locks (Lustre without ``-o flock``, NFS without
        lockd): nobody can be kept waiting there.

    Raises:
        BlockingIOError: Another process has locked it, and this one does not wait.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


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
            lock(stream, wait=False)
        except BlockingIOError:
            raise refused from None
        yield
