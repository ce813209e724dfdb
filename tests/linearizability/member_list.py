"""The members of a cluster as operators see them: the model of the list and its changes.

Operations and their replies; members are named by their ids, each tuple is sorted:

    ("members",)               (number, voters, learners, replaces, retired), where
                               replaces has (new, old)
    ("add", new)               ("done",): it is a learner now, or a member already
    ("replace", old, new)      ("done",): the same, and `old` goes once `new` votes
    ("remove", old)            ("done",): it is retired

A change that was refused changes nothing and isn't in the history: if it did, a list would
show a membership that nobody made. What follows by itself may happen at any time: a learner
votes, and a voter goes whose replacement votes. Each change counts the number up by one.

What is verified: there is one order of all changes and lists that the model allows, so a list
that was asked for after a change was acknowledged shows it, no list takes back what another
one showed, nobody is a member whom nobody added, and an id that has left never comes back.
Jobs and members are two objects, and a history of both is linearizable if that of each is
(Herlihy and Wing, "Linearizability", 1990, theorem 1), so each is checked by itself. Not
verified: when a membership governs, and by whom votes are counted; that is the simulator's.

Several tries of one change whose outcomes are unknown count as the first of them: only one of
them can do anything, because an id is never used again.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from tests.linearizability.checker import Operation, TooHard, check

__all__ = ["DONE", "MemberModel", "MemberState", "check_members"]

DONE = ("done",)
_CALLS = ("members", "add", "replace", "remove")


@dataclass(frozen=True, slots=True)
class MemberState:
    """One membership."""

    number: int
    voters: tuple[int, ...]
    learners: tuple[int, ...] = ()
    replaces: tuple[tuple[int, int], ...] = ()  # (new, old)
    retired: tuple[int, ...] = ()

    @property
    def shown(self) -> tuple[Hashable, ...]:
        """What a list says of it."""
        return (self.number, self.voters, self.learners, self.replaces, self.retired)


class MemberModel:
    """The membership, from its founding on."""

    def __init__(self, founding: Iterable[int]) -> None:
        self.initial = MemberState(0, tuple(sorted(founding)))

    def step(self, state: MemberState, operation: Operation) -> tuple[MemberState, ...]:
        """Return where an operation may lead to."""
        match operation.call:
            case ("members",):
                return tuple([each for each in _later(state) if each.shown == operation.reply])
            case ("add", int() as new):
                found = [_added(each, new, None) for each in _later(state)]
            case ("replace", int() as old, int() as new):
                found = [_added(each, new, old) for each in _later(state)]
            case ("remove", int() as old):
                found = [_without(each, old) for each in _later(state)]
            case _:
                raise AssertionError(f"not an operation on members: {operation}")
        return tuple(dict.fromkeys([each for each in found if each is not None]))

    def is_idle(self, operation: Operation) -> bool:
        """Say yes for all: a list fits one number, and what is there already isn't made anew."""
        return True


def _later(state: MemberState) -> list[MemberState]:
    """Return a membership, and all that may follow from it by themselves."""
    found = [state]
    for each in found:  # It grows.
        for learner in each.learners:
            voting = replace(
                each,
                number=each.number + 1,
                voters=tuple(sorted((*each.voters, learner))),
                learners=tuple([other for other in each.learners if other != learner]),
            )
            found.append(voting)
        for new, old in each.replaces:
            if new in each.voters and old in each.voters:
                left = _without(each, old)
                assert left is not None
                found.append(left)
    return list(dict.fromkeys(found))


def _added(state: MemberState, new: int, old: int | None) -> MemberState | None:
    """Return the membership after an addition; None: it would have been refused."""
    if new in state.retired:
        return None
    is_known = new in state.voters or new in state.learners
    if old is not None and old not in state.voters:
        return state if is_known and old in state.retired else None
    if is_known:
        return state if old is None or (new, old) in state.replaces else None
    pairs = state.replaces if old is None else tuple(sorted((*state.replaces, (new, old))))
    return replace(
        state,
        number=state.number + 1,
        learners=tuple(sorted((*state.learners, new))),
        replaces=pairs,
    )


def _without(state: MemberState, old: int) -> MemberState | None:
    """Return the membership after a removal; None: it would have been refused."""
    if old in state.retired:
        return state
    if old not in (*state.voters, *state.learners) or state.voters == (old,):
        return None
    return replace(
        state,
        number=state.number + 1,
        voters=tuple([each for each in state.voters if each != old]),
        learners=tuple([each for each in state.learners if each != old]),
        replaces=tuple([pair for pair in state.replaces if old not in pair]),
        retired=tuple(sorted((*state.retired, old))),
    )


def check_members(operations: Sequence[Operation], founding: Iterable[int]) -> list[str]:
    """Return what is wrong with the changes and lists of a history; nothing: none.

    Args:
        operations: Of a whole history; what is about jobs is left out.
        founding: The members that the cluster began with.
    """
    history: list[Operation] = []
    tried: set[tuple[Hashable, ...]] = set()
    for operation in sorted(operations, key=lambda each: each.invoked):
        if operation.call[0] not in _CALLS:
            continue
        if operation.returned is None:
            if operation.call[0] == "members" or operation.call in tried:
                continue
            tried.add(operation.call)
        history.append(operation)
    try:
        verdict = check(history, MemberModel(founding))
    except TooHard as error:
        return [f"members: {error}, of {len(history)} operations"]
    return [] if verdict.is_linearizable else [f"members: {verdict.describe()}"]
