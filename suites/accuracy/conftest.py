"""The rehearsal's data: a small corpus of this project, prepared once and kept in the reports folder."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

CORPUS = Path(__file__).resolve().parents[2] / "fixtures" / "corpus" / "corpus.jsonl"
REHEARSAL = "tiny-accuracy"


def pytest_collection_finish(session: pytest.Session) -> None:
    option = session.config.option
    if hasattr(session.config, "workerinput"):  # runs under pytest-xdist are refused
        return
    named = {item.callspec.params.get("outcome") for item in session.items if hasattr(item, "callspec")}
    if named != {REHEARSAL} or option.data or option.resume or option.collectonly:
        return
    from conformance.claim import lock
    from conformance.data import prepare, rehearsal_tokenizer
    from conformance.data.fingerprints import FINGERPRINT
    from conformance.errors import ConformanceError

    # By content: a checkout's or a copy's files have times of their own, and a preparation goes on only with the same.
    told = hashlib.sha256(CORPUS.read_bytes() + rehearsal_tokenizer().read_bytes()).hexdigest()
    folder = option.reports / f"rehearsal-corpus-{told[:12]}"
    try:
        option.reports.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".lock").open("ab") as turn:
            lock(turn)  # the other nodes of a run may share the folder, and prepare it now
            if not (folder / FINGERPRINT).exists():
                shutil.rmtree(folder, ignore_errors=True)
                prepare([CORPUS], rehearsal_tokenizer(), folder)
    except ConformanceError as error:
        raise pytest.UsageError(str(error)) from error
    except OSError as error:
        raise pytest.UsageError(f"{folder} cannot be made: {error.strerror}. Choose another --reports.") from error
    option.data = folder
