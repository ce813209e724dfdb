"""The command line from its beginning to its end, and the look of mistakes.

Nothing heavy is imported before the command is known: `--version` and `--help`
answer at once, and a node that is attached starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from tasksprint import __version__
from tasksprint.errors import EXIT_OK, JobFailed, StoreError, TaskSprintError, UsageError
from tasksprint.next_steps import as_started
from tasksprint.plain_text import plain_lines
from tasksprint.process.standard_streams import STDOUT_NAME, let_go_of_readers, prepare_streams

__all__ = ["main"]

_EXIT_INTERRUPTED = 130  # as shells report SIGINT
_EXIT_PIPE = 141  # as shells report SIGPIPE


def main(arguments: list[str]) -> int:
    """Run the command that `arguments` name, and return its exit code."""
    prepare_streams()
    if not __debug__:
        print(
            "tasksprint: python -O is refused: the checks are part of the design", file=sys.stderr
        )
        return UsageError.exit_code
    try:
        exit_code = _end_of(arguments)
        sys.stdout.flush()  # Here: later nobody would say what failed.
        return exit_code
    except BrokenPipeError:
        let_go_of_readers()
        return _EXIT_PIPE
    except OSError as error:
        if error.filename is None:
            raise  # Not about a file that somebody could put right: our bug.
        what = f"cannot use {os.fsdecode(error.filename)!r}"
        if error.filename == STDOUT_NAME:
            what = "cannot write to stdout"
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # For the output still to come.
        print(f"tasksprint: {what}: {error.strerror}", file=sys.stderr)
        return StoreError.exit_code


def _end_of(arguments: list[str]) -> int:
    """Run the command, and return its exit code also if it ended with an error of ours."""
    if arguments == ["--version"]:
        print(f"tasksprint {__version__}")
        return EXIT_OK
    try:
        return _run(arguments)
    except TaskSprintError as error:
        # It may quote a user's program.
        text = str(error) if isinstance(error, JobFailed) else as_started(str(error))
        print(f"tasksprint: {plain_lines(text)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("tasksprint: interrupted", file=sys.stderr)
        return _EXIT_INTERRUPTED
    except SystemExit as end:  # of --help
        assert end.code in (None, EXIT_OK), end.code
        return EXIT_OK


def _run(arguments: list[str]) -> int:
    with _interrupts_just_end():
        from tasksprint.cli import parser

        options = parser.parse_command(arguments)
        if options.command is None:
            print(parser.help_of_all(), end="")
            return UsageError.exit_code
        run = parser.load(options)
    return run(options)


@contextlib.contextmanager
def _interrupts_just_end() -> Iterator[None]:
    """Let SIGINT end this process without a word: there is nothing yet to end in good order.

    A KeyboardInterrupt while modules are loaded is a traceback, and libraries in C crash by it.
    """
    # (The one file has begun it; where SIGINT is ignored, as by nohup, it stays so.)
    ours = (signal.default_int_handler, signal.SIG_DFL)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) not in ours:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
