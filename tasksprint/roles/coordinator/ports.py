"""Narrow Protocols for a coordinator's parts: each asks of the others no more than it needs.

A part is made with the ports that it uses. So a test can give it others. Only the class that
makes all parts (coordinator.py) knows all of them. Imports no part.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from tasksprint.coordination.commands import Command
from tasksprint.coordination.rows import Row
from tasksprint.coordination.schedule import Schedule
from tasksprint.net.router import Misdirected
from tasksprint.roles.coordinator.decisions import Decided
from tasksprint.store.records import Commit
from tasksprint.store.replica_store import ReplicaStore
from tasksprint.store.writer import WriterThread

__all__ = ["Log", "Mirror", "NotLeader", "Turns", "Writer", "logger"]

ResultT = TypeVar("ResultT")

# All parts log here.
logger = logging.getLogger("tasksprint.coordinator")

# The thread that owns this replica's store.
Writer = WriterThread[ReplicaStore, Commit]


class NotLeader(Misdirected):
    """This replica can't decide; `leader` is the address of the one that may, if known."""

    def __init__(self, message: str, leader: str | None) -> None:
        super().__init__(message, leader=leader)
        self.leader = leader


class Turns(Protocol):
    """The loop: its clock, its next turn, and what runs beside the turns."""

    def now_ms(self) -> int:
        """Return the time: elapsed, monotonic."""

    def wake(self) -> None:
        """Ask for a turn, after what else has arrived by now."""

    def step(self, method: Callable[..., ResultT], *arguments: object) -> ResultT:
        """Call a method of a core; a bug in it stops this replica."""

    def background(self, work: Coroutine[Any, Any, ResultT]) -> asyncio.Task[ResultT]:
        """Run something for which nobody waits; its failure stops this replica."""

    def spawn(self, work: Coroutine[Any, Any, ResultT]) -> asyncio.Task[ResultT]:
        """Run something; its outcome is for the asker."""

    def fail(self, error: BaseException) -> None:
        """Stop this replica."""


class Log(Protocol):
    """The log and the state machine behind it: decisions that were made, and new proposals."""

    @property
    def schedule(self) -> Schedule | None:
        """The state machine; None: this replica isn't founded."""

    @property
    def is_current(self) -> bool:
        """Whether this replica leads, and its state holds all that former leaders decided."""

    def require_schedule(self) -> Schedule:
        """Return the state machine, or raise `NotLeader` while it can't be relied on."""

    def not_leader(self) -> NotLeader:
        """Return the error with the leader's address, or with the reason why none is known."""

    def propose(self, command: bytes) -> None:
        """Offer a command of our own, here or to the leader; it may get lost."""

    async def decide(self, command: bytes) -> bytes:
        """Get a command chosen and applied, and return the state machine's reply."""

    def decide_then(self, command: bytes, decoded: Command | None, then: Decided) -> None:
        """Do as `decide` does, and call `then` at the end: for commands by the thousand."""

    async def confirm_read(self) -> Schedule:
        """Return the state machine once it holds every command acknowledged before this call."""


class Mirror(Protocol):
    """Rows of the mirror that wait for company on their way to the disk."""

    def unwritten_rows(self, table: str, key_prefix: tuple[int | str, ...]) -> list[Row]:
        """Return the rows that aren't in any write so far, oldest first."""

    async def handed_over(self) -> None:
        """Wait until the writer has all rows of the entries applied by now: then it reads them."""
