"""The source's form: no module imports itself by a detour, and a long function is an exception with a reason."""

import ast
from pathlib import Path

import grimp
import pytest

import conformance

PACKAGE = Path(conformance.__file__).parent
MOST_LINES = 50  # of code: a docstring is no reason to split a function
LONG = {
    "options.declare": "one option after the other",
    "preflight.collectives._operations": "one table of collectives, and what its rows are made with",
    "launch.supervise.supervise": "one loop, in which the order of the steps is what matters",
}


def cycles(imports):
    """The modules that import themselves, directly or through others, of a graph of imports by importer."""
    reached = {module: set(others) for module, others in imports.items()}
    changed = True
    while changed:
        changed = False
        for found in reached.values():
            more = set().union(*(reached[other] for other in found)) - found
            found |= more
            changed |= bool(more)
    return {module for module, found in reached.items() if module in found}


def test_no_imports_go_in_a_circle():
    graph = grimp.build_graph("conformance", cache_dir=None)
    assert len(graph.modules) > 100
    assert cycles({module: graph.find_modules_directly_imported_by(module) for module in graph.modules}) == set()


@pytest.mark.parametrize(
    ("imports", "found"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}, {"a", "b", "c"}),
        ({"a": {"a"}}, {"a"}),
        ({"a": {"b", "c"}, "b": {"c"}, "c": set()}, set()),
    ],
)
def test_a_circle_is_found(imports, found):
    assert cycles(imports) == found


def lengths():
    """Lines of code of every function."""
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                told = node.body[0] if ast.get_docstring(node) is not None else None
                yield f"{module}.{node.name}", node.end_lineno - node.lineno + 1 - lines(told)


def lines(node):
    return 0 if node is None else node.end_lineno - node.lineno + 1


def test_functions_are_short_but_for_those_with_a_reason():
    assert {name for name, length in lengths() if length > MOST_LINES} == set(LONG)
