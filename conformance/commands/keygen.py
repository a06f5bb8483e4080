"""``conformance keygen``: make an Ed25519 key pair to sign reports with."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options.

    Args:
        parser: The command's own parser.
    """
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the private key's file")
    parser.add_argument("--passphrase-env", metavar="VAR", help="environment variable with a passphrase to encrypt it")


def run(args: argparse.Namespace) -> int:
    """Make the key pair and name it.

    Args:
        args: The parsed options.

    Returns:
        0.

    Raises:
        KeyFileError: A file exists or cannot be written, or the passphrase's variable is unset or empty.
    """
    from conformance.report import keys

    key = keys.generate_key(args.output, keys.passphrase_from(args.passphrase_env))
    print(f"private key  {args.output}  (keep it; mode 0600)")
    print(f"public key   {keys.public_key_path(args.output)}  (give this one to the lab)")
    print(f"key id       {keys.key_id(key.public_key())}")
    return 0
