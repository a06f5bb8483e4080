"""Analysing a long log: the whole analysis, verdict included, beside regular expressions that go line by line.

Run as ``python suites/selftest/benchmarks/bench_log.py [STEPS]``; 200000 steps when not said otherwise. Each way runs
in its own process on one core, in three rounds that take turns, and the best round counts. The log obeys every relation
of real ones, so that no check ends early. Two further tables read a log that has nothing but lines of NCCL, and one
with eight of them after each step: how fast lines are passed over that say nothing.
"""

from __future__ import annotations

import os
import random
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

ROUNDS = 3
ROOT = Path(__file__).resolve().parents[3]
TYPES = ("cn", "en", "code", "ja", "ar", "kaoshi")

MEASURE = """
import sys, time
begin = time.process_time(), time.perf_counter()
found = work(sys.argv[1])
cpu, wall = time.process_time() - begin[0], time.perf_counter() - begin[1]
peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
print(cpu, wall, peak, found, sep="\\t")
"""
# The plain way: one pattern for the whole line with a group for every field, every group a float, every line a list.
SEARCH = r"""
import re
VALUE = re.compile(r"(?<==)[-+.0-9aefin]+|(?<=: )[-+.0-9aefin]+(?=[,}])")
def pattern(line):
    parts = VALUE.split(line.split(" -- ")[1].rstrip())
    return re.compile(".*? -- " + re.escape(parts[0]) + "".join("([-+.0-9aefin]+)" + re.escape(p) for p in parts[1:]))
def work(path):
    rows, fields = [], None
    with open(path, encoding="utf-8") as log:
        for line in log:
            if fields is None and "tflops=" in line:
                fields = pattern(line)
            if fields is not None and (match := fields.match(line)):
                rows.append([float(value) for value in match.groups()])
    return f"{fields.groups} fields, no verdict"
"""
# A pattern for one field, found again and again.
FINDALL = r"""
import re
FIELD = re.compile(r"([\w/]+)(?: \(\S+\))?=([^\s{},]+)")
def work(path):
    rows = []
    with open(path, encoding="utf-8") as log:
        for line in log:
            if "tflops=" in line:
                rows.append({name: float(value) for name, value in FIELD.findall(line)})
            if len(rows) == 4096:  # or its memory would grow beyond bounds
                rows.clear()
    return "41 fields, no verdict"
"""
ANALYSIS = """
from conformance.analysis import analyze
from conformance.checks.finding import Result
from conformance.spec import all_workloads
all_workloads()
def work(path):
    with open(path, "rb") as log:
        (run,) = analyze(log)
    failed = [f.check for f in run.findings if f.result is Result.FAIL]
    passed = sum(f.result is Result.PASS for f in run.findings)
    return f"{run.steps.shape[1]} columns, {run.outcome}, {passed} checks passed, failed: {failed or 'none'}"
"""
# Reading alone: such a log has nothing to judge.
READING = """
from conformance.internevo.log import parse_log
def work(path):
    with open(path, "rb") as log:
        runs = parse_log(log)
    return f"{sum(len(run.steps) for run in runs)} steps"
"""
# What a verifier does with every byte anyway.
DIGEST = """
import hashlib
def work(path):
    digest = hashlib.sha256()
    with open(path, "rb") as log:
        while block := log.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:8]
"""
CHATTER = "node{}:{}:{} [{}] NCCL INFO Channel {:02}/0 : {}[{}] -> {}[{}] via P2P/CUMEM/read comm 0x{:011x}\n"
WAYS = {
    "line by line, key=value pattern": FINDALL,
    "line by line, whole-line pattern": SEARCH,
    "conformance, analysis and verdict": ANALYSIS,
}


def measure(code: str, log: Path) -> tuple[float, float, float, str]:
    """CPU and wall seconds, peak memory in MiB, and what was found."""
    core = min(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-c", code + MEASURE, str(log)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    cpu, wall, peak, found = done.stdout.rstrip("\n").split("\t")
    return float(cpu), float(wall), float(peak), found


def chatter(lines: int) -> Iterator[str]:
    """Lines that a communication library writes."""
    draw = random.Random(0).randrange
    for _ in range(lines):
        yield CHATTER.format(draw(4), *(draw(30000) for _ in range(2)), *(draw(8) for _ in range(6)), draw(1 << 44))


def compare(ways: dict[str, str], log: Path) -> list[float]:
    """Measure every way in turn and print the best round of each; its CPU seconds."""
    size = log.stat().st_size / 1e6
    best: dict[str, tuple[float, float, float, str]] = {}
    for _ in range(ROUNDS):
        for name, code in ways.items():
            best[name] = min(best.get(name, (float("inf"), 0.0, 0.0, "")), measure(code, log))
    print(f"{'way':<36}{'MB/s':>8}{'CPU s':>8}{'wall s':>8}{'peak MiB':>10}  found")
    for name, (cpu, wall, peak, found) in best.items():
        print(f"{name:<36}{size / cpu:>8.1f}{cpu:>8.2f}{wall:>8.2f}{peak:>10.0f}  {found}")
    return [cpu for cpu, *_ in best.values()]


def main() -> None:
    """Make the logs, measure every way, print."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    run = runpy.run_path(str(ROOT / "fixtures" / "honest_log.py"))["Run"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "long.log"
        honest = run(total_steps=steps, data_parallel=32, lr=4e-5, warmup_ratio=0.025, loss=1.7, types=TYPES)
        with log.open("w", encoding="utf-8") as file:
            for line in honest.lines():
                file.write(line + "\n")
        print(f"{steps} steps, {log.stat().st_size / 1e6:.0f} MB\n")
        *others, ours = compare(WAYS, log)
        for name, other in zip(WAYS, others, strict=False):
            print(f"{other / ours:.1f} times as fast as {name}")
        quiet, mixed = Path(folder) / "quiet.log", Path(folder) / "mixed.log"
        with quiet.open("w", encoding="utf-8") as file:
            file.writelines(chatter(8 * steps))
        with log.open(encoding="utf-8") as written, mixed.open("w", encoding="utf-8") as file:
            said = chatter(8 * steps)
            for line in written:
                file.writelines((line, *islice(said, 8)))
        for name, path in (("nothing but lines of NCCL", quiet), ("eight of them after each step", mixed)):
            print(f"\n{name}, {path.stat().st_size / 1e6:.0f} MB")
            compare({"sha256": DIGEST, "conformance, reading": READING}, path)


if __name__ == "__main__":
    main()
