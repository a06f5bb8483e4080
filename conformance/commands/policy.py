"""``conformance policy``: draft what a lab accepts."""

from __future__ import annotations

import argparse
from pathlib import Path

EPILOG = """\
What the draft does not name, it does not accept: add data sets, rulings on patches, further vendors and builds of the
suite, then sign it. docs/lab.md describes every field.

examples:
  conformance policy new --name "Example Lab" --lab-key lab.pem.pub --vendor ACME=acme.pem.pub -o policy.json
  conformance sign policy.json --type policy --signing-key lab.pem -o policy.dsse.json
"""
DEFAULT_DAYS = 366


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: The command's parser.
    """
    parser.description = "Draft policies."
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    new = actions.add_parser(
        "new",
        help="draft a policy that accepts this build of the suite",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    new.add_argument("--name", required=True, help="name of the lab")
    new.add_argument("--lab-key", type=Path, required=True, metavar="FILE", help="the lab's public key")
    new.add_argument(
        "--vendor", required=True, action="append", metavar="NAME=FILE", help="a vendor and its public key; repeatable"
    )
    new.add_argument(
        "--workload", action="append", metavar="NAME", help="accepted workload; repeatable (default: the official ones)"
    )
    new.add_argument("--days", type=int, default=DEFAULT_DAYS, metavar="N", help=f"validity (default: {DEFAULT_DAYS})")
    new.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the draft's file")


def run(args: argparse.Namespace) -> int:
    """Write a draft.

    Args:
        args: Parsed arguments.

    Returns:
        0.

    Raises:
        ConformanceError: A workload is unknown, a key cannot be read, or the file exists or cannot be written.
    """
    import json
    from datetime import datetime, timedelta, timezone

    from conformance.bundle.policy import LAB, draft
    from conformance.errors import PolicyError
    from conformance.report.keys import load_public_key
    from conformance.spec import all_workloads

    if not 0 < args.days <= 3660:
        raise PolicyError(f"--days is {args.days}; expected 1 to 3660.")
    holders = [(args.name, LAB, load_public_key(args.lab_key))]
    for vendor in args.vendor:
        name, _, file = vendor.rpartition("=")
        if not name:
            raise PolicyError(f"--vendor is {vendor!r}; expected NAME=FILE, such as ACME=acme.pem.pub.")
        holders.append((name, "vendor", load_public_key(Path(file))))
    workloads = args.workload or [one.name for one in all_workloads() if one.official]
    document = draft(args.name, holders, workloads, timedelta(days=args.days), datetime.now(timezone.utc))
    try:
        with args.output.open("x", encoding="utf-8") as stream:
            json.dump(document, stream, indent=2, ensure_ascii=False)
            stream.write("\n")
    except OSError as error:
        raise PolicyError(f"The draft {args.output} cannot be written: {error.strerror}.") from error
    print(f"{args.output}: accepts {', '.join(workloads)}, from this build of the suite alone.")
    print(f"Edit it, then: conformance sign {args.output} --type policy --signing-key LAB.pem -o policy.dsse.json")
    return 0
