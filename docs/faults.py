"""Write the tables of injected faults, docs/faults.md, from those of the suite and its tests: python docs/faults.py"""

import runpy
from itertools import groupby
from pathlib import Path

from conformance.selftest.faults import FAULTS

PAGE = Path(__file__).with_name("faults.md")
DEVICE = PAGE.parents[1] / "suites/selftest/preflight/faulty_device/faulty_device.py"
HEAD = """\
# Injected faults

Every check of the suite is shown something that is wrong, and must turn red; and what is good, and must stay green.
`conformance selftest` injects each fault of this page and fails when its check does not see it, when another check does
that is not named beside it, or when a check has no fault. This page is written by `python docs/faults.py`.

The measuring itself is proved on a [simulated device](../suites/selftest/preflight/faulty_device/faulty_device.py),
whose kernels, collectives, clocks, speeds and health are broken one by one: the last table. What is read of a node, its
limits, /dev/shm, disk, memory, processors and RDMA ports, [test_host.py](../suites/selftest/preflight/test_host.py)
breaks.
"""
SIMULATED = """
## Into a simulated device

Measured anew by every run of [test_faults.py](../suites/selftest/preflight/test_faults.py).

| what goes wrong | the checks that see it |
|---|---|
"""


def page() -> str:
    """The page.

    Returns:
        Markdown: a table for each thing that faults are injected into.
    """
    lines, told = [HEAD], []
    for bench, faults in groupby(FAULTS, lambda fault: fault.bench.name):
        lines += [
            f"## Into a good {bench}",
            "",
            "| what goes wrong | the check that sees it | which do too |",
            "|---|---|---|",
        ]
        for fault in faults:
            also = ", ".join(f"`{check}`" for check in sorted(fault.also))
            lines.append("| " + " | ".join((fault.name.replace("|", "\\|"), f"`{fault.check}`", also)) + " |")
        lines.append("")
    for fault, checks in runpy.run_path(str(DEVICE))["SEEN"].items():
        told.append(f"| {fault.replace('-', ' ')} | {', '.join(f'`{check}`' for check in checks.split())} |\n")
    return "\n".join(lines) + SIMULATED + "".join(told)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
