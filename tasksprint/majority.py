"""How many of a group are more than half of it: the only place that says so."""

from __future__ import annotations

__all__ = ["majority"]


def majority(count: int) -> int:
    """Return how many of so many are the fewest of whom any two groups share one."""
    return count // 2 + 1
