"""Who votes, and what a quorum is: the only place that counts votes.

Knows nothing of what is voted on. Membership that changes by log entries will ask
here for the quorum of a slot.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from tasksprint.consensus.founding import Founding
from tasksprint.ids import Incarnation, ReplicaId

__all__ = ["Members"]


class Members:
    """The voting members of a cluster; nobody, while it is unfounded."""

    def __init__(self, founding: Founding | None) -> None:
        members = () if founding is None else founding.members
        self.incarnations: dict[ReplicaId, Incarnation] = {
            member.replica: member.incarnation for member in members
        }
        self.ids: tuple[ReplicaId, ...] = tuple(self.incarnations)
        self._id_set = frozenset(self.ids)
        self.quorum_size = len(self.ids) // 2 + 1

    def is_quorum(self, voters: AbstractSet[ReplicaId]) -> bool:
        """Whether these hold a majority; a set, so that nobody counts twice.

        Source: Lamport, "Paxos Made Simple", section 2.2: "any two majorities have at
        least one acceptor in common".
        """
        return len(voters & self._id_set) >= self.quorum_size

    def could_be_quorum_without(self, others: AbstractSet[ReplicaId]) -> bool:
        """Whether the members that aren't in `others` hold a majority."""
        return len(self._id_set - others) >= self.quorum_size
