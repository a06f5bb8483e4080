"""Reference curves: the loss by step of several runs of one workload, and what they were runs of."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conformance import strictjson
from conformance.errors import SpecError

CURVE_DIR = Path(__file__).parent / "curves"
VERSION = 1
# A spread takes 3 runs at least; with fewer the t interval is so wide that it finds nothing.
MIN_RUNS = 3


@dataclass(frozen=True)
class Curve:
    """The loss of several runs of one plan, which differ in nothing but their seed.

    Args:
        workload: Name of the workload.
        num_layers: Layers that were trained.
        total_steps: Steps of the learning-rate schedule.
        tokens_per_step: Tokens of one step over all devices.
        data: Digest of the data's fingerprint, or ``dummy``.
        seeds: The seed of each run.
        losses: Loss over all data-parallel ranks, in nats/token, by run and step from 0; shape (runs, steps).
        source: Device, InternEvo and suite that made it, for people.
        origin: What gave all of them, besides the seed, their initial weights and order of data; empty where no other
            run can have the same ones.
        twins: Loss of a second run of each seed, which differs from the first in its rounding alone; empty where none
            was made, else shape (runs, steps) with fewer or as many steps.
    """

    workload: str
    num_layers: int
    total_steps: int
    tokens_per_step: int
    data: str
    seeds: tuple[int, ...]
    losses: tuple[tuple[float, ...], ...]
    source: str
    origin: str = ""
    twins: tuple[tuple[float, ...], ...] = ()

    @property
    def steps(self) -> int:
        """Steps that every run has."""
        return len(self.losses[0])

    def to_json(self) -> dict[str, Any]:
        """Give the curve as its file holds it, with mean and spread for those who read it."""
        n = len(self.losses)
        mean = [sum(step) / n for step in zip(*self.losses, strict=True)]
        spread = [
            math.sqrt(sum((loss - m) ** 2 for loss in step) / (n - 1))
            for step, m in zip(zip(*self.losses, strict=True), mean, strict=True)
        ]
        shown = {"mean": [round(m, 6) for m in mean], "spread": [round(s, 6) for s in spread]}
        return {"version": VERSION, "runs": n, **asdict(self), **shown}


def read_curve(path: Path) -> Curve:
    """Read a curve.

    Args:
        path: A file that ``conformance curve make`` wrote.

    Returns:
        The curve.

    Raises:
        SpecError: The file cannot be read or is no curve.
    """
    try:
        return _from_json(strictjson.loads(path.read_bytes(), what=str(path)))
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}.") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SpecError(f"{path} is no reference curve: {error!r}.", "Make it: conformance curve make.") from error


def _from_json(value: Mapping[str, Any]) -> Curve:
    if value["version"] != VERSION:
        raise ValueError(f"version {value['version']}")
    losses, twins = _runs(value["losses"]), _runs(value.get("twins", []))
    if len(losses) < MIN_RUNS or len(value["seeds"]) != len(losses) or len(twins) not in (0, len(losses)):
        raise ValueError(f"{len(losses)} runs, {len(value['seeds'])} seeds, {len(twins)} twins")
    if any(run[: len(twin)] == twin for run, twin in zip(losses, twins, strict=False)):
        raise ValueError("a twin that is the same run")
    names = ("workload", "num_layers", "total_steps", "tokens_per_step", "data", "source")
    told = {name: value[name] for name in names}
    return Curve(**told, seeds=tuple(value["seeds"]), losses=losses, origin=value.get("origin", ""), twins=twins)


def _runs(value: Iterable[Iterable[Any]]) -> tuple[tuple[float, ...], ...]:
    losses = tuple(tuple(float(loss) for loss in run) for run in value)
    sizes = {len(run) for run in losses}
    if len(sizes) > 1 or 0 in sizes:
        raise ValueError(f"runs of {sorted(sizes)} steps")
    if not all(math.isfinite(loss) and loss > 0 for run in losses for loss in run):
        raise ValueError("a loss that is not positive")
    return losses


def load_curves() -> tuple[Curve, ...]:
    """Load the suite's own curves.

    Returns:
        Every curve of ``spec/curves``, by file name.

    Raises:
        SpecError: One of the files is malformed.
    """
    return tuple(read_curve(path) for path in sorted(CURVE_DIR.glob("*.json")))


def write_curve(path: Path, curve: Curve) -> None:
    """Write a curve.

    Args:
        path: Where.
        curve: The curve.

    Raises:
        SpecError: The file cannot be written.
    """
    text = json.dumps(curve.to_json(), allow_nan=False, separators=(",", ":"))
    # One line a field and a run: a diff shows which run changed.
    text = text.replace(',"', ',\n"').replace("],[", "],\n[")
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise SpecError(
            f"{path} cannot be written: {error.strerror}.", "Name a file in a folder that exists."
        ) from error
