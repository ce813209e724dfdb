"""The messages of a replica, gathered until the shell asks, and its unfinished writes.

The one place that decides whether a message may leave at once or waits for a write.
Knows nothing of the reasons for a message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tasksprint.consensus.acceptor import Acceptor
from tasksprint.consensus.ballot import NO_BALLOT, Ballot
from tasksprint.consensus.effects import Persist, ReadLog, Ready, Recovered
from tasksprint.consensus.learner import Learner
from tasksprint.consensus.marks import DurableNumbers
from tasksprint.consensus.messages import Accepted, Envelope, Message
from tasksprint.ids import ReplicaId, Slot

__all__ = ["NOTED_MAX", "Outbox", "Write"]

# Texts that `note_once` remembers. Texts of elections name a ballot: there is always a new one.
NOTED_MAX = 100


class Write(NamedTuple):
    """The write of one `Ready`; its votes count once it is durable."""

    sequence: int
    promised: Ballot | None
    own_ballot: Ballot  # ballot of `own_slots`
    own_slots: tuple[Slot, ...]  # accepted by this replica from itself, as the leader
    chosen_end: Slot  # every chosen entry below was handed over in this write or before
    is_founding: bool
    number: int  # the durable number, once it is durable
    size_bytes: int
    handed_ms: int  # when it was handed to the shell


class Outbox:
    """Everything that the next `Ready` will carry."""

    def __init__(
        self,
        *,
        me: ReplicaId,
        life: int,
        recovered: Recovered,
        acceptor: Acceptor,
        learner: Learner,
    ) -> None:
        self.me = me
        self._incarnation = recovered.incarnation
        self.numbers = DurableNumbers(
            incarnation=recovered.incarnation,
            life=life,
            number=recovered.durable,
            known=recovered.marks,
        )
        self._acceptor = acceptor
        self._learner = learner
        self.peers: tuple[ReplicaId, ...] = ()
        self._sequence = 0
        self._send_now: list[Envelope] = []
        self._send_after: list[tuple[ReplicaId, Message]] = []
        self._ack_ballot = NO_BALLOT
        self._ack_slots: list[Slot] = []
        self._own_ballot = NO_BALLOT
        self._own_slots: list[Slot] = []
        self._founding: bytes | None = None
        self._memberships: bytes | None = None
        self._skips: bytes | None = None
        self._written_end = learner.known_end
        self.confirmed_reads: list[int] = []
        self.failed_reads: list[int] = []
        self.read_log: list[ReadLog] = []
        self._notes: list[str] = []
        self._noted: dict[str, None] = {}  # the last texts of `note_once`
        self.fatal: str | None = None
        self.is_removed = False  # the reason of `fatal`
        self._is_fatal_told = False
        self._is_loss_new = False  # This replica is lost, and the disk is to remember it.
        self._loss_sequence: int | None = None  # of the write that remembers it
        self._writes: deque[Write] = deque()
        self.unwritten_bytes = 0

    # --- filling ---

    def send(self, target: ReplicaId, message: Message) -> None:
        """Send a message that rests on no write under way."""
        self._send_now.append(
            Envelope(self.me, self._incarnation, target, message, self.numbers.now)
        )

    def send_all(self, message: Message) -> None:
        """Do as `send`, for every peer."""
        me, incarnation, mark = self.me, self._incarnation, self.numbers.now
        for peer in self.peers:
            self._send_now.append(Envelope(me, incarnation, peer, message, mark))

    def send_after_persist(self, target: ReplicaId, message: Message) -> None:
        """Send a message once all changes up to now are durable."""
        if self._ack_slots:
            self._flush_acks()
        self._send_after.append((target, message))

    def send_all_after_persist(self, message: Message) -> None:
        """Do as `send_after_persist`, for every peer."""
        for peer in self.peers:
            self.send_after_persist(peer, message)

    def acknowledge(self, ballot: Ballot, slot: Slot) -> None:
        """Tell the leader of `ballot`, after the write, that the slot's value is accepted.

        Acceptances of one turn share a message.
        """
        if ballot != self._ack_ballot:
            self._flush_acks()
            self._ack_ballot = ballot
        self._ack_slots.append(slot)

    def _flush_acks(self) -> None:
        if self._ack_slots:
            ballot = self._ack_ballot
            message = Accepted(ballot, tuple(self._ack_slots))
            self._ack_slots.clear()
            self._send_after.append((ballot.replica, message))

    def accept_own(self, ballot: Ballot, slot: Slot) -> None:
        """Remember that the next write holds this leader's own acceptance."""
        if ballot != self._own_ballot:
            # Slots of a former leadership: nobody counts their votes any more.
            self._own_slots.clear()
            self._own_ballot = ballot
        self._own_slots.append(slot)

    def write_founding(self, founding: bytes) -> None:
        """Make the founding entry durable."""
        self._founding = founding

    def write_skips(self, skips: bytes) -> None:
        """Make the list of commands that aren't applied durable, with the founding entry."""
        self._skips = skips

    def write_memberships(self, memberships: bytes) -> None:
        """Make the memberships durable, before the entries that carry them can be truncated."""
        self._memberships = memberships

    def stop_as_lost(self, text: str, seen: int) -> None:
        """Stop, once the disk remembers that it is an older one."""
        self.numbers.lose(seen)
        self.fatal, self._is_loss_new = text, True

    @property
    def _has_fatal_news(self) -> bool:
        if self._is_fatal_told or self._is_loss_new or self._loss_sequence is not None:
            return False
        return self.fatal is not None

    def note(self, text: str) -> None:
        """Tell the operator."""
        self._notes.append(f"replica={self.me} {text}")

    def note_once(self, text: str) -> None:
        """Tell the operator, unless the same text is among the last `NOTED_MAX`."""
        if text not in self._noted:
            self._noted[text] = None
            if len(self._noted) > NOTED_MAX:
                del self._noted[next(iter(self._noted))]
            self.note(text)

    # --- emptying ---

    @property
    def has_news(self) -> bool:
        """Whether `take` would return something."""
        return bool(
            self._send_now
            or self._ack_slots
            or self._send_after
            or self._learner.has_news
            or self._acceptor.has_writes
            or self._founding is not None
            or self._memberships is not None
            or self.confirmed_reads
            or self.failed_reads
            or self.read_log
            or self._notes
            or self._is_loss_new
            or self._has_fatal_news
        )

    def take(self, now_ms: int) -> Ready | None:
        """Return everything gathered; None: nothing."""
        if not self.has_news:
            return None
        if self._ack_slots:
            self._flush_acks()
        persist = self._take_persist(now_ms)
        if persist is None:
            # These messages rest on durable writes only: nothing is left to wait for.
            self._sequence += 1
            self._send_now += self._take_send_after()
        ready = Ready(
            self._sequence,
            tuple(self._send_now),
            persist,
            self._take_send_after(),
            self._learner.take_chosen() if self._learner.has_news else (),
            tuple(self.confirmed_reads),
            tuple(self.failed_reads),
            tuple(self.read_log),
            tuple(self._notes),
            self.fatal if self._has_fatal_news else None,
            self.is_removed,
        )
        self._is_fatal_told |= self._has_fatal_news
        self._send_now.clear()
        self.confirmed_reads.clear()
        self.failed_reads.clear()
        self.read_log.clear()
        self._notes.clear()
        return ready

    def _take_send_after(self) -> tuple[Envelope, ...]:
        """Return the messages that wait until all writes handed to the disk are durable."""
        me, incarnation, mark = self.me, self._incarnation, self.numbers.last
        said = self._send_after
        taken = [Envelope(me, incarnation, target, message, mark) for target, message in said]
        said.clear()
        return tuple(taken)

    def _take_persist(self, now_ms: int) -> Persist | None:
        promised, entries = self._acceptor.take_writes()
        founding, memberships = self._founding, self._memberships
        is_unchanged = (
            promised is None and not entries and founding is None and memberships is None
        ) and not self._is_loss_new
        if is_unchanged and not (self._send_after and self._writes):
            # There is nothing new, and no message rests on a write under way. The end of the
            # chosen prefix alone isn't worth a write: it travels with the next one.
            return None
        chosen_end = self._learner.chosen_end
        chosen_end_write: Slot | None = None
        # (Where the disk spoiled entries, the written end is above the end here, and stays.)
        if chosen_end > self._written_end:
            chosen_end_write = self._written_end = chosen_end
        self._founding = None
        self._memberships = None
        skips, self._skips = self._skips, None
        self._sequence += 1
        if self._is_loss_new:
            self._is_loss_new, self._loss_sequence = False, self._sequence
        size = 0
        for entry in entries:
            size += len(entry.value)
        self.unwritten_bytes += size
        durable = None if is_unchanged else self.numbers.advance()
        marks = None if is_unchanged else self.numbers.take_unwritten()
        own_slots = tuple(self._own_slots)
        self._own_slots.clear()
        self._writes.append(
            Write(
                self._sequence,
                promised,
                self._own_ballot,
                own_slots,
                chosen_end,
                founding is not None,
                self.numbers.last.number,
                size,
                now_ms,
            )
        )
        return Persist(
            promised, entries, chosen_end_write, founding, memberships, skips, durable, marks
        )

    @property
    def unwritten_count(self) -> int:
        """Writes handed over and not yet durable."""
        return len(self._writes)

    def oldest_age_ms(self, now_ms: int) -> int:
        """Return the age of the oldest of them; 0: there is none."""
        return now_ms - self._writes[0].handed_ms if self._writes else 0

    def own_writes(self) -> Iterator[Write]:
        """Yield those with acceptances of this replica's present or last leadership."""
        for write in self._writes:
            if write.own_slots and write.own_ballot == self._own_ballot:
                yield write

    @property
    def owes_founding(self) -> bool:
        """Whether the founding entry isn't durable yet."""
        return self._founding is not None or any(write.is_founding for write in self._writes)

    def persisted(self, sequence: int) -> Iterable[Write]:
        """Return the writes that are durable now."""
        assert sequence <= self._sequence, f"Ready {sequence} was never given out"
        if self._loss_sequence is not None and self._loss_sequence <= sequence:
            self._loss_sequence = None
        done: list[Write] = []
        while self._writes and self._writes[0].sequence <= sequence:
            write = self._writes.popleft()
            self.unwritten_bytes -= write.size_bytes
            self.numbers.persisted(write.number)
            done.append(write)
        return done
