"""``conformance internevo``: get a reference version of InternEvo, or prove that a tree is one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EPILOG = """\
exit codes: 0 the tree is the pinned one; 1 it is not; 2 there is no tree, or it could not be fetched

examples:
  conformance internevo get                                       both reference tags, from GitHub
  conformance internevo get --tag v0.2.3dev20240201 --from InternEvo.bundle
  conformance internevo check ~/InternEvo
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: The command's parser.
    """
    parser.description = "Get a reference version of InternEvo, or prove, file by file, that a tree is one."
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    get = actions.add_parser("get", help="clone the pinned commits and check them")
    get.add_argument("--tag", help="one tag only; without it, every pinned tag")
    get.add_argument(
        "--from", dest="origin", metavar="URL|PATH|BUNDLE", help="a mirror, a clone or a git bundle in place of GitHub"
    )
    check = actions.add_parser("check", help="compare a tree with the pinned commit, file by file")
    check.add_argument("path", nargs="?", type=Path, help="root of a checkout; without it, the installed wheel")
    check.add_argument("--tag", help="the version to compare with; without it, the nearest")


def run(args: argparse.Namespace) -> int:
    """Get or check.

    Args:
        args: Parsed arguments.

    Returns:
        0 when the tree is the pinned one, 1 when it is not.
    """
    from conformance.errors import SourceError
    from conformance.internevo.source import PINS, UPSTREAM, describe, fetch, find_source

    tags = [pin.tag for pin in PINS.values() if args.action == "check" or not pin.is_wheel]
    if args.tag is not None and args.tag not in tags:
        raise SourceError(f"The suite has no pin for {args.tag!r}.", f"It has {', '.join(tags)}.")
    if args.action == "get":
        for tag in [args.tag] if args.tag else tags:
            print(f"Fetching {tag} from {args.origin or UPSTREAM}", file=sys.stderr)
            source = fetch(PINS[tag], args.origin or UPSTREAM)
            print(f"{source.root}: {describe(source)[0]}")
        return 0

    source = find_source(args.path, args.tag)
    print(f"{source.root}")
    for line in describe(source):
        print(f"  {line}")
    wanted = args.tag or source.tag
    if source.pristine and source.tag == wanted:
        print("PASS: this is the pinned InternEvo.")
        return 0
    print(f"FAIL: this is not {'a pinned InternEvo' if wanted is None else f'the pinned {wanted}'}.")
    return 1
