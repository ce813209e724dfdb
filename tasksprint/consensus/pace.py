"""Whether this replica's disk keeps up, and whether the replica should lead.

A leader with a slow disk does no harm while the others make a quorum without it. When one of
them fails, each command waits for that disk. So the leader hands over while it can. A disk
counts as slow only if it is far slower than a quorum of the others, for the same entries. If
all disks are slow, another leader wouldn't be better.

A replica that handed over gives others the precedence in elections for a while. This while
grows each time. If nobody leads for long, the replica stands all the same: a slow leader is
better than none. If it is elected like that, it doesn't hand over for the same while.

Knows writes and times, nothing of ballots.
"""

from __future__ import annotations

from tasksprint.consensus.learner import Learner
from tasksprint.consensus.outbox import Outbox
from tasksprint.settings import Settings

__all__ = ["Pace"]

# A write counts as slow on two conditions: it takes this share of `slow_write_ms` at least,
_SLOW_SHARE = 4
# and a quorum of the others needed less than this share of its time.
_QUORUM_SHARE = 3
# After so many election timeouts without a leader, one with a slow disk will do.
_LEADERLESS_TIMEOUTS = 3


class Pace:
    """How one replica's writes compare with the others', and how long it holds back."""

    def __init__(
        self, *, outbox: Outbox, learner: Learner, settings: Settings, now_ms: int
    ) -> None:
        self._outbox = outbox
        self._learner = learner
        self._settings = settings
        self._slow_ms = max(settings.slow_write_ms // _SLOW_SHARE, 1)
        self._looked_ms = now_ms
        self._behind_ms = 0  # time that a quorum was ahead of us, less the time that it wasn't
        # By sequence: the time of a quorum of the others for a write that we haven't done.
        self._quorum_ms: dict[int, int] = {}
        self.handovers = 0  # since the start
        self._pause_ms = 0  # time to hold back after a slow write, or a handover
        self._holds_back_until_ms = now_ms
        self._left_ms = now_ms  # when it last led
        self._stays_until_ms = now_ms

    # --- leading ---

    def take_office(self, now_ms: int) -> None:
        """Begin to lead; if it was holding back, nobody else would lead: stay for some time."""
        self._looked_ms = now_ms
        self._behind_ms = 0
        if now_ms < self._holds_back_until_ms:
            self._stays_until_ms = now_ms + self._pause_ms

    def look(self, now_ms: int) -> str | None:
        """Look at the write under way, with each heartbeat of a leader.

        Returns:
            Why the leader should hand over; None: it needn't.
        """
        # A process that was stopped for a minute hasn't got a slow disk.
        passed_ms = min(now_ms - self._looked_ms, 2 * self._settings.heartbeat_interval_ms)
        self._looked_ms = now_ms
        age_ms, quorum_ms = self._compare(now_ms)
        if age_ms < max(self._slow_ms, _QUORUM_SHARE * quorum_ms):
            self._behind_ms = max(self._behind_ms - passed_ms, 0)
            return None
        self._behind_ms += passed_ms
        if self._behind_ms < self._settings.slow_write_ms or not self.may_hand_over(now_ms):
            return None
        return (
            f"its disk is slow: a write has taken {age_ms} ms so far, "
            f"the others needed {quorum_ms} ms"
        )

    def _compare(self, now_ms: int) -> tuple[int, int]:
        """Return the age of our oldest write, and the time that a quorum needed for it, in ms.

        Only writes count that the others have done without us. (0, 0): there is none.
        """
        before, self._quorum_ms = self._quorum_ms, {}
        first: tuple[int, int] | None = None
        for write in self._outbox.own_writes():
            if write.own_slots[-1] >= self._learner.chosen_end:
                break
            age_ms = now_ms - write.handed_ms
            quorum_ms = self._quorum_ms[write.sequence] = before.get(write.sequence, age_ms)
            first = first or (age_ms, quorum_ms)
        return first or (0, 0)

    def may_hand_over(self, now_ms: int) -> bool:
        """Whether somebody else might lead; False for a while after nobody else would."""
        return now_ms >= self._stays_until_ms

    def hand_over(self, now_ms: int) -> None:
        """Hold back, for longer than the last time: this leader resigns."""
        settings = self._settings
        self.handovers += 1
        if now_ms - self._holds_back_until_ms >= settings.hold_back_max_ms:
            self._pause_ms = 0  # That was long ago.
        self._pause_ms = min(
            max(2 * self._pause_ms, settings.hold_back_min_ms), settings.hold_back_max_ms
        )
        self._left_ms = now_ms
        self.hold_back(now_ms)

    # --- standing ---

    def hold_back(self, now_ms: int) -> None:
        """Give others the precedence for some time from now on."""
        pause_ms = max(self._pause_ms, self._settings.hold_back_min_ms)
        self._pause_ms = pause_ms
        self._holds_back_until_ms = max(self._holds_back_until_ms, now_ms + pause_ms)

    def wrote(self, time_ms: int, now_ms: int) -> None:
        """Take note of the time that a write took."""
        if time_ms >= self._slow_ms and now_ms < self._holds_back_until_ms:
            self.hold_back(now_ms)  # Still slow.

    def holds_back(self, now_ms: int, *, heard_ms: int) -> bool:
        """Whether to leave an election to the others.

        Args:
            heard_ms: When a leader was last heard.
        """
        hangs = self._outbox.oldest_age_ms(now_ms) >= self._settings.slow_write_ms
        if now_ms >= self._holds_back_until_ms and not hangs:
            return False
        leaderless_ms = _LEADERLESS_TIMEOUTS * self._settings.election_timeout_max_ms
        return now_ms - max(heard_ms, self._left_ms) < leaderless_ms
