"""The room left on the disk of a data directory, and its consequences for the process.

There are four levels, with marks between them (settings.py):

    plenty   nothing happens
    low      it is only said
    short    nothing new is taken on
    spent    the process stops, while it still can in good order

A process goes back up a level only with a quarter more than the mark: so it doesn't change its
mind each second. A small file system has smaller marks.

The space below the last mark is the only reserve. A process that has stopped can be started as
soon as there is more. An operator who can't free anything may lower the mark.

Knows numbers and one file system; each role decides what to do.
"""

from __future__ import annotations

import asyncio
import enum
import os
from dataclasses import dataclass
from pathlib import Path

from tasksprint.errors import DiskFull
from tasksprint.settings import MIB, Settings

__all__ = ["CHECK_S", "FreeSpace", "Level", "Marks", "free_and_size", "marks_of", "measure"]

# How often a process looks. A disk that fills faster is SQLite's to notice: it writes nothing
# then, and the process stops as well.
CHECK_S = 1.0
# Shares of the file system's size that the marks don't exceed: 1 of so many.
_WARN_SHARE = 5
_REFUSE_SHARE = 10
_STOP_SHARE = 20


class Level(enum.IntEnum):
    """How much room there is."""

    PLENTY = 0
    LOW = 1
    SHORT = 2
    SPENT = 3


@dataclass(frozen=True, slots=True)
class Marks:
    """The bytes below which each level begins."""

    low: int
    short: int
    spent: int

    def level(self, free_bytes: int) -> Level:
        """Return the level for so much free space, with no past."""
        if free_bytes < self.spent:
            return Level.SPENT
        if free_bytes < self.short:
            return Level.SHORT
        return Level.LOW if free_bytes < self.low else Level.PLENTY


def marks_of(settings: Settings, size_bytes: int) -> Marks:
    """Return the marks for a file system of this size."""
    return Marks(
        low=min(settings.free_warn_bytes, size_bytes // _WARN_SHARE),
        short=min(settings.free_refuse_bytes, size_bytes // _REFUSE_SHARE),
        spent=min(settings.free_stop_bytes, size_bytes // _STOP_SHARE),
    )


class FreeSpace:
    """The latest measurement, and the level; upwards it changes with some delay."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.directory = directory
        self.level = Level.PLENTY
        self.free_bytes: int | None = None  # None: nobody has looked yet
        self.size_bytes: int | None = None
        self._settings = settings
        self._marks = Marks(0, 0, 0)

    def found(self, free_bytes: int, size_bytes: int) -> bool:
        """Take a measurement; return whether it changes the level."""
        self.free_bytes, self.size_bytes = free_bytes, size_bytes
        self._marks = marks_of(self._settings, size_bytes)
        before = self.level
        worst = self._marks.level(free_bytes)
        self.level = max(worst, min(before, self._marks.level(free_bytes * 4 // 5)))
        return self.level is not before

    def describe(self) -> str:
        """Say how much there is, and how much it should be."""
        assert self.free_bytes is not None
        name, mark = {
            Level.PLENTY: ("", 0),
            Level.LOW: ("free_warn_bytes", self._marks.low),
            Level.SHORT: ("free_refuse_bytes", self._marks.short),
            Level.SPENT: ("free_stop_bytes", self._marks.spent),
        }[self.level]
        found = f"{_mib(self.free_bytes)} are free where {str(self.directory)!r} is"
        if self.level is Level.PLENTY:
            return found
        # Once below the mark, a quarter more is wanted.
        needed = mark if self.free_bytes < mark else mark * 5 // 4
        return f"{found}, expected at least {_mib(needed)} ({name})"

    def spent(self, who: str) -> DiskFull:
        """Return the error with which a process ends for lack of space."""
        return DiskFull(
            f"{who} can't go on: {self.describe()}",
            hint="free some space and start it again; nothing that was acknowledged is lost",
        )

    def require(self, who: str) -> None:
        """Raise `DiskFull` if a process shouldn't even start."""
        self.found(*free_and_size(self.directory))
        if self.level is Level.SPENT:
            raise self.spent(who)

    def summary(self) -> dict[str, object]:
        """Return this as JSON for people."""
        return {
            "level": self.level.name.lower(),
            "free_bytes": self.free_bytes,
            "size_bytes": self.size_bytes,
        }


def free_and_size(directory: Path) -> tuple[int, int]:
    """Return this user's free space where a directory is, and the size there, in bytes."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


async def measure(directory: Path) -> tuple[int, int]:
    """Do the same without keeping the loop waiting: a disk that hangs answers never."""
    return await asyncio.get_running_loop().run_in_executor(None, free_and_size, directory)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:.1f} MiB"
