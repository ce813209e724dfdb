"""The rules are raised once every member has newer ones, and has had them for a while."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasksprint.hosting.raising import Raising, Said, lacking, version_of_all
from tasksprint.ids import ReplicaId
from tasksprint.release import SILENT, Speaks

A, B, C = ReplicaId(1), ReplicaId(2), ReplicaId(3)
SETTLE_MS = 1_000


def _can(first: int, last: int) -> Speaks:
    return replace(SILENT, release=f"with {last}", rules=(first, last))


NEW, OLD = _can(1, 2), SILENT


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ({}, None),
        ({A: NEW}, 2),
        ({A: NEW, B: NEW, C: NEW}, 2),
        ({A: NEW, B: OLD, C: NEW}, 1),
        ({A: NEW, B: NEW, C: None}, None),
        ({A: _can(2, 4), B: _can(1, 3), C: _can(3, 3)}, 3),
        ({A: _can(1, 2), B: _can(3, 4)}, None),
    ],
)
def test_version_is_the_newest_that_every_member_has(said: Said, version: int | None) -> None:
    assert version_of_all(said) == version


def test_members_that_lack_it_are_named() -> None:
    assert lacking({C: None, A: NEW, B: OLD}, 2) == {
        B: "replica 2 runs release 0.2.0 or older, which has the rules 1 to 1",
        C: "replica 3 isn't connected with the leader",
    }
    assert lacking({A: _can(2, 3)}, 1) == {
        A: "replica 1 runs release with 3, which has the rules 2 to 3"
    }
    assert lacking({A: NEW, B: NEW}, 2) == {}


def test_rules_are_raised_after_nothing_has_changed_for_a_while() -> None:
    raising = Raising(SETTLE_MS)
    said = {A: NEW, B: NEW}
    assert raising.look(500, 1, said) is None
    assert raising.look(1_499, 1, said) is None
    assert raising.look(1_500, 1, said) == 2
    assert raising.look(9_000, 2, said) is None  # They are raised.


@pytest.mark.parametrize("between", [{A: NEW, B: OLD}, {A: NEW, B: None}, {A: NEW}])
def test_time_begins_anew_when_something_changes(between: Said) -> None:
    """A member went back to the former release, was away, or has been added since."""
    raising = Raising(SETTLE_MS)
    said = {A: NEW, B: NEW}
    assert raising.look(0, 1, said) is None
    assert raising.look(600, 1, between) is None
    assert raising.look(700, 1, said) is None
    assert raising.look(1_699, 1, said) is None
    assert raising.look(1_700, 1, said) == 2


@pytest.mark.parametrize("said", [{A: NEW, B: OLD}, {A: NEW, B: None}, {A: NEW, B: _can(3, 4)}])
def test_rules_are_never_raised_while_a_member_lacks_them(said: Said) -> None:
    raising = Raising(SETTLE_MS)
    assert raising.look(0, 1, said) is None
    assert raising.look(100_000, 1, said) is None
