"""The turns of a client's loop, and the timer that begins one when something is due.

Every event is told to the workbench at once. The next turn carries out the workbench's orders,
until it has none. Waiting on the outside world is done beside the turns, in tasks of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tasksprint.execution.workbench import Workbench
from tasksprint.roles.own_tasks import OwnTasks

__all__ = ["TurnLoop"]


class TurnLoop:
    """The loop of one client.

    Args:
        now_us: The client's clock.
        carry_out: Carries out one effect of the workbench.
        end_turn: Called when a turn has carried out all.
    """

    def __init__(
        self,
        workbench: Workbench,
        now_us: Callable[[], int],
        carry_out: Callable[[object], None],
        end_turn: Callable[[], None],
    ) -> None:
        self.now_us = now_us
        self._workbench = workbench
        self._carry_out = carry_out
        self._end_turn = end_turn
        self._loop = asyncio.get_running_loop()
        # Done when the client is to stop; with the error if something of its own failed.
        self.stopped: asyncio.Future[None] = self._loop.create_future()
        self._tasks = OwnTasks(self.fail)
        self.background = self._tasks.background
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms: int | None = None
        self._in_turn = False

    def now_ms(self) -> int:
        """Return elapsed milliseconds; the same clock as microseconds of run times."""
        return self.now_us() // 1_000

    def stop(self) -> None:
        """Stop in good order."""
        if not self.stopped.done():
            self.stopped.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Stop this client: its disk or its own code failed."""
        if not self.stopped.done():
            self.stopped.set_exception(error)

    async def close(self) -> None:
        """End the turns, and all that runs beside them."""
        self._in_turn = True  # No more turns: nodes that end now must not be started anew.
        await self._tasks.close()
        if self._timer is not None:
            self._timer.cancel()

    def turn(self) -> None:
        """Carry out the workbench's orders, until it has none."""
        if self._in_turn:
            return
        self._in_turn = True
        try:
            while effects := self._workbench.effects(self.now_us()):
                for effect in effects:
                    self._carry_out(effect)
            self._end_turn()
            self._arm_timer()
        except Exception as error:  # whatever it is, this client must stop
            self.fail(error)
        finally:
            self._in_turn = False

    def _arm_timer(self) -> None:
        deadline_ms = self._workbench.deadline_ms
        if deadline_ms == self._timer_ms and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_ms = deadline_ms
        if deadline_ms is not None:
            delay_s = max(deadline_ms - self.now_ms(), 0) / 1000
            self._timer = self._loop.call_later(delay_s, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self._workbench.tick(self.now_ms())
        self.turn()
