"""One job and its tasks as the replicated state knows them.

    running ──finish──> finished      (once all results that finish names are readable)
       ├─────fail, or an error of its scheduler──> failed
       └─────cancel──> cancelled

This module knows the fields. job_rows.py and task_rows.py keep them; transitions.py changes
the states of tasks. Others decide by them: placement/ (where to run), results.py (which result
counts) and answers.py (the commands of schedulers).
"""

from __future__ import annotations

from typing import Any

from tasksprint.coordination.task_states import ASSIGNED, READY, STATES, WAITING
from tasksprint.encoding import decode_json
from tasksprint.ids import ClientId, JobId, ReplicaId, TaskId
from tasksprint.scheduler_commands import CLIENT_EVENTS
from tasksprint.task_spec import TaskSpec

__all__ = ["CANCELLED", "FAILED_JOB", "FINISHED", "RUNNING", "Job", "Task", "WrongManifestError"]

RUNNING, FINISHED, FAILED_JOB, CANCELLED = "running", "finished", "failed", "cancelled"


class WrongManifestError(ValueError):
    """A job can't be made: its sentence, and the value in the manifest that was found."""

    def __init__(self, sentence: str, found: object) -> None:
        super().__init__(sentence)
        self.found = found


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
        "handles",
        "idle_end_ms",
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
        "rules",
        "runtimes",
        "seed",
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
        rules: int = 1,
    ) -> None:
        self.job = job
        self.name = name
        self.seed = seed
        self.params = params
        self.program = program
        self.manifest = manifest
        # The version of the rules that it was submitted under. It fixes the commands of its
        # scheduler up to the job's end: a scheduler that is replayed must repeat itself.
        self.rules = rules
        self.node, self.retries, self.timeout_ms = _defaults(manifest, default_retries)
        # Name of the nodes that serve it, attached by hand; None: clients start its nodes.
        kind, _, name = self.node.partition(":")
        self.attached = name if kind == "attached" and name else None
        self.state = RUNNING
        self.submitted_ms = 0  # log time
        self.submitted_wall_ms = 0  # wall time of the last tick then: display only
        self.ended_ms: int | None = None
        self.ended_wall_ms: int | None = None
        self.values: str | None = None  # the values given to finish, JSON text
        self.error: str | None = None
        self.keep: tuple[TaskId, ...] = ()  # tasks whose results outlive the job
        # finish was said, but some result named in it must be computed again first.
        self.finishing: tuple[tuple[TaskId, ...], str] | None = None
        self.tasks: dict[TaskId, Task] = {}  # in order of tid; without released ones
        self.next_tid = TaskId(0)
        self.counts = [0] * len(STATES)  # all tasks ever started, by state
        self.ready: list[int] = []  # a heap, of placement/order.py
        # The queue of placement/ready.py in which it stands; None: it has no ready task.
        self.queue: tuple[str | None, int] | None = None
        self.estimates_us: dict[str, int] = {}  # by task name
        # Lines of events and digests of answers stand in the mirror only. Schedulers read them
        # there for a replay.
        self.event_count = 0
        self.next_event = 0  # the first event without a whole chosen answer …
        self.next_part = 0  # … and the next part of it
        self.timers: list[tuple[int, int, int]] = []  # sorted: (due in log time, number, timer)
        self.due: tuple[int, JobId] | None = None  # its place in `State.due`
        self.next_timer = 0  # number of the next timer: order among equal times
        self.log_lines = 0  # all lines of the job's log
        self.loss_lines = 0  # those among them that tell of dead clients
        self.failure_count = 0  # attempts that failed; the next number of one
        self.out: dict[ReplicaId, tuple[str, str]] = {}  # (kind, error) of lost schedulers
        # Interpreters of its programs, (version, the first that said so), and the warnings to
        # its owner.
        self.runtimes: dict[str, tuple[str, str]] = {}
        self.warnings: dict[str, str] = {}
        # Kinds of events that its scheduler handles; None: all, or unknown. Under rules from 2
        # on it is empty until the scheduler has begun to answer `init`.
        self.handles: tuple[str, ...] | None = None
        # Nothing that it handles can come any more: it fails at this log time. None: it can.
        self.idle_end_ms: int | None = None

    def let_go(self) -> None:
        """Free the memory of fields that nobody needs of an ended job; its rows keep them."""
        self.params = self.manifest = self.node = ""
        self.ready = []
        self.timers = []
        self.estimates_us = {}
        self.finishing = None
        self.idle_end_ms = None

    @property
    def is_running(self) -> bool:
        """Whether the job hasn't ended."""
        return self.state == RUNNING

    def is_told_of(self, kind: str) -> bool:
        """Whether events of this kind are raised for it."""
        return self.handles is None or kind in self.handles

    @property
    def is_idle(self) -> bool:
        """Whether no event that its scheduler handles can come any more."""
        return (
            self.handles is not None
            and self.is_running
            and self.next_event == self.event_count
            and self.finishing is None
            and not (self.timers or self.counts[READY] or self.counts[ASSIGNED])
            and not any(map(self.is_told_of, CLIENT_EVENTS))
        )

    @property
    def due_ms(self) -> int | None:
        """The log time at which time alone changes the job; None: it never does."""
        return self.timers[0][0] if self.timers else self.idle_end_ms


class Task:
    """One task of one job; mutable, changed by the state machine only.

    Invariants (checked in check.py): `cid` is None unless the state is ASSIGNED;
    `pending` counts the places in `spec.pretasks` whose task isn't DONE; a READY task has none.
    """

    __slots__ = (
        "ahead",
        "attempt",
        "cid",
        "dependents",
        "digest",
        "error",
        "event",
        "failed_on",
        "failures",
        "gone",
        "holders",
        "is_released",
        "is_stale",
        "is_wanted",
        "job",
        "load_us",
        "may_extend",
        "pending",
        "placed",
        "size_bytes",
        "spec",
        "state",
        "tid",
        "told",
        "users",
    )

    def __init__(self, job: Job, tid: TaskId, spec: TaskSpec) -> None:
        self.job = job
        self.tid = tid
        self.spec = spec  # with the job's limits in place of missing ones
        self.state = WAITING
        self.pending = 0
        # Tids of the tasks that name this one, as often as they name it. They are tids and
        # not tasks: a released dependent must not stay in memory because of us.
        self.dependents: list[TaskId] | None = None
        self.gone = 0  # of those: released, and forgotten, since the list was last cleaned
        self.users = 0  # how often this one stands among the pretasks of unfinished tasks
        # The current attempt.
        self.attempt = 0
        self.cid: ClientId | None = None
        self.load_us = 0  # its share of its client's queue
        self.placed = 0  # number of the placement, over all tasks: the order of a queue
        self.ahead = 0  # dependents assigned while this one isn't done
        self.may_extend = False  # waits in its client's `extend` queue
        # The outcome of earlier attempts.
        self.failures = 0
        self.failed_on: ClientId | None = None
        self.error: str | None = None
        # The result: canonical digest, and the clients that have those bytes.
        self.digest: str | None = None
        self.size_bytes = 0
        self.holders: tuple[ClientId, ...] = ()
        self.event: int | None = None  # number of its task_done event
        self.told: str | None = None  # digest of the values in that event, if it has any
        self.is_stale = False  # the digest rests on an input whose bytes changed
        self.is_released = False  # the scheduler let it go; unfinished users keep it
        self.is_wanted = False  # named by finish: its result must be readable

    def __repr__(self) -> str:
        return f"<task {self.job.job}/{self.tid} {self.spec.name!r} {STATES[self.state]}>"


def _defaults(manifest: str, default_retries: int) -> tuple[str, int, int | None]:
    """Return node entry, retries and time limit out of a manifest.

    Raises:
        WrongManifestError: It isn't an object, or one of them has a wrong type.
    """
    # RemoteProtocolError can't come: the text was parsed before the Job is made.
    entries: Any = decode_json(manifest.encode())
    if not isinstance(entries, dict):
        raise WrongManifestError("the manifest must be an object", manifest)
    node = entries.get("node", "")
    if not isinstance(node, str):
        raise WrongManifestError("the manifest's 'node' must be text", node)
    retries = entries.get("retries")
    if retries is None:
        retries = default_retries
    timeout_ms = entries.get("timeout_ms")
    for key, value in (("retries", retries), ("timeout_ms", timeout_ms)):
        if value is not None and (type(value) is not int or not 0 <= value < 2**53):
            sentence = f"the manifest's {key!r} must be a whole number of at least 0"
            raise WrongManifestError(sentence, value)
    return node, retries, timeout_ms
