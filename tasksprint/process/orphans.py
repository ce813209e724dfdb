"""Children of others that nobody waits for; process 1 or a "subreaper" gets them.

A program may end while its children still run. The kernel then gives them to process 1, or to
the nearest ancestor that asked for them (prctl(2), PR_SET_CHILD_SUBREAPER). In a container
process 1 is mostly the container's own command. If the new parent doesn't reap the children
when they end, they stay zombies, and take up process ids until none is left.

Our own children are listed in `own_children`: their starter waits for them and needs their exit
code. Any other child that is a zombie at two looks is reaped. A library that starts a process
and waits for it does so long before.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import time
from pathlib import Path

__all__ = ["Orphans", "own_children", "reap_orphans"]

# Process ids of our children, from their start until they are reaped.
own_children: set[int] = set()

_LOOK_S = 1.0
_PR_GET_CHILD_SUBREAPER = 37


def reap_orphans() -> None:
    """Reap in a thread from now on, if this process is one that gets orphans."""
    if sys.platform == "linux" and (os.getpid() == 1 or _is_subreaper()):
        threading.Thread(target=_look_for_ever, name="orphans", daemon=True).start()


def _look_for_ever() -> None:
    orphans = Orphans()
    while True:
        time.sleep(_LOOK_S)
        # At the limit of open files /proc can't be listed; the next look may find it again.
        with contextlib.suppress(OSError):
            orphans.look()


class Orphans:
    """One process's observations of its children."""

    def __init__(self) -> None:
        self._seen: set[int] = set()  # zombies that weren't ours, at the last look

    def look(self) -> list[int]:
        """Reap those that were seen before, and return their ids."""
        zombies = {pid for pid in _children() if pid not in own_children and _is_zombie(pid)}
        reaped = []
        for pid in sorted(zombies & self._seen):
            with contextlib.suppress(ChildProcessError):  # Somebody waited for it after all.
                os.waitpid(pid, os.WNOHANG)
                reaped.append(pid)
        self._seen = zombies.difference(reaped)
        return reaped


def _children() -> list[int]:
    """Return the ids of all children of this process."""
    me = str(os.getpid())
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and (fields := _stat(name)) and fields[1] == me:
            found.append(int(name))
    return found


def _is_zombie(pid: int) -> bool:
    fields = _stat(str(pid))
    return bool(fields) and fields[0] == "Z"


def _stat(pid: str) -> list[str]:
    """Return the state of a process, the id of its parent, and so on; empty: there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _is_subreaper() -> bool:
    try:
        prctl = ctypes.PyDLL(None).prctl
    except (OSError, AttributeError):
        return False
    answer = ctypes.c_int(0)
    return prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(answer)) == 0 and answer.value == 1
