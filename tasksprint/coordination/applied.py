"""The outcome of applying one entry of the log, as plain types.

The coordinator's shell and the scheduler host read these. Nothing here decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tasksprint.coordination.commands import Tick
from tasksprint.coordination.rows import Row
from tasksprint.ids import ClientId, JobId
from tasksprint.scheduler_commands import SchedulerCommand

__all__ = ["Applied", "ChosenAnswer", "EmptyAnswers", "Event"]


@dataclass(frozen=True, slots=True)
class Event:
    """One numbered event of a job, for its scheduler."""

    number: int
    line: bytes  # the JSON line as the scheduler gets it, without the newline


@dataclass(frozen=True, slots=True)
class ChosenAnswer:
    """One part of an answer that counts; every replica's scheduler must give the same."""

    event: int
    part: int
    last: bool
    digest: str  # commands.answer_digest
    tasks_started: int  # TaskSpec commands among `commands`
    commands: tuple[SchedulerCommand, ...]  # for the words of a difference


@dataclass(frozen=True, slots=True)
class EmptyAnswers:
    """Events whose chosen answer is: nothing to say (first_event <= event < end_event)."""

    first_event: int
    end_event: int


class Applied(NamedTuple):
    """The outcome of one entry."""

    replies: tuple[bytes | None, ...]  # one for each command, JSON
    events: tuple[tuple[JobId, Event], ...]
    answers: tuple[tuple[JobId, ChosenAnswer | EmptyAnswers], ...]
    rows: tuple[Row, ...]  # at most one for each (table, key)
    clients: tuple[ClientId, ...]  # with a changed view
    jobs: tuple[JobId, ...]  # started, ended, or with changed counts
    notes: tuple[str, ...]  # for the log of the process
    tick: Tick | None = None  # the last one in it
