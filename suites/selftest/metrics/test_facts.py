"""What a run was is told by its head, else by its plan, else by its lines, and each fact names its source."""

import io
import re
from pathlib import Path

import pytest
from honest_log import Run

from conformance.internevo.log import LogHead, parse_log
from conformance.metrics.facts import gather
from conformance.plan import Topology, make_plan
from conformance.spec import all_workloads, load_workload

ROOT = Path(__file__).resolve().parents[3]


def facts(data, plan=None, workload=None, head=True):
    run = parse_log(io.BytesIO(data))[0]
    return gather(run.steps, run.head if head else LogHead(), plan, workload, all_workloads())


SLICE = (ROOT / "reference_logs" / "h200-7b-slice24-v0.2.3.log").read_bytes()
SAMPLE = (ROOT / "fixtures" / "logs" / "benchmark-sample-line.log").read_bytes()


def test_the_head_tells_all_of_a_real_run():
    found = facts(SLICE)
    assert (found.cards, found.data_parallel, found.micro_bsz, found.micro_num) == (1, 1, 2, 4)
    assert (found.model.num_layers, found.model.seq_len, found.checkpoint_factor) == (24, 4096, 3)
    assert (found.tokens_per_step, found.global_batch_size, found.total_steps) == (32768, 8, 12)
    assert found.sources["cards"] == "the log's head"
    assert found.sources["total_steps"] == "the learning rates of the lines"


def test_the_lines_tell_it_without_the_head():
    with_head, without = facts(SLICE), facts(SLICE, head=False)
    for name in ("model", "cards", "data_parallel", "micro_bsz", "micro_num", "tokens_per_step", "checkpoint_factor"):
        assert getattr(without, name) == getattr(with_head, name)


def test_the_benchmarks_sample_line_alone():
    """Its 12 samples of at most 2672 tokens fill 4 micro batches of one sequence, not of two; so 128 / 4 ranks."""
    found = facts(SAMPLE)
    assert (found.model.num_layers, found.model.hidden_size, found.checkpoint_factor) == (32, 4096, 3)
    assert (found.tokens_per_step, found.global_batch_size) == (524288, 128)
    assert (found.micro_bsz, found.micro_num, found.data_parallel, found.cards) == (1, 4, 32, 32)
    assert "only this one can have written the lines" in found.sources["cards"]
    why = found.published_layout.contradicted_by
    assert "a step would take 9.79 s beside a fwd_bwd_time of 4.13 s" in why  # 524288 tokens on 16 cards at 3345.72
    assert "12 samples of at most 2672 tokens, no fewer than 2 of them in each, cannot fill 4 micro batches of" in why


def test_a_pass_whose_time_was_rounded_beyond_the_steps_still_fits_into_the_step():
    """524288 tokens on 32 cards at 3345.72 take 4.897 s."""
    assert facts(SAMPLE.replace(b"fwd_bwd_time=4.13", b"fwd_bwd_time=4.90")).cards == 32
    assert facts(SAMPLE.replace(b"fwd_bwd_time=4.13", b"fwd_bwd_time=4.91")).cards is None


@pytest.mark.parametrize("cards", [1, 2, 8, 16, 32])
def test_the_clock_of_the_lines_tells_the_cards(cards):
    found = facts(Run(data_parallel=cards).text(head=False))
    assert (found.cards, found.global_batch_size) == (cards, 8 * cards)


@pytest.mark.parametrize("cards", [8, 16])
def test_the_times_between_lines_alone_tell_the_cards(cards):
    lines = Run(data_parallel=cards).text(head=False)
    lines = re.sub(rb"fwd_bwd_time=\S+ ", b"", lines).splitlines(keepends=True)
    assert facts(b"".join(lines)).cards == cards
    assert facts(b"".join(lines[:4])).cards == cards
    assert facts(b"".join(lines[:3])).cards is None  # two gaps have no median to speak of


def test_what_the_lines_cannot_tell_is_unknown():
    line = SAMPLE.replace(b"smallest_batch=2 ", b"").replace(b"tflops=180.4572540886346", b"tflops=111.1")
    found = facts(line)
    assert (found.model, found.checkpoint_factor, found.cards, found.data_parallel) == (None, None, None, None)
    assert (found.global_batch_size, found.tokens_per_card, found.total_steps) == (None, None, None)


def test_where_several_layouts_fit_the_published_micro_batch_decides():
    line = re.sub(rb"smallest_batch=2 ", b"smallest_batch=4 ", SAMPLE)
    found = facts(line)
    assert (found.micro_bsz, found.data_parallel, found.cards) == (2, 16, None)
    assert "taking micro_bsz 2 of the published configuration" in found.sources["micro_bsz"]


@pytest.mark.parametrize("missing", ["smallest_batch", "largest_length", "fwd_bwd_time"])
def test_one_line_without_its_samples_or_its_times_tells_no_cards(missing):
    found = facts(re.sub(rb"%s=\S+ " % missing.encode(), b"", SAMPLE))
    assert (found.model.num_layers, found.micro_num, found.cards) == (32, 4, None)


def test_lines_without_learning_rates_tell_no_total_steps():
    assert facts(SAMPLE.replace(b"lr=1e-05 ", b"")).total_steps is None


def test_activation_checkpointing_shows_as_f_4():
    per_token = {3: 5.393665e10, 4: 4 / 3 * (5.393665e10 - 6 * 4096 * 32000) + 6 * 4096 * 32000}
    line = SAMPLE.replace(b"tflops=180.4572540886346", b"tflops=%f" % (per_token[4] * 3345.72 / 1e12))
    assert facts(line, workload=load_workload("llama2-7b-perf")).checkpoint_factor == 4


def test_the_plan_fills_in_what_a_headless_log_leaves_open():
    plan = make_plan(load_workload("llama2-7b-perf"), Topology(4, 8), {"micro_bsz": 1, "micro_num": 4})
    found = facts(SAMPLE, plan=plan)
    assert (found.cards, found.tensor, found.total_steps) == (32, 1, 20)
    assert found.sources["cards"] == "the plan"
    assert facts(SLICE, plan=plan).sources["cards"] == "the log's head"
