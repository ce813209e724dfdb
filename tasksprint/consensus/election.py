"""When to ask for a new leader, and what to answer a replica that asks.

Knows when the leader was heard last, and the timers; knows nothing of the log. Raising the
ballot is the proposer's business. This module only decides that it is time to.

Why a replica asks first (`Canvass`): raising a ballot dethrones the leader. A replica
that merely lost its own connection would do so again and again. Replicas that still hear
the leader answer that no new one is welcome.
"""

from __future__ import annotations

from random import Random

from tasksprint.consensus.ballot import NO_BALLOT, Ballot
from tasksprint.ids import ReplicaId
from tasksprint.settings import Settings

__all__ = ["Election"]

# Several replicas may lose the same leader. They canvass up to this far apart, not to collide.
_SPREAD_MS = 20


class Election:
    """The leader as one replica sees it, and the timer of that replica."""

    def __init__(self, settings: Settings, random: Random, now_ms: int) -> None:
        self._settings = settings
        self._random = random
        self.leader: ReplicaId | None = None
        self.ballot = NO_BALLOT  # highest ballot under which a leader was heard
        self.round = 0  # highest round seen anywhere
        self.heard_ms = now_ms
        self.canvass: int | None = None  # number of the one under way
        self.welcomed_by: set[ReplicaId] = set()
        self.count = 0
        self.cause = ""
        self._lost_cause = "knows no leader"
        self._span_ms = self._draw_span()
        # A cluster that starts as a whole shouldn't wait out the long timeout. A replica
        # that joins a working cluster hears its leader before this.
        shortest = 2 * settings.heartbeat_interval_ms
        self.deadline_ms = now_ms + random.randint(
            shortest, shortest + settings.election_timeout_min_ms
        )

    def hear(self, leader: ReplicaId, ballot: Ballot, now_ms: int) -> None:
        """Take note of a sign of life of the leader."""
        self.leader = leader
        self.ballot = ballot
        self.heard_ms = now_ms
        self.deadline_ms = now_ms + self._span_ms
        self.canvass = None

    def hears_leader(self, now_ms: int) -> bool:
        """Whether a leader was heard recently; then a new one isn't welcome."""
        return (
            self.leader is not None
            and now_ms - self.heard_ms < self._settings.election_timeout_min_ms
        )

    def lose_leader(self, cause: str) -> None:
        """Forget the leader; the timer runs on.

        Args:
            cause: Why, for the election that may follow.
        """
        self.leader = None
        self._lost_cause = cause

    def reason(self) -> str:
        """Return why it is time for an election, when the timer says so."""
        if self.leader is not None:
            return f"has not heard replica {self.leader} for an election timeout"
        return self._lost_cause

    def see_round(self, number: int) -> None:
        """Remember that somebody used this round: a ballot of ours must be above."""
        if number > self.round:
            self.round = number

    def wait(self, now_ms: int) -> None:
        """Give others a full random timeout."""
        self.wait_longer(now_ms)
        self.canvass = None

    def wait_longer(self, now_ms: int) -> None:
        """Put the timer off by a full random timeout; a canvass under way goes on."""
        self._span_ms = self._draw_span()
        self.deadline_ms = now_ms + self._span_ms

    def wait_briefly(self, now_ms: int) -> None:
        """Give somebody else's attempt, or an answer, some time before asking (again)."""
        interval = self._settings.resend_interval_ms
        self.deadline_ms = now_ms + self._random.randint(interval, 2 * interval)

    def hurry(self, now_ms: int) -> None:
        """Ask almost at once: the leader's connection broke."""
        self.deadline_ms = now_ms + self._random.randint(0, _SPREAD_MS)

    def start_canvass(self, me: ReplicaId, now_ms: int) -> int:
        """Start asking, and return the number of the question."""
        if self.leader is not None:
            self.lose_leader(self.reason())
        self.canvass = self._random.getrandbits(48)
        self.welcomed_by = {me}
        self.wait_briefly(now_ms)
        return self.canvass

    def stand(self, cause: str) -> None:
        """Count a candidacy of this replica."""
        self.canvass = None
        self.leader = None
        self._lost_cause = cause
        self.cause = cause
        self.count += 1

    def _draw_span(self) -> int:
        settings = self._settings
        return self._random.randint(
            settings.election_timeout_min_ms, settings.election_timeout_max_ms
        )
