"""``conformance bundle``: pack a finished run for a lab."""

from __future__ import annotations

import argparse
from pathlib import Path

EPILOG = """\
example:
  conformance bundle reports/20261123-195704-tiny-perf -o tiny.tar
  conformance verify tiny.tar
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: The command's parser.
    """
    parser.description = "Pack the report and evidence of a finished run into one deterministic archive."
    parser.epilog = EPILOG
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory, as the suite's summary prints it")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="bundle, .tar or .tar.gz")


def run(args: argparse.Namespace) -> int:
    """Write the bundle and say what it holds.

    Args:
        args: Parsed arguments.

    Returns:
        0.
    """
    from conformance.bundle.pack import pack

    index = pack(args.run, args.output)
    size = sum(member.size for member in index.members.values())
    print(f"{args.output}: {len(index.members)} files, {size:,} bytes of evidence.")
    print(f"Check it as a lab would: conformance verify {args.output}")
    return 0
