"""Preparing training data beside InternEvo's own tools/tokenizer.py: speed, by number of workers, and peak memory.

    CONFORMANCE_TEST_TRANSFORMERS=ref/bin/python python suites/selftest/benchmarks/bench_data.py --internevo PATH

The script runs out of the checkout, in the Python named, which has transformers<4.30 as its tag asks. Both ways take
the same file, in rounds that take turns, and the best round counts; each includes its own start. The file is text that
lies on this machine, documents and sources, as JSON lines like RedPajama's; no text comes twice, since that would cost
the script twice and us only the lookups. Without --internevo only this suite is measured. CPU seconds, of all processes
together, are there for machines that others use as well.

How it scales is told round by round: each number of workers against the first of the same round, in wall time and in
CPU seconds, and by the share of the parent, for which all workers wait: no number of cores goes beyond its inverse.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import random
import resource
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from conformance.data import rehearsal_tokenizer, train_folder

ROUNDS = 3
HERE = Path(__file__).resolve().parent
FOLDERS = [Path("/usr/share/doc"), Path("/usr/share/perl"), Path(sys.base_prefix) / "lib", Path(sys.prefix) / "lib"]
SUFFIXES = {".txt", ".md", ".rst", ".py", ".pod", ".pm", ".html", ".c", ".h", ".js", ""}
# Under these a document hardly counts, over these it would fill the sample alone.
DOCUMENT_BYTES = range(1000, 400_000)


def texts() -> Iterator[str]:
    """Every readable text in FOLDERS once, in an order that is the same each time."""
    found = [path for folder in FOLDERS for path in folder.rglob("*") if path.suffix in SUFFIXES]
    random.Random(1).shuffle(found)
    seen = set()
    for path in found:
        try:
            text = path.read_text(encoding="utf-8") if path.stat().st_size in DOCUMENT_BYTES else ""
        except (OSError, UnicodeDecodeError):
            continue
        if text and hash(text) not in seen:
            seen.add(hash(text))
            yield text


def make_sample(path: Path, megabytes: float) -> None:
    """Write about so much text."""
    size = 0
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts()):
            size += file.write(json.dumps({"text": text, "meta": {"number": number}}) + "\n")
            if size >= megabytes * 1e6:
                return
    print(f"only {size / 1e6:.0f} MB of text lie here")


Measured = tuple[float, float, float, float]


def measure(command: list[str]) -> Measured:
    """Run a command.

    Returns:
        Its seconds; CPU seconds of it and its children; the peak memory of all, in MiB; CPU seconds of it alone.
    """
    os.sync()  # or this one pays for what the one before left to be written
    before, begin = cpu_seconds(), time.perf_counter()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = own = 0.0
    while process.poll() is None:
        try:
            family = [process, *process.children(recursive=True)]
            peak = max(peak, sum(one.memory_info().rss for one in family) / 2**20)
            own = sum(process.cpu_times()[:2])
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return time.perf_counter() - begin, cpu_seconds() - before, peak, own


def cpu_seconds() -> float:
    """Of every child that has ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def ours(sample: Path, out: Path, workers: int) -> list[str]:
    command = [sys.executable, "-m", "conformance.cli", "data", "prepare", str(sample), "--out", str(out)]
    return [*command, "--tokenizer", str(rehearsal_tokenizer()), "--workers", str(workers)]


def main() -> int:
    """Measure and print.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--internevo", type=Path, metavar="PATH", help="checkout of a reference tag")
    parser.add_argument("--megabytes", type=float, default=160, metavar="MB", help="size of the sample (default: 160)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], metavar="N", help="default: 1 2")
    parser.add_argument("--text", type=Path, metavar="FILE", help="a .jsonl file in place of the sample")
    args = parser.parse_args()
    script = runpy.run_path(str(HERE.parent / "data" / "internevo_script.py"))
    if args.internevo is not None and (reason := script["missing"]()):
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory(prefix="bench-data-") as name:
        folder = Path(name)
        sample = args.text or folder / "sample.jsonl"
        if args.text is None:
            make_sample(sample, args.megabytes)
        size = sample.stat().st_size / 1e6
        print(f"{size:.1f} MB of JSON lines, {len(os.sched_getaffinity(0))} cores\n", flush=True)
        best: dict[str, Measured] = {}
        rounds: dict[int, list[Measured]] = {workers: [] for workers in args.workers}
        for number in range(ROUNDS):
            if args.internevo is not None:
                tool = script["lay_out"](args.internevo, rehearsal_tokenizer(), folder / f"internevo{number}")
                command = [script["PYTHON"], str(tool), "--text_input_path", str(sample)]
                keep(
                    best, "InternEvo's script", measure([*command, "--bin_output_path", str(folder / f"{number}.bin")])
                )
            for workers in args.workers:
                out = folder / f"out{number}-{workers}"
                rounds[workers].append(measure(ours(sample, out, workers)))
                keep(best, f"{workers} workers", rounds[workers][-1])
        made = train_folder(out) / "en" / f"{sample.stem}-00000.bin"
        if args.internevo is not None:
            same = all(filecmp.cmp(folder / f"0.bin{end}", f"{made}{end}", shallow=False) for end in ("", ".meta"))
            print(f"bin and meta {'are the same bytes' if same else 'DIFFER'}\n")
        keep(best, "check", measure([sys.executable, "-m", "conformance.cli", "data", "check", str(out)]))
        keep(best, "fingerprint", measure([sys.executable, "-m", "conformance.cli", "data", "fingerprint", str(out)]))
        base, base_cpu, *_ = next(iter(best.values()))
        print(f"{'':20}{'seconds':>9}{'MB/s':>8}{'times':>7}{'CPU s':>9}{'times':>7}{'peak MiB':>10}")
        for way, (seconds, cpu, peak, _) in best.items():
            print(
                f"{way:20}{seconds:9.2f}{size / seconds:8.2f}{base / seconds:7.1f}"
                f"{cpu:9.2f}{base_cpu / cpu:7.1f}{peak:10.0f}"
            )
        show_scaling(rounds)
    return 0


def show_scaling(rounds: dict[int, list[Measured]]) -> None:
    """Print how much quicker more workers were, round by round, and what holds them back."""
    fewest, *more = rounds
    print(f"\n{'':20}{'median of rounds: times as fast':>33}{'CPU s, times':>14}{'the parent, of all CPU s':>26}")
    for workers in more:
        pairs = list(zip(rounds[fewest], rounds[workers], strict=True))
        faster = statistics.median(one[0] / other[0] for one, other in pairs)
        dearer = statistics.median(other[1] / one[1] for one, other in pairs)
        parent = statistics.median(other[3] / other[1] for _, other in pairs)
        print(f"{workers} workers to {fewest:<7}{faster:33.2f}{dearer:14.2f}{parent:26.1%}")


def keep(best: dict[str, Measured], way: str, found: Measured) -> None:
    """Keep the quicker round, and the higher peak."""
    seconds, cpu, peak, own = best.get(way, found)
    best[way] = min(seconds, found[0]), min(cpu, found[1]), max(peak, found[2]), min(own, found[3])


if __name__ == "__main__":
    raise SystemExit(main())
