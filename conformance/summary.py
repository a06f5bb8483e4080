"""What a person reads in the terminal when a run is over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from conformance.checks.finding import Finding, Result, Verdict
from conformance.judgement import Judgement
from conformance.pipeline import Outcome
from conformance.report.wording import number, verdict_meaning

VERDICT_STYLES = {
    Verdict.CONFORMANT: "bold green",
    Verdict.REHEARSAL: "bold cyan",
    Verdict.INCONCLUSIVE: "bold yellow",
    Verdict.NOT_CONFORMANT: "bold red",
}
RESULT_STYLES = {Result.PASS: "green", Result.FAIL: "bold red", Result.ERROR: "yellow", Result.SKIP: "dim"}


def summary(outcome: Outcome) -> RenderableType:
    """Verdict, figures, what did not pass, and where everything lies.

    Args:
        outcome: What came of the run.

    Returns:
        Something for rich to print.
    """
    return summary_of(outcome.run, outcome.judgement, outcome.key_id, outcome.self_issued, outcome.judged_on)


def summary_of(run: Path, judgement: Judgement, key_id: str, self_issued: bool, judged_on: str = "") -> RenderableType:
    """The same of a run whose report was written by itself.

    Args:
        run: Its directory, with report and evidence.
        judgement: Findings, metrics and verdict.
        key_id: Id of the key that signed.
        self_issued: Whether that key is this machine's own.
        judged_on: Host of node 0, where the report lies; empty on node 0 itself.

    Returns:
        Something for rich to print.
    """
    plan = judgement.plan
    style = VERDICT_STYLES[judgement.verdict]
    parts: list[RenderableType] = [
        Text.assemble((judgement.verdict.value, style), f": {verdict_meaning(judgement.verdict)}."),
        Text(
            f"{plan.model.num_layers} layers of {plan.model.hidden_size}, {plan.parameters:,} parameters; "
            f"{plan.cards} device{'s' * (plan.cards > 1)}: "
            f"dp {plan.data_parallel} x tp {plan.tensor} x pp {plan.pipeline}; "
            f"global batch {plan.global_batch_size} x {plan.model.seq_len} tokens.",
            style="dim",
        ),
    ]
    if judgement.metrics:
        parts.append(_figures(judgement.metrics, plan.workload.loss_target))
    parts.append(_findings(judgement.findings))
    parts.append(_places(run, plan.workload.name, key_id, self_issued, judged_on))
    return Panel(Group(*parts), title=f"[bold]{plan.workload.name}[/]", border_style=style, padding=(0, 1))


def _figures(metrics: Mapping[str, Any], target: float | None) -> Table:
    tgs, tflops, loss = metrics["tgs"], metrics["tflops"], metrics["loss"]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right", style="bold")
    table.add_column()
    table.add_column(style="dim")
    interval = tgs.get("ci95") or [None, None]
    spread = f"95% of the median: {number(interval[0])} to {number(interval[1])}"
    if interval[0] is None:
        spread = "too few steps for an interval"
    table.add_row(
        number(tgs["median"]),
        "TGS",
        f"tokens/device/s, median of steps {tgs['steps_used'][0]} to {tgs['steps_used'][1]}; {spread}",
    )
    table.add_row(
        number(tflops["model"]), "TFLOPS", f"per device, model FLOPs; as InternEvo logs them {number(tflops['logged'])}"
    )
    below = "" if target is None else f"; target below {target:g}"
    table.add_row(
        number(loss["last"], 4),
        "loss",
        f"last step; mean of the last {loss['window']}: {number(loss['window_mean'], 4)}{below}",
    )
    return table


def _findings(findings: tuple[Finding, ...]) -> RenderableType:
    passed = sum(finding.result is Result.PASS for finding in findings)
    table = _folded(1)
    table.add_row("[green]PASS[/]", f"{passed} of {len(findings)} checks")
    for finding in findings:
        if finding.result is not Result.PASS:
            style = RESULT_STYLES[finding.result]
            text = f"[bold]{escape(finding.check)}[/] {escape(finding.message)}"
            if finding.next_step and finding.result is not Result.SKIP:
                text += f" [italic]{escape(finding.next_step)}[/]"
            table.add_row(f"[{style}]{finding.result.value}[/]", text)
    return table


def _places(run: Path, workload: str, key_id: str, self_issued: bool, judged_on: str) -> Table:
    table = _folded(2)
    if judged_on:
        table.add_row("report", escape(f"on node 0, {judged_on}, signed by key {key_id[:16]}"))
        return table
    name = escape(str(_relative(run)))
    issued = "this machine's own key: self-issued, vouched for by nobody" if self_issued else "key"
    table.add_row("report", f"{name}/report.html")
    table.add_row("signed", f"{name}/report.dsse.json, by {issued} {key_id[:16]}")
    table.add_row("next", f"conformance bundle {name} -o {workload}.tar")
    return table


def _folded(space: int) -> Table:
    """A table without lines, of a short column and a long one, whose words are broken and never cut, as paths are."""
    table = Table(box=None, show_header=False, padding=(0, space, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")
    return table


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
