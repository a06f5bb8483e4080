"""Check a bundle's signature and files without the suite: python verify_by_hand.py BUNDLE PUBLIC_KEY"""

import base64
import hashlib
import json
import sys
import tarfile
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

TYPE = b"application/vnd.in-toto+json"
key = load_pem_public_key(Path(sys.argv[2]).read_bytes())
key_id = hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()

found = {}
with tarfile.open(sys.argv[1]) as archive:
    first = archive.next().name
    envelope = json.load(archive.extractfile(first))
    for member in archive:
        if not member.isreg() or member.name in found:
            sys.exit(f"REFUSED: {member.name} is no plain file, or occurs twice")
        found[member.name] = hashlib.sha256(archive.extractfile(member).read()).hexdigest()
del found[first]

payload = base64.b64decode(envelope["payload"])
signatures = [s["sig"] for s in envelope["signatures"] if s["keyid"] == key_id]
if envelope["payloadType"] != TYPE.decode() or len(signatures) != 1:
    sys.exit(f"REFUSED: no report, or not signed once by key {key_id}")
try:
    key.verify(base64.b64decode(signatures[0]), b"DSSEv1 %d %b %d %b" % (len(TYPE), TYPE, len(payload), payload))
except InvalidSignature:
    sys.exit("REFUSED: the signature does not hold")

signed = {subject["name"]: subject["digest"]["sha256"] for subject in json.loads(payload)["subject"]}
wrong = sorted(name for name in signed.keys() | found.keys() if signed.get(name) != found.get(name))
if wrong:
    sys.exit(f"REFUSED: changed, added or missing: {', '.join(wrong)}")
print(f"signed by {key_id}\nreport id {hashlib.sha256(payload).hexdigest()}\n{len(signed)} files as signed")
