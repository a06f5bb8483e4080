"""The ``conformance`` command: finds the command's module, runs it, and turns errors into sentences and exit codes."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from conformance import __version__
from conformance.errors import ConformanceError

COMMANDS = {
    "plan": "resolve a workload on a topology, or list every rule that it breaks",
    "internevo": "get an InternEvo reference tag, or prove that a tree is one",
    "data": "make training data for InternEvo, fingerprint it, check it",
    "analyze": "figures and findings from raw training logs",
    "launch-script": "print an sbatch script or a Kubernetes manifest for a run on several nodes",
    "report": "judge and sign a run that ended without a report",
    "bundle": "pack a finished run for a lab",
    "verify": "judge a bundle from its raw evidence",
    "policy": "draft what a lab accepts",
    "challenge": "issue a signed nonce that a run has to answer",
    "countersign": "state, as a lab, what verifying a bundle came to",
    "compare": "rank verified systems",
    "curve": "make a reference curve from runs of several seeds",
    "keygen": "make a signing key",
    "sign": "add signatures to a bundle, or sign a policy",
    "selftest": "inject every known fault into good evidence and see each check go red",
    "device-check": "hold a vendor's device plugin against its contract",
}

EPILOG = """\
runs are made with pytest:
  pytest suites/perf -m tiny                    rehearsal on this machine's CPU
  pytest suites/perf -m 7b --nodes 4            LLaMA2 7B performance on 4 nodes

afterwards:
  conformance report reports/RUN                judge and sign it, where the machine failed before pytest did
  conformance bundle reports/RUN -o run.tar     pack it
  conformance verify run.tar                    judge it, as a lab does

exit codes: 0 good, 1 judged and not good, 2 could not judge (bad input, unreadable files), 130 interrupted, 141 nobody
read the answer to its end
"""
# What a shell reports of a program that a closed pipe ended: 128 and the number of SIGPIPE.
BROKEN_PIPE = 141


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; sys.argv when None.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="conformance",
        description="LLaMA2 pretraining conformance suite for AI accelerators.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"conformance {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        _module(name).configure(command)
    args = parser.parse_args(argv)
    try:
        code = int(_module(args.command).run(args))
        sys.stdout.flush()  # what was printed may still lie in the buffer, and a closed pipe is met only here
        return code
    except ConformanceError as error:
        print(f"conformance {args.command}: {_visible(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"conformance {args.command}: interrupted.", file=sys.stderr)
        return 130
    except (
        BrokenPipeError,
        SystemExit,
    ) as error:  # the reader left, as `head` does: nobody heard the verdict
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # Rich makes a SystemExit(1) of it. Python complains when it flushes at its end, unless there is somewhere to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _visible(text: str) -> str:
    """Text that may quote a foreign file, line by line as it can be shown on a terminal."""
    from conformance.report.visible import visible

    return "\n".join(map(visible, text.split("\n")))


def _module(name: str):  # type: ignore[no-untyped-def]
    return importlib.import_module(f"conformance.commands.{name.replace('-', '_')}")


if __name__ == "__main__":
    raise SystemExit(main())
