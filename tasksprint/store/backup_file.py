"""A backup in one file: the rows of the mirror and the archives of jobs, with checksums.

A file is a sequence of records:

    <CRC-32 of the line's JSON, 8 hex digits> <JSON, no spaces>\\n
    content, as many bytes as the line says
    \\n

The JSON of each has `kind`, `number` (0, 1, 2 …), `bytes` and `sha256` of the content.
Then, by kind:

    backup    the first: version, cluster, origins, replica, slot, digest, rules, made_ms (wall
              time); no content
    rows      table, rows (how many); the content is JSON, [[key columns …, value columns …,
              the row's checksum], …]
    archive   the content is a job's archive, its name the SHA-256
    end       the last: whole (SHA-256 of all bytes before this record); no content

So each byte is covered. A line has its CRC-32, a content its SHA-256. The numbers show records
that are missing or came twice. The last record covers everything once more.

Knows files and rows. Doesn't know how one asks for a backup (rescue/backup.py), nor its use.
"""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tasksprint.coordination.job_rows import program_of
from tasksprint.coordination.rows import TABLES, Row
from tasksprint.coordination.state_rows import digest_row, wall_ms_of
from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import RemoteProtocolError, StoreError
from tasksprint.ids import Slot

__all__ = [
    "VERSION",
    "BackupReader",
    "BackupWriter",
    "Checked",
    "Contents",
    "Record",
    "check_backup",
]

VERSION = 1
_LINE_BYTES_MAX = 1024 * 1024  # the longest is the first: it names all former clusters
_READ_BYTES = 1024 * 1024
_CRC_DIGITS = 8


class Contents:
    """Facts about a backup, taken from its rows while they pass by."""

    def __init__(self) -> None:
        self.rows = 0
        self.jobs = 0
        self.running: set[int] = set()
        self.programs: dict[str, list[int]] = {}  # the jobs of each archive
        self.wall_ms = 0  # of the last tick; 0: there was none
        self._point: Row | None = None

    def take(self, table: str, text: bytes) -> int:
        """Look at the rows of a piece; return how many there are.

        Raises:
            RemoteProtocolError: They aren't JSON.
        """
        if table not in ("jobs", "facts"):
            count = len(decode_json(text))
            self.rows += count
            return count
        keys = len(TABLES[table].key_columns)
        end = keys + len(TABLES[table].value_columns)
        listed = decode_json(text)
        for cells in listed:
            self._take_row(Row(table, tuple(cells[:keys]), tuple(cells[keys:end])))
        self.rows += len(listed)
        return len(listed)

    def _take_row(self, row: Row) -> None:
        assert row.columns is not None
        if row.table == "jobs":
            self.jobs += 1
            if row.columns[1] == "running":
                self.running.add(int(row.key[0]))
            return
        if row.key == digest_row(Slot(0), "").key:
            self._point = row
        self.wall_ms = wall_ms_of(row) or self.wall_ms
        if (program := program_of(row)) is not None:
            job = int(str(row.key[0]).split()[1])
            self.programs.setdefault(program, []).append(job)

    def problem(self, slot: int, digest: str) -> str | None:
        """Return why these can't be all rows of the state that this names; None: they can."""
        expected = digest_row(Slot(slot), digest) if slot else None
        if self._point == expected:
            return None
        return f"the rows are of {self._point!r}, expected slot {slot} and digest {digest!r}"


@dataclass(frozen=True, slots=True)
class Record:
    """One record's line."""

    number: int
    kind: str
    fields: dict[str, Any]
    size: int  # of the content


class BackupWriter:
    """Writes records to a file that is open for writing."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._number = 0
        self._whole = hashlib.sha256()
        self.size = 0

    def add(self, kind: str, content: bytes = b"", **fields: Any) -> None:
        """Write a record."""
        head = {
            "kind": kind,
            "number": self._number,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            **fields,
        }
        line = encode_json(head)
        self._number += 1
        for data in (b"%08x " % zlib.crc32(line), line, b"\n", content, b"\n"):
            self._file.write(data)
            self._whole.update(data)
            self.size += len(data)

    def end(self) -> None:
        """Write the last record."""
        self.add("end", whole=self._whole.hexdigest())


class BackupReader:
    """Reads the records of a file, one after the other, and checks their lines.

    Raises:
        StoreError: The file can't be read, or is no backup.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self.reading():
            self._file = path.open("rb")
        self._number = 0
        self._whole = hashlib.sha256()
        self._is_damaged = False
        try:
            first = self.next()
            self.head = first.fields
            self.content(first)
            version = self.head.get("version")
            if version != VERSION:
                raise StoreError(
                    f"backup {str(path)!r} has version {version!r}, expected {VERSION}",
                    hint="use the release of TaskSprint that made it, or a later one",
                )
        except BaseException:
            self._file.close()
            raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Name this file in the errors of reading inside the block.

        Raises:
            StoreError: The operating system refuses it.
        """
        try:
            yield
        except OSError as error:
            raise StoreError(f"cannot read backup {str(self.path)!r}: {error.strerror}") from error

    def _read(self, size: int) -> bytes:
        with self.reading():
            return self._file.read(size)

    def __enter__(self) -> BackupReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def damage(self, what: str) -> StoreError:
        """Return the error for a file that isn't as it was written."""
        return StoreError(
            f"backup {str(self.path)!r} is damaged: {what}", hint="use another backup"
        )

    def next(self) -> Record:
        """Return the next record; its content must be read before the one after it.

        Raises:
            StoreError: There is none, or its line isn't as it was written.
        """
        number = self._number
        before = self._whole.copy()
        with self.reading():
            line = self._file.readline(_LINE_BYTES_MAX)
        text = line[_CRC_DIGITS + 1 : -1]
        if line != b"%08x " % zlib.crc32(text) + text + b"\n":
            if number == 0:
                raise StoreError(
                    f"{str(self.path)!r} is no backup, or its first line is damaged",
                    hint="name a file that 'tasksprint backup' made",
                )
            what = "is missing" if not line else "isn't as it was written"
            raise self.damage(f"the line of record {number} {what}")
        try:
            fields = decode_json(text)
            kind, size = str(fields["kind"]), int(fields["bytes"])
            is_next = fields["number"] == number and (kind == "backup") == (number == 0)
        except (KeyError, TypeError, ValueError, RemoteProtocolError):
            is_next = False
        if not is_next:
            raise self.damage(f"the line of record {number} is {text[:80]!r}")
        self._whole.update(line)
        self._number += 1
        if kind == "end":
            if not self._is_damaged and fields.get("whole") != before.hexdigest():
                raise self.damage("it isn't what its last record says")
            if self._read(2) != b"\n":
                raise self.damage("there is more, or less, than its last record says")
        return Record(number, kind, fields, size)

    def pieces(self, record: Record) -> Iterator[bytes]:
        """Yield the content of the record that `next` gave, and check it.

        Raises:
            StoreError: It isn't as it was written; all of it was read, and the next record
                can be.
        """
        hasher = hashlib.sha256()
        left = record.size
        while left:
            data = self._read(min(left, _READ_BYTES))
            if not data:
                self._is_damaged = True
                raise self.damage(f"it ends within {_named(record)}")
            left -= len(data)
            hasher.update(data)
            self._whole.update(data)
            yield data
        ended = self._read(1)
        self._whole.update(ended)
        if ended != b"\n" or hasher.hexdigest() != record.fields.get("sha256"):
            self._is_damaged = True
            raise self.damage(f"{_named(record)} fails its checksum")

    def content(self, record: Record) -> bytes:
        """Return the content of the record that `next` gave; raises as `pieces`."""
        return b"".join(self.pieces(record))


def _named(record: Record) -> str:
    fields = record.fields
    if record.kind == "rows":
        what = f"{fields.get('rows')} rows of table {fields.get('table')!r}"
        return f"record {record.number} ({what})"
    if record.kind == "archive":
        return f"record {record.number} (the archive {fields.get('sha256', '')[:12]}…)"
    return f"record {record.number}"


@dataclass(slots=True)
class Checked:
    """The findings of a check of a backup."""

    head: dict[str, Any]
    contents: Contents
    problems: list[str] = field(default_factory=list)
    records: int = 0
    archives: set[str] = field(default_factory=set)
    size: int = 0


def check_backup(path: Path) -> Checked:
    """Read all of a backup, and check all that can be checked; memory is bounded.

    Raises:
        StoreError: It can't be read at all, or is no backup.
    """
    with BackupReader(path) as reader:
        with reader.reading():
            size = path.stat().st_size
        checked = Checked(reader.head, Contents(), size=size)
        try:
            while (record := reader.next()).kind != "end":
                _check_content(reader, record, checked)
            checked.records = record.number + 1
        except StoreError as error:
            checked.problems.append(_words(error))
        if not checked.problems:
            _check_whole(reader, checked)
        return checked


def _check_content(reader: BackupReader, record: Record, checked: Checked) -> None:
    try:
        if record.kind == "rows":
            table, rows = record.fields["table"], record.fields["rows"]
            text = reader.content(record)
            if table not in TABLES:
                raise reader.damage(f"{_named(record)}: this release doesn't know the table")
            if checked.contents.take(table, text) != rows:
                raise reader.damage(f"{_named(record)} has another number of rows")
            return
        for _ in reader.pieces(record):
            pass
        if record.kind == "archive":
            checked.archives.add(record.fields["sha256"])
    except (StoreError, RemoteProtocolError) as error:
        checked.problems.append(_words(error))


def _check_whole(reader: BackupReader, checked: Checked) -> None:
    contents = checked.contents
    problem = contents.problem(checked.head["slot"], checked.head["digest"])
    if problem is not None:
        checked.problems.append(_words(reader.damage(problem)))
    for program, jobs in sorted(contents.programs.items()):
        running = sorted(contents.running.intersection(jobs))
        if running and program not in checked.archives:
            checked.problems.append(
                _words(reader.damage(f"it lacks the archive {program} of job {running[0]}"))
            )


def _words(error: Exception) -> str:
    """Return an error's sentence without what to do about it."""
    return error.args[0] if error.args else str(error)
