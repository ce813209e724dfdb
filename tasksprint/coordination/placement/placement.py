"""Which client runs which task: a deterministic rule over replicated facts alone.

**Load.** A task counts in its client's queue with the estimated run time of its name. It counts
for at least Rules.task_us_min, and at most Rules.ahead_us: one slot's worth of queue. A task of
that length, or of unknown length, is *heavy*: it needs a slot of its own. The others are
*light*. A client is open to heavy tasks while it has fewer of them than capacity. It is open to
light ones while its queue is shorter than Rules.ahead_us for each slot. So a long task never
waits behind an endless queue of short ones, nor a short one for a long one.

**Order.** Ready tasks go out in the order of ready.py, each to the client that choice.py finds,
until no client is open to any. Then light tasks follow their inputs (followers.py).

**Attached nodes.** If people attach a job's nodes by hand, its tasks go only to clients with
such nodes. They are counted by name, apart from the capacity. A node may have one task if it is
heavy, and else as many as take Rules.ahead_us. None is placed ahead of need.

Everything here is a function of replicated state and the order of commands. It is asked
once, at the end of an entry; the changes of the entry stand in `State.changes`. Queues and
counts rest on Rules.ahead_us and task_us_min. So these two are the same in all versions of the
rules (tests/coordination/test_rules.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop

from tasksprint.coordination.placement.capacity import Capacity
from tasksprint.coordination.placement.choice import Choice
from tasksprint.coordination.placement.estimates import load_of
from tasksprint.coordination.placement.followers import Followers
from tasksprint.coordination.placement.order import first_ready
from tasksprint.coordination.placement.ready import Queue, ReadyOrder, turn_of
from tasksprint.coordination.state import State
from tasksprint.coordination.transitions import Transitions

__all__ = ["Placement"]


class Placement:
    """Places tasks on clients; see the module."""

    __slots__ = ("_capacity", "_choice", "_followers", "_ready", "_state", "_transitions")

    def __init__(self, state: State, transitions: Transitions) -> None:
        """Take up the state as it is, empty or restored."""
        self._state = state
        self._transitions = transitions
        self._ready = ReadyOrder(state)
        self._capacity = Capacity(state)
        self._choice = Choice(state, self._capacity)
        self._followers = Followers(state, transitions)

    def settle(self) -> None:
        """Place all tasks that can be placed, at the end of an entry."""
        changes = self._state.changes
        # Ready tasks for attached nodes of these names (None: for no attached nodes) may find
        # a client now.
        tries: dict[str | None, None] = {}
        for client in changes.loosened:
            self._capacity.enter(client)
            tries[None] = None
            for name in client.attached:
                tries[name] = None
        for job in changes.jobs:
            if self._ready.requeue(job):
                tries[job.attached] = None
        for job in changes.forgotten:  # It may have ended in this very entry.
            self._ready.requeue(job)
        if tries:
            self._place_ready(tries)
        for client in changes.extendable:
            if client.extend:
                self._followers.extend(client)

    def _place_ready(self, tries: Iterable[str | None]) -> None:
        """Give out ready tasks until no client is open to any."""
        state = self._state
        rules = state.rules
        running = state.running
        closed: set[Queue] = set()
        is_new = True
        while True:
            if is_new:
                queues = [one for one in self._ready.queues(tries) if one[1] not in closed]
                is_new = False
                if not queues:
                    return
            job_id, place = turn_of(queues, state.last_job)
            job = running[job_id]
            task = first_ready(job)
            assert task is not None
            task_name = task.spec.name
            name, depth = place
            if name is not None:
                client = self._choice.choose_attached(task, name, depth)
                load_us = 1  # It takes nothing from the client's own nodes.
            else:
                load_us = load_of(rules, job, task_name)
                client = self._choice.choose(task, load_us >= rules.ahead_us)
            if client is None:
                closed.add(place)  # Its jobs wait; others may have tasks of another weight.
                is_new = True
                continue
            heappop(job.ready)
            self._transitions.assign(task, client, load_us)
            state.last_job = job.job
            after = first_ready(job)
            if after is not None and after.spec.name is task_name:
                continue
            self._ready.requeue(job)
            is_new = is_new or job.queue != place

    def check(self) -> None:
        """Assert that the indexes agree with the state, and that nothing more can be placed."""
        self._capacity.check()
        for name, depth in self._ready.check():
            self._capacity.check_closed(name, depth)
