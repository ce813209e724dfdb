"""Checks of an answer's values, before they count.

Knows the limits, and the sentences about them for users; pure functions of a manifest.
"""

from __future__ import annotations

from tasksprint.execution.effects import Manifest
from tasksprint.execution.records import ClientTask, describe_keys
from tasksprint.settings import Rules

__all__ = ["find_too_big", "inline_values"]


def find_too_big(task: ClientTask, manifest: Manifest, bytes_max: int) -> str | None:
    """Return an error's text if a value is larger than allowed, else None."""
    for key, _, size, _ in manifest:
        if size > bytes_max:
            return (
                f"{task} returned {size} bytes under key {key!r}, expected at most "
                f"{bytes_max} (value_bytes_max); split the value over several keys or tasks"
            )
    return None


def inline_values(
    task: ClientTask, manifest: Manifest, rules: Rules
) -> tuple[tuple[tuple[str, str], ...], int] | str:
    """Return (key, kind) of the values that the report must carry, and their size in bytes.

    Returns:
        Or an error's text, if one is missing or too big.
    """
    found = {key: (kind, size) for key, kind, size, _ in manifest}
    inline: list[tuple[str, str]] = []
    total = 0
    for key in dict.fromkeys(task.assignment.spec.keys):
        item = found.get(key)
        if item is None:
            returned = describe_keys(found)
            return f"{task} returned no value under key {key!r}, it returned {returned}"
        kind, size = item
        if size > rules.inline_value_bytes_max:
            return (
                f"{task} returned {size} bytes under key {key!r}, which is one of its keys: "
                f"expected at most {rules.inline_value_bytes_max} (inline_value_bytes_max); "
                "leave big values to other tasks and return a small summary under this key"
            )
        total += size
        if total > rules.inline_task_bytes_max:
            return (
                f"{task} returned more than {rules.inline_task_bytes_max} bytes under its keys "
                f"(inline_task_bytes_max), {key!r} is the first one too many; "
                "leave big values to other tasks and return small summaries under its keys"
            )
        inline.append((key, kind))
    return tuple(inline), total
