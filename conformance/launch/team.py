"""The nodes of a run: each one's logs and state go to node 0, and node 0's orders to each, over torch's TCPStore.

Keys: arrivals/N, hello/N and ready/N from node N; job, order and step for all; up/N/0, up/N/1, ... the messages of
node N, each a JSON line and bytes; verdict for all; bye/N.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from conformance.errors import LaunchError
from conformance.launch.detect import UNKNOWN_BYTES, NodeView, Step
from conformance.launch.disk import Bridge
from conformance.launch.torchrun import recorded

# Pods and jobs of one run start minutes apart where images are pulled first.
ARRIVAL_SECONDS = 600.0
# How long one look for node 0 may take, and a handshake with it.
PROBE_SECONDS = 1.0
CONNECT_SECONDS = 30.0
EXCHANGE_SECONDS = 1.0
# Hashing and judging a long run takes a while; the nodes wait for the verdict that long.
VERDICT_SECONDS = 900.0
# How long the end of a run may take on another node: stacks, torchrun's 10 s of grace, the last log bytes.
STOP_SECONDS = 60.0
CHUNK_BYTES = 1 << 20
# Of a digest, or a list of changed files, the beginning tells that it is another.
MAX_TOLD = 40
TORCH_LEVEL = "TORCH_CPP_LOG_LEVEL"
RUN, STOP, STOP_WITH_STACKS = "run", "stop", "stop with stacks"
# What a node may send: its own logs and records, nothing else.
SENDABLE = r"logs/node{0}/(?:rank\d{{1,7}}|agent)\.log|environment/(?:rank\d{{1,7}}\.json|telemetry-node{0}\.csv)"


def open_store(address: str, port: int, is_host: bool, seconds: float) -> Any:
    """Open torch's TCPStore.

    Args:
        address: Where node 0 is; this machine on node 0 itself.
        port: TCP port there.
        is_host: Whether this is node 0.
        seconds: How long opening it, and each later request, may take.

    Returns:
        The store.

    Raises:
        LaunchError: It cannot be opened.
    """
    import_torch()  # only runs on several nodes pay for torch in this process
    from torch.distributed import TCPStore

    try:
        return TCPStore(address, port, None, is_host, timedelta(seconds=seconds), wait_for_workers=False)
    except Exception as error:  # torch's own errors differ between versions and vendors' builds
        what = "cannot be opened" if is_host else "is open, and does not answer as node 0's store would"
        raise _unreachable(address, port, f"{what}: {str(error).splitlines()[0]}") from error


def import_torch() -> None:
    """Import torch so that it prints no stack of C++ where node 0's end is gone, which a sentence tells.

    The variable that says so is read once, by the import; the ranks are not to inherit it.
    """
    asked = os.environ.get(TORCH_LEVEL)
    os.environ[TORCH_LEVEL] = asked or "ERROR"
    import torch.distributed  # noqa: F401

    if asked is None:
        del os.environ[TORCH_LEVEL]


def await_port(address: str, port: int, seconds: float, waiting: Callable[[Sequence[int], float], None]) -> None:
    """Wait until node 0 listens: torch's store would do so itself, deaf to signals.

    Args:
        address: Where node 0 is.
        port: TCP port there.
        seconds: How long to wait.
        waiting: Called meanwhile with the nodes that are awaited, and since how many seconds.

    Raises:
        LaunchError: Node 0 was not reached.
    """
    begun = time.monotonic()
    while True:
        told = ""
        try:
            with socket.create_connection((address, port), PROBE_SECONDS):
                return
        except OSError as error:  # also a name that is not known yet: pods are named as they start
            told = error.strerror or str(error)
        waited = time.monotonic() - begun
        if waited > seconds:
            raise _unreachable(address, port, f"was not reached within {seconds:.0f} s: {told}")
        waiting((0,), waited)
        time.sleep(0.2)


def _unreachable(address: str, port: int, what: str) -> LaunchError:
    return LaunchError(
        f"The suite's port {port} on node 0 ({address}) {what}.",
        "Start the same command on node 0, check --master-addr, and open --master-port and the port after it.",
    )


def _differences(ours: object, theirs: object, name: str = "") -> list[str]:
    """What was asked for otherwise on another node, by its name."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = sorted(ours.keys() | theirs.keys())
        return [told for one in names for told in _differences(ours.get(one), theirs.get(one), one)]
    return [] if ours == theirs else [f"{name} is {_short(theirs)} there and {_short(ours)} on node 0"]


def _short(value: object) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= MAX_TOLD else f"{text[:MAX_TOLD]}..."


class Host:
    """Node 0's end.

    Args:
        port: TCP port to listen on.
        others: Indices of the nodes that are to arrive.
        run: Run directory; what the others send is written there.
    """

    def __init__(self, port: int, others: Iterable[int], run: Path) -> None:
        self._store = open_store("localhost", port, True, VERDICT_SECONDS)
        self._others = tuple(others)
        self._run = run
        self._next = dict.fromkeys(self._others, 0)
        self._written: dict[str, int] = {}
        self._views: dict[int, NodeView] = {}
        self._heard: dict[int, float] = {}
        self._gone: set[int] = set()

    def gather(
        self, request: Mapping[str, Any], job: Callable[[Mapping[int, Any]], Mapping[str, Any]],
        starter_failed: Callable[[], str] = lambda: "",
        waiting: Callable[[Sequence[int], float], None] = lambda missing, seconds: None,
        seconds: float = ARRIVAL_SECONDS,
    ) -> None:  # fmt: skip
        """Wait for every node, give each the job, and let all begin at once.

        Args:
            request: What was asked for on node 0; a node that was asked for something else is refused.
            job: Given every node's hello, what a node needs to know to begin.
            starter_failed: What went wrong with whatever starts the other nodes; empty while all is well.
            waiting: Called meanwhile with the nodes that are awaited, and since how many seconds.
            seconds: How long to wait.

        Raises:
            LaunchError: A node did not arrive, was asked for something else, or cannot take part.
        """
        try:
            hellos = self._collect("hello", seconds, starter_failed, waiting)
            for node, hello in hellos.items():
                if hello["request"] is not None and (differs := _differences(dict(request), hello["request"])):
                    raise LaunchError(
                        f"Node {node} ({hello['host']}) was not started as node 0 was: {'; '.join(differs)}.",
                        "Start the same command of the same suite, with the same options, on every node.",
                    )
            self._store.set("job", json.dumps(job(hellos)))
            for node, ready in self._collect("ready", seconds, starter_failed, waiting).items():
                if ready["error"]:
                    raise LaunchError(f"Node {node} ({hellos[node]['host']}) cannot take part: {ready['error']}")
        except LaunchError as error:
            self._store.set("job", json.dumps({"refused": str(error)}))
            self._store.set("order", STOP)
            time.sleep(2 * EXCHANGE_SECONDS)  # the nodes that did arrive learn why nothing comes of it
            raise
        for node, hello in hellos.items():
            self._views[node] = NodeView(hello["host"], 0.0, None, UNKNOWN_BYTES)
            self._heard[node] = time.monotonic()
        waiting((), 0.0)
        self._store.set("order", RUN)

    def _collect(
        self,
        what: str,
        seconds: float,
        starter_failed: Callable[[], str],
        waiting: Callable[[Sequence[int], float], None],
    ) -> dict[int, Any]:
        begun = time.monotonic()
        found: dict[int, Any] = {}
        while len(found) < len(self._others):
            for node in self._others:
                if node not in found and self._store.check([f"{what}/{node}"]):
                    found[node] = json.loads(self._store.get(f"{what}/{node}"))
            missing = [node for node in self._others if node not in found]
            fault = starter_failed()
            waited = time.monotonic() - begun
            if missing and (fault or waited > seconds):
                listed = ", ".join(map(str, missing))
                came = ", ".join(f"{node} ({one['host']})" for node, one in sorted(found.items()))
                late, done = {"hello": ("arrive", "arrived"), "ready": ("get ready", "ready")}[what]
                raise LaunchError(
                    f"{'Node' if len(missing) == 1 else 'Nodes'} {listed} did not {late}"
                    + (f": {fault}" if fault else f" within {seconds:.0f} s")
                    + f"; {done}: {came or 'none'}.",
                    "Start the same command on every node, each with its own --node-rank.",
                )
            if missing:
                waiting(missing, waited)
                time.sleep(0.1)
        return found

    def views(self) -> dict[int, NodeView]:
        """What is known of each node now.

        Returns:
            Views by node; the log bytes that they sent lie in the run directory.

        Raises:
            OSError: They cannot be written there.
        """
        for node in self._others:
            while self._store.check([key := f"up/{node}/{self._next[node]}"]):
                self._heard[node] = time.monotonic()
                # Whose bytes cannot be written now is taken at the next look.
                self._take(node, self._store.get(key))
                # Counted before it is gone: a signal may raise here, and a key that is gone is waited for in vain.
                self._next[node] += 1
                self._store.delete_key(key)
        now = time.monotonic()
        return {n: dataclasses.replace(v, silent_seconds=now - self._heard[n]) for n, v in self._views.items()}

    def _take(self, node: int, message: bytes) -> None:
        head, _, data = message.partition(b"\n")
        told = json.loads(head)
        if "name" in told:
            name = str(told["name"])
            if not re.fullmatch(SENDABLE.format(node), name):
                raise LaunchError(f"Node {node} sent {name!r}, which is not a log or record of its own.")
            path, begin = self._run / name, self._written.get(name, 0)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            with path.open("r+b") as stream:
                stream.seek(begin)  # not at the end: a part of it may be there, of the try before
                stream.write(data)
            self._written[name] = begin + len(data)
        else:
            told |= {name: tuple(told[name]) for name in ("stopped", "waiting", "working")}
            if told.pop("last"):
                self._gone.add(node)
            self._views[node] = NodeView(silent_seconds=0.0, **told)

    def step(self, step: Step) -> None:
        """Tell every node the newest step.

        Args:
            step: The step.
        """
        self._store.set("step", json.dumps(dataclasses.asdict(step)))

    def stop(self, with_stacks: bool) -> None:
        """Have every node end the run, and wait until each has sent its last.

        Args:
            with_stacks: Whether they capture their ranks' stacks first.
        """
        self._store.set("order", STOP_WITH_STACKS if with_stacks else STOP)
        end = time.monotonic() + STOP_SECONDS
        lost = self._lost()
        while not self._gone | lost >= set(self._others) and time.monotonic() < end:
            time.sleep(0.2)
            lost |= self._lost()

    def _lost(self) -> set[int]:
        """The nodes that say no more; what cannot be written of the others' words keeps nobody from being ended."""
        with contextlib.suppress(OSError):
            return {n for n, view in self.views().items() if view.silent_seconds > 10 * EXCHANGE_SECONDS}
        return set()

    def publish(self, verdict: Mapping[str, Any]) -> None:
        """Tell every node what came of the run, and wait until those that can have heard it.

        Args:
            verdict: What to tell, for json.
        """
        self._store.set("verdict", json.dumps(verdict))
        end = time.monotonic() + 10 * EXCHANGE_SECONDS
        keys = [f"bye/{node}" for node in self._gone]
        while time.monotonic() < end and not all(self._store.check([key]) for key in keys):
            time.sleep(0.1)


class Member:
    """Another node's end; a thread of its own talks to node 0, so that a dead link blocks nothing else.

    Args:
        address: Node 0.
        port: Its port.
        node: Index of this node.
        request: What was asked for here; None to take what node 0 was asked for.
        seconds: How long to wait for node 0.
        waiting: Called meanwhile with the node that is awaited, and since how many seconds.
    """

    def __init__(
        self,
        address: str,
        port: int,
        node: int,
        request: Mapping[str, Any] | None,
        seconds: float = ARRIVAL_SECONDS,
        waiting: Callable[[Sequence[int], float], None] = lambda missing, seconds: None,
    ) -> None:
        self.node = node
        self._waiting = waiting
        self._begun = time.monotonic()
        self._store = _store_of_this_run(address, port, seconds, waiting)
        if self._store.add(f"arrivals/{node}", 1) > 1:
            raise LaunchError(
                f"Another process has arrived as node {node} of this run.",
                "Give every node its own --node-rank; where that process was ended, start node 0 anew too.",
            )
        hello = {"host": socket.gethostname(), "request": request, "address": _own_address(address, port)}
        hello["environment"] = recorded(os.environ)
        self._store.set(f"hello/{node}", json.dumps(hello))
        self.job: Mapping[str, Any] = json.loads(self._get("job"))
        self._refuse_if_told()
        self.lost_seconds = float(self.job["lost_node_seconds"])
        self.order = RUN
        self.step: Step | None = None
        self.heard = time.monotonic()
        self.verdict: Mapping[str, Any] | None = None
        self._state: dict[str, Any] = {}
        self._sent: dict[Path, int] = {}
        self._disk = Bridge()
        self._ended_by = ""
        self._count = 0
        self._last = False

    def ready(self, error: str = "") -> None:
        """Say that this node can begin, and wait until all can.

        Args:
            error: Why it cannot.

        Raises:
            LaunchError: Another node cannot, or node 0 is gone.
        """
        self._store.set(f"ready/{self.node}", json.dumps({"host": socket.gethostname(), "error": error}))
        if self._get("order").decode() != RUN:
            self.job = json.loads(self._get("job"))
            self._refuse_if_told()

    def begin(self, run: Path | None) -> None:
        """Start to exchange.

        Args:
            run: Run directory whose files go to node 0; None where node 0 sees them itself.
        """
        self._waiting((), 0.0)
        self.heard = time.monotonic()
        self._thread = threading.Thread(target=self._exchange, args=(run,), daemon=True)
        self._thread.start()

    def tell(self, view: NodeView) -> None:
        """Say how this node is.

        Args:
            view: Its view.
        """
        state = dataclasses.asdict(view)
        del state["silent_seconds"]
        self._state = state

    def finish(self) -> Mapping[str, Any]:
        """Send the last log bytes and wait for the verdict.

        Returns:
            What node 0 published.

        Raises:
            LaunchError: Node 0 ended without a verdict.
        """
        self._last = True
        end = time.monotonic() + VERDICT_SECONDS
        while self._thread.is_alive() and time.monotonic() < end and self.silent_seconds < self.lost_seconds:
            self._thread.join(0.2)
        if self.verdict is None:
            why = f" ({self._ended_by})" if self._ended_by else ""
            raise LaunchError(
                f"Node 0 has gone without a verdict{why}; this node's part of the run was ended.",
                "See node 0's terminal.",
            )
        return self.verdict

    @property
    def silent_seconds(self) -> float:
        """Since node 0 was last heard of."""
        return time.monotonic() - self.heard

    def _exchange(self, run: Path | None) -> None:
        try:
            while self.verdict is None:
                last = self._last  # read before the files: what was written before the end is sent before the end
                if self._state:
                    for name, data in self._fresh(run) if run else ():
                        self._put({"name": name}, data)
                    disk = {"disk_seconds": self._disk.seconds, "disk_error": self._disk.error}
                    # What its file system refuses for a moment is sent before the end too.
                    last = last and (not self._disk.error or self._disk.seconds >= self.lost_seconds)
                    self._put({**self._state, **(disk if self._disk.error else {}), "last": last})
                self.order = self._get("order").decode()
                if self._store.check(["step"]):
                    self.step = Step(**json.loads(self._get("step")))
                self.heard = time.monotonic()
                while last and self.verdict is None:
                    if self._store.check(["verdict"]):
                        self.verdict = json.loads(self._get("verdict"))
                        self._store.set(f"bye/{self.node}", "")
                    self.heard = time.monotonic()
                    time.sleep(0.2)
                time.sleep(EXCHANGE_SECONDS)
        except Exception as error:  # most likely the connection is gone, for which each torch has errors of its own
            # `heard` stands still, and the main thread draws the conclusion.
            told = error.message if isinstance(error, LaunchError) else f"{type(error).__name__}: {error}"
            self._ended_by = told.splitlines()[0].rstrip(".")

    def _fresh(self, run: Path) -> Iterator[tuple[str, bytes]]:
        with self._disk.bridged():
            for path in sorted([*run.glob(f"logs/node{self.node}/*.log"), *run.glob("environment/*")]):
                name = path.relative_to(run).as_posix()
                if not re.fullmatch(SENDABLE.format(self.node), name):
                    continue  # somebody else's, such as an editor's
                with path.open("rb") as stream:
                    stream.seek(self._sent.get(path, 0))
                    # A log that stays empty is sent too: it shows that its rank was there.
                    while (data := stream.read(CHUNK_BYTES)) or path not in self._sent:
                        self._sent[path] = stream.tell()
                        yield name, data

    def _put(self, head: Mapping[str, Any], data: bytes = b"") -> None:
        self._store.set(f"up/{self.node}/{self._count}", json.dumps(head).encode() + b"\n" + data)
        self._count += 1

    def _get(self, key: str) -> bytes:
        """Wait for a key: not inside the store, which is deaf to signals and says nothing meanwhile."""
        end = time.monotonic() + VERDICT_SECONDS  # the other nodes may arrive much later
        try:
            while not self._store.check([key]):
                if time.monotonic() > end:
                    raise LaunchError(f"Node 0 said nothing for {VERDICT_SECONDS:.0f} s.", "See node 0's terminal.")
                self._waiting((0,), time.monotonic() - self._begun)
                time.sleep(0.2)
            return bytes(self._store.get(key))
        except LaunchError:
            raise
        except Exception as error:  # torch's own errors differ between versions and vendors' builds
            raise LaunchError(f"Node 0 is gone: {str(error).splitlines()[0]}", "See node 0's terminal.") from error

    def _refuse_if_told(self) -> None:
        if "refused" in self.job:
            raise LaunchError(f"Node 0 called the run off: {self.job['refused']}")


def _store_of_this_run(address: str, port: int, seconds: float, waiting: Callable[[Sequence[int], float], None]) -> Any:
    """Node 0's store; the one that has told its verdict is of the run before, and closes."""
    while True:
        await_port(address, port, seconds, waiting)
        store = open_store(address, port, False, CONNECT_SECONDS)
        with contextlib.suppress(Exception):  # torch's own: it has just closed
            if not store.check(["verdict"]):
                return store
        time.sleep(PROBE_SECONDS)


def _own_address(address: str, port: int) -> str:
    """This machine's address as node 0 sees it; a UDP socket finds the route and sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, port))
        except OSError:
            return socket.gethostname()
        return str(probe.getsockname()[0])
