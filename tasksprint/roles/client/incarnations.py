"""The incarnations of one client: each time that it joins it is a new one.

A client is declared dead when it was silent for too long. Then it joins anew. But a later
incarnation than its own may have taken its place. Then another process has the same identity:
somebody copied the data directory, or this very process was stopped in its tracks, got a
successor, and goes on now. If both joined again and again, neither would finish anything. So
the newest start stays, and the older one ends.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from pathlib import Path
from random import Random
from typing import Any

from tasksprint.errors import SettingsError
from tasksprint.ids import ClientId, Incarnation

__all__ = ["Incarnations"]

# A shorter incarnation doesn't count: the next join waits, twice as long each time.
_SHORT_MS = 10_000
_PAUSE_MIN_MS = 200
_PAUSE_MAX_MS = 5_000
# So many of this process's own ones are remembered: a join may be counted late.
_OWN_MAX = 100


class Incarnations:
    """A client process's knowledge of its incarnations."""

    def __init__(self, data_dir: Path, random: Random) -> None:
        self._data_dir = data_dir
        self._random = random
        self._own: deque[Incarnation] = deque(maxlen=_OWN_MAX)
        # Set while the cluster counts on this client.
        self.is_joined = asyncio.Event()
        self._joined_ms: int | None = None
        self._pause_ms = 0

    def begin(self, incarnation: Incarnation) -> Incarnation:
        """Take a new incarnation, with which this process is going to join."""
        self._own.append(incarnation)
        return incarnation

    def joined(self, now_ms: int) -> None:
        """Note that this process has joined."""
        self._joined_ms = now_ms
        self.is_joined.set()

    async def pause(self, now_ms: int) -> None:
        """Wait before joining anew, unless the last life was a long one."""
        if self._joined_ms is None or now_ms - self._joined_ms >= _SHORT_MS:
            self._pause_ms = 0
            return
        self._pause_ms = min(max(2 * self._pause_ms, _PAUSE_MIN_MS), _PAUSE_MAX_MS)
        await asyncio.sleep(self._pause_ms * (1 + self._random.random() / 2) / 1000)

    def give_way(self, cid: ClientId, told: dict[str, Any]) -> None:
        """End this life; and this process, if the coordinator names a successor.

        Raises:
            SettingsError: It does.
        """
        self.is_joined.clear()
        successor = told.get("incarnation")
        if not isinstance(successor, str) or successor in self._own:
            return
        where = f"on {told.get('hostname')!s:.80}, at {told.get('address')!s:.80}"
        raise SettingsError(
            f"client {cid} was started once more ({where}): this process, on "
            f"{socket.gethostname()} with data directory {str(self._data_dir)!r}, gives way to it",
            hint="if a data directory was copied, give each client an empty --data-dir of its own",
        )
