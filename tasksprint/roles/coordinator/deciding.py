"""The decisions of one coordinator's log: proposals, reads, and those who wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from tasksprint.consensus import Replica
from tasksprint.coordination.commands import Command
from tasksprint.coordination.schedule import Schedule
from tasksprint.errors import Refused
from tasksprint.ids import Slot
from tasksprint.roles.coordinator.applying import Applying
from tasksprint.roles.coordinator.decisions import Decided, Decisions
from tasksprint.roles.coordinator.durable import Durable
from tasksprint.roles.coordinator.ports import NotLeader
from tasksprint.roles.coordinator.roster import Roster
from tasksprint.roles.coordinator.turns import LoopTurns
from tasksprint.roles.coordinator.unheard import why_leaderless
from tasksprint.settings import Settings

__all__ = ["Deciding"]


class Deciding:
    """The log and the state machine behind it, as the other parts see them."""

    def __init__(
        self,
        settings: Settings,
        turns: LoopTurns,
        roster: Roster,
        replica: Replica,
        state: Applying,
        durable: Durable,
        decisions: Decisions,
    ) -> None:
        self._settings = settings
        self._turns = turns
        self._roster = roster
        self._replica = replica
        self._state = state
        self._durable = durable
        self._decisions = decisions
        # The end of the slots that former leaders decided: this leader must apply them first.
        self._current_end: Slot | None = None
        self._reads: dict[int, asyncio.Future[None]] = {}
        self._confirmed: list[tuple[int, Slot]] = []
        self._last_read = 0

    # --- what is known ---

    @property
    def schedule(self) -> Schedule | None:
        """The state machine; None: this replica isn't founded."""
        return self._state.schedule

    @property
    def is_current(self) -> bool:
        """Whether this replica leads, and its state holds all that former leaders decided."""
        return (
            self._current_end is not None
            and self._state.end_slot >= self._current_end
            and self._replica.is_leader
        )

    def require_schedule(self) -> Schedule:
        """Return the state machine, or raise `NotLeader` while it can't be relied on."""
        if self._turns.is_over:
            raise NotLeader(f"replica {self._roster.me} stops", None)
        schedule = self._state.schedule
        if schedule is None:
            raise self.not_leader()
        return schedule

    def not_leader(self) -> NotLeader:
        """Return the error with the leader's address, or with the reason why none is known."""
        leader, schedule = self._replica.leader, self._state.schedule
        if schedule is None or leader is None:
            silent_ms = 2 * self._settings.election_timeout_max_ms
            text = why_leaderless(self._roster, self._replica, schedule, silent_ms=silent_ms)
            return NotLeader(text, None)
        if leader != self._roster.me:
            words = f"replica {self._roster.me} is not the leader"
            return NotLeader(words, self._roster.address_of(leader))
        what = "again" if self.is_current else "and doesn't know yet all that was decided before"
        return NotLeader(f"replica {leader} leads {what}", None)

    # --- proposals ---

    async def decide(self, command: bytes) -> bytes:
        """Get a command chosen and applied, and return the state machine's reply.

        Raises:
            NotLeader: This replica doesn't lead, or stopped leading meanwhile; the
                command may have been chosen all the same. Repeat it: requests are
                counted once.
            Refused: It is too big for the log, or too many wait.
        """
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

        def decided(reply: bytes | None) -> None:
            if not future.done():
                future.set_result(reply)

        self.decide_then(command, None, decided)
        reply = await future
        if reply is None:
            raise self.not_leader()
        return reply

    def decide_then(self, command: bytes, decoded: Command | None, then: Decided) -> None:
        """Do as `decide` does, and call `then` at the end: for commands by the thousand.

        Args:
            decoded: The same command, where it was decoded already.

        Raises:
            NotLeader: This replica doesn't lead; `then` won't be called.
            Refused: It is too big for the log, or too many wait; the same.
        """
        self.require_schedule()
        limit, turns = self._settings.command_bytes_max, self._turns
        if len(command) > limit:
            raise Refused(
                f"a command of {len(command)} bytes, at most {limit} (command_bytes_max)",
                status=413,
            )
        if not turns.step(self._replica.propose, command, turns.now_ms()):
            if not self._replica.is_leader:
                raise self.not_leader()
            raise Refused(
                f"replica {self._roster.me} is busy: {self._settings.waiting_commands_max} "
                "commands wait (waiting_commands_max)",
                status=503,
            )
        self._decisions.wait(command, then, decoded)
        is_busy = turns.is_under_way or turns.is_due or self._durable.is_writing
        if is_busy or len(self._decisions) > 1:
            turns.wake()  # More may gather behind the ones under way.
        else:
            turns.take()

    def propose(self, command: bytes) -> None:
        """Offer a command of our own, here or to the leader; it may get lost."""
        if not self._replica.propose(command, self._turns.now_ms()):
            self._replica.forward(command)
        self._turns.wake()

    # --- reads ---

    async def confirm_read(self) -> Schedule:
        """Return the state machine once it holds every command acknowledged before this call."""
        self._last_read += 1
        read_id = self._last_read
        if not self._turns.step(self._replica.read, read_id, self._turns.now_ms()):
            raise self.not_leader()
        future = self._reads[read_id] = asyncio.get_running_loop().create_future()
        self._turns.wake()
        await future
        return self.require_schedule()

    def reads_confirmed(self, read_ids: Iterable[int]) -> None:
        """Take note that nothing was decided elsewhere: reads wait for the chosen entries here."""
        end_slot = self._state.known_end
        self._confirmed += [(read_id, end_slot) for read_id in read_ids]

    def reads_failed(self, read_ids: Iterable[int]) -> None:
        """Take note that this replica can't confirm them."""
        for read_id in list(read_ids):
            self._end_read(read_id, self.not_leader())

    def _end_read(self, read_id: int, error: NotLeader | None) -> None:
        future = self._reads.pop(read_id, None)
        if future is None or future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    # --- turns ---

    def look(self) -> None:
        """Note up to where a new leader has to apply the log; called in each turn."""
        if self._current_end is None and self._replica.is_leader and self._replica.is_established:
            self._current_end = self._replica.chosen_end

    def answer(self) -> None:
        """Tell the waiting handlers about newly applied entries."""
        end_slot = self._state.end_slot
        while self._confirmed and self._confirmed[0][1] <= end_slot:
            self._end_read(self._confirmed.pop(0)[0], None)
        self._decisions.tell()

    def leadership_changed(self) -> None:
        """Take note that this replica leads from now on, or doesn't any more."""
        self._current_end = None
        if not self._replica.is_leader:
            self._decisions.give_up()

    def release(self) -> None:
        """Tell everybody who waits to ask another replica."""
        self._decisions.give_up()
        self.reads_failed(self._reads)
