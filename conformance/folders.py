"""Where a user's own files lie, by the XDG base directories."""

from __future__ import annotations

import os
from pathlib import Path

from conformance.errors import ConformanceError


def user_folder(variable: str, default: str) -> Path:
    """Find this suite's folder among those that a user keeps for one purpose.

    Args:
        variable: What names the place of them all, such as XDG_CACHE_HOME.
        default: Its place in the home folder where the variable is not set.

    Returns:
        The folder, which need not exist.

    Raises:
        ConformanceError: The user has no home folder, as a container's user id without a name.
    """
    try:
        place = Path(os.environ.get(variable) or Path.home() / default)
    except RuntimeError:
        raise ConformanceError(
            f"The user id {os.getuid()} has no home folder, and HOME is not set.",
            f"Set {variable} to a folder that can be written.",
        ) from None
    return place / "internevo-conformance"
