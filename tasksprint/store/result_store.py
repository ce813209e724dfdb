"""Results of a client's tasks: `results.db`, and files for large values beside it.

Keeps results (manifest and values), the output of nodes, and small facts about the client
itself. `synchronous=NORMAL`: a commit survives a kill of the process. After a power cut the
last moments may be missing. Such results count as lost, and the cluster makes them again. So no
task waits for a disk.

Values up to 64 KiB stand in their row, larger ones in files (value_files.py). Most files are
written before their result is put, piece by piece and by other threads. Dropped rows go at
once, their files one after the other behind the commits. In quiet moments the database gives
free pages back to the disk.

A damaged database ends nobody: its whole rows go into a new one (result_repair.py), and
`on_rebuilt` is told of the damage and of the results that are still there. Doesn't know tasks,
jobs or the network; to be used by one thread.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tasksprint.errors import StoreDamaged
from tasksprint.settings import Settings
from tasksprint.store.database import Cell, Cursor, Database, DirectoryLock
from tasksprint.store.many_rows import Upsert
from tasksprint.store.result_reader import FILE, KIND, ResultReader, cell_int
from tasksprint.store.result_records import (
    ROW_VALUE_BYTES_MAX,
    BoundedText,
    FileValue,
    LogText,
    Result,
    ResultCommit,
)
from tasksprint.store.result_repair import build_anew, fill, open_damaged
from tasksprint.store.value_files import ValueFiles

__all__ = ["HeldName", "ResultReader", "ResultStore"]

ResultT = TypeVar("ResultT")
HeldName = tuple[int, int, str]  # job, tid, result digest

_LOCK = "results.lock"
# Files that one piece of upkeep deletes: a few milliseconds.
_FILES_PER_PIECE = 8
# Free pages up to this are left to new values; one piece of upkeep gives back so many bytes.
_FREE_BYTES_KEPT = 1024 * 1024
_SHRINK_BYTES = 2 * 1024 * 1024
_UPSERT_RESULTS = Upsert("results", ("job", "tid"), ("digest", "manifest", "bytes"))
_UPSERT_VALUES = Upsert(
    "result_values", ("job", "tid", "key"), ("kind", "size", "digest", "data", "file")
)
_UPSERT_LOGS = Upsert("logs", ("job", "tid", "attempt"), ("head", "tail", "left_out"))


class ResultStore:
    """The open store of one client; `open` makes or opens it.

    `reader` answers questions on the same connection, in order with what is written.
    """

    def __init__(
        self, database: Database, files: ValueFiles, lock: DirectoryLock, settings: Settings
    ) -> None:
        self._database = database
        self.files = files
        self._lock = lock
        self._settings = settings
        self.reader = ResultReader(database)
        # Called when damage made a new database necessary, with the damage and the rest.
        self.on_rebuilt: Callable[[str, list[HeldName]], object] = _ignore
        ((identity,),) = database.query("SELECT identity FROM header")
        assert isinstance(identity, str)
        self.identity = identity  # random, made with the directory
        self._may_shrink = True
        self._named: set[int] = set()  # files that rows name
        self._garbage, lost = self._compare_files()
        self._total_bytes = self.reader.total_bytes()
        # For people: the damage found when the store was opened, and its cost.
        self.found_at_start = [
            f"job={job} tid={tid} its result is dropped: a file of it is gone or too short"
            for job, tid in lost
        ]

    def _compare_files(self) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the files that no row names; drop the results whose files aren't whole."""
        unnamed = self.files.take_found()
        lost: dict[tuple[int, int], None] = {}
        for number, size, job, tid in self.reader.files():
            self._named.add(number)
            if unnamed.pop(number, None) != size:
                lost[job, tid] = None
        garbage = list(unnamed)
        if lost:
            with self._database.transaction() as cursor:
                dropped, _ = _drop_tasks(cursor, list(lost))
            garbage += dropped
            self._named.difference_update(dropped)
        return garbage, list(lost)

    @classmethod
    def open(
        cls,
        data_dir: Path,
        *,
        now_ms: int,
        identity: str | None = None,
        settings: Settings | None = None,
    ) -> ResultStore:
        """Make or open the store in a directory.

        Args:
            data_dir: Made if it isn't there.
            now_ms: Wall time, kept for people as the time of making.
            identity: For a new store; by default random. For simulations.
            settings: Lock time, sizes, and how much of a log is kept.

        Raises:
            SettingsError: In use by another process.
            StoreError: It can't be made, opened, written, or trusted.
        """
        settings = settings or Settings()
        identity = identity or secrets.token_hex(16)
        lock = DirectoryLock(data_dir, _LOCK)
        try:
            try:
                return cls._open(data_dir, lock, settings, identity, now_ms)
            except StoreDamaged as error:
                path = data_dir / FILE
                build_anew(open_damaged(path, settings), path, settings, identity, now_ms)
                store = cls._open(data_dir, lock, settings, identity, now_ms)
                left = len(store.reader.held())
                store.found_at_start.insert(0, f"{error.args[0]}; {left} results are left")
                return store
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _open(
        cls, data_dir: Path, lock: DirectoryLock, settings: Settings, identity: str, now_ms: int
    ) -> ResultStore:
        files = ValueFiles(data_dir)
        path = data_dir / FILE
        database = Database(
            path, KIND, settings, fill=lambda cursor: fill(cursor, identity, now_ms)
        )
        try:
            return cls(database, files, lock, settings)
        except BaseException:
            database.close()
            raise

    def ask(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        """Return `function(self, *arguments)`; if it meets damage, once more after a repair.

        Raises:
            StoreError: The repair failed.
        """
        try:
            return function(self, *arguments)
        except StoreDamaged as error:
            self._rebuild(error)
            return function(self, *arguments)

    def _rebuild(self, error: StoreDamaged) -> None:
        path = self._database.path
        build_anew(self._database, path, self._settings, self.identity, 0)
        self._database = Database(path, KIND, self._settings)
        self.reader = ResultReader(self._database)
        named = {number for number, *_ in self.reader.files()}
        # (Some files without a name there belong to values that are yet to be put.)
        self._garbage += [number for number in self._named if number not in named]
        self._named = named
        self._total_bytes = self.reader.total_bytes()
        self.on_rebuilt(str(error.args[0]), self.reader.held())

    @property
    def path(self) -> Path:
        """The file."""
        return self._database.path

    @property
    def transactions(self) -> int:
        """How many transactions were committed since it was opened, but for staging."""
        return self._database.transactions

    @property
    def total_bytes(self) -> int:
        """The sizes of all values held, together."""
        return self._total_bytes

    # --- results ---

    def commit_all(self, commits: Sequence[ResultCommit]) -> None:
        """Keep everything from several commits, in order, in one transaction.

        If a result is held already, it stays if the digest is the same, and is replaced if not.
        A node's output is added to the earlier output of the same attempt. If both together
        exceed `Settings.log_bytes_per_attempt_max`, the first and the last half of that stay.

        Raises:
            StoreError: Nothing of it is kept.
        """
        self.ask(ResultStore._commit_all, commits)

    def _commit_all(self, commits: Sequence[ResultCommit]) -> None:
        results: dict[tuple[int, int], Result] = {}
        garbage: list[int] = []
        for result in (result for each in commits for result in each.results):
            garbage += _files_of(results.pop((result.job, result.tid), None))
            results[result.job, result.tid] = result
        named: list[int] = []
        written: list[int] = []  # of the named ones, those that were made here
        new_bytes = dropped_bytes = 0
        try:
            with self._database.transaction() as cursor:
                replaced = []
                for name, digest in _find_held(cursor, results):
                    if results[name].digest == digest:
                        garbage += _files_of(results.pop(name))
                    else:
                        replaced.append(name)
                if replaced:
                    dropped, dropped_bytes = _drop_tasks(cursor, replaced)
                    garbage += dropped
                rows: list[Cell] = []
                values: list[Cell] = []
                for (job, tid), result in results.items():
                    size = 0
                    for value in result.values:
                        content, number, data = value.content, None, None
                        size += value.size
                        if isinstance(content, FileValue):
                            assert content.digest == value.digest, "the file holds this value"
                            number = content.number
                            named.append(number)
                        elif len(content) > ROW_VALUE_BYTES_MAX:
                            number = self.files.write(content).number
                            written.append(number)
                        else:
                            data = content
                        values += (job, tid, value.key, value.kind, value.size)
                        values += (value.digest, data, number)
                    rows += (job, tid, result.digest, result.manifest, size)
                    new_bytes += size
                _UPSERT_RESULTS.run(cursor, rows)
                _UPSERT_VALUES.run(cursor, values)
                self._write_logs(cursor, [log for each in commits for log in each.logs])
        except BaseException:
            self._garbage += written
            raise
        self._named.update(named, written)
        self._dropped(garbage, dropped_bytes, may_shrink=bool(replaced))
        self._total_bytes += new_bytes

    def _dropped(self, files: list[int], size: int, *, may_shrink: bool = True) -> None:
        self._garbage += files
        self._named.difference_update(files)
        self._total_bytes -= size
        self._may_shrink = self._may_shrink or may_shrink

    def drop_tasks(self, job: int, tids: Iterable[int]) -> None:
        """Forget the results of some tasks; it is no error if one isn't held."""
        names = [(job, tid) for tid in tids]
        self.ask(ResultStore._drop_tasks, names)

    def _drop_tasks(self, names: list[tuple[int, int]]) -> None:
        with self._database.transaction() as cursor:
            files, size = _drop_tasks(cursor, names)
        self._dropped(files, size)

    def drop_job(self, job: int, *, keep: Iterable[int] = (), with_logs: bool) -> None:
        """Forget the results of a job, but for some tasks', and perhaps its nodes' output."""
        self.ask(ResultStore._drop_job, job, sorted(set(keep)), with_logs)

    def _drop_job(self, job: int, keep: list[int], with_logs: bool) -> None:
        with self._database.transaction() as cursor:
            files, size = [], 0
            first = 0
            for kept in [*keep, 2**62]:
                if kept > first:
                    of_range, dropped = _drop_where(
                        cursor, "job = ? AND tid >= ? AND tid < ?", (job, first, kept)
                    )
                    files += of_range
                    size += dropped
                first = kept + 1
            if with_logs:
                cursor.execute("DELETE FROM logs WHERE job = ?", (job,))
        self._dropped(files, size)

    def discard(self, value: FileValue) -> None:
        """Delete the file of a value that is in no result, and will not be put."""
        self._garbage.append(value.number)

    # --- what nodes print ---

    def _write_logs(self, cursor: Cursor, logs: list[LogText]) -> None:
        texts: dict[tuple[int, int, int], BoundedText] = {}
        for log in logs:
            name = (log.job, log.tid, log.attempt)
            text = texts.get(name)
            if text is None:
                found = cursor.execute(
                    "SELECT head, tail, left_out FROM logs"
                    " WHERE job = ? AND tid = ? AND attempt = ?",
                    name,
                ).fetchone()
                text = BoundedText() if found is None else BoundedText(*found)
            texts[name] = text.add(log.text, self._settings.log_bytes_per_attempt_max)
        cells: list[Cell] = []
        for name, text in texts.items():
            cells += (*name, text.head, text.tail, text.left_out)
        _UPSERT_LOGS.run(cursor, cells)

    # --- facts ---

    def get_fact(self, name: str) -> str | None:
        """Return the fact that was set under a name, or None."""
        found = self._database.query("SELECT value FROM facts WHERE name = ?", (name,))
        return str(found[0][0]) if found else None

    def set_fact(self, name: str, value: str) -> None:
        """Keep a small text under a name."""
        with self._database.transaction() as cursor:
            cursor.execute(
                "INSERT INTO facts VALUES (?, ?)"
                " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                (name, value),
            )

    # --- upkeep ---

    def checkpoint_if_due(self) -> bool:
        """Checkpoint if the write-ahead log is very long; delete some files.

        Some even if others wait: else a busy client would only ever grow.
        """
        if self._garbage:
            self._collect()
        return self.ask(_checkpoint_if_due)

    @property
    def idle_work_is_due(self) -> bool:
        """Whether a quiet moment should be used for `do_idle_work`."""
        return (
            bool(self._garbage) or self._may_shrink or self._database.checkpoint_is_due
        )

    def do_idle_work(self) -> None:
        """Delete some files, copy the write-ahead log, or give free pages to the disk."""
        if self._garbage:
            self._collect()
        else:
            self.ask(ResultStore._tidy)

    def _tidy(self) -> None:
        database = self._database
        if not self._may_shrink:
            database.checkpoint()
            return
        free_bytes = database.free_bytes
        if free_bytes > _FREE_BYTES_KEPT:
            database.shrink(_SHRINK_BYTES)
            database.checkpoint_if_due()
            if database.free_bytes < free_bytes:
                return
        self._may_shrink = False
        database.checkpoint()  # Only this makes the file shorter.

    def _collect(self) -> None:
        for number in self._garbage[-_FILES_PER_PIECE:]:
            self.files.remove(number)
        del self._garbage[-_FILES_PER_PIECE:]

    @property
    def failure(self) -> BaseException | None:
        """Return None: a write that fails is as if it had never been tried."""
        return None

    def close(self) -> None:
        """Close the file and give the directory free."""
        try:
            self._database.close()
        finally:
            self._lock.release()


def _ignore(damage: str, left: list[HeldName]) -> None:
    pass


def _checkpoint_if_due(store: ResultStore) -> bool:
    return store._database.checkpoint_if_due()


def _files_of(result: Result | None) -> list[int]:
    values = result.values if result is not None else ()
    return [value.content.number for value in values if isinstance(value.content, FileValue)]


def _find_held(
    cursor: Cursor, names: Iterable[tuple[int, int]]
) -> list[tuple[tuple[int, int], str]]:
    """Return the digests of those results that are held."""
    names = list(names)
    found: list[tuple[tuple[int, int], str]] = []
    for first in range(0, len(names), 100):
        part = names[first : first + 100]
        for job, tid, digest in cursor.execute(
            "SELECT job, tid, digest FROM results WHERE (job, tid) IN"
            f" (VALUES {','.join(['(?,?)'] * len(part))})",
            [number for name in part for number in name],
        ):
            found.append(((cell_int(job), cell_int(tid)), str(digest)))
    return found


def _drop_tasks(cursor: Cursor, names: Sequence[tuple[int, int]]) -> tuple[list[int], int]:
    files, size = [], 0
    for first in range(0, len(names), 100):
        part = names[first : first + 100]
        of_part, dropped = _drop_where(
            cursor,
            f"(job, tid) IN (VALUES {','.join(['(?,?)'] * len(part))})",
            [number for name in part for number in name],
        )
        files += of_part
        size += dropped
    return files, size


def _drop_where(cursor: Cursor, condition: str, bindings: Sequence[Cell]) -> tuple[list[int], int]:
    """Delete rows; return the files that they named, and the bytes dropped."""
    size = cursor.execute(
        f"SELECT coalesce(sum(bytes), 0) FROM results WHERE {condition}", bindings
    ).get
    files = cursor.execute(
        f"SELECT file FROM result_values WHERE file IS NOT NULL AND {condition}", bindings
    ).fetchall()
    cursor.execute(f"DELETE FROM result_values WHERE {condition}", bindings)
    cursor.execute(f"DELETE FROM results WHERE {condition}", bindings)
    return [cell_int(number) for (number,) in files], cell_int(size)
