"""Repair of a client's database that is spoiled in part: whole rows go into a new one.

A damaged result counts as lost, and the cluster computes it again. So nothing here needs the
operator. Rows are read from both ends of each table, up to the first unreadable one. A result
is kept if its manifest has its digest and all of its values are there. The old file is
deleted: its contents are known, or can be made again.

A crash in between leaves the old file, or none; then the next start makes an empty one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tasksprint.encoding import decode_json, result_digest
from tasksprint.errors import RemoteProtocolError, StoreDamaged
from tasksprint.settings import Settings
from tasksprint.store.database import Cell, Cursor, Database, delete_database
from tasksprint.store.result_reader import KIND

__all__ = ["build_anew", "fill", "open_damaged"]

_GROWING = "results.db.new"
_ROWS_AT_ONCE = 500
# Column names, and how many of the first ones are the primary key.
_TABLES = {
    "facts": ("name", "value"),
    "results": ("job", "tid", "digest", "manifest", "bytes"),
    "result_values": ("job", "tid", "key", "kind", "size", "digest", "data", "file"),
    "logs": ("job", "tid", "attempt", "head", "tail", "left_out"),
}
_KEY_COLUMNS = {"facts": 1, "results": 2, "result_values": 3, "logs": 3}

_Row = tuple[Cell, ...]


def open_damaged(path: Path, settings: Settings) -> Database | None:
    """Open a file that is known to be damaged; None: not even that can be done."""
    try:
        return Database(path, KIND, settings)
    except StoreDamaged:
        return None


def build_anew(
    old: Database | None, path: Path, settings: Settings, identity: str, now_ms: int
) -> None:
    """Put a new file in the place of a damaged one, and close that.

    Args:
        old: The damaged one; None: nothing of it can be read.
        path: Its path.
        identity: Of the new one, if the old one's can't be read.

    Raises:
        StoreError: The new one can't be written.
    """
    growing = path.with_name(_GROWING)
    delete_database(growing)
    identity, now_ms = _read_header(old) or (identity, now_ms)
    new = Database(growing, KIND, settings, fill=lambda cursor: fill(cursor, identity, now_ms))
    try:
        if old is not None:
            _copy(old, new)
        new.close_whole()
    except BaseException:
        new.close()
        delete_database(growing)
        raise
    if old is not None:
        with contextlib.suppress(StoreDamaged):  # It can't fold its log into the file any more.
            old.close()
    # Its write-ahead log goes with it: SQLite would take that for the new one's.
    delete_database(path)
    os.replace(growing, path)


def fill(cursor: Cursor, identity: str, now_ms: int) -> None:
    """Write the first row of a new file."""
    cursor.execute("INSERT INTO header VALUES (1, ?, ?)", (identity, now_ms))


def _read_header(old: Database | None) -> tuple[str, int] | None:
    with contextlib.suppress(StoreDamaged):
        for identity, created_ms in (
            old.query("SELECT identity, created_ms FROM header") if old is not None else ()
        ):
            if isinstance(identity, str) and isinstance(created_ms, int):
                return identity, created_ms
    return None


def _copy(old: Database, new: Database) -> None:
    values: dict[tuple[Cell, ...], dict[Cell, _Row]] = {}
    for row in _readable_rows(old, "result_values"):
        # The bytes themselves are copied one by one, below.
        values.setdefault(row[:2], {})[row[2]] = row
    whole: list[_Row] = []
    kept: list[tuple[Cell, ...]] = []
    for row in _readable_rows(old, "results"):
        if _is_whole(row, values.get(row[:2], {})):
            whole.append(row)
            kept += [of_value[:3] for of_value in values.get(row[:2], {}).values()]
    _insert(new, "results", whole)
    _insert(new, "facts", list(_readable_rows(old, "facts")))
    _insert(new, "logs", list(_readable_rows(old, "logs")))
    for first in range(0, len(kept), _ROWS_AT_ONCE):
        found: list[_Row] = []
        for name in kept[first : first + _ROWS_AT_ONCE]:
            with contextlib.suppress(StoreDamaged):
                found += old.query(
                    "SELECT * FROM result_values WHERE job = ? AND tid = ? AND key = ?", name
                )
        _insert(new, "result_values", found)


def _is_whole(row: _Row, values: dict[Cell, _Row]) -> bool:
    """Whether a result's rows agree: its bytes are looked at when they are read."""
    _, _, digest, manifest, _ = row
    try:
        assert isinstance(manifest, bytes)
        items = [tuple(item) for item in decode_json(manifest)]
        if result_digest(items) != digest:
            return False
        named = {key: (kind, size, of_value) for key, kind, size, of_value in items}
    except (AssertionError, RemoteProtocolError, TypeError, ValueError):
        return False
    return named == {key: of_value[3:6] for key, of_value in values.items()}


def _readable_rows(old: Database, table: str) -> Iterator[_Row]:
    """Yield the rows of a table from both of its ends: a page in the middle may be lost."""
    width = _KEY_COLUMNS[table]
    key = _TABLES[table][:width]
    # Of values without their bytes: there may be gigabytes.
    columns = ", ".join(
        f"NULL AS {name}" if (table, name) == ("result_values", "data") else name
        for name in _TABLES[table]
    )
    last: tuple[Cell, ...] | None = None  # of those from the beginning
    for direction in ("ASC", "DESC"):
        order = ", ".join(f"{name} {direction}" for name in key)
        with contextlib.suppress(StoreDamaged):
            for row in old.iterate(f"SELECT {columns} FROM {table} ORDER BY {order}"):
                if direction == "DESC" and last is not None and row[:width] <= last:
                    return
                yield row
                if direction == "ASC":
                    last = row[:width]
            return  # All of them.


def _insert(new: Database, table: str, rows: list[_Row]) -> None:
    marks = ", ".join("?" * len(_TABLES[table]))
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        with new.transaction() as cursor:
            cursor.executemany(
                f"INSERT OR IGNORE INTO {table} VALUES ({marks})",
                rows[first : first + _ROWS_AT_ONCE],
            )
