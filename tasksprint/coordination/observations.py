"""Warnings about a job: its owner must hear them, though the job goes on.

There are two. On one replica a scheduler gave other answers than the log has. Or programs run on
different versions of their interpreter. Neither ends the job, but another run may give another
result. So the warnings stay with the job, also once it has ended.
"""

from __future__ import annotations

from tasksprint.coordination.commands import JobObserved
from tasksprint.coordination.jobs import Job
from tasksprint.coordination.state import State

__all__ = ["DIFFERS", "NODE_RUNTIME", "SCHEDULER_RUNTIME", "is_observed", "observe"]

# Kinds of `JobObserved`.
DIFFERS = "differs"
NODE_RUNTIME = "node runtime"
SCHEDULER_RUNTIME = "scheduler runtime"

_PROGRAMS = {NODE_RUNTIME: "nodes", SCHEDULER_RUNTIME: "schedulers"}
# Of one job: they stand in its row.
_WARNINGS_MAX = 8
_CHARACTERS_MAX = 1_000


def observe(state: State, command: JobObserved) -> None:
    """Keep a warning of a job, unless it is known already or there are too many."""
    job = state.jobs.get(command.job)
    if job is None:
        return
    if command.kind == DIFFERS:
        _warn(state, job, f"{DIFFERS} {command.source}", command.text)
    elif command.kind in _PROGRAMS:
        first = job.runtimes.get(command.kind)
        if not job.is_running:
            return
        if first is None:
            job.runtimes[command.kind] = (_cut(command.text), _cut(command.source))
            state.changes.jobs[job] = None
        elif first[0] != _cut(command.text):
            _warn(
                state,
                job,
                command.kind,
                f"its {_PROGRAMS[command.kind]} run on {first[0]} ({first[1]}) and on "
                f"{command.text} ({command.source}): equal results are promised for equal "
                "versions only",
            )


def is_observed(state: State, command: JobObserved) -> bool:
    """Whether saying this (again) would change nothing."""
    job = state.jobs.get(command.job)
    if job is None or len(job.warnings) >= _WARNINGS_MAX:
        return True
    if command.kind in _PROGRAMS and not job.is_running:
        return True
    if command.kind == DIFFERS:
        return _cut(f"{DIFFERS} {command.source}") in job.warnings
    return command.kind in job.warnings or (
        job.runtimes.get(command.kind, ("",))[0] == _cut(command.text)
    )


def _cut(text: str) -> str:
    return text if len(text) <= _CHARACTERS_MAX else text[:_CHARACTERS_MAX] + "…"


def _warn(state: State, job: Job, key: str, text: str) -> None:
    if _cut(key) in job.warnings or len(job.warnings) >= _WARNINGS_MAX:
        return
    job.warnings[_cut(key)] = _cut(text)
    state.changes.jobs[job] = None
    state.note(f"job={job.job} warning: {_cut(text)}")
