"""The other members of one coordinator: which are connected, and who may be heard as one of them.

The core decides (consensus/lives.py). Here it is told of connections, and what it refuses is
said to both sides; who is refused as a second process for longer than the connection of a
dead first one could look alive ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasksprint.errors import SettingsError
from tasksprint.ids import ReplicaId

if TYPE_CHECKING:
    from tasksprint.roles.coordinator.coordinator import Coordinator

__all__ = ["Peers"]


class Peers:
    """What one coordinator's streams tell."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        # The first and the last of the refusals that came one upon the other.
        self._refused_ms: dict[ReplicaId, tuple[int, int]] = {}
        settings = coordinator.settings
        # A machine that lost power leaves a connection behind that is found dead in this time.
        self._patience_ms = 2 * settings.unacknowledged_timeout_ms
        # One that refuses is asked again after a pause, of at most half as much more. Was it
        # cut off for longer, nobody knows whom it would have heard meanwhile.
        self._gap_ms = settings.connect_timeout_ms + 2 * settings.reconnect_pause_max_ms

    def connected(self, peer: ReplicaId) -> None:
        """Take that a peer takes frames now."""
        self._refused_ms.pop(peer, None)
        coordinator = self._coordinator
        coordinator.step(coordinator.replica.connected, peer, coordinator.monotonic_ms())
        coordinator.wake()

    def disconnected(self, peer: ReplicaId) -> None:
        """Take that a connection with a peer broke."""
        coordinator = self._coordinator
        coordinator.step(coordinator.replica.disconnected, peer, coordinator.monotonic_ms())
        coordinator.wake()

    def knocks(
        self, source: ReplicaId, life: int, connected: int | None, address: str
    ) -> str | None:
        """Say why a process that wants to be heard as `source` isn't; None: it is.

        Args:
            connected: The life on whose connection that replica is heard now.
            address: Where the process says that it listens.
        """
        coordinator = self._coordinator
        lives, now_ms = coordinator.replica.lives, coordinator.monotonic_ms()
        why = lives.greet(source, life, now_ms, connected=connected)
        if why is None:
            return None
        known = coordinator.address_of(source) or "an unknown address"
        text = (
            f"replica {source} (at {known}) runs and {why}: another process that says it is "
            f"replica {source} (at {address}) isn't heard"
        )
        coordinator.streams.warnings.warn(
            (source, "twin"), f"replica={coordinator.options.me} peer={source} {text}"
        )
        return text

    def refused(self, peer: ReplicaId, text: str) -> None:
        """Take that a peer hears another process in the place of this one."""
        coordinator = self._coordinator
        now_ms = coordinator.monotonic_ms()
        since_ms, last_ms = self._refused_ms.get(peer, (now_ms, now_ms))
        if now_ms - last_ms > self._gap_ms:
            since_ms = now_ms
        self._refused_ms[peer] = since_ms, now_ms
        if now_ms - since_ms > self._patience_ms:
            options = coordinator.options
            coordinator.fail(
                SettingsError(
                    f"data directory {str(options.data_dir)!r} is that of a replica which runs "
                    f"elsewhere; replica {peer} says: {text}"
                )
            )
