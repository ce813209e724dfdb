"""Changes of a task's state, with their effects: on counts, queues, clients, neighbours, rows.

Tasks change their states here and nowhere else, by the table of task_states.py. Other modules
decide (answers.py, results.py, lifecycle.py, liveness.py, placement/) and say what happened.
This module keeps in step with the states:

- the counts of the job, and its queue of ready tasks;
- the work of the client, and its orders to stop;
- `users` and `ahead` of the task's inputs, and `pending` of its dependents;
- the rows and views that change with the entry.

Placement looks at the end of an entry. For it, this module notes the clients whose room has
changed (`Changes.loosened`), and those that may take followers (`Changes.extendable`).
"""

from __future__ import annotations

from heapq import heapify, heappush

from tasksprint.coordination.clients import Client
from tasksprint.coordination.jobs import Task
from tasksprint.coordination.placement.order import put_ready
from tasksprint.coordination.state import STALE_ENTRIES_MAX, State
from tasksprint.coordination.task_rows import base_row, deletion_rows
from tasksprint.coordination.task_states import (
    ASSIGNED,
    ATTEMPT_ENDED,
    COMPLETED,
    DONE,
    GIVEN_UP,
    INPUT_LOST,
    INPUTS_DONE,
    KILL,
    OTHER_RESULT,
    PLACED,
    READY,
    RESULT_LOST,
    STATES,
    TRANSITIONS,
    WAITING,
    Transition,
)
from tasksprint.coordination.view import Stop
from tasksprint.ids import TaskId

__all__ = ["Transitions", "count_assigned"]

# A task's list may hold so many forgotten dependents, or more if they aren't most of it.
GONE_MAX = 16


class Transitions:
    """Moves tasks from state to state; see the module."""

    __slots__ = ("_state",)

    def __init__(self, state: State) -> None:
        self._state = state

    def _move(self, task: Task, transition: Transition) -> None:
        job = task.job
        before = task.state
        after = transition.get(before)
        if after is None:
            name = next(name for name, one in TRANSITIONS.items() if one is transition)
            raise AssertionError(f"{task} can't be {name}: it is {STATES[before]}")
        job.counts[before] -= 1
        job.counts[after] += 1
        task.state = after
        changes = self._state.changes
        changes.tasks[task] = None
        changes.jobs[job] = None

    # --- tasks begin ---

    def add(self, task: Task) -> None:
        """Take up a job's next task; `make_ready` comes next, if no input is pending."""
        job = task.job
        tid = task.tid
        tasks = job.tasks
        job.next_tid = TaskId(tid + 1)
        job.counts[WAITING] += 1
        tasks[tid] = task
        self._state.changes.tasks[task] = None
        row = base_row(task)
        if row is not None:
            self._state.put_row(row)
        pending = 0
        for pretid in task.spec.pretasks:
            pretask = tasks[pretid]
            pretask.users += 1
            if pretask.dependents is None:
                pretask.dependents = [tid]
            else:
                pretask.dependents.append(tid)
            if pretask.state != DONE:
                pending += 1
        task.pending = pending

    def make_ready(self, task: Task) -> None:
        """Queue a task whose inputs are all done."""
        self._move(task, INPUTS_DONE)
        put_ready(task)

    # --- attempts ---

    def assign(self, task: Task, client: Client, load_us: int) -> None:
        """Give a ready task to a client; or a waiting one, ahead of need."""
        self._move(task, PLACED)
        state = self._state
        task.attempt += 1
        task.cid = client.cid
        task.load_us = load_us
        state.placements = task.placed = state.placements + 1
        count_assigned(task, client, state.rules.ahead_us)
        client.changes.run[task] = state.slot
        state.changes.views[client.cid] = None
        if task.users and not task.ahead:
            self._may_extend(task, client)

    def may_follow(self, task: Task) -> None:
        """Look again for a follower of an assigned task: it got a new dependent."""
        if task.state == ASSIGNED and not task.ahead and not task.may_extend:
            assert task.cid is not None
            self._may_extend(task, self._state.clients[task.cid])
            self._state.changes.tasks[task] = None

    def _may_extend(self, task: Task, client: Client) -> None:
        extend = client.extend
        if len(extend) > 2 * client.assigned + STALE_ENTRIES_MAX:
            extend[:] = [
                (placed, one) for placed, one in extend if one.placed == placed and one.may_extend
            ]
            heapify(extend)
        task.may_extend = True
        heappush(extend, (task.placed, task))
        self._state.changes.extendable[client] = None

    def take_back(self, task: Task, *, is_told: bool) -> None:
        """Take a task from its client, and all tasks that were placed there behind it.

        Args:
            is_told: Whether the client must be told to stop this task. It needn't if it said
                itself that the attempt has ended, or is dead. It is always told about the tasks
                behind, unless it is dead.
        """
        state = self._state
        stack = [task]
        while stack:
            one = stack.pop()
            if one.state != ASSIGNED:
                continue
            assert one.cid is not None
            client = state.clients[one.cid]
            if client.is_alive and (is_told or one is not task):
                stop = Stop(one.job.job, one.tid, one.attempt)
                client.changes.stops.append((state.slot, stop))
                state.changes.views[client.cid] = None
            if one.ahead:
                tasks = one.job.tasks
                for tid in one.dependents or ():
                    dependent = tasks.get(tid)
                    if dependent is not None and dependent.state == ASSIGNED:
                        stack.append(dependent)
            self._leave(one)
            self._move(one, ATTEMPT_ENDED)
            if not one.pending:
                self.make_ready(one)

    def _leave(self, task: Task) -> None:
        """Take an assigned task out of all counts of its client."""
        assert task.cid is not None
        client = self._state.clients[task.cid]
        del client.changes.run[task]
        client.assigned -= 1
        if (name := task.job.attached) is not None:
            client.attached_tasks[name] -= 1
            if not client.attached_tasks[name]:
                del client.attached_tasks[name]
        if task.pending:
            client.ahead_us -= task.load_us
            tasks = task.job.tasks
            for tid in task.spec.pretasks:
                pretask = tasks[tid]
                if pretask.state != DONE:
                    pretask.ahead -= 1
        else:
            client.queued_us -= task.load_us
            if task.load_us >= self._state.rules.ahead_us:
                client.heavy -= 1
        task.cid = None
        task.load_us = 0
        task.placed = 0
        task.may_extend = False
        changes = self._state.changes
        changes.loosened[client] = None
        changes.extendable[client] = None

    # --- tasks end ---

    def set_aside(self, task: Task) -> None:
        """Let a task wait, assigned to nobody: it is about to be done with other bytes."""
        if task.state == ASSIGNED:
            self._leave(task)
        self._move(task, OTHER_RESULT)

    def complete(self, task: Task, client: Client) -> None:
        """Make an unfinished task done, with a result that the client holds.

        Tasks that were placed behind it stay there: their input exists there now.
        """
        if task.state == ASSIGNED:
            self._leave(task)
        self._move(task, COMPLETED)
        task.is_stale = False
        task.error = None
        task.ahead = 0  # The tasks behind it wait for it no more.
        job = task.job
        # As State.add_holder does; a task that wasn't done has no holders.
        task.holders = client.own
        held = client.holds.get(job.job)
        if held is None:
            held = client.holds[job.job] = {}
        held[task.tid] = task
        if task.dependents:
            tasks = job.tasks
            for tid in task.dependents:
                dependent = tasks.get(tid)
                if dependent is None or dependent.state >= DONE:
                    continue
                dependent.pending -= 1
                if dependent.pending == 0:
                    if dependent.state == WAITING:
                        self.make_ready(dependent)
                    else:
                        self._can_run(dependent)
        if task.spec.pretasks:
            self._let_go_of_inputs(task)
        if task.is_released and not task.users:
            self.forget(task)

    def _can_run(self, task: Task) -> None:
        """Count an assigned task among those that can run: the last of its inputs is done."""
        assert task.cid is not None
        client = self._state.clients[task.cid]
        client.ahead_us -= task.load_us
        client.queued_us += task.load_us
        self._state.changes.extendable[client] = None

    def give_up(self, task: Task, error: str) -> None:
        """Make an unassigned task failed."""
        self._move(task, GIVEN_UP)
        task.error = error
        self._let_go_of_inputs(task)

    def kill(self, task: Task) -> None:
        """Kill a task, and all tasks that depend on it; those that are done stay."""
        tasks = task.job.tasks
        stack = [task]
        seen: dict[TaskId, None] = {task.tid: None}
        while stack:
            one = stack.pop()
            for tid in one.dependents or ():
                if tid not in seen and tid in tasks:
                    seen[tid] = None
                    stack.append(tasks[tid])
            if one.state >= DONE:
                continue
            if one.state == ASSIGNED:
                self.take_back(one, is_told=True)
            self._move(one, KILL)
            one.is_stale = False
            self._let_go_of_inputs(one)
            if one.is_released and not one.users:
                self.forget(one)

    def _let_go_of_inputs(self, task: Task) -> None:
        """Note that a task has finished: it needs its inputs no more."""
        tasks = task.job.tasks
        for tid in task.spec.pretasks:
            pretask = tasks[tid]
            pretask.users -= 1
            if pretask.is_released and not pretask.users and pretask.state >= DONE:
                self.forget(pretask)

    # --- results are needed again, or no more ---

    def redo(self, task: Task) -> None:
        """Let a done task run again: its result is lost, and all of its inputs are known.

        Its unfinished dependents wait for it again, wherever they were.
        """
        tasks = task.job.tasks
        pending = 0
        for tid in task.spec.pretasks:
            pretask = tasks[tid]
            pretask.users += 1
            if pretask.state != DONE:
                pending += 1
        task.pending = pending
        dependents = [
            dependent
            for dependent in map(tasks.get, task.dependents or ())
            if dependent is not None and dependent.state < DONE
        ]
        # Before our own state changes: they were placed while we were done.
        for dependent in dependents:
            if dependent.state == ASSIGNED:
                self.take_back(dependent, is_told=True)
        self._move(task, RESULT_LOST)
        for dependent in dependents:
            dependent.pending += 1
            if dependent.state == READY:
                self._move(dependent, INPUT_LOST)
        if pending == 0:
            self.make_ready(task)
        again = self._state.changes.again
        again[task.job.job] = again.get(task.job.job, 0) + 1

    def forget(self, task: Task) -> None:
        """Let a released task go, with its values; nobody uses it any more."""
        state = self._state
        state.drop_everywhere(task)
        tasks = task.job.tasks
        del tasks[task.tid]
        for tid in task.spec.pretasks:
            pretask = tasks.get(tid)
            if pretask is None:
                continue
            # All others may use one task. It must not keep a list of all that there ever were.
            pretask.gone += 1
            dependents = pretask.dependents or []
            if pretask.gone > GONE_MAX and 2 * pretask.gone > len(dependents):
                pretask.dependents = [other for other in dependents if other in tasks]
                pretask.gone = 0
        state.changes.tasks.pop(task, None)
        for row in deletion_rows(task):
            state.put_row(row)


def count_assigned(task: Task, client: Client, ahead_us: int) -> None:
    """Count an assigned task in the work of its client.

    Args:
        ahead_us: As Rules.ahead_us.
    """
    client.assigned += 1
    if (name := task.job.attached) is not None:
        client.attached_tasks[name] = client.attached_tasks.get(name, 0) + 1
    if task.pending:
        client.ahead_us += task.load_us
        tasks = task.job.tasks
        for tid in task.spec.pretasks:
            pretask = tasks[tid]
            if pretask.state != DONE:
                pretask.ahead += 1
    else:
        client.queued_us += task.load_us
        if task.load_us >= ahead_us:
            client.heavy += 1
