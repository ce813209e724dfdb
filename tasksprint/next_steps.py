"""Sentences with commands that a person can type next, word for word, for a job or a cluster."""

from __future__ import annotations

import os
import re
import shlex
import sys
from typing import TYPE_CHECKING

from tasksprint.ids import JobId

if TYPE_CHECKING:
    import argparse

__all__ = [
    "COMMANDS",
    "as_started",
    "how_to_come_back",
    "how_to_go_on",
    "program_command",
    "program_words",
]

# Options that name the cluster, the variables that mean the same, and their defaults.
_REACHING = (
    ("coordinators", "TASKSPRINT_COORDINATORS", "127.0.0.1:7070"),
    ("key_file", "TASKSPRINT_KEY_FILE", None),
    ("cluster", "TASKSPRINT_CLUSTER", None),
)

COMMANDS = (
    *("backup", "cancel", "client", "clients", "coordinator", "job", "jobs", "log", "logs"),
    *("member", "node", "recover", "restore", "result", "run", "status", "stop", "submit"),
    *("token", "upgrade"),
)
# A command in a sentence, and not a path or another word with the same end.
_COMMAND = re.compile(rf"(?<![\w./-])tasksprint(?= (?:--help|(?:{'|'.join(COMMANDS)})\b))")


def program_words(started_as: str | None = None) -> list[str]:
    """Return the words by which a person starts this program, as they did it now.

    Args:
        started_as: The path of the program; `sys.argv[0]` by default.
    """
    path = sys.argv[0] if started_as is None else started_as
    folder, name = os.path.split(path)
    if name.endswith(".pyz") or name == "tasksprint.py":
        return ["python3", path]
    if name == "__main__.py" and os.path.basename(folder) == "tasksprint":
        return ["python3", "-m", "tasksprint"]
    return ["tasksprint"]


def program_command(*words: str) -> str:
    """Return a command of this program with these words, to be typed as it is."""
    return " ".join([shlex.join(program_words()), *words])


def as_started(text: str) -> str:
    """Return another process's sentence, with its commands in the words of this person.

    Coordinators don't know how a person starts this program, and say "tasksprint".
    """
    return _COMMAND.sub(lambda _: program_command(), text)


def how_to_go_on(options: argparse.Namespace, job: JobId) -> str:
    """Return how to follow a job, to fetch its result, and to end it, on three lines."""
    return "\n".join(
        [
            f"follow it:        {_command(options, 'result', job, '--wait')}",
            f"fetch its result: {_command(options, 'result', job)}",
            f"cancel it:        {_command(options, 'cancel', job)}",
        ]
    )


def how_to_come_back(options: argparse.Namespace, job: JobId) -> str:
    """Return a sentence for a person who stops waiting: the job goes on, and how to come back."""
    return (
        f"job {job} goes on without this command; "
        f"come back with: {_command(options, 'result', job, '--wait')}; "
        f"cancel it with: {_command(options, 'cancel', job)}"
    )


def _command(options: argparse.Namespace, name: str, job: JobId, *more: str) -> str:
    words = [*program_words(), name, str(job), *more]
    for option, variable, default in _REACHING:
        value = getattr(options, option, None)
        if value is not None and value != os.environ.get(variable, default):
            words += [f"--{option.replace('_', '-')}", value]
    return shlex.join(words)
