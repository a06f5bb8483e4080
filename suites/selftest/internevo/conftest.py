from __future__ import annotations

import os
from pathlib import Path

import pytest

from conformance.errors import SourceError
from conformance.internevo.source import PINS, Source, find_source


def checkout_of(tag: str) -> Source:
    """The checkout of a tag that the tests were given, or that `conformance internevo get` fetched; skips without."""
    given = os.environ.get("CONFORMANCE_TEST_INTERNEVO")
    if given:
        source = find_source(Path(given), tag)
        if source.pristine and source.tag == tag:
            return source
    try:
        return find_source(None, tag)
    except SourceError as error:
        pytest.skip(f"{error}; or set CONFORMANCE_TEST_INTERNEVO")


@pytest.fixture(params=[pin.tag for pin in PINS.values() if not pin.is_wheel])
def checkout(request: pytest.FixtureRequest) -> Source:
    return checkout_of(request.param)
