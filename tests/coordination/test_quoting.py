"""Users' texts in replicated sentences: what stands there can't depend on the interpreter."""

from __future__ import annotations

import pytest

from tasksprint.coordination.quoting import quote, quoted
from tasksprint.settings import RULES_BY_VERSION

# Characters of Unicode 14, 15 and 17: printable for some versions of Python, and for others not.
NEWER = "\U0001fae0 \U0001fae8 \U0001fac8"


@pytest.mark.parametrize(
    "text",
    [
        *("map", "it's", 'say "so"', "it's \"so\"", "back\\slash", "line\nnext\r\tend", ""),
        *("t\xe2che", "\u4efb\u52a1"),
        *("\x00\x1b[31m\x7f\x9f\xa0\xad", "\u200b\u202e\u2028\ufeff\u3000"),
        "\ud800",
    ],
)
def test_what_every_interpreter_knows_is_quoted_as_repr_does(text: str) -> None:
    assert quote(text) == repr(text)


def test_what_a_later_unicode_brings_is_written_alike_by_all() -> None:
    assert quote(NEWER) == f"'{NEWER}'"


def test_first_rules_have_what_their_release_wrote() -> None:
    assert quoted(NEWER, RULES_BY_VERSION[1]) == repr(NEWER)
    assert quoted(NEWER, RULES_BY_VERSION[2]) == f"'{NEWER}'"


def test_all_of_ascii_and_latin_is_quoted_as_repr_does() -> None:
    for code in range(0x250):
        assert quote(f"a{chr(code)}b") == repr(f"a{chr(code)}b"), hex(code)
