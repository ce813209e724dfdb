"""What the tests of broken builds share: which rules are to catch one, and which one did.

A build is caught by the first rule that any of its first seeds breaks. The seed that once
did it is tried first: with another simulator it may be another one, which then takes longer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tasksprint.consensus.leadership import Leadership
from tasksprint.consensus.voters import Voters
from tests.simulation.world import Outcome

__all__ = ["EXPECTED", "confirm_at_once", "expects", "first_rule", "one_member_counts_twice"]

# All rules of which some test expects that they catch something.
EXPECTED: set[str] = set()


def expects(*rules: str) -> frozenset[str]:
    """Note the rules of which one is to catch a build, and return them."""
    EXPECTED.update(rules)
    return frozenset(rules)


def first_rule(run: Callable[[int], Outcome], seeds: int, *, first: int = 0) -> str | None:
    """Return the rule that the first seed with a violation breaks; None: all are clean.

    Args:
        run: Runs a seed.
        seeds: How many there are.
        first: The one to begin with.
    """
    for seed in [*range(first, seeds), *range(first)]:
        outcome = run(seed)
        if outcome.violation is not None:
            return outcome.violation.rule
    return None


# --- broken methods, for replicas alone and for those in coordinators ---


def one_member_counts_twice(self: Voters, voters: set[Any]) -> bool:
    """Take a vote less than a majority has."""
    return len(voters) + 1 >= self.quorum_size


def confirm_at_once(self: Leadership) -> None:
    """Answer reads without asking a quorum."""
    while self._reads:
        self._outbox.confirmed_reads += self._reads.popleft()[1]
