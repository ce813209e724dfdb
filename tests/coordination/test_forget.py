"""Ended jobs: what is given free at once, what when they are forgotten, and when that is."""

from __future__ import annotations

from dataclasses import replace

from tasksprint.coordination.commands import CancelJob, ForgetJob
from tasksprint.coordination.view import DropJob
from tasksprint.ids import JobId, Slot
from tasksprint.scheduler_commands import FinishJob
from tasksprint.settings import RULES
from tasksprint.task_spec import TaskSpec
from tests.coordination.world import World, reply_of

DAY_MS = 24 * 3_600_000


def finished_job(world: World) -> JobId:
    """Run a job to its end that keeps one result at its client."""
    client = world.join()
    job = world.submit(params='{"n":1}')
    world.answer(job, TaskSpec("map", base='"' + "x" * 1_000 + '"'))
    client.work()
    while world.schedule.scheduler_history(job).answered_end[0] < 2:
        world.answer(job)
    world.answer(job, FinishJob((0,), "1"))
    assert not world.schedule.is_running(job)
    client.poll()
    return job


def tables_of(world: World, job: JobId) -> list[str]:
    return sorted({table for table, key in world.mirror.rows if key[0] == job} - {"clients"})


def test_history_of_a_job_is_given_free_when_it_ends() -> None:
    world = World()
    job = finished_job(world)
    assert world.mirror.rows["garbage", (job,)].columns == ("history",)
    assert world.state.jobs[job].params == ""
    world.restart()
    assert world.state.jobs[job].params == ""


def test_forgotten_job_is_gone_from_memory_views_and_rows() -> None:
    world = World()
    job = finished_job(world)
    client = world.state.clients[1]
    assert client.holds
    applied = world.apply(ForgetJob("me", 1, job))
    assert reply_of(applied) == {"job": job}
    assert applied.jobs == (job,)
    assert f"job={job} forgotten" in applied.notes
    assert not client.holds
    view = world.schedule.view(client.cid, client.incarnation, Slot(world.slot - 1))
    assert view is not None and view.drop_jobs == (DropJob(job, ()),)
    assert world.schedule.job_summary(job) is None
    assert world.mirror.rows["garbage", (job,)].columns == ("all",)
    assert ("jobs", (job,)) not in world.mirror.rows
    assert ("facts", (f"job {job}",)) not in world.mirror.rows
    # What is left is read by nobody: a store deletes it bit by bit.
    assert tables_of(world, job) == ["answers", "events", "garbage", "tasks"]
    world.restart()
    assert world.schedule.jobs() == []
    assert world.submit() == job + 1


def test_forgetting_is_refused_while_the_job_runs_and_counted_once() -> None:
    world = World()
    job = world.submit()
    refusal = {"error": f"job {job} is running; cancel it first"}
    assert reply_of(world.apply(ForgetJob("me", 1, job))) == refusal
    world.apply(CancelJob("me", 2, job, "why not"))
    # The same request again is answered as it was.
    assert reply_of(world.apply(ForgetJob("me", 1, job))) == refusal
    assert reply_of(world.apply(ForgetJob("me", 3, job))) == {"job": job}
    assert reply_of(world.apply(ForgetJob("me", 3, job))) == {"job": job}
    assert reply_of(world.apply(ForgetJob("me", 4, job))) == {"error": f"there is no job {job}"}


def test_job_that_ends_and_is_forgotten_in_one_entry_is_told_as_changed() -> None:
    """Who runs its scheduler must hear of the end."""
    world = World()
    job = world.submit()
    applied = world.apply(CancelJob("me", 1, job, ""), ForgetJob("me", 2, job))
    assert applied.jobs == (job,)
    assert ("jobs", (job,)) not in world.mirror.rows
    world.restart()


def test_jobs_are_forgotten_so_long_after_their_end_in_log_time() -> None:
    rules = replace(RULES, ended_job_ms=2_500)
    world = World(rules=rules)
    first, second = world.submit(), world.submit()
    world.apply(CancelJob("me", 1, second, ""))
    world.tick(1_000)
    world.apply(CancelJob("me", 2, first, ""))
    world.restart()
    for _ in range(2):
        world.tick(700)
    assert [job["job"] for job in world.schedule.jobs()] == [first, second]
    world.tick(200)
    assert [job["job"] for job in world.schedule.jobs()] == [first]
    world.tick(1_000)
    assert world.schedule.jobs() == []


def test_oldest_ended_jobs_are_forgotten_when_there_are_too_many() -> None:
    world = World(rules=replace(RULES, ended_jobs_max=2))
    jobs = [world.submit() for _ in range(5)]
    for number, job in enumerate(reversed(jobs)):
        world.apply(CancelJob("me", number, job, ""))
        world.restart()
    running = world.submit()
    world.tick(1)
    # They ended at the same log time: the lower numbers count as older.
    assert [job["job"] for job in world.schedule.jobs()] == [*jobs[3:], running]


def test_one_tick_forgets_a_bounded_number_of_jobs() -> None:
    world = World(rules=replace(RULES, ended_jobs_max=1), is_checked=False)
    for number in range(RULES.forgotten_per_tick_max + 11):
        world.apply(CancelJob("me", number, world.submit(), ""))
    world.tick(1)
    assert len(world.schedule.jobs()) == 11
    world.tick(1)
    assert len(world.schedule.jobs()) == 1
    world.schedule.check()


def test_job_that_ends_and_is_forgotten_in_one_entry_waits_for_no_client() -> None:
    """It stayed in the queue of those with ready tasks: the next placement raised."""
    world = World()
    job, other = world.submit(), world.submit()
    world.answer(job, TaskSpec("map"))
    world.apply(CancelJob("me", 1, job, "enough"), ForgetJob("me", 2, job))
    client = world.join("a", slots=1)
    world.answer(other, TaskSpec("map"))
    client.poll()
    assert [one.job for one in client.assigned.values()] == [other]
