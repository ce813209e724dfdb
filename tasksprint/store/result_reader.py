"""The questions to a client's file, and what the file is.

The schema stands here because every reader depends on it; `result_store` writes by it.
Whole values are checked against their digests when they are read. To be used by one
thread; the writer's thread and another may each have a reader of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tasksprint.encoding import decode_json
from tasksprint.errors import StoreError
from tasksprint.settings import Settings
from tasksprint.store.database import Database, Kind
from tasksprint.store.result_records import CHUNK_BYTES, BoundedText, LogText, ValueInfo

__all__ = ["CHUNKS_PER_BLOB", "FILE", "KIND", "ResultReader", "cell_int"]

FILE = "results.db"
# The chunks of blob b have the ids from b * 4096 on: one index, and 4 GiB a blob.
CHUNKS_PER_BLOB = 4096

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

KIND = Kind(
    what="result store",
    application_id=0x54535253,  # "TSRS"
    format=1,
    schema=_SCHEMA,
    page_bytes=8192,  # holds rows with values of 2 KB without pages of their own
    synchronous=1,
)


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
        database = Database(data_dir / FILE, KIND, settings or Settings(), is_read_only=True)
        return cls(database)

    def read_manifest(self, job: int, tid: int) -> bytes | None:
        """Return the manifest of a result, or None if it isn't held."""
        found = self._database.query(
            "SELECT manifest FROM results WHERE job = ? AND tid = ?", (job, tid)
        )
        return cell_bytes(found[0][0]) if found else None

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
                (*(() if is_whole else (skipped + 1, part)), blob * CHUNKS_PER_BLOB + number),
            )
            if not found:
                raise LookupError(f"{name} was dropped while it was read")
            yield cell_bytes(found[0][0])
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
        return cell_int(size)

    def reusable_bytes(self) -> int:
        """Return how much of the file is free for new values: it never shrinks."""
        ((size,),) = self._database.query(
            "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size"
        )
        return cell_int(size)

    def read_logs(self, job: int, tid: int | None = None) -> list[LogText]:
        """Return what nodes printed for a job or one task of it, by tid and attempt."""
        return [
            LogText(
                job,
                cell_int(of),
                cell_int(attempt),
                BoundedText(cell_bytes(head), cell_bytes(tail), cell_int(left_out)).render(),
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


def cell_bytes(cell: object) -> bytes:
    assert isinstance(cell, bytes), "the column holds bytes, by its declaration"
    return cell


def cell_int(cell: object) -> int:
    assert isinstance(cell, int), "the column holds integers, by its declaration"
    return cell
