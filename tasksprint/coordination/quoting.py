"""Users' texts in quotes, for sentences in the state: the same on every interpreter.

`repr` escapes characters that its interpreter calls unprintable. The tables of these grow with
each version of Unicode, so replicas on two versions of Python would write different rows. From
version 2 of the rules on, a fixed list names the escaped characters. Version 1 had `repr`.
"""

from __future__ import annotations

import re

from tasksprint.settings import Rules

__all__ = ["FIRST_FIXED_RULES", "quote", "quoted"]

FIRST_FIXED_RULES = 2
# Controls, the backslash, halves of pairs, and characters that hide or turn around others.
_ESCAPED = re.compile(
    "[\\\\\x00-\x1f\x7f-\xa0\xad\u061c\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f"
    "\u3000\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
_SHORT = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


def quoted(text: str, rules: Rules) -> str:
    """Return a text in quotes, as the rules write it."""
    return repr(text) if rules.version < FIRST_FIXED_RULES else quote(text)


def quote(text: str) -> str:
    """Return a text in quotes: as `repr` does, but by a fixed list of escaped characters."""
    mark = '"' if "'" in text and '"' not in text else "'"
    inside = _ESCAPED.sub(_escape, text)
    if mark == "'":
        inside = inside.replace("'", "\\'")
    return f"{mark}{inside}{mark}"


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    code = ord(character)
    if code < 0x100:
        return _SHORT.get(character) or f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
