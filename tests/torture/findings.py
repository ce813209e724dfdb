"""What must hold of a cluster after all that: looked at by asking it, and in its files."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from random import Random

from tests.torture.audit import Audit
from tests.torture.jobs import JobRequest, what_is_wrong
from tests.torture.load import Load
from tests.torture.machines import Machines, StatesDiffer, number_of
from tests.torture.membership import Operator

__all__ = ["check_files", "settle"]

# So soon whoever was removed has been told, if anybody can tell it.
_LEAVE_S = 15.0


def settle(
    machines: Machines,
    load: Load,
    random: Random,
    tell: Callable[[str], None],
    *,
    limit_s: float,
    operator: Operator | None = None,
) -> list[str]:
    """Wait until a healed cluster has done everything that was asked of it.

    Args:
        operator: Who changed the members, if anybody.

    Returns:
        What is wrong.
    """
    deadline_s = time.monotonic() + limit_s
    wrong: list[str] = []

    def wait(condition: Callable[[], bool], what: str, found: Callable[[], object] = str) -> bool:
        while not condition():
            if time.monotonic() > deadline_s:
                wrong.append(f"not so {limit_s:.0f} s after healing: {what}{found()}")
                return False
            time.sleep(0.05)
        return True

    if operator is not None:
        wrong += _settle_members(machines, load, random, operator, deadline_s)
        if wrong:
            return wrong
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
            reason = what_is_wrong(job, json.loads(what))
            if reason is not None:
                wrong.append(f"job {number} ({job.kind}) finished with {reason}")
        elif state != "cancelled":
            wrong.append(f"job {number} is {state}: {what}")
    wrong += _check_counts(machines, load)
    tell("jobs: " + ", ".join(f"{count} {state}" for state, count in sorted(states.items())))
    if wait(lambda: load.list_jobs("end", random) is not None, "there is a list of all jobs"):
        wrong += _check_list(load)
    try:
        if wait(machines.is_level, "all replicas have applied the same: ", machines.points):
            slot, digest = next(iter(machines.points().values())) or (0, "unknown")
            tell(f"all replicas: slot {slot}, digest {str(digest)[:16]}")
    except StatesDiffer as error:
        wrong.append(str(error))
    return wrong


def _settle_members(
    machines: Machines, load: Load, random: Random, operator: Operator, deadline_s: float
) -> list[str]:
    """Bring a change of the members to its end, and see who votes."""
    operator.carry_out(random, give_up=lambda: time.monotonic() > deadline_s)
    for change in operator.take_done():
        machines.leave(change.old)
    if operator.is_busy:
        return ["a change of the members doesn't come to its end"]
    while (listing := load.list_members("end", random)) is None:
        if time.monotonic() > deadline_s:
            return ["there is no list of the members"]
        time.sleep(0.05)
    assert isinstance(listing, tuple)
    _, voters, learners, replaces, retired = listing
    expected = tuple(sorted(map(number_of, machines.coordinators)))
    if voters != expected or learners or replaces:
        return [f"the members are {listing}, expected the voters {expected} and nobody else"]
    if len(expected) != len(machines.founders):
        return [f"there are the voters {expected}, at first there were {len(machines.founders)}"]
    wrong: list[str] = []
    for name in sorted(machines.leavers):
        if number_of(name) not in retired:
            wrong.append(f"{name} was removed, but isn't in {retired}")
        leave_s = time.monotonic() + _LEAVE_S
        while machines.is_up(name):
            if time.monotonic() > leave_s and _has_no_part(machines, name):
                machines.kill(name)
            elif time.monotonic() > deadline_s:
                wrong.append(f"{name} was removed, but doesn't stop")
                break
            time.sleep(0.05)
        # It may have been killed again before it could say so.
        code = machines.processes[name].poll()
        said = machines.log(name)
        if code in (74, 78) and "lost its disk" not in said and "was removed" not in said:
            wrong.append(f"{name} ended with exit code {code} and doesn't say why")
    return wrong


def _has_no_part(machines: Machines, name: str) -> bool:
    """Whether a founding member with an empty disk waits for others that have left like it.

    If it was cut off until it was replaced, nobody is left whom it knows or who knows it.
    """
    if name not in machines.founders:
        return False
    status = machines.status(name)
    return status is not None and status["cluster"] is None


def _check_counts(machines: Machines, load: Load) -> list[str]:
    """Check that no job has more tasks than its scheduler would start once."""
    found = machines.connect().request("GET", "/v1/jobs").json()
    wrong: list[str] = []
    for each in found:
        job = load.acknowledged.get(each["job"])
        if job is None:
            continue  # The list tells.
        tasks = each["tasks"]
        started = sum(tasks.values())
        if started > job.tasks or (each["state"] == "finished" and started != job.tasks):
            wrong.append(f"job {each['job']} ({job.kind}) started {tasks}, expected {job.tasks}")
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


def check_files(machines: Machines, jobs: dict[int, JobRequest], audit: Audit) -> list[str]:
    """Check what stands in the members' mirrors, after the end of all processes."""
    wrong: list[str] = []
    first_rows: dict[int, tuple[object, ...]] = {}
    first = machines.coordinators[0]
    for name in machines.coordinators:
        folder = machines.folder / name
        if not audit.try_look(name, folder):
            wrong.append(f"{name}: its events can't be read")
            continue
        database = sqlite3.connect(folder / "replica.db")
        found = database.execute("SELECT job, name, state, body FROM jobs")
        rows = {int(job): tuple(rest) for job, *rest in found}
        database.close()
        if set(rows) != set(jobs):
            differing = sorted(set(rows) ^ set(jobs))
            wrong.append(f"{name}: jobs that nobody wants, or that are missing: {differing}")
        if name == first:
            first_rows = rows
        elif rows != first_rows:
            wrong.append(f"{name}: jobs differ from those of {first}")
    return wrong + audit.wrong
