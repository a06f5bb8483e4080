"""What an analysed log shows, as labelled lines: the same on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from conformance.report.wording import number

Json = Mapping[str, Any]


def rows(run: Json) -> list[tuple[str, str]]:
    """Tell a run's figures in words.

    Args:
        run: The run, as ``conformance analyze --json`` gives it.

    Returns:
        Label and text of each line; an empty label goes on with the one before.
    """
    told = [*_layout(run)]
    if run["tgs"]:
        told += _speed(run["tgs"], run["tflops"], run["mfu"])
    if run["loss"]:
        told += _loss(run["loss"])
    return [*told, *_events(run), *_lines(run["lines"])]


def _layout(run: Json) -> Iterator[tuple[str, str]]:
    shape = f"{run['num_layers']} layers, hidden size {run['hidden_size']}, sequence length {run['seq_len']}"
    yield "shape", f"{shape if run['num_layers'] else 'the log cannot tell'}, f = {run['checkpoint_factor']}"
    layout = (
        f"{run['cards']} card(s), data parallel {run['data_parallel']}, global batch size {run['global_batch_size']}"
    )
    source = run["sources"].get("cards")
    yield "layout", layout + (f" (cards: {source})" if source else "")
    if reading := run["published_layout"]:
        yield (
            "",
            f"going by the published micro_bsz {reading['micro_bsz']} it would be {reading['cards']} cards, data "
            f"parallel {reading['data_parallel']}; but {reading['contradicted_by']}",
        )


def _speed(tgs: Json, flops: Json, mfu: Json) -> Iterator[tuple[str, str]]:
    interval = "no interval" if tgs["ci95"] is None else f"95% {tgs['ci95'][0]:.6g} to {tgs['ci95'][1]:.6g}"
    yield (
        "TGS",
        f"median {tgs['median']:.6g} ({interval}), mean {tgs['mean']:.6g}, least {tgs['min']:.6g}, last "
        f"{tgs['last']:.6g}, coefficient of variation {tgs['cov']:.2%}, drift {tgs['drift']:+.1%}",
    )
    yield "", tgs["rule"]
    if tgs["outliers"]:
        yield "", f"outliers: steps {_some(tgs['outliers'])}"
    sisters = [("last ten", tgs["last_tgs_10"]), ("without ten at each end", tgs["trimmed_mean"])]
    if known := [f"{label} {value:.6g}" for label, value in sisters if value is not None]:
        yield "", f"as sister benchmarks take it: {', '.join(known)}"
    counts = {"logged": "logged", "recomputed": "recomputed", "model": "model", "model_causal": "model, causal"}
    yield "TFLOPS", ", ".join(f"{text} {number(flops[key])}" for key, text in counts.items() if flops[key] is not None)
    for key, limit in (("declared_peak", "declared peak"), ("measured_ceiling", "GEMM ceiling")):
        if mfu[key] is not None:
            source = f" ({mfu['ceiling']})" if key == "measured_ceiling" else ""
            yield "MFU", f"{mfu[key]:.1%} of the {limit}{source}, {mfu[f'{key}_causal']:.1%} with causal attention"


def _loss(loss: Json) -> Iterator[tuple[str, str]]:
    def shown(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.4f}"

    interval = "no interval" if loss["window_ci95"] is None else " to ".join(map(shown, loss["window_ci95"]))
    mean = f"mean of the last {loss['window']} steps {shown(loss['window_mean'])} ({interval})"
    yield "loss", f"last {shown(loss['last'])}, {mean}"
    if loss["from_metric"] is not None:
        yield (
            "",
            f"over all ranks: last {shown(loss['from_metric'])}, mean of the window "
            f"{shown(loss['from_metric_window_mean'])}",
        )
    if loss["first_met"] is not None:
        held = "not held to the end" if loss["held_since"] is None else f"held since step {loss['held_since']}"
        yield "", f"the window was first below the target at step {loss['first_met']}, {held}"
    if loss["spikes"]:
        yield "", f"spikes: steps {_some(loss['spikes'])}"
    if loss["skipped_batches"]:
        yield "", f"updates skipped for an infinite or undefined gradient: {loss['skipped_batches']}"


def _events(run: Json) -> Iterator[tuple[str, str]]:
    counts = ", ".join(f"{kind.replace('_', ' ')} {count}" for kind, count in run["event_counts"].items())
    if counts:
        yield "events", counts
    for event in run["exceptions"][:10]:
        after = "" if event["after_step"] is None else f", after step {event['after_step']}"
        where = f"rank {event['rank']}, {event['host']}{after}, line {event['line']}"
        yield "raised", f"{event['type']} on {where}: {event['message'][:200]}"
        for line in event["traceback"][-5:]:
            yield "", f"  {line}"


def _lines(files: Sequence[Json]) -> Iterator[tuple[str, str]]:
    for file in files:
        counts = ", ".join(f"{file[name]} {name}" for name in ("steps", "known", "refused", "other"))
        dropped = f", {file['events_dropped']} events not kept" if file["events_dropped"] else ""
        yield "lines", f"{file['lines']} read of {file['file'] or 'the log'}: {counts}{dropped}"
        for example in file["examples"]:
            yield "", f"refused: {example}"


def _some(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[:20])) + (f" and {len(steps) - 20} more" if len(steps) > 20 else "")
