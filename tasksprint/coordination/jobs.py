"""One job and its tasks as the replicated state knows them.

    running ──finish──> finished      (once every result that finish names can be read)
       ├─────fail, or an error of its scheduler──> failed
       └─────cancel──> cancelled

This module knows the fields. How they are kept is in job_rows.py and task_rows.py; how
tasks change their states, in transitions.py. What they mean for others is decided in
placement/ (where to run), results.py (what counts) and answers.py (what is asked).
"""

from __future__ import annotations

from typing import Any

from tasksprint.coordination.task_states import ASSIGNED, READY, STATES, WAITING
from tasksprint.encoding import decode_json
from tasksprint.ids import ClientId, JobId, ReplicaId, TaskId
from tasksprint.scheduler_commands import CLIENT_EVENTS
from tasksprint.task_spec import TaskSpec

__all__ = ["CANCELLED", "FAILED_JOB", "FINISHED", "RUNNING", "Job", "Task"]

RUNNING, FINISHED, FAILED_JOB, CANCELLED = "running", "finished", "failed", "cancelled"


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
        # The version of the rules that it was submitted under. What its scheduler may say is
        # the same up to its end: one that is replayed says again what it said before.
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
        self.values: str | None = None  # what finish was given, JSON text
        self.error: str | None = None
        self.keep: tuple[TaskId, ...] = ()  # tasks whose results outlive the job
        # finish was said, but some result that it names must be computed again first.
        self.finishing: tuple[tuple[TaskId, ...], str] | None = None
        self.tasks: dict[TaskId, Task] = {}  # in order of tid; without released ones
        self.next_tid = TaskId(0)
        self.counts = [0] * len(STATES)  # all tasks ever started, by state
        self.ready: list[int] = []  # a heap, of placement/order.py
        # The queue of placement/ready.py in which it stands; None: it has no ready task.
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
        # Kinds of events that its scheduler does something about; None: all, or unknown. Until
        # a scheduler of rules from 2 on has begun to answer `init`: none.
        self.handles: tuple[str, ...] | None = None
        # Log time at which it fails if nothing can come any more that it handles; None: it can.
        self.idle_end_ms: int | None = None

    def let_go(self) -> None:
        """Free the memory of what nobody asks of an ended job; its rows keep it."""
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
        """Whether nothing can come any more that its scheduler handles."""
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
        """When log time alone changes something of it; None: it doesn't."""
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
        self.spec = spec  # with the limits of the job where it says none
        self.state = WAITING
        self.pending = 0
        # Tids of the tasks that name this one, once for each time that they do. Tids and
        # not tasks: a released dependent must not stay in memory because of us.
        self.dependents: list[TaskId] | None = None
        self.gone = 0  # of those: released, and forgotten, since the list was last cleaned
        self.users = 0  # places in the pretasks of unfinished tasks where this one stands
        # The current attempt.
        self.attempt = 0
        self.cid: ClientId | None = None
        self.load_us = 0  # what it counts in its client's queue
        self.placed = 0  # number of the placement, over all tasks: the order of a queue
        self.ahead = 0  # dependents assigned while this one isn't done
        self.may_extend = False  # waits in its client's `extend` queue
        # What became of earlier attempts.
        self.failures = 0
        self.failed_on: ClientId | None = None
        self.error: str | None = None
        # The result: canonical digest, and who has those bytes.
        self.digest: str | None = None
        self.size_bytes = 0
        self.holders: tuple[ClientId, ...] = ()
        self.event: int | None = None  # number of its task_done event
        self.told: str | None = None  # digest of the values in it (keys), if there are any
        self.is_stale = False  # the digest rests on an input's bytes that changed
        self.is_released = False  # the scheduler let it go; unfinished users keep it
        self.is_wanted = False  # named by finish, whose results must be readable

    def __repr__(self) -> str:
        return f"<task {self.job.job}/{self.tid} {self.spec.name!r} {STATES[self.state]}>"


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
