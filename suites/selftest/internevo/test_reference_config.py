"""Our configuration beside the published one, both loaded by InternEvo's own Config at each reference tag.

Needs a checkout of the tag, and one of AIChipBenchmark in CONFORMANCE_TEST_AICHIPBENCHMARK.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conformance.internevo.config import render_config
from conformance.internevo.source import Source
from conformance.plan import Topology, make_plan
from conformance.spec import load_workload

# Each difference from the published files, and why it changes nothing that is trained. A key covers all below it.
DECLARED = {
    "JOB_NAME": "names folders of the run",
    "monitor.alert.alert_file_path": "alerts are off",
    "ckpt.async_upload": "InternEvo sets it itself when saving is off",
    "ckpt.async_upload_tmp_folder": "InternEvo sets it itself when saving is off",
    "ckpt.checkpoint_every": "InternEvo sets it itself when saving is off",
    "ckpt.oss_snapshot_freq": "InternEvo sets it itself when saving is off",
    "ckpt.save_ckpt_folder": "InternEvo sets it itself when saving is off",
    **dict.fromkeys(
        ("CHECKPOINT_EVERY", "LOAD_CKPT_FOLDER", "MODEL_ONLY_FOLDER", "SAVE_CKPT_FOLDER", "DO_ALERT"),
        "a name for the published file's own use, which no code of InternEvo reads",
    ),
    **dict.fromkeys(
        (
            *("HIDDEN_SIZE", "MLP_RATIO", "NUM_ATTENTION_HEAD", "NUM_KV_ATTENTION_HEAD", "NUM_LAYER"),
            *("SEQ_LEN", "VOCAB_SIZE", "TRAIN_FOLDER", "VALID_FOLDER"),
        ),
        "a name for the published file's own use; its value stands in the sections that are compared",
    ),
}

# Only the module that defines Config is imported: the packages around it import kernels that are not needed here.
LOADER = """
import json, sys, types
root, *files = sys.argv[1:]
for name in ("internlm", "internlm.core", "internlm.core.context"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [root + "/" + name.replace(".", "/")]
from internlm.core.context.parallel_context import Config
print(json.dumps([Config.from_file(file) for file in files]))
"""
ABSENT = "absent"


def load(source: Source, files: list[Path]) -> list[dict[str, Any]]:
    command = [sys.executable, "-B", "-c", LOADER, str(source.root), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return list(json.loads(done.stdout.splitlines()[-1]))


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def differences(ours: dict[str, Any], published: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    left, right = flat(ours), flat(published)
    return {
        key: (left.get(key, ABSENT), right.get(key, ABSENT))
        for key in left.keys() | right.keys()
        if left.get(key, ABSENT) != right.get(key, ABSENT)
    }


@pytest.fixture
def published() -> Path:
    given = os.environ.get("CONFORMANCE_TEST_AICHIPBENCHMARK")
    if not given:
        pytest.skip("set CONFORMANCE_TEST_AICHIPBENCHMARK to a checkout of DeepLink-org/AIChipBenchmark")
    return Path(given) / "llm" / "LLaMa-V2" / "config"


@pytest.mark.parametrize("size", ["7b", "70b"])
def test_the_rendered_configuration_equals_the_published_one(
    checkout: Source, published: Path, tmp_path: Path, size: str
) -> None:
    pytest.importorskip("torch", reason="InternEvo's Config imports torch")
    workload = load_workload(f"llama2-{size}-perf")
    ours = tmp_path / "ours.py"
    ours.write_text(render_config(make_plan(workload, Topology(workload.reference.cards // 8, 8))))
    loaded = load(checkout, [ours, published / f"{size.upper()}_llama2.py"])
    found = differences(*loaded)
    compared = len(flat(loaded[0]).keys() & flat(loaded[1]).keys()) - len(found.keys() & flat(loaded[0]).keys())
    print(f"{checkout.tag} {size}: {compared} values equal, {len(found)} declared differences")
    assert compared > 60
    assert set(found) == set(DECLARED), {key: found.get(key) for key in set(found) ^ set(DECLARED)}


def test_a_changed_value_would_be_seen() -> None:
    assert differences({"data": {"micro_num": 4}}, {"data": {"micro_num": 5}}) == {"data.micro_num": (4, 5)}
    assert differences({"a": None}, {}) == {"a": (None, ABSENT)}
