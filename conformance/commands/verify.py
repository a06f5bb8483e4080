"""``conformance verify``: judge a bundle from its raw evidence."""

from __future__ import annotations

import argparse
from pathlib import Path

EPILOG = """\
exit codes:
  0  everything holds; the verdict is CONFORMANT, or REHEARSAL for a workload that is not official
  1  something does not hold, or a check failed
  2  could not judge: no such file, or the verdict is INCONCLUSIVE

example:
  conformance verify tiny.tar
  conformance verify tiny.tar --json | python3 -m json.tool
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: The command's parser.
    """
    parser.description = "Verify a bundle offline: signature, every byte, and every figure again from the raw logs."
    parser.epilog = EPILOG
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="archive that `conformance bundle` wrote")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def run(args: argparse.Namespace) -> int:
    """Verify and print one line per question.

    Args:
        args: Parsed arguments.

    Returns:
        0 when everything holds, 1 when something does not, 2 when it cannot be decided.
    """
    import json

    from conformance.bundle.verify import verify
    from conformance.checks.finding import Verdict

    verification = verify(args.bundle)
    if args.json:
        print(json.dumps(verification.to_json(), indent=1, ensure_ascii=True))
    else:
        _print(verification)
    return {Verdict.CONFORMANT: 0, Verdict.REHEARSAL: 0, Verdict.INCONCLUSIVE: 2}.get(verification.verdict, 1)


def _print(verification) -> None:  # type: ignore[no-untyped-def]
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    colours = {"yes": "green", "no": "bold red", "open": "yellow"}
    for answer in verification.answers:
        colour = colours[answer.answer]
        console.print(f"[{colour}]{answer.answer:>4}[/]  {answer.question}  [dim]{escape(answer.message)}[/]")
    for finding in verification.predicate.get("findings", []):
        if finding["result"] != "PASS":
            console.print(f"{finding['result']:>5}  {escape(finding['check'])}: {escape(finding['message'])}")
    console.print(f"[bold]{verification.verdict.value}[/]", end="")
    told = {
        "REHEARSAL": ": every required check passed, on a workload that is not official; it certifies nothing.",
        "NOT_CONFORMANT": ": see the lines above.",
        "INCONCLUSIVE": ": a required check could not be decided; see the lines above.",
    }
    console.print(told.get(verification.verdict.value, "."))
