"""The client's store on an imagined disk: for tests and the simulator.

Behaves as `result_store` does and passes the same contract tests. A `MemoryResults`
stands for the data directory: it outlives the store, so a crash is to forget the store
(`MemoryResults.crash`) and to open the directory again.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tasksprint.errors import SettingsError, StoreError
from tasksprint.settings import Settings
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

__all__ = ["MemoryResultReader", "MemoryResultStore", "MemoryResults", "MemoryStaging"]


class MemoryResults:
    """An imagined data directory of one client."""

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.is_full = False  # every write fails from now on
        self.identity: str | None = None
        self.results: dict[tuple[int, int], Result] = {}
        # By (job, tid, key); a test may spoil what stands here.
        self.contents: dict[tuple[int, int, str], bytes] = {}
        self.staged: dict[int, bytearray] = {}
        self.logs: dict[tuple[int, int, int], BoundedText] = {}
        self.facts: dict[str, str] = {}
        self.next_blob = 1
        self.is_open = False

    def crash(self) -> None:
        """End the process that has it open; what was put stays, what was staged goes."""
        self.is_open = False
        self.staged.clear()


class MemoryResultReader:
    """As `ResultReader`."""

    def __init__(self, directory: MemoryResults) -> None:
        self._directory = directory

    @classmethod
    def open(
        cls, directory: MemoryResults, *, settings: Settings | None = None
    ) -> MemoryResultReader:
        """Look into an imagined directory."""
        del settings  # The same signature as the real one; nothing here needs it.
        return cls(directory)

    def read_manifest(self, job: int, tid: int) -> bytes | None:
        """As `ResultReader.read_manifest`."""
        result = self._directory.results.get((job, tid))
        return None if result is None else result.manifest

    def value_info(self, job: int, tid: int, key: str) -> ValueInfo | None:
        """As `ResultReader.value_info`."""
        result = self._directory.results.get((job, tid))
        for value in result.values if result is not None else ():
            if value.key == key:
                return ValueInfo(value.kind, value.size, value.digest)
        return None

    def read_value(
        self, job: int, tid: int, key: str, *, offset: int = 0, length: int | None = None
    ) -> bytes | None:
        """As `ResultReader.read_value`."""
        chunks = self.read_chunks(job, tid, key, offset=offset, length=length)
        return None if chunks is None else b"".join(chunks)

    def read_chunks(
        self, job: int, tid: int, key: str, *, offset: int = 0, length: int | None = None
    ) -> Iterator[bytes] | None:
        """As `ResultReader.read_chunks`."""
        info = self.value_info(job, tid, key)
        if info is None:
            return None
        end = info.size if length is None else min(info.size, offset + length)
        return self._chunks(job, tid, key, offset, end, info)

    def _chunks(
        self, job: int, tid: int, key: str, offset: int, end: int, info: ValueInfo
    ) -> Iterator[bytes]:
        name = f"value {key!r} of task {tid} of job {job}"
        is_whole = offset == 0 and end == info.size
        content = self._directory.contents.get((job, tid, key))
        while offset < end:
            if content is None or self._directory.contents.get((job, tid, key)) is not content:
                raise LookupError(f"{name} was dropped while it was read")
            part = min(end - offset, CHUNK_BYTES - offset % CHUNK_BYTES)
            yield content[offset : offset + part]
            offset += part
        if is_whole and content is not None:
            _check(self._directory, content, info.digest, name)

    def read_small_values(
        self, wanted: Sequence[tuple[int, int, str]]
    ) -> dict[tuple[int, int, str], bytes]:
        """As `ResultReader.read_small_values`."""
        values = {}
        for job, tid, key in wanted:
            info = self.value_info(job, tid, key)
            if info is not None and info.size <= ROW_VALUE_BYTES_MAX:
                content = self._directory.contents[job, tid, key]
                name = f"value {key!r} of task {tid} of job {job}"
                _check(self._directory, content, info.digest, name)
                values[job, tid, key] = content
        return values

    def held(self) -> list[tuple[int, int, str]]:
        """As `ResultReader.held`."""
        results = self._directory.results
        return sorted((job, tid, result.digest) for (job, tid), result in results.items())

    def total_bytes(self) -> int:
        """As `ResultReader.total_bytes`."""
        results = self._directory.results.values()
        return sum(value.size for result in results for value in result.values)

    def reusable_bytes(self) -> int:
        """Return 0: there is no file."""
        return 0

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
        self.transactions = 0

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

    def put_results(self, results: Sequence[Result]) -> None:
        """As `ResultStore.put_results`."""
        self.commit_all((ResultCommit(results=tuple(results)),))

    def commit_all(self, commits: Sequence[ResultCommit]) -> None:
        """As `ResultStore.commit_all`."""
        self._check_space()
        directory = self._directory
        for value in (
            value for commit in commits for result in commit.results for value in result.values
        ):
            is_this = isinstance(value.content, bytes) or value.content.digest == value.digest
            assert is_this, "the staged value is this one"
        for result in (result for commit in commits for result in commit.results):
            held = directory.results.get((result.job, result.tid))
            if held is not None and held.digest == result.digest:
                continue
            self._drop(result.job, result.tid)
            directory.results[result.job, result.tid] = result
            for value in result.values:
                content = value.content
                if isinstance(content, StagedValue):
                    content = bytes(directory.staged.pop(content.blob))
                directory.contents[result.job, result.tid, value.key] = content
        bytes_max = self._settings.log_bytes_per_attempt_max
        for log in (log for commit in commits for log in commit.logs):
            name = (log.job, log.tid, log.attempt)
            directory.logs[name] = directory.logs.get(name, BoundedText()).add(log.text, bytes_max)
        self.transactions += 1

    def _check_space(self) -> None:
        if self._directory.is_full:
            raise StoreError(
                f"cannot write result store {self._directory.name!r}: the disk is full",
                hint="free some space and start again; nothing that was acknowledged is lost",
            )

    def _drop(self, job: int, tid: int) -> None:
        result = self._directory.results.pop((job, tid), None)
        for value in result.values if result is not None else ():
            del self._directory.contents[job, tid, value.key]

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

    def stage(self) -> MemoryStaging:
        """As `ResultStore.stage`."""
        self._check_space()
        blob = self._directory.next_blob
        self._directory.next_blob += 1
        self._directory.staged[blob] = bytearray()
        return MemoryStaging(self, self._directory, blob)

    def abandon(self, staged: StagedValue) -> None:
        """As `ResultStore.abandon`."""
        self._directory.staged.pop(staged.blob, None)

    def put_log(self, job: int, tid: int, attempt: int, text: bytes) -> None:
        """As `ResultStore.put_log`."""
        self.commit_all((ResultCommit(logs=(LogText(job, tid, attempt, text),)),))

    def get_fact(self, name: str) -> str | None:
        """As `ResultStore.get_fact`."""
        return self._directory.facts.get(name)

    def set_fact(self, name: str, value: str) -> None:
        """As `ResultStore.set_fact`."""
        self._check_space()
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


class MemoryStaging:
    """As `Staging`."""

    def __init__(self, store: MemoryResultStore, directory: MemoryResults, blob: int) -> None:
        self._store = store
        self._directory = directory
        self._blob = blob

    @property
    def size(self) -> int:
        """Bytes so far."""
        return len(self._directory.staged[self._blob])

    def append(self, data: bytes) -> None:
        """As `Staging.append`."""
        self._store._check_space()
        self._directory.staged[self._blob] += data

    def append_file(self, path: Path, *, offset: int, length: int) -> int:
        """As `Staging.append_file`."""
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(length)
        self.append(data)
        return len(data)

    def finish(self) -> StagedValue:
        """As `Staging.finish`."""
        content = self._directory.staged[self._blob]
        return StagedValue(self._blob, len(content), hashlib.sha256(content).hexdigest())

    def abandon(self) -> None:
        """As `Staging.abandon`."""
        self._store.abandon(StagedValue(self._blob, 0, ""))


def _check(directory: MemoryResults, content: bytes, digest: str, name: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise StoreError(
            f"result store {directory.name!r} is damaged: {name} has "
            f"SHA-256 {found}, expected {digest}",
            hint="check the disk; move this data directory away and start anew",
        )
