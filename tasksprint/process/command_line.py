"""How a user's program is run: its argv and its environment.

Knows file names, #! lines and PATH. Knows also which variables of this machine must not reach a
program: its results would differ from those of another machine. It doesn't start anything.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tasksprint.errors import NodeFailed, SchedulerFailed

__all__ = [
    "UMASK",
    "child_environment",
    "command_line",
    "explain_start_error",
    "hash_seed_of",
    "is_of_the_job",
]

Failure = type[NodeFailed | SchedulerFailed]

# The program that runs each kind of source file. The file's #! line and mode don't count: they
# get lost on the way (a download, a FAT stick), and #!/usr/bin/python is often Python 2 or
# not there at all.
_INTERPRETED = {".sh": ("/bin/sh",), ".awk": ("awk", "-f")}
# Our own variables say where the key lies and whom to ask: none of it is a program's business.
_OWN_PREFIX = "TASKSPRINT_"
# Variables of the terminal or the shell that started this process, and those that change how
# Python reads text, counts or checks. With them a program would give other bytes than elsewhere.
_LEFT_OUT = frozenset(
    {
        "COLUMNS", "LANGUAGE", "LINES", "OLDPWD", "PYTHONINSPECT", "PYTHONINTMAXSTRDIGITS",
        "PYTHONIOENCODING", "PYTHONOPTIMIZE", "PYTHONUTF8", "PYTHONWARNINGS", "SHLVL", "_",
    }
)  # fmt: skip
_HASH_SEED_END = 2**32  # the range that Python accepts
# The umask of programs, whatever this process's is: their files are theirs alone.
UMASK = 0o077


def command_line(
    program: str | Sequence[str],
    *,
    directory: Path,
    what: str,
    failure: Failure,
    interpreter: str | None = None,
) -> tuple[str, ...]:
    """Return the argv that runs `program`.

    Args:
        program: A file in `directory`, or a file and its arguments. A name without a
            slash that isn't a file there is looked up in PATH.
        directory: Of the job, where the program will be started.
        what: "scheduler" or "node", for messages.
        failure: The class of the exception: `SchedulerFailed` or `NodeFailed`.
        interpreter: Runs `*.py`, instead of the Python of this process: a name in PATH, an
            absolute path, or a file in `directory`.

    Raises:
        failure: There is no such file, it can't be run, or the interpreter isn't here.
    """
    words = (program,) if isinstance(program, str) else tuple(program)
    name, arguments = words[0], words[1:]
    path = directory / name
    if not path.exists():
        found = None if "/" in name else shutil.which(name)
        if found is None:
            raise failure(f"{what} {name!r} doesn't exist in {str(directory)!r}")
        return (found, *arguments)
    if path.is_dir():
        raise failure(f"{what} {name!r} is a directory, expected a program")
    if path.suffix == ".py":
        return (_python(interpreter, directory, what, failure), str(path), *arguments)
    if path.suffix in _INTERPRETED:
        return (*_INTERPRETED[path.suffix], str(path), *arguments)
    if not os.access(path, os.X_OK):
        raise failure(_not_executable(what, name))
    return (str(path), *arguments)


def child_environment(
    *,
    hash_seed: int,
    directory: Path,
    extra: Mapping[str, str] | None = None,
    base: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the environment of a user's program: alike wherever the program runs.

    The SDK comes first in PYTHONPATH, so that `import TaskSprintNode` works.

    Args:
        hash_seed: Decides in which order Python iterates sets of strings. It must be equal for
            all processes that must give the same bytes: a job's schedulers (`hash_seed_of`
            its seed), the nodes of one archive (its digest), nodes attached under one name.
        directory: Where the program will be started.
        extra: Set on top of the rest.
        base: The beginning; by default this process's environment.
    """
    # Here: commands that start no program load this module, too.
    from tasksprint.installation import sdk_directory

    base = os.environ if base is None else base
    result = {
        name: value
        for name, value in base.items()
        if name not in _LEFT_OUT and not name.startswith((_OWN_PREFIX, "LC_"))
    }
    sdk, before = sdk_directory(), result.get("PYTHONPATH")
    result["PYTHONPATH"] = f"{sdk}{os.pathsep}{before}" if before else sdk
    result["PYTHONHASHSEED"] = str(hash_seed % _HASH_SEED_END)
    result["TZ"] = "UTC"
    result["LANG"] = result["LC_ALL"] = "C.UTF-8"
    result["PWD"] = str(directory)
    if extra:
        result.update(extra)
    return result


def hash_seed_of(text: str) -> int:
    """Return the hash seed of the nodes that `text` names: an archive's digest, or a name."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def explain_start_error(
    error: OSError,
    executable: str,
    *,
    name: str | None,
    cwd: Path | str | None,
    what: str,
    failure: Failure,
) -> NodeFailed | SchedulerFailed:
    """Return the exception for an `executable` that couldn't be started, with a hint.

    Args:
        executable: argv[0].
        name: The program as its user knows it; None: argv[0].
    """
    name = executable if name is None else name
    here = Path(cwd) if cwd is not None else Path.cwd()
    if not here.is_dir():
        return failure(f"{what} {name!r} can't be started in {str(here)!r}: no such directory")
    path = here / executable
    if isinstance(error, FileNotFoundError):
        interpreter = _shebang(path)
        if interpreter:
            return failure(
                f"{what} {name!r} wants {interpreter!r} (its #! line), "
                "which isn't on this machine",
                hint="install that or change the line",
            )
        if name != executable:
            return failure(f"{what} {name!r} is run by {executable!r}, which wasn't found")
        return failure(f"{what} {name!r} wasn't found")
    if isinstance(error, PermissionError):
        return failure(_not_executable(what, name))
    if error.errno == errno.ENOEXEC:
        return failure(
            f"{what} {name!r} can't be executed by this machine: "
            "it has no #! line and is no binary for it",
            hint="let it begin with a line such as #!/bin/sh, or build it for this machine",
        )
    return failure(f"{what} {name!r} can't be started: {error.strerror or error}")


def is_of_the_job(interpreter: str) -> bool:
    """Return whether an interpreter is a file in the job's directory, such as .venv/bin/python.

    Else it is a name in PATH, or an absolute path.
    """
    return "/" in interpreter and not interpreter.startswith("/")


def _python(interpreter: str | None, directory: Path, what: str, failure: Failure) -> str:
    if interpreter is None:
        return sys.executable
    if is_of_the_job(interpreter):
        path = directory / interpreter  # As it is: a link is how it knows its environment.
        if not os.access(path, os.X_OK):
            raise failure(
                f"the interpreter {interpreter!r} of the {what} isn't in {str(directory)!r}",
                hint="let the manifest's 'setup' make it on each machine",
            )
        return str(path)
    found = shutil.which(interpreter)
    if found is None:
        raise failure(
            f"the interpreter {interpreter!r} of the {what} isn't on this machine",
            hint="install it, or leave 'interpreter' out of the manifest to use "
            f"{sys.executable!r}",
        )
    return found


def _not_executable(what: str, name: str) -> str:
    return (
        f"{what} {name!r} isn't executable; chmod +x it (and give it a #! line if it is a "
        "script), or name it *.py, *.sh or *.awk"
    )


def _shebang(path: Path) -> str:
    """Return the interpreter that the file's first line names, or ""."""
    try:
        with path.open("rb") as file:
            first = file.readline(256)
    except OSError:
        return ""  # Nothing is lost: the caller has a message of its own.
    words = first[2:].split() if first.startswith(b"#!") else []
    return os.fsdecode(words[0]) if words else ""
