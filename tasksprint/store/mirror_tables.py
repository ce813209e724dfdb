"""The mirror's tables in SQL: their schema, reading them in ranges, copying them in pieces.

A copy travels as JSON texts. SQLite makes and reads them by itself, thousands of rows in one
step. So neither end asks SQLite for a row at a time. A thread with a million rows doesn't ask
for Python's global lock a million times (many_rows.py tells the cost beside a busy loop).

Each row has a last column of its own, `checksum`: the CRC-32 of its table's name, its key and
its columns. It is compared whenever a row is read, for whatever purpose, and travels with
the row in a copy.

Knows the declarations of `coordination/rows.py`, and no row's meaning.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

from tasksprint.coordination.rows import TABLES, Key, Row, Table
from tasksprint.encoding import decode_json
from tasksprint.errors import LocalProtocolError, StoreDamaged
from tasksprint.store.database import Cell, Cursor, Database, damaged_store
from tasksprint.store.many_rows import Delete, Upsert

__all__ = [
    "DELETES",
    "MIRROR_SCHEMA",
    "UPSERTS",
    "CopyPlace",
    "add_piece",
    "damaged_rows",
    "delete_range",
    "drop_side_tables",
    "find_row",
    "has_side_tables",
    "key_names",
    "make_side_tables",
    "next_place",
    "page_of_range",
    "piece_text",
    "row_checksum",
    "rows_of_range",
    "side_name",
    "swap_tables",
]

# Where a copy goes on: a table, and the last key that was copied; (): at its beginning.
CopyPlace = tuple[str, Key]

_SIDE = "incoming_"
_CHECKSUM = "checksum"


def _names(table: Table) -> tuple[tuple[str, ...], tuple[str, ...]]:
    keys = tuple(column.name for column in table.key_columns)
    return keys, tuple(column.name for column in table.value_columns)


def key_names(table: str) -> tuple[str, ...]:
    """Return the names of a table's key columns."""
    return _names(TABLES[table])[0]


def side_name(table: str) -> str:
    """Return the name of the table in which a copy gathers."""
    return _SIDE + table


def _table_schema(table: Table, name: str) -> str:
    keys, _ = _names(table)
    columns = [
        f"{column.name} {column.type}" + ("" if column.nullable else " NOT NULL")
        for column in table.key_columns + table.value_columns
    ]
    columns += [f"{_CHECKSUM} INTEGER NOT NULL", f"PRIMARY KEY ({','.join(keys)})"]
    # A single integer as the key is SQLite's own row number: nothing is smaller.
    is_number = len(keys) == 1 and table.key_columns[0].type == "INTEGER"
    options = "STRICT" if is_number else "STRICT, WITHOUT ROWID"
    return f"CREATE TABLE {name} ({', '.join(columns)}) {options};\n"


MIRROR_SCHEMA = "".join(_table_schema(table, table.name) for table in TABLES.values())
UPSERTS = {
    table.name: Upsert(table.name, _names(table)[0], (*_names(table)[1], _CHECKSUM))
    for table in TABLES.values()
}
DELETES = {table.name: Delete(table.name, _names(table)[0]) for table in TABLES.values()}

# The input of a checksum. This form costs half as much as `repr` or `join`. It takes None for
# "None", but a bit that flips doesn't make one of the other.
_FORMS = {
    table.name: table.name + "\0%s" * len(table.key_columns + table.value_columns)
    for table in TABLES.values()
}


def row_checksum(table: str, cells: tuple[Cell, ...]) -> int:
    """Return what stands beside a row with these cells, keys first."""
    return zlib.crc32((_FORMS[table] % cells).encode())


def _columns(table: str) -> str:
    return ",".join((*sum(_names(TABLES[table]), ()), _CHECKSUM))


def _check_rows(database: Database, table: str, rows: list[list[Cell]]) -> None:
    """Compare rows (keys first, checksum last) with their checksums.

    Raises:
        StoreDamaged: One fails its.
    """
    form, crc32 = _FORMS[table], zlib.crc32
    for cells in rows:
        if crc32((form % tuple(cells[:-1])).encode()) != cells[-1]:
            raise _row_damaged(database, table, cells)


def _row_damaged(database: Database, table: str, cells: Sequence[Cell]) -> StoreDamaged:
    key = tuple(cells[: len(TABLES[table].key_columns)])
    what = f"row {key!r} of table {table!r} fails its checksum"
    return damaged_store(database.path, database.kind, what)


# --- reading ---


def _condition(table: str, first: Key, end: Key) -> tuple[str, list[Cell]]:
    keys = key_names(table)
    parts: list[str] = []
    bindings: list[Cell] = []
    for sign, bound in ((">=", first), ("<", end)):
        if bound:
            assert len(bound) <= len(keys), "a bound has at most as many parts as the key"
            marks = ",".join("?" * len(bound))
            parts.append(f"({','.join(keys[: len(bound)])}) {sign} ({marks})")
            bindings += bound
    return (f"WHERE {' AND '.join(parts)}" if parts else ""), bindings


def rows_of_range(
    database: Database, table: str, first: Key, end: Key, *, name: str | None = None
) -> Iterator[Row]:
    """Yield rows as `Mirror.read_range` says."""
    where, bindings = _condition(table, first, end)
    return _rows(database, table, where, bindings, name=name)


def find_row(
    database: Database, table: str, key: Key, *, name: str | None = None
) -> Row | None:
    """Return the row with a key; None: there is none."""
    where = "WHERE " + " AND ".join(f"{column} = ?" for column in key_names(table))
    found = list(_rows(database, table, where, list(key), name=name))
    return found[0] if found else None


def page_of_range(
    database: Database, table: str, first: Key, end: Key, rows_max: int, bytes_max: int
) -> list[list[Cell]]:
    """Return the cells of the first rows of a range, read in one step.

    As many as have `bytes_max` bytes together, but one at least if there is one.
    """
    where, bindings = _condition(table, first, end)
    text, _ = _text_of(database, table, where, bindings, rows_max, bytes_max)
    found: list[list[Cell]] = decode_json(text.encode())
    _check_rows(database, table, found)
    for cells in found:
        cells.pop()
    return found


def _rows(
    database: Database,
    table: str,
    where: str,
    bindings: list[Cell],
    *,
    name: str | None = None,
) -> Iterator[Row]:
    keys = key_names(table)
    count = len(keys)
    for cells in database.iterate(
        f"SELECT {_columns(table)} FROM {name or table} {where} ORDER BY {','.join(keys)}",
        bindings,
    ):
        if row_checksum(table, cells[:-1]) != cells[-1]:
            raise _row_damaged(database, table, cells)
        # The key columns are NOT NULL and hold no bytes, by their declaration.
        yield Row(table, cells[:count], cells[count:-1])  # type: ignore[arg-type]


def damaged_rows(database: Database, table: str) -> Iterator[Key]:
    """Yield the keys of all rows of a table that fail their checksums."""
    count = len(key_names(table))
    for cells in database.iterate(f"SELECT {_columns(table)} FROM {table}"):
        if row_checksum(table, cells[:-1]) != cells[-1]:
            yield cells[:count]  # type: ignore[misc]  # of whatever types the damage left


# --- deleting ---


def delete_range(cursor: Cursor, table: str, first: Key, end: Key, rows_max: int) -> int:
    """Delete the first rows of a range; return how many there were, at most `rows_max`."""
    where, bindings = _condition(table, first, end)
    keys = ",".join(key_names(table))
    cursor.execute(
        f"DELETE FROM {table} WHERE ({keys}) IN"
        f" (SELECT {keys} FROM {table} {where} ORDER BY {keys} LIMIT ?)",
        [*bindings, rows_max],
    )
    return cursor.connection.changes()


# --- copying: the side that gives ---


def piece_text(
    database: Database, place: CopyPlace, rows_max: int, bytes_max: int
) -> tuple[str, int, Key]:
    """Return the next rows of a table as a JSON text, how many, and the last one's key.

    At least one row if there is one, however large it is; "[]", 0 and () else.

    Raises:
        StoreDamaged: A row fails its checksum: it must not travel.
    """
    table, after = place
    keys = key_names(table)
    order = ",".join(keys)
    where = ""
    if after:
        where = f"WHERE ({order}) > ({','.join('?' * len(keys))})"
    text, count = _text_of(database, table, where, list(after), rows_max, bytes_max)
    if not count:
        return text, 0, ()
    rows: list[list[Cell]] = decode_json(text.encode())
    _check_rows(database, table, rows)
    return text, count, tuple(rows[-1][: len(keys)])  # type: ignore[arg-type]  # see `_rows`


def _text_of(
    database: Database,
    table: str,
    where: str,
    bindings: list[Cell],
    rows_max: int,
    bytes_max: int,
) -> tuple[str, int]:
    keys, values = _names(TABLES[table])
    order = ",".join(keys)
    size = "+".join(f"ifnull(octet_length({name}),0)" for name in keys + values)
    # Rows are counted first: how large they are isn't known, and one text holds them all.
    ((count,),) = database.query(
        f"SELECT count(*) FROM (SELECT sum({size}) OVER (ORDER BY {order}) AS total FROM"
        f" (SELECT * FROM {table} {where} ORDER BY {order} LIMIT ?)) WHERE total <= ?",
        [*bindings, rows_max, bytes_max],
    )
    assert isinstance(count, int)
    try:
        ((text, count),) = database.query(
            f"SELECT json_group_array(json_array({_columns(table)})), count(*) FROM"
            f" (SELECT * FROM {table} {where} ORDER BY {order} LIMIT ?)",
            [*bindings, max(count, 1)],
        )
    except LocalProtocolError as error:  # A text that became bytes: JSON has none.
        what = f"table {table!r} can't be read: {error.__cause__}"
        raise damaged_store(database.path, database.kind, what) from error
    assert isinstance(text, str) and isinstance(count, int)
    return text, count


def next_place(place: CopyPlace, last_key: Key) -> CopyPlace | None:
    """Return where a copy goes on behind a piece; None: it is whole.

    Args:
        last_key: Of the piece; (): the table has no more rows.
    """
    table, _ = place
    if last_key:
        return table, last_key
    names = list(TABLES)
    index = names.index(table) + 1
    return (names[index], ()) if index < len(names) else None


# --- copying: the side that takes ---


def make_side_tables(cursor: Cursor) -> None:
    """Make empty tables beside the mirror's, for a copy."""
    drop_side_tables(cursor)
    for table in TABLES.values():
        cursor.execute(_table_schema(table, side_name(table.name)))


_FIND_SIDE_TABLES = f"SELECT name FROM sqlite_schema WHERE type = 'table' AND name GLOB '{_SIDE}*'"


def has_side_tables(database: Database) -> bool:
    """Whether something is left of a copy."""
    return bool(database.query(_FIND_SIDE_TABLES))


def drop_side_tables(cursor: Cursor) -> None:
    """Delete what is left of a copy, if there is anything."""
    for (name,) in cursor.execute(_FIND_SIDE_TABLES).fetchall():
        cursor.execute(f"DROP TABLE {name}")


def add_piece(cursor: Cursor, table: str, text: str) -> None:
    """Add the rows of a piece to the copy; a piece that came twice changes nothing."""
    keys, values = _names(TABLES[table])
    cells = ",".join(f"value->>{index}" for index in range(len(keys) + len(values) + 1))
    cursor.execute(
        f"INSERT OR REPLACE INTO {side_name(table)} SELECT {cells} FROM json_each(?)", (text,)
    )


def swap_tables(cursor: Cursor) -> None:
    """Put the copy in the mirror's place; part of the caller's transaction."""
    for name in TABLES:
        cursor.execute(f"DROP TABLE {name}")
        cursor.execute(f"ALTER TABLE {side_name(name)} RENAME TO {name}")
