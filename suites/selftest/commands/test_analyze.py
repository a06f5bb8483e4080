"""``conformance analyze``: exit codes, text, JSON and the page."""

import io
import json
import re
import statistics
from pathlib import Path

import pytest
from honest_log import Run

from conformance.cli import main

ROOT = Path(__file__).resolve().parents[3]
LOGS = ROOT / "reference_logs"
SLICE = str(LOGS / "h200-7b-slice24-v0.2.3.log")


def test_text_and_exit_code_of_a_good_run(capsys):
    assert main(["analyze", SLICE]) == 0
    text = capsys.readouterr().out
    assert "completed, 12 steps logged" in text
    assert "24 layers, hidden size 4096, sequence length 4096, f = 3" in text
    assert "TGS      median 12078.4" in text


def test_a_failed_check_gives_1(capsys):
    assert main(["analyze", str(LOGS / "h200-7b-32layers-oom-v0.2.3.log")]) == 1
    text = capsys.readouterr().out
    assert "out_of_memory, 0 steps logged" in text
    assert "torch.OutOfMemoryError on rank 0, vm" in text
    assert "FAIL  run-complete" in text


def test_json_of_several_files(capsys):
    logs = sorted(map(str, LOGS.glob("*.log")))
    assert main(["analyze", "--json", *logs]) == 1
    runs = json.loads(capsys.readouterr().out)["runs"]
    ended = ["completed"] * (len(logs) - 3) + ["crashed", "out_of_memory", "stopped"]
    assert sorted(run["outcome"] for run in runs) == ended


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "cannot be read"), (b"", "no line of InternEvo's"), (b"hello\n", "no line of InternEvo's")],
)
def test_what_cannot_be_read_gives_2_and_one_sentence(tmp_path, capsys, content, told):
    path = tmp_path / "x.log"
    if content is not None:
        path.write_bytes(content)
    assert main(["analyze", SLICE, str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert str(path) in captured.err
    assert "Traceback" not in captured.err


def test_standard_input_is_a_log(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(Path(SLICE).read_bytes())))
    assert main(["analyze", "-"]) == 0
    assert "standard input: completed, 12 steps logged" in capsys.readouterr().out


def test_what_was_computed_is_shown(capsys):
    main(["analyze", str(LOGS / "h200-7b-slice24-suite-v0.2.3.log"), "--ceiling-tflops", "773"])
    text = capsys.readouterr().out
    for told in (
        "coefficient of variation 0.67%",
        "last ten 12184.6",
        "over all ranks: last 0.0119",
        "allocator flush 1",
    ):
        assert told in text
    assert "MFU      58.3% of the GEMM ceiling (--ceiling-tflops), 54.5% with causal attention" in text
    assert "83 read of" in text
    assert "verdict  nothing failed: " in text
    main(["analyze", str(LOGS / "h200-7b-32layers-oom-v0.2.3.log")])
    text = capsys.readouterr().out
    assert "_multi_tensor_adam" in text
    assert "verdict  FAIL: 1 of 19 checks failed: run-complete." in text
    main(["analyze", str(ROOT / "fixtures" / "tiny-perf-run" / "logs" / "node0" / "rank0.log")])
    assert re.search(r"TFLOPS   logged 0\.0\d{3}", capsys.readouterr().out)


def test_refused_lines_are_shown_with_the_reason(tmp_path, capsys):
    path = tmp_path / "x.log"
    path.write_bytes(Path(SLICE).read_bytes() + b"tflops=1 loss=2\n")
    assert main(["analyze", str(path)]) == 1
    text = capsys.readouterr().out
    assert re.search(r"lines +\d+ read of .*: 12 steps, \d+ known, 1 refused", text)
    assert "refused: line" in text


def test_the_benchmarks_sample_line_is_shown_with_its_other_reading(tmp_path, capsys):
    sample, page = str(ROOT / "fixtures" / "logs" / "benchmark-sample-line.log"), tmp_path / "x.html"
    assert main(["analyze", sample, "--json", "--html", str(page)]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    why = run["published_layout"].pop("contradicted_by")
    assert run["published_layout"] == {"micro_bsz": 2, "data_parallel": 16, "cards": 16}
    assert "9.79 s beside a fwd_bwd_time of 4.13 s" in why
    assert "12 samples of at most 2672 tokens" in why
    main(["analyze", sample])
    for text in (capsys.readouterr().out, page.read_text(encoding="utf-8")):
        assert "of all layouts, only this one can have written the lines" in text
        assert "by the published micro_bsz 2 it would be 16 cards" in text
        assert why in text


def test_json_holds_events_tracebacks_and_the_lines_of_each_file(tmp_path, capsys):
    files = {"a.log": Run(total_steps=60, skipped={20}).text(last=40), "b.log": Run(total_steps=60).text(first=30)}
    files["b.log"] += (
        b"2026-01-01 00:09:00,000\tERROR train.py:321 in <module> -- Raise exception from n with rank id: 3\n"
    )
    files["b.log"] += b"Traceback (most recent call last):\n  here\nOSError: no disk\n"
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    main(["analyze", "--json", *(str(tmp_path / name) for name in files)])
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert [Path(file["file"]).name for file in run["lines"]] == ["a.log", "b.log"]
    assert run["exceptions"][0]["traceback"][-1] == "OSError: no disk"
    assert run["event_counts"] == {"overflow": 1, "checkpoint_loaded": 1, "exception": 1}
    assert [event["kind"] for event in run["events"]] == ["overflow", "checkpoint_loaded"]
    assert "launch.py launch" in run["code_lines"]


@pytest.mark.parametrize(("seconds", "result"), [((9.60, 9.61, 9.62), "PASS"), ((9.97, 9.98, 9.99), "FAIL")])
def test_runs_that_repeat_one_another_settle_a_floor_together(tmp_path, capsys, seconds, result):
    """The mean of three runs is held against the floor of 3345.72."""
    paths = []
    for number, each in enumerate(seconds):
        paths.append(str(tmp_path / f"{number}.log"))
        run = Run(data_parallel=32, seconds=each, jitter=0.02, seed=number)
        Path(paths[-1]).write_bytes(run.text())
    code = main(["analyze", "--json", "--workload", "llama2-7b-perf", *paths])
    shown = json.loads(capsys.readouterr().out)
    (group,) = shown["pooled"]
    assert group["runs"] == [0, 1, 2]
    alone = [run["tgs"]["median"] for run in shown["runs"]]
    assert group["mean"] == pytest.approx(sum(alone) / 3)
    assert group["ci95"][1] - group["mean"] == pytest.approx(4.302653 * statistics.stdev(alone) / 3**0.5, rel=1e-5)
    verdict = {finding["check"]: finding["result"] for finding in group["findings"]}["tgs-floor"]
    assert verdict == result, (alone, group)
    assert (code == 1) is (result == "FAIL")


def test_runs_of_other_layouts_or_that_failed_are_not_taken_together(tmp_path, capsys):
    runs = (Run(data_parallel=32), Run(data_parallel=16), Run(data_parallel=32))
    for number, (run, last) in enumerate(zip(runs, (None, None, 12), strict=True)):
        (tmp_path / f"{number}.log").write_bytes(run.text(last=last))
    main(["analyze", "--json", "--workload", "llama2-7b-perf", *map(str, sorted(tmp_path.glob("*.log")))])
    assert json.loads(capsys.readouterr().out)["pooled"] == []


def test_an_unknown_workload_gives_2(capsys):
    assert main(["analyze", SLICE, "--workload", "llama3"]) == 2
    assert "llama3" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "fast"])
def test_a_floor_that_is_none_is_refused(value, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["analyze", SLICE, f"--tgs-floor={value}"])
    assert ended.value.code == 2
    assert f"{value!r} is no number above 0" in capsys.readouterr().err


def test_workload_device_and_floors(capsys):
    args = ["analyze", SLICE, "--workload", "slice-7b-perf", "--device", "NVIDIA H200", "--json"]
    main([*args, "--tgs-floor", "13000", "--peak-tflops", "989"])
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    findings = {finding["check"]: finding for finding in run["findings"]}
    assert "reference_logs" in findings["tgs-floor"]["limit_source"]
    assert findings["tgs-floor-declared"]["result"] == "FAIL"
    assert run["mfu"]["declared_peak"] == pytest.approx(run["tflops"]["model"] / 989)


def test_the_ranks_of_one_run_and_the_segments_of_a_resumed_one(tmp_path, capsys):
    run = Run(total_steps=60)
    raised = b"2026-01-01 00:00:40,000\tERROR train.py:321 in <module> -- Raise exception from n1 with rank id: 5\n"
    files = {
        "second.log": run.text(first=30),
        "first.log": run.text(last=40),
        "rank5.log": raised + b"Traceback (most recent call last):\n  x\nValueError: bad link\n",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert main(["analyze", "--json", *(str(tmp_path / name) for name in files)]) == 1
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert (found["steps_logged"], found["segments"], found["outcome"]) == (60, 2, "crashed")
    assert found["exceptions"][0]["rank"] == 5


def test_the_page_is_self_contained_and_escapes_what_the_log_says(tmp_path, capsys):
    log, page = tmp_path / "<b>.log", tmp_path / "page.html"
    raised = b"2026-01-01 00:00:40,000\tERROR train.py:321 in <module> -- Raise exception from <i> with rank id: 5\n"
    log.write_bytes(
        Run().text() + raised + b"Traceback (most recent call last):\n  x\nValueError: <script>alert(1)</script>\n"
    )
    assert main(["analyze", str(log), "--html", str(page)]) == 1
    text = page.read_text()
    assert "&lt;script&gt;alert(1)" in text
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert text.count("<svg") == 2
    assert main(["analyze", SLICE, "--html", str(tmp_path / "no" / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_nothing_that_a_log_says_moves_the_cursor(tmp_path, capsys):
    """A lab reads a stranger's log; a stranger's file name stands in the message that refuses it, too."""
    oom = (LOGS / "h200-7b-32layers-oom-v0.2.3.log").read_text(encoding="utf-8")
    path = tmp_path / "x.log"
    path.write_text(oom.replace("OutOfMemoryError: CUDA", "OutOfMemoryError: \x1b]0;x\x07\u202eCUDA"), encoding="utf-8")
    assert main(["analyze", str(path)]) == 1
    text = capsys.readouterr().out
    assert "\\x1b]0;x\\x07\\u202eCUDA" in text
    assert all(line.isprintable() for line in text.splitlines())
    assert main(["analyze", str(tmp_path / "\x1b[2J.log")]) == 2
    assert "\\x1b[2J.log cannot be read" in capsys.readouterr().err
