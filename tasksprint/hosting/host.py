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
chosen it may run ahead: its answers wait in a queue (queue.py). They are proposed from there.
A chosen answer is compared with the head of the queue. So each answer is compared once,
whichever side was first.

The parts of a host don't know it: the queue, the lines for its process (feed.py), restarts
(restarts.py). The states of the process are a table (states.py). Only a part of a long
history is in memory (history.py); `HostEffects.read` asks for more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from tasksprint.coordination.applied import ChosenAnswer, EmptyAnswers
from tasksprint.coordination.commands import Answer, SchedulerOut, answer_digest
from tasksprint.hosting.feed import Feed
from tasksprint.hosting.history import History
from tasksprint.hosting.queue import AnswerQueue, OwnAnswer, Part
from tasksprint.hosting.restarts import RESTARTS_MAX, Restarts
from tasksprint.hosting.states import HOST_TRANSITIONS, HostEvent, HostState
from tasksprint.hosting.types import DecodedAnswer, HostEffects, HostStatus
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

# If a deadline is noticed this late, *we* didn't run (a suspended machine). Then the scheduler
# didn't either.
LATE_MS = 5_000
# Chosen answers that are kept, to describe a difference.
RECENT_MAX = 64
# How long a scheduler that is behind is compared once its job has ended.
CLOSING_MS = 1_000


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
        self._recent: deque[Part] = deque(maxlen=RECENT_MAX)
        self._queue = AnswerQueue(
            job, replica, settings, frontier=answered_end, next_tid=next_tid, now_ms=now_ms
        )

        # This run of the process.
        self._state: HostState = "waiting"
        self._own_event = 0
        self._own_part = 0
        self._own_tid = 0  # tasks that it has started: the tid of the next one
        self._own_ends = False  # its last answer finished or failed the job
        self._feed = Feed(self._history, settings.scheduler_window_events)

        # Clocks.
        self._now_ms = now_ms
        self._progress_ms = now_ms  # when the process last answered or became busy
        self._out_at_ms = now_ms  # when to propose `_out` (again)
        self._late_once = False
        self._preparing, self._preparing_ms = "", now_ms  # The present step before its start.

        # Faults.
        self._failure = ""  # why the process is being stopped
        self._restarts = Restarts(now_ms)
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
        self._now_ms = now_ms
        queue, history = self._queue, self._history
        for answer in answers:
            if isinstance(answer, EmptyAnswers):
                assert answer.end_event <= history.event_count
                different = queue.empty_chosen(answer, now_ms)
            else:
                event, part = answer.event, answer.part
                assert event < history.event_count
                history.answer_chosen((event, part), answer.digest)
                self._recent.append((event, part, answer.last, answer.commands))
                different = queue.answer_chosen(answer, now_ms)
            if different is not None:
                self._differs(*different)

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
        chosen = self._queue.chosen_event, self._queue.chosen_part
        return (self._own_event, self._own_part) < chosen and not self._own_ends

    def _close(self) -> None:
        self._closing_end_ms = None
        self._clear_run()
        if self._has_process and self._state not in ("stopping", "out", "ended"):
            self._stop = "ask"
        self._enter("job ended")

    def lead(self, now_ms: int, *, is_leader: bool) -> None:
        """Say whether this replica is to propose at once: the leader, usually.

        If the leader's scheduler is out for this job (the state machine knows), the caller
        may name another replica here. That saves the wait for a grace.

        A replica that becomes the leader proposes everything that isn't chosen: former
        proposals may be lost with the last leader.
        """
        self._now_ms = now_ms
        self._queue.lead(now_ms, is_leader=is_leader)

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
        self._enter("ready")
        self._feed.replay_end = self._queue.chosen_event
        if not self._feed.replay_end:
            self._enter("caught up")
        self._progress_ms = now_ms
        self._late_once = False

    def answered(self, answers: Sequence[DecodedAnswer], now_ms: int) -> None:
        """Take the process's next answers."""
        self._now_ms = now_ms
        if self._state not in ("replaying", "live"):
            return  # It is being stopped.
        self._progress_ms = now_ms
        self._late_once = False
        queue, sent_end, chosen_answers = self._queue, self._feed.sent_end, self._history.answers
        chosen_event, chosen_part = queue.chosen_event, queue.chosen_part
        for answer in answers:
            event = answer.event
            if event >= sent_end:
                self._fail(f"the scheduler answered event {event}, which it hasn't been sent")
                return
            # The protocol's reader has checked the order.
            assert event == self._own_event and answer.part == self._own_part
            if not answer.commands and not answer.part and answer.last:
                if event > chosen_event or (event == chosen_event and not chosen_part):
                    queue.add_empty(event, self._own_tid, now_ms)
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
                    self._enter("left")
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
        self._queue.tick(now_ms)

    @property
    def deadline_ms(self) -> int | None:
        """When `tick` has something to do, unless something happens before."""
        deadlines = [
            self._process_deadline_ms(),
            self._queue.deadline_ms,
            self._closing_end_ms,
            self._restarts.start_at_ms if self._state == "waiting" else None,
            self._out_at_ms if self._out is not None else None,
        ]
        return min([each for each in deadlines if each is not None], default=None)

    @property
    def status(self) -> HostStatus:
        """How the scheduler is doing here."""
        count = self._history.event_count
        events = self._own_event, self._feed.replay_end, count
        restarts = self._restarts.count
        detail = self._last_error if self._state == "out" else self._preparing
        text = describe_state(self._state, events, (restarts, RESTARTS_MAX), detail)
        return HostStatus(self._state, self._own_event, count, restarts, text)

    def silence(self, now_ms: int) -> str | None:
        """Return in words what the scheduler should have done; None: it isn't late.

        It is late after `silence_shown_ms`, or while it is started again after a failure.
        """
        restarts = self._restarts.count
        if self._state in ("waiting", "stopping") and restarts:
            return f"its scheduler failed: restart {restarts} of at most {RESTARTS_MAX}"
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
        if self._state == "waiting" and self._now_ms >= self._restarts.start_at_ms:
            assert not self._has_process
            self._enter("started")
            self._has_process = start = True
            self._progress_ms = self._now_ms
            self._late_once = False
        write = b""
        if self._state in ("replaying", "live"):
            is_idle = self._feed.is_answered
            write = self._feed.next_lines(self._own_event)
            if write and is_idle:
                self._progress_ms = self._now_ms
        propose: tuple[Answer, ...] = ()
        if self._closing_end_ms is None:  # An ended job takes no answers.
            propose = self._queue.propose(self._now_ms)
        out = None
        if self._out is not None and self._now_ms >= self._out_at_ms:
            out = self._out
            self._out_at_ms = self._now_ms + self._settings.answer_grace_ms
        read = None
        if self._state in ("starting", "replaying", "live"):
            read = self._feed.next_read()
        if read is not None and self._closing_end_ms is not None:
            self._close()  # Nobody may read an ended job's history: stores delete it.
            return self.effects()
        differed, self._differed = self._differed, ""
        if not (stop or start or write or propose or out or self._notes or read or differed):
            return None
        notes, self._notes = tuple(self._notes), []
        is_forwarded = bool(propose) and not self._queue.is_leader
        return HostEffects(
            stop, start, write, propose, is_forwarded, out, notes, read, differed
        )

    # --- answers of the process ---

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
        queue = self._queue
        if (event, part) < (queue.chosen_event, queue.chosen_part):
            digest = answer_digest(TaskId(self._own_tid), last, commands)
            if self._history.answers.get((event, part)) != digest:
                self._differs(event, part, last, commands)
                return False
        else:
            own = OwnAnswer(event, part, last, self._own_tid, commands, size)
            queue.add(own, self._now_ms)
        self._own_tid += tasks
        if last:
            self._own_event, self._own_part = event + 1, 0
            if commands and isinstance(commands[-1], FinishJob | FailJob):
                self._own_ends = True
        else:
            self._own_part = part + 1
        return True

    def _settle_sent(self) -> None:
        own_event = self._own_event
        self._feed.answered(own_event)
        if self._state == "replaying" and own_event >= self._feed.replay_end:
            self._enter("caught up")
        # Messages may name events that aren't answered or chosen yet, or the one before them.
        self._history.trim(min(own_event, self._queue.chosen_event) - 1)

    # --- faults ---

    def _process_deadline_ms(self) -> int | None:
        if self._state == "starting":
            return self._progress_ms + self._settings.node_ready_timeout_ms
        is_busy = self._own_event < self._feed.sent_end and not self._own_ends
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
        self._notes.append(f"replica {self.replica}: {error}")
        if self._restarts.may_follow((self._own_event, self._own_part)):
            self._pause()
        else:
            self._give_up("crashed", error)

    def _where(self) -> str:
        """Return between which events the process is, in words."""
        event, word = self._own_event, "at"
        if event == self._feed.sent_end:
            event, word = event - 1, "after"
        if event < 0:
            return "at once"
        return f"{word} {describe_event(event, self._history.line(event))}"

    def _pause(self) -> None:
        self._clear_run()
        self._enter("paused")
        self._restarts.pause(self._now_ms)

    def _stop_process(self) -> None:
        self._enter("killed")
        self._stop = "kill"
        self._queue.clear()  # Nothing more of this run is proposed or compared.

    def _give_up(self, kind: Literal["crashed", "diverged"], error: str) -> None:
        if self._has_process:
            self._stop = "kill"
        self._clear_run()
        self._enter("given up")
        self._last_error = error
        self._out = SchedulerOut(self.replica, self.job, kind, error)
        self._out_at_ms = self._now_ms

    def _clear_run(self) -> None:
        """Forget this run of the process: the next one answers everything anew."""
        self._own_event = self._own_part = self._own_tid = 0
        self._own_ends = False
        self._history.rewind()
        self._queue.clear()
        self._feed.clear()

    def _enter(self, event: HostEvent) -> None:
        """Change the state of the process, by what happened to it."""
        state = HOST_TRANSITIONS[event].get(self._state)
        assert state is not None, f"job {self.job}: it can't be {event}: it is {self._state}"
        self._state = state

    def check(self) -> None:
        """Assert the invariants, for tests.

        Raises:
            LocalProtocolError: The queues don't cover exactly what they must.
        """
        own = self._own_event, self._own_part
        self._queue.check(own, is_live=self._state == "live")
        self._feed.check(self._own_event)
        assert self._history.first_event <= self._own_event
        self._history.check()
