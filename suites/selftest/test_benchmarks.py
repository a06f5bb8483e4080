"""Benchmarks: `make bench` goes on where nothing can be measured or a bar is missed, and ends where one breaks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEED_A_DEVICE = ("bench_kernels", "bench_peer", "bench_preflight")


@pytest.mark.slow
@pytest.mark.parametrize("name", NEED_A_DEVICE)
def test_without_a_device_nothing_is_measured_and_one_sentence_says_so(name, tmp_path):
    if name != "bench_peer":
        pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")
    told = subprocess.run(
        [sys.executable, f"suites/selftest/benchmarks/{name}.py"],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert told.returncode == 4, told.stderr
    assert told.stdout.startswith(f"{name}: no CUDA device here")
    assert not told.stderr


@pytest.fixture
def bench(tmp_path):
    """`make bench` of a checkout whose second benchmark is a given program."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    folder = tmp_path / "suites/selftest/benchmarks"
    folder.mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    for stamp in (".rehearsal", ".dev"):
        (tmp_path / ".venv" / stamp).touch()

    def run(program):
        for name, text in {"a": "print('first')", "b": program, "c": "print('last')"}.items():
            (folder / f"bench_{name}.py").write_text(text)
        return subprocess.run(["make", "bench"], cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return run


@pytest.mark.parametrize("code", [0, 3, 4])
def test_it_goes_on(bench, code):
    told = bench(f"raise SystemExit({code})")
    assert told.returncode == 0, told.stderr
    assert "last" in told.stdout


@pytest.mark.parametrize(
    "program",
    [
        "raise RuntimeError",
        "raise SystemExit('The suite made no run.')",
        "import argparse\nargparse.ArgumentParser().error('')",
    ],
)
def test_one_that_breaks_ends_it(bench, program):
    told = bench(program)
    assert told.returncode != 0
    assert "last" not in told.stdout
