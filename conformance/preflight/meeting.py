"""Where nodes wait for each other before what they measure together, so that none pays for what another one took."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

from conformance.errors import LaunchError
from conformance.launch.launcher import Place
from conformance.launch.team import ARRIVAL_SECONDS, await_port, import_torch, open_store

PORT = 1  # after the place's own, on which the measuring processes meet
LOOK_SECONDS = 0.2


class Meeting:
    """The nodes of one preflight, in a store of node 0; all have arrived when it is made.

    Args:
        place: Which of how many nodes this is, and where they meet.
        seed: Of all random inputs; node 0's counts.
        told: Called with what is waited for.
        seconds: How long to wait for all nodes.

    Raises:
        LaunchError: A node did not arrive, this one came after the others had given up, or node 0 ended meanwhile.
    """

    def __init__(self, place: Place, seed: int, told: Callable[[str], None], seconds: float = ARRIVAL_SECONDS) -> None:
        self._rank, self._nodes = place.node_rank, range(place.nodes)
        self._lost: list[int] = []
        address, port, is_host = place.address, place.port + PORT, place.node_rank == 0
        import_torch()
        told(f"waiting for {'the other nodes' if is_host else 'node 0'}")
        if not is_host:
            await_port(address, port, seconds, lambda nodes, waited: None)
        self._store = open_store("localhost" if is_host else address, port, is_host, seconds)
        try:
            if is_host:
                self._store.set("seed", str(seed))
            if lost := self._await("start", seconds):
                came_late = f"Node {self._rank} arrived after the others had given up waiting for it."
                did_not = f"{named(lost).capitalize()} did not arrive within {seconds:.0f} s."
                told_why = came_late if self._rank in lost else did_not
                raise LaunchError(told_why, "Start the same command on every node.")
            self.seed = int(self._store.get("seed"))
        except RuntimeError as error:  # as torch says that node 0's end is gone
            raise LaunchError(
                "Node 0 ended while the nodes met.",
                "Look there for the reason; then start the same command on every node.",
            ) from error

    def absent(self, what: str, seconds: float) -> list[int]:
        """Wait until every node has come as far as this one.

        Args:
            what: What begins then; never the same twice.
            seconds: How long the others may legally take.

        Returns:
            The nodes that did not come, in time or to an earlier meeting; none where all did. All others where it was
            this node that they did not wait for any longer.
        """
        if not self._lost:
            try:
                lost = self._await(what, seconds)
            except RuntimeError:  # as torch says that node 0's end is gone
                lost = [0]
            self._lost = [node for node in self._nodes if node != self._rank] if self._rank in lost else lost
        return self._lost

    def _await(self, what: str, seconds: float) -> list[int]:
        """Wait for the others, and say which of all nodes are lost."""
        self._store.set(f"{what}/{self._rank}", "")
        end = time.monotonic() + seconds
        while True:
            missing = [node for node in self._nodes if not self._store.check([f"{what}/{node}"])]
            if missing and time.monotonic() > end:  # one node decides for all, or they would part for good
                self._store.set("lost", json.dumps(missing))
            if self._store.check(["lost"]):
                lost: list[int] = json.loads(self._store.get("lost"))
                return lost
            if not missing:
                return []
            time.sleep(LOOK_SECONDS)


def named(nodes: Sequence[int]) -> str:
    """Nodes in words.

    Args:
        nodes: Their indices.

    Returns:
        Such as "node 1" or "nodes 1, 2".
    """
    return f"node{'' if len(nodes) == 1 else 's'} {', '.join(map(str, nodes))}"
