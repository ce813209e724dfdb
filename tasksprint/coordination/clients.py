"""One client as the replicated state knows it, its row, and the changes of its view.

A client is alive or dead. Each of its starts is a new incarnation. It keeps its `cid` until it
has been dead for long, and is forgotten. Its assigned tasks, its results and the length of its
queue follow from the tasks. They are kept here, too, so that nobody must look through all tasks.

The changes of its view are not rows. If a client asks a restored replica for changes from
before, the answer is a whole view (`ViewChanges`).
"""

from __future__ import annotations

from collections import deque
from typing import Any

from tasksprint.coordination.jobs import Task
from tasksprint.coordination.rows import Row
from tasksprint.coordination.view import Drop, DropJob, Stop
from tasksprint.encoding import encode_json
from tasksprint.ids import ClientId, Incarnation, JobId, Slot, TaskId

__all__ = ["FORMER", "Client", "ViewChanges", "client_from_row", "client_row"]

# A client of a former cluster (Schedule.found_anew) has this in place of its incarnation.
# Incarnations that clients draw are hex digits.
FORMER = Incarnation("former")


class ViewChanges:
    """The changes of one client's view, each with the slot that made it.

    `run` is in order of change. A stop or a drop stays until the client has named its version
    or a later one, in a poll of this replica, or of the leader (`Tick.followed`). The end of a
    job is told to all clients alike (`State.ends`). `drop_jobs` is for a client that must hear
    it again.
    """

    __slots__ = ("drop_jobs", "drops", "first_slot", "run", "stops")

    def __init__(self, first_slot: Slot) -> None:
        self.first_slot = first_slot  # changes before this one aren't known
        self.run: dict[Task, Slot] = {}
        self.stops: deque[tuple[Slot, Stop]] = deque()
        self.drops: deque[tuple[Slot, Drop]] = deque()
        self.drop_jobs: deque[tuple[Slot, DropJob]] = deque()

    def forget_until(self, since: Slot) -> bool:
        """Forget the stops and drops up to `since`: the client named it, and has seen them.

        Returns:
            Whether there were any.
        """
        queues: tuple[deque[Any], ...] = (self.stops, self.drops, self.drop_jobs)
        forgets = False
        for queue in queues:
            while queue and queue[0][0] <= since:
                queue.popleft()
                forgets = True
        return forgets


class Client:
    """One client; mutable, changed by the state machine only."""

    __slots__ = (
        "address",
        "ahead_us",
        "assigned",
        "attached",
        "attached_entries",
        "attached_request",
        "attached_tasks",
        "capacity",
        "changes",
        "cid",
        "ended_ms",
        "extend",
        "heavy",
        "heavy_entry",
        "holds",
        "hostname",
        "identity",
        "incarnation",
        "is_alive",
        "joined_ms",
        "light_entry",
        "own",
        "queued_us",
        "sender",
    )

    def __init__(self, cid: ClientId, identity: str) -> None:
        self.cid = cid
        self.identity = identity
        self.own = (cid,)  # the holders of a result that it alone has; shared to save memory
        self.incarnation = Incarnation("")
        self.address: str | None = None
        self.hostname = ""
        self.capacity = 0
        self.is_alive = False
        # Nodes attached by hand: their count by name, and the last request about them.
        self.attached: dict[str, int] = {}
        self.attached_request = 0
        self.joined_ms = 0  # log time
        self.ended_ms: int | None = None
        self.sender = ""  # key of its request record
        # Follows from the tasks assigned to it:
        self.assigned = 0
        self.attached_tasks: dict[str, int] = {}  # of jobs with attached nodes, by name
        self.queued_us = 0  # load of the tasks whose inputs are done
        self.ahead_us = 0  # load of the tasks placed ahead of need
        self.heavy = 0  # tasks whose inputs are done, as long as a slot's whole queue
        self.extend: list[tuple[int, Task]] = []  # a heap of (placed, task) to follow up
        # Its valid entries in the heaps of placement/capacity.py; None: it has none.
        self.light_entry: tuple[int, int, int] | None = None
        self.heavy_entry: tuple[int, int, int] | None = None
        self.attached_entries: dict[str, tuple[int, int] | None] = {}  # by name
        # Results that it holds, of running jobs and of those kept by ended ones.
        self.holds: dict[JobId, dict[TaskId, Task]] = {}
        self.changes = ViewChanges(Slot(0))

    def __repr__(self) -> str:
        return f"<client {self.cid} {'alive' if self.is_alive else 'dead'}>"


def client_row(client: Client) -> Row:
    """Return the client's row as it is now."""
    body: dict[str, Any] = {
        "identity": client.identity,
        "incarnation": client.incarnation,
        "hostname": client.hostname,
        "slots": client.capacity,
        "joined_ms": client.joined_ms,
        "ended_ms": client.ended_ms,
    }
    if client.attached_request:
        body["attached"] = [client.attached_request, client.attached]
    state = "alive" if client.is_alive else "dead"
    return Row("clients", (client.cid,), (state, client.address, encode_json(body).decode()))


def client_from_row(
    cid: ClientId, state: str, address: str | None, body: dict[str, Any], applied: Slot
) -> Client:
    """Return a client from its row; counts that follow from tasks are still zero."""
    client = Client(cid, body["identity"])
    client.incarnation = body["incarnation"]
    client.address = address
    client.hostname = body["hostname"]
    client.capacity = body["slots"]
    client.is_alive = state == "alive"
    client.joined_ms = body["joined_ms"]
    client.ended_ms = body["ended_ms"]
    client.attached_request, client.attached = body.get("attached", (0, {}))
    client.sender = f"{cid} {client.incarnation}"
    client.changes = ViewChanges(applied)
    return client
