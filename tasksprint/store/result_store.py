"""What a client's tasks made, in one SQLite file: `results.db`.

Keeps results (manifest and values), what nodes printed, and small facts about the
client itself. `synchronous=NORMAL`: what was put survives a kill of the process; after a
power cut the last moments may be missing, and count as lost results, which the cluster
makes again. So no task waits for a disk.

Values up to 64 KiB stand in their row; larger ones are blobs, cut into chunks of 1 MiB.
A blob is brought in before its result (`stage`), in many small transactions, so that a
value of 2 GiB stops nobody. Dropping is the reverse: the rows go at once, the chunks
piece by piece in quiet moments. Both times the blob stands in table `garbage`
meanwhile, so that a crash leaves nothing behind that the next start doesn't find.

Whole values are checked against their digests when they are read. Doesn't know
tasks, jobs or the network; to be used by one thread, reading by one more with a
`ResultReader` of its own.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

from tasksprint.settings import Settings
from tasksprint.store.database import Cell, Cursor, Database, DirectoryLock
from tasksprint.store.many_rows import Delete, Upsert
from tasksprint.store.result_reader import CHUNKS_PER_BLOB, FILE, KIND, ResultReader, cell_int
from tasksprint.store.result_records import (
    CHUNK_BYTES,
    ROW_VALUE_BYTES_MAX,
    BoundedText,
    LogText,
    Result,
    ResultCommit,
    StagedValue,
)

__all__ = ["ResultReader", "ResultStore", "Staging"]

_LOCK = "results.lock"
# Chunks that one piece of upkeep deletes: a few milliseconds.
_CHUNKS_PER_PIECE = 8
_UPSERT_RESULTS = Upsert("results", ("job", "tid"), ("digest", "manifest", "bytes"))
_UPSERT_VALUES = Upsert(
    "result_values", ("job", "tid", "key"), ("kind", "size", "digest", "data", "blob")
)
_UPSERT_LOGS = Upsert("logs", ("job", "tid", "attempt"), ("head", "tail", "left_out"))
_DELETE_GARBAGE = Delete("garbage", ("blob",))


class ResultStore:
    """The open store of one client; `open` makes or opens it.

    `reader` answers questions on the same connection, in order with what is written.
    """

    def __init__(self, database: Database, lock: DirectoryLock, settings: Settings) -> None:
        self._database = database
        self._lock = lock
        self._settings = settings
        self.reader = ResultReader(database)
        self._total_bytes = self.reader.total_bytes()
        ((identity, last_chunk),) = database.query(
            "SELECT identity, (SELECT coalesce(max(id), 0) FROM chunks) FROM header"
        )
        assert isinstance(identity, str)
        self.identity = identity  # random, made with the directory
        # Whatever was staged when the last process ended is garbage.
        self._garbage = [cell_int(blob) for (blob,) in database.query("SELECT blob FROM garbage")]
        # An id in `garbage` may have no chunk yet, and must not be given twice.
        self._next_blob = max([cell_int(last_chunk) // CHUNKS_PER_BLOB, *self._garbage]) + 1

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
        lock = DirectoryLock(data_dir, _LOCK)
        try:
            database = Database(
                data_dir / FILE,
                KIND,
                settings,
                fill=lambda cursor: _fill(cursor, identity or secrets.token_hex(16), now_ms),
            )
            try:
                return cls(database, lock, settings)
            except BaseException:
                database.close()
                raise
        except BaseException:
            lock.release()
            raise

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

    def put_results(self, results: Sequence[Result]) -> None:
        """Keep several results in one transaction.

        One that is held already stays if the digest is the same, and is replaced if not.

        Raises:
            StoreError: None of them is kept.
        """
        self.commit_all((ResultCommit(results=tuple(results)),))

    def commit_all(self, commits: Sequence[ResultCommit]) -> None:
        """Keep all that several commits bring, in order, in one transaction."""
        results: dict[tuple[int, int], Result] = {}
        garbage: list[int] = []
        for result in (result for each in commits for result in each.results):
            earlier = results.pop((result.job, result.tid), None)
            garbage += _staged_blobs(earlier)
            results[result.job, result.tid] = result
        adopted: list[int] = []
        new_bytes = dropped_bytes = 0
        with self._database.transaction() as cursor:
            replaced = []
            for name, digest in _find_held(cursor, results):
                if results[name].digest == digest:
                    garbage += _staged_blobs(results.pop(name))
                else:
                    replaced.append(name)
            if replaced:
                dropped, dropped_bytes = _drop_tasks(cursor, replaced)
                garbage += dropped
            rows: list[Cell] = []
            values: list[Cell] = []
            next_blob = self._next_blob
            for (job, tid), result in results.items():
                size = 0
                for value in result.values:
                    content, blob, data = value.content, None, None
                    size += value.size
                    if isinstance(content, StagedValue):
                        assert content.digest == value.digest, "the staged value is this one"
                        if content.size:
                            blob = content.blob
                            adopted.append(blob)
                        else:
                            # A blob without chunks would leave its id to be given again.
                            data = b""
                            garbage.append(content.blob)
                    elif len(content) > ROW_VALUE_BYTES_MAX:
                        blob, next_blob = next_blob, next_blob + 1
                        _write_chunks(cursor, blob, content)
                    else:
                        data = content
                    values += (job, tid, value.key, value.kind, value.size)
                    values += (value.digest, data, blob)
                rows += (job, tid, result.digest, result.manifest, size)
                new_bytes += size
            _UPSERT_RESULTS.run(cursor, rows)
            _UPSERT_VALUES.run(cursor, values)
            _DELETE_GARBAGE.run(cursor, list(adopted))
            self._write_logs(cursor, [log for each in commits for log in each.logs])
        self._next_blob = next_blob
        self._garbage += garbage
        self._total_bytes += new_bytes - dropped_bytes

    def drop_tasks(self, job: int, tids: Iterable[int]) -> None:
        """Forget the results of some tasks; those that aren't held are no error."""
        with self._database.transaction() as cursor:
            blobs, size = _drop_tasks(cursor, [(job, tid) for tid in tids])
        self._garbage += blobs
        self._total_bytes -= size

    def drop_job(self, job: int, *, keep: Iterable[int] = (), with_logs: bool) -> None:
        """Forget the results of a job, but for some tasks', and perhaps what was printed."""
        with self._database.transaction() as cursor:
            garbage, size = [], 0
            first = 0
            for kept in [*sorted(set(keep)), 2**62]:
                if kept > first:
                    blobs, dropped = _drop_where(
                        cursor, "job = ? AND tid >= ? AND tid < ?", (job, first, kept)
                    )
                    garbage += blobs
                    size += dropped
                first = kept + 1
            if with_logs:
                cursor.execute("DELETE FROM logs WHERE job = ?", (job,))
        self._garbage += garbage
        self._total_bytes -= size

    # --- staging ---

    def stage(self) -> Staging:
        """Begin to bring in a value of any size, before its result is put."""
        blob = self._next_blob
        self._next_blob += 1
        with self._database.transaction() as cursor:
            cursor.execute("INSERT INTO garbage VALUES (?)", (blob,))
        return Staging(self, self._database, blob)

    def abandon(self, staged: StagedValue) -> None:
        """Forget a staged value whose result will not be put."""
        self._garbage.append(staged.blob)

    # --- what nodes print ---

    def put_log(self, job: int, tid: int, attempt: int, text: bytes) -> None:
        """Keep what a node printed during an attempt, after what was kept before.

        Of more than `Settings.log_bytes_per_attempt_max` the first and the last half stay.
        """
        self.commit_all((ResultCommit(logs=(LogText(job, tid, attempt, text),)),))

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
        """Return what was set under a name, or None."""
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
        """Checkpoint if the write-ahead log is very long; delete a piece of garbage.

        A piece even if others wait: else a busy client would only ever grow its file.
        """
        if self._garbage:
            self._collect()
        return self._database.checkpoint_if_due()

    @property
    def idle_work_is_due(self) -> bool:
        """Whether a quiet moment should be used for `do_idle_work`."""
        return bool(self._garbage) or self._database.checkpoint_is_due

    def do_idle_work(self) -> None:
        """Delete a piece of garbage, or copy the write-ahead log into the file."""
        if self._garbage:
            self._collect()
        else:
            self._database.checkpoint()

    def _collect(self) -> None:
        blob = self._garbage[-1]
        first = blob * CHUNKS_PER_BLOB
        with self._database.transaction() as cursor:
            cursor.execute(
                "DELETE FROM chunks WHERE id IN (SELECT id FROM chunks"
                " WHERE id >= ? AND id < ? ORDER BY id LIMIT ?)",
                (first, first + CHUNKS_PER_BLOB, _CHUNKS_PER_PIECE),
            )
            is_done = self._database.connection.changes() < _CHUNKS_PER_PIECE
            if is_done:
                cursor.execute("DELETE FROM garbage WHERE blob = ?", (blob,))
        if is_done:
            self._garbage.pop()

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


class Staging:
    """A value that is being brought into a store, piece by piece.

    Each full chunk is written when it is full; nobody waits for the whole. To be used
    on the store's thread. Forgotten ones are garbage after the next start.
    """

    def __init__(self, store: ResultStore, database: Database, blob: int) -> None:
        self._store = store
        self._database = database
        self._blob = blob
        self._chunks = 0
        self._rest = bytearray()  # Invariant: less than a chunk.
        self._digest = hashlib.sha256()
        self.size = 0

    def append(self, data: bytes) -> None:
        """Add bytes to the end.

        Raises:
            StoreError: They were not kept; abandon this value.
        """
        self._digest.update(data)
        self.size += len(data)
        self._rest += data
        full = len(self._rest) - len(self._rest) % CHUNK_BYTES
        if full:
            whole = bytes(self._rest[:full])
            del self._rest[:full]
            self._write(whole)

    def append_file(self, path: Path, *, offset: int, length: int) -> int:
        """Add a part of a file's content; return how many bytes there were.

        Raises:
            OSError: The file can't be read.
            StoreError: The bytes were not kept; abandon this value.
        """
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(length)
        self.append(data)
        return len(data)

    def _write(self, data: bytes) -> None:
        with self._database.transaction() as cursor:
            _write_chunks(cursor, self._blob, data, first_number=self._chunks)
        self._chunks += -(-len(data) // CHUNK_BYTES)

    def finish(self) -> StagedValue:
        """Write what is left and return the value, to be put with its result."""
        if self._rest:
            self._write(bytes(self._rest))
            self._rest.clear()
        return StagedValue(self._blob, self.size, self._digest.hexdigest())

    def abandon(self) -> None:
        """Forget it."""
        self._store.abandon(StagedValue(self._blob, 0, ""))


def _fill(cursor: Cursor, identity: str, now_ms: int) -> None:
    cursor.execute("INSERT INTO header VALUES (1, ?, ?)", (identity, now_ms))


def _staged_blobs(result: Result | None) -> list[int]:
    values = result.values if result is not None else ()
    return [value.content.blob for value in values if isinstance(value.content, StagedValue)]


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


def _write_chunks(cursor: Cursor, blob: int, data: bytes, *, first_number: int = 0) -> None:
    view = memoryview(data)
    for number, first in enumerate(range(0, len(data), CHUNK_BYTES), first_number):
        assert number < CHUNKS_PER_BLOB, "a value has 4 GiB at most"
        cursor.execute(
            "INSERT INTO chunks VALUES (?, ?)",
            (blob * CHUNKS_PER_BLOB + number, view[first : first + CHUNK_BYTES]),
        )


def _drop_tasks(cursor: Cursor, names: Sequence[tuple[int, int]]) -> tuple[list[int], int]:
    garbage, size = [], 0
    for first in range(0, len(names), 100):
        part = names[first : first + 100]
        blobs, dropped = _drop_where(
            cursor,
            f"(job, tid) IN (VALUES {','.join(['(?,?)'] * len(part))})",
            [number for name in part for number in name],
        )
        garbage += blobs
        size += dropped
    return garbage, size


def _drop_where(cursor: Cursor, condition: str, bindings: Sequence[Cell]) -> tuple[list[int], int]:
    """Delete rows, put their blobs into the garbage; return those and the bytes dropped."""
    size = cursor.execute(
        f"SELECT coalesce(sum(bytes), 0) FROM results WHERE {condition}", bindings
    ).get
    blobs = cursor.execute(
        "INSERT INTO garbage SELECT blob FROM result_values"
        f" WHERE blob IS NOT NULL AND {condition} RETURNING blob",
        bindings,
    ).fetchall()
    cursor.execute(f"DELETE FROM result_values WHERE {condition}", bindings)
    cursor.execute(f"DELETE FROM results WHERE {condition}", bindings)
    return [cell_int(blob) for (blob,) in blobs], cell_int(size)
