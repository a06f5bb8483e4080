"""The whole analysis of real logs, and its JSON."""

import io
import json
import re
import warnings
from pathlib import Path

import pytest
from honest_log import Run

from conformance.analysis import Limits, analyze, analyze_logs
from conformance.checks.finding import Result
from conformance.internevo.log import parse_log, parser
from conformance.plan import Topology, make_plan
from conformance.spec import load_checks, load_workload
from conformance.spec.floors import Floor

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / "reference_logs"


def only(data, **expected):
    (run,) = analyze(io.BytesIO(data), **expected)
    return run


def read(name):
    return (LOGS / name).read_bytes()


def result(run, check):
    (finding,) = [finding for finding in run.findings if finding.check == check]
    return finding


def test_the_complete_run_on_an_h200():
    shown = only(read("h200-7b-slice24-v0.2.3.log")).to_json()
    assert (shown["outcome"], shown["complete"], shown["steps_logged"]) == ("completed", True, 12)
    assert (shown["first_step"], shown["last_step"], shown["total_steps"]) == (0, 11, 12)
    assert (shown["num_layers"], shown["hidden_size"], shown["seq_len"]) == (24, 4096, 4096)
    assert (shown["cards"], shown["data_parallel"], shown["global_batch_size"]) == (1, 1, 8)
    assert (shown["checkpoint_factor"], shown["exceptions"]) == (3, [])
    assert shown["tgs"]["median"] == 12078.36
    assert shown["tgs"]["steps_used"] == [1, 11]
    assert shown["tflops"]["logged"] == pytest.approx(490.98, abs=0.01)
    assert shown["tflops"]["model"] == pytest.approx(447.20, abs=0.01)


def test_the_run_that_ran_out_of_memory():
    shown = only(read("h200-7b-32layers-oom-v0.2.3.log")).to_json()
    assert (shown["outcome"], shown["complete"], shown["steps_logged"]) == ("out_of_memory", False, 0)
    assert (shown["first_step"], shown["last_step"], shown["tgs"], shown["tflops"], shown["loss"]) == (None,) * 5
    assert (shown["num_layers"], shown["checkpoint_factor"]) == (32, None)
    (event,) = shown["exceptions"]
    assert (event["type"], event["host"], event["rank"]) == ("torch.OutOfMemoryError", "vm", 0)
    assert event["after_step"] is None


def test_the_run_whose_data_ran_out():
    shown = only(read("h200-124m-data-exhausted-v0.3.1.log")).to_json()
    assert (shown["outcome"], shown["complete"], shown["steps_logged"]) == ("crashed", False, 66)
    assert (shown["last_step"], shown["total_steps"]) == (65, 600)
    (event,) = shown["exceptions"]
    assert (event["type"], event["after_step"]) == ("StopIteration", 65)


def test_the_benchmarks_sample_line():
    run = only((ROOT / "fixtures" / "logs" / "benchmark-sample-line.log").read_bytes())
    shown = run.to_json()
    assert (shown["outcome"], shown["complete"], shown["steps_logged"]) == ("unknown", None, 1)
    assert (shown["num_layers"], shown["seq_len"], shown["checkpoint_factor"]) == (32, 4096, 3)
    assert (shown["global_batch_size"], shown["cards"], shown["micro_bsz"]) == (128, 32, 1)
    # 16 cards at micro_bsz 2 would be 8192 tokens in a micro batch; the line has one of 2 samples of at most 2672.
    assert "micro_bsz 2 would mean data-parallel size 16" in shown["sources"]["cards"]
    assert shown["tflops"]["recomputed"] == pytest.approx(180.457, abs=1e-3)
    assert not [f for f in run.findings if f.result is Result.FAIL]


def test_the_batch_of_a_named_workload_may_shrink_but_not_grow():
    workload, verdicts = load_workload("llama2-7b-perf"), {16: "a reduction", 32: "", 64: "may shrink, never grow"}
    for data_parallel, told in verdicts.items():
        for head in (True, False):
            run = only(Run(data_parallel=data_parallel, seconds=9.0).text(head=head), workload=workload)
            finding = result(run, "log-tokens")
            assert run.facts.global_batch_size == 8 * data_parallel
            assert finding.result is (Result.FAIL if data_parallel == 64 else Result.PASS)
            assert told in finding.message
            assert ("The global batch size is" in finding.message) == (data_parallel != 32)


def test_the_end_of_a_run_is_not_all_of_it():
    sample = (ROOT / "fixtures" / "logs" / "benchmark-sample-line.log").read_bytes()
    for data in (sample, Run(data_parallel=32, seconds=9.0).text(head=False).split(b"\n", 3)[-1]):
        run = only(data, workload=load_workload("llama2-7b-perf"))
        assert (run.outcome, run.complete, result(run, "run-complete").result) == ("unknown", None, Result.ERROR)
        assert "the steps before the first of these are not in the log" in result(run, "run-complete").message
    skipped = only(Run(data_parallel=32, seconds=9.0, skipped={0, 1}).text(), workload=load_workload("llama2-7b-perf"))
    assert (skipped.outcome, skipped.complete) == ("completed", True)


def test_json_is_strict_and_every_check_is_described():
    data = b"".join(read(path.name) for path in sorted(LOGS.glob("*.log")))
    runs = analyze(io.BytesIO(data), workload=load_workload("slice-7b-perf"), limits=Limits(declared_tgs=1.0))
    assert len(runs) == len(list(LOGS.glob("*.log")))
    text = json.dumps([run.to_json() for run in runs], allow_nan=False)
    found = {finding["check"] for run in json.loads(text) for finding in run["findings"]}
    assert found <= set(load_checks())


def test_findings_name_the_file_they_were_read_from():
    run = only(read("h200-7b-slice24-v0.2.3.log"), name="logs/node0/rank0.log")
    assert {finding.evidence for finding in run.findings} == {"logs/node0/rank0.log"}


SEVEN = make_plan(load_workload("llama2-7b-perf"), Topology(4, 8))


@pytest.mark.parametrize(
    ("seconds", "tgs", "verdict"),
    [(9.0, 3640, Result.PASS), (11.0, 2979, Result.FAIL), (9.794, 3345.7, Result.ERROR)],
)
def test_a_7b_run_against_the_published_floors(seconds, tgs, verdict):
    run = only(Run(data_parallel=32, seconds=seconds).text(), plan=SEVEN)
    assert run.speed.median == pytest.approx(tgs, rel=0.01)
    assert {result(run, f"{metric}-floor").result for metric in ("tgs", "tflops")} == {verdict}
    failed = {f.check for f in run.findings if f.result is Result.FAIL}
    assert failed <= {"tgs-floor", "tflops-floor"}


def test_a_labs_floors_override_and_a_vendors_own_certifies_nothing():
    data = Run(data_parallel=32, seconds=9.0).text()
    policy = Floor("llama2-7b-perf", "*", "tgs", 5000.0, "tokens/device/s", "the lab", "2026-01-01", 1, "policy")
    run = only(data, plan=SEVEN, limits=Limits(floors=[policy], declared_tgs=3000.0))
    assert result(run, "tgs-floor").result is Result.FAIL
    assert "policy: the lab" in result(run, "tgs-floor").limit_source
    assert result(run, "tflops-floor").result is Result.SKIP
    assert result(run, "tgs-floor-declared").result is Result.PASS


def test_utilisation_of_peak_and_ceiling():
    data = Run(data_parallel=32, seconds=9.0).text()
    run = only(data, plan=SEVEN, limits=Limits(peak_tflops=312.0, ceilings={"a preflight": 250.0, "another": 200.0}))
    assert run.mfu.declared_peak == pytest.approx(run.tflops.model / 312)
    assert run.mfu.measured_ceiling == pytest.approx(run.tflops.model / 250)
    assert run.mfu.ceiling == "a preflight"
    assert result(run, "log-utilisation").result is Result.PASS
    run = only(data, plan=SEVEN, limits=Limits(peak_tflops=100.0))
    assert result(run, "log-utilisation").result is Result.FAIL


@pytest.mark.parametrize(("loss", "verdict"), [(1.5, Result.PASS), (2.2, Result.FAIL)])
def test_an_accuracy_run_against_its_target(loss, verdict):
    workload = load_workload("llama2-7b-accuracy")
    run = Run(total_steps=2000, data_parallel=32, loss=loss, lr=4e-5, warmup_ratio=0.025)
    analysed = only(run.text(), workload=workload)
    assert result(analysed, "loss-target").result is verdict
    assert result(analysed, "loss-target").limit == 1.716
    assert not [f for f in analysed.findings if f.check.endswith("-floor")]
    # 2000 of 200000 steps, on a schedule of 2000.
    assert result(analysed, "run-complete").result is Result.FAIL
    assert result(analysed, "log-lr").result is Result.FAIL


def test_segments_in_several_files_are_one_run_with_each_step_once():
    run = Run(total_steps=90)
    files = [parse_log(io.BytesIO(part), name) for name, part in (("a", run.text(last=50)), ("b", run.text(first=40)))]
    (joined,) = analyze_logs([log for logs in files for log in logs])
    assert joined.steps["step"].tolist() == list(range(90))
    assert joined.steps["segment"].tolist() == [0] * 40 + [1] * 50
    assert (joined.outcome, len(joined.segments)) == ("completed", 2)
    assert "10 steps that were made twice came out the same" in result(joined, "log-overlap").message
    assert result(joined, "log-overlap").evidence == "a, b"


def test_a_resumption_that_died_before_its_first_step_ends_the_run():
    run = Run(total_steps=90)
    head = b"".join(line + b"\n" for line in run.text(first=40).splitlines() if b"tflops=" not in line)
    raised = b"2026-01-01 00:09:00,000\tERROR train.py:321 in <module> -- Raise exception from n1 with rank id: 3\n"
    joined = only(run.text(last=50) + head + raised + b"Traceback (most recent call last):\n x\nOSError: no disk\n")
    assert (joined.outcome, len(joined.segments), len(joined.steps)) == ("crashed", 2, 50)


SLICE, EXHAUSTED = read("h200-7b-slice24-v0.2.3.log"), read("h200-124m-data-exhausted-v0.3.1.log")
SHORT = b"".join(line[: line.index(b" acc=")] + b" \n" for line in SLICE.splitlines() if b" tflops=" in line)


@pytest.mark.parametrize(
    "logs",
    [
        (EXHAUSTED, SLICE),
        (SLICE, EXHAUSTED, SLICE),
        (Run(total_steps=30, types=("en",)).text(), Run(total_steps=30).text()),
        (SHORT, SLICE),
        (SLICE, Run(total_steps=60).text(first=10)),
        (Run(total_steps=60).text(last=30), SLICE, Run(total_steps=40).text()),
    ],
    ids=["two layouts", "three", "other types of data", "shorter lines", "resumed from another run", "unfinished"],
)
def test_runs_in_one_file_are_judged_as_they_are_alone(logs):
    def told(run):
        return [(f.check, f.result, re.sub(r"line \d+", "", f.message)) for f in run.findings]

    together = analyze(io.BytesIO(b"".join(logs)))
    assert [told(run) for run in together] == [told(only(log)) for log in logs]


def refused(data):
    """What log-readable finds of each run."""
    findings = [f for run in analyze(io.BytesIO(data)) for f in run.findings if f.check == "log-readable"]
    return [(finding.result, finding.value) for finding in findings]


def test_lines_that_cannot_be_read_are_held_against_the_run_among_whose_lines_they_stand(monkeypatch):
    good, bad = (Result.PASS, 0.0), (Result.FAIL, 2.0)
    lines = SLICE.splitlines(keepends=True)
    cut = b"".join([*lines[:-8], *2 * [next(x for x in lines if b" tflops=" in x).replace(b" step=", b" stop=")]])
    cut += b"".join(lines[-8:])
    assert refused(EXHAUSTED + cut) == [good, bad]
    assert refused(cut + EXHAUSTED) == [bad, good]
    assert refused(cut + cut) == [bad, bad]
    # Where there are too many to note where each stands, no run is cleared.
    monkeypatch.setattr(parser, "_MAX_REFUSALS", 1)
    assert [result for result, _ in refused(cut + EXHAUSTED)] == [Result.FAIL, Result.FAIL]


def test_a_line_that_cannot_be_read_counts_once_in_a_run_of_two_segments():
    run = Run(total_steps=60)
    bad = run.text(last=40).splitlines(keepends=True)[-1].replace(b" step=", b" stop=")
    assert refused(run.text(last=40) + bad + run.text(first=40)) == [(Result.FAIL, 1.0)]


def test_only_the_last_run_of_a_file_can_end_in_a_line_that_was_cut_off():
    first, second = Run(total_steps=60).text(last=40), Run(total_steps=50, seed=1).text()[:-300]
    runs = analyze(io.BytesIO(first + second))
    assert [run.segments[-1].refused.cut for run in runs] == [False, True]


def test_a_log_of_very_many_layouts_is_no_reason_for_a_warning():
    line = next(line for line in SLICE.splitlines() if b" tflops=" in line)
    data = b"".join(line.replace(b" step=0 ", b" step=%d " % n) + b" x%d=1 \n" % n for n in range(200))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (run,) = analyze(io.BytesIO(data))
    assert len(run.steps) == 200


def test_two_runs_side_by_side_are_resumed_each_by_its_own():
    small = replace_layers(Run(total_steps=60))
    files = [Run(total_steps=60).text(last=40), small(0, 40), Run(total_steps=60).text(first=40), small(40, None)]
    runs = analyze_logs([log for data in files for log in parse_log(io.BytesIO(data))])
    assert [(len(run.segments), len(run.steps), run.facts.model.num_layers) for run in runs] == [
        (2, 60, 32),
        (2, 60, 24),
    ]


def replace_layers(run):
    return lambda first, last: run.text(first=first, last=last).replace(b"'num_layers': 32", b"'num_layers': 24")


def test_what_is_no_log_gives_no_analysis():
    assert analyze(io.BytesIO(b"hello\n")) == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("honest", "odd"),
    [
        (rb"'hidden_size': 4096", b"'hidden_size': 0.5"),
        (rb"'num_attention_heads': 32", b"'num_attention_heads': 0.5"),
        (rb"'vocab_size': 32000", b"'vocab_size': 0.5"),
        (rb"seq_len: 4096", b"seq_len: 0.5"),
        (rb"'growth_interval': 1000", b"'growth_interval': abc"),
        (rb"pipeline parallel size: 1", b"pipeline parallel size: 999999999"),
        (rb"tgs \(tokens/gpu/second\)=[\d.]+", b"tgs (tokens/gpu/second)=1e300"),
        (rb" loss=[\d.]+", b" loss=1e308"),
        (rb" lr=[\d.e-]+", b" lr=1e308"),
    ],
)
def test_figures_of_any_size_are_judged(honest, odd):
    data, count = re.subn(honest, odd, Run(total_steps=12).text())
    assert count
    (run,) = analyze(io.BytesIO(data))
    assert {finding.check for finding in run.findings} >= {"run-complete", "log-flops", "log-elements"}
