"""Mutation testing: change one operator or number of the source, run the tests that mirror it, demand a failure.

    python suites/selftest/benchmarks/mutate.py metrics --sample 60 --seed 1

Works on a copy of the project; the sample is drawn with the seed from all mutants of the part, and hypothesis in the
tests draws with it too. Prints every survivor with its line, for somebody to read, and the score. A mutant that makes
the tests hang is told apart: nothing failed, so it is no kill until somebody has read it.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TESTS = "suites/selftest"
# Part: its source below conformance/, and the tests that mirror it.
PARTS = {
    "metrics": ("metrics", [f"{TESTS}/metrics", f"{TESTS}/test_analysis.py", f"{TESTS}/checks"]),
    "checks": (
        "checks",
        [f"{TESTS}/checks", f"{TESTS}/test_judgement.py", f"{TESTS}/selftest", f"{TESTS}/test_peer_failures.py"],
    ),
    "plan": ("plan.py", [f"{TESTS}/test_plan.py", f"{TESTS}/internevo/test_reference_config.py"]),
    "bundle": ("bundle", [f"{TESTS}/bundle", f"{TESTS}/commands"]),
}
FOLDERS = ("conformance", "suites", "fixtures", "reference_logs", "docs", "reports/example")
FILES = ("pyproject.toml", "conftest.py", "README.md")
COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
COMPUTED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
JOINED = {ast.And: ast.Or, ast.Or: ast.And}
LIMIT_SECONDS = 300


def sites(tree: ast.AST) -> Iterator[tuple[ast.AST, int]]:
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


def mutate(node: ast.AST, place: int) -> None:
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
    source, tests = PARTS[args.part]
    path = ROOT / "conformance" / source
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    every = [(file, at) for file in files for at in range(len(list(sites(ast.parse(file.read_text())))))]
    drawn = random.Random(args.seed).sample(every, len(every))[: args.sample]  # A larger sample contains a smaller one.
    told = {"survived": 0, "hung": 0}
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        copy = Path(folder)
        for name in FOLDERS:
            shutil.copytree(ROOT / name, copy / name)
        for name in FILES:
            shutil.copyfile(ROOT / name, copy / name)
        if (without := _outcome(copy, tests, args.seed)) != "survived":
            raise SystemExit(f"Without a mutant the tests should pass; the outcome was: {without}.")
        for number, (file, at) in enumerate(drawn, 1):
            original = file.read_text()
            tree = ast.parse(original)
            node, place = list(sites(tree))[at]
            before = ast.unparse(node)
            mutate(node, place)
            mutant = copy / file.relative_to(ROOT)
            mutant.write_text(ast.unparse(tree))
            outcome = _outcome(copy, _mirror_first(file, tests), args.seed)
            if outcome in told:
                told[outcome] += 1
                where = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
                print(f"{outcome}: {where}: {before}  ->  {ast.unparse(node)}", flush=True)
            mutant.write_text(original)
            print(f"{number} of {len(drawn)}, {told}", end="\r", file=sys.stderr)
    left = sum(told.values())
    print(
        f"{args.part}: {len(drawn)} of {len(every)} mutants, seed {args.seed}: {len(drawn) - left} killed, "
        f"{told['survived']} survived, {told['hung']} hung"
    )
    return int(left > 0)


def _mirror_first(file: Path, tests: list[str]) -> list[str]:
    """Test files of the part, the one that mirrors the mutated module or its folder ahead: most mutants fall there."""
    found = [one for name in tests for one in sorted((ROOT / name).rglob("test_*.py")) or [ROOT / name]]
    mirrors = (f"test_{file.stem}", f"test_{file.parent.name}")
    return [str(one.relative_to(ROOT)) for one in sorted(found, key=lambda one: one.stem not in mirrors)]


def _outcome(copy: Path, tests: list[str], seed: int) -> str:
    """Run the tests on the copy: ``killed`` when one fails, ``survived``, or ``hung`` at the time limit."""
    command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", f"--hypothesis-seed={seed}"]
    command += ["-m", "not slow", *tests]
    # Ahead of an installed suite, which an editable one is.
    variables = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=copy, env=variables, capture_output=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return "hung"
    return "survived" if done.returncode == 0 else "killed"


if __name__ == "__main__":
    raise SystemExit(main())
