"""The lines of a job's events, made once for all replicas.

The values and parameters of users are spliced in, as the bytes that they came in.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tasksprint.coordination.jobs import Job
from tasksprint.encoding import encode_json
from tasksprint.ids import ClientId, TaskId

__all__ = [
    "line_client_dead",
    "line_client_joined",
    "line_init",
    "line_task_done",
    "line_task_failed",
    "line_timer",
]


def line_init(number: int, job: Job) -> bytes:
    """Return the line of a job's first event."""
    return (
        f'{{"event":{number},"kind":"init","time_ms":0,"seed":{job.seed}'
        f',"job":{job.job},"params":{job.params}}}'
    ).encode()


def line_client_joined(number: int, time_ms: int, cid: ClientId, num_nodes: int) -> bytes:
    """Return the line of the event "client_joined": a client can run tasks."""
    return (
        f'{{"event":{number},"kind":"client_joined","time_ms":{time_ms}'
        f',"cid":{cid},"num_nodes":{num_nodes}}}'
    ).encode()


def line_client_dead(number: int, time_ms: int, cid: ClientId) -> bytes:
    """Return the line of the event "client_dead": a client is gone."""
    return (f'{{"event":{number},"kind":"client_dead","time_ms":{time_ms},"cid":{cid}}}').encode()


def line_task_done(
    number: int, time_ms: int, tid: TaskId, keys: tuple[str, ...], inline: dict[str, Any]
) -> bytes:
    """Return the line of the event "task_done", with the task's values under `keys`.

    Args:
        inline: At least the values under `keys`, each as (kind, text).
    """
    if not keys:
        return (
            f'{{"event":{number},"kind":"task_done","time_ms":{time_ms}'
            f',"tid":{tid},"values":{{}}}}'
        ).encode()
    return (
        f'{{"event":{number},"kind":"task_done","time_ms":{time_ms}'
        f',"tid":{tid},{_values(keys, inline)}}}'
    ).encode()


def _values(keys: Iterable[str], inline: dict[str, Any]) -> str:
    texts: list[str] = []
    base64s: list[str] = []
    for key in dict.fromkeys(keys):
        kind, text = inline[key]
        if kind == "json":
            texts.append(f"{_quote(key)}:{text}")
        else:
            base64s.append(f"{_quote(key)}:{_quote(text)}")
    values = f'"values":{{{",".join(texts)}}}'
    if base64s:
        values += f',"base64":{{{",".join(base64s)}}}'
    return values


_QUOTED: dict[str, str] = {"result": '"result"'}


def _quote(text: str) -> str:
    """Return the text as a JSON string."""
    return _QUOTED.get(text) or encode_json(text).decode()


def line_task_failed(
    number: int, time_ms: int, tid: TaskId, error: str, detail: dict[str, Any]
) -> bytes:
    """Return the line of the event "task_failed": a task is given up."""
    return (
        f'{{"event":{number},"kind":"task_failed","time_ms":{time_ms},"tid":{tid}'
        f',"error":{_quote(error)},"detail":{encode_json(detail).decode()}}}'
    ).encode()


def line_timer(number: int, time_ms: int, timer: int) -> bytes:
    """Return the line of the event "timer": a timer has run out."""
    return (f'{{"event":{number},"kind":"timer","time_ms":{time_ms},"timer":{timer}}}').encode()
