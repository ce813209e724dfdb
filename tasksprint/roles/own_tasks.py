"""The asyncio tasks of one role: none outlives it.

A small equivalent of `asyncio.TaskGroup`, which Python 3.10 doesn't have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["OwnTasks"]

ResultT = TypeVar("ResultT")


class OwnTasks:
    """The asyncio tasks that run beside the turns of a role's loop.

    Args:
        fail: Stops the role.
    """

    def __init__(self, fail: Callable[[BaseException], None]) -> None:
        self._fail = fail
        self._tasks: set[asyncio.Task[Any]] = set()

    def background(self, work: Coroutine[Any, Any, ResultT]) -> asyncio.Task[ResultT]:
        """Run something for which nobody waits; its failure is the role's."""
        task = self.spawn(work)
        task.add_done_callback(self._background_done)
        return task

    def spawn(self, work: Coroutine[Any, Any, ResultT]) -> asyncio.Task[ResultT]:
        """Run something; its outcome is for the asker."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _background_done(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    async def close(self) -> None:
        """Cancel all that still run, and wait until they have ended."""
        while self._tasks:  # One that ends may have begun another.
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
