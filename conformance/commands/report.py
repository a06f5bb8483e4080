"""``conformance report``: judge and sign a run that has ended without a report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from conformance.errors import EvidenceError

if TYPE_CHECKING:
    from conformance.judgement import Judgement

EPILOG = """\
pytest does this at the end of every run. It is left to do where the machine, a full disk or SIGKILL came between the
end of the training and the report. What is judged and signed is what the run left, as it would have been then.

exit codes:
  0  every required check passed: the verdict is CONFORMANT, or REHEARSAL for a workload that is not official
  1  a check failed
  2  could not judge: no such run, one that still goes on or was killed before its end, one that has its report; or the
     verdict is INCONCLUSIVE

example:
  conformance report reports/20261123-195704-llama2-7b-perf
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: The command's parser.
    """
    parser.description = "Judge a run that has ended without a report, and write its signed report."
    parser.epilog = EPILOG
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--signing-key", type=Path, metavar="FILE", help="private key (default: this machine's own)")


def run(args: argparse.Namespace) -> int:
    """Judge, sign, and print what a run prints at its end.

    Args:
        args: Parsed arguments.

    Returns:
        0 where every required check passed, 1 where one failed, 2 where that cannot be decided.

    Raises:
        ConformanceError: The run has not ended, has a report, or cannot be judged; or the key cannot be read.
    """
    from conformance.claim import claimed
    from conformance.commands.verify import exit_code
    from conformance.report.build import report_on

    path = args.run.resolve()
    _require_run(path)
    with claimed(path / "work", EvidenceError(f"{path} still goes on.", "It is judged and signed at its end.")):
        _require_end(path)
        try:
            judgement, _, key_id, self_issued = report_on(path, args.signing_key)
        except OSError as error:
            raise EvidenceError(f"The report of {path} cannot be written: {error.strerror}.") from error
    _show(path, judgement, key_id, self_issued)
    return exit_code(judgement.verdict)


def _require_run(run: Path) -> None:
    from conformance import evidence

    if not any((run / name).is_file() for name in (evidence.RUN, evidence.PREFLIGHT)):
        raise EvidenceError(
            f"{run} is no run directory: it has no {evidence.RUN}.", "Name one below the reports folder."
        )


def _require_end(run: Path) -> None:
    from conformance import evidence

    if (run / evidence.REPORT).exists():
        raise EvidenceError(
            f"{run} has its report, which is not written again.",
            f"`conformance bundle {run} -o FILE.tar` packs it, and `conformance verify FILE.tar` judges it again.",
        )
    if not (run / evidence.JOURNAL).is_file():  # written last
        raise EvidenceError(
            f"{run} has no end: it was killed, or its disk was full, before its evidence was whole.",
            "Go on from its checkpoints with --resume, or run it again.",
        )


def _show(run: Path, judgement: Judgement, key_id: str, self_issued: bool) -> None:
    from rich.console import Console

    from conformance import evidence

    console = Console(highlight=False)
    if (run / evidence.PREFLIGHT).is_file():
        from conformance.preflight.table import picture

        console.print(picture(run))
        console.print(f"page: {run}/report.html", style="dim", soft_wrap=True)
    else:
        from conformance.summary import summary_of

        console.print(summary_of(run, judgement, key_id, self_issued))
