"""Large values of a client, each in a file of its own in the folder `values`.

A value of a gigabyte is written and read in pieces, by any thread, and never stands in
memory as a whole. Its disk space comes back the moment it is dropped. A file has only a number:
`results.db` says which value it holds. When a store is opened, files without a name there are
deleted: a process that is gone began or fetched them.

Nothing waits for the disk here, as in the database: written bytes survive a kill of the
process. After a power cut a file may be short or hold zeros; its digest tells.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from tasksprint.errors import DiskFull, StoreError, ValueSpoiled
from tasksprint.store.result_records import CHUNK_BYTES, FileValue, checked

__all__ = ["OpenValue", "ValueFiles", "ValueWriter"]

_FOLDER = "values"
_NO_SPACE = (28, 122)  # ENOSPC, EDQUOT


class ValueFiles:
    """The folder of one client's large values."""

    def __init__(self, data_dir: Path) -> None:
        """Make the folder, or look into it.

        Raises:
            StoreError: It can't be made or read.
        """
        self.folder = data_dir / _FOLDER
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self._found = {
                int(entry.name): entry.stat().st_size
                for entry in os.scandir(self.folder)
                if entry.name.isdecimal()
            }
        except OSError as error:
            raise _store_error(self.folder, error) from error
        self._numbers = itertools.count(max(self._found, default=0) + 1)

    def take_found(self) -> dict[int, int]:
        """Return once, by number, the sizes of the files that were there at the start."""
        found, self._found = self._found, {}
        return found

    def begin(self) -> ValueWriter:
        """Begin a new value; its file is made with its first bytes."""
        return ValueWriter(self, next(self._numbers))

    def write(self, data: bytes | memoryview) -> FileValue:
        """Keep a value that is in memory.

        Raises:
            StoreError: It isn't kept, and nothing of it stays.
        """
        writer = self.begin()
        view = memoryview(data)
        for first in range(0, len(view), CHUNK_BYTES):
            writer.append((view[first : first + CHUNK_BYTES],))
        return writer.finish()

    def path(self, number: int) -> Path:
        """Return where a value stands."""
        return self.folder / str(number)

    def open(self, value: FileValue) -> OpenValue:
        """Open a value for reading; it can be read to its end even if it is removed meanwhile.

        Raises:
            ValueSpoiled: It is gone, or has another size.
        """
        path = self.path(value.number)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ValueSpoiled(f"{str(path)!r} can't be read: {error.strerror}") from error
        opened = OpenValue(path, descriptor, value)
        size = os.fstat(descriptor).st_size
        if size != value.size:
            opened.close()
            raise ValueSpoiled(f"{str(path)!r} has {size} bytes, expected {value.size}")
        return opened

    def check(self, value: FileValue) -> None:
        """Read a value to its end, and compare it with its digest.

        Raises:
            ValueSpoiled: It isn't what its digest says.
        """
        with contextlib.closing(self.open(value)) as opened:
            for _ in opened.checked_pieces():
                pass

    def remove(self, number: int) -> None:
        """Give the disk of a value back; one that is gone is no error."""
        try:
            os.unlink(self.path(number))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _store_error(self.path(number), error) from error


class ValueWriter:
    """A value that is being written, by one thread at a time.

    Until `finish` the file belongs to its writer; then to the holder of the `FileValue`.
    """

    def __init__(self, files: ValueFiles, number: int) -> None:
        self._files = files
        self._number = number
        self._digest = hashlib.sha256()
        self._descriptor = -1
        # A loop that is told to stop doesn't wait for its threads, and abandons meanwhile.
        self._lock = threading.Lock()
        self._is_over = False
        self.size = 0

    def append(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Add bytes to the end.

        Raises:
            StoreError: They were not written, and nothing of this value stays.
        """
        with self._lock:
            if not self._is_over:
                self._append(pieces)

    def _append(self, pieces: Sequence[bytes | memoryview]) -> None:
        path = self._files.path(self._number)
        try:
            if self._descriptor < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
                self._descriptor = os.open(path, flags, 0o600)
            for piece in pieces:
                self._digest.update(piece)
                self.size += len(piece)
                rest = memoryview(piece)
                while len(rest):
                    rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            self._close(is_kept=False)
            raise _store_error(path, error) from error

    def finish(self) -> FileValue:
        """Close the file, and return the value.

        Raises:
            StoreError: Nothing of it stays.
        """
        with self._lock:
            assert not self._is_over, "a value is finished once"
            if self._descriptor < 0:
                self._append(())  # An empty file is a value as well.
            self._close(is_kept=True)
        return FileValue(self._number, self.size, self._digest.hexdigest())

    def abandon(self) -> None:
        """Forget the written bytes; no more will come."""
        with self._lock:
            self._close(is_kept=False)

    def _close(self, *, is_kept: bool) -> None:
        self._is_over = True
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            if not is_kept:
                self._files.remove(self._number)


class OpenValue:
    """A value's file, open for reading by any thread."""

    def __init__(self, path: Path, descriptor: int, value: FileValue) -> None:
        self._path = path
        self._descriptor = descriptor
        self._value = value

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly so many bytes.

        Raises:
            ValueSpoiled: They can't be read.
        """
        try:
            data = os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise ValueSpoiled(
                f"{str(self._path)!r} can't be read: {error.strerror}"
            ) from error
        if len(data) != length:
            raise ValueSpoiled(f"{str(self._path)!r} ends at byte {offset + len(data)}")
        return data

    def pieces(self, offset: int, end: int) -> Iterator[bytes]:
        """Yield a part, piece by piece.

        Raises:
            ValueSpoiled: The rest can't be read.
        """
        while offset < end:
            piece = self.read(offset, min(CHUNK_BYTES, end - offset))
            offset += len(piece)
            yield piece

    def checked_pieces(self) -> Iterator[bytes]:
        """Yield the whole value, piece by piece.

        Raises:
            ValueSpoiled: At the end: it isn't what its digest says.
        """
        pieces = self.pieces(0, self._value.size)
        return checked(pieces, self._value.digest, what=str(self._path))

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _store_error(path: Path, error: OSError) -> StoreError:
    if error.errno in _NO_SPACE:
        return DiskFull(
            f"cannot write {str(path)!r}: the disk is full",
            hint="free some space and start again; nothing that was acknowledged is lost",
        )
    return StoreError(
        f"cannot write {str(path)!r}: {error.strerror}", hint="check the disk and its permissions"
    )
