"""Looking through a replica's file for damage, without changing anything.

Reads all of it: the pages' structure (SQLite's own check), the owner's name, the promise, the
log, every row of the mirror, the archives. For people, and for a backup that was just made. The
consequences of damage are decided where a replica starts (repair.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tasksprint.coordination.rows import TABLES
from tasksprint.coordination.state_rows import digest_row
from tasksprint.errors import StoreDamaged, StoreError
from tasksprint.ids import Slot
from tasksprint.settings import Settings
from tasksprint.store.blobs import blob_digests, read_blob
from tasksprint.store.database import Database
from tasksprint.store.mirror_tables import damaged_rows, find_row
from tasksprint.store.vital import (
    REPLICA_KIND,
    OpenEntries,
    Progress,
    log_checksum,
    log_rows,
    read_header,
    read_progress,
)

__all__ = ["verify"]

# Of each kind: after a thousand lost rows nobody needs to read them all.
_PROBLEMS_MAX = 20


def verify(path: Path, settings: Settings | None = None) -> Iterator[str]:
    """Yield the faults of a replica's file, a sentence each; none: it is whole.

    Args:
        path: The file (`replica.db`, or a copy of one). A replica may have it open: one
            moment of the file is read.
    """
    try:
        database = Database(path, REPLICA_KIND, settings or Settings(), is_read_only=True)
    except StoreError as error:
        yield str(error)
        return
    with contextlib.closing(database):
        database.connection.execute("BEGIN")
        for part in (_structure, _vital, _mirror, _blobs):
            try:
                yield from part(database)
            except StoreError as error:
                yield str(error)


def _structure(database: Database) -> Iterator[str]:
    for (line,) in database.query(f"PRAGMA integrity_check({_PROBLEMS_MAX})"):
        if line != "ok":
            yield f"SQLite's check of the file's structure says: {line!r}"


def _vital(database: Database) -> Iterator[str]:
    header = read_header(database)
    progress = read_progress(database, header.replica)
    yield from _log(database, progress)
    yield from _applied(database, progress)


def _log(database: Database, progress: Progress) -> Iterator[str]:
    expected, open_from = progress.log_start, progress.open_from
    found = OpenEntries()
    problems = 0
    for slot, entry in log_rows(database, progress.log_start):
        if entry is None:
            problems += 1
            if problems <= _PROBLEMS_MAX:
                yield f"slot {slot} of table 'log' fails its checksum"
        elif slot >= open_from:
            found.put(slot, log_checksum(slot, entry.ballot, entry.value))
        if slot < open_from:
            if slot > expected:
                yield f"table 'log' lacks the chosen slots {expected} to {slot - 1}"
            expected = slot + 1
    if expected < open_from:
        yield f"table 'log' lacks the chosen slots {expected} to {open_from - 1}"
    if (found.count, found.checksum) != (progress.open_count, progress.open_checksum):
        yield (
            f"table 'log' has {found.count} whole values accepted from slot {open_from} on, "
            f"expected {progress.open_count} with another sum"
        )


def _applied(database: Database, progress: Progress) -> Iterator[str]:
    applied = progress.applied
    if applied.slot == 0:
        return
    wanted = digest_row(Slot(applied.slot), applied.digest)
    found = find_row(database, wanted.table, wanted.key)
    if found != wanted:
        columns = [] if found is None else [found.columns]
        yield f"the mirror says {columns} of how far it goes, expected {[wanted.columns]}"


def _mirror(database: Database) -> Iterator[str]:
    for table in TABLES:
        problems = 0
        try:
            for key in damaged_rows(database, table):
                problems += 1
                if problems <= _PROBLEMS_MAX:
                    yield f"row {key!r} of table {table!r} fails its checksum"
        except StoreDamaged as error:
            yield str(error)
        if problems > _PROBLEMS_MAX:
            yield f"{problems} rows of table {table!r} fail their checksums"


def _blobs(database: Database) -> Iterator[str]:
    for digest in blob_digests(database):
        try:
            read_blob(database, digest)
        except StoreDamaged:
            yield f"archive {digest} isn't what its name says"
