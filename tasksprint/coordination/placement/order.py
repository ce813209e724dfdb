"""The order of a job's ready tasks: by priority, higher first, then by tid.

`Job.ready` is a heap of places in that order. Entries of tasks that aren't ready any more
stay in it until they are on top, or there are too many of them.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from tasksprint.coordination.jobs import Job, Task
from tasksprint.coordination.state import STALE_ENTRIES_MAX
from tasksprint.coordination.task_states import READY
from tasksprint.ids import TaskId

__all__ = ["first_ready", "order", "place_of", "put_ready"]

# More than there are tasks in a job.
_TIDS = 2**53


def place_of(task: Task) -> int:
    """Return the place of a task among the ready ones: the lowest is next."""
    return task.tid - task.spec.priority * _TIDS


def _task_at(job: Job, place: int) -> Task | None:
    """Return the task with this place, if it is ready still."""
    task = job.tasks.get(TaskId(place % _TIDS))
    return task if task is not None and task.state == READY else None


def put_ready(task: Task) -> None:
    """Queue a task that has become ready."""
    job = task.job
    heappush(job.ready, place_of(task))
    if len(job.ready) > 2 * job.counts[READY] + STALE_ENTRIES_MAX:
        job.ready = sorted(
            place for place in dict.fromkeys(job.ready) if _task_at(job, place) is not None
        )


def first_ready(job: Job) -> Task | None:
    """Return the ready task of a job that is next, with its place on top of `Job.ready`."""
    ready = job.ready
    find: Callable[[int], Task | None] = job.tasks.get  # type: ignore[assignment]
    while ready:
        task = find(ready[0] % _TIDS)
        if task is not None and task.state == READY:
            return task
        heappop(ready)
    return None


def order(job: Job) -> list[int]:
    """Return the places of all tasks that are ready by the state, in order."""
    return sorted(place_of(task) for task in job.tasks.values() if task.state == READY)
