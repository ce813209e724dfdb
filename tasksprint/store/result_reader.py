"""The questions to a client's file, and the tables of the file.

The schema stands here because every reader depends on it; `result_store` writes by it.
Values in rows are checked against their digests when they are read. To be used by one
thread.
"""

from __future__ import annotations

from tasksprint.encoding import decode_json, value_digest
from tasksprint.errors import RemoteProtocolError, ValueSpoiled
from tasksprint.store.database import Database, Kind, damaged_store
from tasksprint.store.result_records import BoundedText, FileValue, LogText, ValueInfo

__all__ = ["FILE", "KIND", "ResultReader", "cell_bytes", "cell_int"]

FILE = "results.db"

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
  size INTEGER NOT NULL, digest TEXT NOT NULL, data BLOB, file INTEGER,
  PRIMARY KEY (job, tid, key), CHECK ((data IS NULL) <> (file IS NULL))
) STRICT, WITHOUT ROWID;
CREATE TABLE logs (
  job INTEGER NOT NULL, tid INTEGER NOT NULL, attempt INTEGER NOT NULL,
  head BLOB NOT NULL, tail BLOB NOT NULL, left_out INTEGER NOT NULL,
  PRIMARY KEY (job, tid, attempt)
) STRICT, WITHOUT ROWID;
"""

KIND = Kind(
    what="result store",
    application_id=0x54535253,  # "TSRS"
    format=2,
    schema=_SCHEMA,
    page_bytes=8192,  # holds rows with values of 2 KB without pages of their own
    synchronous=1,
    auto_vacuum=2,
)


class ResultReader:
    """The questions to a client's file, over its writer's connection."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read_manifest(self, job: int, tid: int) -> bytes | None:
        """Return the manifest of a result, or None if it isn't held."""
        found = self._database.query(
            "SELECT manifest FROM results WHERE job = ? AND tid = ?", (job, tid)
        )
        return cell_bytes(found[0][0]) if found else None

    def find_value(
        self, job: int, tid: int, key: str
    ) -> tuple[ValueInfo, bytes | FileValue] | None:
        """Return the facts about a value, and its content or the file that holds it.

        Raises:
            ValueSpoiled: It stands in its row, and doesn't have its digest.
        """
        found = self._find(job, tid, key)
        if found is None:
            return None
        info, data, number = found
        if data is None:
            assert number is not None, "a value stands in its row or in a file"
            return info, FileValue(number, info.size, info.digest)
        self._check(data, info, job, tid, key)
        return info, data

    def _find(
        self, job: int, tid: int, key: str
    ) -> tuple[ValueInfo, bytes | None, int | None] | None:
        for kind, size, digest, content, number in self._database.query(
            "SELECT kind, size, digest, data, file FROM result_values"
            " WHERE job = ? AND tid = ? AND key = ?",
            (job, tid, key),
        ):
            assert isinstance(kind, str) and isinstance(size, int) and isinstance(digest, str)
            assert content is None or isinstance(content, bytes)
            assert number is None or isinstance(number, int)
            return ValueInfo(kind, size, digest), content, number
        return None

    def _check(self, data: bytes, info: ValueInfo, job: int, tid: int, key: str) -> None:
        found = value_digest(data)
        if found != info.digest:
            raise ValueSpoiled(
                f"value {key!r} of task {tid} of job {job} in {str(self._database.path)!r} "
                f"has SHA-256 {found}, expected {info.digest}"
            )

    def held(self) -> list[tuple[int, int, str]]:
        """Return (job, tid, result digest) of every result, in order.

        Raises:
            StoreDamaged: The rows hold what no row may.
        """
        # One row: a step for each result would want the interpreter's lock each time.
        ((text,),) = self._database.query(
            "SELECT json_group_array(json_array(job, tid, digest)) FROM results"
        )
        assert isinstance(text, str)
        try:
            return sorted((job, tid, digest) for job, tid, digest in decode_json(text.encode()))
        except (RemoteProtocolError, TypeError, ValueError) as error:
            raise damaged_store(
                self._database.path, self._database.kind, "table 'results' holds no digests"
            ) from error

    def files(self) -> list[tuple[int, int, int, int]]:
        """Return (file, size, job, tid) of every value that stands in a file."""
        return [
            (cell_int(number), cell_int(size), cell_int(job), cell_int(tid))
            for number, size, job, tid in self._database.query(
                "SELECT file, size, job, tid FROM result_values WHERE file IS NOT NULL"
            )
        ]

    def total_bytes(self) -> int:
        """Return the sizes of all values held, together."""
        ((size,),) = self._database.query("SELECT coalesce(sum(bytes), 0) FROM results")
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
