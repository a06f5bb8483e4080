"""Completion is read from the log: a crash, a kill, a stop and a log that ends too early are all told apart."""

import io
from pathlib import Path

import pytest
from honest_log import Run

from conformance.analysis import analyze
from conformance.checks.finding import Result
from conformance.internevo.log import Event, parse_log
from conformance.spec import load_workload

ROOT = Path(__file__).resolve().parents[3]
LOGS = ROOT / "reference_logs"
RUN = Run(total_steps=40)
RAISED = (
    "2026-01-01 00:05:00,000\tERROR train.py:321 in <module> -- Raise exception from n7 with rank id: 7\n"
    "Traceback (most recent call last):\n"
    '  File "train.py", line 319, in <module>\n'
)


def outcome(data, **expected):
    (run,) = analyze(io.BytesIO(data), **expected)
    (finding,) = [f for f in run.findings if f.check == "run-complete"]
    return run.outcome, run.complete, finding.result, finding.message


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (lambda: RUN.text(), ("completed", True, Result.PASS)),
        (lambda: RUN.text(last=30), ("truncated", False, Result.FAIL)),
        (lambda: RUN.text()[:-300], ("truncated", False, Result.FAIL)),
        (lambda: RUN.text(last=3, head=False), ("unknown", None, Result.ERROR)),
        (lambda: RUN.text(last=30) + f"{RAISED}RuntimeError: link down\n".encode(), ("crashed", False, Result.FAIL)),
        (
            lambda: RUN.text(last=30) + f"{RAISED}RuntimeError: out of memory.\n".encode(),
            ("out_of_memory", False, Result.FAIL),
        ),
        (lambda: RUN.text(last=30) + f"{RAISED}KeyboardInterrupt\n".encode(), ("stopped", False, Result.FAIL)),
        (lambda: RUN.text(last=30) + b"Signal 9 (SIGKILL) received by PID 12\n", ("crashed", False, Result.FAIL)),
        # Once train.py has caught something, having logged the last step does not help.
        (lambda: RUN.text() + f"{RAISED}OSError: disk full\n".encode(), ("crashed", False, Result.FAIL)),
        # What a process prints while it closes down is another matter.
        (
            lambda: RUN.text() + b"Traceback (most recent call last):\n  x\nOSError: closed\n",
            ("completed", True, Result.PASS),
        ),
    ],
)
def test_outcomes(log, expected):
    assert outcome(log())[:3] == expected


def test_a_run_that_was_told_to_stop():
    saved = "2026-01-01 00:05:00,000\tINFO model_checkpoint.py:1239 in save_checkpoint -- "
    text = RUN.text(last=30) + f"{saved}Saving checkpoint to `local:ckpt/30` at batch count:30...\n".encode()
    ending, _, result, message = outcome(text)
    assert (ending, result) == ("stopped", Result.FAIL)
    assert message.endswith("it was told to stop, and saved a checkpoint.")
    assert outcome(RUN.text(last=30, head=False) + text[-20:])[0] == "truncated"


def test_both_real_crashes_are_named():
    _, _, result, message = outcome((LOGS / "h200-7b-32layers-oom-v0.2.3.log").read_bytes())
    assert result is Result.FAIL
    assert "0 steps logged; rank 0 on vm raised torch.OutOfMemoryError: CUDA out of memory" in message
    _, _, result, message = outcome((LOGS / "h200-124m-data-exhausted-v0.3.1.log").read_bytes())
    assert result is Result.FAIL
    assert "66 of 600 steps logged, the last one 65; rank 0 on vm raised StopIteration" in message


def test_the_workload_says_how_many_steps_there_are():
    slice12 = (LOGS / "h200-7b-slice24-v0.2.3.log").read_bytes()
    assert outcome(slice12)[0] == "completed"
    assert outcome(slice12, workload=load_workload("slice-7b-perf"))[0] == "truncated"


def test_a_crash_on_another_rank_is_the_runs():
    other = parse_log(io.BytesIO(f"{RAISED}ValueError: rank 7 died\n".encode()))[0].exceptions
    (run,) = analyze(io.BytesIO(RUN.text()), others=other)
    assert (run.outcome, run.complete) == ("crashed", False)
    (shown,) = run.to_json()["exceptions"]
    assert (shown["type"], shown["rank"], shown["host"], shown["after_step"]) == ("ValueError", 7, "n7", 39)


def next_day(text):
    return text.replace(b"2026-01-01", b"2026-01-02").replace(b"2025-12-31", b"2026-01-01")


@pytest.mark.parametrize(
    ("day", "crashed"),
    [
        (b"2025-12-30", ["crashed", "completed"]),
        (b"2026-01-01", ["crashed", "completed"]),
        (b"2026-01-02", ["completed", "crashed"]),
    ],
)
def test_a_crash_on_another_rank_is_held_against_the_run_that_was_under_way(day, crashed):
    raised = RAISED.encode().replace(b"2026-01-01", day) + b"ValueError: rank 7 died\n"
    others = parse_log(io.BytesIO(raised))[0].exceptions
    both = RUN.text() + next_day(RUN.text())
    runs = analyze(io.BytesIO(both), others=others)
    assert [run.outcome for run in runs] == crashed
    assert [len(run.exceptions) for run in runs] == [int(outcome == "crashed") for outcome in crashed]


def test_a_crash_before_the_first_step_is_held_against_the_run_that_had_begun():
    others = parse_log(io.BytesIO(next_day(RAISED.encode()) + b"ValueError: rank 7 died\n"))[0].exceptions
    runs = analyze(io.BytesIO(RUN.text() + next_day(RUN.text(last=0))), others=others)
    assert [run.outcome for run in runs] == ["completed", "crashed"]


def test_a_signal_that_tells_no_time_stands_with_the_last_run():
    others = parse_log(io.BytesIO(b"Signal 9 (SIGKILL) received by PID 12\n"))[0].exceptions
    both = RUN.text(last=30) + next_day(RUN.text(last=20))
    runs = analyze(io.BytesIO(both), others=others)
    assert [(run.outcome, len(run.exceptions)) for run in runs] == [("truncated", 0), ("crashed", 1)]


def test_a_crash_before_a_resumption_is_told_but_not_held_against_the_run():
    text = RUN.text(last=30) + f"{RAISED}RuntimeError: link down\n".encode() + RUN.text(first=25)
    (run,) = analyze(io.BytesIO(text))
    assert (run.outcome, run.complete, len(run.segments)) == ("completed", True, 2)
    (shown,) = run.to_json()["exceptions"]
    assert (shown["type"], shown["after_step"]) == ("RuntimeError", 29)


@pytest.mark.parametrize("skipped", [{39}, set(range(30, 40)), set(range(20, 40))])
def test_a_run_whose_last_updates_were_skipped_is_not_complete(skipped):
    ended, complete, result, message = outcome(Run(total_steps=40, skipped=skipped).text())
    assert (ended, complete, result) == ("truncated", False, Result.FAIL)
    assert f"the updates of the {len(skipped)} steps after it were skipped" in message


def test_a_run_whose_gradient_became_undefined_for_good_is_not_complete():
    nan = b"Nan grad norm occurs, please check it."
    text = Run(total_steps=40, skipped=set(range(35, 40))).text()
    assert outcome(text.replace(b"Overflow occurs, please check it.", nan))[2] is Result.FAIL


def test_updates_skipped_on_the_way_do_not_matter():
    assert outcome(Run(total_steps=40, skipped={0, 17, 18}).text())[2] is Result.PASS


def test_an_event_is_told_apart_by_its_words():
    from conformance.checks.completion import is_out_of_memory

    assert is_out_of_memory(Event("exception", "HBM Out Of Memory", 1, type="RuntimeError"))
    assert not is_out_of_memory(Event("exception", "out of range", 1, type="IndexError"))
