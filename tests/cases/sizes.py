"""How large everything is that an object holds, found by walking over all of it.

Nothing is named here: an attribute that somebody adds tomorrow is counted, too. Containers are
counted by the class and the attribute that hold them ("Client.holds"), with one more "[]" for
each level within; text by its characters; large numbers by their bits; and objects by their
class.
"""

from __future__ import annotations

import enum
import types
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["growth", "sizes"]

_ATOMS = (type(None), bool, float, enum.Enum, type, types.ModuleType, types.FunctionType)
_BITS_MIN = 64


def sizes(*roots: object, skip: tuple[type, ...] = ()) -> Counter[str]:
    """Return how many items each kind of container holds, over all that the roots lead to.

    Args:
        skip: Classes of what belongs to somebody else.
    """
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    todo: deque[tuple[str, Any]] = deque((type(root).__name__, root) for root in roots)
    while todo:
        place, value = todo.popleft()
        if isinstance(value, (*_ATOMS, *skip)):
            continue
        if isinstance(value, int):
            if value.bit_length() > _BITS_MIN:
                counts[f"{place} bits"] += value.bit_length()
            continue
        if isinstance(value, str | bytes | bytearray):
            counts[f"{place} text"] += len(value)
            continue
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, types.MethodType):
            todo.append((place, value.__self__))
        elif isinstance(value, Mapping):
            counts[place] += len(value)
            todo.extend((f"{place}[]", each) for each in value)
            todo.extend((f"{place}[]", each) for each in value.values())
        elif isinstance(value, list | tuple | set | frozenset | deque):
            counts[place] += len(value)
            todo.extend((f"{place}[]", each) for each in value)
        else:
            name = type(value).__name__
            counts[f"<{name}>"] += 1
            todo.extend((f"{name}.{attribute}", each) for attribute, each in _fields(value))
    return counts


def growth(before: Counter[str], after: Counter[str], *, slack: int) -> dict[str, tuple[int, int]]:
    """Return what became larger by more than an eighth of it and `slack` (of text: 40 times)."""
    return {
        place: (before[place], count)
        for place, count in after.items()
        if count > before[place] + before[place] // 8 + slack * (1, 40)[place.endswith(" text")]
    }


def _fields(value: object) -> Iterable[tuple[str, Any]]:
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                yield name, getattr(value, name)
    yield from getattr(value, "__dict__", {}).items()
