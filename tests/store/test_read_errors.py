"""Errors of the disk itself (EIO), in place of the operating system's: a layer below SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from tasksprint.errors import StoreDamaged, StoreError
from tasksprint.store.records import Commit
from tasksprint.store.replica_store import ReplicaStore
from tests.store.helpers import accept, entry, promise


class Failing:
    """Which files fail, from when on."""

    def __init__(self) -> None:
        self.reads = False
        self.syncs = False


@pytest.fixture
def failing() -> Iterator[Failing]:
    state = Failing()

    class File(apsw.VFSFile):
        def __init__(self, name: Any, flags: Any) -> None:
            super().__init__("unix", name, flags)

        def xRead(self, amount: int, offset: int) -> bytes:
            if state.reads and offset >= 4096:
                raise apsw.IOError("disk I/O error")
            return super().xRead(amount, offset)

        def xSync(self, flags: int) -> None:
            if state.syncs:
                raise apsw.IOError("disk I/O error")
            super().xSync(flags)

    class Layer(apsw.VFS):
        def xOpen(self, name: Any, flags: Any) -> File:
            return File(name, flags)

    layer = Layer("failing", "unix", makedefault=True)
    yield state
    layer.unregister()


def test_file_that_cannot_be_read_is_left_as_it_is(failing: Failing, tmp_path: Path) -> None:
    """A disk that says so isn't repaired around: the next block may be the next to go."""
    store = ReplicaStore.open(tmp_path, 1, now_ms=0)
    store.commit(Commit((promise(1), accept(entry(1, b"v")))))
    store.close()
    failing.reads = True
    with pytest.raises(StoreError) as caught:
        ReplicaStore.open(tmp_path, 1, now_ms=0)
    assert not isinstance(caught.value, StoreDamaged)
    path = str(tmp_path / "replica.db")
    assert str(caught.value).startswith(f"cannot read or write replica store {path!r}: ")
    assert str(caught.value).endswith("; check the disk and the system's log")
    failing.reads = False
    store = ReplicaStore.open(tmp_path, 1, now_ms=0)
    assert store.recover().consensus.accepted == (entry(1, b"v"),)
    store.close()


def test_write_that_the_disk_refuses_ends_the_store(failing: Failing, tmp_path: Path) -> None:
    """After a failed fsync nobody knows what is on the disk: it isn't tried again."""
    store = ReplicaStore.open(tmp_path, 1, now_ms=0)
    store.commit(Commit((promise(1),)))
    failing.syncs = True
    with pytest.raises(StoreError, match="cannot read or write replica store "):
        store.commit(Commit((promise(2),)))
    failing.syncs = False
    with pytest.raises(AssertionError, match="a store that failed is not written again"):
        store.commit(Commit((promise(3),)))
    store.close()
