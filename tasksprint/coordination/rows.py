"""The tables of the durable mirror: the replicated state as rows.

A command marks what it changes. Each change is one `Row`, and all rows together are the
state. The store writes them next to the log, in the same transaction as the applied slot.
So a restart loads the rows, and applies only the log's tail. The mirror is also a feature:
`sqlite3 replica.db` answers questions about any job. For this, names, states and owners have
columns of their own. Only the rest is JSON, in `body`.

This module knows names and SQL types. It doesn't know SQL, nor the contents of a body: only the
state machine writes and reads it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

__all__ = [
    "ALL_OF_JOB",
    "HISTORY_OF_JOB",
    "TABLES",
    "Column",
    "Key",
    "Mirror",
    "Row",
    "Table",
    "garbage_ranges",
]

Key = tuple[int | str, ...]


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


class Row(NamedTuple):
    """One upsert of the mirror, or, with `columns` None, one deletion.

    Deleting a missing row is allowed and does nothing. So a state machine may apply an entry
    again after a crash, and yield the same rows again.
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
            Column("cid", "INTEGER", nullable=True),  # the client that runs or ran it, if any
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
    # Attempts that failed, the last ones of each job (failures.py).
    Table(
        "failures", (_JOB, Column("number", "INTEGER")), (Column("tid", "INTEGER"), _BODY)
    ),
    Table("facts", (Column("name", "TEXT"),), (_BODY,)),
    # Rows of jobs that nobody needs any more; see `garbage_ranges`.
    Table("garbage", (_JOB,), (Column("what", "TEXT"),)),
)

TABLES: dict[str, Table] = {table.name: table for table in _TABLES}

# Words in the table "garbage": for an ended job, and for a forgotten one.
HISTORY_OF_JOB, ALL_OF_JOB = "history", "all"


def garbage_ranges(job: int, what: str) -> tuple[tuple[str, Key, Key], ...]:
    """Return (table, first key, end key) of the rows that a row of "garbage" gives free.

    A job may have millions of them, so the entry that gives them free doesn't delete them. Each
    replica's store deletes them bit by bit, behind its commits, and the row of "garbage" last.
    Nothing reads them meanwhile, and the digest doesn't cover these deletions.

    Returns:
        Nothing for a word that this release doesn't know.
    """
    if what not in (HISTORY_OF_JOB, ALL_OF_JOB):
        return ()
    rest = ("tasks", "job_log", "failures")
    tables = ("events", "answers") + (rest if what == ALL_OF_JOB else ())
    facts = ("estimate", "timer") + (("base",) if what == ALL_OF_JOB else ())
    return (
        *[(name, (job,), (job + 1,)) for name in tables],
        # Names go on behind the space; "!" is the character after it.
        *[("facts", (f"{kind} {job} ",), (f"{kind} {job}!",)) for kind in facts],
    )


class Mirror(Protocol):
    """An owner of the mirror's rows; it finds some of them without reading all."""

    def read_range(self, table: str, first: Key = (), end: Key = ()) -> Iterable[Row]:
        """Return rows in the order of their keys: from `first` on, and before `end`.

        Both may be the beginning of a key: then only so many columns are compared. () means:
        no limit.
        """
