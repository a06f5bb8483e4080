"""Write into docs/metrics.md how small a forged change is still seen, field by field: python docs/thresholds.py"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import product
from pathlib import Path

from conformance.analysis import analyze
from conformance.checks.finding import Result
from conformance.plan import Plan, Topology, make_plan
from conformance.spec import load_workload

DOCS = Path(__file__).parent
PAGE = DOCS / "metrics.md"
BEGIN, END = "<!-- From here on written by docs/thresholds.py. -->\n", "<!-- Down to here. -->\n"
TIME, SPEEDS, PACE, LOSSES = "time of the line", "every speed", "every speed and time", "every loss"
# The changes that are tried, as shares of a figure: 1, 2 and 5 of every power of ten; down to a tenth of it.
SIZES = tuple(digit * 10.0**power for power in range(-10, 1) for digit in (1, 2, 5))
SIZES_DOWN = (*(size for size in SIZES if size < 1), 0.9)
UP, DOWN = 1, -1
ALONE, ALL = "one step", "every step"
# What is not seen, by (field, way) or field, and why.
UNSEEN = {
    "fwd_bwd_time": "lowered: what else is done in a step may take any time.",
    "tokens/en": "lowered, where there is one type of data: nothing else tells how much of a batch is padding.",
    "0_default": "The norm of the gradient follows from nothing else that is logged; one that is negative, infinite or "
    "not a number is refused.",
    "1_fp32": "The norm of what is kept in fp32, likewise.",
    PACE: "on every step: the log of a faster or slower machine, which agrees with itself. More FLOPs than the device "
    "can do are refused (`log-utilisation`).",
    LOSSES: "on one step: they agree with each other. How low they may be, the first loss of a fresh model, the "
    "reference curve (`curve-agrees`) and the data set say.",
}


@dataclass(frozen=True)
class Log:
    """A real log that figures are changed in.

    Args:
        name: Its file in reference_logs/.
        plan: What was planned.
        step: The step that is changed alone.
    """

    name: str
    plan: Plan
    step: int

    def lines(self) -> list[bytes]:
        """Its lines.

        Returns:
            Each with its end.
        """
        return (DOCS.parent / "reference_logs" / self.name).read_bytes().splitlines(keepends=True)


def _log(name: str, workload: str, step: int) -> Log:
    return Log(name, make_plan(load_workload(workload), Topology(1, 1)), step)


LOGS = {
    "performance": _log("h200-7b-slice24-suite-v0.2.3.log", "slice-7b-perf", 12),
    "accuracy": _log("h200-120m-resumed-v0.3.1.log", "slice-120m-accuracy", 310),
}
_FIELD = re.compile(rb"(?<=[ {])('?)(tgs \(tokens/gpu/second\)|[\w/]+)(\1(?:=|: ))([^ ,{}]+)")
_METRICS = b" tflops="
_FORM = "%Y-%m-%d %H:%M:%S,%f"
_MOMENT = len("2026-11-23 21:30:13,721")


def fields(log: Log) -> list[str]:
    """What is changed: the time, each figure of a line, and those that a forger would change together.

    Args:
        log: The log.

    Returns:
        Names, in the order of the line.
    """
    line = next(line for line in log.lines() if _METRICS in line)
    return [TIME, *(match[2].decode() for match in _FIELD.finditer(line, line.index(_METRICS))), SPEEDS, PACE, LOSSES]


def red(data: bytes, plan: Plan) -> frozenset[str]:
    """What fails.

    Args:
        data: A log.
        plan: What was planned.

    Returns:
        Ids of the checks.
    """
    runs = analyze(io.BytesIO(data), plan=plan)
    return frozenset(finding.check for run in runs for finding in run.findings if finding.result is Result.FAIL)


def forged(log: Log, field: str, change: float, steps: str) -> bytes:
    """Change a figure.

    Args:
        log: The log.
        field: One of `fields`.
        change: Relative; a figure that is zero or not a number becomes the change itself.
        steps: ALONE or ALL.

    Returns:
        The log with it.
    """
    lines = log.lines()
    at = [number for number, line in enumerate(lines) if _METRICS in line]
    meant = [n for n in at if b" step=%d " % log.step in lines[n]][:1] if steps == ALONE else at
    if field in (TIME, PACE):
        _move(lines, at, meant, change if field == TIME else 1 / (1 + change) - 1)
    for n in meant if field != TIME else ():
        lines[n] = _FIELD.sub(lambda match: _changed(match, field, change), lines[n])
    return b"".join(lines)


def _move(lines: list[bytes], at: list[int], meant: list[int], change: float) -> None:
    """Change how long after the line before it a line was written; of all lines, how long after the first."""
    moments = {n: datetime.strptime(lines[n][:_MOMENT].decode(), _FORM) for n in at}
    for n in meant:
        begin = moments[at[0] if meant == at else at[at.index(n) - 1]]
        moved = begin + (moments[n] - begin) * (1 + change)
        lines[n] = moved.isoformat(" ", "milliseconds").replace(".", ",").encode() + lines[n][_MOMENT:]


def _changed(match: re.Match[bytes], field: str, change: float) -> bytes:
    name, figure = match[2].decode(), match[4]
    value, power = float(figure), _power(field, name)
    if value == 0 or math.isnan(value):
        # Whoever changes figures together leaves these; alone, it becomes the change itself.
        new = change if name == field and change > 0 else value
    elif name == "perplexity" and name != field:
        new = value ** (1 + change) ** power
    else:
        new = value * (1 + change) ** power
    if new == value or not power:
        return match[0]
    if figure.isdigit() and "tgs" not in name:
        return match[1] + match[2] + match[3] + b"%d" % round(new)
    decimals = 2 if "tgs" in name or "time" in name else 4 if len(figure.partition(b".")[2]) < 5 else 17
    return match[1] + match[2] + match[3] + repr(round(new, decimals)).encode()


def _power(field: str, name: str) -> int:
    """How a figure follows a change of a field: 0 where it does not."""
    speed, loss = name == "tflops" or "tgs" in name, name in ("loss", "loss_from_metric", "perplexity")
    if field == PACE and name == "fwd_bwd_time":
        return -1
    return int(name == field or (field in (SPEEDS, PACE) and speed) or (field == LOSSES and (loss or "loss/" in name)))


@cache
def threshold(log: Log, field: str, steps: str, way: int) -> tuple[float, frozenset[str]] | None:
    """The smallest change from which on every larger one of SIZES turns a check red.

    Args:
        log: The log.
        field: One of `fields`.
        steps: ALONE or ALL.
        way: UP or DOWN.

    Returns:
        Its size, and the checks that see it; None where the largest is not seen.
    """
    found = None
    for size in reversed(SIZES if way == UP else SIZES_DOWN):
        seen = red(forged(log, field, way * size, steps), log.plan)
        if not seen:
            break
        found = size, seen
    return found


def possible(log: Log, field: str, steps: str, way: int) -> bool:
    """Tell whether there is such a change: a figure that is zero or not a number cannot be lowered.

    Args:
        log: The log.
        field: One of `fields`.
        steps: ALONE or ALL.
        way: UP or DOWN.
    """
    return forged(log, field, way * 0.9, steps) != b"".join(log.lines())


def section() -> str:
    """What is written into the page.

    Returns:
        Markdown: a row for each field, and what is not seen.
    """
    rows, unseen = [], {}
    for field in dict.fromkeys(name for log in LOGS.values() for name in fields(log)):
        cells: list[str] = []
        checks: set[str] = set()
        for log, steps in product(LOGS.values(), (ALONE, ALL)):
            told = []
            for way, sign in ((UP, "+"), (DOWN, "\N{MINUS SIGN}")) if field in fields(log) else ():
                found = threshold(log, field, steps, way)
                checks |= found[1] if found else set()
                if found or possible(log, field, steps, way):
                    told.append(sign + (f"{found[0] * 100:.10g}%" if found else "none"))
                if not found and possible(log, field, steps, way):
                    unseen[field] = UNSEEN[field]
            cells.append(" ".join(told))
        rows.append(f"| `{field}` | {' | '.join(cells)} | {', '.join(f'`{check}`' for check in sorted(checks))} |")
    head = "".join(f" {name}: {steps} |" for name, steps in product(LOGS, (ALONE, ALL)))
    table = [f"| field |{head} seen by |", "|---|---|---|---|---|---|", *rows]
    return "\n".join([*table, "", "Not seen:", "", *(f"- `{name}` {why}" for name, why in unseen.items())]) + "\n\n"


def page(text: str) -> str:
    """Put the section into the page.

    Args:
        text: The page.

    Returns:
        The page.
    """
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + section() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), encoding="utf-8")
