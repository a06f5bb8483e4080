"""The preflight of an H200 that reference_logs holds says what its README tells of it."""

import json
from collections import Counter
from pathlib import Path

import pytest

LOGS = Path(__file__).parents[3] / "reference_logs"
MEASURED = json.loads((LOGS / "h200-preflight.json").read_text("utf-8"))


def test_its_results_are_those_that_the_readme_counts():
    results = Counter(finding["result"] for finding in MEASURED["findings"])
    told = f"{results['PASS']} checks passed, {results['SKIP']} had nothing to look at (3) or nothing to compare with "
    told += f"on one card (5), {results['FAIL']} advisory failure"
    assert told in (LOGS / "README.md").read_text("utf-8")
    assert f"{sum(MEASURED['seconds'].values()):.0f} s of it measuring" in (LOGS / "README.md").read_text("utf-8")


def test_its_speeds_follow_from_their_shapes_and_times():
    products = [record for record in MEASURED["records"]["device"] if record["kind"] == "gemm"]
    assert {product["name"] for product in products} >= {"square", "key-value", "mlp-up", "head"}
    for product in products:
        rows, columns, inner = product["shape"]
        assert product["tflops"] == pytest.approx(2 * rows * columns * inner / product["seconds"] / 1e12)
    for copy in (record for record in MEASURED["records"]["device"] if record["kind"] == "copy"):
        assert copy["gb_per_s"] == pytest.approx(copy["bytes"] / copy["seconds"] / 1e9)
