"""Which client gets a task: the nearest to its inputs, else the one with the least to do.

The open client that holds the most bytes of the inputs gets the task. If none holds any, the one
with the shortest queue for each slot gets it. Among equals it is the one with the fewest tasks,
then the one with the lowest cid. A client on which the task failed last comes after all others.
"""

from __future__ import annotations

from tasksprint.coordination.clients import Client
from tasksprint.coordination.jobs import Task
from tasksprint.coordination.placement.capacity import Capacity
from tasksprint.coordination.state import State
from tasksprint.ids import ClientId

__all__ = ["Choice"]


class Choice:
    """Chooses clients for ready tasks."""

    __slots__ = ("_capacity", "_state")

    def __init__(self, state: State, capacity: Capacity) -> None:
        self._state = state
        self._capacity = capacity

    def choose(self, task: Task, is_heavy: bool) -> Client | None:
        """Return the client for a task; None if none is open to it."""
        capacity = self._capacity
        best = capacity.least_loaded(is_heavy)
        if best is None:
            return None
        avoided = task.failed_on
        if task.spec.pretasks:
            near = self._nearest(task, is_heavy)
            if near is not None:
                return near
        if best.cid == avoided:
            return capacity.second_least_loaded(is_heavy) or best
        return best

    def _nearest(self, task: Task, is_heavy: bool) -> Client | None:
        """Return the open client that holds most bytes of the inputs, if one holds any."""
        capacity = self._capacity
        best: Client | None = None
        best_rank = (0, 0, 0, 0)
        for cid, size_bytes in self._held(task).items():
            client = self._state.clients[cid]
            if cid == task.failed_on or not capacity.is_open(client, is_heavy):
                continue
            load, count, _ = capacity.key(client, is_heavy)
            rank = (-size_bytes, load, count, cid)
            if best is None or rank < best_rank:
                best, best_rank = client, rank
        return best

    def choose_attached(self, task: Task, name: str, depth: int) -> Client | None:
        """Return the client with attached nodes for a task; None if none is open to it.

        Args:
            depth: Tasks like this one that a node may have.
        """
        capacity = self._capacity
        best: Client | None = None
        best_rank = (0, 0, 0)
        for cid, size_bytes in self._held(task).items():
            client = self._state.clients[cid]
            if cid == task.failed_on:
                continue
            load = capacity.attached_load(client, name, depth)
            if load is None:
                continue
            rank = (-size_bytes, load, cid)
            if best is None or rank < best_rank:
                best, best_rank = client, rank
        if best is None:
            best = capacity.least_attached(name, depth)
            if best is not None and best.cid == task.failed_on:
                best = capacity.second_least_attached(name, depth) or best
        return best

    @staticmethod
    def _held(task: Task) -> dict[ClientId, int]:
        """Return the clients that hold inputs of a task, each with the bytes that it holds."""
        held: dict[ClientId, int] = {}
        tasks = task.job.tasks
        for tid in task.spec.pretasks:
            pretask = tasks[tid]
            for cid in pretask.holders:
                # One more: the holder of an empty value saves a request, too.
                held[cid] = held.get(cid, 0) + pretask.size_bytes + 1
        return held
