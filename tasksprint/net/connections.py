"""The connections of one server: some may stay, and some must make room.

A connection is a stranger's until a request on it has proved the cluster key, or a token.
Strangers get a small share of all connections. When another stranger comes, the oldest one
goes: a holder of the key proves it within milliseconds. So a crowd of strangers never takes
the place of a client, a coordinator or an operator.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from tasksprint.net.gate import CountedWarnings
from tasksprint.net.reading import new_read_buffer
from tasksprint.settings import Settings

__all__ = ["Connections", "OpenConnection"]

# Bytes read at once from a stranger. A head of ours fits, and a crowd of requests in one
# packet makes no crowd of answers.
_STRANGER_READ_BYTES = 4 * 1024


class OpenConnection(Protocol):
    """A connection, as far as its place among others goes."""

    peer: str
    task: asyncio.Task[None] | None
    stranger_since: float

    def abort(self) -> None:
        """Close at once."""
        ...

    def close_when_idle(self) -> None:
        """Close once no answer is under way."""
        ...

    def is_stuck(self, now: float) -> bool:
        """Whether its peer has not moved for too long."""
        ...


class Connections:
    """All of one server.

    Args:
        warn: Logs refused and dropped connections, counted by kind.
    """

    def __init__(self, settings: Settings, warnings: CountedWarnings) -> None:
        self._settings = settings
        self._warnings = warnings
        self.open: set[OpenConnection] = set()
        self._strangers: dict[OpenConnection, None] = {}  # the oldest first
        self.read_buffer = new_read_buffer()
        self.stranger_read_buffer = self.read_buffer[:_STRANGER_READ_BYTES]
        self.upgraded: set[asyncio.Transport] = set()  # left HTTP; closed with the server

    def try_add(self, connection: OpenConnection) -> bool:
        """Take a new connection, in place of the oldest stranger if it must; False: no room.

        Even then it counts, for as long as it stands.
        """
        settings = self._settings
        has_room = len(self.open) < settings.connections_max
        if not has_room or len(self._strangers) >= settings.unproven_connections_max:
            has_room |= self.try_drop_stranger("too many connections without a proof")
        self.open.add(connection)
        self._strangers[connection] = None
        if not has_room:
            self._warnings.warn("full", f"peer={connection.peer} refused: too many connections")
        return has_room

    def proved(self, connection: OpenConnection) -> None:
        """Take note that a connection is no stranger's."""
        self._strangers.pop(connection, None)

    def remove(self, connection: OpenConnection) -> None:
        """Forget a connection that is gone."""
        self.open.discard(connection)
        self._strangers.pop(connection, None)

    def try_drop_stranger(self, why: str) -> bool:
        """Drop the stranger that came first; False: there is none."""
        oldest = next(iter(self._strangers), None)
        if oldest is None:
            return False
        self.remove(oldest)
        self._warnings.warn(why, f"peer={oldest.peer} dropped: {why}")
        oldest.abort()
        return True

    def sweep(self, now: float, tell_bug: Callable[[str, BaseException], None]) -> None:
        """Drop connections that were idle for too long, or took too long to prove anything."""
        patience_s = self._settings.unproven_deadline_ms / 1000
        for connection in list(self.open):
            try:
                is_late = connection in self._strangers and (
                    now - connection.stranger_since > patience_s
                )
                if is_late or connection.is_stuck(now):
                    connection.abort()
            except Exception as error:  # The others are looked at all the same.
                tell_bug(f"sweeping the connection of {connection.peer}", error)

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return the tasks of the answers under way."""
        return [connection.task for connection in self.open if connection.task]

    def keep_upgraded(self, transport: asyncio.Transport) -> None:
        """Remember a connection that left HTTP."""
        self.upgraded = {known for known in self.upgraded if not known.is_closing()}
        self.upgraded.add(transport)
