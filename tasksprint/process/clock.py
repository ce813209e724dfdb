"""The clocks that the shells read. Cores get the time as an argument."""

from __future__ import annotations

import time

__all__ = ["monotonic_ms", "wall_ms"]

# This clock counts while the machine sleeps: a laptop that was closed for an hour did not
# hear its peers for an hour. Some systems have no such clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def monotonic_ms() -> int:
    """Return elapsed milliseconds since some fixed moment; it never goes back."""
    return time.clock_gettime_ns(_CLOCK) // 1_000_000


def wall_ms() -> int:
    """Return milliseconds since 1970, for display only."""
    return time.time_ns() // 1_000_000
