"""How much of the log is kept behind the mirror, for replicas that lag a little.

Knows slots and sizes of applied entries. Decides below which slot the next commit truncates.
That commit holds the mirror up to its last applied slot: so all forgotten entries are in the
mirror. Slots go in pieces, so that few commits pay for it.
"""

from __future__ import annotations

from collections import deque

from tasksprint.ids import Slot
from tasksprint.settings import Settings

__all__ = ["LogTail"]

_PIECE_SLOTS_MAX = 256
_PIECES = 16


class LogTail:
    """The applied part of the log, in pieces, oldest first.

    Args:
        log_start: First slot of the log as it was found.
        end_slot: First slot that isn't applied; the sizes of those between aren't known.
    """

    def __init__(self, settings: Settings, log_start: Slot, end_slot: Slot) -> None:
        self._slots_max = settings.log_tail_slots
        self._bytes_max = settings.log_tail_bytes_max
        self._piece_slots = min(_PIECE_SLOTS_MAX, max(self._slots_max // _PIECES, 1))
        self._piece_bytes = max(self._bytes_max // _PIECES, 1)
        self.reset(log_start, end_slot)

    def reset(self, log_start: Slot, end_slot: Slot) -> None:
        """Begin anew with another log."""
        ends = [*range(log_start + self._piece_slots, end_slot, self._piece_slots), end_slot]
        # (end slot, bytes) of whole pieces; the one that grows is apart.
        self._pieces: deque[tuple[int, int]] = deque((end, 0) for end in ends if end > log_start)
        self._end = int(end_slot)
        self._last_end = int(end_slot)  # of the last whole piece
        self._bytes = 0  # of all pieces, with the one that grows
        self._growing_bytes = 0

    def applied(self, slot: Slot, size: int) -> None:
        """Note that the next slot was applied."""
        assert slot == self._end, "slots are applied in order"
        self._end += 1
        self._bytes += size
        self._growing_bytes += size
        is_long = self._end - self._last_end >= self._piece_slots
        if is_long or self._growing_bytes >= self._piece_bytes:
            self._pieces.append((self._end, self._growing_bytes))
            self._last_end = self._end
            self._growing_bytes = 0

    def truncate_below(self, keep_from: Slot | None = None) -> Slot | None:
        """Return the slot below which the log may be cut now; None: all of it is tail.

        Args:
            keep_from: Somebody needs the log from here on.
        """
        found: int | None = None
        pieces = self._pieces
        while pieces:
            end, size = pieces[0]
            # The rest must be a whole tail, by count or by size.
            if self._end - end < self._slots_max and self._bytes - size < self._bytes_max:
                break
            if keep_from is not None and end > keep_from:
                break
            pieces.popleft()
            self._bytes -= size
            found = end
        return None if found is None else Slot(found)
