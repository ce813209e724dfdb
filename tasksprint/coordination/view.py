"""The view of one client: its orders to run, stop and drop, as plain types and as bytes.

A view is the answer to a poll: either everything (`whole`), or the changes since the
version that the client named. The coordinator's state machine makes it, and the client's core
follows it. Both share these types; the types know nothing of either.

How a client follows a view, in this order:

1. If `whole`, every assignment that it has and that `run` doesn't name is stopped.
2. `stop`: kill or forget that attempt. Unknown ones are ignored.
3. `drop_jobs`, `drop`: delete values. Unknown ones are ignored.
4. `run`: an attempt that it has already is only updated (new holders of an input); any
   other is new. The order is the order in which to start.

On the wire a view is a JSON array of arrays; users' JSON stands in it as strings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tasksprint.arrays import Arrays
from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import ClientId, JobId, Slot, TaskId
from tasksprint.task_spec import TaskSpec

__all__ = [
    "SENT",
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
    """One argument of a task: the value of `tid` under `key`, and its holders.

    A task placed ahead of need has an input that another assignment of this client is to make.
    Such an input has no digest, and the client's own cid as its only holder.
    """

    tid: TaskId
    key: str
    digest: str | None  # result digest of the whole task `tid`
    holders: tuple[ClientId, ...]


@dataclass(frozen=True, slots=True)
class Assignment:
    """One attempt at a task; the client of this view is to make it."""

    job: JobId
    tid: TaskId
    attempt: int  # 1, 2, 3 …; a later one replaces an earlier one
    spec: TaskSpec  # on the wire only the attributes of `SENT`
    inputs: tuple[Input, ...]  # of spec.pretasks, in their order; a tid may stand twice
    seed: int


@dataclass(frozen=True, slots=True)
class JobEntry:
    """The common part of all assignments of one job; once in a view."""

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
    # How the job ended, for the words of why a node was killed; "": it isn't known any more.
    ended: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class ClientAddress:
    """The address of a holder that `run` names; None: it can't be reached."""

    cid: ClientId
    address: str | None


@dataclass(frozen=True, slots=True)
class View:
    """The orders to a client: all of them, or the changes since it last asked."""

    version: Slot  # to be named as `since` in the next poll
    whole: bool  # True: `run` is complete; attempts outside it are to be stopped
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


def _assignment(
    job: JobId,
    tid: TaskId,
    attempt: int,
    name: str,
    base: str,
    inputs: tuple[Input, ...],
    keys: tuple[str, ...],
    seed: int,
    timeout_ms: int | None,
) -> Assignment:
    pretasks = tuple([item.tid for item in inputs]) if inputs else ()
    prekeys = tuple([item.key for item in inputs]) if inputs else ()
    spec = TaskSpec(name, base, pretasks, prekeys, keys, None, timeout_ms)
    return Assignment(job, tid, attempt, spec, inputs, seed)


# The members of an assignment on the wire: clients aren't told all of a task.
SENT = (
    *("job", "tid", "attempt", "spec.name", "spec.base", "inputs", "spec.keys", "seed"),
    "spec.timeout_ms",
)
_ARRAYS = Arrays(sent={Assignment: SENT}, made_by={Assignment: _assignment})
_write, _read = _ARRAYS.writer(View), _ARRAYS.reader(View)


def encode_view(view: View) -> bytes:
    """Return the view as it travels to its client."""
    return encode_json(_write(view))


def decode_view(data: bytes | memoryview) -> View:
    """Return the view that `data` encodes.

    Raises:
        RemoteProtocolError: It isn't one.
    """
    body: Any = decode_json(data)
    try:
        view: View = _read(*body)
        return view
    except (TypeError, ValueError) as error:
        raise RemoteProtocolError(f"not a view: {error}") from error
