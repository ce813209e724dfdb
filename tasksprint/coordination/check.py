"""The invariants of the replicated state, asserted one by one; for tests and for doubts.

Counts and queues that the state keeps up to date are computed anew here, in the slow,
obvious way.
"""

from __future__ import annotations

from tasksprint.coordination.clients import Client
from tasksprint.coordination.jobs import Job, Task
from tasksprint.coordination.placement.order import order
from tasksprint.coordination.state import State
from tasksprint.coordination.task_states import ASSIGNED, DONE, READY, STATES, WAITING
from tasksprint.ids import TaskId

__all__ = ["check"]


def check(state: State) -> None:
    """Assert all invariants of a state between two entries."""
    assert list(state.running) == [job.job for job in state.jobs.values() if job.is_running]
    ended = [(job.ended_ms, job.job) for job in state.jobs.values() if not job.is_running]
    assert state.ended == sorted(ended)
    dead = [(one.ended_ms, one.cid) for one in state.clients.values() if not one.is_alive]
    assert state.dead == sorted(dead)
    due = [(job.due_ms, job.job) for job in state.running.values() if job.due_ms is not None]
    assert state.due == sorted(due)
    assert state.cid_of_identity == {one.identity: cid for cid, one in state.clients.items()}
    for job in state.jobs.values():
        assert job.job < state.next_job
        if job.is_running:
            _check_job(state, job)
        else:
            _check_ended_job(job)
    for client in state.clients.values():
        _check_client(state, client)
    for sender in state.senders:
        assert all(sender.low <= request <= sender.highest for request in sender.replies)
        assert len(sender.replies) <= state.rules.replies_per_sender_max


def _check_job(state: State, job: Job) -> None:
    tasks = job.tasks
    assert list(tasks) == sorted(tasks)
    assert all(0 <= tid < job.next_tid for tid in tasks)
    assert sum(job.counts) == job.next_tid
    live = [0] * len(STATES)
    for task in tasks.values():
        live[task.state] += 1
    assert live[:DONE] == job.counts[:DONE], f"job {job.job}: {live} against {job.counts}"
    assert all(count >= 0 for count in job.counts)
    assert sum(job.counts) - sum(live) == job.next_tid - len(tasks)
    assert job.next_event <= job.event_count
    assert job.next_part == 0 or job.next_event < job.event_count
    assert job.timers == sorted(job.timers)
    assert job.is_idle == (job.idle_end_ms is not None)
    told: dict[int, int] = {}
    counted = _count(job)
    queued = dict.fromkeys(job.ready)
    assert not {*order(job)}.difference(queued), "some ready tasks aren't in the queue"
    for task in tasks.values():
        _check_task(state, task, counted[task.tid])
        if task.event is not None:
            assert task.event not in told
            told[task.event] = task.tid
            assert task.event < job.event_count
        assert (task.told is not None) == bool(task.event is not None and task.spec.keys)


class _Counted:
    """One task's counts, from the other tasks."""

    def __init__(self) -> None:
        self.users = 0
        self.ahead = 0
        self.dependents: list[TaskId] = []


def _count(job: Job) -> dict[TaskId, _Counted]:
    counted = {tid: _Counted() for tid in job.tasks}
    for task in job.tasks.values():
        for tid in task.spec.pretasks:
            assert tid < task.tid
            if tid in counted:
                counted[tid].dependents.append(task.tid)
                counted[tid].users += task.state < DONE
                counted[tid].ahead += task.state == ASSIGNED
    return counted


def _check_task(state: State, task: Task, counted: _Counted) -> None:
    tasks = task.job.tasks
    assert task.users == counted.users, f"{task}: {task.users} users, counted {counted.users}"
    live = [tid for tid in task.dependents or () if tid in tasks]
    assert len(task.dependents or ()) - len(live) <= task.gone
    assert live == counted.dependents, f"{task}: dependents {live}, not {counted.dependents}"
    if task.state == ASSIGNED:
        assert task.cid is not None
        client = state.clients[task.cid]
        assert client.is_alive
        assert task in client.changes.run
        assert task.load_us > 0
        assert task.ahead == counted.ahead, f"{task}: {task.ahead}, counted {counted.ahead}"
        for tid in task.spec.pretasks:
            pretask = tasks[tid]
            if pretask.state != DONE:
                assert pretask.cid == task.cid, f"{task} is ahead of {pretask}"
        if task.may_extend:
            assert any(entry[1] is task for entry in client.extend)
    else:
        assert task.state == DONE or counted.ahead == 0
        assert task.cid is None
        assert task.load_us == 0
        assert task.placed == 0
        assert not task.may_extend
    if task.state != DONE:
        assert not task.holders, f"{task} has holders"
    if task.state < DONE:
        pending = 0
        for tid in task.spec.pretasks:
            assert tid in tasks, f"{task} needs {tid}, which is forgotten"
            pending += tasks[tid].state != DONE
        assert task.pending == pending, f"{task}: {task.pending} pending, counted {pending}"
        assert (task.state == READY) <= (pending == 0)
        assert (task.state == WAITING) <= (pending > 0)
    if task.state == DONE:
        assert task.digest is not None
        assert not task.is_stale
        assert task.holders or not task.users, f"{task} is needed and lost"
    if task.is_released:
        assert task.users or task.state < DONE, f"{task} should be forgotten"
    for cid in task.holders:
        assert state.clients[cid].is_alive
        assert state.clients[cid].holds[task.job.job][task.tid] is task
    assert len(task.holders) == len(set(task.holders))


def _check_ended_job(job: Job) -> None:
    assert list(job.tasks) == list(job.keep)
    assert job.due is None and job.queue is None
    assert not (job.timers or job.ready or job.estimates_us or job.params)
    assert job.finishing is None
    assert job.ended_ms is not None


def _check_client(state: State, client: Client) -> None:
    assert state.cid_of_identity[client.identity] == client.cid
    assert client.cid < state.next_cid
    for job_id, held in client.holds.items():
        assert held
        assert client.is_alive
        for tid, task in held.items():
            assert state.jobs[job_id].tasks[tid] is task
            assert client.cid in task.holders
    run = list(client.changes.run)
    assert client.assigned == len(run)
    assert all(task.cid == client.cid and task.state == ASSIGNED for task in run)
    names = [task.job.attached for task in run if task.job.attached is not None]
    assert client.attached_tasks == {name: names.count(name) for name in names}
    assert all(client.attached.get(name) for name in names)
    runnable = [task for task in run if task.pending == 0]
    assert client.queued_us == sum(task.load_us for task in runnable)
    assert client.ahead_us == sum(task.load_us for task in run if task.pending)
    assert client.heavy == sum(task.load_us >= state.rules.ahead_us for task in runnable)
    slots = list(client.changes.run.values())
    assert slots == sorted(slots), "the view's changes are out of order"
    if not client.is_alive:
        assert not client.attached
        assert not run
        assert not client.extend
