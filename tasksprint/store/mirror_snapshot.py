"""The mirror as it was at one moment, read beside the writer: for a replica that needs a copy.

A snapshot is a read transaction on a connection of its own. While it is open, SQLite keeps all
overwritten pages for it in the write-ahead log. The log can't be begun anew until the snapshot
is closed. So the opener must close it within a bounded time.

To be used by one thread at a time, any.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasksprint.coordination.rows import TABLES, Key, Row
from tasksprint.settings import Settings
from tasksprint.store.database import Database, Kind
from tasksprint.store.mirror_tables import CopyPlace, next_place, piece_text, rows_of_range
from tasksprint.store.records import AppliedPoint

__all__ = ["FIRST_PLACE", "CopyPiece", "MirrorSnapshot"]

FIRST_PLACE: CopyPlace = (next(iter(TABLES)), ())


@dataclass(frozen=True, slots=True)
class CopyPiece:
    """Some rows of one table, in the order of their keys."""

    table: str
    rows: int
    text: bytes  # JSON: [[key columns …, value columns …, the row's checksum], …]
    next_place: CopyPlace | None  # where the copy goes on; None: this was the last piece


class MirrorSnapshot:
    """An open snapshot of a replica's file, as the last commit left it.

    Args:
        applied: How far that commit went. The file says so, too, but may have rotted since.
        cluster: The cluster's name, from the same place.
        memberships: The voters since the founding; goes with a copy.

    Raises:
        StoreError: The file can't be read.
    """

    def __init__(
        self,
        path: Path,
        kind: Kind,
        settings: Settings,
        *,
        applied: AppliedPoint,
        cluster: str | None,
        memberships: bytes | None,
    ) -> None:
        self.applied = applied
        self.cluster = cluster
        self.memberships = memberships
        self._database = Database(path, kind, settings, is_read_only=True)
        try:
            # The transaction begins with the first read, and lasts until the close.
            self._database.connection.execute("BEGIN")
            self._database.query("SELECT 1 FROM progress")
        except BaseException:
            self._database.close()
            raise

    def piece(self, place: CopyPlace, *, rows_max: int, bytes_max: int) -> CopyPiece:
        """Return the rows that follow a place: so many at most, but one at least if any."""
        text, rows, last_key = piece_text(self._database, place, rows_max, bytes_max)
        # Fewer than asked for may be the size's doing: only none is the end of a table.
        return CopyPiece(place[0], rows, text.encode(), next_place(place, last_key))

    def read_range(self, table: str, first: Key = (), end: Key = ()) -> Iterator[Row]:
        """As `Mirror.read_range`."""
        return rows_of_range(self._database, table, first, end)

    def close(self) -> None:
        """Let go of the moment."""
        self._database.close()
