"""The commands that stand in the log, and their encoding.

A command is a JSON array `[kind, …]`; JSON that users wrote stands in it as strings.
Decoding checks every type and range, so applying needs no doubts about shapes. Only the
state machine knows whether a command makes sense (does this task exist?).
The commands of a scheduler, inside `Answer`, are the types of tasksprint.scheduler_commands.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from tasksprint.arrays import Arrays, Through
from tasksprint.bounded_text import bounded_repr
from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import ClientId, Incarnation, JobId, ReplicaId, Slot, TaskId
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
from tasksprint.settings import RULES
from tasksprint.task_spec import TaskSpec, compact_spec

__all__ = [
    "TAGS",
    "Answer",
    "AnswerPart",
    "CancelJob",
    "Claim",
    "Command",
    "Completion",
    "Failure",
    "ForgetJob",
    "Held",
    "JobObserved",
    "JoinClient",
    "LeaveClient",
    "Lost",
    "NodesAttached",
    "RaiseRules",
    "Report",
    "SchedulerOut",
    "SilentClient",
    "SubmitJob",
    "Tick",
    "answer_digest",
    "decode_command",
    "encode_command",
    "inputs_digest",
]


# Of a failure's detail.
_DETAIL_LEVELS_MAX = 250


def _read_inline(values: Any) -> dict[str, tuple[str, str]]:
    return {key: _inline_value(*value) for key, value in values.items()}


def _inline_value(kind: Any, text: Any) -> tuple[str, str]:
    if (kind != "json" and kind != "bytes") or type(text) is not str:
        raise ValueError(f"expected a kind and a text, found {bounded_repr(kind)}")
    if "\n" in text:
        raise ValueError("expected a value without line ends: it becomes part of a line")
    return kind, text


def _read_detail(detail: Any) -> dict[str, Any]:
    if type(detail) is not dict:
        raise ValueError(f"expected an object, found {bounded_repr(detail)}")
    # Release 0.2.0 asked orjson whether it could write this, which depends on nothing else.
    # Replicas must agree, whatever their version of orjson can.
    if _is_deeper(detail, _DETAIL_LEVELS_MAX):
        raise ValueError(f"expected an object of at most {_DETAIL_LEVELS_MAX} levels")
    return detail


def _is_deeper(value: Any, levels_max: int) -> bool:
    """Whether lists and objects stand in each other on more levels."""
    level = [value]
    for _ in range(levels_max):
        inside = [each.values() if type(each) is dict else each for each in level]
        level = [each for members in inside for each in members if type(each) in (dict, list)]
        if not level:
            return False
    return True


# Values by key: (kind, text).
_Inline = Annotated[dict[str, tuple[str, str]], Through(_read_inline)]
_Detail = Annotated[dict[str, Any], Through(_read_detail)]


@dataclass(frozen=True, slots=True)
class SilentClient:
    """A client that has said nothing to the leader since its request `request`."""

    cid: ClientId
    incarnation: Incarnation
    request: int  # the last request of it that the leader knows applied; 0: none


@dataclass(frozen=True, slots=True)
class Claim:
    """After this slot, the state of the claiming replica had this digest."""

    slot: Slot
    digest: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Log time advances; proposed by the leader."""

    elapsed_ms: int  # since the leader's last tick
    wall_ms: int  # for display
    silent: tuple[SilentClient, ...] = ()
    # A claim of the leader's own state: the others compare theirs with it (claims.py). It
    # changes nothing of the state.
    claim: Claim | None = None
    # The version of its view that each client has followed, as it told the leader. All
    # replicas forget the stops and drops up to it. This changes nothing else.
    followed: tuple[tuple[ClientId, Slot], ...] = ()


@dataclass(frozen=True, slots=True)
class Held:
    """A result that a joining client still has on its disk."""

    job: JobId
    tid: TaskId
    digest: str


@dataclass(frozen=True, slots=True)
class JoinClient:
    """A client starts, or comes back."""

    identity: str  # hex, of its data directory
    incarnation: Incarnation  # hex, of this start
    address: str | None  # for other clients; None: they can't reach it
    hostname: str
    slots: int  # its nodes
    held: tuple[Held, ...] = ()


@dataclass(frozen=True, slots=True)
class LeaveClient:
    """A client stops in good order."""

    cid: ClientId
    incarnation: Incarnation


@dataclass(frozen=True, slots=True)
class NodesAttached:
    """The nodes that people attached to a client by hand, all of them, by name.

    Jobs whose node is "attached:NAME" run only where NAME stands here.
    """

    cid: ClientId
    incarnation: Incarnation
    request: int  # counts up from 1 in an incarnation; an older one changes nothing
    nodes: tuple[tuple[str, int], ...]  # (name, how many), sorted by name


@dataclass(frozen=True, slots=True)
class Completion:
    """One attempt ended with values; they stay on the client, durable."""

    job: JobId
    tid: TaskId
    attempt: int
    result_digest: str  # encoding.result_digest of all values
    size_bytes: int  # of all values
    inputs_digest: str | None  # of the results that it consumed; None: no pretasks
    run_us: int
    inline: _Inline = field(default_factory=dict)  # values under the task's `keys`


@dataclass(frozen=True, slots=True)
class Failure:
    """One attempt ended without values."""

    job: JobId
    tid: TaskId
    attempt: int
    error: str
    fatal: bool  # True: trying again is useless
    detail: _Detail = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lost:
    """A result that a client had and has no more."""

    job: JobId
    tid: TaskId


@dataclass(frozen=True, slots=True)
class Report:
    """The work of a client's nodes since its last report."""

    cid: ClientId
    incarnation: Incarnation
    request: int  # 1, 2, 3 … in this incarnation
    acknowledged: int  # requests below this one won't be repeated
    completions: tuple[Completion, ...] = ()
    failures: tuple[Failure, ...] = ()
    lost: tuple[Lost, ...] = ()


@dataclass(frozen=True, slots=True)
class SubmitJob:
    """A job starts."""

    sender: str
    request: int
    name: str
    seed: int
    params: str  # JSON text
    program: str  # digest of the archive
    manifest: str  # JSON text


@dataclass(frozen=True, slots=True)
class AnswerPart:
    """A part of a scheduler's answer to one event."""

    event: int
    part: int
    last: bool
    first_tid: TaskId  # the next tid that the scheduler counts on
    commands: tuple[SchedulerCommand, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answers of a job's scheduler to some events, in order."""

    job: JobId
    parts: tuple[AnswerPart, ...] = ()
    empty: tuple[tuple[int, int], ...] = ()  # (first_event, end_event): nothing to say


@dataclass(frozen=True, slots=True)
class CancelJob:
    """Somebody wants a job to end."""

    sender: str
    request: int
    job: JobId
    reason: str


@dataclass(frozen=True, slots=True)
class ForgetJob:
    """Somebody wants nothing to be left of a job that has ended."""

    sender: str
    request: int
    job: JobId


@dataclass(frozen=True, slots=True)
class SchedulerOut:
    """A replica's scheduler of a job is gone for good."""

    replica: ReplicaId
    job: JobId
    kind: str  # "crashed" or "diverged"
    error: str


@dataclass(frozen=True, slots=True)
class JobObserved:
    """The owner of a job must hear something about it (observations.py)."""

    job: JobId
    kind: str
    source: str  # the one that saw it: "replica 2", "client 3"; counts once for each kind
    text: str


@dataclass(frozen=True, slots=True)
class RaiseRules:
    """From the next entry on, the log is applied by these rules; alone in its entry.

    Proposed by a leader once every member says that it has them (hosting/raising.py).
    """

    version: int


Command = (
    Tick
    | JoinClient
    | LeaveClient
    | NodesAttached
    | Report
    | SubmitJob
    | Answer
    | CancelJob
    | ForgetJob
    | SchedulerOut
    | JobObserved
    | RaiseRules
)


def inputs_digest(result_digests: Sequence[str]) -> str:
    """Return the digest of an attempt's inputs.

    Args:
        result_digests: Of all pretasks, in order.
    """
    return hashlib.sha256("".join(result_digests).encode()).hexdigest()


def answer_digest(first_tid: TaskId, last: bool, commands: Sequence[SchedulerCommand]) -> str:
    """Return the digest of an answer's part; replicas compare it with that of the chosen one."""
    listed = [_write(type(command))(command) for command in commands]
    return hashlib.sha256(encode_json([first_tid, last, listed])).hexdigest()


# --- bytes ---

TAGS: dict[type, str] = {
    Answer: "answer",
    CancelJob: "cancel",
    ForgetJob: "forget",
    JobObserved: "observed",
    JoinClient: "join",
    LeaveClient: "leave",
    NodesAttached: "attached",
    RaiseRules: "rules",
    Report: "report",
    SchedulerOut: "out",
    SubmitJob: "submit",
    Tick: "tick",
    # Of schedulers, inside `Answer`.
    FailJob: "x",
    FinishJob: "f",
    HandleEvents: "h",
    KillTask: "k",
    ReleaseTasks: "r",
    StartTimer: "t",
    TaskSpec: "s",
    WriteLog: "l",
}
# Kinds that later rules brought, with their version: under older rules nobody can apply them.
_SINCE: dict[type, int] = {HandleEvents: 2}


@functools.cache
def _arrays(rules: int) -> tuple[Arrays, dict[str, Any]]:
    """Return the writers and readers of commands under these rules, and the known kinds."""
    tags = {kind: tag for kind, tag in TAGS.items() if _SINCE.get(kind, 0) <= rules}
    arrays = Arrays(tags, version=rules, exact=True, made_by={TaskSpec: compact_spec})
    return arrays, arrays.tagged(Command)


_write = _arrays(RULES.version)[0].writer


def encode_command(command: Command) -> bytes:
    """Return the command as it stands in the log."""
    return encode_json(_write(type(command))(command))


def decode_command(data: bytes | memoryview, rules: int = RULES.version) -> Command:
    """Return the command that `data` encodes.

    Args:
        rules: The version of the rules that the log is at. If `data` holds something that this
            version doesn't know, it is no command yet: that version's release couldn't apply it.

    Raises:
        RemoteProtocolError: It is no command.
    """
    value: Any = decode_json(data)
    try:
        arrays, kinds = _arrays(rules)
        decoded: Command = arrays.reader(kinds[value[0]])(*value)
        return decoded
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise RemoteProtocolError(f"not a command: {error}") from error
