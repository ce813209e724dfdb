"""Records as positional arrays of JSON, by their declared types: `["leave",1,"f0"]`.

A record is a dataclass or a named tuple. Its array has its fields in the order of their
declaration; a record inside it is an array inside. In a union each record begins with a tag.

**Arrays grow at their end only.** A field that a later version has is declared by `added`, behind
all others, with its default and that version. The writer leaves out what stands at the end
and has its default, so a record that doesn't use the field has the bytes of before. The reader
takes the default for what is missing. What stands behind the fields that it knows it ignores; or,
if it is `exact`, it refuses the record.

The functions are made out of the declarations, as text, when they are needed first, as
`dataclasses` does: they run for each task, and must take no longer than those that people write.

Knows types, and not what a record means.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

__all__ = ["INTEGER_MAX", "Arrays", "Field", "Through", "added", "fields_of", "split_type"]

INTEGER_MAX = 2**63 - 1  # SQLite's and JSON parsers' limit

# What a value must be: in words, and as a condition.
_CHECKS = {
    int: ("a number from 0 to 2**63 - 1", f"type({{0}}) is int and 0 <= {{0}} <= {INTEGER_MAX}"),
    str: ("text", "type({0}) is str"),
    bool: ("true or false", "type({0}) is bool"),
    tuple: ("a list", "type({0}) is list"),
}

Written = Callable[[Any], list[Any]]
Read = Callable[..., Any]


def added(default: Any, *, since: int) -> Any:
    """Declare a field that a record has since a version; where it is missing it is `default`."""
    return dataclasses.field(default=default, metadata={"since": since})


class Through(NamedTuple):
    """What a value goes through, in `Annotated[type, Through(…)]`."""

    read: Callable[[Any], Any]  # raises ValueError for what it doesn't take
    write: Callable[[Any], Any] | None = None  # None: it stands in the array as it is


class Field(NamedTuple):
    """One field of a record."""

    name: str
    type: Any
    since: int = 0  # the version that added it; 0: it was always there
    default: Any = None  # of one that was added


@functools.cache
def fields_of(record: Any) -> tuple[Field, ...]:
    """Return the fields of a record, in order; none: it is no record."""
    if dataclasses.is_dataclass(record):
        hints = typing.get_type_hints(record, include_extras=True)
        return tuple(
            [
                Field(one.name, hints[one.name], one.metadata.get("since", 0), one.default)
                for one in dataclasses.fields(record)
            ]
        )
    if not hasattr(record, "_fields"):
        return ()
    hints = typing.get_type_hints(record, include_extras=True)
    return tuple([Field(name, hints[name]) for name in record._fields])


def split_type(declared: Any) -> tuple[Any, Through | None]:
    """Return a type without the names that were given to it, and what its values go through."""
    through = None
    while True:
        if hasattr(declared, "__supertype__"):  # A NewType.
            declared = declared.__supertype__
        elif typing.get_origin(declared) is Annotated:
            declared, through = typing.get_args(declared)
        else:
            return declared, through


class _Form(NamedTuple):
    """How one field is read."""

    parameters: list[str]
    checks: list[tuple[str, str, str]]  # (parameter, what it must be, condition)
    result: str


class _OnDemand(dict[Any, Any]):
    """What is made for a key when somebody asks for it first."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __missing__(self, key: Any) -> Any:
        made = self[key] = self._make(key)
        return made


class Arrays:
    """Writes and reads records.

    Args:
        tags: Of each record that stands in a union.
        version: Fields, and records of unions, that were added later aren't known.
        since: The versions of records that were added to a union.
        exact: An array with more than is known is refused.
        flat: Named tuples whose fields stand in the array of the record around them.
        beside: Bytes don't stand in the array but in a list beside it, in order: `parts` gives
            them, and readers take them first.
        sent_as: Records that stand in arrays as others, with where their fields are found.
        made_by: What makes a record of its fields, if not the record's own type.
    """

    def __init__(
        self,
        tags: Mapping[type, str] | None = None,
        *,
        version: int = INTEGER_MAX,
        since: Mapping[type, int] | None = None,
        exact: bool = False,
        flat: tuple[type, ...] = (),
        beside: bool = False,
        sent_as: Mapping[type, tuple[type, Mapping[str, str]]] | None = None,
        made_by: Mapping[type, Callable[..., Any]] | None = None,
    ) -> None:
        self._tags = tags or {}
        self._version = version
        self._since = since or {}
        self._exact = exact
        self._flat = flat
        self._first = "parts, " if beside else ""  # of what readers take
        self._sent_as = sent_as or {}
        self._made_by = made_by or {}
        self._numbers = itertools.count()
        self._names: dict[str, Any] = {"_texts": _texts, "_integers": _integers, "_wrong": _wrong}

    def writer(self, record: type) -> Written:
        """Return the function that makes an array of a record."""
        members = [repr(self._tags[record])] if record in self._tags else []
        lines: list[str] = []
        late: list[str] = []
        for field, value in self._fields(record, "v"):
            written = self._written(field.type, value)
            if not field.since:
                members += written
                continue
            late += written
            default = self._name(field.default)
            lines.insert(0, f"if {value} != {default}: return array + [{', '.join(late)}]")
        array = f"[{', '.join(members)}]"
        if not lines:
            return self._define("v", [f"return {array}"])
        return self._define("v", [f"array = {array}", *lines, "return array"])

    def writers(self, union: Any) -> Mapping[type, Written]:
        """Return the functions that make arrays of a union's records."""
        records = {record: record for record in typing.get_args(union)}
        return _OnDemand(lambda record: self.writer(records[record]))

    def parts(self, record: type) -> Callable[[Any], list[bytes]]:
        """Return the function that gives the bytes of a record."""
        return self._define("v", [f"return [{', '.join(self._parts(record, 'v'))}]"])

    def reader(self, record: Any) -> Read:
        """Return the function that makes a record of the members of an array.

        It raises TypeError, ValueError, IndexError or KeyError if they don't make one.
        """
        sent, _ = self._sent_as.get(record, (record, None))
        known = [field for field in fields_of(sent) if field.since <= self._version]
        if not known:  # A tuple of some values.
            known = [Field(f"v{n}", one) for n, one in enumerate(typing.get_args(record))]
        parameters = ["tag"] if record in self._tags else []
        checks: list[tuple[str, str, str]] = []
        results: list[str] = []
        part = 0
        for field in known:
            form = self._form(field, part)
            part += split_type(field.type)[0] is bytes
            if field.since:
                form = self._or_default(form, field.default)
            parameters += form.parameters
            checks += form.checks
            results.append(form.result)
        if not self._exact:
            parameters.append("*more")
        make = self._made_by.get(record, record)
        made = "" if typing.get_origin(record) is tuple else self._name(make)
        return self._define(
            self._first + ", ".join(parameters),
            [*_lines_of(checks), f"return {made}({', '.join(results)})"],
        )

    def readers(self, union: Any) -> Mapping[str, Read]:
        """Return the functions that make records of a union, by their tags."""
        records = {
            self._tags[record]: record
            for record in typing.get_args(union)
            if self._since.get(record, 0) <= self._version
        }
        return _OnDemand(lambda tag: self.reader(records[tag]))

    def _define(self, parameters: str, lines: list[str]) -> Callable[..., Any]:
        exec("\n ".join([f"def made({parameters}):", *lines]), self._names)
        made: Callable[..., Any] = self._names.pop("made")
        return made

    def _name(self, value: Any) -> str:
        """Return a name by which functions find a value."""
        name = f"n{next(self._numbers)}"
        self._names[name] = value
        return name

    # --- writing ---

    def _fields(self, record: type, value: str) -> list[tuple[Field, str]]:
        """Return the fields of a record, and where they are found."""
        sent, paths = self._sent_as.get(record, (record, {}))
        return [(one, f"{value}.{paths.get(one.name, one.name)}") for one in fields_of(sent)]

    def _written(self, declared: Any, value: str) -> list[str]:
        """Return the members that stand for a value; bytes may have none."""
        declared, through = split_type(declared)
        inner = typing.get_args(declared)
        if through is not None and through.write is not None:
            return [f"{self._name(through.write)}({value})"]
        if self._first and (declared is bytes or inner[:1] == (bytes,)):
            return []
        if type(None) in inner:
            (written,) = self._written(inner[0], value)
            return [value if written == value else f"None if {value} is None else {written}"]
        if inner[1:] == (Ellipsis,):
            one = f"x{next(self._numbers)}"
            (written,) = self._written(inner[0], one)
            return [value if written == one else f"[{written} for {one} in {value}]"]
        if _is_union(declared):
            return [f"{self._name(self.writers(declared))}[type({value})]({value})"]
        fields = self._fields(declared, value)
        if not fields:
            return [value]
        if any(field.since for field, _ in fields):
            return [f"{self._name(self.writer(declared))}({value})"]
        members = [each for field, found in fields for each in self._written(field.type, found)]
        return members if declared in self._flat else [f"[{', '.join(members)}]"]

    def _parts(self, declared: Any, value: str) -> list[str]:
        """Return where the bytes of a value are found."""
        declared, _ = split_type(declared)
        inner = typing.get_args(declared)
        if declared is bytes:
            return [value]
        if inner[1:] == (Ellipsis,):
            return [f"*[{each} for x in {value}]" for each in self._parts(inner[0], "x")]
        fields = self._fields(declared, value)
        return [each for field, found in fields for each in self._parts(field.type, found)]

    # --- reading ---

    def _or_default(self, form: _Form, value: Any) -> _Form:
        (parameter,), default = form.parameters, self._name(value)
        return _Form(
            [f"{parameter}={default}"],
            [(name, word, f"{name} is {default} or {test}") for name, word, test in form.checks],
            f"{default} if {parameter} is {default} else {form.result}",
        )

    def _form(self, field: Field, part: int) -> _Form:
        """Return how a field is read; `part` bytes stand before it."""
        name = field.name
        declared, through = split_type(field.type)
        inner = typing.get_args(declared)
        if self._first and inner[:1] == (bytes,):
            return _Form([], [], "tuple(parts)")
        if declared is bytes:
            result = f"parts[{part}]"
            return _Form([], [], f"{self._name(through.read)}({result})" if through else result)
        if through is not None:
            # Most objects are empty, and need no look.
            made = f"{self._name(through.read)}({name})"
            if typing.get_origin(declared) is dict:
                made = f"{name} if {name} == {{}} else {made}"
            return _Form([name], [], made)
        if type(None) in inner:
            form = self._form(field._replace(type=inner[0]), part)
            ((_, word, test),) = form.checks
            result = name if form.result == name else f"None if {name} is None else {form.result}"
            return _Form([name], [(name, f"{word} or null", f"{name} is None or {test}")], result)
        if declared in self._flat:
            inside = [
                self._form(one._replace(name=f"{name}_{one.name}"), part)
                for one in fields_of(declared)
            ]
            return _Form(
                [each for form in inside for each in form.parameters],
                [each for form in inside for each in form.checks],
                f"{self._name(declared)}({', '.join([form.result for form in inside])})",
            )
        word, test = _CHECKS[declared if declared in _CHECKS else tuple]
        result = name
        if inner[1:] == (Ellipsis,):
            result = f"{self._members(inner[0], name)} if {name} else ()"
        elif declared not in _CHECKS:
            result = f"{self._name(self.reader(declared))}({self._first}*{name})"
        return _Form([name], [(name, word, test.format(name))], result)

    def _members(self, declared: Any, name: str) -> str:
        """Return how the members of a list are read."""
        of, _ = split_type(declared)
        if of is int or of is str:
            return f"{'_integers' if of is int else '_texts'}({name})"
        if _is_union(of):
            readers = self._name(self.readers(of))
            return f"tuple([{readers}[x[0]]({self._first}*x) for x in {name}])"
        reader = self._name(self.reader(of))
        if self._first and self._parts(of, "x"):
            return f"tuple([{reader}((p,), *x) for x, p in zip({name}, parts, strict=True)])"
        return f"tuple([{reader}({self._first}*x) for x in {name}])"


def _lines_of(checks: list[tuple[str, str, str]]) -> list[str]:
    """Return what refuses wrong values: one condition for all, and only then which it is."""
    conditions: list[str] = []
    for kind in (int, str):
        names = [f"type({name})" for name, word, _ in checks if word == _CHECKS[kind][0]]
        if names:
            conditions.append(f"{' is '.join(names)} is {kind.__name__}")
    for name, word, test in checks:
        if word == _CHECKS[int][0]:
            conditions.append(f"0 <= {name} <= {INTEGER_MAX}")
        elif word != _CHECKS[str][0]:
            conditions.append(f"({test})")
    if not conditions:
        return []
    explained = [f" ({test}) or _wrong({name!r}, {word!r}, {name})" for name, word, test in checks]
    return [f"if not ({' and '.join(conditions)}):", *explained]


def _is_union(declared: Any) -> bool:
    return typing.get_origin(declared) in (typing.Union, types.UnionType)


def _integers(values: Any) -> tuple[int, ...]:
    for value in values:
        if type(value) is not int or not 0 <= value <= INTEGER_MAX:
            _wrong("each member", _CHECKS[int][0], value)
    return tuple(values)


def _texts(values: Any) -> tuple[str, ...]:
    for value in values:
        if type(value) is not str:
            _wrong("each member", _CHECKS[str][0], value)
    return tuple(values)


def _wrong(name: str, expected: str, found: Any) -> None:
    raise ValueError(f"expected {expected} as {name}, found {found!r:.50}")
