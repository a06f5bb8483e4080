"""A vendor's own changes to InternEvo: patch files, applied to a copy, never to the checkout."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from conformance.errors import SourceError
from conformance.internevo.gittree import SUBMODULE
from conformance.internevo.source import PINS, Source


@dataclass(frozen=True)
class PatchFile:
    """One declared patch file.

    Args:
        name: Its file name, which its copy in the evidence keeps.
        sha256: Digest of its bytes, in hex.
        changes: Paths in InternEvo that it changes.
    """

    name: str
    sha256: str
    changes: tuple[str, ...]


def apply_patch_files(source: Source, files: Sequence[Path], into: Path) -> tuple[Source, tuple[PatchFile, ...]]:
    """Copy a pinned checkout and apply patch files to the copy, in order.

    Args:
        source: A pristine checkout; it is not changed.
        files: Patch files as ``git diff`` writes them, with paths from the root of InternEvo.
        into: Folder of the copy; must not exist.

    Returns:
        The source with the copy as its root, all else as it was, and what each file changes.

    Raises:
        SourceError: The source is no pristine checkout, or a file is no patch of it.
    """
    if source.kind != "checkout" or not source.pristine or source.tag is None:
        raise SourceError(
            f"--patch changes a copy of a pinned checkout, and {source.root} is not one.",
            "Name a checkout that `conformance internevo check` passes with --internevo PATH.",
        )
    names = [file.name for file in files]
    if len(set(names)) < len(names):
        raise SourceError(f"Two patch files have one name: {', '.join(sorted(names))}.", "Rename one of them.")
    for entry in PINS[source.tag].entries():
        if entry.mode != SUBMODULE:
            (into / entry.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source.root / entry.path, into / entry.path, follow_symlinks=False)
    return replace(source, root=into), tuple(_apply(file, into) for file in files)


def patch_digests(files: Sequence[Path]) -> dict[str, str]:
    """Tell what patch files are, without applying them.

    Args:
        files: The patch files.

    Returns:
        Digest of each one's bytes, in hex, by its file name.

    Raises:
        SourceError: One cannot be read.
    """
    return {file.name: hashlib.sha256(_read(file)).hexdigest() for file in files}


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise SourceError(
            f"The patch file {file} cannot be read: {error.strerror}.", "Name one that is there with --patch."
        ) from error


def _apply(file: Path, root: Path) -> PatchFile:
    content = _read(file)
    # From standard input, so that what is hashed is what is applied.
    listed = _git_apply(root, file, content, "--numstat", "-z")
    _git_apply(root, file, content, "--whitespace=nowarn")
    changes = tuple(line.rpartition("\t")[2] for line in listed.split("\0") if line)
    return PatchFile(file.name, hashlib.sha256(content).hexdigest(), changes)


def _git_apply(root: Path, file: Path, content: bytes, *options: str) -> str:
    # A run folder may lie inside some repository; git would then take the paths from that one's root.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment |= {"GIT_CEILING_DIRECTORIES": str(root.resolve().parent), "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", "apply", *options, "-"], cwd=root, env=environment, input=content, capture_output=True, check=False
        )
    except FileNotFoundError:
        raise SourceError("There is no git on this machine, which applies patch files.", "Install git.") from None
    if done.returncode:
        first = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[0]
        raise SourceError(
            f"{file} is no patch of this InternEvo: {first}.", "Make it with `git diff` in a checkout of the same tag."
        )
    try:
        return done.stdout.decode()
    except UnicodeDecodeError:
        raise SourceError(
            f"{file} changes a file whose name is not UTF-8; expected UTF-8, for the evidence holds the name.",
            "Give that file another name.",
        ) from None
