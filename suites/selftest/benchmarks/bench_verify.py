"""Reading and hashing a bundle: the strict reader beside ``sha256sum`` and ``tarfile``, time and peak memory.

Run as ``python suites/selftest/benchmarks/bench_verify.py [MIB]``; 1024 MiB when not said otherwise. Each way runs in
its own process, in three rounds that take turns, and the best round counts; the bundle lies in the page cache.
``openssl`` is there because GNU's ``sha256sum`` may be built without the processor's SHA instructions, and is then
easy to beat.
"""

from __future__ import annotations

import math
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conformance.bundle.archive import write_bundle

ROUNDS = 3
PEAK = """
status = open("/proc/self/status").read()
print("peak", status.split("VmHWM:")[1].split()[0])
"""
TARFILE = f"""
import hashlib, sys, tarfile
with tarfile.open(sys.argv[1]) as archive:
    for member in archive:
        digest = hashlib.sha256()
        with archive.extractfile(member) as stream:
            while chunk := stream.read(2**20):
                digest.update(chunk)
{PEAK}"""
READER = f"""
import sys
from pathlib import Path
from conformance.bundle.archive import read_index
read_index(Path(sys.argv[1]))
{PEAK}"""


def log_lines(size: int) -> bytes:
    """Text in the form of a training log, different in every line, so that gzip finds what it finds in a real one."""
    rng = random.Random(1)
    lines, length, step = [], 0, 0
    while length < size:
        line = (
            f"2024-03-27 17:03:42,{step % 1000:03d} INFO training_internlm.py:599 -- tflops={rng.uniform(170, 190)} "
            f"step={step} loss={rng.uniform(1, 9)} tgs (tokens/gpu/second)={rng.uniform(3000, 4000):.2f} lr=1e-05 "
            f"grad_norm={rng.uniform(0, 2)} num_consumed_tokens={step * 524288} fwd_bwd_time={rng.uniform(4, 5):.2f}\n"
        )
        lines.append(line)
        length += len(line)
        step += 1
    return "".join(lines).encode()[:size]


def measure(command: list[str]) -> tuple[float, float]:
    """Run a command; return its wall time in seconds and the peak memory that it reports in MiB, else NaN."""
    start = time.perf_counter()
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    seconds = time.perf_counter() - start
    return seconds, int(output.split()[1]) / 1024 if output.startswith("peak") else math.nan


def compare(title: str, commands: dict[str, list[str]]) -> None:
    """Print a table of several commands, each against the first."""
    rounds = [{name: measure(command) for name, command in commands.items()} for _ in range(ROUNDS)]
    best = {name: min(result[name][0] for result in rounds) for name in commands}
    peak = {name: max(result[name][1] for result in rounds) for name in commands}
    base = best[next(iter(commands))]
    print(f"\n{title}")
    for name in commands:
        memory = "" if math.isnan(peak[name]) else f"{peak[name]:6.1f} MiB peak"
        print(f"  {name:38} {best[name]:7.2f} s  {best[name] / base:5.2f} x  {memory}")


def main() -> None:
    mebibytes = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    python = [sys.executable, "-c"]
    block = log_lines(2**20)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "rank.log"
        with log.open("wb") as out:
            for number in range(mebibytes // 8):
                out.write(b"%d\n" % number + block[: -len(str(number)) - 1])
        members: dict[str, Path | bytes] = {f"logs/node0/rank{rank}.log": log for rank in range(8)}
        plain, packed = folder / "bundle.tar", folder / "bundle.tar.gz"
        for path in (plain, packed):
            write_bundle(path, {"report.dsse.json": b"{}", **members})
        size = plain.stat().st_size / 2**20
        compare(
            f"plain bundle, {size:.0f} MiB, {len(members) + 1} files",
            {
                "sha256sum": ["sha256sum", str(plain)],
                "openssl dgst -sha256": ["openssl", "dgst", "-sha256", str(plain)],
                "strict reader, python start included": [*python, READER, str(plain)],
                "tarfile": [*python, TARFILE, str(plain)],
            },
        )
        compare(
            f"gzip bundle, {packed.stat().st_size / 2**20:.0f} MiB for {size:.0f}",
            {
                "gzip -dc | sha256sum": ["sh", "-c", 'gzip -dc "$0" | sha256sum', str(packed)],
                "strict reader, python start included": [*python, READER, str(packed)],
                "tarfile": [*python, TARFILE, str(packed)],
            },
        )


if __name__ == "__main__":
    main()
