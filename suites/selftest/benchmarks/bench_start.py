"""How long one waits before anything happens, beside Python and pytest with nothing to do.

    python suites/selftest/benchmarks/bench_start.py [ROUNDS]

Each command runs once to warm the disk's cache and write bytecode, then ROUNDS times in turn with the others. Ends with
3 where the median of one is over its bar.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PYTEST = (sys.executable, "-m", "pytest", "--collect-only", "-q")
# Without what it is started with: a bar in seconds, and none for what only stands beside.
COMMANDS = {
    "python -c pass": ((sys.executable, "-c", "pass"), None),
    "conformance --help": ((str(Path(sys.executable).with_name("conformance")), "--help"), 0.3),
    "pytest --collect-only, one empty test": ((*PYTEST, "{empty}"), None),
    "pytest --collect-only suites": ((*PYTEST, "suites"), 2.0),
}


def seconds(command: tuple[str, ...], empty: Path) -> float:
    """Time one command, which must end well.

    Args:
        command: The command; ``{empty}`` stands for a test file without anything to do.
        empty: That file.

    Returns:
        Seconds by the clock.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    subprocess.run(
        [word.format(empty=empty) for word in command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - start


def main(rounds: int) -> int:
    """Time every command, and print the median and the range of each."""
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "test_nothing.py"
        empty.write_text("def test_nothing():\n    pass\n")
        for command, _ in COMMANDS.values():
            seconds(command, empty)
        taken = [{name: seconds(command, empty) for name, (command, _) in COMMANDS.items()} for _ in range(rounds)]
    missed = 0
    for name, (_, bar) in COMMANDS.items():
        values = [one[name] for one in taken]
        median = statistics.median(values)
        told = "" if bar is None else f", bar {bar:g} s"
        print(f"{name:<38}{median:>6.2f} s  ({min(values):.2f} to {max(values):.2f}{told})")
        missed += bar is not None and median > bar
    return 3 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 7))
