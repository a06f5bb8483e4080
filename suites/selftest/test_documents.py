"""The documents: every command in them runs, in their order; every file and page that they name is there."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.cli import COMMANDS
from conformance.evidence import RunDirectory
from conformance.judgement import judge
from conformance.report.build import write_report

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "fixtures/*.md", "reports/*.md", "reference_logs/*.md")
    for page in ROOT.glob(pattern)
)
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANY_BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
OURS = re.compile(r"`((?:conformance|suites|docs|fixtures|reference_logs)/[\w./-]+)`")
# Shell scripts of several lines, which report/test_verify_by_hand.py runs; and the commands of README.md again.
RUN_ELSEWHERE = ("docs/verify-by-hand.md", "README.zh-CN.md")
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
pip() { [ "$1" = install ]; }
make() { command make --dry-run "$@" > /dev/null; }
conformance() {
  case "$*" in
    "internevo get"*) "$PYTHON" -m conformance.cli internevo get --help > /dev/null && [[ "$3" =~ ^--(tag|from)$ ]] ;;
    *) "$PYTHON" -m conformance.cli "$@" ;;
  esac
}
"""


def commands(page):
    """Every command of a page's blocks, continued lines in one."""
    text = "".join(BLOCK.findall((ROOT / page).read_text("utf-8"))).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


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
    text = (ROOT / page).read_text("utf-8")
    run = set(BLOCK.findall(text))
    others = [block for block in ANY_BLOCK.findall(text) if block not in run]
    strays = re.compile(r"^(?:conformance|pytest|make|pip) ", re.MULTILINE)
    assert not [block for block in others if strays.search(block)]
    named = set(re.findall(r"`conformance ([a-z][a-z-]*)", text)) - {"COMMAND"}
    assert named <= set(COMMANDS)


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
    for name in ("conftest.py", "pyproject.toml", "Makefile"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", "correct horse")
    monkeypatch.setenv("PYTHON", sys.executable)
    for name, value in {"NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():  # as each node of several is told
        monkeypatch.setenv(name, value)
    tools = runpy.run_path(str(ROOT / "suites/selftest/bundle/lab.py"))
    (tmp_path / "keys").mkdir()
    lab = tools["Lab"](tmp_path / "keys")
    envelope = lab.challenge(workloads=(tools["WORKLOAD"], tools["ACCURACY"]))
    lab.folder = tmp_path / "reports"
    lab.folder.mkdir(exist_ok=True)
    perf = lab.run("20261124-010000-tiny-perf", envelope)
    tools["end_journal"](perf)
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
# What a reader has by then, made by these commands, where no command of the page makes it.
BEFORE = {
    "acme.pem": "conformance keygen -o acme.pem",
    "lab.pem": "conformance keygen -o lab.pem",
    "operator.pem": "conformance keygen -o operator.pem",
    "policy.json": "conformance policy new --name L --lab-key keys/lab.pem.pub --vendor A=keys/vendor.pem.pub "
    "-o policy.json",
    "acme.tar": f"conformance {BUNDLE} acme.tar",
    "other.tar": f"conformance {BUNDLE} other.tar",
    "rank0.log": "cp reports/2*-tiny-perf/logs/node0/rank0.log .",
    "reports/RUN": "ln -s 20261124-020000-tiny-accuracy reports/RUN",
    "reports/A": "ln -s 20261124-010000-tiny-perf reports/A",
    "reports/B": "ln -s 20261124-020000-tiny-accuracy reports/B",
    "reports/C": "ln -s 20261124-030000-preflight reports/C",
    "RedPajama-Data-1T-Sample": "mkdir RedPajama-Data-1T-Sample; head -n 20 fixtures/corpus/*.jsonl > "
    "RedPajama-Data-1T-Sample/a.jsonl",
    "SAMPLE": "cp -r RedPajama-Data-1T-Sample SAMPLE",
    "RUN1": "for n in 1 2 3; do cp -r reports/2*-tiny-accuracy RUN$n; done",
    "tokenizer.model": "python -c 'from conformance.data.tokenizer import rehearsal_tokenizer as t; import shutil; "
    'shutil.copy(t(), "tokenizer.model")\'',
}
# These end with a judgement, which of rehearsals under an official policy, and of one run three times, is no good one;
# or with the form that they ask for.
JUDGES = re.compile(r"conformance (?:verify|countersign|compare|curve make) |> system\.toml")


def shell(command):
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{SHELL}\n{command}"], capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page) and page not in RUN_ELSEWHERE])
def test_every_command_runs(page, stage):
    typed = commands(page)
    (stage / "filled.toml").write_text(STATED)
    for name, command in BEFORE.items():
        makes = any(re.search(rf"(?:-o|--out|touch|>) {re.escape(name)}(?:\s|$)", one) for one in typed)
        if not makes:
            told = shell(command)
            assert told.returncode == 0, f"{command}\n{told.stdout}{told.stderr}"
    for command in typed:
        told = shell(command)
        said = f"{command}\n{told.stdout[-2000:]}{told.stderr[-2000:]}"
        assert "Traceback" not in said
        assert "usage:" not in told.stderr, said
        assert told.returncode in ((0, 1, 2) if JUDGES.search(command) else (0,)), said
        if "> system.toml" in command:
            (stage / "system.toml").write_text(STATED)  # what the reader is asked to do then
