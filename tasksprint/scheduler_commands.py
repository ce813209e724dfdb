"""The commands of a user's scheduler, as plain types; a `TaskSpec` starts a task.

The scheduler protocol parses lines into these, and the coordinator's state
machine applies them. JSON made by users is carried as the text it came in.
"""

from __future__ import annotations

from dataclasses import dataclass

from tasksprint.ids import TaskId
from tasksprint.task_spec import TaskSpec

__all__ = [
    "CLIENT_EVENTS",
    "EVENT_KINDS",
    "FailJob",
    "FinishJob",
    "HandleEvents",
    "KillTask",
    "ReleaseTasks",
    "SchedulerCommand",
    "StartTimer",
    "WriteLog",
]

# Kinds of events behind `init`: those about clients, and all.
CLIENT_EVENTS = ("client_joined", "client_dead")
EVENT_KINDS = (*CLIENT_EVENTS, "task_done", "task_failed", "timer")


@dataclass(frozen=True, slots=True)
class HandleEvents:
    """Name the events that the scheduler handles; the first command of all, or none.

    With it, a job is told of clients only if it handles events about them. And the job fails
    once no event that it handles can come any more.
    """

    kinds: tuple[str, ...]  # of EVENT_KINDS


@dataclass(frozen=True, slots=True)
class KillTask:
    """Stop a task wherever it runs, and abort what depends on it."""

    tid: TaskId


@dataclass(frozen=True, slots=True)
class FinishJob:
    """End the job with a result."""

    taskids: tuple[TaskId, ...]  # tasks whose values stay readable
    values: str  # JSON object (or any JSON), as the text that the scheduler wrote


@dataclass(frozen=True, slots=True)
class FailJob:
    """End the job as failed."""

    error: str


@dataclass(frozen=True, slots=True)
class StartTimer:
    """Raise a `timer` event once log time has advanced so far."""

    timer: int
    after_ms: int


@dataclass(frozen=True, slots=True)
class ReleaseTasks:
    """Forget finished tasks and their values; they can't be pretasks any more."""

    tids: tuple[TaskId, ...]


@dataclass(frozen=True, slots=True)
class WriteLog:
    """Keep a line of text with the job, once."""

    text: str


SchedulerCommand = (
    TaskSpec
    | KillTask
    | FinishJob
    | FailJob
    | StartTimer
    | ReleaseTasks
    | WriteLog
    | HandleEvents
)
