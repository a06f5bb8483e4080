"""Verified systems side by side: one row for each training run, every figure computed again from the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conformance.bundle import archive
from conformance.bundle.policy import Bench
from conformance.bundle.verify import BundleEvidence, Verification, VerifiedRun, verify
from conformance.checks.finding import Verdict
from conformance.evidence import device_name
from conformance.judgement import telemetry
from conformance.launch.samples import uuids_of
from conformance.metrics.energy import joules_per_token

RANKED = (Verdict.CONFORMANT, Verdict.REHEARSAL)
COLUMNS = (
    "name",
    "vendor",
    "workload",
    "layers",
    "verdict",
    "device",
    "devices",
    "tgs",
    "tflops",
    "mfu",
    "ceiling",
    "loss",
    "hours_to_target",
    "joules_per_token",
)


def compare(paths: Sequence[Path], bench: Bench) -> tuple[list[dict[str, Any]], list[str]]:
    """Verify bundles and put their training runs side by side.

    Args:
        paths: The bundles.
        bench: What to judge with.

    Returns:
        Rows by group, which is workload and layers, the highest TGS first, each with COLUMNS, the interval of its TGS
        and its steps; and a sentence for each bundle that is not ranked.
    """
    rows, left_out = [], []
    seen: dict[str, str] = {}
    for path in paths:
        verification = verify(path, bench)
        if verification.report_id in seen:
            left_out.append(f"{path.name} is the report of {seen[verification.report_id]} again and not ranked twice.")
            continue
        if verification.report_id:
            seen[verification.report_id] = path.name
        if verification.verdict not in RANKED:
            unsettled = sorted((a for a in verification.answers if a.answer != "yes"), key=lambda a: a.answer)
            faults = [f"{answer.id}: {answer.message}" for answer in unsettled]
            told = faults[0] if faults else "a required check is open"
            left_out.append(f"{path.name} is {verification.verdict.value} and not ranked. {told}")
            continue
        rows += _rows(path, verification)
    rows.sort(key=lambda row: (row["group"], row["verdict"] != Verdict.CONFORMANT.value, -(row["tgs"] or 0.0)))
    return rows, left_out


def _rows(path: Path, verification: Verification) -> list[dict[str, Any]]:
    index = archive.read_index(path)
    return [
        _row(path, verification, run, BundleEvidence(index, f"runs/{run.name}/" if run.name else ""))
        for run in verification.runs
        if run.predicate["kind"] != "preflight"
    ]


def _row(path: Path, verification: Verification, run: VerifiedRun, files: BundleEvidence) -> dict[str, Any]:
    metrics, devices = run.rebuilt["metrics"], run.rebuilt["devices"]
    speed, loss = metrics.get("tgs") or {}, metrics.get("loss") or {}
    flops, mfu = metrics.get("tflops") or {}, metrics.get("mfu") or {}
    own = verification.predicate.get("system", {}).get("system_name")
    layers = metrics.get("num_layers")
    return {
        "name": f"{own or path.name}{f' / {run.name}' if run.name else ''}",
        "vendor": verification.vendor or verification.predicate.get("vendor", ""),
        "workload": run.predicate["workload"]["name"],
        "layers": layers,
        # A workload that is not official may have another number of layers in each run.
        "group": f"{run.predicate['workload']['name']}{f', {layers} layers' if layers else ''}",
        "verdict": run.rebuilt["verdict"],
        "device": ", ".join(sorted({device_name(device["vendor"], device["model"]) for device in devices})),
        "devices": len(devices),
        "tgs": speed.get("median"),
        "tgs_ci95": speed.get("ci95"),
        "tflops": flops.get("recomputed"),
        "mfu": mfu.get("measured_ceiling"),
        "ceiling": mfu.get("ceiling"),
        "loss": loss.get("window_mean"),
        "hours_to_target": _hours_to_target(loss, speed, run.rebuilt["plan"]),
        "joules_per_token": joules_per_token(telemetry(files), speed.get("median") or 0.0, uuids_of(devices)),
        "steps": run.steps,
    }


def _hours_to_target(loss: Mapping[str, Any], speed: Mapping[str, Any], plan: Mapping[str, Any]) -> float | None:
    """Training time until the loss met its target for good: steps until then, at the median speed."""
    met = loss.get("held_since")
    if met is None or not speed.get("median"):
        return None
    tokens_per_card = (met + 1) * plan["tokens_per_step"] / plan["cards"]
    return float(tokens_per_card / speed["median"] / 3600)
