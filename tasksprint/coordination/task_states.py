"""The states of a task as the replicated state knows it, as small integers.

The states, and what brings a task from one to another:

    waiting ──inputs done──> ready ──placed──> assigned ──completion that counts──> done
       │  ^                    ^                  │
       │  └──an input is lost──┴──attempt ended───┤──no retries left──> failed
       └──placed ahead of need──> assigned        └──killed (from any unfinished state)──> killed

A done task goes back to waiting or ready when its result is lost and still needed, or
when an input of it changed (`is_stale`); `digest` then keeps the result as it was, so a
task that has a digest and isn't done is being computed again.
"""

from __future__ import annotations

__all__ = ["ASSIGNED", "DONE", "FAILED", "KILLED", "READY", "STATES", "WAITING"]

# The unfinished ones come before DONE.
WAITING, READY, ASSIGNED, DONE, FAILED, KILLED = range(6)
STATES = ("waiting", "ready", "assigned", "done", "failed", "killed")
