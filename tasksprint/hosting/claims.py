"""Claims of replicas about their states, and the majority that decides if they differ.

Each tick carries the digest that the state of its proposer had after an earlier tick. Digests
are a chain, so one speaks for all before it. A replica keeps its own digests after the last ticks.
Few are enough: any number of entries may lie between two ticks, but each tick waits for the one
before it. A replica that starts, or took over a copy of the state, has no earlier digests. Then
nothing is compared until the tick after next.

Compares and counts; asks nobody and stops nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from tasksprint.consensus.voters import Voters
from tasksprint.coordination.commands import Claim
from tasksprint.ids import ReplicaId, Slot

__all__ = ["Claims", "majority_digest"]

# A leader proposes a tick once the one before is applied. A few more are kept for a replica
# that applies late, or answers a question late.
_KEPT = 64


class Claims:
    """The digests of one replica's state after the last ticks."""

    def __init__(self) -> None:
        self._digests: dict[Slot, str] = {}
        self.newest: Claim | None = None

    def ticked(self, slot: Slot, digest: str, claim: Claim | None) -> Claim | None:
        """Note that an entry with a tick was applied, and compare its claim.

        Args:
            slot: The entry's.
            digest: Of the state here, with that entry.
            claim: The proposer's claim in the tick.

        Returns:
            This replica's own claim for that slot, if it differs; None: the same, or not known.
        """
        mine = None if claim is None else self.at(claim.slot)
        self.newest = Claim(slot, digest)
        self._digests[slot] = digest
        if len(self._digests) > _KEPT:
            del self._digests[next(iter(self._digests))]
        return mine if mine != claim else None

    def at(self, slot: Slot) -> Claim | None:
        """Return this replica's own claim for a slot; None: it isn't known (any more, or yet)."""
        digest = self._digests.get(slot)
        return None if digest is None else Claim(slot, digest)

    def forget(self) -> None:
        """Forget all digests: from here on the state is a copy of another replica's."""
        self._digests.clear()
        self.newest = None


def majority_digest(found: Mapping[ReplicaId, str], voters: Voters) -> str | None:
    """Return the digest that more than half of all voters have; None: none, as far as known.

    Args:
        found: The digests that replicas have told, voters or not.
    """
    for digest in found.values():
        if voters.is_quorum({who for who, theirs in found.items() if theirs == digest}):
            return digest
    return None
