"""Every page that the suite writes, made of real and synthesised evidence, for tests and screenshots."""

from __future__ import annotations

import io
import math
from pathlib import Path
from types import SimpleNamespace

from honest_log import Run
from lab import STATED

from conformance import evidence, journal
from conformance.analysis import analyze
from conformance.bundle.facts import Answer
from conformance.bundle.trust import QUESTIONS
from conformance.checks import preflight as preflight_checks
from conformance.checks.finding import Verdict
from conformance.evidence import RunDirectory
from conformance.judgement import judge
from conformance.metrics.preflight import figures
from conformance.report import html
from conformance.report.build import build_predicate, finding_json

ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "fixtures" / "tiny-perf-run"
SLICE = ROOT / "reference_logs" / "h200-7b-slice24-suite-v0.2.3.log"
SYSTEM = {
    **STATED,
    "nodes": 4,
    "accelerator": "ACME X1",
    "accelerators_per_node": 8,
    "kernel": "6.1",
    "framework": "2.6",
}
JUDGED = {"time": "2026-11-24T12:00:00Z", "policy": "Example Lab", "digest": "cd" * 32, "lab_key": "12" * 32}
SIGNER = {"self_issued": True, "time": "2026-11-23T21:20:40Z"}


def predicate_of(run: Path):
    """A run directory's report, and its steps."""
    files = RunDirectory(run)
    judgement = judge(files)
    return build_predicate(files, judgement, SIGNER), judgement.steps


def attempts_of(run: Path):
    return journal.parse((run / evidence.JOURNAL).read_bytes()).entries


def rows_of(analysed):
    return analysed.steps.frame()[["step", "tgs", "loss"]].to_dict("records")


def rehearsal(run: Path = TINY) -> str:
    predicate, steps = predicate_of(run)
    return html.render(predicate, "ab" * 32, steps, attempts_of(run))


def accuracy_view(steps: int = 3000):
    """An official accuracy run that misses its target, with a reference curve: a synthesised log, real analysis."""
    (analysed,) = analyze(io.BytesIO(Run(total_steps=steps, data_parallel=32, loss=1.8).text()), name="rank0.log")
    rows = rows_of(analysed)
    for row in rows[500:503]:
        row["loss"] = math.nan
    rows = [{**row, "mean_loss": row["loss"]} for row in rows]
    points = [[n, rows[n]["loss"] * 1.003, rows[n]["loss"] * 0.98, rows[n]["loss"] * 1.025] for n in range(0, 100, 2)]
    predicate, _ = predicate_of(TINY)
    findings = [finding_json(finding) for finding in analysed.findings]
    findings += [
        {"check": "loss-target", "result": "FAIL", "message": "Mean of the last 100 steps 1.8, target 1.716.",
         "limit": 1.716, "limit_source": "AIChipBenchmark llm/LLaMa-V2/README.md, 训练目标", "next_step": "Train on.",
         "evidence": "logs/node0/rank0.log"},
        {"check": "run-uniform", "result": "ERROR", "message": "The record of rank 3 cannot be read."},
    ]  # fmt: skip
    reading = {"id": "cards", "says": "8 cards", "also": "64 cards", "taken": "batch 256 on both", "source": "README"}
    predicate |= {
        "workload": {**predicate["workload"], "name": "llama2-7b-accuracy", "official": True, "readings": [reading]},
        "metrics": {**analysed.to_json(), "curve": {"reference": "h200-7b", "runs": 3, "points": points}},
        "findings": findings,
        "verdict": "NOT_CONFORMANT",
        "redactions": [{"rule": "home", "file": "logs/node0/rank0.log", "count": 3}],
        "challenge": {"nonce": "12" * 32, "digest": "34" * 32},
    }
    return predicate, rows


def accuracy() -> str:
    predicate, rows = accuracy_view()
    return html.render(predicate, "cd" * 32, rows, attempts_of(TINY))


def tasks(ranks: int = 8):
    """What a preflight on some devices wrote, as far as pages show it; rank 5 is slow, and late."""
    device, collectives = [], []
    for rank in range(ranks):
        slow = 0.8 if rank == 5 else 1.0
        records = [{"kind": "process", "host": f"node-{rank // 8}", "local_rank": rank % 8}]
        for setting, share in (("alone", 1.0), ("together", 0.97)):
            records.append({"kind": "gemm", "name": "square", "setting": setting, "tflops": 770.0 * slow * share})
            records.append({"kind": "copy", "setting": setting, "gb_per_s": "nan" if rank == 3 else 4200.0 * share})
        records.append({"kind": "capacity", "held_gib": 72.0, "needed_gib": 71.3})
        device.append({"rank": rank, "records": records})
        after = {"kind": "arrival", "late_seconds": 0.012 if rank == 5 else 0.0004 * rank, "work_seconds": 0.2}
        link = {"kind": "link", "sender": (rank - 1) % ranks, "receiver": rank, "gb_per_s": 380.0 * slow}
        bandwidths = [
            {"kind": "bandwidth", "operation": name, "bytes": 4**power * 1024, "busbw_gb_per_s": top * power / 9}
            for name, top in (("all_reduce", 430.0), ("all_gather", 410.0), ("broadcast", 300.0))
            for power in range(1, 10)
        ]
        collectives.append({"rank": rank, "records": [after, link, *bandwidths]})
    return {"device": device, "collectives": collectives}


def preflight_findings():
    return [
        {"check": check, "result": "FAIL" if check == "speed-even" else "PASS", "message": f"{check}, as found."}
        for check in preflight_checks.CHECKS
    ]


def preflight_view(ranks: int = 8):
    """A preflight that found a slow device."""
    predicate, _ = predicate_of(TINY)
    environment = {"started": "2026-11-23T21:20:40Z", "python": "3.11", "packages": {}, "hosts": [{"host": "node-0"}]}
    return predicate | {
        "kind": "preflight", "internevo": None, "metrics": figures(tasks(ranks)), "findings": preflight_findings(),
        "environment": environment, "verdict": "NOT_CONFORMANT",
    }  # fmt: skip


def preflight(ranks: int = 8) -> str:
    return html.render(preflight_view(ranks), "ef" * 32, [])


def verification() -> str:
    """A submission of two runs; one answer of each kind."""
    predicate, rows = accuracy_view(200)
    run = {"report_id": "ab" * 32, "journal": attempts_of(TINY)}
    runs = [
        SimpleNamespace(name="accuracy", rebuilt=predicate, steps=rows, **run),
        SimpleNamespace(name="preflight", rebuilt=preflight_view(), steps=[], **run),
        SimpleNamespace(name="broken", rebuilt={}, steps=[], **run),
    ]
    answers = [
        Answer(name, question, ("yes", "no", "open")[place % 3], f"What was found of {name}.")
        for place, (name, question) in enumerate(QUESTIONS.items())
    ]
    verified = SimpleNamespace(verdict=Verdict.NOT_CONFORMANT, answers=answers, runs=runs, predicate={"system": SYSTEM})
    return html.render_verification(verified, "acme.tar", JUDGED)


def comparison(names=("Acme A1", "Acme B2", "Umbra")) -> str:
    (analysed,) = analyze(SLICE.open("rb"))
    rows = rows_of(analysed)
    base = {
        "vendor": "Acme",
        "workload": "slice-7b-perf",
        "group": "slice-7b-perf, 24 layers",
        "verdict": "REHEARSAL",
        "device": "NVIDIA H200",
        "devices": 1,
    }
    return html.render_comparison(
        [
            {**base, "name": name, "devices": 1,
             "tgs": 12000.0 - 800 * n, "tgs_ci95": [11900.0 - 800 * n, 12100.0 - 800 * n],
             "tflops": 490.0 - 30 * n, "mfu": None, "loss": 0.0111 + n / 1000, "joules_per_token": None if n else 0.05,
             "steps": [{**row, "tgs": row["tgs"] * (1 - n / 15)} for row in rows]}
            for n, name in enumerate(names)
        ],
        JUDGED,
    )  # fmt: skip


def analysis(logs=()) -> str:
    paths = logs or sorted(SLICE.parent.glob("*.log"))
    found = [run for path in paths for run in analyze(path.open("rb"), name=path.name)]
    return html.render_analysis(found)


PAGES = {
    "report": rehearsal,
    "accuracy": accuracy,
    "preflight": preflight,
    "verification": verification,
    "comparison": comparison,
    "analysis": analysis,
}


def spoiled(value, text):
    """The same value with a hostile text in every free string; what selects something keeps its form."""
    if isinstance(value, dict):
        kept = ("result", "check", "verdict", "kind", "outcome")
        return {name: item if name in kept else spoiled(item, text) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [spoiled(item, text) for item in value]
    return text if isinstance(value, str) else value


def hostile(text: str) -> str:
    """A verification page of a vendor who writes this wherever a vendor can write."""
    predicate, rows = accuracy_view(200)
    predicate["devices"] = [{**device, text: text} for device in predicate["devices"]]
    predicate["environment"] = {**predicate["environment"], "packages": {text: text}, "variables": {text: text}}
    entries = [{"event": "started", "run": text, "workload": text, "time": text}]
    run = SimpleNamespace(name=text, report_id=text, rebuilt=spoiled(predicate, text), steps=rows, journal=entries)
    answer = Answer("made-up", text, "no", text)
    system = dict.fromkeys(SYSTEM, text)
    verified = SimpleNamespace(
        verdict=Verdict.NOT_CONFORMANT, answers=[answer], runs=[run], predicate={"system": system}
    )
    return html.render_verification(verified, text, dict.fromkeys(JUDGED, text))
