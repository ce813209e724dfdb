"""The other members of one coordinator: which are connected, and who may be heard as one of them.

The core decides (consensus/lives.py). Here it is told of connections, and what it refuses is
said to both sides; who is refused as a second process for longer than the connection of a
dead first one could look alive ends.
"""

from __future__ import annotations

import logging
from pathlib import Path

from tasksprint.consensus import Replica
from tasksprint.errors import SettingsError
from tasksprint.ids import ReplicaId
from tasksprint.net.gate import CountedWarnings
from tasksprint.roles.coordinator.ports import Roster, Turns
from tasksprint.settings import Settings

__all__ = ["Peers"]

_log = logging.getLogger("tasksprint.coordinator")


class Peers:
    """What one coordinator's streams tell."""

    def __init__(
        self, data_dir: Path, settings: Settings, turns: Turns, roster: Roster, replica: Replica
    ) -> None:
        self._data_dir = data_dir
        self._turns = turns
        self._roster = roster
        self._replica = replica
        self._warnings = CountedWarnings(_log)
        # The first and the last of the refusals that came one upon the other.
        self._refused_ms: dict[ReplicaId, tuple[int, int]] = {}
        # A machine that lost power leaves a connection behind that is found dead in this time.
        self._patience_ms = 2 * settings.unacknowledged_timeout_ms
        # One that refuses is asked again after a pause, of at most half as much more. Was it
        # cut off for longer, nobody knows whom it would have heard meanwhile.
        self._gap_ms = settings.connect_timeout_ms + 2 * settings.reconnect_pause_max_ms

    def connected(self, peer: ReplicaId) -> None:
        """Take that a peer takes frames now."""
        self._refused_ms.pop(peer, None)
        self._turns.step(self._replica.connected, peer, self._turns.now_ms())
        self._turns.wake()

    def disconnected(self, peer: ReplicaId) -> None:
        """Take that a connection with a peer broke."""
        self._turns.step(self._replica.disconnected, peer, self._turns.now_ms())
        self._turns.wake()

    def knocks(
        self, source: ReplicaId, life: int, connected: int | None, address: str
    ) -> str | None:
        """Say why a process that wants to be heard as `source` isn't; None: it is.

        Args:
            connected: The life on whose connection that replica is heard now.
            address: Where the process says that it listens.
        """
        lives = self._replica.lives
        why = lives.greet(source, life, self._turns.now_ms(), connected=connected)
        if why is None:
            return None
        known = self._roster.address_of(source) or "an unknown address"
        text = (
            f"replica {source} (at {known}) runs and {why}: another process that says it is "
            f"replica {source} (at {address}) isn't heard"
        )
        self._warnings.warn(source, f"replica={self._roster.me} peer={source} {text}")
        return text

    def refused(self, peer: ReplicaId, text: str) -> None:
        """Take that a peer hears another process in the place of this one."""
        now_ms = self._turns.now_ms()
        since_ms, last_ms = self._refused_ms.get(peer, (now_ms, now_ms))
        if now_ms - last_ms > self._gap_ms:
            since_ms = now_ms
        self._refused_ms[peer] = since_ms, now_ms
        if now_ms - since_ms > self._patience_ms:
            self._turns.fail(
                SettingsError(
                    f"data directory {str(self._data_dir)!r} is that of a replica which runs "
                    f"elsewhere; replica {peer} says: {text}"
                )
            )
