from __future__ import annotations

import base64
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519

from conformance.errors import KeyFileError
from conformance.report import keys

FOREIGN_KEYS: dict[str, Callable[[], Any]] = {
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "Ed448": ed448.Ed448PrivateKey.generate,
    "X25519": x25519.X25519PrivateKey.generate,
}


def pem(key: Any, form: str = "PKCS8", passphrase: bytes = b"") -> bytes:
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    data: bytes = key.private_bytes(serialization.Encoding.PEM, getattr(serialization.PrivateFormat, form), encryption)
    return data


def write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_generated_key_loads_again_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        made = keys.generate_key(tmp_path / "vendor.pem")
    finally:
        os.umask(old)
    path, public_path = tmp_path / "vendor.pem", tmp_path / "vendor.pem.pub"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(public_path.stat().st_mode) == 0o644
    assert sorted(tmp_path.iterdir()) == [path, public_path]
    public = keys.load_public_key(public_path)
    public.verify(keys.load_private_key(path).sign(b"message"), b"message")
    assert keys.key_id(public) == keys.key_id(made.public_key())
    assert b"BEGIN PRIVATE KEY" in path.read_bytes()


def test_key_id_is_the_digest_of_the_raw_key() -> None:
    # RFC 8032, section 7.1, test 1; the digest by `printf ... | xxd -r -p | sha256sum`.
    raw = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    key = ed25519.Ed25519PublicKey.from_public_bytes(raw)
    assert keys.key_id(key) == "21fe31dfa154a261626bf854046fd2271b7bed4b6abe45aa58877ef47f9721b9"


@pytest.mark.parametrize("taken", ["k.pem", "k.pem.pub"])
@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_nothing_is_overwritten(tmp_path: Path, taken: str, kind: str) -> None:
    if kind == "file":
        (tmp_path / taken).write_bytes(b"precious")
    else:
        (tmp_path / taken).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileError, match=f"{taken} exists and is not overwritten"):
        keys.generate_key(tmp_path / "k.pem")
    assert [path.name for path in tmp_path.iterdir()] == [taken]
    assert kind != "file" or (tmp_path / taken).read_bytes() == b"precious"


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot be written: No such file or directory"):
        keys.generate_key(tmp_path / "absent" / "k.pem")


def test_passphrase(tmp_path: Path) -> None:
    path = tmp_path / "k.pem"
    made = keys.generate_key(path, "геслo 密")
    assert b"ENCRYPTED" in path.read_bytes()
    loaded = keys.load_private_key(path, "геслo 密")
    assert keys.key_id(loaded.public_key()) == keys.key_id(made.public_key())
    with pytest.raises(KeyFileError, match="is encrypted"):
        keys.load_private_key(path)
    with pytest.raises(KeyFileError, match="cannot be loaded"):
        keys.load_private_key(path, "wrong")
    with pytest.raises(KeyFileError, match="empty"):
        keys.generate_key(tmp_path / "other.pem", "")


def test_needless_passphrase(tmp_path: Path) -> None:
    keys.generate_key(tmp_path / "k.pem")
    for passphrase in ("", "secret"):
        with pytest.raises(KeyFileError, match="is not encrypted, but a passphrase was given"):
            keys.load_private_key(tmp_path / "k.pem", passphrase)


def test_openssh_keys_load(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    private = write(tmp_path / "id_ed25519", pem(key, "OpenSSH"))
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    public = write(tmp_path / "id_ed25519.pub", line + b" me@host\n")
    loaded = keys.load_private_key(private)
    assert keys.key_id(loaded.public_key()) == keys.key_id(keys.load_public_key(public))


def test_an_encrypted_openssh_key_is_decrypted(tmp_path: Path) -> None:
    path = tmp_path / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "open sesame", "-f", path], check=True)
    with pytest.raises(KeyFileError, match="is encrypted"):
        keys.load_private_key(path)
    key = keys.load_private_key(path, "open sesame")
    assert keys.key_id(key.public_key()) == keys.key_id(keys.load_public_key(tmp_path / "id_ed25519.pub"))
    with pytest.raises(KeyFileError, match="and the right passphrase"):
        keys.load_private_key(path, "close sesame")
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "open sesame", "-N", "", "-f", path], check=True)
    key = keys.load_private_key(path)
    assert keys.key_id(key.public_key()) == keys.key_id(keys.load_public_key(tmp_path / "id_ed25519.pub"))


def test_openssl_keys_load(tmp_path: Path) -> None:
    path = tmp_path / "k.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", path], check=True)
    path.chmod(0o600)
    public = subprocess.run(["openssl", "pkey", "-in", path, "-pubout"], check=True, stdout=subprocess.PIPE).stdout
    assert keys.key_id(keys.load_private_key(path).public_key()) == keys.key_id(keys.load_public_key(public))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o602, 0o644, 0o666])
def test_key_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "k.pem", pem(ed25519.Ed25519PrivateKey.generate()), mode)
    with pytest.raises(KeyFileError, match=f"has mode {mode:04o}.*Run: chmod 600 {path}"):
        keys.load_private_key(path)


def test_the_target_of_a_link_decides(tmp_path: Path) -> None:
    path = write(tmp_path / "k.pem", pem(ed25519.Ed25519PrivateKey.generate()), 0o644)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(KeyFileError, match="chmod 600"):
        keys.load_private_key(tmp_path / "link")
    path.chmod(0o400)
    keys.load_private_key(tmp_path / "link")


@pytest.mark.parametrize("algorithm", FOREIGN_KEYS)
def test_other_algorithms_are_refused(tmp_path: Path, algorithm: str) -> None:
    key = FOREIGN_KEYS[algorithm]()
    with pytest.raises(KeyFileError, match="only Ed25519"):
        keys.load_private_key(write(tmp_path / "k.pem", pem(key)))
    with pytest.raises(KeyFileError, match="only Ed25519"):
        keys.load_public_key(keys.public_pem(key.public_key()))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot be loaded"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "cannot be loaded"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n", "cannot be loaded"),
        (b"\xff" * 100, "cannot be loaded"),
        (b"A" * 20_000, "more than 16384 bytes"),
    ],
)
def test_what_is_no_key_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = write(tmp_path / "k.pem", data)
    with pytest.raises(KeyFileError, match=reason):
        keys.load_private_key(path)
    with pytest.raises(KeyFileError, match=reason):
        keys.load_public_key(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path, reason in ((tmp_path, "not a regular file|Is a directory"), (tmp_path / "fifo", "not a regular file")):
        with pytest.raises(KeyFileError, match=reason):
            keys.load_private_key(path)
    with pytest.raises(KeyFileError, match="cannot be read: No such file"):
        keys.load_public_key(tmp_path / "absent")


def test_private_key_in_place_of_public(tmp_path: Path) -> None:
    keys.generate_key(tmp_path / "k.pem")
    with pytest.raises(KeyFileError, match="expected a PEM or OpenSSH Ed25519 public key"):
        keys.load_public_key(tmp_path / "k.pem")


SMALL_ORDER = sorted(raw[:31] + bytes([raw[31] | sign]) for raw in keys._SMALL_ORDER for sign in (0, 0x80))


def holds(key: ed25519.Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


@pytest.mark.parametrize("raw", SMALL_ORDER, ids=lambda raw: raw.hex()[:8] + raw.hex()[-2:])
def test_key_of_small_order_is_refused(raw: bytes) -> None:
    key = ed25519.Ed25519PublicKey.from_public_bytes(raw)
    signature_without_any_private_key = b"\x01" + bytes(63)
    forged = any(holds(key, signature_without_any_private_key, b"report %d" % number) for number in range(200))
    # The danger is real, but for the three encodings of "x = 0, negative", which OpenSSL refuses by itself.
    assert forged or (raw[0] in (0x01, 0xEC, 0xEE) and raw[31] & 0x80)
    with pytest.raises(KeyFileError, match="small order"):
        keys.load_public_key(keys.public_pem(key))


def test_local_key_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "config" / "local.pem"
    first, created = keys.load_or_create_local_key(path)
    again, created_again = keys.load_or_create_local_key(path)
    assert (created, created_again) == (True, False)
    assert keys.key_id(first.public_key()) == keys.key_id(again.public_key())
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


RACER = """
import sys, time
from pathlib import Path
from conformance.report import keys
while time.time() < float(sys.argv[2]):
    pass
key, created = keys.load_or_create_local_key(Path(sys.argv[1]))
print(keys.key_id(key.public_key()), created)
"""


def test_processes_that_race_for_the_local_key_end_with_one(tmp_path: Path) -> None:
    path, start = tmp_path / "config" / "local.pem", str(time.time() + 1.0)
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(path), start], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    results = [racer.communicate()[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 6
    assert len({key for key, _ in results}) == 1
    assert sorted(created for _, created in results) == ["False"] * 5 + ["True"]
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["local.pem", "local.pem.pub"]
    assert keys.key_id(keys.load_public_key(path.with_name("local.pem.pub"))) == results[0][0]


def test_damaged_local_key_is_not_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "local.pem", b"")
    with pytest.raises(KeyFileError, match="cannot be loaded"):
        keys.load_or_create_local_key(path)
    assert path.read_bytes() == b""


def test_local_key_in_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("a file")
    with pytest.raises(KeyFileError, match="cannot be written"):
        keys.load_or_create_local_key(tmp_path / "config" / "local.pem")


def test_public_pem_is_the_one_openssl_prints(tmp_path: Path) -> None:
    key = keys.generate_key(tmp_path / "k.pem")
    text = keys.public_pem(key.public_key()).decode().splitlines()
    assert (text[0], text[-1]) == ("-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----")
    assert len(base64.b64decode("".join(text[1:-1]))) == 44
