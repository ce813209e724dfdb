"""The tables of the durable mirror: what the replicated state looks like as rows.

Applying a command marks what it changed; each change is one `Row`, and all rows
together are the state. The store writes them next to the log, in the same
transaction as the applied slot, so a restart loads the rows and applies only the
log's tail. The mirror is also a feature: `sqlite3 replica.db` answers questions
about any job, which is why names, states and owners have columns of their own and
only the rest is JSON, in `body`.

This module knows names and SQL types. It doesn't know SQL, and it doesn't know
what is in a body: the state machine writes it, and only the state machine reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TABLES", "Column", "Row", "Table"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, its SQL type, and whether it may be empty."""

    name: str
    type: str  # "INTEGER" (an int of 64 bits), "TEXT" (a str) or "BLOB" (bytes)
    nullable: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the mirror; `Row.key` and `Row.columns` are in this order."""

    name: str
    key_columns: tuple[Column, ...]
    value_columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One upsert of the mirror, or, with `columns` None, one deletion.

    Deleting a row that isn't there is allowed and does nothing, so a state machine
    may apply an entry again after a crash and yield the same rows again.
    """

    table: str  # Invariant: a key of TABLES.
    key: tuple[int | str, ...]  # Invariant: as many as the table's key columns.
    columns: tuple[int | str | bytes | None, ...] | None  # None: deleted


_JOB = Column("job", "INTEGER")
_BODY = Column("body", "TEXT")  # JSON

_TABLES = (
    Table("jobs", (_JOB,), (Column("name", "TEXT"), Column("state", "TEXT"), _BODY)),
    Table(
        "tasks",
        (_JOB, Column("tid", "INTEGER")),
        (
            Column("name", "TEXT"),
            Column("state", "TEXT"),
            Column("cid", "INTEGER", nullable=True),  # where it runs or ran, if anywhere
            Column("attempt", "INTEGER"),
            _BODY,
        ),
    ),
    Table(
        "clients",
        (Column("cid", "INTEGER"),),
        (Column("state", "TEXT"), Column("address", "TEXT", nullable=True), _BODY),
    ),
    # The event's line as the scheduler gets it: UTF-8 JSON, kept to the byte.
    Table("events", (_JOB, Column("number", "INTEGER")), (Column("line", "TEXT"),)),
    Table(
        "answers",
        (_JOB, Column("event", "INTEGER"), Column("part", "INTEGER")),
        (Column("digest", "TEXT"), _BODY),
    ),
    Table("senders", (Column("sender", "TEXT"),), (_BODY,)),
    Table("job_log", (_JOB, Column("number", "INTEGER")), (Column("line", "TEXT"),)),
    Table("facts", (Column("name", "TEXT"),), (_BODY,)),
)

TABLES: dict[str, Table] = {table.name: table for table in _TABLES}
