"""How often one job's scheduler is started again on one replica, and when.

Knows nothing of why it ended.
"""

from __future__ import annotations

__all__ = ["RESTARTS_MAX", "RESTART_PAUSE_MS", "Restarts"]

# The pause before a restart, doubled with each one: the cause may pass (too little memory, a
# full disk).
RESTART_PAUSE_MS = 200
RESTART_PAUSE_MAX_MS = 10_000
# Restarts of one job's scheduler on one replica, however much progress lies between.
RESTARTS_MAX = 10


class Restarts:
    """Counts starts and crashes; the first start is at once."""

    __slots__ = ("_failed_at", "_failures", "count", "start_at_ms")

    def __init__(self, now_ms: int) -> None:
        self.count = 0
        self.start_at_ms = now_ms
        self._failed_at = (-1, 0)  # how far the process came at the most before it crashed
        self._failures = 0  # crashes without progress between them

    def may_follow(self, point: tuple[int, int]) -> bool:
        """Whether one may follow on a crash, which is counted.

        Args:
            point: The next part that the process would have answered.
        """
        if point > self._failed_at:
            self._failed_at, self._failures = point, 0
        self._failures += 1
        return self._failures == 1 and self.count < RESTARTS_MAX

    def pause(self, now_ms: int) -> None:
        """Begin the pause before the next one."""
        self.start_at_ms = now_ms + min(RESTART_PAUSE_MS << self.count, RESTART_PAUSE_MAX_MS)
        self.count += 1
