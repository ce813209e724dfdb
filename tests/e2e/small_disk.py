"""`tasksprint` on a disk of which a file says how full it is.

Run as `python small_disk.py FILE ARGUMENTS …`, with the package on PYTHONPATH. While FILE
exists, it says how many bytes are free; "full": SQLite finds no page more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tasksprint.cli.main import main
from tasksprint.process import free_space
from tasksprint.store.records import Commit
from tasksprint.store.replica_store import ReplicaStore

_file = Path(sys.argv.pop(1))
_free_and_size = free_space.free_and_size
_commit_all = ReplicaStore.commit_all


def _said() -> str | None:
    return _file.read_text() if _file.exists() else None


def _find(directory: Path) -> tuple[int, int]:
    said = _said()
    if said is None or said == "full":
        return _free_and_size(directory)
    return int(said), 1 << 40


def _commit(self: ReplicaStore, commits: Sequence[Commit]) -> None:
    if _said() == "full":
        connection = self._database.connection
        connection.pragma("max_page_count", connection.pragma("page_count"))
    _commit_all(self, commits)


if __name__ == "__main__":
    free_space.free_and_size = _find
    ReplicaStore.commit_all = _commit  # type: ignore[method-assign]
    sys.exit(main(sys.argv[1:]))
