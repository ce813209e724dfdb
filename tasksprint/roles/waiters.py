"""Waiting until something changes: a client's view, a job, the state on the disk.

Knows keys and how long somebody waits. A woken waiter finds out by itself what changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["Waiters"]

KeyT = TypeVar("KeyT", bound=Hashable)


class Waiters(Generic[KeyT]):
    """Futures by key; to be used from one event loop."""

    def __init__(self) -> None:
        self._by_key: dict[KeyT, list[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        """Return how many keys somebody waits for."""
        return len(self._by_key)

    async def wait(self, key: KeyT, wait_ms: int | None = None) -> None:
        """Wait until the key is woken, or so long."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        handle = None if wait_ms is None else loop.call_later(wait_ms / 1000, _wake, future)
        self._by_key.setdefault(key, []).append(future)
        try:
            await future
        finally:
            if handle is not None:
                handle.cancel()
            self._forget(key, future)

    def wake(self, key: KeyT) -> None:
        """End the waiting of all who wait for this key."""
        for future in self._by_key.pop(key, ()):
            _wake(future)

    def wake_all(self) -> None:
        """End everybody's waiting."""
        for key in list(self._by_key):
            self.wake(key)

    def _forget(self, key: KeyT, future: asyncio.Future[None]) -> None:
        waiting = self._by_key.get(key, [])
        if future in waiting:
            waiting.remove(future)
            if not waiting:
                del self._by_key[key]


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
