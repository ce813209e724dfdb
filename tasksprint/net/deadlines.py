"""Waiting at most so long, without losing a cancellation.

If a cancellation arrives in the same turn of the loop as the result, `asyncio.wait_for` of
Python 3.10 and 3.11 swallows it (bpo-42130): the task should end, but goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["wait_at_most", "within"]

T = TypeVar("T")


async def within(
    seconds: float, work: Coroutine[Any, Any, T], *, discard: Callable[[T], None]
) -> T:
    """Return the result of `work`.

    Args:
        discard: Takes a result that came too late for anyone to want it.

    Raises:
        asyncio.TimeoutError: It didn't end in time, and was cancelled.
    """

    def discard_result(task: asyncio.Task[T]) -> None:
        if not task.cancelled() and task.exception() is None:
            discard(task.result())

    task = asyncio.get_running_loop().create_task(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        task.cancel()
        task.add_done_callback(discard_result)
        raise
    if done:
        return task.result()
    task.cancel()
    task.add_done_callback(discard_result)
    raise asyncio.TimeoutError


async def wait_at_most(event: asyncio.Event, seconds: float) -> None:
    """Wait until the event is set, or for so long."""
    task = asyncio.get_running_loop().create_task(event.wait())
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()
