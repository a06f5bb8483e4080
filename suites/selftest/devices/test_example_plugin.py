"""The example vendor's package, installed with pip, is found by name, keeps the contract, and can be broken."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "fixtures/example_vendor_plugin"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Environment of processes that have the package."""
    pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")
    pytest.importorskip("setuptools", reason="setuptools is not installed; `make test` installs it")
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(PACKAGE, folder / "source")  # a build leaves its own folders in the source
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(folder / "site"), str(source)], check=True, timeout=120)
    return {**os.environ, "PYTHONPATH": str(folder / "site")}


def device_check(environment, *args):
    command = [sys.executable, "-m", "conformance.cli", "device-check", *args]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_an_installed_plugin_keeps_the_contract(installed):
    result = device_check(installed, "abacus")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "abacus: keeps the contract (16 aspects)" in result.stdout
    assert "AB-0001" in result.stdout
    assert "ABACUS_VISIBLE_DEVICES=1 shows 1 device, AB-0002" in result.stdout


def test_a_broken_plugin_is_told_what_is_missing(installed):
    module = Path(installed["PYTHONPATH"]) / "abacus_conformance/__init__.py"
    sound = module.read_text()
    broken = sound.replace('"model": row["name"]', '"model": "unknown"').replace("chosen.split", '"0,1".split')
    module.write_text(broken)
    try:
        result = device_check(installed, "abacus")
    finally:
        module.write_text(sound)
    assert result.returncode == 1
    assert "missing or wrong: identity, visible devices." in " ".join(result.stdout.split())


def test_an_unknown_plugin_is_refused_in_one_sentence(installed):
    result = device_check(installed, "slide-rule")
    assert result.returncode == 2
    assert result.stderr.startswith(
        "conformance device-check: Unknown device 'slide-rule'; installed device plugins: abacus, cpu"
    )
    assert "Traceback" not in result.stderr
