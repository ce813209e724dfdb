"""Short words for what the tests of the stores write."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tasksprint.consensus import Founding, Member, encode_founding
from tasksprint.consensus.ballot import Ballot
from tasksprint.consensus.effects import Persist
from tasksprint.consensus.log_entry import LogEntry
from tasksprint.encoding import encode_json, result_digest, value_digest
from tasksprint.ids import Incarnation, ReplicaId, Slot
from tasksprint.store.records import Commit
from tasksprint.store.replica_store import ReplicaStore
from tasksprint.store.result_records import FileValue, LogText, Result, ResultCommit, Value

__all__ = [
    "accept",
    "ballot",
    "blob_name",
    "entry",
    "founded_store",
    "promise",
    "put_log",
    "put_results",
    "read_value",
    "result",
    "value",
]


def ballot(round_: int, replica: int = 1) -> Ballot:
    return Ballot(round_, ReplicaId(replica))


def entry(slot: int, value: bytes, of: Ballot | None = None) -> LogEntry:
    return LogEntry(Slot(slot), of or ballot(1), value)


def accept(*entries: LogEntry, chosen_end: int | None = None) -> Persist:
    return Persist(accepted=entries, chosen_end=None if chosen_end is None else Slot(chosen_end))


def promise(round_: int, replica: int = 1) -> Persist:
    return Persist(promised=ballot(round_, replica))


@contextlib.contextmanager
def founded_store(
    folder: Path, *, entries: Sequence[bytes] = (), others: int = 0
) -> Iterator[ReplicaStore]:
    """Open the store of replica 1 of a cluster, with these values chosen in its log."""
    store = ReplicaStore.open(folder, 1, now_ms=0, incarnation="inc1")
    try:
        members = [
            Member(ReplicaId(number), Incarnation(f"inc{number}"), f"h{number}")
            for number in range(1, others + 2)
        ]
        founding = encode_founding(Founding("c0ffee", tuple(members)))
        log = [entry(slot, value) for slot, value in enumerate(entries, 1)]
        persist = Persist(
            founding=founding, accepted=tuple(log), chosen_end=Slot(len(log) + 1), durable=1
        )
        store.commit(Commit(persists=(persist,), cluster="c0ffee"))
        yield store
    finally:
        store.close()


def read_value(store: Any, job: int, tid: int, key: str) -> bytes | None:
    """Return a value that a client's store holds, from its row or its file."""
    found = store.reader.find_value(job, tid, key)
    if found is None or isinstance(found[1], bytes):
        return None if found is None else found[1]
    opened = store.files.open(found[1])
    try:
        return b"".join(opened.checked_pieces())
    finally:
        opened.close()


def blob_name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def value(key: str, content: bytes | FileValue, kind: str = "json") -> Value:
    is_bytes = isinstance(content, bytes)
    return Value(key, kind, content, value_digest(content) if is_bytes else content.digest)


def result(job: int, tid: int, *values: Value) -> Result:
    manifest = sorted((each.key, each.kind, each.size, each.digest) for each in values)
    return Result(job, tid, result_digest(manifest), encode_json(manifest), values)


def put_results(store: Any, results: Sequence[Result]) -> None:
    """Keep results in one transaction of either twin."""
    store.commit_all((ResultCommit(results=tuple(results)),))


def put_log(store: Any, job: int, tid: int, attempt: int, text: bytes) -> None:
    """Keep what a node printed."""
    store.commit_all((ResultCommit(logs=(LogText(job, tid, attempt, text),)),))
