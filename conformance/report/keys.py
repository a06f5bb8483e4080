"""Ed25519 keys: made, kept readable by their owner alone, loaded, and named by their digest."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from conformance.errors import KeyFileError

# A PEM Ed25519 key takes about 120 bytes, an OpenSSH one about 400.
_MAX_KEY_BYTES = 16 * 2**10
# The y coordinates, little-endian, of Curve25519's points of order 1, 2, 4 and 8, and of p and p + 1, which decode to
# two of them. Under such a key one signature holds for every eighth message at least, so it proves nothing.
_SMALL_ORDER = frozenset(
    bytes.fromhex(text)
    for text in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)


def generate_key(path: Path, passphrase: str | None = None) -> Ed25519PrivateKey:
    """Make a key pair: the private key at ``path`` (PEM PKCS #8, mode 0600), the public one at ``path`` + ".pub".

    Args:
        path: Where the private key goes; its folder must exist. Nothing is ever overwritten.
        passphrase: Encrypts the private key when given.

    Returns:
        The private key.

    Raises:
        KeyFileError: Either file exists, cannot be written, or the passphrase is empty.
    """
    public_path = public_key_path(path)
    for taken in (path, public_path):
        if os.path.lexists(taken):
            raise KeyFileError(f"The key file {taken} exists and is not overwritten.", "Choose another file name.")
    if passphrase == "":
        raise KeyFileError("The passphrase is empty.", "Give one of at least one character, or none at all.")
    key = Ed25519PrivateKey.generate()
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase.encode(errors="surrogateescape"))
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    _create(path, pem, mode=0o600)
    _create(public_path, public_pem(key.public_key()), mode=0o644)
    return key


def public_key_path(path: Path) -> Path:
    """Name the public key's file beside a private key's.

    Args:
        path: The private key's file.

    Returns:
        ``path`` with ".pub" appended.
    """
    return path.with_name(path.name + ".pub")


def load_or_create_local_key(path: Path) -> tuple[Ed25519PrivateKey, bool]:
    """Load this machine's own key, making it on first use; two processes that race end with the same key.

    Args:
        path: The private key's file; its folder is made when absent.

    Returns:
        The key, and whether this call made it.

    Raises:
        KeyFileError: The file cannot be read or written, or others may read it.
    """
    if not os.path.lexists(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            return generate_key(path), True
        except OSError as error:
            raise _unwritable(path, error) from error
        except KeyFileError:
            if not path.exists():
                raise
    return load_private_key(path), False


def passphrase_from(variable: str | None) -> str | None:
    """Take a passphrase from the environment, where no process list shows it.

    Args:
        variable: Name of the environment variable; None for no passphrase.

    Returns:
        The passphrase.

    Raises:
        KeyFileError: The variable is not set.
    """
    if variable is not None and variable not in os.environ:
        raise KeyFileError(f"The environment variable {variable} is not set.", "Set it, or drop --passphrase-env.")
    return None if variable is None else os.environ[variable]


def load_private_key(path: Path, passphrase: str | None = None) -> Ed25519PrivateKey:
    """Load a private key that nobody but its owner may read.

    Args:
        path: A PEM (PKCS #8) or OpenSSH Ed25519 private key.
        passphrase: What the key was encrypted with, if it was.

    Returns:
        The private key.

    Raises:
        KeyFileError: Absent, readable by others, not a private key, of another algorithm, or locked by a passphrase.
    """
    data, mode = _read(path)
    if mode & 0o077:
        raise KeyFileError(
            f"The private key {path} has mode {stat.S_IMODE(mode):04o}, so others than its owner may read it.",
            f"Run: chmod 600 {path}",
        )
    load = serialization.load_pem_private_key
    if data.lstrip().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----"):
        load = serialization.load_ssh_private_key
    try:
        key = load(data, None if passphrase is None else passphrase.encode(errors="surrogateescape"))
    except TypeError as error:
        locked = "is not encrypted, but a passphrase was given" if passphrase is not None else "is encrypted"
        raise KeyFileError(
            f"The private key {path} {locked}.",
            "--passphrase-env names the variable that holds the passphrase; a run signs only with a key that has none.",
        ) from error
    except UnsupportedAlgorithm as error:
        if passphrase is None or load is not serialization.load_ssh_private_key:
            raise KeyFileError(f"The private key {path} is of an unknown algorithm ({error}).") from error
        raise KeyFileError(
            f"The private key {path} is an encrypted OpenSSH key, and to decrypt one the package bcrypt is missing.",
            "Run `pip install bcrypt`, or take the passphrase off a copy: ssh-keygen -p -N '' -f COPY",
        ) from error
    except ValueError as error:
        raise KeyFileError(
            f"{path} cannot be loaded as a private key: expected PEM (PKCS #8) or OpenSSH Ed25519, and the right "
            f"passphrase if it has one ({error})."
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"The private key {path} is a {type(key).__name__}; only Ed25519 keys sign reports.")
    return key


def load_public_key(source: Path | bytes) -> Ed25519PublicKey:
    """Load a public key.

    Args:
        source: A file, or its bytes: PEM (SubjectPublicKeyInfo) or one OpenSSH ``ssh-ed25519`` line.

    Returns:
        The public key.

    Raises:
        KeyFileError: Absent, not a public key, of another algorithm, or of small order.
    """
    name = source if isinstance(source, Path) else "the public key"
    data = _read(source)[0] if isinstance(source, Path) else source
    load = serialization.load_ssh_public_key if data.startswith(b"ssh-") else serialization.load_pem_public_key
    try:
        key = load(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{name} cannot be loaded: expected a PEM or OpenSSH Ed25519 public key.") from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{name} is a {type(key).__name__}; only Ed25519 keys are accepted.")
    raw = _raw(key)
    if raw[:31] + bytes([raw[31] & 0x7F]) in _SMALL_ORDER:
        raise KeyFileError(f"{name} is a point of small order, under which signatures are forged at will.")
    return key


def public_pem(key: Ed25519PublicKey) -> bytes:
    """Write a public key as PEM.

    Args:
        key: The public key.

    Returns:
        PEM (SubjectPublicKeyInfo), which ``openssl pkey -pubin`` and ``load_public_key`` read.
    """
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_id(key: Ed25519PublicKey) -> str:
    """Name a key by what it is, so that one key cannot pass for two.

    Args:
        key: The public key.

    Returns:
        SHA-256, in hex, of the raw 32-byte public key.
    """
    return hashlib.sha256(_raw(key)).hexdigest()


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def _read(path: Path) -> tuple[bytes, int]:
    """Read a small regular file; the mode is the opened file's own, so that it cannot be swapped in between."""
    try:
        # Non-blocking, because opening a FIFO would wait for ever.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise KeyFileError(f"The key {path} is not a regular file.")
            data = file.read(_MAX_KEY_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"The key {path} cannot be read: {error.strerror}.") from error
    if len(data) > _MAX_KEY_BYTES:
        raise KeyFileError(f"The key {path} has more than {_MAX_KEY_BYTES} bytes, so it is not a key.")
    return data, mode


def _create(path: Path, data: bytes, mode: int) -> None:
    """Let a complete file appear at a free name, or nothing: written aside, then linked, which never overwrites."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(handle, "wb") as file:  # noqa: PTH123
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)
        finally:
            Path(temporary).unlink()
    except FileExistsError as error:
        raise KeyFileError(f"The key file {path} exists and is not overwritten.", "Choose another name.") from error
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> KeyFileError:
    return KeyFileError(f"The key file {path} cannot be written: {error.strerror}.", "Choose another folder.")
