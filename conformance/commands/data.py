"""``conformance data``: make training data for InternEvo, say what a folder of it is, and check every document."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conformance.data import Fingerprint

EPILOG = """\
exit codes: 0 good; 1 a document or the record is not what it should be; 2 the question could not be read, or an input

examples:
  conformance data prepare RedPajama-Data-1T-Sample/ --tokenizer tokenizer.model --out data
  conformance data fingerprint data
  conformance data check data
"""
# RedPajama-Data-1T-Sample has 11 files.
MAX_LISTED = 12
# Where there is no terminal, a line at most this often.
PLAIN_INTERVAL_SECONDS = 10.0
# Blocks come by dozens a second from many cores.
SPEED_WINDOW_SECONDS = 60.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: The command's parser.
    """
    parser.description = "Turn text into InternEvo's bin and meta files, fingerprint them, check them."
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    prepare = actions.add_parser(
        "prepare", help="encode text files; after a kill, the same command goes on where it stopped"
    )
    prepare.add_argument(
        "inputs", nargs="+", type=Path, metavar="INPUT", help=".jsonl, .txt or .json, also .gz or .zst, or their folder"
    )
    prepare.add_argument("--tokenizer", type=Path, required=True, metavar="FILE", help="sentencepiece model")
    prepare.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    what = prepare.add_mutually_exclusive_group()
    what.add_argument("--field", metavar="NAME", help="encode this field of each record; reports disclose it")
    what.add_argument(
        "--raw",
        action="store_true",
        help="encode as InternEvo's tools/tokenizer.py does, byte for byte: whole lines (default)",
    )
    prepare.add_argument("--workers", type=_positive, metavar="N", help="worker processes (default: one for each core)")
    prepare.add_argument("--strict", action="store_true", help="stop at the first broken line")
    for name, text in (
        ("fingerprint", "recompute the digest over tokenizer, options, order and content"),
        ("check", "hold every offset, token count and token id against the index and the vocabulary"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("folder", type=Path, metavar="DIR", help="a prepared folder")
        if name == "fingerprint":
            action.add_argument("--json", action="store_true", help="print the whole object, shard by shard")


def run(args: argparse.Namespace) -> int:
    """Prepare, fingerprint or check.

    Args:
        args: Parsed arguments.

    Returns:
        0, or 1 where a check found a fault.
    """
    return {"prepare": _prepare, "fingerprint": _fingerprint, "check": _check}[args.action](args)


def _prepare(args: argparse.Namespace) -> int:
    from conformance.data import Progress, find_inputs, prepare

    inputs = find_inputs(args.inputs)
    listed = ", ".join(source.path.name for source in inputs[:MAX_LISTED])
    more = f" and {len(inputs) - MAX_LISTED} more" if len(inputs) > MAX_LISTED else ""
    size = sum(source.size for source in inputs) / 1e6
    files = f"{len(inputs)} file{'s' * (len(inputs) > 1)}"
    print(f"Inputs: {files} of {size:,.1f} MB: {listed}{more}.", flush=True)
    with _shown("preparing") as show:

        def told(progress: Progress) -> None:
            broken = f", {progress.broken:,} broken lines" if progress.broken else ""
            show(progress.bytes, progress.total_bytes, f"{progress.tokens:,} tokens{broken}")

        prepared = prepare(
            [source.path for source in inputs],
            args.tokenizer,
            args.out,
            field=args.field,
            workers=args.workers,
            strict=args.strict,
            on_progress=told,
        )
    if prepared.broken:
        print(f"Broken lines: {prepared.broken:,}. The first of them:")
        print("\n".join(f"  {example}" for example in prepared.examples))
    print(_summary(prepared.fingerprint, args.out))
    return 0


def _fingerprint(args: argparse.Namespace) -> int:
    from conformance.data import fingerprint, read_fingerprint

    found, recorded = fingerprint(args.folder), read_fingerprint(args.folder)
    print(json.dumps(found.to_json(), indent=1) if args.json else _summary(found, args.folder))
    if found.digest != recorded.digest:
        print(f"FAIL: {args.folder} was prepared as {recorded.digest}; its files have changed.")
        return 1
    return 0


def _check(args: argparse.Namespace) -> int:
    from conformance.data import check, read_fingerprint

    with _shown("checking") as show:
        faults = check(args.folder, lambda done, total: show(done, total, ""))
    if faults:
        print("\n".join(faults))
        print(f"FAIL: {args.folder} is not what it should be. Prepare it again.")
        return 1
    recorded = read_fingerprint(args.folder)
    print(
        f"PASS: {recorded.documents:,} documents and {recorded.tokens:,} tokens, every id below {recorded.vocabulary}."
    )
    return 0


def _summary(found: Fingerprint, folder: Path) -> str:
    size = sum(shard.bytes for shard in found.shards) / 1e6
    return (
        f"{folder}: {found.documents:,} documents, {found.tokens:,} tokens, {len(found.shards)} shards of "
        f"{size:,.1f} MB\n"
        f"mode        {found.mode}\n"
        f"tokenizer   {found.tokenizer}\n"
        f"fingerprint {found.digest}"
    )


@contextmanager
def _shown(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show bytes done, rate and time left: a bar on a terminal, a line now and then elsewhere; both on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from conformance.launch.progress import is_live

    console = Console(stderr=True)
    live = is_live(console)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    bar = Progress(*columns, console=console, disable=not live, speed_estimate_period=SPEED_WINDOW_SECONDS)
    task = bar.add_task(title, total=None, note="")
    printed = bar.get_time()

    def show(done: int, total: int, note: str) -> None:
        nonlocal printed
        if bar.tasks[0].total is None:  # what an earlier start has done is not this one's speed
            bar.reset(task, total=total, completed=done)
        bar.update(task, completed=done, note=note)
        if not live and bar.get_time() - printed >= PLAIN_INTERVAL_SECONDS:
            printed = bar.get_time()
            left, speed = bar.tasks[0].time_remaining, bar.tasks[0].speed or 0.0
            rest = f", {left:.0f} s left" if left is not None else ""
            console.print(f"{title}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB, {speed / 1e6:.1f} MB/s{rest}, {note}")

    with bar:
        yield show


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value
