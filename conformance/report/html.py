"""Pages for people: each one self-contained file without a script, in English and Chinese, from judged values alone."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from conformance import journal
from conformance.checks.finding import Result, Verdict
from conformance.evidence import device_name
from conformance.report import pictures
from conformance.report.chart import line_chart
from conformance.report.pictures import MAX_LINES, Json, Picture, Steps
from conformance.report.told import rows
from conformance.report.translated import check_text, question_text, shown, t, untranslated
from conformance.report.wording import number, words
from conformance.spec import load_checks

if TYPE_CHECKING:
    from jinja2 import Environment

    from conformance.analysis import RunAnalysis

# What the templates ask of the metrics; a run without a step, and a preflight, have some of them only.
METRICS = ("tgs", "tflops", "loss", "mfu", "steps_logged", "by_device")


def render(predicate: Json, report_id: str, steps: Steps, attempts: Sequence[Json] = ()) -> str:
    """Render a run's report.

    Args:
        predicate: The report's content.
        report_id: sha256 of the signed payload.
        steps: step, tgs and loss of every logged step, and mean_loss, over all ranks, of the first ones.
        attempts: The journal's entries.

    Returns:
        HTML.
    """
    view = _run_view(predicate, report_id, steps, attempts)
    return _environment().get_template("report.html").render(view=view)


def render_analysis(runs: Sequence[RunAnalysis]) -> str:
    """Render what logs alone show.

    Args:
        runs: The runs found in them.

    Returns:
        HTML.
    """
    views = []
    for place, run in enumerate(runs):
        shown = run.to_json()
        columns = ("step", "tgs", "loss")
        rows_of = zip(*(run.steps[name].tolist() for name in columns), strict=True)
        steps = [dict(zip(columns, row, strict=True)) for row in rows_of]
        view = _judged(f"run{place}-", shown["findings"], shown, steps)
        name = ", ".join(dict.fromkeys(segment.name for segment in run.segments))
        views.append({**view, "name": name, "rows": rows(shown)})
    return _environment().get_template("analysis.html").render(views=views)


class VerifiedRun(Protocol):
    """A run as the verifier found it: everything computed again from its evidence, nothing claimed."""

    @property
    def name(self) -> str:
        """Its name in a submission; empty where the bundle is of one run."""

    @property
    def report_id(self) -> str:
        """sha256 of its report's payload."""

    @property
    def rebuilt(self) -> Json:
        """The report's content as its evidence gives it, with the findings as the lab's policy leaves them; empty where
        the evidence is too broken to judge."""

    @property
    def steps(self) -> Steps:
        """step, tgs and loss of every logged step."""

    @property
    def journal(self) -> Sequence[Json]:
        """The journal's entries."""


class Verified(Protocol):
    """What verifying a bundle established."""

    @property
    def verdict(self) -> Verdict:
        """What may be claimed."""

    @property
    def answers(self) -> Sequence[Any]:
        """The questions in order: id, question, answer and message of each."""

    @property
    def predicate(self) -> Json:
        """What the statement that vouches for the bundle says; empty where it was not verified."""

    @property
    def runs(self) -> Sequence[VerifiedRun]:
        """The runs, in the order of the bundle."""


def render_verification(verification: Verified, name: str, judged: Mapping[str, str]) -> str:
    """Render what verifying a bundle established: the answers first, then each run from its evidence.

    Args:
        verification: The answers and the runs.
        name: What the bundle is called.
        judged: By what it was judged: time, and policy, digest and lab_key where there is a policy.

    Returns:
        HTML.
    """
    views = []
    for place, run in enumerate(verification.runs):
        if run.rebuilt:
            view = _run_view(run.rebuilt, run.report_id, run.steps, run.journal, f"run{place}-")
            views.append({**view, "name": run.name or run.rebuilt["workload"]["name"]})
    page = _environment().get_template("verification.html")
    return page.render(
        name=name,
        verdict=verification.verdict.value,
        answers=verification.answers,
        judged=judged,
        system=verification.predicate.get("system", {}),
        views=views,
    )


# What is compared: whether more is better, and the column that holds its 95% interval.
COMPARED = {
    "tgs": (True, "tgs_ci95"),
    "tflops": (True, ""),
    "mfu": (True, ""),
    "loss": (False, ""),
    "hours_to_target": (False, ""),
    "joules_per_token": (False, ""),
}
NAMED = ("name", "vendor", "workload", "verdict", "device", "devices")


def render_comparison(rows: Sequence[Json], judged: Mapping[str, str]) -> str:
    """Render verified runs side by side.

    Args:
        rows: One for each run: its group, the fields of NAMED, those figures of COMPARED that it has, and its steps
            (step, tgs and loss of every logged step).
        judged: By what they were judged, as for :func:`render_verification`.

    Returns:
        HTML.
    """
    by_group: dict[str, list[Json]] = {}
    for row in rows:
        by_group.setdefault(str(row["group"]), []).append(row)
    groups = []
    for name, group in sorted(by_group.items()):
        rankings = [{"metric": m, "more_is_better": COMPARED[m][0], "bars": _ranked(group, m)} for m in COMPARED]
        charts = [
            picture for key, field in (("speed", "tgs"), ("loss", "loss")) for picture in _overlaid(group, key, field)
        ]
        rehearsal = any(row["verdict"] == Verdict.REHEARSAL.value for row in group)
        drawn = [ranking for ranking in rankings if ranking["bars"]]
        groups.append({"name": name, "rehearsal": rehearsal, "rankings": drawn, "charts": charts})
    figures = [metric for metric in COMPARED if any(row.get(metric) is not None for row in rows)]
    table = [{**dict.fromkeys((*NAMED, *figures)), **row} for row in rows]
    page = _environment().get_template("comparison.html")
    return page.render(
        rows=table, groups=groups, columns=[*NAMED, *figures], numeric=[*figures, "devices"], judged=judged
    )


def _ranked(rows: Sequence[Json], metric: str) -> list[dict[str, Any]]:
    """Bars of one figure, the best first; a run without the figure has none."""
    more_is_better, interval = COMPARED[metric]
    having = sorted(
        (row for row in rows if row.get(metric) is not None), key=lambda row: row[metric], reverse=more_is_better
    )
    ends = [row.get(interval) or (row[metric], row[metric]) for row in having]
    longest = max((end[1] for end in ends), default=0.0)
    if not longest > 0:
        return []
    return [
        {
            "name": row["name"],
            "share": round(100 * max(0.0, row[metric]) / longest, 2),
            "low": round(100 * low / longest, 2) if row.get(interval) else None,
            "high": round(100 * high / longest, 2),
            "text": number(row[metric]),
        }
        for row, (low, high) in zip(having, ends, strict=True)
    ]


def _overlaid(rows: Sequence[Json], key: str, field: str) -> list[Picture]:
    """One figure of the first runs by step, in one picture; none where no run has steps."""
    lines = [
        (f"s{place}", [(step["step"], step[field]) for step in row.get("steps", ())])
        for place, row in enumerate(rows[:MAX_LINES])
    ]
    legend = [(f"s{place}", untranslated(str(row["name"]))) for place, row in enumerate(rows[:MAX_LINES])]
    drawn = line_chart(lines, from_zero=field == "tgs")
    return [Picture(t(f"chart.{key}"), drawn, legend)] if drawn else []


def _run_view(
    predicate: Json, report_id: str, steps: Steps, attempts: Sequence[Json], prefix: str = ""
) -> dict[str, Any]:
    """What the template shows of one run: the report, and what is drawn from it."""
    source = predicate["internevo"] or {"patches": [], "kernels": []}  # a preflight trains nothing
    kernels: dict[str, list[str]] = {}
    for kernel in source["kernels"]:
        provider = f"{kernel.get('provider', '?')} {kernel.get('version', '')}".strip()
        kernels.setdefault(provider, []).append(kernel.get("module", "?"))
    machines = Counter((d.get("host", "?"), d["vendor"], d["model"]) for d in predicate["devices"])
    fields = dict.fromkeys(field for device in predicate["devices"] for field in device)
    environment = {"ended": "", "variables": {}, "hosts": [], **predicate["environment"]}
    judged = _judged(prefix, predicate["findings"], predicate["metrics"], steps)
    if predicate["verdict"] == Verdict.INCONCLUSIVE.value:
        judged["reasons"] += [item for item in judged["groups"]["skipped"] if item["severity"] == "required"]
    return {
        "report": predicate,
        "report_id": report_id,
        "machines": [{"host": h, "name": device_name(v, m), "count": n} for (h, v, m), n in machines.items()],
        "devices": predicate["devices"],
        "device_fields": sorted(fields, key=lambda field: (field not in FIRST_FIELDS, field)),
        "patches": source["patches"],
        "kernels": list(kernels.items()),
        "environment": environment,
        "command": shlex.join(environment.get("command", [])),
        "attempts": journal.attempts(attempts),
        **judged,
    }


FIRST_FIELDS = ("rank", "host", "vendor", "model")


def _judged(prefix: str, findings: Sequence[Json], metrics: Json, steps: Steps) -> dict[str, Any]:
    """Findings in the order of urgency, their counts, and the charts of a run."""
    checks = load_checks()
    items = [
        {
            **{"limit_source": "", "evidence": "", "next_step": ""},
            **finding,
            "anchor": f"{prefix}{finding['check']}-{place}",
            "severity": checks[finding["check"]].severity if finding["check"] in checks else "",
        }
        for place, finding in enumerate(findings)
    ]
    by_result: dict[str, list[dict[str, Any]]] = {result.value: [] for result in Result}
    for item in items:
        by_result[item["result"]].append(item)
    wrong = by_result["FAIL"] + by_result["ERROR"]
    return {
        "metrics": {**dict.fromkeys(METRICS), **metrics},
        "groups": {"wrong": wrong, "skipped": by_result["SKIP"], "passed": by_result["PASS"]},
        "counts": [(r, len(by_result[r])) for r in ("FAIL", "ERROR", "PASS", "SKIP") if by_result[r]],
        "reasons": [item for item in wrong if item["severity"] != "advisory"],
        "charts": pictures.of_training(metrics, steps, findings),
        "pictures": pictures.of_preflight(metrics),
        "columns": pictures.DEVICE_COLUMNS,
    }


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # who verifies without a page does without

    # Autoescape: vendor strings end up here, and a lab opens the page.
    environment = Environment(
        loader=PackageLoader("conformance.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=shown,
    )  # fmt: skip
    environment.filters |= {
        "number": number,
        "percent": lambda share: f"{share:.1%}",
        "whole": lambda count: f"{count:,}",
    }
    environment.globals |= {
        "t": t,
        "check_title": lambda check: check_text(check, "title", check),
        "check_remedy": lambda check: check_text(check, "remedy", ""),
        "zh_note": words("zh")["findings.note"],
        "question": question_text,
    }
    return environment
