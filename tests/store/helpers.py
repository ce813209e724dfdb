"""Short words for what the tests of the stores write."""

from __future__ import annotations

import hashlib

from tasksprint.consensus.ballot import Ballot
from tasksprint.consensus.effects import LogEntry, Persist
from tasksprint.encoding import encode_json, result_digest, value_digest
from tasksprint.ids import ReplicaId, Slot
from tasksprint.store.result_records import Result, StagedValue, Value

__all__ = ["accept", "ballot", "blob_name", "entry", "promise", "result", "value"]


def ballot(round_: int, replica: int = 1) -> Ballot:
    return Ballot(round_, ReplicaId(replica))


def entry(slot: int, value: bytes, of: Ballot | None = None) -> LogEntry:
    return LogEntry(Slot(slot), of or ballot(1), value)


def accept(*entries: LogEntry, chosen_end: int | None = None) -> Persist:
    return Persist(accepted=entries, chosen_end=None if chosen_end is None else Slot(chosen_end))


def promise(round_: int, replica: int = 1) -> Persist:
    return Persist(promised=ballot(round_, replica))


def blob_name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def value(key: str, content: bytes | StagedValue, kind: str = "json") -> Value:
    is_bytes = isinstance(content, bytes)
    return Value(key, kind, content, value_digest(content) if is_bytes else content.digest)


def result(job: int, tid: int, *values: Value) -> Result:
    manifest = sorted((each.key, each.kind, each.size, each.digest) for each in values)
    return Result(job, tid, result_digest(manifest), encode_json(manifest), values)
