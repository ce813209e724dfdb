"""The replicated state from the rows of the mirror, exactly as it was.

Rows hold decisions. All that follows from them (dependents, holders, the lengths of queues) is
counted anew. Nothing may depend on the order of the rows: everything is put in by its number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heapify
from typing import Any

from tasksprint.coordination.clients import client_from_row
from tasksprint.coordination.job_rows import job_from_rows
from tasksprint.coordination.jobs import Job, Task
from tasksprint.coordination.requests import Sender, sender_from_row
from tasksprint.coordination.rows import Key, Mirror, Row
from tasksprint.coordination.state import State
from tasksprint.coordination.task_rows import task_from_row
from tasksprint.coordination.task_states import ASSIGNED, DONE
from tasksprint.coordination.transitions import count_assigned
from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import StoreError
from tasksprint.ids import ClientId, JobId, ReplicaId, Slot
from tasksprint.release import Release

__all__ = ["digest_row", "estimate_row", "fill_state", "rules_of", "state_row", "wall_ms_of"]

_CLOCK = "state"
_DIGEST = "digest"


def state_row(state: State) -> Row:
    """Return the row of the facts that belong to no entity."""
    body = {
        "cluster": state.cluster,
        "rules": state.rules.version,
        "log_ms": state.log_ms,
        "wall_ms": state.wall_ms,
        "next_job": state.next_job,
        "next_cid": state.next_cid,
        "placements": state.placements,
        "last_job": state.last_job,
        "members": state.members,
    }
    return Row("facts", (_CLOCK,), (encode_json(body).decode(),))


def wall_ms_of(row: Row) -> int | None:
    """Return the wall time of the last tick from the row of `state_row`; None: another row."""
    if row.table != "facts" or row.key != (_CLOCK,) or row.columns is None:
        return None
    return int(decode_json(str(row.columns[0]).encode())["wall_ms"])


def rules_of(mirror: Mirror) -> int | None:
    """Return the version of the rules that made a mirror; None: it doesn't say yet."""
    clock = _find_fact(mirror, _CLOCK)
    return None if clock is None else int(decode_json(clock.encode())["rules"])


def digest_row(slot: Slot, digest: str) -> Row:
    """Return the row with the last applied slot and the digest; no digest covers this row."""
    return Row("facts", (_DIGEST,), (encode_json((slot, digest)).decode(),))


def fill_state(state: State, mirror: Mirror, release: Release) -> str:
    """Fill an empty state from the mirror; return its digest.

    Reads no more than it needs: the tasks of running jobs, and those that ended jobs keep; no
    event, and no answer. So the finished work of months costs a restart nothing.

    Raises:
        StoreError: The rows aren't of this cluster.
        UnknownRules: They were made by rules that the release doesn't have.
    """
    point = _find_fact(mirror, _DIGEST)
    if point is None:
        return ""
    slot, digest = decode_json(point.encode())
    state.applied = state.slot = Slot(slot)
    clock = _find_fact(mirror, _CLOCK)
    if clock is not None:
        _restore_facts(state, decode_json(clock.encode()), release)
    for (cid,), (client_state, address, body) in _read(mirror, "clients"):
        client = client_from_row(
            cid, client_state, address, decode_json(body.encode()), state.applied
        )
        state.clients[cid] = client
        state.cid_of_identity[client.identity] = cid
        if client.ended_ms is not None:
            state.dead.append((client.ended_ms, cid))
    state.dead.sort()
    _restore_senders(state, _read(mirror, "senders"))
    _restore_jobs(state, mirror)
    _restore_tasks(state, mirror)
    return str(digest)


def _read(mirror: Mirror, table: str, first: Key = (), end: Key = ()) -> Iterator[tuple[Any, Any]]:
    for row in mirror.read_range(table, first, end):
        yield row.key, row.columns


def _find_fact(mirror: Mirror, name: str) -> str | None:
    for _, (body,) in _read(mirror, "facts", (name,), (name + "\0",)):
        return str(body)
    return None


def _facts_of(mirror: Mirror, kind: str) -> Iterator[tuple[str, str]]:
    """Yield (rest of the name, body) of the facts whose names begin so."""
    # "!" is the character after the space.
    for (name,), (body,) in _read(mirror, "facts", (f"{kind} ",), (f"{kind}!",)):
        yield name[len(kind) + 1 :], body


def _restore_jobs(state: State, mirror: Mirror) -> None:
    definitions = {int(number): body for number, body in _facts_of(mirror, "job")}
    for (job_id,), (name, job_state, body) in _read(mirror, "jobs"):
        job = job_from_rows(
            job_id,
            name,
            job_state,
            decode_json(body.encode()),
            decode_json(definitions.pop(job_id).encode()),
            state.rules.retries,
        )
        state.jobs[job_id] = job
        if job.is_running:
            state.running[job_id] = job
            for task_name, estimate in _facts_of(mirror, f"estimate {job_id}"):
                job.estimates_us[task_name] = int(estimate)
            for number, timer in _facts_of(mirror, f"timer {job_id}"):
                due_ms, name = decode_json(timer.encode())
                job.timers.append((due_ms, int(number), name))
            job.timers.sort()
            state.timers_changed(job)
        else:
            assert job.ended_ms is not None
            state.ended.append((job.ended_ms, job_id))
    state.ended.sort()


def _restore_facts(state: State, body: dict[str, Any], release: Release) -> None:
    if body["cluster"] != state.cluster:
        raise StoreError(
            f"the state is of cluster {body['cluster']!r}, expected {state.cluster!r};"
            " give this replica its own --data-dir"
        )
    if body["rules"] != state.rules.version:
        state.take_rules(release.find_rules(body["rules"], "the state of this replica"))
    state.log_ms = body["log_ms"]
    state.wall_ms = body["wall_ms"]
    state.next_job = JobId(body["next_job"])
    state.next_cid = ClientId(body["next_cid"])
    state.placements = body["placements"]
    state.last_job = JobId(body["last_job"])
    state.members = tuple(ReplicaId(member) for member in body["members"])


def _restore_senders(state: State, rows: Iterable[tuple[Any, Any]]) -> None:
    senders: list[Sender] = [
        sender_from_row(name, decode_json(body.encode())) for (name,), (body,) in rows
    ]
    senders.sort(key=lambda sender: (sender.used_ms, sender.name))
    for sender in senders:
        state.senders.add(sender)


def _restore_tasks(state: State, mirror: Mirror) -> None:
    def find_base(name: str) -> str:
        base = _find_fact(mirror, name)
        assert base is not None, f"the mirror lacks {name!r}"
        return base

    for job in state.jobs.values():
        number = job.job
        ranges: list[tuple[Key, Key]] = [((number,), (number + 1,))]
        if not job.is_running:
            ranges = [((number, tid), (number, tid + 1)) for tid in job.keep]
        for first, end in ranges:
            for (_, tid), (name, task_state, cid, attempt, body) in _read(
                mirror, "tasks", first, end
            ):
                job.tasks[tid] = task_from_row(
                    job, tid, name, task_state, cid, attempt, decode_json(body.encode()), find_base
                )
    for job in state.jobs.values():
        for task in job.tasks.values():
            for holder in task.holders:
                state.clients[holder].holds.setdefault(job.job, {})[task.tid] = task
        if job.is_running:
            _link(job)
    assigned = [
        task
        for job in state.running.values()
        for task in job.tasks.values()
        if task.state == ASSIGNED
    ]
    assigned.sort(key=lambda task: task.placed)
    for task in assigned:
        _restore_assigned(state, task)
    for client in state.clients.values():
        heapify(client.extend)


def _link(job: Job) -> None:
    """Link the tasks of a running job: count their dependents, users and pending inputs."""
    tasks = job.tasks
    for task in tasks.values():
        is_unfinished = task.state < DONE
        for tid in task.spec.pretasks:
            pretask = tasks.get(tid)
            if pretask is None:
                assert not is_unfinished
                continue
            if pretask.dependents is None:
                pretask.dependents = []
            pretask.dependents.append(task.tid)
            if is_unfinished:
                pretask.users += 1
                if pretask.state != DONE:
                    task.pending += 1


def _restore_assigned(state: State, task: Task) -> None:
    assert task.cid is not None
    client = state.clients[task.cid]
    client.changes.run[task] = state.applied
    count_assigned(task, client, state.rules.ahead_us)
    if task.may_extend:
        client.extend.append((task.placed, task))


def estimate_row(job: Job, name: str) -> Row:
    """Return the row of the estimated run time of tasks of this name."""
    return Row("facts", (f"estimate {job.job} {name}",), (str(job.estimates_us[name]),))
