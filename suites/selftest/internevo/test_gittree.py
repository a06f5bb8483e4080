from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.internevo.gittree import entry_of, object_id, tree_id
from conformance.internevo.source import PINS

NAMES = st.sampled_from(["a", "a.b", "a-b", "a0", "b", "lib", "lib.py", "lib-x", "ü"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


def git(folder: Path, *command: str) -> str:
    return subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(PATHS, st.tuples(st.binary(max_size=40), st.booleans()), min_size=1, max_size=8))
def test_tree_ids_are_those_of_git(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, tuple[bytes, bool]]
) -> None:
    root = tmp_path_factory.mktemp("tree")
    git(root, "init", "--quiet")
    kept = []
    for path, (content, executable) in files.items():
        try:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
        except OSError:  # one path is a folder of another
            continue
        (root / path).chmod(0o755 if executable else 0o644)
        kept.append(path)
    git(root, "-c", "core.autocrlf=false", "add", "--all")
    entries = [entry for path in kept if (entry := entry_of(root, path))]
    assert tree_id(reversed(entries)) == git(root, "write-tree")


def test_a_symbolic_link_is_its_target(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "link").symlink_to("nowhere/at all")
    git(tmp_path, "add", "link")
    entry = entry_of(tmp_path, "link")
    assert entry is not None and entry.mode == "120000"
    assert tree_id([entry]) == git(tmp_path, "write-tree")


def test_a_folder_and_an_absent_file_have_no_entry(tmp_path: Path) -> None:
    assert entry_of(tmp_path, ".") is None
    assert entry_of(tmp_path, "absent") is None


def test_object_id_of_the_empty_blob() -> None:
    assert object_id("blob", b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


@pytest.mark.parametrize("tag", PINS)
def test_the_pinned_files_make_the_pinned_tree(tag: str) -> None:
    assert tree_id(PINS[tag].entries()) == PINS[tag].tree


def test_the_reference_tags_have_as_many_files_as_published() -> None:
    assert {tag: len(pin.entries()) for tag, pin in PINS.items() if pin.commit} == {
        "v0.2.3dev20240201": 256,
        "v0.3.1dev20240229": 272,
    }
