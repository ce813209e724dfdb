"""Entries of the log and rows of the mirror that wait for one coordinator's disk.

One write is under way at a time. Commits that gather behind it share the next transaction, in
the order in which they came. Then the messages that had to wait for the disk go out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from tasksprint.consensus import Envelope, LogEntry, Persist, ReadLog, Ready, Replica
from tasksprint.coordination.rows import Row
from tasksprint.ids import Slot
from tasksprint.roles.coordinator.applying import Applying
from tasksprint.roles.coordinator.log_tail import LogTail
from tasksprint.roles.coordinator.peers import Peers
from tasksprint.roles.coordinator.ports import Writer
from tasksprint.roles.coordinator.turns import NEVER_MS, LoopTurns
from tasksprint.roles.waiters import Waiters
from tasksprint.store.records import AppliedPoint, Commit

__all__ = ["Durable"]

# Mirror rows wait so long for company, or until they are so many: most are changed again
# by then. They follow from the log, which is on disk already, so a crash loses nothing.
_MIRROR_IDLE_MS = 50
_MIRROR_ROWS_MAX = 1_000
# The loop itself writes no more rows than these.
_ROWS_AT_ONCE_MAX = 100

_Persists = list[tuple[int, Persist, tuple[Envelope, ...]]]


class Durable:
    """The writes of one replica.

    Args:
        keep_from: Returns the first slot of the log that somebody needs.
    """

    def __init__(
        self,
        turns: LoopTurns,
        replica: Replica,
        state: Applying,
        peers: Peers,
        writer: Writer,
        tail: LogTail,
        *,
        keep_from: Callable[[int], Slot | None],
    ) -> None:
        self._turns = turns
        self._replica = replica
        self._state = state
        self._peers = peers
        self._writer = writer
        self._tail = tail
        self._keep_from = keep_from
        self.is_writing = False
        # Persists of Readys in order, with what goes out behind each; then rows of the mirror.
        self._persists: _Persists = []
        self._rows: list[Row] = []
        self._rows_since_ms = 0
        self._row_waiters: Waiters[None] = Waiters()

    def add(self, ready: Ready) -> None:
        """Take data that must be durable before something is said."""
        if ready.persist is not None:
            self._persists.append((ready.sequence, ready.persist, ready.send_after_persist))
        else:
            assert not ready.send_after_persist

    def add_rows(self, rows: Sequence[Row], now_ms: int) -> None:
        """Take rows that an applied entry changed."""
        if not self._rows:
            self._rows_since_ms = now_ms
        self._rows.extend(rows)

    def write(self, now_ms: int) -> None:
        """Write all that waits, in one transaction; behind the one under way, if there is one."""
        if self.is_writing:
            return
        rows_due = self._rows_are_due(now_ms)
        if not self._persists and not rows_due:
            return
        persists, self._persists = self._persists, []
        rows: list[Row] = []
        schedule, founding = self._state.schedule, self._replica.founding
        if rows_due:
            rows, self._rows = self._rows, rows
            self._row_waiters.wake_all()
        if self._rows or self._state.is_installing:
            schedule = None
        truncate_below = None
        if schedule is not None:
            truncate_below = self._tail.truncate_below(self._keep_from(now_ms))
        if truncate_below is not None:
            self._replica.truncated(truncate_below)
        commit = Commit(
            persists=tuple([persist for _, persist, _ in persists]),
            rows=tuple(rows),
            applied=None
            if schedule is None
            else AppliedPoint(schedule.applied_slot, schedule.digest),
            truncate_below=truncate_below,
            cluster=None if founding is None else founding.cluster,
        )
        self.is_writing = True
        self._writer.post(
            commit,
            lambda: self._written(persists),
            # A leader's heartbeats don't wait for its disk.
            may_block=not (self._replica.is_leader and self._replica.addresses)
            and len(rows) <= _ROWS_AT_ONCE_MAX,
        )

    def _written(self, persists: _Persists) -> None:
        self.is_writing = False
        turns, replica = self._turns, self._replica
        if turns.is_over:
            return
        try:
            for _, _, envelopes in persists:
                self._peers.send(envelopes)
            self._peers.streams.flush()
            now_ms = turns.now_ms()
            if persists:
                replica.persisted(persists[-1][0], now_ms)
            if self._persists or replica.has_work or self._rows_are_due(now_ms):
                turns.wake()
        except Exception as error:
            turns.fail(error)

    def _rows_are_due(self, now_ms: int) -> bool:
        rows = self._rows
        is_old = now_ms >= self._rows_since_ms + _MIRROR_IDLE_MS
        return bool(rows) and (is_old or len(rows) >= _MIRROR_ROWS_MAX)

    def due_ms(self, now_ms: int) -> int:
        """Return when `write` has something to do, unless something happens before."""
        if not self._rows or (self.is_writing and self._rows_are_due(now_ms)):
            return NEVER_MS
        return self._rows_since_ms + _MIRROR_IDLE_MS

    # --- the mirror ---

    def unwritten_rows(self, table: str, key_prefix: tuple[int | str, ...]) -> list[Row]:
        """Return the mirror's rows that aren't in any write so far, oldest first."""
        size = len(key_prefix)
        return [row for row in self._rows if row.table == table and row.key[:size] == key_prefix]

    async def handed_over(self) -> None:
        """Wait until the writer has all rows of the entries applied by now: then it reads them."""
        if self._rows:
            self._rows_since_ms = -_MIRROR_IDLE_MS  # Due, however young the clock is.
            self._turns.wake()
            await self._row_waiters.wait(None)

    def drop_rows(self) -> None:
        """Forget the waiting rows: a copy of the mirror has their contents."""
        self._rows.clear()
        self._row_waiters.wake_all()

    # --- the log ---

    def read_log(self, request: ReadLog) -> None:
        """Read entries back that a follower wants."""

        def done(future: asyncio.Future[tuple[LogEntry, ...]]) -> None:
            if error := future.exception():
                self._turns.fail(error)
                return
            try:
                self._replica.log_read(request, future.result(), self._turns.now_ms())
            except Exception as bug:
                self._turns.fail(bug)
            self._turns.wake()

        future = self._writer.run(
            lambda store: store.read_log(request.first_slot, request.end_slot, request.bytes_max)
        )
        future.add_done_callback(done)
