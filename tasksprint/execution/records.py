"""The workbench's records: tasks, nodes, programs, results and copies.

Plain mutable objects, each owned by one module (said at each class). They hold
digests and sizes, never values.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence

from tasksprint.coordination.view import Assignment
from tasksprint.encoding import decode_json
from tasksprint.errors import RemoteProtocolError
from tasksprint.execution.effects import Manifest, NodeId
from tasksprint.ids import ClientId, JobId, TaskId

__all__ = [
    "AGAIN",
    "INPUTS_HERE",
    "NODE_TRANSITIONS",
    "OVER",
    "PROGRAM_TRANSITIONS",
    "SENT",
    "TASK_TRANSITIONS",
    "ClientTask",
    "Copy",
    "CopyKey",
    "Entry",
    "KeptResult",
    "Key",
    "Node",
    "NodeState",
    "Program",
    "ProgramState",
    "TaskState",
    "TaskTransition",
    "describe_keys",
    "describe_task",
]

Key = tuple[JobId, TaskId]
CopyKey = tuple[JobId, TaskId, str]  # with the result digest

_KEYS_SHOWN_MAX = 10
_KEY_CHARACTERS_MAX = 100


class TaskState(str, enum.Enum):
    """Where an assignment stands, by TASK_TRANSITIONS; `str` for its hash, which is quick."""

    WAITING = "waiting"  # some input isn't here
    READY = "ready"  # in its program's queue
    RUNNING = "running"  # in the pipe of a node
    GONE = "gone"  # done, failed, stopped or forgotten; no longer in the table


# What happened to an assignment, as state before -> state behind. What isn't in it can't happen.
TaskTransition = dict[TaskState, TaskState]

INPUTS_HERE: TaskTransition = {TaskState.WAITING: TaskState.READY}
SENT: TaskTransition = {TaskState.READY: TaskState.RUNNING}
# An input changed or is gone, or the node died or stalled: first its inputs are looked for.
AGAIN: TaskTransition = {
    TaskState.WAITING: TaskState.WAITING,
    TaskState.READY: TaskState.WAITING,
    TaskState.RUNNING: TaskState.WAITING,
}
OVER: TaskTransition = {
    TaskState.WAITING: TaskState.GONE,
    TaskState.READY: TaskState.GONE,
    TaskState.RUNNING: TaskState.GONE,
}

TASK_TRANSITIONS: dict[str, TaskTransition] = {
    "inputs here": INPUTS_HERE,
    "sent": SENT,
    "again": AGAIN,
    "over": OVER,
}


class NodeState(enum.Enum):
    """Where a node stands, by NODE_TRANSITIONS; its record goes when the process has ended."""

    STARTING = "starting"
    SERVING = "serving"
    STOPPING = "stopping"
    KILLED = "killed"


# Events of a node, each as a map: state before -> state behind. From other states it can't happen.
NODE_TRANSITIONS: dict[str, dict[NodeState, NodeState]] = {
    "ready": {NodeState.STARTING: NodeState.SERVING},
    "stopped": {NodeState.SERVING: NodeState.STOPPING},  # idle, and not wanted any more
    "killed": {
        NodeState.STARTING: NodeState.KILLED,
        NodeState.SERVING: NodeState.KILLED,
        NodeState.STOPPING: NodeState.KILLED,
    },
}


class ProgramState(enum.Enum):
    """How ready the archive of a program is here, by PROGRAM_TRANSITIONS."""

    UNKNOWN = "unknown"
    PREPARING = "preparing"
    PREPARED = "prepared"


# What happened to an archive, as state before -> state behind. What isn't in it can't happen.
PROGRAM_TRANSITIONS: dict[str, dict[ProgramState, ProgramState]] = {
    "wanted": {ProgramState.UNKNOWN: ProgramState.PREPARING},
    "prepared": {
        ProgramState.UNKNOWN: ProgramState.PREPARED,  # already, for another program in it
        ProgramState.PREPARING: ProgramState.PREPARED,
    },
    "not prepared": {ProgramState.PREPARING: ProgramState.UNKNOWN},
}


class ClientTask:
    """A task as this client has it: one assignment, so one attempt (owned by the workbench)."""

    __slots__ = (
        "arrival",
        "assignment",
        "copies",
        "digests",
        "entry",
        "key",
        "pending",
        "program",
        "state",
    )

    def __init__(self, assignment: Assignment, program: Program, arrival: int) -> None:
        self.assignment = assignment
        self.key: Key = (assignment.job, assignment.tid)
        self.program = program
        self.arrival = arrival  # tasks are run in this order
        self.state = TaskState.WAITING
        self.entry: Entry | None = None  # Invariant: set exactly while RUNNING.
        # Pretasks that aren't here, with the wanted digest (None: of the result made here).
        # Invariant: empty unless WAITING.
        self.pending: dict[TaskId, str | None] = {}
        # Pretasks that are here, with the digest of the result to be consumed.
        self.digests: dict[TaskId, str] = {}
        self.copies: dict[TaskId, Copy] = {}  # of pretasks that are or will be fetched

    def __str__(self) -> str:
        return describe_task(self.assignment)

    def enter(self, transition: TaskTransition) -> None:
        """Change the state, by what happened."""
        try:
            self.state = transition[self.state]
        except KeyError:
            name = next(name for name, one in TASK_TRANSITIONS.items() if one is transition)
            raise AssertionError(f"{self} can't be {name}: it is {self.state.value}") from None


class Entry:
    """A task in a node's pipe (owned by nodes)."""

    __slots__ = ("deadline_ms", "digests", "estimate_us", "id", "node", "task", "why")

    def __init__(self, id: int, task: ClientTask, node: Node, estimate_us: int) -> None:
        self.id = id
        # The entry is live while `task.entry is self`. Otherwise the task was stopped, or moved
        # because the node stalled, and the answer isn't wanted.
        self.task = task
        self.node = node
        self.estimate_us = estimate_us
        self.digests: tuple[str, ...] = ()  # of its inputs, in the order of arguments
        self.deadline_ms: int | None = None  # when it will have run for too long
        self.why = ""  # why it isn't wanted any more, before the task's name; "": unknown


class Node:
    """A process that runs tasks (owned by nodes)."""

    __slots__ = (
        "armed_ms",
        "attached",
        "frames",
        "head_since_us",
        "id",
        "idle_since_ms",
        "is_stalled",
        "kill_error",
        "last_id",
        "pipe",
        "program",
        "started_ms",
        "state",
        "was_ready",
        "window",
        "work_us",
    )

    def __init__(self, id: NodeId, program: Program, started_ms: int, *, attached: bool) -> None:
        self.id = id
        self.program = program
        self.attached = attached  # True: beyond the capacity, started by somebody else
        self.state = NodeState.STARTING
        self.started_ms = started_ms
        self.window = 1  # tasks that it takes into its pipe
        self.frames = False
        self.pipe: dict[int, Entry] = {}  # in order of sending; the first is running
        self.work_us = 0  # Invariant: the sum of the estimates in the pipe.
        self.last_id = 0
        self.head_since_us = 0  # when the first entry began to run
        self.idle_since_ms = 0  # meaningful while the pipe is empty
        self.was_ready = False
        # It gave up the tasks behind its head, and gets nothing more until it answers.
        self.is_stalled = False
        # Why its running task fails, if it was KILLED for that task; else None.
        self.kill_error: str | None = None
        self.armed_ms: int | None = None  # the earliest timer started for this node

    @property
    def head(self) -> Entry | None:
        """The entry that is running, or None."""
        for entry in self.pipe.values():
            return entry
        return None


def _program_name(command: str) -> str:
    """Return the file that a command of the view starts, or "attached:NAME"."""
    try:
        return str(decode_json(command.encode())["node"][0])
    except (RemoteProtocolError, LookupError, TypeError):
        return command


class Program:
    """The code of nodes: a file of an archive, or nodes attached by a name (owned by nodes)."""

    __slots__ = (
        "command",
        "deaths",
        "digest",
        "estimates",
        "free",
        "is_attached",
        "name",
        "node_states",
        "nodes",
        "paused_until_ms",
        "ready",
        "short_since_ms",
        "start_error",
        "start_failures",
        "state",
        "takes_several",
        "tasks",
        "told_absent",
    )

    def __init__(self, digest: str, command: str) -> None:
        self.digest = digest
        self.command = command
        self.name = _program_name(command)
        self.is_attached = command.startswith("attached:")
        self.state = ProgramState.PREPARED if self.is_attached else ProgramState.UNKNOWN
        self.nodes: dict[NodeId, Node] = {}
        self.node_states = dict.fromkeys(NodeState, 0)  # the number of nodes in each
        # Heap of nodes that serve and have nothing to do; others in it are skipped.
        self.free: list[NodeId] = []
        self.takes_several = False  # some of them took more than one task at once
        # Heap of (arrival, number, task); an entry whose task isn't READY is skipped.
        self.ready: list[tuple[int, int, ClientTask]] = []
        self.tasks = 0  # assignments in the table
        self.estimates: dict[str, int] = {}  # name -> run time in microseconds
        self.deaths = 0  # nodes that died since the last answer of one
        self.start_failures = 0  # nodes that died before they were ready, in a row
        self.start_error = ""  # how the last of those ended, on one line
        self.paused_until_ms = 0  # no node is started before
        self.short_since_ms: int | None = None  # since when tasks have no node at all
        self.told_absent = False

    def __str__(self) -> str:
        return repr(self.name)

    def enter(self, event: str) -> None:
        """Change the state, by what happened to the archive."""
        state = PROGRAM_TRANSITIONS[event].get(self.state)
        assert state is not None, f"program {self} can't be {event}: it is {self.state.value}"
        self.state = state


class KeptResult:
    """A result that this client made and keeps (owned by inputs)."""

    __slots__ = ("_keys", "attempt", "digest", "is_stored", "manifest")

    def __init__(
        self, attempt: int, digest: str, manifest: Manifest | None, *, is_stored: bool
    ) -> None:
        self.attempt = attempt  # 0: made before this start
        self.digest = digest
        self.manifest = manifest  # None: it stands in the store, and wasn't needed yet
        self.is_stored = is_stored
        self._keys: frozenset[str] | None = None

    @property
    def keys(self) -> frozenset[str] | None:
        """The keys of its values; made at first use: most results have no reader here."""
        if self._keys is None and self.manifest is not None:
            self._keys = frozenset([item[0] for item in self.manifest])
        return self._keys


class Copy:
    """A result of another client; some of its values are or will be fetched (owned by inputs)."""

    __slots__ = (
        "copy_key",
        "fetch",
        "holders",
        "is_paused",
        "keys",
        "pause_ms",
        "present",
        "queued_at",
        "requested",
        "size_bytes",
        "sizes",
        "tried",
        "users",
        "wanted",
    )

    def __init__(self, copy_key: CopyKey) -> None:
        self.copy_key = copy_key
        self.holders: tuple[ClientId, ...] = ()
        self.users: dict[Key, ClientTask] = {}  # tasks that need it
        self.keys: frozenset[str] | None = None  # of all its values, once the manifest is here
        self.sizes: dict[str, int] = {}
        self.wanted: dict[str, None] = {}  # keys still to be asked for, in order
        self.requested: tuple[str, ...] = ()  # keys in the request under way
        self.present: set[str] = set()  # keys whose values are here
        self.size_bytes = 0  # of the present values
        self.queued_at: ClientId | None = None  # the holder in whose queue it waits
        self.fetch: int | None = None  # number of the FetchInputs under way
        self.tried: set[ClientId] = set()  # holders that failed since the last pause
        self.is_paused = False  # a timer will clear `tried`
        self.pause_ms = 0  # the last pause, after all of them failed


def describe_task(assignment: Assignment) -> str:
    """Return the name of a task for errors."""
    return f"task {assignment.tid} {assignment.spec.name!r}"


def describe_keys(keys: Iterable[str]) -> str:
    """Return the keys of a result, listed for errors."""
    shown: Sequence[str] = list(keys)
    if not shown:
        return "nothing"
    text = ", ".join([repr(key[:_KEY_CHARACTERS_MAX]) for key in shown[:_KEYS_SHOWN_MAX]])
    more = len(shown) - _KEYS_SHOWN_MAX
    return f"{text} and {more} more" if more > 0 else text
