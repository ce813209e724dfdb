"""The task of a job that runs longest, for people who wonder whether it hangs.

A job whose task runs has no obstacle, however long that takes. But a task that hangs holds up
all tasks that need it, and nobody is told. Clients name in their polls the tasks that have been
running for more than a moment. This module compares that with the state, and puts it into words.

Nothing is decided by it, and nothing of it is replicated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tasksprint.coordination.jobs import Job, Task
from tasksprint.coordination.state import State
from tasksprint.coordination.task_states import ASSIGNED
from tasksprint.ids import ClientId, JobId, TaskId

__all__ = ["LongRun", "decode_runs", "longest"]

# A task may hang if it runs for so long, and for so many times as long as others of its name.
_UNLIKE_MS = 5_000
_UNLIKE_TIMES = 5
# If no task of its name was measured yet, people may wonder after this.
_WONDER_MS = 10_000


@dataclass(frozen=True, slots=True)
class LongRun:
    """The task of a job that has been running longest on one client, as the client says."""

    cid: ClientId
    job: JobId
    tid: TaskId
    attempt: int
    run_ms: int


def longest(state: State, job: Job, runs: Iterable[LongRun]) -> dict[str, object] | None:
    """Return the task of a job that runs longest, with a sentence; None: none runs for long.

    Args:
        runs: The words of clients on this job; some of these tasks may have ended.
    """
    found: tuple[LongRun, Task] | None = None
    for run in runs:
        task = job.tasks.get(run.tid)
        if task is None or task.state != ASSIGNED:
            continue
        if (task.cid, task.attempt) != (run.cid, run.attempt):
            continue
        if found is None or run.run_ms > found[0].run_ms:
            found = run, task
    if found is None or not job.is_running:
        return None
    run, task = found
    usual_us = job.estimates_us.get(task.spec.name)
    is_unlike = usual_us is not None and (
        run.run_ms >= max(_UNLIKE_MS, _UNLIKE_TIMES * usual_us // 1_000)
    )
    host = state.clients[run.cid].hostname
    text = f"task {run.tid} {task.spec.name!r} runs on client {run.cid} ({host})"
    text += f" for {run.run_ms // 1_000} s"
    if is_unlike and usual_us is not None:
        text += f", others of its name took {_in_seconds(usual_us)}"
    hint = ""
    if task.spec.timeout_ms is not None:
        text += f"; its timeout is {_in_seconds(1_000 * task.spec.timeout_ms)}"
    elif is_unlike or (usual_us is None and run.run_ms >= _WONDER_MS):
        hint = (
            "if it hangs, give such tasks a limit: start_task(…, timeout=SECONDS), or "
            '"timeout_ms" in tasksprint.json'
        )
    return {
        "tid": run.tid,
        "name": task.spec.name,
        "attempt": run.attempt,
        "cid": run.cid,
        "host": host,
        "seconds": run.run_ms / 1_000,
        "usual_seconds": None if usual_us is None else usual_us / 1_000_000,
        "is_unlike": is_unlike,
        "text": text,
        "hint": hint,
    }


def _in_seconds(duration_us: int) -> str:
    """Return e.g. "0.25 s" or "12 s"."""
    if duration_us < 10_000:
        return "less than 0.01 s"
    hundredths = duration_us // 10_000
    if hundredths >= 1_000:
        return f"{hundredths // 100} s"
    return f"{hundredths // 100}.{hundredths % 100:02} s"


def decode_runs(cid: ClientId, listed: Any, age_ms: int) -> tuple[LongRun, ...]:
    """Return a client's list of tasks that have been running for long.

    Args:
        listed: `[[job, tid, attempt, ms], …]`; members of another form are left out.
        age_ms: The age of the list; the tasks have been running on since.
    """
    runs: list[LongRun] = []
    for one in listed if isinstance(listed, list) else []:
        match one:
            case [int(job), int(tid), int(attempt), int(run_ms), *_]:
                runs.append(LongRun(cid, JobId(job), TaskId(tid), attempt, run_ms + age_ms))
    return tuple(runs)
