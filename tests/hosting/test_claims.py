"""Digests that replicas compare, and whose word counts if they differ."""

from __future__ import annotations

import pytest

from tasksprint.consensus import Member
from tasksprint.consensus.voters import Voters
from tasksprint.coordination.commands import Claim, Tick, encode_command
from tasksprint.coordination.schedule import Schedule
from tasksprint.hosting.claims import Claims, majority_digest
from tasksprint.ids import Incarnation, ReplicaId, Slot
from tasksprint.settings import RULES


def schedule() -> Schedule:
    return Schedule(cluster="c", members=(ReplicaId(1),), rules=RULES)


def test_claims_change_nothing_of_the_state() -> None:
    """Whatever a leader says of itself, right or wrong: it isn't part of what it speaks of."""
    states = [schedule() for _ in range(3)]
    for slot in range(1, 6):
        for state, claim in zip(
            states, (None, Claim(Slot(slot - 1), "aa"), Claim(Slot(7), "bb")), strict=True
        ):
            tick = Tick(500, slot, (), claim)
            applied = state.apply(Slot(slot), (encode_command(tick),))
            assert applied.tick == tick
    assert len({state.digest for state in states}) == 1


def test_entry_without_a_tick_says_nothing() -> None:
    assert schedule().apply(Slot(1), ()).tick is None


def test_claim_is_compared_with_what_was_so_after_that_slot() -> None:
    claims = Claims()
    assert claims.newest is None
    assert claims.ticked(Slot(3), "d3", None) is None
    assert claims.newest == Claim(Slot(3), "d3")
    assert claims.ticked(Slot(8), "d8", Claim(Slot(3), "d3")) is None
    assert claims.ticked(Slot(9), "d9", Claim(Slot(8), "other")) == Claim(Slot(8), "d8")
    # The one of two ticks ago, by a leader that applies behind.
    assert claims.ticked(Slot(11), "d11", Claim(Slot(3), "x")) == Claim(Slot(3), "d3")


def test_nothing_is_compared_of_what_is_not_known() -> None:
    claims = Claims()  # As a replica that starts from its mirror.
    assert claims.ticked(Slot(9), "d9", Claim(Slot(8), "d8")) is None
    claims.forget()  # It took over a copy of the state.
    assert claims.newest is None
    assert claims.ticked(Slot(20), "d20", Claim(Slot(9), "other")) is None
    assert claims.ticked(Slot(21), "d21", Claim(Slot(20), "other")) == Claim(Slot(20), "d20")


def test_old_digests_are_forgotten() -> None:
    claims = Claims()
    for slot in range(1, 1_000):
        claims.ticked(Slot(slot), f"d{slot}", None)
    assert claims.at(Slot(999)) == Claim(Slot(999), "d999")
    assert claims.at(Slot(1)) is None
    assert sum(claims.at(Slot(slot)) is not None for slot in range(1_000)) == 64


@pytest.mark.parametrize(
    ("voters", "found", "majority"),
    [
        ([1, 2, 3], {1: "a", 2: "a", 3: "b"}, "a"),
        ([1, 2, 3], {1: "a", 2: "b", 3: "b"}, "b"),
        ([1, 2, 3], {1: "a", 2: "b"}, None),
        ([1, 2, 3], {1: "a", 2: "a"}, "a"),
        ([1, 2, 3], {1: "a", 2: "b", 3: "c"}, None),
        ([1, 2], {1: "a", 2: "b"}, None),
        ([1], {1: "a"}, "a"),
        # A learner has no voice, whatever it says.
        ([1, 2, 3], {1: "a", 2: "b", 4: "b", 5: "b"}, None),
        ([1, 2, 3, 4], {1: "a", 2: "a", 3: "b", 4: "b"}, None),
        ([1, 2, 3, 4], {1: "a", 2: "a", 3: "a"}, "a"),
    ],
)
def test_majority_is_of_all_voters(
    voters: list[int], found: dict[int, str], majority: str | None
) -> None:
    known = {ReplicaId(who): digest for who, digest in found.items()}
    members = Voters(Member(ReplicaId(voter), Incarnation("1"), "") for voter in voters)
    assert majority_digest(known, members) == majority
