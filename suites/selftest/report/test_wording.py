"""One file of words for each language, whole: the same keys, the same placeholders, nothing unused."""

import re
import string
from importlib import resources

import pytest

from conformance.bundle.trust import QUESTIONS
from conformance.checks.finding import Verdict
from conformance.report.wording import number, verdict_meaning, words
from conformance.spec import load_checks

# Set by name elsewhere: t("verdict." ~ name).
TABLES = (
    "system",
    *("verdict", "verdict_meaning", "preflight_meaning", "result", "outcome", "answers"),
    *("column", "preflight", "chart"),
)
DYNAMIC = tuple(f"{table}." for table in TABLES)


PARTS = ("title", "remedy")


def own(language):
    """A language's texts but those of checks and questions, whose English stands beside what they name."""
    return {k: text for k, text in words(language).items() if not k.startswith(("check.", "question."))}


def test_both_languages_have_the_same_keys():
    assert set(own("en")) == set(own("zh"))


def test_every_check_has_a_chinese_title_and_remedy_and_nothing_else_has():
    chinese = {key for key in words("zh") if key.startswith("check.")}
    assert chinese == {f"check.{check}.{part}" for check in load_checks() for part in PARTS}


def test_every_question_of_the_verifier_is_asked_in_chinese():
    assert {key for key in words("zh") if key.startswith("question.")} == {f"question.{name}" for name in QUESTIONS}


def placeholders(language, key):
    return {name for _, name, _, _ in string.Formatter().parse(words(language)[key]) if name}


def test_both_texts_have_the_same_placeholders():
    assert [key for key in own("en") if placeholders("en", key) != placeholders("zh", key)] == []


def test_chinese_is_chinese():
    same = {"preflight.rank", "column.mfu", "analysis.rank"}
    latin = {key for key, text in words("zh").items() if not re.search(r"[\u4e00-\u9fff]", text)}
    assert latin <= same


def test_commands_and_paths_survive_translation():
    """What stands between backticks, and options, is typed and not translated."""
    texts = {f"check.{check.id}.{part}": getattr(check, part) for check in load_checks().values() for part in PARTS}
    typed = {key: re.findall(r"`[^`]+`|--[a-z-]+", text) for key, text in texts.items()}
    assert sum(map(len, typed.values())) > 20
    assert [(key, word) for key, said in typed.items() for word in said if word not in words("zh")[key]] == []


def test_every_text_is_used_and_every_used_one_exists():
    folder = resources.files("conformance.report")
    sources = [path.read_text("utf-8") for path in folder.joinpath("templates").iterdir()]
    sources += [folder.joinpath(name).read_text("utf-8") for name in ("html.py", "pictures.py")]
    used = {key for text in sources for key in re.findall(r"\bt\(f?\"([a-z_.]+)\"", text)}
    assert {key for key in used if not key.endswith((".", "_"))} <= set(own("en"))
    assert {key for key in own("en") if not key.startswith(DYNAMIC)} <= used | {"findings.note"}


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict_has_a_meaning(verdict):
    assert verdict_meaning(verdict) == words("en")[f"verdict_meaning.{verdict.value}"]


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, None, "-"),
        (12345.6, None, "12,346"),
        (0.0123456, None, "0.01235"),
        (1.5, 4, "1.5000"),
        (-2000.0, None, "-2,000"),
    ],
)
def test_numbers_for_people(value, digits, text):
    assert number(value, digits) == text
