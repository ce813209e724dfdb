"""Tasks placed ahead of need: each behind an input that is still being made there.

A light task may follow an input to its client, if its other inputs are done or being made
there too. At most one dependent follows each task. The loads of followers are counted apart from
those of tasks that can run (`ahead_us`), with an allowance of the same size. So chains are handed
out by the hundred, and keep no slot from other work. Followers are chosen in the order in
which their inputs were placed, so several chains share the allowance.
"""

from __future__ import annotations

from heapq import heappop

from tasksprint.coordination.clients import Client
from tasksprint.coordination.jobs import Task
from tasksprint.coordination.placement.estimates import load_of
from tasksprint.coordination.state import State
from tasksprint.coordination.task_states import DONE, WAITING
from tasksprint.coordination.transitions import Transitions

__all__ = ["Followers"]

# So many dependents of a task are looked at to find its follower.
FOLLOWERS_SEEN_MAX = 8
# A dependent with more unfinished inputs than this doesn't follow.
PENDING_AHEAD_MAX = 16


class Followers:
    """Places tasks ahead of need."""

    __slots__ = ("_state", "_transitions")

    def __init__(self, state: State, transitions: Transitions) -> None:
        self._state = state
        self._transitions = transitions

    def extend(self, client: Client) -> None:
        """Place followers on a client while its allowance lasts."""
        changes = self._state.changes
        rules = self._state.rules
        extend = client.extend
        limit_us = rules.ahead_us * client.capacity
        # Half of the places stay free for tasks that can run.
        count_max = rules.assigned_max // 2
        while extend and client.ahead_us < limit_us and client.assigned < count_max:
            placed, task = heappop(extend)
            if task.placed != placed or not task.may_extend:
                continue  # It was taken back, or placed anew, since.
            task.may_extend = False
            changes.tasks[task] = None
            follower = self._find(task, client)
            if follower is not None:
                load_us = load_of(rules, follower.job, follower.spec.name)
                self._transitions.assign(follower, client, load_us)

    def _find(self, task: Task, client: Client) -> Task | None:
        """Return the first dependent that may follow an assigned task to its client."""
        job = task.job
        if task.ahead or not task.users or job.attached is not None:
            return None
        rules = self._state.rules
        tasks = job.tasks
        cid = client.cid
        seen = 0
        for tid in task.dependents or ():
            dependent = tasks.get(tid)
            if dependent is None:
                continue  # Released; a restored replica doesn't even know its tid.
            seen += 1
            if seen > FOLLOWERS_SEEN_MAX:
                break
            if dependent.state != WAITING:
                continue
            if dependent.pending > PENDING_AHEAD_MAX or dependent.failed_on == cid:
                continue
            if load_of(rules, job, dependent.spec.name) >= rules.ahead_us:
                continue
            for other in dependent.spec.pretasks:
                pretask = tasks[other]
                if pretask.state != DONE and pretask.cid != cid:
                    break
            else:
                return dependent
        return None
