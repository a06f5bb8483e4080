"""Judge the examples' evidence again and sign it with new keys: python reports/example/rebuild.py

The raw logs and records stay as they were made; what follows is written anew: findings, the journal's digests,
reports, submissions, policy. Needed when this suite finds something else in them than the one that signed them. The
keys sign this once and are thrown away.
"""

import dataclasses
import hashlib
import json
import shutil
import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from conformance import evidence
from conformance.bundle import archive, pack, policy, system
from conformance.evidence import RunDirectory
from conformance.judgement import judge
from conformance.preflight.session import FINDINGS
from conformance.report import dsse, keys, statement
from conformance.report.build import write_report

EXAMPLE = Path(__file__).parent
VALID = timedelta(days=3650)
MADE_AGAIN = (evidence.REPORT, evidence.SIGNER, evidence.JOURNAL)


def main() -> None:
    """Write bundles, policy and the lab's key anew."""
    lab = Ed25519PrivateKey.generate()
    with tempfile.TemporaryDirectory() as folder:
        vendor_key = Path(folder) / "vendor.pem"
        vendor = keys.generate_key(vendor_key)
        for bundle in sorted(EXAMPLE.glob("*.tar")):
            place = Path(folder) / bundle.stem
            place.mkdir()
            rebuild(bundle, place, vendor_key, vendor)
    (EXAMPLE / "lab.pem.pub").write_bytes(keys.public_pem(lab.public_key()))
    holders = [("Example lab", policy.LAB, lab.public_key()), ("Example vendor", "vendor", vendor.public_key())]
    document = policy.draft(
        "Example lab", holders, ["slice-7b-perf", "llama2-7b-perf"], VALID, datetime.now(timezone.utc)
    )
    document |= {"challenge_required": False}
    document["workloads"][0] |= {"runs": 2, "preflights": 1, "max_attempts": None}
    signed = dsse.sign(json.dumps(document).encode(), policy.PAYLOAD_TYPE, [lab])
    (EXAMPLE / "policy.dsse.json").write_bytes(signed)


def rebuild(bundle: Path, place: Path, vendor_key: Path, vendor: Ed25519PrivateKey) -> None:
    """Write one submission anew."""
    runs, described, journal = unpack(bundle, place)
    for run in runs:
        findings_of_preflight(run)
    chain(runs, journal)
    for run in runs:
        write_report(run, judge(RunDirectory(run)), vendor_key)
    new = place / bundle.name
    pack.submit(runs, "Example vendor", stated(described, runs), vendor, False, new)
    shutil.copyfile(new, bundle)


def unpack(bundle: Path, place: Path) -> tuple[list[Path], dict[str, object], list[dict[str, object]]]:
    """The runs' evidence as directories, the system description, and the newest journal's entries."""
    index = archive.read_index(bundle)
    runs: dict[str, Path] = {}
    journals = []
    for name in index.members:
        parts = name.split("/", 2)
        if parts[0] != "runs":
            continue
        data = archive.read_member(index, name, 1 << 30)
        run = runs.setdefault(parts[1], place / parts[1])
        if parts[2] == evidence.JOURNAL:
            journals.append([json.loads(line) for line in data.splitlines()])
        elif parts[2] not in MADE_AGAIN:
            (run / parts[2]).parent.mkdir(parents=True, exist_ok=True)
            (run / parts[2]).write_bytes(data)
    described = json.loads(archive.read_member(index, "system.json", 1 << 20))
    return list(runs.values()), described, max(journals, key=len)


def findings_of_preflight(run: Path) -> None:
    """What a preflight leaves beside its records is a judgement too."""
    if (run / FINDINGS).exists():
        found = [{**dataclasses.asdict(f), "result": f.result.value} for f in judge(RunDirectory(run)).findings]
        evidence.write_json(run, FINDINGS, {"findings": found})


def chain(runs: list[Path], entries: list[dict[str, object]]) -> None:
    """Quote the evidence as it is now, keep every time and outcome, and give each run the journal up to its end."""
    by_name = {run.name: run for run in runs}
    head, lines = "0" * 64, b""
    for entry in entries:
        run = by_name[str(entry["run"])]
        if entry["event"] == "ended":
            entry["evidence"] = evidence.attempt_digest(RunDirectory(run))
        line = json.dumps({**entry, "previous": head}, sort_keys=True, separators=(",", ":")).encode()
        head, lines = hashlib.sha256(line).hexdigest(), lines + line + b"\n"
        if entry["event"] == "ended":
            (run / evidence.JOURNAL).write_bytes(lines)


def stated(described: dict[str, object], runs: list[Path]) -> dict[str, object]:
    """What the evidence does not tell of the system, and the vendor did."""
    reports = [statement.load(dsse.parse((run / evidence.REPORT).read_bytes()).payload).predicate for run in runs]
    return {name: value for name, value in described.items() if name not in system.facts(reports)}


if __name__ == "__main__":
    main()
