"""The turns of one coordinator's loop, and the timer of the next one.

Each event marks the loop. The next turn carries out the orders that follow from all of them.
Knows when a turn is due and what ends all turns. The work of a turn is given to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tasksprint.errors import StoreDamaged
from tasksprint.roles.own_tasks import OwnTasks
from tasksprint.roles.steps import Step

__all__ = ["NEVER_MS", "LoopTurns"]

NEVER_MS = 1 << 62


class LoopTurns:
    """The turns of the running loop.

    Args:
        work: Does the work that is due at a time. Returns when it has more to do, unless
            something happens before.
        note_damage: Called with the damage of the store that ends this replica.
    """

    def __init__(
        self,
        now_ms: Callable[[], int],
        work: Callable[[int], int],
        note_damage: Callable[[StoreDamaged], None],
    ) -> None:
        self.now_ms = now_ms
        self._work = work
        self._note_damage = note_damage
        self._loop = asyncio.get_running_loop()
        self.stopped: asyncio.Future[None] = self._loop.create_future()
        self.is_over = False  # It has failed or is closed: it says and writes nothing more.
        self.is_due = False
        self.is_under_way = False
        self.step = Step(self.fail)
        self._tasks = OwnTasks(self.fail)
        self.background, self.spawn = self._tasks.background, self._tasks.spawn
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = 0

    def wake(self) -> None:
        """Ask for a turn of the loop, after what else has arrived by now."""
        if not self.is_due:
            self.is_due = True
            self._loop.call_soon(self.take)

    def take(self) -> None:
        """Run a turn at once."""
        self.is_due = False
        if self.is_over:
            return
        self.is_under_way = True
        try:
            now_ms = self.now_ms()
            self._arm_timer(self._work(now_ms), now_ms)
        except Exception as error:  # whatever it is, this replica must stop
            self.fail(error)
        self.is_under_way = False

    def _arm_timer(self, due_ms: int, now_ms: int) -> None:
        if self._timer is not None:
            if self._timer_ms <= due_ms:
                return  # A turn too early costs less than a new timer in each turn.
            self._timer.cancel()
        self._timer_ms = due_ms
        self._timer = self._loop.call_later(max(due_ms - now_ms, 0) / 1000, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self.wake()

    def stop(self) -> None:
        """Stop in good order."""
        if not self.stopped.done():
            self.stopped.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Stop this replica: it can't explain its own state or write to its disk."""
        self.is_over = True
        if isinstance(error, StoreDamaged):
            self._note_damage(error)
        if not self.stopped.done():
            self.stopped.set_exception(error)

    def end(self) -> None:
        """Run no more turns."""
        self.is_over = True
        if self._timer is not None:
            self._timer.cancel()

    async def close(self) -> None:
        """End what runs beside the turns."""
        await self._tasks.close()
