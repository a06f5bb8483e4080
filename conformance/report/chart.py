"""Charts as plain coordinates, which a template turns into SVG; pure functions of the points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from conformance.report.wording import number

# The picture is stretched to the width of its place; lines keep their width and labels are no part of it.
WIDTH, HEIGHT = 1000, 300
# More labels than these would touch on a narrow screen.
MAX_LABELS, MAX_BAR_LABELS = 6, 16
# More than two points in a column of the picture cannot be told apart.
COLUMNS = 500
TICKS = 5
# What is beyond this leaves no room for the sums that place it.
MAX_VALUE = 1e300

Point = tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """A picture, WIDTH by HEIGHT.

    Args:
        paths: (kind, SVG path) of every line and area; the kind is a class of the style sheet.
        bars: (kind, x, y, width, height) of every bar.
        grid: SVG path of the horizontal lines.
        window: Left edge and width of the shaded steps, if any.
        x_ticks: (place in percent, label).
        y_ticks: (place in percent from below, label).
    """

    paths: tuple[tuple[str, str], ...]
    bars: tuple[tuple[str, float, float, float, float], ...]
    grid: str
    window: tuple[float, float] | None
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    width: int = WIDTH
    height: int = HEIGHT


def line_chart(
    lines: Sequence[tuple[str, Sequence[Point]]],
    *,
    levels: Mapping[str, float] | None = None,
    window: tuple[float, float] | None = None,
    area: Sequence[tuple[float, float, float]] = (),
    from_zero: bool = False,
    x_labels: Mapping[float, str] | None = None,
) -> Chart | None:
    """Draw lines over a common x.

    Args:
        lines: (kind, points) of each line, x ascending; points that are not finite, or beyond MAX_VALUE, leave a gap.
        levels: Horizontal lines by kind; left out likewise.
        window: First and last x of the part to shade.
        area: (x, low, high) of a band to fill; likewise.
        from_zero: Whether zero is in the picture.
        x_labels: Labels of the x axis; None for round whole numbers.

    Returns:
        The chart; None when no line has two finite points at different x.
    """
    levels = {kind: level for kind, level in (levels or {}).items() if _drawable(level)}
    area = [edge for edge in area if all(map(_drawable, edge))]
    finite = [(x, y) for _, points in lines for x, y in points if _drawable(x) and _drawable(y)]
    if not finite or min(x for x, _ in finite) == max(x for x, _ in finite):
        return None
    left, right = min(x for x, _ in finite), max(x for x, _ in finite)
    heights = [y for _, y in finite] + list(levels.values()) + [y for _, low, high in area for y in (low, high)]
    heights += [0.0] * from_zero
    y_values = nice(min(heights), max(heights))
    bottom, top = y_values[0], y_values[-1]

    def place(x: float, y: float) -> str:
        across, up = (x - left) / (right - left), (y - bottom) / (top - bottom)
        return f"{across * WIDTH:.1f} {(1 - up) * HEIGHT:.1f}"

    paths = [(kind, f"M{place(left, level)}L{place(right, level)}") for kind, level in levels.items()]
    if area:
        edge = [(x, high) for x, _, high in area] + [(x, low) for x, low, _ in reversed(area)]
        paths.append(("area", "M" + "L".join(place(x, y) for x, y in edge) + "Z"))
    for kind, points in lines:
        segments = _segments(_thinned(points))
        # "h0": a point between two gaps is a dot.
        paths.append((kind, "".join("M" + "L".join(place(x, y) for x, y in part) + "h0" for part in segments)))
    marks = list((x_labels or _whole(nice(left, right))).items())
    return Chart(
        paths=tuple(paths),
        bars=(),
        grid=_grid(y_values),
        window=None if window is None else _window(window, left, right),
        x_ticks=tuple(
            (round((x - left) / (right - left) * 100, 2), label)
            for x, label in marks[:: max(1, -(-len(marks) // MAX_LABELS))]
            if left <= x <= right
        ),
        y_ticks=_y_ticks(y_values),
    )


def bar_chart(
    bars: Sequence[tuple[str, Sequence[float | None]]], labels: Sequence[str], levels: Mapping[str, float] | None = None
) -> Chart | None:
    """Draw bars side by side, from zero.

    Args:
        bars: (kind, values) of each kind of bar; None, what is not finite or beyond MAX_VALUE leaves its place empty.
        labels: One for each place.
        levels: Horizontal lines by kind.

    Returns:
        The chart; None when there is nothing above zero to draw.
    """
    levels = {kind: level for kind, level in (levels or {}).items() if _drawable(level)}
    values = [value for _, row in bars for value in row if value is not None and _drawable(value)]
    if not values or max(values) <= 0:
        return None
    y_values = nice(0.0, max([*values, *levels.values()]))
    top = y_values[-1]
    place = WIDTH / len(labels)
    # A few devices get no bars as broad as walls.
    width = min(place * 0.8, 120.0) / len(bars)
    drawn = []
    for number_of_kind, (kind, row) in enumerate(bars):
        for position, value in enumerate(row):
            if value is not None and _drawable(value) and value > 0:
                x = (position + 0.5) * place + (number_of_kind - len(bars) / 2) * width
                height = value / top * HEIGHT
                drawn.append((kind, round(x, 1), round(HEIGHT - height, 1), round(width, 1), round(height, 1)))
    every = -(-len(labels) // MAX_BAR_LABELS)
    return Chart(
        paths=tuple((kind, f"M0 {y:.1f}L{WIDTH} {y:.1f}") for kind, y in _levels(levels, top)),
        bars=tuple(drawn),
        grid=_grid(y_values),
        window=None,
        x_ticks=tuple(
            (round((position + 0.5) * 100 / len(labels), 2), label)
            for position, label in enumerate(labels)
            if position % every == 0
        ),
        y_ticks=_y_ticks(y_values),
    )


def nice(low: float, high: float) -> list[float]:
    """Round values that enclose a range.

    Args:
        low: Its lower end.
        high: Its upper end.

    Returns:
        At least two ascending multiples of 1, 2 or 5 times a power of ten; the first at most ``low``, the last at
        least ``high``.
    """
    size = max(abs(low), abs(high), 1e-30)
    if not high - low > 1e-9 * size:  # a flat line, or one that rounding would make flat
        low, high = low - size / 10, high + size / 10
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{count * step:.10g}") for count in range(first, last + 1)]


def _drawable(value: float) -> bool:
    return abs(value) <= MAX_VALUE


def _whole(values: Sequence[float]) -> dict[float, str]:
    return {value: f"{value:,.0f}" for value in values if value == int(value)}


def _levels(levels: Mapping[str, float], top: float) -> list[tuple[str, float]]:
    return [(kind, HEIGHT - level / top * HEIGHT) for kind, level in levels.items()]


def _grid(values: Sequence[float]) -> str:
    span = values[-1] - values[0]
    heights = [HEIGHT - (value - values[0]) / span * HEIGHT for value in values]
    return "".join(f"M0 {height:.1f}H{WIDTH}" for height in heights)


def _y_ticks(values: Sequence[float]) -> tuple[tuple[float, str], ...]:
    span = values[-1] - values[0]
    return tuple((round((value - values[0]) / span * 100, 2), number(value)) for value in values)


def _window(window: tuple[float, float], left: float, right: float) -> tuple[float, float]:
    first, last = (min(max(x, left), right) for x in window)
    return round((first - left) / (right - left) * WIDTH, 1), round((last - first) / (right - left) * WIDTH, 1)


def _segments(points: Sequence[Point]) -> list[list[Point]]:
    """The runs of points that can be drawn between those that cannot."""
    segments: list[list[Point]] = [[]]
    for x, y in points:
        if _drawable(x) and _drawable(y):
            segments[-1].append((x, y))
        elif segments[-1]:
            segments.append([])
    return [segment for segment in segments if segment]


def _thinned(points: Sequence[Point]) -> list[Point]:
    """The lowest and highest point of each column of the picture, so that no spike is lost, and every gap."""
    if len(points) <= 2 * COLUMNS:
        return list(points)
    kept: list[Point] = []
    size = -(-len(points) // COLUMNS)
    for start in range(0, len(points), size):
        column = points[start : start + size]
        finite = [point for point in column if _drawable(point[1])]
        chosen = {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])} if finite else set()
        gap = [point for point in column if not _drawable(point[1])][:1]
        kept += sorted([*chosen, *gap], key=lambda p: p[0])
    return kept
