"""How commands print and roles log: text of users can't control the terminal that shows it.

All that goes to stdout, stderr or a log is written here, so that no command can forget it. JSON
and bytes stay exact wherever a program may read them; only a terminal gets them escaped.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TextIO

from tasksprint.encoding import encode_json
from tasksprint.plain_text import plain_json, plain_line, plain_lines

__all__ = [
    "PlainFormatter",
    "event_line",
    "print_answer",
    "print_as_is",
    "print_bytes",
    "print_json",
    "print_json_text",
    "print_plain",
    "table_lines",
]


def print_plain(text: str, *, file: TextIO | None = None, end: str = "\n") -> None:
    """Print text that people read, to stdout if no file is named."""
    print(plain_lines(text), file=sys.stdout if file is None else file, end=end)


def print_as_is(text: str) -> None:
    """Print text to stdout with the control characters that it has: somebody asked for them."""
    print(text)


def print_answer(value: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """Print a command's result: as one line of JSON, or as lines that people read.

    Args:
        lines: Made only if they are printed.
    """
    if as_json:
        print_json(value)
    else:
        for line in lines:
            print_plain(line)


def table_lines(heads: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    """Yield the lines of a table: the heads, and each row on a line of its own."""
    lines = [heads, *([plain_line(cell) for cell in row] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(heads))]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def print_json(value: Any) -> None:
    """Print a value of ours as one line of JSON."""
    print_json_text(encode_json(value))


def event_line(fields: dict[str, Any]) -> str:
    """Return a line of JSON for a reader of stderr: a program, or a person at a terminal."""
    return plain_json(encode_json(fields).decode())


def print_json_text(text: bytes) -> None:
    """Print a line of JSON exactly; on a terminal, another spelling of the same."""
    if sys.stdout.isatty():
        text = plain_json(text.decode(errors="backslashreplace")).encode()
    _write(text + b"\n")


def print_bytes(data: bytes) -> None:
    """Print bytes exactly; to a terminal, as text without control characters."""
    if sys.stdout.isatty():
        data = plain_lines(data.decode(errors="backslashreplace")).encode()
    _write(data)


def _write(data: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


class PlainFormatter(logging.Formatter):
    """Writes a line for each record: a message can't end it and begin one of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the record's line."""
        return plain_line(super().formatMessage(record))

    def formatException(
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        """Return the traceback, on lines of its own."""
        return plain_lines(super().formatException(ei))
