"""Reads counts and log entries from a replica's file, even while another process has it open.

Changes nothing and takes no lock; one moment of the file is read. verify.py tells whether the
file is whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasksprint.consensus.log_entry import LogEntry
from tasksprint.coordination.rows import TABLES
from tasksprint.settings import Settings
from tasksprint.store.database import Database
from tasksprint.store.vital import REPLICA_KIND, log_rows, read_header, read_progress

__all__ = ["Inventory", "read_entries", "take_inventory"]


@dataclass(frozen=True, slots=True)
class Inventory:
    """The owner of a file, and its counts."""

    replica: int
    incarnation: str
    cluster: str | None  # None: unfounded
    promised: tuple[int, int] | None  # round and replica of the ballot
    log_start: int
    chosen_end: int
    entries: int  # in the log
    last_slot: int  # of them; 0: there is none
    applied_slot: int
    digest: str
    rows: dict[str, int]  # of each table of the mirror
    archives: int


@contextlib.contextmanager
def _reading(path: Path, settings: Settings) -> Iterator[Database]:
    opened = Database(path, REPLICA_KIND, settings, is_read_only=True)
    with contextlib.closing(opened) as database:
        database.connection.execute("BEGIN")
        yield database


def take_inventory(path: Path, settings: Settings) -> Inventory:
    """Count the contents of a file.

    Raises:
        StoreError: It can't be read.
    """
    with _reading(path, settings) as database:
        header = read_header(database)
        progress = read_progress(database, header.replica)
        promised = progress.promised

        def count(sql: str) -> int:
            ((found,),) = database.query(sql)
            assert isinstance(found, int)
            return found

        return Inventory(
            replica=header.replica,
            incarnation=header.incarnation,
            cluster=header.cluster,
            promised=None if promised is None else (promised.round, promised.replica),
            log_start=progress.log_start,
            chosen_end=progress.open_from,
            entries=count("SELECT count(*) FROM log"),
            last_slot=count("SELECT ifnull(max(slot), 0) FROM log"),
            applied_slot=progress.applied.slot,
            digest=progress.applied.digest,
            rows={table: count(f"SELECT count(*) FROM {table}") for table in TABLES},
            archives=count("SELECT count(*) FROM blobs"),
        )


def read_entries(
    path: Path, first_slot: int, end_slot: int, settings: Settings
) -> Iterator[tuple[int, LogEntry | None]]:
    """Yield (slot, the value accepted there) in order; None: it fails its checksum.

    Raises:
        StoreError: The file can't be read.
    """
    with _reading(path, settings) as database:
        yield from log_rows(database, first_slot, end_slot)
