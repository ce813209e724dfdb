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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tasksprint.encoding import decode_json
from tasksprint.errors import StoreError
from tasksprint.settings import Settings
from tasksprint.store.database import Cell, Cursor, Database, Delete, DirectoryLock, Kind, Upsert
from tasksprint.store.result_records import (
    CHUNK_BYTES,
    ROW_VALUE_BYTES_MAX,
    BoundedText,
    LogText,
    Result,
    ResultCommit,
    StagedValue,
    ValueInfo,
)

__all__ = ["ResultReader", "ResultStore", "Staging"]

_FILE = "results.db"
_LOCK = "results.lock"
# The chunks of blob b have the ids from b * 4096 on: one index, and 4 GiB a blob.
_CHUNKS_PER_BLOB = 4096
# Chunks that one piece of upkeep deletes: a few milliseconds.
_CHUNKS_PER_PIECE = 8

_SCHEMA = """
CREATE TABLE header (
  one INTEGER PRIMARY KEY CHECK (one = 1), identity TEXT NOT NULL, created_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE results (
  job INTEGER NOT NULL, tid INTEGER NOT NULL, digest TEXT NOT NULL, manifest BLOB NOT NULL,
  bytes INTEGER NOT NULL, PRIMARY KEY (job, tid)
) STRICT, WITHOUT ROWID;
CREATE TABLE result_values (
  job INTEGER NOT NULL, tid INTEGER NOT NULL, key TEXT NOT NULL, kind TEXT NOT NULL,
  size INTEGER NOT NULL, digest TEXT NOT NULL, data BLOB, blob INTEGER,
  PRIMARY KEY (job, tid, key), CHECK ((data IS NULL) <> (blob IS NULL))
) STRICT, WITHOUT ROWID;
CREATE TABLE chunks (id INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT;
CREATE TABLE garbage (blob INTEGER PRIMARY KEY) STRICT;
CREATE TABLE logs (
  job INTEGER NOT NULL, tid INTEGER NOT NULL, attempt INTEGER NOT NULL,
  head BLOB NOT NULL, tail BLOB NOT NULL, left_out INTEGER NOT NULL,
  PRIMARY KEY (job, tid, attempt)
) STRICT, WITHOUT ROWID;
"""

_KIND = Kind(
    what="result store",
    application_id=0x54535253,  # "TSRS"
    format=1,
    schema=_SCHEMA,
    page_bytes=8192,  # holds rows with values of 2 KB without pages of their own
    synchronous=1,
)
_UPSERT_RESULTS = Upsert("results", ("job", "tid"), ("digest", "manifest", "bytes"))
_UPSERT_VALUES = Upsert(
    "result_values", ("job", "tid", "key"), ("kind", "size", "digest", "data", "blob")
)
_UPSERT_LOGS = Upsert("logs", ("job", "tid", "attempt"), ("head", "tail", "left_out"))
_DELETE_GARBAGE = Delete("garbage", ("blob",))


class ResultReader:
    """The questions to a client's file, over a connection of its own or the writer's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, data_dir: Path, *, settings: Settings | None = None) -> ResultReader:
        """Open a second, read-only connection to a directory that a store has open.

        Raises:
            StoreError: There is none, or it can't be read.
        """
        database = Database(data_dir / _FILE, _KIND, settings or Settings(), is_read_only=True)
        return cls(database)

    def read_manifest(self, job: int, tid: int) -> bytes | None:
        """Return the manifest of a result, or None if it isn't held."""
        found = self._database.query(
            "SELECT manifest FROM results WHERE job = ? AND tid = ?", (job, tid)
        )
        return _bytes(found[0][0]) if found else None

    def value_info(self, job: int, tid: int, key: str) -> ValueInfo | None:
        """Return kind, size and digest of a value, or None if it isn't held."""
        found = self._find(job, tid, key, "NULL")
        return found[0] if found is not None else None

    def _find(
        self, job: int, tid: int, key: str, data: str
    ) -> tuple[ValueInfo, bytes | None, int | None] | None:
        for kind, size, digest, content, blob in self._database.query(
            f"SELECT kind, size, digest, {data}, blob FROM result_values"
            " WHERE job = ? AND tid = ? AND key = ?",
            (job, tid, key),
        ):
            assert isinstance(kind, str) and isinstance(size, int) and isinstance(digest, str)
            assert content is None or isinstance(content, bytes)
            assert blob is None or isinstance(blob, int)
            return ValueInfo(kind, size, digest), content, blob
        return None

    def read_value(
        self, job: int, tid: int, key: str, *, offset: int = 0, length: int | None = None
    ) -> bytes | None:
        """Return a value or a part of it, or None if it isn't held.

        Args:
            offset: The first byte; beyond the end: nothing.
            length: How many bytes at most; None: up to the end.

        Raises:
            StoreError: The whole value was read and isn't what its digest says.
        """
        chunks = self.read_chunks(job, tid, key, offset=offset, length=length)
        return None if chunks is None else b"".join(chunks)

    def read_chunks(
        self, job: int, tid: int, key: str, *, offset: int = 0, length: int | None = None
    ) -> Iterator[bytes] | None:
        """Return a value or a part of it in pieces of 1 MiB at most, or None.

        Each piece is read when it is asked for; nothing is locked in between.

        Raises:
            StoreError: (while iterating) The whole value was read and isn't what its
                digest says.
            LookupError: (while iterating) It was dropped meanwhile.
        """
        found = self._find(job, tid, key, "data")
        if found is None:
            return None
        info, data, blob = found
        end = info.size if length is None else min(info.size, offset + length)
        name = f"value {key!r} of task {tid} of job {job}"
        if data is not None:
            pieces: Iterator[bytes] = iter((data[offset:end],))
        else:
            assert blob is not None, "a value stands in its row or in chunks"
            pieces = self._read_blob(blob, offset, end, name)
        if offset == 0 and end == info.size:
            pieces = self._checked(pieces, info, name)
        return pieces

    def _read_blob(self, blob: int, offset: int, end: int, name: str) -> Iterator[bytes]:
        while offset < end:
            number, skipped = divmod(offset, CHUNK_BYTES)
            part = min(end - offset, CHUNK_BYTES - skipped)
            is_whole = skipped == 0 and part == CHUNK_BYTES
            found = self._database.query(
                f"SELECT {'data' if is_whole else 'substr(data, ?, ?)'} FROM chunks WHERE id = ?",
                (*(() if is_whole else (skipped + 1, part)), blob * _CHUNKS_PER_BLOB + number),
            )
            if not found:
                raise LookupError(f"{name} was dropped while it was read")
            yield _bytes(found[0][0])
            offset += part

    def _checked(self, pieces: Iterator[bytes], info: ValueInfo, name: str) -> Iterator[bytes]:
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
            yield piece
        if digest.hexdigest() != info.digest:
            raise StoreError(
                f"result store {str(self._database.path)!r} is damaged: {name} has "
                f"SHA-256 {digest.hexdigest()}, expected {info.digest}",
                hint="check the disk; move this data directory away and start anew",
            )

    def read_small_values(
        self, wanted: Sequence[tuple[int, int, str]]
    ) -> dict[tuple[int, int, str], bytes]:
        """Return those of the wanted (job, tid, key) that are held and stand in their rows.

        Raises:
            StoreError: One isn't what its digest says.
        """
        values: dict[tuple[int, int, str], bytes] = {}
        for first in range(0, len(wanted), 100):
            part = wanted[first : first + 100]
            for job, tid, key, digest, data in self._database.query(
                "SELECT job, tid, key, digest, data FROM result_values WHERE data IS NOT NULL"
                f" AND (job, tid, key) IN (VALUES {','.join(['(?,?,?)'] * len(part))})",
                [cell for names in part for cell in names],
            ):
                assert isinstance(job, int) and isinstance(tid, int) and isinstance(key, str)
                name = f"value {key!r} of task {tid} of job {job}"
                assert isinstance(data, bytes) and isinstance(digest, str)
                info = ValueInfo("", len(data), digest)
                values[job, tid, key] = b"".join(self._checked(iter((data,)), info, name))
        return values

    def held(self) -> list[tuple[int, int, str]]:
        """Return (job, tid, result digest) of every result, in order."""
        # One row: a step for each result would want the interpreter's lock each time.
        ((text,),) = self._database.query(
            "SELECT json_group_array(json_array(job, tid, digest)) FROM results"
        )
        assert isinstance(text, str)
        return sorted((job, tid, digest) for job, tid, digest in decode_json(text.encode()))

    def total_bytes(self) -> int:
        """Return the sizes of all values held, together."""
        ((size,),) = self._database.query("SELECT coalesce(sum(bytes), 0) FROM results")
        return _int(size)

    def reusable_bytes(self) -> int:
        """Return how much of the file is free for new values: it never shrinks."""
        ((size,),) = self._database.query(
            "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size"
        )
        return _int(size)

    def read_logs(self, job: int, tid: int | None = None) -> list[LogText]:
        """Return what nodes printed for a job or one task of it, by tid and attempt."""
        return [
            LogText(
                job,
                _int(of),
                _int(attempt),
                BoundedText(_bytes(head), _bytes(tail), _int(left_out)).render(),
            )
            for of, attempt, head, tail, left_out in self._database.query(
                "SELECT tid, attempt, head, tail, left_out FROM logs WHERE job = ?"
                + (" AND tid = ?" if tid is not None else "")
                + " ORDER BY tid, attempt",
                (job,) if tid is None else (job, tid),
            )
        ]

    def close(self) -> None:
        """Close the connection."""
        self._database.close()


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
        self._garbage = [_int(blob) for (blob,) in database.query("SELECT blob FROM garbage")]
        # An id in `garbage` may have no chunk yet, and must not be given twice.
        self._next_blob = max([_int(last_chunk) // _CHUNKS_PER_BLOB, *self._garbage]) + 1

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
                data_dir / _FILE,
                _KIND,
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
        first = blob * _CHUNKS_PER_BLOB
        with self._database.transaction() as cursor:
            cursor.execute(
                "DELETE FROM chunks WHERE id IN (SELECT id FROM chunks"
                " WHERE id >= ? AND id < ? ORDER BY id LIMIT ?)",
                (first, first + _CHUNKS_PER_BLOB, _CHUNKS_PER_PIECE),
            )
            is_done = self._database.connection.changes() < _CHUNKS_PER_PIECE
            if is_done:
                cursor.execute("DELETE FROM garbage WHERE blob = ?", (blob,))
        if is_done:
            self._garbage.pop()

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
            found.append(((_int(job), _int(tid)), str(digest)))
    return found


def _write_chunks(cursor: Cursor, blob: int, data: bytes, *, first_number: int = 0) -> None:
    view = memoryview(data)
    for number, first in enumerate(range(0, len(data), CHUNK_BYTES), first_number):
        assert number < _CHUNKS_PER_BLOB, "a value has 4 GiB at most"
        cursor.execute(
            "INSERT INTO chunks VALUES (?, ?)",
            (blob * _CHUNKS_PER_BLOB + number, view[first : first + CHUNK_BYTES]),
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
    return [_int(blob) for (blob,) in blobs], _int(size)


def _bytes(cell: object) -> bytes:
    assert isinstance(cell, bytes), "the column holds bytes, by its declaration"
    return cell


def _int(cell: object) -> int:
    assert isinstance(cell, int), "the column holds integers, by its declaration"
    return cell
