"""The floors: what a workload must reach on a device, with the source of each."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

from conformance.errors import SpecError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FLOORS_FILE = Path(__file__).parent / "floors.toml"
METRICS = {"tgs": "tokens/device/s", "tflops": "TFLOPS/device"}
STATUSES = ("published", "measured", "derived", "policy", "self-declared")
ANY_DEVICE = "*"
LAYOUT = ("num_layers", "data_parallel", "tensor_parallel", "pipeline_parallel")


@dataclass(frozen=True)
class Floor:
    """A value to reach.

    Args:
        workload: Name of the workload.
        device: Model name of the device; ANY_DEVICE for all.
        metric: ``tgs`` or ``tflops``.
        value: The value, in ``unit``.
        unit: Its unit.
        source: Where the value comes from.
        date: Date of the source, ISO 8601.
        runs: Runs that the value rests on.
        status: published, measured, derived, policy (a lab's) or self-declared (a vendor's, which certifies nothing).
        spread: Relative standard deviation between those runs; None where it is not known.
        provisional: Whether a better value is to replace it.
        layout: What a run must be for the floor to hold, by the names of LAYOUT; empty where any will do.
    """

    workload: str
    device: str
    metric: str
    value: float
    unit: str
    source: str
    date: str
    runs: int
    status: str
    spread: float | None = None
    provisional: bool = False
    layout: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        provisional = ", provisional" if self.provisional else ""
        return f"{self.status}{provisional}: {self.source} ({self.date})"


@functools.cache
def load_floors(path: Path = FLOORS_FILE) -> tuple[Floor, ...]:
    """Read a file of floors.

    Args:
        path: A TOML file of ``[[floor]]`` tables.

    Returns:
        The floors, in the order of the file.

    Raises:
        SpecError: The file cannot be read, or an entry is malformed or given twice.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"{path} is not valid TOML: {error}.", "Correct that place in the file.") from error
    entries = document.get("floor", [])
    if set(document) - {"floor"} or not isinstance(entries, list):
        raise SpecError(f"{path} holds {sorted(document)}, expected [[floor]] tables only.")
    floors = tuple(floor_from(entry, f"{path}, floor {number}") for number, entry in enumerate(entries, 1))
    refuse_twice(floors, str(path))
    return floors


def refuse_twice(floors: Sequence[Floor], where: str) -> None:
    """Refuse floors of which two hold for the same run.

    Args:
        floors: The floors.
        where: Who gives them, for the error.

    Raises:
        SpecError: Two are for the same workload, device, metric and layout.
    """
    keys = [(floor.workload, floor.device, floor.metric, sorted(floor.layout.items())) for floor in floors]
    for key in keys:
        if keys.count(key) > 1:
            raise SpecError(f"{where} gives the floor for {' / '.join(key[:3])} twice.", "Remove one of the two.")


def floor_from(entry: Mapping[str, Any], where: str) -> Floor:
    """Make one floor of plain values.

    Args:
        entry: The fields of a floor; date as a date or in ISO 8601.
        where: Where the entry stands, for the error.

    Returns:
        The floor.

    Raises:
        SpecError: A field is missing, unknown, or of the wrong type or range.
    """
    kinds: dict[str, tuple[type, ...]] = {
        "workload": (str,),
        "device": (str,),
        "metric": (str,),
        "value": (float, int),
        "unit": (str,),
        "source": (str,),
        "date": (date, str),
        "runs": (int,),
        "status": (str,),
        "spread": (float,),
        "provisional": (bool,),
        "layout": (dict,),
    }
    optional = {"spread", "provisional", "layout"}
    if wrong := (set(kinds) - optional - set(entry)) | (set(entry) - set(kinds)):
        raise SpecError(f"{where}: fields missing or unknown: {', '.join(sorted(map(str, wrong)))}.")
    for name, value in entry.items():
        if not isinstance(value, kinds[name]) or (isinstance(value, bool) and bool not in kinds[name]):
            expected = " or ".join(kind.__name__ for kind in kinds[name])
            raise SpecError(f"{where}: {name} is {value!r}, expected {expected}.")
    if entry["metric"] not in METRICS or entry["unit"] != METRICS[entry["metric"]]:
        raise SpecError(
            f"{where}: metric and unit are {entry['metric']!r}, {entry['unit']!r}, expected one of {METRICS}."
        )
    if entry["status"] not in STATUSES:
        raise SpecError(f"{where}: status is {entry['status']!r}, expected one of {', '.join(STATUSES)}.")
    if not (math.isfinite(entry["value"]) and entry["value"] > 0) or entry["runs"] < 1:
        raise SpecError(f"{where}: value is {entry['value']} and runs {entry['runs']}, expected both above 0.")
    if not 0 <= entry.get("spread", 0.0) < 1:
        raise SpecError(f"{where}: spread is {entry['spread']}, expected a share from 0 to 1.")
    layout = entry.get("layout", {})
    if set(layout) - set(LAYOUT) or not all(type(size) is int and size > 0 for size in layout.values()):
        raise SpecError(f"{where}: layout is {layout}, expected numbers from 1 for some of {', '.join(LAYOUT)}.")
    return Floor(**{**entry, "value": float(entry["value"]), "date": str(entry["date"])})


def find_floor(
    floors: Sequence[Floor],
    workload: str,
    metric: str,
    device: str | None,
    layout: Mapping[str, int | None] = MappingProxyType({}),
) -> Floor | None:
    """Choose the floor that holds for a run.

    Args:
        floors: The floors to choose from; a later one overrides an earlier one for the same device and layout.
        workload: Name of the workload.
        metric: ``tgs`` or ``tflops``.
        device: Model name of the device; None where it is not known.
        layout: What the run was, by the names of LAYOUT, as far as it is known.

    Returns:
        The floor of that very device, else the one for any, and of several the one that says most of the layout; None
        where there is none.
    """
    fitting = [
        floor
        for floor in floors
        if (floor.workload, floor.metric) == (workload, metric)
        and all(layout.get(name) == size for name, size in floor.layout.items())
    ]
    for name in (device, ANY_DEVICE):
        if found := [floor for floor in fitting if floor.device == name]:
            return sorted(found, key=lambda floor: len(floor.layout))[-1]
    return None
