"""The decisions about one job's scheduler on one replica: feed it, compare it, propose for it.

Every replica runs every job's scheduler and feeds it the same numbered events. This core
decides what to send to the process, what to do with its answers, and when to restart it or
give it up. It knows the chosen history of the job: event lines, and a digest of each chosen
answer. It knows nothing of tasks, processes, or how a proposal becomes an entry of the log.

**Two positions** carry everything. A position is (event, part): the next part to come.

    chosen   the job's first part without a chosen answer: the *frontier*
    own      the next part that this replica's process will answer, in this run

While own < chosen, the process repeats history (a replay, or just a slow replica). Its
answers are compared with the digests of the chosen ones, and never proposed. Once own ==
chosen it may run ahead: its answers wait in two queues, `_proposed` before `_fresh`, which
together cover exactly [chosen, own). A chosen answer is compared with the head of the queues.
So each answer is compared once, whichever side was first.

**Who proposes.** The leader proposes at once. Another replica proposes when its own answer has
waited at the frontier for `answer_grace_ms`: then the leader's scheduler is stuck, differs, or
is out. That replica stands in for a while, and proposes at once as a leader does. It stops when
another replica's answers are chosen first again. The waits are staggered by replica, so
only one stands in. Duplicate proposals are harmless: the state machine takes exactly the
job's next part, and ignores all others.

**States of the process** (`HostStatus.state`):

    waiting --(its pause is over: start)--> starting --ready--> replaying --> live
       ^                                       |                   |           |
       |                                       v                   v           v
       +---(exited, pause)---- stopping <---- crash or difference: kill -------+
                                  |
                                  +---(once too often)---> out
    any --job_ended--> ended          live --(exits after finish or fail)--> finished

Most answers say nothing, so runs of them are kept and proposed as ranges, and no
object is made for one.

Only a part of a long history is in memory (history.py); `HostEffects.read` asks for more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from tasksprint.coordination.applied import ChosenAnswer, EmptyAnswers
from tasksprint.coordination.commands import Answer, SchedulerOut, answer_digest
from tasksprint.errors import LocalProtocolError
from tasksprint.hosting.history import History
from tasksprint.hosting.queue import Entry, OwnAnswer, proposal
from tasksprint.hosting.types import DecodedAnswer, HostEffects, HostState, HostStatus
from tasksprint.hosting.words import (
    describe_answers,
    describe_event,
    describe_preparing,
    describe_state,
    measure,
)
from tasksprint.ids import JobId, ReplicaId, TaskId
from tasksprint.scheduler_commands import FailJob, FinishJob, SchedulerCommand
from tasksprint.settings import RULES, Rules, Settings

__all__ = ["DecodedAnswer", "HostEffects", "HostStatus", "SchedulerHost"]

MIB = 1024 * 1024
# Bytes of events in the pipe unanswered; events with large values are few then.
WINDOW_BYTES = 16 * MIB
# The pause before a restart, doubled with each one: the cause may pass (too little memory, a
# full disk).
RESTART_PAUSE_MS = 200
RESTART_PAUSE_MAX_MS = 10_000
# Restarts of one job's scheduler on one replica, however much progress lies between.
RESTARTS_MAX = 10
# How long a replica stands in, in graces.
STAND_IN_GRACES = 5
# A proposal that isn't chosen is repeated after a grace, then after two, four … of them.
REPEAT_GRACES_MAX = 16
# If a deadline is noticed this late, *we* didn't run (a suspended machine). Then the scheduler
# didn't either.
LATE_MS = 5_000
# Chosen answers that are kept, to describe a difference.
RECENT_MAX = 64
# How long a scheduler that is behind is compared once its job has ended.
CLOSING_MS = 1_000
REPLAY_LINE = b'{"control":"replay","end_event":%d}\n'
LIVE_LINE = b'{"control":"live"}\n'


# A chosen answer: event, part, last, commands.
_Chosen = tuple[int, int, bool, tuple[SchedulerCommand, ...]]


class SchedulerHost:
    """One job's scheduler on one replica.

    Args:
        job: The job.
        replica: This replica.
        settings: Tunables.
        events: Lines of the events so far, from event 0, without newlines; as many as
            are at hand. The others are asked for.
        event_count: The number of events so far; by default as many as `events`.
        answers: (event, part) -> `answer_digest` of the chosen answers to `events` that
            say something.
        answered_end: (event, part), the first without a chosen answer.
        next_tid: The number of tasks that the chosen answers have started.
        now_ms: Elapsed time; also with every call below.
    """

    def __init__(
        self,
        *,
        job: JobId,
        replica: ReplicaId,
        settings: Settings,
        events: Sequence[bytes],
        answers: Mapping[tuple[int, int], str],
        answered_end: tuple[int, int],
        next_tid: int,
        now_ms: int,
        event_count: int | None = None,
        rules: Rules = RULES,
    ) -> None:
        self.job = job
        self.replica = replica
        self._settings = settings
        self._rules = rules
        self._history = History(job, events, answers, event_count)
        self._recent: deque[_Chosen] = deque(maxlen=RECENT_MAX)
        self._chosen_event, self._chosen_part = answered_end
        self._next_tid = next_tid

        # This run of the process.
        self._state: HostState = "waiting"
        self._own_event = 0
        self._own_part = 0
        self._own_tid = 0  # tasks that it has started: the tid of the next one
        self._own_ends = False  # its last answer finished or failed the job
        self._proposed: deque[Entry] = deque()
        self._fresh: deque[Entry] = deque()
        self._sent_end = 0  # first event that was not written
        self._replay_end = 0  # first event that is no replay in this run
        self._sent: deque[tuple[int, int]] = deque()  # (end event, bytes) of each write
        self._sent_bytes = 0  # of the events in `_sent`

        # Clocks.
        self._now_ms = now_ms
        self._start_at_ms = now_ms
        self._progress_ms = now_ms  # when the process last answered or became busy
        self._frontier_ms = now_ms  # since when the head of the queues has been waiting
        self._repeat_graces = 1
        self._stand_in_end_ms = now_ms
        self._out_at_ms = now_ms  # when to propose `_out` (again)
        self._late_once = False
        self._preparing, self._preparing_ms = "", now_ms  # The present step before its start.

        # Faults.
        self._is_leader = False
        self._failure = ""  # why the process is being stopped
        self._failed_at: tuple[int, int] | None = None
        self._failures = 0  # crashes without progress between them
        self._restarts = 0
        self._differences = 0
        self._differed = ""  # the first difference, until it was handed out
        self._closing_end_ms: int | None = None  # the job has ended; compared until then
        self._out: SchedulerOut | None = None
        self._last_error = ""

        # Effects not handed out yet.
        self._stop: Literal["", "ask", "kill"] = ""
        self._notes: list[str] = []
        self._has_process = False

    # --- what the log says ---

    def events_chosen(self, lines: Iterable[bytes], now_ms: int) -> None:
        """Take the job's next events, without newlines."""
        self._now_ms = now_ms
        self._history.add(list(lines), is_wanted=self._state not in ("out", "ended"))

    def answers_chosen(self, answers: Iterable[ChosenAnswer | EmptyAnswers], now_ms: int) -> None:
        """Take the job's next chosen answers, in order."""
        for answer in answers:
            if isinstance(answer, EmptyAnswers):
                self.empty_answers_chosen(answer.first_event, answer.end_event, now_ms)
            else:
                self.answer_chosen(
                    answer.event,
                    answer.part,
                    last=answer.last,
                    digest=answer.digest,
                    tasks_started=answer.tasks_started,
                    commands=answer.commands,
                    now_ms=now_ms,
                )

    def answer_chosen(
        self,
        event: int,
        part: int,
        *,
        last: bool,
        digest: str,
        tasks_started: int,
        commands: tuple[SchedulerCommand, ...],
        now_ms: int,
    ) -> None:
        """Take the job's next chosen answer; it says something, or isn't whole."""
        assert (event, part) == (self._chosen_event, self._chosen_part)
        assert event < self._history.event_count
        self._now_ms = now_ms
        self._history.answer_chosen((event, part), digest)
        self._recent.append((event, part, last, commands))
        self._next_tid += tasks_started
        if last:
            self._move_frontier(event + 1, 0)
        else:
            self._move_frontier(event, part + 1)
        queue = self._proposed or self._fresh
        if not queue:
            return  # Our process is behind, or not running.
        if queue is self._fresh:
            self._stand_in_end_ms = self._now_ms  # Somebody else was first.
        head = queue[0]
        if isinstance(head, list):
            self._differs(event, part, True, ())
        elif commands != head.commands or last != head.last:
            self._differs(event, part, head.last, head.commands)
        else:
            queue.popleft()

    def empty_answers_chosen(self, first_event: int, end_event: int, now_ms: int) -> None:
        """Take chosen answers to whole events; they say nothing."""
        assert (first_event, 0) == (self._chosen_event, self._chosen_part)
        assert first_event < end_event <= self._history.event_count
        self._now_ms = now_ms
        self._move_frontier(end_event, 0)
        event = first_event
        while event < end_event:
            queue = self._proposed or self._fresh
            if not queue:
                return  # Our process is behind, or not running.
            if queue is self._fresh:
                self._stand_in_end_ms = self._now_ms
            head = queue[0]
            if not isinstance(head, list):
                self._differs(event, 0, head.last, head.commands)
                return
            assert head[0] == event
            if head[1] <= end_event:
                event = head[1]
                queue.popleft()
            else:
                event = head[0] = end_event

    def out_chosen(self) -> None:
        """The log says that this replica's scheduler is out; proposing it ends."""
        self._out = None

    def job_ended(self, now_ms: int) -> None:
        """The job has finished, failed or was cancelled: stop the process kindly.

        A process that is behind the log goes on for a moment, and is compared. Otherwise nobody
        would find a scheduler of a short job that isn't deterministic.
        """
        self._now_ms = now_ms
        self._out = None
        is_compared = self._state in ("starting", "replaying", "live") and self._is_behind
        if is_compared and not self._differences:
            self._closing_end_ms = now_ms + CLOSING_MS
        else:
            self._close()

    @property
    def _is_behind(self) -> bool:
        chosen = self._chosen_event, self._chosen_part
        return (self._own_event, self._own_part) < chosen and not self._own_ends

    def _close(self) -> None:
        self._closing_end_ms = None
        self._clear_run()
        if self._has_process and self._state not in ("stopping", "out", "ended"):
            self._stop = "ask"
        self._state = "ended"

    def lead(self, now_ms: int, *, is_leader: bool) -> None:
        """Say whether this replica is to propose at once: the leader, usually.

        If the leader's scheduler is out for this job (the state machine knows), the caller
        may name another replica here. That saves the wait for a grace.

        A replica that becomes the leader proposes everything that isn't chosen: former
        proposals may be lost with the last leader.
        """
        self._now_ms = now_ms
        if is_leader != self._is_leader:
            self._is_leader = is_leader
            self._propose_again()
            self._frontier_ms = now_ms
            self._stand_in_end_ms = now_ms

    def history_read(
        self,
        number: int,
        lines: Sequence[bytes],
        answers: Iterable[tuple[int, int, str]],
        now_ms: int,
    ) -> None:
        """Take the history that `HostEffects.read` asked for.

        Args:
            number: As it said there; history read for an earlier run is ignored.
            lines: The first of the events asked for, at least one.
            answers: (event, part, digest) of the answers to them.

        Raises:
            LocalProtocolError: No line was found; the mirror isn't whole.
        """
        self._now_ms = now_ms
        self._history.page_read(number, lines, answers)

    # --- what the process does ---

    def setting_up(self, limit_ms: int) -> None:
        """Its program is being made ready; the start begins at this time at the latest."""
        if self._state == "starting":
            self._progress_ms = limit_ms

    def preparing(self, what: str, now_ms: int) -> None:
        """This coordinator's present step before the start, in words; "": there is none."""
        self._preparing, self._preparing_ms = what, now_ms

    def start_failed(self, error: str, now_ms: int) -> None:
        """The process couldn't be started."""
        if self._state == "starting":
            self._now_ms = now_ms
            self._has_process = False
            self._crash(error)
        else:
            self.exited(error, "", now_ms)

    def ready(self, now_ms: int) -> None:
        """The process said that it is ready."""
        self._now_ms = now_ms
        if self._state != "starting":
            # It started too late, and was given up. The order to kill it may have found
            # nothing to kill.
            self._stop = "kill"
            return
        self._replay_end = self._chosen_event
        self._state = "replaying" if self._replay_end else "live"
        self._progress_ms = now_ms
        self._late_once = False

    def answered(self, answers: Sequence[DecodedAnswer], now_ms: int) -> None:
        """Take the process's next answers."""
        self._now_ms = now_ms
        if self._state not in ("replaying", "live"):
            return  # It is being stopped.
        self._progress_ms = now_ms
        self._late_once = False
        sent_end, chosen_answers = self._sent_end, self._history.answers
        chosen_event, chosen_part = self._chosen_event, self._chosen_part
        for answer in answers:
            event = answer.event
            if event >= sent_end:
                self._fail(f"the scheduler answered event {event}, which it hasn't been sent")
                return
            # The protocol's reader has checked the order.
            assert event == self._own_event and answer.part == self._own_part
            if not answer.commands and not answer.part and answer.last:
                if event > chosen_event or (event == chosen_event and not chosen_part):
                    self._enqueue_empty(event)
                elif (event, 0) in chosen_answers:
                    self._differs(event, 0, True, ())
                    return
                self._own_event = event + 1
            elif not self._take(answer):
                return
        self._settle_sent()
        if self._closing_end_ms is not None and not self._is_behind:
            self._close()

    def garbage(self, error: str, now_ms: int) -> None:
        """The process broke the protocol of schedulers."""
        self._now_ms = now_ms
        if self._state in ("starting", "replaying", "live"):
            self._fail(error)

    def exited(self, reason: str, stderr_tail: str, now_ms: int) -> None:
        """The process has ended, and nothing of it will follow.

        Args:
            reason: Exit code or signal, in words.
            stderr_tail: The end of its stderr.
        """
        self._now_ms = now_ms
        self._has_process = False
        if self._closing_end_ms is not None:
            self._close()
        tail = stderr_tail.strip()
        tail = f"; its stderr ended with:\n{tail}" if tail else ""
        match self._state:
            case "stopping":
                failure, self._failure = self._failure, ""
                if failure:
                    self._crash(failure + tail)
                else:
                    self._pause()
            case "starting" | "replaying" | "live":
                if self._own_ends:
                    # It has said its last answer. Its answers needn't be chosen yet.
                    self._state = "finished"
                elif self._state == "starting":
                    self._crash(f"the scheduler ended before it was ready: {reason}{tail}")
                else:
                    self._crash(f"the scheduler ended {self._where()}: {reason}{tail}")
            case _:
                pass

    def tick(self, now_ms: int) -> None:
        """Let time pass; call it at or after `deadline_ms`."""
        self._now_ms = now_ms
        if self._closing_end_ms is not None and now_ms >= self._closing_end_ms:
            self._close()
        deadline = self._process_deadline_ms()
        if deadline is not None and now_ms >= deadline:
            if now_ms - deadline > LATE_MS and not self._late_once:
                self._late_once = True
                self._progress_ms = now_ms
            elif self._state == "starting":
                self._fail(
                    f"the scheduler isn't ready after {self._settings.node_ready_timeout_ms} ms "
                    "(node_ready_timeout_ms)"
                )
            else:
                what = describe_event(self._own_event, self._history.line(self._own_event))
                self._fail(
                    f"the scheduler hasn't answered {what} for "
                    f"{self._settings.scheduler_answer_timeout_ms} ms "
                    "(scheduler_answer_timeout_ms)"
                )
        repeat_at = self._repeat_deadline_ms()
        if repeat_at is not None and now_ms >= repeat_at:
            self._propose_again()
            self._frontier_ms = now_ms
            self._repeat_graces = min(2 * self._repeat_graces, REPEAT_GRACES_MAX)
            if not self._is_leader:
                grace = self._settings.answer_grace_ms
                self._stand_in_end_ms = now_ms + STAND_IN_GRACES * grace

    @property
    def deadline_ms(self) -> int | None:
        """When `tick` has something to do, unless something happens before."""
        deadlines = [self._process_deadline_ms(), self._repeat_deadline_ms()]
        deadlines.append(self._closing_end_ms)
        if self._state == "waiting":
            deadlines.append(self._start_at_ms)
        if self._out is not None:
            deadlines.append(self._out_at_ms)
        return min((each for each in deadlines if each is not None), default=None)

    @property
    def status(self) -> HostStatus:
        """How the scheduler is doing here."""
        count = self._history.event_count
        events = self._own_event, self._replay_end, count
        restarts = self._restarts, RESTARTS_MAX
        detail = self._last_error if self._state == "out" else self._preparing
        text = describe_state(self._state, events, restarts, detail)
        return HostStatus(self._state, self._own_event, count, self._restarts, text)

    def silence(self, now_ms: int) -> str | None:
        """Return in words what the scheduler should have done; None: it isn't late.

        It is late after `silence_shown_ms`, or while it is started again after a failure.
        """
        if self._state in ("waiting", "stopping") and self._restarts:
            return f"its scheduler failed: restart {self._restarts} of at most {RESTARTS_MAX}"
        deadline = self._process_deadline_ms()
        is_prepared = self._state == "starting" and bool(self._preparing)
        silent_ms = now_ms - (self._preparing_ms if is_prepared else self._progress_ms)
        if deadline is None or silent_ms < self._settings.silence_shown_ms:
            return None
        if is_prepared:
            times = silent_ms, self._progress_ms - now_ms
            return describe_preparing(self.replica, self._preparing, *times)
        left_s = max(deadline - now_ms, 0) // 1_000
        what = "isn't ready"
        if self._state != "starting":
            event = describe_event(self._own_event, self._history.line(self._own_event))
            what = f"hasn't answered {event}"
        return f"its scheduler {what} for {silent_ms // 1_000} s; it is ended in {left_s} s"

    # --- effects ---

    def effects(self) -> HostEffects | None:
        """Return what is to be done now; None: nothing."""
        stop, self._stop = self._stop, ""
        start = False
        if self._state == "waiting" and self._now_ms >= self._start_at_ms:
            assert not self._has_process
            self._state = "starting"
            self._has_process = start = True
            self._progress_ms = self._now_ms
            self._late_once = False
        write = self._next_lines() if self._state in ("replaying", "live") else b""
        propose: tuple[Answer, ...] = ()
        if self._closing_end_ms is not None:
            pass  # An ended job takes no answers.
        elif self._fresh and (self._is_leader or self._now_ms < self._stand_in_end_ms):
            propose = proposal(self.job, self._fresh, self._settings.entry_bytes_max // 2)
            self._proposed.extend(self._fresh)
            self._fresh.clear()
        out = None
        if self._out is not None and self._now_ms >= self._out_at_ms:
            out = self._out
            self._out_at_ms = self._now_ms + self._settings.answer_grace_ms
        read = None
        if self._state in ("starting", "replaying", "live"):
            read = self._history.read(self._sent_end, self._settings.scheduler_window_events)
        if read is not None and self._closing_end_ms is not None:
            self._close()  # Nobody may read an ended job's history: stores delete it.
            return self.effects()
        differed, self._differed = self._differed, ""
        if not (stop or start or write or propose or out or self._notes or read or differed):
            return None
        notes, self._notes = tuple(self._notes), []
        is_forwarded = bool(propose) and not self._is_leader
        return HostEffects(
            stop, start, write, propose, is_forwarded, out, notes, read, differed
        )

    def _next_lines(self) -> bytes:
        """Return the lines that fit into the pipe now."""
        first = self._sent_end
        window_events = self._settings.scheduler_window_events
        end = min(self._history.end_event, self._own_event + window_events)
        head = b""
        if first == 0 and self._replay_end:
            head = REPLAY_LINE % self._replay_end
        if first < self._replay_end:
            end = min(end, self._replay_end)  # The line "live" comes between.
        if end <= first:
            return b""
        lines = self._history.slice(first, end)
        size = sum(map(len, lines))
        room = WINDOW_BYTES - self._sent_bytes
        if size > room:
            # Rare: large values. Take as many as fit, and at least one if the pipe is empty.
            count = size = 0
            for line in lines:
                if size + len(line) > room and (count or self._sent_bytes):
                    break
                count, size = count + 1, size + len(line)
            if not count:
                return b""
            lines = lines[:count]
            end = first + count
        if not self._sent:
            self._progress_ms = self._now_ms
        self._sent.append((end, size))
        self._sent_bytes += size
        self._sent_end = end
        text = b"\n".join(lines) + b"\n"
        if first < self._replay_end == end:
            return head + text + LIVE_LINE + self._next_lines()
        return head + text

    # --- answers of the process ---

    def _enqueue_empty(self, event: int) -> None:
        fresh = self._fresh
        if fresh:
            tail = fresh[-1]
            if isinstance(tail, list):
                tail[1] = event + 1
                return
        elif not self._proposed:
            self._queue_begins()
        fresh.append([event, event + 1])

    def _take(self, answer: DecodedAnswer) -> bool:
        """Compare or enqueue an answer; it says something. False: it is refused."""
        event, part, last, commands = answer.event, answer.part, answer.last, answer.commands
        if len(commands) > self._rules.commands_per_part_max:
            self._fail(
                f"the scheduler answered event {event} with {len(commands)} commands in one part, "
                f"expected at most {self._rules.commands_per_part_max} "
                "(commands_per_part_max); cut the answer into parts"
            )
            return False
        tasks, size = measure(commands)
        size_max = self._settings.frame_bytes_max // 2
        if size > size_max:
            # It must go into an entry, and the entry into a frame, with room for others.
            self._fail(
                f"the scheduler answered event {event} with {size} bytes in one part, expected "
                f"at most {size_max} (half of frame_bytes_max); let tasks return large values"
            )
            return False
        if (event, part) < (self._chosen_event, self._chosen_part):
            digest = answer_digest(TaskId(self._own_tid), last, commands)
            if self._history.answers.get((event, part)) != digest:
                self._differs(event, part, last, commands)
                return False
        else:
            if not self._proposed and not self._fresh:
                self._queue_begins()
            self._fresh.append(OwnAnswer(event, part, last, self._own_tid, commands, size))
        self._own_tid += tasks
        if last:
            self._own_event, self._own_part = event + 1, 0
            if commands and isinstance(commands[-1], FinishJob | FailJob):
                self._own_ends = True
        else:
            self._own_part = part + 1
        return True

    def _queue_begins(self) -> None:
        """The process has reached the frontier."""
        assert (self._own_event, self._own_part) == (self._chosen_event, self._chosen_part)
        assert self._own_tid == self._next_tid  # Every answer before was equal.
        self._frontier_ms = self._now_ms
        self._repeat_graces = 1

    def _settle_sent(self) -> None:
        sent, own_event = self._sent, self._own_event
        while sent and sent[0][0] <= own_event:
            self._sent_bytes -= sent.popleft()[1]
        if self._state == "replaying" and own_event >= self._replay_end:
            self._state = "live"
        # Messages may name events that aren't answered or chosen yet, or the one before them.
        self._history.trim(min(self._own_event, self._chosen_event) - 1)

    def _move_frontier(self, event: int, part: int) -> None:
        self._chosen_event, self._chosen_part = event, part
        self._frontier_ms = self._now_ms
        self._repeat_graces = 1

    # --- proposing again ---

    def _propose_again(self) -> None:
        """Count all proposed answers as not proposed: they may be lost."""
        if self._proposed:
            self._proposed.extend(self._fresh)
            self._fresh = self._proposed
            self._proposed = deque()

    def _repeat_deadline_ms(self) -> int | None:
        """When the head of the queues has waited for too long."""
        if not self._proposed and (not self._fresh or self._is_leader):
            return None
        grace = self._settings.answer_grace_ms
        wait_ms = grace * self._repeat_graces
        if not self._is_leader:
            wait_ms += self.replica % 8 * grace // 8  # One of them comes first.
        return self._frontier_ms + wait_ms

    # --- faults ---

    def _process_deadline_ms(self) -> int | None:
        if self._state == "starting":
            return self._progress_ms + self._settings.node_ready_timeout_ms
        is_busy = self._own_event < self._sent_end and not self._own_ends
        if is_busy and self._state in ("replaying", "live"):
            return self._progress_ms + self._settings.scheduler_answer_timeout_ms
        return None

    def _differs(
        self, event: int, part: int, last: bool, own: tuple[SchedulerCommand, ...]
    ) -> None:
        """The process's answer isn't the chosen one: replay once, then give up."""
        what, said, this = describe_answers(
            (event, part),
            self._history.line(event),
            self._recent,
            is_answered=(event, part) in self._history.answers,
            last=last,
            own=own,
        )
        difference = f"{what}: the log says {said}, this replica says {this}"
        note = f"replica {self.replica}: {difference}"
        self._differences += 1
        self._differed = self._differed or difference
        if self._closing_end_ms is not None:
            self._notes.append(note)
            self._close()
        elif self._differences > 1:
            self._notes.append(note)
            self._give_up(
                "diverged",
                f"{note}; a scheduler must depend on nothing but its events, its parameters "
                "and its seed",
            )
        else:
            self._notes.append(f"{note}; it is started anew and replays")
            if self._has_process:
                self._stop_process()
            else:  # It had said its last answer, and left.
                self._pause()

    def _fail(self, error: str) -> None:
        """The process must be killed; once it has ended, the failure counts."""
        self._failure = error
        self._stop_process()

    def _crash(self, error: str) -> None:
        """The process has ended where it shouldn't: restart it, or give up."""
        if self._closing_end_ms is not None:
            self._close()
            return
        point = self._own_event, self._own_part
        if self._failed_at is None or point > self._failed_at:
            self._failed_at, self._failures = point, 1
        else:
            self._failures += 1
        self._notes.append(f"replica {self.replica}: {error}")
        if self._failures > 1 or self._restarts >= RESTARTS_MAX:
            self._give_up("crashed", error)
        else:
            self._pause()

    def _where(self) -> str:
        """Return between which events the process is, in words."""
        event, word = self._own_event, "at"
        if event == self._sent_end:
            event, word = event - 1, "after"
        if event < 0:
            return "at once"
        return f"{word} {describe_event(event, self._history.line(event))}"

    def _pause(self) -> None:
        self._clear_run()
        self._state = "waiting"
        pause_ms = min(RESTART_PAUSE_MS << self._restarts, RESTART_PAUSE_MAX_MS)
        self._start_at_ms = self._now_ms + pause_ms
        self._restarts += 1

    def _stop_process(self) -> None:
        self._state = "stopping"
        self._stop = "kill"
        # Nothing more of this run is proposed or compared.
        self._proposed.clear()
        self._fresh.clear()

    def _give_up(self, kind: Literal["crashed", "diverged"], error: str) -> None:
        if self._has_process:
            self._stop = "kill"
        self._clear_run()
        self._state = "out"
        self._last_error = error
        self._out = SchedulerOut(self.replica, self.job, kind, error)
        self._out_at_ms = self._now_ms

    def _clear_run(self) -> None:
        """Forget this run of the process: the next one answers everything anew."""
        self._own_event = self._own_part = self._own_tid = 0
        self._own_ends = False
        self._history.rewind()
        self._proposed.clear()
        self._fresh.clear()
        self._sent_end = self._replay_end = 0
        self._sent.clear()
        self._sent_bytes = 0

    def check(self) -> None:
        """Assert the invariants, for tests.

        Raises:
            LocalProtocolError: The queues don't cover exactly what they must.
        """
        position = self._chosen_event, self._chosen_part
        for entry in [*self._proposed, *self._fresh]:
            if isinstance(entry, list):
                first, position = (entry[0], 0), (entry[1], 0)
                assert entry[0] < entry[1]
            else:
                first = entry.event, entry.part
            if isinstance(entry, OwnAnswer):
                start, position = (
                    position,
                    ((entry.event + 1, 0) if entry.last else (entry.event, entry.part + 1)),
                )
                if start != first:
                    raise LocalProtocolError(f"queue has {first}, expected {start}")
        own = self._own_event, self._own_part
        if (self._proposed or self._fresh) and position != own:
            raise LocalProtocolError(f"queue ends at {position}, expected {own}")
        if self._state == "live" and own > position:
            raise LocalProtocolError(f"answers up to {own} are lost, frontier {position}")
        assert self._own_event <= self._sent_end <= self._history.end_event
        assert self._history.first_event <= self._own_event
        self._history.check()
        assert self._sent_bytes == sum(size for _, size in self._sent)
