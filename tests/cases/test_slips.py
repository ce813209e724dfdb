"""Mistakes of users, in programs, requests and on the command line: each is told at once."""

from __future__ import annotations

import io
import json
import logging
import sys
from typing import Any

import pytest

from tasksprint.errors import JobFailed
from tasksprint.plain_text import plain_json, plain_line, plain_lines
from tasksprint.roles import main, terminal

# A terminal's title, a wiped screen, C1's one-character CSI, DEL, and text that is read
# from right to left.
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202egnp.exe\u2066"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202egnp.exe\u2066"


class Terminal(io.TextIOWrapper):
    """A stdout that says that people read it."""

    def __init__(self, *, is_terminal: bool = True) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def taken(self) -> bytes:
        self.flush()
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue()


# --- text that a terminal would obey -------------------------------------------------


def test_control_characters_are_shown_and_not_sent() -> None:
    assert plain_line(HOSTILE) == SHOWN
    assert plain_lines(f"{HOSTILE}\nnext\tcolumn\r\nlast") == f"{SHOWN}\nnext\tcolumn\nlast"
    assert plain_line("a\nb\tc\rd\u2028e") == r"a\nb\tc\rd\u2028e"
    assert plain_lines("half \ud800, over\rwritten") == r"half \ud800, over\rwritten"
    assert plain_lines("naïve 漢字 🎲 \u200d") == "naïve 漢字 🎲 \u200d"


def test_every_control_character_is_covered() -> None:
    for code in [*range(0x20), *range(0x7F, 0xA0)]:
        assert plain_line(chr(code)).isprintable(), hex(code)
        is_layout = chr(code) in "\n\t"
        assert (plain_lines(chr(code)) == chr(code)) == is_layout, hex(code)


def test_json_for_a_terminal_means_the_same() -> None:
    text = json.dumps({"k\x7f": ["\x1b", "\x9b2J", "\u202e", "漢"]}, ensure_ascii=False)
    shown = plain_json(text)
    assert shown.isprintable()
    assert json.loads(shown) == json.loads(text)
    assert json.loads(plain_json('{"a":\r1}')) == {"a": 1}


@pytest.mark.parametrize("is_terminal", [True, False])
def test_json_is_exact_but_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    stdout = Terminal(is_terminal=is_terminal)
    monkeypatch.setattr(sys, "stdout", stdout)
    terminal.print_json_text(b'{"x":"\xc2\x9b2J"}')
    terminal.print_bytes(b"\xff\x1b[2J\n")
    if is_terminal:
        assert stdout.taken() == b'{"x":"\\u009b2J"}\n\\xff\\x1b[2J\n'
    else:
        assert stdout.taken() == b'{"x":"\xc2\x9b2J"}\n\xff\x1b[2J\n'


def test_a_table_keeps_each_cell_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_table(["CLIENT", "HOST"], [["1", "a\n2       forged"], ["3", HOSTILE]])
    assert capsys.readouterr().out.splitlines() == [
        "CLIENT  HOST",
        r"1       a\n2       forged",
        f"3       {SHOWN}",
    ]


def test_an_error_that_quotes_a_program_is_printed_plainly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str]) -> int:
        raise JobFailed(f"job 1 failed: {HOSTILE}\n  second line")

    monkeypatch.setattr(main, "_run", fail)
    assert main.main(["status"]) == 1
    assert capsys.readouterr().err == f"tasksprint: job 1 failed: {SHOWN}\n  second line\n"


def test_a_message_of_the_log_stays_one_line() -> None:
    formatter = terminal.PlainFormatter("%(levelname)s %(message)s")
    record = _record(f"job=1 failed: {HOSTILE}\nERROR forged")
    assert formatter.format(record) == f"WARNING job=1 failed: {SHOWN}\\nERROR forged"
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        record = _record("a bug", exc_info=sys.exc_info())
    lines = formatter.format(record).splitlines()
    assert lines[0] == "WARNING a bug"
    assert lines[-1] == f"ValueError: {SHOWN}"


def _record(message: str, exc_info: Any = None) -> logging.LogRecord:
    return logging.LogRecord("x", logging.WARNING, __file__, 1, "%s", (message,), exc_info)
