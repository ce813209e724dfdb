"""Stdin, stdout and stderr of this process, however it was started.

A missing one (`>&-`, a daemon's parent that closed it) is /dev/null from the first moment on.
Else the next socket or database gets its number. Then text for a reader is written into that
file, or a child gets it as its stdin. If stdout can't be written, this is an error that says
so. If stderr can't be written, the text is lost, as there is nowhere to say it; this ends
nothing.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any

__all__ = ["STDOUT_NAME", "let_go_of_readers", "prepare_streams"]

# The file name in errors of stdout.
STDOUT_NAME = "<stdout>"

_STDERR = 2


def prepare_streams() -> None:
    """Make all three usable, and let errors of stdout be told from others. Call it first."""
    _fill_descriptors()
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(_STDERR, "w", closefd=False, errors="backslashreplace")
    if _is_own(sys.stdout, 1):
        sys.stdout = _stream(
            _Stdout(1, "wb", closefd=False),
            sys.stdout,
            line_buffering=sys.stdout.isatty() or bool(os.environ.get("PYTHONUNBUFFERED")),
        )
    if _is_own(sys.stderr, _STDERR):
        stderr = _Stderr(_STDERR, "wb", closefd=False)
        sys.stderr = _stream(stderr, sys.stderr, line_buffering=True)


def let_go_of_readers() -> None:
    """Drop the unwritten rest of stdout, and that of stderr if nobody reads it either.

    Else Python fails once more when it flushes them at the end, and the exit code is Python's.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(null, _STDERR)


def _fill_descriptors() -> None:
    """Open /dev/null for each of the three that is missing; children may inherit it."""
    while True:
        # This takes the lowest free number: so the missing ones come first.
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > _STDERR:
            os.close(descriptor)
            return
        os.set_inheritable(descriptor, True)


def _is_own(stream: Any, descriptor: int) -> bool:
    """Whether it is the process's stream, and not one that a test put in its place."""
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() == descriptor
    except OSError:
        return False


def _stream(raw: io.FileIO, was: Any, *, line_buffering: bool) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=was.encoding,
        errors=was.errors,
        line_buffering=line_buffering,
    )


class _Stdout(io.FileIO):
    """Stdout; its errors name it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OSError(error.errno, error.strerror, STDOUT_NAME) from None


class _Stderr(io.FileIO):
    """Stderr; it drops text that can't be printed: on a full disk, on a terminal that is gone."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise  # As SIGPIPE would end it: the reader (`2>&1 | head`) wants no more.
        except OSError:
            return len(data)
