"""Why nobody leads, as far as one coordinator knows: which members it hears, and which not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tasksprint.ids import ReplicaId

if TYPE_CHECKING:
    from tasksprint.roles.coordinator.coordinator import Coordinator

__all__ = ["describe_unheard", "why_leaderless", "why_not_begun"]

# Members that are named one by one.
_NAMED_MAX = 5


def why_leaderless(coordinator: Coordinator) -> str:
    """Return why this coordinator knows of no leader, with who isn't heard and what is needed."""
    me = coordinator.options.me
    replica = coordinator.replica
    ages_ms = {peer: known.heard_ms for peer, known in replica.status().peers.items()}
    unheard = describe_unheard(
        {peer: address for peer, address in coordinator.members.known().items() if peer != me},
        ages_ms,
        silent_ms=2 * coordinator.settings.election_timeout_max_ms,
    )
    if coordinator.schedule is None:
        text = why_not_begun(coordinator)
        return f"{text}; {unheard}" if unheard else text
    if _is_alone(coordinator):
        return f"replica {me} doesn't lead yet; it is the only member, and will"
    if not unheard:
        return f"replica {me} hears no leader; it hears all other members: one will be elected"
    membership = replica.membership
    if membership is None:
        return f"replica {me} hears no leader; {unheard}"
    voters = len(membership.voters)
    return (
        f"replica {me} hears no leader; {unheard}; {voters // 2 + 1} of the "
        f"{voters} that vote must be up"
    )


def why_not_begun(coordinator: Coordinator) -> str:
    """Return what a coordinator waits for that has no state machine yet."""
    me = coordinator.options.me
    if coordinator.options.join and coordinator.replica.founding is None:
        what = f"tasksprint member add {me}=HOST:PORT"
        return f"replica {me} waits until the cluster adds it: {what}"
    if _is_alone(coordinator):
        return f"replica {me} isn't ready yet; it is the only member"
    return f"replica {me} waits for the other members to be up"


def _is_alone(coordinator: Coordinator) -> bool:
    return not coordinator.members.known().keys() - {coordinator.options.me}


def describe_unheard(
    addresses: Mapping[ReplicaId, str],
    ages_ms: Mapping[ReplicaId, int | None],
    *,
    silent_ms: int,
) -> str:
    """Return in words which of the other members aren't heard; "": all are.

    Args:
        addresses: Of the others.
        ages_ms: How long ago each was heard; None or missing: never.
        silent_ms: Who was heard longer ago than this isn't heard any more.
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
