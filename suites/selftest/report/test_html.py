"""What the pages say, without a browser."""

import re
import runpy
from html.parser import HTMLParser
from pathlib import Path

import pytest

from conformance.report import html
from conformance.report.visible import visible

pages = runpy.run_path(str(Path(__file__).with_name("pages.py")))


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text, self.ids, self.anchors = set(), set(), [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.ids += [value for name, value in attrs if name == "id"]
        self.anchors += [value[1:] for name, value in attrs if name == "href" and value.startswith("#")]

    def handle_data(self, data):
        self.text.append(data)


STRUCTURE = {"html", "head", "meta", "link", "title", "style", "body", "header", "main", "section", "footer", "div"}
TEXT = {"span", "h1", "h2", "h3", "strong", "ul", "li", "a", "dl", "dt", "dd", "small", "b", "bdi", "br", "code", "p"}
FIGURES = {"figure", "figcaption", "i", "svg", "rect", "path", "details", "summary", "table", "tr", "th", "td"}
FIGURES |= {"input", "label"}
KNOWN = STRUCTURE | TEXT | FIGURES


@pytest.mark.parametrize("name", list(pages["PAGES"]))
def test_a_page_needs_nothing_else_and_its_links_lead_somewhere(name):
    page = pages["PAGES"][name]()
    seen = Reader(page)
    assert seen.tags <= KNOWN
    assert all(link.startswith(("#", "data:,")) for link in re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page))
    assert not re.search(r"url\(|@import", page)
    assert "default-src 'none'" in page
    assert len(seen.ids) == len(set(seen.ids))
    assert set(seen.anchors) <= set(seen.ids)


def test_the_verdict_comes_first_and_what_did_not_pass_is_named_with_its_remedy():
    page = pages["accuracy"]()
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.S)
    assert text.index("NOT CONFORMANT") < text.index("The training loss is below the target") < text.index("Devices")
    for wanted in ("不符合", "Train on, or look for the step", "继续训练", "1.716", "logs/node0/rank0.log"):
        assert wanted in text
    for section in ("Redactions", "Challenge", "12" * 32, "8 cards", "Attempts", "Environment", "stand-in"):
        assert section in text


def test_a_lowered_figure_is_drawn_lower():
    """The pictures follow the figures: half the speed is half the height."""
    (drawn,) = re.findall(r'class="measured" d="([^"]+)"', _speed([100.0, 100.0, 100.0, 50.0]))
    heights = [float(point.split()[1].rstrip("h0") or 0) for point in re.findall(r"[\d.]+ [\d.]+", drawn)]
    assert (300 - heights[-1]) * 2 == pytest.approx(300 - heights[0], abs=0.2)


def _speed(speeds):
    predicate, _ = pages["predicate_of"](pages["TINY"])
    predicate["metrics"] = {**predicate["metrics"], "loss": None}
    predicate["metrics"]["tgs"] = {**predicate["metrics"]["tgs"], "median": 100.0, "steps_used": [1, 3]}
    return html.render(predicate, "ab" * 32, [{"step": n, "tgs": tgs, "loss": 1.0} for n, tgs in enumerate(speeds)])


def test_window_floor_target_and_reference_are_drawn_and_told():
    page = pages["accuracy"]()
    for kind in ("window", "typical", "limit", "reference", "area", "measured"):
        assert f'class="{kind}"' in page
    assert "target 1.716 (AIChipBenchmark llm/LLaMa-V2/README.md, 训练目标)" in page
    assert "reference h200-7b, mean of 3 runs" in page
    assert "nan" not in "".join(re.findall(r' d="([^"]+)"', page))


def test_without_a_step_the_page_still_tells_the_findings():
    predicate, _ = pages["predicate_of"](pages["TINY"])
    predicate |= {"metrics": {}, "devices": [], "verdict": "INCONCLUSIVE"}
    page = html.render(predicate, "", [])
    assert "<svg" not in page
    assert "the run ended before any device was asked" in page


def test_a_run_too_broken_to_judge_is_not_drawn_and_a_claim_is_never_shown():
    page = pages["verification"]()
    sections = re.findall(r'<section class="run">', page)
    assert len(sections) == 2  # the third has no evidence to rebuild it from
    # The lab's verdict stands at the top; a run has none of its own.
    assert page.count('<div class="verdict NOT_CONFORMANT">') == 1


def test_every_device_of_a_large_cluster_has_its_bar_and_its_row():
    page = pages["preflight"](128)
    assert page.count('class="bar-first"') == 128 + 127 + 2  # rank 3's copy could not be measured; two legends
    assert page.count('<td class="name">') == 128
    assert "<details><summary>" in page


def test_one_device_alone_has_no_bus():
    assert "Bus bandwidth" in pages["preflight"](8)
    assert "Bus bandwidth" not in pages["preflight"](1)


def test_a_comparison_of_rehearsals_says_so_beside_its_figures():
    page = pages["comparison"]()
    assert re.search(r'<h2>slice-7b-perf, 24 layers <span class="tag">', page)


def test_systems_are_ranked_by_each_figure_and_one_without_it_is_not():
    page = pages["comparison"]()
    body = page[page.index("<h3>") :]
    names = [re.findall(r"<dt><b>(.*?)</b>", part) for part in body.split("<h3>")[1:]]
    assert names[0] == ["Acme A1", "Acme B2", "Umbra"]
    assert names[-1] == ["Acme A1"]  # joules per token


def test_more_runs_than_lines_still_all_have_bars():
    page = pages["comparison"](tuple(f"system {n}" for n in range(9)))
    assert page.count("<dt><b>system 8</b></dt>") == 3


@pytest.mark.parametrize("text", ["<script>", "\u202eevil", "\x1b[31m", "a\nb", "\ud800", "<b>&amp;"])
def test_hostile_text_is_escaped_and_visible_everywhere(text):
    page = pages["hostile"](text)
    page.encode("utf-8")
    seen = Reader(page)
    assert seen.tags <= KNOWN
    assert not any(name.startswith("on") for name in seen.attributes)
    assert text not in page
    shown = "".join(seen.text)
    assert shown.count(visible(text)) > 20
    assert "\u202e" not in page
    assert "\x1b" not in page


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, 中文, ü, עברית", "plain, 中文, ü, עברית"),
        ("a\u202eb", "a\\u202eb"),
        ("\x1b[2J\t\n\x7f", "\\x1b[2J\\t\\n\\x7f"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("tag\U000e0041", "tag\\U000e0041"),
        ("\ud800", "\\ud800"),
        ("\u2028\u2800\u3164", "\\u2028\\u2800\\u3164"),
        ("e\u0301\u0301\u0301\u0301", "e\u0301\u0301\u0301\\u0301"),
    ],
)
def test_what_cannot_be_seen_is_written_out(text, shown):
    assert visible(text) == shown


STYLE = (Path(html.__file__).parent / "templates" / "style.css").read_text("utf-8")
# What text stands on: the page, a card, a tinted card.
GROUNDS = {"page": "", "card": "", **{f"{name}-card": name for name in ("good", "bad", "open", "rehearsal")}}


def luminance(colour):
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_the_colours_contrast_as_wcag_asks_for_text(theme):
    variables = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", re.findall(r":root \{(.*?)\}", STYLE, re.S)[theme]))
    for ground, own in GROUNDS.items():
        inks = ("ink", "quiet", "link", own) if own else ("ink", "quiet", "link", "good", "bad", "open", "rehearsal")
        for ink in inks:
            dark, light = sorted(map(luminance, (variables[ink], variables[ground])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def test_a_required_check_that_was_skipped_is_named_as_the_reason():
    predicate, _ = pages["predicate_of"](pages["TINY"])
    predicate |= {
        "verdict": "INCONCLUSIVE",
        "findings": [{"check": "tgs-floor", "result": "SKIP", "message": "There is no floor."}],
    }
    page = html.render(predicate, "", [])
    assert page.count("Tokens per device and second reach the floor") == 2
    assert page.index("Tokens per device and second reach the floor") < page.index("What was run")


def test_the_labs_page_says_by_what_it_judged_and_on_what_system():
    page = pages["verification"]()
    for told in (
        "Example Lab",
        "cd" * 32,
        "12" * 32,
        "2026-11-24T12:00:00Z",
        "power of a node",
        "每节点功率",
        "ACME X1",
    ):
        assert told in page
    assert "Example Lab" in pages["comparison"]()


def test_each_start_is_an_attempt_with_its_own_end():
    """A name that was given twice: the first ended, the second was killed."""
    predicate, steps = pages["predicate_of"](pages["TINY"])
    entries = [
        {"event": "started", "run": "a", "workload": "w", "time": "at 1"},
        {"event": "ended", "run": "a", "outcome": "ended", "time": "at 2"},
        {"event": "started", "run": "a", "time": "at 3"},
        {"event": "ended", "run": "b", "outcome": "ended", "time": "at 4"},
    ]
    page = html.render(predicate, "", steps, entries)
    assert "<tr><td>a</td><td>w</td><td>at 1</td><td>at 2</td><td>ended</td></tr>" in page
    assert "<tr><td>a</td><td></td><td>at 3</td><td></td><td><span" in page
    assert "at 4" not in page
