"""Where the ranks of a hung run were, from the stacks that they wrote to their logs, and which of them is elsewhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

# The innermost frame of the thread that faulthandler was asked on.
FRAME = re.compile(rb'^Current thread [^\n]*\(most recent call first\):\n  File "([^"\n]+)", line (\d+) in (\S+)', re.M)
# Who is in here waits for others, or is waited for in a call that all make.
COLLECTIVE = re.compile(r"torch/distributed/")
MAX_PLACES = 8


@dataclass(frozen=True)
class Frame:
    """The innermost frame of a rank.

    Args:
        file: Source file.
        line: Line in it.
        function: Function.
    """

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.function} ({self.file.rsplit('/', 1)[-1]}:{self.line})"


def newest_frame(log: bytes) -> Frame | None:
    """Find where a rank was when its stack was last captured.

    Args:
        log: The end of its log.

    Returns:
        Its innermost frame; None where no stack was captured.
    """
    found = FRAME.findall(log)
    if not found:
        return None
    file, line, function = (part.decode("utf-8", "replace") for part in found[-1])
    return Frame(file, int(line), function)


def describe(frames: Mapping[int, Frame]) -> str:
    """Say where each rank was.

    Args:
        frames: Innermost frame of each rank.

    Returns:
        One sentence, with a space before it; empty where no stack was captured.
    """
    places: dict[str, list[int]] = {}
    for rank, frame in sorted(frames.items()):
        places.setdefault(str(frame), []).append(rank)
    told = [f"rank{'s' * (len(ranks) > 1)} {listed(ranks)} in {place}" for place, ranks in places.items()]
    return f" Stacks: {'; '.join(told[:MAX_PLACES])}." if told else ""


def elsewhere(frames: Mapping[int, Frame]) -> list[int]:
    """Tell which ranks the others wait for: those outside a collective, else those that are not where most are.

    Args:
        frames: Innermost frame of each rank.

    Returns:
        At most half of the ranks, in order; none where the stacks do not tell.
    """
    outside = sorted(rank for rank, frame in frames.items() if not COLLECTIVE.search(frame.file))
    if 0 < len(outside) <= len(frames) / 2:
        return outside
    place, count = Counter(frames.values()).most_common(1)[0] if frames else (None, 0)
    return sorted(rank for rank, frame in frames.items() if frame != place) if count > len(frames) / 2 else []


def listed(ranks: list[int]) -> str:
    """List ranks, the first few by number.

    Args:
        ranks: Global ranks.

    Returns:
        Such as "0, 1, 2".
    """
    return ", ".join(map(str, ranks[:MAX_PLACES])) + (
        f" and {len(ranks) - MAX_PLACES} more" * (len(ranks) > MAX_PLACES)
    )
