"""The steps of a run as its pictures draw them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from conformance.internevo.log import Steps
from conformance.internevo.log.steps import Rows

# What is drawn of every step.
DRAWN = ("step", "tgs", "loss")


class DrawnSteps(Sequence[Mapping[str, float]]):
    """One row for each logged step, made when it is asked for: all rows of a long run would take more than its figures.

    Args:
        steps: The run's steps.
        mean_losses: Loss over all ranks of the first of them, as far as it is known.
    """

    def __init__(self, steps: Steps, mean_losses: Iterable[float]) -> None:
        rows = Rows(DRAWN)
        for part in steps.parts():
            rows.add(np.array([part[name] for name in DRAWN]))
        self._steps = rows.steps()
        self._mean_losses = Steps.of({"mean_loss": mean_losses})

    def __len__(self) -> int:
        """Number of steps."""
        return len(self._steps)

    @cached_property
    def _columns(self) -> Mapping[str, npt.NDArray[Any]]:
        return {name: table[name] for table in (self._steps, self._mean_losses) for name in table}

    @overload
    def __getitem__(self, place: int) -> Mapping[str, float]: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Mapping[str, float]]: ...
    def __getitem__(self, place: int | slice) -> Mapping[str, float] | Sequence[Mapping[str, float]]:
        """Give a row: step, tgs, loss, and mean_loss where it is known; or several of them."""
        places = range(len(self))[place]
        if isinstance(places, range):
            return [self[at] for at in places]
        return {name: column[places].item() for name, column in self._columns.items() if places < len(column)}
