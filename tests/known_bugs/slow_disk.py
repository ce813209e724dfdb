"""`tasksprint` on a disk that becomes slow: commits take as long as a file says.

Run as `python slow_disk.py FILE ARGUMENTS …`, with the package on PYTHONPATH. While FILE
exists, each commit of the replica's store takes so many seconds more.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tasksprint.cli.main import main
from tasksprint.store.records import Commit
from tasksprint.store.replica_store import ReplicaStore

_file = Path(sys.argv.pop(1))
_commit_all = ReplicaStore.commit_all


def _commit_slowly(self: ReplicaStore, commits: Sequence[Commit]) -> None:
    try:
        seconds = float(_file.read_text())
    except FileNotFoundError:
        seconds = 0.0
    time.sleep(seconds)  # Real time: this is the fault.
    _commit_all(self, commits)


if __name__ == "__main__":
    ReplicaStore.commit_all = _commit_slowly  # type: ignore[method-assign]
    sys.exit(main(sys.argv[1:]))
