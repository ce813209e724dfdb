"""Golden files of what is stored and sent: one for each kind and version, never changed.

A file `KIND-VERSION.txt` has for each record its shape (names, types and defaults of its
fields, in order, as they are declared) and samples of its bytes, written as Python writes bytes.

A change of a shape, or of bytes, is seen by `differences`. Then the kind gets another version,
and `python -m pytest tests/golden --rewrite` writes the file of that version. It writes files
that aren't there, and no other one: what a release has written stays what it was.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["FOLDER", "Record", "differences", "parse", "render", "shape_of", "shape_of_json"]

FOLDER = Path(__file__).parent


class Record(NamedTuple):
    """One kind of record: its shape, and samples of its bytes."""

    shape: str
    samples: tuple[bytes, ...] = ()


def render(kind: str, version: int, records: Iterable[Record]) -> str:
    """Return the text of a golden file."""
    blocks = [f"# {kind}, version {version}; see golden.py"]
    for record in records:
        blocks.append("\n".join([record.shape, *[f"    {each!r}" for each in record.samples]]))
    return "\n\n".join(blocks) + "\n"


def parse(text: str) -> list[Record]:
    """Return the records of a golden file."""
    records = []
    for block in text.rstrip("\n").split("\n\n")[1:]:
        shape, *samples = block.split("\n")
        records.append(Record(shape, tuple([ast.literal_eval(line.strip()) for line in samples])))
    return records


def differences(path: Path, text: str) -> str:
    """Return what `text` has in other words than the golden file, and what to do; "": nothing."""
    if not path.exists():
        return f"there is no {path.name}: run `python -m pytest tests/golden --rewrite`"
    golden = path.read_text(encoding="utf-8")
    if text == golden:
        return ""
    lines = difflib.unified_diff(
        golden.splitlines(), text.splitlines(), path.name, "now", lineterm="", n=0
    )
    return "\n".join(
        [
            f"{path.name} isn't what is written now: other releases rely on it. Write what it "
            "says, or give the kind another version",
            *lines,
        ]
    )


# --- shapes ---


def shape_of(kind: Any) -> str:
    """Return how a type is declared: field by field, all the way down."""
    while hasattr(kind, "__supertype__"):  # A NewType.
        kind = kind.__supertype__
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if len(arguments) > 2:
            return "one of " + ", ".join([each.__name__ for each in arguments])
        return " or ".join([shape_of(each) for each in arguments])
    if origin is tuple:
        if arguments[1:] == (Ellipsis,):
            return f"[{shape_of(arguments[0])} …]"
        return "[" + ", ".join([shape_of(each) for each in arguments]) + "]"
    if origin is dict:
        return f"{{{shape_of(arguments[0])}: {shape_of(arguments[1])}}}"
    fields = _fields_of(kind)
    if fields is None:
        return "null" if kind is types.NoneType else str(getattr(kind, "__name__", kind))
    listed = [f"{name}: {shape_of(of)}{default}" for name, of, default in fields]
    return f"{kind.__name__}({', '.join(listed)})"


def _fields_of(kind: Any) -> list[tuple[str, Any, str]] | None:
    """Return (name, type, default) of a record's fields; None: it is no record."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return [(each.name, hints[each.name], _default(each)) for each in dataclasses.fields(kind)]
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        hints = typing.get_type_hints(kind)
        defaults: Mapping[str, Any] = kind._field_defaults  # type: ignore[attr-defined]
        return [
            (name, hints[name], f" = {defaults[name]!r}" if name in defaults else "")
            for name in kind._fields
        ]
    return None


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f" = {field.default!r}"
    if field.default_factory is not dataclasses.MISSING:
        return f" = {field.default_factory()!r}"
    return ""


def shape_of_json(value: Any) -> str:
    """Return the shape of a JSON value of which the bytes differ from run to run."""
    if isinstance(value, Mapping):
        members = [f"{key}: {shape_of_json(each)}" for key, each in value.items()]
        return "{" + ", ".join(members) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + " | ".join(dict.fromkeys([shape_of_json(each) for each in value])) + "]"
    if value is None:
        return "null"
    return {bool: "bool", int: "int", float: "float", str: "str"}[type(value)]
