"""A job's archive, read as if an enemy had written it.

The archive is a gzipped tar. It may hold plain files and directories, as our own packer and
common tar programs write them: ustar headers, with the names of pax or GNU for long ones.
Everything else is refused with a sentence: links, devices, sparse files, garbage behind the
end, and names that lead out of the directory or stand there twice. Every amount has a limit
(`ArchiveLimits`), headers too. The work is in proportion to the bytes read. So no archive takes
long or much memory. (The tar reader of Python's library has no limits for headers. In some
versions its time isn't linear.)

Limits and verdicts depend on the bytes alone: if one replica refuses an archive, all refuse it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasksprint.durable_files import sync_directory
from tasksprint.errors import RemoteProtocolError

__all__ = [
    "KEEP_DATA_OUT",
    "LIMITS",
    "ArchiveLimits",
    "Names",
    "check_archive",
    "read_archive",
    "unpack",
]

KIB = 1024
MIB = 1024 * 1024

KEEP_DATA_OUT = "keep data out of the job directory: let nodes read it from where it is"

_BLOCK = 512
_EMPTY = bytes(_BLOCK)
# Bytes that are unzipped at once, at most, and the bytes they come out of. A piece can give a
# thousand times its size, and its rest is copied each time.
_PIECE_BYTES = 256 * KIB
_PACKED_PIECE_BYTES = 16 * KIB
_GZIP = 16 + zlib.MAX_WBITS

# From so many files on, one sync of the whole system is quicker than one for each file.
_SYNC_ALL_FILES = 32


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """The limits of an archive; each of them bounds memory, disk or time."""

    # Files and directories, those included that are only part of a name. Too small: a job
    # that brings a large library is refused. Too large: unpacking takes minutes.
    files_max: int = 100_000
    # The unzipped archive. Too small: data that packs well is refused. Too large: a small
    # archive fills disks, and reading it takes long.
    unpacked_bytes_max: int = 1024 * MIB
    # One name, one part of it (file systems end at 255), and how many parts. Room must be
    # left for the data directory in the 4,096 bytes of a path.
    name_bytes_max: int = 1_024
    part_bytes_max: int = 255
    depth_max: int = 64
    # All names together: they are in memory, to find those that stand there twice.
    names_bytes_max: int = 16 * MIB
    # One extended header, its records, and the bytes of all of them. It has a name, and what
    # tar programs add (some keep attributes of the file system here).
    header_bytes_max: int = 64 * KIB
    header_records_max: int = 32
    headers_bytes_max: int = 64 * MIB


LIMITS = ArchiveLimits()


@dataclass(frozen=True, slots=True)
class _Member:
    """One file or directory of an archive; its bytes follow in the stream."""

    name: str  # relative, of plain parts; "" is the directory itself
    is_directory: bool
    is_executable: bool
    size: int


class Names:
    """The names of one job's files: each plain, and none twice.

    Names that differ only in case count as the same: on some machines of a cluster they are.
    """

    def __init__(self, limits: ArchiveLimits = LIMITS) -> None:
        self._limits = limits
        self._known: dict[str, tuple[str, str]] = {}  # folded -> name and kind
        self._bytes = 0
        self._last_folder = ""

    def add(self, name: str, *, is_directory: bool) -> None:
        """Take one more, after its directory or before.

        Raises:
            RemoteProtocolError: It can't be a file of a job beside the others.
        """
        limits = self._limits
        parts = name.split("/")
        if name.startswith("/") or ".." in parts:
            raise RemoteProtocolError(
                f"archive member {_shown(name)} would leave the job directory"
            )
        if "" in parts or "." in parts or "\0" in name:
            raise RemoteProtocolError(
                f"archive member {_shown(name)} is no plain path, expected one such as 'lib/a.py'"
            )
        if len(parts) > limits.depth_max:
            raise RemoteProtocolError(
                f"archive member {_shown(name)} lies {len(parts)} directories deep, "
                f"at most {limits.depth_max}"
            )
        size = len(name.encode())
        if size > limits.name_bytes_max:
            raise RemoteProtocolError(
                f"archive member {_shown(name)} has a name of {size} bytes, "
                f"at most {limits.name_bytes_max}"
            )
        if size > limits.part_bytes_max:
            for part in parts:
                if len(part.encode()) > limits.part_bytes_max:
                    raise RemoteProtocolError(
                        f"archive member {_shown(name)} has a part of {len(part.encode())} bytes "
                        f"in its name, at most {limits.part_bytes_max}"
                    )
        folder = name.rpartition("/")[0]
        if folder != self._last_folder:
            for count in range(1, len(parts)):
                self._add_one("/".join(parts[:count]), "folder")
            self._last_folder = folder
        self._add_one(name, "directory" if is_directory else "file")

    def _add_one(self, name: str, kind: str) -> None:
        """Take a name of kind "file", "directory", or "folder": one that others lie in."""
        folded = name.casefold()
        known = self._known.get(folded)
        if known is None:
            self._bytes += len(folded)
            if len(self._known) >= self._limits.files_max:
                raise _too_many(self._limits)
            if self._bytes > self._limits.names_bytes_max:
                raise RemoteProtocolError(
                    "the names in the archive have more than "
                    f"{self._limits.names_bytes_max} bytes",
                    hint=KEEP_DATA_OUT,
                )
        elif known[0] != name:
            raise RemoteProtocolError(
                f"archive members {_shown(known[0])} and {_shown(name)} differ only in upper and "
                "lower case, which some machines don't tell apart"
            )
        elif kind == "folder" and known[1] != "file":
            return
        elif known[1] != "folder" or kind != "directory":
            raise RemoteProtocolError(f"archive member {_shown(name)} stands in the archive twice")
        self._known[folded if folded != name else name] = (name, kind)


def check_archive(archive: bytes, limits: ArchiveLimits = LIMITS) -> None:
    """Read all of an archive, and write nothing.

    Raises:
        RemoteProtocolError: It can't be unpacked; the same that `unpack` would raise.
    """
    for _ in read_archive(archive, limits):
        pass


def read_archive(
    archive: bytes, limits: ArchiveLimits = LIMITS
) -> Iterator[tuple[_Member, Iterator[bytes]]]:
    """Yield each file and directory of an archive, with the pieces of its bytes.

    Take the pieces before you ask for the next member, or you miss them.

    Raises:
        RemoteProtocolError: The archive is damaged, too large, or holds a forbidden member.
    """
    stream = _Unzipped(archive, limits.unpacked_bytes_max)
    names = Names(limits)
    headers = _Headers(stream, limits)
    while (member := headers.next()) is not None:
        if member.name:
            names.add(member.name, is_directory=member.is_directory)
        left = member.size
        pieces = stream.pieces(left)
        yield member, pieces
        for _ in pieces:
            pass
        stream.skip(-left % _BLOCK)
    stream.finish()


def unpack(archive: bytes, digest: str, root: Path, limits: ArchiveLimits = LIMITS) -> Path:
    """Return the directory `root/digest` with the archive's files, made if it isn't there.

    It comes to be whole or not at all: everything is unpacked beside its place,
    synced and renamed. Several processes may do so at once.

    Raises:
        RemoteProtocolError: The archive isn't the one that `digest` names, or can't be one
            of ours.
    """
    target = root / digest
    if target.is_dir():
        return target
    found = hashlib.sha256(archive).hexdigest()
    if found != digest:
        raise RemoteProtocolError(
            f"the archive of {len(archive)} bytes has SHA-256 {found}, expected {digest}"
        )
    root.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{digest[:16]}.", dir=root))
    try:
        _extract(archive, str(beside), limits)
        os.rename(beside, target)
        sync_directory(root)
    except OSError:
        if not target.is_dir():  # Else another process was first, with the same files.
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def _extract(archive: bytes, target: str, limits: ArchiveLimits) -> None:
    folders = {""}
    files: list[str] = []
    for member, pieces in read_archive(archive, limits):
        folder = member.name if member.is_directory else member.name.rpartition("/")[0]
        if folder not in folders:
            os.makedirs(f"{target}/{folder}", mode=0o700, exist_ok=True)
            folders.add(folder)
        if member.is_directory:
            continue
        path = f"{target}/{member.name}"
        try:
            # O_EXCL: no member may replace another one.
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError as error:
            raise RemoteProtocolError(
                f"archive member {_shown(member.name)} has the name of another one on this "
                "machine's file system"
            ) from error
        try:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[os.write(file, view) :]
            if member.is_executable:
                os.fchmod(file, 0o700)
        finally:
            os.close(file)
        files.append(path)
    _sync(target, files)


def _sync(target: str, files: list[str]) -> None:
    if len(files) > _SYNC_ALL_FILES and sys.platform == "linux":
        os.sync()  # It waits here; elsewhere it may only begin.
        return
    for path in files:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)
    for folder, _, _ in os.walk(target):
        sync_directory(Path(folder))


def _shown(name: str) -> str:
    """Return a name for a message: quoted, and cut in the middle if it is very long."""
    return repr(name) if len(name) <= 200 else f"{name[:100]!r} … {name[-50:]!r}"


def _too_many(limits: ArchiveLimits) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"the archive has more than {limits.files_max} files and directories",
        hint=KEEP_DATA_OUT,
    )


def _damaged(what: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"the archive is damaged: {what}")


class _Unzipped:
    """The contents of a gzipped archive, in order, unzipped on demand."""

    def __init__(self, archive: bytes, bytes_max: int) -> None:
        self._archive = memoryview(archive)
        self._at = 0  # what was given to `_inflate` already
        self._inflate = zlib.decompressobj(_GZIP)
        self._waiting: bytes | memoryview = b""  # what it didn't take yet
        self._bytes_max = bytes_max
        self._bytes = 0
        self._buffer = b""
        self._taken = 0  # of the buffer

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        end = self._taken + size
        if end <= len(self._buffer):
            self._taken, start = end, self._taken
            return self._buffer[start:end]
        return b"".join(self.pieces(size))

    def skip(self, size: int) -> None:
        """Leave out the next bytes."""
        for _ in self.pieces(size):
            pass

    def pieces(self, size: int) -> Iterator[bytes]:
        """Yield the next `size` bytes."""
        if size > self._bytes_max:
            raise self._too_large()
        while size:
            if self._taken == len(self._buffer) and not self._fill():
                raise _damaged("it ends in the middle of a member")
            piece = self._buffer[self._taken : self._taken + size]
            self._taken += len(piece)
            size -= len(piece)
            yield piece

    def finish(self) -> None:
        """Expect nothing but padding up to the end."""
        while True:
            if self._buffer.count(0, self._taken) != len(self._buffer) - self._taken:
                raise _damaged("something follows the end of its tar")
            if not self._fill():
                break
        behind = len(self._inflate.unused_data) + len(self._archive) - self._at
        if behind:
            raise _damaged(f"{behind} bytes follow the end of its gzip stream")

    def _fill(self) -> bool:
        """Unzip the next piece; return whether there was one."""
        while not self._inflate.eof:
            if not self._waiting:
                end = self._at + _PACKED_PIECE_BYTES
                self._waiting = self._archive[self._at : end]
                self._at += len(self._waiting)
            is_end = not self._waiting
            try:
                data = self._inflate.decompress(self._waiting, _PIECE_BYTES)
            except zlib.error as error:
                raise _damaged(f"it can't be unzipped: {error}") from error
            self._waiting = self._inflate.unconsumed_tail
            if data:
                self._bytes += len(data)
                if self._bytes > self._bytes_max:
                    raise self._too_large()
                self._buffer, self._taken = data, 0
                return True
            if is_end and not self._inflate.eof:
                raise _damaged("its gzip stream ends too early")
        return False

    def _too_large(self) -> RemoteProtocolError:
        return RemoteProtocolError(f"the archive unpacks to more than {self._bytes_max} bytes")


class _Headers:
    """The headers of a tar, read one after the other."""

    def __init__(self, stream: _Unzipped, limits: ArchiveLimits) -> None:
        self._stream = stream
        self._limits = limits
        self._is_begun = False
        self._members = 0
        self._extended_bytes = 0

    def next(self) -> _Member | None:
        """Return the next member; None: the tar has ended."""
        long_name: str | None = None
        pax_name: str | None = None
        has_pax = False
        while True:
            block = self._stream.read(_BLOCK)
            if block == _EMPTY:
                if long_name is not None or has_pax:
                    raise _damaged("it ends behind the extended header of a member")
                if self._stream.read(_BLOCK) != _EMPTY:
                    raise _damaged("a member follows its end")
                return None
            self._check(block)
            kind = block[156:157]
            size = _octal(block, 124, 136, "size")
            if kind == b"g" and not self._is_begun:
                self._global(self._extended(size))
            elif kind == b"x" and not has_pax:
                has_pax = True
                pax_name = self._pax_name(self._extended(size))
            elif kind == b"L" and long_name is None:
                long_name = _text(self._extended(size).rstrip(b"\0"))
            elif kind in (b"g", b"x", b"L"):
                raise _damaged(f"an extended header {_kind(kind)} where none belongs")
            else:
                self._is_begun = True
                name = pax_name or long_name or _name(block)
                return self._member(block, kind, name, size)
            self._is_begun = True

    def _check(self, block: bytes) -> None:
        if block[257:263] not in (b"ustar\0", b"ustar "):
            raise _damaged("no tar header where a member should begin")
        if sum(block) - sum(block[148:156]) + 256 != _octal(block, 148, 156, "checksum"):
            raise _damaged("a tar header fails its checksum")

    def _extended(self, size: int) -> bytes:
        limits = self._limits
        if size > limits.header_bytes_max:
            raise RemoteProtocolError(
                f"the archive has an extended header of {size} bytes, "
                f"at most {limits.header_bytes_max}"
            )
        self._extended_bytes += size
        if self._extended_bytes > limits.headers_bytes_max:
            raise RemoteProtocolError(
                f"the archive has more than {limits.headers_bytes_max} bytes of extended headers"
            )
        data = self._stream.read(size)
        self._stream.skip(-size % _BLOCK)
        return data

    def _global(self, data: bytes) -> None:
        """Let a header for all members pass, such as git writes, if it changes none."""
        for key, _ in self._pax_records(data):
            if key in (b"path", b"linkpath", b"size"):
                raise _damaged(f"one {key.decode()!r} for all members")

    def _pax_name(self, data: bytes) -> str | None:
        """Return the name that a pax header gives to its member, if it does."""
        name = None
        for key, value in self._pax_records(data):
            if key.startswith(b"GNU.sparse."):
                raise RemoteProtocolError(
                    "the archive has a sparse file, expected plain ones; pack it without --sparse"
                )
            if key == b"size":
                raise RemoteProtocolError("the archive has a file of more than 8 GiB")
            if key == b"path":
                name = _text(value)
                if "\0" in name:
                    raise _damaged("a name with a NUL in it")
        return name

    def _pax_records(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield key and value of each record "LENGTH KEY=VALUE\\n"."""
        at = records = 0
        while at < len(data):
            records += 1
            if records > self._limits.header_records_max:
                raise RemoteProtocolError(
                    "the archive has an extended header of more than "
                    f"{self._limits.header_records_max} records"
                )
            blank = data.find(b" ", at, at + 8)
            digits = data[at:blank] if blank > at else b""
            end = at + int(digits) if digits.isdigit() else 0
            equals = data.find(b"=", blank, end)
            if end > len(data) or equals <= blank + 1 or data[end - 1 : end] != b"\n":
                raise _damaged("an extended header isn't made of records")
            yield data[blank + 1 : equals], data[equals + 1 : end - 1]
            at = end

    def _member(self, block: bytes, kind: bytes, name: str, size: int) -> _Member:
        self._members += 1
        if self._members > self._limits.files_max:
            raise _too_many(self._limits)
        is_directory = kind == b"5"
        if not is_directory and kind not in (b"0", b"\0"):
            raise RemoteProtocolError(
                f"archive member {_shown(name)} is {_kind(kind)}, expected a file or a directory"
            )
        if not name:
            raise _damaged("a member without a name")
        if is_directory:
            name = name.rstrip("/") or "/"
            if size:
                raise _damaged(f"the directory {_shown(name)} has {size} bytes")
        # As "tar -c ." writes them.
        plain = (name[2:] if name.startswith("./") else name) or name
        if is_directory and plain == ".":
            plain = ""
        mode = _octal(block, 100, 108, "mode")
        return _Member(plain, is_directory, bool(mode & 0o100), size)


_KINDS = {
    b"1": "a link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"K": "a link with a long name",
    b"S": "a sparse file",
}


def _kind(kind: bytes) -> str:
    return _KINDS.get(kind) or f"of type {kind.decode('latin-1')!r}"


def _octal(block: bytes, start: int, end: int, what: str) -> int:
    """Return a number of a header: octal digits, with blanks around them and a NUL behind."""
    digits = block[start:end].partition(b"\0")[0].strip(b" ")
    if digits.strip(b"01234567"):
        raise _damaged(f"the {what} of a member is {digits!r}, expected octal digits")
    return int(digits, 8) if digits else 0


def _name(block: bytes) -> str:
    name = block[:100].partition(b"\0")[0]
    # GNU keeps other things where POSIX has the beginning of a long name.
    if block[257:263] == b"ustar\0":
        prefix = block[345:500].partition(b"\0")[0]
        if prefix:
            name = prefix + b"/" + name
    return _text(name)


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise RemoteProtocolError(
            f"archive member {name[:200]!r} has a name that isn't UTF-8"
        ) from None
