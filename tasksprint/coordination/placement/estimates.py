"""How long tasks of a name run, and the load of a task in its client's queue."""

from __future__ import annotations

from tasksprint.coordination.jobs import Job
from tasksprint.coordination.state import State
from tasksprint.settings import Rules

__all__ = ["learn", "load_of"]

# Estimates are kept for so many names of a job; tasks of further names count as unknown.
NAMES_MAX = 10_000


def learn(state: State, job: Job, name: str, run_us: int) -> None:
    """Learn from a finished attempt how long tasks of this name run.

    It is an exponential average in integers: the first run counts whole, each later one
    an eighth.
    """
    estimates = job.estimates_us
    estimate_us = estimates.get(name)
    if estimate_us is None:
        if len(estimates) >= NAMES_MAX:
            return
        estimates[name] = run_us
    else:
        changed_us = estimate_us + (run_us - estimate_us) // 8
        if changed_us == estimate_us:
            return
        estimates[name] = changed_us
    state.changes.estimates[job, name] = None


def load_of(rules: Rules, job: Job, name: str) -> int:
    """Return the load of tasks of this name: their run time, within limits.

    A task with the highest load, Rules.ahead_us, is heavy. Tasks of unknown length have it.
    """
    estimate_us = job.estimates_us.get(name)
    if estimate_us is None or estimate_us > rules.ahead_us:
        return rules.ahead_us
    return estimate_us if estimate_us > rules.task_us_min else rules.task_us_min
