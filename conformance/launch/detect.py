"""What goes wrong in a run, told from its logs, its nodes and the clock: values in, named faults out, no I/O."""

from __future__ import annotations

import math
import re
import signal
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from conformance.internevo.flops import logged_flops_per_token
from conformance.launch import stacks
from conformance.launch.slow import Pace, Slow
from conformance.plan import Plan

STEP = re.compile(
    rb"\bstep=(?P<step>\d{1,9}) loss=(?P<loss>[-+.\w]{1,40}) tgs \(tokens/gpu/second\)=(?P<tgs>[-+.\w]{1,40})"
    rb"(?:[^\n]{0,4000}? loss_from_metric=(?P<mean_loss>[-+.\w]{1,40}))?"
)
# A step whose update InternEvo skips gets a line of its own instead, and none of metrics: an overflow, which halves the
# loss scale, or gradients that are no numbers, which nothing mends.
STEP_OR_SKIP = re.compile(STEP.pattern + rb"|(?P<skip>Overflow|Nan grad norm) occurs")
# InternEvo catches every exception, logs this, and ends with exit code 0.
RAISED = re.compile(rb"Raise exception from \S{1,255} with rank id: \d{1,9}")
# torchrun's own word on a worker that ended badly, before it ends the others.
WORKER_FAILED = re.compile(rb"failed \(exitcode: (-?\d{1,5})\) local_rank: (\d{1,5}) \(pid: \d+\)")
# The last line of a traceback, torchrun's own prefix before it or not.
ERROR_LINE = re.compile(
    rb"^(?:\[rank\d+\]: ?)?((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Iteration|Exit|Interrupt)\b.*)$", re.M
)
# What a rank says whose peer has died.
PEER = re.compile(r"connection (?:closed|reset|refused)|broken pipe|\bpeer\b|DistBackendError|NCCL|timed? ?out", re.I)
# Devices say the first; the host says the others.
OUT_OF_MEMORY = re.compile(r"out of ?memory|can(?:no|')t allocate memory|\bMemoryError\b", re.I)
NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded|Errno (?:28|122)\b")

RECORD = re.compile(r"environment/(rank|telemetry-node)(\d{1,7})\.(?:json|csv)")

# How often the ranks' threads are counted as looked at; other nodes tell theirs as often.
LOOK_SECONDS = 1.0
# A rank that dies takes others with it: wait until all have spoken, or every node has ended, before naming one.
# torchrun of old looks at its workers every 5 s.
SETTLE_SECONDS = 6.0
# A node speaks once a second; so long without a word is worth a word.
SILENT_SECONDS = 5.0
# A loss that is not a number can be one overflow; so many in a row are the end of the training.
NAN_STEPS = 3
# What is kept of a log to say what its last exception was.
TAIL_BYTES = 32 << 10
# What is kept of a line that is still being written.
MAX_LINE_BYTES = 64 << 10
MAX_ERROR_TEXT = 300
# Step times that the median is taken over.
MEDIAN_STEPS = 101
# A rank is slower than the rest over so many looks or samples, a minute of them, or not at all.
SLOW_SAMPLES = 60
# Slower than any device that is worth testing, a tenth of what one of 2020 does: no first step takes longer than this.
SLOWEST_TFLOPS = 20.0
# A shared file system that is slow for a training cluster, written to by all ranks together.
SLOWEST_DISK_BYTES_PER_SECOND = 200e6
# Free space on a disk of which nothing was heard yet.
UNKNOWN_BYTES = 1 << 62


@dataclass(frozen=True)
class Limits:
    """When waiting turns into a fault.

    Args:
        start_seconds: From the start to the first step: imports, data, graph compilation, that step; the second step
            has as long, because no step time is known before it.
        stall_factor: k: no step within k times the median step time is a stall.
        stall_floor_seconds: The least that a stall takes, whatever the step time; checkpoints are written in it.
        lost_node_seconds: Silence after which a node counts as lost, and a file system that refuses to work.
        min_free_bytes: Free space on a run's disk below which a run is ended while its evidence can still be written.
        slow_samples: Looks at its threads, or samples of its device, after which a rank may be told to be slow.
    """

    start_seconds: float = 1800.0
    stall_factor: float = 10.0
    stall_floor_seconds: float = 120.0
    lost_node_seconds: float = 30.0
    min_free_bytes: int = 32 << 20
    slow_samples: int = SLOW_SAMPLES


def limits_for(plan: Plan, checkpoint_bytes: int = 0) -> Limits:
    """The limits that a plan is watched with.

    Args:
        plan: What runs.
        checkpoint_bytes: Size of a checkpoint; 0 where none are written.

    Returns:
        The defaults; longer at the start by a step of the slowest device, and by a checkpoint that is read; where
        checkpoints are written between steps, a floor of 15 min and the time to write one.
    """
    flops = logged_flops_per_token(plan.model, plan.checkpoint) * plan.tokens_per_step / plan.cards
    disk = checkpoint_bytes / SLOWEST_DISK_BYTES_PER_SECOND
    start = Limits.start_seconds + flops / (SLOWEST_TFLOPS * 1e12) + disk
    floor = 900.0 + disk if checkpoint_bytes else Limits.stall_floor_seconds
    return Limits(start_seconds=round(start), stall_floor_seconds=round(floor))


@dataclass(frozen=True)
class Step:
    """One training step, as the live display shows it; judgement reads the log again, in full.

    Args:
        step: Index, from 0.
        loss: Loss of the logging rank.
        tgs: Tokens per device and second.
        mean_loss: Loss over all data-parallel ranks; the logging rank's where the log has none.
    """

    step: int
    loss: float
    tgs: float
    mean_loss: float


@dataclass(frozen=True)
class Fault:
    """One thing that went wrong, named.

    Args:
        kind: rank-died, exception, out-of-memory, nan-loss, stall, lost-node, node-ended, full-disk or disk-error; or
            slow-rank, off-curve, off-target and interrupted, which are shown and no fault of the run.
        message: One sentence: what, where, after which step.
        next_step: What to do about it.
        node: Index of the node; None where it concerns them all.
        host: Its name; empty where it concerns them all.
        rank: Global rank; None where it concerns a node or them all.
        last_step: Last logged step; None before the first.
        seconds: From the start of the run.
    """

    kind: str
    message: str
    next_step: str
    node: int | None
    host: str
    rank: int | None
    last_step: int | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The fault as evidence.

        Returns:
            Its fields.
        """
        return asdict(self)


@dataclass(frozen=True)
class NodeView:
    """What is known of a node at one moment.

    Args:
        host: Its name.
        silent_seconds: Since it was last heard of.
        exit_code: Of its torchrun; None while it runs.
        free_bytes: Free space on the disk of its run directory.
        stopped: Ranks on it that a signal has stopped.
        waiting: Ranks on it none of whose threads had anything to do.
        working: Its other ranks.
        interrupted: Whether a signal told the suite on it to end.
        disk_seconds: Since when the file system of its run directory has refused to work; 0 where it works.
        disk_error: What that answers.
    """

    host: str
    silent_seconds: float
    exit_code: int | None
    free_bytes: int
    stopped: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()
    working: tuple[int, ...] = ()
    interrupted: bool = False
    disk_seconds: float = 0.0
    disk_error: str = ""


def told_late(by: str) -> Fault:
    """What to show when somebody asks for the end of a run whose training is over; no fault of the run.

    Args:
        by: Name of the signal.

    Returns:
        What to show.
    """
    message = f"{by} came after the end of the training: it is heeded once the report is signed."
    return Fault("interrupted", message, "", None, "", None, None, 0.0)


@dataclass
class _Log:
    """One log as far as it was read."""

    node: int
    rank: int | None
    line: bytes = b""
    tail: bytes = b""
    raised: bool = False


@dataclass
class Detector:
    """Follows a run's logs and nodes, and names what goes wrong.

    Args:
        devices_per_node: Ranks of each node.
        total_steps: Steps that the run is to have.
        limits: When waiting turns into a fault.
        started: Clock reading at the start, in seconds.
        memory_advice: How the plan may be shrunk, for an out-of-memory fault.
    """

    devices_per_node: int
    total_steps: int
    limits: Limits
    started: float
    memory_advice: str = ""
    last_step: int | None = None
    _last_time: float = 0.0
    _intervals: deque[float] = field(default_factory=lambda: deque(maxlen=MEDIAN_STEPS))
    _nan_steps: int = 0
    _logging: _Log = field(default_factory=lambda: _Log(0, None))
    _logs: dict[str, _Log] = field(default_factory=dict)
    _failed: dict[int, int] = field(default_factory=dict)
    _trouble: float | None = None
    _looked: float = 0.0

    def __post_init__(self) -> None:
        self._pace = Pace(self.devices_per_node, self.limits.slow_samples)

    def feed(self, name: str, data: bytes, now: float) -> list[Step]:
        """Take what was appended to a log.

        Args:
            name: Such as logs/node1/rank9.log, logs/node0/agent.log or environment/telemetry-node0.csv.
            data: The new bytes, in any pieces.
            now: Clock reading, in seconds.

        Returns:
            The steps in the lines that are now complete.
        """
        if record := RECORD.fullmatch(name):
            kind, number = record.groups()
            if kind == "rank":
                self._pace.record(int(number), data)
            else:
                self._pace.telemetry(int(number), data, self._is_training)
            return []
        log = self._logs.get(name) or self._logs.setdefault(name, _Log(*_whose(name)))
        log.tail = (log.tail + data)[-TAIL_BYTES:]
        text = log.line + data
        complete = text[: text.rfind(b"\n") + 1]
        log.line = text[len(complete) :][-MAX_LINE_BYTES:]
        if log.rank is None:
            for match in WORKER_FAILED.finditer(complete):
                self._fail(log.node * self.devices_per_node + int(match[2]), int(match[1]), now)
            return []
        self._pace.hear(log.node, complete)
        if RAISED.search(complete):
            log.raised = True
            self._note_trouble(now)
        return self._read_steps(log, complete, now)

    def _read_steps(self, log: _Log, lines: bytes, now: float) -> list[Step]:
        steps = []
        for match in STEP_OR_SKIP.finditer(lines):
            self._logging = log
            if match["skip"]:
                self._nan_steps += match["skip"] != b"Overflow"
                self._last_time = now  # no stall: the training goes on
                continue
            try:
                loss, mean_loss = (float(match[name] or match["loss"]) for name in ("loss", "mean_loss"))
                steps.append(Step(int(match["step"]), loss, float(match["tgs"]), mean_loss))
            except ValueError:
                continue
            self._nan_steps = 0 if math.isfinite(steps[-1].loss) else self._nan_steps + 1
        if steps:
            if self.last_step is not None:
                self._intervals.append((now - self._last_time) / len(steps))
            self.last_step, self._last_time = steps[-1].step, now
        return steps

    def look(self, now: float, nodes: Mapping[int, NodeView]) -> Fault | None:
        """Name what ended the run, or what it has to be ended for.

        Args:
            now: Clock reading, in seconds.
            nodes: Every node that takes part, by index.

        Returns:
            The fault that the others follow from; None while all is well, and while it cannot be told yet.
        """
        over = all(view.exit_code is not None for view in nodes.values())
        if interrupted := [node for node, view in sorted(nodes.items()) if view.interrupted]:
            return self._interrupted(interrupted, now, nodes)
        if any(view.exit_code for view in nodes.values()):
            self._note_trouble(now)
        if self._trouble is not None:
            if over or now - self._trouble >= SETTLE_SECONDS:
                return self._incident(now, nodes)
            return None
        found = self._full_disk(now, nodes) or self._disk_error(now, nodes) or self._nan(now, nodes)
        return found or (None if over else self._waiting(now, nodes))

    def slow(self, now: float, nodes: Mapping[int, NodeView]) -> list[Fault]:
        """Name the ranks that are slower than the rest; the run goes on.

        Args:
            now: Clock reading, in seconds.
            nodes: Every node that takes part, by index.

        Returns:
            Each such rank or device once for each signal that tells it.
        """
        if now - self._looked < LOOK_SECONDS:
            return []
        self._looked = now
        if self._is_training:
            for view in nodes.values():
                self._pace.threads(dict.fromkeys(view.waiting, True) | dict.fromkeys(view.working, False))
        return [self._slow_fault(one, now, nodes) for one in self._pace.slow()]

    def _slow_fault(self, one: Slow, now: float, nodes: Mapping[int, NodeView]) -> Fault:
        host = nodes[one.node].host if one.node in nodes else ""
        who = [f"Rank {one.rank}"] * (one.rank is not None) + [f"device {one.device}"] * bool(one.device)
        text = f"{', '.join(who).capitalize()} on {host} (node {one.node}) {one.text}"
        return self._fault("slow-rank", text, one.next_step, now, one.node, host, one.rank)

    @property
    def _is_training(self) -> bool:
        """Whether what is seen now is steps: not the start, whose ranks load data and compile alone, nor the end."""
        return self.last_step is not None and 0 < self.last_step < self.total_steps - 1

    @property
    def stall_seconds(self) -> float:
        """Time without a step, in seconds, that counts as a stall now."""
        if self.last_step is None:
            return self.limits.start_seconds
        if not self._intervals:
            return max(self.limits.start_seconds, self.limits.stall_floor_seconds)
        return max(self.limits.stall_floor_seconds, self.limits.stall_factor * statistics.median(self._intervals))

    def explained(self, fault: Fault, nodes: Mapping[int, NodeView]) -> Fault:
        """Add to a hung run's fault what the stacks tell that its ranks have written since.

        Args:
            fault: The fault.
            nodes: Every node that takes part, by index, as it was when the fault was found.

        Returns:
            The fault; of a stall with the rank that is held up, where stacks or threads tell it.
        """
        frames = {
            log.rank: frame
            for log in self._logs.values()
            if log.rank is not None and (frame := stacks.newest_frame(log.tail))
        }
        message = fault.message + stacks.describe(frames)
        held_up = stacks.elsewhere(frames) or _working(nodes)
        if fault.kind != "stall" or fault.rank is not None or not held_up:
            return replace(fault, message=message)
        rank, others = held_up[0], len(held_up) - 1
        node, host = self._place(rank, nodes)
        where = f" in {frames[rank]}" if rank in frames else ""
        also = f", like {others} more," if others else ""
        told = f"Rank {rank} on {host} (node {node}){also} is held up{where} while the others wait. {message}"
        return replace(fault, message=told, node=node, host=host, rank=rank)

    def _place(self, rank: int, nodes: Mapping[int, NodeView]) -> tuple[int, str]:
        """Node and host of a rank."""
        node = next((log.node for log in self._logs.values() if log.rank == rank), rank // self.devices_per_node)
        return node, nodes[node].host if node in nodes else ""

    def _fail(self, rank: int, exit_code: int, now: float) -> None:
        self._failed.setdefault(rank, exit_code)
        self._note_trouble(now)

    def _note_trouble(self, now: float) -> None:
        if self._trouble is None:
            self._trouble = now

    def _fault(
        self, kind: str, text: str, next_step: str, now: float, node: int | None = None, host: str = "",
        rank: int | None = None,
    ) -> Fault:  # fmt: skip
        progress = "before the first step" if self.last_step is None else f"last good step: {self.last_step}"
        return Fault(kind, f"{text}; {progress}.", next_step, node, host, rank, self.last_step, now - self.started)

    def _incident(self, now: float, nodes: Mapping[int, NodeView]) -> Fault | None:
        """Of all that was raised and all that died, the one that the others follow from."""
        errors = {log.rank: _last_error(log.tail) for log in self._logs.values() if log.rank is not None}
        ranks = sorted(
            {log.rank for log in self._logs.values() if log.raised and log.rank is not None} | {*self._failed}
        )

        def order(rank: int) -> tuple[int, int]:
            error, code = errors.get(rank, ""), self._failed.get(rank, 0)
            ended = code == -signal.SIGTERM  # torchrun ends the others with it
            # A rank whose peer has died aborts itself, or raises: what it says of the connection comes last.
            killed = code < 0 and not ended and code != -signal.SIGABRT
            alone = not PEER.search(error)
            raised = alone and not ended and error != ""
            causes = (OUT_OF_MEMORY.search(error), NO_SPACE.search(error), killed, raised, alone and not ended, alone)
            return next((place for place, true in enumerate(causes) if true), len(causes)), rank

        suffering = {self._place(rank, nodes)[0] for rank in ranks if PEER.search(errors.get(rank, ""))}
        if all(PEER.search(errors.get(rank, "")) and self._failed.get(rank, 0) >= 0 for rank in ranks):
            # Nobody has a cause of his own to tell: look for the node that they lost.
            fault = self._node_gone(now, nodes, suffering) or self._node_ended(now, nodes, suffering)
            if fault or not ranks:
                return fault
        rank = min(ranks, key=order)
        node, host = self._place(rank, nodes)
        return self._rank_fault(rank, node, host, errors.get(rank, ""), len(ranks) - 1, now)

    def _rank_fault(self, rank: int, node: int, host: str, error: str, others: int, now: float) -> Fault:
        where = f"Rank {rank} on {host} (node {node})"
        also = f", and {others} other rank{'s' if others > 1 else ''} after it" if others else ""
        code, log = self._failed.get(rank), f"logs/node{node}/rank{rank}.log"
        place = (now, node, host, rank)
        if OUT_OF_MEMORY.search(error):
            advice = self.memory_advice or "Take a smaller micro_bsz, more tensor parallelism or checkpoint=true."
            return self._fault("out-of-memory", f"{where} ran out of memory: {error}{also}", advice, *place)
        if NO_SPACE.search(error):
            step = "Free space on that node or choose another --run-dir."
            return self._fault("full-disk", f"{where} found its disk full: {error}{also}", step, *place)
        if code is not None and code < 0:
            name = _signal_name(-code)
            hint = "dmesg on that host says whether the kernel ended it for want of memory. " if code == -9 else ""
            return self._fault("rank-died", f"{where} was killed by {name}{also}", f"{hint}See {log}.", *place)
        if error and code is None:
            text = f"{where} raised {error} and InternEvo ended it with exit code 0{also}"
            return self._fault("exception", text, f"The traceback is in {log}.", *place)
        text = f"{where} died with exit code {code}" + (f": {error}" if error else "") + also
        return self._fault("rank-died", text, f"Its last words are in {log}.", *place)

    def _interrupted(self, found: list[int], now: float, nodes: Mapping[int, NodeView]) -> Fault:
        node, host = found[0], nodes[found[0]].host
        also = f", and {len(found) - 1} more" if len(found) > 1 else ""
        text = f"{host} (node {node}){also} was told to end by a signal (Ctrl-C, a preemption or kill)"
        return self._fault("node-ended", text, "Ask the scheduler of that node why.", now, node, host)

    def _node_gone(self, now: float, nodes: Mapping[int, NodeView], but: set[int]) -> Fault | None:
        """A node that fell silent when the others lost it."""
        for node, view in sorted(nodes.items()):
            if node not in but and view.exit_code is None and view.silent_seconds >= SILENT_SECONDS:
                return self._lost_node(node, view, now)
        return None

    def _node_ended(self, now: float, nodes: Mapping[int, NodeView], but: set[int]) -> Fault | None:
        """torchrun itself failed: a port, a rendezvous, an import; or somebody ended it."""
        for node, view in sorted(nodes.items()):
            if view.exit_code and node not in but:
                log = f"logs/node{node}/agent.log"
                error = _last_error(self._logs[log].tail) if log in self._logs else ""
                how = f"was killed by {_signal_name(-view.exit_code)}" if view.exit_code < 0 else ""
                how = how or f"ended with exit code {view.exit_code}"
                text = f"torchrun on {view.host} (node {node}) {how}"
                told = f"{text}: {error}" if error else text
                return self._fault("node-ended", told, f"See {log}.", now, node, view.host)
        return None

    def told_to_end(self, now: float, by: str) -> Fault:
        """What to show when a run is ended because somebody asked for it; no fault of the run.

        Args:
            now: Clock reading, in seconds.
            by: Name of the signal; empty where a rehearsal ends an attempt on purpose.

        Returns:
            What to show.
        """
        text = f"The run was told to end by {by}" if by else "The rehearsal ends this attempt on purpose"
        step = "It is ended on every node, judged and signed as interrupted; a further signal changes nothing."
        return self._fault("interrupted", text, step, now)

    def disk_full(self, now: float, host: str, error: str) -> Fault:
        """The fault of a disk on which nothing could be written any more.

        Args:
            now: Clock reading, in seconds.
            host: Name of node 0, which found it.
            error: What it answered; a quota may be used up where there is space.

        Returns:
            The fault.
        """
        text = f"The disk of the run directory on {host} (node 0) is full: {error}"
        return self._fault("full-disk", text, "Free space there or choose another --run-dir.", now, 0, host)

    def disk_error(self, now: float, node: int, host: str, seconds: float, error: str) -> Fault | None:
        """The fault of a file system that refuses to work, as one over the network may for a moment.

        Args:
            now: Clock reading, in seconds.
            node: Index of the node that finds it so.
            host: Its name.
            seconds: Since when.
            error: What it answers.

        Returns:
            The fault; None while it may pass.
        """
        if not error or seconds < self.limits.lost_node_seconds:
            return None
        text = f"The file system of the run directory on {host} (node {node}) has failed for {seconds:.0f} s: {error}"
        step = "See that it is mounted there and that its server answers, or choose another --run-dir."
        return self._fault("disk-error", text, step, now, node, host)

    def _disk_error(self, now: float, nodes: Mapping[int, NodeView]) -> Fault | None:
        found = [
            self.disk_error(now, node, view.host, view.disk_seconds, view.disk_error)
            for node, view in sorted(nodes.items())
        ]
        return next(filter(None, found), None)

    def _full_disk(self, now: float, nodes: Mapping[int, NodeView]) -> Fault | None:
        for node, view in sorted(nodes.items()):
            if view.free_bytes < self.limits.min_free_bytes:
                text = (
                    f"The disk of the run directory on {view.host} (node {node}) has {view.free_bytes >> 20} MiB free, "
                    f"less than the {self.limits.min_free_bytes >> 20} MiB that the evidence needs"
                )
                step = "Free space on that node or choose another --run-dir."
                return self._fault("full-disk", text, step, now, node, view.host)
        return None

    def _nan(self, now: float, nodes: Mapping[int, NodeView]) -> Fault | None:
        if self._nan_steps < NAN_STEPS:
            return None
        log = self._logging
        host = nodes[log.node].host if log.node in nodes else ""
        text = (
            f"The loss or its gradients have not been finite numbers for {self._nan_steps} steps in a row, "
            f"by rank {log.rank} on {host} (node {log.node}), which logs for all"
        )
        step = "Compare the device's numerics in the preflight suite; look for an overflow in the rank logs."
        return self._fault("nan-loss", text, step, now, log.node, host, log.rank)

    def _waiting(self, now: float, nodes: Mapping[int, NodeView]) -> Fault | None:
        for node, view in sorted(nodes.items()):
            # One whose ranks have ended has said its last word, and waits for the verdict.
            if view.exit_code is None and view.silent_seconds >= self.limits.lost_node_seconds:
                return self._lost_node(node, view, now)
        waited = now - max(self.started, self._last_time)
        if waited < self.stall_seconds:
            return None
        stopped = [(node, rank) for node, view in sorted(nodes.items()) for rank in view.stopped]
        ended = "the processes did not end" if self._is_done() else "no step"
        limit = f"{ended} for {waited:.0f} s (limit {self.stall_seconds:.0f} s: {self._limit_source()})"
        if stopped:
            node, rank = stopped[0]
            host = nodes[node].host
            text = f"Rank {rank} on {host} (node {node}) is stopped by a signal (SIGSTOP), {limit}"
            return self._fault("stall", text, "Find out who stopped it.", now, node, host, rank)
        step = (
            "The stacks of the hung ranks stand at the end of the rank logs: the rank that is elsewhere is the cause."
        )
        return self._fault("stall", f"The run stands still, {limit}", step, now)

    def _lost_node(self, node: int, view: NodeView, now: float) -> Fault:
        text = f"{view.host} (node {node}) has not been heard of for {view.silent_seconds:.0f} s"
        step = "Look for a lost link, a crash or a reboot of that host."
        return self._fault("lost-node", text, step, now, node, view.host)

    def _is_done(self) -> bool:
        return self.last_step is not None and self.last_step + 1 >= self.total_steps

    def _limit_source(self) -> str:
        if not self._intervals:
            return "for the start" if self.last_step is None else "before a step time is known"
        if self.stall_seconds == self.limits.stall_floor_seconds:
            return "the least for a stall"
        return f"{self.limits.stall_factor:g} times the median step time"


def _whose(name: str) -> tuple[int, int | None]:
    """Node and rank of a log by its name; no rank for torchrun's own."""
    match = re.search(r"node(\d{1,6})/(?:rank(\d{1,7}))?", name)
    return (int(match[1]), int(match[2]) if match[2] else None) if match else (0, None)


def _last_error(tail: bytes) -> str:
    found = ERROR_LINE.findall(tail)
    return found[-1].decode("utf-8", "replace").strip().rstrip(".")[:MAX_ERROR_TEXT] if found else ""


def _working(nodes: Mapping[int, NodeView]) -> list[int]:
    """The ranks that work while the others wait; none where that is no minority."""
    working = sorted(rank for view in nodes.values() for rank in view.working)
    waiting = [rank for view in nodes.values() for rank in view.waiting]
    return working if len(working) <= len(waiting) else []


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
