"""Answers of a process to its scheduler host, and orders of the host to its shell: plain types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from tasksprint.coordination.commands import Answer, SchedulerOut
from tasksprint.hosting.states import HostState
from tasksprint.scheduler_commands import SchedulerCommand

__all__ = ["DecodedAnswer", "HostEffects", "HostStatus"]


class DecodedAnswer(Protocol):
    """One part of an answer as the protocol decodes it: in order, with the right tids."""

    @property
    def event(self) -> int: ...
    @property
    def part(self) -> int: ...
    @property
    def last(self) -> bool: ...
    @property
    def commands(self) -> tuple[SchedulerCommand, ...]: ...


@dataclass(frozen=True, slots=True)
class HostEffects:
    """Orders to the shell, to be carried out now, in the order of the fields."""

    # "ask": end its input, then as `ChildProcess.stop`; "kill": at once. `exited` follows.
    stop: Literal["", "ask", "kill"]
    start: bool  # start the process; `start_failed`, or `ready` and so on, follow
    write: bytes  # whole lines for its stdin
    propose: tuple[Answer, ...]  # in order; each is small enough for one entry
    forward: bool  # this replica isn't the leader: send `propose` there
    out: SchedulerOut | None  # to be proposed as well
    notes: tuple[str, ...]  # for the log, `status` and the job's owner
    # (number, first_event, end_event): read these events, or the first of them, with the
    # digests of the answers to them. The mirror must have all that this host was told.
    # `history_read` follows. None: nothing is missing.
    read: tuple[int, int, int] | None = None
    # How an answer differed from the chosen one, for the job's owner; "": it didn't.
    differed: str = ""


@dataclass(frozen=True, slots=True)
class HostStatus:
    """How this replica's scheduler is doing, for `status`."""

    state: HostState
    answered_end: int  # first event that the process hasn't answered in this run
    event_count: int
    restarts: int
    text: str  # all of that in words
