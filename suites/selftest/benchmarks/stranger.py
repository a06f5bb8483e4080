"""Would a stranger succeed? Three paths of a new user with nothing but the documents' commands, each timed.

    sudo python suites/selftest/benchmarks/stranger.py

vendor        clone, `make rehearsal`, and the bundle that it left, verified
lab           install the base, write a policy and a challenge; the vendor answers it with a preflight and a run, and
              submits; the lab verifies and countersigns: a verdict
third vendor  copy the example of a device plugin under a name of its own, install it, check it, preflight and run

Makes a user with an empty home folder and the system's own Python, and removes both at the end. The documents' commands
are looked up there; what is typed in their place (the rehearsal for the official workload, one node for several) stands
below. Prints each command with its seconds. Stops at the first that fails, and keeps the home folder then.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# What a document says, and what is typed in its place on a machine without accelerators.
STAND_INS = {
    "--workload llama2-7b-perf": "--workload tiny-perf",
    "--vendor ACME=acme.pem.pub": "--vendor ACME=../suite/acme.pem.pub --workload tiny-perf",
    "-m 7b --nodes 4": "-m tiny",
    "pytest suites/preflight --nodes 4": "pytest suites/preflight",
    " acme.tar": " ../suite/acme.tar",
    "abacus": "quipu",
}
CHALLENGE = " --challenge ../lab/challenge.dsse.json"  # as README says, where the lab sent one
# What a vendor writes into the form that `conformance bundle` prints.
STATED = {
    "system_name": "bench one",
    "availability": "research",
    "storage": "one local disk",
    "accelerator_memory": "none",
    "accelerator_interconnect": "none",
    "driver": "none",
    "firmware": "none",
    "network": "none",
    "network_ports_per_node": "none",
    "topology": "one node",
    "power_watts_per_node": 200,
    "cooling": "air",
}
FILLED = "".join(f"{name} = {json.dumps(value)}\n" for name, value in STATED.items())


@dataclass(frozen=True)
class Step:
    """What a stranger types.

    Args:
        folder: Where, below the home folder.
        command: The command.
        venv: The environment that is active then, below the home folder; empty for none.
    """

    folder: str
    command: str
    venv: str = ""


def typed(document: str, beginning: str, *, own: bool = False) -> str:
    """Look a command up in a document.

    Args:
        document: Its path.
        beginning: The command, or how it alone begins there.
        own: Whether it is typed where its files are, so that paths stay as they stand.

    Returns:
        The command, without its comment and with what stands in.
    """
    lines = [re.sub(r"\s+#.*|^\$ ", "", line) for line in (ROOT / document).read_text("utf-8").splitlines()]
    found = [line for line in lines if line == beginning] or [line for line in lines if line.startswith(beginning)]
    if len(found) != 1:
        raise SystemExit(f"{document} has {len(found)} commands that begin with {beginning!r}, expected one.")
    command = found[0]
    for said, instead in STAND_INS.items():
        if not (own and instead.startswith(" ../")):
            command = command.replace(said, instead)
    return command


def vendor() -> list[Step]:
    """From a clone to a verified bundle."""
    return [
        Step("", "git clone --quiet origin.git suite"),
        Step("suite", typed("README.md", "make rehearsal")),
        Step("suite", "conformance verify reports/2*-tiny-perf.tar", "suite/.venv"),
    ]


def lab() -> list[Step]:
    """From an installation to the verdict on a bundle, and what the vendor does for it."""
    there, here = "suite/.venv", "lab/venv"
    return [
        Step("", "git clone --quiet origin.git lab"),
        Step("lab", typed("README.md", "python3 -m venv venv")),
        Step("lab", typed("README.md", "pip install ."), here),
        Step("suite", typed("README.md", "conformance keygen -o acme.pem"), there),
        Step("lab", typed("README.md", "conformance keygen -o lab.pem"), here),
        Step("lab", typed("README.md", "conformance policy new"), here),
        Step("lab", typed("README.md", "conformance sign policy.json"), here),
        Step("lab", typed("README.md", "touch spent.jsonl"), here),
        Step("lab", typed("README.md", "conformance challenge new"), here),
        Step("suite", "mkdir ../practice && mv reports/2* ../practice"),
        Step("suite", typed("README.md", "pytest suites/preflight --nodes 4"), there),
        Step("suite", typed("README.md", "pytest suites/perf -m 7b") + CHALLENGE, there),
        Step("suite", "conformance bundle reports/2*/ --vendor ACME > system.toml || test $? = 2", there),
        Step("suite", f"printf %s {shlex.quote(FILLED)} > system.toml"),
        Step("suite", typed("README.md", "conformance bundle reports/2*/ --vendor ACME --system", own=True), there),
        Step("suite", typed("README.md", "conformance verify acme.tar", own=True), there),
        Step("lab", typed("README.md", "conformance verify acme.tar --policy"), here),
        Step("lab", typed("README.md", "conformance countersign"), here),
    ]


def third_vendor() -> list[Step]:
    """From the template to a working plugin."""
    example, venv = "fixtures/example_vendor_plugin", "suite/.venv"
    rename = "mv abacus_conformance quipu_conformance"
    edit = "grep -rli abacus . | xargs sed -i 's/abacus/quipu/g; s/Abacus/Quipu/g; s/ABACUS/QUIPU/g'"
    return [
        Step("", f"cp -r suite/{example} quipu"),
        Step("quipu", f"{rename} && {edit}"),
        Step("quipu", typed(f"{example}/README.md", "pip install ."), venv),
        Step("suite", typed(f"{example}/README.md", "conformance device-check abacus"), venv),
        Step("suite", typed(f"{example}/README.md", "pytest suites/preflight --device abacus"), venv),
        Step("suite", typed("README.md", "pytest suites/perf -m 7b") + " --device quipu", venv),
    ]


def walk(user: str, home: Path, name: str, steps: list[Step]) -> None:
    """Type every command of a path.

    Args:
        user: The stranger.
        home: The stranger's home folder.
        name: Name of the path.
        steps: What is typed.

    Raises:
        SystemExit: A command failed; what it said is in the message.
    """
    print(f"\n{name}")
    total = 0.0
    for step in steps:
        activate = f". {home}/{step.venv}/bin/activate && " if step.venv else ""
        command = ["runuser", "-u", user, "--", "env", "-i", f"HOME={home}", "PATH=/usr/local/bin:/usr/bin:/bin"]
        command.append("COLUMNS=200")  # what is printed below is then not wrapped
        start = time.perf_counter()
        done = subprocess.run(
            [*command, "bash", "-euc", f"cd {home / step.folder} && {activate}{step.command}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - start
        total += seconds
        shown = step.command if len(step.command) <= 100 else step.command[:97] + "..."
        print(f"  {seconds:7.1f} s  {step.folder or '~'}$ {shown}", flush=True)
        if done.returncode:
            raise SystemExit(f"{done.stdout}\nIt ended with {done.returncode}: {step.command}")
        if "verify" in step.command or "countersign" in step.command:
            print("             " + done.stdout.strip().splitlines()[-1])
    print(f"  {total:7.1f} s  in all")


def main() -> None:
    """Make the stranger, walk the paths, remove the stranger."""
    if os.geteuid() != 0:
        raise SystemExit("This makes a new user, and so has to be started as root.")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start, Python {sys.version.split()[0]} here")
    user = f"stranger-{secrets.token_hex(3)}"
    folder = Path(tempfile.mkdtemp(prefix="stranger-"))
    folder.chmod(0o755)
    home = folder / "home"
    subprocess.run(["useradd", "--create-home", "--home-dir", str(home), user], check=True)
    try:
        subprocess.run(["git", "clone", "--quiet", "--bare", str(ROOT), str(home / "origin.git")], check=True)
        subprocess.run(["chown", "-R", f"{user}:", str(home)], check=True)
        for name, steps in (("vendor", vendor()), ("lab", lab()), ("third vendor", third_vendor())):
            walk(user, home, name, steps)
    except SystemExit:
        print(f"Everything is kept in {home}.", file=sys.stderr)
        raise
    finally:
        subprocess.run(["userdel", user], check=False)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
