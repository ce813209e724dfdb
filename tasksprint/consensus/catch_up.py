"""Catching up: fetching chosen entries from peers that know them, and serving peers that lag.

Knows the end of each peer's chosen prefix, the peer to ask, and when to ask again.
Fetched entries go to the learner. Old entries are read back through the shell.
"""

from __future__ import annotations

from random import Random

from tasksprint.consensus.acceptor import Acceptor
from tasksprint.consensus.effects import ReadLog
from tasksprint.consensus.learner import Learner
from tasksprint.consensus.log_entry import LogEntry
from tasksprint.consensus.messages import CatchUpReply, CatchUpRequest
from tasksprint.consensus.outbox import Outbox
from tasksprint.ids import ReplicaId, Slot
from tasksprint.settings import Settings

__all__ = ["CatchUp"]


class CatchUp:
    """Both sides of it, for one replica; at most one request of ours is under way."""

    def __init__(
        self,
        *,
        acceptor: Acceptor,
        learner: Learner,
        outbox: Outbox,
        settings: Settings,
        random: Random,
    ) -> None:
        self._acceptor = acceptor
        self._learner = learner
        self._outbox = outbox
        self._settings = settings
        self._random = random
        self._ends: dict[ReplicaId, Slot] = {}  # chosen_end, as each peer said last
        self._reading: dict[ReplicaId, ReadLog] = {}  # the shell reads these for peers
        self._target: ReplicaId | None = None  # the peer that was asked; None: nobody
        self._first_slot = Slot(1)  # the slot that was asked for
        self.deadline_ms: int | None = None  # when to ask again
        # Since the chosen prefix last grew: peers that don't have the next slot any more, and
        # peers that didn't answer.
        self._truncated: set[ReplicaId] = set()
        self._silent: set[ReplicaId] = set()

    # --- fetching ---

    def hear_end(self, source: ReplicaId, chosen_end: Slot) -> None:
        """Take note of the end of a peer's chosen prefix."""
        self._ends[source] = chosen_end

    def known_end(self, peer: ReplicaId) -> Slot:
        """Return the end of a peer's chosen prefix, as it said last."""
        return self._ends.get(peer, Slot(1))

    def want(self, source: ReplicaId, chosen_end: Slot, now_ms: int) -> None:
        """Ask `source` for the entries below `chosen_end` that are missing here."""
        if chosen_end > self._learner.chosen_end and self._target is None:
            self._ask(source, now_ms)

    def seek(self, now_ms: int) -> None:
        """Ask anybody, though nobody is known to be ahead."""
        if self._target is None and self._outbox.peers:
            self._ask(self._random.choice(self._outbox.peers), now_ms)

    def tick(self, now_ms: int) -> None:
        """Ask again, when it is time: a peer that is ahead; the last one may be gone."""
        if self.deadline_ms is None or now_ms < self.deadline_ms:
            return
        if self._target is not None and self._target not in self._truncated:
            self._silent.add(self._target)
        ahead = self._ahead()
        if ahead:
            untried = [peer for peer in ahead if not self._was_tried(peer)]
            self._ask(self._random.choice(untried or ahead), now_ms)
        else:
            self.stop()

    def _ahead(self) -> list[ReplicaId]:
        end = self._learner.chosen_end
        return [peer for peer in self._outbox.peers if self._ends.get(peer, end) > end]

    def _was_tried(self, peer: ReplicaId) -> bool:
        return peer in self._truncated or peer in self._silent

    @property
    def state_givers(self) -> tuple[ReplicaId, ...]:
        """Peers that can give a copy of the state; none while a peer may still have the log.

        The asking goes on meanwhile: a peer that has the log may come back.
        """
        if not self._truncated:
            return ()
        ahead = self._ahead()
        if not all(map(self._was_tried, ahead)):
            return ()
        return tuple([peer for peer in ahead if peer in self._truncated])

    def progressed(self) -> None:
        """Learn that the chosen prefix grew: a peer that lacked one slot may have the next."""
        self._truncated.clear()
        self._silent.clear()

    def stop(self) -> None:
        """Ask for nothing more."""
        self._target = None
        self.deadline_ms = None

    def _ask(self, target: ReplicaId, now_ms: int) -> None:
        self._target = target
        self._first_slot = self._learner.chosen_end
        self.deadline_ms = now_ms + self._settings.resend_interval_ms
        self._outbox.send(target, CatchUpRequest(self._first_slot))

    def hear_reply(self, source: ReplicaId, reply: CatchUpReply, now_ms: int) -> bool:
        """Learn the entries of a reply, and ask for those that follow.

        Returns:
            Whether the chosen prefix grew.
        """
        self._ends[source] = reply.chosen_end
        self._silent.discard(source)
        learner = self._learner
        if reply.first_slot < reply.log_start and learner.chosen_end < reply.log_start:
            self._outbox.note_once(
                f"lacks slot {learner.chosen_end}, but replica {source} keeps its log only from "
                f"{reply.log_start} on; this replica needs a copy of the state"
            )
            self._truncated.add(source)
            untried = [peer for peer in self._ahead() if not self._was_tried(peer)]
            if untried and source == self._target:
                self._ask(self._random.choice(untried), now_ms)
            return False
        before = learner.chosen_end
        if self._outbox.unwritten_bytes < self._settings.log_window_bytes_max:
            learner.absorb(reply.entries, self._acceptor)
        has_grown = learner.chosen_end > before
        if has_grown:
            self.progressed()
        # A repeated reply must not start a second chain of requests. And if our slow disk left
        # no room for a reply, the timer asks for it again.
        is_answer = source == self._target and reply.first_slot == self._first_slot
        if is_answer and (has_grown or reply.chosen_end <= learner.chosen_end):
            self.stop()
            self.want(source, reply.chosen_end, now_ms)
        return has_grown

    # --- serving ---

    def hear_request(self, source: ReplicaId, request: CatchUpRequest) -> None:
        """Send the entries asked for, or have them read."""
        self._ends[source] = request.first_slot
        if source in self._reading:
            return
        learner = self._learner
        first_slot = request.first_slot
        bytes_max = self._settings.catch_up_bytes_max
        if learner.log_start <= first_slot < learner.window_start:
            read = ReadLog(source, first_slot, learner.window_start, bytes_max)
            self._reading[source] = read
            self._outbox.read_log.append(read)
        else:
            self._reply(source, first_slot, learner.entries_from(first_slot, bytes_max))

    def log_read(self, request: ReadLog, entries: tuple[LogEntry, ...]) -> None:
        """Pass on entries that were read back."""
        self._reading.pop(request.target, None)
        for offset, entry in enumerate(entries):
            assert entry.slot == request.first_slot + offset, "the store skipped a slot"
            assert entry.slot < self._learner.chosen_end, "the store gave an open slot"
        self._reply(request.target, request.first_slot, entries)

    def _reply(self, target: ReplicaId, first_slot: Slot, entries: tuple[LogEntry, ...]) -> None:
        learner = self._learner
        self._outbox.send(
            target, CatchUpReply(first_slot, entries, learner.chosen_end, learner.log_start)
        )
