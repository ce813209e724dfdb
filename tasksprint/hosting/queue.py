"""Answers of one replica's scheduler that aren't chosen yet, and commands that propose them.

Most answers say nothing. A run of them is one entry, so no object is made for each.
"""

from __future__ import annotations

from collections.abc import Iterable

from tasksprint.coordination.commands import Answer, AnswerPart
from tasksprint.ids import JobId, TaskId
from tasksprint.scheduler_commands import SchedulerCommand

__all__ = ["Entry", "OwnAnswer", "proposal"]


class OwnAnswer:
    """An answer of our process; it says something, and isn't chosen yet."""

    __slots__ = ("bytes", "commands", "event", "first_tid", "last", "part")

    def __init__(
        self,
        event: int,
        part: int,
        last: bool,
        first_tid: int,
        commands: tuple[SchedulerCommand, ...],
        size: int,
    ) -> None:
        self.event = event
        self.part = part
        self.last = last
        self.first_tid = first_tid
        self.commands = commands
        self.bytes = size


# An entry of a queue: an answer, or [first_event, end_event] of answers that say nothing.
Entry = OwnAnswer | list[int]


def proposal(job: JobId, entries: Iterable[Entry], bytes_max: int) -> tuple[Answer, ...]:
    """Return the commands that propose `entries`, cut so that each has at most `bytes_max`."""
    result: list[Answer] = []
    parts: list[AnswerPart] = []
    runs: list[tuple[int, int]] = []
    size = 0
    for entry in entries:
        if isinstance(entry, list):
            runs.append((entry[0], entry[1]))
            continue
        if parts and size + entry.bytes > bytes_max:
            result.append(Answer(job, tuple(parts), tuple(runs)))
            parts, runs, size = [], [], 0
        parts.append(
            AnswerPart(
                entry.event, entry.part, entry.last, TaskId(entry.first_tid), entry.commands
            )
        )
        size += entry.bytes
    if parts or runs:
        result.append(Answer(job, tuple(parts), tuple(runs)))
    return tuple(result)

