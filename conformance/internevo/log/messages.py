"""What InternEvo's logger says besides the metrics: the head of a run, and its events."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from conformance.internevo.log.records import (
    ALLOCATOR_FLUSH,
    CHECKPOINT_LOADED,
    CHECKPOINT_SAVED,
    LOSS_SCALE,
    OVERFLOW,
    SKIPPED_BATCH,
)

MAX_MESSAGE = 500
_MAX_SETTINGS = 200
_MAX_HOSTS = 4096

# A head under construction: the fields of LogHead, dicts and sets still open.
Head = dict[str, Any]
# What a message adds to the events: kind and value.
Told = tuple[str, float | None] | None

_DICT_ENTRY = re.compile(rb"'(\w{1,60})': ([^\s,{}\[\]]{1,80})")
_SETTING = rb"([\w.]{1,60}): ([-+.\dainfeE]{1,40}|True|False)"
_NUMBER = re.compile(rb"[-+]?(?:\d{1,20}\.?\d{0,20}(?:e[-+]?\d{1,3})?|inf|nan)$")


def text(data: bytes) -> str:
    """Decode a part of a log.

    Args:
        data: Bytes of UTF-8 or, failing that, GBK.

    Returns:
        The text, shortened to MAX_MESSAGE characters.
    """
    data = data[: MAX_MESSAGE * 4]
    try:
        decoded = data.decode("utf-8")
    except UnicodeDecodeError:
        decoded = data.decode("gb18030", "replace")
    return decoded.strip()[:MAX_MESSAGE]


def _value(word: bytes) -> float | str:
    if word in (b"True", b"False"):
        return float(word == b"True")
    if _NUMBER.match(word):
        return float(word)
    return text(word).strip("'\"")


def _entries(data: bytes) -> dict[str, float | str]:
    return {m[1].decode("ascii"): _value(m[2]) for m in _DICT_ENTRY.finditer(data[:8192])}


def _parallel(head: Head, match: re.Match[bytes]) -> Told:
    for word, name in (
        (b"data", "data_parallel"),
        (b"pipeline", "pipeline"),
        (b"tensor", "tensor"),
        (b"weight", "weight"),
    ):
        found = re.search(word + rb" parallel size: (\d{1,9})", match.string[match.end() :])
        if found:
            head[name] = int(found[1])
    return None


def _elements(head: Head, match: re.Match[bytes]) -> Told:
    counts = [int(number) for number in re.findall(rb"\d{1,18}", match[1])]
    # One message for each parameter group of the optimizer.
    head["elements"] = head.get("elements", 0) + sum(counts)
    return None


def _memory(head: Head, match: re.Match[bytes]) -> Told:
    peak = float(match[1])
    head["peak_reserved_gib"] = max(peak, head.get("peak_reserved_gib", 0.0))
    return None


def _host(head: Head, match: re.Match[bytes]) -> Told:
    hosts = head.setdefault("hosts", {})
    if len(hosts) < _MAX_HOSTS:
        hosts[text(match[1])] = None
    return None


def _layers(head: Head, match: re.Match[bytes]) -> Told:
    stages = re.findall(rb"\[((?:\(\d{1,6}, \d{1,6}\)(?:, )?){1,64})\]", match[1][:65536])
    spans = [[(int(a), int(b)) for a, b in re.findall(rb"\((\d+), (\d+)\)", stage)] for stage in stages]
    head["stage_layers"] = tuple(sum(b - a for a, b in stage) for stage in spans)
    return None


def _data(head: Head, match: re.Match[bytes]) -> Told:
    head["data"] = (int(match[1]), int(match[2]), int(match[3]))
    return None


def _resumed(head: Head, match: re.Match[bytes]) -> Told:
    head["resumed_from"] = text(match[1])
    return CHECKPOINT_LOADED, None


def _dict(name: str) -> Callable[[Head, re.Match[bytes]], Told]:
    def read(head: Head, match: re.Match[bytes]) -> Told:
        head[name] = _entries(match.string[match.end() :])
        return None

    return read


def _number(name: str) -> Callable[[Head, re.Match[bytes]], Told]:
    def read(head: Head, match: re.Match[bytes]) -> Told:
        head[name] = int(match[1])
        return None

    return read


def _event(kind: str) -> Callable[[Head, re.Match[bytes]], Told]:
    def read(head: Head, match: re.Match[bytes]) -> Told:
        return kind, float(match[1]) if match.re.groups and match[1] else None

    return read


def _setting(head: Head, match: re.Match[bytes]) -> Told:
    settings = head.setdefault("settings", {})
    if len(settings) < _MAX_SETTINGS:
        value = _value(match[2])
        settings[match[1].decode("ascii")] = value
    return None


# Beginnings of messages, and what to do with them; the first that matches decides.
_MESSAGES: tuple[tuple[re.Pattern[bytes], Callable[[Head, re.Match[bytes]], Told]], ...] = tuple(
    (re.compile(pattern), handler)
    for pattern, handler in (
        (rb"Distributed environment is initialized", _parallel),
        (rb"initialized seed on rank \d{1,9}, numpy: (\d{1,18})", _number("seed")),
        (rb"process rank \d{1,9} is bound to host:(\S{1,255})", _host),
        (rb"=+New Run .{0,60} on host:([^,=\s]{1,255})", _host),
        (rb"Number of elements on ranks: \[([\d, ]{1,65536})\]", _elements),
        (rb"The layer sharding is (.*)", _layers),
        (rb"Model: (?=\{)", _dict("model")),
        (rb"adam: (?=\{)", _dict("adam")),
        (rb"grad_scaler: (?=\{)", _dict("grad_scaler")),
        (rb"Rank:\d{1,9}\S{0,60}: Step \d{1,15}: .{0,200}Max_Reserved ([\d.]{1,20}) GB", _memory),
        (
            rb"Find `(\d{1,12})` datasets,\s{1,40}(\d{1,12}) samples,\s{1,40}delete `(\d{1,12})` because of short",
            _data,
        ),
        (rb"=+Resume training from `([^`]{0,4096})`", _resumed),
        (rb"Saving checkpoint to `[^`]{0,4096}` at batch count:(\d{1,15})", _event(CHECKPOINT_SAVED)),
        (
            rb"(?:Overflow occurs|No overflow for).{0,80}, the loss scale is adjusted to ([\d.e+]{1,40})",
            _event(LOSS_SCALE),
        ),
        (rb"Overflow occurs, please check it", _event(OVERFLOW)),
        (rb"Nan grad norm occurs", _event(OVERFLOW)),
        (rb"Skip batch count:`(\d{1,15})`", _event(SKIPPED_BATCH)),
        (rb"Rank:\d{1,9}\S{0,60}: pytorch allocator cache flushes (\d{1,15}) times", _event(ALLOCATOR_FLUSH)),
        (_SETTING + rb"\s*$", _setting),
    )
)
# InternEvo's train.py catches every exception, logs this, and exits with 0.
RAISED = re.compile(rb"Raise exception from (\S{1,255}) with rank id: (\d{1,9})")
# What begins like one of these, anywhere in a chunk. A message ends with its line, or where another begins inside. The
# first bytes of them all come first, because one look tells most chatter from them.
_GROUP = re.compile(rb"(?<!\\)\((?!\?)")
KNOWN = rb"(?=[=DFMNORSTagip])(?:%b)|%b" % (
    _GROUP.sub(b"(?:", b"|".join(pattern.pattern for pattern in (*(known for known, _ in _MESSAGES[:-1]), RAISED))),
    _GROUP.sub(b"(?:", _SETTING) + rb"[^\S\r\n]*(?=[\r\n\[]|\d{4}-|\Z)",
)

# Said before the first message of the run that they belong to.
IN_PRELUDE = re.compile(rb"initialized seed on rank|process rank")
STARTS_RUN = re.compile(rb"Distributed environment is initialized")


def read_message(head: Head, message: bytes) -> tuple[bool, Told]:
    """Read one message of the logger.

    Args:
        head: The run's head so far; filled in.
        message: What stands after the logger's header.

    Returns:
        Whether the message is a known one, and the event that it tells, if any.
    """
    for pattern, handler in _MESSAGES:
        match = pattern.match(message)
        if match:
            try:
                return True, handler(head, match)
            except ValueError:  # a number like 1.2.3
                return False, None
    return False, None
