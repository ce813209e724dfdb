"""What must hold, whatever the network, the disks and the processes do.

Watches messages as they leave, disks as they become durable, and what replicas apply. It
keeps its own account of what is chosen (a value that a quorum of disks holds under one
ballot), of who votes in which slot, and asks no replica.

Verified at every step:
  two-chosen        no slot has two chosen values
  two-values        no (ballot, slot) carries two values
  not-chosen        what a replica applies was accepted by a quorum, durably, under one ballot
  promise-back      a durable promise never goes back; nothing is accepted below it, later on
  not-durable       a promise, acceptance, candidacy or proposal left after its write
  former-life       nobody proposes under a ballot from before its restart
  stranger-votes    a replica that lost its disk says nothing as its old self; what one says
                    whose disk went back in time counts for nobody
  out-of-order      slots are applied one after the other, each once
  state-differs     replicas that applied the same slots have the same state
  lost-command      an acknowledged command is in the log, in the slot it was acknowledged for
  early-answer      nobody is told that a command was carried out before it was applied
  stale-read        a confirmed read sees every command acknowledged before it began
  core              no assertion of the core fails, and it refuses no message of its peers
  crash             nothing else is raised that nobody expects
  beyond-alpha      nobody accepts anything ALPHA slots or more beyond what is chosen
  no-overlap        majorities of a membership and of the next one have a member in common
  too-soon          no membership is chosen before the one before it governs
And at the end of some seeds, when all else works:
  hung-leader       a leader whose disk hangs is replaced within a stated time, for long

Not verified: that nothing but minimal messages is sent, timing within the phases, what
happens if disks lie about being durable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tasksprint.consensus import (
    ALPHA,
    Accept,
    Accepted,
    Ballot,
    CatchUpReply,
    Chosen,
    Envelope,
    Found,
    Hello,
    LogEntry,
    Member,
    Membership,
    Persist,
    Prepare,
    Promise,
    Stale,
    Stranger,
    decode_batch,
    decode_founding,
    decode_membership_value,
)
from tasksprint.consensus.ballot import NO_BALLOT
from tasksprint.ids import Incarnation, ReplicaId, Slot
from tests.simulation.world import Violation

__all__ = ["CheckedNode", "Checker", "Violation"]


class _State(Protocol):
    """What a replica's disk holds."""

    @property
    def incarnation(self) -> Incarnation: ...

    @property
    def promised(self) -> Ballot | None: ...

    @property
    def accepted(self) -> Mapping[Slot, LogEntry]: ...

    @property
    def log_start(self) -> int: ...

    @property
    def applied_end(self) -> Slot: ...

    @property
    def digest(self) -> bytes | str: ...


class _Disk(Protocol):
    @property
    def state(self) -> _State: ...


class CheckedNode(Protocol):
    """A machine with a replica, as the checker sees it."""

    @property
    def me(self) -> ReplicaId: ...

    @property
    def life(self) -> int: ...

    @property
    def disk(self) -> _Disk: ...

    @property
    def applied_end(self) -> Slot: ...

    @property
    def digest(self) -> bytes | str: ...


@dataclass
class _Read:
    """A read under way, and the end of the log that it must see."""

    end: Slot


class Checker:
    """The observer of all nodes."""

    def __init__(
        self, *, members: tuple[ReplicaId, ...], trace: Callable[[str], None] | None
    ) -> None:
        self._trace = trace
        # Who votes from which slot on; the incarnations of the first are never asked for.
        first = tuple(Member(member, Incarnation(""), "") for member in members)
        self._spans: list[tuple[Slot, Membership]] = [(Slot(1), Membership(0, first))]
        self.lost: set[ReplicaId] = set()  # whose disks went back in time
        self.proposed_memberships: list[Membership] = []  # that nobody may have chosen
        self._chosen_end = Slot(1)
        self._values: dict[tuple[Slot, Ballot], bytes] = {}
        self._votes: dict[tuple[Slot, Ballot], set[ReplicaId]] = {}
        self.chosen: dict[Slot, bytes] = {}
        self._digests: dict[Slot, bytes | str] = {}  # of the state after this slot
        self._applied: dict[ReplicaId, Slot] = {}  # next slot, in this life
        self._promise_durable: dict[Incarnation, Ballot] = {}
        self._ballot_before: dict[ReplicaId, Ballot] = {}  # promised when this life began
        self._identities: dict[ReplicaId, Incarnation] = {}  # of the founding entry
        self._proposed: dict[tuple[ReplicaId, int], set[bytes]] = {}
        self.acknowledged: dict[bytes, Slot] = {}
        self.acknowledged_end = Slot(1)
        self._reads: dict[int, _Read] = {}
        self.counts: dict[str, int] = {}
        self._leaders: list[ReplicaId] = []

    def count(self, name: str, number: int = 1) -> None:
        """Add to a figure of the final report."""
        self.counts[name] = self.counts.get(name, 0) + number

    def say(self, text: str) -> None:
        """Write a line of the trace."""
        if self._trace is not None:
            self._trace(text)

    # --- what clients do ---

    def proposed(self, node: CheckedNode, command: bytes) -> None:
        """Take note that a leader took a client's command and will acknowledge it."""
        self._proposed.setdefault((node.me, node.life), set()).add(command)
        self.count("commands proposed")

    def acknowledged_by(self, node: CheckedNode, command: bytes) -> None:
        """A node answers that a command was carried out."""
        if command in self._proposed.get((node.me, node.life), ()):
            raise Violation("early-answer", f"replica {node.me} has not applied {command!r:.200}")

    def read_began(self, read_id: int) -> None:
        """Take note that a read began: it must see all that is acknowledged by now."""
        self._reads[read_id] = _Read(self.acknowledged_end)

    # --- what nodes do ---

    def started(self, node: CheckedNode) -> None:
        """A process starts."""
        state = node.disk.state
        self._applied[node.me] = state.applied_end
        self._ballot_before[node.me] = state.promised or NO_BALLOT
        self.say(f"replica {node.me} starts its life {node.life}")
        self._same_state(node, state.applied_end, state.digest, "restarted")

    def copied(self, node: CheckedNode) -> None:
        """A copy of another replica's state took the place of a node's own."""
        if node.applied_end <= self._applied[node.me]:
            raise Violation("out-of-order", f"replica {node.me} took an older state")
        self._applied[node.me] = node.applied_end
        self._same_state(node, node.applied_end, node.digest, "took over a copy")
        self.count("copies of the state")
        self.say(f"replica {node.me} took over the state at slot {node.applied_end - 1}")

    def _same_state(
        self, node: CheckedNode, applied_end: Slot, digest: bytes | str, what: str
    ) -> None:
        if applied_end > 1 and self._digests.get(Slot(applied_end - 1)) != digest:
            raise Violation(
                "state-differs", f"replica {node.me} {what} at slot {applied_end - 1}: {digest!r}"
            )

    def wrote(self, node: CheckedNode, persist: Persist) -> None:
        """A write became durable."""
        incarnation = node.disk.state.incarnation
        if node.me in self.lost:
            return  # Nobody may rely on it.
        if persist.founding is not None:
            founding = decode_founding(persist.founding)
            for member in founding.members:
                self._identities.setdefault(member.replica, member.incarnation)
        before = self._promise_durable.get(incarnation, NO_BALLOT)
        if persist.promised is not None:
            if persist.promised < before:
                raise Violation(
                    "promise-back", f"replica {node.me}: {before}, then {persist.promised}"
                )
            self._promise_durable[incarnation] = persist.promised
        for entry in persist.accepted:
            # (Against the promise before this write: the two may share a turn. What is chosen
            # is kept under whatever ballot it came with.)
            if entry.ballot < before and self.chosen.get(entry.slot) != entry.value:
                raise Violation(
                    "promise-back",
                    f"replica {node.me} accepted slot {entry.slot} under {entry.ballot}, "
                    f"and had promised {before}",
                )
            self._see_value(entry.slot, entry.ballot, entry.value)
            self._vote(node.me, entry.slot, entry.ballot)

    def sends(self, node: CheckedNode, envelope: Envelope) -> None:
        """A message leaves."""
        message = envelope.message
        if self._trace is not None:
            self.say(f"{envelope.source} -> {envelope.target} {message}")
        if isinstance(message, (Hello, Found, Stranger, Stale)) or node.me in self.lost:
            return
        identity = self._identities.get(node.me)
        if identity != envelope.source_incarnation:
            raise Violation("stranger-votes", f"replica {node.me} sent {message}")
        if isinstance(message, Accept):
            self._see_value(message.slot, message.ballot, message.value)
            self._durable_ballot(node, message.ballot, "proposed")
        elif isinstance(message, Prepare):
            self._durable_ballot(node, message.ballot, "stood")
        elif isinstance(message, Promise):
            self._sends_promise(node, message)
        elif isinstance(message, Accepted):
            self._sends_accepted(node, message)
        elif isinstance(message, CatchUpReply):
            for entry in message.entries:
                if self.chosen.get(entry.slot) != entry.value:
                    raise Violation("not-chosen", f"replica {node.me} gave {entry} as chosen")

    def chose(self, node: CheckedNode, chosen: Chosen) -> None:
        """A replica applies a slot."""
        slot = chosen.slot
        if self._applied[node.me] != slot:
            raise Violation(
                "out-of-order",
                f"replica {node.me} applied slot {slot}, expected {self._applied[node.me]}",
            )
        self._applied[node.me] = Slot(slot + 1)
        value = self.chosen.get(slot)
        if (
            value is None
            or decode_batch(value) != chosen.commands
            or decode_membership_value(value) != chosen.membership
        ):
            raise Violation("not-chosen", f"replica {node.me} applied {chosen}, chosen: {value!r}")
        digest = self._digests.setdefault(slot, node.digest)
        if digest != node.digest:
            raise Violation("state-differs", f"replica {node.me} after slot {slot}")
        waiting = self._proposed.get((node.me, node.life))
        if waiting:
            for command in chosen.commands:
                if command in waiting:
                    waiting.discard(command)
                    self.acknowledged.setdefault(command, slot)
                    self.acknowledged_end = max(self.acknowledged_end, Slot(slot + 1))
                    self.count("commands acknowledged")

    def read_confirmed(self, node: CheckedNode, read_id: int) -> None:
        """A replica answers a read."""
        end = self._reads.pop(read_id).end
        self.count("reads confirmed")
        if node.applied_end < end:
            raise Violation(
                "stale-read",
                f"replica {node.me} answered read {read_id} at {node.applied_end}, expected {end}",
            )

    def read_failed(self, node: CheckedNode, read_id: int) -> None:
        """A replica sends a read away."""
        del self._reads[read_id]
        self.count("reads failed")

    def noted(self, node: CheckedNode, text: str) -> None:
        """A line for the log."""
        self.say(text)
        if "became leader" in text:
            self.count("leaderships")
            if self._leaders and self._leaders[-1] != node.me:
                self.count("leader changes")
            self._leaders.append(node.me)
        if "stands for election" in text:
            self.count("candidacies")

    def stopped(self, node: CheckedNode, text: str) -> None:
        """A replica stops for good."""
        self.say(f"replica {node.me} stops: {text}")
        self.count("replicas stopped")
        if node.me in self.membership.retired:
            self.count("replicas sent home")
        elif node.me in self.lost:
            self.count("older disks found out")
        elif self._identities.get(node.me) == node.disk.state.incarnation:
            raise Violation("core", f"replica {node.me} stopped without cause: {text}")

    def at_end(self, nodes: Sequence[CheckedNode]) -> None:
        """Check what was promised to clients against the log, after healing."""
        for command, slot in self.acknowledged.items():
            value = self.chosen.get(slot)
            if value is None or command not in decode_batch(value):
                raise Violation("lost-command", f"{command!r} was acknowledged in slot {slot}")
        for node in nodes:
            if node.applied_end < self.acknowledged_end:
                raise Violation("lost-command", f"replica {node.me} ends at {node.applied_end}")

    # --- accounts ---

    def _see_value(self, slot: Slot, ballot: Ballot, value: bytes) -> None:
        if (slot, ballot) not in self._values:
            membership = decode_membership_value(value)
            if membership is not None:
                self.proposed_memberships.append(membership)
        if self._values.setdefault((slot, ballot), value) != value:
            raise Violation("two-values", f"slot {slot} ballot {ballot}")

    def _vote(self, voter: ReplicaId, slot: Slot, ballot: Ballot) -> None:
        key = (slot, ballot)
        voters = self._votes.setdefault(key, set())
        voters.add(voter)
        if slot >= self._chosen_end + ALPHA:
            raise Violation(
                "beyond-alpha",
                f"replica {voter} accepted slot {slot}, chosen below {self._chosen_end}",
            )
        members = {member.replica for member in self._voters_at(slot)}
        if len(voters & members) < len(members) // 2 + 1:
            return
        value = self._values[key]
        if self.chosen.setdefault(slot, value) != value:
            raise Violation("two-chosen", f"slot {slot}, the second time under {ballot}")
        while self._chosen_end in self.chosen:
            membership = decode_membership_value(self.chosen[self._chosen_end])
            if membership is not None:
                self._see_membership(self._chosen_end, membership)
            self._chosen_end = Slot(self._chosen_end + 1)

    @property
    def chosen_end(self) -> Slot:
        """The first slot that isn't known to be chosen."""
        return self._chosen_end

    @property
    def memberships_governing(self) -> int:
        """How many changes of the members govern by now."""
        return sum(slot <= self._chosen_end for slot, _ in self._spans) - 1

    @property
    def membership(self) -> Membership:
        """The last membership that was chosen."""
        return self._spans[-1][1]

    def last_memberships(self, count: int) -> list[Membership]:
        """Return the last memberships that were chosen."""
        return [membership for _, membership in self._spans[-count:]]

    def _voters_at(self, slot: Slot) -> tuple[Member, ...]:
        for first_slot, membership in reversed(self._spans):
            if first_slot <= slot:
                return membership.voters
        raise AssertionError(f"nobody votes in slot {slot}")

    def _see_membership(self, slot: Slot, membership: Membership) -> None:
        before_slot, before = self._spans[-1]
        if slot < before_slot or membership.number != before.number + 1:
            raise Violation("too-soon", f"slot {slot}: {membership}, after {before}")
        old = {member.replica for member in before.voters}
        new = {member.replica for member in membership.voters}
        if len(old) // 2 + 1 + len(new) // 2 + 1 <= len(old | new):
            raise Violation("no-overlap", f"slot {slot}: voters {old}, then {new}")
        for member in (*membership.voters, *membership.learners):
            known = self._identities.setdefault(member.replica, member.incarnation)
            if known != member.incarnation or member.replica in before.retired:
                raise Violation("stranger-votes", f"slot {slot}: {member}, known as {known}")
        self._spans.append((Slot(slot + ALPHA), membership))
        self.say(f"slot {slot} changes the members: {membership.describe()}")
        self.count("changes of the members")
        if len(new) > len(old):
            self.count("voters added")
        elif len(new) < len(old):
            self.count("voters removed")

    def _durable_ballot(self, node: CheckedNode, ballot: Ballot, what: str) -> None:
        durable = node.disk.state.promised or NO_BALLOT
        if durable < ballot:
            raise Violation("not-durable", f"replica {node.me} {what} under {ballot}")
        if ballot <= self._ballot_before[node.me]:
            raise Violation("former-life", f"replica {node.me} {what} under {ballot}")

    def _sends_promise(self, node: CheckedNode, message: Promise) -> None:
        state = node.disk.state
        if (state.promised or NO_BALLOT) < message.ballot:
            raise Violation("not-durable", f"replica {node.me} promised {message.ballot}")
        for entry in message.entries:
            if not self._holds(node, entry.slot, entry.ballot):
                raise Violation("not-durable", f"replica {node.me} reported {entry}")

    def _sends_accepted(self, node: CheckedNode, message: Accepted) -> None:
        state = node.disk.state
        for slot in message.slots:
            if not self._holds(node, slot, message.ballot):
                raise Violation(
                    "not-durable",
                    f"replica {node.me} accepted slot {slot} under {message.ballot}",
                )
            self._vote(node.me, slot, message.ballot)
        if (state.promised or NO_BALLOT) < message.ballot:
            raise Violation("promise-back", f"replica {node.me}: {message} without its promise")

    def _holds(self, node: CheckedNode, slot: Slot, ballot: Ballot) -> bool:
        """Whether the disk backs an acceptance: it, a later one, or the chosen value.

        The last for an entry proposed again in a slot that the acceptor knows to be
        chosen: it isn't written again. What was truncated meanwhile was once there, or is
        chosen.
        """
        state = node.disk.state
        entry = state.accepted.get(slot)
        if entry is None:
            was_there = node.me in self._votes.get((slot, ballot), ())
            is_chosen = self.chosen.get(slot) == self._values[slot, ballot]
            return slot < state.log_start and (was_there or is_chosen)
        return entry.ballot >= ballot or self.chosen.get(slot) == entry.value
