"""Readings of the replicated state: clients' views, and summaries for people.

Nothing here changes replicated state. One thing alone is written: stops and drops are
forgotten once a client has named their version or a later one.
"""

from __future__ import annotations

from dataclasses import dataclass

from tasksprint.coordination.clients import Client
from tasksprint.coordination.jobs import Job, Task
from tasksprint.coordination.obstacles import Obstacles
from tasksprint.coordination.state import State
from tasksprint.coordination.task_states import DONE, STATES
from tasksprint.coordination.view import (
    Assignment,
    ClientAddress,
    DropJob,
    Input,
    JobEntry,
    View,
)
from tasksprint.ids import ClientId, Incarnation, JobId, Slot, TaskId, task_seed

__all__ = [
    "SchedulerHistory",
    "client_summary",
    "job_news",
    "job_summary",
    "living_clients",
    "scheduler_history",
    "task_info",
    "view",
]


@dataclass(frozen=True, slots=True)
class SchedulerHistory:
    """The history of a job up to now: its schedulers are fed with it and compared with it.

    The lines of the events and the digests of the answers are in the mirror.
    """

    seed: int
    program: str
    manifest: str
    event_count: int
    answered_end: tuple[int, int]  # the next unanswered (event, part)
    next_tid: TaskId
    rules: int  # the version that the job was submitted under


# --- views ---


def view(state: State, client: Client, since: Slot) -> View:
    """Return the changes for a living client since a version; see Schedule.view."""
    changes = client.changes
    if changes.forget_until(since):
        state.followed[client.cid] = since
    whole = since < changes.first_slot or since == 0 or since < state.ends_from
    tasks: list[Task] = []
    if whole:
        tasks.extend(changes.run)
    else:
        for task, slot in reversed(changes.run.items()):
            if slot <= since:
                break
            tasks.append(task)
        tasks.reverse()
    drop_jobs = [drop_job for slot, drop_job in changes.drop_jobs if slot > since]
    ends: list[DropJob] = []
    first_slot = max(since, changes.first_slot)
    for slot, _, drop_job in reversed(state.ends):
        if slot <= first_slot:
            break
        ends.append(drop_job)
    drop_jobs += reversed(ends)
    if whole:
        # Ends from before a restart of this replica aren't in the list. And a new client has
        # seen no view: nobody told it of older ends, though it may hold results of those jobs.
        told = {drop_job.job for drop_job in drop_jobs}
        drop_jobs += [
            DropJob(job.job, job.keep, job.state)
            for job in state.jobs.values()
            if not job.is_running
            and job.job not in told
            and (since == 0 or (job.ended_ms or 0) >= client.joined_ms)
        ]
    jobs: dict[JobId, JobEntry] = {}
    addresses: dict[ClientId, ClientAddress] = {}
    run = tuple([_assignment(state, client, task, jobs, addresses) for task in tasks])
    return View(
        state.applied,
        whole,
        tuple(jobs.values()),
        run,
        tuple([stop for slot, stop in changes.stops if slot > since]),
        tuple([drop for slot, drop in changes.drops if slot > since]),
        tuple(drop_jobs),
        tuple(addresses.values()),
    )


def _assignment(
    state: State,
    client: Client,
    task: Task,
    jobs: dict[JobId, JobEntry],
    addresses: dict[ClientId, ClientAddress],
) -> Assignment:
    job = task.job
    if job.job not in jobs:
        jobs[job.job] = JobEntry(job.job, job.program, job.node)
    inputs: tuple[Input, ...] = ()
    if task.spec.pretasks:
        tasks = job.tasks
        listed: list[Input] = []
        for tid, key in zip(task.spec.pretasks, task.spec.prekeys, strict=True):
            pretask = tasks[tid]
            if pretask.state == DONE:
                for cid in pretask.holders:
                    if cid not in addresses:
                        addresses[cid] = ClientAddress(cid, state.clients[cid].address)
                listed.append(Input(tid, key, pretask.digest, pretask.holders))
            else:
                listed.append(Input(tid, key, None, client.own))
        inputs = tuple(listed)
    return Assignment(
        job.job, task.tid, task.attempt, task.spec, inputs, task_seed(job.seed, task.tid)
    )


# --- for the shell ---


def living_clients(state: State) -> tuple[tuple[ClientId, Incarnation, int], ...]:
    """Return cid, incarnation and last applied request of each living client."""
    living: list[tuple[ClientId, Incarnation, int]] = []
    for client in state.clients.values():
        if client.is_alive:
            record = state.senders.get(client.sender)
            highest = record.highest if record is not None else 0
            living.append((client.cid, client.incarnation, highest))
    return tuple(living)


def scheduler_history(job: Job) -> SchedulerHistory:
    """Return the history with which a scheduler of a running job is fed and compared."""
    return SchedulerHistory(
        job.seed,
        job.program,
        job.manifest,
        job.event_count,
        (job.next_event, job.next_part),
        job.next_tid,
        job.rules,
    )


# --- for people ---


def job_news(job: Job) -> str:
    """Return a short text that changes with each piece of news of a job.

    People are told at once of the job's end, a line of its scheduler, and a failure. Counts of
    tasks change all the time, and are shown now and then.
    """
    return f"{job.state} {job.log_lines} {job.failure_count}"


def job_summary(state: State, job: Job, obstacles: Obstacles) -> dict[str, object]:
    """Return how a job stands; `seconds` are of log time."""
    end_ms = job.ended_ms if job.ended_ms is not None else state.log_ms
    obstacle = obstacles.of(job)
    return {
        "job": job.job,
        "name": job.name,
        "state": job.state,
        "tasks": dict(zip(STATES, job.counts, strict=True)),
        "seconds": (end_ms - job.submitted_ms) / 1000,
        "values": job.values,
        "error": job.error,
        "taskids": list(job.keep),
        "seed": job.seed,
        "program": job.program,
        "events": job.event_count,
        "answered_events": job.next_event,
        "submitted_wall_ms": job.submitted_wall_ms,
        "ended_wall_ms": job.ended_wall_ms,
        "log_lines": job.log_lines,
        "failures": job.failure_count,
        "obstacle": None if obstacle is None else obstacle.summary(),
        "long_run": obstacles.long_run(job),
        "warnings": list(job.warnings.values()),
        "schedulers_out": {
            str(replica): f"{kind}: {error}" for replica, (kind, error) in job.out.items()
        },
    }


def client_summary(client: Client) -> dict[str, object]:
    """Return how a client stands."""
    return {
        "cid": client.cid,
        "state": "alive" if client.is_alive else "dead",
        "address": client.address,
        "hostname": client.hostname,
        "slots": client.capacity,
        "assigned": client.assigned,
        "attached": dict(client.attached),
        "queued_us": client.queued_us,
        "ahead_us": client.ahead_us,
        "results": sum([len(held) for held in client.holds.values()]),
    }


def task_info(state: State, job: Job, tid: TaskId) -> dict[str, object] | None:
    """Return how a task stands, and the holders of its result; None: unknown (by now)."""
    task = job.tasks.get(tid)
    if task is None:
        return None
    holders = [cid for cid in task.holders if state.clients[cid].is_alive]
    addresses = [state.clients[cid].address for cid in holders]
    return {
        "job": job.job,
        "tid": tid,
        "name": task.spec.name,
        "state": STATES[task.state],
        "attempts": task.attempt,
        "failures": task.failures,
        "cid": task.cid,
        "digest": task.digest,
        "size_bytes": task.size_bytes,
        "holders": holders,
        "addresses": [address for address in addresses if address is not None],
        "error": task.error,
    }
