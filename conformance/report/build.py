"""Writing a run's report: the signed statement and the page that people read."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance import __version__, evidence, journal
from conformance.checks.finding import Finding
from conformance.evidence import RunDirectory
from conformance.folders import user_folder
from conformance.judgement import Judgement, judge, rank_records, read_tasks
from conformance.metrics.preflight import devices
from conformance.report import challenge, dsse, html, keys, statement

if TYPE_CHECKING:  # it moved to another module in Python 3.14
    from importlib.abc import Traversable

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PREFLIGHT = "preflight"


def local_key_path() -> Path:
    """Where this machine's own signing key lies.

    Returns:
        A path in the user's configuration folder (XDG base directories).
    """
    return user_folder("XDG_CONFIG_HOME", ".config") / "local-key.pem"


def report_on(run: Path, signing_key: Path | None) -> tuple[Judgement, str, str, bool]:
    """Judge a run that has ended, and write its report.

    Args:
        run: Run directory with all its evidence.
        signing_key: Private key file; None for this machine's own key, made on first use.

    Returns:
        The judgement, then what :func:`write_report` returns.

    Raises:
        ConformanceError: The evidence is too broken to be judged, or the report cannot be signed.
    """
    judgement = judge(RunDirectory(run))
    return (judgement, *write_report(run, judgement, signing_key))


def write_report(run: Path, judgement: Judgement, signing_key: Path | None) -> tuple[str, str, bool]:
    """Write report.dsse.json and report.html into a run directory.

    Args:
        run: Run directory with all its evidence.
        judgement: What the evidence says.
        signing_key: Private key file; None for this machine's own key, made on first use.

    Returns:
        The report's id, the id of the signing key, and whether that key is this machine's own.

    Raises:
        KeyFileError: The key cannot be read or made.
        SignatureError: The report would break its own schema.
    """
    self_issued = signing_key is None
    key = signer(signing_key)
    (run / evidence.SIGNER).write_bytes(keys.public_pem(key.public_key()))
    files = RunDirectory(run)
    predicate = build_predicate(files, judgement, signed_now(self_issued))
    payload = statement.build(predicate, evidence.digests(files))
    # Whole or not at all: a report that is there is never written again.
    written = run / f"{evidence.REPORT}.new"
    written.write_bytes(dsse.sign(payload, statement.PAYLOAD_TYPE, [key]))
    written.replace(run / evidence.REPORT)
    report_id = statement.report_id(payload)
    page = html.render(predicate, report_id, judgement.steps, _attempts(files).entries)
    (run / "report.html").write_text(page, encoding="utf-8")
    return report_id, keys.key_id(key.public_key()), self_issued


def signer(signing_key: Path | None) -> Ed25519PrivateKey:
    """The key that will sign.

    Args:
        signing_key: Private key file; None for this machine's own key, made on first use.

    Returns:
        The key.

    Raises:
        KeyFileError: It cannot be read or made.
    """
    if signing_key is None:
        return keys.load_or_create_local_key(local_key_path())[0]
    return keys.load_private_key(signing_key)


def signed_now(self_issued: bool) -> dict[str, Any]:
    """What a statement says of its signing.

    Args:
        self_issued: Whether the signing key is the machine's own.

    Returns:
        That, and the time.
    """
    return {"self_issued": self_issued, "time": datetime.now(timezone.utc).strftime(challenge.TIME_FORMAT)}


def this_suite() -> dict[str, str]:
    """What a statement says of the suite that writes it.

    Returns:
        Name, version and tree digest.
    """
    return {"name": "internevo-conformance", "version": __version__, "tree_digest": suite_digest()}


def build_predicate(files: evidence.Evidence, judgement: Judgement, signer: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a report: a pure function of the evidence and its judgement.

    Args:
        files: The run's evidence.
        judgement: What it says.
        signer: What the report says of its signing, as :func:`signed_now` gives it.

    Returns:
        The predicate, as schema/report-v1.schema.json describes it.
    """
    plan = judgement.plan
    names = files.names()
    attempts = _attempts(files)
    return {
        "suite": this_suite(),
        "workload": {
            "name": plan.workload.name,
            "digest": plan.workload.digest,
            "official": plan.workload.official,
            "readings": [dataclasses.asdict(reading) for reading in plan.workload.readings],
        },
        "plan": plan.to_json(),
        **(_of_preflight(files) if evidence.PREFLIGHT in names else _of_training(files, plan.workload.kind)),
        "findings": [finding_json(finding) for finding in judgement.findings],
        "metrics": dict(judgement.metrics),
        "journal": {"entries": len(attempts.entries), "head": attempts.head},
        "challenge": challenge.answered(_challenge(files)),
        "verdict": judgement.verdict.value,
        "redactions": _redactions(files),
        "signer": dict(signer),
    }


def _attempts(files: evidence.Evidence) -> journal.Journal:
    with files.open(evidence.JOURNAL) as stream:
        return journal.parse(stream.read(journal.MAX_JOURNAL_BYTES + 1))


# What a report has to say of each device, where the device itself did not.
NAMELESS = {"vendor": "unknown", "model": "unknown"}


def _of_training(files: evidence.Evidence, kind: str) -> dict[str, Any]:
    record = evidence.read_json(files, evidence.RUN)
    ranks = list(rank_records(files).values())
    first: Mapping[str, Any] = ranks[0] if ranks else {}
    source = record["internevo"]
    hosts = {rank["host"]: {"host": rank["host"], "kernel": rank.get("kernel", "")} for rank in ranks}
    return {
        "kind": kind,
        "internevo": {
            **{name: source[name] for name in ("kind", "version", "tag", "tree", "pristine")},
            "patches": [
                {"id": patch["id"], "reason": patch["reason"], "digest": patch["sha256"]}
                for patch in first.get("patches", [])
            ],
            "kernels": first.get("kernels", []),
        },
        "devices": [{"rank": rank["rank"], "host": rank["host"], **NAMELESS, **rank["device"]} for rank in ranks],
        "environment": {
            "command": record["command"],
            "variables": record["environment"],
            "started": record["started"],
            "ended": record["ended"],
            "python": first.get("python", ""),
            "packages": first.get("packages", {}),
            "hosts": [hosts[name] for name in sorted(hosts)],
        },
    }


# What a node tells of itself, as far as it describes the system and not the moment.
HOST_FACTS = ("host", "processor", "processors", "cores", "memory_bytes", "system", "rdma_ports")


def _of_preflight(files: evidence.Evidence) -> dict[str, Any]:
    setup = evidence.read_json(files, evidence.PREFLIGHT)
    tasks = read_tasks(files)
    records = [(process["rank"], record) for process in tasks.get("host", []) for record in process["records"]]
    hosts = {node: record for node, record in records if record["kind"] == "host"}
    software: Mapping[str, str] = next((host["software"] for host in hosts.values()), {})
    return {
        "kind": PREFLIGHT,
        "internevo": None,
        "devices": devices(tasks, setup["device"]),
        "environment": {
            "started": setup["started"],
            "python": software.get("python", ""),
            "packages": {name: version for name, version in software.items() if name not in ("python", "kernel")},
            "hosts": [
                {
                    "kernel": host["software"].get("kernel", ""),
                    **{name: host[name] for name in HOST_FACTS if host.get(name)},
                }
                for _, host in sorted(hosts.items())
            ],
        },
    }


def _challenge(files: evidence.Evidence) -> bytes | None:
    if evidence.CHALLENGE not in files.names():
        return None
    with files.open(evidence.CHALLENGE) as stream:
        return stream.read(challenge.MAX_BYTES + 1)


def _redactions(files: evidence.Evidence) -> list[dict[str, Any]]:
    """What was replaced, also in the segments of a resumed run, whose lists name files as they were called then."""
    found = []
    for name in files.names():
        match = re.fullmatch(r"environment/(segment\d+/)?redactions\.json", name)
        if match:
            segment = match[1] or ""
            for one in evidence.read_json(files, name)["redactions"]:
                folder, rest = one["file"].split("/", 1)
                found.append({**one, "file": f"{folder}/{segment}{rest}"})
    return sorted(found, key=lambda one: (one["file"], one["rule"]))


def finding_json(finding: Finding) -> dict[str, Any]:
    """A finding as JSON.

    Args:
        finding: The finding.

    Returns:
        Its fields; the result by its name.
    """
    return {**dataclasses.asdict(finding), "result": finding.result.value}


@cache
def suite_digest() -> str:
    """One digest over the installed suite, so that a lab can tell which code judged.

    Returns:
        sha256, hex, over the sorted digests of the package's source and data files.
    """
    found: dict[str, str] = {}

    def walk(folder: Traversable, prefix: str) -> None:
        for entry in folder.iterdir():
            name = f"{prefix}{entry.name}"
            if entry.is_dir():
                walk(entry, f"{name}/")
            elif entry.name.endswith((".py", ".toml", ".json", ".html", ".css")):
                found[name] = hashlib.sha256(entry.read_bytes()).hexdigest()

    walk(resources.files("conformance"), "")
    return evidence.combined_digest(found)
