"""Ticks of the log: how much time has passed, and which clients have fallen silent.

Only the leader proposes them. It knows when it last heard each client; a new one gives all a
full span.
"""

from __future__ import annotations

from collections.abc import Callable

from tasksprint.consensus import Replica
from tasksprint.coordination.commands import SilentClient, Tick, encode_command
from tasksprint.ids import Incarnation
from tasksprint.roles.coordinator.agreement import Agreement
from tasksprint.roles.coordinator.decisions import Decisions
from tasksprint.roles.coordinator.ports import Log, Turns
from tasksprint.roles.coordinator.roster import Roster
from tasksprint.roles.coordinator.turns import NEVER_MS
from tasksprint.settings import Settings

__all__ = ["Ticks"]


class Ticks:
    """The ticks that one coordinator proposes.

    Args:
        ticked: Called for each.
        distrusts_clients: A part of the only disk was lost. The clients may run tasks of that
            lost time, and numbers of jobs and attempts are given a second time. So the first
            tick sends all clients to join again.
    """

    def __init__(
        self,
        settings: Settings,
        turns: Turns,
        log: Log,
        roster: Roster,
        replica: Replica,
        decisions: Decisions,
        agreement: Agreement,
        wall_ms: Callable[[], int],
        ticked: Callable[[], None],
        *,
        distrusts_clients: bool,
    ) -> None:
        self._settings = settings
        self._turns = turns
        self._log = log
        self._roster = roster
        self._replica = replica
        self._decisions = decisions
        self._agreement = agreement
        self._wall_ms = wall_ms
        self._ticked = ticked
        self._distrusts_clients = distrusts_clients
        # Log time at which each client's process was last heard; only the leader's counts.
        self._last_heard: dict[Incarnation, int] = {}
        self._last_ms = 0
        self._due_ms = 0
        self._is_waiting = False  # for the last one to be applied

    @property
    def log_time_ms(self) -> int:
        """The time of the log, as far as it is applied here."""
        schedule = self._log.schedule
        return 0 if schedule is None else schedule.log_time_ms

    def heard(self, incarnation: Incarnation) -> None:
        """Note that a client was heard from, for the next tick."""
        if self._log.is_current:  # Else log time here is an older one.
            self._last_heard[incarnation] = self.log_time_ms

    def begin(self) -> None:
        """Take note that this replica leads from now on.

        Every client gets a full span: the former leader alone knew when each one spoke.
        """
        self._last_heard.clear()
        self._last_ms = self._turns.now_ms()
        self._is_waiting = False

    def turn(self, now_ms: int) -> None:
        """Propose one if it is due; called in each turn of the loop."""
        if now_ms >= self._due_ms:
            self.tick_now()

    def find_due_ms(self) -> int:
        """Return when the next one is due."""
        due_ms = NEVER_MS
        if self._log.is_current and not self._is_waiting:
            due_ms = self._last_ms
            # (Else at once: before schedulers give numbers a second time.)
            if not self._distrusts_clients:
                schedule = self._log.schedule
                assert schedule is not None
                span_ms = self._settings.tick_interval_ms
                if (timer_ms := schedule.next_timer_ms) is not None:
                    span_ms = min(span_ms, max(timer_ms - schedule.log_time_ms, 1))
                due_ms += span_ms
        self._due_ms = due_ms
        return due_ms

    def tick_now(self) -> None:
        """Propose a tick, unless the one before hasn't been applied.

        It gives what is proposed next the right time: a job may take less than a tick.
        """
        if not self._log.is_current or self._is_waiting:
            return
        now_ms, schedule = self._turns.now_ms(), self._log.schedule
        assert schedule is not None
        command = self._make(now_ms)
        if self._turns.step(self._replica.propose, command, now_ms):
            schedule.take_followed()  # A refused tick tells nobody: the next one does.
            self._distrusts_clients = False
            self._last_ms = now_ms
            self._is_waiting = True
            self._decisions.wait(command, self._applied)
            self._ticked()

    def _make(self, now_ms: int) -> bytes:
        """Say how much time has passed, and which clients have been silent for too long."""
        schedule = self._log.schedule
        assert schedule is not None
        rules, log_time_ms = schedule.rules, schedule.log_time_ms
        silent: list[SilentClient] = []
        before, self._last_heard = self._last_heard, {}  # without those that are gone
        distrusts_all = self._distrusts_clients and not self._roster.others()
        for cid, life, request in schedule.living_clients():
            heard_ms = self._last_heard[life] = before.get(life, log_time_ms)
            if distrusts_all or log_time_ms - heard_ms > rules.liveness_span_ms:
                silent.append(SilentClient(cid, life, request))
        elapsed_ms = min(now_ms - self._last_ms, rules.tick_elapsed_max_ms)
        claim, followed = self._agreement.claim, schedule.followed
        return encode_command(Tick(elapsed_ms, self._wall_ms(), tuple(silent), claim, followed))

    def _applied(self, reply: bytes | None) -> None:
        self._is_waiting = False
        self._turns.wake()  # The timer was set without the next tick.
