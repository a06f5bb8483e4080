"""Every layout that a log of InternEvo has had is read, to the same figures."""

import io
import re
import textwrap
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from honest_log import Run

from conformance.internevo.log import COLUMNS, marks, parse_log, parser, traces
from conformance.internevo.log.records import (
    ALLOCATOR_FLUSH,
    CHECKPOINT_LOADED,
    CHECKPOINT_SAVED,
    EXCEPTION,
    KILLED,
    LOSS_SCALE,
    OVERFLOW,
    SKIPPED_BATCH,
)

ROOT = Path(__file__).resolve().parents[3]
SLICE = (ROOT / "reference_logs" / "h200-7b-slice24-v0.2.3.log").read_bytes()
OUT_OF_MEMORY = (ROOT / "reference_logs" / "h200-7b-32layers-oom-v0.2.3.log").read_bytes()
EXHAUSTED = (ROOT / "reference_logs" / "h200-124m-data-exhausted-v0.3.1.log").read_bytes()
SAMPLE = (ROOT / "fixtures" / "logs" / "benchmark-sample-line.log").read_bytes()
METRIC_LINES = [line + b"\n" for line in SLICE.splitlines() if b"tflops=" in line]
CHATTER = b"""n1:7:9 [3] NCCL INFO Channel 02/0 : 3[3] -> 4[4] via P2P/CUMEM/read
2026-11-23 21:19:55,123 INFO launch.py:7 in report -- rank 1 is alive, Rate=7 (FAST), beat 9
[default3]:  warnings.warn("a KNOWN Bug: Abort -- Signal (x) Received")
"""
HEADER = "2026-11-23 18:22:03,000\t{level} {place} -- "


def parse(data):
    return parse_log(io.BytesIO(data))


def only(data):
    runs = parse(data)
    assert len(runs) == 1
    return runs[0]


def figures(run):
    """The steps without where they stood in the file."""
    return figures_of(run.steps)


def figures_of(steps):
    return steps.frame().drop(columns="line")


def assert_same(found, expected, **how):
    from pandas.testing import assert_frame_equal  # heavy, and collecting needs none of it

    assert_frame_equal(found, expected, **how)


def commas(line):
    head, metrics = line.rstrip().split(b" -- ")
    return head + b" -- " + re.sub(rb" (?=[\w/]+(?: \(\S+\))?=)", b",", metrics) + b"\n"


def at_spaces(line):
    return "\n".join(textwrap.wrap(line.decode(), 100, break_long_words=False, break_on_hyphens=False)).encode() + b"\n"


def anywhere(width):
    def wrap(line):
        text = line.rstrip(b"\n")
        # The header is never torn in such documents.
        begin = text.index(b"tflops=")
        pieces = [text[: begin + width], *(text[i : i + width] for i in range(begin + width, len(text), width))]
        return b"\n".join(pieces) + b"\n"

    return wrap


def throughout(width):
    return lambda line: b"\n".join(line[i : i + width] for i in range(0, len(line.rstrip()), width)) + b"\n"


DISGUISES = {
    "commas": commas,
    "wrapped at spaces": at_spaces,
    **{f"wrapped after {width} characters": anywhere(width) for width in (79, 80, 81, 97, 120)},
    "carriage returns": lambda line: line.replace(b"\n", b"\r\n"),
    "colours": lambda line: b"\x1b[32m" + line.replace(b"INFO", b"\x1b[1;34mINFO\x1b[0m"),
    "torchrun": lambda line: b"[default0]:" + line,
    "torchrun, global rank": lambda line: b"[rank0]: " + line,
    "srun --label": lambda line: b"0: " + line,
    "srun --label and torchrun": lambda line: b"12: [default4]:" + line,
    "spaces for the tab": lambda line: line.replace(b"\t", b"      "),
    "after a progress bar": lambda line: b"  0%|          | 0/2 [00:00<?, ?it/s]          " + line,
    "after a carriage return": lambda line: b"  0%|      | 0/2 [00:00<?, ?it/s]\r" + line,
    "between other ranks": lambda line: b"[default1]:warning: slow\n[default0]:" + line + b"[default1]:done step=3\n",
    "Chinese, UTF-8": lambda line: "训练 正常\n".encode() + line,
    "Chinese, GBK": lambda line: "训练 正常\n".encode("gbk") + line,
    "memory lines": lambda line: (
        line + HEADER.format(level="INFO", place="gputest.py:313 in cuda_memory_analyze").encode()
        + b"Rank:0-tp0-pp0-dp0: Step 5: Allocated 7.5 GB, Max_Allocated 9 GB, Reserved 1.4 GB, Max_Reserved 3.4 GB \n"
    ),
}  # fmt: skip


@pytest.mark.parametrize("width", [40, 50, 53, 57, 60, 61, 62, 99, 101, 105, 113, 124])
def test_a_line_may_be_wrapped_anywhere_even_in_its_header(width):
    plain = figures(only(b"".join(METRIC_LINES))).drop(columns="time")
    run = only(b"".join(map(throughout(width), METRIC_LINES)))
    assert_same(figures(run).drop(columns="time"), plain)
    assert run.counts.refused == 0


@pytest.mark.parametrize("disguise", DISGUISES)
def test_every_layout_gives_the_same_figures(disguise):
    plain = figures(only(b"".join(METRIC_LINES)))
    run = only(b"".join(map(DISGUISES[disguise], METRIC_LINES)))
    assert_same(figures(run), plain)
    assert run.counts.refused == 0


def test_a_layout_may_change_within_a_log():
    parts = [DISGUISES[name](line) for name, line in zip(DISGUISES, METRIC_LINES, strict=False)]
    plain = only(b"".join(METRIC_LINES[: len(parts)]))
    # Different prefixes are different writers, so those lines stay out of this one.
    same_writer = [i for i, part in enumerate(parts) if not part.startswith((b"[", b"0:", b"12:"))]
    run = only(b"".join(parts[i] for i in same_writer))
    assert run.steps["step"].tolist() == plain.steps["step"][same_writer].tolist()
    assert run.steps["tgs"].tolist() == plain.steps["tgs"][same_writer].tolist()


@pytest.mark.parametrize("log", [lambda: SLICE, lambda: EXHAUSTED, Run(total_steps=300, skipped={3, 77}).text])
def test_templates_read_what_reading_line_by_line_reads(log, monkeypatch):
    data = log()
    fast = only(data)
    monkeypatch.setattr(parser, "CHUNK", 1 << 12)
    smaller = only(data)
    monkeypatch.setattr(parser, "_MAX_TEMPLATES", 0)
    slow = only(data)
    assert_same(fast.steps.frame(), slow.steps.frame())
    assert_same(smaller.steps.frame(), slow.steps.frame())
    assert fast.counts == slow.counts == smaller.counts
    assert fast.head == slow.head
    assert fast.events == slow.events


HEADED = re.compile(rb"(?m)^\d{4}-.*?\tINFO [\w.]+:\d+ in \w+ -- (.*)$")


def test_a_line_that_the_root_logger_prints_again_is_no_second_step():
    twice = HEADED.sub(lambda match: match[0] + b"\nINFO:/opt/run/internevo/train.py:" + match[1], SLICE)
    run, once = only(twice), only(SLICE)
    assert_same(figures(run), figures(once))
    assert run.counts.steps == once.counts.steps
    assert run.counts.known == once.counts.known + len(once.steps)


def test_a_line_that_is_said_again_with_another_figure_is_kept_for_the_checks_to_refuse():
    twice = HEADED.sub(lambda match: match[0] + b"\nINFO:train.py:" + match[1].replace(b"loss=", b"loss=1"), SLICE)
    assert sum(len(run.steps) for run in parse(twice)) == 2 * len(only(SLICE).steps)


def test_lines_are_numbered_as_an_editor_numbers_them():
    lines = SLICE.splitlines()
    for line, step in only(SLICE).steps.frame()[["line", "step"]].itertuples(index=False):
        assert b" step=%d " % step in lines[line - 1]


def test_every_line_is_accounted_for():
    for data in (SLICE, OUT_OF_MEMORY, EXHAUSTED):
        counts = only(data).counts
        assert counts.lines == data.count(b"\n")
        assert counts.lines == counts.steps + counts.known + counts.refused + counts.other
        assert (counts.refused, counts.cut) == (0, False)


def test_columns_have_units_and_types():
    steps = only(EXHAUSTED).steps
    documented = {name for name in steps if name in COLUMNS}
    by_type = {name for name in steps if name.startswith(("acc/", "tokens/", "loss/", "grad_norm/"))}
    assert documented | by_type == set(steps)
    assert steps["time"].dtype.kind == "M"
    assert steps["step"].dtype == np.int64
    assert all(steps[name].dtype == np.float64 for name in steps if name not in ("line", "time", "step"))


def test_the_benchmarks_sample_line_is_read_to_the_last_digit():
    row = only(SAMPLE).steps.frame().iloc[0]
    assert (row["step"], row["tgs"], row["tflops"]) == (19, 3345.72, 180.4572540886346)
    assert row["time"] == datetime(2024, 3, 27, 17, 3, 42, 47000)
    assert (row["grad_norm/0_default"], row["grad_norm/1_fp32"]) == (0.01974448980463596, 0.0)
    assert np.isnan(row["loss/cn"])


def test_values_that_are_no_plain_numbers():
    line = SAMPLE.replace(b"perplexity=1.0075", b"perplexity=inf").replace(
        b" acc=0.9992", b" real_tgs=2956.7 acc=1e-05"
    )
    line = line.replace(b"loss_scale=65536.0", b"loss_scale=tensor(65536.,device='cuda:0')")
    row = only(line).steps.frame().iloc[0]
    assert (row["perplexity"], row["acc"], row["real_tgs"]) == (np.inf, 1e-5, 2956.7)
    assert np.isnan(row["loss_scale"])


def test_the_head_tells_shape_layout_and_version():
    head = only(SLICE).head
    assert (head.data_parallel, head.pipeline, head.tensor, head.cards, head.seed) == (1, 1, 1, 1, 1024)
    assert (head.model["num_layers"], head.model["hidden_size"], head.model["checkpoint"]) == (24, 4096, 0)
    assert (head.settings["seq_len"], head.settings["micro_num"], head.settings["micro_bsz"]) == (4096, 4, 2)
    assert head.elements == 5496836096
    assert head.stage_layers == (24,)
    assert head.hosts == ("vm",)
    assert head.code_lines["training_internlm.py record_current_batch_training_metrics"] == 599
    assert only(EXHAUSTED).head.code_lines["training_internlm.py record_current_batch_training_metrics"] == 747
    assert head.peak_reserved_gib == 123.4727


def test_an_exception_that_train_py_swallowed_is_found_with_its_traceback():
    (event,) = only(OUT_OF_MEMORY).exceptions
    assert (event.type, event.host, event.rank, event.raised_by_train) == ("torch.OutOfMemoryError", "vm", 0, True)
    assert event.message.startswith("CUDA out of memory. Tried to allocate 26.98 GiB.")
    assert event.traceback[0] == "Traceback (most recent call last):"
    (event,) = only(EXHAUSTED).exceptions
    assert (event.type, event.rank, event.raised_by_train) == ("StopIteration", 0, True)


def test_interleaved_tracebacks_keep_their_ranks():
    raised = (
        HEADER.format(level="ERROR", place="train.py:321 in <module>") + "Raise exception from n{r} with rank id: {r}"
    )
    trace = ["Traceback (most recent call last):", '  File "train.py", line 1, in <module>', "    main()"]
    ranks = [
        [raised.format(r=r), *trace, f"{kind}: on rank {r}"] for r, kind in ((0, "RuntimeError"), (5, "ValueError"))
    ]
    woven = "".join(
        f"[default{r}]:{line}\n" for pair in zip(*ranks, strict=True) for r, line in zip((0, 5), pair, strict=True)
    )
    found = {(e.rank, e.host, e.type, e.message) for e in only(woven.encode()).exceptions}
    assert found == {(0, "n0", "RuntimeError", "on rank 0"), (5, "n5", "ValueError", "on rank 5")}
    # Without prefixes the frames are torn, but neither exception is lost.
    torn = "".join(f"{line}\n" for pair in zip(*ranks, strict=True) for line in pair)
    found = only(torn.encode()).exceptions
    assert {e.rank for e in found} == {0, 5}
    assert {e.type for e in found} == {"RuntimeError", "ValueError"}


def test_signals_and_uncaught_exceptions():
    lines = [
        "[rank3]: Traceback (most recent call last):",
        '[rank3]:   File "train.py", line 3, in <module>',
        "[rank3]: torch.distributed.DistBackendError: NCCL error: remote process exited",
        "   exitcode  : -9 (pid: 12)",
        "   traceback : Signal 9 (SIGKILL) received by PID 12",
        "Segmentation fault (core dumped)",
    ]
    events = only("\n".join(lines).encode() + b"\n").exceptions
    assert [(e.kind, e.type, e.rank) for e in events] == [
        (EXCEPTION, "torch.distributed.DistBackendError", 3),
        (KILLED, "SIGKILL", None),
        (KILLED, "Segmentation fault (core dumped)", None),
    ]
    assert not any(event.raised_by_train for event in events)


def test_events():
    told = {
        "Overflow occurs, please check it.": (OVERFLOW, None),
        "Nan grad norm occurs, please check it.": (OVERFLOW, None),
        "Overflow occurs, the loss scale is adjusted to 32768.0": (LOSS_SCALE, 32768.0),
        "No overflow for consecutive 1000 steps, the loss scale is adjusted to 131072.0": (LOSS_SCALE, 131072.0),
        "Saving checkpoint to `local:ckpt/50` at batch count:50...": (CHECKPOINT_SAVED, 50.0),
        "===========Resume training from `local:ckpt/50` 11-23 on host:vm===========": (CHECKPOINT_LOADED, None),
        "Skip batch count:`7`...": (SKIPPED_BATCH, 7.0),
        "Rank:0-tp0-pp0-dp0: pytorch allocator cache flushes 3 times since last step.": (ALLOCATOR_FLUSH, 3.0),
    }
    header = HEADER.format(level="WARNING", place="x.py:1 in f")
    run = only("".join(f"{header}{message}\n" for message in told).encode())
    assert [(event.kind, event.value) for event in run.events] == list(told.values())
    assert run.head.resumed_from == "local:ckpt/50"


SAID = [
    "Distributed environment is initialized, data parallel size: 2, pipeline parallel size: 1, tensor parallel size: 1",
    "initialized seed on rank 0, numpy: 1024, python random: 1024",
    "process rank 0 is bound to host:n1 device: 0",
    "===========New Run 01-01-00:00:00 on host:n1,rank=0,tp=0,pp=0,dp=0===========",
    "===========Resume training from `local:ckpt/50` 11-23 on host:n1===========",
    "Number of elements on ranks: [7, 8], rank:0",
    "The layer sharding is [[(0, 24)]].",
    "Model: {'num_layers': 24}",
    "adam: {'lr': 1.0}",
    "grad_scaler: {'growth_factor': 2}",
    "Rank:0-tp0-pp0-dp0: Step 5: Allocated 7.5 GB, Max_Allocated 9 GB, Reserved 1.4 GB, Max_Reserved 3.4 GB",
    "Rank:0-tp0-pp0-dp0: pytorch allocator cache flushes 3 times since last step.",
    "Find `1` datasets,     2 samples,     delete `3` because of short length",
    "Saving checkpoint to `local:ckpt/50` at batch count:50...",
    "Overflow occurs, the loss scale is adjusted to 32768.0",
    "No overflow for consecutive 1000 steps, the loss scale is adjusted to 131072.0",
    "Overflow occurs, please check it.",
    "Nan grad norm occurs, please check it.",
    "Skip batch count:`7`...",
    "Raise exception from n1 with rank id: 3",
    "seq_len: 4096",
    "checkpoint: True",
]
# Behind each of these stands what is looked for, so that it is no beginning of a line.
BEFORE = ["", "[default0]:", "12: [rank1]: ", "50%|##  |\r", "a line that was cut off "]
ENDED = ["Killed", "Aborted (core dumped)", "Segmentation fault (core dumped)", "Bus error", "Fatal Python error: x"]
ENDED += ["Received 15 death signal, shutting down workers", "  traceback : Signal 9 (SIGKILL) received by PID 1"]


@pytest.mark.parametrize("said", SAID)
def test_what_the_logger_says_is_found_in_chatter(said):
    """Each known message, and none that only resembles it."""
    chatter = CHATTER * 300
    for before in BEFORE:
        line = before + HEADER.format(level="INFO", place="x.py:1 in f") + said
        counts = parse(METRIC_LINES[0] + chatter + line.encode() + b"\n" + chatter)[0].counts
        assert (counts.known, counts.lines) == (1, 2 + 2 * chatter.count(b"\n")), before
        altered = line.replace(said, f"told {said}").encode()
        assert parse(METRIC_LINES[0] + chatter + altered + b"\n" + chatter)[0].counts.known == 0, before


@pytest.mark.parametrize("said", ENDED)
def test_how_a_process_died_is_found_in_chatter(said):
    for before in BEFORE[:-1]:
        run = only(METRIC_LINES[0] + CHATTER * 300 + f"{before}{said}\n".encode() + CHATTER * 300)
        (event,) = run.exceptions
        assert (event.kind, event.line) == (KILLED, 2 + 300 * CHATTER.count(b"\n")), before


def test_a_log_of_several_runs_is_parted_at_their_heads():
    runs = parse(EXHAUSTED + SLICE + OUT_OF_MEMORY)
    assert [len(run.steps) for run in runs] == [66, 12, 0]
    assert [run.head.model["num_layers"] for run in runs] == [12, 24, 32]
    assert [[event.type for event in run.exceptions] for run in runs] == [
        ["StopIteration"],
        [],
        ["torch.OutOfMemoryError"],
    ]


def test_every_run_of_a_file_tells_which_line_of_code_wrote_its_metrics():
    place = "training_internlm.py record_current_batch_training_metrics"
    assert [run.head.code_lines[place] for run in parse(SLICE + EXHAUSTED + SLICE)] == [599, 747, 599]


def test_headless_runs_are_parted_where_the_steps_fall_back():
    lines = b"".join(METRIC_LINES)
    assert [run.steps["step"].tolist() for run in parse(lines + lines[: len(lines) // 2])] == [
        list(range(12)),
        list(range(6)),
    ]


def test_a_run_has_the_columns_of_its_own_lines():
    whole, exhausted = only(SLICE).steps, only(EXHAUSTED).steps
    assert set(whole) != set(exhausted)
    for data, expected in ((EXHAUSTED + SLICE, [exhausted, whole]), (SLICE + EXHAUSTED, [whole, exhausted])):
        for run, alone in zip(parse(data), expected, strict=True):
            assert_same(figures(run), figures_of(alone), check_like=True)


def test_a_run_whose_lines_end_earlier_than_anothers_is_no_run_of_cut_lines():
    short = b"".join(line[: line.index(b" acc=")] + b" \n" for line in METRIC_LINES[:3])
    runs = parse(short + SLICE)
    assert [len(run.steps) for run in runs] == [3, 12]
    assert "acc" not in runs[0].steps
    assert runs[0].counts.refused == 0


def test_the_line_that_was_cut_stands_in_the_example():
    cut = METRIC_LINES[3][: METRIC_LINES[3].index(b" acc=")] + b"\n"
    run = only(b"".join([*METRIC_LINES[:3], cut, *METRIC_LINES[4:]]))
    assert (run.counts.refused, run.counts.steps) == (1, 11)
    assert run.counts.examples[0].startswith("line 4: it was cut off in the middle of a write: tflops=")


def test_a_resumed_segment_knows_its_checkpoint():
    run = Run(total_steps=60)
    first, second = parse(run.text(last=40) + run.text(first=30))
    assert (first.head.resumed_from, second.head.resumed_from) == (None, "local:ckpt/30")
    assert second.steps["step"].tolist() == list(range(30, 60))


@pytest.mark.parametrize("keep", range(260, 765, 56))
def test_a_line_that_is_cut_off_is_refused_never_guessed(keep):
    cut = METRIC_LINES[-1][:keep]
    run = only(b"".join(METRIC_LINES[:-1]) + cut)
    whole = only(b"".join(METRIC_LINES))
    if len(run.steps) == 12:  # only what stands behind all the figures was cut
        assert re.search(rb"loss/code=n?a?n? ?$", cut)
    else:
        assert_same(run.steps.frame(), whole.steps.frame().iloc[:-1])
        assert (run.counts.refused, run.counts.cut) == (1, True)
        assert "line 12" in run.counts.examples[0]


def test_a_line_that_runs_into_the_next_is_refused_and_the_next_is_read():
    glued = METRIC_LINES[3][:-200] + METRIC_LINES[4]
    run = only(b"".join([*METRIC_LINES[:3], glued, *METRIC_LINES[5:]]))
    assert run.steps["step"].tolist() == [0, 1, 2, *range(4, 12)]
    assert run.counts.refused == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda line: line.replace(b"step=5", b"step=-5"), "stands in it 0 times|whole number"),
        (lambda line: line.replace(b" step=5", b" step=5.5"), "whole number"),
        (lambda line: line.replace(b" loss=", b" lost="), "loss stands in it 0 times"),
        (lambda line: line.rstrip() + b" step=6\n", "step stands in it 2 times"),
        (lambda line: line.rstrip() + b" acc=1.0\n", "a field stands in it twice"),
        (lambda line: line.rstrip() + b"".join(b" x%d=1" % i for i in range(300)) + b"\n", "more than 256 fields"),
    ],
)
def test_what_cannot_be_trusted_is_refused_with_the_reason(change, reason):
    run = only(b"".join(change(line) if b" step=5 " in line else line for line in METRIC_LINES))
    assert 5 not in run.steps["step"].tolist()
    assert run.counts.refused == 1
    assert re.search(reason, run.counts.examples[0])


@pytest.mark.parametrize("data", [b"", b"\n\n", b"root:x:0:0\n", b"\x00\xff" * 1000, "训练\n".encode("gbk")])
def test_what_is_no_log_gives_no_run(data):
    assert parse(data) == []


def test_a_date_that_does_not_exist_is_no_time():
    run = only(b"".join(METRIC_LINES).replace(b"2026-11-23", b"2026-13-45"))
    assert len(run.steps) == 12
    assert np.isnat(run.steps["time"]).all()


MARKED = [
    "loss=",
    "tflops=",
    "-- Nan grad norm occurs",
    "--seq_len: 4096",
    "(most recent call last):",
    "(SIGTERM)",
    "Received 15",
    *(text.decode() for text in (traces.FATAL, *traces.DEATHS)),
]


@pytest.mark.parametrize("text", MARKED)
def test_what_says_something_is_found_at_every_place_of_a_chunk_that_says_nothing(text):
    line, silent = f"{text}\n".encode(), b"." * (1 << 15) + b"\n"
    for shift in (0, 1, 2, 3):
        before = silent[shift:]
        chunk = before + line + silent
        assert marks.Marks(chunk).line(0, idle=True) == len(before)
        assert marks.Marks(before + silent).line(0, idle=True) == len(before + silent)
        end = silent[shift:-1] + line[:-1]
        assert marks.Marks(end).line(0, idle=True) == 0
