"""Which InternEvo runs, and the proof that it is a pinned one: every file is hashed, .git is never asked."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from conformance.errors import SourceError
from conformance.folders import user_folder
from conformance.internevo.gittree import EXECUTABLE, REGULAR, SUBMODULE, Entry, entry_of, object_id, tree_id
from conformance.spec.model import Workload

UPSTREAM = "https://github.com/InternLM/InternEvo"
WHEEL = "internevo"
PACKAGE = "internlm"

# What Python would import from a folder on its path.
_IMPORTABLE = (".py", ".pyc", ".so", ".pyd")
PIN_DIR = Path(__file__).parent / "pins"
# Lines of a comparison that an error message repeats.
BRIEF_LINES = 20
_GET_HINT = "Get a clean one with: conformance internevo get --tag {tag}"


@dataclass(frozen=True)
class Pin:
    """One version of InternEvo that the suite knows file by file.

    Args:
        tag: Git tag, or the version of a wheel.
        commit: Commit of the tag; empty for a wheel.
        tree: Git tree id of all its files; for a wheel, of its package ``internlm``.
    """

    tag: str
    commit: str
    tree: str

    @property
    def is_wheel(self) -> bool:
        """Whether it is a wheel and not a commit."""
        return not self.commit

    def entries(self) -> tuple[Entry, ...]:
        """Read the pinned files; their tree id is `tree`."""
        lines = (PIN_DIR / f"{self.tag}.txt").read_text("utf-8").splitlines()
        return tuple(Entry(*line.split(" ", 2)) for line in lines)


PINS = {
    pin.tag: pin
    for pin in (
        Pin(
            "v0.2.3dev20240201",
            "a3260a84130ef6a314e7b9eab897286b0b537041",
            "fd7761a822467043ea141c276d0af1fcc0bba641",
        ),
        Pin(
            "v0.3.1dev20240229",
            "458f1fd7464d21b4c6f9d1695e7621a83bbb7989",
            "508134b68afc66098d3eceefec0e7c5ebf5d80f9",
        ),
        Pin("0.2.2", "", "45660543d0eb76ed5eb97d8d03fac603a138883a"),
    )
}


@dataclass(frozen=True)
class Difference:
    """One pinned file that is not as pinned.

    Args:
        path: POSIX path from the root.
        what: ``missing``, ``edited``, ``line ends`` (CRLF in place of LF, nothing else) or ``mode``.
    """

    path: str
    what: str


@dataclass(frozen=True)
class Source:
    """An InternEvo on this machine.

    Args:
        kind: ``checkout`` or ``wheel``.
        root: What goes on Python's path.
        version: What it says of itself.
        tag: The pin that it was held against; None when no pin is of its version.
        tree: Git tree id of the pinned paths, recomputed from the files; None without a pin.
        pristine: Whether it is that pin: no file differs, and none was added that Python could import.
        differences: Pinned files that differ.
        untracked: Files and whole folders (with a closing slash) that the pin does not have.
    """

    kind: str
    root: Path
    version: str
    tag: str | None
    tree: str | None
    pristine: bool
    differences: tuple[Difference, ...]
    untracked: tuple[str, ...]

    @property
    def modified(self) -> tuple[str, ...]:
        """Paths of the pinned files that differ."""
        return tuple(difference.path for difference in self.differences)


def find_source(path: Path | None, tag: str | None = None) -> Source:
    """Find the InternEvo to run and compare it with its pin.

    Args:
        path: Root of a checkout. None for the installed wheel or, where ``tag`` is that of a commit, for what
            ``conformance internevo get`` fetched.
        tag: The version that is wanted; a checkout that equals another pin is held against that one.

    Returns:
        What was found, pristine or not.

    Raises:
        SourceError: There is no InternEvo there.
    """
    pin = PINS.get(tag or "")
    if path is not None:
        return _checkout(path, pin)
    if pin is None or pin.is_wheel:
        return _wheel()
    fetched = fetched_path(pin)
    if not fetched.is_dir():
        raise SourceError(
            f"InternEvo {pin.tag} is not on this machine: there is no {fetched}.",
            f"Fetch it with `conformance internevo get --tag {pin.tag}`, or name a checkout with --internevo PATH.",
        )
    return _checkout(fetched, pin)


def require_pinned(source: Source, workload: Workload) -> None:
    """Refuse an InternEvo that a workload may not run with.

    An official workload runs with its own pin; a rehearsal with any.

    Args:
        source: What would run.
        workload: What it would run.

    Raises:
        SourceError: It is not the pin; the message names each differing file.
    """
    if source.pristine and (source.tag == workload.tag or not workload.official):
        return
    wanted = f"InternEvo {workload.tag}" if workload.official else "a pinned InternEvo"
    raise SourceError(
        f"{workload.name} runs with {wanted}, unchanged; {source.root} is not that: {_brief(source)}.",
        _GET_HINT.format(tag=workload.tag) + "; declare a change of your own as a patch file with --patch.",
    )


def describe(source: Source) -> list[str]:
    """Say in lines how a source relates to its pin: what it is, each differing file, what was added."""
    if source.tag is None:
        return [f"{source.kind} {source.version}, of which the suite has no pin (it has {', '.join(PINS)})"]
    pin = PINS[source.tag]
    name = f"{pin.tag}, commit {pin.commit}" if pin.commit else f"{WHEEL} {pin.tag}"
    same = source.tree == pin.tree
    lines = [f"{'equal to' if same else 'not'} {name}: tree {source.tree}" + ("" if same else f", expected {pin.tree}")]
    if source.differences and all(difference.what == "line ends" for difference in source.differences):
        lines.append("the files differ in their line ends alone: git converted them, see core.autocrlf")
    lines += [f"{difference.what}: {difference.path}" for difference in source.differences]
    lines += [f"untracked: {path}" for path in source.untracked]
    if same and not source.pristine:
        lines.append("an untracked file that Python can import could replace a module: move it out of the checkout")
    return lines


def _brief(source: Source) -> str:
    """Say the same in one sentence, which an error can hold."""
    lines = describe(source)
    more = len(lines) - BRIEF_LINES
    rest = [f"and {more} more, which `conformance internevo check {source.root}` lists"] if more > 0 else []
    return "; ".join(lines[:BRIEF_LINES] + rest)


def _checkout(root: Path, wanted: Pin | None) -> Source:
    """Compare a checkout with the pin that it equals; failing that with the wanted, failing that with the nearest."""
    root = root.resolve()
    _demand_work_tree(root)
    pins = [pin for pin in PINS.values() if not pin.is_wheel]
    compared = {pin: _differences(root, pin) for pin in pins}
    equal = [pin for pin in pins if not compared[pin]]
    if wanted is None or wanted.is_wheel:
        wanted = min(pins, key=lambda pin: len(compared[pin]))
    pin = equal[0] if equal else wanted
    version_file = root / "version.txt"
    version = version_file.read_text("utf-8", errors="replace").strip() if version_file.is_file() else "unknown"
    return _source("checkout", root, version, pin, compared[pin])


def _wheel() -> Source:
    try:
        distribution = metadata.distribution(WHEEL)
    except metadata.PackageNotFoundError:
        raise SourceError(
            "InternEvo is not installed in this Python, and no checkout was named.",
            "Install it with `pip install internevo==0.2.2`, or name a checkout with --internevo PATH.",
        ) from None
    root = Path(str(distribution.locate_file("")))
    if not (root / PACKAGE).is_dir():
        raise SourceError(
            f"InternEvo {distribution.version} is installed, but {root} has no {PACKAGE}: an editable install.",
            "Name its checkout with --internevo PATH.",
        )
    pin = PINS.get(distribution.version)
    if pin is None:
        return Source("wheel", root, distribution.version, None, None, False, (), ())
    return _source("wheel", root, distribution.version, pin, _differences(root, pin))


def _source(kind: str, root: Path, version: str, pin: Pin, differences: tuple[Difference, ...]) -> Source:
    untracked = tuple(sorted(_untracked(root, pin)))
    present = (_actual(root, entry) for entry in pin.entries())
    return Source(
        kind=kind,
        root=root,
        version=version,
        tag=pin.tag,
        tree=tree_id(entry for entry in present if entry is not None),
        pristine=not differences and not any(_could_replace_a_module(root, path) for path in untracked),
        differences=differences,
        untracked=untracked,
    )


def _demand_work_tree(root: Path) -> None:
    """Raise SourceError unless a folder looks like a checkout of InternEvo."""
    hint = _GET_HINT.format(tag="TAG") + f", TAG one of {', '.join(pin.tag for pin in PINS.values() if pin.commit)}."
    if not root.is_dir():
        raise SourceError(f"{root} is not a folder; expected the root of an InternEvo checkout.", hint)
    if (root / "HEAD").is_file() and (root / "objects").is_dir():
        raise SourceError(
            f"{root} is a bare repository: it has no files that could run.", f"Check it out: git clone {root} InternEvo"
        )
    missing = [name for name in ("train.py", PACKAGE) if not (root / name).exists()]
    if missing:
        raise SourceError(f"{root} is no InternEvo checkout: it has no {' and no '.join(missing)}.", hint)


def _actual(root: Path, pinned: Entry) -> Entry | None:
    """Read what stands where a pinned file should; a submodule is not the tree's to say."""
    if pinned.mode == SUBMODULE:
        return pinned
    actual = entry_of(root, pinned.path)
    if actual is not None and pinned.path.startswith(PACKAGE + "/") and actual.mode in (REGULAR, EXECUTABLE):
        # An imported file's mode changes nothing, and pip and shared file systems set their own.
        return Entry(pinned.mode, actual.id, actual.path)
    return actual


def _differences(root: Path, pin: Pin) -> tuple[Difference, ...]:
    found = []
    for pinned in pin.entries():
        actual = _actual(root, pinned)
        if actual == pinned:
            continue
        if actual is None:
            what = "missing"
        elif actual.id == pinned.id:
            what = "mode"
        elif object_id("blob", (root / pinned.path).read_bytes().replace(b"\r\n", b"\n")) == pinned.id:
            what = "line ends"
        else:
            what = "edited"
        found.append(Difference(pinned.path, what))
    return tuple(found)


def _untracked(root: Path, pin: Pin) -> Iterator[str]:
    """Yield what a pin does not have; a folder without any pinned file as a whole, caches of bytecode not at all."""
    entries = pin.entries()
    tracked = {entry.path for entry in entries}
    folders = {str(parent) for path in tracked for parent in Path(path).parents}
    submodules = {entry.path for entry in entries if entry.mode == SUBMODULE}
    top = root / PACKAGE if pin.is_wheel else root
    for parent, names, files in os.walk(top):
        prefix = Path(parent).relative_to(root)
        for name in tuple(names):
            path = (prefix / name).as_posix()
            if path in folders and not (root / path).is_symlink():
                continue
            names.remove(name)
            empty_submodule = path in submodules and not any((root / path).iterdir())
            if name not in (".git", "__pycache__") and not empty_submodule:
                yield path + "/"
        for name in files:
            path = (prefix / name).as_posix()
            if path not in tracked and path != ".git":
                yield path


def _could_replace_a_module(root: Path, path: str) -> bool:
    """Whether Python could import an untracked path: from the root, which is on its path, or out of the package."""
    top, _, below = path.partition("/")
    if below and top != PACKAGE:
        return False
    if path.endswith("/"):
        return any(file.suffix in _IMPORTABLE for file in (root / path).rglob("*"))
    return Path(path).suffix in _IMPORTABLE


def fetched_path(pin: Pin) -> Path:
    """Tell where ``conformance internevo get`` puts a checkout: in the user's cache, which nodes usually share."""
    return user_folder("XDG_CACHE_HOME", ".cache") / f"InternEvo-{pin.tag}"


def fetch(pin: Pin, origin: str = UPSTREAM) -> Source:
    """Clone a pinned commit and prove that it is one.

    Args:
        pin: What to fetch; not a wheel.
        origin: URL, path of a repository or mirror, or path of a git bundle.

    Returns:
        The pristine checkout, at `fetched_path`; the one that is there already if it is pristine.

    Raises:
        SourceError: There is no git, the origin has no such tag, or what came is not the pinned tree.
    """
    target = fetched_path(pin)
    if target.is_dir():
        source = _checkout(target, pin)
        if source.pristine:
            return source
        raise SourceError(f"{target} is there already and is not {pin.tag}: {_brief(source)}.", "Move it away first.")
    if "://" not in origin and not _is_scp_like(origin):
        if not Path(origin).exists():
            raise SourceError(f"{origin} does not exist; expected a repository, a mirror or a git bundle.")
        origin = str(Path(origin).resolve())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that a fetch that fails or is interrupted never leaves half a checkout there.
        temporary = tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-")
    except OSError as error:
        raise SourceError(
            f"{target.parent} cannot be written: {error.strerror}.", "Set XDG_CACHE_HOME to a folder that can."
        ) from error
    with temporary as folder:
        clone = Path(folder) / "clone"
        _git_clone(pin, origin, clone)
        source = _checkout(clone, pin)
        if not (source.pristine and source.tag == pin.tag):
            raise SourceError(
                f"{origin} has a tag {pin.tag}, but not the pinned one: {_brief(source)}.",
                f"Fetch it from {UPSTREAM}.",
            )
        with contextlib.suppress(OSError):
            clone.rename(target)  # another node may have been faster; what lies there then is checked all the same
    return _checkout(target, pin)


def _is_scp_like(origin: str) -> bool:
    """Whether git would take a string for host:path and not for a file."""
    return re.match(r"[^/]+:", origin) is not None


def _git_clone(pin: Pin, origin: str, clone: Path) -> None:
    # No hooks, no line-end conversion, no submodules, no questions: the files as they are in the commit.
    command = ["git", "-c", "core.autocrlf=false", "-c", "core.eol=lf", "-c", "core.hooksPath=/dev/null"]
    command += ["-c", "advice.detachedHead=false", "clone", "--quiet", "--no-recurse-submodules", "--branch", pin.tag]
    command += ["--", origin, str(clone)]
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set when a git hook started this
        environment.pop(name, None)
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SourceError("There is no git on this machine.", "Install git, or copy a checkout here.") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        bundle = f"git bundle create InternEvo.bundle {pin.tag}"
        raise SourceError(
            f"git could not clone {pin.tag} from {origin}: {last}.",
            f"Without a network, run `{bundle}` in a full clone elsewhere, bring the file and name it with --from.",
        )
