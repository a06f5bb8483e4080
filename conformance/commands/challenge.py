"""``conformance challenge``: issue a signed nonce, which a run has to answer with its seed."""

from __future__ import annotations

import argparse
from pathlib import Path

EPILOG = """\
The vendor gives the file to the run: pytest suites/perf -m 7b --challenge challenge.dsse.json
The run's seed is derived from the nonce: a log that was made before shows another, unless somebody edits it.

example:
  conformance challenge new --vendor ACME --workload llama2-7b-perf --signing-key lab.pem -o challenge.dsse.json
"""
DEFAULT_DAYS = 14


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: The command's parser.
    """
    parser.description = "Issue challenges."
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    new = actions.add_parser("new", help="issue a challenge to a vendor")
    new.add_argument("--vendor", required=True, metavar="NAME", help="vendor, as in the policy")
    new.add_argument(
        "--workload",
        required=True,
        action="append",
        metavar="NAME",
        help="workload that may answer it; repeat for more",
    )
    new.add_argument("--days", type=int, default=DEFAULT_DAYS, metavar="N", help=f"validity (default: {DEFAULT_DAYS})")
    new.add_argument("--signing-key", type=Path, required=True, metavar="FILE", help="the lab's private key")
    new.add_argument("--passphrase-env", metavar="VAR", help="environment variable with the key's passphrase")
    new.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the challenge's file")


def run(args: argparse.Namespace) -> int:
    """Issue a challenge.

    Args:
        args: Parsed arguments.

    Returns:
        0.

    Raises:
        ConformanceError: A workload is unknown, the key cannot be read, or the file exists or cannot be written.
    """
    from datetime import datetime, timedelta, timezone

    from conformance.errors import ChallengeError
    from conformance.report import challenge, keys
    from conformance.spec import load_workload

    for name in args.workload:
        load_workload(name)
    if not 0 < args.days <= 366:
        raise ChallengeError(f"--days is {args.days}; expected 1 to 366.")
    key = keys.load_private_key(args.signing_key, keys.passphrase_from(args.passphrase_env))
    now = datetime.now(timezone.utc)
    envelope = challenge.issue(args.vendor, args.workload, timedelta(days=args.days), now, key)
    try:
        with args.output.open("xb") as stream:
            stream.write(envelope)
    except OSError as error:
        raise ChallengeError(f"The challenge {args.output} cannot be written: {error.strerror}.") from error
    issued = challenge.parse(envelope)
    print(f"nonce    {issued.nonce}")
    print(f"expires  {issued.expires.strftime(challenge.TIME_FORMAT)}")
    for name in issued.workloads:
        print(f"seed     {challenge.seed(issued.nonce, name)}  for {name}")
    return 0
