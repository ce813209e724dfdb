"""The commands that stand in the log, and their encoding.

A command is a JSON array `[kind, …]`; JSON that users wrote stands in it as strings.
Decoding checks every type and range, so that applying needs no doubts about shapes;
whether a command makes sense (does this task exist?) only the state machine knows.
The commands of a scheduler, inside `Answer`, are the types of tasksprint.scheduler_commands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import ClientId, Incarnation, JobId, ReplicaId, Slot, TaskId
from tasksprint.scheduler_commands import (
    FailJob,
    FinishJob,
    KillTask,
    ReleaseTasks,
    SchedulerCommand,
    StartTimer,
    WriteLog,
)
from tasksprint.task_spec import TaskSpec, compact_spec

__all__ = [
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

INTEGER_MAX = 2**63 - 1  # SQLite's and JSON parsers' limit


@dataclass(frozen=True, slots=True)
class SilentClient:
    """A client that the leader hasn't heard since its request `request`."""

    cid: ClientId
    incarnation: Incarnation
    request: int  # the last request of it that the leader knows applied; 0: none


@dataclass(frozen=True, slots=True)
class Claim:
    """After this slot, the state of who says so had this digest."""

    slot: Slot
    digest: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Log time advances; proposed by the leader."""

    elapsed_ms: int  # since the leader's last tick
    wall_ms: int  # for display
    silent: tuple[SilentClient, ...] = ()
    # Of the leader's own state, for the others to compare theirs with (claims.py). It
    # changes nothing of the state.
    claim: Claim | None = None
    # Versions of their views that clients have followed, as they told the leader: all
    # replicas forget what those clients were told until then. It changes nothing else.
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
    address: str | None  # where other clients reach it; None: they can't
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
    inputs_digest: str | None  # of what it consumed (`inputs_digest`); None: no pretasks
    run_us: int
    inline: dict[str, tuple[str, str]] = field(default_factory=dict)  # key: (kind, text)


@dataclass(frozen=True, slots=True)
class Failure:
    """One attempt ended without values."""

    job: JobId
    tid: TaskId
    attempt: int
    error: str
    fatal: bool  # True: trying again is useless
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lost:
    """A result that a client had and has no more."""

    job: JobId
    tid: TaskId


@dataclass(frozen=True, slots=True)
class Report:
    """What a client's nodes did since its last report."""

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
    """What a job's scheduler says to some events, in order."""

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
    """Somebody saw something of a job that its owner must hear of (observations.py)."""

    job: JobId
    kind: str
    source: str  # who saw it: "replica 2", "client 3"; counts once for each kind
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
    """Return the digest of what an attempt consumed: result digests of all pretasks, in order."""
    return hashlib.sha256("".join(result_digests).encode()).hexdigest()


def answer_digest(first_tid: TaskId, last: bool, commands: Sequence[SchedulerCommand]) -> str:
    """Return the digest by which replicas compare an answer's part with the chosen one."""
    listed = [_scheduler_command_list(command) for command in commands]
    return hashlib.sha256(encode_json([first_tid, last, listed])).hexdigest()


# --- encoding ---


def encode_command(command: Command) -> bytes:
    """Return the command as it stands in the log."""
    return encode_json(_command_list(command))


def _command_list(command: Command) -> list[Any]:
    match command:
        case Report():
            return [
                "report",
                command.cid,
                command.incarnation,
                command.request,
                command.acknowledged,
                [
                    [
                        one.job,
                        one.tid,
                        one.attempt,
                        one.result_digest,
                        one.size_bytes,
                        one.inputs_digest,
                        one.run_us,
                        one.inline,
                    ]
                    for one in command.completions
                ],
                [
                    [one.job, one.tid, one.attempt, one.error, one.fatal, one.detail]
                    for one in command.failures
                ],
                [[one.job, one.tid] for one in command.lost],
            ]
        case RaiseRules():
            return ["rules", command.version]
        case Answer():
            return [
                "answer",
                command.job,
                [
                    [
                        part.event,
                        part.part,
                        part.last,
                        part.first_tid,
                        [_scheduler_command_list(one) for one in part.commands],
                    ]
                    for part in command.parts
                ],
                command.empty,
            ]
        case Tick():
            silent = [[one.cid, one.incarnation, one.request] for one in command.silent]
            claim = command.claim
            said = None if claim is None else [claim.slot, claim.digest]
            return ["tick", command.elapsed_ms, command.wall_ms, silent, said, command.followed]
        case JoinClient():
            return [
                "join",
                command.identity,
                command.incarnation,
                command.address,
                command.hostname,
                command.slots,
                [[one.job, one.tid, one.digest] for one in command.held],
            ]
        case LeaveClient():
            return ["leave", command.cid, command.incarnation]
        case NodesAttached():
            nodes = [[name, count] for name, count in command.nodes]
            return ["attached", command.cid, command.incarnation, command.request, nodes]
        case SubmitJob():
            return [
                "submit",
                command.sender,
                command.request,
                command.name,
                command.seed,
                command.params,
                command.program,
                command.manifest,
            ]
        case CancelJob():
            return ["cancel", command.sender, command.request, command.job, command.reason]
        case ForgetJob():
            return ["forget", command.sender, command.request, command.job]
        case SchedulerOut():
            return ["out", command.replica, command.job, command.kind, command.error]
        case JobObserved():
            return ["observed", command.job, command.kind, command.source, command.text]
        case _:
            raise AssertionError(f"not a command: {command!r}")


def _scheduler_command_list(command: SchedulerCommand) -> list[Any]:
    match command:
        case TaskSpec():
            return [
                "s",
                command.name,
                command.base,
                command.pretasks,
                command.prekeys,
                command.keys,
                command.retries,
                command.timeout_ms,
            ]
        case KillTask():
            return ["k", command.tid]
        case FinishJob():
            return ["f", command.taskids, command.values]
        case FailJob():
            return ["x", command.error]
        case StartTimer():
            return ["t", command.timer, command.after_ms]
        case ReleaseTasks():
            return ["r", command.tids]
        case WriteLog():
            return ["l", command.text]
        case _:
            raise AssertionError(f"not a scheduler's command: {command!r}")


# --- decoding ---


def decode_command(data: bytes | memoryview) -> Command:
    """Return the command that `data` encodes.

    Raises:
        RemoteProtocolError: It isn't one.
    """
    value: Any = decode_json(data)
    try:
        kind, *fields = value
        decoded: Command = _DECODERS[kind](*fields)
        return decoded
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise RemoteProtocolError(f"not a command: {error}") from error


def _number(value: Any) -> Any:
    if type(value) is not int or not 0 <= value <= INTEGER_MAX:
        raise ValueError(f"expected a number from 0 to 2**63 - 1, found {value!r:.50}")
    return value


def _text(value: Any) -> Any:
    if type(value) is not str:
        raise ValueError(f"expected text, found {value!r:.50}")
    return value


def _bool(value: Any) -> Any:
    if type(value) is not bool:
        raise ValueError(f"expected true or false, found {value!r:.50}")
    return value


def _list(value: Any) -> Any:
    if type(value) is not list:
        raise ValueError(f"expected a list, found {value!r:.50}")
    return value


def _numbers(value: Any) -> Any:
    if not value:
        _list(value)
        return ()
    for item in _list(value):
        if type(item) is not int or not 0 <= item <= INTEGER_MAX:
            _number(item)
    return tuple(value)


def _texts(value: Any) -> Any:
    if not value:
        _list(value)
        return ()
    for item in _list(value):
        if type(item) is not str:
            _text(item)
    return tuple(value)


def _tick(elapsed_ms: Any, wall_ms: Any, silent: Any, claim: Any, followed: Any) -> Tick:
    if claim is not None:
        slot, digest = _list(claim)
        claim = Claim(_number(slot), _text(digest))
    return Tick(
        _number(elapsed_ms),
        _number(wall_ms),
        tuple(
            [
                SilentClient(_number(cid), _text(incarnation), _number(request))
                for cid, incarnation, request in _list(silent)
            ]
        ),
        claim,
        tuple([(ClientId(_number(cid)), Slot(_number(slot))) for cid, slot in _list(followed)]),
    )


def _join(
    identity: Any, incarnation: Any, address: Any, hostname: Any, slots: Any, held: Any
) -> JoinClient:
    return JoinClient(
        _text(identity),
        _text(incarnation),
        None if address is None else _text(address),
        _text(hostname),
        _number(slots),
        tuple(
            [Held(_number(job), _number(tid), _text(digest)) for job, tid, digest in _list(held)]
        ),
    )


def _leave(cid: Any, incarnation: Any) -> LeaveClient:
    return LeaveClient(_number(cid), _text(incarnation))


def _attached(cid: Any, incarnation: Any, request: Any, nodes: Any) -> NodesAttached:
    return NodesAttached(
        _number(cid),
        _text(incarnation),
        _number(request),
        tuple([(_text(name), _number(count)) for name, count in _list(nodes)]),
    )


def _completion(
    job: Any,
    tid: Any,
    attempt: Any,
    result: Any,
    size_bytes: Any,
    inputs: Any,
    run_us: Any,
    inline: Any,
) -> Completion:
    # One condition for all numbers: this runs once for each task of the cluster.
    is_well_formed = (
        type(job) is type(tid) is type(attempt) is type(size_bytes) is type(run_us) is int
        and 0 <= job <= INTEGER_MAX
        and 0 <= tid <= INTEGER_MAX
        and 0 <= attempt <= INTEGER_MAX
        and 0 <= size_bytes <= INTEGER_MAX
        and 0 <= run_us <= INTEGER_MAX
        and type(result) is str
        and (inputs is None or type(inputs) is str)
        and type(inline) is dict
    )
    if not is_well_formed:
        raise ValueError(f"expected a completion, found one of job {job!r:.20} task {tid!r:.20}")
    if inline:
        inline = {key: _inline_value(*value) for key, value in inline.items()}
    return Completion(job, tid, attempt, result, size_bytes, inputs, run_us, inline)


def _inline_value(kind: Any, text: Any) -> tuple[str, str]:
    if (kind != "json" and kind != "bytes") or type(text) is not str:
        raise ValueError(f"expected a kind and a text, found {kind!r:.50}")
    if "\n" in text:
        raise ValueError("expected a value without line ends: it becomes part of a line")
    return kind, text


def _failure(job: Any, tid: Any, attempt: Any, error: Any, fatal: Any, detail: Any) -> Failure:
    if type(detail) is not dict:
        raise ValueError(f"expected an object, found {detail!r:.50}")
    if detail:
        # What can be read can't always be written: orjson writes less deeply nested values
        # than it reads. This one becomes a part of an event, and of rows.
        encode_json([[[[detail]]]])
    return Failure(
        _number(job), _number(tid), _number(attempt), _text(error), _bool(fatal), detail
    )


def _report(
    cid: Any,
    incarnation: Any,
    request: Any,
    acknowledged: Any,
    completions: Any,
    failures: Any,
    lost: Any,
) -> Report:
    return Report(
        _number(cid),
        _text(incarnation),
        _number(request),
        _number(acknowledged),
        tuple([_completion(*one) for one in _list(completions)]),
        tuple([_failure(*one) for one in _list(failures)]),
        tuple([Lost(_number(job), _number(tid)) for job, tid in _list(lost)]),
    )


def _submit(
    sender: Any, request: Any, name: Any, seed: Any, params: Any, program: Any, manifest: Any
) -> SubmitJob:
    return SubmitJob(
        _text(sender),
        _number(request),
        _text(name),
        _number(seed),
        _text(params),
        _text(program),
        _text(manifest),
    )


def _answer(job: Any, parts: Any, empty: Any) -> Answer:
    return Answer(
        _number(job),
        tuple(
            [
                AnswerPart(
                    _number(event),
                    _number(part),
                    _bool(last),
                    _number(first_tid),
                    tuple([_scheduler_command(*one) for one in _list(commands)]),
                )
                for event, part, last, first_tid, commands in _list(parts)
            ]
        ),
        tuple([(_number(first), _number(end)) for first, end in _list(empty)]),
    )


def _scheduler_command(kind: Any, *fields: Any) -> SchedulerCommand:
    if kind == "s":
        name, base, pretasks, prekeys, keys, retries, timeout_ms = fields
        return compact_spec(
            _text(name),
            _text(base),
            _numbers(pretasks),
            _texts(prekeys),
            _texts(keys),
            None if retries is None else _number(retries),
            None if timeout_ms is None else _number(timeout_ms),
        )
    if kind == "k":
        (tid,) = fields
        return KillTask(_number(tid))
    if kind == "f":
        taskids, values = fields
        return FinishJob(_numbers(taskids), _text(values))
    if kind == "x":
        (error,) = fields
        return FailJob(_text(error))
    if kind == "t":
        timer, after_ms = fields
        return StartTimer(_number(timer), _number(after_ms))
    if kind == "r":
        (tids,) = fields
        return ReleaseTasks(_numbers(tids))
    if kind == "l":
        (text,) = fields
        return WriteLog(_text(text))
    raise ValueError(f"expected a scheduler's command, found {kind!r:.50}")


def _cancel(sender: Any, request: Any, job: Any, reason: Any) -> CancelJob:
    return CancelJob(_text(sender), _number(request), _number(job), _text(reason))


def _forget(sender: Any, request: Any, job: Any) -> ForgetJob:
    return ForgetJob(_text(sender), _number(request), _number(job))


def _out(replica: Any, job: Any, kind: Any, error: Any) -> SchedulerOut:
    return SchedulerOut(_number(replica), _number(job), _text(kind), _text(error))


def _observed(job: Any, kind: Any, source: Any, text: Any) -> JobObserved:
    return JobObserved(_number(job), _text(kind), _text(source), _text(text))


def _rules(version: Any) -> RaiseRules:
    return RaiseRules(_number(version))


_DECODERS: dict[str, Any] = {
    "answer": _answer,
    "attached": _attached,
    "cancel": _cancel,
    "forget": _forget,
    "join": _join,
    "leave": _leave,
    "observed": _observed,
    "out": _out,
    "report": _report,
    "rules": _rules,
    "submit": _submit,
    "tick": _tick,
}
