"""The documents: every command in them runs, in their order; every file and page that they name is there."""

import argparse
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lab import ACCURACY, WORKLOAD, Lab, end_journal

from conformance.cli import COMMANDS
from conformance.evidence import RunDirectory
from conformance.judgement import judge
from conformance.report.build import write_report

ROOT = Path(__file__).parents[2]
PAGES = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True).stdout.split()
if not PAGES:
    pytest.skip("the pages are found with git, in a checkout", allow_module_level=True)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:conformance|pytest|python3?) [^`]+)`")
COMMAND = re.compile(r"^(?:conformance|pytest|make|pip|python3?) ", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
OURS = re.compile(r"`((?:conformance|suites|docs|fixtures|reference_logs)/[\w./-]+)`")
RUN_ELSEWHERE = ("README.zh-CN.md",)  # README.md's commands
# What a test stands in for: training on nodes of eight cards, the network, an installation that the test is in.
SHELL = """
pytest() {
  case "$*" in
    *suites/preflight*--workload*) ;;
    *suites/preflight*) set -- "$@" --workload llama2-7b-perf ;;
  esac
  "$PYTHON" -m pytest --collect-only -q -p no:cacheprovider --devices-per-node 8 "$@"
}
python() { "$PYTHON" "$@"; }
python3() { "$PYTHON" "$@"; }
pip() {
  [ "$1" = install ]
  case "$2" in ./*|fixtures/*) python -m pip "$@" -q --no-deps --no-index --no-build-isolation --target site ;; esac
}
make() { command make --dry-run "$@" > /dev/null; }
conformance() {
  case "$*" in
    "internevo get"*) "$PYTHON" -m conformance.cli "$@" --help > /dev/null ;;
    *) "$PYTHON" -m conformance.cli "$@" ;;
  esac
}
"""
# The same, of what the page's own commands installed.
INSTALLED = SHELL.replace('"$PYTHON" -m pytest', "command pytest")
INSTALLED = INSTALLED.replace('"$PYTHON" -m conformance.cli', "command conformance")
INSTALLED += """
PATH="$PWD/venv/bin:$PATH"
pip() { command pip "$@" --quiet --disable-pip-version-check; }
"""


def commands(page):
    """Every command of a page: the lines of its bash blocks, continued ones in one, and what others show after a $."""
    typed = []
    for language, text in BLOCK.findall((ROOT / page).read_text("utf-8")):
        lines = text.replace("\\\n", " ").splitlines()
        if language != "bash":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        typed += [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return typed


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text("utf-8")
    links = [link for link in LINK.findall(text) if not link.startswith(("http", "mailto:"))]
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    missing += [name for name in OURS.findall(text) if not (ROOT / name).exists() and "NAME" not in name]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_commands_stand_in_blocks_that_are_run(page):
    """A command in a block of another kind would be run by no test."""
    others = [text for language, text in BLOCK.findall((ROOT / page).read_text("utf-8")) if language != "bash"]
    assert not [text for text in others if COMMAND.search(text)]


@pytest.fixture(scope="module")
def options_of_pytest():
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "--help", "suites/perf"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", told.stdout))


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_a_sentence_could_be_typed(page, options_of_pytest, capsys):
    for command in INLINE.findall(BLOCK.sub("", (ROOT / page).read_text("utf-8"))):
        program, *words = shlex.split(command)
        options = {word.partition("=")[0] for word in words if word.startswith("-")}
        if program == "conformance":
            assert parses(words), f"{command}\n{capsys.readouterr().err}"
        elif program == "pytest":
            assert options <= options_of_pytest, command
            assert all((ROOT / word).exists() for word in words if word.startswith("suites/")), command
        else:
            known = (ROOT / words[0]).read_text("utf-8")
            assert all(f'"{option}"' in known or option in options_of_pytest for option in options), command


def parses(words):
    """Whether the command line takes the words; nothing is run, and a command without arguments is only named."""
    if words == ["--help"]:
        return True
    if words[0] not in COMMANDS:
        return False
    if all(re.fullmatch("[a-z][a-z-]*", word) for word in words):
        words = [*words, "--help"]
    parser = argparse.ArgumentParser()
    importlib.import_module(f"conformance.commands.{words[0].replace('-', '_')}").configure(parser)
    try:
        parser.parse_args(words[1:])
    except SystemExit as end:
        return end.code == 0
    return True


def test_a_command_that_could_not_be_typed_is_noticed(capsys):
    assert parses(["verify", "acme.tar", "--policy", "p"])
    assert not parses(["verify", "acme.tar", "--polcy", "p"])
    assert not parses(["verifi", "acme.tar"])


def test_both_languages_say_the_same_commands():
    def bare(page):
        return [re.sub(r"\s+#.*", "", command) for command in commands(page)]

    assert bare("README.md") == bare("README.zh-CN.md")


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """A checkout with the runs of one system in its reports folder."""
    for name in ("suites", "docs", "fixtures", "reference_logs", "reports/example", "conformance"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conftest.py", "pyproject.toml", "Makefile", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", "correct horse")
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{tmp_path}")  # plugins, and what a page changes
    for name, value in {"NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():  # as each node of several is told
        monkeypatch.setenv(name, value)
    (tmp_path / "keys").mkdir()
    lab = Lab(tmp_path / "keys")
    envelope = lab.challenge(workloads=(WORKLOAD, ACCURACY))
    lab.folder = tmp_path / "reports"
    lab.folder.mkdir(exist_ok=True)
    perf = lab.run("20261124-010000-tiny-perf", envelope)
    end_journal(perf)
    accuracy = lab.accuracy(envelope, "20261124-020000-tiny-accuracy", after=perf)
    preflight = lab.preflight(accuracy)
    runs = [perf, accuracy, preflight.rename(preflight.with_name("20261124-030000-preflight"))]
    for run in runs:
        write_report(run, judge(RunDirectory(run)), lab.path["vendor"])
    (lab.folder / "20261124-000000-tiny-perf.tar").touch()  # as `make rehearsal` leaves one beside its run
    return tmp_path


STATED = """\
system_name = "bench one"
availability = "research"
storage = "one local disk"
accelerator_memory = "none"
accelerator_interconnect = "none"
driver = "none"
firmware = "none"
network = "none"
network_ports_per_node = "none"
topology = "one node"
power_watts_per_node = 200
cooling = "air"
"""
BUNDLE = "bundle reports/2*/ --vendor ACME --system filled.toml --signing-key keys/vendor.pem -o"
SAMPLE = "sample() { mkdir $1; head -n 20 fixtures/corpus/*.jsonl > $1/a.jsonl; }; sample"
# What a reader has by then, made by these commands, where no command of the page makes it.
BEFORE = {
    "acme.pem": "conformance keygen -o acme.pem",
    "lab.pem": "conformance keygen -o lab.pem",
    "operator.pem": "conformance keygen -o operator.pem",
    "policy.json": "conformance policy new --name L --lab-key keys/lab.pem.pub --vendor A=keys/vendor.pem.pub "
    "-o policy.json",
    "acme.tar": f"conformance {BUNDLE} acme.tar",
    "other.tar": f"conformance {BUNDLE} other.tar",
    "bundle.tar": f"conformance {BUNDLE} bundle.tar",
    "vendor.pem.pub": "cp keys/vendor.pem.pub .",
    "gradient.patch": "sed -n '/^```diff$/,/^```$/p' docs/extending.md | sed '1d;$d' > gradient.patch",
    "abacus": "pip install fixtures/example_vendor_plugin",
    "rank0.log": "cp reports/2*-tiny-perf/logs/node0/rank0.log .",
    "reports/RUN": "ln -s 20261124-020000-tiny-accuracy reports/RUN",
    "reports/A": "ln -s 20261124-010000-tiny-perf reports/A",
    "reports/B": "ln -s 20261124-020000-tiny-accuracy reports/B",
    "reports/C": "ln -s 20261124-030000-preflight reports/C",
    "RedPajama-Data-1T-Sample": f"{SAMPLE} RedPajama-Data-1T-Sample",
    "SAMPLE": f"{SAMPLE} SAMPLE",
    "RUN1": "for n in 1 2 3; do cp -r reports/2*-tiny-accuracy RUN$n; done",
    "tokenizer.model": "python -c 'from conformance.data.tokenizer import rehearsal_tokenizer as t; import shutil; "
    'shutil.copy(t(), "tokenizer.model")\'',
}
# How a command ends where that is not 0: rehearsals fail a policy for official runs, and cannot be ranked under it; no
# curve is made of one run three times.
CODES = {
    "conformance bundle .* > system.toml": 2,  # the form, to be filled in
    "conformance (verify|countersign) acme.tar --policy": 1,
    "conformance compare acme.tar other.tar": 2,
    "conformance curve make RUN1 RUN2 RUN3": 2,
}


def shell(command, prelude=SHELL):
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{prelude}\n{command}"], capture_output=True, text=True, timeout=600
    )


def type_all(page, stage, prelude):
    """Run a page's commands in their order, after what its reader has by then."""
    typed = commands(page)
    (stage / "filled.toml").write_text(STATED)
    for name, command in BEFORE.items():
        makes = any(re.search(rf"(?:-o|--out|touch|>|install) {re.escape(name)}(?:\s|$)", one) for one in typed)
        if not makes and any(name in one for one in typed):
            told = shell(command)
            assert told.returncode == 0, f"{command}\n{told.stdout}{told.stderr}"
    for command in typed:
        told = shell(command, prelude)
        said = f"{command}\n{told.stdout[-2000:]}{told.stderr[-2000:]}"
        assert "Traceback" not in said
        assert "usage:" not in told.stderr, said
        assert told.returncode == next((code for one, code in CODES.items() if re.match(one, command)), 0), said
        if "> system.toml" in command:
            (stage / "system.toml").write_text(STATED)  # what the reader is asked to do then


@pytest.mark.slow
@pytest.mark.needs("torch")
@pytest.mark.needs("sentencepiece")
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page) and page not in RUN_ELSEWHERE])
def test_every_command_runs(page, stage):
    type_all(page, stage, SHELL)


@pytest.mark.slow
@pytest.mark.long
def test_the_first_page_runs_as_installed(stage):
    """In the environments that README's own commands make; what trains is collected only."""
    asked = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "hatchling", "-d", str(stage / "asked")]
    if subprocess.run(asked, capture_output=True).returncode:
        pytest.skip("installing needs a package index")
    type_all("README.md", stage, INSTALLED)
