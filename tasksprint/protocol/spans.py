"""Cuts a JSON object into the texts of its members, without decoding and encoding them again.

Values of users' programs are carried as the bytes that they came in. A float that went
through an object may come out with other digits, and many readers can't read 2**70. The
scanner of the standard library, written in C, finds the end of each value. The bytes up to
there are handed on as they are.

This module knows JSON, and nothing of the meaning of members.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tasksprint.bounded_text import bounded_repr
from tasksprint.errors import RemoteProtocolError

__all__ = [
    "ERROR_CHARACTERS_MAX",
    "EXCERPT_CHARACTERS",
    "STDERR_HINT",
    "TRACEBACK_CHARACTERS_MAX",
    "Member",
    "NotFiniteError",
    "NotJsonError",
    "cut_object",
    "cut_ready",
    "decode_line",
    "excerpt",
    "for_people",
    "is_text",
    "item_count",
    "read_runtime",
    "scan_carried",
    "show",
    "skip_space",
    "why_not_ready",
]

# An error message quotes so much of somebody else's line.
EXCERPT_CHARACTERS = 60
# Texts of programs about their errors stand in log entries and on people's screens. Of longer
# texts the beginning and the end are kept.
ERROR_CHARACTERS_MAX = 4_000
TRACEBACK_CHARACTERS_MAX = 32_000
STDERR_HINT = "print to stderr, stdout carries the protocol"
# A program's interpreter: its name, its version, the kind of processor.
RUNTIME_CHARACTERS_MAX = 100

# A member as `cut_object` returns it: (decoded value, start, end) in the text.
Member = tuple[Any, int, int]

_Scan = Callable[[str, int], tuple[Any, int]]

_SPACE = re.compile(r"[ \t\r\n]*")
_OPEN = re.compile(r"[ \t\r\n]*\{[ \t\r\n]*")
# A key without escapes, its colon, and the space around: one match instead of four steps.
_PLAIN_KEY = re.compile(r'"([^"\\\x00-\x1f]*)"[ \t\r\n]*:[ \t\r\n]*')
_COLON = re.compile(r"[ \t\r\n]*:[ \t\r\n]*")
_NEXT = re.compile(r"[ \t\r\n]*([,}])[ \t\r\n]*")


class NotJsonError(RemoteProtocolError):
    """The line holds no JSON object at all; most likely the program printed something else."""


class NotFiniteError(RemoteProtocolError):
    """NaN, Infinity or -Infinity stands where JSON has only numbers."""

    def __init__(self, message: str, *, key: str, constant: str) -> None:
        super().__init__(message)
        self.key = key
        self.constant = constant


class _ConstantError(ValueError):
    """Raised inside the scanner; the scanner doesn't know the key."""


class _DuplicateError(ValueError):
    """Raised inside the scanner: an object names a key twice."""


def _refuse_constant(name: str) -> Any:
    raise _ConstantError(name)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _DuplicateError(next(key for key in keys if keys.count(key) > 1))
    return members


def _scanner(decoder: json.JSONDecoder) -> _Scan:
    scan: _Scan = decoder.scan_once  # type: ignore[attr-defined]
    return scan


# For members that this process reads itself: numbers become numbers.
_scan_value = _scanner(
    json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique)
)
# For members that are only carried: numbers stay text. An integer of a million digits
# then costs what its length costs, and isn't refused for being long.
_scan_span = _scanner(
    json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse_constant)
)
_ScanString = Callable[[str, int, bool], tuple[str, int]]
_scan_string: _ScanString = json.decoder.scanstring  # type: ignore[attr-defined]


def excerpt(line: str | bytes) -> str:
    """Return the beginning of somebody else's line, quoted, for an error message."""
    if isinstance(line, bytes):
        line = line[: 4 * EXCERPT_CHARACTERS].decode("utf-8", "replace")
    if len(line) > EXCERPT_CHARACTERS:
        return repr(line[: EXCERPT_CHARACTERS - 1] + "…")
    return repr(line)


def why_not_ready(what: str, said: bytes) -> str:
    """Return in words what is missing: a program ended before it was ready.

    Args:
        what: "node" or "scheduler".
        said: The beginning of its unfinished line, or b"".
    """
    after = f" but {excerpt(said)}" if said else ""
    return (
        f'without its first line {{"ready":{{}}}}{after}; '
        f"a Python {what} calls .start() at its end"
    )


def show(value: object) -> str:
    """Return a value from outside as Python writes it, shortened for an error message."""
    shown = bounded_repr(value, EXCERPT_CHARACTERS + 1)
    if len(shown) > EXCERPT_CHARACTERS:
        return shown[: EXCERPT_CHARACTERS - 1] + "…"
    return shown


def is_text(value: object) -> bool:
    r"""Return whether `value` is a string that UTF-8 can carry.

    JSON can spell half of a surrogate pair (`"\ud800"`). As a key or a name it would raise an
    error wherever it is encoded next.
    """
    if not isinstance(value, str):
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def for_people(text: str, characters_max: int) -> str:
    """Return a text for people: cut in its middle, with a "?" for what UTF-8 can't carry."""
    if len(text) > characters_max:
        half = characters_max // 2 - 2
        text = f"{text[:half]} … {text[-half:]}"
    return text if is_text(text) else text.encode("utf-8", "replace").decode()


def read_runtime(members: dict[str, Member], who: str) -> str | None:
    """Return the interpreter that a program names beside `ready`; None: it names none.

    Raises:
        RemoteProtocolError: It isn't a short text.
    """
    if "runtime" not in members:
        return None
    runtime = members["runtime"][0]
    if not is_text(runtime) or not 0 < len(runtime) <= RUNTIME_CHARACTERS_MAX:
        raise RemoteProtocolError(
            f"{who} said ready with runtime {show(runtime)}, expected a text of 1 to "
            f"{RUNTIME_CHARACTERS_MAX} characters"
        )
    return str(runtime)


def cut_ready(
    line: bytes, known: frozenset[str], listed: str, *, who: str
) -> dict[str, Member]:
    """Cut the line by which a program says that it is ready into its members.

    Args:
        known: Keys that it may have.
        listed: In words, those beside `ready`.
        who: The sender, for messages: "node 3".

    Raises:
        RemoteProtocolError: It says something else, or more.
    """
    try:
        text = decode_line(line, who=who)
        members, end = cut_object(text, 0, who=who)
    except RemoteProtocolError:
        members, end, text = {}, 0, ""
    if "ready" not in members or skip_space(text, end) != len(text):
        raise RemoteProtocolError(
            f'{who} began with {excerpt(line)}, expected {{"ready":{{}}}} as its first line',
            hint=STDERR_HINT,
        )
    unknown = [key for key in members if key not in known]
    if unknown:
        raise RemoteProtocolError(
            f"{who} said ready with {show(unknown[0])}, expected only {listed} beside it"
        )
    return members


def decode_line(line: bytes, *, who: str) -> str:
    """Return a line as text.

    Raises:
        RemoteProtocolError: It isn't UTF-8.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise RemoteProtocolError(
            f"line from {who} isn't UTF-8: byte {line[error.start]:#04x} at offset {error.start}"
        ) from error


def skip_space(text: str, index: int) -> int:
    """Return the first index from `index` on where no JSON space stands."""
    match = _SPACE.match(text, index)
    assert match is not None
    return match.end()


def item_count(array: str) -> int:
    """Return the number of elements of a JSON array that is known to be valid."""
    values, _ = _scan_span(array, skip_space(array, 0))
    assert isinstance(values, list)
    return len(values)


def scan_carried(text: str, index: int) -> int:
    """Return the index right behind the JSON value at `index`, or -1 if there is none.

    For short cuts: on -1 the caller goes the long way, and that names the error.
    """
    try:
        _, end = _scan_span(text, index)
    except (StopIteration, ValueError, RecursionError):
        return -1
    return end


def cut_object(
    text: str,
    index: int,
    *,
    who: str,
    carried: frozenset[str] = frozenset(),
    opened: str | None = None,
) -> tuple[dict[str, Member], int]:
    """Cut the JSON object that begins at `index` into its members.

    Args:
        text: A line, decoded; a slice of it encodes to the bytes that it came in.
        index: Where the object, or space before it, begins.
        who: The sender, for messages: "node 3".
        carried: Keys of members that are only carried: their decoded value means
            nothing, their span counts.
        opened: Key of a member that is cut in turn if it is an object; its value is
            then a dict of members, all of them carried.

    Returns:
        The members in their order, each (decoded value, start, end), and the index
        right behind the object.

    Raises:
        NotFiniteError: NaN, Infinity or -Infinity stands somewhere in a member.
        RemoteProtocolError: It isn't a JSON object, names a key twice, or is nested
            too deeply.
    """
    return _cut(text, index, who, carried, opened, False)


def _cut(
    text: str, index: int, who: str, carried: frozenset[str], opened: str | None, carry_all: bool
) -> tuple[dict[str, Member], int]:
    match = _OPEN.match(text, index)
    if match is None:
        raise NotJsonError(f"line from {who} isn't a JSON object: {excerpt(text[index:])}")
    members: dict[str, Member] = {}
    index = match.end()
    if text.startswith("}", index):
        return members, index + 1
    key = ""
    value: Any
    try:
        while True:
            match = _PLAIN_KEY.match(text, index)
            if match is not None:
                key = match[1]
                start = match.end()
            else:
                key, start = _scan_key(text, index, who)
            if key in members:
                raise RemoteProtocolError(f"line from {who} names key {show(key)} twice")
            if carry_all or key in carried:
                value, index = _scan_span(text, start)
            elif key == opened and text.startswith("{", start):
                value, index = _cut(text, start, who, carried, None, True)
            else:
                value, index = _scan_value(text, start)
            members[key] = (value, start, index)
            match = _NEXT.match(text, index)
            if match is None:
                raise _not_json(text, index, who, "expected ',' or '}'")
            if match[1] == "}":
                return members, match.end(1)
            index = match.end()
    except StopIteration as stop:
        raise _not_json(text, stop.value, who, "expected a value") from None
    except json.JSONDecodeError as error:
        raise _not_json(text, error.pos, who, _lower(error.msg)) from None
    except _ConstantError as error:
        constant = str(error)
        raise NotFiniteError(
            f"line from {who} holds {constant} under key {show(key)}; JSON has no {constant}, "
            "send null or a string instead",
            key=key,
            constant=constant,
        ) from None
    except _DuplicateError as error:
        raise RemoteProtocolError(
            f"line from {who} names key {show(str(error))} twice under key {show(key)}"
        ) from None
    except RecursionError:
        raise RemoteProtocolError(
            f"line from {who} is nested too deeply under key {show(key)}; send it as bytes instead"
        ) from None
    except ValueError as error:
        # An integer with more digits than Python converts; only members that we read.
        raise RemoteProtocolError(
            f"line from {who} has a number under key {show(key)} that can't be read: {error}"
        ) from None


def _scan_key(text: str, index: int, who: str) -> tuple[str, int]:
    """Return a key that holds escapes, and the index of its value."""
    if not text.startswith('"', index):
        raise _not_json(text, index, who, "expected a key in double quotes")
    key, index = _scan_string(text, index + 1, True)
    if not is_text(key):
        raise RemoteProtocolError(
            f"line from {who} has key {show(key)}, which isn't Unicode text",
            hint="it holds half of a surrogate pair; use another key",
        )
    match = _COLON.match(text, index)
    if match is None:
        raise _not_json(text, index, who, "expected ':'")
    return key, match.end()


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _not_json(text: str, index: int | None, who: str, reason: str) -> NotJsonError:
    """Return the error for text that stops being JSON at `index`."""
    at = min(len(text), 0 if index is None else index)
    return NotJsonError(
        f"line from {who} isn't JSON: {reason} at character {at + 1} of {len(text)}, "
        f"found {excerpt(text[at:])}"
    )
