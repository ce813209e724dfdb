"""The checker, on histories of a register that are known, and against trying all orders."""

from __future__ import annotations

from collections.abc import Hashable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.linearizability.checker import Operation, TooHard, check, is_linearizable_slowly


class Register:
    """One number; "compare" writes the second one only over the first one."""

    initial = 0

    def step(self, state: int, operation: Operation) -> tuple[int, ...]:
        is_known = operation.returned is not None
        match operation.call:
            case ("read",):
                return (state,) if not is_known or operation.reply == state else ()
            case ("write", int() as value):
                return (value,)
            case ("compare", old, int() as new):
                is_done = state == old
                if is_known and operation.reply != is_done:
                    return ()
                return (new if is_done else state,)
            case ("roll",):  # nondeterministic: to any of two
                return tuple({(state + 1) % 3, (state + 2) % 3})
            case _:
                raise AssertionError(operation)

    def is_idle(self, operation: Operation) -> bool:
        return operation.call == ("read",)


def done(invoked: int, returned: int, *call: Hashable, reply: Hashable = None) -> Operation:
    return Operation("p", invoked, returned, call, reply)


def lost(invoked: int, *call: Hashable) -> Operation:
    return Operation("p", invoked, None, call, None)


LINEARIZABLE = {
    "nothing happened": [],
    "one after the other": [done(0, 1, "write", 1), done(2, 3, "read", reply=1)],
    "a read at the same time as a write sees the old value": [
        done(0, 9, "write", 1),
        done(1, 2, "read", reply=0),
        done(3, 4, "read", reply=1),
    ],
    "an operation that begins when another one ends is at the same time": [
        done(0, 5, "write", 1),
        done(5, 6, "read", reply=0),
    ],
    "a lost write took effect late": [
        lost(0, "write", 7),
        done(1, 2, "read", reply=0),
        done(3, 4, "write", 2),
        done(5, 6, "read", reply=7),
    ],
    "a lost write took no effect": [lost(0, "write", 7), done(1, 2, "read", reply=0)],
    "a write of what is there already must not be taken at once": [
        done(0, 9, "write", 0),
        done(1, 2, "write", 1),
        done(3, 10, "read", reply=0),
    ],
    "one of two that compare at the same time wins": [
        done(0, 9, "compare", 0, 1, reply=True),
        done(0, 9, "compare", 0, 2, reply=False),
        done(10, 11, "read", reply=1),
    ],
}

NOT_LINEARIZABLE = {
    "a stale read": [done(0, 1, "write", 1), done(2, 3, "read", reply=0)],
    "reads that go back": [
        done(0, 9, "write", 1),
        done(1, 2, "read", reply=1),
        done(3, 4, "read", reply=0),
    ],
    "a lost write before it was invoked": [done(0, 1, "read", reply=7), lost(2, "write", 7)],
    "a lost write that took effect twice": [
        lost(0, "write", 7),
        done(1, 2, "read", reply=7),
        done(3, 4, "write", 2),
        done(5, 6, "read", reply=2),
        done(7, 8, "read", reply=7),
    ],
    "two that compare both win": [
        done(0, 9, "compare", 0, 1, reply=True),
        done(0, 9, "compare", 0, 2, reply=True),
    ],
    "two readers that disagree about the order of two writes": [
        done(0, 9, "write", 1),
        done(0, 9, "write", 2),
        done(10, 11, "read", reply=1),
        done(12, 13, "read", reply=2),
    ],
}


@pytest.mark.parametrize("name", LINEARIZABLE)
def test_history_that_is_linearizable(name: str) -> None:
    history = LINEARIZABLE[name]
    assert is_linearizable_slowly(history, Register())
    assert check(history, Register()).is_linearizable


@pytest.mark.parametrize("name", NOT_LINEARIZABLE)
def test_history_that_is_not_linearizable(name: str) -> None:
    history = NOT_LINEARIZABLE[name]
    assert not is_linearizable_slowly(history, Register())
    assert not check(history, Register()).is_linearizable


def test_verdict_names_the_operation_that_does_not_fit() -> None:
    verdict = check(NOT_LINEARIZABLE["a stale read"], Register())
    assert verdict.describe().splitlines() == [
        "not linearizable; the longest order that works ends with",
        "    [0 .. 1] p: write 1 -> None",
        "  in the state 1; none of these can be the next:",
        "    [2 .. 3] p: read -> 0",
    ]


def test_search_that_takes_too_long_says_so() -> None:
    history = [done(0, 99, "write", number) for number in range(12)]
    history.append(done(100, 101, "read", reply=99))
    with pytest.raises(TooHard, match="no answer after 1000 steps"):
        check(history, Register(), steps_max=1_000)


def test_long_history_takes_steps_in_proportion() -> None:
    history = []
    for number in range(2_000):
        history.append(done(3 * number, 3 * number + 4, "write", number))
        history.append(done(3 * number + 2, 3 * number + 5, "read", reply=number))
    verdict = check(history, Register(), steps_max=40_000)
    assert verdict.is_linearizable


calls = st.one_of(
    st.tuples(st.just("read")),
    st.tuples(st.just("write"), st.integers(0, 2)),
    st.tuples(st.just("compare"), st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.just("roll")),
)


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    call = draw(calls)
    invoked = draw(st.integers(0, 12))
    if draw(st.integers(0, 4)) == 0:
        return Operation("p", invoked, None, call, None)
    reply: Hashable = None
    if call[0] == "read":
        reply = draw(st.integers(0, 2))
    elif call[0] == "compare":
        reply = draw(st.booleans())
    return Operation("p", invoked, invoked + draw(st.integers(0, 6)), call, reply)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(st.lists(operations(), max_size=7))
def test_checker_says_the_same_as_trying_all_orders(history: list[Operation]) -> None:
    assert check(history, Register()).is_linearizable == is_linearizable_slowly(
        history, Register()
    )
