"""The printed scripts are what sbatch and the training operator read, and start the run that was asked for."""

import subprocess

import pytest

from conformance.cli import main


def test_slurm(capsys, tmp_path):
    assert main(["launch-script", "slurm", "llama2-7b-perf", "--nodes", "4"]) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --nodes=4\n" in script
    assert "#SBATCH --gres=gpu:8\n" in script
    assert "exec pytest suites/perf -m 7b --nodes 4 --devices-per-node 8 --launcher slurm\n" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_kubernetes(capsys):
    options = ["--nodes", "16", "--resource", "huawei.com/Ascend910"]
    assert main(["launch-script", "kubernetes", "llama2-70b-accuracy", *options]) == 0
    text = capsys.readouterr().out
    assert text.count('command: ["pytest", "suites/accuracy", "-m", "70b", "--nodes", "16"') == 2
    assert text.count("huawei.com/Ascend910: 8\n") == 2
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    replicas = yaml.safe_load(text)["spec"]["pytorchReplicaSpecs"]
    assert (replicas["Master"].pop("replicas"), replicas["Worker"].pop("replicas")) == (1, 15)
    assert replicas["Worker"] == replicas["Master"]
    container = replicas["Master"]["template"]["spec"]["containers"][0]
    assert container["command"][-2:] == ["--reports", "/reports"]


def test_one_node_has_no_workers(capsys):
    assert main(["launch-script", "kubernetes", "llama2-7b-perf"]) == 0
    text = capsys.readouterr().out
    assert "Master:" in text
    assert "Worker:" not in text


def test_a_run_that_is_not_legal_gets_no_script(capsys):
    assert main(["launch-script", "slurm", "llama2-70b-perf", "--nodes", "1", "--devices-per-node", "3"]) == 2
    assert "cannot run like this" in capsys.readouterr().err
