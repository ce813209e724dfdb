"""The next ready task: within a job by order.py, between jobs round robin.

Jobs with ready tasks stand in queues. A queue has two marks: the name of the jobs' attached
nodes (None: they have none), and the *depth* of their first ready task. Without attached nodes
the depth is 1 for a light task, and 0 for a heavy one. With them it is the number of such tasks
that a node may have. So either all jobs of a queue find a client, or none does: those that wait
for a client are passed over together. Jobs of a queue are sorted.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

from tasksprint.coordination.jobs import Job
from tasksprint.coordination.placement.estimates import load_of
from tasksprint.coordination.placement.order import first_ready, order, place_of
from tasksprint.coordination.state import State
from tasksprint.coordination.task_states import READY
from tasksprint.ids import JobId

__all__ = ["Queue", "ReadyOrder", "turn_of"]

Queue = tuple[str | None, int]  # (name of attached nodes, depth)


class ReadyOrder:
    """The queues of jobs with ready tasks."""

    __slots__ = ("_queues", "_state")

    def __init__(self, state: State) -> None:
        self._state = state
        self._queues: dict[str | None, dict[int, list[JobId]]] = {}
        for job in state.running.values():
            job.ready = order(job)
            self.requeue(job)

    def requeue(self, job: Job) -> bool:
        """Put a job into the queue of its first ready task, or into none.

        Returns:
            Whether it has a ready task.
        """
        queue: Queue | None = None
        if job.is_running:
            task = first_ready(job)
            if task is not None:
                queue = (job.attached, self._depth(job, task.spec.name))
        before = job.queue
        if queue == before:
            return queue is not None
        if before is not None:
            queues = self._queues[before[0]]
            jobs = queues[before[1]]
            del jobs[bisect_left(jobs, job.job)]
            if not jobs:
                del queues[before[1]]
                if not queues:
                    del self._queues[before[0]]
        job.queue = queue
        if queue is None:
            return False
        name, depth = queue
        insort(self._queues.setdefault(name, {}).setdefault(depth, []), job.job)
        return True

    def _depth(self, job: Job, name: str) -> int:
        rules = self._state.rules
        load_us = load_of(rules, job, name)
        if job.attached is None:
            return int(load_us < rules.ahead_us)
        return rules.ahead_us // load_us

    def queues(self, names: Iterable[str | None]) -> list[tuple[list[JobId], Queue]]:
        """Return the queues of jobs whose attached nodes have one of these names."""
        return [
            (jobs, (name, depth))
            for name in names
            for depth, jobs in self._queues.get(name, {}).items()
        ]

    def check(self) -> Iterator[Queue]:
        """Assert that the queues agree with the state; yield each of them."""
        queued = {
            (name, depth, job): None
            for name, queues in self._queues.items()
            for depth, jobs in queues.items()
            for job in jobs
        }
        assert all(jobs and jobs == sorted(jobs) for queues in self._queues.values()
                   for jobs in queues.values())  # fmt: skip
        expected: dict[tuple[str | None, int, JobId], None] = {}
        for job in self._state.running.values():
            ready = [task for task in job.tasks.values() if task.state == READY]
            if ready:
                task = min(ready, key=place_of)
                assert job.queue == (job.attached, self._depth(job, task.spec.name)), job.queue
                name, depth = job.queue
                expected[name, depth, job.job] = None
            else:
                assert job.queue is None
        assert sorted(queued, key=repr) == sorted(expected, key=repr)
        for name, queues in self._queues.items():
            for depth in queues:
                yield name, depth


def turn_of(queues: Iterable[tuple[list[JobId], Queue]], last_job: JobId) -> tuple[JobId, Queue]:
    """Return the job that comes after the last one, and its queue; there is one."""
    chosen: tuple[int, JobId] = (2, JobId(0))
    place: Queue = (None, 0)
    for jobs, queue in queues:
        turn = bisect_right(jobs, last_job)
        found = (0, jobs[turn]) if turn < len(jobs) else (1, jobs[0])
        if found < chosen:
            chosen, place = found, queue
    return chosen[1], place
