"""``conformance verify``: judge a bundle from its raw evidence."""

from __future__ import annotations

import argparse
from pathlib import Path

EPILOG = """\
exit codes:
  0  everything holds; the verdict is CONFORMANT, or REHEARSAL for a workload that is not official
  1  something does not hold, or a check failed
  2  could not judge: no such file, a policy that is not in force, or the verdict is INCONCLUSIVE, as it is for an
     official workload without a policy; or the page cannot be written

example:
  conformance verify tiny.tar
  conformance verify tiny.tar --json | python3 -m json.tool
  conformance verify acme.tar --policy policy.dsse.json --lab-key lab.pem.pub --spent spent.jsonl --html acme.html
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: The command's parser.
    """
    parser.description = "Verify a bundle offline: signatures, every byte, and every figure again from the raw logs."
    parser.epilog = EPILOG
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="archive that `conformance bundle` wrote")
    add_bench(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the same as a page, rebuilt from the evidence")


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Declare what a lab judges with.

    Args:
        parser: The parser of a command that verifies.
    """
    parser.add_argument("--policy", type=Path, metavar="FILE", help="the lab's signed policy")
    parser.add_argument(
        "--lab-key", type=Path, metavar="FILE", help="the lab's public key, which must have signed the policy"
    )
    parser.add_argument("--spent", type=Path, metavar="FILE", help="the lab's list of challenges that were answered")


def bench_of(args: argparse.Namespace):  # type: ignore[no-untyped-def]
    """What the command line says that a lab judges with.

    Args:
        args: Parsed arguments of ``add_bench``.

    Returns:
        The bench.

    Raises:
        ConformanceError: A file cannot be read or is malformed, or the policy is not signed by the lab's key.
    """
    from datetime import datetime, timezone

    from conformance.bundle import policy
    from conformance.bundle.policy import Bench
    from conformance.errors import PolicyError
    from conformance.report import challenge, keys

    if args.policy is None and (args.lab_key is not None or args.spent is not None):
        raise PolicyError("--lab-key and --spent say nothing without a policy.", "Name it with --policy.")
    read = None if args.policy is None else policy.read(args.policy)
    if read is not None and args.lab_key is not None:
        expected = keys.key_id(keys.load_public_key(args.lab_key))
        if expected not in read.signed_by:
            raise PolicyError(
                f"The policy {args.policy} is signed by {', '.join(read.signed_by)}, not by the lab's key {expected}.",
                "Get the policy from the lab again.",
            )
    spent = None if args.spent is None else challenge.read_spent(args.spent)
    return Bench(read, datetime.now(timezone.utc), spent)


def run(args: argparse.Namespace) -> int:
    """Verify and print one line per question.

    Args:
        args: Parsed arguments.

    Returns:
        0 when everything holds, 1 when something does not, 2 when it cannot be decided.
    """
    import json

    from conformance.bundle.verify import verify

    bench = bench_of(args)
    verification = verify(args.bundle, bench)
    if args.json:
        print(json.dumps(verification.to_json(), indent=1, ensure_ascii=True))
    else:
        print_verification(verification)
    if args.html is not None:  # after the verdict, which no page may swallow
        _write_page(args.html, args.bundle.name, verification, bench)
    return exit_code(verification.verdict)


def exit_code(verdict) -> int:  # type: ignore[no-untyped-def]
    """What a verdict ends a command with.

    Args:
        verdict: The verdict.

    Returns:
        0 where it is good, 1 where it is not, 2 where it is open.
    """
    from conformance.checks.finding import Verdict

    return {Verdict.CONFORMANT: 0, Verdict.REHEARSAL: 0, Verdict.INCONCLUSIVE: 2}.get(verdict, 1)


def _write_page(path: Path, name: str, verification, bench) -> None:  # type: ignore[no-untyped-def]
    from conformance.errors import EvidenceError
    from conformance.report import html

    try:
        path.write_text(html.render_verification(verification, name, bench.told()), encoding="utf-8")
    except OSError as error:
        raise EvidenceError(f"The page {path} cannot be written: {error.strerror}.") from error


def print_verification(verification) -> None:  # type: ignore[no-untyped-def]
    """Print answers, findings that are not PASS, and the verdict.

    Args:
        verification: The verification.
    """
    from rich.console import Console
    from rich.markup import escape

    from conformance.report.visible import visible
    from conformance.spec import load_checks

    def shown(text: str) -> str:
        # A vendor's text could move the cursor or change colours; rich takes neither out.
        return escape(visible(text))

    console, checks = Console(highlight=False), load_checks()
    colours = {"yes": "green", "no": "bold red", "open": "yellow"}
    for answer in verification.answers:
        colour = colours[answer.answer]
        console.print(f"[{colour}]{answer.answer:>4}[/]  {answer.question}  [dim]{shown(answer.message)}[/]")
    for run in verification.runs:
        for finding in run.findings:
            if finding.result.value != "PASS":
                place = f"{run.name}: " if run.name else ""
                check = checks.get(finding.check)
                advisory = " (advisory)" if check is not None and check.severity == "advisory" else ""
                told = f"{place}{finding.check}{advisory}: {finding.message}"
                console.print(f"{finding.result.value:>5}  {shown(told)}")
    console.print(f"[bold]{verification.verdict.value}[/]", end="")
    meaning = {
        "REHEARSAL": ": every required check passed, on a workload that is not official; it certifies nothing.",
        "NOT_CONFORMANT": ": see the lines above.",
        "INCONCLUSIVE": ": something could not be decided; see the lines above.",
    }
    console.print(meaning.get(verification.verdict.value, "."))
