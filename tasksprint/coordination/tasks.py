"""One task as the replicated state knows it, and its row in the mirror.

The states, and what brings a task from one to another:

    waiting ──inputs done──> ready ──placed──> assigned ──completion that counts──> done
       │  ^                    ^                  │
       │  └──an input is lost──┴──attempt ended───┤──no retries left──> failed
       └──placed ahead of need──> assigned        └──killed (from any unfinished state)──> killed

A done task goes back to waiting or ready when its result is lost and still needed, or
when an input of it changed (`is_stale`); `digest` then keeps the result as it was, so a
task that has a digest and isn't done is being computed again.

This module knows the fields and how they are kept; what they mean for others is decided
in placement.py (where to run), results.py (what counts) and answers.py (what is asked).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tasksprint.coordination.rows import Row
from tasksprint.encoding import encode_json
from tasksprint.ids import ClientId, TaskId

if TYPE_CHECKING:
    from tasksprint.coordination.jobs import Job

__all__ = [
    "ASSIGNED",
    "DONE",
    "FAILED",
    "KILLED",
    "READY",
    "STATES",
    "WAITING",
    "Task",
    "base_row",
    "deletion_rows",
    "restore_task",
    "task_row",
]

# The states as small integers: the unfinished ones come before DONE.
WAITING, READY, ASSIGNED, DONE, FAILED, KILLED = range(6)
STATES = ("waiting", "ready", "assigned", "done", "failed", "killed")
_STATE_OF_NAME = {name: state for state, name in enumerate(STATES)}

# A longer base has a row of its own, so that it is written once and not at each change.
BASE_IN_ROW_MAX = 512


class Task:
    """One task of one job; mutable, changed by the state machine only.

    Invariants (checked in check.py): `cid` is None unless the state is ASSIGNED;
    `pending` counts the places in `pretasks` whose task isn't DONE; a READY task has none.
    """

    __slots__ = (
        "ahead",
        "attempt",
        "base",
        "cid",
        "dependents",
        "digest",
        "error",
        "event",
        "failed_on",
        "failures",
        "gone",
        "holders",
        "is_released",
        "is_stale",
        "is_wanted",
        "job",
        "keys",
        "load_us",
        "may_extend",
        "name",
        "pending",
        "placed",
        "prekeys",
        "pretasks",
        "retries",
        "size_bytes",
        "state",
        "tid",
        "timeout_ms",
        "told",
        "users",
    )

    def __init__(
        self,
        job: Job,
        tid: TaskId,
        name: str,
        base: str,
        pretasks: tuple[TaskId, ...],
        prekeys: tuple[str, ...],
        keys: tuple[str, ...],
        retries: int | None,
        timeout_ms: int | None,
    ) -> None:
        self.job = job
        self.tid = tid
        self.name = name
        self.base = base
        self.pretasks = pretasks
        self.prekeys = prekeys
        self.keys = keys
        self.retries = retries
        self.timeout_ms = timeout_ms
        self.state = WAITING
        self.pending = 0
        # Tids of the tasks that name this one, once for each time that they do. Tids and
        # not tasks: a released dependent must not stay in memory because of us.
        self.dependents: list[TaskId] | None = None
        self.gone = 0  # of those: released, and forgotten, since the list was last cleaned
        self.users = 0  # places in the pretasks of unfinished tasks where this one stands
        # The current attempt.
        self.attempt = 0
        self.cid: ClientId | None = None
        self.load_us = 0  # what it counts in its client's queue
        self.placed = 0  # number of the placement, over all tasks: the order of a queue
        self.ahead = 0  # dependents assigned while this one isn't done
        self.may_extend = False  # waits in its client's `extend` queue
        # What became of earlier attempts.
        self.failures = 0
        self.failed_on: ClientId | None = None
        self.error: str | None = None
        # The result: canonical digest, and who has those bytes.
        self.digest: str | None = None
        self.size_bytes = 0
        self.holders: tuple[ClientId, ...] = ()
        self.event: int | None = None  # number of its task_done event
        self.told: str | None = None  # digest of the values in it (keys), if there are any
        self.is_stale = False  # the digest rests on an input's bytes that changed
        self.is_released = False  # the scheduler let it go; unfinished users keep it
        self.is_wanted = False  # named by finish, whose results must be readable

    def __repr__(self) -> str:
        return f"<task {self.job.job}/{self.tid} {self.name!r} {STATES[self.state]}>"


def task_row(task: Task) -> Row:
    """Return the task's row as it is now."""
    base = task.base
    return Row(
        "tasks",
        (task.job.job, task.tid),
        (
            task.name,
            STATES[task.state],
            task.cid if task.cid is not None else (task.holders[0] if task.holders else None),
            task.attempt,
            encode_json(
                (
                    base if len(base) <= BASE_IN_ROW_MAX else None,
                    task.pretasks,
                    task.prekeys,
                    task.keys,
                    task.retries,
                    task.timeout_ms,
                    task.load_us,
                    task.placed,
                    task.may_extend,
                    task.failures,
                    task.failed_on,
                    task.error,
                    task.digest,
                    task.size_bytes,
                    task.holders,
                    task.event,
                    task.is_stale,
                    task.is_released,
                    task.is_wanted,
                    task.told,
                )
            ).decode(),
        ),
    )


def base_row(task: Task) -> Row | None:
    """Return the row of a base that is too long for the task's row, or None."""
    if len(task.base) <= BASE_IN_ROW_MAX:
        return None
    return Row("facts", (_base_name(task),), (task.base,))


def deletion_rows(task: Task) -> list[Row]:
    """Return the rows that delete the task from the mirror."""
    rows = [Row("tasks", (task.job.job, task.tid), None)]
    if len(task.base) > BASE_IN_ROW_MAX:
        rows.append(Row("facts", (_base_name(task),), None))
    return rows


def _base_name(task: Task) -> str:
    return f"base {task.job.job} {task.tid}"


def restore_task(
    job: Job,
    tid: TaskId,
    name: str,
    state: str,
    cid: ClientId | None,
    attempt: int,
    body: list[Any],
    find_base: Callable[[str], str],
) -> Task:
    """Return a task from its row; counters over other tasks are still zero.

    Args:
        find_base: Finds the fact named "base …", for a base that isn't in the body.
    """
    task = Task(
        job,
        tid,
        sys.intern(name),
        "",
        tuple(body[1]),
        job.share(tuple(body[2])),
        job.share(tuple(body[3])),
        body[4],
        body[5],
    )
    base = body[0] if body[0] is not None else find_base(_base_name(task))
    task.base = sys.intern(base) if len(base) < 16 else base
    task.state = _STATE_OF_NAME[state]
    task.attempt = attempt
    task.cid = cid if task.state == ASSIGNED else None
    (
        task.load_us,
        task.placed,
        task.may_extend,
        task.failures,
        task.failed_on,
        task.error,
        task.digest,
        task.size_bytes,
        holders,
        task.event,
        task.is_stale,
        task.is_released,
        task.is_wanted,
        task.told,
    ) = body[6:]
    task.holders = tuple(holders)
    return task
