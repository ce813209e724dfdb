"""The state machine of one replica, and the chosen entries that wait for it.

Applies entries in order, for a bounded time in each turn. Doesn't know the consequences of an
entry: its maker is told of each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from tasksprint.consensus import Chosen
from tasksprint.coordination.schedule import Applied, Schedule
from tasksprint.ids import ReplicaId, Slot
from tasksprint.roles.coordinator.ports import Turns

__all__ = ["Applying"]

# Time for applying entries in one turn; then heartbeats and requests get theirs.
_APPLY_MS_MAX = 20


class Applying:
    """The state machine, and the entries that it has to apply yet.

    Args:
        schedule: None: this replica isn't founded.
        on_applied: Takes an entry, its outcome, and the time.
    """

    def __init__(
        self,
        turns: Turns,
        schedule: Schedule | None,
        *,
        on_applied: Callable[[Chosen, Applied, int], None],
    ) -> None:
        self.schedule = schedule
        self.is_installing = False  # A copy of another one takes its place.
        self._turns = turns
        self._on_applied = on_applied
        self._waiting: deque[Chosen] = deque()

    @property
    def end_slot(self) -> Slot:
        """The first slot that isn't applied."""
        return Slot(1 if self.schedule is None else self.schedule.applied_slot + 1)

    @property
    def known_end(self) -> Slot:
        """The first slot that neither is applied nor waits for it."""
        return Slot(self._waiting[-1].slot + 1) if self._waiting else self.end_slot

    def add(self, chosen: Iterable[Chosen]) -> None:
        """Take entries that are to be applied next."""
        self._waiting.extend(chosen)

    def apply_some(self, now_ms: int) -> None:
        """Apply what there is, for a bounded time."""
        if not self._waiting or self.is_installing:
            return
        schedule = self.schedule
        assert schedule is not None
        while self._waiting:
            chosen = self._waiting.popleft()
            applied = schedule.apply(
                chosen.slot,
                chosen.commands,
                members=_voters_of(chosen),
                is_alone=chosen.is_alone,
            )
            self._on_applied(chosen, applied, now_ms)
            if self._turns.now_ms() - now_ms > _APPLY_MS_MAX:
                self._turns.wake()
                return

    def installed(self, schedule: Schedule) -> None:
        """Go on with the state of another replica."""
        self.schedule = schedule
        self.is_installing = False
        end_slot = self.end_slot
        self._waiting = deque(chosen for chosen in self._waiting if chosen.slot >= end_slot)


def _voters_of(chosen: Chosen) -> tuple[ReplicaId, ...] | None:
    """Return who votes by an entry of the log; None: it doesn't say."""
    if chosen.membership is None:
        return None
    return tuple([member.replica for member in chosen.membership.voters])
