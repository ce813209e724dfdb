"""The model of members, on histories that are known, and against trying all orders."""

from __future__ import annotations

from collections.abc import Hashable
from random import Random

import pytest

from tests.linearizability.checker import Operation, check, is_linearizable_slowly
from tests.linearizability.member_list import DONE, MemberModel, MemberState, check_members

FOUNDING = (1, 2, 3)


def done(invoked: int, returned: int, *call: Hashable, reply: Hashable = DONE) -> Operation:
    return Operation("p", invoked, returned, call, reply)


def lost(invoked: int, *call: Hashable) -> Operation:
    return Operation("p", invoked, None, call, None)


def listed(
    invoked: int,
    returned: int,
    number: int,
    voters: tuple[int, ...],
    learners: tuple[int, ...] = (),
    replaces: tuple[tuple[int, int], ...] = (),
    retired: tuple[int, ...] = (),
) -> Operation:
    reply = MemberState(number, voters, learners, replaces, retired).shown
    return done(invoked, returned, "members", reply=reply)


GOOD = {
    "one is added, learns and votes": [
        listed(0, 1, 0, (1, 2, 3)),
        done(2, 3, "add", 4),
        listed(4, 5, 1, (1, 2, 3), (4,)),
        listed(6, 7, 2, (1, 2, 3, 4)),
    ],
    "one is replaced, in three steps": [
        done(0, 1, "replace", 2, 4),
        listed(2, 3, 1, (1, 2, 3), (4,), ((4, 2),)),
        listed(4, 5, 2, (1, 2, 3, 4), (), ((4, 2),)),
        listed(6, 7, 3, (1, 3, 4), (), (), (2,)),
    ],
    "nobody looked while one was replaced": [
        done(0, 1, "replace", 2, 4),
        listed(2, 3, 3, (1, 3, 4), (), (), (2,)),
    ],
    "a change is asked for twice": [
        done(0, 1, "replace", 2, 4),
        done(2, 3, "replace", 2, 4),
        listed(4, 5, 3, (1, 3, 4), (), (), (2,)),
        done(6, 7, "replace", 2, 4),
        listed(8, 9, 3, (1, 3, 4), (), (), (2,)),
    ],
    "a change that got no answer was made": [
        lost(0, "add", 4),
        listed(1, 2, 0, (1, 2, 3)),
        listed(3, 4, 1, (1, 2, 3), (4,)),
        done(5, 6, "remove", 4),
        listed(7, 8, 2, (1, 2, 3), (), (), (4,)),
    ],
    "a change that got no answer was not made": [
        lost(0, "remove", 3),
        listed(1, 2, 0, (1, 2, 3)),
        done(3, 4, "add", 4),
        listed(5, 6, 2, (1, 2, 3, 4)),
    ],
    "a list during a change shows it or not": [
        done(0, 9, "remove", 1),
        listed(1, 2, 0, (1, 2, 3)),
        listed(3, 4, 1, (2, 3), (), (), (1,)),
    ],
    "two are added at the same time": [
        done(0, 9, "add", 5),
        done(0, 9, "add", 4),
        listed(10, 11, 4, (1, 2, 3, 4, 5)),
    ],
}

BAD = {
    "an acknowledged member is missing": [
        done(0, 1, "add", 4),
        listed(2, 3, 0, (1, 2, 3)),
    ],
    "an acknowledged removal is not seen": [
        done(0, 1, "remove", 3),
        listed(2, 3, 0, (1, 2, 3)),
    ],
    "a list takes back what another one showed": [
        lost(0, "add", 4),
        listed(1, 2, 1, (1, 2, 3), (4,)),
        listed(3, 4, 0, (1, 2, 3)),
    ],
    "one votes whom nobody added": [listed(0, 1, 1, (1, 2, 3, 4))],
    "one is gone whom nobody removed": [listed(0, 1, 1, (1, 2), (), (), (3,))],
    "one that was replaced goes before the new one votes": [
        done(0, 1, "replace", 2, 4),
        listed(2, 3, 2, (1, 3), (4,), (), (2,)),
    ],
    "one that votes learns again": [
        done(0, 1, "add", 4),
        listed(2, 3, 2, (1, 2, 3, 4)),
        listed(4, 5, 3, (1, 2, 3), (4,)),
    ],
    "an id that has left comes back": [
        done(0, 1, "remove", 3),
        done(2, 3, "add", 3),
    ],
    "two memberships have one number": [
        done(0, 9, "add", 4),
        done(0, 9, "remove", 3),
        listed(0, 9, 1, (1, 2, 3), (4,)),
        listed(0, 9, 1, (1, 2), (), (), (3,)),
    ],
    "a change is counted twice": [
        done(0, 1, "remove", 3),
        listed(2, 3, 2, (1, 2), (), (), (3,)),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_history_that_members_may_have(name: str) -> None:
    assert check_members(GOOD[name], FOUNDING) == []


@pytest.mark.parametrize("name", BAD)
def test_history_that_members_must_not_have(name: str) -> None:
    (wrong,) = check_members(BAD[name], FOUNDING)
    assert wrong.startswith("members: not linearizable")


def test_what_is_about_jobs_is_left_out() -> None:
    history = [*GOOD["one is replaced, in three steps"], done(3, 4, "status", 1, reply=("x",))]
    assert check_members(history, FOUNDING) == []


def random_history(random: Random) -> list[Operation]:
    """Return a history that is often right: with each change, lists of what it makes."""
    model = MemberModel(FOUNDING)
    state = model.initial
    found: list[Operation] = []
    time = 0
    for _ in range(random.randrange(1, 7)):
        time += random.choice((0, 1, 3))
        end = time + random.choice((0, 2, 5))
        calls = (("add", 4), ("remove", 2), ("replace", 2, 4), ("replace", 3, 5), ("add", 5))
        call = random.choice(calls)
        if random.random() < 0.5:
            after = model.step(state, done(time, end, *call))
            state = random.choice(after) if after and random.random() < 0.9 else state
            if random.random() < 0.3:
                found.append(lost(time, *call))
            elif after:
                found.append(done(time, end, *call))
        else:
            later = model.step(state, lost(time, "add", 1))  # It is a member: no change.
            state = random.choice(later) if random.random() < 0.5 else state
            shown = random.choice((state, state, state, model.initial)).shown
            found.append(done(time, end, "members", reply=shown))
    return found


@pytest.mark.slow
def test_model_of_members_says_the_same_as_trying_all_orders() -> None:
    random = Random(9)
    verdicts = {True: 0, False: 0}
    for _ in range(2_000):
        history = random_history(random)
        slowly = is_linearizable_slowly(history, MemberModel(FOUNDING))
        assert check(history, MemberModel(FOUNDING)).is_linearizable == slowly
        verdicts[slowly] += 1
    assert min(verdicts.values()) > 200, verdicts
