"""Those who wait are woken by key, or when their time is over, and leave nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from tasksprint.roles.waiters import Waiters


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 20))


def test_all_who_wait_for_a_key_are_woken_and_nobody_else() -> None:
    async def main() -> None:
        waiters: Waiters[int] = Waiters()
        tasks = [asyncio.ensure_future(waiters.wait(key, 60_000)) for key in (1, 1, 2)]
        await asyncio.sleep(0)
        waiters.wake(1)
        waiters.wake(3)
        await asyncio.gather(*tasks[:2])
        assert not tasks[2].done() and len(waiters) == 1
        waiters.wake_all()
        await tasks[2]
        assert len(waiters) == 0

    run(main)


def test_who_waited_long_enough_or_was_cancelled_is_forgotten() -> None:
    async def main() -> None:
        waiters: Waiters[str] = Waiters()
        stays = asyncio.ensure_future(waiters.wait("a"))
        gone = asyncio.ensure_future(waiters.wait("a", 60_000))
        await waiters.wait("b", 1)
        gone.cancel()
        await asyncio.wait({gone})
        assert len(waiters) == 1 and not stays.done()
        waiters.wake("a")
        await stays
        assert len(waiters) == 0

    run(main)
