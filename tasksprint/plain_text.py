r"""Shows the text of users' programs without letting it give orders to a terminal.

A terminal obeys control characters. `ESC ] 0 ; …` names its window, and `ESC [ 2 J` wipes it.
A line separator, or an override of the writing direction, can change the meaning of a log.
Here each of them becomes its escape (`\x1b`, `\u202e`), so a reader sees it.

Data that only passes on (JSON into a file, bytes into a pipe) is no business of this module.
"""

from __future__ import annotations

import re

__all__ = ["plain_json", "plain_line", "plain_lines"]

# C0, DEL and C1; marks and overrides of direction; separators of lines and paragraphs; halves
# of surrogate pairs (no stream can encode those).
_HARMFUL = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"
    "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
)
_IN_LINES = re.compile(f"[{_HARMFUL}]")
_IN_LINE = re.compile(f"[\t\n{_HARMFUL}]")
_SHORT = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}


def plain_line(text: str) -> str:
    """Return text that stays on one line; line breaks and tabs are escaped as well."""
    return _IN_LINE.sub(_escape, text)


def plain_lines(text: str) -> str:
    """Return text whose lines and tabs stay; each other control character is escaped."""
    return _IN_LINES.sub(_escape, text.replace("\r\n", "\n"))


def plain_json(text: str) -> str:
    """Return JSON that means the same, with control characters as JSON writes them."""
    return _IN_LINES.sub(_escape_in_json, text)


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def _escape_in_json(found: re.Match[str]) -> str:
    # Strings in JSON hold no bare \r: this one stands between tokens.
    return " " if found[0] == "\r" else f"\\u{ord(found[0]):04x}"
