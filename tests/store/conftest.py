"""The two twins of each store, behind one face for the contract tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasksprint.store.replica_store import ReplicaStore
from tasksprint.store.result_store import ResultStore
from tests.store.memory_result_store import (
    MemoryResults,
    MemoryResultStore,
)
from tests.store.memory_store import MemoryDirectory, MemoryReplicaStore


class FilePlace:
    """A data directory; a crash leaves what a killed process leaves: file and WAL."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lives = 0
        self.open_stores: list[Any] = []

    @property
    def directory(self) -> Path:
        return self.root / f"life{self.lives}"

    def open(self, replica: int = 1, **options: Any) -> ReplicaStore:
        store = ReplicaStore.open(self.directory, replica, now_ms=1_700_000_000_000, **options)
        self.open_stores.append(store)
        return store

    def open_results(self, **options: Any) -> ResultStore:
        store = ResultStore.open(self.directory, now_ms=1_700_000_000_000, **options)
        self.open_stores.append(store)
        return store

    def crash(self) -> None:
        old = self.directory
        self.lives += 1
        self.directory.mkdir(parents=True)
        for path in old.iterdir():
            if path.suffix in (".db", ".db-wal"):
                shutil.copy(path, self.directory)
            elif path.is_dir():
                shutil.copytree(path, self.directory / path.name)
        self.close()

    def wipe(self) -> None:
        self.close()
        self.lives += 1

    def close(self) -> None:
        while self.open_stores:
            self.open_stores.pop().close()


class MemoryPlace:
    """An imagined data directory."""

    def __init__(self) -> None:
        self.directory = MemoryDirectory()
        self.results = MemoryResults()

    def open(self, replica: int = 1, **options: Any) -> MemoryReplicaStore:
        return MemoryReplicaStore.open(self.directory, replica, now_ms=0, **options)

    def open_results(self, **options: Any) -> MemoryResultStore:
        return MemoryResultStore.open(self.results, now_ms=0, **options)

    def crash(self) -> None:
        self.directory.crash()
        self.results.crash()

    def wipe(self) -> None:
        self.directory.wipe()
        self.results = MemoryResults()

    def close(self) -> None:
        self.crash()


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FilePlace | MemoryPlace]:
    place = FilePlace(tmp_path) if request.param == "file" else MemoryPlace()
    yield place
    place.close()


@pytest.fixture
def file_place(tmp_path: Path) -> Iterator[FilePlace]:
    place = FilePlace(tmp_path)
    yield place
    place.close()


@pytest.fixture
def other_place(
    place: FilePlace | MemoryPlace, tmp_path: Path
) -> Iterator[FilePlace | MemoryPlace]:
    """A second directory of the same sort."""
    other = FilePlace(tmp_path / "other") if isinstance(place, FilePlace) else MemoryPlace()
    yield other
    other.close()
