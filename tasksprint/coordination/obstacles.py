"""The obstacle of a job: a sentence that says why the job doesn't move.

Computed when somebody asks, from two sources. One is the state. The other (`Told`) is known to
this replica's process alone: how long the job's scheduler has been silent, and the tasks that
clients couldn't run yet at their last polls. Nothing of it is replicated.

A job that moves has no obstacle: a task of it runs, or an event is being answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tasksprint.bounded_text import on_one_line
from tasksprint.coordination.jobs import Job
from tasksprint.coordination.long_runs import LongRun, longest
from tasksprint.coordination.quoting import quote
from tasksprint.coordination.state import State
from tasksprint.coordination.task_states import ASSIGNED, DONE, FAILED, KILLED, READY, WAITING
from tasksprint.ids import ClientId, JobId, TaskId

__all__ = [
    "NOTHING_TOLD",
    "Obstacle",
    "Obstacles",
    "Stall",
    "Told",
    "decode_stalls",
    "nothing_left",
]

# So many tasks are looked at, to name a failed task that others wait for.
_LOOKED_AT_MAX = 10_000
# So many of the inputs that are being fetched are named.
_NAMED_MAX = 3
# Characters of a client's error about a node that doesn't start.
_ERROR_MAX = 300


@dataclass(frozen=True, slots=True)
class Obstacle:
    """The reason why a job waits."""

    kind: str  # one word, for programs: see docs/protocol.md
    text: str  # for people
    hint: str = ""  # a remedy for people, if there is one

    def summary(self) -> dict[str, str]:
        """Return it as JSON."""
        return {"kind": self.kind, "text": self.text, "hint": self.hint}


@dataclass(frozen=True, slots=True)
class Stall:
    """A client's word on a job: it has tasks of the job, and runs none of them."""

    cid: ClientId
    job: JobId
    kind: str  # one of `_STALLS`
    tasks: int  # the number of tasks that it has
    inputs: tuple[TaskId, ...] = ()  # some of the results that it fetches
    error: str = ""  # how the job's node ended, if it doesn't start


@dataclass(frozen=True, slots=True)
class Told:
    """The knowledge of this process beyond the state, at this moment."""

    # For each scheduler that has been silent for long: its overdue duty, in words.
    silences: Mapping[JobId, str] = field(default_factory=dict)
    stalls: tuple[Stall, ...] = ()
    runs: tuple[LongRun, ...] = ()


NOTHING_TOLD = Told()

_START_CLIENT = "start one with: tasksprint client"

# The reasons for which a client may wait, the most telling first.
_STALLS = ("fetching", "preparing", "disk", "crashing", "starting", "queued")


class Obstacles:
    """The obstacles of jobs, at one moment; made for each question."""

    def __init__(self, state: State, told: Told) -> None:
        self._state = state
        self._told = told
        self._alive = 0
        self._attached: set[str] = set()
        for client in state.clients.values():
            if client.is_alive:
                self._alive += 1
                self._attached.update(client.attached)
        self._stalls: dict[JobId, list[Stall]] = {}
        for stall in told.stalls:
            self._stalls.setdefault(stall.job, []).append(stall)
        self._runs: dict[JobId, list[LongRun]] = {}
        for run in told.runs:
            self._runs.setdefault(run.job, []).append(run)

    def of(self, job: Job) -> Obstacle | None:
        """Return the obstacle of a job; None: it moves, or has ended."""
        if not job.is_running:
            return None
        is_asked = job.next_event < job.event_count and job.finishing is None
        silence = self._told.silences.get(job.job)
        if is_asked and silence is not None:
            return Obstacle("scheduler", silence)
        counts = job.counts
        if counts[READY] and (found := self._without_nodes(job)) is not None:
            return found
        if counts[ASSIGNED]:
            return self._stalled(job)
        if counts[READY]:
            tasks = _counted(counts[READY])
            return Obstacle("busy", f"{tasks} for a free node: other jobs use them all")
        if is_asked or job.finishing is not None:
            return None
        return self._timer_left(job) if job.timers else self._nothing_left(job)

    def long_run(self, job: Job) -> dict[str, object] | None:
        """Return the task of a job that runs longest, if one has been running for long."""
        return longest(self._state, job, self._runs.get(job.job, ()))

    def _without_nodes(self, job: Job) -> Obstacle | None:
        """Say so if nobody could run the job's ready tasks."""
        name = job.attached
        if not self._alive:
            also = "" if name is None else f", and no node is attached as {name!r}"
            return Obstacle("no_client", f"{self._nobody()}{also}", _START_CLIENT)
        if name is not None and name not in self._attached:
            return Obstacle(
                "no_attached_node",
                f"no node is attached as {name!r}",
                f"start one with: tasksprint node --exec PROGRAM --name {name}",
            )
        return None

    def _nobody(self) -> str:
        known = len(self._state.clients)
        if not known:
            return "no client is alive"
        dead = "the only one" if known == 1 else f"all {known}"
        return f"no client is alive ({dead} left or fell silent)"

    def _stalled(self, job: Job) -> Obstacle | None:
        """Say why none of the job's tasks runs, if all clients that have some say so."""
        stalls = sorted(self._stalls.get(job.job, []), key=lambda stall: stall.cid)
        if sum([stall.tasks for stall in stalls]) < job.counts[ASSIGNED]:
            return None
        kind = min([stall.kind for stall in stalls], key=_STALLS.index)
        of_kind = [stall for stall in stalls if stall.kind == kind]
        if kind == "fetching":
            return Obstacle(kind, self._fetching(job, of_kind))
        who = _clients([stall.cid for stall in of_kind])
        if kind == "crashing":
            errors = [stall.error for stall in of_kind if stall.error]
            why = f"its node doesn't start: {errors[0]}" if errors else "its node doesn't start"
            return Obstacle(kind, f"{why} (on {who})", f"see: tasksprint logs {job.job}")
        s = "s" if len(of_kind) == 1 else ""
        its_tasks = "its task waits" if job.counts[ASSIGNED] == 1 else "its tasks wait"
        text = {
            "preparing": f"{who} prepare{s} its program: unpack{s} it, and run{s} its setup",
            "disk": f"{who} start{s} no task: too little disk space",
            "starting": f"{who} start{s} nodes",
            "queued": f"{its_tasks} at {who} for nodes that run other tasks",
        }[kind]
        return Obstacle(kind, text)

    def _fetching(self, job: Job, stalls: list[Stall]) -> str:
        """Say which inputs are on their way, and how many bytes."""
        size_bytes = 0
        ways: list[str] = []
        for stall in stalls:
            for tid in stall.inputs:
                task = job.tasks.get(tid)
                if task is None:
                    continue
                size_bytes += task.size_bytes
                holders = [cid for cid in task.holders if cid != stall.cid]
                source = f" from client {holders[0]}" if holders else ""
                ways.append(f"of task {tid}{source} to client {stall.cid}")
        named = ", ".join(ways[:_NAMED_MAX]) + (", …" if len(ways) > _NAMED_MAX else "")
        return f"inputs are fetched, {_in_bytes(size_bytes)}: values {named or 'of tasks'}"

    def _timer_left(self, job: Job) -> Obstacle:
        """Say that nothing will happen before a timer has run out."""
        due_ms, _, timer = job.timers[0]
        waiting = job.counts[WAITING]
        what = "no task is left"
        if waiting:
            needs = _find_lost_cause(job) or "tasks that failed or were killed"
            what = f"{_counted(waiting)} for {needs}"
        elif not job.next_tid:
            what = "it has no task so far"
        left_s = max(due_ms - self._state.log_ms, 0) // 1_000
        more = len(job.timers) - 1
        others = "" if not more else f" (and {more} {'other' if more == 1 else 'others'} later)"
        return Obstacle(
            "timer",
            f"{what}; its scheduler waits for its timer {timer}, in {left_s} s{others}",
        )

    def _nothing_left(self, job: Job) -> Obstacle:
        """Say that nothing will happen by itself any more."""
        if job.idle_end_ms is not None:
            left_s = max(job.idle_end_ms - self._state.log_ms, 0) // 1_000
            return Obstacle("nothing_left", f"{nothing_left(job)}: it fails in {left_s} s")
        if not job.next_tid and not self._alive:
            return Obstacle(
                "no_client",
                f"{self._nobody()}, and its scheduler started no task so far",
                _START_CLIENT,
            )
        return Obstacle(
            "nothing_left",
            f"{nothing_left(job)}: the job can't end unless a client comes or goes",
            f"end it with: tasksprint cancel {job.job}",
        )


def nothing_left(job: Job) -> str:
    """Return why a job can't go on; it has no timer, and no task left that could run."""
    waiting = job.counts[WAITING]
    if waiting:
        needs = _find_lost_cause(job) or "tasks that failed or were killed"
        return f"{_counted(waiting)} for {needs}, and its scheduler never called finish"
    what = "started nothing more" if job.next_tid else "started no task"
    return f"its scheduler {what} and never called finish"


def _find_lost_cause(job: Job) -> str | None:
    """Return, in words, a task for which others wait in vain."""
    for _, task in zip(range(_LOOKED_AT_MAX), job.tasks.values(), strict=False):
        if task.state != WAITING:
            continue
        for tid in task.spec.pretasks:
            pretask = job.tasks.get(tid)
            if pretask is not None and pretask.state in (FAILED, KILLED):
                state = "failed" if pretask.state == FAILED else "was killed"
                return f"task {tid} {quote(pretask.spec.name)}, which {state}"
            assert pretask is None or pretask.state <= DONE
    return None


def _clients(cids: list[ClientId]) -> str:
    """Return e.g. "client 3", "clients 1 and 2" or "clients 1, 2, 3 and 5 others"."""
    if len(cids) == 1:
        return f"client {cids[0]}"
    more = len(cids) - _NAMED_MAX
    names = [str(cid) for cid in cids[:_NAMED_MAX]]
    if more > 0:
        names.append("1 other" if more == 1 else f"{more} others")
    return f"clients {', '.join(names[:-1])} and {names[-1]}"


def _counted(tasks: int) -> str:
    return "1 task waits" if tasks == 1 else f"{tasks} tasks wait"


def _in_bytes(size: int) -> str:
    """Return e.g. "629.1 MB"."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            tenths = 10 * size // factor
            return f"{tenths // 10}.{tenths % 10} {unit}"
    return f"{size} bytes"


def decode_stalls(cid: ClientId, listed: Any) -> tuple[Stall, ...]:
    """Return a client's list of jobs that it can't go on with.

    Args:
        listed: `[[job, kind, tasks, [tid, …]], …]`, perhaps with an error behind the tids.
            Members of another form are left out: the list is for people, and a newer client
            may know more kinds.
    """
    stalls: list[Stall] = []
    if not isinstance(listed, list):
        return ()
    for one in listed:
        match one:
            case [int(job), str(kind), int(tasks), [*inputs], *more] if kind in _STALLS:
                tids = tuple([TaskId(tid) for tid in inputs if type(tid) is int])
                error = on_one_line(more[0], _ERROR_MAX) if _is_text(more) else ""
                stalls.append(Stall(cid, JobId(job), kind, tasks, tids, error))
    return tuple(stalls)


def _is_text(more: list[Any]) -> bool:
    return bool(more) and isinstance(more[0], str)
