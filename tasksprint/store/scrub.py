"""Looking at everything that a replica keeps, a little at a time, before it is needed.

A rotten row is best found while others still have its contents. So in quiet moments some rows
of the mirror, or entries of the log, are read and compared with their checksums. After the last
one there is a long rest. Archives are left out: one may have megabytes, and each is compared
when it is used.

It reads through SQLite: blocks that the operating system has in memory aren't read from the
disk again.
"""

from __future__ import annotations

import time

from tasksprint.settings import Settings
from tasksprint.store.database import Database, damaged_store
from tasksprint.store.mirror_snapshot import FIRST_PLACE
from tasksprint.store.mirror_tables import CopyPlace, next_place, piece_text
from tasksprint.store.vital import log_rows

__all__ = ["Scrub"]

# Of one step: a millisecond or two.
_ROWS_MAX = 200
_BYTES_MAX = 256 * 1024
# The first look begins a while after the start, which has enough to do.
_STEPS_BEFORE = 10


class Scrub:
    """How far the look at one file has come."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._step_s = settings.scrub_step_ms / 1000
        self._pause_s = settings.scrub_pause_ms / 1000
        self._due_s = time.monotonic() + _STEPS_BEFORE * self._step_s
        self._place: CopyPlace | None = FIRST_PLACE  # None: in the log
        self._slot = 0
        self.passes = 0  # that were ended

    @property
    def is_due(self) -> bool:
        """Whether a quiet moment should be used for a step."""
        return time.monotonic() >= self._due_s

    def step(self, log_start: int) -> None:
        """Look at the next rows.

        Raises:
            StoreDamaged: One fails its checksum.
        """
        self._due_s = time.monotonic() + self._step_s
        if self._place is not None:
            _, _, last_key = piece_text(self._database, self._place, _ROWS_MAX, _BYTES_MAX)
            self._place = next_place(self._place, last_key)
            return
        first_slot = self._slot = max(self._slot, log_start)
        size = 0
        for slot, entry in log_rows(self._database, first_slot, first_slot + _ROWS_MAX):
            if entry is None:
                what = f"slot {slot} of table 'log' fails its checksum"
                raise damaged_store(self._database.path, self._database.kind, what)
            self._slot = slot + 1
            size += len(entry.value)
            if size >= _BYTES_MAX:
                return
        if self._slot == first_slot:
            self.passes += 1
            self._place, self._slot = FIRST_PLACE, 0
            self._due_s += self._pause_s
