"""The view of one client: what it should run, stop and drop, as plain types and as bytes.

A view is the answer to a poll: either everything (`whole`) or what changed since
the version that the client named. The coordinator's state machine makes it and
the client's core follows it, so these types are shared by both; they know
nothing of either.

How a client follows a view, in this order:

1. If `whole`, every assignment that it has and that `run` doesn't name is stopped.
2. `stop`: kill or forget that attempt. Unknown ones are ignored.
3. `drop_jobs`, `drop`: delete values. Unknown ones are ignored.
4. `run`: an attempt that it has already is only updated (new holders of an input); any
   other is new. The order is the order in which to start.

On the wire a view is a JSON array of arrays; user's JSON stands in it as strings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import ClientId, JobId, Slot, TaskId
from tasksprint.task_spec import TaskSpec

__all__ = [
    "Assignment",
    "ClientAddress",
    "Drop",
    "DropJob",
    "Input",
    "JobEntry",
    "Stop",
    "View",
    "decode_view",
    "encode_view",
]


@dataclass(frozen=True, slots=True)
class Input:
    """One argument of a task: the value of `tid` under `key`, and who has it.

    No digest and the client's own cid as the only holder means that the value is
    to be made here, by another assignment of this client (ahead of need).
    """

    tid: TaskId
    key: str
    digest: str | None  # result digest of the whole task `tid`
    holders: tuple[ClientId, ...]


@dataclass(frozen=True, slots=True)
class Assignment:
    """One attempt at a task, to be made by the client whose view this is."""

    job: JobId
    tid: TaskId
    attempt: int  # 1, 2, 3 …; a later one replaces an earlier one
    spec: TaskSpec  # On the wire without what clients aren't told.
    inputs: tuple[Input, ...]  # of spec.pretasks, in their order; a tid may stand twice
    seed: int


@dataclass(frozen=True, slots=True)
class JobEntry:
    """What all assignments of one job share; once in a view."""

    job: JobId
    program: str  # digest of the archive
    node: str  # the manifest's "node": a file of the archive, or "attached:NAME"


@dataclass(frozen=True, slots=True)
class Stop:
    """An attempt to kill or to forget."""

    job: JobId
    tid: TaskId
    attempt: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Values of one task to delete: the copy with this digest, or (None) any copy."""

    job: JobId
    tid: TaskId
    digest: str | None


@dataclass(frozen=True, slots=True)
class DropJob:
    """All values of a job to delete, except those of `keep`."""

    job: JobId
    keep: tuple[TaskId, ...]
    # How it ended, for who is told why a node was killed; "": it isn't known any more.
    ended: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class ClientAddress:
    """Where a holder that `run` names can be reached; None: it can't be."""

    cid: ClientId
    address: str | None


@dataclass(frozen=True, slots=True)
class View:
    """What a client should do, or what changed of it since it last asked."""

    version: Slot  # to be named as `since` in the next poll
    whole: bool  # True: `run` is complete; what isn't in it is to be stopped
    jobs: tuple[JobEntry, ...]  # of the jobs that `run` names
    run: tuple[Assignment, ...]
    stop: tuple[Stop, ...]
    drop: tuple[Drop, ...]
    drop_jobs: tuple[DropJob, ...]
    clients: tuple[ClientAddress, ...]  # of the holders that `run` names

    @property
    def is_empty(self) -> bool:
        """Whether nothing changed."""
        return not (self.whole or self.run or self.stop or self.drop or self.drop_jobs)


def encode_view(view: View) -> bytes:
    """Return the view as it travels to its client."""
    return encode_json(
        [
            view.version,
            view.whole,
            [[entry.job, entry.program, entry.node] for entry in view.jobs],
            [
                [
                    one.job,
                    one.tid,
                    one.attempt,
                    one.spec.name,
                    one.spec.base,
                    [[item.tid, item.key, item.digest, item.holders] for item in one.inputs],
                    one.spec.keys,
                    one.seed,
                    one.spec.timeout_ms,
                ]
                for one in view.run
            ],
            [[stop.job, stop.tid, stop.attempt] for stop in view.stop],
            [[drop.job, drop.tid, drop.digest] for drop in view.drop],
            [[drop_job.job, drop_job.keep, drop_job.ended] for drop_job in view.drop_jobs],
            [[client.cid, client.address] for client in view.clients],
        ]
    )


def decode_view(data: bytes | memoryview) -> View:
    """Return the view that `data` encodes.

    Raises:
        RemoteProtocolError: It isn't one.
    """
    body: Any = decode_json(data)
    try:
        version, whole, jobs, run, stop, drop, drop_jobs, clients = body
        _numbers(version)
        return View(
            version,
            bool(whole),
            tuple([_job_entry(*entry) for entry in jobs]),
            tuple([_assignment(*one) for one in run]),
            tuple([Stop(*_numbers(*one)) for one in stop]),
            tuple([_drop(*one) for one in drop]),
            tuple([_drop_job(*one) for one in drop_jobs]),
            tuple([_client_address(*one) for one in clients]),
        )
    except (TypeError, ValueError) as error:
        raise RemoteProtocolError(f"not a view: {error}") from error


def _numbers(*values: Any) -> Any:
    """Return the values, which are integers."""
    for value in values:
        if type(value) is not int:
            raise TypeError(f"{value!r:.80} is not an integer")
    return values


def _texts(*values: Any) -> Any:
    """Return the values, which are strings."""
    for value in values:
        if type(value) is not str:
            raise TypeError(f"{value!r:.80} is not a string")
    return values


def _job_entry(job: Any, program: Any, node: Any) -> JobEntry:
    return JobEntry(_numbers(job)[0], *_texts(program, node))


def _drop(job: Any, tid: Any, digest: Any) -> Drop:
    _numbers(job, tid)
    return Drop(job, tid, digest if digest is None else _texts(digest)[0])


def _drop_job(job: Any, keep: Any, ended: Any) -> DropJob:
    return DropJob(_numbers(job)[0], _numbers(*keep), _texts(ended)[0])


def _client_address(cid: Any, address: Any) -> ClientAddress:
    return ClientAddress(_numbers(cid)[0], address if address is None else _texts(address)[0])


def _input(tid: Any, key: Any, digest: Any, holders: Any) -> Input:
    if digest is not None:
        _texts(digest)
    return Input(_numbers(tid)[0], _texts(key)[0], digest, _numbers(*holders))


def _assignment(
    job: Any,
    tid: Any,
    attempt: Any,
    name: Any,
    base: Any,
    inputs: Any,
    keys: Any,
    seed: Any,
    timeout_ms: Any,
) -> Assignment:
    _numbers(job, tid, attempt, seed)
    _texts(name, base)
    if timeout_ms is not None:
        _numbers(timeout_ms)
    listed = tuple([_input(*one) for one in inputs])
    spec = TaskSpec(
        name,
        base,
        tuple([item.tid for item in listed]) if listed else (),
        tuple([item.key for item in listed]) if listed else (),
        _texts(*keys),
        None,
        timeout_ms,
    )
    return Assignment(job, tid, attempt, spec, listed, seed)
