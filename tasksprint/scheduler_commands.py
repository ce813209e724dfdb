"""What a user's scheduler may ask for, as plain types; a `TaskSpec` starts a task.

The scheduler protocol parses lines into these, and the coordinator's state
machine applies them. JSON made by users is carried as the text it came in.
"""

from __future__ import annotations

from dataclasses import dataclass

from tasksprint.ids import TaskId
from tasksprint.task_spec import TaskSpec

__all__ = [
    "FailJob",
    "FinishJob",
    "KillTask",
    "ReleaseTasks",
    "SchedulerCommand",
    "StartTimer",
    "WriteLog",
]


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
    TaskSpec | KillTask | FinishJob | FailJob | StartTimer | ReleaseTasks | WriteLog
)
