"""Moments at which the workbench wants to be called, in order.

Knows no clock, and not what the calls do. A timer can't be cancelled. Instead the function
looks whether there is still something to do; that is cheaper than the bookkeeping.
So callers must start few timers (one for each node, say, and not one for each task).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

__all__ = ["Timers"]

Action = Callable[[int], None]  # is given now_ms


class Timers:
    """A heap of (moment, action); equal moments in order of arrival."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Action]] = []
        self._count = 0

    def start(self, at_ms: int, action: Action) -> None:
        """Have `action` called at `at_ms` or later."""
        self._count += 1
        heapq.heappush(self._heap, (at_ms, self._count, action))

    @property
    def deadline_ms(self) -> int | None:
        """The moment of the next timer; None: there is none."""
        return self._heap[0][0] if self._heap else None

    def run_due(self, now_ms: int) -> None:
        """Call each action that is due, once; timers started meanwhile wait for the next time."""
        due: list[Action] = []
        heap = self._heap
        while heap and heap[0][0] <= now_ms:
            due.append(heapq.heappop(heap)[2])
        for action in due:
            action(now_ms)

    def __len__(self) -> int:
        return len(self._heap)
