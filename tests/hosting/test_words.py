"""What the author of a scheduler reads when it differs."""

from __future__ import annotations

import pytest

from tasksprint.hosting.words import (
    describe_command,
    describe_difference,
    describe_event,
)
from tasksprint.ids import TaskId
from tasksprint.scheduler_commands import (
    FailJob,
    FinishJob,
    KillTask,
    ReleaseTasks,
    SchedulerCommand,
    StartTimer,
    WriteLog,
)
from tasksprint.task_spec import TaskSpec


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"event":4,"kind":"task_done","tid":17,"values":{}}', "event 4 task_done(17)"),
        (b'{"event":4,"kind":"client_dead","cid":3}', "event 4 client_dead(3)"),
        (b'{"event":4,"kind":"timer","timer":1}', "event 4 timer(1)"),
        (b'{"event":4,"kind":"init","seed":1}', "event 4 init()"),
        (b"", "event 4"),
        (b"[]", "event 4"),
    ],
)
def test_event_in_words(line: bytes, words: str) -> None:
    assert describe_event(4, line) == words


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (TaskSpec("map"), "start map"),
        (KillTask(TaskId(4)), "kill 4"),
        (FinishJob((TaskId(1), TaskId(2)), "{}"), "finish [1, 2]"),
        (FailJob("no luck"), "fail 'no luck'"),
        (StartTimer(1, 500), "timer 1 after 500 ms"),
        (ReleaseTasks((TaskId(1),)), "release [1]"),
        (WriteLog("x" * 100), "log '" + "x" * 76 + "..."),
    ],
)
def test_command_in_words(command: SchedulerCommand, words: str) -> None:
    assert describe_command(command) == words


def test_difference_names_the_first_commands_that_differ() -> None:
    log: list[SchedulerCommand] = [TaskSpec("a"), TaskSpec("b"), TaskSpec("c")]
    own: list[SchedulerCommand] = [TaskSpec("a"), KillTask(TaskId(0)), TaskSpec("d")]
    assert describe_difference(log, own) == ("start b", "kill 0")


def test_difference_of_lengths() -> None:
    start = TaskSpec("a")
    assert describe_difference([start], []) == ("start a", "nothing")
    assert describe_difference([start], [start, KillTask(TaskId(0))]) == ("nothing more", "kill 0")


def test_difference_of_arguments_names_the_member() -> None:
    log, own = TaskSpec("a", pretasks=(TaskId(1),)), TaskSpec("a", pretasks=(TaskId(2),))
    assert describe_difference([log], [own]) == (
        "start a with pretasks (1,)",
        "start a with pretasks (2,)",
    )


def test_difference_of_long_arguments_is_shown_where_they_part() -> None:
    log = TaskSpec("a", base="[" + "7," * 500 + "1]")
    own = TaskSpec("a", base="[" + "7," * 500 + "2]")
    said, this = describe_difference([log], [own])
    assert said == "start a with base ..." + "7," * 20 + "1]"
    assert this == "start a with base ..." + "7," * 20 + "2]"
    assert len(said) < 100


def test_difference_of_the_last_mark() -> None:
    log = own = [TaskSpec("a")]
    assert describe_difference(log, own, log_last=False) == (
        "that the answer goes on",
        "that it ends",
    )
    assert describe_difference(log, own, own_last=False) == (
        "that it ends",
        "that the answer goes on",
    )
