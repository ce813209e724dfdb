"""The definition of a task, from the scheduler's line to the node's line.

A scheduler says once what a task is. From there on its `TaskSpec` is carried whole: in the log's
command, in the coordinator's task and its row, in views, in clients' tasks, up to a node's line.
Code that passes it on doesn't look into it. Code that decides by an attribute reads it here.

Encodings are positional. Those of the log (`commands.py`), the row (`task_rows.py`) and the view
(`view.py`) begin each in their own way, and these beginnings stay as they are. An attribute of
later rules is declared once, by `added`, with the functions that it goes through. The scheduler's
line has a member of that name. Log and row have it behind all others, unless it is the default.
In a job of older rules it is read and means nothing. Clients are told what view.py names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from sys import intern
from typing import Annotated, Any

from tasksprint.arrays import Arrays, Through, added, fields_of
from tasksprint.ids import TaskId

__all__ = ["LATER", "TaskSpec", "compact_spec", "later_of"]

# Most tasks name the same few keys. So tasks share tuples of keys, within these limits.
_SHARED_MAX = 1_000
_SHARED_KEYS_MAX = 16
_KEY_CHARACTERS_MAX = 64
_SHARED_BASE_END = 16  # characters

_PRIORITY_END = 2**31


def _read_priority(value: Any) -> int:
    if type(value) is not int or not -_PRIORITY_END <= value < _PRIORITY_END:
        raise ValueError("expected a whole number from -2**31 to 2**31 - 1")
    return value


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task as its scheduler wants it; said to the log, it starts the job's next task."""

    name: str
    base: str = "[]"  # JSON array, as the text that the scheduler wrote
    pretasks: tuple[TaskId, ...] = ()
    prekeys: tuple[str, ...] = ()  # Invariant: as many as pretasks.
    keys: tuple[str, ...] = ()  # values that `task_done` hands to the scheduler
    # Attempts after the first; None: as many as the job's manifest says. Clients aren't told.
    retries: int | None = None
    timeout_ms: int | None = None  # run time of one attempt; None: the manifest's limit, if any
    # Of a job's ready tasks those with higher ones go first. Clients aren't told.
    priority: Annotated[int, Through(_read_priority)] = added(0, since=2)


def compact_spec(
    name: str,
    base: str,
    pretasks: tuple[TaskId, ...],
    prekeys: tuple[str, ...],
    keys: tuple[str, ...],
    retries: int | None,
    timeout_ms: int | None,
    *later: Any,
) -> TaskSpec:
    """Return a task; texts that most tasks have in common are in memory once."""
    return TaskSpec(
        intern(name),
        intern(base) if len(base) < _SHARED_BASE_END else base,
        pretasks,
        prekeys and (_shared.get(prekeys) or _share(prekeys)),
        keys and (_shared.get(keys) or _share(keys)),
        retries,
        timeout_ms,
        *later,
    )


_shared: dict[tuple[str, ...], tuple[str, ...]] = {}


def _share(keys: tuple[str, ...]) -> tuple[str, ...]:
    if len(keys) <= _SHARED_KEYS_MAX and max(map(len, keys)) <= _KEY_CHARACTERS_MAX:
        if len(_shared) >= _SHARED_MAX:
            _shared.clear()  # Those of jobs that have ended, most likely.
        _shared[keys] = keys
    return keys


# The attributes that came after the first rules, by name.
LATER = {each.name: each for each in fields_of(TaskSpec) if each.since}
_FIRST_COUNT = len(fields_of(TaskSpec)) - len(LATER)
_get = attrgetter(*LATER)
_DEFAULTS = _get(TaskSpec(""))
_write = Arrays().writer(TaskSpec)


def later_of(spec: TaskSpec) -> Sequence[Any]:
    """Return the members behind those of the first rules: none, if all have their defaults."""
    return () if _get(spec) == _DEFAULTS else _write(spec)[_FIRST_COUNT:]
