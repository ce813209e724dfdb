"""Moments at which the workbench wants to be called, in order.

Knows no clock and not what the calls do. A timer can't be cancelled: the function
looks whether there is still something to do, which is cheaper than the bookkeeping.
So whoever starts timers sees to it that there are few (one for each node, say,
and not one for each task).
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
        """The first moment at which something is due; None: nothing ever is."""
        return self._heap[0][0] if self._heap else None

    def run_due(self, now_ms: int) -> None:
        """Call what is due, once each; what is started meanwhile waits for the next time."""
        due: list[Action] = []
        heap = self._heap
        while heap and heap[0][0] <= now_ms:
            due.append(heapq.heappop(heap)[2])
        for action in due:
            action(now_ms)

    def __len__(self) -> int:
        return len(self._heap)
