"""One job as the replicated state knows it, its rows, and the lines of its events.

    running ──finish──> finished      (once every result that finish names can be read)
       ├─────fail, or an error of its scheduler──> failed
       └─────cancel──> cancelled

A job's row changes with every entry that concerns it, so what never changes (seed,
parameters, program, manifest) stands in a fact of its own, and each timer in another.

Event lines are made here, once for all replicas, by splicing: values and parameters
that users wrote are put in as the bytes they came in.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tasksprint.coordination.rows import Row
from tasksprint.coordination.tasks import STATES, Task
from tasksprint.encoding import decode_json, encode_json
from tasksprint.ids import ClientId, JobId, ReplicaId, TaskId

__all__ = [
    "CANCELLED",
    "FAILED_JOB",
    "FINISHED",
    "RUNNING",
    "Job",
    "definition_row",
    "job_row",
    "line_client_dead",
    "line_client_joined",
    "line_init",
    "line_task_done",
    "line_task_failed",
    "line_timer",
    "program_of",
    "restore_job",
    "timer_name",
    "timer_row",
]

RUNNING, FINISHED, FAILED_JOB, CANCELLED = "running", "finished", "failed", "cancelled"


# Tuples of keys that tasks of a job share: most tasks name the same few.
SHARED_MAX = 1_000
SHARED_LENGTH_MAX = 16


class Job:
    """One job; mutable, changed by the state machine only."""

    __slots__ = (
        "attached",
        "counts",
        "due",
        "ended_ms",
        "ended_wall_ms",
        "error",
        "estimates_us",
        "event_count",
        "failure_count",
        "finishing",
        "job",
        "keep",
        "log_lines",
        "loss_lines",
        "manifest",
        "name",
        "next_event",
        "next_part",
        "next_tid",
        "next_timer",
        "node",
        "out",
        "params",
        "program",
        "queue",
        "ready",
        "retries",
        "runtimes",
        "seed",
        "shared",
        "state",
        "submitted_ms",
        "submitted_wall_ms",
        "tasks",
        "timeout_ms",
        "timers",
        "values",
        "warnings",
    )

    def __init__(
        self,
        job: JobId,
        name: str,
        seed: int,
        params: str,
        program: str,
        manifest: str,
        default_retries: int,
    ) -> None:
        self.job = job
        self.name = name
        self.seed = seed
        self.params = params
        self.program = program
        self.manifest = manifest
        self.node, self.retries, self.timeout_ms = _defaults(manifest, default_retries)
        # Name of the nodes that serve it, attached by hand; None: clients start its nodes.
        kind, _, name = self.node.partition(":")
        self.attached = name if kind == "attached" and name else None
        self.state = RUNNING
        self.submitted_ms = 0  # log time
        self.submitted_wall_ms = 0  # wall time of the last tick then: display only
        self.ended_ms: int | None = None
        self.ended_wall_ms: int | None = None
        self.values: str | None = None  # what finish was given, JSON text
        self.error: str | None = None
        self.keep: tuple[TaskId, ...] = ()  # tasks whose results outlive the job
        # finish was said, but some result that it names must be computed again first.
        self.finishing: tuple[tuple[TaskId, ...], str] | None = None
        self.tasks: dict[TaskId, Task] = {}  # in order of tid; without released ones
        self.shared: dict[tuple[str, ...], tuple[str, ...]] = {}  # `share`
        self.next_tid = TaskId(0)
        self.counts = [0] * len(STATES)  # all tasks ever started, by state
        self.ready: list[TaskId] = []  # a heap; entries that aren't READY are skipped
        # The queue of placement.py in which it stands; None: it has no ready task.
        self.queue: tuple[str | None, int] | None = None
        self.estimates_us: dict[str, int] = {}  # by task name
        # Lines of events and digests of answers stand in the mirror only: schedulers that
        # replay read them there.
        self.event_count = 0
        self.next_event = 0  # the first event without a whole chosen answer …
        self.next_part = 0  # … and the next part of it
        self.timers: list[tuple[int, int, int]] = []  # sorted: (due in log time, number, timer)
        self.due: tuple[int, JobId] | None = None  # its place in `State.due`
        self.next_timer = 0  # number of the next timer: order among equal times
        self.log_lines = 0  # all, of which about deaths of clients:
        self.loss_lines = 0
        self.failure_count = 0  # attempts that failed; the next number of one
        self.out: dict[ReplicaId, tuple[str, str]] = {}  # (kind, error) of lost schedulers
        # What its programs run on, (version, who said so first), and what its owner must know.
        self.runtimes: dict[str, tuple[str, str]] = {}
        self.warnings: dict[str, str] = {}

    def let_go(self) -> None:
        """Free the memory of what nobody asks of an ended job; its rows keep it."""
        self.params = self.manifest = self.node = ""
        self.ready = []
        self.timers = []
        self.estimates_us = {}
        self.shared = {}
        self.finishing = None

    def share(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        """Return an equal tuple that other tasks have already; this saves memory only."""
        if not texts or len(texts) > SHARED_LENGTH_MAX:
            return texts
        found = self.shared.get(texts)
        if found is not None:
            return found
        if len(self.shared) < SHARED_MAX:
            self.shared[texts] = texts
        return texts

    @property
    def is_running(self) -> bool:
        """Whether the job hasn't ended."""
        return self.state == RUNNING


def _defaults(manifest: str, default_retries: int) -> tuple[str, int, int | None]:
    """Return node entry, retries and time limit out of a manifest.

    Raises:
        ValueError: It isn't an object, or one of them has a wrong type.
    """
    # RemoteProtocolError can't come: whoever makes a Job has parsed the text before.
    entries: Any = decode_json(manifest.encode())
    if not isinstance(entries, dict):
        raise ValueError(f"the manifest must be an object, found {manifest!r:.50}")
    node = entries.get("node", "")
    if not isinstance(node, str):
        raise ValueError(f"the manifest's 'node' must be text, found {node!r:.50}")
    retries = entries.get("retries")
    if retries is None:
        retries = default_retries
    timeout_ms = entries.get("timeout_ms")
    for key, value in (("retries", retries), ("timeout_ms", timeout_ms)):
        if value is not None and (type(value) is not int or not 0 <= value < 2**53):
            raise ValueError(
                f"the manifest's {key!r} must be a whole number of at least 0, found {value!r:.50}"
            )
    return node, retries, timeout_ms


# --- rows ---


def definition_row(job: Job) -> Row:
    """Return the row of what never changes."""
    body = (job.seed, job.params, job.program, job.manifest, job.submitted_ms,
            job.submitted_wall_ms)  # fmt: skip
    return Row("facts", (f"job {job.job}",), (encode_json(body).decode(),))


def program_of(row: Row) -> str | None:
    """Return the digest of a job's archive, from the row that defines it; None: another row."""
    name = row.key[0]
    if row.table != "facts" or row.columns is None or not str(name).startswith("job "):
        return None
    _, _, program, *_ = decode_json(str(row.columns[0]).encode())
    return str(program)


def job_row(job: Job) -> Row:
    """Return the job's row as it is now."""
    body: dict[str, Any] = {
        "tasks": dict(zip(STATES, job.counts, strict=True)),
        "next_tid": job.next_tid,
        "events": job.event_count,
        "next_event": job.next_event,
        "next_part": job.next_part,
        "values": job.values,
        "error": job.error,
        "keep": job.keep,
        "finishing": job.finishing,
        "ended_ms": job.ended_ms,
        "ended_wall_ms": job.ended_wall_ms,
        "next_timer": job.next_timer,
        "log_lines": job.log_lines,
        "failures": job.failure_count,
        "out": [[replica, kind, error] for replica, (kind, error) in job.out.items()],
    }
    if job.loss_lines:
        body["loss_lines"] = job.loss_lines
    if job.runtimes:
        body["runtimes"] = job.runtimes
    if job.warnings:
        body["warnings"] = job.warnings
    return Row("jobs", (job.job,), (job.name, job.state, encode_json(body).decode()))


def timer_row(job: Job, due_ms: int, number: int, timer: int) -> Row:
    """Return the row of one timer of a running job."""
    return Row("facts", (timer_name(job, number),), (encode_json((due_ms, timer)).decode(),))


def timer_name(job: Job, number: int) -> str:
    """Return the name of the fact that is a job's timer of this number."""
    return f"timer {job.job} {number}"


def restore_job(
    job_id: JobId,
    name: str,
    state: str,
    body: dict[str, Any],
    definition: list[Any],
    default_retries: int,
) -> Job:
    """Return a job from its rows, still without tasks, events, answers, estimates and timers."""
    seed, params, program, manifest, submitted_ms, submitted_wall_ms = definition
    job = Job(job_id, name, seed, params, program, manifest, default_retries)
    job.state = state
    job.submitted_ms = submitted_ms
    job.submitted_wall_ms = submitted_wall_ms
    job.counts = list(body["tasks"].values())
    job.next_tid = body["next_tid"]
    job.event_count = body["events"]
    job.next_event = body["next_event"]
    job.next_part = body["next_part"]
    job.values = body["values"]
    job.error = body["error"]
    job.keep = tuple(body["keep"])
    finishing = body["finishing"]
    job.finishing = (tuple(finishing[0]), finishing[1]) if finishing is not None else None
    job.ended_ms = body["ended_ms"]
    job.ended_wall_ms = body["ended_wall_ms"]
    job.next_timer = body["next_timer"]
    job.log_lines = body["log_lines"]
    job.loss_lines = body.get("loss_lines", 0)
    job.failure_count = body["failures"]
    job.out = {replica: (kind, error) for replica, kind, error in body["out"]}
    job.runtimes = {kind: (text, who) for kind, (text, who) in body.get("runtimes", {}).items()}
    job.warnings = body.get("warnings", {})
    if not job.is_running:
        job.let_go()
    return job


# --- event lines ---


def line_init(number: int, job: Job) -> bytes:
    """Return the line of a job's first event."""
    return (
        f'{{"event":{number},"kind":"init","time_ms":0,"seed":{job.seed}'
        f',"job":{job.job},"params":{job.params}}}'
    ).encode()


def line_client_joined(number: int, time_ms: int, cid: ClientId, slots: int) -> bytes:
    """Return the line that says that a client can run tasks."""
    return (
        f'{{"event":{number},"kind":"client_joined","time_ms":{time_ms}'
        f',"cid":{cid},"num_nodes":{slots}}}'
    ).encode()


def line_client_dead(number: int, time_ms: int, cid: ClientId) -> bytes:
    """Return the line that says that a client is gone."""
    return (f'{{"event":{number},"kind":"client_dead","time_ms":{time_ms},"cid":{cid}}}').encode()


def line_task_done(
    number: int, time_ms: int, tid: TaskId, keys: tuple[str, ...], inline: dict[str, Any]
) -> bytes:
    """Return the line that hands a task's values under `keys` to the scheduler.

    Args:
        inline: At least the values under `keys`, each as (kind, text).
    """
    if not keys:
        return (
            f'{{"event":{number},"kind":"task_done","time_ms":{time_ms}'
            f',"tid":{tid},"values":{{}}}}'
        ).encode()
    return (
        f'{{"event":{number},"kind":"task_done","time_ms":{time_ms}'
        f',"tid":{tid},{_values(keys, inline)}}}'
    ).encode()


def _values(keys: Iterable[str], inline: dict[str, Any]) -> str:
    texts: list[str] = []
    base64s: list[str] = []
    for key in dict.fromkeys(keys):
        kind, text = inline[key]
        if kind == "json":
            texts.append(f"{_quote(key)}:{text}")
        else:
            base64s.append(f"{_quote(key)}:{_quote(text)}")
    values = f'"values":{{{",".join(texts)}}}'
    if base64s:
        values += f',"base64":{{{",".join(base64s)}}}'
    return values


_QUOTED: dict[str, str] = {"result": '"result"'}


def _quote(text: str) -> str:
    """Return the text as a JSON string."""
    return _QUOTED.get(text) or encode_json(text).decode()


def line_task_failed(
    number: int, time_ms: int, tid: TaskId, error: str, detail: dict[str, Any]
) -> bytes:
    """Return the line that says that a task is given up."""
    return (
        f'{{"event":{number},"kind":"task_failed","time_ms":{time_ms},"tid":{tid}'
        f',"error":{_quote(error)},"detail":{encode_json(detail).decode()}}}'
    ).encode()


def line_timer(number: int, time_ms: int, timer: int) -> bytes:
    """Return the line that says that a timer has run out."""
    return (f'{{"event":{number},"kind":"timer","time_ms":{time_ms},"timer":{timer}}}').encode()
