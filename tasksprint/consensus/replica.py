"""One replica of the log: the facade over acceptor, proposer, learner and election.

A deterministic object: events go in with the time, and `ready` returns orders to the shell,
to send, to write and to apply (effects.py has their order). It opens nothing, waits for
nothing, and doesn't know the meaning of a command.

Everything rests on three rules:

- A message about this replica's own state (a promise, an acceptance, a candidacy) leaves
  after the write that remembers it. The replica's own vote counts from then on.
- A replica proposes only under ballots that it raised in this life; a restart begins
  as a follower. So no (ballot, slot) ever carries two values.
- Only messages of the incarnations in the founding entry, or in a membership, count.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from tasksprint.consensus.acceptor import Acceptor
from tasksprint.consensus.admission import Admission
from tasksprint.consensus.ballot import NO_BALLOT, Ballot
from tasksprint.consensus.batch import split_commands, stands_alone
from tasksprint.consensus.candidate import Candidate
from tasksprint.consensus.catch_up import CatchUp
from tasksprint.consensus.effects import PeerStatus, ReadLog, Ready, Recovered, Status
from tasksprint.consensus.election import Election
from tasksprint.consensus.founding import Foundation, Founding, Member
from tasksprint.consensus.leadership import Leadership
from tasksprint.consensus.learner import Learner
from tasksprint.consensus.lives import Lives
from tasksprint.consensus.log_entry import LogEntry
from tasksprint.consensus.membership import Membership
from tasksprint.consensus.messages import (
    Accept,
    Accepted,
    Canvass,
    CanvassReply,
    CatchUpReply,
    CatchUpRequest,
    ChosenNotice,
    Envelope,
    Forward,
    Greeting,
    Heartbeat,
    HeartbeatReply,
    Nack,
    Prepare,
    Promise,
    Resign,
)
from tasksprint.consensus.outbox import Outbox
from tasksprint.consensus.pace import Pace
from tasksprint.consensus.reconfiguration import Reconfiguration
from tasksprint.consensus.skips import first_slots
from tasksprint.consensus.voters import Memberships
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import ReplicaId, Slot
from tasksprint.release import SILENT, Speaks
from tasksprint.settings import Settings

__all__ = ["Replica"]

_NEVER_MS = 1 << 62


class Replica:
    """One replica. docs/architecture.md, "The replica core", is its contract."""

    def __init__(
        self,
        *,
        me: ReplicaId,
        address: str,
        recovered: Recovered,
        settings: Settings,
        random: Random,
        now_ms: int,
        peers: Mapping[ReplicaId, str] | None = None,
        is_joining: bool = False,
        speaks: Speaks = SILENT,
    ) -> None:
        """Build a replica from the memory of its disk.

        Args:
            peers: The founding members by the command line, until founded; none: one alone.
            is_joining: Found nothing, but wait until a cluster adds this replica.
        """
        self.me = me
        self.incarnation = recovered.incarnation
        self._settings = settings
        self._now_ms = now_ms
        chosen_end = max(recovered.chosen_end, recovered.applied_end)
        self._memberships = Memberships.remembered(recovered.founding, recovered.memberships)
        self._learner = Learner(
            entries=recovered.accepted,
            chosen_end=chosen_end,
            applied_end=recovered.applied_end,
            log_start=recovered.log_start,
            known_end=recovered.known_end,
            settings=settings,
            memberships=self._memberships,
        )
        self._acceptor = Acceptor(
            promised=recovered.promised or NO_BALLOT,
            entries=(entry for entry in recovered.accepted if entry.slot >= chosen_end),
            slots_max=settings.log_window_slots,
            bytes_max=settings.log_window_bytes_max,
        )
        self._outbox = Outbox(
            me=me,
            life=random.getrandbits(53),
            recovered=recovered,
            acceptor=self._acceptor,
            learner=self._learner,
        )
        self._election = Election(settings, random, now_ms)
        self._election.see_round(self._acceptor.promised.round)
        self._leadership: Leadership | None = None
        self._pace = Pace(
            outbox=self._outbox, learner=self._learner, settings=settings, now_ms=now_ms
        )
        self._catch_up = CatchUp(
            acceptor=self._acceptor,
            learner=self._learner,
            outbox=self._outbox,
            settings=settings,
            random=random,
        )
        self.lives = Lives(settings, own=self._outbox.numbers.last.life)
        self._forwards: list[bytes] = []
        self._admission = Admission(
            incarnation=recovered.incarnation,
            foundation=Foundation(
                me=me,
                incarnation=recovered.incarnation,
                address=address,
                members=peers or (),
                random=random,
                speaks=speaks,
            ),
            founding=recovered.founding,
            skips=recovered.skips or b"",
            memberships=self._memberships,
            learner=self._learner,
            outbox=self._outbox,
            is_joining=is_joining,
        )
        self._candidate = Candidate(
            memberships=self._memberships,
            election=self._election,
            acceptor=self._acceptor,
            learner=self._learner,
            catch_up=self._catch_up,
            outbox=self._outbox,
            pace=self._pace,
            settings=settings,
            random=random,
        )
        self._reconfiguration = Reconfiguration(
            memberships=self._memberships,
            learner=self._learner,
            catch_up=self._catch_up,
            outbox=self._outbox,
            settings=settings,
        )
        self._hello_ms = now_ms + settings.resend_interval_ms
        # Also when founded: a lost disk must be noticed before it is asked for votes.
        self._admission.greet_all()
        if not self._memberships.has_news:
            self._memberships.advance(chosen_end)
        self._refresh_standing()
        may_stand = self._may_stand and self._learner.is_whole
        if may_stand and self._memberships.is_quorum({me}, chosen_end):
            self._candidate.canvass("is the only member", now_ms)

    # --- what the shell asks ---

    @property
    def is_leader(self) -> bool:
        """Whether this replica may propose, as far as it knows."""
        return self._leadership is not None

    @property
    def is_established(self) -> bool:
        """Whether it leads, and an entry of its own ballot is chosen, with all before it."""
        return self._leadership is not None and self._leadership.is_established

    @property
    def leader(self) -> ReplicaId | None:
        """The replica that leads, as far as this one knows."""
        return self.me if self._leadership is not None else self._election.leader

    @property
    def ballot(self) -> Ballot:
        """The highest ballot that was promised, or under which a leader was heard."""
        return max(self._acceptor.promised, self._election.ballot)

    @property
    def chosen_end(self) -> Slot:
        """First slot that this replica doesn't know to be chosen."""
        return self._learner.chosen_end

    @property
    def state_givers(self) -> tuple[ReplicaId, ...]:
        """Peers to ask for a copy of the state, and then `state_copied`; none: the log will do.

        Set while this replica lacks slots, and all peers in its reach have truncated them.
        """
        return () if self._leadership is not None else self._catch_up.state_givers

    @property
    def founding(self) -> Founding | None:
        """The founding entry: the cluster's name and its first members; None: unfounded."""
        return self._admission.founding

    @property
    def skips(self) -> dict[str, Slot]:
        """Commands that aren't to be applied: digest of their bytes -> first slot (skips.py)."""
        return first_slots(self._admission.skips)

    @property
    def membership(self) -> Membership | None:
        """The newest membership that is chosen in the log here; None: unfounded."""
        return self._memberships.newest

    @property
    def membership_governs(self) -> bool:
        """Whether it governs already, and a quorum of it knows so: nothing is under way."""
        leadership = self._leadership
        return leadership is not None and self._reconfiguration.is_done(leadership)

    @property
    def addresses(self) -> dict[ReplicaId, str]:
        """The replicas that this one wants to speak with, without itself; none while unfounded."""
        return self._admission.addresses

    @property
    def deadline_ms(self) -> int:
        """When `tick` wants to be called."""
        if self._outbox.fatal is not None:
            return _NEVER_MS
        if self._admission.founding is None:
            return self._hello_ms
        if self._leadership is not None:
            return self._leadership.deadline_ms if self._outbox.peers else _NEVER_MS
        deadline_ms = self._candidate.deadline_ms if self._may_stand else _NEVER_MS
        if self._is_leaving:
            deadline_ms = min(deadline_ms, self._hello_ms)
        catch_up_ms = self._catch_up.deadline_ms
        return deadline_ms if catch_up_ms is None else min(deadline_ms, catch_up_ms)

    def status(self) -> Status:
        """Return this replica at a glance."""
        known_end = self._catch_up.known_end
        return Status(
            role=self._role(),
            cluster=None if self.founding is None else self.founding.cluster,
            ballot=self.ballot,
            leader=self.leader,
            chosen_end=self.chosen_end,
            elections=self._election.count,
            last_cause=self._election.cause,
            waiting_commands=0 if self._leadership is None else len(self._leadership.waiting),
            open_slots=len(self._acceptor.open),
            log_start=self._learner.log_start,
            state_givers=self.state_givers,
            durable=self._outbox.numbers.now.number,
            handovers=self._pace.handovers,
            write_ms=self._outbox.oldest_age_ms(self._now_ms),
            peers={
                peer: PeerStatus(known_end(peer), self.lives.age_ms(peer, self._now_ms))
                for peer in self._outbox.peers
            },
        )

    def _role(self) -> str:
        if self._outbox.fatal is not None:
            return "stopped"
        if self._admission.founding is None:
            return "unfounded"
        if self._leadership is not None:
            return "leader"
        if self._candidate.campaign is not None:
            return "candidate"
        return "follower" if self._election.canvass is None else "canvassing"

    # --- changing the members ---

    def add_member(
        self, member: Member, now_ms: int, *, replaces: ReplicaId | None = None
    ) -> str | None:
        """Let a leader add a learner; it becomes a voter by itself once it has caught up.

        Args:
            replaces: The voter that is removed after that.

        Returns:
            The reason of a refusal; None: it is or will be proposed, if leadership lasts.
        """
        self._now_ms = now_ms
        assert self._leadership is not None, "only a leader changes the members"
        return self._reconfiguration.add(self._leadership, member, replaces, now_ms)

    def remove_member(self, replica: ReplicaId, now_ms: int) -> str | None:
        """Let a leader remove a voter (perhaps itself) or a learner; as `add_member`."""
        self._now_ms = now_ms
        assert self._leadership is not None, "only a leader changes the members"
        return self._reconfiguration.remove(self._leadership, replica, now_ms)

    def members_prepared(self, number: int) -> None:
        """Let the next change follow by itself (`next_step`) only on this membership."""
        self._reconfiguration.prepared_number = number

    def _refresh_standing(self) -> None:
        """Find out whether this replica may stand, and whether it is to leave."""
        self._is_leaving = self._admission.is_leaving
        self._may_stand = (
            self._outbox.fatal is None
            and not self._is_leaving
            and self._memberships.votes(self.me, self._learner.chosen_end)
        )

    def _take_over_members(self) -> None:
        """Act on memberships that were learned, or that have begun to govern."""
        memberships, chosen_end = self._memberships, self._learner.chosen_end
        newest = memberships.newest
        assert newest is not None
        if memberships.has_news:
            self._outbox.note(
                f"membership {newest.number}: {newest.describe()}; "
                f"governs from slot {memberships.newest_slot} on"
            )
        memberships.advance(chosen_end)
        # Durable before any replica is told that it is no member any more.
        self._outbox.write_memberships(memberships.encode())
        self._refresh_standing()
        if self._leadership is not None and self._is_leaving:
            self._leadership.tell_chosen()
            self._resign("was removed from the cluster")
        self._admission.refresh()
        if self._leadership is not None:
            self._leadership.members_changed()

    # --- what the shell reports ---

    def propose(self, command: bytes, now_ms: int, *, is_alone: bool = False) -> bool:
        """Let a command wait for the next entry.

        Args:
            is_alone: It gets an entry of its own. Old releases refuse such an entry (batch.py).

        Returns:
            False: this replica doesn't lead, too many wait, or it is larger than
            command_bytes_max; nothing was taken. True is no promise: a leader that steps
            down silently drops waiting commands, so senders repeat them.
        """
        self._now_ms = now_ms
        leadership = self._leadership
        if leadership is None:
            return False
        if is_alone:
            return self._reconfiguration.propose_alone(leadership, command)
        if len(leadership.waiting) >= self._settings.waiting_commands_max:
            return False
        if len(command) > self._settings.command_bytes_max:
            return False  # Its frame, or a promise that holds it, might never get through.
        leadership.add(command)
        return True

    def forward(self, command: bytes) -> bool:
        """Propose a command, or send it to the leader; it may be lost on the way.

        False: no leader is known, or too many wait.
        """
        if self._leadership is not None:
            return self.propose(command, self._now_ms)
        if self._election.leader is None or self._outbox.fatal is not None:
            return False
        if len(self._forwards) >= self._settings.waiting_commands_max:
            return False
        self._forwards.append(command)
        return True

    def read(self, read_id: int, now_ms: int) -> bool:
        """Ask whether this replica still leads at some moment after now.

        The id comes back in `confirmed_reads` or in `failed_reads`. Confirmed means: this log
        holds every command that anyone saw chosen before this call. False: it doesn't lead.
        """
        self._now_ms = now_ms
        if self._leadership is None:
            return False
        self._leadership.add_read(read_id)
        return True

    def connected(self, peer: ReplicaId, now_ms: int) -> None:
        """Learn that messages to a peer reach it from now on."""
        self._admission.connected(peer)
        self._candidate.reach(peer, now_ms)

    def disconnected(self, peer: ReplicaId, now_ms: int) -> None:
        """Learn that the stream to a peer broke: if it led, its process probably died."""
        self._now_ms = now_ms
        self.lives.end(peer)
        if self._leadership is not None or self._election.leader != peer:
            return
        self._lose_leader(f"lost its connection to the leader, replica {peer}")

    def _lose_leader(self, cause: str) -> None:
        self._election.lose_leader(cause)
        if self._candidate.campaign is None:
            self._election.hurry(self._now_ms)

    def hand_over(self, cause: str, now_ms: int) -> bool:
        """Let a leader resign because somebody else would do better, and then hold back.

        False: it stays. Nobody else can be elected, or nobody else stood when it held back.
        """
        self._now_ms = now_ms
        if self._leadership is None or not self._pace.may_hand_over(now_ms):
            return False
        if not self._memberships.could_be_quorum_without({self.me}, self._learner.chosen_end):
            return False
        self._pace.hand_over(now_ms)
        self._resign(cause)
        return True

    def log_read(self, request: ReadLog, entries: tuple[LogEntry, ...], now_ms: int) -> None:
        """Pass on entries that were read back for a peer."""
        self._now_ms = now_ms
        self._catch_up.log_read(request, entries)

    def truncated(self, log_start: Slot) -> None:
        """Learn that the store is going to forget entries below a slot.

        Earlier reads of the log (`ReadLog`) must be answered with the entries of before.
        """
        self._learner.truncate(log_start)

    def members_copied(self, memberships: bytes | None) -> bytes | None:
        """Take over the memberships of the replica that gives a copy of the state.

        Returns:
            The memberships to be made durable together with the copy.
        """
        self._memberships.take_copy(memberships)
        return self._memberships.encode()

    def state_copied(self, applied_end: Slot, now_ms: int) -> None:
        """Learn that a copy of the state, up to this slot, is durable in place of our own.

        The memberships were taken over before (`members_copied`). The store has forgotten the
        log below the slot. Promises and acceptances from there on stay as they are. The shell
        must not apply entries below any more.
        """
        self._now_ms = now_ms
        # Meanwhile a peer may have come back with the log, and this replica may lead.
        self._step_down("takes over a copy of the state")
        self._learner.skip_to(applied_end, self._acceptor)
        self._catch_up.progressed()
        self._catch_up.stop()
        self._outbox.note(f"took over a copy of the state up to slot {applied_end - 1}")
        self._candidate.extend(now_ms)
        self._try_take_office()

    def persisted(self, sequence: int, now_ms: int) -> None:
        """Learn that everything up to this `Ready`'s `persist` is durable."""
        self._now_ms = now_ms
        for write in self._outbox.persisted(sequence):
            self._pace.wrote(now_ms - write.handed_ms, now_ms)
            # Own votes count from here on, if they still matter.
            leadership, campaign = self._leadership, self._candidate.campaign
            if leadership is not None and write.own_ballot == leadership.ballot:
                leadership.vote(self.me, write.own_slots)
            if campaign is not None and write.promised == campaign.ballot:
                campaign.add_own_promise(self.me)
                self._try_take_office()
            if write.is_founding and self._admission.is_founder and campaign is None:
                # The founder goes first; the others wait for their timers.
                self._candidate.canvass("founded the cluster", now_ms)
            self._learner.trim(write.chosen_end)

    def tick(self, now_ms: int) -> None:
        """Do what is due; call it at or after `deadline_ms`."""
        self._now_ms = now_ms
        if self._outbox.fatal is not None:
            return
        if self._admission.founding is None:
            if now_ms >= self._hello_ms:
                self._hello_ms = now_ms + self._settings.resend_interval_ms
                self._admission.greet_all()
            return
        if self._leadership is not None:
            if now_ms >= self._leadership.heartbeat_ms:
                self._tick_leader(self._leadership)
            return
        if self._may_stand:
            self._candidate.tick(now_ms)
        elif self._is_leaving and now_ms >= self._hello_ms:
            # Members that know of our removal say so, and send us home.
            self._hello_ms = now_ms + self._settings.resend_interval_ms
            self._admission.greet_all()
        self._catch_up.tick(now_ms)

    def receive(self, envelope: Envelope, now_ms: int) -> None:
        """Take a message; only members in the life that the cluster knows are heard."""
        self._now_ms = now_ms
        if self._outbox.fatal is not None:
            return
        source, message = envelope.source, envelope.message
        if self._admission.incarnations.get(source) != envelope.source_incarnation:
            self._hear_outsider(envelope)
            return
        if envelope.target != self.me or source == self.me:
            return
        if self.lives.is_twin(source, envelope.mark.life, now_ms):
            self._outbox.note_once(f"hears nothing of a second process as replica {source}")
            return
        if not self._outbox.numbers.hear(envelope.source_incarnation, envelope.mark):
            self._admission.refuse_older(envelope)
            return
        self.lives.hear(source, envelope.mark.life, now_ms)
        match message:
            case Accept():
                self._on_accept(source, message)
            case Accepted():
                if self._leadership is not None and message.ballot == self._leadership.ballot:
                    self._leadership.hear_accepted(source, message.slots, now_ms)
            case ChosenNotice():
                if self._follows(source, message.ballot):
                    self._hear_chosen(source, message.ballot, message.chosen_end)
            case Heartbeat():
                self._on_heartbeat(source, message)
            case HeartbeatReply():
                self._catch_up.hear_end(source, message.chosen_end)
                if self._leadership is not None and message.ballot == self._leadership.ballot:
                    self._leadership.hear_beat(source, message, now_ms)
            case Forward():
                for command in message.commands:
                    self.propose(command, now_ms)
            case CatchUpRequest():
                self._catch_up.hear_request(source, message)
            case CatchUpReply():
                self._on_catch_up_reply(source, message)
            case Canvass():
                self._on_canvass(source, message)
            case CanvassReply():
                self._on_canvass_reply(source, message)
            case Prepare():
                self._on_prepare(source, message)
            case Promise():
                self._on_promise(source, message)
            case Nack():
                self._on_nack(source, message)
            case Resign():
                if self._election.leader == source and self._election.ballot == message.ballot:
                    self._lose_leader(f"heard that replica {source} resigned: {message.cause}")
            case _ if isinstance(message, Greeting):
                self._hear_outsider(envelope)
            case _:
                raise RemoteProtocolError(f"replica {source} sent {message!r}")

    @property
    def has_work(self) -> bool:
        """Whether `ready` may return something; False: it would return None."""
        leadership = self._leadership
        return (
            self._outbox.has_news
            or self._memberships.has_news
            or self._learner.chosen_end >= self._memberships.next_slot
            or bool(self._forwards)
            or (leadership is not None and leadership.has_work(self._now_ms))
        )

    def ready(self) -> Ready | None:
        """Return what is to be done now; None: nothing."""
        if self._memberships.has_news or self._learner.chosen_end >= self._memberships.next_slot:
            self._take_over_members()
        if self._leadership is not None:
            self._leadership.work(self._now_ms)
        if self._forwards:
            if self._election.leader is not None and self._leadership is None:
                for commands in split_commands(self._forwards, self._settings.catch_up_bytes_max):
                    self._outbox.send(self._election.leader, Forward(commands))
            self._forwards.clear()
        return self._outbox.take(self._now_ms)

    # --- founding ---

    def _hear_outsider(self, envelope: Envelope) -> None:
        was_founded = self._admission.founding is not None
        self._admission.hear(envelope)
        if self._admission.founding is not None and not was_founded:
            self._election.wait(self._now_ms)
        self._refresh_standing()
        if self._outbox.fatal is not None:
            self._step_down("stops")
            self._candidate.campaign = None
        elif self._is_leaving:
            self._step_down("was removed from the cluster")

    # --- following ---

    def _follows(self, source: ReplicaId, ballot: Ballot) -> bool:
        """Follow the leader of `ballot`, or refuse it.

        False: a higher ballot was promised or heard, and the source was told so.
        """
        election = self._election
        if ballot < self._acceptor.promised or ballot < election.ballot:
            self._outbox.send(source, Nack(ballot, self.ballot))
            return False
        if ballot.replica != source:
            raise RemoteProtocolError(f"replica {source} leads under {ballot}, not its own")
        if election.leader != source or election.ballot != ballot:
            self._yield_to(ballot)
            election.see_round(ballot.round)
            self._outbox.note(f"ballot={ballot} follows replica {source}")
        election.hear(source, ballot, self._now_ms)
        return True

    def _on_accept(self, source: ReplicaId, message: Accept) -> None:
        ballot, slot = message.ballot, message.slot
        if not self._follows(source, ballot):
            return
        if stands_alone(message.value) and not self.lives.reads_alone(source):
            if self._may_stand:
                self._candidate.depose(source, self._now_ms)
            return
        if slot < self._learner.chosen_end:
            # The leader doesn't know yet that this is chosen.
            if self._learner.agrees(slot, ballot, message.value):
                self._acceptor.raise_promise(ballot)
                self._outbox.acknowledge(ballot, slot)
        elif (
            # Chosen values that were lost here are fetched: a former leader may not know them.
            slot >= self._learner.known_end
            and self._acceptor.has_room(slot, self._learner.chosen_end)
            and self._outbox.unwritten_bytes < self._settings.log_window_bytes_max
        ):
            self._acceptor.accept(slot, ballot, message.value)
            self._outbox.acknowledge(ballot, slot)
        self._hear_chosen(source, ballot, message.chosen_end)

    def _on_heartbeat(self, source: ReplicaId, message: Heartbeat) -> None:
        if not self._follows(source, message.ballot):
            return
        self._hear_chosen(source, message.ballot, message.chosen_end)
        reply = HeartbeatReply(message.ballot, message.beat, self._learner.chosen_end)
        self._outbox.send(source, reply)

    def _hear_chosen(self, source: ReplicaId, ballot: Ballot, chosen_end: Slot) -> None:
        """Hear from the leader of `ballot` where its chosen prefix ends."""
        self._catch_up.hear_end(source, chosen_end)
        if chosen_end > self._learner.chosen_end:
            self._learner.mark(ballot, chosen_end, self._acceptor)
            self._catch_up.want(source, chosen_end, self._now_ms)

    def _hear_elsewhere(self, source: ReplicaId, chosen_end: Slot) -> None:
        """Hear from any peer, a leader or not, where its chosen prefix ends."""
        self._catch_up.hear_end(source, chosen_end)
        if self._leadership is None:
            self._catch_up.want(source, chosen_end, self._now_ms)

    def _on_catch_up_reply(self, source: ReplicaId, message: CatchUpReply) -> None:
        if self._leadership is not None:
            return  # A leader has all that former ballots chose, and counts its own votes.
        if self._catch_up.hear_reply(source, message, self._now_ms):
            self._candidate.extend(self._now_ms)
            self._try_take_office()

    # --- elections ---

    def _on_canvass(self, source: ReplicaId, message: Canvass) -> None:
        is_leader = self._leadership is not None
        self._candidate.hear_canvass(source, message, self._now_ms, is_leader=is_leader)
        self._hear_elsewhere(source, message.chosen_end)

    def _on_canvass_reply(self, source: ReplicaId, message: CanvassReply) -> None:
        self._candidate.hear_canvass_reply(source, message, self._now_ms)
        self._hear_elsewhere(source, message.chosen_end)

    def _on_prepare(self, source: ReplicaId, message: Prepare) -> None:
        ballot, election = message.ballot, self._election
        if ballot.replica != source:
            raise RemoteProtocolError(f"replica {source} stands under {ballot}, not its own")
        self._catch_up.hear_end(source, message.first_slot)
        if ballot < election.ballot:
            self._outbox.send(source, Nack(ballot, self.ballot))
            return
        first_slot = max(message.first_slot, self._learner.known_end)
        answer = self._acceptor.promise(ballot, first_slot)
        if isinstance(answer, Nack):
            self._outbox.send(source, answer)
            return
        self._yield_to(ballot)
        election.see_round(ballot.round)
        if election.ballot != ballot:  # Else: repeated by a leader that we follow already.
            election.lose_leader(f"promised ballot {ballot}")
            election.wait(self._now_ms)
        self._outbox.send_after_persist(source, answer)

    def _on_promise(self, source: ReplicaId, message: Promise) -> None:
        leadership = self._leadership
        if leadership is not None and message.ballot == leadership.ballot:
            if not leadership.hear_promise(source, message):
                self._step_down(f"replica {source} knows more of the log")
                self._catch_up.want(source, message.first_slot, self._now_ms)
            return
        self._candidate.hear_promise(source, message)
        self._try_take_office()

    def _on_nack(self, source: ReplicaId, message: Nack) -> None:
        self._election.see_round(message.promised.round)
        if self._candidate.hear_nack(source, message, self._now_ms):
            return
        leadership = self._leadership
        if leadership is None or message.ballot != leadership.ballot:
            return
        if not leadership.hear_nack(source, self._now_ms):
            self._step_down(f"replica {source} knows ballot {message.promised}")

    def _yield_to(self, ballot: Ballot) -> None:
        """Give up a candidacy or a leadership under a lower ballot."""
        self._candidate.yield_to(ballot)
        if self._leadership is not None and self._leadership.ballot < ballot:
            self._step_down(f"ballot {ballot} is higher")

    # --- leading ---

    def _try_take_office(self) -> None:
        """Lead, if the campaign is won."""
        campaign = self._candidate.try_win(self._now_ms)
        if campaign is None:
            return
        self._catch_up.stop()
        members = self._memberships.at(self._learner.chosen_end)
        count, size = len(campaign.promised_by), len(members.ids)
        self._outbox.note(
            f"ballot={campaign.ballot} became leader after {count} of {size} promises"
        )
        campaign.take_own(self._acceptor.open)
        self._election.hear(self.me, campaign.ballot, self._now_ms)
        self._pace.take_office(self._now_ms)
        self._leadership = Leadership(
            campaign=campaign,
            memberships=self._memberships,
            acceptor=self._acceptor,
            learner=self._learner,
            outbox=self._outbox,
            settings=self._settings,
            now_ms=self._now_ms,
        )

    def _tick_leader(self, leadership: Leadership) -> None:
        if not leadership.has_quorum(self._now_ms):
            self._step_down("heard no quorum for an election span")
        elif leadership.must_renew(self._now_ms):
            cause = "a replica refused its ballot for long"
            self._step_down(cause)
            self._candidate.stand(cause, self._now_ms)
        else:
            slow = self._pace.look(self._now_ms)
            if slow is None or not self.hand_over(slow, self._now_ms):
                # (A leader that can't hand over goes on: it must be heard.)
                self._reconfiguration.go_on(leadership, self._now_ms)
                leadership.beat(self._now_ms)

    def _resign(self, cause: str) -> None:
        """Step down, and have the others elect somebody at once."""
        assert self._leadership is not None
        self._outbox.send_all(Resign(self._leadership.ballot, cause))
        self._step_down(cause)

    def _step_down(self, cause: str) -> None:
        if self._leadership is not None:
            self._outbox.note(f"ballot={self._leadership.ballot} steps down: {cause}")
            self._leadership.step_down()
            self._leadership = None
            self._election.lose_leader(cause)
            self._election.wait(self._now_ms)

    def check(self) -> None:
        """Assert the invariants of this replica; for tests."""
        self._acceptor.check(self._learner.chosen_end)
        self._learner.check()
        campaign = self._candidate.campaign
        assert self._leadership is None or campaign is None
        assert campaign is None or self._acceptor.promised == campaign.ballot
        if self._leadership is not None:
            self._leadership.check()
        if self._admission.founding is None:
            assert self._leadership is None and campaign is None
            assert self._acceptor.promised == NO_BALLOT
