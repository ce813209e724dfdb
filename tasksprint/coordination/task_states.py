"""The states of a task in the replicated state, and the ways from one to another.

    waiting ──inputs done──> ready ──placed──> assigned ──completed──> done
       │  ^                    │                  │
       │  └──────input lost────┴──attempt ended───┘
       └──placed, ahead of need──> assigned

A task waits for its inputs whenever some aren't done. A task that is taken from its client
waits as well; if its inputs are there, it is ready in the same entry. A completion counts for
any unfinished task, even if its attempt is long forgotten. A task that must end otherwise
(given up, killed) is taken from its client first.

A done task goes back to waiting in two cases: its result is lost and still needed, or an input
of it changed (`is_stale`). `digest` then keeps the old result. So a task with a digest that
isn't done is being computed again.

transitions.py alone moves tasks by this table.
"""

from __future__ import annotations

__all__ = [
    "ASSIGNED",
    "ATTEMPT_ENDED",
    "COMPLETED",
    "DONE",
    "FAILED",
    "GIVEN_UP",
    "INPUTS_DONE",
    "INPUT_LOST",
    "KILL",
    "KILLED",
    "OTHER_RESULT",
    "PLACED",
    "READY",
    "RESULT_LOST",
    "STATES",
    "TRANSITIONS",
    "WAITING",
    "Transition",
]

# Small integers; the unfinished ones come before DONE.
WAITING, READY, ASSIGNED, DONE, FAILED, KILLED = range(6)
STATES = ("waiting", "ready", "assigned", "done", "failed", "killed")

# An event as a map: state before -> state behind. From a state outside the map it can't happen.
Transition = dict[int, int]

INPUTS_DONE: Transition = {WAITING: READY}
PLACED: Transition = {READY: ASSIGNED, WAITING: ASSIGNED}
ATTEMPT_ENDED: Transition = {ASSIGNED: WAITING}
# It completed with other bytes than before: first the users of the old ones are dealt with.
OTHER_RESULT: Transition = {WAITING: WAITING, READY: WAITING, ASSIGNED: WAITING}
COMPLETED: Transition = {WAITING: DONE, READY: DONE, ASSIGNED: DONE}
INPUT_LOST: Transition = {READY: WAITING}
RESULT_LOST: Transition = {DONE: WAITING}
GIVEN_UP: Transition = {WAITING: FAILED, READY: FAILED}
KILL: Transition = {WAITING: KILLED, READY: KILLED}

TRANSITIONS: dict[str, Transition] = {
    "inputs done": INPUTS_DONE,
    "placed": PLACED,
    "attempt ended": ATTEMPT_ENDED,
    "other result": OTHER_RESULT,
    "completed": COMPLETED,
    "input lost": INPUT_LOST,
    "result lost": RESULT_LOST,
    "given up": GIVEN_UP,
    "killed": KILL,
}
