"""A good data set, the log of a run on it and its loss beside reference runs, and what can be wrong with each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conformance.checks import curve as curve_checks
from conformance.checks import data as data_checks
from conformance.checks.finding import Finding
from conformance.data import Fingerprint, Shard
from conformance.internevo.log import LogHead
from conformance.metrics.curve import PAIRED_STEPS, compare
from conformance.plan import Topology, make_plan
from conformance.selftest.bench import Bench, Fault
from conformance.spec import load_workload
from conformance.spec.curves import Curve

STARTED, ENDED, LOGGED = "2026-01-01T10:00:00+00:00", "2026-01-01T11:00:00+00:00", "2026-01-01T10:30:00"


def _good_data(_: Path) -> dict[str, Any]:
    plan = make_plan(load_workload("tiny-accuracy"), Topology(1, 2))
    packs = 40
    tokens = packs * plan.micro_bsz * plan.model.seq_len
    shard = Shard("en/a.bin", 1 << 20, "1" * 64, "2" * 64, 100, tokens)
    found = Fingerprint("raw", "3" * 64, plan.model.vocab_size, (shard,))
    return {
        "plan": plan,
        "fingerprint": found.to_json(),
        "pin": found.digest,
        "head": LogHead(data=(1, packs, 0)),
        "types": ["en"],
        "record": {"started": STARTED, "ended": ENDED},
        "times": np.array([LOGGED], "datetime64[ms]"),
    }


def _judge_data(run: dict[str, Any]) -> Sequence[Finding]:
    recorded, found = data_checks.recorded(run["plan"], [run["fingerprint"]])
    spans = [(run["record"], {"utc_offset_seconds": 0}, run["times"])]
    in_time = data_checks.in_time(spans)
    if found is None:
        return [recorded, in_time]
    pinned = data_checks.pinned(run["plan"], found, run["pin"])
    return [recorded, pinned, data_checks.loaded(run["plan"], found, [run["head"]], run["types"]), in_time]


DATA = Bench("data set", _good_data, _judge_data)


def _good_losses(_: Path) -> dict[str, Any]:
    random = np.random.default_rng(0)
    runs = 6 + np.exp(-np.arange(100) / 20) + random.normal(0, 0.01, (8, 100))
    again = runs * random.normal(1, 1e-5, runs.shape)
    losses, twins = (tuple(tuple(map(float, run)) for run in made) for made in (runs, again[:, :PAIRED_STEPS]))
    curve = Curve("tiny-perf", 2, 100, 1024, "dummy", tuple(range(8)), losses, "this suite", "cpu", twins)
    return {"curve": curve, "loss": runs[:1] * random.normal(1, 1e-5, (1, 100))}


def _judge_losses(subject: dict[str, Any]) -> Sequence[Finding]:
    return [curve_checks.agrees(compare(subject["curve"], subject["loss"], [0], "cpu"))]


CURVE = Bench("loss curve", _good_losses, _judge_losses)

# What is held against a fingerprint, once there is one.
_HELD = frozenset({"data-pinned", "data-loaded"})
FAULTS = (
    Fault(
        "data-recorded", "no fingerprint was recorded", DATA, lambda run: run.update(fingerprint=None), silences=_HELD
    ),
    Fault(
        "data-recorded",
        "the fingerprint was edited",
        DATA,
        lambda run: run["fingerprint"].update(tokens=7),
        silences=_HELD,
    ),
    Fault("data-pinned", "other data than the pinned ones", DATA, lambda run: run.update(pin="f" * 64)),
    Fault("data-loaded", "random tokens were trained on", DATA, lambda run: run.update(head=LogHead())),
    Fault("data-loaded", "half of the data", DATA, lambda run: run.update(head=LogHead(data=(1, 20, 0)))),
    Fault("log-in-time", "the log of an earlier run", DATA, lambda run: run["record"].update(started=ENDED)),
    Fault("curve-agrees", "a constant offset of 3%", CURVE, lambda curve: curve.update(loss=curve["loss"] * 1.03)),
    Fault(
        "curve-agrees",
        "less than seeds differ, in the first steps of a run whose seed has a reference run: 0.05%",
        CURVE,
        lambda curve: curve.update(loss=curve["loss"] * np.where(np.arange(100) < PAIRED_STEPS, 1.0005, 1)),
    ),
)
