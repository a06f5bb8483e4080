"""The journal of attempts: a hash chain with an entry for every start and every end, so that best-of-N is visible."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from conformance import strictjson
from conformance.claim import lock
from conformance.errors import EvidenceError

GENESIS = "0" * 64
# A run appends two lines of under 1 KiB; this is some ten thousand runs.
MAX_JOURNAL_BYTES = 16 << 20


@dataclass(frozen=True)
class Journal:
    """A journal whose chain was checked.

    Args:
        entries: Every entry, oldest first, with its ``previous`` digest.
        head: sha256, hex, of the last line; what a report quotes.
    """

    entries: tuple[Mapping[str, Any], ...]
    head: str


@dataclass(frozen=True)
class Attempt:
    """One started run, as a journal tells of it.

    Args:
        run: Its name.
        workload: What it was an attempt at.
        plan: Digest of its plan.
        outcome: How it ended; None where it never did.
        evidence: Digest of what it left; None where nothing says.
        earlier: The attempt whose checkpoint it went on from: of the same workload and plan, and in the journal.
        fresh: Whether it counts as an attempt of its own: it began anew, or went on from what another had gone on from.
        started: When it was; None where nothing says.
        ended: The same of its end.
    """

    run: str
    workload: object
    plan: object
    outcome: object
    evidence: object
    earlier: Attempt | None
    fresh: bool
    started: object = None
    ended: object = None

    def chain(self) -> tuple[Attempt, ...]:
        """The attempts that it goes on from.

        Returns:
            The oldest first; none where it began anew.
        """
        found = []
        attempt = self.earlier
        while attempt is not None:
            found.append(attempt)
            attempt = attempt.earlier
        return tuple(reversed(found))


def attempts(entries: Sequence[Mapping[str, Any]]) -> tuple[Attempt, ...]:
    """Tell which attempts a journal shows, and which of them are one run.

    Going on from a checkpoint is no further attempt, once: who goes on twice from the same one may choose between two
    outcomes. What names a run of another workload or plan, or none that the journal shows, goes on from nothing.

    Args:
        entries: The journal's entries, oldest first.

    Returns:
        One for each start, in order.
    """
    ends: dict[int, Mapping[str, Any]] = {}
    pending: dict[str, Mapping[str, Any]] = {}
    for number in range(len(entries) - 1, -1, -1):
        entry = entries[number]
        if entry.get("event") == "ended":
            pending[str(entry.get("run"))] = entry
        elif entry.get("event") == "started":
            ends[number] = pending.pop(str(entry.get("run")), {})
    found: list[Attempt] = []
    latest: dict[str, Attempt] = {}
    left: dict[int, bool] = {}  # by identity: whether somebody went on from it
    for number, end in sorted(ends.items()):
        entry = entries[number]
        name, workload, plan = str(entry.get("run")), entry.get("workload"), entry.get("plan")
        earlier = latest.get(str(entry["resumes"])) if "resumes" in entry else None
        if earlier is not None and (earlier.workload, earlier.plan) != (workload, plan):
            earlier = None
        fresh = earlier is None or left.get(id(earlier), False)
        if earlier is not None:
            left[id(earlier)] = True
        latest[name] = Attempt(
            name,
            workload,
            plan,
            end.get("outcome"),
            end.get("evidence"),
            earlier,
            fresh,
            entry.get("time"),
            end.get("time"),
        )
        found.append(latest[name])
    return tuple(found)


def append(path: Path, event: str, run: str, **details: Any) -> str:
    """Append one entry, durably, under a lock where the file system has one.

    Args:
        path: The journal; made when absent.
        event: "started" or "ended".
        run: Name of the run.
        details: What else the entry says: plan digest, outcome, evidence digest.

    Returns:
        The new head.

    Raises:
        EvidenceError: The chain that is there is broken or full, or the file cannot be written.
        JsonError: The entry, or one that is there, is not strict JSON.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as stream:
            lock(stream)
            stream.seek(0)
            data = stream.read(MAX_JOURNAL_BYTES + 1)
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            entry = {"event": event, "run": run, "time": now, "previous": parse(data).head, **details}
            line = json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"
            head = parse(data + line).head  # what could not be read again would spoil the journal for good
            append_whole(stream.fileno(), line)
    except OSError as error:
        raise EvidenceError(
            f"The journal {path} cannot be written: {error.strerror}.", "Free space or choose another --reports."
        ) from error
    return head


def append_whole(file: int, data: bytes) -> None:
    """Append lines and see them on the disk; where that fails, nothing of them stays to spoil what is there.

    Args:
        file: Descriptor of a file that is locked and at its end.
        data: The lines.

    Raises:
        OSError: It cannot be written.
    """
    size = os.fstat(file).st_size
    try:
        while data:
            data = data[os.write(file, data) :]
        os.fsync(file)
    except OSError:
        os.ftruncate(file, size)
        raise


def parse(data: bytes) -> Journal:
    """Read a journal and check its chain.

    Args:
        data: The file's bytes; an empty file is an empty journal.

    Returns:
        The journal.

    Raises:
        EvidenceError: A line does not quote the digest of the line before it, or the last one is cut off.
        JsonError: A line is not strict JSON.
    """
    if len(data) > MAX_JOURNAL_BYTES:
        raise EvidenceError(f"The journal holds more than {MAX_JOURNAL_BYTES} bytes.", "Start a new reports folder.")
    entries = []
    head = GENESIS
    lines = data.split(b"\n")
    if lines.pop() != b"":
        raise EvidenceError("The journal's last line is cut off.", "Start a new reports folder and keep this one.")
    for number, line in enumerate(lines, 1):
        entry = strictjson.loads(line, what=f"Line {number} of the journal")
        if not isinstance(entry, dict) or entry.get("previous") != head:
            raise EvidenceError(
                f"The journal's chain is broken at line {number}: it does not quote the line before it.",
                "A line was changed or removed; start a new reports folder and keep this one.",
            )
        entries.append(entry)
        head = hashlib.sha256(line).hexdigest()
    return Journal(tuple(entries), head)
