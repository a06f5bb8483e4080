"""Photographs pages into this folder: python3 docs/screenshots.py NAME=PAGE.html...

For example report=reports/RUN/report.html verification=acme.html comparison=all.html, as `make rehearsal`, `conformance
verify --html` and `conformance compare --html` wrote them. Each page gives docs/NAME.png; the one named report also
docs/report-dark-zh.png and docs/report-narrow.png. Needs chromium and a Chinese font: apt-get install chromium
fonts-noto-cjk.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
CHROMIUM = DOCS.parent / "suites" / "selftest" / "report" / "chromium.py"
MAX_HEIGHT = 1500
MAX_BYTES = 200_000
LOOKS = {"-dark-zh": {"width": 1000, "dark": True, "language": "zh"}, "-narrow": {"width": 390}}


def main(pairs: list[str]) -> None:
    """Photograph every page.

    Args:
        pairs: NAME=PAGE.html of each.
    """
    pages = {name: Path(page) for name, _, page in (pair.partition("=") for pair in pairs)}
    if not pages or not all(page.is_file() for page in pages.values()):
        sys.exit(__doc__)
    with runpy.run_path(str(CHROMIUM))["Chromium"]() as browser:
        for name, page in pages.items():
            for suffix, look in {"": {"width": 1000}, **(LOOKS if name == "report" else {})}.items():
                browser.open(page, **look)
                picture = browser.screenshot(MAX_HEIGHT)
                if len(picture) > MAX_BYTES:
                    sys.exit(f"{name}{suffix}.png would have {len(picture)} bytes, more than {MAX_BYTES}.")
                (DOCS / f"{name}{suffix}.png").write_bytes(picture)
                print(f"docs/{name}{suffix}.png: {len(picture)} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
