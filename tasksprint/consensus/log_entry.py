"""An entry of the log, as acceptors keep it, messages carry it and disks remember it."""

from __future__ import annotations

from typing import NamedTuple

from tasksprint.consensus.ballot import Ballot
from tasksprint.ids import Slot

__all__ = ["LogEntry"]


class LogEntry(NamedTuple):
    """A value that was accepted in a slot, and the ballot of that acceptance."""

    slot: Slot
    ballot: Ballot
    value: bytes
