"""The proposer in phase 1: a candidate gathers promises and learns what it must adopt.

Counts votes by identity (members.py says what a quorum is) and knows nothing of
disks: the replica reports its own promise once it is durable. Phase 2 is in
leadership.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tasksprint.consensus.ballot import Ballot
from tasksprint.consensus.batch import NOOP
from tasksprint.consensus.effects import LogEntry
from tasksprint.consensus.members import Members
from tasksprint.consensus.messages import Promise
from tasksprint.ids import ReplicaId, Slot

__all__ = ["Campaign"]


class Campaign:
    """Phase 1 under one ballot."""

    def __init__(self, ballot: Ballot, members: Members) -> None:
        self.ballot = ballot
        self._members = members
        self.deadline_ms = 0  # given up then
        self.resend_ms = 0
        self.promised_by: set[ReplicaId] = set()
        # Nothing may be proposed below: somebody who promised knows it to be chosen.
        self.first_slot = Slot(1)
        self.helper: ReplicaId | None = None  # who does
        self._highest: dict[Slot, LogEntry] = {}

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
        self._take(promise.entries)
        if promise.first_slot > self.first_slot:
            self.first_slot = promise.first_slot
            self.helper = source

    @property
    def has_quorum(self) -> bool:
        """Whether a quorum has promised."""
        return self._members.is_quorum(self.promised_by)

    def adopt(self, own: Mapping[Slot, LogEntry], chosen_end: Slot) -> list[bytes]:
        """Return the values that must be proposed from `chosen_end` on, in order.

        Source: "Paxos Made Simple", section 2.2, phase 2(a): "v is the value of the
        highest-numbered proposal among the responses"; section 3: gaps are filled
        with a command "that leaves the state unchanged".

        Args:
            own: This replica's own open entries; it is one of those who promised.
        """
        assert self.has_quorum and chosen_end >= self.first_slot
        self._take(own.values())
        end = max((slot + 1 for slot in self._highest), default=0)
        values: list[bytes] = []
        for slot in range(chosen_end, end):
            entry = self._highest.get(Slot(slot))
            values.append(NOOP if entry is None else entry.value)
        return values

    def _take(self, entries: Iterable[LogEntry]) -> None:
        for entry in entries:
            known = self._highest.get(entry.slot)
            if known is None or known.ballot < entry.ballot:
                self._highest[entry.slot] = entry
            elif known.ballot == entry.ballot:
                assert known.value == entry.value, f"two values in {entry.slot}, {entry.ballot}"
