"""The clocks that the shells read; cores are handed what these return."""

from __future__ import annotations

import time

__all__ = ["monotonic_ms", "wall_ms"]

# Time that the machine slept counts: a laptop that was closed for an hour did not
# hear its peers for an hour. Not everywhere is there such a clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def monotonic_ms() -> int:
    """Return elapsed milliseconds since some fixed moment; it never goes back."""
    return time.clock_gettime_ns(_CLOCK) // 1_000_000


def wall_ms() -> int:
    """Return milliseconds since 1970, for display only."""
    return time.time_ns() // 1_000_000
