"""What a task is, from the scheduler's line to the node's line.

A scheduler says it once, and from there on it is carried whole: in the command of the log,
in the coordinator's task and its row, in the views of clients, in their executions, up to
the line that a node gets. Who passes it on doesn't look into it; who decides by an
attribute asks it here.

Encodings are positional, and each has its own beginning, which stays as it is: the log's
(`commands.py`), the row's (`task_rows.py`) and the view's (`view.py`). An attribute that
later rules bring is declared once, by `added`, with what it goes through. The scheduler's line
has a member of its name; log and row have it behind all others, unless it is the default.
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

# Tuples of keys that tasks share, and what may be shared: most tasks name the same few.
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
    """Return a task of which the texts that most tasks have in common are in memory once."""
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
    """Return what stands behind all that the first rules know: nothing, if all is default."""
    return () if _get(spec) == _DEFAULTS else _write(spec)[_FIRST_COUNT:]
