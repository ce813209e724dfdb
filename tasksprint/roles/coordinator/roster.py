"""The members of the cluster, as far as one coordinator knows.

Knows the log's membership; before there is one, it knows the members from the command line. It
names the voters. Only `consensus/voters.py` knows which of them make a quorum.
"""

from __future__ import annotations

from tasksprint.consensus import Member, Membership, Replica
from tasksprint.ids import ReplicaId
from tasksprint.roles.coordinator.surroundings import CoordinatorOptions

__all__ = ["Roster", "membership_of"]


class Roster:
    """The members that a replica knows."""

    def __init__(self, replica: Replica, options: CoordinatorOptions) -> None:
        self.me = options.me
        self._replica = replica
        self._options = options

    @property
    def cluster(self) -> str | None:
        """The name of the cluster; None: this replica isn't founded."""
        founding = self._replica.founding
        return None if founding is None else founding.cluster

    @property
    def voters(self) -> tuple[Member, ...]:
        """The voters by the newest membership of the log; none: unfounded."""
        membership = self._replica.membership
        return () if membership is None else membership.voters

    @property
    def waits_to_be_added(self) -> bool:
        """Whether it was started to join a cluster, and none has added it yet."""
        return bool(self._options.join) and self._replica.founding is None

    def others(self) -> dict[ReplicaId, str]:
        """Return the addresses of all members but this one."""
        replica = self._replica
        # The command line says who founds a cluster, and nothing once there is one.
        known = self._options.peers if replica.founding is None else replica.addresses
        return {member: address for member, address in known.items() if member != self.me}

    def address_of(self, replica: ReplicaId) -> str | None:
        """Return the address of a member."""
        return self.others().get(replica)

    def addresses(self) -> dict[str, str]:
        """Return the address of every voter and learner, this one too."""
        membership = self._replica.membership
        known = self.others()
        if membership is None or membership.member(self.me) is not None:
            known[self.me] = self._options.advertise
        return {str(replica): address for replica, address in sorted(known.items())}


def membership_of(replica: Replica) -> Membership:
    """Return the newest membership of a replica that leads, or led: it is founded."""
    membership = replica.membership
    assert membership is not None, "who leads is founded"
    return membership
