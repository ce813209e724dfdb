"""Where this user's files of TaskSprint live by default.

Knows the environment variables and how a directory is made private. It doesn't
know the files in it.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tasksprint.errors import SettingsError

__all__ = ["private_directory", "state_directory", "temporary_directory"]


def state_directory(environ: Mapping[str, str] | None = None) -> Path:
    """Return this user's state directory, made if it isn't there, readable by nobody else.

    `$XDG_STATE_HOME/tasksprint`, else `~/.local/state/tasksprint`, else (no home, or
    one that can't be written) `tasksprint-<uid>` in the directory for temporary files.

    Raises:
        SettingsError: None of them can be used; the message says why for each.
    """
    environ = os.environ if environ is None else environ
    candidates: list[Path] = []
    configured = environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(configured):  # the XDG standard: ignore a path that isn't absolute
        candidates.append(Path(configured) / "tasksprint")
    elif os.path.isabs(environ.get("HOME", "")):
        candidates.append(Path(environ["HOME"]) / ".local" / "state" / "tasksprint")
    candidates.append(_temporary_path(environ))
    reasons = []
    for candidate in candidates:
        try:
            return private_directory(candidate)
        except SettingsError as error:
            reasons.append(str(error))
    raise SettingsError(
        "no directory for TaskSprint's state: " + "; ".join(reasons),
        hint="set XDG_STATE_HOME to a directory of yours that can be written",
    )


def temporary_directory(environ: Mapping[str, str] | None = None) -> Path:
    """Return a private directory with a short path, for sockets; it doesn't survive a reboot.

    `$XDG_RUNTIME_DIR/tasksprint` where that is short enough to hold sockets, else
    `tasksprint-<uid>` in the directory for temporary files.
    """
    environ = os.environ if environ is None else environ
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    # The system makes it at login; where it didn't, it isn't ours to make.
    if os.path.isabs(runtime) and len(os.fsencode(runtime)) <= 40 and os.path.isdir(runtime):
        try:
            return private_directory(Path(runtime) / "tasksprint")
        except SettingsError:
            pass  # Nothing is lost: the next place serves as well.
    for path in (_temporary_path(environ), Path("/tmp") / f"tasksprint-{os.getuid()}"):
        if len(os.fsencode(path)) <= 60:
            return private_directory(path)
    raise SettingsError(  # only where /tmp itself has been given a uid of 40 digits
        f"no short directory for sockets below {tempfile.gettempdir()!r}",
        hint="set XDG_RUNTIME_DIR",
    )


def private_directory(path: Path) -> Path:
    """Make `path` a directory with mode 0700 that belongs to this user, and return it.

    Raises:
        SettingsError: It can't be made or written, or somebody else owns it: an owner could
            swap the key or the sockets in it.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            # A link in a home directory is its owner's wish; one in /tmp may be a trap.
            # The owner of its target is checked below, as for a directory.
            if found.st_uid != os.getuid():
                raise SettingsError(f"{str(path)!r} is a link made by user {found.st_uid}")
            found = os.stat(path)
        if found.st_uid != os.getuid():
            raise SettingsError(
                f"{str(path)!r} belongs to user {found.st_uid}, this is user {os.getuid()}"
            )
        if found.st_mode & 0o077:
            os.chmod(path, 0o700)
    except FileExistsError as error:
        raise SettingsError(f"{str(path)!r} is not a directory") from error
    except OSError as error:
        raise SettingsError(f"{str(path)!r}: {error.strerror or error}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise SettingsError(f"{str(path)!r} can't be written")
    return path


def _temporary_path(environ: Mapping[str, str]) -> Path:
    base = environ.get("TMPDIR") or tempfile.gettempdir()
    return Path(os.path.abspath(base)) / f"tasksprint-{os.getuid()}"
