"""One node's part in a run of several, as the pipeline starts it."""

import threading
from importlib.util import find_spec

import pytest

from conformance.errors import LaunchError
from conformance.evidence import Request
from conformance.internevo.source import find_source
from conformance.launch.launcher import _free_pair
from conformance.launch.team import Host
from conformance.pipeline import Site, _asked, run_workload

pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")


def test_a_node_that_does_not_see_node_0s_checkpoints_takes_no_part(tmp_path):
    if find_spec("internlm") is None:
        pytest.skip("InternEvo is not installed; `make test` installs it")
    request, port = Request("tiny-accuracy", 2, 1, {}, 1024), _free_pair()
    (tmp_path / "0").mkdir()
    host = Host(port + 1, [1], tmp_path / "0")
    job = {"run": "run", "token": "of node 0", "config": "", "lost_node_seconds": 30}
    told = []

    def gather():
        with pytest.raises(LaunchError) as refused:
            host.gather(_asked(request, find_source(None, "0.2.2")), lambda hellos: job, seconds=60)
        told.append(str(refused.value))

    node_0 = threading.Thread(target=gather, daemon=True)
    node_0.start()
    own = Site("cpu", None, tmp_path / "1", launcher="torchrun", node_rank=1, master_addr="127.0.0.1", master_port=port)
    with pytest.raises(LaunchError, match=r"is not node 0's run directory: .* file system that all nodes share"):
        run_workload(request, own, lambda plan: pytest.fail("it began to train"))
    node_0.join(60)
    assert "cannot take part" in told[0]
    assert "file system that all nodes share" in told[0]
