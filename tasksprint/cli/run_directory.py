"""The private directory of one `run`, and the directories that a killed `run` left behind.

A lock in the directory lives as long as its `run`: the kernel lets go of it however the `run`
ends. A later `run` may find a directory with a free lock. It ends all processes that still
name this directory (by a working directory, a command line or an environment below it), and
deletes it. A process with a terminal is a person's, and stays: none of ours has one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

import psutil

__all__ = ["RunDirectory", "sweep_run_directories"]

_PREFIX = "tasksprint-run-"
_LOCK = "run.lock"


class RunDirectory:
    """A new directory for temporary files, held until it is deleted."""

    def __init__(self) -> None:
        self.path = Path(os.path.realpath(tempfile.mkdtemp(prefix=_PREFIX)))
        # Locked before it has its name: nobody may find it there and free.
        made = self.path / f"{_LOCK}.new"
        self._lock = os.open(made, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):  # No locks here: then nobody sweeps, either.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            made.rename(self.path / _LOCK)

    def delete(self) -> None:
        """Delete it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def sweep_run_directories() -> list[tuple[Path, int]]:
    """Delete directories left behind; return each with the number of its processes."""
    swept: list[tuple[Path, int]] = []
    folder = Path(os.path.realpath(tempfile.gettempdir()))
    for path in sorted(folder.glob(f"{_PREFIX}*/{_LOCK}")):
        directory = path.parent
        try:
            if os.lstat(directory).st_uid != os.getuid():
                continue
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # It is gone, or isn't ours.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            swept.append((directory, _end_processes_of(directory)))
            shutil.rmtree(directory, ignore_errors=True)
        except OSError:
            pass  # Its `run` is alive.
        finally:
            os.close(lock)
    return swept


def _end_processes_of(directory: Path) -> int:
    """Kill this user's processes that were started in a directory, or for it."""
    ended = 0
    own = {os.getpid(), *[each.pid for each in psutil.Process().parents()]}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid not in own and _names(process, str(directory)):
                process.kill()
                ended += 1
    return ended


def _names(process: psutil.Process, directory: str) -> bool:
    if process.uids().real != os.getuid() or process.status() == psutil.STATUS_ZOMBIE:
        return False
    if process.terminal() is not None:
        return False
    below = f"{directory}{os.sep}"
    words = [process.cwd(), *process.cmdline(), *process.environ().values()]
    return any(word == directory or word.startswith(below) for word in words)
