"""Jobs whose schedulers say which events they handle: what they are told, and when they fail."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasksprint.coordination.commands import Answer, AnswerPart, RaiseRules, encode_command
from tasksprint.coordination.obstacles import nothing_left
from tasksprint.ids import JobId, TaskId
from tasksprint.scheduler_commands import (
    CLIENT_EVENTS,
    HandleEvents,
    KillTask,
    SchedulerCommand,
    StartTimer,
    WriteLog,
)
from tasksprint.settings import RULES, RULES_BY_VERSION
from tasksprint.task_spec import TaskSpec
from tests.coordination.world import World

# What the SDK says of a class that has no handler for clients.
NO_CLIENTS = HandleEvents(("task_done", "task_failed", "timer"))
IDLE_MS = 3_000


def idle_world() -> World:
    return World(rules=replace(RULES, idle_job_ms=IDLE_MS))


def begin(world: World, *commands: SchedulerCommand) -> JobId:
    job = world.submit()
    world.answer(job, *commands)
    return job


def state(world: World, job: JobId) -> tuple[object, object]:
    summary = world.schedule.job_summary(job)
    assert summary is not None
    return summary["state"], summary["error"]


def wait(world: World, span_ms: int) -> None:
    for _ in range(span_ms // 500):
        world.tick(500)


# --- what a job is told ---


@pytest.mark.parametrize(
    ("handles", "told"),
    [
        ((), []),
        (("task_done", "task_failed", "timer"), []),
        (("client_joined",), ["client_joined"] * 2),
        (("client_dead",), ["client_dead"]),
        (CLIENT_EVENTS, ["client_joined", "client_joined", "client_dead"]),
    ],
)
def test_a_job_is_told_of_clients_only_what_it_handles(
    handles: tuple[str, ...], told: list[str]
) -> None:
    world = World()
    first = world.join("a")
    job = begin(world, HandleEvents(handles))
    world.join("b")
    world.restart()
    first.leave()
    assert world.kinds(job) == ["init", *told]


def test_other_events_come_whatever_a_job_handles() -> None:
    """Its scheduler has something to do about them even if the class defines nothing."""
    world = World()
    client = world.join()
    job = begin(world, HandleEvents(()), TaskSpec("map"), StartTimer(1, 400))
    client.work()
    world.tick(500)
    assert world.kinds(job) == ["init", "task_done", "timer"]


@pytest.mark.parametrize("is_empty", [False, True])
def test_a_job_that_does_not_say_what_it_handles_is_told_all(is_empty: bool) -> None:
    """Programs with the SDK of the last release, or without one."""
    world = World()
    first = world.join("a")
    job = world.submit()
    assert world.kinds(job) == ["init"]
    if is_empty:
        world.answer_rest(job)
    else:
        world.answer(job, WriteLog("hi"), last=False)
    world.join("b")
    first.leave()
    told = ["client_joined", "client_joined", "client_dead"]
    assert world.kinds(job) == ["init", *told]


def test_clients_that_come_and_go_before_a_job_has_answered_are_told_as_they_are_then() -> None:
    world = World()
    first, job = world.join("a"), world.submit()
    world.join("b")
    first.leave()
    world.answer(job, HandleEvents(CLIENT_EVENTS))
    assert [event.get("cid") for event in world.events[job]] == [None, 2]


def test_a_job_that_began_under_older_rules_is_told_all_after_they_were_raised() -> None:
    world = World(rules=RULES_BY_VERSION[1])
    world.join("a")
    job = world.submit()
    world.apply(RaiseRules(2))
    assert world.kinds(job) == ["init", "client_joined"]
    world.answer_rest(job)
    world.join("b")
    assert world.kinds(job) == ["init", "client_joined", "client_joined"]


def test_under_older_rules_an_answer_that_says_what_is_handled_is_no_command() -> None:
    """Release 0.2.0 can't read it: the state must be the one that it has."""
    world = World(rules=RULES_BY_VERSION[1])
    job = world.submit()
    said = AnswerPart(0, 0, True, TaskId(0), (NO_CLIENTS, WriteLog("hi")))
    digest = world.schedule.digest
    applied = world.apply(encode_command(Answer(job, (said,))))
    assert applied.notes == ("ignored bytes that are not a command: 'h'",)
    assert world.schedule.digest == digest


def test_what_is_handled_can_only_be_said_first() -> None:
    world = World()
    job = begin(world, WriteLog("hi"), NO_CLIENTS)
    assert state(world, job) == (
        "failed",
        "scheduler's answer to event 0: 'handles' can only begin the answer to event 0",
    )


# --- jobs that can't go on ---


def test_a_job_that_nothing_can_come_to_fails_with_its_obstacle() -> None:
    """Its scheduler forgot to call finish: nobody would ever see an end."""
    world = idle_world()
    client = world.join()
    job = begin(world, NO_CLIENTS, TaskSpec("map"))
    wait(world, 2 * IDLE_MS)
    assert state(world, job) == ("running", None), "its task runs"
    client.work()
    wait(world, 2 * IDLE_MS)
    assert state(world, job) == ("running", None), "its scheduler hasn't answered"
    world.answer_rest(job)
    wait(world, 1_000)
    summary = world.schedule.job_summary(job)
    assert summary is not None
    assert summary["obstacle"] == {
        "kind": "nothing_left",
        "text": "its scheduler started nothing more and never called finish: it fails in 2 s",
        "hint": "",
    }
    world.restart()
    world.join("b")
    assert world.schedule.next_timer_ms == world.schedule.log_time_ms + 2_000
    wait(world, 1_500)
    assert state(world, job) == ("running", None)
    wait(world, 500)
    assert state(world, job) == (
        "failed",
        "its scheduler started nothing more and never called finish",
    )
    assert world.schedule.next_timer_ms is None


def test_a_job_that_started_nothing_fails_and_one_that_waits_for_a_failed_task() -> None:
    world = idle_world()
    client = world.join()
    nothing = begin(world, NO_CLIENTS)
    lost = begin(
        world,
        NO_CLIENTS,
        TaskSpec("first", retries=0),
        TaskSpec("second", pretasks=(TaskId(0),), prekeys=("x",)),
    )
    client.fail(0)
    world.answer_rest(lost)
    why = nothing_left(world.state.jobs[lost])
    wait(world, IDLE_MS)
    assert state(world, nothing) == (
        "failed",
        "its scheduler started no task and never called finish",
    )
    assert state(world, lost) == ("failed", why)
    assert why == (
        "1 task waits for task 0 'first', which failed, and its scheduler never called finish"
    )


@pytest.mark.parametrize("said", [None, HandleEvents(("client_joined",))])
def test_a_job_that_hears_of_clients_waits_for_them(said: HandleEvents | None) -> None:
    world = idle_world()
    job = begin(world, *([] if said is None else [said]))
    wait(world, 3 * IDLE_MS)
    assert state(world, job) == ("running", None)


def test_a_job_with_a_timer_waits_for_it_and_then_its_time_begins() -> None:
    world = idle_world()
    job = begin(world, NO_CLIENTS, StartTimer(1, 2 * IDLE_MS))
    wait(world, 2 * IDLE_MS)
    assert world.kinds(job) == ["init", "timer"]
    world.answer_rest(job)
    wait(world, IDLE_MS - 500)
    assert state(world, job)[0] == "running"
    wait(world, 500)
    assert state(world, job)[0] == "failed"


def test_time_begins_anew_for_a_job_that_went_on() -> None:
    """A result that is lost is computed again: nobody is told, and it counts as moving."""
    world = idle_world()
    client, other = world.join("a"), world.join("b")
    job = begin(
        world,
        NO_CLIENTS,
        TaskSpec("kept"),
        TaskSpec("bad", retries=0),
        TaskSpec("both", pretasks=(TaskId(0), TaskId(1)), prekeys=("x", "x")),
    )
    for one in (client, other):
        one.poll()
    holder = next(one for one in (client, other) if (job, TaskId(0)) in one.assigned)
    failing = client if holder is other else other
    holder.work()
    failing.fail(1)
    world.answer_rest(job)
    wait(world, IDLE_MS - 500)
    holder.leave()
    assert world.state_of(job, 0) == "assigned"
    wait(world, IDLE_MS)
    assert state(world, job)[0] == "running"
    failing.work()
    wait(world, IDLE_MS - 500)
    assert state(world, job)[0] == "running"
    wait(world, 500)
    assert state(world, job)[0] == "failed"


def test_a_killed_task_leaves_nothing_that_can_come() -> None:
    world = idle_world()
    world.join()
    job = begin(world, NO_CLIENTS, TaskSpec("map"), KillTask(TaskId(0)))
    wait(world, IDLE_MS)
    assert state(world, job)[0] == "failed"
