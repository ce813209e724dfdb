"""The proposer in phase 1: a candidate gathers promises, and values that it must adopt.

Phase 1 goes on while the candidate leads. Before anything is proposed in slots of a later
membership, a quorum of that membership must have promised.

Counts votes by identity (voters.py knows the quorums). Knows nothing of disks: the replica
reports its own promise once it is durable. Phase 2 is in leadership.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tasksprint.consensus.ballot import Ballot
from tasksprint.consensus.log_entry import LogEntry
from tasksprint.consensus.messages import Promise
from tasksprint.consensus.voters import Memberships
from tasksprint.ids import ReplicaId, Slot

__all__ = ["Campaign"]


class Campaign:
    """Phase 1 under one ballot."""

    def __init__(self, ballot: Ballot, memberships: Memberships) -> None:
        self.ballot = ballot
        self._memberships = memberships
        self.deadline_ms = 0  # given up then
        self.resend_ms = 0
        self.promised_by: set[ReplicaId] = set()
        # Nothing may be proposed below: a replica that promised knows these slots to be chosen.
        self.first_slot = Slot(1)
        self.helper: ReplicaId | None = None  # that replica
        self._highest: dict[Slot, LogEntry] = {}
        self._first_slots: dict[ReplicaId, Slot] = {}  # from which each promise speaks

    def add_own_promise(self, me: ReplicaId) -> None:
        """Count this replica's own promise, now that it is durable."""
        self.promised_by.add(me)

    def add_promise(self, source: ReplicaId, promise: Promise) -> None:
        """Count a promise for this ballot.

        A repetition changes nothing: after its promise the source accepts nothing
        below this ballot, so its first answer stays the whole truth.
        """
        assert promise.ballot == self.ballot
        if source in self.promised_by:
            return
        self.promised_by.add(source)
        self._first_slots[source] = promise.first_slot
        self._take(promise.entries)
        if promise.first_slot > self.first_slot:
            self.first_slot = promise.first_slot
            self.helper = source

    def has_quorum(self, chosen_end: Slot) -> bool:
        """Whether a quorum of every membership that governs an open slot has promised."""
        return self._memberships.is_quorum(self.promised_by, chosen_end)

    def do_without(self, chosen_end: Slot) -> bool:
        """Drop promises that don't speak for all open slots, if the others make a quorum.

        Returns:
            Whether they do. If not, nothing changes.
        """
        speaking = {
            who for who in self.promised_by if self._first_slots.get(who, chosen_end) <= chosen_end
        }
        if not self._memberships.is_quorum(speaking, chosen_end):
            return False
        self.promised_by, self.first_slot = speaking, chosen_end
        return True

    def may_propose(self, slot: Slot) -> bool:
        """Whether a quorum of this slot's voters has promised."""
        return self._memberships.at(slot).is_quorum(self.promised_by)

    def take_own(self, own: Mapping[Slot, LogEntry]) -> None:
        """Take this replica's own open entries: it has promised, too."""
        self._take(own.values())

    @property
    def adopted_end(self) -> Slot:
        """The end of the slots with a value to adopt, as far as is known."""
        return max((Slot(slot + 1) for slot in self._highest), default=Slot(0))

    def adopt(self, slot: Slot) -> bytes | None:
        """Return the value that must be proposed in a slot; None: the choice is free.

        Source: "Paxos Made Simple", section 2.2, phase 2(a): "v is the value of the
        highest-numbered proposal among the responses".
        """
        assert self.may_propose(slot) and slot >= self.first_slot
        entry = self._highest.pop(slot, None)
        return None if entry is None else entry.value

    def _take(self, entries: Iterable[LogEntry]) -> None:
        for entry in entries:
            known = self._highest.get(entry.slot)
            if known is None or known.ballot < entry.ballot:
                self._highest[entry.slot] = entry
            elif known.ballot == entry.ballot:
                assert known.value == entry.value, f"two values in {entry.slot}, {entry.ballot}"
