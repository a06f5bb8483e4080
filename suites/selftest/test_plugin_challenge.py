"""--challenge gives the run's seed; a challenge that it could not answer stops it before anything starts."""

from datetime import datetime, timedelta, timezone

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from conformance.errors import ChallengeError, ConformanceError
from conformance.evidence import Request
from conformance.plugin import _answering
from conformance.report import challenge

REQUEST = Request("tiny-perf", 1, 2, {}, 1024)


def issued(tmp_path, workload="tiny-perf", days_ago=1):
    when = datetime.now(timezone.utc) - timedelta(days=days_ago)
    envelope = challenge.issue("ACME", [workload], timedelta(days=2), when, Ed25519PrivateKey.generate())
    (tmp_path / "c.json").write_bytes(envelope)
    return tmp_path / "c.json", challenge.seed(challenge.parse(envelope).nonce, "tiny-perf")


def test_the_seed_is_the_challenges_and_the_file_goes_with_the_run(tmp_path):
    path, seed = issued(tmp_path)
    request, envelope = _answering(REQUEST, path)
    assert request.seed == seed
    assert (request.workload, request.devices_per_node) == ("tiny-perf", 2)
    assert envelope == path.read_bytes()


def test_a_seed_of_ones_own_contradicts_it(tmp_path):
    path, seed = issued(tmp_path)
    with pytest.raises(ConformanceError, match=f"seed is 7; the challenge .* asks for {seed}"):
        _answering(Request("tiny-perf", 1, 2, {}, 7), path)
    assert _answering(Request("tiny-perf", 1, 2, {}, seed), path)[0].seed == seed


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"workload": "llama2-7b-perf"}, "not for tiny-perf"), ({"days_ago": 3}, "expired")],
    ids=["another workload", "expired"],
)
def test_one_that_cannot_be_answered(tmp_path, changes, reason):
    with pytest.raises(ChallengeError, match=reason):
        _answering(REQUEST, issued(tmp_path, **changes)[0])
