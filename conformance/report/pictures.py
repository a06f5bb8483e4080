"""Which pictures a run and a preflight give, and what their legends say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from conformance.report.chart import Chart, bar_chart, line_chart
from conformance.report.translated import t, untranslated
from conformance.report.wording import number

Steps = Sequence[Mapping[str, float]]
Json = Mapping[str, Any]
Legend = list[tuple[str, Markup]]

# More lines in one picture cannot be told apart.
MAX_LINES = 6
# Columns of the table by device, in its order.
DEVICE_COLUMNS = (
    "gemm_alone_tflops",
    "gemm_together_tflops",
    "copy_alone_gb_per_s",
    "copy_together_gb_per_s",
    "held_gib",
    "late_ms",
)


@dataclass(frozen=True)
class Picture:
    """A chart with its words.

    Args:
        title: What it shows.
        drawn: The chart.
        legend: (kind of line or bar, what it is).
    """

    title: Markup
    drawn: Chart
    legend: Legend


def of_training(metrics: Json, steps: Steps, findings: Sequence[Json]) -> list[Picture]:
    """Draw a training run.

    Args:
        metrics: The report's metrics.
        steps: step, tgs and loss of every logged step, and mean_loss of the first ones.
        findings: The report's findings, which tell floor and target.

    Returns:
        Throughput, loss, and loss beside the reference curve, as far as there is such a thing.
    """
    drawn = (_speed(metrics, steps, findings), _loss(metrics, steps, findings), _curve(metrics, steps))
    return [picture for picture in drawn if picture is not None]


def _speed(metrics: Json, steps: Steps, findings: Sequence[Json]) -> Picture | None:
    speed = metrics.get("tgs")
    if not speed:
        return None
    first, last = speed["steps_used"]
    levels = {"typical": speed["median"]}
    legend: Legend = [
        ("measured", t("legend.tgs")),
        ("window", t("legend.steady", first=first, last=last, count=speed["steps_counted"])),
        ("typical", t("legend.median", value=number(speed["median"]))),
    ]
    if floor := _limit(findings, "tgs-floor"):
        levels["limit"] = floor[0]
        legend.append(("limit", t("legend.floor", value=number(floor[0]), source=floor[1])))
    line = [(row["step"], row["tgs"]) for row in steps]
    drawn = line_chart([("measured", line)], levels=levels, window=(first, last), from_zero=True)
    return Picture(t("chart.speed"), drawn, legend) if drawn else None


def _loss(metrics: Json, steps: Steps, findings: Sequence[Json]) -> Picture | None:
    loss = metrics.get("loss")
    if not loss or not steps:
        return None
    levels, window = {}, steps[-min(loss["window"], len(steps)) :]
    legend: Legend = [("measured", t("legend.loss"))]
    if loss["window_mean"] is not None:
        mean = number(loss["window_mean"], 4)
        legend.append(("window", t("legend.window", count=loss["window"], mean=mean)))
    if target := _limit(findings, "loss-target"):
        levels["limit"] = target[0]
        legend.append(("limit", t("legend.target", value=number(target[0]), source=target[1])))
    line = [(row["step"], row["loss"]) for row in steps]
    edges = window[0]["step"], window[-1]["step"]
    drawn = line_chart([("measured", line)], levels=levels, window=edges)
    return Picture(t("chart.loss"), drawn, legend) if drawn else None


def _curve(metrics: Json, steps: Steps) -> Picture | None:
    """The loss beside the reference curve, over the steps that the curve covers."""
    curve = metrics.get("curve")
    if not curve or not curve.get("points"):
        return None
    points = curve["points"]
    begin, end = points[0][0], points[-1][0]
    own = [(row["step"], row["mean_loss"]) for row in steps if begin <= row["step"] <= end and "mean_loss" in row]
    lines = [("reference", [(step, mean) for step, mean, _, _ in points]), ("measured", own)]
    drawn = line_chart(lines, area=[(step, low, high) for step, _, low, high in points])
    legend: Legend = [
        ("measured", t("legend.mean_loss")),
        ("reference", t("legend.reference", name=curve["reference"], runs=curve["runs"])),
        ("area", t("legend.band")),
    ]
    return Picture(t("chart.curve"), drawn, legend) if drawn else None


def _limit(findings: Sequence[Json], check: str) -> tuple[float, str] | None:
    for finding in findings:
        limit = finding.get("limit")
        if finding["check"] == check and isinstance(limit, int | float) and math.isfinite(limit):
            return float(limit), str(finding.get("limit_source", ""))
    return None


def of_preflight(metrics: Json) -> list[Picture]:
    """Draw what a preflight measured on every device.

    Args:
        metrics: The report's metrics.

    Returns:
        One small picture for each thing that was measured.
    """
    rows = metrics.get("by_device") or []
    labels = [str(row["rank"]) for row in rows]
    alone_together: Legend = [("bar-first", t("preflight.alone")), ("bar-second", t("preflight.together"))]
    pictures = []

    def add(drawn: Chart | None, key: str, legend: Legend) -> None:
        if drawn is not None:
            pictures.append(Picture(t(f"preflight.{key}"), drawn, legend))

    for key, unit in (("gemm", "tflops"), ("copy", "gb_per_s")):
        bars = [
            (kind, [row[f"{key}_{setting}_{unit}"] for row in rows])
            for kind, setting in (("bar-first", "alone"), ("bar-second", "together"))
        ]
        add(bar_chart(bars, labels), key, alone_together)
    needed = max((row["needed_gib"] for row in rows if row["needed_gib"] is not None), default=0.0)
    held = bar_chart([("bar-second", [row["held_gib"] for row in rows])], labels, {"limit": needed} if needed else {})
    add(held, "held", [("bar-second", t("preflight.held_bar")), ("limit", t("preflight.needed", gib=number(needed)))])
    late = bar_chart([("bar-second", [row["late_ms"] for row in rows])], labels)
    add(late, "late", [("bar-second", t("preflight.late_bar"))])
    links = metrics.get("links") or []
    ends = [f"{link['sender']}→{link['receiver']}" for link in links]
    speeds = bar_chart([("bar-second", [link["gb_per_s"] for link in links])], ends)
    add(speeds, "links", [("bar-second", t("preflight.link_bar"))])
    if len(rows) > 1:  # alone, a rank sends nothing over a bus
        add(*_bus(metrics.get("bus") or []))
    return pictures


def _bus(points: Sequence[Json]) -> tuple[Chart | None, str, Legend]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for point in sorted(points, key=lambda point: point["bytes"]):
        if point["gb_per_s"] is not None and point["bytes"] > 0:
            lines.setdefault(point["collective"], []).append((math.log2(point["bytes"]), point["gb_per_s"]))
    shown = list(lines.items())[:MAX_LINES]
    ticks = {place: _bytes(2**place) for _, line in shown for place, _ in line}
    drawn = line_chart([(f"s{n}", line) for n, (_, line) in enumerate(shown)], from_zero=True, x_labels=ticks)
    return drawn, "bus", [(f"s{n}", untranslated(name)) for n, (name, _) in enumerate(shown)]


def _bytes(size: float) -> str:
    power = min(3, int(math.log2(size)) // 10)
    return f"{size / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB')[power]}"
