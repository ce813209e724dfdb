"""Which part of the log is kept behind the mirror."""

from __future__ import annotations

from itertools import pairwise

from tasksprint.ids import Slot
from tasksprint.roles.coordinator.log_tail import LogTail
from tasksprint.settings import Settings


def tail(slots: int, size: int = 10**9, *, first: int = 1, end: int = 1) -> LogTail:
    settings = Settings(log_tail_slots=slots, log_tail_bytes_max=size)
    return LogTail(settings, Slot(first), Slot(end))


def run(kept: LogTail, first: int, end: int, size: int = 100) -> list[int]:
    found = []
    for slot in range(first, end):
        kept.applied(Slot(slot), size)
        below = kept.truncate_below()
        if below is not None:
            found.append(int(below))
    return found


def test_nothing_goes_until_there_is_more_than_the_tail() -> None:
    assert run(tail(100), 1, 101) == []


def test_at_least_the_tail_stays_and_at_most_a_piece_more() -> None:
    kept = tail(160)
    for slot in range(1, 2_000):
        kept.applied(Slot(slot), 1)
        below = kept.truncate_below()
        if below is not None:
            assert 160 <= slot + 1 - below < 160 + 10


def test_large_entries_are_bounded_by_bytes() -> None:
    kept = tail(1_000, 160_000)
    below = run(kept, 1, 101, size=10_000)
    assert below[-1] == 101 - 16


def test_log_of_a_former_life_goes_in_pieces_once_a_new_tail_is_there() -> None:
    kept = tail(1_600, first=1, end=1_601)
    assert kept.truncate_below() is None
    found = run(kept, 1_601, 3_201)
    assert found[0] == 101 and found[-1] == 1_601
    assert all(later - earlier == 100 for earlier, later in pairwise(found))


def test_log_that_somebody_needs_stays() -> None:
    kept = tail(10)
    for slot in range(1, 101):
        kept.applied(Slot(slot), 1)
    assert kept.truncate_below(Slot(40)) == 40
    assert kept.truncate_below(Slot(40)) is None
    assert kept.truncate_below() == 91


def test_log_that_is_too_long_when_it_is_found_goes_at_once() -> None:
    assert tail(100, first=1, end=1_001).truncate_below() == 901


def test_copied_state_begins_a_new_tail() -> None:
    kept = tail(10)
    run(kept, 1, 50)
    kept.reset(Slot(500), Slot(500))
    assert kept.truncate_below() is None
    assert run(kept, 500, 520)[-1] == 510
