"""Waiting for commands of the log, until their replies are known.

It stands between a coordinator's handlers and its state machine: handlers want replies, and the
state machine gives them entry by entry. Knows no consensus: it is told of applied entries, and
when this replica doesn't decide any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from tasksprint.coordination.commands import Command, decode_command

__all__ = ["Decided", "Decisions"]

# Takes what the state machine replied to a command; None: this replica doesn't lead (any
# more), and the command may have been chosen all the same.
Decided = Callable[[bytes | None], None]


class Decisions:
    """Commands under way; equal bytes are one command to all who wait."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, list[Decided]] = {}
        # Commands that were decoded when they came in, until they are applied.
        self._decoded: dict[bytes, Command] = {}
        self._told: deque[tuple[Decided, bytes | None]] = deque()

    def __len__(self) -> int:
        """How many commands somebody waits for."""
        return len(self._waiting)

    def wait(self, command: bytes, then: Decided, decoded: Command | None = None) -> None:
        """Call `then` once it is known what became of a command."""
        waiting = self._waiting.get(command)
        if waiting is None:
            self._waiting[command] = [then]
        else:
            waiting.append(then)
        if decoded is not None:
            self._decoded[command] = decoded

    def decode(self, command: bytes, rules: int) -> Command:
        """Do as `decode_command`, once for each command that came in here.

        Commands that came in were read by the rules of that time; newer rules read them alike.
        """
        return self._decoded.pop(command, None) or decode_command(command, rules)

    def applied(self, commands: Sequence[bytes], replies: Sequence[bytes | None]) -> None:
        """Take the replies to an entry's commands; `tell` hands them on."""
        if not self._waiting:
            return
        for command, reply in zip(commands, replies, strict=True):
            for then in self._waiting.pop(command, ()):
                self._told.append((then, b"{}" if reply is None else reply))

    def tell(self) -> None:
        """Call everybody with an applied command."""
        while self._told:
            then, reply = self._told.popleft()
            then(reply)

    def give_up(self) -> None:
        """Tell all waiters that this replica doesn't decide (any more)."""
        waiting, self._waiting = self._waiting, {}
        self._decoded.clear()
        for takers in waiting.values():
            self._told.extend([(then, None) for then in takers])
        self.tell()
