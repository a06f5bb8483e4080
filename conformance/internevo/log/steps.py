"""The steps of a log, column by column, in a third of the room of plain numbers: a long run logs ten million."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # who asks for no frame needs no pandas, which takes as much memory as all the rest
    import pandas as pd

Column: TypeAlias = npt.NDArray[Any]
Matrix = npt.NDArray[np.float64]

# So many rows are packed at a time; so few are left as they are.
_BLOCK = 1 << 11
_FEW = 256
# InternEvo logs counts, and speeds and metrics of two and of four decimals.
_SCALES = (1, 100, 10_000)
_TYPES = {"line": "i8", "time": "M8[ms]", "step": "i8", "segment": "i8", "source": "i8", "layout": "i8"}


class _Block:
    """Some rows of a table.

    Args:
        width: Columns.
        rows: Rows.
    """

    def __init__(self, width: int, rows: int) -> None:
        self.rows = rows
        self._plain = np.empty((width, rows)) if rows < _FEW else None
        self._packed: dict[int, tuple[Column, float, int]] = {}

    def __setitem__(self, place: int, values: Matrix | float) -> None:
        if self._plain is not None:
            self._plain[place] = values
        else:
            self._packed[place] = _pack(np.full(self.rows, values))

    def __getitem__(self, place: int) -> Matrix:
        """A column; one value where all are alike."""
        if self._plain is not None:
            return np.asarray(self._plain[place])
        kept, least, scale = self._packed[place]
        return (kept + least) / scale if scale else kept


def _pack(values: Matrix) -> tuple[Column, float, int]:
    """What to keep of values: one where all are alike, else what they are above the least of them in whole decimals.

    They are kept as they are, with scale 0, where this does not give every bit of them again.
    """
    bits = values.view(np.int64)
    if (bits == bits[0]).all():
        return values[:1].copy(), 0.0, 0
    for scale in _SCALES:
        with np.errstate(over="ignore", invalid="ignore"):
            whole = np.rint(values * scale)
            least = whole.min()
            whole -= least
        most = whole.max()
        if most < 1 << 32:  # so none is undefined
            kept: Column = whole.astype(np.min_scalar_type(int(most)))
            if (((kept + least) / scale).view(np.int64) == bits).all():
                return kept, float(least), scale
    return values.copy(), 0.0, 0


class Steps:
    """A table of one row for each logged step, in the order of the file; see COLUMNS.

    ``steps["loss"]`` gives a column, shape (n,), of float64; line and step are int64, time is datetime64[ms]. Iterating
    gives the names of the columns, ``len`` the number of rows.

    Args:
        blocks: The rows.
        places: Place of each column in the blocks.
        fixed: Columns that have one value throughout.
    """

    def __init__(self, blocks: Sequence[_Block], places: Mapping[str, int], fixed: Mapping[str, float]) -> None:
        self._blocks, self._places, self._fixed = blocks, places, fixed
        self._count = sum(block.rows for block in blocks)

    @classmethod
    def of(cls, columns: Mapping[str, Iterable[float]]) -> Steps:
        """Make a table.

        Args:
            columns: Values by name, as many of each; times in ms since 1970.

        Returns:
            The table.
        """
        rows = Rows(tuple(columns))
        series = [np.asarray(values, np.float64) for values in columns.values()]
        for begin in range(0, len(series[0]), _BLOCK):
            rows.add(np.array([values[begin : begin + _BLOCK] for values in series]))
        return rows.steps()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        yield from self._places
        yield from self._fixed

    def __contains__(self, name: object) -> bool:
        return name in self._places or name in self._fixed

    def __getitem__(self, name: str) -> Column:
        return self._values(name, _TYPES.get(name, "f8"))

    def _values(self, name: str, kind: str) -> Column:
        place = self._places.get(name)
        if place is None:
            return np.full(self._count, self._fixed[name], kind)
        values, begin = np.empty(self._count, kind), 0
        for block in self._blocks:
            values[begin : (begin := begin + block.rows)] = block[place]
        return values

    def get(self, name: str, default: Any = None) -> Any:
        """Give a column that may be absent.

        Args:
            name: Its name.
            default: What stands for it then.

        Returns:
            Its values, or the default.
        """
        present = name in self
        return self[name] if present else default

    def fixing(self, name: str, value: float) -> Steps:
        """Add a column of one value.

        Args:
            name: Its name.
            value: The value.

        Returns:
            The new table.
        """
        return Steps(self._blocks, self._places, {**self._fixed, name: value})

    def only(self, names: Iterable[str]) -> Steps:
        """Leave out columns.

        Args:
            names: The other ones.

        Returns:
            The new table.
        """
        names = set(names)
        places = {name: place for name, place in self._places.items() if name in names}
        return Steps(self._blocks, places, {name: value for name, value in self._fixed.items() if name in names})

    def parts(self) -> Iterator[Steps]:
        """Give the rows in turns, a few thousand at a time: what is computed of these needs little memory.

        Yields:
            Tables of the same columns, which are the whole one below the other.
        """
        for block in self._blocks:
            yield Steps([block], self._places, self._fixed)

    def take(self, *chosen: slice | Column) -> list[Steps]:
        """Choose rows.

        Args:
            chosen: Which rows, for each new table: a slice, their places, or whether each is meant.

        Returns:
            The new tables.
        """
        if len(chosen) == 1 and isinstance(chosen[0], slice) and chosen[0].indices(self._count) == (0, self._count, 1):
            return [self]
        rows = [np.arange(self._count)[each] for each in chosen]
        cuts = [[each[begin : begin + _BLOCK] for begin in range(0, len(each), _BLOCK)] for each in rows]
        made = [[_Block(len(self._places), len(cut)) for cut in each] for each in cuts]
        # Each column is unpacked once, however many tables there are.
        for number, name in enumerate(self._places):
            values = self._values(name, "f8")
            for blocks, each in zip(made, cuts, strict=True):
                for block, cut in zip(blocks, each, strict=True):
                    block[number] = values[cut]
        places = {name: number for number, name in enumerate(self._places)}
        return [Steps(blocks, places, self._fixed) for blocks in made]

    def frame(self) -> pd.DataFrame:
        """Give the table to those who work with pandas.

        Returns:
            A frame of the same columns.
        """
        import pandas as pd

        return pd.DataFrame({name: self[name] for name in self})


def stack(tables: Sequence[Steps]) -> Steps:
    """Put tables one below the other.

    Args:
        tables: One table or more.

    Returns:
        The new table; what a table has no column for is undefined.
    """
    if len(tables) == 1:
        return tables[0]
    names = tuple(dict.fromkeys(name for table in tables for name in table))
    blocks = []
    for table in tables:
        for block in table._blocks:
            blocks.append(new := _Block(len(names), block.rows))
            for number, name in enumerate(names):
                place = table._places.get(name)
                new[number] = table._fixed.get(name, np.nan) if place is None else block[place]
    return Steps(blocks, {name: number for number, name in enumerate(names)}, {})


class Rows:
    """Takes rows of a table in any portions.

    Args:
        names: Names of its columns.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._blocks: list[_Block] = []
        self._open: list[Matrix] = []
        self._count = 0  # of the open ones

    def add(self, values: Matrix) -> None:
        """Add rows.

        Args:
            values: Their values, shape (columns, rows).
        """
        self._open.append(values)
        self._count += values.shape[1]
        if self._count >= _BLOCK:
            self._close()

    def steps(self) -> Steps:
        """Give what was taken.

        Returns:
            The table.
        """
        self._close()
        return Steps(self._blocks, {name: place for place, name in enumerate(self._names)}, {})

    def _close(self) -> None:
        values = np.concatenate([np.empty((len(self._names), 0)), *self._open], axis=1)
        self._open, self._count = [], 0
        if values.shape[1]:
            self._blocks.append(block := _Block(*values.shape))
            for place, column in enumerate(values):
                block[place] = column
