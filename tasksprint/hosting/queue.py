"""Answers of one replica's scheduler that aren't chosen yet, and who proposes them when.

They wait in two queues, `_proposed` before `_fresh`, which together cover exactly
[frontier, own). The frontier is the job's first part without a chosen answer. Own is the next
part that the process will answer. A chosen answer is compared with the head of the queues.
Most answers say nothing. A run of them is one entry, so no object is made for each.

**Who proposes.** The leader proposes at once. Another replica proposes when its own answer has
waited at the frontier for `answer_grace_ms`: then the leader's scheduler is stuck, differs, or
is out. That replica stands in for a while, and proposes at once as a leader does. It stops when
another replica's answers are chosen first again. The waits are staggered by replica, so
only one stands in. Duplicate proposals are harmless: the state machine takes exactly the
job's next part, and ignores all others.

The queue knows nothing of the process, nor of what follows from a difference.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from tasksprint.coordination.applied import ChosenAnswer, EmptyAnswers
from tasksprint.coordination.commands import Answer, AnswerPart
from tasksprint.errors import LocalProtocolError
from tasksprint.ids import JobId, ReplicaId, TaskId
from tasksprint.scheduler_commands import SchedulerCommand
from tasksprint.settings import Settings

__all__ = ["AnswerQueue", "OwnAnswer", "Part"]

# How long a replica stands in, in graces.
STAND_IN_GRACES = 5
# A proposal that isn't chosen is repeated after a grace, then after two, four … of them.
REPEAT_GRACES_MAX = 16


class OwnAnswer:
    """An answer of our process; it says something, and isn't chosen yet."""

    __slots__ = ("bytes", "commands", "event", "first_tid", "last", "part")

    def __init__(
        self,
        event: int,
        part: int,
        last: bool,
        first_tid: int,
        commands: tuple[SchedulerCommand, ...],
        size: int,
    ) -> None:
        self.event = event
        self.part = part
        self.last = last
        self.first_tid = first_tid
        self.commands = commands
        self.bytes = size


# An entry of a queue: an answer, or [first_event, end_event] of answers that say nothing.
Entry = OwnAnswer | list[int]
# Of an answer, as the log or our process says it: event, part, last, commands.
Part = tuple[int, int, bool, tuple[SchedulerCommand, ...]]


class AnswerQueue:
    """The own answers from the frontier on.

    Args:
        frontier: (event, part), the first without a chosen answer.
        next_tid: How many tasks the chosen answers have started.
    """

    __slots__ = (
        "_fresh",
        "_grace_ms",
        "_job",
        "_next_tid",
        "_proposal_bytes_max",
        "_proposed",
        "_repeat_graces",
        "_stagger_ms",
        "_stand_in_end_ms",
        "_waiting_ms",
        "chosen_event",
        "chosen_part",
        "is_leader",
    )

    def __init__(
        self,
        job: JobId,
        replica: ReplicaId,
        settings: Settings,
        *,
        frontier: tuple[int, int],
        next_tid: int,
        now_ms: int,
    ) -> None:
        self._job = job
        self._grace_ms = settings.answer_grace_ms
        self._stagger_ms = replica % 8 * settings.answer_grace_ms // 8
        self._proposal_bytes_max = settings.entry_bytes_max // 2
        self.chosen_event, self.chosen_part = frontier
        self._next_tid = next_tid
        self.is_leader = False  # This replica proposes at once.
        self._proposed: deque[Entry] = deque()
        self._fresh: deque[Entry] = deque()
        self._waiting_ms = now_ms  # since when the head of the queues has been waiting
        self._repeat_graces = 1
        self._stand_in_end_ms = now_ms

    def clear(self) -> None:
        """Forget what the process said: it is gone, or is killed."""
        self._proposed.clear()
        self._fresh.clear()

    # --- what the process says ---

    def add_empty(self, event: int, tid: int, now_ms: int) -> None:
        """Take an answer that says nothing; `tid`: the next one by our process."""
        fresh = self._fresh
        if fresh:
            tail = fresh[-1]
            if isinstance(tail, list):
                tail[1] = event + 1
                return
        elif not self._proposed:
            self._begin(event, 0, tid, now_ms)
        fresh.append([event, event + 1])

    def add(self, answer: OwnAnswer, now_ms: int) -> None:
        """Take any other answer."""
        if not self._proposed and not self._fresh:
            self._begin(answer.event, answer.part, answer.first_tid, now_ms)
        self._fresh.append(answer)

    def _begin(self, event: int, part: int, tid: int, now_ms: int) -> None:
        """The process has reached the frontier."""
        assert (event, part) == (self.chosen_event, self.chosen_part)
        assert tid == self._next_tid  # Every answer before was equal.
        self._waiting_ms = now_ms
        self._repeat_graces = 1

    # --- what is chosen ---

    def answer_chosen(self, answer: ChosenAnswer, now_ms: int) -> Part | None:
        """Move the frontier over a chosen answer; return what our process said instead, if so."""
        event, part, last = answer.event, answer.part, answer.last
        assert (event, part) == (self.chosen_event, self.chosen_part)
        self.chosen_event, self.chosen_part = (event + 1, 0) if last else (event, part + 1)
        self._next_tid += answer.tasks_started
        self._waiting_ms = now_ms
        self._repeat_graces = 1
        queue = self._proposed or self._fresh
        if not queue:
            return None  # Our process is behind, or not running.
        if queue is self._fresh:
            self._stand_in_end_ms = now_ms  # Somebody else was first.
        head = queue[0]
        if isinstance(head, list):
            return event, part, True, ()
        if answer.commands != head.commands or last != head.last:
            return event, part, head.last, head.commands
        queue.popleft()
        return None

    def empty_chosen(self, answers: EmptyAnswers, now_ms: int) -> Part | None:
        """Do the same for answers that say nothing, to whole events."""
        event, end_event = answers.first_event, answers.end_event
        assert (event, 0) == (self.chosen_event, self.chosen_part)
        assert event < end_event
        self.chosen_event = end_event
        self._waiting_ms = now_ms
        self._repeat_graces = 1
        while event < end_event:
            queue = self._proposed or self._fresh
            if not queue:
                return None  # Our process is behind, or not running.
            if queue is self._fresh:
                self._stand_in_end_ms = now_ms
            head = queue[0]
            if not isinstance(head, list):
                return event, 0, head.last, head.commands
            assert head[0] == event
            if head[1] <= end_event:
                event = head[1]
                queue.popleft()
            else:
                event = head[0] = end_event
        return None

    # --- proposing ---

    def lead(self, now_ms: int, *, is_leader: bool) -> None:
        """Take whether this replica proposes at once; see `SchedulerHost.lead`."""
        if is_leader != self.is_leader:
            self.is_leader = is_leader
            self._propose_again()
            self._waiting_ms = now_ms
            self._stand_in_end_ms = now_ms

    def propose(self, now_ms: int) -> tuple[Answer, ...]:
        """Return the commands that propose what is to be proposed now."""
        fresh = self._fresh
        if not fresh or not (self.is_leader or now_ms < self._stand_in_end_ms):
            return ()
        answers = _proposal(self._job, fresh, self._proposal_bytes_max)
        self._proposed.extend(fresh)
        fresh.clear()
        return answers

    @property
    def deadline_ms(self) -> int | None:
        """When the head has waited for too long."""
        if not self._proposed and (not self._fresh or self.is_leader):
            return None
        wait_ms = self._grace_ms * self._repeat_graces
        if not self.is_leader:
            wait_ms += self._stagger_ms  # One of them comes first.
        return self._waiting_ms + wait_ms

    def tick(self, now_ms: int) -> None:
        """Propose again, or stand in, if the head has waited for too long."""
        deadline_ms = self.deadline_ms
        if deadline_ms is None or now_ms < deadline_ms:
            return
        self._propose_again()
        self._waiting_ms = now_ms
        self._repeat_graces = min(2 * self._repeat_graces, REPEAT_GRACES_MAX)
        if not self.is_leader:
            self._stand_in_end_ms = now_ms + STAND_IN_GRACES * self._grace_ms

    def _propose_again(self) -> None:
        """Count all proposed answers as not proposed: they may be lost."""
        if self._proposed:
            self._proposed.extend(self._fresh)
            self._fresh = self._proposed
            self._proposed = deque()

    def check(self, own: tuple[int, int], *, is_live: bool) -> None:
        """Assert the invariants.

        Args:
            own: The next part that the process will answer.
            is_live: It has repeated what was chosen before.

        Raises:
            LocalProtocolError: The queues don't cover exactly what they must.
        """
        position = self.chosen_event, self.chosen_part
        for entry in [*self._proposed, *self._fresh]:
            start = position
            if isinstance(entry, list):
                first, position = (entry[0], 0), (entry[1], 0)
                assert entry[0] < entry[1]
            else:
                first = entry.event, entry.part
                position = (entry.event + 1, 0) if entry.last else (entry.event, entry.part + 1)
            if start != first:
                raise LocalProtocolError(f"queue has {first}, expected {start}")
        if (self._proposed or self._fresh) and position != own:
            raise LocalProtocolError(f"queue ends at {position}, expected {own}")
        if is_live and own > position:
            raise LocalProtocolError(f"answers up to {own} are lost, frontier {position}")


def _proposal(job: JobId, entries: Iterable[Entry], bytes_max: int) -> tuple[Answer, ...]:
    """Return the commands that propose `entries`, cut so that each has at most `bytes_max`."""
    result: list[Answer] = []
    parts: list[AnswerPart] = []
    runs: list[tuple[int, int]] = []
    size = 0
    for entry in entries:
        if isinstance(entry, list):
            runs.append((entry[0], entry[1]))
            continue
        if parts and size + entry.bytes > bytes_max:
            result.append(Answer(job, tuple(parts), tuple(runs)))
            parts, runs, size = [], [], 0
        parts.append(
            AnswerPart(
                entry.event, entry.part, entry.last, TaskId(entry.first_tid), entry.commands
            )
        )
        size += entry.bytes
    if parts or runs:
        result.append(Answer(job, tuple(parts), tuple(runs)))
    return tuple(result)
