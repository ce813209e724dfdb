"""Events and answers of a scheduler in a few words, for its author.

Pure text: knows the commands of `tasksprint.scheduler_commands` and the form of event lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields

from tasksprint.encoding import decode_json
from tasksprint.errors import RemoteProtocolError
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

__all__ = [
    "describe_answers",
    "describe_command",
    "describe_difference",
    "describe_event",
    "describe_preparing",
    "describe_state",
    "measure",
]

# Members of an event's line that name its subject.
_SUBJECTS = ("tid", "cid", "timer")
_SHOWN_MAX = 80


def describe_event(number: int, line: bytes) -> str:
    """Return e.g. "event 17 task_done(4)"."""
    try:
        event = decode_json(line)
        subject = next((str(event[name]) for name in _SUBJECTS if name in event), "")
        return f"event {number} {event['kind']}({subject})"
    except (RemoteProtocolError, KeyError, TypeError):
        return f"event {number}"


def describe_state(
    state: str, events: tuple[int, int, int], restarts: tuple[int, int], detail: str
) -> str:
    """Return how a scheduler is doing on one replica.

    Args:
        events: The numbers of events that it has answered in this run, that it has to repeat,
            and that there are.
        restarts: The number of restarts so far, and the highest allowed one.
        detail: How it ended; or the present step before its start; or "".
    """
    answered, replay_end, count = events
    match state:
        case "replaying":
            return f"replaying, {answered} of {replay_end} events"
        case "live":
            return f"live, {answered} of {count} events answered"
        case "starting" if detail:
            return f"not started yet: this coordinator {detail}"
        case "waiting" | "starting" if restarts[0]:
            return f"restarting ({restarts[0]} of at most {restarts[1]} restarts)"
        case "out":
            return f"out: {detail}"
        case _:
            return state


def describe_preparing(replica: int, what: str, since_ms: int, left_ms: int) -> str:
    """Return in words the present step of a coordinator before a scheduler's start.

    Args:
        replica: The coordinator's number.
        what: The step.
        since_ms: It has taken so long.
        left_ms: It is ended after so much more; 0 or less: it isn't ended.
    """
    text = f"its scheduler isn't started yet: coordinator {replica} {what}"
    text += f" for {since_ms // 1000} s"
    return f"{text}; it is ended in {left_ms // 1000} s" if left_ms > 0 else text


def describe_command(command: SchedulerCommand) -> str:
    """Return a command in a few words, e.g. "start montecarlo"."""
    match command:
        case TaskSpec():
            return f"start {command.name}"
        case KillTask():
            return f"kill {command.tid}"
        case FinishJob():
            return f"finish {_shorten(str(list(command.taskids)))}"
        case FailJob():
            return f"fail {_shorten(repr(command.error))}"
        case StartTimer():
            return f"timer {command.timer} after {command.after_ms} ms"
        case ReleaseTasks():
            return f"release {_shorten(str(list(command.tids)))}"
        case WriteLog():
            return f"log {_shorten(repr(command.text))}"
        case HandleEvents():
            return f"handles {_shorten(str(list(command.kinds)))}"
        case _:
            raise TypeError(f"not a scheduler's command: {command!r}")


def describe_difference(
    log: Sequence[SchedulerCommand],
    own: Sequence[SchedulerCommand],
    *,
    log_last: bool = True,
    own_last: bool = True,
) -> tuple[str, str]:
    """Return the words of two parts of an answer at the first place where they differ.

    Args:
        log_last, own_last: Whether the answer ends with this part.
    """
    for log_command, own_command in zip(log, own, strict=False):
        if log_command != own_command:
            texts = describe_command(log_command), describe_command(own_command)
            if texts[0] != texts[1]:
                return texts
            # The same in a few words: name the member that differs.
            for member in fields(log_command):
                values = getattr(log_command, member.name), getattr(own_command, member.name)
                if values[0] != values[1]:
                    return _detail(texts[0], member.name, *values)
    if len(log) != len(own):
        common = min(len(log), len(own))
        return _at(log, common), _at(own, common)
    if log_last != own_last:
        words = "that the answer goes on", "that it ends"
        return (words[1], words[0]) if log_last else words
    return "the same", "the same"


def describe_answers(
    where: tuple[int, int],
    line: bytes,
    recent: Iterable[tuple[int, int, bool, tuple[SchedulerCommand, ...]]],
    *,
    is_answered: bool,
    last: bool,
    own: Sequence[SchedulerCommand],
) -> tuple[str, str, str]:
    """Return in words the place of a difference, what the log says there, and what `own` says.

    Args:
        where: Event and part.
        line: Of the event.
        recent: Chosen answers that are at hand: (event, part, last, commands).
        is_answered: The chosen answer says something; it needn't be at hand.
    """
    event, part = where
    what = describe_event(event, line) + (f" part {part}" if part else "")
    for log_event, log_part, log_last, log in recent:
        if (log_event, log_part) == where:
            return what, *describe_difference(log, own, log_last=log_last, own_last=last)
    if is_answered:  # Long ago: only its digest is at hand.
        return what, "something else", describe_difference((), own)[1]
    return what, *describe_difference((), own)


def _at(commands: Sequence[SchedulerCommand], index: int) -> str:
    if index < len(commands):
        return describe_command(commands[index])
    return "nothing more" if index else "nothing"


def _detail(text: str, name: str, log: object, own: object) -> tuple[str, str]:
    shown = [value if isinstance(value, str) else repr(value) for value in (log, own)]
    # Long values may agree for a while: show them from a little before they part.
    pairs = enumerate(zip(*shown, strict=False))
    agreed = next((index for index, (one, other) in pairs if one != other), 0)
    start = agreed - _SHOWN_MAX // 2
    if start > 0:
        shown = ["..." + value[start:] for value in shown]
    first, second = (f"{text} with {name} {_shorten(value)}" for value in shown)
    return first, second


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 3] + "..."


def measure(commands: tuple[SchedulerCommand, ...]) -> tuple[int, int]:
    """Return the number of tasks that the commands start, and about their size in bytes."""
    tasks = 0
    size = 64
    for command in commands:
        if isinstance(command, TaskSpec):
            tasks += 1
            size += 80 + len(command.base) + 16 * len(command.pretasks)
        elif isinstance(command, FinishJob):
            size += 32 + len(command.values) + 8 * len(command.taskids)
        elif isinstance(command, FailJob | WriteLog):
            size += 32 + len(command.error if isinstance(command, FailJob) else command.text)
        else:
            size += 512
    return tasks, size
