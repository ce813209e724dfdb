"""Identifiers, and how seeds are derived from them.

At run time each is a plain integer (or a string, where said). The names exist for
signatures: they say which integer is wanted.
"""

from __future__ import annotations

import hashlib
from typing import NewType

__all__ = [
    "REPLICA_ID_MAX",
    "ClientId",
    "Incarnation",
    "JobId",
    "ReplicaId",
    "Slot",
    "TaskId",
    "task_seed",
]

ReplicaId = NewType("ReplicaId", int)  # 1, 2, 3 … in a cluster
REPLICA_ID_MAX = 2**63 - 1  # what SQLite stores
Slot = NewType("Slot", int)  # a place in the log; the first entry has slot 1
JobId = NewType("JobId", int)  # 1, 2, 3 …, given by the log
TaskId = NewType("TaskId", int)  # 0, 1, 2 … in a job, numbered by its scheduler (`tid`)
ClientId = NewType("ClientId", int)  # 1, 2, 3 …, given by the log (`cid`)
Incarnation = NewType("Incarnation", str)  # random hex, new for each data directory or start


def task_seed(job_seed: int, tid: TaskId) -> int:
    """Return the seed of a task: the same wherever and however often it runs.

    Returns:
        An integer in [0, 2**63), from SHA-256 of the job's seed and the tid.
    """
    digest = hashlib.sha256(f"{job_seed}:{tid}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
