"""Why a client runs none of its tasks of a job, and which task has been running for long.

The client tells it to the coordinator, for people who look at a job that doesn't move. Nothing
is decided by it. The kinds:

    fetching   values of inputs are on their way
    preparing  the program is being fetched, unpacked or set up
    disk       the disk is nearly full, so no task is started
    crashing   no node got ready so far, and the last one ended; with its end in words
    starting   nodes were started and aren't ready yet
    queued     all nodes run other tasks
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tasksprint.execution.records import ClientTask, Node, NodeState, ProgramState, TaskState
from tasksprint.ids import JobId, TaskId

__all__ = ["find_long_runs", "find_stalls"]

# More than these are of no use to a reader.
_JOBS_MAX = 20
_INPUTS_MAX = 4
_ERRORS_MAX = 3
# A task that has run for a shorter time is mostly done when somebody reads of it.
_LONG_RUN_MS = 2_000


class _Found:
    """The findings about one job."""

    __slots__ = ("error", "inputs", "kinds", "runs", "tasks")

    def __init__(self) -> None:
        self.tasks = 0
        self.runs = False
        self.kinds: dict[str, None] = {}
        self.inputs: dict[TaskId, None] = {}
        self.error = ""


def find_stalls(tasks: Iterable[ClientTask], *, is_disk_low: bool) -> list[list[Any]]:
    """Return `[job, kind, tasks, [tid, …]]` of each job without a running task, at most 20.

    Behind the kind "crashing" the list has one member more: how the node ended.
    """
    jobs: dict[JobId, _Found] = {}
    for task in tasks:
        job = task.assignment.job
        found = jobs.get(job)
        if found is None:
            found = jobs[job] = _Found()
        found.tasks += 1
        if found.runs:
            continue
        match task.state:
            case TaskState.RUNNING:
                found.runs = True
            case TaskState.WAITING:
                found.kinds["fetching"] = None
                if len(found.inputs) < _INPUTS_MAX:
                    for tid in task.pending:
                        found.inputs[tid] = None
            case _:
                kind = _why_ready(task, is_disk_low)
                found.kinds[kind] = None
                if kind == "crashing":
                    found.error = task.program.start_error
    stalls: list[list[Any]] = []
    errors = 0
    for job, found in jobs.items():
        if found.runs or len(stalls) == _JOBS_MAX:
            continue
        kind = next(kind for kind in _ORDER if kind in found.kinds)
        stall = [job, kind, found.tasks, list(found.inputs)[:_INPUTS_MAX]]
        if kind == "crashing":
            errors += 1
            if errors <= _ERRORS_MAX:  # Errors stand in the query of a poll.
                stall.append(found.error)
        stalls.append(stall)
    return stalls


def find_long_runs(nodes: Iterable[Node], now_ms: int) -> list[list[int]]:
    """Return `[job, tid, attempt, ms]` of each job's longest running task, at most 20."""
    jobs: dict[JobId, tuple[int, list[int]]] = {}
    for node in nodes:
        run_ms = now_ms - node.head_since_us // 1_000
        if run_ms < _LONG_RUN_MS or (head := node.head) is None or head.task.entry is not head:
            continue
        one = head.task.assignment
        if one.job not in jobs or run_ms > jobs[one.job][0]:
            jobs[one.job] = (run_ms, [one.job, one.tid, one.attempt, run_ms])
    longest = sorted(jobs.values(), reverse=True)[:_JOBS_MAX]
    return [run for _, run in longest]


_ORDER = ("fetching", "preparing", "disk", "crashing", "starting", "queued")


def _why_ready(task: ClientTask, is_disk_low: bool) -> str:
    """Return why a task whose inputs are here doesn't run."""
    program = task.program
    if program.state is not ProgramState.PREPARED:
        return "preparing"
    if is_disk_low:
        return "disk"
    if program.start_failures and not any(
        node.state is NodeState.SERVING for node in program.nodes.values()
    ):
        return "crashing"
    if any(node.state is NodeState.STARTING for node in program.nodes.values()):
        return "starting"
    return "queued"
