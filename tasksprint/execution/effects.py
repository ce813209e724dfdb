"""The orders of the workbench to its shell, and the words that both use for them.

An effect is an order. The shell carries effects out in their order, and answers with events
(methods of `Workbench`). Effects name data by (job, tid, key) and digest; none of them holds a
value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NewType

from tasksprint.coordination.view import Assignment
from tasksprint.ids import ClientId, Incarnation, JobId, TaskId

__all__ = [
    "AttemptDone",
    "AttemptFailed",
    "DropJobResults",
    "DropResults",
    "Effect",
    "FetchInputs",
    "FetchRequest",
    "HeldResult",
    "KillNode",
    "Manifest",
    "NodeId",
    "Note",
    "PrepareProgram",
    "ReleaseCopies",
    "Reply",
    "RunTask",
    "SendReport",
    "StartNode",
    "StopNode",
    "StoreResult",
    "TaskError",
]

NodeId = NewType("NodeId", int)  # 1, 2, 3 …: one process each; never used again

# (key, kind, size in bytes, digest of the value) for each value, sorted by key; kind is
# "json" or "bytes". `encoding.result_digest` takes the same.
Manifest = tuple[tuple[str, str, int, str], ...]


# --- words of events -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TaskError:
    """A node's answer that its task failed."""

    error: str
    traceback: str | None = None
    retry: bool = True  # False: trying again makes no sense
    stderr: str = ""  # the end of its stderr for this task


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a node: the id that it names, and the values or the error."""

    id: int
    outcome: Manifest | TaskError


@dataclass(frozen=True, slots=True)
class HeldResult:
    """A result that this client's store holds when the workbench begins."""

    job: JobId
    tid: TaskId
    digest: str


# --- words of reports ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AttemptDone:
    """An attempt that succeeded; its values are stored here."""

    job: JobId
    tid: TaskId
    attempt: int
    digest: str  # the result's
    size_bytes: int  # of all values
    inputs_digest: str | None  # None: the task has no pretasks
    run_us: int
    inline: tuple[tuple[str, str], ...]  # (key, kind) of values that the report must carry


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """An attempt that failed."""

    job: JobId
    tid: TaskId
    attempt: int
    error: str
    fatal: bool  # True: the task fails with it, even if it has retries left
    detail: Mapping[str, Any]  # JSON: known facts about the node, its end and its stderr


# --- effects -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PrepareProgram:
    """Fetch this archive and make it ready to start; answer program_ready or program_failed."""

    program: str  # digest of the archive
    command: str  # the manifest's "node": it may name a setup


@dataclass(frozen=True, slots=True)
class StartNode:
    """Start a process; answer node_ready, and node_exited in any case at the end."""

    node: NodeId
    program: str  # digest of the archive
    command: str  # the manifest's "node": a file of the archive


@dataclass(frozen=True, slots=True)
class StopNode:
    """Close the node's input (its pipe is empty) and see that it ends; answer node_exited."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class KillNode:
    """End the process group (or cut off an attached node) at once; answer node_exited."""

    node: NodeId
    why: str


@dataclass(frozen=True, slots=True)
class RunTask:
    """Write this task's line into the node's pipe; answer node_replied, or run_refused."""

    node: NodeId
    id: int
    assignment: Assignment
    # (tid, key, result digest) of each argument, in order: exactly these bytes.
    inputs: tuple[tuple[TaskId, str, str], ...]


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """One result wanted from another client, or from the shell's own cache of copies."""

    job: JobId
    tid: TaskId
    digest: str  # the result's; other bytes are refused
    keys: tuple[str, ...]  # the values wanted; the manifest comes with them


@dataclass(frozen=True, slots=True)
class FetchInputs:
    """Ask one client for values; answer inputs_fetched or fetch_failed for each request.

    The shell looks into its cache of copies first. Fetched values stay there, pinned, until
    `ReleaseCopies`.
    """

    cid: ClientId
    requests: tuple[FetchRequest, ...]


@dataclass(frozen=True, slots=True)
class ReleaseCopies:
    """No task needs these fetched copies any more: the cache may evict them."""

    copies: tuple[tuple[JobId, TaskId, str], ...]  # (job, tid, result digest)


@dataclass(frozen=True, slots=True)
class StoreResult:
    """Keep the values of the reply `id` of `node`, and write them to the store.

    The values may be used (`RunTask`) as soon as this was given. Answer results_stored once
    they survive kill -9. If no `StoreResult` was given for a reply, its values aren't wanted.
    """

    node: NodeId
    id: int
    job: JobId
    tid: TaskId
    attempt: int
    digest: str  # the result's
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class DropResults:
    """Delete the values of these tasks, stored or about to be."""

    job: JobId
    tids: tuple[TaskId, ...]


@dataclass(frozen=True, slots=True)
class DropJobResults:
    """Delete all values of a job, but for the tasks in `keep`."""

    job: JobId
    keep: tuple[TaskId, ...]


@dataclass(frozen=True, slots=True)
class SendReport:
    """Bring this to the coordinator; repeat the same bytes until report_acknowledged."""

    incarnation: Incarnation
    request: int  # 1, 2, 3 … in this incarnation; all before it are acknowledged
    completions: tuple[AttemptDone, ...]  # a pretask before its dependents
    failures: tuple[AttemptFailed, ...]
    lost: tuple[tuple[JobId, TaskId], ...]  # results that this client no longer has


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the client's log."""

    text: str
    is_warning: bool = False  # Somebody should do something about it.


Effect = (
    PrepareProgram
    | StartNode
    | StopNode
    | KillNode
    | RunTask
    | FetchInputs
    | ReleaseCopies
    | StoreResult
    | DropResults
    | DropJobResults
    | SendReport
    | Note
)
