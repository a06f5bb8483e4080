"""The ``conformance`` command: finds the command's module, runs it, and turns errors into sentences and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import traceback

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

exit codes: 0 good, 1 judged and not good, 2 could not judge (bad input, a file that cannot be read or written, a fault
of the suite), 130 interrupted, 141 nobody read the answer to its end
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
        if sys.stdout is None:  # what Python makes of one that is closed
            raise ConformanceError("Standard output is closed.", "Let it lead to a terminal, a file or /dev/null.")
        code = int(_module(args.command).run(args))
        sys.stdout.flush()  # what was printed may still lie in the buffer, and a closed pipe is met only here
        return code
    except ConformanceError as error:
        _say(f"conformance {args.command}: {error}")
        return 2
    except KeyboardInterrupt:
        _say(f"conformance {args.command}: interrupted.")
        return 130
    except (
        BrokenPipeError,
        SystemExit,
    ) as error:  # the reader left, as `head` does: nobody heard the verdict
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        _leave_unwritten()  # Rich makes a SystemExit(1) of it
        return BROKEN_PIPE
    except OSError as error:
        _say(f"conformance {args.command}: {_place(error)}: {error.strerror or error}.")
        return 2
    except Exception:  # exit code 1 would say that something was judged
        _say(traceback.format_exc().rstrip())
        _say(
            f"conformance {args.command}: nothing was decided. This is a fault of the suite: please report these lines."
        )
        return 2


def _place(error: OSError) -> str:
    """What could not be read or written. An error of standard output has no name, and stays for the next flush."""
    try:
        sys.stdout.flush()
    except OSError:
        _leave_unwritten()
        return "standard output cannot be written"
    return "standard output or a file cannot be used" if error.filename is None else str(error.filename)


def _leave_unwritten() -> None:
    """Give what is left for standard output somewhere to go: Python complains when it flushes it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(text: str) -> None:
    """Print to stderr what may quote a foreign file, line by line as it can be shown on a terminal."""
    from conformance.report.visible import visible

    with contextlib.suppress(OSError):  # then the exit code alone tells
        print("\n".join(map(visible, text.split("\n"))), file=sys.stderr)


def _module(name: str):  # type: ignore[no-untyped-def]
    return importlib.import_module(f"conformance.commands.{name.replace('-', '_')}")


if __name__ == "__main__":
    raise SystemExit(main())
