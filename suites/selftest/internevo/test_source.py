from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from conformance.errors import SourceError
from conformance.internevo import source as module
from conformance.internevo.gittree import entry_of, tree_id
from conformance.internevo.source import PINS, Pin, Source, describe, fetch, fetched_path, find_source, require_pinned
from conformance.spec import load_workload

TAG = "v0.2.3dev20240201"
FILES = {
    "train.py": "import internlm\n",
    "version.txt": "0.2.3\n",
    "internlm/__init__.py": "",
    "internlm/core/engine.py": "class Engine:\n    pass\n",
    "doc/usage.md": "one\ntwo\n",
}


def git(folder: Path, *command: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *command], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small repository with the shape of InternEvo, pinned in place of the first reference tag."""
    root = tmp_path / "origin"
    for path, text in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "-m", "one")
    git(root, "tag", TAG)
    entries = [entry for path in FILES if (entry := entry_of(root, path))]
    pins = tmp_path / "pins"
    pins.mkdir()
    (pins / f"{TAG}.txt").write_text("".join(f"{entry.mode} {entry.id} {entry.path}\n" for entry in entries))
    pin = Pin(TAG, git(root, "rev-parse", "HEAD"), tree_id(entries))
    assert pin.tree == git(root, "rev-parse", "HEAD^{tree}")
    monkeypatch.setattr(module, "PINS", {TAG: pin})
    monkeypatch.setattr(module, "PIN_DIR", pins)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return root


@pytest.fixture
def tree(origin: Path, tmp_path: Path) -> Path:
    git(tmp_path, "clone", "--quiet", str(origin), "tree")
    return tmp_path / "tree"


def test_a_clean_checkout_is_pristine(tree: Path) -> None:
    source = find_source(tree)
    assert (source.kind, source.version, source.tag) == ("checkout", "0.2.3", TAG)
    assert source.tree == module.PINS[TAG].tree
    assert source.pristine and not source.modified and not source.untracked
    assert describe(source)[0].startswith(f"equal to {TAG}, commit ")
    require_pinned(source, load_workload("llama2-7b-perf"))


EDITS: dict[str, Callable[[Path], object]] = {
    "edited: train.py": lambda root: (root / "train.py").write_text("import torch\n"),
    "missing: internlm/core/engine.py": lambda root: (root / "internlm/core/engine.py").unlink(),
    "mode: train.py": lambda root: (root / "train.py").chmod(0o755),
    "line ends: doc/usage.md": lambda root: (root / "doc/usage.md").write_bytes(b"one\r\ntwo\r\n"),
}


@pytest.mark.parametrize("told", EDITS)
def test_a_changed_file_is_found_and_named(tree: Path, told: str) -> None:
    EDITS[told](tree)
    source = find_source(tree)
    assert not source.pristine
    assert source.modified == (told.partition(": ")[2],)
    assert told in describe(source)
    assert source.tree != module.PINS[TAG].tree
    with pytest.raises(SourceError, match=told):
        require_pinned(source, load_workload("llama2-7b-perf"))


def test_a_git_folder_that_lies_is_not_believed(tree: Path) -> None:
    git(tree, "update-index", "--assume-unchanged", "train.py")
    (tree / "train.py").write_text("import torch\n")
    assert git(tree, "status", "--porcelain") == ""
    assert find_source(tree).modified == ("train.py",)


def test_a_tag_moved_onto_an_edit_is_not_believed(tree: Path) -> None:
    (tree / "train.py").write_text("import torch\n")
    git(tree, "commit", "--quiet", "--all", "-m", "two")
    git(tree, "tag", "--force", TAG)
    assert find_source(tree, TAG).modified == ("train.py",)


def test_a_file_behind_a_symbolic_link_is_not_the_file(tree: Path) -> None:
    (tree / "train.py").rename(tree / "elsewhere.txt")
    (tree / "train.py").symlink_to("elsewhere.txt")
    assert find_source(tree).modified == ("train.py",)


def test_untracked_data_are_listed_and_change_nothing(tree: Path) -> None:
    (tree / "RUN").mkdir()
    (tree / "RUN" / "a.log").write_text("x")
    (tree / "doc" / "notes.md").write_text("x")
    (tree / "doc" / "own_config.py").write_text("x")  # no module can be imported from there
    (tree / "internlm" / "__pycache__").mkdir()
    source = find_source(tree)
    assert source.untracked == ("RUN/", "doc/notes.md", "doc/own_config.py")
    assert source.pristine


@pytest.mark.parametrize(
    "path", ["rotary_emb.py", "internlm/core/engine.so", "internlm/core/engine/__init__.py", "apex/csrc/deep.py"]
)
def test_an_untracked_module_could_replace_another_and_is_refused(tree: Path, path: str) -> None:
    (tree / path).parent.mkdir(parents=True, exist_ok=True)
    (tree / path).write_text("x")
    source = find_source(tree)
    assert source.untracked and not source.modified
    assert not source.pristine
    assert "could replace a module" in describe(source)[-1]


def test_a_checkout_that_git_converted_is_explained(origin: Path, tmp_path: Path) -> None:
    git(tmp_path, "-c", "core.autocrlf=true", "clone", "--quiet", str(origin), "windows")
    source = find_source(tmp_path / "windows")
    assert {difference.what for difference in source.differences} == {"line ends"}
    assert "core.autocrlf" in describe(source)[1]


def test_a_shallow_clone_has_all_files_and_passes(origin: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{origin}", "shallow")
    assert find_source(tmp_path / "shallow").pristine


def test_a_bare_clone_has_none_and_is_refused(origin: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--bare", str(origin), "bare")
    with pytest.raises(SourceError, match="bare repository"):
        find_source(tmp_path / "bare")


def test_what_is_no_checkout_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no train\.py and no internlm"):
        find_source(tmp_path)
    with pytest.raises(SourceError, match="is not a folder"):
        find_source(tmp_path / "absent")


def test_a_long_list_of_differences_is_cut_in_an_error(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BRIEF_LINES", 2)
    for path in FILES:
        (tree / path).write_text("changed")
    with pytest.raises(SourceError, match=r"and 4 more, which `conformance internevo check .*` lists"):
        require_pinned(find_source(tree), load_workload("llama2-7b-perf"))


@pytest.mark.parametrize("kind", ["path", "bundle", "url"])
def test_fetch_from_a_clone_a_bundle_and_a_url(origin: Path, tmp_path: Path, kind: str) -> None:
    if kind == "bundle":
        git(origin, "bundle", "create", "--quiet", str(tmp_path / "ie.bundle"), TAG)
    where = {"path": str(origin), "bundle": str(tmp_path / "ie.bundle"), "url": f"file://{origin}"}[kind]
    source = fetch(module.PINS[TAG], where)
    assert source.pristine and source.root == fetched_path(module.PINS[TAG]).resolve()
    assert find_source(None, TAG) == source
    # Fetching again finds it there and needs no origin.
    assert fetch(module.PINS[TAG], str(tmp_path)) == source


def test_fetch_keeps_line_ends_whatever_git_is_set_to(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gitconfig").write_text("[core]\n\tautocrlf = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    assert fetch(module.PINS[TAG], str(origin)).pristine


def test_fetch_refuses_a_tag_that_lies_and_leaves_nothing(origin: Path) -> None:
    (origin / "train.py").write_text("import torch\n")
    git(origin, "commit", "--quiet", "--all", "-m", "two")
    git(origin, "tag", "--force", TAG)
    with pytest.raises(SourceError, match=f"has a tag {TAG}, but not the pinned one: .*edited: train.py"):
        fetch(module.PINS[TAG], str(origin))
    assert list(fetched_path(module.PINS[TAG]).parent.iterdir()) == []


def test_fetch_from_what_has_no_such_tag_says_how_to_bring_one(origin: Path) -> None:
    git(origin, "tag", "--delete", TAG)
    with pytest.raises(SourceError, match=r"could not clone .* not found .*git bundle create"):
        fetch(module.PINS[TAG], str(origin))
    with pytest.raises(SourceError, match="does not exist"):
        fetch(module.PINS[TAG], "/nowhere")


def test_fetch_does_not_overwrite_an_edited_checkout(origin: Path) -> None:
    source = fetch(module.PINS[TAG], str(origin))
    (source.root / "train.py").write_text("import torch\n")
    with pytest.raises(SourceError, match="is there already and is not"):
        fetch(module.PINS[TAG], str(origin))


def test_a_cache_that_cannot_be_written_is_named(origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(origin / "train.py"))
    with pytest.raises(SourceError, match=r"cannot be written: Not a directory.*XDG_CACHE_HOME"):
        fetch(module.PINS[TAG], str(origin))


def test_without_git_fetch_says_so(origin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SourceError, match="no git on this machine"):
        fetch(module.PINS[TAG], str(origin))


def test_a_commit_that_was_not_fetched_is_asked_for(origin: Path) -> None:
    with pytest.raises(SourceError, match=f"conformance internevo get --tag {TAG}"):
        find_source(None, TAG)


def test_the_installed_wheel_is_the_pinned_one() -> None:
    try:
        source = find_source(None)
    except SourceError as error:
        pytest.skip(str(error))
    if source.version not in PINS:
        pytest.skip(f"internevo {source.version} has no pin")
    assert source.kind == "wheel"
    assert source.pristine, describe(source)
    require_pinned(source, load_workload("tiny-perf"))
    with pytest.raises(SourceError, match=r"runs with InternEvo v0\.2\.3dev20240201, unchanged"):
        require_pinned(source, load_workload("llama2-7b-perf"))


def test_an_edited_wheel_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        installed = find_source(None)
    except SourceError as error:
        pytest.skip(str(error))
    for path in installed.root.glob("[iI]nter*"):
        shutil.copytree(path, tmp_path / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(tmp_path)
    assert find_source(None).root == tmp_path
    edited = tmp_path / "internlm" / "core" / "engine.py"
    edited.write_text(edited.read_text() + "# changed\n")
    assert find_source(None).modified == ("internlm/core/engine.py",)


def test_the_real_checkout_is_the_pinned_tag(checkout: Source) -> None:
    assert checkout.pristine, describe(checkout)
    assert checkout.tree == PINS[str(checkout.tag)].tree


def test_a_real_checkout_with_one_changed_byte_is_not(checkout: Source, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkout.root, copy, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    assert find_source(copy, checkout.tag).pristine
    file = copy / "internlm" / "core" / "engine.py"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, (0, 0))
    changed = find_source(copy, checkout.tag)
    assert changed.modified == ("internlm/core/engine.py",)
    assert changed.tag == checkout.tag
