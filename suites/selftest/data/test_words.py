from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.data import words

HEAD, TAIL = b"[0,", b" 1]\n"
# Few letters and many lengths: words that begin alike, also with what fills up a short key.
WORD = st.tuples(st.sampled_from(["", " ", "  "]), st.sampled_from("a\x00."), st.integers(1, 20)).map(
    lambda word: word[0] + word[1] * word[2]
)
TEXT = st.lists(WORD | st.text(max_size=20) | st.sampled_from(["\n", "\u2581", "12"])).map("".join)


def whole(text):
    """A tokenizer that merges nothing, and puts a space in front of a text as sentencepiece does."""
    return b"".join(b" %d," % (ord(sign) + 2) for sign in " " + text.replace("\u2581", " ")) if text else b""


@pytest.mark.parametrize(("bits", "most", "size"), [(19, 2**19, 32), (1, 2**19, 32), (4, 5, 3), (1, 0, 0)])
@settings(deadline=None)
@given(st.lists(st.lists(TEXT, max_size=4), max_size=6))
def test_each_text_becomes_its_line_whatever_is_known_already(bits, most, size, batches):
    with patch.multiple(words, SLOT_BITS=bits, KNOWN_WORDS=most, KNOWN_BYTES=size):
        encode = words.word_encoder(whole, HEAD, TAIL)
        for texts in batches:
            assert encode(texts) == b"".join(HEAD + whole(text) + TAIL for text in texts)


def test_a_word_is_encoded_once():
    asked = []
    encode = words.word_encoder(lambda text: asked.append(text) or whole(text), HEAD, TAIL)
    del asked[:]
    for _ in range(3):
        encode(["some words, some" + " words" * 9, "some more"])
    assert sorted(word for text in asked for word in text.split("\n")) == ["", " more", " some", " words", ","]


def test_a_word_that_is_long_is_not_kept():
    asked = []
    encode = words.word_encoder(lambda text: asked.append(text) or whole(text), HEAD, TAIL)
    for _ in range(3):
        encode(["a" * words.KNOWN_BYTES])
    assert asked == ["\n"] + ["\n " + "a" * words.KNOWN_BYTES] * 3


@given(st.text(min_size=1))
def test_words_are_the_text_in_order(text):
    data = text.encode()
    starts, sizes = words.cut(data)
    assert b"".join(data[start : start + size] for start, size in zip(starts, sizes, strict=True)) == data
    assert min(sizes) > 0


def test_words_end_where_they_should():
    text = "  The caf\u00e9's na\u00efve_x(y)...  12 :a\n\n \u4f60\u597d,\u4e16 z"
    data = text.encode()
    found = [data[start : start + size].decode() for start, size in zip(*words.cut(data), strict=True)]
    expected = "  The| caf\u00e9'|s| na\u00efve|_|x|(|y|)...|  |1|2| :|a|\n|\n| \u4f60\u597d,\u4e16| z"
    assert found == expected.split("|")
