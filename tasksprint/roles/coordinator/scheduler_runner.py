"""One job's scheduler process on this replica: carries out the scheduler host's decisions.

The host (hosting/host.py) decides which lines the process gets, judges its answers, and says
when it is restarted. Here are only the process, its pipe and its output.

If the job is to be checked for determinism, a second copy of its scheduler runs beside it, with
another hash seed. It is fed and compared in the same way, and proposes nothing. If it answers
differently, this becomes a warning of the job, and the copy ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasksprint.consensus import Replica
from tasksprint.coordination.applied import ChosenAnswer, EmptyAnswers, Event
from tasksprint.coordination.commands import Answer, JobObserved, encode_command
from tasksprint.coordination.observations import DIFFERS, SCHEDULER_RUNTIME
from tasksprint.errors import RemoteProtocolError, TaskSprintError
from tasksprint.hosting.host import HostEffects, SchedulerHost
from tasksprint.ids import JobId
from tasksprint.process.program import ExitReason
from tasksprint.protocol.scheduler_lines import SchedulerAnswer, SchedulerReader, SchedulerReady
from tasksprint.roles.coordinator.archives import Archives
from tasksprint.roles.coordinator.ports import Log, Mirror, Turns, Writer
from tasksprint.roles.coordinator.roster import Roster
from tasksprint.roles.coordinator.surroundings import SchedulerProgram
from tasksprint.roles.coordinator.ticks import Ticks
from tasksprint.scheduler_commands import FailJob, FinishJob
from tasksprint.settings import Settings
from tasksprint.store.replica_store import ReplicaStore
from tasksprint.store.result_records import BoundedText

__all__ = ["RunnerPorts", "SchedulerRunner"]

_log = logging.getLogger("tasksprint.scheduler")

# Bytes of events that are read from the mirror at once, and "all" answers to them.
_PAGE_BYTES_MAX = 8 * 1024 * 1024
_ANSWERS_MAX = 2**40
# A command that may have got lost is said again after this pause, at first.
_SAY_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class RunnerPorts:
    """The parts of a coordinator that its runners use."""

    settings: Settings
    turns: Turns
    log: Log
    ticks: Ticks
    roster: Roster
    mirror: Mirror
    replica: Replica
    writer: Writer
    archives: Archives
    start_scheduler: Callable[..., Awaitable[SchedulerProgram]]


class SchedulerRunner:
    """Runs the scheduler of one job on this replica, until the job ends."""

    def __init__(
        self,
        ports: RunnerPorts,
        job: JobId,
        events: Sequence[bytes],
        *,
        stir: Callable[[], None],
        is_copy: bool = False,
    ) -> None:
        """Begin to run it.

        Args:
            events: All of the job's events, or () if they aren't at hand: then they are
                read from the mirror.
            stir: Has `turn` called soon.
            is_copy: It only checks the other one.
        """
        self._ports = ports
        self._turns = ports.turns
        self._log = ports.log
        self._stir = stir
        self._job = job
        history = ports.log.require_schedule().scheduler_history(job)
        self._seed = history.seed
        self._program_digest = history.program
        self._rules = history.rules
        self._manifest: dict[str, Any] = json.loads(history.manifest)
        self._host = SchedulerHost(
            job=job,
            replica=ports.roster.me,
            settings=ports.settings,
            events=events if len(events) == history.event_count else (),
            event_count=history.event_count,
            answers={},
            answered_end=history.answered_end,
            next_tid=history.next_tid,
            now_ms=self._turns.now_ms(),
        )
        self._is_copy = is_copy
        self.lead(ports.replica.is_leader)
        self._copy: SchedulerRunner | None = None
        if self._manifest.get("check_determinism") and not is_copy:
            self._copy = SchedulerRunner(ports, job, events, stir=stir, is_copy=True)
        self._program: SchedulerProgram | None = None
        self._starting: asyncio.Task[None] | None = None
        self._fetching: asyncio.Future[Path] | None = None  # a part of `_starting`
        self._reader = self._new_reader()
        self._events: list[bytes] = []  # chosen in this turn
        self._answers: list[ChosenAnswer | EmptyAnswers] = []  # chosen in this turn
        self._ended = False
        self._stop_at_start = False
        self._saying = 0  # what the log is to hear
        self._output = BoundedText()

    @property
    def deadline_ms(self) -> int | None:
        """When `turn` has something to do, unless something happens before."""
        own = self._host.deadline_ms
        other = None if self._copy is None else self._copy.deadline_ms
        return own if other is None or (own is not None and own < other) else other

    @property
    def is_done(self) -> bool:
        """Whether the job has ended and the process is gone."""
        is_gone = self._ended and self._program is None and self._starting is None
        is_gone = is_gone and not self._saying
        return is_gone and (self._copy is None or self._copy.is_done)

    # --- from the log ---

    def event_chosen(self, event: Event) -> None:
        self._events.append(event.line)
        if self._copy is not None:
            self._copy.event_chosen(event)

    def answer_chosen(self, answer: ChosenAnswer | EmptyAnswers) -> None:
        self._answers.append(answer)
        if self._copy is not None:
            self._copy.answer_chosen(answer)

    def _hand_over(self, now_ms: int) -> None:
        """Tell the host the entries chosen since the last turn."""
        if self._events:
            events, self._events = self._events, []
            self._host.events_chosen(events, now_ms)
        if self._answers:
            answers, self._answers = self._answers, []
            self._host.answers_chosen(answers, now_ms)

    def out_chosen(self) -> None:
        self._host.out_chosen()

    def lead(self, is_leader: bool) -> None:
        self._host.lead(self._turns.now_ms(), is_leader=is_leader and not self._is_copy)

    def job_ended(self) -> None:
        self._ended = True
        self._hand_over(self._turns.now_ms())
        self._host.job_ended(self._turns.now_ms())
        if self._copy is not None:
            self._copy.job_ended()
        self.turn(self._turns.now_ms())

    def stop(self) -> None:
        """Kill the process and hear nothing more of it: this replica stops, or begins anew."""
        self._ended = True
        if self._starting is not None:
            self._starting.cancel()
        if self._program is not None:
            self._program.kill("its coordinator stops")
        if self._copy is not None:
            self._copy.stop()

    # --- effects ---

    def turn(self, now_ms: int) -> None:
        """Carry out the host's orders of now."""
        if self._copy is not None:
            self._copy.turn(now_ms)
        self._hand_over(now_ms)
        deadline_ms = self._host.deadline_ms
        if deadline_ms is not None and now_ms >= deadline_ms:
            self._host.tick(now_ms)
        while (effects := self._host.effects()) is not None:
            for note in effects.notes:
                _log.info("replica=%d job=%d %s", self._ports.roster.me, self._job, note)
            if effects.stop and self._program is None:
                self._stop_at_start = True  # It is being started: it ends as soon as it is.
                if self._fetching is not None:
                    self._fetching.cancel()  # Nobody may have its program for long.
            elif effects.stop == "kill" and self._program is not None:
                self._program.kill()
            elif effects.stop and self._program is not None:
                self._turns.background(self._program.stop())
            if effects.start:
                self._stop_at_start = False
                self._starting = self._turns.background(self._start())
            if effects.write and self._program is not None:
                self._program.write(effects.write)
            if effects.differed:
                self._observe_difference(effects.differed)
            if self._is_copy:
                self._turn_copy(effects)
                continue
            for answer in effects.propose:
                if _may_end_job(answer):
                    self._ports.ticks.tick_now()
                self._propose(answer)
            if effects.out is not None:
                if self._log.require_schedule().is_out(self._job, effects.out.replica):
                    self._host.out_chosen()
                else:
                    self._log.propose(encode_command(effects.out))
            if effects.read is not None:
                self._turns.background(self._read_history(*effects.read))

    def _turn_copy(self, effects: HostEffects) -> None:
        """Carry out the rest of a copy's effects: it proposes nothing."""
        if effects.out is not None:
            self._host.out_chosen()
            if effects.out.kind == "crashed":
                self._observe(f"a second copy of its scheduler failed: {effects.out.error}")
        if effects.read is not None:
            self._turns.background(self._read_history(*effects.read))
        if effects.differed and not self._ended:
            self._ended = True
            self._host.job_ended(self._turns.now_ms())  # Its work is done.

    def _observe_difference(self, difference: str) -> None:
        self._observe(
            f"its scheduler isn't deterministic: {difference}; a scheduler must depend on nothing "
            "but its events, its parameters and its seed"
        )

    def _observe(self, text: str) -> None:
        """Let the log say something of the job that its owner must hear of."""
        source = f"replica {self._ports.roster.me}"
        if self._is_copy:
            source = f"a second copy on {source}"
        self._turns.background(
            self._say(JobObserved(self._job, DIFFERS, source, f"{source}: {text}"))
        )

    def _tell_runtime(self, runtime: str | None) -> None:
        """Put the scheduler's runtime here into the log, if others run it elsewhere."""
        if runtime is None or self._is_copy or not self._ports.roster.others():
            return
        source = f"replica {self._ports.roster.me}"
        command = JobObserved(self._job, SCHEDULER_RUNTIME, source, runtime)
        self._turns.background(self._say(command))

    async def _say(self, command: JobObserved) -> None:
        """Propose a command until the log has it: it may get lost on the way."""
        pause_s = _SAY_PAUSE_S
        self._saying += 1
        try:
            while (known := self._log.schedule) is not None and not known.is_observed(command):
                self._log.propose(encode_command(command))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, self._ports.settings.answer_grace_ms / 1_000)
        finally:
            self._saying -= 1
            self._stir()  # It may be done by this alone.

    async def _read_history(self, number: int, first_event: int, end_event: int) -> None:
        await self._ports.mirror.handed_over()
        lines, answers = await self._ports.writer.run(_history, self._job, first_event, end_event)
        if not self._ended:
            self._host.history_read(number, lines, answers, self._turns.now_ms())
            self._stir()

    def _propose(self, answer: Answer) -> None:
        command = encode_command(answer)
        limit = self._ports.settings.command_bytes_max
        if len(command) > limit:
            # Asked for again, it would be as large: its author must hear of it.
            self._host.garbage(
                f"its answer to event {answer.parts[0].event} has {len(command)} bytes in one "
                f"part, expected at most {limit} (command_bytes_max); cut it into parts, and "
                "let tasks return large values",
                self._turns.now_ms(),
            )
            return
        self._log.propose(command)

    async def _start(self) -> None:
        self._reader = self._new_reader()
        try:
            directory = await self._fetch()
            self._program = await self._ports.start_scheduler(
                directory,
                self._manifest,
                self._seed + self._is_copy,
                rules=self._rules,
                on_data=self._on_data,
                on_exit=self._on_exit,
                on_stderr=self._on_stderr,
            )
            if self._stop_at_start:
                self._program.kill()
        except (TaskSprintError, OSError) as error:
            self._host.start_failed(str(error), self._turns.now_ms())
        except asyncio.CancelledError:
            if not self._stop_at_start:
                raise  # This replica stops.
            self._host.start_failed("its program couldn't be had", self._turns.now_ms())
        except Exception as error:  # a job's requests must never end a replica
            _log.warning("job=%d scheduler can't be started", self._job, exc_info=error)
            self._host.start_failed(f"it can't be started: {error!r}", self._turns.now_ms())
        finally:
            self._starting = None
        self._stir()

    async def _fetch(self) -> Path:
        """Return the folder of the program, unpacked and set up."""
        self._fetching = self._turns.spawn(
            self._ports.archives.prepared(
                self._program_digest,
                self._manifest,
                on_obtained=self._set_up_begins,
                on_step=self._prepares,
            )
        )
        self._prepares("reads the program, or fetches it from another member")
        try:
            return await self._fetching
        finally:
            self._fetching = None
            self._prepares("")
            self._host.setting_up(self._turns.now_ms())

    def _prepares(self, what: str) -> None:
        self._host.preparing(what, self._turns.now_ms())

    def _set_up_begins(self) -> None:
        # Unpacking and setup come now. They may take long, and have a limit of their own.
        self._prepares("unpacks the program")
        limit_ms = self._ports.settings.setup_timeout_ms
        self._host.setting_up(self._turns.now_ms() + limit_ms)

    def _new_reader(self) -> SchedulerReader:
        return SchedulerReader(
            who=f"scheduler of job {self._job}",
            line_bytes_max=self._ports.settings.line_bytes_max,
            rules=self._rules,
        )

    def _on_data(self, data: bytes) -> None:
        now_ms = self._turns.now_ms()
        try:
            messages = self._reader.feed(data)
        except RemoteProtocolError as error:
            self._host.garbage(str(error), now_ms)
            self._stir()
            return
        answers: list[SchedulerAnswer] = []
        for message in messages:
            if isinstance(message, SchedulerAnswer):
                answers.append(message)
            elif isinstance(message, SchedulerReady):
                self._host.ready(now_ms)
                self._tell_runtime(message.runtime)
        if answers:
            self._host.answered(answers, now_ms)
        self._stir()

    def _on_stderr(self, data: bytes) -> None:
        bytes_max = self._ports.settings.log_bytes_per_attempt_max
        self._output = self._output.add(data, bytes_max)

    @property
    def output(self) -> str:
        """The scheduler's stderr here, over all its runs; bounded."""
        return self._output.render().decode(errors="replace")

    def _on_exit(self, reason: ExitReason) -> None:
        self._program = None
        text = reason.describe()
        if self._reader.ready is None and reason.code == 0:
            text += f" {self._reader.why_not_ready()}"
        self._host.exited(text, reason.stderr_tail, self._turns.now_ms())
        self._stir()

    def silence(self, now_ms: int) -> str | None:
        """Describe the scheduler's silence here, if it is long."""
        return self._host.silence(now_ms)

    @property
    def _is_compared(self) -> bool:
        """Whether a difference may still be found, or isn't in the log yet."""
        if self._saying or self._host.status.state != "ended":
            return True
        return self._copy is not None and self._copy._is_compared

    def status(self) -> dict[str, Any]:
        """Return what `status` shows of this scheduler."""
        status = self._host.status
        return {
            "state": status.state,
            "answered_end": status.answered_end,
            "events": status.event_count,
            "restarts": status.restarts,
            "is_compared": self._is_compared,
            "text": status.text,
        }


def _history(
    store: ReplicaStore, job: JobId, first_event: int, end_event: int
) -> tuple[list[bytes], list[tuple[int, int, str]]]:
    """Read some events of a job, and the digests of the answers to them."""
    events: list[Any] = store.read_page(
        "events",
        (job, first_event),
        (job, end_event),
        rows_max=end_event - first_event,
        bytes_max=_PAGE_BYTES_MAX,
    )
    answers: list[Any] = store.read_page(
        "answers",
        (job, first_event),
        (job, first_event + len(events)),
        rows_max=_ANSWERS_MAX,
        bytes_max=_ANSWERS_MAX,
    )
    return (
        [line.encode() for _, _, line in events],
        [(event, part, digest) for _, event, part, digest, _ in answers],
    )


def _may_end_job(answer: Answer) -> bool:
    """Whether the last command ends the job; others may, but hardly ever do."""
    if not answer.parts or not answer.parts[-1].commands:
        return False
    return isinstance(answer.parts[-1].commands[-1], FinishJob | FailJob)
