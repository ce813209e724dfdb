"""Tells why nobody leads, as far as one coordinator knows: which members it hears, which not."""

from __future__ import annotations

from collections.abc import Mapping

from tasksprint.consensus import Replica
from tasksprint.consensus.voters import Voters
from tasksprint.coordination.schedule import Schedule
from tasksprint.ids import ReplicaId
from tasksprint.roles.coordinator.roster import Roster

__all__ = ["describe_unheard", "lag", "why_leaderless", "why_not_level"]

# Members that are named one by one.
_NAMED_MAX = 5
# Chosen entries that a replica may have to apply yet and still count as level: some
# milliseconds of work.
_LAG_MAX = 1_000


def why_leaderless(
    roster: Roster, replica: Replica, schedule: Schedule | None, *, silent_ms: int
) -> str:
    """Return why a coordinator knows no leader, with the silent members and the quorum needed.

    Args:
        schedule: Its state machine, if it has one.
        silent_ms: A member heard longer ago than this isn't heard any more.
    """
    ages_ms = {peer: known.heard_ms for peer, known in replica.status().peers.items()}
    unheard = describe_unheard(roster.others(), ages_ms, silent_ms=silent_ms)
    if schedule is None:
        text = _why_not_begun(roster)
        return f"{text}; {unheard}" if unheard else text
    if not roster.others():
        return f"replica {roster.me} doesn't lead yet; it is the only member, and will"
    text = f"replica {roster.me} hears no leader"
    if not unheard:
        return f"{text}; it hears all other members: one will be elected"
    members = Voters(roster.voters)
    if not members.ids:
        return f"{text}; {unheard}"
    return (
        f"{text}; {unheard}; {members.quorum_size} of the {len(members.ids)} that vote must be up"
    )


def why_not_level(roster: Roster, replica: Replica, schedule: Schedule | None) -> str | None:
    """Say why a replica takes no part, or lacks entries of the log; None: it is level."""
    if schedule is None:
        return _why_not_begun(roster)
    if replica.leader is None:
        return f"replica {roster.me} hears no leader"
    if replica.is_leader and not replica.is_established:
        return f"replica {roster.me} leads, but no entry of its own is chosen yet"
    if (slots := lag(replica, schedule)) > _LAG_MAX:
        return f"replica {roster.me} has to apply {slots} entries of the log yet"
    return None


def lag(replica: Replica, schedule: Schedule) -> int:
    """Return how many chosen entries a replica has to apply yet."""
    return replica.chosen_end - 1 - schedule.applied_slot


def _why_not_begun(roster: Roster) -> str:
    """Return the thing that a coordinator without a state machine waits for."""
    me = roster.me
    if roster.waits_to_be_added:
        what = f"tasksprint member add {me}=HOST:PORT"
        return f"replica {me} waits until the cluster adds it: {what}"
    if not roster.others():
        return f"replica {me} isn't ready yet; it is the only member"
    return f"replica {me} waits for the other members to be up"


def describe_unheard(
    addresses: Mapping[ReplicaId, str],
    ages_ms: Mapping[ReplicaId, int | None],
    *,
    silent_ms: int,
) -> str:
    """Return in words which of the other members aren't heard; "": all are.

    Args:
        addresses: The others' addresses.
        ages_ms: How long ago each was heard; None or missing: never.
        silent_ms: A member heard longer ago than this isn't heard any more.
    """
    heard: list[str] = []
    unheard: list[str] = []
    for replica, address in sorted(addresses.items()):
        age_ms = ages_ms.get(replica)
        if age_ms is not None and age_ms <= silent_ms:
            heard.append(str(replica))
            continue
        since = "" if age_ms is None else f", since {age_ms // 1_000} s"
        unheard.append(f"{replica} ({address}{since})")
    if not unheard:
        return ""
    shown = unheard[:_NAMED_MAX]
    if len(unheard) > _NAMED_MAX:
        shown.append(f"{len(unheard) - _NAMED_MAX} more")
    text = f"it doesn't hear replica {', '.join(shown)}"
    return f"it hears replica {', '.join(heard)}; {text}" if heard else text
