"""A leader: phase 2 under one ballot, from taking office to stepping down.

Opens slots, counts acceptances, moves the chosen prefix, sends heartbeats, and confirms
reads. Counts votes by identity (voters.py knows the quorums). Its own vote comes from the
replica when the write is durable. The replica decides whether to step down; this module
only says that the quorum is gone.

A change of the members is an entry of its own. Nothing is proposed ALPHA slots or more
beyond the chosen prefix. So the voters of a slot are known when it is opened. And nothing is
proposed in the slots of a membership before a quorum of it has promised this ballot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from tasksprint.consensus.acceptor import Acceptor
from tasksprint.consensus.batch import (
    COMMAND_OVERHEAD_BYTES,
    MEMBERSHIP_MARK,
    NOOP,
    encode_batch,
)
from tasksprint.consensus.learner import Learner
from tasksprint.consensus.membership import ALPHA
from tasksprint.consensus.messages import (
    Accept,
    ChosenNotice,
    Heartbeat,
    HeartbeatReply,
    Marks,
    Prepare,
    Promise,
)
from tasksprint.consensus.outbox import Outbox
from tasksprint.consensus.proposer import Campaign
from tasksprint.consensus.voters import Memberships, Voters
from tasksprint.ids import ReplicaId, Slot
from tasksprint.settings import Settings

__all__ = ["Leadership"]

# With so many writes under way a leader opens no more slots: behind a stuck disk they
# would fill the memory.
_UNWRITTEN_MAX = 256
# A resent entry waits twice as long each time, up to this many resend intervals: a slow
# peer must not drown in copies.
_RESEND_GROWTH_MAX = 16
_NEVER = Slot(1 << 62)


class _Proposal:
    """One slot under way."""

    __slots__ = (
        "commands",
        "has_spares",
        "is_chosen",
        "members",
        "resend_wait_ms",
        "sent_ms",
        "value",
        "votes",
    )

    def __init__(
        self,
        value: bytes,
        commands: tuple[bytes, ...] | None,
        members: Voters,
        sent_ms: int,
        resend_wait_ms: int,
    ) -> None:
        self.value = value
        self.commands = commands  # None: to be decoded
        self.members = members
        self.votes: set[ReplicaId] = set()
        self.is_chosen = False
        self.has_spares = False  # Not all were asked at once.
        self.sent_ms = sent_ms
        self.resend_wait_ms = resend_wait_ms


class Leadership:
    """The knowledge and the work of a leader.

    Invariants: every slot `chosen_end <= slot < next_slot` has a proposal. If a replica that
    promised knew a slot to be chosen, nothing was ever proposed in that slot.
    """

    def __init__(
        self,
        *,
        campaign: Campaign,
        memberships: Memberships,
        acceptor: Acceptor,
        learner: Learner,
        outbox: Outbox,
        settings: Settings,
        now_ms: int,
    ) -> None:
        """Take office: propose the values that must be adopted, or a no-op if there are none.

        Args:
            campaign: The one that was won, with this replica's own entries.
        """
        self.ballot = campaign.ballot
        self._campaign = campaign
        self._me = outbox.me
        self._memberships = memberships
        self._acceptor = acceptor
        self._learner = learner
        self._outbox = outbox
        self._settings = settings
        self.next_slot = learner.chosen_end
        self._open: dict[Slot, _Proposal] = {}
        self.waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._announced_end = Slot(0)  # end of the chosen prefix, as all peers were told
        self._notice_ms: int | None = None  # when they are told of a later one, at the latest
        self._since_ms = now_ms
        # Peers that made a quorum get entries at once. The others (spares) get them a little
        # later, several at a time. If this is empty, all get them at once.
        self._quick: frozenset[ReplicaId] = frozenset()
        self._held: list[Accept] = []  # entries that the spares haven't got
        self._held_until_ms = now_ms
        self.heartbeat_ms = now_ms  # when the next one is due
        self._beat = 0
        self._beats: dict[ReplicaId, int] = {}  # highest beat that each peer answered
        self._heard_ms: dict[ReplicaId, int] = {}  # last answer to this ballot
        self._refused_by: set[ReplicaId] = set()  # peers that promised a higher ballot
        self._renew_ms = 0  # when to raise the ballot if somebody still refuses
        self._reads: deque[tuple[int, list[int]]] = deque()  # (beat, reads), oldest first
        self._new_reads: list[int] = []
        self._change: bytes | None = None  # the value of an entry that waits for its slot
        self._ask_ms = now_ms  # when to ask for missing promises (again)
        self._pipeline_slots = min(settings.pipeline_slots_max, ALPHA)
        # Slots below are filled even if no command waits: with values that must be adopted, an
        # entry of this ballot, and no-ops up to the slot from which a membership governs.
        self._fill_end = max(campaign.adopted_end, Slot(self.next_slot + 1))
        self._established_end = self._fill_end
        self._phase1_end = Slot(0)  # no quorum has promised for the slots from here on
        self.members_changed()
        self._open_slots(now_ms)

    @property
    def is_established(self) -> bool:
        """Whether all adopted values, and an entry of this ballot, are chosen."""
        return self._learner.chosen_end >= self._established_end

    @property
    def deadline_ms(self) -> int:
        """When something is due: a heartbeat, a notice of what is chosen, or held entries."""
        due_ms = self.heartbeat_ms
        if self._notice_ms is not None:
            due_ms = min(due_ms, self._notice_ms)
        if self._held:
            due_ms = min(due_ms, self._held_until_ms)
        return due_ms

    # --- commands ---

    def add(self, command: bytes) -> None:
        """Let a command wait for the next entry."""
        self.waiting.append(command)
        self._waiting_bytes += len(command) + COMMAND_OVERHEAD_BYTES

    def has_work(self, now_ms: int) -> bool:
        """Whether `work` could do something."""
        if self.waiting or self._new_reads or self._change is not None:
            return True
        if self.next_slot < self._fill_end:
            return True
        if self._phase1_end < _NEVER and now_ms >= self._ask_ms:
            return True
        if self._held and now_ms >= self._held_until_ms:
            return True
        if self._notice_ms is not None:
            return now_ms >= self._notice_ms
        return self._announced_end < self._learner.chosen_end

    def work(self, now_ms: int) -> None:
        """Do what a turn's events allow: open slots, start a read round, tell what is chosen."""
        if self.waiting or self.next_slot < self._fill_end or self._change is not None:
            self._open_slots(now_ms)
        if self._phase1_end < _NEVER and now_ms >= self._ask_ms:
            self._ask_for_promises(now_ms)
        if self._reads and not self._outbox.peers:
            self._confirm_reads()  # The peers that haven't answered are members no more.
        if self._new_reads and not self._reads:
            # Reads that arrive during a round share the next one.
            self._start_beat()
        if self._held and now_ms >= self._held_until_ms:
            self._send_held()
        self._tell_chosen_soon(now_ms)

    def _tell_chosen_soon(self, now_ms: int) -> None:
        """Tell the peers what is chosen, unless the next entry can still do so in time."""
        if self._announced_end >= self._learner.chosen_end:
            self._notice_ms = None
            return
        if self._notice_ms is None:
            self._notice_ms = now_ms + self._settings.chosen_notice_delay_ms
        if now_ms >= self._notice_ms:
            self._notice_ms = None
            self.tell_chosen()

    def tell_chosen(self) -> None:
        """Tell the peers what is chosen."""
        self._announced_end = self._learner.chosen_end
        self._send_held()
        self._outbox.send_all(ChosenNotice(self.ballot, self._announced_end))

    def _open_slots(self, now_ms: int) -> None:
        """Propose in all slots that may be opened, as long as there is something to propose."""
        limit = min(self._learner.chosen_end + self._pipeline_slots, self._phase1_end)
        while self.next_slot < limit and self._outbox.unwritten_count < _UNWRITTEN_MAX:
            slot = self.next_slot
            if slot < self._fill_end and (value := self._campaign.adopt(slot)) is not None:
                self._open_slot(value, None, now_ms)
            elif slot < self._established_end:
                self._open_slot(NOOP, (), now_ms)  # a gap, or the first entry of this ballot
            elif self._change is not None:
                value, self._change = self._change, None
                self._open_slot(value, None, now_ms)
            elif self.waiting:
                commands = self._take_waiting()
                self._open_slot(encode_batch(commands), commands, now_ms)
            elif slot < self._fill_end:
                self._open_slot(NOOP, (), now_ms)
            else:
                break

    def _take_waiting(self) -> tuple[bytes, ...]:
        """Take the waiting commands of one entry: as many as fit, and at least one."""
        waiting = self.waiting
        room = self._settings.entry_bytes_max
        if self._waiting_bytes <= room:
            commands = tuple(waiting)
            waiting.clear()
            self._waiting_bytes = 0
            return commands
        taken: list[bytes] = []
        while waiting:
            size = len(waiting[0]) + COMMAND_OVERHEAD_BYTES
            if taken and size > room:
                break
            room -= size
            self._waiting_bytes -= size
            taken.append(waiting.popleft())
        return tuple(taken)

    def _open_slot(self, value: bytes, commands: tuple[bytes, ...] | None, now_ms: int) -> None:
        slot = self.next_slot
        self.next_slot = Slot(slot + 1)
        self._open[slot] = _Proposal(
            value,
            commands,
            self._memberships.at(slot),
            now_ms,
            self._settings.resend_interval_ms,
        )
        self._acceptor.accept(slot, self.ballot, value)
        self._outbox.accept_own(self.ballot, slot)
        self._announced_end = self._learner.chosen_end
        accept = Accept(self.ballot, slot, value, self._announced_end)
        self._open[slot].has_spares = self._send_accept(accept, now_ms)

    # --- spares ---

    def _send_accept(self, accept: Accept, now_ms: int) -> bool:
        """Ask for votes: first the peers that made a quorum since the last heartbeat.

        The others are asked soon after, whether they are needed or not. They write several
        entries at once. Otherwise their writes would be half of an entry's costs. The order
        matters for the pace only.

        Returns:
            Whether some peers are asked later.

        Source: Moraru et al., "There Is More Consensus in Egalitarian Parliaments"
        (SOSP 2013), "thrifty".
        """
        outbox, quick = self._outbox, self._quick
        if not quick or not self._settings.spare_delay_ms:
            outbox.send_all(accept)
            return False
        for peer in outbox.peers:
            if peer in quick:
                outbox.send(peer, accept)
        if not self._held:
            self._held_until_ms = now_ms + self._settings.spare_delay_ms
        self._held.append(accept)
        return True

    def _choose_quick(self, proposal: _Proposal, last: ReplicaId) -> None:
        """Note the peers of a quorum: they are asked first from now on.

        If all were asked at once, they all wrote at the same time, and this replica's own vote
        may have been late by only a little. Then one peer less will do. If the spares had to be
        asked, this replica's disk is slow, and all peers of this quorum are needed.

        Args:
            last: The voter that completed the quorum.
        """
        peers = proposal.votes - {self._me}
        if not proposal.has_spares and self._me not in proposal.votes:
            peers.discard(last)
        self._set_quick(peers)

    def _set_quick(self, quick: AbstractSet[ReplicaId]) -> None:
        if quick != self._quick:
            self._send_held()
            self._quick = frozenset(quick)

    def _send_held(self) -> None:
        """Send the spares the entries that they lack, before they hear that these are chosen."""
        for peer in self._outbox.peers:
            if peer not in self._quick:
                for accept in self._held:
                    self._outbox.send(peer, accept)
        self._held.clear()

    # --- members ---

    def members_changed(self) -> None:
        """Take over the memberships that the log knows by now."""
        newest_slot = self._memberships.newest_slot
        newest = self._memberships.newest
        assert newest is not None
        self._set_quick(frozenset())
        # The next change waits until this one governs, so somebody must fill the slots.
        self._fill_end = max(self._fill_end, newest_slot)
        self._phase1_end = self._find_phase1_end()
        if not newest.is_voter(self._me):
            # This replica has no part there: others propose.
            self._phase1_end = min(self._phase1_end, newest_slot)

    def _find_phase1_end(self) -> Slot:
        if self._campaign.may_propose(self._memberships.newest_slot) and (
            self._campaign.may_propose(self.next_slot)
        ):
            return _NEVER
        slot = self.next_slot
        while slot < self._memberships.newest_slot and self._campaign.may_propose(slot):
            slot = Slot(slot + 1)
        return slot

    def _ask_for_promises(self, now_ms: int) -> None:
        """Ask the voters of later slots that haven't promised this ballot yet."""
        self._ask_ms = now_ms + self._settings.resend_interval_ms
        promised_by = self._campaign.promised_by
        asked: dict[ReplicaId, None] = {}
        for members in self._memberships.open(self._learner.chosen_end):
            if not members.is_quorum(promised_by):
                asked.update(dict.fromkeys(members.ids))
        prepare = Prepare(self.ballot, self._learner.chosen_end)
        for voter in asked:
            if voter != self._me and voter not in promised_by:
                self._outbox.send(voter, prepare)

    def hear_promise(self, source: ReplicaId, promise: Promise) -> bool:
        """Count a promise that comes after the election.

        Returns:
            False: the source knows slots to be chosen in which nothing was proposed here.
            This replica must catch up before it proposes more.
        """
        if source in self._campaign.promised_by:
            return True
        if promise.first_slot > self.next_slot:
            return False
        entries = tuple(entry for entry in promise.entries if entry.slot >= self.next_slot)
        self._campaign.add_promise(source, Promise(promise.ballot, promise.first_slot, entries))
        self._fill_end = max(self._fill_end, self._campaign.adopted_end)
        self._established_end = max(self._established_end, self._campaign.adopted_end)
        self.members_changed()
        return True

    @property
    def change_is_under_way(self) -> bool:
        """Whether a membership was proposed, or chosen, and doesn't govern yet.

        The same holds for a command that stands alone, until it is chosen.
        """
        return (
            self._change is not None
            or not self.is_established
            or self._memberships.newest_slot > self._learner.chosen_end
            or any(each.value.startswith(MEMBERSHIP_MARK) for each in self._open.values())
        )

    def change(self, value: bytes) -> None:
        """Propose a membership, or a command that stands alone, in the next slot."""
        assert not self.change_is_under_way
        self._change = value

    def heard_since(self, oldest_ms: int) -> set[ReplicaId]:
        """Return the replicas that were heard in this leadership since then, and this one."""
        heard = {peer for peer, heard_ms in self._heard_ms.items() if heard_ms >= oldest_ms}
        heard.add(self._me)
        return heard

    # --- votes ---

    def hear_accepted(self, source: ReplicaId, slots: Iterable[Slot], now_ms: int) -> None:
        """Count a peer's acceptances."""
        self._hear(source, now_ms)
        self.vote(source, slots)

    def vote(self, voter: ReplicaId, slots: Iterable[Slot]) -> None:
        """Count acceptances, durable at the voter, of this ballot's values."""
        for slot in slots:
            proposal = self._open.get(slot)
            if proposal is not None and not proposal.is_chosen:
                proposal.votes.add(voter)
                if proposal.members.is_quorum(proposal.votes):
                    proposal.is_chosen = True
                    self._choose_quick(proposal, voter)
        self._advance()

    def _advance(self) -> None:
        """Move the chosen prefix over the slots that a quorum has accepted."""
        learner = self._learner
        was_established = self.is_established
        while True:
            slot = learner.chosen_end
            proposal = self._open.get(slot)
            if proposal is None or not proposal.is_chosen:
                break
            del self._open[slot]
            learner.choose(self._acceptor.close(slot), proposal.commands)
        if self._reads and not was_established and self.is_established:
            self._confirm_reads()

    def hear_nack(self, source: ReplicaId, now_ms: int) -> bool:
        """Take note that a peer has promised a higher ballot.

        Returns:
            Whether the others could still make a quorum. If so, the leader goes on. It raises
            its ballot later, if the peer still refuses by then. It doesn't do so at once: a
            candidacy may be under way, and the two would chase each other.
        """
        if not self._refused_by:
            self._renew_ms = now_ms + self._settings.election_timeout_max_ms
        self._refused_by.add(source)
        return self._memberships.could_be_quorum_without(
            self._refused_by, self._learner.chosen_end
        )

    def _hear(self, source: ReplicaId, now_ms: int) -> None:
        self._heard_ms[source] = now_ms
        if self._refused_by:
            self._refused_by.discard(source)

    # --- time ---

    def has_quorum(self, now_ms: int) -> bool:
        """Whether a quorum was heard within one election span."""
        oldest_ms = now_ms - self._settings.election_timeout_max_ms
        if self._since_ms >= oldest_ms:
            return True
        return self._memberships.is_quorum(self.heard_since(oldest_ms), self._learner.chosen_end)

    def must_renew(self, now_ms: int) -> bool:
        """Whether a higher ballot is due: a peer has refused this one for too long."""
        return bool(self._refused_by) and now_ms >= self._renew_ms

    def beat(self, now_ms: int) -> None:
        """Send a heartbeat, and send unanswered entries again."""
        self.heartbeat_ms = now_ms + self._settings.heartbeat_interval_ms
        interval_ms = self._settings.resend_interval_ms
        first_slot = self._learner.chosen_end
        for slot, proposal in self._open.items():
            # Everything waits for the first open slot. Perhaps a peer had no room for it
            # before. So its wait doesn't grow.
            wait_ms = interval_ms if slot == first_slot else proposal.resend_wait_ms
            if now_ms - proposal.sent_ms < wait_ms:
                continue
            proposal.sent_ms = now_ms
            proposal.resend_wait_ms = min(2 * wait_ms, _RESEND_GROWTH_MAX * interval_ms)
            accept = Accept(self.ballot, slot, proposal.value, first_slot)
            for peer in self._outbox.peers:
                if peer not in proposal.votes:
                    self._outbox.send(peer, accept)
        if known := self._outbox.numbers.take_untold():
            self._outbox.send_all(Marks(known))
        self._start_beat()
        self._set_quick(frozenset())  # The next entry shows which peers are quick now.

    # --- reads ---

    def add_read(self, read_id: int) -> None:
        """Let a read wait for a round of heartbeats; the round starts after the read."""
        self._new_reads.append(read_id)

    def _start_beat(self) -> None:
        self._beat += 1
        if self._new_reads:
            self._reads.append((self._beat, self._new_reads))
            self._new_reads = []
        self._announced_end = self._learner.chosen_end
        self._send_held()
        self._outbox.send_all(Heartbeat(self.ballot, self._beat, self._announced_end))
        if self._reads:
            self._confirm_reads()  # a cluster of one needs no answer

    def hear_beat(self, source: ReplicaId, reply: HeartbeatReply, now_ms: int) -> None:
        """Take an answer to a heartbeat of this ballot."""
        self._hear(source, now_ms)
        if reply.beat > self._beats.get(source, 0):
            self._beats[source] = reply.beat
            if self._reads:
                self._confirm_reads()

    def _confirm_reads(self) -> None:
        """Confirm the reads whose round a quorum has answered, once established.

        After the read began, a quorum still had promised nothing higher. So no later leader
        had anything chosen before the read. An established leader's log holds all entries
        that former leaders had chosen.
        """
        if not self.is_established:
            return
        while self._reads:
            beat, reads = self._reads[0]
            voters = {peer for peer, answered in self._beats.items() if answered >= beat}
            voters.add(self._me)
            if not self._memberships.is_quorum(voters, self._learner.chosen_end):
                return
            self._reads.popleft()
            self._outbox.confirmed_reads += reads

    def step_down(self) -> None:
        """Fail the reads, and drop the waiting commands: their senders repeat them."""
        for _, reads in self._reads:
            self._outbox.failed_reads += reads
        self._outbox.failed_reads += self._new_reads
        self._reads.clear()
        self._new_reads = []
        self.waiting.clear()

    def check(self) -> None:
        """Assert what must hold between events."""
        end = self._learner.chosen_end
        assert set(self._open) == set(range(end, self.next_slot))
        assert self._acceptor.promised == self.ballot
        for slot, proposal in self._open.items():
            held = self._acceptor.open[slot]
            assert held.ballot == self.ballot and held.value == proposal.value
        assert self._waiting_bytes == sum(
            len(command) + COMMAND_OVERHEAD_BYTES for command in self.waiting
        )
