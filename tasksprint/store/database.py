"""One SQLite file: opening it, owning it, checking it, keeping its log short.

Knows apsw, files, locks and pragmas. Doesn't know the meaning of tables: the stores
bring their schema along.

Two things here look odd and are not:

- If a file may not be written, SQLite opens it read-only, without a word. So we check.
- A checkpoint copies pages and waits for the disk, so it is never left to a commit
  that somebody waits for: SQLite's own trigger is off, and the owner of a store
  calls `checkpoint_if_due` and `do_idle_work` when it suits.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

from tasksprint.durable_files import sync_directory
from tasksprint.errors import (
    DiskFull,
    LocalProtocolError,
    SettingsError,
    StoreDamaged,
    StoreError,
)
from tasksprint.settings import Settings

__all__ = [
    "Cell",
    "Cursor",
    "Database",
    "DirectoryLock",
    "Kind",
    "damaged_store",
    "delete_database",
    "store_errors",
]

Cell = int | str | bytes | None
Cursor = apsw.Cursor

# Pages kept in memory: the latest writes and the upper levels of the tables.
_CACHE_KIB = 8 * 1024
# Statements that stay compiled: sizes × tables × (upsert, delete), and the single ones.
_STATEMENT_CACHE = 400


@dataclass(frozen=True, slots=True)
class Kind:
    """The sort of file that a store keeps; no other sort is taken for it."""

    what: str  # for messages: "replica store"
    application_id: int  # SQLite's field for this, in the header of the file
    format: int  # the version of the schema, in the header too (user_version)
    schema: str
    page_bytes: int  # larger pages hold larger rows, and cost more for each small commit
    synchronous: int  # 2: FULL, every commit is on the disk; 1: NORMAL, survives kill -9
    auto_vacuum: int = 0  # 2: INCREMENTAL, `shrink` can give free pages back to the disk
    # Tells the operator what to do about a file with a spoiled part.
    remedy: str = "check the disk; this file can't be trusted any more, keep a copy of it"


class DirectoryLock:
    """The ownership of one store in a data directory, by one process.

    SQLite would let two processes write in turns, which for a replica means two
    replicas with one identity. The lock is the kernel's: it ends with the process,
    however that ends.

    Raises:
        SettingsError: Another process has it; the message names its pid.
        StoreError: The directory can't be made or written.
    """

    def __init__(self, data_dir: Path, name: str) -> None:
        self.path = data_dir / name
        self._made = not data_dir.exists()
        try:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(
                f"cannot write in data directory {str(data_dir)!r}: {error.strerror}",
                hint="make it writable for this user, or give another --data-dir",
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise SettingsError(
                f"data directory {str(data_dir)!r} is in use by process {owner}",
                hint="stop that process, or give this one its own --data-dir",
            ) from error
        except OSError as error:
            os.close(self._fd)
            raise StoreError(
                f"cannot lock {str(self.path)!r}: {error.strerror}",
                hint="data directories must be on a local file system",
            ) from error
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
            # A directory that is made now must not vanish with the next power cut.
            for directory in (data_dir, *([data_dir.parent] if self._made else [])):
                sync_directory(directory)
        except OSError as error:
            os.close(self._fd)
            raise StoreError(
                f"cannot write in data directory {str(data_dir)!r}: {error.strerror}",
                hint="free space on its disk, or give another --data-dir",
            ) from error

    def release(self) -> None:
        """Let another process have the store."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def damaged_store(path: Path, kind: Kind, what: str) -> StoreDamaged:
    """Return the error for a file; a part of it isn't as it was written."""
    return StoreDamaged(f"{kind.what} {str(path)!r} is damaged: {what}", hint=kind.remedy)


def _store_error(path: Path, kind: Kind, error: apsw.Error) -> Exception:
    """Return the error that `error` means for the operator, or say that it is our bug."""
    name = f"{kind.what} {str(path)!r}"
    match error:
        case apsw.FullError():
            return DiskFull(
                f"cannot write {name}: the disk is full",
                hint="free some space and start again; nothing that was acknowledged is lost",
            )
        case apsw.NotADBError():
            return StoreError(
                f"cannot open {name}: it is not an SQLite database, or its beginning is damaged",
                hint="move it away or give another --data-dir",
            )
        case apsw.CorruptError():
            return damaged_store(path, kind, str(error))
        case apsw.BusyError() | apsw.LockedError():
            return StoreError(
                f"cannot write {name}: another program holds a lock on it",
                hint="close every program that writes to this file; reading it is fine",
            )
        case apsw.ReadOnlyError() | apsw.CantOpenError() | apsw.PermissionsError():
            return StoreError(
                f"cannot write {name}: {error}",
                hint="make the file and its directory writable for this user",
            )
        case apsw.IOError():
            return StoreError(
                f"cannot read or write {name}: {error}",
                hint="check the disk and the system's log",
            )
        case _:
            return LocalProtocolError(f"{name} refused what it was given: {error}")


@contextlib.contextmanager
def store_errors(path: Path, kind: Kind) -> Iterator[None]:
    """Turn apsw's exceptions inside the block into ours, naming the file."""
    try:
        yield
    except apsw.Error as error:
        raise _store_error(path, kind, error) from error
    except UnicodeDecodeError as error:  # SQLite itself takes any bytes for a text.
        raise damaged_store(path, kind, f"a text isn't one: {error.reason}") from error


def delete_database(path: Path) -> None:
    """Delete a file of SQLite with what belongs to it."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _declarations(connection: apsw.Connection) -> dict[str, str]:
    rows = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table'")
    # A table that was renamed has its name in quotes.
    return {name: sql.replace('"', "") for name, sql in rows}


@functools.cache
def _declarations_of(schema: str) -> dict[str, str]:
    with contextlib.closing(apsw.Connection(":memory:")) as connection:
        connection.execute(schema)
        return _declarations(connection)


class Database:
    """One open SQLite file in WAL mode, with its pragmas set and read back.

    Args:
        path: The file; made with the kind's schema if it isn't there.
        fill: Writes the first rows, in the same transaction as the schema.
        is_read_only: For a second connection; takes no lock and changes nothing.
        must_be_there: An empty file is refused, and not filled.

    Raises:
        StoreError: Not a database, another kind, a newer format, damaged, not
            writable, or a pragma that doesn't hold.
    """

    def __init__(
        self,
        path: Path,
        kind: Kind,
        settings: Settings,
        *,
        fill: Callable[[Cursor], None] | None = None,
        is_read_only: bool = False,
        must_be_there: bool = False,
    ) -> None:
        self.path = path
        self.kind = kind
        self.transactions = 0  # committed ones, for tests and figures
        self.is_new = False
        self._settings = settings
        self._copied_pages = 0  # as counted by `_written_pages` at the last checkpoint
        flags = (
            apsw.SQLITE_OPEN_READONLY
            if is_read_only
            else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        )
        with store_errors(path, kind):
            self.connection = apsw.Connection(
                str(path), flags=flags, statementcachesize=_STATEMENT_CACHE
            )
            try:
                self.connection.set_busy_timeout(settings.store_busy_timeout_ms)
                self._check_kind()
                if self.is_new and (is_read_only or must_be_there):
                    raise StoreError(
                        f"cannot open {kind.what} {str(path)!r}: it is empty",
                        hint="move it away or give another --data-dir",
                    )
                if not is_read_only:
                    self._set_up(fill)
            except BaseException:
                self.connection.close()
                raise
        self.cursor = self.connection.cursor()
        self._page_bytes = int(self._pragma("page_size"))

    def _pragma(self, name: str) -> int | str:
        value = self.connection.pragma(name)
        assert isinstance(value, (int, str)), "the pragmas that we read are numbers and words"
        return value

    def _check_kind(self) -> None:
        kind, name = self.kind, f"{self.kind.what} {str(self.path)!r}"
        found_format = self._pragma("user_version")
        found_id = self._pragma("application_id")
        tables = self.connection.execute("SELECT count(*) FROM sqlite_schema").get
        if tables == 0 and found_id == 0:
            self.is_new = True
            return
        if found_id != kind.application_id:
            raise StoreError(
                f"cannot open {name}: it is an SQLite database of another kind "
                f"(application_id {found_id}, expected {kind.application_id})",
                hint="move it away or give another --data-dir",
            )
        if found_format != kind.format:
            raise StoreError(
                f"cannot open {name}: it has format {found_format}, "
                f"this program knows format {kind.format}",
                hint="use the version of TaskSprint that wrote it, or a newer one",
            )
        found = _declarations(self.connection)
        for table, declaration in _declarations_of(kind.schema).items():
            if found.get(table) != declaration:
                what = f"table {table!r} isn't declared as it was made"
                raise damaged_store(self.path, kind, what)

    def _set_up(self, fill: Callable[[Cursor], None] | None) -> None:
        name = f"{self.kind.what} {str(self.path)!r}"
        if self.connection.readonly("main"):
            raise StoreError(
                f"cannot write {name}: permission denied",
                hint="make the file and its directory writable for this user",
            )
        busy_ms = self._settings.store_busy_timeout_ms
        # fullfsync: on macOS a plain fsync leaves the data in the drive's cache.
        for pragma, wanted in (
            ("page_size", self.kind.page_bytes),
            ("auto_vacuum", self.kind.auto_vacuum),
            ("journal_mode", "wal"),
            ("synchronous", self.kind.synchronous),
            ("foreign_keys", 1),
            ("busy_timeout", busy_ms),
            ("fullfsync", int(self.kind.synchronous >= 2)),
            ("journal_size_limit", 2 * self._settings.wal_bytes_max),
            ("wal_autocheckpoint", 0),
            ("cache_size", -_CACHE_KIB),
        ):
            self.connection.pragma(pragma, wanted)
            found = self._pragma(pragma)
            if found != wanted:
                raise StoreError(
                    f"{name} runs with {pragma} {found!r}, expected {wanted!r}",
                    hint="data directories must be on a local file system",
                )
        if self.is_new:
            # One transaction: a crash leaves an empty file or a whole one.
            with self.connection:
                self.connection.execute(self.kind.schema)
                if fill is not None:
                    fill(self.connection.cursor())
                self.connection.pragma("application_id", self.kind.application_id)
                self.connection.pragma("user_version", self.kind.format)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[apsw.Cursor]:
        """Make everything in the block durable at its end, or nothing of it.

        Raises:
            StoreError: It was not written, and is as it was.
        """
        cursor = self.cursor
        try:
            cursor.execute("BEGIN IMMEDIATE")
            yield cursor
            cursor.execute("COMMIT")
        except BaseException as error:
            # SQLite has ended the transaction itself after the graver errors.
            if self.connection.in_transaction:
                with contextlib.suppress(apsw.Error):  # The first error tells more.
                    cursor.execute("ROLLBACK")
            if isinstance(error, apsw.Error):
                raise _store_error(self.path, self.kind, error) from error
            raise
        self.transactions += 1

    def query(self, sql: str, bindings: Sequence[Cell] = ()) -> list[tuple[Cell, ...]]:
        """Return all rows of a question, in plain tuples."""
        with store_errors(self.path, self.kind):
            found: list[tuple[Any, ...]] = self.connection.execute(sql, bindings).fetchall()
            return found

    def iterate(self, sql: str, bindings: Sequence[Cell] = ()) -> Iterator[tuple[Cell, ...]]:
        """Yield the rows of a question one after the other."""
        with store_errors(self.path, self.kind):
            rows: Iterable[tuple[Any, ...]] = self.connection.execute(sql, bindings)
            yield from rows

    def _written_pages(self) -> int:
        # Not a hook on the commit: SQLite would call it without Python's global lock.
        # Getting the lock back is the expensive part.
        return self.connection.status(apsw.SQLITE_DBSTATUS_CACHE_WRITE)[0]

    @property
    def wal_bytes(self) -> int:
        """Bytes that were written to the write-ahead log since the last checkpoint."""
        return (self._written_pages() - self._copied_pages) * self._page_bytes

    @property
    def checkpoint_is_due(self) -> bool:
        """Whether a quiet moment should be used for a checkpoint."""
        return self.wal_bytes >= self._settings.wal_idle_bytes

    def checkpoint_if_due(self) -> bool:
        """Checkpoint if the log is so long that even a busy owner must; say if so."""
        if self.wal_bytes < self._settings.wal_bytes_max:
            return False
        self.checkpoint()
        return True

    def checkpoint(self) -> bool:
        """Copy the write-ahead log into the file; the next commit begins it anew.

        Another program may be reading the file, and so keep part of the log from being
        copied. That part is left for the next time.

        Returns:
            Whether all of it was copied.
        """
        with store_errors(self.path, self.kind):
            pages, copied = self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        # Even if a reader kept it from being complete: try again after as much again.
        self._copied_pages = self._written_pages()
        return pages == copied

    @property
    def free_bytes(self) -> int:
        """Bytes of the file that hold nothing."""
        return int(self._pragma("freelist_count")) * self._page_bytes

    def shrink(self, bytes_max: int) -> None:
        """Let the file end earlier by up to so many bytes; after the next checkpoint it does."""
        with store_errors(self.path, self.kind):
            pages = bytes_max // self._page_bytes
            self.connection.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()

    def close(self) -> None:
        """Close the file; the last one to do so folds the log into it, if it can."""
        with store_errors(self.path, self.kind):
            self.connection.close()

    def close_whole(self) -> None:
        """Close a file that will get another name: then all its data is in it, on the disk.

        SQLite itself says nothing if it can't fold the log into a file that it closes.

        Raises:
            StoreError: Part of it is in the write-ahead log only.
        """
        is_whole = self.checkpoint()
        self.close()
        if not is_whole or self.path.with_name(f"{self.path.name}-wal").exists():
            raise StoreError(
                f"{self.kind.what} {str(self.path)!r} is in use by another program",
                hint="end that program, and try again",
            )
