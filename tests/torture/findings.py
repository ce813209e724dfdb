"""What must hold of a cluster after all that: looked at by asking it, and in its files."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from random import Random

from tests.torture.load import JobRequest, Load, expected_values
from tests.torture.machines import Machines

__all__ = ["check_files", "settle"]


def settle(
    machines: Machines, load: Load, random: Random, tell: Callable[[str], None], *, limit_s: float
) -> list[str]:
    """Wait until a healed cluster has done everything that was asked of it.

    Returns:
        What is wrong.
    """
    deadline_s = time.monotonic() + limit_s
    wrong: list[str] = []

    def wait(condition: Callable[[], bool], what: str) -> bool:
        while not condition():
            if time.monotonic() > deadline_s:
                wrong.append(f"not so {limit_s:.0f} s after healing: {what}")
                return False
            time.sleep(0.05)
        return True

    # Requests that nobody acknowledged: they may be done or not, and now they shall be.
    known = {(job.sender, job.request) for job in load.acknowledged.values()}
    for job in load.requests:
        if (job.sender, job.request) not in known and not wait(
            lambda job=job: load.submit(job, random) is not None,  # type: ignore[misc]
            f"request {job.request} of {job.sender} is acknowledged",
        ):
            return wrong
    tell(f"all {len(load.requests)} jobs are acknowledged")
    states: dict[str, int] = {}
    for number, job in sorted(load.acknowledged.items()):
        status: list[tuple[object, ...]] = []

        def has_ended(number: int = number, status: list[tuple[object, ...]] = status) -> bool:
            seen = load.ask("end", number, random, wait_ms=200)
            assert seen is None or isinstance(seen, tuple)
            if seen is not None and seen[0] == "absent":
                raise _Wrong(f"acknowledged job {number} is lost")
            if seen is None or seen[0] != "ended":
                return False
            status.append(seen)
            return True

        try:
            if not wait(has_ended, f"job {number} has ended"):
                return wrong
        except _Wrong as error:
            wrong.append(str(error))
            continue
        _, state, what = status[0]
        states[str(state)] = states.get(str(state), 0) + 1
        if state == "finished":
            assert isinstance(what, str)
            if json.loads(what) != expected_values(job):
                wrong.append(
                    f"job {number} finished with {what}, expected {expected_values(job)}"
                )
        elif state != "cancelled":
            wrong.append(f"job {number} is {state}: {what}")
    tell("jobs: " + ", ".join(f"{count} {state}" for state, count in sorted(states.items())))
    if wait(lambda: load.list_jobs("end", random) is not None, "there is a list of all jobs"):
        wrong += _check_list(load)
    level: dict[str, tuple[object, object]] = {}

    def is_level() -> bool:
        level.clear()
        for name in machines.coordinators:
            found = machines.status(name)
            if found is None:
                return False
            level[name] = (found["applied_slot"], found["digest"])
        by_slot: dict[object, set[object]] = {}
        for slot, digest in level.values():
            by_slot.setdefault(slot, set()).add(digest)
        if any(len(digests) > 1 for digests in by_slot.values()):
            raise _Wrong(f"replicas differ at the same slot: {level}")
        return len(by_slot) == 1

    try:
        wait(is_level, f"all replicas have applied the same: {level}")
    except _Wrong as error:
        wrong.append(str(error))
    if level:
        slot, digest = next(iter(level.values()))
        tell(f"all replicas: slot {slot}, digest {str(digest)[:16]}")
    return wrong


class _Wrong(Exception):
    pass


def _check_list(load: Load) -> list[str]:
    """Check that the last list has the acknowledged jobs and no others."""
    listed = load.history[-1].reply
    assert isinstance(listed, tuple)
    there, expected = {job for job, _ in listed}, set(load.acknowledged)
    wrong = []
    if there - expected:
        wrong.append(f"jobs that no request is known to have made: {sorted(there - expected)}")
    if expected - there:
        wrong.append(f"acknowledged jobs are lost: {sorted(expected - there)}")
    return wrong


def check_files(machines: Machines, jobs: dict[int, JobRequest]) -> list[str]:
    """Check what stands in the mirrors, after the end of all processes.

    That each task is told once, the jobs' schedulers check themselves, for all events they
    ever got (`tests/torture/job/scheduler.py`). The mirrors keep the events of ended jobs for
    a while only; those that are there must say the same.
    """
    wrong: list[str] = []
    first_events: dict[tuple[int, int], object] = {}
    first_rows: dict[int, tuple[object, ...]] = {}
    for name in machines.coordinators:
        database = sqlite3.connect(machines.folder / name / "replica.db")
        events = {
            (int(job), int(number)): line
            for job, number, line in database.execute("SELECT job, number, line FROM events")
        }
        found = database.execute("SELECT job, name, state, body FROM jobs")
        rows = {int(job): tuple(rest) for job, *rest in found}
        database.close()
        told = [
            (job, json.loads(line)["tid"])
            for (job, _), line in events.items()
            if json.loads(line)["kind"] == "task_done"
        ]
        if len(told) != len(set(told)):
            twice = sorted({each for each in told if told.count(each) > 1})
            wrong.append(f"{name}: tasks (job, tid) that were done twice: {twice}")
        if set(rows) != set(jobs):
            differing = sorted(set(rows) ^ set(jobs))
            wrong.append(f"{name}: jobs that nobody wants, or that are missing: {differing}")
        if name == machines.coordinators[0]:
            first_events, first_rows = events, rows
        elif rows != first_rows:
            wrong.append(f"{name}: jobs differ from those of {machines.coordinators[0]}")
        elif any(first_events.get(key, line) != line for key, line in events.items()):
            wrong.append(f"{name}: events differ from those of {machines.coordinators[0]}")
    return wrong
