"""The report as a page: one self-contained file, rendered from the report's content alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from conformance.checks.finding import Verdict
from conformance.report.wording import VERDICT_MEANINGS, number

PLOT_WIDTH, PLOT_HEIGHT, PLOT_MARGIN = 720, 200, 8
PLOT_LEFT = 64  # room for the scale


def render(predicate: Mapping[str, Any], report_id: str, steps: Sequence[Mapping[str, float]]) -> str:
    """Render the page.

    Args:
        predicate: The report's content.
        report_id: sha256 of the signed payload.
        steps: step, tgs and loss of every logged step.

    Returns:
        HTML.
    """
    return (
        _environment()
        .get_template("report.html")
        .render(
            report=predicate,
            report_id=report_id,
            meaning=VERDICT_MEANINGS[Verdict(predicate["verdict"])],
            plots=[
                ("TGS, tokens/device/s, by step", "tgs", polyline([(row["step"], row["tgs"]) for row in steps])),
                ("Loss by step", "loss", polyline([(row["step"], row["loss"]) for row in steps])),
            ],
            steps=steps,
            width=PLOT_WIDTH,
            height=PLOT_HEIGHT,
        )
    )


def polyline(points: Sequence[tuple[float, float]]) -> str:
    """Scale points into the plot, from zero to the largest value.

    Args:
        points: (x, y), x ascending.

    Returns:
        The points attribute of an SVG polyline; empty when nothing can be drawn.
    """
    finite = [(x, y) for x, y in points if y == y and abs(y) != float("inf")]
    if len(finite) < 2:
        return ""
    left, right = finite[0][0], finite[-1][0]
    top = max(y for _, y in finite) or 1.0
    span = PLOT_WIDTH - PLOT_LEFT - PLOT_MARGIN, PLOT_HEIGHT - 2 * PLOT_MARGIN
    return " ".join(
        f"{PLOT_LEFT + (x - left) / (right - left) * span[0]:.1f},{PLOT_HEIGHT - PLOT_MARGIN - y / top * span[1]:.1f}"
        for x, y in finite
    )


@cache
def _environment() -> Environment:
    # Autoescape: vendor strings end up here, and a lab opens the page.
    environment = Environment(
        loader=PackageLoader("conformance.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["number"] = number
    return environment
