"""An option that a command would not heed is refused, before any file is read."""

import pytest

from conformance.cli import main

CHECK = ["countersign", "x.tar", "--check", "x.vsa.json", "--lab-key", "lab.pem.pub"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            [*CHECK, "--policy", "p", "--spent", "s"],
            "With --check nothing is stated, and --policy and --spent not heeded",
        ),
        ([*CHECK, "--signing-key", "k", "--passphrase-env", "V"], "--signing-key and --passphrase-env not heeded"),
        ([*CHECK, "-o", "y.vsa.json"], "-o not heeded"),
        (["bundle", "run", "-o", "x.tar", "--signing-key", "k"], "carries the signature of its report"),
        (["bundle", "run", "-o", "x.tar", "--passphrase-env", "V"], "carries the signature of its report"),
        (
            ["bundle", "run", "-o", "x.tar", "--vendor", "A", "--system", "s.toml", "--passphrase-env", "V"],
            "--passphrase-env is for the key of --signing-key, and none was named",
        ),
        (["device-check", "cpu", "--list"], "--list tells of all devices, and not of cpu"),
        (
            ["launch-script", "slurm", "tiny-perf", "--devices-per-node", "2", "--resource", "r"],
            "Slurm knows no --resource",
        ),
        (["analyze", "rank0.log", "--device", "NVIDIA H200"], "--device selects the floors of a workload"),
    ],
)
def test_it_is_refused_in_a_sentence(words, told, capsys):
    assert main(words) == 2
    shown = capsys.readouterr()
    assert told in shown.err
    assert shown.out == ""
