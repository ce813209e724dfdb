"""One coordinator: its parts, and the turns of its loop.

Everything happens in turns of one asyncio loop. Events arrive: frames of peers, requests,
answers of schedulers, finished writes. Each is handed to the cores at once and marks the loop.
The next turn carries out the orders that follow from all of them: messages, one write, entries
to apply. So commands that arrive together share an entry, a write and a round of messages, and
nothing waits for a timer.

This module makes all parts, and is the only one that knows all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from tasksprint.consensus import Chosen, Ready, Replica
from tasksprint.coordination.rows import Mirror
from tasksprint.coordination.schedule import Applied, Event, Schedule
from tasksprint.ids import ClientId, JobId
from tasksprint.net.router import Router
from tasksprint.roles.coordinator.agreement import Agreement
from tasksprint.roles.coordinator.applying import Applying
from tasksprint.roles.coordinator.archives import Archives
from tasksprint.roles.coordinator.client_paths import ClientPaths
from tasksprint.roles.coordinator.copies import MirrorFetcher, MirrorPaths
from tasksprint.roles.coordinator.deciding import Deciding
from tasksprint.roles.coordinator.decisions import Decisions
from tasksprint.roles.coordinator.disk_space import DiskSpace
from tasksprint.roles.coordinator.durable import Durable
from tasksprint.roles.coordinator.job_notes import JobNotes
from tasksprint.roles.coordinator.job_paths import JobPaths
from tasksprint.roles.coordinator.log_tail import LogTail
from tasksprint.roles.coordinator.members import MemberChanges, reason_to_stop
from tasksprint.roles.coordinator.operator_paths import OperatorPaths
from tasksprint.roles.coordinator.paths import Paths
from tasksprint.roles.coordinator.peers import Peers
from tasksprint.roles.coordinator.ports import Writer, logger
from tasksprint.roles.coordinator.raising import RulesRaising
from tasksprint.roles.coordinator.roster import Roster
from tasksprint.roles.coordinator.runners import Runners
from tasksprint.roles.coordinator.scheduler_runner import RunnerPorts
from tasksprint.roles.coordinator.standing import Standing
from tasksprint.roles.coordinator.surroundings import REAL, CoordinatorOptions, Surroundings
from tasksprint.roles.coordinator.ticks import Ticks
from tasksprint.roles.coordinator.told import ToldHere
from tasksprint.roles.coordinator.turns import NEVER_MS, LoopTurns
from tasksprint.roles.waiters import Waiters
from tasksprint.settings import Settings
from tasksprint.store.records import AppliedPoint
from tasksprint.store.replica_store import ReplicaStore

__all__ = ["Coordinator"]


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
        self._release = release = surroundings.release
        now_ms, random = surroundings.monotonic_ms, surroundings.new_random()
        self.turns = turns = LoopTurns(now_ms, self._work, store.note_damage)
        self.http = http = surroundings.new_http(options.key, settings)
        # Older entries than these are read back when a follower wants them.
        after_slot = max(store.applied.slot - settings.log_window_slots, 0)
        recovery = store.recover(after_slot=after_slot)
        self.replica = replica = Replica(
            me=options.me,
            address=options.advertise,
            peers=options.peers,
            is_joining=bool(options.join),
            recovered=recovery.consensus,
            settings=settings,
            random=random,
            now_ms=now_ms(),
            speaks=release.speaks,
        )
        self.roster = roster = Roster(replica, options)
        self._decisions = Decisions()
        schedule: Schedule | None = None
        if replica.founding is not None:
            schedule = self._new_schedule(store if recovery.applied.slot else None)
        self.state = state = Applying(turns, schedule, on_applied=self._applied)
        self._tail = LogTail(settings, recovery.consensus.log_start, state.end_slot)
        distrusts_clients = store.doubts is not None
        # From here on the store is the writer's.
        self.writer: Writer = surroundings.new_writer(store, on_failure=turns.fail, name="log")
        writer = self.writer
        self.peers = Peers(options, settings, turns, roster, replica, random, surroundings)
        self.durable = Durable(
            turns,
            replica,
            state,
            self.peers,
            writer,
            self._tail,
            keep_from=lambda now_ms: self.copies.keep_from(now_ms),
        )
        self.log = log = Deciding(
            settings, turns, roster, replica, state, self.durable, self._decisions
        )
        self.agreement = Agreement(turns, roster, http)
        self.raising = RulesRaising(settings, release, turns, log, replica, self.peers.streams)
        self.ticks = Ticks(
            settings,
            turns,
            log,
            roster,
            replica,
            self._decisions,
            self.agreement,
            surroundings.wall_ms,
            self.raising.ticked,
            distrusts_clients=distrusts_clients,
        )
        self.archives = Archives(
            options.data_dir / "programs",
            settings,
            turns,
            log,
            roster,
            writer,
            http,
            surroundings,
            why_not_level=lambda: self.standing.why_not_level(),
        )
        self.copies = MirrorPaths(settings, turns, replica, self.durable, writer, random)
        self.copying = MirrorFetcher(
            settings,
            turns,
            log,
            roster,
            replica,
            writer,
            http,
            random,
            install=self.install_copy,
            release=release,
        )
        self.runners = Runners(
            RunnerPorts(
                settings,
                turns,
                log,
                self.ticks,
                roster,
                self.durable,
                replica,
                writer,
                self.archives,
                surroundings.start_scheduler,
            )
        )
        self.members = MemberChanges(
            options, turns, log, replica, self.peers.streams, http, self.archives
        )
        self.disk_space = DiskSpace(options.data_dir, settings, turns, roster, replica, http)
        self.standing = Standing(
            options,
            surroundings,
            log,
            roster,
            replica,
            writer,
            self.runners,
            self.copying,
            self.disk_space.free,
        )
        self._view_waiters: Waiters[ClientId] = Waiters()
        self._job_waiters: Waiters[JobId] = Waiters()
        self._was_leader = False
        self.router = self._new_router(settings)

    def _new_router(self, settings: Settings) -> Router:
        told = ToldHere(self.turns.now_ms, self.runners)
        paths = Paths(self.replica)
        ClientPaths(
            settings,
            self.log,
            self.ticks,
            self.roster,
            self.archives,
            self.disk_space,
            told,
            self._view_waiters,
        ).add_to(paths)
        JobPaths(
            settings,
            self.log,
            self.ticks,
            self.replica,
            self.archives,
            self.members,
            self.disk_space,
            self.runners,
            JobNotes(self.durable, self.writer),
            told,
            self._job_waiters,
            now_ms=self.turns.now_ms,
        ).add_to(paths)
        OperatorPaths(
            self.options.me,
            self.log,
            self.members,
            self.raising,
            self.standing,
            stop=self.turns.stop,
        ).add_to(paths)
        self.copies.add_to(paths.add)
        self.agreement.add_to(paths.router)
        self.peers.streams.add_to(paths.router)
        return paths.router

    # --- starting and stopping ---

    def start(self) -> None:
        """Begin to take part; call once the server listens."""
        if self.log.schedule is not None:
            for job in self.log.schedule.running_jobs():
                self.runners.start(job)
        self.peers.streams.start()
        self.archives.start()
        self.turns.wake()

    def release_waiting(self) -> None:
        """Tell everybody who waits for this replica to ask another one."""
        self.log.release()
        self._view_waiters.wake_all()
        self._job_waiters.wake_all()

    async def close(self) -> None:
        """Stop everything that this process started; the files stay."""
        self.turns.end()
        self.runners.stop_all()
        self.archives.close()
        self.copying.close()
        self.copies.close()
        await self.turns.close()
        await self.peers.streams.close()
        await self.http.close()
        await self.writer.close()

    # --- turns ---

    def _work(self, now_ms: int) -> int:
        """Do the work of now; return when there is more, unless something happens before."""
        replica, durable = self.replica, self.durable
        if now_ms >= replica.deadline_ms:
            replica.tick(now_ms)
        self._carry_out_all()
        # Peers have to work on the messages and the disk on the write: both first.
        self.peers.streams.flush()
        durable.write(now_ms)
        self.state.apply_some(now_ms)
        self.log.answer()
        self.copying.turn()
        self.ticks.turn(now_ms)
        self.runners.turn(now_ms)
        if replica.has_work:
            self._carry_out_all()
            self.peers.streams.flush()
        durable.write(now_ms)
        runners_ms = self.runners.deadline_ms
        return min(
            replica.deadline_ms,
            self.ticks.find_due_ms(),
            durable.due_ms(now_ms),
            NEVER_MS if runners_ms is None else runners_ms,
        )

    def _carry_out_all(self) -> None:
        replica = self.replica
        while replica.has_work and (ready := replica.ready()) is not None:
            self._carry_out(ready)
        if self.state.schedule is None and replica.founding is not None:
            self.state.schedule = self._new_schedule(None)
        self.members.connect()
        self.standing.turn()
        if replica.is_leader != self._was_leader:
            self._was_leader = replica.is_leader
            self._leadership_changed(replica.is_leader)
        self.log.look()

    def _carry_out(self, ready: Ready) -> None:
        for note in ready.notes:
            logger.info("%s", note)
        if (error := reason_to_stop(ready)) is not None:
            raise error
        self.peers.send(ready.send_now)
        self.durable.add(ready)
        if ready.chosen:
            self.state.add(ready.chosen)
        if ready.confirmed_reads:
            self.log.reads_confirmed(ready.confirmed_reads)
        if ready.failed_reads:
            self.log.reads_failed(ready.failed_reads)
        for request in ready.read_log:
            self.durable.read_log(request)

    async def install_copy(self, applied: AppliedPoint, memberships: bytes | None) -> None:
        """Put the copy of the mirror that the store has gathered in the place of ours.

        Args:
            memberships: The voters, as known to the replica that gave the copy.

        Nothing is applied meanwhile. Entries applied since our mirror was written are dropped:
        the copy has them. Promises and acceptances go on, as always.
        """
        turns, replica, state = self.turns, self.replica, self.state
        assert not state.is_installing
        # Before: a write of ours must not put an older one in its place.
        told = replica.members_copied(memberships)
        state.is_installing = True
        self.durable.drop_rows()
        await self.writer.run(lambda store: store.install_copy(applied, told))
        opened = await self.writer.run(lambda store: store.open_snapshot())
        with contextlib.closing(opened) as snapshot:
            # On a thread of its own: with a large state this takes seconds.
            loop = asyncio.get_running_loop()
            schedule = await loop.run_in_executor(None, self._new_schedule, snapshot)
        assert (schedule.applied_slot, schedule.digest) == (applied.slot, applied.digest)
        state.installed(schedule)
        self.agreement.forget()
        self._tail.reset(state.end_slot, state.end_slot)
        replica.state_copied(state.end_slot, turns.now_ms())
        # Their schedulers know another history.
        self.runners.clear()
        for job in schedule.running_jobs():
            self.runners.start(job)
        self._view_waiters.wake_all()
        self._job_waiters.wake_all()
        turns.wake()

    # --- applying ---

    def _new_schedule(self, mirror: Mirror | None) -> Schedule:
        founding = self.replica.founding
        assert founding is not None
        return Schedule(
            cluster=founding.cluster,
            members=tuple(member.replica for member in founding.members),
            rules=self._release.rules_of_beginning(founding.rules),
            release=self._release,
            mirror=mirror,
            decode=self._decisions.decode,
            skips=self.replica.skips,
        )

    def _applied(self, chosen: Chosen, applied: Applied, now_ms: int) -> None:
        schedule = self.state.schedule
        assert schedule is not None
        self.durable.add_rows(applied.rows, now_ms)
        self.agreement.applied(chosen.slot, schedule.digest, applied)
        self._tail.applied(chosen.slot, sum(map(len, chosen.commands)))
        self.standing.applied_commands += len(chosen.commands)
        for note in applied.notes:
            logger.info("replica=%d slot=%d %s", self.options.me, chosen.slot, note)
        self._decisions.applied(chosen.commands, applied.replies)
        self.runners.applied(applied)
        # After these: a runner that begins now takes its job's whole history along.
        for job in applied.jobs:
            self._job_changed(schedule, job, applied.events)
        for cid in applied.clients:
            self._view_waiters.wake(cid)
        if chosen.membership is not None:
            self.members.changed()

    def _job_changed(
        self, schedule: Schedule, job: JobId, events: Iterable[tuple[JobId, Event]]
    ) -> None:
        self._job_waiters.wake(job)
        if not schedule.is_running(job):
            self.runners.job_ended(job)
        elif self.runners.get(job) is None:
            self.runners.start(job, [event.line for of, event in events if of == job])

    def _leadership_changed(self, is_leader: bool) -> None:
        self.log.leadership_changed()
        self.runners.lead(is_leader)
        if is_leader:
            self.ticks.begin()
            self.raising.begin()
            return
        self.members.changed()
        self._view_waiters.wake_all()
