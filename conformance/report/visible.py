"""Text of unknown origin made safe to look at: what cannot be seen is shown as an escape."""

from __future__ import annotations

import unicodedata

# Control, format (bidi overrides, zero width, tags), surrogate, private, unassigned; line and paragraph separators.
HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Letters and symbols that are drawn as nothing.
BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
# Marks stacked on one letter: real scripts need few, and more of them cover the lines above and below.
MAX_MARKS = 3


def visible(text: str) -> str:
    """Show every character that would be invisible or would change its neighbours.

    Args:
        text: Any text.

    Returns:
        The text with control, bidirectional, zero-width, unassigned and excess combining characters as
        ``\\u202e``-like escapes; printable text is returned as it is.
    """
    if text.isascii() and text.isprintable():
        return text
    shown, marks = [], 0
    for character in text:
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        hidden = category in HIDDEN_CATEGORIES or character in BLANK or marks > MAX_MARKS
        shown.append(character.encode("unicode_escape", "surrogatepass").decode() if hidden else character)
    # unicode_escape leaves nothing above ASCII, so a lone surrogate cannot break the file's encoding either.
    return "".join(shown) if shown else text
