"""``conformance selftest``: prove that every check can fail, and that none does on a good run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conformance.selftest.bench import Matrix

EPILOG = """\
exit codes: 0 every check passed on something good and went red for its faults; 1 one did not; 2 no source checkout

examples:
  conformance selftest
  conformance selftest --json > matrix.json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options.

    Args:
        parser: The command's own parser.
    """
    parser.description = (
        "Inject every known fault into good evidence, and hold what turns red against what must: the matrix of checks "
        "against faults. A check without a fault is a problem too."
    )
    parser.epilog = EPILOG
    parser.add_argument("--json", action="store_true", help="print the matrix as JSON")


def run(args: argparse.Namespace) -> int:
    """Make the matrix and print it.

    Args:
        args: The parsed options.

    Returns:
        0 when nothing is wrong with the suite, 1 when something is.

    Raises:
        EvidenceError: The good evidence is not there, as in an installed package.
    """
    import json

    from conformance.selftest.bench import run_matrix, to_json
    from conformance.selftest.faults import FAULTS
    from conformance.spec import load_checks

    matrix = run_matrix(FAULTS, load_checks())
    if args.json:
        print(json.dumps(to_json(matrix), indent=2))
    else:
        _show(matrix)
    return int(bool(matrix.problems))


def _show(matrix: Matrix) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("check", "fault", "injected into", "turned red"):
        table.add_column(title, overflow="fold")
    for trial in sorted(matrix.trials, key=lambda trial: trial.fault.check):
        others = sorted(trial.red - {trial.fault.check})
        red = "[green]it[/]" if trial.fault.check in trial.red else "[bold red]not it[/]"
        red += f", and {', '.join(others)}" if others else " alone" if trial.alone else ""
        table.add_row(trial.fault.check, trial.fault.name.replace("[", "\\["), trial.fault.bench.name, red)
    console = Console(highlight=False)
    console.print(table)
    for problem in matrix.problems:
        console.print(problem, style="bold red", markup=False)
    checks = {trial.fault.check for trial in matrix.trials}
    alone = {trial.fault.check for trial in matrix.trials if trial.alone}
    good = sum(trial.good for trial in matrix.trials)
    console.print(
        f"{len(checks)} checks, {len(checks & matrix.green)} green on good evidence, {len(alone)} turned red alone "
        f"by a fault; {good} of {len(matrix.trials)} faults changed what they name and nothing else; "
        f"{len(matrix.problems)} problems."
    )
