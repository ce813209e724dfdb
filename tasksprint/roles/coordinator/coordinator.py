"""One coordinator: a replica of the log, the state machine behind it, and the schedulers on it.

Everything happens in turns of one asyncio loop. What arrives (frames of peers,
requests, answers of schedulers, finished writes) is handed to the cores at once and
marks the loop; the turn that follows carries out what all of it together asks for:
messages, one write, entries to apply. So commands that arrive together share an
entry, a write and a round of messages, and nothing waits for a timer.

This is the only module that knows both Paxos and tasks.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable

from tasksprint.consensus import (
    Chosen,
    Envelope,
    LogEntry,
    Mark,
    Message,
    Persist,
    ReadLog,
    Ready,
    Replica,
)
from tasksprint.consensus import codec as replica_codec
from tasksprint.coordination.commands import Command, SilentClient, Tick, encode_command
from tasksprint.coordination.rows import Mirror, Row
from tasksprint.coordination.schedule import Applied, Event, Schedule
from tasksprint.errors import Refused, StoreDamaged
from tasksprint.ids import ClientId, Incarnation, JobId, ReplicaId, Slot
from tasksprint.net.router import Router
from tasksprint.roles.coordinator.agreement import Agreement
from tasksprint.roles.coordinator.archives import Archives
from tasksprint.roles.coordinator.client_paths import ClientPaths
from tasksprint.roles.coordinator.copies import MirrorFetcher, MirrorPaths
from tasksprint.roles.coordinator.decisions import Decided, Decisions
from tasksprint.roles.coordinator.disk_space import DiskSpace
from tasksprint.roles.coordinator.job_notes import JobNotes
from tasksprint.roles.coordinator.job_paths import JobPaths
from tasksprint.roles.coordinator.log_tail import LogTail
from tasksprint.roles.coordinator.members import MemberChanges, reason_to_stop, voters_of
from tasksprint.roles.coordinator.operator_paths import OperatorPaths
from tasksprint.roles.coordinator.paths import Paths
from tasksprint.roles.coordinator.peers import Peers
from tasksprint.roles.coordinator.ports import NotLeader, Writer
from tasksprint.roles.coordinator.roster import KnownRoster
from tasksprint.roles.coordinator.runners import Runners
from tasksprint.roles.coordinator.scheduler_runner import RunnerPorts
from tasksprint.roles.coordinator.standing import Standing
from tasksprint.roles.coordinator.surroundings import REAL, CoordinatorOptions, Surroundings
from tasksprint.roles.coordinator.told import ToldHere
from tasksprint.roles.coordinator.unheard import why_leaderless
from tasksprint.roles.own_tasks import OwnTasks
from tasksprint.roles.steps import Step
from tasksprint.roles.waiters import Waiters
from tasksprint.settings import RULES_BY_VERSION, Settings
from tasksprint.store.records import AppliedPoint, Commit
from tasksprint.store.replica_store import ReplicaStore

__all__ = ["Coordinator"]

_log = logging.getLogger("tasksprint.coordinator")

# Time for applying entries in one turn; then heartbeats and requests get theirs.
_APPLY_MS_MAX = 20
# Mirror rows wait so long for company, or until they are so many: most are changed again
# by then. They follow from the log, which is on disk already, so a crash loses nothing.
_MIRROR_IDLE_MS = 50
_MIRROR_ROWS_MAX = 1_000
# The loop itself writes no more rows than these.
_ROWS_AT_ONCE_MAX = 100
_NEVER_MS = 1 << 62


class Coordinator:
    """The wiring of one coordinator process; `roles/coordinator/process.py` starts it."""

    def __init__(
        self,
        options: CoordinatorOptions,
        settings: Settings,
        store: ReplicaStore,
        surroundings: Surroundings = REAL,
    ) -> None:
        self.options = options
        self.settings = settings
        self.surroundings = surroundings
        self.now_ms = surroundings.monotonic_ms
        self.random = surroundings.new_random()
        self.loop = asyncio.get_running_loop()
        self.stopped: asyncio.Future[None] = self.loop.create_future()
        self.step = Step(self.fail)
        self.tasks = OwnTasks(self.fail)
        self.background, self.spawn = self.tasks.background, self.tasks.spawn
        self.http = surroundings.new_http(options.key, settings)
        self._note_damage = store.note_damage
        # Older entries than these are read back when a follower wants them.
        after_slot = max(store.applied.slot - settings.log_window_slots, 0)
        recovery = store.recover(after_slot=after_slot)
        self.replica = Replica(
            me=options.me,
            address=options.advertise,
            peers=options.peers,
            is_joining=bool(options.join),
            recovered=recovery.consensus,
            settings=settings,
            random=self.random,
            now_ms=self.now_ms(),
        )
        self.roster = KnownRoster(self.replica, options)
        self._waiting = Decisions()
        self.schedule: Schedule | None = None
        if self.replica.founding is not None:
            self.schedule = self._new_schedule(store if recovery.applied.slot else None)
        self._tail = LogTail(settings, recovery.consensus.log_start, self._applied_end())
        # From here on the store is the writer's.
        self.writer: Writer = surroundings.new_writer(
            store, on_failure=self.fail, name="log"
        )
        self.peers = Peers(options.data_dir, settings, self, self.roster, self.replica)
        self.streams = surroundings.new_streams(
            options.me,
            {peer: address for peer, address in options.peers.items() if peer != options.me},
            options.key,
            settings,
            self.random,
            on_frame=self._frame_arrived,
            on_frames_end=self._frames_ended,
            on_connected=self.peers.connected,
            on_disconnected=self.peers.disconnected,
            address=options.advertise,
            life=self.replica.lives.own,
            on_knock=self.peers.knocks,
            on_twin=self.peers.refused,
        )
        self.archives = Archives(
            options.data_dir / "programs",
            settings,
            self,
            self,
            self.roster,
            self.writer,
            self.http,
            surroundings,
            why_not_level=lambda: self.standing.why_not_level(),
        )
        self.copies = MirrorPaths(
            settings, self, self.replica, self, self.writer, self.random
        )
        self.copying = MirrorFetcher(
            settings,
            self,
            self,
            self.roster,
            self.replica,
            self.writer,
            self.http,
            self.random,
            install=self.install_copy,
        )
        self.runners = Runners(
            RunnerPorts(
                settings,
                self,
                self,
                self.roster,
                self,
                self.replica,
                self.writer,
                self.archives,
                surroundings.start_scheduler,
            )
        )
        # Log time at which each client's process was last heard; only the leader's counts.
        self._last_heard: dict[Incarnation, int] = {}
        # What clients run may be of a future that was lost with a part of the only disk, and
        # numbers of jobs and attempts are given anew: the first tick sends all to join again.
        self._distrusts_clients = store.doubts is not None
        self.members = MemberChanges(
            options, self, self, self.replica, self.streams, self.http, self.archives
        )
        self.agreement = Agreement(self, self.roster, self.http)
        self.disk_space = DiskSpace(
            options.data_dir, settings, self, self.roster, self.replica, self.http
        )
        self.standing = Standing(
            options,
            surroundings,
            self,
            self.roster,
            self.replica,
            self.writer,
            self.runners,
            self.copying,
            self.disk_space.free,
        )
        self._was_leader = False
        # What must be applied before this leader knows all that former ones decided.
        self._current_end: Slot | None = None
        self._is_over = False  # It has failed or is closed: it says and writes nothing more.
        self._last_tick_ms = 0
        self._tick_due_ms = 0
        self._tick_waits = False
        self._turn_due = False
        self._in_turn = False
        self._has_heard = False  # frames that make a turn due
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = 0
        # What waits for the disk: persists of Readys in order, then rows of the mirror.
        self._persists: list[tuple[int, Persist, tuple[Envelope, ...]]] = []
        self._rows: list[Row] = []
        self._rows_since_ms = 0
        self._mirror_waiters: Waiters[None] = Waiters()
        self._is_installing = False  # a copy of the mirror takes the place of ours
        self._writing = False
        self._to_apply: deque[Chosen] = deque()
        self._reads: dict[int, asyncio.Future[None]] = {}
        self._confirmed: list[tuple[int, Slot]] = []
        self._last_read = 0
        self._view_waiters: Waiters[ClientId] = Waiters()
        self._job_waiters: Waiters[JobId] = Waiters()
        self.router = self._new_router()

    def _new_router(self) -> Router:
        told = ToldHere(self.now_ms, self.runners)
        paths = Paths(self.replica)
        ClientPaths(
            self.settings,
            self,
            self.roster,
            self.archives,
            self.disk_space,
            told,
            self._view_waiters,
            heard=self.heard,
        ).add_to(paths)
        JobPaths(
            self.settings,
            self,
            self.replica,
            self.archives,
            self.members,
            self.disk_space,
            self.runners,
            JobNotes(self, self.writer),
            told,
            self._job_waiters,
            now_ms=self.now_ms,
        ).add_to(paths)
        OperatorPaths(
            self.options.me, self, self.members, self.standing, stop=self.stop
        ).add_to(paths)
        self.copies.add_to(paths.add)
        self.agreement.add_to(paths.router)
        self.streams.add_to(paths.router)
        return paths.router

    # --- starting and stopping ---

    def start(self) -> None:
        """Begin to take part; call once the server listens."""
        if self.schedule is not None:
            for job in self.schedule.running_jobs():
                self.runners.start(job)
        self.streams.start()
        self.archives.start()
        self.wake()

    def release_waiting(self) -> None:
        """Tell everybody who waits for this replica to ask another one."""
        self._waiting.give_up()
        for read_id in list(self._reads):
            self._end_read(read_id, self.not_leader())
        self._view_waiters.wake_all()
        self._job_waiters.wake_all()

    async def close(self) -> None:
        """Stop everything that this process started; the files stay."""
        self._is_over = True
        self.runners.stop_all()
        if self._timer is not None:
            self._timer.cancel()
        self.archives.close()
        self.copying.close()
        self.copies.close()
        await self.tasks.close()
        await self.streams.close()
        await self.http.close()
        await self.writer.close()

    def stop(self) -> None:
        """Stop in good order."""
        if not self.stopped.done():
            self.stopped.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Stop this replica: it can't explain its own state or write to its disk."""
        self._is_over = True
        if isinstance(error, StoreDamaged):
            self._note_damage(error)
        if not self.stopped.done():
            self.stopped.set_exception(error)

    # --- what commands and reads need ---

    @property
    def log_time_ms(self) -> int:
        return 0 if self.schedule is None else self.schedule.log_time_ms

    def require_schedule(self) -> Schedule:
        """Return the state machine, or raise `NotLeader` while it can't be relied on."""
        if self._is_over:
            raise NotLeader(f"replica {self.options.me} stops", None)
        if self.schedule is None:
            raise self.not_leader()
        return self.schedule

    def not_leader(self) -> NotLeader:
        """Return the error that says who leads, or why nobody is known to."""
        leader = self.replica.leader
        if self.schedule is None or leader is None:
            silent_ms = 2 * self.settings.election_timeout_max_ms
            text = why_leaderless(self.roster, self.replica, self.schedule, silent_ms=silent_ms)
            return NotLeader(text, None)
        if leader != self.options.me:
            words = f"replica {self.options.me} is not the leader"
            return NotLeader(words, self.roster.address_of(leader))
        what = "again" if self.is_current else "and doesn't know yet all that was decided before"
        return NotLeader(f"replica {leader} leads {what}", None)

    async def decide(self, command: bytes) -> bytes:
        """Have a command chosen and applied, and return the state machine's reply.

        Raises:
            NotLeader: This replica doesn't lead, or stopped leading meanwhile; the
                command may have been chosen all the same. Repeat it: requests are
                counted once.
            Refused: It is too big for the log, or too many wait.
        """
        future: asyncio.Future[bytes | None] = self.loop.create_future()

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
        limit = self.settings.command_bytes_max
        if len(command) > limit:
            raise Refused(
                f"a command of {len(command)} bytes, at most {limit} (command_bytes_max)",
                status=413,
            )
        if not self.step(self.replica.propose, command, self.now_ms()):
            if not self.replica.is_leader:
                raise self.not_leader()
            raise Refused(
                f"replica {self.options.me} is busy: {self.settings.waiting_commands_max} "
                "commands wait (waiting_commands_max)",
                status=503,
            )
        self._waiting.wait(command, then, decoded)
        if self._in_turn or self._turn_due or self._writing or len(self._waiting) > 1:
            self.wake()  # More may gather behind what is under way.
        else:
            self._turn()

    def propose(self, command: bytes) -> None:
        """Offer a command of our own, here or to the leader; it may get lost."""
        if not self.replica.propose(command, self.now_ms()):
            self.replica.forward(command)
        self.wake()

    async def confirm_read(self) -> Schedule:
        """Return the state machine once it holds every command acknowledged before this call."""
        self._last_read += 1
        read_id = self._last_read
        if not self.step(self.replica.read, read_id, self.now_ms()):
            raise self.not_leader()
        future = self._reads[read_id] = self.loop.create_future()
        self.wake()
        await future
        return self.require_schedule()

    def heard(self, incarnation: Incarnation) -> None:
        """Note that a client was heard from, for the next tick."""
        if self.is_current:  # Else log time here is an older one.
            self._last_heard[incarnation] = self.log_time_ms

    # --- turns ---

    def wake(self) -> None:
        """Ask for a turn of the loop, after what else has arrived by now."""
        if not self._turn_due:
            self._turn_due = True
            self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        if self._is_over:
            return
        self._in_turn = True
        try:
            now_ms = self.now_ms()
            if now_ms >= self.replica.deadline_ms:
                self.replica.tick(now_ms)
            self._carry_out_all()
            # Peers have to work on the messages and the disk on the write: both first.
            self.streams.flush()
            self._write(now_ms)
            self._apply_some(now_ms)
            self._waiting.tell()
            self.copying.turn()
            if now_ms >= self._tick_due_ms:
                self.tick_now()
            self.runners.turn(now_ms)
            if self.replica.has_work:
                self._carry_out_all()
                self.streams.flush()
            self._write(now_ms)
            self._arm_timer(now_ms)
        except Exception as error:  # whatever it is, this replica must stop
            self.fail(error)
        self._in_turn = False

    def _arm_timer(self, now_ms: int) -> None:
        self._tick_due_ms = self._find_tick_due_ms()
        due_ms = min(self.replica.deadline_ms, self._tick_due_ms)
        if self._rows and not (self._writing and self._rows_are_due(now_ms)):
            due_ms = min(due_ms, self._rows_since_ms + _MIRROR_IDLE_MS)
        if (deadline_ms := self.runners.deadline_ms) is not None:
            due_ms = min(due_ms, deadline_ms)
        if self._timer is not None:
            if self._timer_ms <= due_ms:
                return  # A turn too early costs less than a new timer in each turn.
            self._timer.cancel()
        self._timer_ms = due_ms
        self._timer = self.loop.call_later(max(due_ms - now_ms, 0) / 1000, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self.wake()

    def _carry_out_all(self) -> None:
        replica = self.replica
        while replica.has_work and (ready := replica.ready()) is not None:
            self._carry_out(ready)
        if self.schedule is None and self.replica.founding is not None:
            self.schedule = self._new_schedule(None)
        self.members.connect()
        self.standing.turn()
        is_leader = self.replica.is_leader
        if is_leader != self._was_leader:
            self._was_leader = is_leader
            self._leadership_changed(is_leader)
        if is_leader and self._current_end is None and self.replica.is_established:
            self._current_end = self.replica.chosen_end

    def _carry_out(self, ready: Ready) -> None:
        for note in ready.notes:
            _log.info("%s", note)
        if (error := reason_to_stop(ready)) is not None:
            raise error
        self._send(ready.send_now)
        if ready.persist is not None:
            self._persists.append((ready.sequence, ready.persist, ready.send_after_persist))
        else:
            assert not ready.send_after_persist
        self._to_apply.extend(ready.chosen)
        if ready.confirmed_reads:
            end_slot = self._to_apply[-1].slot + 1 if self._to_apply else self._applied_end()
            self._confirmed += [(read_id, Slot(end_slot)) for read_id in ready.confirmed_reads]
        for read_id in ready.failed_reads:
            self._end_read(read_id, self.not_leader())
        for request in ready.read_log:
            self._read_log(request)

    def _send(self, envelopes: Iterable[Envelope]) -> None:
        said: tuple[Message, Mark] | None = None
        for envelope in envelopes:
            if said is None or said[0] is not envelope.message or said[1] != envelope.mark:
                said = envelope.message, envelope.mark  # Mostly the same is said to all.
                frame = replica_codec.encode(envelope)
            self.streams.send(envelope.target, frame)

    def _frame_arrived(self, source: ReplicaId, frame: bytes) -> None:
        envelope = replica_codec.decode(frame, source=source, target=self.options.me)
        if not self._is_over:
            self.step(self.replica.receive, envelope, self.now_ms())
            # The last acceptances of an entry change nothing: a third of a leader's turns.
            if not self.replica.is_leader or self.replica.has_work:
                self._has_heard = True

    def _frames_ended(self) -> None:
        """Have a turn at once: peers send no more before they have their answers."""
        if self._has_heard:
            self._has_heard = False
            if not self._turn_due:
                self._turn()

    def _read_log(self, request: ReadLog) -> None:
        def done(future: asyncio.Future[tuple[LogEntry, ...]]) -> None:
            if error := future.exception():
                self.fail(error)
                return
            try:
                self.replica.log_read(request, future.result(), self.now_ms())
            except Exception as bug:
                self.fail(bug)
            self.wake()

        future = self.writer.run(
            lambda store: store.read_log(request.first_slot, request.end_slot, request.bytes_max)
        )
        future.add_done_callback(done)

    # --- writing ---

    def _write(self, now_ms: int) -> None:
        """Write what waits, in one transaction; behind the one under way, if there is one."""
        if self._writing:
            return
        rows_due = self._rows_are_due(now_ms)
        if not self._persists and not rows_due:
            return
        persists, self._persists = self._persists, []
        rows: list[Row] = []
        schedule, founding = self.schedule, self.replica.founding
        if rows_due:
            rows, self._rows = self._rows, rows
            self._mirror_waiters.wake_all()
        if self._rows or self._is_installing:
            schedule = None
        truncate_below = None if schedule is None else self._tail.truncate_below(
            self.copies.keep_from(now_ms)
        )
        if truncate_below is not None:
            self.replica.truncated(truncate_below)
        commit = Commit(
            persists=tuple([persist for _, persist, _ in persists]),
            rows=tuple(rows),
            applied=None
            if schedule is None
            else AppliedPoint(schedule.applied_slot, schedule.digest),
            truncate_below=truncate_below,
            cluster=None if founding is None else founding.cluster,
        )
        self._writing = True
        self.writer.post(
            commit,
            lambda: self._written(persists),
            # A leader's heartbeats don't wait for its disk.
            may_block=not (self.replica.is_leader and self.replica.addresses)
            and len(rows) <= _ROWS_AT_ONCE_MAX,
        )

    def _written(self, persists: list[tuple[int, Persist, tuple[Envelope, ...]]]) -> None:
        self._writing = False
        if self._is_over:
            return
        try:
            for _, _, envelopes in persists:
                self._send(envelopes)
            self.streams.flush()
            now_ms = self.now_ms()
            if persists:
                self.replica.persisted(persists[-1][0], now_ms)
            if self._persists or self.replica.has_work or self._rows_are_due(now_ms):
                self.wake()
        except Exception as error:
            self.fail(error)

    def _rows_are_due(self, now_ms: int) -> bool:
        rows = self._rows
        is_old = now_ms >= self._rows_since_ms + _MIRROR_IDLE_MS
        return bool(rows) and (is_old or len(rows) >= _MIRROR_ROWS_MAX)

    def unwritten_rows(self, table: str, key_prefix: tuple[int | str, ...]) -> list[Row]:
        """Return the mirror's rows that no write has been asked for yet, oldest first."""
        size = len(key_prefix)
        return [row for row in self._rows if row.table == table and row.key[:size] == key_prefix]

    async def handed_over(self) -> None:
        """Wait until the writer has all rows of what is applied now: then it reads them."""
        if self._rows:
            self._rows_since_ms = -_MIRROR_IDLE_MS  # Due, however young the clock is.
            self.wake()
            await self._mirror_waiters.wait(None)

    async def install_copy(self, applied: AppliedPoint, memberships: bytes | None) -> None:
        """Put the copy of the mirror that the store has gathered in the place of ours.

        Args:
            memberships: Who votes, as the replica that gave the copy knew it.

        Nothing is applied meanwhile, and what was applied since our mirror was written is
        dropped: the copy has it. Promises and acceptances go on, as always.
        """
        assert not self._is_installing
        # Before: a write of ours must not put an older one in its place.
        told = self.replica.members_copied(memberships)
        self._is_installing = True
        self._rows.clear()
        self._mirror_waiters.wake_all()
        await self.writer.run(lambda store: store.install_copy(applied, told))
        snapshot = await self.writer.run(lambda store: store.open_snapshot())
        try:
            # On a thread of its own: with a large state this takes seconds.
            schedule = await self.loop.run_in_executor(None, self._new_schedule, snapshot)
        finally:
            snapshot.close()
        assert (schedule.applied_slot, schedule.digest) == (applied.slot, applied.digest)
        self.schedule = schedule
        self.agreement.forget()
        end_slot = self._applied_end()
        self._to_apply = deque(chosen for chosen in self._to_apply if chosen.slot >= end_slot)
        self._tail.reset(end_slot, end_slot)
        self.replica.state_copied(end_slot, self.now_ms())
        # Their schedulers know another history.
        self.runners.clear()
        for job in schedule.running_jobs():
            self.runners.start(job)
        self._view_waiters.wake_all()
        self._job_waiters.wake_all()
        self._is_installing = False
        self.wake()

    # --- applying ---

    def _new_schedule(self, mirror: Mirror | None) -> Schedule:
        founding = self.replica.founding
        assert founding is not None
        return Schedule(
            cluster=founding.cluster,
            members=tuple(member.replica for member in founding.members),
            rules=RULES_BY_VERSION[1],
            mirror=mirror,
            decode=self._waiting.decode,
            skips=self.replica.skips,
        )

    def _applied_end(self) -> Slot:
        return Slot(1 if self.schedule is None else self.schedule.applied_slot + 1)

    def _apply_some(self, now_ms: int) -> None:
        if self._to_apply and not self._is_installing:
            schedule = self.schedule
            assert schedule is not None
            while self._to_apply:
                chosen = self._to_apply.popleft()
                if not self._rows:
                    self._rows_since_ms = now_ms
                voters = voters_of(chosen)
                self._applied(
                    chosen, schedule.apply(chosen.slot, chosen.commands, members=voters)
                )
                if chosen.membership is not None:
                    self.members.changed()
                if self.now_ms() - now_ms > _APPLY_MS_MAX:
                    self.wake()
                    break
        end_slot = self._applied_end()
        while self._confirmed and self._confirmed[0][1] <= end_slot:
            self._end_read(self._confirmed.pop(0)[0], None)

    def _applied(self, chosen: Chosen, applied: Applied) -> None:
        self._rows.extend(applied.rows)
        assert self.schedule is not None
        self.agreement.applied(chosen.slot, self.schedule.digest, applied)
        self._tail.applied(chosen.slot, sum(map(len, chosen.commands)))
        self.standing.applied_commands += len(chosen.commands)
        for note in applied.notes:
            _log.info("replica=%d slot=%d %s", self.options.me, chosen.slot, note)
        self._waiting.applied(chosen.commands, applied.replies)
        self.runners.applied(applied)
        # After these: a runner that begins now takes its job's whole history along.
        for job in applied.jobs:
            self._job_changed(job, applied.events)
        for cid in applied.clients:
            self._view_waiters.wake(cid)

    def _job_changed(self, job: JobId, events: Iterable[tuple[JobId, Event]]) -> None:
        self._job_waiters.wake(job)
        assert self.schedule is not None
        if not self.schedule.is_running(job):
            self.runners.job_ended(job)
        elif self.runners.get(job) is None:
            self.runners.start(job, [event.line for of, event in events if of == job])

    # --- leading ---

    @property
    def is_current(self) -> bool:
        """Whether this replica leads, and its state holds all that former leaders decided."""
        return (
            self._current_end is not None
            and self._applied_end() >= self._current_end
            and self.replica.is_leader
        )

    def _leadership_changed(self, is_leader: bool) -> None:
        self._current_end = None
        self.runners.lead(is_leader)
        if is_leader:
            # Every client gets a full span: the former leader's knowledge of who spoke
            # when is gone.
            self._last_heard.clear()
            self._last_tick_ms = self.now_ms()
            self._tick_waits = False
            return
        self.members.changed()
        self._waiting.give_up()
        self._view_waiters.wake_all()

    def _find_tick_due_ms(self) -> int:
        if self._tick_waits or not self.is_current:
            return _NEVER_MS
        if self._distrusts_clients:
            return self._last_tick_ms  # Before schedulers give numbers a second time.
        due_ms = self._last_tick_ms + self.settings.tick_interval_ms
        assert self.schedule is not None
        if (timer_ms := self.schedule.next_timer_ms) is not None:
            due_ms = min(due_ms, self._last_tick_ms + max(timer_ms - self.log_time_ms, 1))
        return due_ms

    def tick_now(self) -> None:
        """Propose a tick, unless the one before hasn't been applied.

        It gives what is proposed next the right time: a job may take less than a tick.
        """
        if not self.is_current or self._tick_waits:
            return
        now_ms, schedule = self.now_ms(), self.schedule
        assert schedule is not None
        command = self._make_tick(now_ms)
        if self.step(self.replica.propose, command, now_ms):
            schedule.take_followed()  # A refused tick tells nobody: the next one does.
            self._distrusts_clients = False
            self._last_tick_ms = now_ms
            self._tick_waits = True
            self._waiting.wait(command, self._tick_applied)

    def _make_tick(self, now_ms: int) -> bytes:
        """Say how much time has passed, and which clients have been silent for too long."""
        schedule = self.schedule
        assert schedule is not None
        rules, log_time_ms = schedule.rules, schedule.log_time_ms
        silent: list[SilentClient] = []
        before, self._last_heard = self._last_heard, {}  # without those that are gone
        distrusts_all = self._distrusts_clients and not self.roster.others()
        for cid, life, request in schedule.living_clients():
            heard_ms = self._last_heard[life] = before.get(life, log_time_ms)
            if distrusts_all or log_time_ms - heard_ms > rules.liveness_span_ms:
                silent.append(SilentClient(cid, life, request))
        elapsed_ms = min(now_ms - self._last_tick_ms, rules.tick_elapsed_max_ms)
        wall_ms = self.surroundings.wall_ms()
        claim, followed = self.agreement.claim, schedule.followed
        return encode_command(Tick(elapsed_ms, wall_ms, tuple(silent), claim, followed))

    def _tick_applied(self, reply: bytes | None) -> None:
        self._tick_waits = False
        self.wake()  # The timer was set without the next tick.

    def _end_read(self, read_id: int, error: NotLeader | None) -> None:
        future = self._reads.pop(read_id, None)
        if future is None or future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
