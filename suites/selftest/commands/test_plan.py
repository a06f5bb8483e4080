from __future__ import annotations

import argparse
import json
from typing import Any

import pytest

from conformance.commands import plan
from conformance.devices.cpu import CpuDevice
from conformance.errors import ConformanceError


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    plan.configure(parser)
    return plan.run(parser.parse_args(words))


def test_a_legal_plan_is_printed_and_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("llama2-70b-perf", "--nodes", "16", "--devices-per-node", "8") == 0
    printed = capsys.readouterr().out
    assert "micro_bsz 2 x micro_num 128 x data 4 = 1024" in printed
    assert "68,976,648,192" in printed
    assert "reference-cards: 1024 on both" in printed
    assert "no accelerator" not in printed


def test_a_disclosure_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("llama2-7b-perf", "--nodes", "2", "--devices-per-node", "8", "--set", "micro_num=4") == 0
    assert "disclosed         global batch size 2 x 4 x 16 = 128" in capsys.readouterr().out


def test_a_refused_plan_is_explained_and_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("llama2-7b-perf", "--nodes", "4", "--devices-per-node", "8", "--set", "micro_num=8") == 1
    printed = capsys.readouterr().out
    assert "512 is above the reference's 256" in printed
    assert "    --set micro_num=4\n" in printed


def test_where_nothing_is_legal_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tiny-perf", "--nodes", "64", "--devices-per-node", "8") == 1
    assert "no settings are legal on so many devices" in capsys.readouterr().out


@pytest.mark.parametrize(("pair", "legal"), [("micro_num=4", True), ("micro_num=8", False)])
def test_json_is_one_object_either_way(capsys: pytest.CaptureFixture[str], pair: str, legal: bool) -> None:
    exit_code = run("llama2-7b-perf", "--nodes", "4", "--devices-per-node", "8", "--set", pair, "--json")
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (exit_code, document["legal"]) == ((0, True) if legal else (1, False))
    assert document["workload"] == "llama2-7b-perf"
    assert bool(document["violations"]) is not legal


@pytest.mark.parametrize(("workload", "cards"), [("llama2-7b-perf", 8), ("slice-7b-perf", 1), ("tiny-perf", 2)])
def test_without_an_accelerator_the_usual_node_is_assumed_and_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, workload: str, cards: int
) -> None:
    monkeypatch.setattr("conformance.devices.detect_device", CpuDevice)
    assert run(workload) == 0
    assert f"no accelerator here: planned for {cards} devices a node" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("workload", "seconds"), [("llama2-7b-perf", 20 * 1048576 / 64 / 3345.72), ("llama2-7b-accuracy", 979_364.0)]
)
def test_the_time_at_the_floor(capsys: pytest.CaptureFixture[str], workload: str, seconds: float) -> None:
    words = (workload, "--nodes", "8", "--devices-per-node", "8")
    assert run(*words, "--json") == 0
    assert json.loads(capsys.readouterr().out)["seconds_at_floor"] == pytest.approx(seconds, rel=1e-4)
    assert run(*words) == 0
    assert " of training at TGS 3345.72 (published)" in capsys.readouterr().out


def test_without_a_floor_no_time_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tiny-perf", "--devices-per-node", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["seconds_at_floor"] is None


def test_bad_input_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["nothing"], ["llama2-7b-perf", "--nodes", "0"], ["llama2-7b-perf", "--set", "x=1"]):
        with pytest.raises(ConformanceError):
            run(*words, "--devices-per-node", "8")
    assert capsys.readouterr().out == ""


def test_a_plugin_that_cannot_count_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(CpuDevice):
        name = "broken"

        def count(self) -> int:
            raise RuntimeError("driver not loaded")

    monkeypatch.setattr("conformance.devices.detect_device", Broken)
    with pytest.raises(ConformanceError, match="'broken' cannot count its devices: RuntimeError: driver not loaded"):
        run("llama2-7b-perf")
