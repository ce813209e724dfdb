"""Golden files of what is stored and sent: one for each kind and version.

A file `KIND-VERSION.txt` has for each record its shape (names, types and defaults of its
fields, in order, as they are declared) and samples of its bytes, written as Python writes bytes.

A change of a shape, or of bytes, is seen by `differences`. What a release has written stays what
it was: then the kind gets another version. `python -m pytest -n 0 tests/golden --rewrite` writes
the files of versions that no release has (`RELEASED`), and no other ones.
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

from tasksprint.arrays import fields_of, split_type

__all__ = [
    "FOLDER",
    "RELEASED",
    "Record",
    "differences",
    "parse",
    "render",
    "shape_of",
    "shape_of_json",
]

FOLDER = Path(__file__).parent

# The files of what releases write: those of 0.2.0, and those that 0.3.0 brought. A release adds
# its own (docs/testing.md).
RELEASED = {
    "backup-1", "commands-1", "frames-2", "http-1", "log-1", "node_lines-1", "rows-1",
    "scheduler_lines-1", "stored-1", "views-1",
    "commands-2", "frames-3", "http-2", "log-2", "rows-2", "scheduler_lines-2", "stored-2",
}  # fmt: skip
_REWRITE = "`python -m pytest -n 0 tests/golden --rewrite`"


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


def differences(path: Path, text: str, *, is_released: bool) -> str:
    """Return what `text` has in other words than the golden file, and what to do; "": nothing."""
    if not path.exists():
        return f"there is no {path.name}: run {_REWRITE}"
    golden = path.read_text(encoding="utf-8")
    if text == golden:
        return ""
    lines = difflib.unified_diff(
        golden.splitlines(), text.splitlines(), path.name, "now", lineterm="", n=0
    )
    advice = (
        "A release writes it, and other releases rely on it. Write what it says, or give the kind "
        "another version (`KINDS` in tests/golden/samples.py)."
        if is_released
        else "No release writes it. What a release has in it stays as it is; new things go behind "
        f"that (docs/architecture.md, \"What grows\"). If each line below is so, run {_REWRITE}."
    )
    return "\n".join([f"{path.name} isn't what is written now. {advice}", *lines])


# --- shapes ---


def shape_of(
    kind: Any,
    tags: Mapping[Any, str] = types.MappingProxyType({}),
    sent: Mapping[Any, Sequence[str]] = types.MappingProxyType({}),
) -> str:
    """Return how a type is declared: field by field, all the way down.

    Names of types aren't part of it: those of records are their tags.

    Args:
        sent: Of records that don't stand in arrays as they are declared, the fields that do.
    """
    kind, _ = split_type(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if len(arguments) > 2:
            return "one of " + ", ".join([tags[each] for each in arguments])
        return " or ".join([shape_of(each, tags, sent) for each in arguments])
    if origin is tuple:
        if arguments[1:] == (Ellipsis,):
            return f"[{shape_of(arguments[0], tags, sent)} …]"
        return "[" + ", ".join([shape_of(each, tags, sent) for each in arguments]) + "]"
    if origin is dict:
        return f"{{{shape_of(arguments[0])}: {shape_of(arguments[1])}}}"
    if not fields_of(kind):
        return "null" if kind is types.NoneType else str(getattr(kind, "__name__", kind))
    listed: list[str] = []
    for path in sent.get(kind) or [field.name for field in fields_of(kind)]:
        of = kind
        for name in path.split("."):
            (field,) = [each for each in fields_of(of) if each.name == name]
            record, (of, _) = of, split_type(field.type)
        listed.append(f"{name}: {shape_of(field.type, tags, sent)}{_default(record, name)}")
    return f"{tags.get(kind, '')}({', '.join(listed)})"


def _default(record: Any, name: str) -> str:
    if not dataclasses.is_dataclass(record):
        return ""
    (field,) = [each for each in dataclasses.fields(record) if each.name == name]
    since = f" since {field.metadata['since']}" if field.metadata else ""
    if field.default is not dataclasses.MISSING:
        return f" = {field.default!r}{since}"
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
