"""The pages in a real browser: no error, no request, no sideways scrolling, readable in every look."""

import runpy
from pathlib import Path

import pytest

HERE = Path(__file__).parent
browsing = runpy.run_path(str(HERE / "chromium.py"))
pages = runpy.run_path(str(HERE / "pages.py"))
LOW_CONTRAST, SQUEEZED = browsing["LOW_CONTRAST"], browsing["SQUEEZED"]
WIDTHS = (390, 820, 1440)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browsing["EXECUTABLE"] is None, reason="chromium is not installed: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser():
    with browsing["Chromium"]() as browser:
        yield browser


@pytest.fixture(scope="module", params=list(pages["PAGES"]))
def page(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / f"{request.param}.html"
    path.write_text(pages["PAGES"][request.param]())
    return path


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_page_is_quiet_readable_and_fits_in_every_look(browser, page, language):
    for width in WIDTHS:
        for dark in (False, True):
            browser.open(page, width=width, dark=dark, language=language)
            look = (width, dark)
            assert browser.errors == [], look
            assert browser.requests == [page.as_uri()], look
            assert browser.evaluate("document.documentElement.scrollWidth") <= width, look
            assert browser.evaluate(LOW_CONTRAST) == [], look
            assert browser.evaluate(SQUEEZED) == [], look


def test_the_other_language_is_hidden_and_dark_is_dark(browser, page):
    shown = "[...document.querySelectorAll('.{}')].some(e => e.checkVisibility())"
    backgrounds = set()
    for language, other in (("en", "zh"), ("zh", "en")):
        browser.open(page, language=language, dark=language == "zh")
        assert browser.evaluate(shown.format(language))
        assert not browser.evaluate(shown.format(other))
        backgrounds.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2


def test_a_page_prints_on_white_paper_with_all_of_it(browser, page):
    browser.open(page, media="print", dark=True)
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate(LOW_CONTRAST) == []
    assert browser.evaluate("[...document.querySelectorAll('li')].every(e => e.checkVisibility() || e.closest('.zh'))")
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 20_000


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "\"'><svg onload=alert(1)>",
        "</style></title><meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>",
        "{{ 7 * 7 }}{% include 'x' %}",
        "\u202e\u2066evil\x1b[2J\0\r\n\u200b",
        "A" * 3000,
        "e" + "\u0301" * 200,
    ],
    ids=["script", "handler", "attribute", "refresh", "template", "controls", "long", "marks"],
)
def test_what_a_vendor_writes_stays_text(browser, tmp_path, text):
    page = tmp_path / "hostile.html"
    page.write_text(pages["hostile"](text))
    browser.open(page, width=390)
    assert browser.errors == []
    assert browser.requests == [page.as_uri()]
    assert browser.evaluate("document.querySelectorAll('script, img, iframe, object, embed, base, form').length") == 0
    handlers = "[...document.querySelectorAll('*')].some(e => [...e.attributes].some(a => a.name.startsWith('on')))"
    assert not browser.evaluate(handlers)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    # Nothing that the reader cannot see, and nothing that moves what stands beside it.
    hidden = r"/[\u0000-\u0008\u000b-\u001f\u200b-\u200f\u202a-\u202e\u2066-\u2069]/"
    assert not browser.evaluate(f"{hidden}.test(document.body.textContent)")


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("<script>console.error('x')</script>", "errors"),
        ("<img src='https://example.invalid/x.png'>", "errors"),
        ("<p style='color: #999; background: #fff'>pale</p>", "contrast"),
        ("<div style='width: 2000px'>wide</div>", "width"),
        ("<p style='width: 2em; overflow-wrap: anywhere'>one letter below the other</p>", "squeezed"),
    ],
)
def test_each_of_these_checks_can_fail(browser, tmp_path, fault, seen):
    page = tmp_path / "faulty.html"
    page.write_text(pages["preflight"]().replace("</body>", f"{fault}</body>"))
    browser.open(page, width=390)
    faults = {
        "errors": browser.errors,
        "contrast": browser.evaluate(LOW_CONTRAST),
        "squeezed": browser.evaluate(SQUEEZED),
        "width": browser.evaluate("document.documentElement.scrollWidth") > 390,
    }
    assert faults[seen]


def test_a_request_would_be_seen(browser, tmp_path):
    page = tmp_path / "open.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'>")
    browser.open(page)
    assert "http://127.0.0.1:9/x.png" in browser.requests
