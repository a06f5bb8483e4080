"""The terminal's picture of a preflight: every check, and the devices side by side."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from conformance.checks.finding import Finding, Result
from conformance.evidence import PREFLIGHT, RunDirectory
from conformance.judgement import read_tasks
from conformance.metrics.preflight import by_device
from conformance.preflight.session import read_findings
from conformance.report.pictures import DEVICE_COLUMNS

STYLES = {Result.PASS: "green", Result.FAIL: "bold red", Result.ERROR: "yellow", Result.SKIP: "dim"}


def picture(run: Path) -> RenderableType:
    """Draw a preflight.

    Args:
        run: Its run directory.

    Returns:
        Something for rich to print.
    """
    setup = json.loads((run / PREFLIGHT).read_text("utf-8"))
    shapes = f"the shapes of {setup['workload']}"
    scale = f"{shapes}, small ones: this is a rehearsal" if setup["rehearsal"] else shapes
    head = Text.assemble(
        ("Preflight", "bold"),
        f": {setup['ranks']} x {setup['device']} on {setup['nodes']} node(s), {scale}; seed {setup['seed']}.",
    )
    return Group(head, _findings(read_findings(run)), _devices(run), Text(f"evidence: {run}/environment", style="dim"))


def _findings(findings: list[Finding]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column()
    table.add_column()
    table.add_column(overflow="fold")
    # What ended one process leaves many checks unmade for the same reason, which is told once.
    for (result, message), alike in itertools.groupby(findings, lambda finding: (finding.result, finding.message)):
        style = STYLES[result]
        table.add_row(f"[{style}]{result.value}[/]", "\n".join(each.check for each in alike), escape(message))
    return table


def _devices(run: Path) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title_justify="left")
    for column in ("rank", "host", "TFLOPS alone", "together", "copy GB/s alone", "together", "held GiB", "late ms"):
        table.add_column(column, justify="left" if column == "host" else "right")
    for row in by_device(read_tasks(RunDirectory(run))):
        shown = ("-" if row[name] is None else f"{row[name]:.4g}" for name in DEVICE_COLUMNS)
        table.add_row(str(row["rank"]), escape(row["host"]), *shown)
    return table
