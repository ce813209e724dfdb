"""What replicas say of their states to each other, and who of them is wrong if they differ.

Each tick carries the digest that the state of its proposer had after an earlier tick. Digests
are a chain, so it speaks for all before it. A replica keeps its own after the last ticks:
between two of them there may be any number of entries, but a tick waits for the one before
it, so few are enough. A replica that starts, or took over a copy of the state, has none of
before; then nothing is compared until the next tick but one.

Compares and counts; asks nobody and stops nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from tasksprint.consensus.voters import Voters
from tasksprint.coordination.commands import Claim
from tasksprint.ids import ReplicaId, Slot

__all__ = ["Claims", "majority_digest"]

# A leader proposes a tick once the one before is applied; a few more lie between for who
# applies behind, or answers a question late.
_KEPT = 64


class Claims:
    """The digests of one replica's state after the last ticks."""

    def __init__(self) -> None:
        self._digests: dict[Slot, str] = {}
        self.newest: Claim | None = None

    def ticked(self, slot: Slot, digest: str, claim: Claim | None) -> Claim | None:
        """Take that an entry with a tick was applied.

        Args:
            slot: The entry's.
            digest: Of the state here, with that entry.
            claim: What the tick says of its proposer.

        Returns:
            What is so here in place of the claim; None: the same, or it isn't known.
        """
        mine = None if claim is None else self.at(claim.slot)
        self.newest = Claim(slot, digest)
        self._digests[slot] = digest
        if len(self._digests) > _KEPT:
            del self._digests[next(iter(self._digests))]
        return mine if mine != claim else None

    def at(self, slot: Slot) -> Claim | None:
        """Return what is so here; None: it isn't known (any more, or yet)."""
        digest = self._digests.get(slot)
        return None if digest is None else Claim(slot, digest)

    def forget(self) -> None:
        """Take that the state is another one's from here on."""
        self._digests.clear()
        self.newest = None


def majority_digest(found: Mapping[ReplicaId, str], voters: Voters) -> str | None:
    """Return the digest that more than half of all voters have; None: none, as far as known.

    Args:
        found: The digests of those that have told theirs, voters or not.
    """
    for digest in found.values():
        if voters.is_quorum({who for who, theirs in found.items() if theirs == digest}):
            return digest
    return None
