"""What a preflight measured, and how a judgement of it is worded."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conformance.checks.finding import Finding, Result

Record = Mapping[str, Any]
EVIDENCE = "environment/"
GIB = 1 << 30
# What one rounding to nearest is taken for, relative. Of fp16, fp32 and fp64 it is the largest error (unit roundoff,
# IEEE 754); of bf16, whose 8 significant bits make that 2^-8, half of it: errors are judged as norms over many
# elements, and the root mean square of a rounding is about 0.4 of the largest.
ROUNDOFF = {"bfloat16": 2.0**-9, "float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53, "int64": 0.0}


@dataclass(frozen=True)
class Preflight:
    """Everything that was measured.

    Args:
        setup: environment/preflight.json: device, backend, nodes, ranks, rehearsal, seed, workload.
        tasks: What the processes of each task wrote, by task.
        expected: Known figures of devices, as in spec/expected.toml.
    """

    setup: Record
    tasks: Mapping[str, Sequence[Record]]
    expected: Sequence[Record] = ()

    @property
    def shared(self) -> bool:
        """Whether all ranks share one processor, so that their speeds say nothing about each other."""
        return bool(self.setup["backend"] == "gloo")

    def records(self, kind: str) -> list[tuple[Record, Record]]:
        """Every record of a kind, with the process that wrote it.

        Args:
            kind: What was measured.

        Returns:
            Pairs (process, record), in the order of ranks.
        """
        return [
            (process, record)
            for processes in self.tasks.values()
            for process in processes
            for record in process["records"]
            if record["kind"] == kind
        ]

    def where(self, process: Record) -> str:
        """How a process is named to people.

        Args:
            process: What it wrote.

        Returns:
            For example "rank 3 (device 3 of node-a)".
        """
        for record in process["records"]:
            if record["kind"] == "process":
                return f"rank {process['rank']} (device {record['local_rank']} of {record['host']})"
        return f"rank {process['rank']}"


Check = Callable[[str, Preflight], Finding]


class Unmeasured(Exception):  # noqa: N818  a result, not an error
    """Nothing was measured that the check could judge: ERROR."""


class Silent(Exception):  # noqa: N818  a result, not an error
    """The platform has no such figure: SKIP."""


def made(check: str, good: bool, message: str, **fields: Any) -> Finding:
    """The finding of a check that was made.

    Args:
        check: Id of the check.
        good: Whether it passes.
        message: What was measured, as a sentence.
        fields: Other fields of the finding.

    Returns:
        PASS or FAIL.
    """
    return Finding(check, Result.PASS if good else Result.FAIL, message, evidence=EVIDENCE, **fields)


def skip(check: str, message: str) -> Finding:
    """The finding of a check that says nothing here.

    Args:
        check: Id of the check.
        message: Why, as a sentence.

    Returns:
        SKIP.
    """
    return Finding(check, Result.SKIP, message, evidence=EVIDENCE)


def faultless(check: str, faults: Sequence[str], good: str, unit: str = "", source: str = "", **fields: Any) -> Finding:
    """The finding of a check that lists faults: PASS where there is none.

    Args:
        check: Id of the check.
        faults: Each fault, in words.
        good: What to say where there is none, without a full stop.
        unit: What the faults are faults of.
        source: Where the limit comes from.
        fields: Other fields of the finding, instead of the number of faults and the limit of none.

    Returns:
        PASS or FAIL.
    """
    told = {"value": float(len(faults)), "unit": unit, "limit": 0.0, "limit_source": source, **fields}
    return made(check, not faults, f"{'; '.join(faults) or good}.", **told)


def some(records: list[tuple[Record, Record]], what: str) -> list[tuple[Record, Record]]:
    """Demand that something was measured.

    Args:
        records: The records.
        what: What one of them is, in words.

    Returns:
        The records.

    Raises:
        Unmeasured: There is none.
    """
    if not records:
        raise Unmeasured(f"no {what} was written down")
    return records


def every(
    preflight: Preflight,
    kind: str,
    what: str,
    key: Callable[[Record], Hashable] = lambda record: "",
    of: str = "ranks",
    **where: Any,
) -> list[tuple[Record, Record]]:
    """Demand that every process measured what any of them did.

    Args:
        preflight: What was measured.
        kind: Kind of the records.
        what: What one of them is, in words.
        key: What tells one measurement of a process from its others.
        of: "ranks", or "nodes" for what one process a node measures.
        where: Values of the records that are meant.

    Returns:
        The records of that kind.

    Raises:
        Unmeasured: There is none, or one process lacks what another has.
    """
    meant = [pair for pair in preflight.records(kind) if all(pair[1][name] == value for name, value in where.items())]
    records = some(meant, what)
    told: dict[int, set[Hashable]] = {}
    for process, record in records:
        told.setdefault(process["rank"], set()).add(key(record))
    measured = set().union(*told.values())
    for rank in range(preflight.setup[of]):
        for lacking in sorted(measured - told.get(rank, set()), key=str):
            name = " ".join(map(str, lacking)) if isinstance(lacking, tuple) else str(lacking)
            raise Unmeasured(f"{of[:-1]} {rank} wrote down no {what} {name}".rstrip())
    return records


def low(value: Any) -> float:
    """A number to be compared by how low it is.

    Args:
        value: As for `number`.

    Returns:
        The number; what is none counts as the lowest, so that it is found.
    """
    found = number(value)
    return -math.inf if math.isnan(found) else found


def high(value: Any) -> float:
    """A number to be compared by how high it is.

    Args:
        value: As for `number`.

    Returns:
        The number; what is none counts as the highest, so that it is found.
    """
    return -low(-number(value))


def number(value: Any) -> float:
    """A number as the measuring process wrote it.

    Args:
        value: A number, or "nan", "inf", "-inf".

    Returns:
        The number; nan for anything else, which passes no limit.
    """
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
