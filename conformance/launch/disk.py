"""What a run's file system answers: no more room, or for a moment no answer at all, as one over the network does."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterator

# A quota that is used up is a full disk too; no look at its free space tells it before.
FULL = (errno.ENOSPC, errno.EDQUOT)


class Bridge:
    """Bridges what a file system refuses for a moment, as with a stale handle; tells how long that has lasted."""

    def __init__(self) -> None:
        self.error = ""
        self._since = 0.0

    @property
    def seconds(self) -> float:
        """Since when it has refused, in seconds; 0 where it works."""
        return time.monotonic() - self._since if self.error else 0.0

    @contextlib.contextmanager
    def bridged(self) -> Iterator[None]:
        """Leave undone, from where it is refused on, what is done meanwhile.

        Raises:
            OSError: There is no more room, which waiting does not mend.
        """
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise
            self._since = self._since if self.error else time.monotonic()
            self.error = error.strerror or str(error)
        else:
            self.error = ""
