"""The private directory of one `run`, and those that were left behind by a `run` that was killed.

A lock in the directory lives as long as its `run`: the kernel lets go of it however that
ends. Who finds one that nobody holds ends whatever still names the directory (its working
directory, its command line or its environment is below it), and deletes it. What has a
terminal is a person's, and stays: none of ours has one.
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
    """Delete what was left behind; return which directories, and how many processes of each."""
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
