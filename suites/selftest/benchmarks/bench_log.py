"""Analysing a long log: the whole analysis, verdict included, beside regular expressions that only read it.

Run as ``python suites/selftest/benchmarks/bench_log.py [STEPS]``; 200000 steps when not said otherwise: 236 MB, held
against the workload llama2-7b-accuracy. Each way runs in its own process on one core, in three rounds that take turns,
and the best round counts. The log obeys every relation of real ones, so that no check ends early. Two further tables
read a log that has nothing but lines of NCCL, and one with eight of them after each step: how fast lines are passed
over that say nothing.

Ends with 3 where the analysis does less than 100 MB/s or three times the plain regex, or takes more than 500 MB.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

ROUNDS = 3
ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "fixtures"))
BELOW_BAR = 3
BAR_MB_PER_S, BAR_TIMES, BAR_MB = 100.0, 3.0, 500.0

MEASURE = """
import sys, time
begin = time.process_time(), time.perf_counter()
found = work(sys.argv[1])
cpu, wall = time.process_time() - begin[0], time.perf_counter() - begin[1]
peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
print(cpu, wall, peak, found, sep="\\t")
"""
# One pattern for the whole line with a group for every field.
WHOLE_LINE = r"""
import re
VALUE = re.compile(r"(?<==)[-+.0-9aefin]+|(?<=: )[-+.0-9aefin]+(?=[,}])")
def pattern(line):
    parts = VALUE.split(line.split(" -- ")[1].rstrip())
    return re.compile(".*? -- " + re.escape(parts[0]) + "".join("([-+.0-9aefin]+)" + re.escape(p) for p in parts[1:]))
"""
# Every line matched by it, every group a float, every line a list.
SEARCH = (
    WHOLE_LINE
    + r"""
def work(path):
    rows, fields = [], None
    with open(path, encoding="utf-8") as log:
        for line in log:
            if fields is None and "tflops=" in line:
                fields = pattern(line)
            if fields is not None and (match := fields.match(line)):
                rows.append([float(value) for value in match.groups()])
    return f"{len(rows)} rows of {fields.groups} fields, no verdict"
"""
)
# The file read whole and gone through once by it; no group is looked at.
BUFFER = (
    WHOLE_LINE
    + r"""
def work(path):
    with open(path, encoding="utf-8") as log:
        text = log.read()
    begin = text.rfind("\n", 0, text.index("tflops=")) + 1
    fields = pattern(text[begin : text.index("\n", begin)])
    return f"{sum(1 for _ in fields.finditer(text, begin))} lines found, no number read"
"""
)
# The plain way: a pattern for one field, found again and again, every value a float.
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
    return "no verdict"
"""
ANALYSIS = """
from conformance.analysis import analyze
from conformance.checks.finding import Result
from conformance.spec import load_workload
workload = load_workload("llama2-7b-accuracy")
def work(path):
    with open(path, "rb") as log:
        (run,) = analyze(log, workload=workload)
    failed = [f.check for f in run.findings if f.result is Result.FAIL]
    passed = sum(f.result is Result.PASS for f in run.findings)
    return f"{len(set(run.steps))} columns, {run.outcome}, {passed} checks passed, failed: {failed or 'none'}"
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
PLAIN, OURS = "line by line, key=value pattern", "conformance, analysis and verdict"
WAYS = {
    PLAIN: FINDALL,
    "line by line, whole-line pattern": SEARCH,
    "whole buffer, whole-line pattern": BUFFER,
    OURS: ANALYSIS,
}
# CPU and wall seconds, peak memory in MiB, and what was found.
Measured = tuple[float, float, float, str]


def measure(code: str, log: Path) -> Measured:
    """Run a way in a process of its own on one core."""
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


def compare(ways: dict[str, str], log: Path) -> dict[str, Measured]:
    """Measure every way in turn, print the best round of each and return it."""
    size = log.stat().st_size / 1e6
    best: dict[str, Measured] = {}
    for _ in range(ROUNDS):
        for name, code in ways.items():
            best[name] = min(best.get(name, (float("inf"), 0.0, 0.0, "")), measure(code, log))
    print(f"{'way':<36}{'MB/s':>8}{'CPU s':>8}{'wall s':>8}{'peak MiB':>10}  found")
    for name, (cpu, wall, peak, found) in best.items():
        print(f"{name:<36}{size / cpu:>8.1f}{cpu:>8.2f}{wall:>8.2f}{peak:>10.0f}  {found}", flush=True)
    return best


def main() -> int:
    """Make the logs, measure every way, print."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    from honest_log import accuracy_run

    with tempfile.TemporaryDirectory() as folder:
        log, quiet, mixed = (Path(folder) / f"{name}.log" for name in ("long", "quiet", "mixed"))
        with log.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in accuracy_run(steps))
        size = log.stat().st_size / 1e6
        print(f"{steps} steps, {size:.0f} MB\n")
        found = compare(WAYS, log)
        times = {name: cpu / found[OURS][0] for name, (cpu, *_) in found.items() if name != OURS}
        for name, factor in times.items():
            print(f"{factor:.1f} times as fast as {name}")
        with quiet.open("w", encoding="utf-8") as file:
            file.writelines(chatter(8 * steps))
        with log.open(encoding="utf-8") as written, mixed.open("w", encoding="utf-8") as file:
            said = chatter(8 * steps)
            for line in written:
                file.writelines((line, *islice(said, 8)))
        for name, path in (("nothing but lines of NCCL", quiet), ("eight of them after each step", mixed)):
            print(f"\n{name}, {path.stat().st_size / 1e6:.0f} MB")
            compare({"sha256": DIGEST, "conformance, reading": READING}, path)
    cpu, _, peak, _ = found[OURS]
    good = size / cpu >= BAR_MB_PER_S and times[PLAIN] >= BAR_TIMES and peak * 2**20 / 1e6 < BAR_MB
    print(f"\nthe bar, {BAR_MB_PER_S:.0f} MB/s, {BAR_TIMES:g} times the first way, below {BAR_MB:.0f} MB: ", end="")
    print("reached" if good else "missed")
    return 0 if good else BELOW_BAR


if __name__ == "__main__":
    sys.exit(main())
