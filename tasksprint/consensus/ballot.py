"""Ballots: each names one replica's attempt at leadership.

Ballots are totally ordered, and no two replicas ever share one. A ballot knows nothing of
the values that are decided under it.
"""

from __future__ import annotations

from typing import NamedTuple

from tasksprint.ids import ReplicaId

__all__ = ["NO_BALLOT", "Ballot"]


class Ballot(NamedTuple):
    """One attempt at leadership: (round, replica), compared in this order.

    A named tuple, because ballots are compared several times for each message, and
    tuples compare in C.

    Source: Lamport, "Paxos Made Simple" (2001), section 2.5: different proposers
    choose their numbers "from disjoint sets of numbers".
    """

    round: int
    replica: ReplicaId

    def __str__(self) -> str:
        return f"{self.round}.{self.replica}"


# Below every ballot that a replica may use; "nothing promised yet".
NO_BALLOT = Ballot(0, ReplicaId(0))
