"""The real files that the simulator's processes leave behind when they die."""

from __future__ import annotations

from pathlib import Path

from tasksprint.coordination.rows import Row
from tasksprint.settings import Settings
from tasksprint.store.records import AppliedPoint, Commit
from tests.store.file_directory import FileDirectory, FileReplicaStore


def opened(directory: FileDirectory) -> FileReplicaStore:
    return directory.open(1, now_ms=0, incarnation="i1", settings=Settings())


def test_transaction_that_changes_nothing_leaves_nothing_torn(tmp_path: Path) -> None:
    directory = FileDirectory(tmp_path)
    store = opened(directory)
    row = Row("facts", ("f",), ("before",))
    store.commit_all([Commit(rows=(row,), applied=AppliedPoint(1, "d1"))])
    directory.tear([Commit()])
    directory.crash()
    found = opened(directory)
    assert found.applied == AppliedPoint(1, "d1")
    assert [*found.read_range("facts")] == [row]
    directory.close()
