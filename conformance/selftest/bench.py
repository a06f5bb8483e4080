"""The matrix of checks against faults: what each fault turns red, and what is wrong with the suite if it does not."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.checks.finding import Finding, Result


@dataclass(frozen=True)
class Bench:
    """Something good that faults are injected into, and how it is judged.

    Args:
        name: What it is, for people.
        make: Makes a fresh one, in an empty folder.
        judge: Makes its findings.
    """

    name: str
    make: Callable[[Path], Any]
    judge: Callable[[Any], Sequence[Finding]]


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, or that somebody forges.

    Args:
        check: Id of the check that must go red for it.
        name: What goes wrong.
        bench: What it is injected into.
        inject: Injects it: changes what the bench made.
        also: Ids of checks that see it too, because it breaks what they look at as well.
        silences: Ids of checks that may come out otherwise without failing: not made any more, skipped or in error.
    """

    check: str
    name: str
    bench: Bench
    inject: Callable[[Any], object]
    also: frozenset[str] = frozenset()
    silences: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Trial:
    """What came of one fault.

    Args:
        fault: The fault.
        red: Ids of the checks that failed.
        silent: Ids of the other checks that came out otherwise than without the fault.
    """

    fault: Fault
    red: frozenset[str]
    silent: frozenset[str] = frozenset()

    @property
    def good(self) -> bool:
        """Whether its own check and those that it names went red, and no other result changed but as it says."""
        return self.red == self.fault.also | {self.fault.check} and self.silent <= self.fault.silences

    @property
    def alone(self) -> bool:
        """Whether its own check went red and no other did."""
        return self.red == {self.fault.check}


@dataclass(frozen=True)
class Matrix:
    """The whole proof.

    Args:
        green: Ids of the checks that passed on something good.
        trials: What came of every fault.
        problems: What is wrong with the suite, one sentence each; empty when all is well.
    """

    green: frozenset[str]
    trials: tuple[Trial, ...]
    problems: tuple[str, ...]


def run_matrix(faults: Sequence[Fault], checks: Collection[str]) -> Matrix:
    """Judge everything good, then everything with each fault in it.

    Args:
        faults: The faults.
        checks: Ids of all checks of the suite.

    Returns:
        The matrix. Its problems name every check that nothing turns red, that no fault turns red alone, or that never
        passed, every fault that is not seen or seen by others than it names, and everything good that failed.
    """
    green: set[str] = set()
    problems = [f"{check}: no fault is known that turns it red." for check in sorted(set(checks) - _checked(faults))]
    problems += [f"{check}: there is no such check." for check in sorted(_checked(faults) - set(checks))]
    for bench in dict.fromkeys(fault.bench for fault in faults):
        for finding in _judged(bench, lambda _: None):
            if finding.result is Result.PASS:
                green.add(finding.check)
            elif finding.result is not Result.SKIP:
                problems.append(f"{finding.check}: {finding.result.value} on the good {bench.name}: {finding.message}")
    problems += [f"{check}: it never passed, on nothing good." for check in sorted(_checked(faults) - green)]
    trials = tuple(try_fault(fault) for fault in faults)
    problems += [_otherwise(trial) for trial in trials if not trial.good]
    alone = {trial.fault.check for trial in trials if trial.alone}
    problems += [f"{check}: no fault turns it red alone." for check in sorted(_checked(faults) - alone)]
    return Matrix(frozenset(green), trials, tuple(problems))


def _otherwise(trial: Trial) -> str:
    """What came of a fault that was not to come."""
    fault, silent = trial.fault, sorted(trial.silent - trial.fault.silences)
    if silent:
        return f"{fault.check}, {fault.name}: changed {', '.join(silent)} too, which it does not name."
    expected, got = sorted({fault.check} | fault.also), ", ".join(sorted(trial.red)) or "nothing"
    return f"{fault.check}, {fault.name}: turned {got} red, expected {', '.join(expected)}."


def try_fault(fault: Fault) -> Trial:
    """Inject one fault into something fresh and judge it.

    Args:
        fault: The fault.

    Returns:
        What came of it.
    """
    good = _results(_judged(fault.bench, lambda _: None))
    found = _results(_judged(fault.bench, fault.inject))
    red = frozenset(check for check, results in found.items() if Result.FAIL in results)
    changed = {check for check in good.keys() | found.keys() if good.get(check) != found.get(check)}
    return Trial(fault, red, frozenset(changed - red))


def _results(findings: Sequence[Finding]) -> Mapping[str, list[Result]]:
    """The results by check, of every finding that it made."""
    results: dict[str, list[Result]] = {}
    for finding in findings:
        results.setdefault(finding.check, []).append(finding.result)
    return results


def _judged(bench: Bench, inject: Callable[[Any], object]) -> Sequence[Finding]:
    with tempfile.TemporaryDirectory(prefix="conformance-selftest-") as folder:
        subject = bench.make(Path(folder))
        inject(subject)
        return bench.judge(subject)


def _checked(faults: Iterable[Fault]) -> set[str]:
    return {fault.check for fault in faults}


def to_json(matrix: Matrix) -> Mapping[str, Any]:
    """The matrix as JSON.

    Args:
        matrix: The matrix.

    Returns:
        Plain values.
    """
    trials = [
        {
            "check": trial.fault.check,
            "fault": trial.fault.name,
            "bench": trial.fault.bench.name,
            "red": sorted(trial.red),
            "silent": sorted(trial.silent),
            "alone": trial.alone,
            "good": trial.good,
        }
        for trial in matrix.trials
    ]
    return {"green": sorted(matrix.green), "faults": trials, "problems": list(matrix.problems)}
