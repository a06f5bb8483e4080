"""Texts in every language at once, as elements of a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup, escape

from conformance.report.visible import visible
from conformance.report.wording import LANGUAGES, words


def t(key: str, **values: object) -> Markup:
    """A text in every language, of which the style sheet shows one.

    Args:
        key: Dotted key of the wording files.
        values: What stands for the placeholders; escaped, and made visible.

    Returns:
        One element for each language.
    """
    safe = {name: shown(value) for name, value in values.items()}
    return _in_all_languages({name: _marked(words(name)[key]).format(**safe) for name in LANGUAGES})


def untranslated(text: str) -> Markup:
    """A name, the same in every language.

    Args:
        text: The name.

    Returns:
        It, escaped and made visible.
    """
    return escape(visible(text))


def _in_all_languages(texts: Mapping[str, str]) -> Markup:
    return Markup("").join(
        Markup('<span class="{}" lang="{}">{}</span>').format(name, LANGUAGES[name], text)
        for name, text in texts.items()
    )


def _marked(text: str) -> Markup:
    """A text of the suite's own, escaped, what stands between backticks as code."""
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if odd % 2 else escape(part) for odd, part in enumerate(text.split("`"))
    )


def check_text(check: str, part: str, otherwise: str) -> Markup:
    """A check's title or remedy.

    Args:
        check: The check's id.
        part: ``title`` or ``remedy``.
        otherwise: What stands for it where an older report names a check that is no more.

    Returns:
        One element for each language.
    """
    key = f"check.{check}.{part}"
    return _in_all_languages({name: _marked(words(name).get(key, visible(otherwise))) for name in LANGUAGES})


def question_text(answer: Any) -> Markup:
    """A question of the verifier.

    Args:
        answer: Its answer, with ``id`` and the ``question`` in English.

    Returns:
        One element for each language; English where a language has no words for it.
    """
    key, asked = f"question.{answer.id}", visible(answer.question)
    return _in_all_languages({name: words(name).get(key, asked) for name in LANGUAGES})


def shown(value: object) -> object:
    """Make a value visible on its way into a page; what is marked as HTML was made visible before.

    Args:
        value: Any value.

    Returns:
        The value, or the text with everything hidden in it written out.
    """
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
