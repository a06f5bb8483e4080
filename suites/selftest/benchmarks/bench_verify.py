"""Verifying a bundle of 1 GiB, start to verdict, beside ``sha256sum`` of it: time and peak memory.

Run as ``python suites/selftest/benchmarks/bench_verify.py [MIB]``; 1024 MiB when not said otherwise. Each way runs in
its own process, in three rounds that take turns, and the best round counts; the bundle lies in the page cache.
``openssl`` is there because GNU's ``sha256sum`` may be built without the processor's SHA instructions, and is then
easy to beat. What costs time besides the hash is reading logs, so the bundle is made three times of different content:

launcher  a real rehearsal with a launcher's log that fills the rest: nothing of it is parsed
long      a metrics log of 200,000 steps (a whole accuracy run, some 190 MB), and a launcher's log that fills the rest
chatty    a real rehearsal, a sixteenth as large, nearly all of it another rank's log with lines that carry no metrics

Every way runs on one core's worth of work, so that CPU time compares them also on a machine that is busy.
"""

from __future__ import annotations

import math
import os
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from conformance.bundle.pack import pack
from conformance.evidence import RunDirectory
from conformance.judgement import judge
from conformance.report.build import write_report
from conformance.selftest.run import end_journal, good_run

ROUNDS = 3
STEPS = 200_000
# Line by line is slow; a sixteenth shows the rate.
CHATTY_SHARE = 16
ROOT = Path(__file__).resolve().parents[3]
TYPES = ("cn", "en", "code", "ja", "ar", "kaoshi")
PEAK = """
status = open("/proc/self/status").read()
print("peak", status.split("VmHWM:")[1].split()[0])
"""
READER = f"""
import sys
from pathlib import Path
from conformance.bundle.archive import read_index
read_index(Path(sys.argv[1]))
{PEAK}"""
VERIFY = f"""
import contextlib, io, sys
from conformance.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    code = main(["verify", sys.argv[1]])
assert code in (0, 1), code
{PEAK}"""


def fill(path: Path, size: int) -> None:
    """Append lines that carry no metrics up to a size in bytes."""
    lines = (
        f"2026-11-23 21:19:55,{n % 1000:03d} INFO launch.py:{n % 900} in report -- rank 1 is alive, beat {n}\n"
        for n in range(10_000)
    )
    block = "".join(lines).encode()
    with path.open("ab") as out:
        while out.tell() < size:
            out.write(block)


def long_log(path: Path) -> None:
    """Write the metrics log of a whole accuracy run."""
    run = runpy.run_path(str(ROOT / "fixtures" / "honest_log.py"))["Run"]
    honest = run(total_steps=STEPS, data_parallel=32, lr=4e-5, warmup_ratio=0.025, loss=1.7, types=TYPES)
    with path.open("w", encoding="utf-8") as out:
        out.writelines(f"{line}\n" for line in honest.lines())


def bundle(folder: Path, content: str, size: int) -> Path:
    """Make a signed bundle of about a size in bytes."""
    (folder / content).mkdir()
    run = good_run(folder / content)
    filled = run / ("logs/node0/rank1.log" if content == "chatty" else "logs/node0/agent.log")
    if content == "long":
        long_log(run / "logs/node0/rank0.log")
    rest = sum(path.stat().st_size for path in run.rglob("*") if path.is_file() and path != filled)
    fill(filled, size - rest)
    end_journal(run)
    write_report(run, judge(RunDirectory(run)), None)
    pack(run, folder / f"{content}.tar")
    return folder / f"{content}.tar"


def measure(command: list[str]) -> tuple[float, float, float]:
    """Run a command; return its CPU and wall seconds, and the peak memory that it reports in MiB, else NaN."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, wall, int(output.split()[1]) / 1024 if output.startswith("peak") else math.nan


def compare(title: str, commands: dict[str, list[str]]) -> None:
    """Print a table of several commands, each against the first."""
    rounds = [{name: measure(command) for name, command in commands.items()} for _ in range(ROUNDS)]
    cpu, wall = ({name: min(result[name][at] for result in rounds) for name in commands} for at in (0, 1))
    peak = {name: max(result[name][2] for result in rounds) for name in commands}
    base = cpu[next(iter(commands))]
    print(f"\n{title}")
    for name in commands:
        memory = "" if math.isnan(peak[name]) else f"{peak[name]:6.1f} MiB peak"
        ratio = cpu[name] / base
        print(f"  {name:38} {cpu[name]:7.2f} s CPU {wall[name]:7.2f} s wall {ratio:6.2f} x CPU  {memory}", flush=True)


def main(arguments: Iterable[str]) -> None:
    """Make each bundle, measure every way, print."""
    mebibytes = next(map(int, arguments), 1024)
    python = [sys.executable, "-c"]
    with tempfile.TemporaryDirectory() as name:
        # The keys of a benchmark are nobody's.
        os.environ["XDG_CONFIG_HOME"] = name
        for content in ("launcher", "long", "chatty"):
            path = bundle(Path(name), content, mebibytes * 2**20 // (CHATTY_SHARE if content == "chatty" else 1))
            compare(
                f"{content}: {path.stat().st_size / 2**20:.0f} MiB",
                {
                    "sha256sum": ["sha256sum", str(path)],
                    "openssl dgst -sha256": ["openssl", "dgst", "-sha256", str(path)],
                    "strict reader, python start included": [*python, READER, str(path)],
                    "conformance verify, all of it": [*python, VERIFY, str(path)],
                },
            )
            path.unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
