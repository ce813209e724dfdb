"""The mirror in memory, for tests that make a state from rows without a store."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from tasksprint.coordination.rows import TABLES, Key, Row

__all__ = ["MirrorRows"]


class MirrorRows:
    """The mirror in memory, from all of its rows in any order."""

    def __init__(self, rows: Iterable[Row]) -> None:
        found: dict[str, dict[Key, Row]] = {name: {} for name in TABLES}
        for row in rows:
            assert row.columns is not None, "a mirror has no deleted rows"
            found[row.table][row.key] = row
        # Keys of one table have the same types in the same places, by their declaration.
        self._keys: dict[str, list[Key]] = {name: sorted(rows) for name, rows in found.items()}
        self._rows = found

    def read_range(self, table: str, first: Key = (), end: Key = ()) -> Iterator[Row]:
        """As `Mirror.read_range`."""
        keys, rows = self._keys[table], self._rows[table]
        for index in range(bisect_left(keys, first), len(keys)):
            key = keys[index]
            if end and key[: len(end)] >= end:
                return
            yield rows[key]
