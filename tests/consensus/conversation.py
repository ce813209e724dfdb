"""Drives replicas by a few words and prints what they say: golden conversations.

A file holds blocks: a line with words, `----`, what came of it, an empty line. Lines
that begin with `#` tell the story.

    cluster N [setting=value …]   N replicas, founded, none elected, nothing known
    unfounded N                   N replicas that have yet to found their cluster
    elect R                       let R's timer run out, then everything until all is quiet
    lead R                        the same, but only notes are printed
    propose R COMMAND …           hand commands to R; nothing is done yet
    forward R COMMAND             the same for one that doesn't lead
    read R NUMBER                 ask R to confirm a read
    ready R                       what R wants done; its messages wait in the network
    disk R                        R's writes are durable now; what waited for them leaves
    deliver R [S]                 R receives what waits for it (from S only)
    drop R [S]                    that is lost instead
    run                           all of this, everywhere, until all is quiet
    tick R [MS]                   time passes until R's deadline (or by MS), and R is woken
    disconnect R S                R's stream to S breaks
    crash R, restart R, wipe R    unwritten writes are lost; `wipe` empties the disk too
    keep R, put_back R            a copy of R's disk is made; R's disk is that copy again
    cut R S, mend                 nothing gets through between R and S (or one is "all")
    status R
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tasksprint.consensus import (
    Accept,
    Accepted,
    Canvass,
    CanvassReply,
    CatchUpReply,
    CatchUpRequest,
    ChosenNotice,
    Envelope,
    Forward,
    Found,
    Founding,
    Heartbeat,
    HeartbeatReply,
    Hello,
    LogEntry,
    Marks,
    Member,
    Message,
    Nack,
    Persist,
    Prepare,
    Promise,
    Ready,
    Replica,
    Stale,
    Stranger,
    decode_batch,
    decode_founding,
    encode_founding,
)
from tasksprint.ids import Incarnation, ReplicaId
from tasksprint.settings import Settings
from tests.simulation.replica_node import ReplicaState

__all__ = ["Conversation", "describe", "replay"]


def replay(text: str) -> str:
    """Return a conversation file with what its words bring about now."""
    conversation = Conversation()
    parts: list[str] = []
    lines = iter(text.splitlines())
    for line in lines:
        if not line or line.startswith("#"):
            parts.append(line)
            continue
        parts.append(line)
        for answer in lines:
            if not answer:
                break
        parts += ["----", *conversation.do(line), ""]
    return "\n".join(parts).rstrip("\n") + "\n"


@dataclass
class _Machine:
    state: ReplicaState
    replica: Replica | None = None
    kept: ReplicaState | None = None
    unwritten: list[Ready] = field(default_factory=list)


class Conversation:
    """Replicas, the messages between them, and their disks, all at a standstill."""

    def __init__(self) -> None:
        self._now_ms = 0
        self._settings = Settings(chosen_notice_delay_ms=0, spare_delay_ms=0)
        self._machines: dict[ReplicaId, _Machine] = {}
        self._network: list[Envelope] = []
        self._cut: set[tuple[ReplicaId, ReplicaId]] = set()
        self._lines: list[str] = []
        self._lives = 0
        self._words: dict[str, Callable[..., None]] = {
            "cluster": self._do_cluster,
            "unfounded": self._do_unfounded,
            "elect": self._do_elect,
            "lead": self._do_lead,
            "propose": self._do_propose,
            "forward": self._do_forward,
            "read": self._do_read,
            "ready": self._do_ready,
            "disk": self._do_disk,
            "deliver": self._do_deliver,
            "drop": self._do_drop,
            "run": self._do_run,
            "tick": self._do_tick,
            "disconnect": self._do_disconnect,
            "crash": self._do_crash,
            "restart": self._do_restart,
            "wipe": self._do_wipe,
            "keep": self._do_keep,
            "put_back": self._do_put_back,
            "cut": self._do_cut,
            "mend": self._do_mend,
            "status": self._do_status,
        }

    def do(self, line: str) -> list[str]:
        """Do what a line says, and return what came of it."""
        word, *arguments = line.split()
        self._lines = []
        self._words[word](*arguments)
        for machine in self._machines.values():
            if machine.replica is not None:
                machine.replica.check()
        return self._lines or ["nothing"]

    # --- words ---

    def _do_cluster(self, count: str, *settings: str) -> None:
        ids = self._make(int(count), settings)
        founding = Founding(
            "c0ffee",
            tuple(Member(me, self._machines[me].state.incarnation, f"h{me}") for me in ids),
        )
        for me in ids:
            self._machines[me].state.founding = encode_founding(founding)
            self._start(me)
            self._settle_greetings(me)
        self._say(f"replicas {', '.join(map(str, ids))}")

    def _do_unfounded(self, count: str, *settings: str) -> None:
        for me in self._make(int(count), settings):
            self._start(me)
        self._say(f"replicas {', '.join(map(str, self._machines))}")

    def _do_elect(self, number: str) -> None:
        replica = self._replica(number)
        self._now_ms = max(self._now_ms, replica.deadline_ms)
        replica.tick(self._now_ms)
        self._do_run()

    def _do_lead(self, number: str) -> None:
        self._do_elect(number)
        self._lines = [line for line in self._lines if line.startswith("note:")]

    def _do_propose(self, number: str, *commands: str) -> None:
        for command in commands:
            if not self._replica(number).propose(command.encode(), self._now_ms):
                self._say("refused")

    def _do_forward(self, number: str, command: str) -> None:
        if not self._replica(number).forward(command.encode()):
            self._say("refused")

    def _do_read(self, number: str, read_id: str) -> None:
        if not self._replica(number).read(int(read_id), self._now_ms):
            self._say("refused")

    def _do_ready(self, number: str) -> None:
        me = ReplicaId(int(number))
        while (ready := self._replica(number).ready()) is not None:
            self._carry_out(me, ready)

    def _do_disk(self, number: str) -> None:
        machine = self._machines[ReplicaId(int(number))]
        assert machine.replica is not None
        for ready in machine.unwritten:
            assert ready.persist is not None
            machine.state.persist(ready.persist)
            self._emit(ready.send_after_persist)
            machine.replica.persisted(ready.sequence, self._now_ms)
        machine.unwritten.clear()

    def _do_deliver(self, number: str, source: str | None = None) -> None:
        for envelope in self._take_messages(number, source):
            if (envelope.source, envelope.target) in self._cut:
                continue
            replica = self._machines[envelope.target].replica
            if replica is not None:
                replica.receive(envelope, self._now_ms)

    def _do_drop(self, number: str, source: str | None = None) -> None:
        for envelope in self._take_messages(number, source):
            self._say(f"lost: {describe(envelope)}")

    def _do_run(self) -> None:
        is_busy = True
        while is_busy:
            is_busy = False
            for me, machine in self._machines.items():
                if machine.replica is None:
                    continue
                before = len(self._lines), len(self._network)
                self._do_deliver(str(me))
                self._do_ready(str(me))
                self._do_disk(str(me))
                is_busy |= before != (len(self._lines), len(self._network))

    def _do_tick(self, number: str, duration_ms: str | None = None) -> None:
        replica = self._replica(number)
        if duration_ms is None:
            self._now_ms = max(self._now_ms, replica.deadline_ms)
        else:
            self._now_ms += int(duration_ms)
        replica.tick(self._now_ms)

    def _do_disconnect(self, number: str, peer: str) -> None:
        self._replica(number).disconnected(ReplicaId(int(peer)), self._now_ms)

    def _do_crash(self, number: str) -> None:
        me = ReplicaId(int(number))
        machine = self._machines[me]
        self._say(f"{len(machine.unwritten)} writes lost")
        self._end(me)
        machine.unwritten.clear()

    def _do_restart(self, number: str) -> None:
        me = ReplicaId(int(number))
        self._start(me)

    def _do_wipe(self, number: str) -> None:
        machine = self._machines[ReplicaId(int(number))]
        self._end(ReplicaId(int(number)))
        machine.unwritten.clear()
        machine.state = ReplicaState(Incarnation(f"new{number}"))

    def _do_keep(self, number: str) -> None:
        machine = self._machines[ReplicaId(int(number))]
        machine.kept = deepcopy(machine.state)
        self._say(f"durable number {machine.state.durable}")

    def _do_put_back(self, number: str) -> None:
        machine = self._machines[ReplicaId(int(number))]
        assert machine.kept is not None
        self._end(ReplicaId(int(number)))
        machine.unwritten.clear()
        self._say(f"durable number {machine.kept.durable}, it was {machine.state.durable}")
        machine.state = deepcopy(machine.kept)

    def _do_cut(self, one: str, other: str) -> None:
        for source in self._machines:
            for target in self._machines:
                if {str(source), str(target)} == {one, other} or (
                    other == "all" and one in (str(source), str(target))
                ):
                    self._cut.add((source, target))

    def _do_mend(self) -> None:
        self._cut.clear()

    def _do_status(self, number: str) -> None:
        status = self._replica(number).status()
        self._say(
            f"{status.role} ballot={status.ballot} leader={status.leader} "
            f"chosen below {status.chosen_end}, {status.open_slots} open, "
            f"{status.waiting_commands} waiting; elections={status.elections} "
            f"cause={status.last_cause!r}"
        )

    # --- machinery ---

    def _make(self, count: int, settings: tuple[str, ...]) -> list[ReplicaId]:
        values: dict[str, Any] = {"chosen_notice_delay_ms": 0, "spare_delay_ms": 0}
        for setting in settings:
            name, value = setting.split("=")
            values[name] = int(value)
        self._settings = Settings(**values)
        ids = [ReplicaId(number) for number in range(1, count + 1)]
        for me in ids:
            self._machines[me] = _Machine(ReplicaState(Incarnation(f"inc{me}")))
        return ids

    def _start(self, me: ReplicaId) -> None:
        machine = self._machines[me]
        self._lives += 1
        machine.replica = Replica(
            me=me,
            address=f"h{me}",
            peers={member: f"h{member}" for member in self._machines},
            recovered=machine.state.recovered(),
            settings=self._settings,
            random=Random(1_000 * self._lives + me),
            now_ms=self._now_ms,
        )

    def _end(self, me: ReplicaId) -> None:
        """End a process, and with it its connections; who acts on that has its own command."""
        self._machines[me].replica = None
        for other in self._machines.values():
            if other.replica is not None:
                other.replica.lives.end(me)

    def _settle_greetings(self, me: ReplicaId) -> None:
        """Take a new replica's greetings as said: they are the same in every file."""
        ready = self._replica(str(me)).ready()
        assert ready is not None or len(self._machines) == 1
        if ready is not None and ready.persist is not None:
            self._machines[me].unwritten.append(ready)

    def _replica(self, number: str) -> Replica:
        replica = self._machines[ReplicaId(int(number))].replica
        assert replica is not None, f"replica {number} is down"
        return replica

    def _take_messages(self, number: str, source: str | None) -> list[Envelope]:
        taken = [
            envelope
            for envelope in self._network
            if str(envelope.target) == number and source in (None, str(envelope.source))
        ]
        self._network = [envelope for envelope in self._network if envelope not in taken]
        return taken

    def _carry_out(self, me: ReplicaId, ready: Ready) -> None:
        for note in ready.notes:
            self._say(f"note: {note}")
        self._emit(ready.send_now)
        if ready.persist is None:
            assert ready.send_after_persist == ()
        else:
            self._machines[me].unwritten.append(ready)
            self._say(f"{me} writes {describe_persist(ready.persist)}")
            for envelope in ready.send_after_persist:
                self._say(f"  then {describe(envelope)}")
        for chosen in ready.chosen:
            self._say(f"{me} applies {chosen.slot} {_commands(chosen.commands)}")
        for read_id in ready.confirmed_reads:
            self._say(f"{me} confirms read {read_id}")
        for read_id in ready.failed_reads:
            self._say(f"{me} fails read {read_id}")
        for request in ready.read_log:
            self._say(f"{me} reads {request.first_slot} to {request.end_slot} from its log")
            entries = self._machines[me].state.accepted
            found = tuple(entries[slot] for slot in sorted(entries))
            self._replica(str(me)).log_read(
                request,
                tuple(e for e in found if request.first_slot <= e.slot < request.end_slot),
                self._now_ms,
            )
        if ready.fatal is not None:
            self._say(f"{me} stops: {ready.fatal}")

    def _emit(self, envelopes: tuple[Envelope, ...]) -> None:
        for envelope in envelopes:
            self._network.append(envelope)
            if not any(line == f"  then {describe(envelope)}" for line in self._lines):
                self._say(describe(envelope))

    def _say(self, text: str) -> None:
        self._lines.append(text)


def _commands(commands: tuple[bytes, ...]) -> str:
    return " ".join(command.decode() for command in commands) or "(no-op)"


def _entry(entry: LogEntry) -> str:
    return f"{entry.slot}@{entry.ballot}: {_commands(decode_batch(entry.value))}"


def _entries(entries: tuple[LogEntry, ...]) -> str:
    return "[" + ", ".join(_entry(entry) for entry in entries) + "]"


def describe_persist(persist: Persist) -> str:
    """Return what is to be durable, on one line."""
    parts: list[str] = []
    if persist.founding is not None:
        parts.append(f"founding {decode_founding(persist.founding).cluster}")
    if persist.promised is not None:
        parts.append(f"promised {persist.promised}")
    if persist.accepted:
        parts.append(f"accepted {_entries(persist.accepted)}")
    if persist.chosen_end is not None:
        parts.append(f"chosen below {persist.chosen_end}")
    return ", ".join(parts) or ("nothing new" if persist.marks is None else "durable numbers")


def describe(envelope: Envelope) -> str:
    """Return a message on one line."""
    return f"{envelope.source} -> {envelope.target} {_message(envelope.message)}"


def _message(message: Message) -> str:
    match message:
        case Accept(ballot, slot, value, chosen_end):
            commands = _commands(decode_batch(value))
            return f"Accept {slot}@{ballot}: {commands} (chosen below {chosen_end})"
        case Accepted(ballot, slots):
            return f"Accepted {', '.join(map(str, slots))}@{ballot}"
        case ChosenNotice(ballot, chosen_end):
            return f"ChosenNotice @{ballot} chosen below {chosen_end}"
        case Heartbeat(ballot, beat, chosen_end):
            return f"Heartbeat {beat}@{ballot} chosen below {chosen_end}"
        case HeartbeatReply(ballot, beat, chosen_end):
            return f"HeartbeatReply {beat}@{ballot} chosen below {chosen_end}"
        case Prepare(ballot, first_slot):
            return f"Prepare {ballot} from {first_slot}"
        case Promise(ballot, first_slot, entries):
            return f"Promise {ballot} from {first_slot} {_entries(entries)}"
        case Nack(ballot, promised):
            return f"Nack {ballot}, promised {promised}"
        case Canvass(_, chosen_end):
            return f"Canvass chosen below {chosen_end}"
        case CanvassReply(_, is_welcome, number, chosen_end):
            answer = "welcome" if is_welcome else "not welcome"
            return f"CanvassReply {answer}, round {number}, chosen below {chosen_end}"
        case CatchUpRequest(first_slot):
            return f"CatchUpRequest from {first_slot}"
        case CatchUpReply(_, entries, chosen_end, log_start):
            start = f", log from {log_start}" if log_start > 1 else ""
            return f"CatchUpReply {_entries(entries)} chosen below {chosen_end}{start}"
        case Forward(commands):
            return f"Forward {_commands(commands)}"
        case Hello(_, heard, cluster, members):
            return f"Hello heard={heard} cluster={cluster} members={members}"
        case Stale(_, _, seen, found):
            return f"Stale: seen {seen}, found {found}"
        case Marks(known):
            return "Marks " + ", ".join(
                f"{name}:{number}" if life >= 0 else f"{name} lost at {start}"
                for name, life, start, number in known
            )
        case Found(founding):
            return f"Found {decode_founding(founding).cluster}"
        case Stranger(cluster, expected, found):
            return f"Stranger to {cluster}: expected {expected}, found {found}"
