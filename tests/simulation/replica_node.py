"""The shell around one replica, as the contract of `Ready` says, on simulated machines.

What is durable (`ReplicaState`), a process that lives, crashes and restarts (`ReplicaNode`),
and the state machine behind it: a chain of digests over everything applied. Tells an
observer what happens; judges nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from tasksprint.consensus import (
    Ballot,
    Chosen,
    Envelope,
    LogEntry,
    Member,
    Membership,
    Persist,
    ReadLog,
    Ready,
    Recovered,
    Replica,
)
from tasksprint.consensus.effects import FIRST_SLOT
from tasksprint.consensus.membership import decode_membership_value
from tasksprint.ids import Incarnation, ReplicaId, Slot
from tasksprint.settings import Settings
from tests.simulation.disk import Disk
from tests.simulation.timeline import Clock, Timeline

__all__ = ["Observer", "ReplicaNode", "ReplicaState"]


@dataclass
class ReplicaState:
    """What a replica's disk holds: the log, and a mirror of the state machine."""

    incarnation: Incarnation
    founding: bytes | None = None
    memberships: bytes | None = None
    promised: Ballot | None = None
    durable: int = 0
    marks: bytes | None = None
    accepted: dict[Slot, LogEntry] = field(default_factory=dict)
    chosen_end: Slot = FIRST_SLOT
    applied_end: Slot = FIRST_SLOT
    digest: bytes = b""  # of the state at `applied_end`
    log_start: Slot = FIRST_SLOT  # Nothing is truncated here.

    def persist(self, persist: Persist) -> None:
        """Take one `Persist`, as the store does."""
        if persist.founding is not None:
            self.founding = persist.founding
        if persist.memberships is not None:
            self.memberships = persist.memberships
        if persist.promised is not None:
            self.promised = persist.promised
        if persist.durable is not None:
            assert persist.durable > self.durable
            self.durable = persist.durable
        if persist.marks is not None:
            self.marks = persist.marks
        for entry in persist.accepted:
            self.accepted[entry.slot] = entry
        if persist.chosen_end is not None:
            self.chosen_end = persist.chosen_end

    def recovered(self) -> Recovered:
        """Return what a restart finds, as the store does: see `Recovered`."""
        known_end = max(self.chosen_end, self.applied_end)
        chosen_end = self.applied_end
        while chosen_end < known_end and chosen_end in self.accepted:
            chosen_end = Slot(chosen_end + 1)
        return Recovered(
            incarnation=self.incarnation,
            founding=self.founding,
            memberships=self.memberships,
            promised=self.promised,
            durable=self.durable,
            marks=self.marks,
            accepted=tuple(self.accepted.values()),
            chosen_end=chosen_end,
            applied_end=self.applied_end,
            known_end=known_end,
        )


class Observer(Protocol):
    """Who is told what happens."""

    def started(self, node: ReplicaNode) -> None: ...

    def sends(self, node: ReplicaNode, envelope: Envelope) -> None: ...

    def wrote(self, node: ReplicaNode, persist: Persist) -> None: ...

    def chose(self, node: ReplicaNode, chosen: Chosen) -> None: ...

    def read_confirmed(self, node: ReplicaNode, read_id: int) -> None: ...

    def read_failed(self, node: ReplicaNode, read_id: int) -> None: ...

    def noted(self, node: ReplicaNode, text: str) -> None: ...

    def stopped(self, node: ReplicaNode, text: str) -> None: ...


class ReplicaNode:
    """One machine: a disk, a clock, and a process that is up or down."""

    replica_class = Replica

    def __init__(
        self,
        *,
        me: ReplicaId,
        members: tuple[ReplicaId, ...],
        settings: Settings,
        timeline: Timeline,
        clock: Clock,
        disk: Disk[ReplicaState],
        random: Random,
        send: Callable[[Envelope], None],
        observer: Observer,
        is_joining: bool = False,
    ) -> None:
        self.me = me
        self.is_joining = is_joining
        self.members = members
        self.clock = clock
        self.disk = disk
        self._settings = settings
        self._timeline = timeline
        self._random = random
        self._send = send
        self._observer = observer
        self.replica: Replica | None = None  # None: the process is down
        self.life = 0
        self.applied_end = Slot(1)
        self.digest = b""
        self._turn_is_due = False
        self._alarm = 0
        self._backlog: list[Callable[[], None]] | None = None  # None: not frozen

    # --- the process ---

    def start(self) -> None:
        """Start the process from what the disk holds."""
        self.life += 1
        state = self.disk.state
        self.applied_end = state.applied_end
        self.digest = state.digest
        self._turn_is_due = False
        self._backlog = None
        self.replica = self.replica_class(
            me=self.me,
            address=f"replica-{self.me}",
            peers={member: f"replica-{member}" for member in self.members},
            is_joining=self.is_joining,
            recovered=self._recover(),
            settings=self._settings,
            random=self._random,
            now_ms=self.clock.now_ms(),
        )
        self._observer.started(self)
        self.turn()

    def _recover(self) -> Recovered:
        return self.disk.state.recovered()

    def crash(self) -> tuple[int, int]:
        """Kill the process and cut its disk's writes; see `Disk.crash`."""
        self.replica = None
        return self.disk.crash()

    def freeze(self) -> None:
        """Stop the process in its tracks (SIGSTOP): what arrives waits, its alarms too."""
        if self.replica is not None and self._backlog is None:
            self._backlog = []

    def thaw(self) -> None:
        """Let it go on, as if no time had passed for it."""
        backlog, self._backlog = self._backlog, None
        for event in backlog or ():
            event()

    def _waits(self, event: Callable[[], None]) -> bool:
        """Whether the process is frozen; then `event` happens when it thaws."""
        if self._backlog is None:
            return False
        self._backlog.append(event)
        return True

    # --- events ---

    def receive(self, envelope: Envelope) -> None:
        """Take a message; several that arrive close together share a turn."""
        if self.replica is None or self._waits(lambda: self.receive(envelope)):
            return
        self.replica.receive(envelope, self.clock.now_ms())
        self._turn_soon()

    def propose(self, command: bytes) -> bool:
        """Hand a command to the replica, to propose or to forward."""
        if self.replica is None or self._backlog is not None:
            return False
        is_taken = self.replica.propose(command, self.clock.now_ms())
        if not is_taken:
            self.replica.forward(command)
        self._turn_soon()
        return is_taken

    def read(self, read_id: int) -> bool:
        """Ask for a confirmed read."""
        if self.replica is None or self._backlog is not None:
            return False
        is_taken = self.replica.read(read_id, self.clock.now_ms())
        self._turn_soon()
        return is_taken

    @property
    def change_taken(self) -> Membership | None:
        """The membership that a leader has taken on itself, and not proposed yet."""
        leadership = None if self.replica is None else self.replica._leadership
        value = None if leadership is None else leadership._change
        return None if value is None else decode_membership_value(value)

    def add_member(self, node: ReplicaNode, replaces: ReplicaId | None) -> str | None:
        """Let an operator add a machine here, at a leader; return why not."""
        assert self.replica is not None
        member = Member(node.me, node.disk.state.incarnation, f"replica-{node.me}")
        reason = self.replica.add_member(member, self.clock.now_ms(), replaces=replaces)
        self._turn_soon()
        return reason

    def remove_member(self, replica: ReplicaId) -> str | None:
        """Let an operator remove a member here, at a leader; return why not."""
        assert self.replica is not None
        reason = self.replica.remove_member(replica, self.clock.now_ms())
        self._turn_soon()
        return reason

    def disconnected(self, peer: ReplicaId) -> None:
        """Tell the replica that its stream to a peer broke."""
        if self.replica is not None and not self._waits(lambda: self.disconnected(peer)):
            self.replica.disconnected(peer, self.clock.now_ms())
            self._turn_soon()

    # --- turns of the loop ---

    def _turn_soon(self) -> None:
        if not self._turn_is_due:
            self._turn_is_due = True
            life = self.life
            delay = self._random.choice((0.0, 0.0, 0.5))
            self._timeline.after(delay, lambda: self._late_turn(life))

    def _late_turn(self, life: int) -> None:
        if life != self.life or self.replica is None:
            return
        if not self._waits(lambda: self._late_turn(life)):
            self.turn()

    def turn(self) -> None:
        """Carry out everything that the replica wants done."""
        self._turn_is_due = False
        replica = self.replica
        assert replica is not None
        while self.replica is replica:
            has_work = replica.has_work
            ready = replica.ready()
            assert has_work or ready is None, "there was work that it didn't tell of"
            if ready is None:
                break
            self._carry_out(ready)
        if self.replica is replica:
            replica.check()
            self._set_alarm(replica.deadline_ms)

    def _carry_out(self, ready: Ready) -> None:
        for text in ready.notes:
            self._observer.noted(self, text)
        for envelope in ready.send_now:
            self._emit(envelope)
        if ready.persist is None:
            assert ready.send_after_persist == ()
        else:
            self._persist(ready, ready.persist)
        self._apply(ready.chosen)
        for read_id in ready.confirmed_reads:
            self._observer.read_confirmed(self, read_id)
        for read_id in ready.failed_reads:
            self._observer.read_failed(self, read_id)
        for request in ready.read_log:
            self._read_log(request)
        if ready.fatal is not None:
            self._observer.stopped(self, ready.fatal)
            self.crash()

    def _emit(self, envelope: Envelope) -> None:
        self._observer.sends(self, envelope)
        self._send(envelope)

    def _persist(self, ready: Ready, persist: Persist) -> None:
        life = self.life
        self.disk.write(
            lambda state: self._change(state, persist), lambda: self._persisted(ready, life)
        )

    def _change(self, state: ReplicaState, persist: Persist) -> None:
        state.persist(persist)
        self._observer.wrote(self, persist)

    def _persisted(self, ready: Ready, life: int) -> None:
        if life != self.life or self.replica is None:
            return
        if self._waits(lambda: self._persisted(ready, life)):
            return
        for envelope in ready.send_after_persist:
            self._emit(envelope)
        self.replica.persisted(ready.sequence, self.clock.now_ms())
        self._turn_soon()

    def _apply(self, chosen: tuple[Chosen, ...]) -> None:
        for item in chosen:
            hasher = hashlib.sha256(self.digest)
            for command in item.commands:
                hasher.update(len(command).to_bytes(4, "big") + command)
            self.digest = hasher.digest()
            self.applied_end = Slot(item.slot + 1)
            self._observer.chose(self, item)
        if chosen and self._random.random() < 0.3:
            self._write_mirror(self.applied_end, self.digest)

    def _write_mirror(self, applied_end: Slot, digest: bytes) -> None:
        def change(state: ReplicaState) -> None:
            state.applied_end = applied_end
            state.digest = digest

        self.disk.write(change, lambda: None)

    def _read_log(self, request: ReadLog) -> None:
        life = self.life

        def answer() -> None:
            if life != self.life or self.replica is None or self._waits(answer):
                return
            entries: list[LogEntry] = []
            size = 0
            for slot in range(request.first_slot, request.end_slot):
                entry = self.disk.state.accepted[Slot(slot)]
                size += len(entry.value)
                if entries and size > request.bytes_max:
                    break
                entries.append(entry)
            self.replica.log_read(request, tuple(entries), self.clock.now_ms())
            self._turn_soon()

        self._timeline.after(self._random.uniform(0.1, 3.0), answer)

    def _set_alarm(self, deadline_ms: int) -> None:
        self._alarm += 1
        number, life = self._alarm, self.life

        def ring() -> None:
            replica = self.replica
            if number != self._alarm or life != self.life or replica is None:
                return
            if not self._waits(ring):
                replica.tick(self.clock.now_ms())
                self.turn()

        self._timeline.after(min(self.clock.delay_until(deadline_ms), 1e9), ring)
