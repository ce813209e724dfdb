"""The number of a replica's last durable write, in a file beside its database.

A write-ahead log can be removed, emptied or spoiled. The database then opens without a word, as
it was at its last checkpoint. So the number of the last durable write (consensus/marks.py) also
stands in a small file, `replica.durable`. It is written after each commit that raises it. A
database that ends below it has lost writes, and somebody may rely on these.

The file isn't synced: that would double the cost of a commit. After a kill it is exact. After a
power cut it may name an earlier write, or nothing, but never a write that wasn't durable.

`LeftLog` tells what the log itself shows. It counts frames behind the point up to which SQLite
could read the log: those that belong to it (they carry the salts of its header) and end a
transaction. A log that is merely short has at most one, of the transaction that a crash met.

Source: https://www.sqlite.org/walformat.html, sections 1.2.3 (mxFrame), 2.1 and 2.2.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from zlib import crc32

__all__ = ["MARK_FILE", "DurableMark", "LeftLog", "find_doubts"]

MARK_FILE = "replica.durable"

_MARK = struct.Struct("<QI")  # the number, and its CRC-32

_LOG_HEADER = struct.Struct(">4I8s8s")  # magic, format, page size, sequence, salts, checksum
_LOG_MAGICS = (0x377F0682, 0x377F0683)
_FRAME_HEADER = struct.Struct(">II8s8s")  # page, pages after a commit or 0, salts, checksum
_INDEX_FRAMES = struct.Struct("=16xI")  # mxFrame, in the byte order of the machine


class DurableMark:
    """The file of one replica; to be used by the owner of its store."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / MARK_FILE
        self._file = -1  # open from the first write on
        self.number = self._read()  # of the last write that was reported; 0: unknown

    def _read(self) -> int:
        try:
            data = self._path.read_bytes()
        except OSError:
            return 0  # It only adds to what the database says about itself.
        if len(data) != _MARK.size:
            return 0
        number, checksum = _MARK.unpack(data)
        return int(number) if crc32(data[:8]) == checksum else 0

    def write(self, number: int) -> None:
        """Note that the write of this number, and all before it, are durable."""
        if number != self.number:
            self.number = number
            data = number.to_bytes(8, "little")
            try:
                if self._file < 0:
                    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
                    self._file = os.open(self._path, flags, 0o600)
                os.pwrite(self._file, _MARK.pack(number, crc32(data)), 0)
            except OSError:
                pass  # If the disk is too full for these bytes, the next commit says so.

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class LeftLog:
    """A database's write-ahead log as the last process left it.

    Make it before the database is opened: SQLite takes unreadable frames for free space. Close
    it after the database. When a process closes a file once, the system gives up all locks that
    the process has on it, also those of SQLite on its index. Another process, `sqlite3` say,
    would then begin the index anew under our feet, and the kernel would end us (SIGBUS).

    Source: https://www.sqlite.org/howtocorrupt.html, section 2.2.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._index = -1  # open once it was read
        try:
            self._data = database.with_name(f"{database.name}-wal").read_bytes()
        except OSError:
            self._data = b""  # There is none, mostly: the database was closed in good order.

    def damage(self, *, is_new: bool) -> str | None:
        """Return the fault of the log; None: nothing that it shows by itself.

        Args:
            is_new: The database, open by now, was found to be empty.
        """
        data, self._data = self._data, b""
        if not data:
            return None
        header = _LOG_HEADER.unpack_from(data) if len(data) >= _LOG_HEADER.size else None
        if header is None or header[0] not in _LOG_MAGICS or not _is_page_size(header[2]):
            return "its write-ahead log has no valid beginning"
        frames = 0 if is_new else self._readable_frames()
        if frames is None:
            return None
        salts, frame_bytes = header[4], _FRAME_HEADER.size + header[2]
        commits = 0
        for start in range(_LOG_HEADER.size + frames * frame_bytes, len(data), frame_bytes):
            if len(data) - start >= frame_bytes:
                _, pages, found, _ = _FRAME_HEADER.unpack_from(data, start)
                commits += pages > 0 and found == salts
        if commits < 2:
            return None  # One was being written: a power cut may leave any part of it.
        return (
            f"its write-ahead log is damaged behind frame {frames}: of what follows, "
            f"{commits} transactions can't be read"
        )

    def _readable_frames(self) -> int | None:
        """Return how many frames SQLite found good, as its index says; None: unknown."""
        path = self._database.with_name(f"{self._database.name}-shm")
        try:
            self._index = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            data = os.pread(self._index, _INDEX_FRAMES.size, 0)
        except OSError:
            return None
        return int(_INDEX_FRAMES.unpack(data)[0]) if len(data) == _INDEX_FRAMES.size else None

    def close(self) -> None:
        """Close its open files; the database is closed by now."""
        if self._index >= 0:
            os.close(self._index)
            self._index = -1


def find_doubts(log: LeftLog, mark: DurableMark, *, number: int, is_new: bool) -> str | None:
    """Return why acknowledged work may be missing from a database, or None.

    Args:
        number: Of the last durable write that the database knows.
        is_new: It was empty.
    """
    damage = log.damage(is_new=is_new)
    if number >= mark.number:
        return damage
    cause = damage or "its write-ahead log was removed, emptied or cut off, or it was put back"
    return f"it ends with write {number}, but write {mark.number} was durable; {cause}"


def _is_page_size(size: int) -> bool:
    return 512 <= size <= 65_536 and size & (size - 1) == 0
