"""Changes of the members: those that people may ask for, and those that follow by themselves.

Pure decisions over a membership, and over which voters answer its leader. Knows nothing of
the log. A change needs a majority that answers now, of the membership before it and of the one
after it; otherwise it is refused. If a second member that isn't up were added, a cluster of
one would stop for good.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet

from tasksprint.consensus.founding import Member
from tasksprint.consensus.membership import Membership, with_learner, with_promoted, without
from tasksprint.consensus.voters import Voters
from tasksprint.ids import ReplicaId

__all__ = ["addition", "next_step", "refusal", "removal", "used_before"]


def used_before(membership: Membership, replica: ReplicaId) -> str | None:
    """Return why an id can't be used for a new member; None: no former member had it."""
    if replica not in membership.retired:
        return None
    return (
        f"replica {replica} was removed before, and an id is never used again: "
        "choose another for the new coordinator"
    )


def addition(
    membership: Membership, member: Member, *, replaces: ReplicaId | None
) -> Membership | str | None:
    """Return the membership with a new learner.

    Args:
        replaces: The voter that goes once the new one votes.

    Returns:
        The new membership, or the reason of a refusal, or None: it is so already.
    """
    replica = member.replica
    used = used_before(membership, replica)
    if used is not None:
        return used
    known = membership.member(replica)
    if replaces is not None and not membership.is_voter(replaces):
        if known == member and replaces in membership.retired:
            return None
        return f"replica {replaces} is no voter: there is nothing to replace"
    if known is not None and known.incarnation != member.incarnation:
        return (
            f"replica {replica} is a member already, in another life ({known.incarnation}, "
            f"this one is {member.incarnation}): choose another id for the new coordinator"
        )
    if known is not None and known.address != member.address:
        return (
            f"replica {replica} is a member already, at {known.address}, not at "
            f"{member.address}: an address stays with its id"
        )
    if known is None:
        return with_learner(membership, member, replaces=replaces)
    pairs = dict(membership.replaces)
    if replaces is not None and pairs.get(replica) != replaces:
        return (
            f"replica {replica} is a member already: to replace {replaces} by it, "
            f"remove {replaces}"
        )
    return None


def removal(membership: Membership, replica: ReplicaId) -> Membership | str | None:
    """Return the membership that a voter or learner has left.

    Returns:
        The new membership, or the reason of a refusal, or None: it has gone already.
    """
    if replica in membership.retired:
        return None
    if membership.member(replica) is None:
        return f"replica {replica} is no member of the cluster; see 'member list'"
    if [voter.replica for voter in membership.voters] == [replica]:
        return f"replica {replica} is the last that votes: add another before, or stop the cluster"
    return without(membership, replica)


def refusal(old: Membership, new: Membership, heard: AbstractSet[ReplicaId]) -> str | None:
    """Return why a change would lose the majority; None: it would not.

    Args:
        heard: The replicas that answer the leader at present, and itself.
    """
    for membership, what in ((old, "the cluster has"), (new, "the change would leave")):
        members = Voters(membership.voters)
        if not members.is_quorum(heard):
            answering = [str(voter) for voter in members.ids if voter in heard]
            return (
                f"{what} the voters {', '.join(map(str, members.ids))}, of which "
                f"{_join(answering)}, and {members.quorum_size} must: "
                "start the others, or remove those that are gone before"
            )
    return None


def _join(names: list[str]) -> str:
    if len(names) == 1:
        return f"only {names[0]} answers"
    return f"only {', '.join(names)} answer" if names else "none answers"


def next_step(
    membership: Membership,
    heard: AbstractSet[ReplicaId],
    has_caught_up: Callable[[ReplicaId], bool],
) -> Membership | None:
    """Return the change that follows by itself, or None.

    A learner becomes a voter, or a replaced voter goes.
    """
    for new, old in membership.replaces:
        if membership.is_voter(new) and membership.is_voter(old):
            candidate = without(membership, old)
            if refusal(membership, candidate, heard) is None:
                return candidate
    for learner in membership.learners:
        if learner.replica in heard and has_caught_up(learner.replica):
            candidate = with_promoted(membership, learner.replica)
            if refusal(membership, candidate, heard) is None:
                return candidate
    return None
