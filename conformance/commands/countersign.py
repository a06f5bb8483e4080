"""``conformance countersign``: the lab's own signed statement about a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path

EPILOG = """\
The bundle is verified under the policy. The statement (SLSA verification summary v1, in-toto) names the digest of the
vendor's statement, the policy and the verdict. A challenge that was answered is noted as spent, whether the bundle
passed or failed. With --check nothing is signed: the statement is held against the bundle and the lab's public key.

exit codes: 0 the lab states that it passed, 1 that it failed, 2 nothing could be stated or checked

example:
  conformance countersign acme.tar --policy policy.dsse.json --spent spent.jsonl --signing-key lab.pem -o acme.vsa.json
  conformance countersign acme.tar --check acme.vsa.json --lab-key lab.pem.pub
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: The command's parser.
    """
    from conformance.commands.verify import add_bench

    parser.description = "State, as a lab, what verifying a bundle came to."
    parser.epilog = EPILOG
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="archive that `conformance bundle` wrote")
    add_bench(parser)
    parser.add_argument("--signing-key", type=Path, metavar="FILE", help="the lab's private key")
    parser.add_argument("--passphrase-env", metavar="VAR", help="environment variable with the key's passphrase")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="where the statement goes")
    parser.add_argument("--check", type=Path, metavar="FILE", help="check this statement instead of making one")


def run(args: argparse.Namespace) -> int:
    """Make or check a statement.

    Args:
        args: Parsed arguments.

    Returns:
        0 where the lab states that the bundle passed, 1 where it states that it failed.

    Raises:
        ConformanceError: An option is missing, a file cannot be read, or nothing can be stated.
    """
    return _check(args) if args.check is not None else _sign(args)


def _sign(args: argparse.Namespace) -> int:
    from conformance.bundle.countersign import countersign
    from conformance.bundle.verify import verify
    from conformance.checks.finding import Verdict
    from conformance.commands.verify import bench_of, print_verification
    from conformance.errors import PolicyError, SignatureError
    from conformance.report import challenge, keys

    given = {"--policy": args.policy, "--spent": args.spent, "--signing-key": args.signing_key, "-o": args.output}
    if missing := [name for name, value in given.items() if value is None]:
        raise PolicyError(f"A countersignature needs {', '.join(missing)}.")
    bench = bench_of(args)
    key = keys.load_private_key(args.signing_key, keys.passphrase_from(args.passphrase_env))
    verification = verify(args.bundle, bench)
    print_verification(verification)
    envelope = countersign(verification, bench.policy, bench.now, key)
    # Before the statement exists: a statement about a challenge that is not noted could be had twice. Another vendor's
    # challenge, copied into a bundle, is not answered by it.
    if any(answer.id == "challenge" and answer.answer == "yes" for answer in verification.answers):
        challenge.spend(args.spent, verification.nonces, verification.series, verification.report_id)
    try:
        with args.output.open("xb") as stream:
            stream.write(envelope)
    except OSError as error:
        raise SignatureError(f"The statement {args.output} cannot be written: {error.strerror}.") from error
    print(f"{args.output}: signed by {keys.key_id(key.public_key())} about report {verification.report_id}.")
    return 1 if verification.verdict is Verdict.NOT_CONFORMANT else 0


def _check(args: argparse.Namespace) -> int:
    from conformance.bundle.countersign import check
    from conformance.bundle.verify import verify
    from conformance.errors import SignatureError
    from conformance.report import keys

    making = {
        "--policy": args.policy,
        "--spent": args.spent,
        "--signing-key": args.signing_key,
        "--passphrase-env": args.passphrase_env,
        "-o": args.output,
    }
    if unheeded := [name for name, value in making.items() if value is not None]:
        raise SignatureError(
            f"With --check nothing is stated, and {' and '.join(unheeded)} not heeded.",
            "Leave it out; the policy that the statement names is printed.",
        )
    if args.lab_key is None:
        raise SignatureError("Whose statement it has to be, nothing says.", "Name the lab's public key: --lab-key.")
    try:
        envelope = args.check.read_bytes()
    except OSError as error:
        raise SignatureError(f"The statement {args.check} cannot be read: {error.strerror}.") from error
    verification = verify(args.bundle)
    if not verification.report_id:
        raise SignatureError(f"The bundle is not sound: {verification.answers[-1].message}")
    stated = check(envelope, keys.load_public_key(args.lab_key), verification.report_id)
    print(f"{stated.result} {stated.level}: stated {stated.time} by {stated.key_id}")
    print(f"under policy {stated.policy}, about report {stated.report_id}")
    return 0 if stated.result == "PASSED" else 1
