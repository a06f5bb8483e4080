"""Many documents to their lines at once: words are cut, told apart and looked up as arrays, not as objects.

Whether a text may be cut between two of its bytes is for these two alone to say, and nearly all words fit two numbers
of 64 bits. So a few passes of NumPy over the bytes find every word and most of the ids; Python sees only the others.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

# How sentencepiece writes a space; it takes this sign for one.
SPACE_SIGN = "\u2581".encode()
# In no piece, so nothing merges with it: it parts words that are encoded together, the first one from the space in
# front of every text.
GUARD = b"\n"
# No UTF-8 holds it: it parts documents.
NEXT = b"\xff"
# What a byte is. Digits, GUARD and NEXT stand alone; what is beyond ASCII is parted only from these, and from a space
# behind it.
SIGN, LETTER, ALONE, SPACE, BEYOND = range(5)
KIND = np.full(256, SIGN, np.uint8)
KIND[128:] = BEYOND
KIND[list(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")] = LETTER
KIND[list(b"0123456789" + GUARD + NEXT)] = ALONE
KIND[ord(" ")] = SPACE
# Between which of them a word ends; a word keeps the spaces in front of it.
BORDER = np.zeros((8, 8), bool)
BORDER[LETTER, SIGN] = BORDER[SIGN, LETTER] = True
BORDER[:, SPACE] = True
BORDER[SPACE, SPACE] = False
BORDER[ALONE, :] = BORDER[:, ALONE] = True
# A key is a word's bytes and its length, in two numbers of 64 bits; longer words have none. Of what stands in a text at
# the word's first byte and at its ninth, LOW and HIGH leave what is the word's, by its length.
KEY_BYTES = 15
LOW, HIGH = (
    np.array([(1 << 8 * min(max(size - skip, 0), most)) - 1 for size in range(KEY_BYTES + 2)], np.uint64)
    for skip, most in ((0, 8), (8, KEY_BYTES - 8))
)
LENGTH = np.arange(KEY_BYTES + 2, dtype=np.uint64) << np.uint64(56)
# Of keys and their ids that are found at once: 12 MiB. Another word of the same slot takes it over.
SLOT_BITS = 19
# Odd numbers without a pattern, of which each bit of a key stirs the upper ones of the product.
STIR = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
# A word and its ids take about 250 bytes: a full dictionary has about 128 MiB.
KNOWN_WORDS = 2**19
# Longer words hardly come twice.
KNOWN_BYTES = 32

Words = NDArray[np.uint64]


def word_encoder(whole: Callable[[str], bytes], head: bytes, tail: bytes) -> Callable[[list[str]], bytes]:
    """Make the fast way from texts to their lines, for models whose borders are free.

    Args:
        whole: The plain way from a text to its ids, each as `` 1,``.
        head: What a line begins with.
        tail: What a line ends with.

    Returns:
        The function.
    """
    look_up = _dictionary(whole, tail + head)
    lows, highs = np.zeros((2, 1 << SLOT_BITS), np.uint64)
    ids = np.empty(1 << SLOT_BITS, object)

    def encode(texts: list[str]) -> bytes:
        # sentencepiece begins every text with a space, the empty one excepted.
        data = NEXT.join([b" " + text.encode() if text else b"" for text in texts]).replace(SPACE_SIGN, b" ")
        if not data:
            return (head + tail) * len(texts)
        starts, sizes = cut(data)
        low, high = _keys(data, starts, sizes)
        slots = ((low ^ high * STIR[0]) * STIR[1] >> np.uint64(64 - SLOT_BITS)).astype(np.intp)
        found = ids[slots]
        others = np.flatnonzero((lows[slots] != low) | (highs[slots] != high))
        begins = starts[others]
        ends = begins + sizes[others]
        found[others] = look_up([data[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)])
        kept = others[sizes[others] <= KEY_BYTES]
        slots = slots[kept]
        lows[slots], highs[slots], ids[slots] = low[kept], high[kept], found[kept]
        return b"".join([head, *found.tolist(), tail])

    return encode


def cut(data: bytes) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Find the words of a text.

    Args:
        data: The text as UTF-8, not empty.

    Returns:
        Where each word begins, and its bytes.
    """
    kinds = KIND[np.frombuffer(data, np.uint8)]
    borders = BORDER.ravel()[kinds[:-1] * np.uint8(8) + kinds[1:]]
    starts = np.concatenate(([0], np.flatnonzero(borders) + 1))
    return starts, np.diff(starts, append=len(data))


def _keys(data: bytes, starts: NDArray[np.intp], sizes: NDArray[np.intp]) -> tuple[Words, Words]:
    """Both halves of each word's key; a word without one has a length in it that no key has."""
    padded, sizes = data + bytes(16), np.minimum(sizes, KEY_BYTES + 1)
    low, high = (np.ndarray(len(data), "<u8", padded, offset, (1,))[starts] for offset in (0, 8))
    return low & LOW[sizes], high & HIGH[sizes] | LENGTH[sizes]


def _dictionary(whole: Callable[[str], bytes], between: bytes) -> Callable[[list[bytes]], list[bytes]]:
    """Make the function from words, of any length, to the ids of each; NEXT becomes ``between``."""
    guard = b" " + whole(GUARD.decode()).rpartition(b" ")[2]
    fixed = {GUARD: guard, NEXT: between}
    known = fixed.copy()

    def look_up(words: list[bytes]) -> list[bytes]:
        new = set(words).difference(known)
        if new:
            # One call for all of them: most of the time for a word alone is the call's.
            ids = whole((GUARD + GUARD.join(new)).decode())
            known.update(zip(new, ids.split(guard)[1:], strict=True))
        found = list(map(known.__getitem__, words))
        for word in new:
            if len(word) > KNOWN_BYTES:
                del known[word]
        if len(known) > KNOWN_WORDS:
            known.clear()
            known.update(fixed)
        return found

    return look_up
