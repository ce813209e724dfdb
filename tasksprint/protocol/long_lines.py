"""Takes the values out of a line that is too long to be scanned in one go.

A scanner in C holds Python's global lock until it has read all. That takes seconds for some
megabytes of small numbers. So a long line is looked through here, on a thread, in windows; each
takes a millisecond at most. The values are cut out. The rest is a short line, and is read like
any other.

It finds the ends of values by strings and brackets, and looks whether they are UTF-8. It doesn't
look whether they are JSON otherwise: their decoder finds that. They stand on one line in any case,
so they can't break another line.
"""

from __future__ import annotations

import codecs
import re
from json import JSONDecodeError, loads

from tasksprint.errors import RemoteProtocolError
from tasksprint.protocol.spans import excerpt, is_text, show

__all__ = ["take_values_out"]

_WINDOW = 256 * 1024
_SPACE = b" \t\r\n"
_MARK = re.compile(rb'["{}\[\]]')
# Numbers and words, strings without escapes, and arrays and objects of these alone. Most of a
# long line is of this form, and thousands of them are one step. (Nothing here can match in two
# ways, so a match that fails costs no more than its reading.)
_FLAT = re.compile(
    rb'(?:[^"{}\[\]\\]+|"[^"\\]*"'
    rb'|[\[{][^"{}\[\]\\]*(?:"[^"\\]*"[^"{}\[\]\\]*)*[\]}])+'
)
_AFTER_SCALAR = re.compile(rb"[ \t\r\n,}\]]")
_decoder = codecs.getincrementaldecoder("utf-8")


def take_values_out(line: bytes, *, who: str) -> tuple[bytes, list[tuple[str, memoryview]]]:
    """Return a line without the members of its "values", and these members: (key, text).

    Raises:
        RemoteProtocolError: It isn't an object with members, or isn't UTF-8.
    """
    return _Cutter(line, who).cut()


class _Cutter:
    def __init__(self, line: bytes, who: str) -> None:
        self._line = line
        self._who = who

    def cut(self) -> tuple[bytes, list[tuple[str, memoryview]]]:
        line, view = self._line, memoryview(self._line)
        self._check_text()
        left = bytearray()
        kept = 0  # Up to here the line is in `left`, but for values.
        values: list[tuple[str, memoryview]] = []
        for key, start, end in self._members(0):
            if key != "values" or line[start : start + 1] != b"{":
                continue
            if values:
                raise self._wrong(start, "the key 'values' a second time")
            for of_value, first, last in self._members(start):
                values.append((of_value, view[first:last]))
            left += view[kept:start]
            left += b"{}"
            kept = end
        left += view[kept:]
        return bytes(left), values

    def _check_text(self) -> None:
        view, decoder = memoryview(self._line), _decoder()
        for at in range(0, len(view), _WINDOW):
            try:
                decoder.decode(view[at : at + _WINDOW], at + _WINDOW >= len(view))
            except UnicodeDecodeError as error:
                raise RemoteProtocolError(f"line from {self._who} isn't UTF-8") from error

    def _members(self, at: int) -> list[tuple[str, int, int]]:
        """Return (key, start, end of its value) of the members of the object at `at`."""
        line = self._line
        at = self._skip(at)
        if line[at : at + 1] != b"{":
            raise self._wrong(at, "no object")
        members: list[tuple[str, int, int]] = []
        seen: set[str] = set()
        at = self._skip(at + 1)
        if line[at : at + 1] == b"}":
            return members
        while True:
            end = self._string_end(at)
            try:
                key = loads(line[at:end])
            except (JSONDecodeError, RecursionError) as error:
                raise self._wrong(at, "no key") from error
            if not isinstance(key, str) or key in seen:
                raise self._wrong(at, f"the key {show(key)} a second time")
            if not is_text(key):
                raise RemoteProtocolError(
                    f"line from {self._who} has key {show(key)}, which isn't Unicode text"
                )
            seen.add(key)
            at = self._skip(end)
            if line[at : at + 1] != b":":
                raise self._wrong(at, "no ':'")
            start = self._skip(at + 1)
            end = self._value_end(start)
            members.append((key, start, end))
            at = self._skip(end)
            if line[at : at + 1] == b"}":
                return members
            if line[at : at + 1] != b",":
                raise self._wrong(at, "no ',' or '}'")
            at = self._skip(at + 1)

    def _skip(self, at: int) -> int:
        line = self._line
        while at < len(line) and line[at] in _SPACE:
            at += 1
        return at

    def _value_end(self, at: int) -> int:
        first = self._line[at : at + 1]
        if first == b'"':
            return self._string_end(at)
        if first not in (b"[", b"{"):
            end = self._find(_AFTER_SCALAR, at)
            if end == at:
                raise self._wrong(at, "no value")
            return end
        depth = 1
        at += 1
        while True:
            while (flat := _FLAT.match(self._line, at, at + _WINDOW)) is not None:
                at = flat.end()
            at = self._find(_MARK, at)
            mark = self._line[at : at + 1]
            if mark == b'"':
                at = self._string_end(at)
                continue
            depth += 1 if mark in (b"[", b"{") else -1
            at += 1
            if not depth:
                return at

    def _find(self, pattern: re.Pattern[bytes], at: int) -> int:
        """Return where a pattern of one byte is next."""
        while at < len(self._line):
            found = pattern.search(self._line, at, at + _WINDOW)
            if found is not None:
                return found.start()
            at += _WINDOW
        raise self._wrong(at, "no end of a value")

    def _string_end(self, at: int) -> int:
        """Return the index behind the string that begins at `at`."""
        line = self._line
        if line[at : at + 1] != b'"':
            raise self._wrong(at, "no key in double quotes")
        begin = at = at + 1
        while at < len(line):
            end = line.find(b'"', at, at + _WINDOW)
            if end < 0:
                at += _WINDOW
                continue
            slashes = end
            while slashes > begin and line[slashes - 1] == 0x5C:
                slashes -= 1
            at = end + 1
            if (end - slashes) % 2 == 0:
                return at
        raise self._wrong(at, "no end of a string")

    def _wrong(self, at: int, what: str) -> RemoteProtocolError:
        at = min(at, len(self._line))
        return RemoteProtocolError(
            f"line from {self._who} isn't JSON: {what} at byte {at + 1} of {len(self._line)}, "
            f"found {excerpt(self._line[at : at + 300])}"
        )
