"""Answers of schedulers: which ones count, and what commands that make no sense lead to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasksprint.coordination.applied import ChosenAnswer, EmptyAnswers
from tasksprint.coordination.commands import Answer, AnswerPart, answer_digest
from tasksprint.scheduler_commands import (
    FinishJob,
    KillTask,
    ReleaseTasks,
    SchedulerCommand,
    StartTimer,
)
from tasksprint.settings import RULES
from tasksprint.task_spec import TaskSpec
from tests.coordination.world import World

MAP = TaskSpec("map")


def part(
    event: int, number: int, last: bool, first_tid: int, *commands: SchedulerCommand
) -> AnswerPart:
    return AnswerPart(event, number, last, first_tid, commands)


def chosen(
    event: int, number: int, last: bool, first_tid: int, *commands: SchedulerCommand
) -> ChosenAnswer:
    digest = answer_digest(first_tid, last, commands)
    started = sum(isinstance(command, TaskSpec) for command in commands)
    return ChosenAnswer(event, number, last, digest, started, commands)


def test_parts_count_one_after_the_other_and_only_once() -> None:
    world = World()
    job = world.submit()
    first, second = part(0, 0, False, 0, MAP, MAP), part(0, 1, True, 2, MAP)
    assert world.apply(Answer(job, (second,))).answers == ()
    assert world.apply(Answer(job, (first,))).answers == ((job, chosen(0, 0, False, 0, MAP, MAP)),)
    assert world.apply(Answer(job, (first,))).answers == ()
    applied = world.apply(Answer(job, (first, second)))
    assert applied.answers == ((job, chosen(0, 1, True, 2, MAP)),)
    assert world.states(job) == "rrr"
    digests = {
        row.key[1:]: row.columns[0]
        for row in world.mirror.rows.values()
        if row.table == "answers" and row.columns is not None
    }
    assert digests == {
        (0, 0): answer_digest(0, False, (MAP, MAP)),
        (0, 1): answer_digest(2, True, (MAP,)),
    }


def test_a_part_that_counts_on_another_tid_is_ignored_with_a_note() -> None:
    world = World()
    job = world.submit()
    applied = world.apply(Answer(job, (part(0, 0, True, 1, MAP),)))
    assert applied.answers == ()
    assert applied.notes == ("job=1 ignored 1 answers that aren't for event 0 part 0",)


def test_an_answer_to_an_event_that_was_not_raised_is_ignored() -> None:
    world = World()
    job = world.submit()
    applied = world.apply(Answer(job, (part(0, 0, True, 0), part(1, 0, True, 0, MAP))))
    assert applied.answers == ((job, EmptyAnswers(0, 1)),)
    assert world.states(job) == ""
    assert world.apply(Answer(job, (), ((1, 5),))).answers == ()


def test_runs_of_empty_answers_stand_between_parts() -> None:
    world = World()
    job = world.submit()
    for name in "abcd":
        world.join(name)
    answer = Answer(job, (part(0, 0, True, 0, MAP), part(3, 0, True, 1, MAP)), ((1, 3), (4, 5)))
    assert world.apply(answer).answers == (
        (job, chosen(0, 0, True, 0, MAP)),
        (job, EmptyAnswers(1, 3)),
        (job, chosen(3, 0, True, 1, MAP)),
        (job, EmptyAnswers(4, 5)),
    )
    assert world.apply(answer).answers == ()


def test_a_run_that_was_chosen_in_part_counts_for_the_rest() -> None:
    world = World()
    job = world.submit()
    for name in "abcd":
        world.join(name)
    world.apply(Answer(job, (), ((0, 1),)))  # Now it is told who is there.
    world.apply(Answer(job, (), ((0, 2),)))
    assert world.apply(Answer(job, (), ((0, 4),))).answers == ((job, EmptyAnswers(2, 4)),)


def test_a_run_does_not_answer_events_that_its_beginning_raises() -> None:
    """Nobody can have seen them."""
    world = World()
    world.join("a")
    job = world.submit()
    assert world.apply(Answer(job, (), ((0, 4),))).answers == ((job, EmptyAnswers(0, 1)),)
    assert world.kinds(job) == ["init", "client_joined"]


def test_an_empty_run_does_not_end_an_answer_of_which_a_part_is_missing() -> None:
    world = World()
    job = world.submit()
    world.apply(Answer(job, (part(0, 0, False, 0, MAP),)))
    assert world.apply(Answer(job, (), ((0, 1),))).answers == ()


def test_an_answer_for_a_job_that_ended_is_ignored() -> None:
    world = World()
    job = world.submit()
    world.answer(job, FinishJob((), "{}"))
    applied = world.apply(Answer(job, (part(0, 0, True, 0, MAP),)))
    assert (applied.answers, applied.notes) == ((), ())
    assert world.apply(Answer(99, (part(0, 0, True, 0, MAP),))).answers == ()


START_2 = (MAP, MAP)


@pytest.mark.parametrize(
    ("commands", "error"),
    [
        ([TaskSpec("m", pretasks=(2,), prekeys=("r",))],
         "task 2 names pretask 2, which does not exist yet"),
        ([TaskSpec("m", pretasks=(5,), prekeys=("r",))],
         "task 2 names pretask 5, which does not exist yet"),
        ([TaskSpec("m", pretasks=(0, 1), prekeys=("r",))],
         "task 2 'm' has 2 pretasks but 1 prekeys; give one key for each"),
        ([TaskSpec("m", base='["' + "x" * 1_000 + '"]')],
         "task 2 'm' has 1004 bytes of arguments, more than 1000 (base_bytes_max);"
         " let a task return large values"),
        ([KillTask(2)], "kill names task 2, which does not exist"),
        ([KillTask(0), TaskSpec("m", pretasks=(0,), prekeys=("r",))],
         "task 2 names pretask 0, which was killed"),
        ([ReleaseTasks((7,))], "release names task 7, which does not exist"),
        ([ReleaseTasks((0,))],
         "release names task 0, which is ready; only finished tasks can be released"),
        ([FinishJob((3,), "{}")], "finish names task 3, which does not exist"),
        ([FinishJob((0,), "{}")],
         "finish names task 0, which is ready; finish can only name tasks that are done"),
        ([StartTimer(1, 5)] * 1_001,
         "timer 1 is one more than the 1000 that a job may have"),
        ([MAP] * 1_101,
         "1101 commands in one part, more than 1100 (commands_per_part_max)"),
    ],
)  # fmt: skip
def test_a_command_that_makes_no_sense_fails_the_job_and_names_the_event(
    commands: list[SchedulerCommand], error: str
) -> None:
    world = World(
        rules=replace(RULES, base_bytes_max=1_000, commands_per_part_max=1_100),
        is_checked=False,
    )
    job = world.submit()
    world.answer(job, *START_2)
    world.join(slots=0)
    applied = world.answer(job, *commands)
    summary = world.schedule.job_summary(job)
    assert summary is not None
    assert summary["error"] == f"scheduler's answer to event 1: {error}"
    assert len(applied.answers) == 1, "the answer is chosen all the same"
    world.schedule.check()


def test_a_released_task_can_not_be_a_pretask_nor_be_finished_with() -> None:
    for command, error in [
        (TaskSpec("m", pretasks=(0,), prekeys=("r",)), "task 1 names pretask 0, which was"),
        (FinishJob((0,), "{}"), "finish names task 0, which was"),
    ]:
        world = World()
        client = world.join()
        job = world.submit()
        world.answer(job, MAP)
        client.work()
        world.answer(job, ReleaseTasks((0,)))
        client.poll()
        assert client.values == {}
        assert world.states(job) == ""
        assert ("tasks", (job, 0)) not in world.mirror.rows
        world.answer(job, command)
        summary = world.schedule.job_summary(job)
        assert summary is not None
        assert summary["error"] == f"scheduler's answer to event 2: {error} released"


def test_a_task_released_while_it_is_used_goes_once_nobody_uses_it() -> None:
    world = World()
    client = world.join()
    job = world.submit()
    world.answer(job, MAP, TaskSpec("use", pretasks=(0,), prekeys=("r",)))
    client.work(1)
    world.answer(job, ReleaseTasks((0,)))
    assert world.states(job) == "da"
    world.restart()
    client.work()
    assert world.states(job) == "d"
    client.poll()
    assert list(client.values) == [(job, 1)]


def test_killing_a_task_stops_it_and_aborts_what_depends_on_it() -> None:
    world = World()
    client = world.join(slots=2)
    job = world.submit()
    world.answer(
        job,
        MAP,
        MAP,
        TaskSpec("a", pretasks=(0, 1), prekeys=("r", "r")),
        TaskSpec("b", pretasks=(2,), prekeys=("r",)),
        TaskSpec("c", pretasks=(1,), prekeys=("r",)),
    )
    client.poll()
    world.answer(job, KillTask(0))
    assert world.states(job) == "kakkw"
    client.poll()
    assert [tid for _, tid in client.assigned] == [1]
    assert client.work() == [1]
    assert client.work() == [4]
    assert [event["tid"] for event in world.events[job] if event["kind"] == "task_done"] == [1, 4]


def test_killing_a_done_task_aborts_its_dependents_all_the_same() -> None:
    world = World()
    client = world.join()
    job = world.submit()
    world.answer(
        job,
        MAP,
        TaskSpec("a", pretasks=(0,), prekeys=("r",)),
        TaskSpec("b", pretasks=(1,), prekeys=("r",)),
    )
    client.work(1)
    assert world.states(job) == "daw"
    world.answer(job, KillTask(0))
    assert world.states(job) == "dkk"
    client.poll()
    assert client.assigned == {}
