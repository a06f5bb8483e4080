"""What went wrong in other suites must not go wrong in this one: each of their failures, injected here."""

import ast
import io
import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest

import conformance
from conformance.analysis import analyze
from conformance.checks.finding import Finding, Result, Verdict, verdict
from conformance.checks.preflight import judge
from conformance.cli import main
from conformance.errors import ConformanceError
from conformance.evidence import request_from_json
from conformance.internevo.log import Steps
from conformance.metrics.throughput import throughput
from conformance.plan import Topology, make_plan, parse_overrides
from conformance.preflight.probe import spread
from conformance.selftest.cluster import find, sound_cluster
from conformance.selftest.run import LOG
from conformance.spec import load_workload

PACKAGE = Path(conformance.__file__).parent
KERNELS = [name for name in (finding.check for finding in judge(sound_cluster())) if name.startswith("kernel-")]


def judged(preflight):
    return {finding.check: finding for finding in judge(preflight)}


class TestMissingGroundTruth:
    """An operator check passed when the file with the expected values was not there."""

    def test_kernels_without_a_result_are_not_right(self):
        preflight = sound_cluster()
        for process in preflight.tasks["device"]:
            process["records"][:] = [record for record in process["records"] if record["kind"] != "kernel"]
        assert {judged(preflight)[check].result for check in KERNELS} == {Result.ERROR}

    @pytest.mark.parametrize("value", [None, "nan", ""])
    def test_a_step_without_its_reference_fails(self, value):
        preflight = sound_cluster()
        find(preflight, "step", "step").update(expected_loss=value)
        assert judged(preflight)["training-step"].result is Result.FAIL

    def test_nothing_measured_is_never_green(self):
        assert verdict([], ["gemm-correct"], official=False) is Verdict.INCONCLUSIVE
        preflight = sound_cluster()
        assert Result.PASS not in {finding.result for finding in judge(replace(preflight, tasks={}))[1:]}


class TestNan:
    """A result of nan was within every tolerance, for it is not above any."""

    @pytest.mark.parametrize(
        ("task", "kind", "field", "check"),
        [
            ("device", "gemm", "error", "gemm-correct"),
            ("device", "gemm", "tflops", "gemm-speed"),
            ("device", "copy", "gb_per_s", "copy-speed"),
            ("device", "capacity", "held_gib", "device-capacity"),
            ("collectives", "collective", "error", "collective-correct"),
            ("collectives", "link", "gb_per_s", "link-even"),
            ("collectives", "arrival", "late_seconds", "arrival-even"),
            ("collectives", "clock", "offset_s", "host-clock"),
            ("step", "step", "loss", "training-step"),
            ("step", "step", "grad_norm", "training-step"),
        ],
    )
    def test_a_measurement_of_nan_passes_no_limit(self, task, kind, field, check):
        preflight = sound_cluster()
        for process in preflight.tasks[task]:
            for record in process["records"]:
                if record["kind"] == kind:
                    record[field] = "nan"
        assert judged(preflight)[check].result is Result.FAIL

    @pytest.mark.parametrize("field", ["error", "worst_row", "not_finite"])
    @pytest.mark.parametrize("check", [name for name in KERNELS if name != "kernel-determinism"])
    def test_nor_does_a_kernels(self, check, field):
        preflight = sound_cluster()
        find(preflight, "device", "kernel", 1, kernel=check.removeprefix("kernel-"))[field] = "nan"
        assert judged(preflight)[check].result is Result.FAIL

    @pytest.mark.parametrize(
        ("field", "check"), [("loss", "loss-defined"), ("tflops", "log-flops"), ("num_consumed_tokens", "log-tokens")]
    )
    def test_nor_does_a_logs(self, run, field, check):
        data = re.sub(rb" %s=[\d.]+" % field.encode(), b" %s=nan" % field.encode(), (run / LOG).read_bytes())
        (analysis,) = analyze(io.BytesIO(data), workload=load_workload("tiny-perf"))
        assert {finding.check: finding.result for finding in analysis.findings}[check] is Result.FAIL


class TestBestOfReruns:
    """The time that counted was the least of many."""

    def test_one_lucky_repetition_does_not_make_a_kernel_fast(self):
        assert spread([1.0] * 9 + [0.01])["seconds"] == 1.0

    def test_one_lucky_step_does_not_make_a_run_fast(self, run):
        (analysis,) = analyze(io.BytesIO((run / LOG).read_bytes()))
        lucky = {name: analysis.steps[name] for name in ("step", "tgs")}
        lucky["tgs"][-1] *= 100
        ordered = sorted(analysis.steps["tgs"])
        widest = max(after - before for before, after in itertools.pairwise(ordered))
        assert throughput(Steps.of(lucky)).median - throughput(analysis.steps).median <= widest

    def test_one_slow_device_is_not_hidden_by_the_fast_ones(self):
        preflight = sound_cluster()
        find(preflight, "device", "gemm", 1).update(tflops=385.0)
        assert judged(preflight)["gemm-speed"].value == 385.0


class TestExitCode:
    """The submission checker returned 0 for a submission that it refused."""

    def test_a_run_that_fails_a_check_gives_1(self, run, capsys):
        assert main(["analyze", str(run / LOG)]) == 0
        (run / LOG).write_bytes(re.sub(rb" tflops=0\.", rb" tflops=9.", (run / LOG).read_bytes()))
        assert main(["analyze", str(run / LOG)]) == 1

    def test_what_cannot_be_judged_never_gives_0(self, tmp_path, capsys):
        (tmp_path / "empty.log").write_text("")
        assert main(["analyze", str(tmp_path / "empty.log")]) == 2
        assert main(["verify", str(tmp_path / "empty.log")]) != 0
        assert main(["analyze", str(tmp_path / "absent.log")]) == 2

    def test_a_failure_is_never_outvoted(self):
        findings = [Finding(check, Result.PASS, "") for check in "abcdefgh"] + [Finding("i", Result.FAIL, "")]
        assert verdict(findings, "abcdefghi", official=True) is Verdict.NOT_CONFORMANT


class TestCounterThatNobodyRead:
    """A health script compared the count of memory errors, which it had never asked for, with 0."""

    def remove(self, *devices):
        preflight = sound_cluster()
        for node, index in devices:
            del find(preflight, "host", "health", node, index=index)["ecc_uncorrected"]
        return judged(preflight)["device-health"]

    def test_no_device_tells(self):
        finding = self.remove((0, 0), (0, 1), (1, 0), (1, 1))
        assert finding.result is Result.SKIP
        assert "does not tell how many uncorrected memory errors" in finding.message

    def test_one_device_does_not_tell(self):
        finding = self.remove((1, 0))
        assert finding.result is Result.ERROR
        assert "device 0 of node 1" in finding.message

    @pytest.mark.parametrize("value", ["", "unknown", None])
    def test_what_it_tells_is_no_number(self, value):
        preflight = sound_cluster()
        find(preflight, "host", "health")["ecc_uncorrected"] = value
        assert judged(preflight)["device-health"].result is Result.FAIL

    def test_a_fault_that_was_read_counts_all_the_same(self):
        preflight = sound_cluster()
        health = find(preflight, "host", "health")
        del health["ecc_uncorrected"]
        health["throttle_thermal"] = "Active"
        assert judged(preflight)["device-health"].result is Result.FAIL


# Functions that run what they are given, by their own name or as an attribute of whatever; and those of these modules.
EVALUATE = {"eval", "exec", "query", "popen", "unsafe_load"}
UNPICKLE = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def evaluated(text):
    """What a program evaluates, unpickles or gives to a shell."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
            yield from {module.split(".")[0] for module in modules} & UNPICKLE
            yield from set(names) & EVALUATE if isinstance(node, ast.ImportFrom) else ()
        if isinstance(node, ast.Attribute) and (node.attr in EVALUATE or ast.unparse(node) == "os.system"):
            yield node.attr
        # A bare compile is the built-in; re.compile and torch.compile are not.
        if isinstance(node, ast.Name) and node.id in {"eval", "exec", "compile", "__import__"}:
            yield node.id
        if isinstance(node, ast.Constant) and node.value in ("eval", "exec"):
            yield f"{node.value!r}, for getattr"
        if isinstance(node, ast.keyword) and node.arg == "shell":
            yield "shell"


class TestEvaluatedString:
    """A rule of a submission was a string that the checker evaluated."""

    def test_nothing_in_the_suite_evaluates_text(self):
        found = {
            path.relative_to(PACKAGE).as_posix(): names
            for path in PACKAGE.rglob("*.py")
            if (names := set(evaluated(path.read_text("utf-8"))))
        }
        assert found == {}

    @pytest.mark.parametrize(
        "text",
        [
            "eval(rule)",
            "run = exec\nrun(rule)",
            "builtins.eval(rule)",
            "from builtins import eval as judge",
            "getattr(builtins, 'eval')(rule)",
            "compile(rule, '', 'eval')",
            "__import__(rule)",
            "frame.eval(rule)",
            "frame.query(rule)",
            "import pickle",
            "from pickle import loads",
            "import dill as json",
            "os.system(rule)",
            "from os import popen",
            "subprocess.run(rule, shell=True)",
            "yaml.unsafe_load(rule)",
        ],
    )
    def test_each_way_to_do_it_would_be_seen(self, text):
        assert set(evaluated(text))

    def test_what_is_like_it_is_not_taken_for_it(self):
        assert not set(evaluated("re.compile(pattern)\nsubprocess.run([tool])\njson.loads(text)\nevaluate(rule)"))

    def test_a_value_in_a_log_is_text(self, run, tmp_path):
        mark = tmp_path / "was-here"
        code = f"__import__('pathlib').Path('{mark}').touch()".encode()
        data = (run / LOG).read_bytes().replace(b"'vocab_size': 2000", b"'vocab_size': " + code)
        data = re.sub(rb"'0_default': [\d.]+", b"'0_default': " + code, data)
        (analysis,) = analyze(io.BytesIO(data))
        assert not mark.exists()
        assert analysis.facts.model is None or analysis.facts.model.vocab_size == 2000

    @pytest.mark.parametrize("value", ["__import__('os')", "1+1", {"$eval": "1"}])
    def test_a_setting_in_a_request_is_a_number(self, value):
        request = {"workload": "tiny-perf", "nodes": 1, "devices_per_node": 2, "seed": 1}
        with pytest.raises(ConformanceError):
            request_from_json({**request, "overrides": {"micro_num": value}})


class TestShapeOfTheVendorsChoice:
    """The vendor chose the shape that was timed."""

    @pytest.mark.parametrize("setting", ["num_layers=8", "hidden_size=1024", "seq_len=512", "vocab_size=100"])
    def test_an_official_workload_has_its_own(self, setting):
        with pytest.raises(ConformanceError):
            make_plan(load_workload("llama2-7b-perf"), Topology(4, 8), parse_overrides([setting]))
