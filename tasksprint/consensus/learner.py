"""The learner: the chosen prefix of the log.

Knows which slots are chosen, and never why. There are three ways in which it is told:

- this replica leads, and has counted the votes;
- the leader's messages vouch for an entry that was accepted here under its ballot;
- the entry is fetched whole, from a replica that knows it.

Keeps the last chosen entries in memory for others; older ones are read back through the shell.
"""

from __future__ import annotations

from collections.abc import Iterable

from tasksprint.consensus.acceptor import Acceptor
from tasksprint.consensus.ballot import Ballot
from tasksprint.consensus.batch import decode_batch, stands_alone
from tasksprint.consensus.effects import Chosen
from tasksprint.consensus.log_entry import LogEntry
from tasksprint.consensus.membership import decode_membership_value
from tasksprint.consensus.voters import Memberships
from tasksprint.errors import LocalProtocolError
from tasksprint.ids import Slot
from tasksprint.settings import Settings

__all__ = ["Learner"]


class Learner:
    """The chosen prefix: all slots below `chosen_end`.

    Invariant: `window` holds exactly the slots `window_start <= slot < chosen_end`.
    """

    def __init__(
        self,
        *,
        entries: Iterable[LogEntry],
        chosen_end: Slot,
        applied_end: Slot,
        log_start: Slot,
        known_end: Slot,
        settings: Settings,
        memberships: Memberships,
    ) -> None:
        self._known_end = known_end
        self._settings = settings
        self._memberships = memberships
        self.log_start = log_start
        self.chosen_end = chosen_end
        self.window: dict[Slot, LogEntry] = {}
        self.window_start = chosen_end
        self._window_bytes = 0
        self._chosen: list[Chosen] = []
        recovered = {entry.slot: entry for entry in entries}
        for number in range(applied_end, chosen_end):
            slot = Slot(number)
            if slot not in recovered:
                raise LocalProtocolError(
                    f"recovered log lacks slot {slot}, expected all from {applied_end} "
                    f"to {chosen_end - 1}"
                )
            self._chosen.append(self._decode(slot, recovered[slot].value))
        while self.window_start - 1 in recovered and self._has_window_room():
            self.window_start = Slot(self.window_start - 1)
            entry = recovered[self.window_start]
            self.window[self.window_start] = entry
            self._window_bytes += len(entry.value)

    @property
    def known_end(self) -> Slot:
        """First slot that isn't known to be chosen; values of slots below it may be lost here.

        No promise may speak for a slot below it: the value accepted there may be lost.

        1. Slot 5 is chosen with our acceptance and the leader's. Then our disk spoils it.
        2. The leader dies. Another replica stands. It has nothing in slot 5, nor have we.
        3. If our promise spoke for slot 5, another value could be chosen there.
        """
        return max(self.chosen_end, self._known_end)

    @property
    def is_whole(self) -> bool:
        """Whether all slots known to be chosen have their value here, or are applied."""
        return self.chosen_end >= self._known_end

    def choose(self, entry: LogEntry, commands: tuple[bytes, ...] | None) -> None:
        """Append the next slot of the prefix.

        Args:
            commands: The commands of `entry`; None: they are to be decoded.
        """
        slot = entry.slot
        assert slot == self.chosen_end
        self.window[slot] = entry
        self._window_bytes += len(entry.value)
        self.chosen_end = Slot(slot + 1)
        if commands is None:
            self._chosen.append(self._decode(slot, entry.value))
        else:
            self._chosen.append(Chosen(slot, commands))

    def _decode(self, slot: Slot, value: bytes) -> Chosen:
        membership = decode_membership_value(value)
        if membership is None:
            return Chosen(slot, decode_batch(value), is_alone=stands_alone(value))
        self._memberships.note(slot, membership)
        return Chosen(slot, (), membership)

    def mark(self, ballot: Ballot, end_slot: Slot, acceptor: Acceptor) -> None:
        """Learn from the leader of `ballot` that its log is chosen below `end_slot`.

        A value is known to be the leader's only if it was accepted here under that very
        ballot. The walk stops at the first slot without such a value. Otherwise:

        1. Leader A (ballot 1) has a value accepted in slot 5 here and nowhere else.
        2. Leader B (ballot 2) hears a quorum without us, and has another value chosen.
        3. B's heartbeat says "chosen below 6". If slot 5 were marked, A's value would be chosen.
        """
        while self.chosen_end < end_slot:
            entry = acceptor.open.get(self.chosen_end)
            if entry is None or entry.ballot != ballot:
                return
            self.choose(acceptor.close(self.chosen_end), None)

    def absorb(self, entries: Iterable[LogEntry], acceptor: Acceptor) -> None:
        """Learn entries that another replica knows to be chosen; repeated ones are skipped."""
        for entry in entries:
            if entry.slot == self.chosen_end:
                self.choose(acceptor.close_with(entry), None)
            elif entry.slot > self.chosen_end:
                break
        # Behind a gap that the disk made, the entries here were known to be chosen before.
        while self.chosen_end < self._known_end and self.chosen_end in acceptor.open:
            self.choose(acceptor.close(self.chosen_end), None)

    def agrees(self, slot: Slot, ballot: Ballot, value: bytes) -> bool:
        """Whether a value proposed for a slot of the prefix is the chosen one.

        A leader may be replaced without knowing it, and propose another value. Our promise
        needn't refuse it: we may have learned its successor's entries, and have promised that
        successor nothing. From the ballot of the chosen entry on there is no other value.
        """
        held = self.window.get(slot)
        if held is None or held.value == value:
            return True
        assert ballot < held.ballot, f"another value was proposed for the chosen slot {slot}"
        return False

    def entries_from(self, first_slot: Slot, bytes_max: int) -> tuple[LogEntry, ...]:
        """Return chosen entries from `first_slot` on, at least one; () if they aren't here."""
        if first_slot < self.window_start:
            return ()
        entries: list[LogEntry] = []
        room = bytes_max
        for number in range(first_slot, self.chosen_end):
            entry = self.window[Slot(number)]
            room -= len(entry.value)
            if entries and room < 0:
                break
            entries.append(entry)
        return tuple(entries)

    def take_chosen(self) -> tuple[Chosen, ...]:
        """Return the slots that were chosen since the last call, in order."""
        chosen = tuple(self._chosen)
        self._chosen.clear()
        return chosen

    @property
    def has_news(self) -> bool:
        """Whether `take_chosen` has something."""
        return bool(self._chosen)

    def trim(self, durable_end: Slot) -> None:
        """Forget the oldest entries beyond the limits; those from `durable_end` on stay.

        An entry that isn't durable couldn't be read back.
        """
        while self.window_start < durable_end and not self._has_window_room():
            entry = self.window.pop(self.window_start)
            self._window_bytes -= len(entry.value)
            self.window_start = Slot(self.window_start + 1)

    def truncate(self, log_start: Slot) -> None:
        """Learn that the store can't read back slots below this one; all are applied."""
        assert log_start <= self.chosen_end, "only what is chosen is truncated"
        if log_start <= self.log_start:
            return
        self.log_start = log_start
        while self.window_start < log_start:
            entry = self.window.pop(self.window_start)
            self._window_bytes -= len(entry.value)
            self.window_start = Slot(self.window_start + 1)

    def skip_to(self, end_slot: Slot, acceptor: Acceptor) -> None:
        """Count all slots below `end_slot` as chosen and applied: the state was copied there.

        Their entries are nowhere here. A peer that asks for them needs a copy, too.
        """
        if end_slot > self.chosen_end:
            self.window.clear()
            self._window_bytes = 0
            self.window_start = self.chosen_end = end_slot
            acceptor.forget_below(end_slot)
        # Entries below that were chosen, and not taken yet, are in the copy.
        self._chosen = [chosen for chosen in self._chosen if chosen.slot >= end_slot]
        self.truncate(end_slot)

    def _has_window_room(self) -> bool:
        return (
            len(self.window) < self._settings.log_window_slots
            and self._window_bytes < self._settings.log_window_bytes_max
        )

    def check(self) -> None:
        """Assert what must hold between events."""
        assert len(self.window) == self.chosen_end - self.window_start
        assert self._window_bytes == sum(len(entry.value) for entry in self.window.values())
        for slot, entry in self.window.items():
            assert slot == entry.slot and self.window_start <= slot < self.chosen_end
