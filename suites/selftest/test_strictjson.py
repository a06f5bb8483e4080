from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance import strictjson
from conformance.errors import JsonError

# Each is one text that some JSON reader somewhere accepts, and what the refusal must say.
ATTACKS = {
    "duplicate key": (b'{"loss": 9, "loss": 1}', "the key 'loss' occurs twice"),
    "duplicate key by escape": (b'{"a": 1, "\\u0061": 2}', "the key 'a' occurs twice"),
    "duplicate key, nested": (b'[{"x": {"a": 1, "a": 1}}]', "the key 'a' occurs twice"),
    "NaN": (b'{"loss": NaN}', "NaN is not a JSON number"),
    "Infinity": (b"[Infinity]", "Infinity is not a JSON number"),
    "-Infinity": (b"[-Infinity]", "-Infinity is not a JSON number"),
    "1e400": (b"[1e400]", "'1e400' overflows"),
    "-1e400": (b"[-1e400]", "'-1e400' overflows"),
    "integer of 2**63": (b"[9223372036854775808]", "does not fit 64 bits"),
    "integer of -2**63-1": (b"[-9223372036854775809]", "does not fit 64 bits"),
    "integer of a million digits": (b"1" * 10**6, "does not fit 64 bits"),
    "float of a million digits": (b"1." + b"1" * 10**6, "more than 64 characters"),
    "invalid UTF-8": (b'["\xff"]', "byte 2 is not valid UTF-8"),
    "overlong UTF-8": (b'["\xc0\xaf"]', "byte 2 is not valid UTF-8"),
    "surrogate in UTF-8": (b'["\xed\xa0\x80"]', "byte 2 is not valid UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not valid UTF-8"),
    "byte order mark": (b"\xef\xbb\xbf{}", "not JSON"),
    "lone high surrogate": (b'["\\ud800"]', "half of a surrogate pair"),
    "lone low surrogate": (b'["\\udc00 after"]', "half of a surrogate pair"),
    "lone surrogate in a key": (b'{"\\ud800": 1}', "half of a surrogate pair"),
    "deep arrays": (b"[" * 100_000 + b"]" * 100_000, "deeper than 32"),
    "deep arrays, just too deep": (b"[" * 33 + b"]" * 33, "deeper than 32"),
    "deep objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "deeper than 32"),
    "deep and unclosed": (b"[" * 100_000, "deeper than 32"),
    "too large": (b" " * strictjson.MAX_BYTES + b"1", "more than the 8388608 allowed"),
    "empty": (b"", "not JSON"),
    "two values": (b"{} {}", "not JSON"),
    "trailing NUL": (b"{}\x00", "not JSON"),
    "trailing comma": (b"[1,]", "not JSON"),
    "comment": (b"[1] // ok", "not JSON"),
    "single quotes": (b"{'a': 1}", "not JSON"),
    "leading zero": (b"[01]", "not JSON"),
    "leading plus": (b"[+1]", "not JSON"),
    "hexadecimal": (b"[0x10]", "not JSON"),
    "bare point": (b"[1.]", "not JSON"),
    "Arabic digits": ("[١]".encode(), "not JSON"),
    "raw control character": (b'["\x1b[2J"]', "not JSON"),
    "no-break space": ("[1,\u00a02]".encode(), "not JSON"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_refused_with_a_sentence(attack: str) -> None:
    text, reason = ATTACKS[attack]
    with pytest.raises(JsonError) as caught:
        strictjson.loads(text, what="The journal's line 3")
    sentence = str(caught.value)
    assert sentence.startswith("The journal's line 3 is refused: ")
    assert reason in sentence
    assert sentence.isascii()
    assert sentence.isprintable()
    assert len(sentence) < 300


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b" null\n", None),
        (b"[9223372036854775807,-9223372036854775808]", [2**63 - 1, -(2**63)]),
        (b"[1e308, 0.1, -0.0]", [1e308, 0.1, -0.0]),
        (b'"\\ud83d\\ude00"', "😀"),
        ('{"中": "文"}'.encode(), {"中": "文"}),
        (b"[" * 32 + b"]" * 32, json.loads("[" * 32 + "]" * 32)),
    ],
)
def test_accepted(text: bytes, value: object) -> None:
    assert strictjson.loads(text) == value


def test_the_refusal_of_a_duplicate_among_many_keys_is_linear() -> None:
    keys = ",".join(f'"{number}":0' for number in range(200_000))
    with pytest.raises(JsonError, match="'199999' occurs twice"):
        strictjson.loads(f'{{{keys},"199999":0}}'.encode())


def test_caps_are_the_callers() -> None:
    with pytest.raises(JsonError, match="3 bytes, more than the 2 allowed"):
        strictjson.loads(b"[1]", max_bytes=2)
    with pytest.raises(JsonError, match="deeper than 1 "):
        strictjson.loads(b"[[1]]", max_depth=1)


def test_dumps_is_compact_sorted_utf8() -> None:
    assert strictjson.dumps({"b": (1, 2.5), "a": "中"}) == '{"a":"中","b":[1,2.5]}'.encode()


CIRCULAR: list[object] = []
CIRCULAR.append(CIRCULAR)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        {"x": float("inf")},
        2**63,
        "\ud800",
        {"\ud800": 1},
        b"bytes",
        {1: 2, "a": 3},
        {1: 2, "1": 3},
        CIRCULAR,
    ],
    ids=["NaN", "infinity", "large", "surrogate", "surrogate key", "bytes", "mixed keys", "equal keys", "circular"],
)
def test_dumps_refuses_what_loads_refuses(value: object) -> None:
    with pytest.raises(JsonError):
        strictjson.dumps(value)


def test_dumps_refuses_depth() -> None:
    value: list[object] = []
    for _ in range(32):
        value = [value]
    with pytest.raises(JsonError, match="deeper"):
        strictjson.dumps(value)


text = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_round_trip(value: object) -> None:
    assert strictjson.loads(strictjson.dumps(value)) == value


def accepted_means_the_same_everywhere(data: bytes) -> None:
    """Refused with JsonError alone, or read as Python's own reader does, without loss on the way out and in."""
    try:
        value = strictjson.loads(data)
    except JsonError:
        return
    assert value == json.loads(data)
    assert strictjson.loads(strictjson.dumps(value)) == value


@settings(max_examples=300)
@given(st.binary(max_size=64))
def test_arbitrary_bytes(data: bytes) -> None:
    accepted_means_the_same_everywhere(data)


SEEDS = st.sampled_from([text for text, _ in ATTACKS.values() if len(text) < 100]) | values.map(strictjson.dumps)


@settings(max_examples=300)
@given(SEEDS, st.lists(st.tuples(st.integers(0, 100), st.integers(0, 2), st.binary(max_size=3)), max_size=4))
def test_mutated_json(data: bytes, edits: list[tuple[int, int, bytes]]) -> None:
    for place, removed, inserted in edits:
        data = data[:place] + inserted + data[place + removed :]
    accepted_means_the_same_everywhere(data)


@settings(max_examples=300)
@given(st.text(alphabet='[]{}",:\\ud8c0eE+-.0123456789ntNaIfi ', max_size=40))
def test_json_like_text(data: str) -> None:
    accepted_means_the_same_everywhere(data.encode())


@given(st.text() | st.binary())
def test_quoted_is_safe_on_a_terminal(foreign: str | bytes) -> None:
    shown = strictjson.quoted(foreign, 20)
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) <= 20 * 10 + 6


UNITS = {
    "empty lists": b"[]",
    "lists in lists": b"[" * 30 + b"]" * 30,
    "objects in objects": b'{"":' * 29 + b"0" + b"}" * 29,
    "empty objects": b"{}",
    "lists in objects": b'{"":[]}',
    "short strings": b'"ab"',
    "strings beyond ASCII": '"éé"'.encode(),
    "strings beyond the basic plane": '"😀%s"'.encode() % (b"a" * 1000),
    "the same, escaped": b'"\\ud83d\\ude00%s"' % (b"a" * 1000),
    "numbers": b"1.5,999",
}


@pytest.mark.parametrize("unit", UNITS)
def test_memory_is_not_more_than_is_told(unit: str) -> None:
    data = b"[" + b",".join([UNITS[unit]] * (60_000 // len(UNITS[unit]))) + b"]"
    tracemalloc.start()
    try:
        value = strictjson.loads(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert value
    told = strictjson.memory(data)
    assert told / 4 < peak < 1.2 * told + 4 * len(data)  # the text, as str, is let go of afterwards


def test_memory_of_keys() -> None:
    data = json.dumps({f"{number:x}": 1 for number in range(10_000)}, separators=(",", ":")).encode()
    tracemalloc.start()
    try:
        strictjson.loads(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.2 * strictjson.memory(data)
