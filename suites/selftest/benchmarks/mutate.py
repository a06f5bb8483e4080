"""Mutation testing: change one operator or number of the source, run the tests that mirror it, demand a failure.

    python suites/selftest/benchmarks/mutate.py metrics --sample 60 --seed 1

Works on a copy of the last commit; the sample is drawn with the seed from all mutants of the part. The tests that
mirror the part run once under a trace. A mutant then meets the tests that execute its statement, the quick ones first,
until one fails. Where none does, as for a statement that runs on import or in a process that a test starts, it meets
all tests of the part: a survivor has passed every one. Prints the survivors, for somebody to read, and the score. Two
outcomes are told apart, and are no kill until somebody has read them: ``hung``, where nothing failed in time, and
``broke``, where pytest itself came to no result.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
# Part: its source below conformance/, and the tests that mirror it, below suites/selftest/.
PARTS = {
    "metrics": ("metrics", "metrics checks test_analysis.py test_until_target.py"),
    "checks": (
        "checks",
        "checks selftest test_analysis.py test_judgement.py test_peer_failures.py test_until_target.py "
        "test_untrue_losses.py",
    ),
    "plan": ("plan.py", "test_plan.py internevo/test_reference_config.py"),
    "bundle": ("bundle", "bundle commands"),
}
COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
COMPUTED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
JOINED = {ast.And: ast.Or, ast.Or: ast.And}
OPTIONS = ("-qx", "-m", "not slow and not long", "--hypothesis-profile=ci", "-p", "no:cacheprovider")
LIMIT_SECONDS = 60  # And what the tests took without a mutant, under the trace, which is several times as long.
LIMIT_BYTES = 16 << 30  # Address space: a loop that a mutant made endless may collect.


def sites(tree: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, int]]:
    """Places where a mutant can be made: a node, and which of its operators.

    Args:
        tree: A module.

    Yields:
        Node and index.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            yield from ((node, place) for place, one in enumerate(node.ops) if type(one) in COMPARED)
        elif (
            (isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in COMPUTED)
            or isinstance(node, ast.BoolOp)
            or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))
            or (isinstance(node, ast.Constant) and type(node.value) in (int, float, bool))
        ):
            yield node, 0


def mutate(node: ast.expr | ast.stmt, place: int) -> None:
    """Make a mutant in place."""
    if isinstance(node, ast.Compare):
        node.ops[place] = COMPARED[type(node.ops[place])]()
    elif isinstance(node, (ast.BinOp, ast.AugAssign)):
        node.op = COMPUTED[type(node.op)]()
    elif isinstance(node, ast.BoolOp):
        node.op = JOINED[type(node.op)]()
    elif isinstance(node, ast.UnaryOp):
        node.op, node.operand = ast.Not(), ast.UnaryOp(ast.Not(), node.operand)
    elif isinstance(node, ast.Constant):
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1


@dataclass
class Test:
    """What a test did without a mutant.

    Args:
        seconds: How long it took, under the trace.
        lines: Lines of the copy that it executed in this process: file and number.
    """

    seconds: float = 0
    lines: set[tuple[str, int]] = field(default_factory=set)


def main() -> int:
    """Draw, run, print.

    Returns:
        0 when a test failed on every mutant of the sample, else 1.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--sample", type=int, default=40, metavar="N", help="mutants to try (default: 40)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="seed of the sample (default: 1)")
    args = parser.parse_args()
    source, names = PARTS[args.part]
    tests = [f"suites/selftest/{name}" for name in names.split()]
    told = {"killed": 0, "survived": 0, "hung": 0, "broke": 0}
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        copy = Path(folder) / "project"
        copy.mkdir()
        subprocess.run(f"git archive HEAD | tar -x -C {copy}", shell=True, check=True, cwd=ROOT)
        path = copy / "conformance" / source
        files = [path] if path.is_file() else sorted(path.rglob("*.py"))
        every = [(file, at) for file in files for at in range(len(list(sites(ast.parse(file.read_text())))))]
        # A larger sample contains a smaller one.
        drawn = random.Random(args.seed).sample(every, len(every))[: args.sample]
        known = trace_tests(copy, tests)
        for number, (file, at) in enumerate(drawn, 1):
            outcome, what = try_mutant(copy, file, at, tests, known)
            told[outcome] += 1
            if outcome != "killed":
                print(f"{outcome}: {what}", flush=True)
            print(f"{number} of {len(drawn)}, {told}", end="\r", file=sys.stderr)
    score = ", ".join(f"{number} {outcome}" for outcome, number in told.items())
    print(f"{args.part}: {len(drawn)} of {len(every)} mutants, seed {args.seed}: {score}")
    return int(told["killed"] < len(drawn))


def trace_tests(copy: Path, tests: list[str]) -> dict[str, Test]:
    """Run the tests without a mutant.

    Args:
        copy: The copy of the project, which from here on stands before an installed suite.
        tests: Their files and folders.

    Returns:
        Test by its node id.

    Raises:
        SystemExit: One failed.
    """
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    os.environ["PYTHONPATH"] = str(copy)
    # Of a mutant no bytecode: the next one of the same second and size would be taken for it.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    trace = Trace(f"{copy}/conformance/")
    if pytest.main([*OPTIONS, *tests], plugins=[trace]):
        raise SystemExit("Without a mutant the tests should pass.")
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    return trace.tests


class Trace:
    """A pytest plugin that notes what each test does."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.tests: dict[str, Test] = defaultdict(Test)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """One test, with the fixtures that are set up for it."""
        lines = self.tests[item.nodeid].lines

        def step(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
            lines.add((frame.f_code.co_filename, frame.f_lineno))
            return step

        def enter(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
            return step if frame.f_code.co_filename.startswith(self.source) else None

        sys.settrace(enter)
        try:
            return (yield)
        finally:
            sys.settrace(None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Its time: setting up, the test, taking down."""
        self.tests[report.nodeid].seconds += report.duration


def try_mutant(copy: Path, file: Path, at: int, tests: list[str], known: dict[str, Test]) -> tuple[str, str]:
    """Make a mutant, run the tests, take it back.

    Args:
        copy: The copy of the project.
        file: A module of it.
        at: Which of its sites.
        tests: Files and folders of the part's tests.
        known: These tests.

    Returns:
        ``killed``, ``survived``, ``hung`` or ``broke``, and the mutant for a reader.
    """
    original = file.read_text()
    tree = ast.parse(original)
    node, place = list(sites(tree))[at]
    lines = {(str(file), line) for line in statement_lines(tree, node)}
    before = ast.unparse(node)
    mutate(node, place)
    file.write_text(ast.unparse(tree))
    executing = sorted((one for one in known if lines & known[one].lines), key=lambda one: known[one].seconds)
    outcome = run_tests(copy, executing, sum(known[one].seconds for one in executing)) if executing else ""
    if outcome not in ("killed", "hung"):
        outcome = run_tests(copy, tests, sum(test.seconds for test in known.values()))
    file.write_text(original)
    return outcome, f"{file.relative_to(copy)}:{node.lineno}: {before}  ->  {ast.unparse(node)}"


def statement_lines(tree: ast.Module, node: ast.expr | ast.stmt) -> range:
    """Lines by which a trace shows that a function executes the node; none where that happens on import."""
    above = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    chain: list[ast.AST] = [node]
    while chain[-1] is not tree:
        chain.append(above[chain[-1]])
    first, statement = next((place, one) for place, one in enumerate(chain) if isinstance(one, ast.stmt))
    if not any(isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef)) for one in chain[first + 1 :]):
        return range(0)
    return range(statement.lineno, (node.end_lineno or node.lineno) + 1)


def run_tests(copy: Path, tests: list[str], seconds: float) -> str:
    """Run tests on the copy until one fails.

    Args:
        copy: The copy of the project.
        tests: Their files, folders or node ids.
        seconds: How long they took under the trace.

    Returns:
        ``survived`` where all passed, ``killed`` where one failed or could not be collected, ``hung``, or ``broke``.
    """
    command = [sys.executable, "-m", "pytest", *OPTIONS, f"--basetemp={copy.parent}/tmp", *tests]
    null = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=copy, stdin=null, stdout=null, stderr=null, start_new_session=True)
    try:
        code = process.wait(LIMIT_SECONDS + seconds)
    except subprocess.TimeoutExpired:
        return "hung"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # Whatever it started, too.
        process.wait()
    return {0: "survived", 1: "killed", 2: "killed"}.get(code, "broke")


if __name__ == "__main__":
    raise SystemExit(main())
