"""A process that commits until it is killed, and says each slot once it is durable.

Run as `python -m tests.store.kill_child DIRECTORY`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tasksprint.coordination.rows import Row
from tasksprint.settings import Settings
from tasksprint.store.records import AppliedPoint, Commit
from tasksprint.store.replica_store import ReplicaStore
from tests.store.helpers import accept, entry

__all__ = ["rows", "value"]


def value(slot: int) -> bytes:
    return b"%d," % slot * (1 + slot * 37 % 700)


def rows(slot: int) -> list[Row]:
    return [Row("events", (slot, number), (f"{slot}.{number}",)) for number in range(20)]


def main(directory: Path) -> None:
    # Small limits, so that checkpoints are among what is interrupted.
    settings = Settings(wal_idle_bytes=50_000, wal_bytes_max=200_000)
    store = ReplicaStore.open(directory, 1, now_ms=0, settings=settings)
    for slot in range(1, 100_000):
        persist = accept(entry(slot, value(slot)), chosen_end=slot + 1)
        store.commit(Commit((persist,), tuple(rows(slot)), AppliedPoint(slot, "")))
        print(slot, flush=True)
        store.checkpoint_if_due()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
