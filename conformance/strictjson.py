"""Bounded, strict JSON: one text has one meaning here, and a hostile text costs little.

Python's own ``json`` keeps the last of two equal keys, reads NaN and 1e400, and nests until the stack ends; each of
these lets two readers of the same signed bytes see two different reports.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import chain
from typing import Any, NoReturn

from conformance.errors import JsonError

# A report that lists 10,000 files takes about 2 MiB; parsed Python objects may take 30 times their text.
MAX_BYTES = 8 * 2**20
# Our deepest document nests 8 levels.
MAX_DEPTH = 32
# What a signed 64-bit reader in any other language can hold.
_INTEGERS = range(-(2**63), 2**63)
# Python's longest float repr is 24 characters; long literals make the conversion quadratic.
_MAX_NUMBER_CHARS = 64
# What opens or parts values and keys. One of each kind takes at most some 100 bytes: an object of one key, 200.
_MARKS = (b"[", b"{", b":", b",")
_BYTES_PER_MARK = 100


def quoted(text: str | bytes, limit: int = 80) -> str:
    """Show a foreign string safely on a terminal.

    Args:
        text: Any string or bytes, also a hostile one.
        limit: Characters to show at most.

    Returns:
        The text in quotes, ASCII only, control characters escaped, shortened with "...".
    """
    return ascii(text[:limit]) + ("..." if len(text) > limit else "")


def loads(data: bytes, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH, what: str = "The JSON text") -> Any:
    """Parse UTF-8 JSON under strict rules.

    Args:
        data: The bytes of one JSON text.
        max_bytes: Largest accepted size in bytes.
        max_depth: Deepest accepted nesting of arrays and objects.
        what: What the text is, to begin the error's sentence with.

    Returns:
        The value, of dict, list, str, int, float, bool and None.

    Raises:
        JsonError: Too large or too deep; not UTF-8; not JSON; a key twice in one object; NaN, an infinity or a number
            that overflows; an integer beyond 64 bits; half of a surrogate pair.
    """
    try:
        return _parse(data, max_bytes, max_depth)
    except JsonError as error:
        raise JsonError(f"{what} is refused: {error.message}.") from error


def memory(data: bytes) -> int:
    """Tell how much memory a text would take, without parsing it: of empty lists, some 30 times as much as on disk.

    Args:
        data: The bytes of any number of JSON texts.

    Returns:
        Bytes; a text of ours takes about half as many.
    """
    # One character outside the basic plane makes all of its string four bytes wide.
    width = 1 if data.isascii() and b"\\u" not in data else 4
    return width * len(data) + _BYTES_PER_MARK * sum(map(data.count, _MARKS))


def dumps(value: object, *, what: str = "The value") -> bytes:
    """Write a value as compact JSON with sorted keys, such that ``loads`` accepts it.

    Args:
        value: Built of dict with string keys, list, tuple, str, int, float, bool and None.
        what: What the value is, to begin the error's sentence with.

    Returns:
        UTF-8 bytes without a trailing newline; equal values give equal bytes.

    Raises:
        JsonError: The value holds NaN, an infinity, a foreign type, or anything else that ``loads`` refuses.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        data = text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise JsonError(f"{what} cannot be written as strict JSON: {error}.") from error
    loads(data, what=what)
    return data


def _parse(data: bytes, max_bytes: int, max_depth: int) -> Any:
    if len(data) > max_bytes:
        raise JsonError(f"it has {len(data)} bytes, more than the {max_bytes} allowed")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_real,
            parse_constant=_constant,
        )
    except UnicodeDecodeError as error:
        raise JsonError(f"byte {error.start} is not valid UTF-8") from error
    except json.JSONDecodeError as error:
        raise JsonError(f"not JSON at character {error.pos} ({error.msg})") from error
    except RecursionError as error:
        raise JsonError(f"it nests deeper than {max_depth} levels") from error
    _check_within(value, max_depth)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise JsonError(f"the key {quoted(key)} occurs twice in one object")
        result[key] = value
    return result


def _integer(text: str) -> int:
    if len(text) > _MAX_NUMBER_CHARS or int(text) not in _INTEGERS:
        raise JsonError(f"the integer {quoted(text, 24)} does not fit 64 bits")
    return int(text)


def _real(text: str) -> float:
    if len(text) > _MAX_NUMBER_CHARS:
        raise JsonError(f"the number {quoted(text, 24)} has more than {_MAX_NUMBER_CHARS} characters")
    if math.isinf(float(text)):
        raise JsonError(f"the number {quoted(text)} overflows a 64-bit float")
    return float(text)


def _constant(text: str) -> NoReturn:
    raise JsonError(f"{text} is not a JSON number")


def _check_within(value: object, max_depth: int) -> None:
    """Refuse nesting beyond the cap and strings that no UTF-8 can hold; iterative, so that depth costs no stack."""
    open_at: list[Iterator[object]] = [iter((value,))]  # one for each level: a list of all to come would take memory
    while open_at:
        for item in open_at[-1]:
            if isinstance(item, str):
                if not item.isascii() and any("\ud800" <= char <= "\udfff" for char in item):
                    raise JsonError(f"the string {quoted(item)} holds half of a surrogate pair")
            elif isinstance(item, dict | list):
                if len(open_at) > max_depth:
                    raise JsonError(f"it nests deeper than {max_depth} levels")
                open_at.append(iter(item) if isinstance(item, list) else chain(item.keys(), item.values()))
                break
        else:
            open_at.pop()
