"""Data directories on real files for the simulator, in which processes die.

`FileDirectory` stands beside `MemoryDirectory`, and `FileResults` beside `MemoryResults`: the
same faces, and behind them the real stores on real SQLite files.

The process that crashes isn't one of its own here, so its connection stays open. The next
life begins in a new folder, with a copy of the files as the dead process left them: the
database as it was at its last checkpoint, and the write-ahead log, which SQLite has to read. The
index of the log isn't copied, as whoever opens a database first makes it anew. After a loss of
power `replica.durable` isn't copied either: nobody has synced it.

A transaction that the crash met and lost stands there in part: the log has half of its bytes.

Not simulated: files that lack what was never synced (tests/known_bugs/test_power_loss.py). What a
store does in quiet moments takes no time here: it copies its log behind a commit. Looking for
damaged rows is left out, since it goes by the real clock.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw

from tasksprint.consensus.ballot import Ballot
from tasksprint.consensus.log_entry import LogEntry
from tasksprint.coordination.rows import TABLES, Key
from tasksprint.ids import ReplicaId, Slot
from tasksprint.settings import Settings
from tasksprint.store.database import Cell
from tasksprint.store.mirror_tables import key_names
from tasksprint.store.records import AppliedPoint, Commit
from tasksprint.store.replica_store import ReplicaStore
from tasksprint.store.result_reader import FILE
from tasksprint.store.result_store import ResultStore
from tasksprint.store.vital import DATABASE_FILE

__all__ = ["LEFT_BEHIND", "FileDirectory", "FileReplicaStore", "FileResultStore", "FileResults"]

# What the next life of a process doesn't find.
LEFT_BEHIND = ("*.lock", "*-shm", "*.db.damaged*")
_COMPARED_BYTES = 1_024
# Logs of about this size are copied, so that crashes find short ones and long ones.
_WAL_BYTES = 256 * 1024


class FileReplicaStore(ReplicaStore):
    """The real one; a process on it takes the same time as one on `MemoryReplicaStore`."""

    is_closed = False

    @property
    def idle_work_is_due(self) -> bool:
        """As `MemoryReplicaStore.idle_work_is_due`."""
        return bool(self._garbage)

    def do_idle_work(self) -> None:
        """As `MemoryReplicaStore.do_idle_work`."""
        if self._garbage:
            super().do_idle_work()

    def checkpoint_if_due(self) -> bool:
        """Checkpoint as soon as a quiet moment would be used for it."""
        if is_due := self._database.checkpoint_is_due:
            self._database.checkpoint()
        return is_due

    def close(self) -> None:
        """Close the file and give the directory free."""
        self.is_closed = True
        super().close()


class FileResultStore(ResultStore):
    """The real one, likewise."""

    is_closed = False

    @property
    def idle_work_is_due(self) -> bool:
        """As `MemoryResultStore.idle_work_is_due`."""
        return False

    def checkpoint_if_due(self) -> bool:
        """Do what a quiet moment would be used for."""
        if is_due := super().idle_work_is_due:
            super().do_idle_work()
        return is_due

    def close(self) -> None:
        """Close the file and give the directory free."""
        self.is_closed = True
        super().close()


class _Lives:
    """One folder for each life of a process on a disk."""

    def __init__(self, root: Path, database: str) -> None:
        self._root = root
        self._database = database
        self._number = 1
        self._store: Any = None  # the last one that was opened
        self._lost_power = False
        self.torn: Sequence[Commit] = ()  # what the last one was writing when it ended

    @property
    def path(self) -> Path:
        """The folder of the last life."""
        return self._root / f"life-{self._number}"

    def begin(self, settings: Settings) -> Settings:
        """Give the next process what the last one left; return the settings of its store."""
        if self._store is not None and not self._store.is_closed:
            old = self.path
            self._number += 1
            unsynced = ("*.durable",) if self._lost_power else ()
            ignore = shutil.ignore_patterns(*LEFT_BEHIND, *unsynced)
            shutil.copytree(old, self.path, ignore=ignore)
            if self.torn and self._store.failure is None:
                self._write_in_part(old)
            self._store.close()
            shutil.rmtree(old)
        self._lost_power = False
        self.torn = ()
        return replace(settings, wal_idle_bytes=_WAL_BYTES)

    def _write_in_part(self, old: Path) -> None:
        """Let the copied log have half of what writing the torn transaction changes in it."""
        name = f"{self._database}-wal"
        log = self.path / name
        before = log.read_bytes() if log.exists() else b""
        self._store.commit_all(self.torn)
        after = (old / name).read_bytes()
        changed = [
            start
            for start in range(0, len(after), _COMPARED_BYTES)
            if after[start : start + _COMPARED_BYTES] != before[start : start + _COMPARED_BYTES]
        ]
        if not changed:
            return  # Nothing in it was new.
        middle = (changed[0] + changed[-1] + _COMPARED_BYTES) // 2
        log.write_bytes(after[:middle] + before[middle:])

    def opened(self, store: Any) -> None:
        self._store = store

    def lose_power(self) -> None:
        self._lost_power = True

    def renew(self) -> None:
        """Begin with an empty folder."""
        self.close()
        self._store = None
        self._number += 1

    def close(self) -> None:
        """Close what is open."""
        if self._store is not None and not self._store.is_closed:
            self._store.close()

    def ask(self, sql: str, bindings: tuple[Cell, ...] = ()) -> list[tuple[Any, ...]]:
        """Run a statement on the disk, on a connection of its own if it must be."""
        store = self._store
        if store is not None and not store.is_closed:
            found: list[tuple[Any, ...]] = store._database.query(sql, bindings)
            return found
        path = self.path / self._database
        if not path.exists():
            return []
        with contextlib.closing(apsw.Connection(str(path))) as connection:
            return list(connection.execute(sql, bindings))


class FileDirectory:
    """As `MemoryDirectory`, on real files.

    Args:
        root: A folder for all that was ever on this disk.
    """

    def __init__(self, root: Path) -> None:
        self._lives = _Lives(root, DATABASE_FILE)
        self.content: _FileContent | None = None  # None: nothing was ever written

    def open(
        self, replica: int, *, now_ms: int, incarnation: str, settings: Settings
    ) -> FileReplicaStore:
        """Open the store as the next process does; the last one is gone."""
        settings = self._lives.begin(settings)
        store = FileReplicaStore.open(
            self._lives.path, replica, now_ms=now_ms, incarnation=incarnation, settings=settings
        )
        assert isinstance(store, FileReplicaStore)
        self._lives.opened(store)
        self.content = _FileContent(store, self._lives)
        return store

    def crash(self, *, lost_power: bool = False) -> None:
        """End the process that has it open; what was committed stays."""
        if lost_power:
            self._lives.lose_power()

    def tear(self, commits: Sequence[Commit]) -> None:
        """Let the next process find that these were being written."""
        self._lives.torn = commits

    def wipe(self) -> None:
        """Lose the disk."""
        self._lives.renew()
        self.content = None

    def close(self) -> None:
        """Close what is open, at the end of the world."""
        self._lives.close()

    def spoil_slot(self, slot: int) -> None:
        """Let an entry of the log fail its checksum."""
        self._lives.ask("UPDATE log SET checksum = checksum + 1 WHERE slot = ?", (slot,))

    def spoil_row(self, table: str, key: Key) -> None:
        """Let a row of the mirror fail its checksum."""
        where = " AND ".join(f"{name} = ?" for name in key_names(table))
        self._lives.ask(f"UPDATE {table} SET checksum = checksum + 1 WHERE {where}", key)

    def spoil_progress(self) -> None:
        """Let the row with the promise fail its checksum."""
        self._lives.ask("UPDATE progress SET checksum = checksum + 1")


class _FileContent:
    """What is on the disk, read when it is asked for."""

    def __init__(self, store: FileReplicaStore, lives: _Lives) -> None:
        self._store = store
        self._lives = lives
        self.log = _Log(lives)

    @property
    def incarnation(self) -> str:
        return self._store._header.incarnation

    @property
    def founding(self) -> bytes | None:
        return self._store._header.founding

    @property
    def promised(self) -> Ballot | None:
        return self._store._progress.promised

    @property
    def chosen_end(self) -> int:
        return self._store._progress.chosen_end

    @property
    def log_start(self) -> int:
        return self._store._progress.log_start

    @property
    def applied(self) -> AppliedPoint:
        return self._store._progress.applied

    @property
    def mirror(self) -> dict[str, dict[Key, tuple[Cell, ...]]]:
        return {table: self._rows(table) for table in TABLES}

    def _rows(self, table: str) -> dict[Key, tuple[Cell, ...]]:
        keys = key_names(table)
        names = [*keys, *(column.name for column in TABLES[table].value_columns)]
        rows = self._lives.ask(f"SELECT {','.join(names)} FROM {table} ORDER BY {','.join(keys)}")
        return {cells[: len(keys)]: cells[len(keys) :] for cells in rows}


class _Log(Mapping[int, LogEntry]):
    """The accepted values on a disk, by slot."""

    def __init__(self, lives: _Lives) -> None:
        self._lives = lives

    def __getitem__(self, slot: int) -> LogEntry:
        sql = "SELECT round, replica, value FROM log WHERE slot = ?"
        for round_, replica, value in self._lives.ask(sql, (slot,)):
            return LogEntry(Slot(slot), Ballot(round_, ReplicaId(replica)), value)
        raise KeyError(slot)

    def __iter__(self) -> Iterator[int]:
        return iter([slot for (slot,) in self._lives.ask("SELECT slot FROM log ORDER BY slot")])

    def __len__(self) -> int:
        return len([*iter(self)])


class FileResults:
    """As `MemoryResults`, on real files.

    Args:
        name: Of the disk; its first store gets this identity.
        root: A folder for all that was ever on it.
    """

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self._lives = _Lives(root, FILE)

    def open(self, *, identity: str, settings: Settings) -> FileResultStore:
        """Open the store as the next process does; the last one is gone."""
        settings = self._lives.begin(settings)
        path = self._lives.path
        store = FileResultStore.open(path, now_ms=0, identity=identity, settings=settings)
        assert isinstance(store, FileResultStore)
        self._lives.opened(store)
        return store

    def crash(self) -> None:
        """End the process that has it open; what was put stays."""

    def close(self) -> None:
        """Close what is open, at the end of the world."""
        self._lives.close()

    def names(self) -> list[tuple[int, int]]:
        """Return which results are there."""
        return self._lives.ask("SELECT job, tid FROM results ORDER BY job, tid")

    def forget(self, name: tuple[int, int]) -> None:
        """Let the disk of a process that is gone lose a result."""
        for table in ("result_values", "results"):
            self._lives.ask(f"DELETE FROM {table} WHERE job = ? AND tid = ?", name)
