"""Errors of the disk itself (EIO), in place of the operating system's: a layer below SQLite."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from tasksprint.errors import DiskFull, StoreDamaged, StoreError
from tasksprint.store.records import Commit
from tasksprint.store.replica_store import ReplicaStore
from tests.store.failing_disk import Failing, failing_disk
from tests.store.helpers import accept, blob_name, entry, promise
from tests.store.test_damage import ARCHIVE, fill


@pytest.fixture
def failing() -> Iterator[Failing]:
    with failing_disk() as state:
        yield state


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


def spoil_state_page(path: Path) -> None:
    """Zero a page of a table, so that no repair in place is possible."""
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        root = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'jobs'").get
    data = bytearray(path.read_bytes())
    data[(root - 1) * 4096 : root * 4096] = bytes(4096)
    path.write_bytes(data)


def test_repair_on_a_full_disk_leaves_the_damaged_file_as_it_is(
    failing: Failing, tmp_path: Path
) -> None:
    """What was written of the new one goes: it is what takes the space."""
    store = ReplicaStore.open(tmp_path, 1, now_ms=0)
    fill(store, log_start=15)
    before = store.recover().consensus
    store.note_damage(StoreDamaged("somewhere"))
    store.close()
    path = tmp_path / "replica.db"
    spoil_state_page(path)
    data = path.read_bytes()
    for full in ("replica.db.new", "replica.db.new-wal"):
        failing.full = full
        for _ in range(2):
            with pytest.raises(DiskFull, match=r"\.new': the disk is full; free some space"):
                ReplicaStore.open(tmp_path, 1, now_ms=0)
            names = sorted(each.name for each in tmp_path.iterdir())
            assert names == ["replica.damaged", "replica.db", "replica.lock"]
            assert path.read_bytes() == data
    failing.full = ""
    store = ReplicaStore.open(tmp_path, 1, now_ms=0)
    assert store.repairs[0].startswith("its state is dropped, for a copy of another member's")
    core = store.recover().consensus
    assert (core.promised, core.known_end) == (before.promised, before.known_end)
    assert store.read_blob(blob_name(ARCHIVE)) == ARCHIVE
    store.close()
    assert (tmp_path / "replica.db.damaged").read_bytes() == data


def test_write_that_the_disk_refuses_ends_the_store(failing: Failing, tmp_path: Path) -> None:
    """After a failed fsync nobody knows what is on the disk: it isn't tried again."""
    store = ReplicaStore.open(tmp_path, 1, now_ms=0)
    store.commit(Commit((promise(1),)))
    failing.syncs = True
    with pytest.raises(StoreError, match="cannot read or write replica store "):
        store.commit(Commit((promise(2),)))
    failing.syncs = False
    for _ in range(2):  # And said again to whoever comes later, as the process ends by it.
        with pytest.raises(StoreError, match="cannot read or write replica store "):
            store.commit(Commit((promise(3),)))
    store.close()
