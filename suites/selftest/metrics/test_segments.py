"""The segments of a resumed run are put together so that what two of them made stands side by side."""

import io
import re
from pathlib import Path

import pytest
from honest_log import Run

from conformance.internevo.log import parse_log
from conformance.metrics.segments import join, merge

ROOT = Path(__file__).resolve().parents[3]


def test_a_segment_that_makes_steps_of_two_others_again_is_held_against_each_step_by_its_number():
    run = Run(total_steps=60)
    parts = (run.text(last=40), run.text(first=30, last=50), run.text(first=20))
    steps, overlaps = merge([parse_log(io.BytesIO(part))[0] for part in parts])
    assert steps["step"].tolist() == list(range(60))
    assert steps["segment"].tolist() == [0] * 20 + [2] * 40
    made_twice = [(earlier["step"].tolist(), later["step"].tolist()) for earlier, later in overlaps]
    assert made_twice == [(list(range(30, 40)),) * 2, (list(range(20, 50)),) * 2]


def test_lines_that_begin_anew_are_another_run():
    first, second = (parse_log(io.BytesIO(Run(total_steps=60).text(last=30, head=head)))[0] for head in (True, False))
    assert len(join([first, second])) == 2


@pytest.mark.parametrize(("seq_len", "runs"), [(4096, 1), (2048, 2)])
def test_lines_without_a_head_go_on_with_a_run_of_their_shape_only(seq_len, runs):
    first = parse_log(io.BytesIO(Run(total_steps=60).text(last=30)))[0]
    lines = parse_log(io.BytesIO(Run(total_steps=60, seq_len=seq_len).text(first=30, head=False)))[0]
    assert len(join([first, lines])) == runs


@pytest.mark.parametrize("without", [0, 1])
def test_lines_that_tell_no_shape_go_on_with_any_run(without):
    run = Run(total_steps=60)
    texts = [run.text(last=30), run.text(first=30, head=False)]
    texts[without] = re.sub(rb"tflops=\S+", b"tflops=nan", texts[without])
    assert len(join([parse_log(io.BytesIO(text))[0] for text in texts])) == 1
