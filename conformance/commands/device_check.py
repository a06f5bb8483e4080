"""``conformance device-check``: hold a device plugin against its contract, on one device, before any cluster."""

from __future__ import annotations

import argparse

EPILOG = """\
exit codes: 0 the contract is kept; 1 something is missing or wrong; 2 there is no such plugin, or it lacks members

examples:
  conformance device-check cpu
  conformance device-check ascend
  conformance device-check --list          the plugins and vendors that the suite knows
"""
TIME_LIMIT_SECONDS = 120


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: The command's parser.
    """
    parser.description = "Probe a device plugin: everything that InternEvo and this suite ask of it, one line each."
    parser.epilog = EPILOG
    parser.add_argument("name", nargs="?", help="plugin (entry point) or vendor; without it, the one that is found")
    parser.add_argument("--list", action="store_true", help="list what is known and whether this machine has it")


def run(args: argparse.Namespace) -> int:
    """Probe and print.

    Args:
        args: Parsed arguments.

    Returns:
        0 when every aspect is right, 1 when one is not.
    """
    import tempfile
    from pathlib import Path

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from conformance.checks.preflight import breaks_contract
    from conformance.devices import detect_device, known_devices, load_device
    from conformance.errors import DeviceError
    from conformance.preflight.contract_run import check_contract

    if args.list and args.name:
        raise DeviceError(f"--list tells of all devices, and not of {args.name}.", "Leave out one of the two.")
    console = Console(highlight=False)
    if args.list:
        for name, where, count in known_devices():
            console.print(f"{name:14} {count or 'none':>5}  {where}", markup=False)
        return 0
    device = load_device(args.name) if args.name else detect_device()
    with tempfile.TemporaryDirectory(prefix="conformance-device-") as folder:
        rows = check_contract(device, Path(folder), TIME_LIMIT_SECONDS)
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    styles = {"ok": "green", "n/a": "dim", "missing": "yellow", "wrong": "bold red"}
    for row in rows:
        table.add_row(f"[{styles[row['state']]}]{row['state']}[/]", row["aspect"], escape(row["detail"]))
    console.print(table)
    bad = [row["aspect"] for row in rows if breaks_contract(row)]
    lacking = [row["aspect"] for row in rows if row["state"] == "missing" and not breaks_contract(row)]
    if lacking:
        console.print(f"{device.name}: not told, and so not checked: {', '.join(lacking)}.")
    if bad:
        console.print(f"{device.name}: {len(bad)} of {len(rows)} aspects missing or wrong: {', '.join(bad)}.")
        return 1
    console.print(f"{device.name}: keeps the contract ({len(rows)} aspects).")
    return 0
