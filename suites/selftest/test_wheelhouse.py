"""A site without a network: what `make wheelhouse` gathered is all that it takes, in a namespace without a route."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ("conformance", "pyproject.toml", "README.md", "LICENSE", "Makefile")
TAGS = ("v0.2.3dev20240201", "v0.3.1dev20240229")
EXAMPLE = ROOT / "reports" / "example"
VERIFY = (
    f"venv/bin/conformance verify {shlex.quote(str(EXAMPLE / 'h200-slice.tar'))}"
    f" --policy {shlex.quote(str(EXAMPLE / 'policy.dsse.json'))} --lab-key {shlex.quote(str(EXAMPLE / 'lab.pem.pub'))}"
)

pytestmark = [pytest.mark.slow, pytest.mark.long]


def git(folder, *command):
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *command], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the source, so that nothing is built or gathered in this one."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in SOURCE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """A repository with both tags, in InternEvo's place."""
    folder = tmp_path_factory.mktemp("mirror")
    git(folder, "init", "--quiet")
    for tag in TAGS:
        (folder / "version.txt").write_text(tag)
        (folder / "train.py").write_text("import internlm\n")
        (folder / "internlm").mkdir(exist_ok=True)
        (folder / "internlm/__init__.py").write_text("")
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "-m", tag)
        git(folder, "tag", tag)
    return folder


def gather(checkout, mirror):
    command = ["make", "wheelhouse", f"PYTHON={sys.executable}", f"INTERNEVO={mirror}"]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def site(checkout, mirror, tmp_path_factory):
    """A folder that has the wheelhouse and nothing else; the commands that run there have no network."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a network namespace needs root")
    asked = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "hatchling", "-d"]
    if subprocess.run([*asked, str(tmp_path_factory.mktemp("asked"))], capture_output=True, check=False).returncode:
        pytest.skip("gathering needs a package index")
    gathered = gather(checkout, mirror)
    assert gathered.returncode == 0, gathered.stdout + gathered.stderr
    folder = tmp_path_factory.mktemp("site")
    shutil.move(checkout / "wheelhouse", folder / "wheelhouse")

    def run(command):
        # No settings of this machine's pip either: they may name further places to look for packages.
        variables = {"PATH": os.environ["PATH"], "HOME": str(folder), "PIP_CONFIG_FILE": os.devnull}
        return subprocess.run(
            ["unshare", "-n", "bash", "-euc", command],
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    run.told = gathered.stdout
    return run


def test_it_installs_and_verifies_without_a_network(site):
    python = shlex.quote(sys.executable)
    assert "unreachable" in site(f"{python} -c 'import socket; socket.create_connection((\"192.0.2.1\", 80))'").stderr
    install = next(line for line in site.told.splitlines() if "pip install" in line).partition("pip install")[2]
    installed = site(f"{python} -m venv venv && venv/bin/python -m pip install {install}")
    assert installed.returncode == 0, installed.stdout + installed.stderr
    verified = site(VERIFY)
    # 2 where this suite is not the one that the example was made by, which stays open.
    assert verified.returncode in (0, 2), verified.stdout + verified.stderr
    assert "yes  Is every file accounted for?" in verified.stdout
    # The bundle is read as a repository with this tag, which the mirror's is not the real one of.
    for tag in TAGS:
        got = site(f"venv/bin/conformance internevo get --tag {tag} --from wheelhouse/InternEvo.bundle")
        assert got.returncode == 2
        assert f"wheelhouse/InternEvo.bundle has a tag {tag}, but not the pinned one" in got.stderr


def test_a_mirror_that_is_none_is_told(tmp_path):
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(shutil.which("true"))  # the wheels are the other test's
    told = gather(tmp_path, tmp_path / "nothing")
    assert told.returncode != 0
    assert f"InternEvo is not: {tmp_path / 'nothing'} could not be cloned" in told.stdout
