"""The client's store on an imagined disk: for tests and the simulator.

Behaves as `result_store` does and passes the same contract tests. A `MemoryResults`
stands for the data directory: it outlives the store, so a crash is to forget the store
(`MemoryResults.crash`) and to open the directory again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tasksprint.encoding import value_digest
from tasksprint.errors import SettingsError, StoreError, ValueSpoiled
from tasksprint.settings import Settings
from tasksprint.store.result_records import (
    CHUNK_BYTES,
    ROW_VALUE_BYTES_MAX,
    BoundedText,
    FileValue,
    LogText,
    Result,
    ResultCommit,
    ValueInfo,
    checked,
)

__all__ = ["MemoryResultReader", "MemoryResultStore", "MemoryResults", "MemoryValueFiles"]

ResultT = TypeVar("ResultT")


class MemoryResults:
    """An imagined data directory of one client."""

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.is_full = False  # every write fails from now on
        self.identity: str | None = None
        self.results: dict[tuple[int, int], Result] = {}
        # By (job, tid, key); a test may spoil what stands here.
        self.contents: dict[tuple[int, int, str], bytes | FileValue] = {}
        self.files: dict[int, bytearray] = {}
        self.logs: dict[tuple[int, int, int], BoundedText] = {}
        self.facts: dict[str, str] = {}
        self.last_file = 0
        self.is_open = False

    def check_space(self) -> None:
        """Raise `StoreError` if the disk is full."""
        if self.is_full:
            raise StoreError(
                f"cannot write result store {self.name!r}: the disk is full",
                hint="free some space and start again; nothing that was acknowledged is lost",
            )

    def open(self, *, identity: str, settings: Settings) -> MemoryResultStore:
        """Open the store as the next process does; the last one is gone."""
        return MemoryResultStore.open(self, now_ms=0, identity=identity, settings=settings)

    def close(self) -> None:
        """Do nothing: there is no file."""

    def names(self) -> list[tuple[int, int]]:
        """Return which results are there."""
        return sorted(self.results)

    def forget(self, name: tuple[int, int]) -> None:
        """Let the disk of a process that is gone lose a result."""
        job, tid = name
        for value in self.results.pop(name).values:
            del self.contents[job, tid, value.key]

    def crash(self) -> None:
        """End the process that has it open; what was put stays, other files go."""
        self.is_open = False
        named = {one.number for one in self.contents.values() if isinstance(one, FileValue)}
        self.files = {number: data for number, data in self.files.items() if number in named}


class MemoryValueFiles:
    """As `ValueFiles`."""

    def __init__(self, directory: MemoryResults) -> None:
        self._directory = directory

    def begin(self) -> _MemoryValueWriter:
        """As `ValueFiles.begin`."""
        self._directory.last_file += 1
        return _MemoryValueWriter(self._directory, self._directory.last_file)

    def write(self, data: bytes | memoryview) -> FileValue:
        """As `ValueFiles.write`."""
        writer = self.begin()
        writer.append((data,))
        return writer.finish()

    def open(self, value: FileValue) -> _MemoryOpenValue:
        """As `ValueFiles.open`."""
        data = self._directory.files.get(value.number)
        if data is None:
            raise ValueSpoiled(f"'{value.number}' can't be read: No such file or directory")
        if len(data) != value.size:
            raise ValueSpoiled(f"'{value.number}' has {len(data)} bytes, expected {value.size}")
        return _MemoryOpenValue(data, value)

    def check(self, value: FileValue) -> None:
        """As `ValueFiles.check`."""
        for _ in self.open(value).checked_pieces():
            pass

    def remove(self, number: int) -> None:
        """As `ValueFiles.remove`."""
        self._directory.files.pop(number, None)


class _MemoryValueWriter:
    def __init__(self, directory: MemoryResults, number: int) -> None:
        self._directory = directory
        self._number = number
        self._data = bytearray()

    @property
    def size(self) -> int:
        return len(self._data)

    def append(self, pieces: Sequence[bytes | memoryview]) -> None:
        self._directory.check_space()
        for piece in pieces:
            self._data += piece
        self._directory.files[self._number] = self._data

    def finish(self) -> FileValue:
        self._directory.files[self._number] = self._data
        return FileValue(self._number, len(self._data), value_digest(bytes(self._data)))

    def abandon(self) -> None:
        self._directory.files.pop(self._number, None)


class _MemoryOpenValue:
    def __init__(self, data: bytearray, value: FileValue) -> None:
        self._data = data
        self._value = value

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._data[offset : offset + length])

    def pieces(self, offset: int, end: int) -> Iterator[bytes]:
        for at in range(offset, end, CHUNK_BYTES):
            yield self.read(at, min(CHUNK_BYTES, end - at))

    def checked_pieces(self) -> Iterator[bytes]:
        pieces = self.pieces(0, self._value.size)
        return checked(pieces, self._value.digest, what=str(self._value.number))

    def close(self) -> None:
        pass


class MemoryResultReader:
    """As `ResultReader`."""

    def __init__(self, directory: MemoryResults) -> None:
        self._directory = directory

    def read_manifest(self, job: int, tid: int) -> bytes | None:
        """As `ResultReader.read_manifest`."""
        result = self._directory.results.get((job, tid))
        return None if result is None else result.manifest

    def find_value(
        self, job: int, tid: int, key: str
    ) -> tuple[ValueInfo, bytes | FileValue] | None:
        """As `ResultReader.find_value`."""
        result = self._directory.results.get((job, tid))
        named = next((one for one in result.values if one.key == key), None) if result else None
        if named is None:
            return None
        info = ValueInfo(named.kind, named.size, named.digest)
        content = self._directory.contents[job, tid, key]
        if isinstance(content, bytes) and (found := value_digest(content)) != info.digest:
            raise ValueSpoiled(
                f"value {key!r} of task {tid} of job {job} in {self._directory.name!r} "
                f"has SHA-256 {found}, expected {info.digest}"
            )
        return info, content

    def held(self) -> list[tuple[int, int, str]]:
        """As `ResultReader.held`."""
        results = self._directory.results
        return sorted((job, tid, result.digest) for (job, tid), result in results.items())

    def total_bytes(self) -> int:
        """As `ResultReader.total_bytes`."""
        results = self._directory.results.values()
        return sum(value.size for result in results for value in result.values)

    def read_logs(self, job: int, tid: int | None = None) -> list[LogText]:
        """As `ResultReader.read_logs`."""
        return [
            LogText(*name, text.render())
            for name, text in sorted(self._directory.logs.items(), key=lambda item: item[0])
            if name[0] == job and tid in (None, name[1])
        ]

    def close(self) -> None:
        """Do nothing."""


class MemoryResultStore:
    """As `ResultStore`; `open` makes or opens it."""

    def __init__(self, directory: MemoryResults, identity: str, settings: Settings) -> None:
        self._directory = directory
        self._settings = settings
        self.identity = identity
        self.reader = MemoryResultReader(directory)
        self.files = MemoryValueFiles(directory)
        self.transactions = 0
        self.on_rebuilt: Callable[[str, list[tuple[int, int, str]]], object] = _ignore
        self.found_at_start: list[str] = []

    def ask(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        """Return `function(self, *arguments)`: nothing here is damaged."""
        return function(self, *arguments)

    @classmethod
    def open(
        cls,
        directory: MemoryResults,
        *,
        now_ms: int,
        identity: str | None = None,
        settings: Settings | None = None,
    ) -> MemoryResultStore:
        """Make or open the store in an imagined directory.

        Raises:
            SettingsError: It is open.
        """
        del now_ms  # Kept for people by the real one.
        if directory.is_open:
            raise SettingsError(
                f"data directory {directory.name!r} is in use by process 'memory'",
                hint="stop that process, or give this one its own --data-dir",
            )
        directory.is_open = True
        directory.identity = directory.identity or identity or secrets.token_hex(16)
        return cls(directory, directory.identity, settings or Settings())

    @property
    def path(self) -> Path:
        """The name of the directory; there is no file."""
        return Path(self._directory.name)

    @property
    def total_bytes(self) -> int:
        """As `ResultStore.total_bytes`."""
        return self.reader.total_bytes()

    def commit_all(self, commits: Sequence[ResultCommit]) -> None:
        """As `ResultStore.commit_all`."""
        directory = self._directory
        directory.check_space()
        for value in (
            value for commit in commits for result in commit.results for value in result.values
        ):
            is_this = isinstance(value.content, bytes) or value.content.digest == value.digest
            assert is_this, "the file holds this value"
        for result in (result for commit in commits for result in commit.results):
            held = directory.results.get((result.job, result.tid))
            if held is not None and held.digest == result.digest:
                for value in result.values:
                    if isinstance(value.content, FileValue):
                        self.discard(value.content)
                continue
            self._drop(result.job, result.tid)
            directory.results[result.job, result.tid] = result
            for value in result.values:
                content = value.content
                if isinstance(content, bytes) and len(content) > ROW_VALUE_BYTES_MAX:
                    content = self.files.write(content)
                directory.contents[result.job, result.tid, value.key] = content
        bytes_max = self._settings.log_bytes_per_attempt_max
        for log in (log for commit in commits for log in commit.logs):
            name = (log.job, log.tid, log.attempt)
            directory.logs[name] = directory.logs.get(name, BoundedText()).add(log.text, bytes_max)
        self.transactions += 1

    def _drop(self, job: int, tid: int) -> None:
        result = self._directory.results.pop((job, tid), None)
        for value in result.values if result is not None else ():
            content = self._directory.contents.pop((job, tid, value.key))
            if isinstance(content, FileValue):
                self.discard(content)

    def drop_tasks(self, job: int, tids: Iterable[int]) -> None:
        """As `ResultStore.drop_tasks`."""
        for tid in tids:
            self._drop(job, tid)

    def drop_job(self, job: int, *, keep: Iterable[int] = (), with_logs: bool) -> None:
        """As `ResultStore.drop_job`."""
        kept = set(keep)
        for of, tid in list(self._directory.results):
            if of == job and tid not in kept:
                self._drop(job, tid)
        if with_logs:
            for name in [name for name in self._directory.logs if name[0] == job]:
                del self._directory.logs[name]

    def discard(self, value: FileValue) -> None:
        """As `ResultStore.discard`."""
        self.files.remove(value.number)

    def get_fact(self, name: str) -> str | None:
        """As `ResultStore.get_fact`."""
        return self._directory.facts.get(name)

    def set_fact(self, name: str, value: str) -> None:
        """As `ResultStore.set_fact`."""
        self._directory.check_space()
        self._directory.facts[name] = value

    def checkpoint_if_due(self) -> bool:
        """Do nothing: there is no write-ahead log."""
        return False

    @property
    def idle_work_is_due(self) -> bool:
        """Return False: there is none."""
        return False

    def do_idle_work(self) -> None:
        """Do nothing."""

    @property
    def failure(self) -> BaseException | None:
        """Return None: a write that fails is as if it had never been tried."""
        return None

    def close(self) -> None:
        """Give the directory free."""
        self._directory.crash()


def _ignore(damage: str, left: list[tuple[int, int, str]]) -> None:
    pass
