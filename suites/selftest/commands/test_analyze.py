"""``conformance analyze``: exit codes, text, JSON and the page."""

import json
import runpy
from pathlib import Path

import pytest

from conformance.cli import main

ROOT = Path(__file__).resolve().parents[3]
LOGS = ROOT / "reference_logs"
SLICE = str(LOGS / "h200-7b-slice24-v0.2.3.log")
Run = runpy.run_path(str(ROOT / "fixtures" / "honest_log.py"))["Run"]


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
    assert main(["analyze", "--json", *map(str, sorted(LOGS.glob("*.log")))]) == 1
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert sorted(run["outcome"] for run in runs) == ["completed"] * 3 + ["crashed", "out_of_memory"]


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


def test_an_unknown_workload_gives_2(capsys):
    assert main(["analyze", SLICE, "--workload", "llama3"]) == 2
    assert "llama3" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "fast"])
def test_a_floor_that_is_none_is_refused(value, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["analyze", SLICE, f"--tgs-floor={value}"])
    assert ended.value.code == 2


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
