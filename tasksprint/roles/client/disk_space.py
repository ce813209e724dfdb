"""A client's behaviour when the disk with its data directory fills.

First it starts no more tasks; the workbench decides that. Then it stops, while the files can
still be closed and opened again. process/free_space.py knows the limits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from tasksprint.execution.workbench import Workbench
from tasksprint.process.free_space import CHECK_S, FreeSpace, Level
from tasksprint.roles.client.ports import Turns, logger

__all__ = ["DiskSpace"]


class DiskSpace:
    """The free space of one client."""

    def __init__(
        self,
        turns: Turns,
        workbench: Workbench,
        free: FreeSpace,
        measure: Callable[[Path], Awaitable[tuple[int, int]]],
    ) -> None:
        self._turns = turns
        self._workbench = workbench
        self.free = free
        self._measure = measure

    async def watch(self) -> None:
        """Look each second, for ever."""
        free = self.free
        while True:
            before = free.level
            has_changed = free.found(*await self._measure(free.directory))
            if has_changed and before is Level.PLENTY and free.level is Level.LOW:
                logger.warning("the disk fills: %s", free.describe())  # (The workbench says more.)
            if free.level is Level.SPENT:
                self._turns.fail(free.spent("client"))
            self._workbench.disk_low(free.level >= Level.SHORT)
            self._turns.turn()
            await asyncio.sleep(CHECK_S)
