"""Memberships: how one follows from another, and how they stand in the log.

A membership names three groups of replicas: voters, learners, and those that left for good.
Learners only follow. They become voters once they have caught up. An entry of the log may
carry a membership. If it is chosen in slot s, it governs from slot s + ALPHA on. Knows nothing
of messages and quorums (voters.py counts).

Ids of replicas that left are never used again. A ballot is (round, replica). A new replica
under an old id could use a ballot for the second time, with other values.

Source: Lamport, "Paxos Made Simple" (2001), section 3: "allow a leader to get alpha
commands ahead by letting the set of servers that execute instance i + alpha of the
consensus algorithm be specified by the state after execution of the ith command".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tasksprint.bounded_text import bounded_repr
from tasksprint.consensus.batch import MEMBERSHIP_MARK, stands_alone
from tasksprint.consensus.founding import Member
from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import Incarnation, ReplicaId

__all__ = [
    "ALPHA",
    "Membership",
    "decode_membership",
    "decode_membership_value",
    "encode_membership",
    "encode_membership_value",
    "from_fields",
    "is_next_step",
    "to_fields",
    "with_learner",
    "with_promoted",
    "without",
]

# A constant of the log's format: replicas with another number would count votes
# differently. At least as many slots as any leader has under way (pipeline_slots_max).
ALPHA = 16
_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Membership:
    """The replicas that take part, from some slot on."""

    number: int  # 0: the founding; each change counts one up
    voters: tuple[Member, ...]  # in the order of ids
    learners: tuple[Member, ...] = ()  # in the order of ids
    # (new, old): the old one goes once the new one votes. The new one may vote already.
    replaces: tuple[tuple[ReplicaId, ReplicaId], ...] = ()
    retired: tuple[ReplicaId, ...] = ()  # sorted

    def member(self, replica: ReplicaId) -> Member | None:
        """Return the voter or learner with this id."""
        for member in (*self.voters, *self.learners):
            if member.replica == replica:
                return member
        return None

    def is_voter(self, replica: ReplicaId) -> bool:
        """Whether this one votes."""
        return any(member.replica == replica for member in self.voters)

    def describe(self) -> str:
        """Return it in words, such as "voters 1, 2, 3; learners 4"."""
        text = f"voters {_names(self.voters)}"
        return f"{text}; learners {_names(self.learners)}" if self.learners else text


def _names(members: tuple[Member, ...]) -> str:
    return ", ".join(str(member.replica) for member in members)


# --- how one follows from another ---


def with_learner(
    membership: Membership, member: Member, *, replaces: ReplicaId | None = None
) -> Membership:
    """Return the membership with one more learner."""
    pairs = membership.replaces
    if replaces is not None:
        pairs = tuple(sorted({*pairs, (member.replica, replaces)}))
    return replace(
        membership,
        number=membership.number + 1,
        learners=_sorted((*membership.learners, member)),
        replaces=pairs,
    )


def with_promoted(membership: Membership, replica: ReplicaId) -> Membership:
    """Return the membership in which a learner votes."""
    (member,) = [each for each in membership.learners if each.replica == replica]
    return replace(
        membership,
        number=membership.number + 1,
        voters=_sorted((*membership.voters, member)),
        learners=tuple(each for each in membership.learners if each.replica != replica),
    )


def without(membership: Membership, replica: ReplicaId) -> Membership:
    """Return the membership without a voter or a learner; its id is retired for good."""
    return replace(
        membership,
        number=membership.number + 1,
        voters=tuple(each for each in membership.voters if each.replica != replica),
        learners=tuple(each for each in membership.learners if each.replica != replica),
        replaces=tuple(pair for pair in membership.replaces if replica not in pair),
        retired=tuple(sorted({*membership.retired, replica})),
    )


def _sorted(members: tuple[Member, ...]) -> tuple[Member, ...]:
    return tuple(sorted(members, key=lambda member: member.replica))


def is_next_step(old: Membership, new: Membership) -> bool:
    """Whether `new` may follow `old`: at most one voter more or less.

    Then any majority of one has a member in common with any majority of the other. So a
    leader sees in its promises all that the other membership chose.
    """
    difference = set(old.voters) ^ set(new.voters)
    return (
        new.number == old.number + 1
        and len(difference) <= 1
        and len(new.voters) >= 1
        and set(old.retired) <= set(new.retired)
    )


# --- bytes ---


def encode_membership(membership: Membership) -> bytes:
    """Return the bytes of a membership, for the store and for messages."""
    return encode_json(to_fields(membership))


def to_fields(membership: Membership) -> dict[str, Any]:
    """Return a membership as an object for JSON."""
    return {
        "version": _FORMAT_VERSION,
        "number": membership.number,
        "voters": [[m.replica, m.incarnation, m.address] for m in membership.voters],
        "learners": [[m.replica, m.incarnation, m.address] for m in membership.learners],
        "replaces": [list(pair) for pair in membership.replaces],
        "retired": list(membership.retired),
    }


def decode_membership(data: bytes) -> Membership:
    """Return the membership that `data` encodes.

    Raises:
        RemoteProtocolError: It is no membership, or one of another version.
    """
    return from_fields(decode_json(data))


def from_fields(fields: Any) -> Membership:
    """Return the membership of an object from JSON; see `to_fields`.

    Raises:
        RemoteProtocolError: It is no membership, or one of another version.
    """
    try:
        version = fields["version"]
        if version != _FORMAT_VERSION:
            raise RemoteProtocolError(
                f"a membership has version {bounded_repr(version)}, expected {_FORMAT_VERSION}; "
                "run the same release everywhere"
            )
        return Membership(
            int(fields["number"]),
            _members(fields["voters"]),
            _members(fields["learners"]),
            tuple((ReplicaId(int(new)), ReplicaId(int(old))) for new, old in fields["replaces"]),
            tuple(ReplicaId(int(replica)) for replica in fields["retired"]),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"not a membership: {bounded_repr(fields, 200)}") from error


def _members(rows: Any) -> tuple[Member, ...]:
    return tuple(
        Member(ReplicaId(int(replica)), Incarnation(str(incarnation)), str(address))
        for replica, incarnation, address in rows
    )


def encode_membership_value(membership: Membership) -> bytes:
    """Return the value of a slot that carries this membership and no command."""
    return MEMBERSHIP_MARK + encode_membership(membership)


def decode_membership_value(value: bytes) -> Membership | None:
    """Return the membership that the value of a slot carries; None: it has commands."""
    if not value.startswith(MEMBERSHIP_MARK) or stands_alone(value):
        return None
    return decode_membership(value[len(MEMBERSHIP_MARK) :])
