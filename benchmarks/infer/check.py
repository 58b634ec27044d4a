"""Whether arms did equal work: the same ids, each once, with the same values, none with an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.network.arms import PartError

TOLERANCE = 1e-5
"""Of values, relative: batches of other sizes add up in another order."""


@dataclass(frozen=True)
class Ids:
    """Ids that came out against those that went in.

    Attributes:
        missing: that did not come out.
        duplicate: surplus copies.
        foreign: that never went in.
        errors: rows with an error.
    """

    rows: int
    missing: int
    duplicate: int
    foreign: int
    errors: int = 0

    @property
    def whole(self) -> bool:
        """Each once, without error."""
        return not (self.missing or self.duplicate or self.foreign or self.errors)

    def fields(self) -> dict[str, Any]:
        """As plain numbers."""
        return asdict(self)


def compare(found: NDArray[np.int64], total: int, errors: int = 0) -> Ids:
    """Ids that came out, in any order, against 0 .. total - 1."""
    inside = found[(found >= 0) & (found < total)]
    counts = np.bincount(inside, minlength=total)
    return Ids(
        rows=len(found),
        missing=int((counts == 0).sum()),
        duplicate=int((counts[counts > 1] - 1).sum()),
        foreign=len(found) - len(inside),
        errors=errors,
    )


def tables(folder: Path) -> Iterable[pa.Table]:
    """Every published parquet file of an output folder, hidden folders and files left out.

    Raises:
        PartError: a file cannot be read: the folder must be valid at any time.
    """
    for path in sorted(folder.rglob("*.parquet")):
        if any(part.startswith((".", "_")) for part in path.relative_to(folder).parts):
            continue
        try:
            yield pq.ParquetFile(path).read()
        except (OSError, pa.ArrowException) as error:
            raise PartError(f"{path} cannot be read: {error}", "look at it") from error


def ids_of(folder: Path, total: int, column: str = "id") -> Ids:
    """What an output folder holds, against 0 .. total - 1."""
    found, errors = [], 0
    for table in tables(folder):
        found.append(table.column(column).to_numpy())
        if "error" in table.schema.names:
            errors += len(table) - table.column("error").null_count
    return compare(np.concatenate(found) if found else np.empty(0, np.int64), total, errors)


Values = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""What a stage makes of ids."""


def wrong_values(folder: Path, value: Values, column: str = "value") -> int:
    """Rows whose `column` is not `value(id)`; rows with an error have none and are not looked at.

    Raises:
        PartError: a file cannot be read.
    """
    wrong = 0
    for table in tables(folder):
        if "error" in table.schema.names:
            table = table.filter(pc.is_null(table.column("error")))
        # A value that is null is none that the stage computes: nan, equal to nothing.
        found = pc.fill_null(table.column(column).cast(pa.float64()), float("nan")).to_numpy()
        wrong += int((found != value(table.column("id").to_numpy())).sum())
    return wrong


class Same:
    """Holds every arm to the first: the same ids, each once, and the same values.

    Args:
        total: rows that went in.
        column: of the values.
        right: of ids, where the right values are cheap to say; None: those of the first arm.
    """

    def __init__(self, total: int, column: str, right: Values | None = None) -> None:
        self._total, self._column = total, column
        self._first = right(np.arange(total)) if right is not None else None

    def check(self, folder: Path) -> None:
        """Raises PartError: the arms have not done equal work."""
        ids = ids_of(folder, self._total)
        if not ids.whole:
            raise PartError(f"{folder} has {ids}", "the arms must do equal work")
        values = np.empty(self._total)
        for table in tables(folder):
            values[table.column("id").to_numpy()] = table.column(self._column).to_numpy()
        if self._first is None:
            self._first = values
        elif not np.allclose(values, self._first, rtol=TOLERANCE, atol=TOLERANCE):
            worst = int(np.abs(values - self._first).argmax())
            raise PartError(
                f"id {worst} of {folder} has {values[worst]}, not {self._first[worst]}",
                "the arms must do equal work",
            )


def last_change_s(folder: Path) -> float:
    """When the last file of an output became visible: its inode's change, which a rename is too."""
    return max(path.stat().st_ctime for path in folder.rglob("*.parquet"))
