"""Statements that write or delete many rows in one step.

apsw lets go of Python's global lock for every step of a statement. Beside a busy event loop a
thread then waits up to a switch interval (5 ms by default) to get the lock back. 100 rows by
`executemany` are 100 steps, and took 190 ms beside a busy loop. In one step they take 5 ms at
most, and without any contention half of the time.

Knows the shape of SQL's INSERT and DELETE, and no table.
"""

from __future__ import annotations

from collections.abc import Iterable

from tasksprint.store.database import Cell, Cursor

__all__ = ["Delete", "Upsert"]

# Statements are compiled for 1, 2, 4 … rows and filled up with NULL rows, which the
# statement leaves out. More rows in one statement gain nothing any more.
_ROWS_MAX = 128


def _padded(count: int) -> int:
    """Return the smallest compiled size that holds `count` rows."""
    return 1 << (count - 1).bit_length()


class _ManyRows:
    """A statement for 1, 2, 4 … rows; see the module's docstring."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._texts: dict[int, str] = {}

    def _text(self, count: int) -> str:
        raise NotImplementedError

    def run(self, cursor: Cursor, cells: list[Cell]) -> None:
        """Run it for all rows, whose cells stand in `cells` one after the other."""
        width = self._width
        assert len(cells) % width == 0, "rows must have as many cells as columns"
        whole = _ROWS_MAX * width
        for first in range(0, len(cells), whole):
            part = cells if len(cells) <= whole else cells[first : first + whole]
            count = len(part) // width
            size = _padded(count)
            if size != count:
                part = part + [None] * ((size - count) * width)
            text = self._texts.get(size)
            if text is None:
                text = self._texts[size] = self._text(size)
            cursor.execute(text, part)

    def _values(self, count: int) -> str:
        row = "(" + ",".join("?" * self._width) + ")"
        return ",".join([row] * count)


class Upsert(_ManyRows):
    """Insert rows, or overwrite those that are there.

    The first key column may not be NULL: NULL there marks filler rows.
    """

    def __init__(self, table: str, keys: Iterable[str], values: Iterable[str]) -> None:
        keys, values = tuple(keys), tuple(values)
        super().__init__(len(keys) + len(values))
        self._head = f"INSERT INTO {table} ({','.join(keys + values)}) SELECT * FROM (VALUES "
        change = ",".join(f"{name}=excluded.{name}" for name in values)
        self._tail = f") WHERE column1 IS NOT NULL ON CONFLICT ({','.join(keys)}) DO " + (
            f"UPDATE SET {change}" if change else "NOTHING"
        )

    def _text(self, count: int) -> str:
        return self._head + self._values(count) + self._tail


class Delete(_ManyRows):
    """Delete rows by their keys; those that aren't there are no error."""

    def __init__(self, table: str, keys: Iterable[str]) -> None:
        keys = tuple(keys)
        super().__init__(len(keys))
        self._head = f"DELETE FROM {table} WHERE ({','.join(keys)}) IN (VALUES "

    def _text(self, count: int) -> str:
        return self._head + self._values(count) + ")"
