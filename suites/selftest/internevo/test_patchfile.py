from __future__ import annotations

import dataclasses
import hashlib
import subprocess
from pathlib import Path

import pytest

from conformance.errors import SourceError
from conformance.internevo import patchfile, source
from conformance.internevo.gittree import entry_of, tree_id
from conformance.internevo.patchfile import apply_patch_files
from conformance.internevo.source import Pin, Source, find_source

TAG = "v0.2.3dev20240201"
PATCH = """\
--- a/train.py
+++ b/train.py
@@ -1,2 +1,2 @@
 import internlm
-print(1)
+print(2)
"""
ADDS = """\
diff --git a/internlm/extra.py b/internlm/extra.py
new file mode 100644
--- /dev/null
+++ b/internlm/extra.py
@@ -0,0 +1 @@
+x = 1
"""


@pytest.fixture
def pristine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    root = tmp_path / "checkout"
    (root / "internlm").mkdir(parents=True)
    (root / "internlm" / "__init__.py").write_text("")
    (root / "train.py").write_text("import internlm\nprint(1)\n")
    entries = [entry for path in ("internlm/__init__.py", "train.py") if (entry := entry_of(root, path))]
    (tmp_path / f"{TAG}.txt").write_text("".join(f"{entry.mode} {entry.id} {entry.path}\n" for entry in entries))
    pins = {TAG: Pin(TAG, "0" * 40, tree_id(entries))}
    for module in (source, patchfile):
        monkeypatch.setattr(module, "PINS", pins)
    monkeypatch.setattr(source, "PIN_DIR", tmp_path)
    return find_source(root)


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_patches_change_the_copy_in_order_and_the_checkout_never(pristine: Source, tmp_path: Path) -> None:
    second = PATCH.replace("print(2)", "print(3)").replace("print(1)", "print(2)")
    files = [write(tmp_path, "one.patch", PATCH + ADDS), write(tmp_path, "two.patch", second)]
    changed, told = apply_patch_files(pristine, files, tmp_path / "copy")
    assert changed == dataclasses.replace(pristine, root=tmp_path / "copy")
    assert (changed.root / "train.py").read_text() == "import internlm\nprint(3)\n"
    assert (changed.root / "internlm" / "extra.py").read_text() == "x = 1\n"
    assert [patch.changes for patch in told] == [("train.py", "internlm/extra.py"), ("train.py",)]
    assert told[0].sha256 == hashlib.sha256(files[0].read_bytes()).hexdigest()
    assert find_source(pristine.root).pristine


def test_a_copy_inside_another_repository_is_patched_all_the_same(pristine: Source, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    subprocess.run(["git", "init", "--quiet"], cwd=outer, check=True)
    changed, _ = apply_patch_files(pristine, [write(tmp_path, "one.patch", PATCH)], outer / "run" / "copy")
    assert "print(2)" in (changed.root / "train.py").read_text()


@pytest.mark.parametrize(
    "text",
    ["", "no patch\n", PATCH.replace("print(1)", "print(9)"), PATCH.replace("/train.py", "/../outside.py")],
    ids=["empty", "no patch", "of another version", "outside the tree"],
)
def test_what_is_no_patch_of_it_is_refused(pristine: Source, tmp_path: Path, text: str) -> None:
    file = write(tmp_path, "bad.patch", text)
    with pytest.raises(SourceError, match=r"bad.patch is no patch of this InternEvo: error: .*git diff"):
        apply_patch_files(pristine, [file], tmp_path / "copy")


def test_a_name_that_no_evidence_could_hold_is_refused(pristine: Source, tmp_path: Path) -> None:
    file = tmp_path / "bad.patch"
    file.write_bytes(ADDS.replace("extra", "ger\xe4t").encode("latin-1"))
    with pytest.raises(SourceError, match=r"bad\.patch changes a file whose name is not UTF-8; expected UTF-8"):
        apply_patch_files(pristine, [file], tmp_path / "copy")


def test_an_absent_file_and_two_of_one_name_are_refused(pristine: Source, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot be read: No such file or directory\. Name one that is there"):
        apply_patch_files(pristine, [tmp_path / "absent.patch"], tmp_path / "copy")
    file = write(tmp_path, "one.patch", PATCH)
    with pytest.raises(SourceError, match="have one name"):
        apply_patch_files(pristine, [file, file], tmp_path / "copy2")


def test_only_a_pinned_checkout_is_patched(pristine: Source, tmp_path: Path) -> None:
    edited = dataclasses.replace(pristine, pristine=False)
    with pytest.raises(SourceError, match="is not one"):
        apply_patch_files(edited, [], tmp_path / "copy")


def test_a_real_checkout_is_copied_whole(checkout: Source, tmp_path: Path) -> None:
    changed, told = apply_patch_files(checkout, [], tmp_path / "copy")
    assert told == ()
    assert find_source(changed.root, checkout.tag).pristine
