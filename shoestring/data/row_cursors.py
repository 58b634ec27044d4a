"""Where reading has come to in files: who reads on does not begin again (source: ours).

A row group cannot be entered in its middle, compressed lines only at their beginning: who reads them in many
small parts would decode them again and again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, BinaryIO, Protocol

from shoestring.data.packed import kind_of
from shoestring.data.row_basics import FileRows, opened
from shoestring.data.row_groups import RowGroups
from shoestring.data.sources import SourceFile

Row = tuple[dict[str, Any] | None, str]
"""Values by column, or what is wrong with the row."""


class Lined(Protocol):
    """How rows are found in a stream."""

    def rows_from(self, stream: BinaryIO, offset: int, limit_bytes: int) -> Iterator[Row]:
        """Those from a byte offset on, 0 for the beginning; what comes before the rows is read as well."""
        ...


class LineCursor:
    """The place in the file of lines that was read last. For one thread.

    Attributes:
        beyond_rows: decoded so far on the way to those that were handed out.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._open: opened | None = None
        self._rows: Iterator[Row] = iter(())
        self._number = 0  # of the row that comes next
        self.beyond_rows = 0

    def read(
        self, form: Lined, file: SourceFile, about: FileRows, start: int, stop: int, limit_bytes: int
    ) -> list[Row]:
        """Rows [start, stop); fewer where the file has no more.

        Raises:
            DataError: the file cannot be read.
        """
        _, packed = kind_of(file.name)
        # There is no way into the middle of what is compressed.
        cuts = about.cuts[:1] if packed else about.cuts
        first, offset = max((cut for cut in cuts if cut[0] <= start), default=(0, 0))
        key = (file.url, file.version, limit_bytes)
        held, self._open = self._open, None
        if held is not None and (key != self._key or not first <= self._number <= start):
            _close(held)
            held = None
        with ExitStack() as guard:  # what goes wrong closes it, and is told as the file's
            if held is None:
                held = opened(file)
                stream = guard.enter_context(held)
                self._key, self._number = key, first
                self._rows = form.rows_from(stream, offset if first else 0, limit_bytes)
            else:
                guard.push(held)
            found = self._go_on(start, stop)
            guard.pop_all()  # it stays open
            self._open = held
        return found

    def _go_on(self, start: int, stop: int) -> list[Row]:
        found: list[Row] = []
        while self._number < stop:
            row = next(self._rows, None)
            if row is None:
                break
            if self._number >= start:
                found.append(row)
            else:
                self.beyond_rows += 1
            self._number += 1
        return found

    def close(self) -> None:
        """Let go of the file."""
        held, self._open = self._open, None
        self._rows = iter(())
        if held is not None:
            _close(held)


def _close(held: opened) -> None:
    held.__exit__(None, None, None)


class Cursors:
    """Where reading has come to in files of each kind. For one thread."""

    def __init__(self) -> None:
        self.groups = RowGroups()
        self.lines = LineCursor()

    @property
    def beyond_rows(self) -> int:
        """Rows decoded so far, less those that were handed out: others wait for them, or will not."""
        return self.groups.beyond_rows + self.lines.beyond_rows

    def close(self) -> None:
        """Let go of all files."""
        self.groups.close()
        self.lines.close()
