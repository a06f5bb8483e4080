"""The terminal's picture of a preflight: every check, and the devices side by side."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from conformance.checks.finding import Finding, Result
from conformance.preflight.session import SETUP, read_findings

PAGE_WIDTH = 150
STYLES = {Result.PASS: "green", Result.FAIL: "bold red", Result.ERROR: "yellow", Result.SKIP: "dim"}


def picture(run: Path) -> RenderableType:
    """Draw a preflight.

    Args:
        run: Its run directory.

    Returns:
        Something for rich to print.
    """
    setup = json.loads((run / SETUP).read_text("utf-8"))
    shapes = f"the shapes of {setup['workload']}"
    scale = f"{shapes}, small ones: this is a rehearsal" if setup["rehearsal"] else shapes
    head = Text.assemble(
        ("Preflight", "bold"),
        f": {setup['ranks']} x {setup['device']} on {setup['nodes']} node(s), {scale}; seed {setup['seed']}.",
    )
    return Group(head, _findings(read_findings(run)), _devices(run), Text(f"evidence: {run}/environment", style="dim"))


def write_page(run: Path) -> Path:
    """Write the picture as one HTML file that needs nothing else.

    Args:
        run: Run directory of the preflight.

    Returns:
        Where it was written.
    """
    console = Console(file=io.StringIO(), record=True, width=PAGE_WIDTH, highlight=False)
    console.print(picture(run))
    page = run / "preflight.html"
    page.write_text(console.export_html(), encoding="utf-8")
    return page


def _findings(findings: list[Finding]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    for finding in findings:
        style = STYLES[finding.result]
        table.add_row(f"[{style}]{finding.result.value}[/]", finding.check, escape(finding.message))
    return table


def _devices(run: Path) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title_justify="left")
    for column in ("rank", "host", "TFLOPS alone", "together", "copy GB/s alone", "together", "held GiB", "late ms"):
        table.add_column(column, justify="left" if column == "host" else "right")
    late = {
        p["rank"]: r["late_seconds"]
        for p in _processes(run, "collectives")
        for r in p["records"]
        if r["kind"] == "arrival"
    }
    for process in _processes(run, "device"):
        found: dict[Any, Any] = {}
        for record in process["records"]:
            found[(record["kind"], record.get("name"), record.get("setting"))] = record
        cells = [
            _cell(found.get(("gemm", "square", "alone")), "tflops"),
            _cell(found.get(("gemm", "square", "together")), "tflops"),
            _cell(found.get(("copy", None, "alone")), "gb_per_s"),
            _cell(found.get(("copy", None, "together")), "gb_per_s"),
            _cell(found.get(("capacity", None, None)), "held_gib"),
        ]
        host = str((found.get(("process", None, None)) or {}).get("host", "?"))
        arrival = f"{late[process['rank']] * 1e3:.2f}" if process["rank"] in late else "-"
        table.add_row(str(process["rank"]), host, *cells, arrival)
    return table


def _processes(run: Path, task: str) -> list[dict[str, Any]]:
    processes: list[dict[str, Any]] = json.loads((run / f"environment/preflight-{task}.json").read_text("utf-8"))[
        "processes"
    ]
    return processes


def _cell(record: dict[str, Any] | None, field: str) -> str:
    return "-" if record is None else f"{record[field]:.4g}"
