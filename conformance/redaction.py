"""What is replaced in a run's evidence before it is hashed: addresses, secrets, and the names of users.

The judged evidence is the redacted evidence, at the vendor as at the lab. Each rule leaves a mark of its own, so that a
reader sees that something was there: [address-1] (one number for one address, in the whole run), [secret], [user].
Addresses that mean the machine itself or any machine (127.0.0.1, 0.0.0.0, ::1) stay: they tell of nobody.
"""

from __future__ import annotations

import getpass
import ipaddress
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from conformance import evidence
from conformance.evidence import RunDirectory

ADDRESS, SECRET, USER = "address", "secret", "user"

_BLOCK = 1 << 20
# A line beyond this is cut; a secret across the cut would be missed, and no log line is that long.
_MAX_LINE = 16 << 20
# Names that tell of nobody.
_COMMON_USERS = ("root", "user", "admin", "ubuntu", "debian", "ec2-user", "nobody", "runner", "docker", "jovyan")
# What a driver or a package calls its version may look like an address.
_KEPT_FIELDS = ("driver", "firmware", "kernel", "packages", "python", "serial", "software", "sha256", "uuid", "version")


@dataclass
class Redactor:
    """What has to be known to redact the files of one run alike.

    Args:
        home: Home directory of who ran it; empty where it shall not be looked for.
        user: Name of who ran it; empty where it shall not be looked for.
        addresses: Number of each address met so far; grows.
        counts: How often each rule replaced something in the file at hand; grows.
    """

    home: bytes = b""
    user: bytes = b""
    addresses: dict[bytes, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def mark(self, rule: str, number: str = "") -> bytes:
        """Count a replacement.

        Args:
            rule: Which rule made it.
            number: What distinguishes it from others of the rule.

        Returns:
            What stands in its place.
        """
        self.counts[rule] += 1
        return f"[{rule}{number}]".encode()


# --- addresses -------------------------------------------------------------------------------------------------------

_IPV4 = re.compile(rb"(?<![\w.])(?<!==)\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?!\w|\.\d)")
# Global, unique local and link-local ones; anything else in hex and colons is a time, a bus id or a name in C++.
_IPV6 = re.compile(
    rb"(?<![\w:.])(?:[23][0-9A-Fa-f]{3}|[fF][cCdD][0-9A-Fa-f]{2}|[fF][eE][89abAB][0-9A-Fa-f])"
    rb":[0-9A-Fa-f:]{1,34}(?:%\w+)?(?![\w:])"
)
# What every address has: searched for from a dot or a colon, a hundred times faster than from a digit.
_THREE_DOTS = re.compile(rb"\.\d{1,3}\.\d{1,3}\.")
_FOUR_COLONS = re.compile(rb":[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{1,4}:")


def _addresses(text: bytes, redactor: Redactor) -> bytes:
    def replace(match: re.Match[bytes]) -> bytes:
        try:
            address = ipaddress.ip_address(match[0].split(b"%")[0].decode())
        except ValueError:
            return match[0]
        if address.is_loopback or address.is_unspecified:
            return match[0]
        number = redactor.addresses.setdefault(address.packed, len(redactor.addresses) + 1)
        return redactor.mark(ADDRESS, f"-{number}")

    if _THREE_DOTS.search(text):
        text = _IPV4.sub(replace, text)
    if b"::" in text or _FOUR_COLONS.search(text):
        text = _IPV6.sub(replace, text)
    return text


# --- secrets ---------------------------------------------------------------------------------------------------------

_SECRET_NAME = (
    rb"(?:passw(?:or)?d|passphrase|secret|api[_-]?key|access[_-]?key|private[_-]?key|credentials?|token|authorization)"
    rb"(?:[_-](?:id|key|value))*"
)
_SECRET_KEY = re.compile(rb"(?i:" + _SECRET_NAME + rb")\Z")
# Numbers and switches are settings: eos_token=2, use_token=true.
_NO_SECRET = rb"(?!(?i:[-+]?[\d.,]+(?:e[-+]?\d+)?|true|false|none|null|nan)(?![^\s\"',;)\]}]))(?!\[)"
_VALUE = _NO_SECRET + rb"[^\s\"',;()\[\]{}\\]{3,}"
_ASSIGNED = re.compile(
    rb"((?i:" + _SECRET_NAME + rb")[\"']?[ \t]{0,4}[=:][ \t]{0,4}[\"']?"
    rb"(?:(?i:bearer|basic)[ \t]{1,4})?)(?!(?i:bearer|basic)\s)(" + _VALUE + rb")"
)
_OPTION = re.compile(rb"(--[\w-]{0,40}(?i:" + _SECRET_NAME + rb")[ \t]{1,4}[\"']?)(" + _VALUE + rb")")
_IN_URL = re.compile(rb"(://)(?!\[)[^\s/@\"'\[\]]{1,200}(?=@)")
_HOOK = re.compile(rb"(/hook/|hooks\.slack\.com/services/)([\w/-]{8,200})")
_KNOWN = re.compile(
    rb"()(?<![\w-])(?:gh[pousr]_\w{20,255}|github_pat_\w{20,255}|hf_[A-Za-z0-9]{20,255}|glpat-[\w-]{16,255}"
    rb"|xox[abeprs]-[\w-]{10,255}|AKIA[0-9A-Z]{16}|sk-[\w-]{20,255}|eyJ[\w-]{10,4096}\.[\w-]{10,4096}\.[\w-]{1,4096})"
)
_KNOWN_BEGINNINGS = tuple(
    b"ghp_ gho_ ghu_ ghs_ ghr_ github_pat_ hf_ glpat- xox AKIA sk- eyJ".split()
)  # fmt: skip
_SECRET_WORDS = (b"passw", b"passphrase", b"secret", b"key", b"credential", b"authorization")


def _secrets(text: bytes, redactor: Redactor) -> bytes:
    def replace(match: re.Match[bytes]) -> bytes:
        return match[1] + redactor.mark(SECRET)

    # Searching for a plain word is ten times faster than any of these expressions; the last two take line by line.
    lowered = text.lower()
    if b"://" in text and b"@" in text:
        text = _IN_URL.sub(replace, text)
    if b"hook" in lowered:
        text = _HOOK.sub(replace, text)
    if any(beginning in text for beginning in _KNOWN_BEGINNINGS):
        text = _KNOWN.sub(replace, text)
    # Every step's line tells of tokens, which no secret is called.
    if _names_secret(lowered):
        lines = text.splitlines(keepends=True)
        text = b"".join(
            _OPTION.sub(replace, _ASSIGNED.sub(replace, line)) if _names_secret(line.lower()) else line
            for line in lines
        )
    return text


def _names_secret(lowered: bytes) -> bool:
    return lowered.count(b"token") > lowered.count(b"tokens") or any(word in lowered for word in _SECRET_WORDS)


# --- users -----------------------------------------------------------------------------------------------------------

_HOME = re.compile(rb"(/(?:home|Users)/)[^/\s\"'`:,;()<>\[\]{}\\]+")


def _users(text: bytes, redactor: Redactor) -> bytes:
    def replace(match: re.Match[bytes]) -> bytes:
        return match[1] + redactor.mark(USER)

    if b"/home/" in text or b"/Users/" in text:
        text = _HOME.sub(replace, text)
    if redactor.home and redactor.home in text:
        text = re.sub(rb"()" + re.escape(redactor.home) + rb"(?![\w.-])", replace, text)
    if redactor.user and redactor.user in text:
        name = re.escape(redactor.user)
        assigned = rb"(?<![A-Za-z])(?i:user|username|logname|login|owner)[\"']?[ \t]{0,4}[=:][ \t]{0,4}[\"']?"
        text = re.sub(rb"(/)" + name + rb"(?=/)", replace, text)
        text = re.sub(rb"((?<![\w.-]))" + name + rb"(?=@)", replace, text)
        text = re.sub(rb"(" + assigned + rb")" + name + rb"(?![\w.-])", replace, text)
    return text


# --- texts, JSON, files, runs ----------------------------------------------------------------------------------------


def redact_text(text: bytes, redactor: Redactor) -> bytes:
    """Redact whole lines of a log.

    Args:
        text: The lines.
        redactor: What was met before; counts what is replaced.

    Returns:
        The lines, as many as before; the same when it is redacted again.
    """
    return _users(_addresses(_secrets(text, redactor), redactor), redactor)


def redact_json(value: Any, redactor: Redactor) -> Any:
    """Redact the texts of a JSON value; versions and digests stay.

    Args:
        value: The value.
        redactor: What was met before; counts what is replaced.

    Returns:
        The value, of the same form.
    """
    if isinstance(value, str):
        return redact_text(value.encode(), redactor).decode()
    if isinstance(value, list):
        return [redact_json(item, redactor) for item in value]
    if isinstance(value, dict):
        return {key: _redact_member(key, item, redactor) for key, item in value.items()}
    return value


def _redact_member(key: str, item: Any, redactor: Redactor) -> Any:
    if key in _KEPT_FIELDS:
        return item
    if isinstance(item, str):
        # A secret is known by its name, which is the key here.
        if _SECRET_KEY.search(key.encode()) and re.match(_VALUE, item.encode()):
            return redactor.mark(SECRET).decode()
        if redactor.user and item.encode() == redactor.user and key.lower() in ("user", "username", "logname"):
            return redactor.mark(USER).decode()
    return redact_json(item, redactor)


def redact_run(run: Path, redactor: Redactor | None = None) -> list[dict[str, Any]]:
    """Redact the logs and the environment of a run in place, and write down what was replaced.

    Configurations and patches stay as they are: the judgement compares them byte by byte with what was declared. So do
    segments of earlier attempts, which were redacted when these ended, or are by :func:`redact_segment`.

    Args:
        run: Run directory, whose processes have ended.
        redactor: Whom to look for; None for whoever runs this.

    Returns:
        Rule, file and count of each, as environment/redactions.json holds them.
    """
    names = [name for name in RunDirectory(run).names() if evidence.LIVE.match(name)]
    return _redact_files(run, names, evidence.REDACTIONS, _myself() if redactor is None else redactor)


def redact_segment(run: Path, number: int, redactor: Redactor | None = None) -> None:
    """Redact what an earlier attempt left, where it was killed before it could do so itself.

    Args:
        run: Run directory of the run that goes on from it.
        number: Which attempt, from 0.
        redactor: Whom to look for; None for whoever runs this.
    """
    own = re.compile(rf"(?:logs|environment)/segment{number}/")
    names = [name for name in RunDirectory(run).names() if own.match(name)]
    record = f"environment/segment{number}/{evidence.REDACTIONS.rpartition('/')[2]}"
    if record not in names:
        (run / record).parent.mkdir(parents=True, exist_ok=True)
        _redact_files(run, names, record, _myself() if redactor is None else redactor)


def _redact_files(run: Path, names: Iterable[str], record: str, redactor: Redactor) -> list[dict[str, Any]]:
    found = []
    for name in names:
        if name in (evidence.SIGNER, record):
            continue
        redactor.counts = Counter()
        if name.endswith(".json"):
            _redact_json_file(run / name, redactor)
        else:
            _redact_log(run / name, run / "work" / "redacted", redactor)
        found += [{"rule": rule, "file": name, "count": n} for rule, n in sorted(redactor.counts.items())]
    evidence.write_json(run, record, {"redactions": found})
    return found


def _myself() -> Redactor:
    home = os.path.expanduser("~")  # noqa: PTH111  Path.home raises where there is none
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        user = ""
    return Redactor(
        home.encode(errors="surrogateescape") if home not in ("/", "/root", "~") and len(home) > 3 else b"",
        user.encode(errors="surrogateescape") if len(user) > 2 and user not in _COMMON_USERS else b"",
    )


def _redact_json_file(path: Path, redactor: Redactor) -> None:
    try:
        value = json.loads(path.read_bytes())
    except ValueError:  # cut off by a full disk: not ours to repair, but still to redact
        path.write_bytes(redact_text(path.read_bytes(), redactor))
        return
    redacted = redact_json(value, redactor)
    if redactor.counts:
        evidence.write_json(path.parent, path.name, redacted)


def _redact_log(path: Path, scratch: Path, redactor: Redactor) -> None:
    """Redact block by block; a file without anything to redact is only read."""
    out: IO[bytes] | None = None
    done = 0
    with path.open("rb") as source:
        try:
            for block in _blocks(source.read):
                redacted = redact_text(block, redactor)
                if out is None and redacted != block:
                    scratch.parent.mkdir(exist_ok=True)
                    out = scratch.open("wb")
                    with path.open("rb") as again:
                        for kept in _blocks(again.read, done):
                            out.write(kept)
                if out is not None:
                    out.write(redacted)
                done += len(block)
        finally:
            if out is not None:
                out.close()
    if out is not None:
        os.replace(scratch, path)  # noqa: PTH105


def _blocks(read: Callable[[int], bytes], limit: int | None = None) -> Iterator[bytes]:
    """Blocks of whole lines; all of them, or the first ``limit`` bytes."""
    rest, left = b"", limit
    while chunk := read(_BLOCK if left is None else min(_BLOCK, left)):
        left = None if left is None else left - len(chunk)
        rest += chunk
        cut = rest.rfind(b"\n") + 1 or (len(rest) if len(rest) > _MAX_LINE else 0)
        if cut:
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest
