"""Where nodes wait for each other before what they measure together, so that none pays for what another one took."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

from conformance.errors import LaunchError
from conformance.launch.launcher import Place
from conformance.launch.team import ARRIVAL_SECONDS, await_port, open_store

PORT = 8  # after the place's own
LOOK_SECONDS = 0.2


class Meeting:
    """The nodes of one preflight, in a store of node 0; all have arrived when it is made.

    Args:
        place: Which of how many nodes this is, and where they meet.
        seed: Of all random inputs; node 0's counts.
        told: Called with what is waited for.
        seconds: How long to wait for all nodes.

    Raises:
        LaunchError: A node did not arrive.
    """

    def __init__(self, place: Place, seed: int, told: Callable[[str], None], seconds: float = ARRIVAL_SECONDS) -> None:
        self._rank, self._nodes = place.node_rank, range(place.nodes)
        self._lost: list[int] = []
        address, port, is_host = place.address, place.port + PORT, place.node_rank == 0
        told("the other nodes" if is_host else "node 0")
        if not is_host:
            await_port(address, port, seconds, lambda nodes, waited: None)
        self._store = open_store("localhost" if is_host else address, port, is_host, seconds)
        if is_host:
            self._store.set("seed", str(seed))
        if absent := self.absent("start", seconds):
            raise LaunchError(
                f"{named(absent).capitalize()} did not arrive within {seconds:.0f} s.",
                "Start the same command on every node.",
            )
        self.seed = int(self._store.get("seed"))

    def absent(self, what: str, seconds: float) -> list[int]:
        """Wait until every node has come as far as this one.

        Args:
            what: What begins then; never the same twice.
            seconds: How long the others may legally take.

        Returns:
            The nodes that did not come, in time or to an earlier meeting; none where all did.
        """
        try:
            self._store.set(f"{what}/{self._rank}", "")
            end = time.monotonic() + seconds
            while not self._lost:
                missing = [node for node in self._nodes if not self._store.check([f"{what}/{node}"])]
                if missing and time.monotonic() > end:  # one node decides for all, or they would part for good
                    self._store.set("lost", json.dumps(missing))
                if self._store.check(["lost"]):
                    self._lost = [node for node in json.loads(self._store.get("lost")) if node != self._rank] or [0]
                elif not missing:
                    return []
                time.sleep(LOOK_SECONDS)
        except RuntimeError:  # as torch says that node 0's end is gone
            self._lost = [0]
        return self._lost


def named(nodes: Sequence[int]) -> str:
    """Nodes in words.

    Args:
        nodes: Their indices.

    Returns:
        Such as "node 1" or "nodes 1, 2".
    """
    return f"node{'' if len(nodes) == 1 else 's'} {', '.join(map(str, nodes))}"
