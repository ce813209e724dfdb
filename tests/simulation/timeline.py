"""Virtual time: events in the order of their times, and clocks that differ.

Knows nothing of what happens in an event.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

__all__ = ["Clock", "Timeline"]


class Timeline:
    """A queue of events; time jumps from one to the next. Times are in milliseconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, delay: float, event: Callable[[], None]) -> None:
        """Let `event` happen `delay` from now; events of the same time keep their order."""
        self._count += 1
        due = self.now + delay if delay > 0.0 else self.now
        heapq.heappush(self._queue, (due, self._count, event))

    def step(self) -> bool:
        """Let the next event happen; False: there is none."""
        if not self._queue:
            return False
        self.now, _, event = heapq.heappop(self._queue)
        self.steps += 1
        event()
        return True


class Clock:
    """One machine's monotonic clock: it began some time ago and runs a little fast or slow."""

    def __init__(self, timeline: Timeline, *, offset: int, rate: float) -> None:
        self._timeline = timeline
        self._offset = offset
        self._rate = rate

    def now_ms(self) -> int:
        """Return what this clock shows."""
        return self._offset + int(self._timeline.now * self._rate)

    def delay_until(self, deadline_ms: int) -> float:
        """Return how much virtual time passes until this clock shows `deadline_ms`."""
        return (deadline_ms - self._offset) / self._rate - self._timeline.now + 0.01
