"""The rows of a task, and the task from its row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tasksprint.coordination.jobs import Job, Task
from tasksprint.coordination.rows import Row
from tasksprint.coordination.task_states import ASSIGNED, STATES
from tasksprint.encoding import encode_json
from tasksprint.ids import ClientId, TaskId
from tasksprint.task_spec import compact_spec, later_of

__all__ = ["base_row", "deletion_rows", "task_from_row", "task_row"]

_STATE_OF_NAME = {name: state for state, name in enumerate(STATES)}

# A longer base has a row of its own, so that it is written once and not at each change.
BASE_IN_ROW_MAX = 512

# The number of a row's members about the task's state; attributes of later rules stand behind.
_STATE_COUNT = 14


def task_row(task: Task) -> Row:
    """Return the task's row as it is now."""
    spec = task.spec
    base = spec.base
    return Row(
        "tasks",
        (task.job.job, task.tid),
        (
            spec.name,
            STATES[task.state],
            task.cid if task.cid is not None else (task.holders[0] if task.holders else None),
            task.attempt,
            encode_json(
                (
                    base if len(base) <= BASE_IN_ROW_MAX else None,
                    spec.pretasks,
                    spec.prekeys,
                    spec.keys,
                    spec.retries,
                    spec.timeout_ms,
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
                    *later_of(spec),
                )
            ).decode(),
        ),
    )


def base_row(task: Task) -> Row | None:
    """Return the row of a base that is too long for the task's row, or None."""
    base = task.spec.base
    if len(base) <= BASE_IN_ROW_MAX:
        return None
    return Row("facts", (_base_name(task.job, task.tid),), (base,))


def deletion_rows(task: Task) -> list[Row]:
    """Return the rows that delete the task from the mirror."""
    rows = [Row("tasks", (task.job.job, task.tid), None)]
    if len(task.spec.base) > BASE_IN_ROW_MAX:
        rows.append(Row("facts", (_base_name(task.job, task.tid),), None))
    return rows


def _base_name(job: Job, tid: TaskId) -> str:
    return f"base {job.job} {tid}"


def task_from_row(
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
    base, pretasks, prekeys, keys, retries, timeout_ms, *rest = body
    rest, later = rest[:_STATE_COUNT], rest[_STATE_COUNT:]
    if base is None:
        base = find_base(_base_name(job, tid))
    task = Task(
        job,
        tid,
        compact_spec(
            name, base, tuple(pretasks), tuple(prekeys), tuple(keys), retries, timeout_ms, *later
        ),
    )
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
    ) = rest
    task.holders = tuple(holders)
    return task
