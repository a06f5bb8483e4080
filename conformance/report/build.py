"""Writing a run's report: the signed statement and the page that people read."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance import __version__, evidence, journal
from conformance.checks.finding import Finding
from conformance.evidence import RunDirectory
from conformance.judgement import Judgement
from conformance.report import dsse, html, keys, statement

if TYPE_CHECKING:  # it moved to another module in Python 3.14
    from importlib.abc import Traversable


def local_key_path() -> Path:
    """Where this machine's own signing key lies.

    Returns:
        A path in the user's configuration folder (XDG base directories).
    """
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "internevo-conformance" / "local-key.pem"


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
    key = (
        keys.load_or_create_local_key(local_key_path())[0]
        if signing_key is None
        else keys.load_private_key(signing_key)
    )
    (run / evidence.SIGNER).write_bytes(keys.public_pem(key.public_key()))
    files = RunDirectory(run)
    predicate = build_predicate(files, judgement, self_issued)
    payload = statement.build(predicate, evidence.digests(files))
    (run / evidence.REPORT).write_bytes(dsse.sign(payload, statement.PAYLOAD_TYPE, [key]))
    report_id = statement.report_id(payload)
    (run / "report.html").write_text(html.render(predicate, report_id, judgement.steps), encoding="utf-8")
    return report_id, keys.key_id(key.public_key()), self_issued


def build_predicate(files: evidence.Evidence, judgement: Judgement, self_issued: bool) -> dict[str, Any]:
    """The content of a report: a pure function of the evidence and its judgement.

    Args:
        files: The run's evidence.
        judgement: What it says.
        self_issued: Whether the signing key is the machine's own.

    Returns:
        The predicate, as schema/report-v1.schema.json describes it.
    """
    plan = judgement.plan
    record = evidence.read_json(files, evidence.RUN)
    ranks = [evidence.read_json(files, name) for name in files.names() if name.startswith("environment/rank")]
    with files.open(evidence.JOURNAL) as stream:
        attempts = journal.parse(stream.read(journal.MAX_JOURNAL_BYTES + 1))
    first: Mapping[str, Any] = ranks[0] if ranks else {}
    source = record["internevo"]
    return {
        "suite": {"name": "internevo-conformance", "version": __version__, "tree_digest": suite_digest()},
        "workload": {
            "name": plan.workload.name,
            "digest": plan.workload.digest,
            "official": plan.workload.official,
            "readings": [dataclasses.asdict(reading) for reading in plan.workload.readings],
        },
        "plan": plan.to_json(),
        "internevo": {
            **{name: source[name] for name in ("kind", "version", "tag", "tree", "pristine")},
            "patches": [
                {"id": patch["id"], "reason": patch["reason"], "digest": patch["sha256"]}
                for patch in first.get("patches", [])
            ],
            "kernels": first.get("kernels", []),
        },
        "devices": [{"rank": rank["rank"], "host": rank["host"], **rank["device"]} for rank in ranks],
        "environment": {
            "command": record["command"],
            "variables": record["environment"],
            "started": record["started"],
            "ended": record["ended"],
            "python": first.get("python", ""),
            "packages": first.get("packages", {}),
        },
        "findings": [finding_json(finding) for finding in judgement.findings],
        "metrics": dict(judgement.metrics),
        "journal": {"entries": len(attempts.entries), "head": attempts.head},
        "challenge": None,
        "verdict": judgement.verdict.value,
        "redactions": [],
        "signer": {"self_issued": self_issued},
    }


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
