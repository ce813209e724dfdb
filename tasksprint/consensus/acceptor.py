"""The acceptor: the promise of this replica, and the entries that it has accepted.

Holds the open slots, those not known to be chosen; a slot that is chosen moves to the
learner. The state here runs ahead of the disk. `take_writes` returns the changes. They must
be durable before any message that rests on them goes out.
"""

from __future__ import annotations

from collections.abc import Iterable

from tasksprint.consensus.ballot import NO_BALLOT, Ballot
from tasksprint.consensus.log_entry import LogEntry
from tasksprint.consensus.messages import Nack, Promise
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import Slot

__all__ = ["Acceptor"]


class Acceptor:
    """One acceptor for all slots.

    Args:
        promised: As recovered; NO_BALLOT for a new one.
        entries: Accepted entries of slots not known to be chosen.
        slots_max, bytes_max: Limits of the open entries: a replica that lags must not fill its
            memory. An entry beyond them isn't taken now. The leader repeats it later.
    """

    def __init__(
        self, *, promised: Ballot, entries: Iterable[LogEntry], slots_max: int, bytes_max: int
    ) -> None:
        self.open: dict[Slot, LogEntry] = {entry.slot: entry for entry in entries}
        self.open_bytes = sum(len(entry.value) for entry in self.open.values())
        # An accepted entry implies the promise, even if only the entry was recovered.
        self.promised = max([promised, *(entry.ballot for entry in self.open.values())])
        self._slots_max = slots_max
        self._bytes_max = bytes_max
        self._is_promise_new = False
        self._writes: dict[Slot, LogEntry] = {}

    def promise(self, ballot: Ballot, first_slot: Slot) -> Promise | Nack:
        """Promise to ignore ballots below this one, for every slot from `first_slot` on.

        The promise covers all later slots at once; this is what lets a leader skip
        phase 1 for each new command.

        Args:
            ballot: The candidate's ballot. Equal to the promised one: answered again.
            first_slot: First slot that either side doesn't know to be chosen.

        Returns:
            `Promise` with everything accepted from `first_slot` on, or `Nack` with the
            ballot already promised. The state changed must be durable before sending.

        Source: Lamport, "Paxos Made Simple" (2001), section 2.2, phase 1(b), and
        section 3 for many instances at once.
        """
        if ballot < self.promised:
            return Nack(ballot, self.promised)
        self.raise_promise(ballot)
        entries = tuple(self.open[slot] for slot in sorted(self.open) if slot >= first_slot)
        return Promise(ballot, first_slot, entries)

    def raise_promise(self, ballot: Ballot) -> None:
        """Promise `ballot` if it is above what was promised; never lowers it."""
        if ballot > self.promised:
            self.promised = ballot
            self._is_promise_new = True

    def has_room(self, slot: Slot, chosen_end: Slot) -> bool:
        """Whether an entry for this slot may be taken; see `slots_max`.

        The first slot that isn't chosen always has room. Otherwise a replica could be full of
        later slots and needed for a quorum: then that slot would never be chosen, and no slot
        would ever close.
        """
        if slot == chosen_end or slot in self.open:
            return True
        return len(self.open) < self._slots_max and self.open_bytes < self._bytes_max

    def accept(self, slot: Slot, ballot: Ballot, value: bytes) -> None:
        """Accept a value for an open slot under a ballot that isn't below the promise.

        The answer may only be sent when the state is durable.

        Source: "Paxos Made Simple", section 2.2, phase 2(b).
        """
        assert ballot >= self.promised
        held = self.open.get(slot)
        if held is not None:
            if held.ballot == ballot:
                if held.value != value:
                    raise RemoteProtocolError(
                        f"slot {slot} carries two values under ballot {ballot}; "
                        f"replica {ballot.replica} forgot what it proposed"
                    )
                return
            self.open_bytes -= len(held.value)
        self.raise_promise(ballot)
        entry = LogEntry(slot, ballot, value)
        self.open[slot] = entry
        self.open_bytes += len(value)
        self._writes[slot] = entry

    def close(self, slot: Slot) -> LogEntry:
        """Take an entry out of the open ones: it is chosen."""
        entry = self.open.pop(slot)
        self.open_bytes -= len(entry.value)
        return entry

    def close_with(self, chosen: LogEntry) -> LogEntry:
        """Close a slot with the entry of a replica that knows it to be chosen.

        Its ballot may never have been promised here, or may be below the promise. It is written
        all the same, for two reasons. The value is chosen, so every higher ballot that any
        quorum reports carries the same value. And the slot is below our chosen prefix, so no
        promise speaks for it.

        Returns:
            The entry that is kept: the accepted one if its ballot is not lower, else `chosen`.
        """
        held = self.open.pop(chosen.slot, None)
        if held is not None:
            self.open_bytes -= len(held.value)
            if held.ballot >= chosen.ballot:
                assert held.value == chosen.value, f"two values in slot {chosen.slot}"
                return held
        self._writes[chosen.slot] = chosen
        return chosen

    def forget_below(self, end_slot: Slot) -> None:
        """Forget the entries of slots that are chosen and applied.

        No promise speaks for them any more: it begins at the chosen prefix's end.
        """
        for slot in [slot for slot in self.open if slot < end_slot]:
            self.open_bytes -= len(self.open.pop(slot).value)
        for slot in [slot for slot in self._writes if slot < end_slot]:
            del self._writes[slot]

    @property
    def has_writes(self) -> bool:
        """Whether `take_writes` has something."""
        return self._is_promise_new or bool(self._writes)

    def take_writes(self) -> tuple[Ballot | None, tuple[LogEntry, ...]]:
        """Return the changes since the last call: the promise (None: unchanged), and entries."""
        promised = self.promised if self._is_promise_new else None
        self._is_promise_new = False
        if not self._writes:
            return promised, ()
        entries = tuple(self._writes.values())
        self._writes.clear()
        return promised, entries

    def check(self, chosen_end: Slot) -> None:
        """Assert what must hold between events."""
        assert self.promised >= NO_BALLOT
        assert self.open_bytes == sum(len(entry.value) for entry in self.open.values())
        for slot, entry in self.open.items():
            assert slot == entry.slot
            assert slot >= chosen_end, f"slot {slot} is open below the chosen prefix"
            assert entry.ballot <= self.promised, f"slot {slot} was accepted above the promise"
