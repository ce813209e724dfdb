"""An asyncio loop on virtual time: for one simulated process, many of them on one timeline.

It runs real asyncio code (tasks, futures, sleeps, deadlines) without sockets, threads or a
clock. Timers are events of the timeline; what is due runs in iterations, as on a real
loop: whatever became due by then, and what that asks for in the next one. Between two
iterations time passes, so that others get their turn. A loop can be frozen (what becomes due
waits) and killed (nothing ever runs again).

Not simulated: anything that takes a file descriptor, signals, contexts of contextvars.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from tests.simulation.timeline import Timeline

__all__ = ["VirtualLoop"]

# Virtual milliseconds that an iteration takes, and now and then a long one (at most).
_ITERATION_MS = 0.02
_LONG_MS = 4.0
# Virtual milliseconds that work on another thread takes, at most.
_THREAD_MS = 5.0


class _Handle:
    """A callback that waits; may be cancelled."""

    __slots__ = ("arguments", "callback", "is_cancelled", "when_s")

    def __init__(
        self, callback: Callable[..., Any], arguments: tuple[Any, ...], when_s: float = 0.0
    ) -> None:
        self.callback = callback
        self.arguments = arguments
        self.is_cancelled = False
        self.when_s = when_s

    def cancel(self) -> None:
        self.is_cancelled = True
        self.callback = _nothing
        self.arguments = ()

    def cancelled(self) -> bool:
        return self.is_cancelled

    def when(self) -> float:
        return self.when_s


def _nothing() -> None:
    pass


class VirtualLoop(asyncio.AbstractEventLoop):
    """The loop of one process.

    Args:
        rate: How many of its own seconds pass in a true one.
        long_share: Of its iterations, so many take long.
        on_exception: Takes whatever a callback raises.
    """

    def __init__(
        self,
        timeline: Timeline,
        random: Random,
        *,
        rate: float = 1.0,
        offset_ms: float = 0.0,
        long_share: float = 0.0,
        on_exception: Callable[[BaseException], None],
    ) -> None:
        self._timeline = timeline
        self._random = random
        self._rate = rate
        self._offset_ms = offset_ms
        self._long_share = long_share
        self._on_exception = on_exception
        self._ready: deque[_Handle] = deque()
        self._late_timers: list[_Handle] = []  # that became due while it was frozen
        self._iteration_is_due = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self.is_dead = False
        self.is_frozen = False
        self.busy_until = 0.0  # true milliseconds; what it does now takes until then
        self.after_iteration: Callable[[], None] | None = None

    def spend(self, span_ms: float) -> None:
        """Let what runs now take so much longer: nothing else runs here until then."""
        self.busy_until = max(self.busy_until, self._timeline.now) + span_ms

    # --- what asyncio asks of a loop ---

    def time(self) -> float:
        now = max(self._timeline.now, self.busy_until)
        return (self._offset_ms + now * self._rate) / 1000

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self.is_dead

    def is_closed(self) -> bool:
        return self.is_dead

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        if self.is_dead:
            coro.close()  # What a dead process's clauses ask for is never begun.
        task = asyncio.Task(coro, loop=self, name=options.get("name") or "task")
        if self.is_dead:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        else:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return task

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:
        handle = _Handle(callback, args)
        if not self.is_dead:
            self._ready.append(handle)
            if not self._iteration_is_due:
                self._iterate_after(0.0)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> Any:
        handle = _Handle(callback, args, self.time() + delay)
        if not self.is_dead:
            self._timeline.after(delay * 1000 / self._rate, partial(self._timer_due, handle))
        return handle

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> Any:
        return self.call_later(when - self.time(), callback, *args)

    def run_in_executor(
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run it on this loop all the same, a little later."""
        future = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except Exception as error:
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        self.call_later(self._random.uniform(0.05, _THREAD_MS) / 1000, work)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Take what nobody else took; but not what only a collector of garbage notices."""
        error = context.get("exception")
        if not self.is_dead and error is not None and "never retrieved" not in context["message"]:
            self._on_exception(error)

    # --- iterations ---

    def _timer_due(self, handle: _Handle) -> None:
        if handle.is_cancelled or self.is_dead:
            return
        if self.is_frozen:
            self._late_timers.append(handle)
            return
        self._ready.append(handle)
        if not self._iteration_is_due:
            self._iterate_after(0.0)

    def _iterate_after(self, delay_ms: float) -> None:
        self._iteration_is_due = True
        if self._long_share and self._random.random() < self._long_share:
            delay_ms += self._random.uniform(0, _LONG_MS)
        left_ms = self.busy_until - self._timeline.now
        self._timeline.after(delay_ms if delay_ms > left_ms else left_ms, self._iterate)

    def _iterate(self) -> None:
        if self.is_frozen or self.is_dead:
            return
        self._iteration_is_due = False
        ready = self._ready
        asyncio._set_running_loop(self)
        try:
            for _ in range(len(ready)):
                handle = ready.popleft()
                try:
                    handle.callback(*handle.arguments)
                except Exception as error:
                    self._on_exception(error)
                if self.is_dead:
                    return
            if self.after_iteration is not None:
                self.after_iteration()
        finally:
            asyncio._set_running_loop(None)
        if ready:
            self._iterate_after(_ITERATION_MS)

    # --- from outside ---

    def freeze(self) -> None:
        """Let nothing run until `thaw`."""
        self.is_frozen = True

    def thaw(self) -> None:
        """Go on: first with what arrived, then with timers, as a loop that wakes up does."""
        if not self.is_frozen:
            return
        self.is_frozen = False
        self._late_timers.sort(key=_Handle.when)
        self._ready.extend(handle for handle in self._late_timers if not handle.is_cancelled)
        self._late_timers.clear()
        if self.is_dead:
            return
        self._iteration_is_due = False
        if self._ready:
            self._iterate_after(0.0)

    def kill(self) -> list[asyncio.Task[Any]]:
        """Let nothing run any more.

        Returns:
            Its tasks: to be kept until `throw_away`, for a coroutine that is thrown away
            runs its `finally` clauses.
        """
        self.is_dead = True
        self._ready.clear()
        self._late_timers.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._tasks.clear()
        return tasks

    def throw_away(self, tasks: list[asyncio.Task[Any]]) -> None:
        """Let tasks that `kill` returned run their `finally` clauses, of which nothing comes.

        What they begin, they begin on this loop, which is dead and closes it at once.
        """
        asyncio._set_running_loop(self)
        try:
            for task in tasks:
                with contextlib.suppress(BaseException):
                    task.get_coro().close()  # type: ignore[union-attr]
        finally:
            asyncio._set_running_loop(None)
