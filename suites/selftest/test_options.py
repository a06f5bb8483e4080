"""A challenge gives the run's seed; one that could not be answered, or a run that cannot go on here, starts nothing."""

import json
import shutil
from argparse import Namespace
from datetime import datetime, timedelta, timezone

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from conformance.data import Fingerprint, read_fingerprint
from conformance.data.fingerprints import FINGERPRINT
from conformance.devices import load_device
from conformance.errors import ChallengeError, ConformanceError
from conformance.evidence import DATA, Request, write_json
from conformance.evidence import REQUEST as REQUEST_FILE
from conformance.options import _answering, _request, _require_as_begun
from conformance.plan import DEFAULT_SEED
from conformance.report import challenge
from conformance.spec import load_workload

REQUEST = Request("tiny-perf", 1, 2, {}, 1024)


def issued(tmp_path, workload="tiny-perf", days_ago=1):
    when = datetime.now(timezone.utc) - timedelta(days=days_ago)
    envelope = challenge.issue("ACME", [workload], timedelta(days=2), when, Ed25519PrivateKey.generate())
    (tmp_path / "c.json").write_bytes(envelope)
    return tmp_path / "c.json", challenge.seed(challenge.parse(envelope).nonce, workload)


def test_the_seed_is_the_challenges_and_the_file_goes_with_the_run(tmp_path):
    path, seed = issued(tmp_path)
    request, envelope = _answering(REQUEST, path, free=True)
    assert request.seed == seed
    assert (request.workload, request.devices_per_node) == ("tiny-perf", 2)
    assert envelope == path.read_bytes()


def test_a_seed_of_ones_own_contradicts_it(tmp_path):
    path, seed = issued(tmp_path)
    for own in (7, DEFAULT_SEED):
        with pytest.raises(ConformanceError, match=f"seed is {own}; the challenge .* asks for {seed}"):
            _answering(Request("tiny-perf", 1, 2, {}, own), path, free=False)
    assert _answering(Request("tiny-perf", 1, 2, {}, seed), path, free=False)[0].seed == seed


def test_a_run_that_began_without_a_challenge_answers_none_when_it_goes_on(tmp_path):
    """Its seed would change in the middle."""
    path, seed = issued(tmp_path, "tiny-accuracy")
    run = tmp_path / "run"
    (run / "configs").mkdir(parents=True)
    option = Namespace(resume=run, challenge=path, nodes=None, devices_per_node=None, set=[], seed=None)
    workload, device = load_workload("tiny-accuracy"), load_device("cpu")
    write_json(run, REQUEST_FILE, Request("tiny-accuracy", 1, 2, {}, DEFAULT_SEED).to_json())
    with pytest.raises(ConformanceError, match=r"seed is 1024; the challenge .* that it began with, or none\."):
        _request(option, workload, device)
    write_json(run, REQUEST_FILE, Request("tiny-accuracy", 1, 2, {}, seed).to_json())
    assert _request(option, workload, device)[0].seed == seed


class Accelerator:
    """A plugin that finds so many devices."""

    name = "accelerator"

    def __init__(self, found):
        self.count = lambda: found


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (load_device("cpu"), r"needs 4 x 8 accelerators; this machine has none"),
        (Accelerator(0), r"needs accelerators; this node shows none"),
        (Accelerator(7), r"needs 4 x 8 accelerators; this node has 7 \(accelerator\)\. Make the others visible"),
    ],
    ids=["the driver is down", "none", "one is gone"],
)
def test_a_run_goes_on_where_its_devices_are(tmp_path, device, reason):
    """With 7 of them, or on the CPU, it would start the ranks of 8."""
    workload = load_workload("llama2-7b-accuracy")
    (tmp_path / "configs").mkdir()
    request = Request(workload.name, 4, 8, {}, DEFAULT_SEED)
    write_json(tmp_path, REQUEST_FILE, request.to_json())
    option = Namespace(resume=tmp_path, challenge=None, nodes=None, devices_per_node=None, set=[], seed=None)
    with pytest.raises(ConformanceError, match=reason):
        _request(option, workload, device)
    assert _request(option, workload, Accelerator(8)) == (request, None)


def prepared(folder, mode="raw"):
    """A folder of data, of which only the record is looked at."""
    (folder / "train").mkdir(parents=True)
    (folder / FINGERPRINT).write_text(json.dumps(Fingerprint(mode, "0" * 64, 8, ()).to_json()))
    return folder


@pytest.fixture
def begun(tmp_path):
    """A run that began with a patch, on data of its own; the patch."""
    run, patch = tmp_path / "run", tmp_path / "own.diff"
    for name in ("environment", "patches", "work"):
        (run / name).mkdir(parents=True)
    (run / "work/data").symlink_to(prepared(tmp_path / "data") / "train")
    write_json(run, DATA, read_fingerprint(tmp_path / "data").to_json())
    patch.write_text("+a faster kernel\n")
    shutil.copy(patch, run / "patches")
    return patch


def test_a_run_goes_on_with_the_data_that_it_began_with(begun, tmp_path):
    _require_as_begun(tmp_path / "run", None, [begun])
    _require_as_begun(tmp_path / "run", prepared(tmp_path / "moved"), [begun])
    refused = r"run trained on the data set \w{16}; the one in \S*/%s is \w{16}\. .* name the folder of its data"
    with pytest.raises(ConformanceError, match=refused % "other"):
        _require_as_begun(tmp_path / "run", prepared(tmp_path / "other", "field:text"), [begun])
    shutil.rmtree(tmp_path / "data")
    prepared(tmp_path / "data", "field:text")  # anew, in the same place
    with pytest.raises(ConformanceError, match=refused % "data"):
        _require_as_begun(tmp_path / "run", None, [begun])


def test_a_run_goes_on_with_the_patches_that_it_began_with(begun, tmp_path):
    refused = r"run began with the patch files own.diff \(\w{16}\); now they are %s\. .* keeps in \S*/run/patches,"
    with pytest.raises(ConformanceError, match=refused % "none"):
        _require_as_begun(tmp_path / "run", None, [])
    (tmp_path / "more.diff").touch()
    with pytest.raises(ConformanceError, match=refused % r"more.diff \(\w{16}\), own.diff \(\w{16}\)"):
        _require_as_begun(tmp_path / "run", None, [begun, tmp_path / "more.diff"])
    begun.write_text("+a changed kernel\n")
    with pytest.raises(ConformanceError, match=refused % r"own.diff \(\w{16}\)"):
        _require_as_begun(tmp_path / "run", None, [begun])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"workload": "llama2-7b-perf"}, "not for tiny-perf"), ({"days_ago": 3}, "expired")],
    ids=["another workload", "expired"],
)
def test_one_that_cannot_be_answered(tmp_path, changes, reason):
    with pytest.raises(ChallengeError, match=reason):
        _answering(REQUEST, issued(tmp_path, **changes)[0], free=True)
