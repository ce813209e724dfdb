"""Answers of a job's scheduler to its events, applied exactly once and in order.

An answer counts only if it is the job's next unanswered part, and begins at the job's
next tid. All other answers are ignored: they are duplicates, or were overtaken. So one
history results, though several replicas propose answers and some come twice.

A command that makes no sense fails the job, with a sentence that names the event.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import replace

from tasksprint.coordination.applied import ChosenAnswer, EmptyAnswers
from tasksprint.coordination.commands import Answer, AnswerPart, answer_digest
from tasksprint.coordination.job_rows import timer_row
from tasksprint.coordination.jobs import Job, Task
from tasksprint.coordination.lifecycle import Lifecycle
from tasksprint.coordination.quoting import quoted
from tasksprint.coordination.results import Results
from tasksprint.coordination.rows import Row
from tasksprint.coordination.state import State
from tasksprint.coordination.task_states import ASSIGNED, DONE, KILLED, STATES
from tasksprint.coordination.transitions import Transitions
from tasksprint.encoding import encode_json
from tasksprint.ids import TaskId
from tasksprint.scheduler_commands import (
    FailJob,
    FinishJob,
    HandleEvents,
    KillTask,
    ReleaseTasks,
    SchedulerCommand,
    StartTimer,
    WriteLog,
)
from tasksprint.task_spec import TaskSpec

__all__ = ["Answers"]

TIMERS_MAX = 1_000  # of one job at once
SUMMARY_COMMANDS = 3


class _InvalidCommandError(Exception):
    """A scheduler asked for something impossible; the text is for its author."""


class Answers:
    """Applies answers of schedulers."""

    __slots__ = ("_lifecycle", "_results", "_state", "_transitions")

    def __init__(
        self, state: State, transitions: Transitions, lifecycle: Lifecycle, results: Results
    ) -> None:
        self._state = state
        self._transitions = transitions
        self._lifecycle = lifecycle
        self._results = results

    def apply(self, answer: Answer) -> None:
        """Apply the parts and empty runs that are the job's next ones, in order."""
        job = self._state.running.get(answer.job)
        if job is None or job.finishing is not None:
            return
        parts = answer.parts
        empty = answer.empty
        part_index = empty_index = ignored = 0
        while job.is_running and job.finishing is None:
            if empty_index < len(empty):
                first_event, end_event = empty[empty_index]
                if first_event <= job.next_event < end_event and job.next_part == 0:
                    empty_index += 1
                    self._apply_empty(job, end_event)
                    continue
                if end_event <= job.next_event:
                    empty_index += 1
                    continue
            if part_index < len(parts):
                part = parts[part_index]
                place = (part.event, part.part)
                if place < (job.next_event, job.next_part):
                    part_index += 1
                    continue
                if (
                    place == (job.next_event, job.next_part)
                    and part.first_tid == job.next_tid
                    and part.event < job.event_count
                ):
                    part_index += 1
                    self._apply_part(job, part)
                    continue
            # The rest is about later events than the next one: something is missing.
            ignored = len(parts) - part_index + len(empty) - empty_index
            break
        if ignored:
            self._state.note(
                f"job={job.job} ignored {ignored} answers that aren't for event"
                f" {job.next_event} part {job.next_part}"
            )

    def _apply_empty(self, job: Job, end_event: int) -> None:
        end_event = min(end_event, job.event_count)
        if job.next_event == 0:
            self._begin(job, ())
        if job.next_event < end_event:
            chosen = EmptyAnswers(job.next_event, end_event)
            self._state.changes.answers.append((job.job, chosen))
            job.next_event = end_event
            self._state.changes.jobs[job] = None

    def _begin(
        self, job: Job, commands: tuple[SchedulerCommand, ...]
    ) -> tuple[SchedulerCommand, ...]:
        """Read the beginning of a job's first answer; return the commands behind it."""
        if job.rules == 1:
            return commands
        first = commands[0] if commands else None
        if isinstance(first, HandleEvents):
            self._lifecycle.begin(job, first.kinds)
            return commands[1:]
        self._lifecycle.begin(job, None)
        return commands

    def _apply_part(self, job: Job, part: AnswerPart) -> None:
        changes = self._state.changes
        changes.jobs[job] = None
        commands = part.commands
        if part.event == part.part == 0:
            commands = self._begin(job, commands)
        if part.last:
            job.next_event = part.event + 1
            job.next_part = 0
        else:
            job.next_part = part.part + 1
        if part.last and part.part == 0 and not part.commands:
            empty = EmptyAnswers(part.event, part.event + 1)
            changes.answers.append((job.job, empty))
            return
        digest = answer_digest(part.first_tid, part.last, part.commands)
        started = sum([type(command) is TaskSpec for command in part.commands])
        chosen = ChosenAnswer(part.event, part.part, part.last, digest, started, part.commands)
        changes.answers.append((job.job, chosen))
        body = encode_json((part.last, part.first_tid, _summarise(part.commands)))
        changes.rows.append(
            Row("answers", (job.job, part.event, part.part), (digest, body.decode()))
        )
        try:
            commands_max = self._state.rules.commands_per_part_max
            if len(part.commands) > commands_max:
                raise _InvalidCommandError(
                    f"{len(part.commands)} commands in one part, more than {commands_max}"
                    " (commands_per_part_max)"
                )
            for command in commands:
                self._apply_command(job, command)
                if not job.is_running or job.finishing is not None:
                    break
        except _InvalidCommandError as error:
            self._lifecycle.fail(job, f"scheduler's answer to event {part.event}: {error}")

    def _apply_command(self, job: Job, command: SchedulerCommand) -> None:
        match command:
            case TaskSpec():
                self._start(job, command)
            case KillTask():
                self._kill(job, command)
            case FinishJob():
                self._finish(job, command)
            case FailJob():
                self._lifecycle.fail(job, command.error)
            case StartTimer():
                self._start_timer(job, command)
            case ReleaseTasks():
                self._release(job, command)
            case WriteLog():
                self._state.write_log(job, command.text)
            case HandleEvents():
                raise _InvalidCommandError("'handles' can only begin the answer to event 0")
            case _:
                raise AssertionError(f"not a scheduler's command: {command!r}")

    # --- tasks ---

    def _start(self, job: Job, spec: TaskSpec) -> None:
        tid = job.next_tid
        name = spec.name
        pretasks = spec.pretasks
        base = spec.base
        rules = self._state.rules
        if len(pretasks) != len(spec.prekeys):
            raise _InvalidCommandError(
                f"task {tid} {quoted(name, rules)} has {len(pretasks)} pretasks but"
                f" {len(spec.prekeys)} prekeys; give one key for each"
            )
        base_max = rules.base_bytes_max
        if len(base) * 4 > base_max:
            size = len(base.encode())
            if size > base_max:
                raise _InvalidCommandError(
                    f"task {tid} {quoted(name, rules)} has {size} bytes of arguments, more than"
                    f" {base_max} (base_bytes_max); let a task return large values"
                )
        self._check_length(tid, "name", name)
        tasks = job.tasks
        for pretid in pretasks:
            self._check_pretask(job, tid, pretid)
        for key in spec.prekeys:
            self._check_length(tid, "key", key)
        for key in spec.keys:
            self._check_length(tid, "key", key)
        if spec.timeout_ms is None and job.timeout_ms is not None:
            spec = replace(spec, timeout_ms=job.timeout_ms)
        transitions = self._transitions
        task = Task(job, tid, spec)
        transitions.add(task)
        for pretid in pretasks:
            pretask = tasks[pretid]
            if pretask.state == DONE and not pretask.holders:
                if not self._results.need(pretask):
                    return
            elif pretask.state == ASSIGNED:
                transitions.may_follow(pretask)
        if task.pending == 0:
            transitions.make_ready(task)

    def _check_length(self, tid: TaskId, what: str, text: str) -> None:
        rules = self._state.rules
        size_max = rules.name_bytes_max
        if 4 * len(text) > size_max and (size := len(text.encode())) > size_max:
            raise _InvalidCommandError(
                f"task {tid} has the {what} {quoted(text[:40] + '…', rules)} of {size} bytes,"
                f" more than {size_max} (name_bytes_max)"
            )

    @staticmethod
    def _check_pretask(job: Job, tid: TaskId, pretid: TaskId) -> None:
        if pretid >= tid:
            raise _InvalidCommandError(
                f"task {tid} names pretask {pretid}, which does not exist yet"
            )
        pretask = job.tasks.get(pretid)
        if pretask is None or pretask.is_released:
            raise _InvalidCommandError(f"task {tid} names pretask {pretid}, which was released")
        if pretask.state == KILLED:
            raise _InvalidCommandError(f"task {tid} names pretask {pretid}, which was killed")

    def _kill(self, job: Job, command: KillTask) -> None:
        if command.tid >= job.next_tid:
            raise _InvalidCommandError(f"kill names task {command.tid}, which does not exist")
        task = job.tasks.get(command.tid)
        if task is not None:
            self._transitions.kill(task)

    def _release(self, job: Job, command: ReleaseTasks) -> None:
        for tid in command.tids:
            if tid >= job.next_tid:
                raise _InvalidCommandError(f"release names task {tid}, which does not exist")
            task = job.tasks.get(tid)
            if task is None or task.is_released:
                continue
            if task.state < DONE and task.event is None:
                raise _InvalidCommandError(
                    f"release names task {tid}, which is {STATES[task.state]};"
                    " only finished tasks can be released"
                )
            task.is_released = True
            if not task.users and task.state >= DONE:
                self._transitions.forget(task)
            else:
                self._state.changes.tasks[task] = None

    # --- the job ---

    def _finish(self, job: Job, command: FinishJob) -> None:
        for tid in command.taskids:
            if tid >= job.next_tid:
                raise _InvalidCommandError(f"finish names task {tid}, which does not exist")
            task = job.tasks.get(tid)
            if task is None or task.is_released:
                raise _InvalidCommandError(f"finish names task {tid}, which was released")
            if task.digest is None or task.state == KILLED:
                raise _InvalidCommandError(
                    f"finish names task {tid}, which is {STATES[task.state]}; finish can only"
                    " name tasks that are done"
                )
        for tid in command.taskids:
            task = job.tasks[tid]
            task.is_wanted = True
            self._state.changes.tasks[task] = None
        job.finishing = (command.taskids, command.values)
        for tid in command.taskids:
            if job.is_running and not self._results.need(job.tasks[tid]):
                return
        self._lifecycle.finish(job, command.taskids, command.values)

    def _start_timer(self, job: Job, command: StartTimer) -> None:
        if len(job.timers) >= TIMERS_MAX:
            raise _InvalidCommandError(
                f"timer {command.timer} is one more than the {TIMERS_MAX} that a job may have"
            )
        due_ms = self._state.log_ms + command.after_ms
        number = job.next_timer
        insort(job.timers, (due_ms, number, command.timer))
        job.next_timer += 1
        self._state.put_row(timer_row(job, due_ms, number, command.timer))
        self._state.timers_changed(job)


def _summarise(commands: tuple[SchedulerCommand, ...]) -> str:
    """Return the first commands in words, for people who read the mirror."""
    words = [_in_words(command) for command in commands[:SUMMARY_COMMANDS]]
    if len(commands) > SUMMARY_COMMANDS:
        words.append(f"… ({len(commands)} commands)")
    return ", ".join(words) if words else "nothing"


def _in_words(command: SchedulerCommand) -> str:
    match command:
        case TaskSpec():
            return f"start {command.name:.60}"
        case KillTask():
            return f"kill {command.tid}"
        case FinishJob():
            return "finish"
        case FailJob():
            return "fail"
        case StartTimer():
            return f"timer {command.timer}"
        case ReleaseTasks():
            return f"release {len(command.tids)} tasks"
        case WriteLog():
            return "log"
        case HandleEvents():
            return "handles"
        case _:
            raise AssertionError(f"not a scheduler's command: {command!r}")
