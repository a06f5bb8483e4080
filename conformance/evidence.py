"""The run directory: what a run leaves behind, and the one reader of it, on disk or inside a bundle.

configs/request.json     what was asked for: workload, topology, overrides, seed
configs/plan.json        what that resolves to, for people; a verifier plans again
configs/internevo.py     the configuration that InternEvo loaded
logs/nodeN/rankR.log     everything that rank R printed
logs/nodeN/agent.log     everything that torchrun printed
environment/run.json     command, start, end, outcome, InternEvo source
environment/faults.json  what was seen to go wrong while it ran, and the limits it was watched with
environment/rankR.json   host, device, packages, kernels and patches of rank R
environment/data.json    fingerprint of the data set that it trained on
environment/redactions.json  what was replaced in the evidence before it was hashed, by rule and file
environment/preflight*.json  what a preflight measured, instead of a request, logs and ranks
environment/ceiling/     of the newest preflight of the run's devices, its name and what its GEMM ceiling follows from
environment/signer.pub   the public key whose private half signed the report
journal.jsonl            every attempt of this reports folder so far
work/                    where InternEvo ran; not evidence

A resumed run also holds what each earlier attempt left, as segments: logs/segmentK/... and environment/segmentK/...,
with K from 0, are what that attempt had under logs/ and environment/. configs/ and patches/ are the same for all.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from conformance import strictjson
from conformance.errors import EvidenceError

REPORT = "report.dsse.json"
REQUEST = "configs/request.json"
PLAN = "configs/plan.json"
CONFIG = "configs/internevo.py"
RUN = "environment/run.json"
FAULTS = "environment/faults.json"
DATA = "environment/data.json"
PREFLIGHT = "environment/preflight.json"
REDACTIONS = "environment/redactions.json"
CEILING = "environment/ceiling/"
CEILING_OF = f"{CEILING}run.json"
CHALLENGE = "challenge.dsse.json"
JOURNAL = "journal.jsonl"
SIGNER = "environment/signer.pub"
FOLDERS = ("configs", "environment", "logs", "patches")
SINGLE_FILES = (JOURNAL, CHALLENGE)

# Our own JSON files are a few KiB; a file far beyond that is not one of them.
MAX_JSON_BYTES = 4 << 20
# An interruption every four hours for seven weeks. Each segment quotes all before it: time grows by the square.
MAX_SEGMENTS = 300

# What an attempt leaves under these, and is not a segment itself, becomes one of the run that resumes it.
LIVE = re.compile(r"(logs|environment)/(?!segment\d{1,4}/)")
_SEGMENT = re.compile(r"(?:logs|environment)/segment(\d{1,4})/")


class Evidence(Protocol):
    """The files of one run, wherever they lie."""

    def names(self) -> tuple[str, ...]:
        """Every file's name relative to the run directory, sorted, without the report."""

    def open(self, name: str) -> BinaryIO:
        """Open one of these files for reading."""


@dataclass(frozen=True)
class RunDirectory:
    """Evidence on disk.

    Args:
        path: The run directory.
    """

    path: Path

    def names(self) -> tuple[str, ...]:
        """Evidence files in the run directory.

        Returns:
            POSIX paths relative to it, sorted.
        """
        found = [p for folder in FOLDERS for p in (self.path / folder).rglob("*") if p.is_file()]
        found += [self.path / name for name in SINGLE_FILES if (self.path / name).is_file()]
        return tuple(sorted(p.relative_to(self.path).as_posix() for p in found))

    def open(self, name: str) -> BinaryIO:
        """Open an evidence file.

        Args:
            name: One of :meth:`names`.

        Returns:
            The open file.

        Raises:
            EvidenceError: There is no such file or it cannot be read.
        """
        try:
            return (self.path / name).open("rb")
        except OSError as error:
            raise EvidenceError(f"{self.path / name} cannot be read: {error.strerror}.") from error


@dataclass(frozen=True)
class Segment:
    """An earlier attempt of a resumed run: its evidence as it was when that attempt ended.

    Args:
        files: Evidence of the resumed run.
        number: Which attempt, from 0.
    """

    files: Evidence
    number: int

    def names(self) -> tuple[str, ...]:
        """Files of the attempt, and of the attempts before it.

        Returns:
            Names as they were in its own run directory, sorted.
        """
        return self._names

    @cached_property
    def _names(self) -> tuple[str, ...]:
        own = f"/segment{self.number}/"
        kept = []
        for name in self.files.names():
            found = _SEGMENT.match(name)
            if found and int(found[1]) == self.number:
                kept.append(name.replace(own, "/", 1))
            elif (found and int(found[1]) < self.number) or not (found or LIVE.match(name) or name == JOURNAL):
                kept.append(name)
        return tuple(sorted(kept))

    def open(self, name: str) -> BinaryIO:
        """Open a file of the attempt.

        Args:
            name: One of :meth:`names`.

        Returns:
            The open file.

        Raises:
            EvidenceError: There is no such file or it cannot be read.
        """
        return self.files.open(LIVE.sub(rf"\1/segment{self.number}/", name, count=1))


@dataclass(frozen=True)
class KeptPreflight:
    """What a training run keeps of the preflight of its devices.

    Args:
        files: Evidence of the training run.
    """

    files: Evidence

    def names(self) -> tuple[str, ...]:
        """What is kept.

        Returns:
            Names as they were in the preflight's own run directory, sorted.
        """
        return tuple(name.replace("/ceiling/", "/", 1) for name in self.files.names() if name.startswith(CEILING))

    def open(self, name: str) -> BinaryIO:
        """Open a kept file.

        Args:
            name: One of :meth:`names`.

        Returns:
            The open file.

        Raises:
            EvidenceError: There is no such file or it cannot be read.
        """
        return self.files.open(name.replace("/", "/ceiling/", 1))


def segments(files: Evidence) -> tuple[Segment, ...]:
    """The earlier attempts of a run that was resumed.

    Args:
        files: The run's evidence.

    Returns:
        One for each, the oldest first; none for a run that was not resumed.

    Raises:
        EvidenceError: They are more than MAX_SEGMENTS.
    """
    numbers = {int(found[1]) for name in files.names() if (found := _SEGMENT.match(name))}
    if len(numbers) > MAX_SEGMENTS:
        raise EvidenceError(f"The run holds {len(numbers)} earlier attempts; at most {MAX_SEGMENTS} are read.")
    return tuple(Segment(files, number) for number in sorted(numbers))


def take_over(earlier: Path, run: Path) -> None:
    """Copy what an earlier attempt left into the run that resumes it, as its segments.

    Args:
        earlier: Run directory of the attempt.
        run: The new run directory.

    Raises:
        EvidenceError: It was resumed MAX_SEGMENTS times already.
    """
    files = RunDirectory(earlier)
    number = len(segments(files))
    if number >= MAX_SEGMENTS:
        raise EvidenceError(
            f"The run {earlier} goes on from {number} earlier attempts; at most {MAX_SEGMENTS} are read.",
            "Begin anew, without --resume.",
        )
    for name in files.names():
        if name in (JOURNAL, SIGNER) or name.startswith(("configs/", "patches/")):
            continue  # the new run has its own, the same ones
        target = run / LIVE.sub(rf"\1/segment{number}/", name, count=1)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(earlier / name, target)


def require_new(path: Path) -> None:
    """Refuse a run directory that could not be made, for it holds something already.

    Args:
        path: Where it is to be.

    Raises:
        EvidenceError: It is there and not empty, or no directory, or cannot be looked into.
    """
    try:
        holds_something = path.exists() and any(path.iterdir())
    except OSError as error:
        raise _not_made(path, error) from error
    if holds_something:
        raise EvidenceError(
            f"The run directory {path} is not empty; expected a new one, so that no evidence is overwritten.",
            "Choose another --run-dir or move that one away.",
        )


def _not_made(path: Path, error: OSError) -> EvidenceError:
    return EvidenceError(
        f"The run directory {path} cannot be made: {error.strerror}.", "Choose another place with --run-dir."
    )


def create_run_directory(path: Path) -> Path:
    """Make an empty run directory.

    Args:
        path: Where; must not exist or be empty.

    Returns:
        The absolute path.

    Raises:
        EvidenceError: It holds something already, or cannot be made.
    """
    require_new(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        for folder in ("configs", "environment", "logs", "work"):
            (path / folder).mkdir()
    except OSError as error:
        raise _not_made(path, error) from error
    return path.resolve()


def unwritable(run: Path, why: str, error: OSError) -> EvidenceError:
    """What to say where the evidence of a run cannot be written.

    Args:
        run: Run directory.
        why: What the run itself came to, as a sentence; empty where that is not known.
        error: Of the disk.

    Returns:
        The error to raise.
    """
    kept = "; what was written is kept" if any((run / name).exists() for name in (RUN, PREFLIGHT)) else ""
    return EvidenceError(
        f"{why} Evidence and report of {run} cannot be written: {error.strerror}{kept}.".lstrip(),
        "Free space or choose another --run-dir, and run again.",
    )


def write_json(run: Path, name: str, value: object) -> None:
    """Write a small JSON file into the run directory.

    Args:
        run: Run directory.
        name: File name relative to it.
        value: What json can hold; NaN and infinities are refused.
    """
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (run / name).write_text(text + "\n", encoding="utf-8")


def read_json(evidence: Evidence, name: str) -> dict[str, Any]:
    """Read a small JSON object strictly.

    Args:
        evidence: Where from.
        name: One of its names.

    Returns:
        The object.

    Raises:
        EvidenceError: The file is absent or no object.
        JsonError: It is too large or not strict JSON.
    """
    if name not in evidence.names():
        raise EvidenceError(f"The evidence has no {name}.", "The run did not get that far, or the file was removed.")
    with evidence.open(name) as stream:
        data = stream.read(MAX_JSON_BYTES + 1)
    value = strictjson.loads(data, max_bytes=MAX_JSON_BYTES, what=name)
    if not isinstance(value, dict):
        raise EvidenceError(f"{name} holds a {type(value).__name__}; expected a JSON object.")
    return value


def digests(evidence: Evidence) -> dict[str, str]:
    """Hash every evidence file.

    Args:
        evidence: The files.

    Returns:
        sha256, hex, by name.
    """
    result = {}
    for name in evidence.names():
        with evidence.open(name) as stream:
            digest = hashlib.sha256()
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        result[name] = digest.hexdigest()
    return result


def combined_digest(by_name: Mapping[str, str]) -> str:
    """One digest for a set of files.

    Args:
        by_name: sha256 by name, as :func:`digests` gives it.

    Returns:
        sha256, hex, of the lines ``<sha256>  <name>``, sorted by name, as sha256sum prints them.
    """
    lines = "".join(f"{by_name[name]}  {name}\n" for name in sorted(by_name))
    return hashlib.sha256(lines.encode()).hexdigest()


def attempt_digest(files: Evidence) -> str:
    """What the journal quotes when a run ends: all its evidence but what is written after that.

    Args:
        files: The run's evidence.

    Returns:
        sha256, hex.
    """
    return attempt_of(digests(files))


def attempt_of(by_name: Mapping[str, str]) -> str:
    """The same of files that are hashed already.

    Args:
        by_name: sha256 by name, as :func:`digests` gives it.

    Returns:
        sha256, hex.
    """
    return combined_digest({name: digest for name, digest in by_name.items() if name not in (JOURNAL, SIGNER)})


@dataclass(frozen=True)
class Request:
    """What was asked for; a plan follows from it and the spec alone.

    Args:
        workload: Name of the workload.
        nodes: Number of nodes.
        devices_per_node: Devices, and so processes, on each.
        overrides: What --set changed.
        seed: InternEvo's --seed.
    """

    workload: str
    nodes: int
    devices_per_node: int
    overrides: Mapping[str, int | bool]
    seed: int

    def to_json(self) -> dict[str, Any]:
        """The request as JSON.

        Returns:
            What :func:`request_from_json` reads back.
        """
        return {**asdict(self), "overrides": dict(self.overrides)}


def request_from_json(value: Mapping[str, Any]) -> Request:
    """Read a request back.

    Args:
        value: The object of configs/request.json.

    Returns:
        The request.

    Raises:
        EvidenceError: A field is missing, unknown or of the wrong type.
    """
    fields: dict[str, type] = {"workload": str, "nodes": int, "devices_per_node": int, "overrides": dict, "seed": int}
    if set(value) != set(fields):
        raise EvidenceError(f"{REQUEST} has the fields {sorted(value)}; expected {sorted(fields)}.")
    for name, kind in fields.items():
        if type(value[name]) is not kind:
            raise EvidenceError(f"{REQUEST}: {name} is {value[name]!r}; expected {kind.__name__}.")
    for key, setting in value["overrides"].items():
        if type(setting) not in (int, bool):
            raise EvidenceError(f"{REQUEST}: override {key} is {setting!r}; expected a whole number or true or false.")
    return Request(**value)


def device_identity(device: Mapping[str, Any]) -> str:
    """What a device is known by: its UUID or serial number; where it tells neither, its host and place there.

    Args:
        device: What it tells of itself, with its host.

    Returns:
        Its identity, for people too.
    """
    for field in ("uuid", "serial"):
        if device.get(field):
            return f"{field} {str(device[field])[:100]}"
    return f"device {device.get('index', '?')} of {str(device.get('host', '?'))[:100]}"


def device_name(vendor: str, model: str) -> str:
    """Name a device for people.

    Args:
        vendor: Its vendor.
        model: Its model, which may begin with the vendor's name.

    Returns:
        Both, the vendor once.
    """
    return model if model.lower().startswith(vendor.lower()) else f"{vendor} {model}"
