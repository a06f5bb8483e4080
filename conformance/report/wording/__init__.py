"""Words and numbers that the terminal and the pages share; one file for each language."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

from conformance.checks.finding import Verdict
from conformance.spec import load_checks

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Language of the file's name and of its HTML attribute.
LANGUAGES = {"en": "en", "zh": "zh-Hans"}


@cache
def words(language: str) -> Mapping[str, str]:
    """Every text of a language.

    Args:
        language: One of LANGUAGES.

    Returns:
        Texts by dotted key; those of the checks as ``check.ID.title`` and ``check.ID.remedy``.
    """
    document = tomllib.loads(resources.files(__name__).joinpath(f"{language}.toml").read_text("utf-8"))
    found = dict(_flat(document, ""))
    if language == "en":  # the checks' own file speaks English
        for check in load_checks().values():
            found |= {f"check.{check.id}.title": check.title, f"check.{check.id}.remedy": check.remedy}
    return found


def _flat(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def verdict_meaning(verdict: Verdict) -> str:
    """What a verdict says, for the terminal.

    Args:
        verdict: The verdict.

    Returns:
        A clause in English.
    """
    return words("en")[f"verdict_meaning.{verdict.value}"]


def number(value: float | None, digits: int | None = None) -> str:
    """A figure for people: four significant digits, thousands separated.

    Args:
        value: The figure; None when there is none.
        digits: Digits after the point, instead.

    Returns:
        The text.
    """
    if value is None:
        return "-"
    if digits is not None:
        return f"{value:,.{digits}f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
