"""Lines from a coordinator to a scheduler and back, as bytes and as messages.

Events come as bytes from the state machine: it made them once for all replicas. The control
lines are made here. Answers are read into the commands of `tasksprint.scheduler_commands`.
JSON of the scheduler in them (arguments, the job's values, a checkpoint's state) is kept as its
text.

The reader numbers along. Answers must come in the order of events and parts. A task gets the
next tid. A command can name only tasks that were started before it. The reader doesn't know
which events were sent, nor the later states of a task.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tasksprint.arrays import split_type
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import TaskId
from tasksprint.protocol.lines import LineBuffer
from tasksprint.protocol.spans import (
    ERROR_CHARACTERS_MAX,
    EXCERPT_CHARACTERS,
    STDERR_HINT,
    Member,
    NotFiniteError,
    NotJsonError,
    cut_object,
    cut_ready,
    decode_line,
    excerpt,
    for_people,
    is_text,
    read_runtime,
    show,
    skip_space,
    why_not_ready,
)
from tasksprint.scheduler_commands import (
    EVENT_KINDS,
    FailJob,
    FinishJob,
    HandleEvents,
    KillTask,
    ReleaseTasks,
    SchedulerCommand,
    StartTimer,
    WriteLog,
)
from tasksprint.settings import RULES
from tasksprint.task_spec import LATER, compact_spec

__all__ = [
    "CheckpointState",
    "SchedulerAnswer",
    "SchedulerMessage",
    "SchedulerReader",
    "SchedulerReady",
]


@dataclass(frozen=True, slots=True)
class SchedulerReady:
    """The scheduler runs and takes events; always its first message."""

    checkpoints: bool  # it can hand out its state and start from it
    runtime: str | None = None  # its interpreter, e.g. "cpython 3.12.1 x86_64"


@dataclass(frozen=True, slots=True)
class SchedulerAnswer:
    """One part of the answer to one event."""

    event: int
    part: int
    last: bool
    commands: tuple[SchedulerCommand, ...]


@dataclass(frozen=True, slots=True)
class CheckpointState:
    """The scheduler's state after an event."""

    event: int
    state: str  # any JSON, as the text that the scheduler wrote


SchedulerMessage = SchedulerReady | SchedulerAnswer | CheckpointState

_LONG_LINE = "cut the answer into parts"

# So many members are named in an error about a wrong one; commands have fewer.
_LISTED_MAX = 12

_READY_KEYS = frozenset(("ready", "checkpoints", "runtime"))
_ANSWER_KEYS = frozenset(("event", "part", "last", "commands"))
_CHECKPOINT_KEYS = frozenset(("checkpoint", "state"))
_CARRIED = frozenset(("state", "commands"))

# The answer that says nothing, as the SDK spells it.
_EMPTY_ANSWER = re.compile(rb'\{"event":(0|[1-9][0-9]{0,17})\}\n')

_COMMANDS_START = re.compile(r'"commands"[ \t\r\n]*:[ \t\r\n]*\[')

_NUMBER_END = 2**63


class SchedulerReader:
    """Reads what one scheduler says, from chunks of any size."""

    def __init__(
        self,
        *,
        who: str,
        line_bytes_max: int,
        rules: int = RULES.version,
        next_event: int = 0,
        next_tid: int = 0,
    ) -> None:
        """
        Args:
            who: The scheduler, for messages: "scheduler of job 3".
            line_bytes_max: Limit of one line.
            rules: The version of its job's rules. Later commands aren't known, and later
                attributes of tasks mean nothing.
            next_event: First event that it will answer; not 0 only after a checkpoint.
            next_tid: First tid that it will give; not 0 only after a checkpoint.
        """
        self.ready: SchedulerReady | None = None  # Set by the first message.
        self.next_event = next_event
        self.next_part = 0
        self.next_tid = next_tid
        self._who = who
        self._known = _COMMANDS if rules > 1 else _COMMANDS_1
        self._rules = rules
        # The command that is being read, for messages.
        self._event = 0
        self._command = 0
        self._start: str | None = None  # the task's name, once known
        self._buffer = LineBuffer(who=who, line_bytes_max=line_bytes_max, remedy=_LONG_LINE)

    @property
    def is_inside_message(self) -> bool:
        """Whether the scheduler stopped in the middle of a line, if it stopped now."""
        return self._buffer.pending_bytes > 0

    def why_not_ready(self) -> str:
        """Return in words what is missing: the scheduler ended before its first line."""
        return why_not_ready("scheduler", self._buffer.pending_head(EXCERPT_CHARACTERS * 4))

    def feed(self, data: bytes) -> list[SchedulerMessage]:
        """Return the messages that are complete with this chunk.

        Raises:
            RemoteProtocolError: The scheduler broke the protocol. The reader must not be used
                any more.
        """
        messages: list[SchedulerMessage] = []
        buffer = self._buffer
        buffer.feed(data)
        while True:
            if self.ready is not None and self.next_part == 0:
                empty = buffer.match(_EMPTY_ANSWER)
                if empty is not None:
                    event = int(empty[1])
                    if event != self.next_event:
                        raise self._wrong_event(event)
                    self.next_event = event + 1
                    messages.append(SchedulerAnswer(event, 0, True, ()))
                    continue
            line = buffer.next_line()
            if line is None:
                return messages
            messages.append(self._read_line(line))

    def _read_line(self, line: bytes) -> SchedulerMessage:
        if self.ready is None:
            return self._read_ready(line)
        who = self._who
        try:
            text = decode_line(line, who=who)
            # `commands` is scanned here only to find its end; its members are cut below.
            members, end = cut_object(text, 0, who=who, carried=_CARRIED)
        except NotFiniteError as error:
            raise self._where_not_finite(text, error) from None
        except NotJsonError as error:
            error.hint = STDERR_HINT
            raise
        if skip_space(text, end) != len(text):
            raise RemoteProtocolError(
                f"line from {who} goes on after its JSON object: {excerpt(text[end:])}",
                hint=STDERR_HINT,
            )
        if "checkpoint" in members:
            return self._read_checkpoint(members, text)
        if "event" not in members:
            raise RemoteProtocolError(
                f"{who} said {excerpt(text)}, expected an answer with 'event'"
            )
        return self._read_answer(members, text)

    def _where_not_finite(self, text: str, error: NotFiniteError) -> RemoteProtocolError:
        """Return the error that names the command and its member, not just `commands`."""
        found = _COMMANDS_START.search(text)
        if error.key == "commands" and found is not None:
            try:
                self._read_commands(text, found.end() - 1, self.next_event)
            except RemoteProtocolError as better:
                return better
        return error

    def _read_ready(self, line: bytes) -> SchedulerReady:
        who = self._who
        members = cut_ready(line, _READY_KEYS, "'checkpoints' and 'runtime'", who=who)
        checkpoints = members["checkpoints"][0] if "checkpoints" in members else False
        if not isinstance(checkpoints, bool):
            raise RemoteProtocolError(
                f"{who} said ready with checkpoints {show(checkpoints)}, expected true or false"
            )
        self.ready = SchedulerReady(checkpoints, read_runtime(members, who))
        return self.ready

    def _read_checkpoint(self, members: dict[str, Member], text: str) -> CheckpointState:
        who = self._who
        event = members["checkpoint"][0]
        unknown = [key for key in members if key not in _CHECKPOINT_KEYS]
        if unknown or "state" not in members:
            raise RemoteProtocolError(
                f"{who} handed out a checkpoint with {_listed(members)}, "
                "expected 'checkpoint' and 'state'"
            )
        if not _is_number(event):
            raise RemoteProtocolError(
                f"{who} handed out checkpoint {show(event)}, expected the number of an event"
            )
        _, start, end = members["state"]
        return CheckpointState(event, text[start:end])

    def _read_answer(self, members: dict[str, Member], text: str) -> SchedulerAnswer:
        who = self._who
        event = members["event"][0]
        if not _is_number(event):
            raise RemoteProtocolError(
                f"{who} answered event {show(event)}, expected the number of an event"
            )
        for key in members:
            if key not in _ANSWER_KEYS:
                raise RemoteProtocolError(
                    f"{who} answered event {event} with {show(key)}, "
                    "expected 'part', 'last' and 'commands'"
                )
        if event != self.next_event:
            raise self._wrong_event(event)
        part = members["part"][0] if "part" in members else 0
        if not _is_number(part) or part != self.next_part:
            raise RemoteProtocolError(
                f"{who} answered event {event} with part {show(part)}, "
                f"expected part {self.next_part}"
            )
        last = members["last"][0] if "last" in members else True
        if not isinstance(last, bool):
            raise RemoteProtocolError(
                f"{who} answered event {event} with last {show(last)}, expected true or false"
            )
        commands: tuple[SchedulerCommand, ...] = ()
        if "commands" in members:
            _, start, end = members["commands"]
            if text[start] != "[":
                raise RemoteProtocolError(
                    f"{who} answered event {event} with commands {excerpt(text[start:end])}, "
                    "expected a list"
                )
            commands = self._read_commands(text, start, event)
        if last:
            self.next_event = event + 1
            self.next_part = 0
        else:
            self.next_part += 1
        return SchedulerAnswer(event, part, last, commands)

    def _wrong_event(self, event: int) -> RemoteProtocolError:
        if self.next_part:
            expected = f"part {self.next_part} of event {self.next_event}"
        else:
            expected = f"event {self.next_event}"
        return RemoteProtocolError(
            f"{self._who} answered event {event}, expected its answer to {expected}; "
            "every event is answered once, in order"
        )

    def _read_commands(self, text: str, start: int, event: int) -> tuple[SchedulerCommand, ...]:
        """Read the commands of the JSON array at `start`; it is known to be valid JSON."""
        commands: list[SchedulerCommand] = []
        self._event = event
        index = skip_space(text, start + 1)
        while text[index] != "]":
            self._command = len(commands)
            self._start = None
            if text[index] != "{":
                raise self._error(f"is {excerpt(text[index:])}, expected a JSON object")
            members, end = cut_object(text, index, who=self._who, carried=_CARRIED_IN_COMMAND)
            commands.append(self._read_command(members, text))
            index = skip_space(text, end)
            if text[index] == ",":
                index = skip_space(text, index + 1)
        return tuple(commands)

    def _read_command(self, members: dict[str, Member], text: str) -> SchedulerCommand:
        for kind, (allowed, read) in self._known.items():
            if kind in members:
                if not members.keys() <= allowed:
                    unknown = next(key for key in members if key not in allowed)
                    raise self._error(
                        f"has {show(unknown)}, expected {_listed(allowed)} in {kind!r}"
                    )
                return read(self, members, text)
        raise self._error(
            f"has {_listed(members) or 'no member'}, expected one of {_listed(self._known)}"
        )

    def _error(self, what: str) -> RemoteProtocolError:
        """Return an error that names the event and the command."""
        where = f"{self._who}: event {self._event}, command {self._command}"
        if self._start is not None:
            where += f", start {show(self._start)} (tid {self.next_tid})"
        return RemoteProtocolError(f"{where} {what}")

    # --- one function for each command ---

    def _read_start(self, members: dict[str, Member], text: str) -> SchedulerCommand:
        name = members["start"][0]
        if not is_text(name) or not name:
            raise self._error(f"starts {show(name)}, expected a task's name")
        self._start = name
        tid = self.next_tid
        if "tid" in members:
            given = members["tid"][0]
            if given != tid or not _is_number(given):
                raise self._error(f"names tid {show(given)}, expected {tid}, the job's next one")
        base = "[]"
        if "base" in members:
            _, start, end = members["base"]
            base = text[start:end]
            if base[0] != "[":
                raise self._error(f"has base {excerpt(base)}, expected a list of arguments")
        pretasks: tuple[TaskId, ...] = ()
        prekeys: tuple[str, ...] = ()
        keys: tuple[str, ...] = ()
        if "pretasks" in members:
            pretasks = self._tids(members["pretasks"][0], "has pretasks")
        if "prekeys" in members:
            prekeys = self._strings(members["prekeys"][0], "has prekeys")
        if len(pretasks) != len(prekeys):
            raise self._error(
                f"has {len(pretasks)} pretasks and {len(prekeys)} prekeys, "
                "expected one key for each pretask"
            )
        if "keys" in members:
            keys = self._strings(members["keys"][0], "has keys")
        retries = members["retries"][0] if "retries" in members else None
        if retries is not None and not _is_number(retries):
            raise self._error(
                f"has retries {show(retries)}, expected how often it may be tried again"
            )
        timeout_ms = members["timeout_ms"][0] if "timeout_ms" in members else None
        if timeout_ms is not None and (not _is_number(timeout_ms) or timeout_ms == 0):
            raise self._error(f"has timeout_ms {show(timeout_ms)}, expected milliseconds above 0")
        later = () if members.keys().isdisjoint(LATER) else self._read_later(members)
        self.next_tid = tid + 1
        return compact_spec(name, base, pretasks, prekeys, keys, retries, timeout_ms, *later)

    def _read_later(self, members: dict[str, Member]) -> list[Any]:
        """Return a task's attributes of later rules; defaults for those that don't count."""
        values = []
        for name, attribute in LATER.items():
            value = attribute.default
            if name in members:
                found = members[name][0]
                _, through = split_type(attribute.type)
                assert through is not None, f"{name} says nothing of what it takes"
                try:
                    taken = through.read(found)
                except ValueError as error:
                    raise self._error(f"has {name} {show(found)}, {error}") from None
                if attribute.since <= self._rules:
                    value = taken
            values.append(value)
        return values

    def _read_kill(self, members: dict[str, Member], text: str) -> SchedulerCommand:
        return KillTask(self._tid(members["kill"][0], "kills"))

    def _read_finish(self, members: dict[str, Member], text: str) -> SchedulerCommand:
        values = "{}"
        if "values" in members:
            _, start, end = members["values"]
            values = text[start:end]
        return FinishJob(self._tids(members["finish"][0], "finishes with"), values)

    def _read_fail(self, members: dict[str, Member], text: str) -> SchedulerCommand:
        error = members["fail"][0]
        if not isinstance(error, str):
            raise self._error(f"fails with {show(error)}, expected a string")
        return FailJob(for_people(error, ERROR_CHARACTERS_MAX))

    def _read_timer(self, members: dict[str, Member], text: str) -> SchedulerCommand:
        timer = members["timer"][0]
        if not _is_number(timer):
            raise self._error(f"starts timer {show(timer)}, expected a number")
        after_ms: Any = members["after_ms"][0] if "after_ms" in members else None
        if not _is_number(after_ms):
            raise self._error(
                f"starts timer {timer} with after_ms {show(after_ms)}, expected milliseconds"
            )
        return StartTimer(timer, after_ms)

    def _read_release(self, members: dict[str, Member], text: str) -> SchedulerCommand:
        return ReleaseTasks(self._tids(members["release"][0], "releases"))

    def _read_log(self, members: dict[str, Member], text: str) -> SchedulerCommand:
        line = members["log"][0]
        if not isinstance(line, str):
            raise self._error(f"logs {show(line)}, expected a string")
        return WriteLog(for_people(line, ERROR_CHARACTERS_MAX))

    def _read_handles(self, members: dict[str, Member], text: str) -> SchedulerCommand:
        if self._event or self.next_part or self._command:
            raise self._error("has 'handles', which can only begin the answer to event 0")
        kinds = self._strings(members["handles"][0], "has handles")
        for kind in kinds:
            if kind not in EVENT_KINDS:
                raise self._error(f"handles {show(kind)}, expected {_listed(EVENT_KINDS)}")
        return HandleEvents(kinds)

    # --- checks ---

    def _tid(self, value: Any, what: str) -> TaskId:
        if not _is_number(value):
            raise self._error(f"{what} {show(value)}, expected the tid of a task")
        if value >= self.next_tid:
            raise self._error(
                f"{what} task {value}, which isn't known; expected {self._known_tids()}"
            )
        return TaskId(value)

    def _tids(self, value: Any, what: str) -> tuple[TaskId, ...]:
        if not isinstance(value, list):
            raise self._error(f"{what} {show(value)}, expected a list of tids")
        # Checks of the whole list at once, instead of several steps for each element.
        if not value or (
            set(map(type, value)) == {int} and min(value) >= 0 and max(value) < self.next_tid
        ):
            return tuple(value)
        return tuple([self._tid(tid, what) for tid in value])

    def _strings(self, value: Any, what: str) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise self._error(f"{what} {show(value)}, expected a list of strings")
        for item in value:
            if not is_text(item):
                raise self._error(f"{what} with {show(item)}, expected strings")
        return tuple(value)

    def _known_tids(self) -> str:
        if self.next_tid == 0:
            return "a task that was started before"
        return f"a tid from 0 to {self.next_tid - 1}"


_Read = Callable[[SchedulerReader, dict[str, Member], str], SchedulerCommand]

_CARRIED_IN_COMMAND = frozenset(("base", "values"))

# For every command: the member that names it, all members that it may have, and its reader.
_COMMANDS: dict[str, tuple[frozenset[str], _Read]] = {
    "start": (
        frozenset(
            (
                *("start", "base", "pretasks", "prekeys", "keys", "tid", "retries", "timeout_ms"),
                *LATER,
            )
        ),
        SchedulerReader._read_start,
    ),
    "kill": (frozenset(("kill",)), SchedulerReader._read_kill),
    "finish": (frozenset(("finish", "values")), SchedulerReader._read_finish),
    "fail": (frozenset(("fail",)), SchedulerReader._read_fail),
    "timer": (frozenset(("timer", "after_ms")), SchedulerReader._read_timer),
    "release": (frozenset(("release",)), SchedulerReader._read_release),
    "log": (frozenset(("log",)), SchedulerReader._read_log),
    "handles": (frozenset(("handles",)), SchedulerReader._read_handles),
}
_COMMANDS_1 = {kind: command for kind, command in _COMMANDS.items() if kind != "handles"}


def _is_number(value: Any) -> bool:
    """Return whether `value` is an integer that every part of the system can hold."""
    return type(value) is int and 0 <= value < _NUMBER_END


def _listed(words: Iterable[str]) -> str:
    """Return words in quotes, shortened: a scheduler chooses some of them."""
    first = sorted(words)
    more = f" and {len(first) - _LISTED_MAX} more" if len(first) > _LISTED_MAX else ""
    return ", ".join(show(word) for word in first[:_LISTED_MAX]) + more
