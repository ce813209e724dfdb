"""What a user's scheduler may ask for, as plain types.

The scheduler protocol parses lines into these, and the coordinator's state
machine applies them. JSON made by users is carried as the text it came in.
"""

from __future__ import annotations

from dataclasses import dataclass

from tasksprint.ids import TaskId

__all__ = [
    "FailJob",
    "FinishJob",
    "KillTask",
    "ReleaseTasks",
    "SchedulerCommand",
    "StartTask",
    "StartTimer",
    "WriteLog",
]


@dataclass(frozen=True, slots=True)
class StartTask:
    """Start one task; its tid is the job's next one."""

    name: str
    base: str = "[]"  # JSON array, as the text that the scheduler wrote
    pretasks: tuple[TaskId, ...] = ()
    prekeys: tuple[str, ...] = ()  # Invariant: as many as pretasks.
    keys: tuple[str, ...] = ()  # values that `task_done` hands to the scheduler
    retries: int | None = None  # attempts after the first; None: the default
    timeout_ms: int | None = None  # run time of one attempt; None: no limit


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
    StartTask | KillTask | FinishJob | FailJob | StartTimer | ReleaseTasks | WriteLog
)
