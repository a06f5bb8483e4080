"""``conformance compare``: verified systems side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

EPILOG = """\
Each bundle is verified first; one that does not hold is named and not ranked. Runs are ranked within their workload
and number of layers, by TGS. MFU is model FLOPs (GQA counted right) over the GEMM ceiling that the CSV's column
ceiling names: of the submission's newest preflight of these devices, else as the run's report has it. Energy is the
devices' own, from their telemetry; hosts, network and cooling are not in it. A dash, or a column that is not there, is
a figure that the evidence does not tell. A rehearsal certifies nothing.

exit codes: 0 all are ranked, 1 some do not hold, 2 none could be compared

example:
  conformance compare acme.tar other.tar --policy policy.dsse.json --spent spent.jsonl --html systems.html
"""
TITLES = {
    "name": "system",
    "verdict": "verdict",
    "tgs": "TGS",
    "tflops": "TFLOPS",
    "mfu": "MFU",
    "loss": "loss",
    "hours_to_target": "hours to target",
    "joules_per_token": "J/token",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: The command's parser.
    """
    from conformance.commands.verify import add_bench

    parser.description = "Rank verified systems."
    parser.epilog = EPILOG
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help="archives to compare")
    add_bench(parser)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table as CSV")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write it as a page with plots")


def run(args: argparse.Namespace) -> int:
    """Verify, compare and print.

    Args:
        args: Parsed arguments.

    Returns:
        0 when all bundles are ranked, 1 when some are not, 2 when none is.

    Raises:
        ConformanceError: A file cannot be read or written.
    """
    from conformance.bundle.compare import compare
    from conformance.commands.verify import bench_of

    bench = bench_of(args)
    rows, left_out = compare(args.bundles, bench)
    if rows:
        _print(rows)
    for sentence in left_out:
        print(_shown(sentence))
    if args.csv is not None:
        _write(args.csv, _csv(rows))
    if args.html is not None:
        from conformance.report import html

        _write(args.html, html.render_comparison(rows, bench.told()))
    return 2 if not rows else 1 if left_out else 0


def _print(rows) -> None:  # type: ignore[no-untyped-def]
    import itertools

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from conformance.report.wording import number

    console = Console(highlight=False)
    for name, group in itertools.groupby(rows, key=lambda row: row["group"]):
        ranked = list(group)
        console.print(f"[bold]{escape(_shown(name))}[/bold]")
        table = Table(box=None, pad_edge=False)
        told = [field for field in TITLES if any(row[field] is not None for row in ranked)]
        for field in told:
            # Names fold; of a figure no digit is left out.
            named = field == "name"
            table.add_column(TITLES[field], justify="left" if named else "right", overflow="fold", no_wrap=not named)
        for row in ranked:
            name = f"{_shown(row['name'])}\n{row['devices']} x {_shown(row['device'])}"
            cells = [row[field] for field in told if field != "name"]
            table.add_row(
                escape(name), *(escape(_shown(cell)) if isinstance(cell, str) else number(cell) for cell in cells)
            )
        console.print(table)


def _csv(rows) -> str:  # type: ignore[no-untyped-def]
    import csv
    import io

    from conformance.bundle.compare import COLUMNS

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_cell(row[field]) for field in COLUMNS])
    return out.getvalue()


def _cell(value: object) -> object:
    """A cell that no spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return "" if value is None else value
    text = _shown(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def _shown(text: str) -> str:
    from conformance.report.visible import visible

    return visible(text)


def _write(path: Path, text: str) -> None:
    from conformance.errors import EvidenceError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EvidenceError(f"{path} cannot be written: {error.strerror}.") from error
