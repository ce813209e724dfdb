"""Records as positional arrays of JSON, by their declared types: `["leave",1,"f0"]`.

A record is a dataclass or a named tuple. Its array has its fields in the order of their
declaration; a record inside it is an array inside. In a union each record begins with a tag.

**Arrays grow at their end only.** A later version declares its field by `added`, behind all
others, with its default and that version. The writer leaves out defaults at the end. So a record
that doesn't use the field has the bytes of before. The reader takes the default for a missing
field. It ignores members behind the fields that it knows; an `exact` reader refuses such a
record.

Each function is made when it is needed first: as text, out of the declarations, as `dataclasses`
does. These functions run for each task. They must take no longer than those that people write.

Knows types, and not what a record means.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from tasksprint.bounded_text import bounded_repr

__all__ = ["INTEGER_MAX", "Arrays", "Field", "Through", "added", "fields_of", "split_type"]

INTEGER_MAX = 2**63 - 1  # SQLite's and JSON parsers' limit

# For each type what its values must be: as a condition, and in words.
_SCALARS = {
    int: (f"type({{0}}) is int and 0 <= {{0}} <= {INTEGER_MAX}", "a number from 0 to 2**63 - 1"),
    str: ("type({0}) is str", "text"),
    bool: ("type({0}) is bool", "true or false"),
}


def added(default: Any, *, since: int) -> Any:
    """Declare a field that a version added; where it is missing its value is `default`."""
    return dataclasses.field(default=default, metadata={"since": since})


class Through(NamedTuple):
    """The functions that a value goes through, in `Annotated[type, Through(…)]`."""

    read: Callable[[Any], Any]  # raises ValueError for a value that it doesn't take
    write: Callable[[Any], Any] | None = None  # None: it stands in the array as it is


class Field(NamedTuple):
    """One field of a record."""

    name: str
    type: Any
    since: int = 0  # the version that added it; 0: it was always there
    default: Any = None  # of one that was added


@functools.cache
def fields_of(record: Any) -> tuple[Field, ...]:
    """Return the fields of a record in order; of a tuple's type its members."""
    if dataclasses.is_dataclass(record):
        hints = typing.get_type_hints(record, include_extras=True)
        return tuple(
            [
                Field(one.name, hints[one.name], one.metadata.get("since", 0), one.default)
                for one in dataclasses.fields(record)
            ]
        )
    if hasattr(record, "_fields"):
        hints = typing.get_type_hints(record, include_extras=True)
        return tuple([Field(name, hints[name]) for name in record._fields])
    return tuple([Field(f"v{n}", member) for n, member in enumerate(typing.get_args(record))])


def split_type(declared: Any) -> tuple[Any, Through | None]:
    """Return the plain type behind a declared one, and what its values go through (or None)."""
    through = None
    while True:
        if hasattr(declared, "__supertype__"):  # A NewType.
            declared = declared.__supertype__
        elif typing.get_origin(declared) is Annotated:
            declared, through = typing.get_args(declared)
        else:
            return declared, through


_Maker = Callable[[Any], Callable[..., Any]]


class _Form(NamedTuple):
    """How one value is written and read, as text."""

    written: list[str]  # members of an array
    parameters: list[str]  # their names in the function that reads
    tests: list[tuple[str, str, str]]  # (parameter, what must hold, … in words)
    result: str  # the value that is made of the parameters
    parts: tuple[str, ...] = ()  # bytes


class Arrays:
    """Writes and reads records.

    For a type of records there are three functions, each made once. `writer(type)` makes an array
    of a record. `parts(type)` returns the record's bytes. `reader(type)` makes a record of an
    array's members. It raises TypeError, ValueError or LookupError if they don't make one.

    Args:
        tags: The tag of each record type of a union. There a type without a tag isn't known.
        version: Fields that were added later aren't known.
        exact: Refuse an array with more members than are known.
        flat: Named tuples whose fields stand in the array of the record around them.
        beside: Bytes stand in a list beside the array, in order, and not in it. `parts` gives
            this list. Readers get it as their first argument, and take the bytes out of it.
        sent: The paths at which a record's members are found, if not its fields in order.
        made_by: A function that makes a record of its fields, if not the record's own type.
    """

    def __init__(
        self,
        tags: Mapping[type, str] | None = None,
        *,
        version: int = INTEGER_MAX,
        exact: bool = False,
        flat: tuple[type, ...] = (),
        beside: bool = False,
        sent: Mapping[type, Sequence[str]] | None = None,
        made_by: Mapping[type, Callable[..., Any]] | None = None,
    ) -> None:
        self._tags = tags or {}
        self._version = version
        self._more = [] if exact else ["*more"]
        self._flat = flat
        self._first = "parts, " if beside else ""  # of what readers take
        self._sent = sent or {}
        self._made_by = made_by or {}
        self._names: dict[str, Any] = {"wrong": _wrong}
        self.writer: _Maker = functools.cache(self._make_writer)
        self.reader: _Maker = functools.cache(self._make_reader)
        self.parts: _Maker = functools.cache(self._make_parts)

    def tagged(self, union: Any) -> dict[str, Any]:
        """Return the known records of a union, by their tags."""
        known = [record for record in typing.get_args(union) if record in self._tags]
        return {self._tags[record]: record for record in known}

    def _make_parts(self, record: Any) -> Callable[..., Any]:
        parts = [part for _, form in self._forms(record, "v") for part in form.parts]
        return self._define("v", [f"return [{', '.join(parts)}]"])

    def _make_writer(self, record: Any) -> Callable[..., Any]:
        members = [repr(self._tags[record])] if record in self._tags else []
        late: list[str] = []
        lines: list[str] = []
        for field, form in self._forms(record, "v"):
            if field.since:
                late += form.written
                default = self._name(field.default)
                lines.insert(
                    0, f"if v.{field.name} != {default}: return [*array, {', '.join(late)}]"
                )
            else:
                members += form.written
        array = f"[{', '.join(members)}]"
        lines = [f"array = {array}", *lines, "return array"] if lines else [f"return {array}"]
        return self._define("v", lines)

    def _make_reader(self, record: Any) -> Callable[..., Any]:
        parameters = ["tag"] if record in self._tags else []
        lines: list[str] = []
        results: list[str] = []
        for field, form in self._forms(record, "v"):
            if field.since > self._version:
                continue
            if field.since:
                form = _with_default(form, self._name(field.default))
            parameters += form.parameters
            lines += [f"({test}) or wrong({p!r}, {word!r}, {p})" for p, test, word in form.tests]
            results.append(form.result)
        is_tuple = typing.get_origin(record) is tuple
        made = "" if is_tuple else self._name(self._made_by.get(record, record))
        lines.append(f"return {made}({', '.join(results)})")
        return self._define(self._first + ", ".join(parameters + self._more), lines)

    def _define(self, parameters: str, lines: list[str]) -> Callable[..., Any]:
        exec("\n ".join([f"def made({parameters}):", *lines]), self._names)
        made: Callable[..., Any] = self._names["made"]
        return made

    def _name(self, value: Any) -> str:
        """Return a name by which functions find a value."""
        name = f"n{len(self._names)}"
        self._names[name] = value
        return name

    def _forms(self, record: Any, at: str, prefix: str = "") -> list[tuple[Field, _Form]]:
        """Return the fields of a record, with their forms; `at` is where the record is found."""
        forms: list[tuple[Field, _Form]] = []
        for path in self._sent.get(record) or [field.name for field in fields_of(record)]:
            of = record
            for name in path.split("."):
                (field,) = [each for each in fields_of(of) if each.name == name]
                of, _ = split_type(field.type)
            forms.append((field, self._form(field.type, f"{at}.{path}", prefix + field.name)))
        return forms

    def _form(self, declared: Any, at: str, name: str) -> _Form:
        """Return the form of a value: writers find it `at` a place, readers know it by a name."""
        declared, through = split_type(declared)
        origin, inner = typing.get_origin(declared), typing.get_args(declared)
        if declared is bytes:
            part = "parts.pop(0)"
            result = part if through is None else f"{self._name(through.read)}({part})"
            return _Form([], [], [], result, (at,))
        if through is not None:
            written = at if through.write is None else f"{self._name(through.write)}({at})"
            result = f"{self._name(through.read)}({name})"
            if origin is dict:  # Most are empty, and need no look.
                result = f"{name} if {name} == {{}} else {result}"
            return _Form([written], [name], [], result)
        if declared in _SCALARS:
            test, word = _SCALARS[declared]
            return _Form([at], [name], [(name, test.format(name), word)], name)
        if type(None) in inner:
            form = self._form(inner[0], at, name)
            tests = [
                (p, f"{p} is None or {test}", f"{word} or null") for p, test, word in form.tests
            ]
            written = _or_none(form.written[0], at)
            return _Form([written], [name], tests, _or_none(form.result, name))
        if inner[1:] == (Ellipsis,):
            return self._list(inner[0], at, name)
        fields = self._forms(declared, at, f"{name}_")
        forms = [form for _, form in fields]
        members = [each for form in forms for each in form.written]
        parts = tuple([each for form in forms for each in form.parts])
        if declared in self._flat:
            return _Form(
                members,
                [each for form in forms for each in form.parameters],
                [each for form in forms for each in form.tests],
                f"{self._name(declared)}({', '.join([form.result for form in forms])})",
                parts,
            )
        written = f"[{', '.join(members)}]"
        if origin is tuple:
            written = at
        elif any(field.since for field, _ in fields):
            written = f"{self._name(self.writer(declared))}({at})"
        result = f"{self._name(self.reader(declared))}({self._first}*{name})"
        return _Form([written], [name], [(name, f"type({name}) is list", "a list")], result, parts)

    def _list(self, declared: Any, at: str, name: str) -> _Form:
        """Return the form of any number of values."""
        of, _ = split_type(declared)
        if of is bytes:
            return _Form([], [], [], "tuple(parts)", (f"*{at}",))
        x = self._name(None)  # One of them.
        parts: tuple[str, ...] = ()
        written = at
        if of in _SCALARS:
            test, word = _SCALARS[of]
            check = f"for x in v: ({test.format('x')}) or wrong('each member', {word!r}, x)"
            result = f"{self._name(self._define('v', [check, 'return tuple(v)']))}({name})"
        elif typing.get_origin(of) in (typing.Union, types.UnionType):
            written = f"[{self._name(self.writer)}(type({x}))({x}) for {x} in {at}]"
            record = f"{self._name(self.tagged(of))}[{x}[0]]"
            read = f"{self._name(self.reader)}({record})({self._first}*{x})"
            result = f"tuple([{read} for {x} in {name}])"
        else:
            form = self._form(declared, x, x)
            if form.written != [x]:
                written = f"[{form.written[0]} for {x} in {at}]"
            result = f"tuple([{form.result} for {x} in {name}])"
            parts = tuple([f"*[{part} for {x} in {at}]" for part in form.parts])
        is_list = (name, f"type({name}) is list", "a list")
        return _Form([written], [name], [is_list], f"{result} if {name} else ()", parts)


def _with_default(form: _Form, default: str) -> _Form:
    (p,) = form.parameters
    tests = [(p, f"{p} is {default} or {test}", word) for p, test, word in form.tests]
    result = f"{default} if {p} is {default} else {form.result}"
    return form._replace(parameters=[f"{p}={default}"], tests=tests, result=result)


def _or_none(text: str, value: str) -> str:
    return text if text == value else f"None if {value} is None else {text}"


def _wrong(name: str, expected: str, found: Any) -> None:
    raise ValueError(f"expected {expected} as {name}, found {bounded_repr(found)}")
