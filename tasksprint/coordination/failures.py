"""The last failed attempts of each job, with their causes, for people.

A failed attempt is a row of the table "failures", numbered in its job. Only the last
`failures_kept_max` stay, so a job whose tasks fail for ever takes no more room than
that. The failure that ended a job is among them: nothing fails after it.

A row's body is one JSON object: `number`, `tid`, `name`, `attempt`, `failures` (the number of
failed attempts at this task), `retries`, `final` (whether the task is given up), `cid`, `host`,
`time_ms` (in the job's time), `error`, and `detail`: the client's own knowledge of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasksprint.bounded_text import cut_middle
from tasksprint.coordination.clients import Client
from tasksprint.coordination.jobs import Task
from tasksprint.coordination.rows import Row
from tasksprint.coordination.state import State
from tasksprint.encoding import encode_json

__all__ = ["clean_detail", "record_failure"]

# Members of a detail, and characters of their names: ours are ten.
_MEMBERS_MAX = 16
_NAME_CHARACTERS_MAX = 40


def record_failure(
    state: State,
    task: Task,
    client: Client,
    *,
    attempt: int,
    retries: int,
    error: str,
    detail: Mapping[str, Any],
    is_final: bool,
) -> None:
    """Keep a failed attempt with its job, in place of the oldest one if there are many."""
    job = task.job
    number = job.failure_count
    job.failure_count = number + 1
    state.changes.jobs[job] = None
    body = {
        "number": number,
        "tid": task.tid,
        "name": task.spec.name,
        "attempt": attempt,
        "failures": task.failures,
        "retries": retries,
        "final": is_final,
        "cid": client.cid,
        "host": client.hostname,
        "time_ms": state.time_ms(job),
        "error": error,
        "detail": detail,
    }
    columns = (task.tid, encode_json(body).decode())
    state.put_row(Row("failures", (job.job, number), columns))
    kept_max = state.rules.failures_kept_max
    if number >= kept_max:
        state.put_row(Row("failures", (job.job, number - kept_max), None))


def clean_detail(detail: Mapping[str, Any], text_bytes_max: int) -> dict[str, Any]:
    """Return the part of a client's detail that is kept: numbers, and texts of bounded length.

    A client may send anything, and the detail stands in the log, in an event of the scheduler
    and in the mirror.
    """
    cleaned: dict[str, Any] = {}
    for name, value in detail.items():
        if len(cleaned) == _MEMBERS_MAX:
            break
        if len(name) > _NAME_CHARACTERS_MAX:
            continue
        if isinstance(value, str):
            cleaned[name] = cut_middle(value, text_bytes_max)
        elif value is None or type(value) in (int, bool):
            cleaned[name] = value
    return cleaned
