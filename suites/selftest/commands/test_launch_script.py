"""The printed scripts are what sbatch and the training operator read, and start the run that was asked for."""

import shlex
import subprocess

import pytest
import yaml

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
    assert main(["launch-script", "kubernetes", "llama2-70b-perf", *options]) == 0
    text = capsys.readouterr().out
    assert text.count('command: ["pytest", "suites/perf", "-m", "70b", "--nodes", "16"') == 2
    assert text.count("huawei.com/Ascend910: 8\n") == 2
    replicas = yaml.safe_load(text)["spec"]["pytorchReplicaSpecs"]
    assert (replicas["Master"].pop("replicas"), replicas["Worker"].pop("replicas")) == (1, 15)
    assert replicas["Worker"] == replicas["Master"]
    container = replicas["Master"]["template"]["spec"]["containers"][0]
    assert container["command"][-2:] == ["--reports", "/reports"]


@pytest.mark.parametrize("scheduler", ["slurm", "kubernetes"])
def test_an_accuracy_run_gets_no_script_without_its_data_and_a_performance_run_none_with(scheduler, capsys):
    assert main(["launch-script", scheduler, "llama2-7b-accuracy", "--nodes", "8"]) == 2
    assert "no data were named" in capsys.readouterr().err
    assert main(["launch-script", scheduler, "llama2-7b-perf", "--nodes", "4", "--data", "d"]) == 2
    assert "Leave --data out" in capsys.readouterr().err


def test_an_accuracy_run_names_its_data_and_what_pytest_is_told_besides(capsys):
    options = ["--nodes", "8", "--data", "my data", "--pytest", "--resume 'reports/a run' --until-target"]
    assert main(["launch-script", "slurm", "llama2-7b-accuracy", *options]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("exec "))
    assert shlex.split(line)[-7:] == [
        "--data", "my data", "--resume", "reports/a run", "--until-target", "--launcher", "slurm",
    ]  # fmt: skip


def test_options_for_pytest_that_cannot_be_read_are_a_sentence(capsys):
    assert main(["launch-script", "slurm", "llama2-7b-perf", "--nodes", "4", "--pytest", "--patch 'my fix.diff"]) == 2
    assert "no closing quotation" in capsys.readouterr().err


def test_the_pods_of_an_accuracy_run_share_checkpoints_and_data(capsys):
    assert main(["launch-script", "kubernetes", "llama2-7b-accuracy", "--nodes", "8", "--data", "/data/rp"]) == 0
    replicas = yaml.safe_load(capsys.readouterr().out)["spec"]["pytorchReplicaSpecs"]
    for role in ("Master", "Worker"):
        pod = replicas[role]["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert "persistentVolumeClaim" in volumes["reports"]
        assert "persistentVolumeClaim" in volumes["data"]
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert (mounts["reports"], mounts["data"]) == ("/reports", "/data/rp")
        assert pod["containers"][0]["command"][-4:] == ["--data", "/data/rp", "--reports", "/reports"]


def test_one_node_has_no_workers(capsys):
    assert main(["launch-script", "kubernetes", "llama2-7b-perf"]) == 0
    text = capsys.readouterr().out
    assert "Master:" in text
    assert "Worker:" not in text


def test_a_run_that_is_not_legal_gets_no_script(capsys):
    assert main(["launch-script", "slurm", "llama2-70b-perf", "--nodes", "1", "--devices-per-node", "3"]) == 2
    assert "cannot run like this" in capsys.readouterr().err
