"""``conformance sign``: add signatures to a signed file or bundle, or sign a policy."""

from __future__ import annotations

import argparse
from pathlib import Path

from conformance.errors import ArchiveError, SignatureError

EPILOG = """\
Who signs as what is for the lab's policy to say: it names keys and their roles. A signature is over the same bytes as
those before it, and changes none of them.

example:
  conformance sign acme.tar --signing-key operator.pem -o acme-signed.tar
  conformance sign policy.dsse.json --signing-key second.pem -o policy-signed.dsse.json
  conformance sign policy.json --type policy --signing-key lab.pem -o policy.dsse.json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: The command's parser.
    """
    parser.description = "Add signatures to a bundle or an envelope, or sign a policy."
    parser.epilog = EPILOG
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="bundle (.tar, .tar.gz), envelope (.dsse.json), or policy in JSON"
    )
    parser.add_argument(
        "--signing-key", type=Path, action="append", required=True, metavar="FILE", help="private key; repeat for more"
    )
    parser.add_argument("--passphrase-env", metavar="VAR", help="environment variable with the keys' passphrase")
    parser.add_argument(
        "--type", choices=("policy",), help="FILE is plain JSON that nobody has signed yet, of this type"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="what to write; a new file")


def run(args: argparse.Namespace) -> int:
    """Sign, write, and name the keys.

    Args:
        args: Parsed arguments.

    Returns:
        0.

    Raises:
        ConformanceError: A key or the file cannot be read, a key has signed already, or the output exists.
    """
    from conformance.report import dsse, keys

    if args.output.exists():
        raise SignatureError(f"{args.output} exists and is not overwritten.", "Choose another -o.")
    passphrase = keys.passphrase_from(args.passphrase_env)
    signers = [keys.load_private_key(path, passphrase) for path in args.signing_key]
    if args.type:
        envelope = _policy(args.file, signers)
    elif args.file.name.endswith((".tar", ".tar.gz")):
        envelope = _bundle(args.file, signers, args.output)
    else:
        envelope = dsse.add_signatures(_read(args.file, dsse.MAX_ENVELOPE_BYTES), signers)
    if not args.file.name.endswith((".tar", ".tar.gz")):
        _write(args.output, envelope)
    new = {keys.key_id(signer.public_key()) for signer in signers}
    for signature in dsse.parse(envelope).signatures:
        print(f"signed by {signature.keyid}{'  (new)' if signature.keyid in new else ''}")
    print(f"written   {args.output}")
    return 0


def _policy(path: Path, signers) -> bytes:  # type: ignore[no-untyped-def]
    from conformance import strictjson
    from conformance.bundle import policy
    from conformance.report import dsse

    document = strictjson.loads(_read(path, policy.MAX_BYTES), what=f"The policy {path}")
    envelope = dsse.sign(strictjson.dumps(document, what="The policy"), policy.PAYLOAD_TYPE, signers)
    policy.load(envelope)  # what no verifier would take is not written
    return envelope


def _bundle(path: Path, signers, output: Path) -> bytes:  # type: ignore[no-untyped-def]
    """Write the bundle again with more signatures on its first file; every other file is copied, digest by digest."""
    from conformance.bundle import archive
    from conformance.report import dsse

    if not path.is_file():
        raise ArchiveError(f"There is no bundle {path}.", "Name a file that `conformance bundle` wrote.")
    index = archive.read_index(path)
    first = next(iter(index.members))
    envelope = dsse.add_signatures(archive.read_member(index, first, dsse.MAX_ENVELOPE_BYTES), signers)
    archive.write_bundle(output, {**{name: archive.Packed(index, name) for name in index.members}, first: envelope})
    return envelope


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except OSError as error:
        raise SignatureError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > max_bytes:
        raise SignatureError(f"{path} has more than the {max_bytes} bytes allowed.")
    return data


def _write(path: Path, data: bytes) -> None:
    try:
        with path.open("xb") as stream:
            stream.write(data)
    except OSError as error:
        raise SignatureError(f"{path} cannot be written: {error.strerror}.") from error
