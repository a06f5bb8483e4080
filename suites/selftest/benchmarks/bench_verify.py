"""Verifying a bundle of 1 GiB, start to verdict, beside ``sha256sum`` of it: time and peak memory, by what fills it.

Run as ``python suites/selftest/benchmarks/bench_verify.py [MIB] [KIND...]``; 1024 MiB of every kind when not said
otherwise. Each way runs in its own process, in three rounds that take turns, and the best round counts; one before them
compiles the suite, as installing it does, and leaves the bundle in the page cache. ``openssl`` is there because GNU's
``sha256sum`` may be built without the processor's SHA instructions, and is then easy to beat. What costs time besides
the hash is reading what ranks and devices told:

launcher   a real rehearsal with a launcher's log that fills the rest: nothing of it is parsed
telemetry  samples of eight devices, as NVIDIA's tool prints them
logger     another rank's log, of lines by InternEvo's logger that say nothing to the suite
nccl       another rank's log, of what NCCL says of its channels
warnings   another rank's log, of Python's warnings with their code lines and links
ranks      all that together in the logs of 511 other ranks
between    the logging rank's log, with eight lines of NCCL after each of as many steps as there is room for
long       a metrics log of 200,000 steps (a whole accuracy run, 236 MB), and a launcher's log that fills the rest

Every way runs on one core's worth of work, so that CPU time compares them also on a machine that is busy. Ends with 3
where a kind takes more than 1.5 times sha256sum's time, or more than 100 MiB.
"""

from __future__ import annotations

import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from conformance.bundle.pack import pack
from conformance.evidence import RunDirectory
from conformance.judgement import judge
from conformance.report.build import write_report
from conformance.selftest.run import end_journal, good_run

ROUNDS = 3
STEPS = 200_000
OTHER_RANKS = 511
BELOW_BAR = 3
BAR_TIMES, BAR_MIB = 1.5, 100.0
ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "fixtures"))
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
WARNING = """\
/opt/conda/lib/python3.10/site-packages/torch/utils/checkpoint.py:{}: FutureWarning: `torch.cuda.amp.autocast(...)` is \
deprecated. Please use `torch.amp.autocast('cuda', args...)` instead. See https://pytorch.org/docs/stable/amp.html?v={}
  with torch.cuda.amp.autocast(enabled=True, dtype=torch.bfloat16):
"""
TELEMETRY = (
    "timestamp, index, uuid, utilization.gpu [%], memory.used [MiB], power.draw [W], temperature.gpu, "
    "clocks.current.sm [MHz], clocks.current.memory [MHz], clocks_throttle_reasons.active\n"
)


def logger() -> Iterator[str]:
    """Lines of the logger that are no event, no setting and no metrics."""
    for n in range(10_000):
        yield f"2026-11-23 21:19:55,{n % 1000:03d}\tINFO launch.py:{n % 900} in report -- rank 1 is alive, beat {n}\n"


def nccl() -> Iterator[str]:
    """What NCCL says of its channels."""
    draw = random.Random(0).randrange
    for _ in range(10_000):
        a, b, c, d, e = (draw(8) for _ in range(5))
        yield (
            f"node{draw(4)}:{draw(30000)}:{draw(30000)} [{a}] NCCL INFO Channel {b:02}/0 : {c}[{d}] -> {e}[{a}] "
            f"via P2P/CUMEM/read comm 0x{draw(1 << 44):011x}\n"
        )


def warnings() -> Iterator[str]:
    """Warnings of Python's."""
    for n in range(5_000):
        yield WARNING.format(n, n)


def everything() -> Iterator[str]:
    """All three in turns."""
    for lines in zip(logger(), nccl(), warnings(), strict=False):
        yield from lines


def samples() -> Iterator[str]:
    """Rows of eight devices at work."""
    draw = random.Random(0)
    for n in range(40_000):
        clock, second = draw.randrange(1700, 1981, 15), n // 8
        yield (
            f"2026/01/01 {second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}.000, {n % 8}, "
            f"GPU-2ad0ab06-7c0e-4d2b-9cb2-2c0a3f1d6e{n % 8}9, {draw.randrange(80, 101)} %, 74000 MiB, "
            f"{draw.uniform(500, 700):.2f} W, {draw.randrange(55, 66)}, {clock} MHz, 2619 MHz, 0x0000000000000000\n"
        )


def fill(path: Path, lines: Iterable[str], size: int) -> None:
    """Write lines again and again, up to a size in bytes."""
    block = "".join(lines).encode()
    with path.open("ab") as out:
        while out.tell() < size:
            out.write(block[: size - out.tell()])


def metrics(path: Path, chatter: int, size: float) -> None:
    """Write the metrics log of a whole accuracy run, as far as a size in bytes, with lines of NCCL after each step."""
    from honest_log import accuracy_run

    said = list(nccl())
    with path.open("w", encoding="utf-8") as out:
        for number, line in enumerate(accuracy_run(STEPS)):
            if out.tell() > size:
                break
            out.write(f"{line}\n")
            if "tflops=" in line:
                out.writelines(said[(number * chatter + n) % len(said)] for n in range(chatter))


def fill_ranks(run: Path, size: int) -> None:
    """Share a size in bytes out to the logs of many ranks."""
    for rank in range(1, 1 + OTHER_RANKS):
        fill(run / f"logs/node0/rank{rank}.log", everything(), size // OTHER_RANKS)


def fill_long(run: Path, size: int) -> None:
    """Write a whole accuracy run's metrics, and a launcher's log for the rest."""
    metrics(run / "logs/node0/rank0.log", 0, math.inf)
    fill(run / "logs/node0/agent.log", logger(), size - (run / "logs/node0/rank0.log").stat().st_size)


def fill_telemetry(run: Path, size: int) -> None:
    """Put a device's samples in place of the rehearsal's."""
    (run / "environment/telemetry-node0.csv").write_text(TELEMETRY)
    fill(run / "environment/telemetry-node0.csv", samples(), size)


KINDS: dict[str, Callable[[Path, int], None]] = {
    "launcher": lambda run, size: fill(run / "logs/node0/agent.log", logger(), size),
    "telemetry": fill_telemetry,
    "logger": lambda run, size: fill(run / "logs/node0/rank1.log", logger(), size),
    "nccl": lambda run, size: fill(run / "logs/node0/rank1.log", nccl(), size),
    "warnings": lambda run, size: fill(run / "logs/node0/rank1.log", warnings(), size),
    "ranks": fill_ranks,
    "between": lambda run, size: metrics(run / "logs/node0/rank0.log", 8, size),
    "long": fill_long,
}


def bundle(folder: Path, kind: str, size: int) -> Path:
    """Make a signed bundle of about a size in bytes."""
    (folder / kind).mkdir()
    run = good_run(folder / kind)
    KINDS[kind](run, size)
    end_journal(run)
    write_report(run, judge(RunDirectory(run)), None)
    pack(run, folder / f"{kind}.tar")
    subprocess.run(["rm", "-r", str(folder / kind)], check=True)
    return folder / f"{kind}.tar"


def measure(command: list[str]) -> tuple[float, float, float]:
    """Run a command; return its CPU and wall seconds, and the peak memory that it reports in MiB, else NaN."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, wall, int(output.split()[1]) / 1024 if output.startswith("peak") else math.nan


def compare(title: str, commands: dict[str, list[str]]) -> bool:
    """Print a table of several commands, each against the first; whether the last one reaches the bar."""
    rounds = [{name: measure(command) for name, command in commands.items()} for _ in range(1 + ROUNDS)][1:]
    cpu, wall = ({name: min(result[name][at] for result in rounds) for name in commands} for at in (0, 1))
    peak = {name: max(result[name][2] for result in rounds) for name in commands}
    base = cpu[next(iter(commands))]
    print(f"\n{title}")
    for name in commands:
        memory = "" if math.isnan(peak[name]) else f"{peak[name]:6.1f} MiB peak"
        ratio = cpu[name] / base
        print(f"  {name:38} {cpu[name]:7.2f} s CPU {wall[name]:7.2f} s wall {ratio:6.2f} x CPU  {memory}", flush=True)
    return cpu[name] / base <= BAR_TIMES and peak[name] <= BAR_MIB


def main(arguments: list[str]) -> int:
    """Make each bundle, measure every way, print."""
    mebibytes = int(arguments[0]) if arguments else 1024
    python = [sys.executable, "-c"]
    missed = []
    with tempfile.TemporaryDirectory() as name:
        # The keys of a benchmark are nobody's.
        os.environ |= {"XDG_CONFIG_HOME": name, "PYTHONPYCACHEPREFIX": name, "PYTHONDONTWRITEBYTECODE": ""}
        for kind in arguments[1:] or KINDS:
            path = bundle(Path(name), kind, mebibytes * 2**20)
            commands = {
                "sha256sum": ["sha256sum", str(path)],
                "openssl dgst -sha256": ["openssl", "dgst", "-sha256", str(path)],
                "strict reader, python start included": [*python, READER, str(path)],
                "conformance verify, all of it": [*python, VERIFY, str(path)],
            }
            if not compare(f"{kind}: {path.stat().st_size / 2**20:.0f} MiB", commands):
                missed.append(kind)
            path.unlink()
    print(f"\nmore than {BAR_TIMES} times sha256sum, or {BAR_MIB:.0f} MiB: {', '.join(missed) or 'none'}")
    return BELOW_BAR if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
