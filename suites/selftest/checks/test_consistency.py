"""The mutation table: every field of real logs is changed, and a check must go red for it."""

import io
import re
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from honest_log import Run

from conformance.analysis import analyze
from conformance.checks.finding import Result
from conformance.plan import Topology, make_plan
from conformance.spec import load_workload

ROOT = Path(__file__).resolve().parents[3]
SLICE = (ROOT / "reference_logs" / "h200-7b-slice24-v0.2.3.log").read_bytes()
EXHAUSTED = (ROOT / "reference_logs" / "h200-124m-data-exhausted-v0.3.1.log").read_bytes()
SAMPLE = (ROOT / "fixtures" / "logs" / "benchmark-sample-line.log").read_bytes()
REHEARSAL = (ROOT / "fixtures" / "tiny-perf-run" / "logs" / "node0" / "rank0.log").read_bytes()
PLAN = make_plan(load_workload("slice-7b-perf"), Topology(1, 1), {"total_steps": 12})
STEP = 6  # the one whose line is changed


def red(data, **expected):
    """Ids of the checks that fail."""
    return {f.check for run in analyze(io.BytesIO(data), **expected) for f in run.findings if f.result is Result.FAIL}


def mutate(data, field, change, step=STEP):
    """Change one field on the line of one step, or on every line where step is None."""
    pattern = re.compile(rb"(?<=[ ',{])(" + re.escape(field).encode() + rb"'?(?:=|: ))([^ ,}]+)")
    lines = data.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if b" tflops=" in line and (step is None or b" step=%d " % step in line):
            lines[number], count = pattern.subn(lambda m: m[1] + change(m[2]), line, count=1)
            assert count == 1
            assert lines[number] != line or step is None
    return b"".join(lines)


def times(factor):
    """Multiply, in the form that InternEvo prints."""

    def change(value):
        if value.isdigit():
            return b"%d" % round(int(value) * factor)
        digits = len(value.partition(b".")[2])
        return repr(round(float(value) * factor, digits if digits < 5 else 17)).encode()

    return change


def to(value):
    return lambda _: value


# Field, what is done to it on one line, and the checks that must see it.
TABLE = [
    ("tflops", times(1.05), {"log-flops"}),
    ("tflops", times(0.98), {"log-flops"}),
    ("tflops", times(4 / 3), {"log-flops"}),
    ("step", times(1.2), {"log-steps", "log-tokens"}),
    ("step", times(2), {"log-steps"}),
    ("loss", times(1.1), {"log-loss"}),
    ("loss", times(0.9), {"log-loss"}),
    ("loss", to(b"nan"), {"loss-defined"}),
    ("tgs (tokens/gpu/second)", times(1.01), {"log-flops", "log-speeds"}),
    ("tgs (tokens/gpu/second)", times(0.95), {"log-flops", "log-speeds"}),
    ("tgs/last_tgs_1", times(1.001), {"log-speeds"}),
    ("tgs/tgs_all", times(1.001), {"log-speeds"}),
    ("tgs/tgs_avg", times(1.001), {"log-speeds"}),
    ("tgs/tgs_SMA", times(1.001), {"log-speeds"}),
    ("tgs/last_tgs_10", to(b"12000.0"), {"log-speeds"}),
    ("tgs/last_tgs_50", to(b"12000.0"), {"log-speeds"}),
    ("lr", times(1.0001), {"log-lr"}),
    ("loss_scale", times(2), {"log-loss-scale"}),
    ("loss_scale", times(0.5), {"log-loss-scale"}),
    ("loss_scale", times(1.1), {"log-loss-scale"}),
    # Nothing else in the line depends on the norm; only an impossible one is seen.
    ("0_default", to(b"nan"), {"log-ranges"}),
    ("0_default", to(b"-1.0"), {"log-ranges"}),
    ("1_fp32", to(b"inf"), {"log-ranges"}),
    ("micro_num", times(2), {"log-packing"}),
    ("num_consumed_tokens", times(1.001), {"log-tokens"}),
    ("inf_nan_skip_batches", to(b"1"), {"log-steps"}),
    ("num_samples_in_batch", times(2), {"log-packing"}),
    ("num_samples_in_batch", times(0.5), {"log-packing"}),
    ("largest_length", times(2), {"log-packing"}),
    ("largest_length", times(0.5), {"log-packing"}),
    ("largest_batch", times(2), {"log-packing"}),
    ("largest_batch", times(0.5), {"log-packing"}),
    ("smallest_batch", times(2), {"log-packing"}),
    ("smallest_batch", times(0.5), {"log-packing"}),
    ("adam_beta2", to(b"0.99"), {"log-ranges"}),
    ("fwd_bwd_time", times(1.1), {"log-step-time"}),
    ("acc", times(0.99), {"log-types"}),
    ("acc", to(b"1.2"), {"log-ranges"}),
    ("perplexity", times(1.01), {"log-perplexity"}),
    ("perplexity", times(0.99), {"log-perplexity"}),
    ("perplexity", to(b"0.0"), {"log-perplexity"}),
    ("acc/en", times(0.99), {"log-types"}),
    ("acc/cn", to(b"0.5"), {"log-types"}),
    ("acc/code", to(b"0.5"), {"log-types"}),
    ("tokens/en", times(1.1), {"log-types"}),
    ("tokens/en", to(b"30429.5"), {"log-types"}),
    ("tokens/cn", to(b"100"), {"log-types"}),
    ("tokens/code", to(b"100"), {"log-types"}),
    ("loss_from_metric", times(1.05), {"log-types"}),
    ("loss_from_metric", times(0.9), {"log-loss", "log-types"}),
    ("loss/en", times(1.05), {"log-types"}),
    ("loss/cn", to(b"0.5"), {"log-types"}),
    ("loss/code", to(b"0.5"), {"log-types"}),
]


def test_the_logs_are_green_before_they_are_changed():
    assert red(SLICE, plan=PLAN) == set()
    assert red(SLICE) == set()
    assert red(EXHAUSTED) == {"run-complete"}
    assert red(SAMPLE) == set()
    assert red(REHEARSAL) == set()


@pytest.mark.parametrize("plan", [PLAN, None], ids=["planned", "bare"])
@pytest.mark.parametrize(("field", "change", "checks"), TABLE)
def test_a_changed_field_turns_a_check_red(field, change, checks, plan):
    assert checks <= red(mutate(SLICE, field, change), plan=plan)


def test_the_table_has_every_field_of_the_line():
    line = next(line for line in SLICE.splitlines() if b" tflops=" in line)
    pattern = rb"(tgs \(tokens/gpu/second\)|[\w/]+)=(?!\{)|'(\w+)':"
    fields = {(a or b).decode() for a, b in re.findall(pattern, line[line.index(b" tflops=") :])}
    assert fields == {field for field, _, _ in TABLE}


@pytest.mark.parametrize(
    ("field", "change", "checks"),
    [
        ("tflops", times(1.02), {"log-flops"}),
        ("loss", times(0.9), {"log-loss"}),
        ("tgs (tokens/gpu/second)", times(1.05), {"log-flops", "log-step-time", "log-speeds"}),
        ("lr", times(2), {"log-lr"}),
        ("loss_scale", times(2), {"log-loss-scale"}),
        ("num_consumed_tokens", times(2), {"log-tokens"}),
        ("perplexity", times(0.95), {"log-perplexity"}),
        ("loss_from_metric", times(0.95), {"log-perplexity", "log-types"}),
        ("loss/code", times(0.95), {"log-types"}),
        ("acc", times(0.9), {"log-types"}),
    ],
)
def test_a_field_that_is_changed_on_every_line_turns_a_check_red(field, change, checks):
    assert checks <= red(mutate(EXHAUSTED, field, change, step=None))


HEAD = [
    (b"seq_len: 4096", b"seq_len: 2048", {"log-flops", "log-packing"}),
    (b"'num_layers': 24", b"'num_layers': 32", {"log-flops", "log-elements"}),
    (b"'hidden_size': 4096", b"'hidden_size': 5120", {"log-flops", "log-elements"}),
    (b"'vocab_size': 32000", b"'vocab_size': 64000", {"log-flops", "log-elements"}),
    (b"'mlp_ratio': 3.5", b"'mlp_ratio': 4.0", {"log-flops", "log-elements"}),
    (b"'num_kv_attention_heads': 8", b"'num_kv_attention_heads': 32", {"log-elements"}),
    (b"elements on ranks: [5496836096]", b"elements on ranks: [7241732096]", {"log-elements"}),
    (b"-- micro_num: 4", b"-- micro_num: 8", {"log-tokens", "log-packing"}),
    (b"-- micro_bsz: 2", b"-- micro_bsz: 4", {"log-tokens", "log-packing"}),
    (b"data parallel size: 1", b"data parallel size: 2", {"log-tokens"}),
    (b"tensor parallel size: 1", b"tensor parallel size: 2", {"log-elements", "log-step-time"}),
    (b"pipeline parallel size: 1", b"pipeline parallel size: 2", {"log-elements", "log-step-time"}),
    (b"'initial_scale': 65536", b"'initial_scale': 16384", {"log-loss-scale"}),
    (b"adam: {'lr': 0.0001", b"adam: {'lr': 0.0003", {"log-lr"}),
    (b"'adam_beta2': 0.95", b"'adam_beta2': 0.99", {"log-ranges"}),
]


@pytest.mark.parametrize(("honest", "forged", "checks"), HEAD)
def test_a_forged_head_contradicts_the_lines(honest, forged, checks):
    assert SLICE.count(honest) == 1
    assert checks <= red(SLICE.replace(honest, forged))
    assert "log-head" in red(SLICE.replace(honest, forged), plan=PLAN) or b"elements" in honest


@pytest.mark.parametrize(
    "setting",
    [b"'weight_decay': 0.01", b"'adam_eps': 1e-08", b"clip_grad_norm: 1.0", b"numpy: 1024", b"'growth_interval': 1000"],
)
def test_what_only_the_head_tells_is_held_against_the_plan(setting):
    name = setting.split(b": ")[0]
    assert "log-head" in red(SLICE.replace(setting, name + b": 7"), plan=PLAN)


def test_a_checkpointed_slice_of_24_layers_is_no_7b():
    """Its FLOPs per token are those of 32 layers without checkpointing, so tflops / tgs alone cannot tell."""
    seven = make_plan(load_workload("llama2-7b-perf"), Topology(4, 8))
    forged = mutate(SLICE, "tflops", times(5.393665e10 / 4.064910e10), step=None)
    assert "log-flops" not in red(forged.replace(b"'num_layers': 24", b"'num_layers': 32"))
    assert {"log-elements"} <= red(forged.replace(b"'num_layers': 24", b"'num_layers': 32"))
    assert {"log-head"} <= red(forged, plan=seven)


def test_a_checkpointed_runs_flops_per_token_are_those_of_f_4():
    run, head = Run(), 6 * 4096 * 32000  # the output projection is not recomputed
    plan = make_plan(load_workload("llama2-7b-perf"), Topology(1, 1), {"checkpoint": True})
    recomputed = (4 / 3 * (run.flops_per_token - head) + head) / run.flops_per_token
    assert "log-flops" not in red(mutate(run.text(), "tflops", times(recomputed), step=None), plan=plan)
    assert "log-flops" in red(run.text(), plan=plan)


def test_readings_of_the_clock_are_further_apart_in_a_short_step():
    """5 ms of a third of a second; no f fits as closely as a shape's must, so it is taken to be 3."""
    assert "log-flops" not in red(mutate(Run(seconds=0.3).text(), "tflops", times(1.01), step=None))
    assert "log-flops" in red(mutate(Run(seconds=5.0).text(), "tflops", times(1.01), step=None))


@pytest.mark.parametrize(("total_steps", "few"), [(5, 1), (40, 4)])
def test_a_busy_host_may_hold_a_process_up_between_two_readings_of_the_clock_on_a_few_lines(total_steps, few):
    """50 ms of a step of 2.5 s: tgs, which is read last, is 2% below what was read before."""
    run, checks = Run(total_steps=total_steps), {"log-flops", "log-speeds"}

    def held_up(lines, seconds=0.05):
        data = run.text()
        for step in range(1, 1 + lines):
            data = mutate(data, "tgs (tokens/gpu/second)", times(1 - seconds / run.seconds), step=step)
        return checks & red(data)

    assert held_up(0) == held_up(few) == set()
    assert held_up(few + 1) == checks
    assert held_up(1, seconds=0.15) == checks
    assert held_up(1, seconds=-0.05) == checks


def test_a_pause_may_be_most_of_a_short_step():
    """90 ms after a step of 150 ms: what is read before the pause is 1.6 times tgs."""
    run = Run(seconds=0.15)
    held_up = mutate(run.text(), "tgs (tokens/gpu/second)", times(run.seconds / (run.seconds + 0.09)), step=5)
    assert not {"log-flops", "log-speeds"} & red(held_up)


def test_figures_that_are_raised_together_contradict_the_clock():
    data = SLICE
    for name in ("last_tgs_1", "tgs_all", "tgs_avg", "tgs_SMA", "last_tgs_10"):
        data = mutate(data, f"tgs/{name}", times(1.05), step=None)
    data = mutate(mutate(data, "tgs (tokens/gpu/second)", times(1.05), step=None), "tflops", times(1.05), step=None)
    assert red(data, plan=PLAN) == {"log-step-time"}


def test_two_lines_may_have_one_time_and_three_gaps_show_a_tgs_that_is_too_high():
    times_of = [line[:23] for line in SLICE.splitlines() if b" tflops=" in line]
    assert "log-clock" not in red(SLICE.replace(times_of[5], times_of[4]))
    for last, too_high in ((4, True), (3, False)):
        data = Run().text(last=last)
        for field in ("tgs (tokens/gpu/second)", "tgs/last_tgs_1", "tgs/tgs_all", "tgs/tgs_avg", "tgs/tgs_SMA"):
            data = mutate(data, field, times(1.05), step=None)
        assert ("log-step-time" in red(data)) is too_high


LINES = SLICE.splitlines(keepends=True)
AT = [i for i, line in enumerate(LINES) if b" tflops=" in line]


def instead(first, last, *lines):
    """The log with other lines in place of those of the steps from first to last."""
    return b"".join([*LINES[: AT[first]], *lines, *LINES[AT[last] + 1 :]])


FIVE, SIX = LINES[AT[5]], LINES[AT[6]]


@pytest.mark.parametrize(
    ("data", "check"),
    [
        (instead(5, 5), "log-steps"),
        (instead(0, 0), "log-steps"),
        (instead(5, 5, FIVE, FIVE), "log-steps"),
        (instead(5, 6, SIX, FIVE), "log-speeds"),
        (instead(0, 0, mutate(LINES[AT[0]], "tgs/tgs_all", times(1.01), step=None)), "log-speeds"),
        (instead(11, 11), "run-complete"),
        (instead(5, 5, FIVE[:300] + b"\n"), "log-readable"),
        (instead(5, 5, FIVE.replace(b"18:22:15", b"18:22:05")), "log-clock"),
        (instead(5, 5, FIVE.replace(b"18:22:15", b"18:22:14")), "log-step-time"),
    ],
    ids=["deleted", "first deleted", "twice", "swapped", "first sum", "last deleted", "cut", "clock back", "clock off"],
)
def test_a_line_that_is_moved_or_lost_is_missed(data, check):
    assert check in red(data, plan=PLAN)


@pytest.mark.parametrize(("earlier", "result"), [(5, Result.PASS), (8, Result.FAIL)])
def test_a_stamp_may_be_early_by_its_own_rounding_alone(earlier, result):
    """4 ms of logging lie between two steps of this log, and a stamp is cut to 1 ms at either end."""
    lines = Run(jitter=0).text().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if b" step=6 " in line)
    stamp = datetime.fromisoformat(lines[at][:23].decode().replace(",", "."))
    moved = (stamp - timedelta(milliseconds=earlier)).isoformat(" ", "milliseconds").replace(".", ",")
    lines[at] = moved.encode() + lines[at][23:]
    (run,) = analyze(io.BytesIO(b"".join(lines)))
    assert {f.check: f.result for f in run.findings}["log-step-time"] is result


@pytest.mark.parametrize(
    ("samples", "filled"), [(3 * 4 + 11, True), (3 * 4 + 10, False), (3 * 11 + 4, True), (3 * 11 + 5, False)]
)
def test_samples_of_a_step_are_what_its_fullest_and_emptiest_micro_batches_allow(samples, filled):
    """The smallest of the four holds 4, the largest 11; so the other two hold 4 to 11 each."""
    data = mutate(SLICE, "num_samples_in_batch", to(b"%d" % samples))
    assert ("log-packing" in red(data)) is not filled


def test_what_is_possible_at_its_very_end_is_possible():
    assert "log-ranges" not in red(mutate(SLICE, "acc", to(b"1.0")))
    assert "log-ranges" in red(mutate(SLICE, "acc", to(b"1.0001")))


def test_a_small_loss_and_its_perplexity_are_each_rounded():
    """A loss of 0.00105 is logged as 0.0010, and its exponential of 1.00105 as 1.0011."""
    data = SLICE
    for field, value in (("loss_from_metric", b"0.0010"), ("perplexity", b"1.0011")):
        data = mutate(data, field, to(value))
    assert "log-perplexity" not in red(data)
    assert "log-perplexity" in red(mutate(data, "perplexity", to(b"1.0013")))


def test_a_sum_of_speeds_is_exact_to_its_decimals():
    value = b"%.2f" % (float(re.search(rb"tgs/tgs_all=(\S+)", SIX)[1]) + 0.05)
    assert "log-speeds" in red(mutate(SLICE, "tgs/tgs_all", to(value)))


def test_a_head_without_parallel_sizes_is_one_of_none():
    head = b"\n".join(line for line in SLICE.split(b"\n") if b"tensor parallel size" not in line)
    (run,) = analyze(io.BytesIO(head))
    assert {f.check: f.result for f in run.findings}["log-elements"] is Result.PASS


def test_a_relation_that_holds_is_told_with_its_limit_of_no_step():
    (run,) = analyze(io.BytesIO(SLICE))
    held = [f for f in run.findings if f.check.startswith("log-") and f.unit == "steps"]
    assert {(f.result, f.value, f.limit) for f in held} == {(Result.PASS, 0.0, 0.0)}


def test_one_step_of_one_rank_strays_no_further_than_the_log_shows():
    run = Run(total_steps=300, data_parallel=32)
    assert "log-loss" in red(mutate(run.text(), "loss", times(0.7), step=200))


def test_weights_that_were_loaded_show_in_the_first_loss():
    data = SLICE
    for field in ("loss", "loss_from_metric", "loss/en"):
        data = mutate(data, field, to(b"2.1"), step=0)
    assert red(mutate(data, "perplexity", to(b"8.1662"), step=0)) == {"log-initial-loss"}


@pytest.mark.parametrize("cards", [1, 8, 32])
def test_honest_logs_of_other_layouts_are_green(cards):
    for run in (Run(data_parallel=cards), Run(total_steps=300, data_parallel=cards, skipped={0, 50, 51})):
        assert red(run.text()) == set()


def test_loss_scale_follows_its_scaler():
    run = Run(total_steps=2500, skipped={40, 41})
    grown = mutate(run.text(), "loss_scale", to(b"131072.0"), step=1500)
    assert red(run.text()) == set()
    # Doubled after 1500 good updates, as allowed, but back again without an overflow.
    assert red(grown) == {"log-loss-scale"}
    lines = run.text().splitlines(keepends=True)
    doubled = [
        line.replace(b"loss_scale=65536.0", b"loss_scale=131072.0") if i > len(lines) - 900 else line
        for i, line in enumerate(lines)
    ]
    assert red(b"".join(doubled)) == set()


def test_segments_of_one_run_must_agree_where_they_overlap():
    run = Run(total_steps=120)
    assert red(run.text(last=80) + run.text(first=60)) == set()
    again = mutate(run.text(first=60), "num_consumed_tokens", times(1.001), step=70)
    assert "log-overlap" in red(run.text(last=80) + again)
    other = Run(total_steps=120, loss=1.5, seed=4)
    assert red(run.text(last=80) + other.text(first=60)) == {"log-overlap"}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("begins", "ahead", "allowed"),
    [
        ((40, 90), (1, 1), True),  # within the warm-up of 100 steps, and ever after
        ((40, 60), (1, 1), True),
        ((40, 150), (1, 1), True),
        ((120,), (0,), True),
        ((40,), (0,), True),  # as it would be without that fault of InternEvo
        ((120,), (1,), False),
        ((40,), (2,), False),
        ((40,), (-1,), False),
    ],
)
def test_a_resumption_within_the_warm_up_is_one_step_ahead(begins, ahead, allowed, named):
    """load_scheduler of InternEvo sets last_epoch to step_count + 1; a vendor cannot help it."""
    run = Run(total_steps=1000, warmup_ratio=0.1, lr=4e-5)
    workload = load_workload("llama2-7b-accuracy")
    optimizer = replace(workload.optimizer, warmup_ratio=0.1, lr=4e-5, eta_min=4e-6)
    expected = {"workload": replace(workload, total_steps=1000, optimizer=optimizer)} if named else {}
    data = run.text(last=begins[0] + 9)
    for begin, by, last in zip(begins, ahead, (*(after + 9 for after in begins[1:]), 1000), strict=True):
        data += replace(run, ahead=by).text(first=begin, last=last)
    found = red(data, **expected) & {"log-lr", "log-overlap"}
    assert ("log-lr" in found) is not allowed
    assert not (allowed and found)


def test_a_rate_that_two_segments_have_may_be_a_step_of_a_warm_up_apart_and_no_more():
    run = Run(total_steps=1000, warmup_ratio=0.1)
    earlier, later = run.text(last=60), replace(run, ahead=1).text(first=40, last=80)
    assert "log-overlap" not in red(earlier + later)
    assert "log-overlap" in red(earlier + mutate(later, "lr", times(1.01), step=50))


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("field", ["tgs_all", "tgs_avg"])
def test_a_process_sums_its_speeds_from_its_own_first_line(field, head):
    """Its first line is known as such by what resumed it, or by a sum that is one step's."""
    run = Run(total_steps=60)
    before, after = run.text(last=30) if head else b"", run.text(first=30, head=head)
    assert "log-speeds" not in red(before + after)
    assert "log-speeds" in red(before + mutate(after, f"tgs/{field}", times(1.01), step=40))
    if head:
        assert "log-speeds" in red(before + mutate(after, f"tgs/{field}", times(1.01), step=30))


def test_a_segment_without_the_one_before_is_inconclusive():
    (run,) = analyze(io.BytesIO(Run(total_steps=60).text(first=30)))
    (finding,) = [f for f in run.findings if f.check == "log-overlap"]
    assert finding.result is Result.ERROR
    assert "not here" in finding.message


def test_segments_with_a_gap_between_them_are_not_one_run():
    run = Run(total_steps=60)
    first, second = analyze(io.BytesIO(run.text(last=20) + run.text(first=30)))
    assert {f.check: f.result for f in first.findings}["run-complete"] is Result.FAIL
    assert {f.check: f.result for f in second.findings}["log-overlap"] is Result.ERROR


def test_a_loss_below_a_nat_strays_by_more_than_its_mean():
    """What is known by heart and what is not lie far apart there: a small text after 500 steps of the rehearsal."""
    low, high = (Run(data_parallel=4, total_steps=400, loss=loss).text() for loss in (0.2, 2.0))
    assert "log-loss" not in red(mutate(low, "loss", times(1.75), step=390))
    assert "log-loss" in red(mutate(low, "loss", times(3), step=390))
    assert "log-loss" in red(mutate(high, "loss", times(1.75), step=390))


def test_one_ranks_loss_cannot_be_lowered_on_every_step():
    run = Run(total_steps=300, data_parallel=32)
    assert "log-loss" in red(mutate(run.text(), "loss", times(0.97), step=None))


def lowered_at_the_end(run, factor, count=100):
    lines = run.text().splitlines(keepends=True)
    forged = [mutate(line, "loss", times(factor), step=None) for line in lines[-count:]]
    return b"".join([*lines[:-count], *forged])


@pytest.mark.parametrize(("data_parallel", "factor"), [(32, 0.92), (1, 0.98), (1, 0.99)])
def test_one_ranks_loss_cannot_be_lowered_where_it_is_judged(data_parallel, factor):
    """An honest loss of 1.84 would pass for one below 1.716 if only its last hundred steps had to be changed."""
    run = Run(total_steps=3000, data_parallel=data_parallel, loss=1.84, lr=4e-5, warmup_ratio=0.025)
    assert red(run.text()) == set()
    assert red(lowered_at_the_end(run, factor)) == {"log-loss"}


def test_a_forged_loss_passes_no_target():
    workload = load_workload("llama2-7b-accuracy")
    run = Run(total_steps=3000, data_parallel=32, loss=1.84, lr=4e-5, warmup_ratio=0.025)
    for factor in (1.0, 0.92):
        (judged,) = analyze(io.BytesIO(lowered_at_the_end(run, factor)), workload=workload)
        assert {f.check: f.result for f in judged.findings}["loss-target"] is not Result.PASS


def test_a_log_that_can_be_read_has_no_line_that_cannot():
    (run,) = analyze(io.BytesIO(SLICE))
    finding = {f.check: f for f in run.findings}["log-readable"]
    assert (finding.result, finding.value, finding.limit) == (Result.PASS, 0.0, 0.0)


def test_real_tgs_counts_the_tokens_that_are_no_padding():
    def real(line, factor=1.0):
        tgs = float(re.search(rb"second\)=([\d.]+)", line)[1])
        tokens = sum(map(int, re.findall(rb" tokens/\w+=(\d+)", line)))
        return line.replace(b" lr=", b" real_tgs=%.2f lr=" % (factor * tgs * tokens / 32768))

    honest = b"".join(real(line) if b" tflops=" in line else line for line in LINES)
    assert red(honest) == red(SLICE)
    assert "log-types" not in red(honest.replace(real(FIVE), real(FIVE, 1.004)))
    assert "log-types" in red(honest.replace(real(FIVE), real(FIVE, 1.006)))


def test_a_stage_of_a_pipeline_holds_its_share_of_the_elements():
    tail = (
        Run()
        .text()
        .replace(
            b"pipeline parallel size: 1, tensor parallel size: 1", b"pipeline parallel size: 4, tensor parallel size: 8"
        )
    )
    tail = tail.replace(b"INFO hybrid_zero_optim", b"INFO hybrid_zero_optim", 1)
    share = (32000 * 4096 + 8 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336)) // 8 + 4096 * 17
    (run,) = analyze(io.BytesIO(tail.replace(b"[7241732096]", b"[%d]" % share)))
    assert {f.check: f.result for f in run.findings}["log-elements"] is Result.PASS
    (run,) = analyze(io.BytesIO(tail.replace(b"[7241732096]", b"[%d]" % (share - 4096))))
    assert {f.check: f.result for f in run.findings}["log-elements"] is Result.FAIL


def test_elements_are_held_against_the_shape_that_the_lines_tell_where_the_head_does_not():
    text = Run(data_parallel=8).text().replace(b"'num_layers'", b"'layers'")
    assert result_of(text, "log-elements") is Result.PASS
    assert result_of(text.replace(b"[7241732096]", b"[7241732095]"), "log-elements") is Result.FAIL


def result_of(data, check):
    (run,) = analyze(io.BytesIO(data))
    return next(finding.result for finding in run.findings if finding.check == check)


def test_one_line_is_held_to_its_own_time_and_none_without_one_is_judged():
    """524288 tokens on 32 cards at 3345.72 take 4.897 s, longer than the 4.13 s of forward and backward."""
    assert result_of(SAMPLE, "log-step-time") is Result.PASS
    assert result_of(re.sub(rb"fwd_bwd_time=\S+", b"", SAMPLE), "log-step-time") is Result.SKIP


def test_two_lines_show_a_clock_that_runs_backwards():
    two = [line for line in SLICE.splitlines(keepends=True) if re.search(rb" step=[67] ", line)]
    assert result_of(b"".join(two), "log-clock") is Result.PASS
    assert result_of(b"".join([two[1][:23] + two[0][23:], two[0][:23] + two[1][23:]]), "log-clock") is Result.FAIL


def test_one_sample_may_fill_a_micro_batch():
    run = Run(micro_bsz=1, data_parallel=2).text()
    run = re.sub(rb"largest_length=\d+", b"largest_length=4096", run)
    run = re.sub(rb"(largest|smallest)_batch=\d+", rb"\1_batch=1", run)
    run = re.sub(rb"num_samples_in_batch=\d+", b"num_samples_in_batch=4", run)
    assert result_of(run, "log-packing") is Result.PASS
    assert result_of(run.replace(b"smallest_batch=1", b"smallest_batch=0"), "log-packing") is Result.FAIL
