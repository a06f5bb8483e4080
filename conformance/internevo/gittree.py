"""Git object ids, computed from files: what a tree is, whatever the ``.git`` beside it says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

REGULAR, EXECUTABLE, SYMLINK, SUBMODULE = "100644", "100755", "120000", "160000"
_DIRECTORY = "40000"


@dataclass(frozen=True)
class Entry:
    """One file of a tree.

    Args:
        mode: Git's octal mode.
        id: Object id, 40 hex digits: of the content or, for a submodule, of the commit.
        path: POSIX path from the root of the tree.
    """

    mode: str
    id: str
    path: str


def object_id(kind: str, content: bytes) -> str:
    """Give the id of a git object.

    Args:
        kind: ``blob`` or ``tree``.
        content: Its bytes.

    Returns:
        SHA-1 in hex, over git's header and the bytes.
    """
    # SHA-1 because the pins are git's; a second file with the same id as a pinned one would be a second-preimage.
    return hashlib.sha1(b"%s %d\0" % (kind.encode(), len(content)) + content, usedforsecurity=False).hexdigest()


def entry_of(root: Path, path: str) -> Entry | None:
    """Read one file as git would store it, without any conversion.

    Args:
        root: Root of the tree.
        path: POSIX path from it.

    Returns:
        Its entry; None when there is neither a file nor a symbolic link.
    """
    file = root / path
    if file.is_symlink():
        return Entry(SYMLINK, object_id("blob", str(file.readlink()).encode()), path)
    if not file.is_file():
        return None
    mode = EXECUTABLE if file.stat().st_mode & 0o100 else REGULAR
    return Entry(mode, object_id("blob", file.read_bytes()), path)


def tree_id(entries: Iterable[Entry]) -> str:
    """Compute the id of the tree that holds some files.

    Args:
        entries: The files, in any order, each path once.

    Returns:
        The id that ``git rev-parse COMMIT^{tree}`` gives for a commit of these files.
    """
    files: list[Entry] = []
    folders: dict[str, list[Entry]] = {}
    for entry in entries:
        folder, slash, rest = entry.path.partition("/")
        if slash:
            folders.setdefault(folder, []).append(Entry(entry.mode, entry.id, rest))
        else:
            files.append(entry)
    files += [Entry(_DIRECTORY, tree_id(inside), folder) for folder, inside in folders.items()]
    # Git orders a folder as if its name ended in a slash.
    files.sort(key=lambda entry: (entry.path + "/" if entry.mode == _DIRECTORY else entry.path).encode())
    content = b"".join(f"{entry.mode} {entry.path}".encode() + b"\0" + bytes.fromhex(entry.id) for entry in files)
    return object_id("tree", content)
