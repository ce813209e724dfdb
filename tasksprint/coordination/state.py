"""The replicated state in memory, and the changes of the entry that is being applied.

The deciding modules share one `State`. It holds jobs, clients and facts, and notes those that
an entry touches: each of them becomes one row at the end of the entry. It decides nothing itself.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

from tasksprint.coordination.applied import ChosenAnswer, EmptyAnswers, Event
from tasksprint.coordination.clients import Client
from tasksprint.coordination.commands import Tick
from tasksprint.coordination.jobs import Job, Task
from tasksprint.coordination.requests import Sender, Senders
from tasksprint.coordination.rows import Row
from tasksprint.coordination.view import Drop, DropJob
from tasksprint.ids import ClientId, JobId, ReplicaId, Slot, TaskId
from tasksprint.settings import Rules

__all__ = ["Changes", "State"]

# Heaps are cleaned when there are so many more stale entries than others.
STALE_ENTRIES_MAX = 64
ERROR_BYTES_MAX = 16 * 1024  # of an error text that is kept in the state
# Ends of jobs are kept for clients that may not have heard of them: so many, for so much log
# time. A client that missed older ones gets a whole view. Clients ask every other second.
ENDS_TOLD_MAX = 10_000
ENDS_TOLD_MS = 60_000


class Changes:
    """The changes of the entry being applied; dictionaries are used as ordered sets."""

    __slots__ = (
        "again",
        "answers",
        "clients",
        "estimates",
        "events",
        "extendable",
        "facts",
        "forgotten",
        "jobs",
        "loosened",
        "notes",
        "restored",
        "rows",
        "senders",
        "tasks",
        "tick",
        "views",
    )

    def __init__(self) -> None:
        self.tasks: dict[Task, None] = {}
        self.jobs: dict[Job, None] = {}
        self.forgotten: dict[Job, None] = {}
        self.clients: dict[Client, None] = {}
        self.senders: dict[str, Sender | None] = {}  # None: expired
        self.estimates: dict[tuple[Job, str], None] = {}
        self.facts: dict[tuple[str, tuple[int | str, ...]], Row] = {}  # and deletions
        self.rows: list[Row] = []  # they never change again: events, answers, log lines
        self.views: dict[ClientId, None] = {}  # clients whose view changed
        self.events: list[tuple[JobId, Event]] = []
        self.answers: list[tuple[JobId, ChosenAnswer | EmptyAnswers]] = []
        self.notes: list[str] = []
        self.tick: Tick | None = None
        # For placement: clients that came or went, or have a shorter queue or other nodes.
        self.loosened: dict[Client, None] = {}
        # For placement, too: clients on which a follower may be placed.
        self.extendable: dict[Client, None] = {}
        # Only counted: one client can lose or bring back any number of results.
        self.again: dict[JobId, int] = {}  # tasks to be computed again
        self.restored: dict[JobId, int] = {}  # tasks that needn't be computed again any more

    def all_notes(self) -> tuple[str, ...]:
        """Return the notes, and one for each count."""
        notes = self.notes
        for job, count in self.restored.items():
            notes.append(f"job={job} {count} results that were lost came back")
        for job, count in self.again.items():
            notes.append(f"job={job} {count} tasks are computed again: results lost or changed")
        return tuple(notes)


class State:
    """All replicated state, and the changes of the entry being applied."""

    __slots__ = (
        "applied",
        "changes",
        "cid_of_identity",
        "clients",
        "cluster",
        "dead",
        "due",
        "ended",
        "ends",
        "ends_from",
        "followed",
        "jobs",
        "last_job",
        "log_ms",
        "members",
        "next_cid",
        "next_job",
        "placements",
        "rules",
        "running",
        "senders",
        "slot",
        "wall_ms",
    )

    def __init__(self, cluster: str, members: tuple[ReplicaId, ...], rules: Rules) -> None:
        self.cluster = cluster
        self.members = members
        self.rules = rules
        self.log_ms = 0  # the sum of all ticks
        self.wall_ms = 0  # of the last tick; for display
        self.next_job = JobId(1)
        self.next_cid = ClientId(1)
        self.placements = 0  # their number so far, over all tasks
        self.last_job = JobId(0)  # the job that placed a task last; the next one has its turn
        self.jobs: dict[JobId, Job] = {}  # all, in order
        self.running: dict[JobId, Job] = {}  # those that haven't ended, in order
        self.ended: list[tuple[int, JobId]] = []  # the others: (log time of the end, job), sorted
        self.clients: dict[ClientId, Client] = {}  # all, in order
        self.dead: list[tuple[int, ClientId]] = []  # (log time of the death, cid), sorted
        # `Job.due_ms` of the running jobs that have one: (log time, job), sorted.
        self.due: list[tuple[int, JobId]] = []
        self.cid_of_identity: dict[str, ClientId] = {}
        self.senders = Senders(rules.replies_per_sender_max)
        self.applied = Slot(0)
        self.slot = Slot(0)  # the entry being applied
        self.changes = Changes()
        # The rest isn't replicated. The ends of jobs for the views of clients, since `ends_from`
        # (exclusive): the slot, its log time, and the words to the clients.
        self.ends: deque[tuple[Slot, int, DropJob]] = deque()
        self.ends_from = Slot(0)
        # Versions that clients told this replica, and by which it forgot something.
        self.followed: dict[ClientId, Slot] = {}

    def take_rules(self, rules: Rules) -> None:
        """Go on by other rules."""
        self.rules = rules
        self.senders.replies_max = rules.replies_per_sender_max

    def note(self, text: str) -> None:
        """Leave a line for the log of the process."""
        self.changes.notes.append(text)

    def put_row(self, row: Row) -> None:
        """Add a row that stands for itself; a later one of the same key replaces it."""
        self.changes.facts[row.table, row.key] = row

    def raise_event(self, job: Job, line: bytes) -> None:
        """Number the next event of a running job; the line must carry `job.event_count`."""
        number = job.event_count
        job.event_count = number + 1
        changes = self.changes
        changes.events.append((job.job, Event(number, line)))
        changes.rows.append(Row("events", (job.job, number), (line.decode(),)))
        changes.jobs[job] = None

    def write_log(self, job: Job, text: str) -> None:
        """Add a line to the log of a running job, if it may have more."""
        if job.log_lines - job.loss_lines >= self.rules.job_log_lines_max:
            return  # The limit is documented; a job needn't fail for its log.
        self._write_line(job, text)

    def write_loss(self, job: Job, text: str) -> None:
        """Add a line about the death of a client; it takes no place of the scheduler's lines."""
        lines_max = self.rules.job_loss_lines_max
        if job.loss_lines >= lines_max:
            return
        job.loss_lines += 1
        if job.loss_lines == lines_max:
            text += "; nothing more is told here of clients that die"
        self._write_line(job, text)

    def _write_line(self, job: Job, text: str) -> None:
        bytes_max = self.rules.job_log_line_bytes_max
        data = text.encode()
        if len(data) > bytes_max:
            text = data[:bytes_max].decode(errors="ignore") + "…"
        self.changes.rows.append(Row("job_log", (job.job, job.log_lines), (text,)))
        job.log_lines += 1
        self.changes.jobs[job] = None

    def time_ms(self, job: Job) -> int:
        """Return the time in a job's events: log time since it was submitted."""
        return self.log_ms - job.submitted_ms

    def tell_end(self, told: DropJob) -> None:
        """Tell all clients, with their next view, to delete values of a job."""
        self.ends.append((self.slot, self.log_ms, told))
        if len(self.ends) > ENDS_TOLD_MAX:
            self.ends_from, _, _ = self.ends.popleft()

    def forget_ends(self) -> None:
        """Forget old ends of jobs: living clients have heard of them, but for stragglers."""
        ends = self.ends
        while ends and ends[0][1] < self.log_ms - ENDS_TOLD_MS:
            self.ends_from, _, _ = ends.popleft()

    def forget_followed(self, cid: ClientId, since: Slot) -> None:
        """Forget the stops and drops of a client up to a version that it has followed."""
        client = self.clients.get(cid)
        # If the client died meanwhile, it has nothing here from before: its slots are later.
        if client is not None:
            client.changes.forget_until(since)

    def timers_changed(self, job: Job) -> None:
        """Put a running job where its `due_ms` belongs now, or nowhere."""
        due = self.due
        if job.due is not None:
            del due[bisect_left(due, job.due)]
            job.due = None
        due_ms = job.due_ms
        if due_ms is not None and job.is_running:
            job.due = (due_ms, job.job)
            insort(due, job.due)

    def add_holder(self, task: Task, client: Client) -> None:
        """Note that the client has the task's canonical bytes."""
        if client.cid in task.holders:
            return
        task.holders = (*task.holders, client.cid) if task.holders else client.own
        held = client.holds.get(task.job.job)
        if held is None:
            held = client.holds[task.job.job] = {}
        held[task.tid] = task
        self.changes.tasks[task] = None

    def remove_holder(self, task: Task, cid: ClientId) -> None:
        """Note that the client doesn't have the task's canonical bytes any more."""
        if cid not in task.holders:
            return
        task.holders = tuple([holder for holder in task.holders if holder != cid])
        self._forget_held(task, self.clients[cid])
        self.changes.tasks[task] = None

    def drop_everywhere(self, task: Task) -> None:
        """Tell all holders of a result to drop it."""
        for cid in task.holders:
            client = self.clients[cid]
            self._forget_held(task, client)
            self.tell_drop(client, task.job.job, task.tid, task.digest)
        if task.holders:
            task.holders = ()
            self.changes.tasks[task] = None

    @staticmethod
    def _forget_held(task: Task, client: Client) -> None:
        held = client.holds[task.job.job]
        del held[task.tid]
        if not held:
            del client.holds[task.job.job]

    def tell_drop(self, client: Client, job: JobId, tid: TaskId, digest: str | None) -> None:
        """Tell a client to delete a task's values: that copy, or (None) any."""
        if client.is_alive:
            client.changes.drops.append((self.slot, Drop(job, tid, digest)))
            self.changes.views[client.cid] = None

    def renew_inputs(self, task: Task) -> None:
        """Send the holders of a result anew to the clients that are to fetch it."""
        tasks = task.job.tasks
        for tid in task.dependents or ():
            dependent = tasks.get(tid)
            if dependent is not None and dependent.cid is not None:
                client = self.clients[dependent.cid]
                del client.changes.run[dependent]
                client.changes.run[dependent] = self.slot
                self.changes.views[client.cid] = None
