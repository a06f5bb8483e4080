"""A run under examination, and what the checks of its lines share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from conformance.checks.finding import Finding, Result
from conformance.internevo.log import LogHead, Refused, Steps
from conformance.metrics.facts import Facts
from conformance.plan import Plan
from conformance.spec import Workload
from conformance.spec.model import Optimizer

Bools = npt.NDArray[np.bool_]
Series = npt.NDArray[np.float64]

HALF_CENT = 0.005 + 1e-6  # InternEvo rounds its speeds to two decimals
HALF_DIGIT = 5e-5 + 1e-9  # and its metrics to four

RAW = "Give the log as the run wrote it; if it is, something in the run is not InternEvo's own."


@dataclass(frozen=True)
class Subject:
    """A run under examination.

    Args:
        steps: Its steps, each once, with column ``segment``: which process wrote them.
        head: What its log says before the first step.
        facts: What it was.
        plan: What it was planned to be.
        workload: The workload that it claims to be.
        refused: What of each of its segments cannot be read.
        overlaps: Steps that two segments both made, as pairs of tables of equal length: the earlier, the later.
        continued: Whether the first step continues a checkpoint whose own log is not here.
        heads: What each process that made steps says before its first; empty where ``head`` is the only one.
    """

    steps: Steps
    head: LogHead
    facts: Facts
    plan: Plan | None = None
    workload: Workload | None = None
    refused: tuple[Refused, ...] = ()
    overlaps: tuple[tuple[Steps, Steps], ...] = ()
    continued: bool = False
    heads: tuple[LogHead, ...] = ()

    @property
    def optimizer(self) -> Optimizer | None:
        """Optimisation settings that were asked for; None where nothing was."""
        return self.workload.optimizer if self.workload is not None else None

    def has(self, *columns: str) -> bool:
        """Tell whether the log has steps, and all these columns.

        Args:
            columns: Names of columns.
        """
        return len(self.steps) > 0 and all(column in self.steps for column in columns)

    def column(self, name: str) -> Series:
        """Give one column, shape (n,).

        Args:
            name: Its name.
        """
        return np.asarray(self.steps[name], dtype=np.float64)

    def columns(self, prefix: str) -> list[str]:
        """Name the columns that belong to one figure, such as ``acc/en`` and ``acc/cn`` to ``acc/``.

        Args:
            prefix: What they begin with.
        """
        return [name for name in self.steps if name.startswith(prefix)]

    def where(self, bad: Callable[[Subject], Bools]) -> Bools:
        """Tell which steps are bad, each by its own line.

        Args:
            bad: Tells it of a few thousand of them.

        Returns:
            Shape (n,).
        """
        found = [bad(replace(self, steps=part)) for part in self.steps.parts()]
        return np.concatenate([np.zeros(0, np.bool_), *found])

    def step_seconds(self) -> Series | None:
        """Give the time of each step by its TGS, in s, shape (n,); None where tokens or cards are not known."""
        tokens = self.facts.tokens_per_card
        return None if tokens is None else np.asarray(tokens / self.column("tgs"))


def judge(
    check: str, subject: Subject, bad: Bools, relation: str, why: str, values: tuple[Series, Series] | None = None
) -> Finding:
    """Make the finding of a relation that every step must obey.

    Args:
        check: Id of the check.
        subject: The run.
        bad: Where the relation does not hold, shape (n,).
        relation: The relation in words, without a full stop.
        why: Why it holds in every honest log, and so where its tolerance comes from.
        values: What was logged and what was expected, each of shape (n,), to be shown for the first bad step.

    Returns:
        PASS where no step is bad; else FAIL, naming the first.
    """
    if not bad.any():
        return Finding(check, Result.PASS, f"At all {len(bad)} steps {relation}.", 0.0, "steps", 0.0, why)
    index = int(np.argmax(bad))
    place = f"first at step {subject.steps['step'][index]}, line {subject.steps['line'][index]}"
    if values is not None:
        place += f": {values[0][index]:.10g}, expected {values[1][index]:.10g}"
    message = f"At {int(bad.sum())} of {len(bad)} steps it is not so that {relation}; {place}."
    return Finding(check, Result.FAIL, message, float(bad.sum()), "steps", 0.0, why, next_step=RAW)


def skip(check: str, why: str) -> Finding:
    """Make the finding of a check that the log does not carry what it needs.

    Args:
        check: Id of the check.
        why: What is missing.

    Returns:
        SKIP.
    """
    return Finding(check, Result.SKIP, why)


def apart(a: Series, b: Series | float, tolerance: Series | float) -> Bools:
    """Tell where two series differ by more than a tolerance.

    Args:
        a: Shape (n,).
        b: Shape (n,), or one value.
        tolerance: Shape (n,), or one value.

    Returns:
        Shape (n,); two undefined values, and two equal infinite ones, do not differ.
    """
    a, b = np.broadcast_arrays(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))
    result: Bools = ~(np.abs(a - b) <= tolerance) & ~(np.isnan(a) & np.isnan(b)) & ~(a == b)
    return result
