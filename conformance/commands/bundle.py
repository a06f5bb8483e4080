"""``conformance bundle``: pack a finished run, or several as a submission, for a lab."""

from __future__ import annotations

import argparse
from pathlib import Path

from conformance.errors import EvidenceError

EPILOG = """\
One RUN alone becomes the bundle of that run. With --vendor the runs become a submission: preflight, performance and
accuracy runs of one system under one statement, signed by the vendor. What the evidence does not tell of the system
stands in the file of --system; without --system a template of it is printed, and nothing is written.

example:
  conformance bundle reports/20261123-195704-tiny-perf -o tiny.tar
  conformance bundle reports/A reports/B --vendor ACME > system.toml       (then fill it in)
  conformance bundle reports/A reports/B --vendor ACME --system system.toml --signing-key acme.pem -o acme.tar
  conformance verify acme.tar
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: The command's parser.
    """
    parser.description = "Pack reports and evidence of finished runs into one deterministic archive."
    parser.epilog = EPILOG
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run directory, as the suite's summary prints it"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="bundle, .tar or .tar.gz")
    parser.add_argument("--vendor", metavar="NAME", help="make a submission: who submits, as in the lab's policy")
    parser.add_argument("--system", type=Path, metavar="FILE", help="what the system is, in TOML")
    parser.add_argument("--signing-key", type=Path, metavar="FILE", help="private key (default: this machine's own)")
    parser.add_argument("--passphrase-env", metavar="VAR", help="environment variable with the key's passphrase")


def run(args: argparse.Namespace) -> int:
    """Write the bundle and say what it holds.

    Args:
        args: Parsed arguments.

    Returns:
        0 when it was written, 2 when a template of the system description was printed instead.

    Raises:
        EvidenceError: An option is missing that these runs need.
    """
    from conformance.bundle.pack import pack

    if args.vendor is not None and args.system is None:
        return _template(args)
    if args.output is None:
        raise EvidenceError("There is no name for the bundle.", "Give one with -o FILE.tar.")
    if args.vendor is not None:
        return _submit(args)
    if len(args.runs) > 1 or args.system is not None:
        raise EvidenceError(
            f"{len(args.runs)} runs make a submission, and it needs a vendor." if len(args.runs) > 1 else
            "A system description belongs to a submission, and that needs a vendor.",
            "Give --vendor NAME and --system FILE, or one RUN alone.",
        )  # fmt: skip
    if args.signing_key is not None or args.passphrase_env is not None:
        raise EvidenceError(
            "The bundle of one run carries the signature of its report, and --signing-key signs a submission.",
            "Leave the key out, or add its signature afterwards with `conformance sign`.",
        )
    _told(args.output, pack(args.runs[0], args.output))
    return 0


def _told(output: Path, index) -> None:  # type: ignore[no-untyped-def]
    size = sum(member.size for member in index.members.values())
    print(f"{output}: {len(index.members)} files, {size:,} bytes of evidence.")
    print(f"Check it as a lab would: conformance verify {output}")


def _template(args: argparse.Namespace) -> int:
    import sys

    from conformance.bundle import system
    from conformance.bundle.pack import read_reports

    reports = read_reports(args.runs)
    print(system.template([report.predicate for report in reports.values()]), end="")
    print("Nothing was packed: fill in what is printed above, and give that file with --system.", file=sys.stderr)
    return 2


def _submit(args: argparse.Namespace) -> int:
    from conformance.bundle import system
    from conformance.bundle.pack import submit
    from conformance.report import keys
    from conformance.report.build import local_key_path

    if args.signing_key is None and args.passphrase_env is not None:
        raise EvidenceError("--passphrase-env is for the key of --signing-key, and none was named.", "Name the key.")
    if args.signing_key is None:
        key = keys.load_or_create_local_key(local_key_path())[0]
    else:
        key = keys.load_private_key(args.signing_key, keys.passphrase_from(args.passphrase_env))
    index, submitted = submit(
        args.runs, args.vendor, system.read(args.system), key, args.signing_key is None, args.output
    )
    for one in submitted.predicate["runs"]:
        print(f"  {one['kind']:<9}  {one['workload']:<20}  {one['verdict']:<14}  {one['name']}")
    devices = submitted.predicate["devices"]
    print("All runs are of the same devices." if devices["same"] else "The runs are not all of the same devices:")
    for difference in devices["differences"]:
        print(f"  {difference}")
    print(f"signed by    {keys.key_id(key.public_key())}")
    _told(args.output, index)
    return 0
