"""Repair of a replica's file that is spoiled in part.

A process that meets damage leaves a note in the data directory (`note_damage`) and stops. The
next start finds the note and looks through the whole file (`repair`):

- The owner's name, the promise, and the acceptances that nobody knows to be chosen must be
  whole. Else this replica counts as lost, and nothing is changed.
- Applied entries of the log aren't needed here any more. If one is damaged, the log begins
  behind the last damaged one.
- A damaged entry that is chosen and not applied is left out: the other members have it.
- A damaged mirror is dropped. It is made again from the log, if that goes back to the first
  slot, or else taken from another member (roles/coordinator/copies.py). An only member has
  nobody to take it from: nothing is changed then, and a backup must be brought back.

If the structure of a file is damaged, it can't be mended in its place: even dropping a table
reads all its pages. So the whole parts go into a new file, and that one takes the old one's
place. The old one is kept under another name (`replica.db.damaged`) until the operator or the
next such repair deletes it. A crash at any moment leaves the old one with its write-ahead log,
or the new one.

Knows files and tables. Of consensus it knows only what vital.py says.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasksprint.consensus.log_entry import LogEntry
from tasksprint.coordination.rows import TABLES
from tasksprint.durable_files import sync_directory
from tasksprint.errors import StoreDamaged, StoreError
from tasksprint.settings import Settings
from tasksprint.store.blobs import blob_digests, drop_blob, read_blob, write_blob
from tasksprint.store.database import Cell, Cursor, Database, delete_database
from tasksprint.store.mirror_tables import UPSERTS, damaged_rows, row_checksum, rows_of_range
from tasksprint.store.records import AppliedPoint
from tasksprint.store.vital import (
    DATABASE_FILE,
    REPLICA_KIND,
    Header,
    OpenEntries,
    Progress,
    is_only_member,
    log_checksum,
    log_rows,
    lost_store,
    only_member_lost,
    read_header,
    read_progress,
    write_header,
    write_log,
    write_progress,
)

__all__ = ["damage_of_state", "note_damage", "refuse_half_repaired", "repair"]

_NOTE = "replica.damaged"
_GROWING = "replica.db.new"  # not whole yet
_READY = "replica.db.repaired"  # whole: it takes the place of the old one
_KEPT = "replica.db.damaged"  # the old one, for people
_ROWS_AT_ONCE = 1_000


def note_damage(data_dir: Path, error: StoreDamaged) -> None:
    """Leave a note for the next start."""
    # A disk that doesn't even take this will be met at the same place again.
    with contextlib.suppress(OSError), (data_dir / _NOTE).open("w") as file:
        file.write(f"{error}\n")
        file.flush()
        os.fsync(file.fileno())


def refuse_half_repaired(data_dir: Path) -> None:
    """Raise `StoreError` if a repair stopped between its file and that one's place."""
    if (data_dir / _READY).exists():
        raise StoreError(
            f"a repair of {str(data_dir / DATABASE_FILE)!r} was interrupted",
            hint="start this replica once: it puts the repaired file in its place",
        )


def repair(data_dir: Path, replica: int, settings: Settings) -> tuple[str, ...]:
    """Repair the file if there is a note of damage, and remove the note.

    Returns:
        A report of the repair, for the operator.

    Raises:
        StoreError: This replica can't go on with the rest.
    """
    path = data_dir / DATABASE_FILE
    _take_place(data_dir)
    note = data_dir / _NOTE
    if not note.exists():
        return ()
    done: tuple[str, ...] = ()
    if path.exists():
        try:
            database = Database(path, REPLICA_KIND, settings)
        except StoreDamaged as error:
            raise lost_store(path, replica, f"it can't be opened: {error.args[0]}") from error
        with contextlib.closing(database):
            left = _look(database)
            done = left.notes
            if left.is_sound:
                _mend(database, left)
            else:
                _build(data_dir / _GROWING, database, left, settings)
                os.replace(data_dir / _GROWING, data_dir / _READY)
                sync_directory(data_dir)
        _take_place(data_dir)
    note.unlink()
    sync_directory(data_dir)
    return done


def _take_place(data_dir: Path) -> None:
    """Put a repaired file in the place of the damaged one; also after a crash in between."""
    ready, path, kept = data_dir / _READY, data_dir / DATABASE_FILE, data_dir / _KEPT
    if not ready.exists():
        return
    # The old file goes with its write-ahead log, which SQLite would take for the new one's.
    if path.exists():
        delete_database(kept)
        os.replace(path, kept)
    wal = _beside(path, "-wal")
    if wal.exists():
        os.replace(wal, _beside(kept, "-wal"))
    _beside(path, "-shm").unlink(missing_ok=True)
    sync_directory(data_dir)
    os.replace(ready, path)
    sync_directory(data_dir)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


# --- looking ---


@dataclass(frozen=True)
class _Left:
    """The whole parts of a damaged file."""

    header: Header
    progress: Progress
    entries: dict[int, LogEntry]
    blobs_lost: tuple[str, ...]
    has_state: bool
    is_sound: bool  # no more than rows are missing: the file itself can stay
    notes: tuple[str, ...]


def _look(database: Database) -> _Left:
    header = read_header(database)
    progress = read_progress(database, header.replica)
    entries = _readable_entries(database, progress.log_start)
    _check_open(database, header, progress, entries)
    damage = _damage_of_structure(database)
    is_sound = damage is None
    state_damage = _damage_of_state(database, is_sound=is_sound)
    blobs_lost = tuple(_blobs_lost(database)) if is_sound else ()
    open_from, applied = progress.open_from, progress.applied
    # The last missing entry, of the applied ones and of those that are only chosen.
    # (A replica without its state lacks all slots from the first one on: no list of them.)
    applied_lost = _last_lost(entries, progress.log_start, min(applied.slot + 1, open_from))
    chosen_lost = _last_lost(entries, max(applied.slot + 1, progress.log_start), open_from)
    is_log_whole = applied_lost is None and chosen_lost is None
    notes: list[str] = []
    if state_damage is None:
        if chosen_lost is not None and is_only_member(header):
            what = f"slot {chosen_lost} of table 'log' is gone or fails its checksum"
            raise only_member_lost(database.path, what)
        if applied_lost is not None:
            progress = progress._replace(log_start=applied_lost + 1)
            notes.append(f"its log begins at slot {progress.log_start} now: some before is lost")
        elif is_log_whole:
            notes.append("nothing is lost of its log and its state")
    else:
        applied = AppliedPoint(0, "")
        if progress.log_start == 1 and is_log_whole:
            notes.append(f"its state is made again from the log: {state_damage}")
        elif is_only_member(header):
            raise only_member_lost(database.path, state_damage)
        else:
            notes.append(f"its state is dropped, for a copy of another member's: {state_damage}")
            # Without the entries before them, later ones can't be applied.
            entries = {slot: entry for slot, entry in entries.items() if slot >= open_from}
            progress = progress._replace(log_start=1)
        # Applied entries were chosen: no promise speaks for them, now as before.
        progress = progress._replace(chosen_end=open_from, applied=applied)
    entries = {slot: each for slot, each in entries.items() if slot >= progress.log_start}
    if damage is not None:
        notes.append(f"its file was made anew: {damage}")
    if damage is not None or state_damage is not None:
        notes.append(f"its damaged file is kept as {_KEPT!r}; delete it when you like")
    return _Left(
        header,
        progress,
        entries,
        blobs_lost,
        has_state=state_damage is None,
        is_sound=is_sound and state_damage is None,
        notes=tuple(notes),
    )


def _last_lost(entries: dict[int, LogEntry], first_slot: int, end_slot: int) -> int | None:
    slots = reversed(range(first_slot, end_slot))
    return next((slot for slot in slots if slot not in entries), None)


def _readable_entries(database: Database, log_start: int) -> dict[int, LogEntry]:
    """Read the log from both of its ends: a page in the middle may be lost."""
    found: dict[int, LogEntry] = {}
    for is_backward in (False, True):
        with contextlib.suppress(StoreDamaged):
            for slot, entry in log_rows(database, log_start, is_backward=is_backward):
                if entry is not None:
                    if is_backward and slot in found:
                        break
                    found[slot] = entry
    return found


def _check_open(
    database: Database, header: Header, progress: Progress, entries: dict[int, LogEntry]
) -> None:
    found = OpenEntries()
    for slot, entry in entries.items():
        if slot >= progress.open_from:
            found.put(slot, log_checksum(slot, entry.ballot, entry.value))
    if (found.count, found.checksum) != (progress.open_count, progress.open_checksum):
        raise lost_store(
            database.path,
            header.replica,
            f"table 'log' has {found.count} whole values accepted from slot {progress.open_from} "
            f"on, expected {progress.open_count}",
        )


def _damage_of_structure(database: Database, table: str | None = None) -> str | None:
    what = "1" if table is None else table
    try:
        ((line,),) = database.query(f"PRAGMA integrity_check({what}) ")[:1]
    except StoreDamaged as error:
        return str(error.args[0])
    return None if line == "ok" else str(line)


def damage_of_state(database: Database) -> str | None:
    """Describe the damage in the mirror; None: it is whole."""
    return _damage_of_state(database, is_sound=_damage_of_structure(database) is None)


def _damage_of_state(database: Database, *, is_sound: bool) -> str | None:
    for table in TABLES:
        if not is_sound and (damage := _damage_of_structure(database, table)) is not None:
            return f"table {table!r}: {damage}"
        try:
            for key in damaged_rows(database, table):
                return f"row {key!r} of table {table!r} fails its checksum"
        except StoreDamaged as error:
            return str(error.args[0])
    return None


def _blobs_lost(database: Database) -> Iterator[str]:
    for digest in blob_digests(database):
        try:
            read_blob(database, digest)
        except StoreDamaged:
            yield digest


# --- mending ---


def _mend(database: Database, left: _Left) -> None:
    with database.transaction() as cursor:
        cursor.execute("DELETE FROM log WHERE slot < ?", (left.progress.log_start,))
        for digest in left.blobs_lost:
            drop_blob(cursor, digest)
        write_progress(cursor, left.progress)


def _build(path: Path, source: Database, left: _Left, settings: Settings) -> None:
    """Make a new file from the whole parts; it is on the disk when this returns.

    Raises:
        StoreError: It can't be written; nothing of it stays.
    """
    delete_database(path)
    try:
        with contextlib.closing(
            Database(path, REPLICA_KIND, settings, fill=lambda cursor: _fill(cursor, left))
        ) as target:
            if left.has_state:
                for table in TABLES:
                    _copy_rows(source, target, table)
            with contextlib.suppress(StoreDamaged):  # Missing archives are fetched when needed.
                for digest in blob_digests(source):
                    with contextlib.suppress(StoreDamaged), target.transaction() as cursor:
                        write_blob(cursor, digest, read_blob(source, digest))
            target.close_whole()
    except BaseException:
        # On a full disk, it is what takes the space.
        with contextlib.suppress(OSError):
            delete_database(path)
        raise


def _fill(cursor: Cursor, left: _Left) -> None:
    write_header(cursor, left.header)
    write_progress(cursor, left.progress)
    write_log(
        cursor,
        [
            (entry, log_checksum(slot, entry.ballot, entry.value))
            for slot, entry in left.entries.items()
        ],
    )


def _copy_rows(source: Database, target: Database, table: str) -> None:
    cells: list[Cell] = []
    with target.transaction() as cursor:
        for number, row in enumerate(rows_of_range(source, table, (), ()), 1):
            assert row.columns is not None
            of_row = row.key + row.columns
            cells += of_row
            cells.append(row_checksum(table, of_row))
            if number % _ROWS_AT_ONCE == 0:
                UPSERTS[table].run(cursor, cells)
                cells = []
        UPSERTS[table].run(cursor, cells)
