"""cgroup v2: the kernel keeps our programs together with all that they start.

A signal to a process group misses a process with a session of its own (setsid, a daemon). A
cgroup has no way out. So each program gets a cgroup, which is killed with it:

    <our own cgroup>/tasksprint-<pid>-<start>/<number>

This needs the right to make cgroups below our own: a systemd unit with Delegate=yes, a
container with a writable /sys/fs/cgroup, or root. Elsewhere nothing here does anything.

If one of our processes is killed, the next one in the same cgroup finds the programs it left.

Source: Linux, Documentation/admin-guide/cgroup-v2.rst (cgroup.kill since Linux 5.14).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from pathlib import Path

__all__ = ["Cgroups"]

_PREFIX = "tasksprint-"
# A cgroup can be removed once all in it have ended, which takes them some milliseconds.
_REMOVE_TRIES = 50
_REMOVE_PAUSE_S = 0.01


class Cgroups:
    """The cgroups of one process's programs.

    Its methods wait for the kernel (entering one takes 10 ms and more): call them in a thread.

    Args:
        base: Where this process may make some.
    """

    def __init__(self, base: Path) -> None:
        self._top = base / f"{_PREFIX}{os.getpid()}-{_start_of(os.getpid())}"
        self._numbers = itertools.count(1)
        self._sweep(base)
        self._top.mkdir()

    @classmethod
    def try_make(cls) -> Cgroups | None:
        """Return them; None: this process may not make any."""
        base = own_cgroup()
        if base is None:
            return None
        try:
            return cls(base)
        except OSError:
            return None  # Read-only, not ours, or at a limit of how many there may be.

    def enter(self, pid: int) -> Path | None:
        """Put a process, and all that it starts from now on, into a new cgroup.

        Returns:
            None: it can't be had, or the process has ended.
        """
        path = self._top / str(next(self._numbers))
        try:
            path.mkdir()
            (path / "cgroup.procs").write_text(str(pid))
        except OSError:
            with contextlib.suppress(OSError):
                path.rmdir()
            return None
        return path

    def end(self, path: Path) -> None:
        """Kill all that is in a cgroup, and remove it."""
        for _ in range(_REMOVE_TRIES):
            _kill(path)
            try:
                path.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(_REMOVE_PAUSE_S)  # Not all have ended.

    def close(self) -> None:
        """End all programs, and all that they have started."""
        self._end_all(self._top)

    def _end_all(self, top: Path) -> None:
        with contextlib.suppress(OSError):
            for path in [each for each in top.iterdir() if each.is_dir()]:
                self.end(path)
        self.end(top)

    def _sweep(self, base: Path) -> None:
        """End the programs that killed processes of ours left behind."""
        for top in base.glob(f"{_PREFIX}*-*"):
            pid, _, start = top.name.removeprefix(_PREFIX).partition("-")
            if pid.isdecimal() and _start_of(int(pid)) != start:
                self._end_all(top)


def own_cgroup() -> Path | None:
    """Return the folder of this process's own cgroup (v2); None: there is none here."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    name = next((line[3:] for line in lines if line.startswith("0::")), None)
    if name is None:
        return None
    for line in mounts:
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if after.startswith("cgroup2 ") and len(fields) > 4:
            root, place = fields[3], fields[4]
            inside = name.removeprefix(root) if root != "/" else name
            folder = Path(place) / inside.lstrip("/")
            return folder if os.access(folder, os.W_OK) else None
    return None


def _kill(path: Path) -> None:
    with contextlib.suppress(OSError):
        (path / "cgroup.kill").write_text("1")
        return
    with contextlib.suppress(OSError, ValueError):  # Before Linux 5.14.
        for pid in (path / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)


def _start_of(pid: int) -> str:
    """Return when a process began, in ticks of the kernel; "": there is none of this id."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]
