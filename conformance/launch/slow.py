"""Which rank the others wait for, told while a run goes on from what takes no part in the training.

Three signals, each silent where it cannot tell:
- what InternEvo's own diagnosis prints on a rank that is slower than the others (every 200 steps in the benchmark);
- the devices' telemetry: a clock below the others' under load, or less load than the others, whose waiting for that
  one inside a collective counts as load;
- the ranks' threads: a rank that works while the others wait, where waiting sleeps (gloo, blocking synchronisation).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from conformance.launch.samples import Sample, of_run, samples

# A device that holds less than this share of the others' clock slows every rank down: they wait for it in each step.
EVEN_SHARE = 0.9
# A device that waits for data shows its idle clock; only a busy one tells how fast it is.
BUSY_PERCENT = 50.0
# A device that has next to nothing to do takes no part in the run.
IDLE_PERCENT = 5.0
# The share of the time, of 1, by which the others' waiting or load must differ from a rank's own to be its fault.
UNEVEN_SHARE = 0.25
# A JSON record of a rank is a few KiB.
MAX_RECORD_BYTES = 1 << 20
# InternEvo's words, from the slow rank itself.
SLOWER = re.compile(
    rb"Rank (?P<rank>\d{1,7}) (?:is slower than avg on (?P<what>[\w-]{1,40})|(?P<gpu>GPU) is slower than avg), "
    rb"Hostname \S{1,255}, (?:its time|tflops) (?P<own>[\d.]{1,20}), avg (?P<others>[\d.]{1,20}),"
)
Key = TypeVar("Key")


@dataclass(frozen=True)
class Slow:
    """One rank or device that is slower than the rest.

    Args:
        signal: Which of the signals told it; each tells a rank or device once.
        node: Index of its node.
        device: Its index on the node, where a device's telemetry told it; else empty.
        rank: Global rank; None where it is not known which rank has the device.
        text: What was seen, to follow its name in a sentence.
        next_step: What to do about it.
    """

    signal: str
    node: int
    device: str
    rank: int | None
    text: str
    next_step: str


@dataclass
class Pace:
    """Keeps the last samples of every rank and device, and tells which one is behind the others.

    Args:
        devices_per_node: Ranks of each node.
        window: Samples that a rank or device is judged by.
    """

    devices_per_node: int
    window: int
    _waits: dict[int, deque[bool]] = field(default_factory=dict)
    _devices: dict[tuple[int, str], deque[Sample]] = field(default_factory=dict)
    _tables: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    _records: dict[int, bytes] = field(default_factory=dict)
    _ranks: dict[str, int] = field(default_factory=dict)
    _said: list[Slow] = field(default_factory=list)
    _told: set[tuple[str, int, str, int | None]] = field(default_factory=set)

    def hear(self, node: int, lines: bytes) -> None:
        """Take what a rank printed.

        Args:
            node: Index of its node.
            lines: Complete lines.
        """
        for match in SLOWER.finditer(lines):
            what = "its device" if match["gpu"] else match["what"].decode()
            unit = "TFLOPS" if match["gpu"] else "s"
            own, others = match["own"].decode(), match["others"].decode()
            text = f"is slower than the others by InternEvo's own diagnosis of {what}: {own} {unit}, average {others}"
            step = "Compare that host's clocks, temperature and CPU load with the others'."
            self._said.append(Slow(f"diagnosis of {what}", node, "", int(match["rank"]), text, step))

    def record(self, rank: int, data: bytes) -> None:
        """Take what a rank recorded of itself, to know its device by the uuid.

        Args:
            rank: Global rank.
            data: New bytes of environment/rankR.json.
        """
        self._records[rank] = (self._records.get(rank, b"") + data)[:MAX_RECORD_BYTES]
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            self._ranks[str(json.loads(self._records[rank])["device"]["uuid"])] = rank

    def telemetry(self, node: int, data: bytes, training: bool) -> None:
        """Take what a node's telemetry has gained.

        Args:
            node: Index of the node.
            data: New bytes of its CSV, in any pieces.
            training: Whether steps are being made; samples from before are not kept.
        """
        header, rest = self._tables.get(node, ("", b""))
        *lines, rest = (rest + data).split(b"\n")
        text = [line.decode("utf-8", "replace") for line in lines]
        if not header and text:
            header, *text = text
        self._tables[node] = header, rest
        for sample in samples([header, *text]) if training else ():
            if sample.busy_percent >= 0 and sample.clock_mhz >= 0:
                self._devices.setdefault((node, sample.device), deque(maxlen=self.window)).append(sample)

    def threads(self, waiting: Mapping[int, bool]) -> None:
        """Take one look at the ranks' threads.

        Args:
            waiting: Whether a rank waited at that moment, by rank.
        """
        for rank, waits in waiting.items():
            self._waits.setdefault(rank, deque(maxlen=self.window)).append(waits)

    def slow(self) -> list[Slow]:
        """What is slower than the rest and was not told yet.

        Returns:
            Each rank or device once for each signal.
        """
        found = []
        for one in (*self._said, *self._by_threads(), *self._by_clock(), *self._by_load()):
            key = (one.signal, one.node, one.device, one.rank)
            if key not in self._told:
                self._told.add(key)
                found.append(one)
        self._said.clear()
        return found

    def _by_threads(self) -> Iterator[Slow]:
        shares = {rank: sum(seen) / len(seen) for rank, seen in self._waits.items() if len(seen) == self.window}
        for rank, own, others in lower(shares, lambda own, others: own <= others - UNEVEN_SHARE and own < others / 2):
            text = f"keeps the others waiting: it waited {own:.0%} of the time, they {others:.0%}"
            step = "Compare that host's CPU load, cgroup limits and pinning with the others'."
            yield Slow("threads", rank // self.devices_per_node, "", rank, text, step)

    def _own(self) -> dict[tuple[int, str], deque[Sample]]:
        """The samples of the run's devices, of each node whose ranks have all told theirs; else of all that it has."""
        shown: dict[int, dict[tuple[int, str], str]] = {}
        for place, seen in self._devices.items():
            shown.setdefault(place[0], {})[place] = seen[-1].uuid
        known: dict[int, set[str]] = {}
        for uuid, rank in self._ranks.items():
            known.setdefault(rank // self.devices_per_node, set()).add(uuid)
        whole = {node: uuids for node, uuids in known.items() if len(uuids) == self.devices_per_node}
        return {place: self._devices[place] for node in shown for place in of_run(shown[node], whole.get(node, ()))}

    def _by_clock(self) -> Iterator[Slow]:
        clocks = {
            place: float(statistics.median(busy))
            for place, seen in self._own().items()
            if len(busy := [one.clock_mhz for one in seen if one.busy_percent >= BUSY_PERCENT]) >= self.window // 2
        }
        for place, own, others in lower(clocks, lambda own, others: own < EVEN_SHARE * others):
            text = f"holds a clock of {own:.0f} MHz while busy, the others {others:.0f} MHz"
            yield self._device("clock", place, text, "Look for heat, a power cap or another process on that device.")

    def _by_load(self) -> Iterator[Slow]:
        loads = {
            place: load
            for place, seen in self._own().items()
            if len(seen) == self.window and (load := statistics.fmean(one.busy_percent for one in seen)) > IDLE_PERCENT
        }
        for place, own, others in lower(loads, lambda own, others: own <= others - 100 * UNEVEN_SHARE):
            text = f"is busy {own:.0f}% of the time, the others, which wait for it, {others:.0f}%"
            step = "Its host feeds it too slowly: compare CPU load, data loading and pinning with the other hosts'."
            yield self._device("load", place, text, step)

    def _device(self, signal: str, place: tuple[int, str], text: str, step: str) -> Slow:
        node, index = place
        return Slow(signal, node, index, self._ranks.get(self._devices[place][-1].uuid), text, step)


def lower(values: Mapping[Key, float], is_low: Callable[[float, float], bool]) -> Iterator[tuple[Key, float, float]]:
    """Those that are below the others.

    Args:
        values: What is compared.
        is_low: Whether a value (the first argument) is low beside the median of all others (the second).

    Yields:
        Key, value and median of all others, lowest first; nothing where there are fewer than two.
    """
    order = sorted(values, key=lambda key: values[key])
    for place, key in enumerate(order if len(order) > 1 else ()):
        others = statistics.median(values[other] for other in itertools.chain(order[:place], order[place + 1 :]))
        if not is_low(values[key], others):
            return
        yield key, values[key], others
