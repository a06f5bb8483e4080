"""No input crashes or stalls the log parser, and none makes it lose count of the lines."""

import io
import time
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from honest_log import Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.analysis import analyze
from conformance.internevo.log import lines, marks, parse_log, parser

ROOT = Path(__file__).resolve().parents[3]
LOGS = [path.read_bytes() for path in sorted((ROOT / "reference_logs").glob("*.log"))]
HEADER = b"2026-11-23 18:22:03,000\tINFO a.py:1 in f -- "
LINE = [line for line in LOGS[-1].splitlines(keepends=True) if b"tflops=" in line][3]

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)

# What a hostile or broken log is made of.
TOKENS = st.sampled_from(
    [
        LINE,
        LINE[:300],
        LINE[300:],
        LINE.replace(b" step=3 ", b" step=4 "),
        *LOGS[0].splitlines(keepends=True)[30:60],
        *LOGS[0].splitlines(keepends=True)[-25:],
        b"\n",
        b"\r",
        b"\r\n",
        b"\x1b[31m",
        b"[default3]:",
        b"[rank1]: ",
        b"7: ",
        b"tflops=",
        b" step=5 loss=1.0 tgs (tokens/gpu/second)=7 ",
        b"grad_norm={",
        b"}",
        b"nan ",
        b"step=" + b"9" * 15 + b" ",
        b"1e999 ",
        b"Traceback (most recent call last):\n",
        b"ValueError: x\n",
        b"Killed\n",
        b"Aborted (core dumped)\n",
        b"Received 15 death signal, shutting down workers\n",
        b"Fatal Python error: Aborted\n",
        b"   traceback : Signal 9 (SIGKILL) received by PID 12\n",
        HEADER + b"rank 1 is alive\n",
        HEADER + b"lr: 1.0 \n",
        HEADER + b"seed: 7",
        HEADER + b"Nan grad norm occurs, please check it.\n",
        HEADER + b"Raise exception from n1 with rank id: 3\n",
        HEADER + b"Model: {'num_layers': 2}\n",
        "训练".encode("gbk"),
        "训练".encode(),
        b"\x00",
    ]
)
hostile = st.lists(TOKENS | st.binary(max_size=40), max_size=40).map(b"".join)


def splice(draw_from):
    """Cut real logs to pieces and put them together otherwise."""

    def build(cuts):
        return b"".join(LOGS[i % len(LOGS)][a : a + n] for i, a, n in cuts)

    return st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60_000), st.integers(0, draw_from)), max_size=12).map(
        build
    )


def check(data):
    runs = parse_log(io.BytesIO(data))
    shown = lines.ANSI.sub(b"", data)  # what only sets a colour at the end is no line
    for run in runs:
        counts = run.counts
        assert counts.lines == shown.count(b"\n") + (len(shown) > 0 and not shown.endswith(b"\n"))
        assert min(counts.steps, counts.known, counts.refused, counts.other) >= 0
        assert all(1 <= line <= counts.lines for line in run.steps["line"])
        assert np.all(np.diff(run.steps["step"]) >= 0)
    for analysis in analyze(io.BytesIO(data)):
        analysis.to_json()


@relaxed
@given(st.binary(max_size=2000))
def test_bytes_at_random(data):
    check(data)


@relaxed
@given(hostile)
def test_parts_of_logs_in_any_order(data):
    check(data)


@relaxed
@given(splice(4000))
def test_real_logs_cut_to_pieces(data):
    check(data)


@relaxed
@given(st.integers(0, len(LOGS[-1])), st.binary(min_size=1, max_size=3), st.integers(0, 2))
def test_real_logs_with_a_fault(position, fault, which):
    data = LOGS[which]
    position %= len(data)
    check(data[:position] + fault + data[position + len(fault) :])


def test_a_field_may_have_the_name_of_a_column_of_the_readers_own():
    text = Run().text().replace(b" acc=", b" line=7 time=8 source=9 layout=10 segment=11 acc=")
    (run,) = parse_log(io.BytesIO(text))
    (plain,) = parse_log(io.BytesIO(Run().text()))
    assert run.steps["time="].tolist() == [8.0] * len(run.steps)
    assert run.steps.only(plain.steps).frame().equals(plain.steps.frame())


@relaxed
@given(hostile, st.integers(1, 400))
def test_where_chunks_are_cut_makes_no_difference(data, size):
    whole = parse_log(io.BytesIO(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parser, "CHUNK", size)
        pieces = parse_log(io.BytesIO(data))
    assert [run.steps.frame().to_csv() for run in pieces] == [run.steps.frame().to_csv() for run in whole]
    assert [(run.events, run.head) for run in pieces] == [(run.events, run.head) for run in whole]


VALUES = st.one_of(
    st.floats().map(repr),
    st.floats(0, 1e7).map(repr),
    st.integers(0, 10**41).map(str),
    st.sampled_from(["nan", "-nan", "inf", "-inf", "-0", "+1.5", "1e5", "1E5", "1e999", "1e", "--1", "1.2.3", ".", ""]),
    st.sampled_from(["tensor(1.5,device='cuda:0')", "1_0", "0x10", "1,5", "{'a': 1.0}", "1\n2", "1 2", "\u0661"]),
)
CHATTER = st.sampled_from(
    [
        *(
            f"{word}\n".encode()
            for word in ("NCCL INFO ring 0", "Killed process 12", "KilledByNobody at all", "x loss=1", "ValueError: x")
        ),
        b"Traceback (most recent call last):\n",
        b"[rank1]: Signal 9 (SIGKILL) received by PID 1\n",
        b"During handling of the above exception, another exception occurred:\n",
        LINE.replace(b"step=3 ", b"step=3"),
        LINE[:100] + b"Raise exception from n1 with rank id: 3\n",
        LINE[:100] + b"\n",
        LINE.replace(b"beta2", b"2beta"),
        LINE.replace(b"2026-11-23", b"2026-11-24"),
        LINE.replace(b"2026-11-23", b"2026-02-30"),
    ]
)


def lines_with(changes, chatter):
    """Fifty lines of metrics, some with another value in one field, some followed by other lines."""
    lines = [LINE.replace(b" step=3 ", b" step=%d " % step) for step in range(50)]
    for at, which, value in changes:
        fields = lines[at].split(b"=")
        which = 1 + which % (len(fields) - 1)
        rest = fields[which].lstrip(b"-+.0123456789aefin")
        lines[at] = b"=".join([*fields[:which], value.encode() + rest, *fields[which + 1 :]])
    for at, line in chatter:
        lines[at] += line
    return b"".join(lines)


@relaxed
@given(
    st.lists(st.tuples(st.integers(0, 49), st.integers(0, 40), VALUES), max_size=6),
    st.lists(st.tuples(st.integers(0, 49), CHATTER), max_size=6),
)
def test_templates_and_marks_read_what_going_line_by_line_reads(changes, chatter):
    data = lines_with(changes, chatter)
    fast = parse_log(io.BytesIO(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parser, "_MAX_TEMPLATES", 0)
        patch.setattr(marks.Marks, "line", lambda self, begin, idle: begin)
        slow = parse_log(io.BytesIO(data))
    # As text, a number has all its digits and its sign.
    assert [run.steps.frame().to_csv() for run in fast] == [run.steps.frame().to_csv() for run in slow]
    assert [(run.events, run.head, run.counts) for run in fast] == [(run.events, run.head, run.counts) for run in slow]


@relaxed
@given(hostile)
def test_lines_without_a_mark_say_nothing(data):
    fast = parse_log(io.BytesIO(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(marks.Marks, "line", lambda self, begin, idle: begin)
        slow = parse_log(io.BytesIO(data))
    assert [run.steps.frame().to_csv() for run in fast] == [run.steps.frame().to_csv() for run in slow]
    assert [(run.events, run.head, run.counts) for run in fast] == [(run.events, run.head, run.counts) for run in slow]


# Made when a test asks for one: together they fill tens of megabytes.
STALLS = {
    "one endless line": lambda: b"a" * (1 << 20),
    "an endless word that could be a key": lambda: b"tflops=1 step=1 loss=1 " + b"a" * (1 << 20),
    "keys without end": lambda: b"a=" * (1 << 20),
    "open braces": lambda: LINE[:200] + b"x={" * (1 << 18),
    "an open dict": lambda: (LINE[:400].rstrip() + b" grad_norm={'0_default': 1.0,\n") * 4000,
    "spaces": lambda: b"tflops=1" + b" " * (1 << 20),
    "openings of a unit": lambda: b"tflops=1 step=1 loss=1 " + b"a (" * (1 << 20),
    "escapes": lambda: b"\x1b[" + b"1;" * (1 << 20),
    "headers": lambda: LINE[:100] * 20_000,
    "headers without line ends": lambda: (LINE[:24] + b"INFO a.py:1 in f -- ") * 50_000,
    "prefixes": lambda: b"[default0]:" * 100_000,
    "marks": lambda: b"tflops= loss= ,123 INFO Killed\n" * 20_000,
    "chatter": lambda: b"NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM\n" * 200_000,
    "a date for every line": lambda: b"".join(
        LINE.replace(b"2026-11-23", b"20%02d-11-23" % (i % 99)) for i in range(3000)
    ),
    "tracebacks": lambda: b"Traceback (most recent call last):\n" * 50_000,
    "wrapped for ever": lambda: LINE[:200] + b"\n" + b"x=1\n" * 100_000,
    "a layout for every line": lambda: b"".join(LINE.rstrip() + b" x%d=1\n" % i for i in range(3000)),
    "a prefix for every line": lambda: b"".join(b"[default%d]:" % (i % 99_999) + LINE for i in range(6000)),
    "a run for every line": lambda: b"".join(LINE.replace(b"step=3", b"step=%d" % (9999 - i)) for i in range(3000)),
    "heads": lambda: (
        b"2026-11-23 18:22:03,000\tINFO launch.py:435 in launch -- Distributed environment is initialized\n" * 20_000
    ),
    "carriage returns": lambda: b"\r" * (1 << 20),
    "zeros": lambda: bytes(1 << 20),
}


RAISED = LINE[:24] + b"ERROR train.py:321 in <module> -- Raise exception from h with rank id: 3\n"
TRACE = b"Traceback (most recent call last):\n" + b'  File "train.py", line 1, in main\n' * 6 + b"ValueError: x\n"


def without_end(flood):
    return flood * min(48_000, 6_000_000 // len(flood))


# A line or some lines, without end, each of which tells an event.
FLOODS = {
    "signals": b"Killed " + b"x" * 40 + b"\n",
    "exceptions": b"Traceback (most recent call last):\nValueError: x\n",
    "exceptions that train.py caught": RAISED + TRACE,
    "exceptions without their tracebacks": RAISED,
    "overflows": LINE[:24] + b"WARNING a.py:1 in f -- Overflow occurs, please check it.\n",
    "steps that fall back": LINE.replace(b" step=3 ", b" step=4 ") + LINE,
}
STALLS |= {f"{name} without end": partial(without_end, flood) for name, flood in FLOODS.items()}


def judge(data):
    """Analyse a log; CPU time."""
    begin = time.process_time()
    runs = [run.to_json() for run in analyze(io.BytesIO(data))]
    assert all(run["lines"][0]["lines"] >= 1 for run in runs)
    return time.process_time() - begin


@pytest.mark.parametrize("name", STALLS)
def test_nothing_stalls_it(name):
    """Four times the log takes four times as long; what goes by the square would take sixteen times."""
    data = STALLS[name]()
    assert judge(data) < 9 * max(judge(data[: len(data) // 4]), 0.25)


@pytest.mark.parametrize("name", [name for name in FLOODS if "steps" not in name])
def test_no_flood_of_events_fills_the_memory(name):
    kept = []
    for count in (2100, 4200):
        data = io.BytesIO(FLOODS[name] * count)
        tracemalloc.start()
        runs = parse_log(data)
        kept.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert sum(len(run.events) for run in runs) <= 2 * parser._MAX_EVENTS
    assert kept[1] < kept[0] + (1 << 19)


def test_of_a_flood_the_first_and_the_last_events_are_kept_and_the_rest_counted():
    (run,) = parse_log(io.BytesIO(b"Killed\n" * 5000 + RAISED + TRACE + b"Killed\n" * 5000))
    assert [event.line for event in run.exceptions if event.kind == "killed"] == [*range(1, 1001), *range(9010, 10010)]
    assert [event.type for event in run.exceptions if event.raised_by_train] == ["ValueError"]
    assert run.counts.events_dropped == 8000
    assert run.counts.known == 10_009
