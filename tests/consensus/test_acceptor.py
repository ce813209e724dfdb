"""The acceptor against a slow, obvious one that keeps everything that ever happened."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasksprint.consensus import NO_BALLOT, Ballot, LogEntry, Nack, Promise
from tasksprint.consensus.acceptor import Acceptor
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import ReplicaId, Slot
from tests.consensus.helpers import ballot, entry


class _ObviousAcceptor:
    """Answers from the history of what it promised and accepted, searched each time."""

    def __init__(self) -> None:
        self._promises: list[Ballot] = [NO_BALLOT]
        self._accepted: list[LogEntry] = []

    def promise(self, ballot: Ballot, first_slot: Slot) -> Promise | Nack:
        highest = max([*self._promises, *(entry.ballot for entry in self._accepted)])
        if ballot < highest:
            return Nack(ballot, highest)
        self._promises.append(ballot)
        slots = sorted({entry.slot for entry in self._accepted if entry.slot >= first_slot})
        latest = [[e for e in self._accepted if e.slot == slot][-1] for slot in slots]
        return Promise(ballot, first_slot, tuple(latest))

    def may_accept(self, ballot: Ballot) -> bool:
        return ballot >= max([*self._promises, *(entry.ballot for entry in self._accepted)])

    def accept(self, entry: LogEntry) -> None:
        self._accepted.append(entry)


_ballots = st.builds(
    Ballot, st.integers(1, 6), st.integers(1, 3).map(lambda number: ReplicaId(number))
)
_slots = st.integers(1, 5).map(lambda number: Slot(number))
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("promise"), _ballots, _slots),
        st.tuples(st.just("accept"), _ballots, _slots),
        st.tuples(st.just("restart"), _ballots, _slots),
    ),
    max_size=40,
)


@pytest.mark.slow
@given(_steps)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_acceptor_answers_as_the_obvious_one(steps: list[tuple[str, Ballot, Slot]]) -> None:
    """Also through restarts from exactly what `take_writes` handed out."""
    acceptor = Acceptor(promised=NO_BALLOT, entries=(), slots_max=100, bytes_max=10_000)
    obvious = _ObviousAcceptor()
    durable_promise = NO_BALLOT
    durable: dict[Slot, LogEntry] = {}
    for kind, number, slot in steps:
        if kind == "promise":
            assert acceptor.promise(number, slot) == obvious.promise(number, slot)
        elif kind == "accept":
            is_allowed = number >= acceptor.promised
            assert is_allowed == obvious.may_accept(number)
            if is_allowed:
                # One value for each (ballot, slot), as proposers guarantee.
                value = f"{slot} under {number}".encode()
                acceptor.accept(slot, number, value)
                obvious.accept(LogEntry(slot, number, value))
        promised, entries = acceptor.take_writes()
        durable_promise = durable_promise if promised is None else promised
        durable.update({entry.slot: entry for entry in entries})
        if kind == "restart":
            acceptor = Acceptor(
                promised=durable_promise, entries=durable.values(), slots_max=100, bytes_max=10_000
            )
        assert acceptor.take_writes() == (None, ())
        acceptor.check(Slot(1))


def _acceptor(*, slots_max: int = 100) -> Acceptor:
    return Acceptor(promised=NO_BALLOT, entries=(), slots_max=slots_max, bytes_max=1_000)


def test_second_value_under_one_ballot_is_refused() -> None:
    acceptor = _acceptor()
    acceptor.accept(Slot(4), ballot(2, 3), b"one")
    with pytest.raises(RemoteProtocolError) as caught:
        acceptor.accept(Slot(4), ballot(2, 3), b"two")
    assert str(caught.value) == (
        "slot 4 carries two values under ballot 2.3; replica 3 forgot what it proposed"
    )


def test_recovered_entry_implies_its_promise() -> None:
    acceptor = Acceptor(
        promised=NO_BALLOT, entries=[entry(1, 3, 2, "a")], slots_max=9, bytes_max=99
    )
    assert acceptor.promise(ballot(3, 1), Slot(1)) == Nack(ballot(3, 1), ballot(3, 2))


def test_full_acceptor_takes_the_first_open_slot_all_the_same() -> None:
    """1. It holds slots 2 and 3, and has room for no more. 2. Slot 1 arrives: without it
    nothing would ever be chosen and closed."""
    acceptor = _acceptor(slots_max=2)
    for slot in (2, 3):
        assert acceptor.has_room(Slot(slot), chosen_end=Slot(1))
        acceptor.accept(Slot(slot), ballot(1, 1), b"x")
    assert not acceptor.has_room(Slot(4), chosen_end=Slot(1))
    assert acceptor.has_room(Slot(3), chosen_end=Slot(1))  # a repetition
    assert acceptor.has_room(Slot(1), chosen_end=Slot(1))


def test_chosen_entry_of_a_lower_ballot_leaves_the_accepted_one() -> None:
    acceptor = _acceptor()
    acceptor.accept(Slot(1), ballot(5, 1), b"v")
    acceptor.take_writes()
    kept = acceptor.close_with(LogEntry(Slot(1), ballot(2, 2), b"v"))
    assert kept.ballot == ballot(5, 1)
    assert acceptor.take_writes() == (None, ())


def test_chosen_entry_replaces_one_that_was_not_chosen() -> None:
    acceptor = _acceptor()
    acceptor.accept(Slot(1), ballot(1, 1), b"old")
    acceptor.take_writes()
    chosen = LogEntry(Slot(1), ballot(2, 2), b"new")
    assert acceptor.close_with(chosen) == chosen
    assert acceptor.take_writes() == (None, (chosen,))
    assert acceptor.open == {}
