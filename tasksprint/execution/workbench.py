"""The client's state machine: from a view to results that are stored and reported.

Knows the assignments of this client. It joins three parts that don't know each other:

- inputs know where the bytes are;
- nodes know which node runs which task;
- reports know the news for the coordinator.

It holds no data, reads no clock and waits for nothing. Events are methods; each says what
happened. `effects` returns the orders that follow.

The life of an assignment is a table, TASK_TRANSITIONS of `records`. Its outcome goes on from
there: values are stored, then reported; a failure is reported at once.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tasksprint.bounded_text import cut_middle, keep_end
from tasksprint.coordination.view import Assignment, View
from tasksprint.encoding import result_digest
from tasksprint.errors import LocalProtocolError, RemoteProtocolError
from tasksprint.execution.effects import (
    AttemptDone,
    AttemptFailed,
    DropJobResults,
    DropResults,
    Effect,
    HeldResult,
    Manifest,
    NodeId,
    Note,
    Reply,
    StoreResult,
    TaskError,
)
from tasksprint.execution.inputs import Inputs
from tasksprint.execution.nodes import Nodes
from tasksprint.execution.programs import Programs
from tasksprint.execution.records import (
    AGAIN,
    OVER,
    ClientTask,
    Entry,
    KeptResult,
    Key,
    Node,
    NodeState,
    Program,
    ProgramState,
    TaskState,
)
from tasksprint.execution.reports import Reports
from tasksprint.execution.stalls import find_long_runs, find_stalls
from tasksprint.execution.timers import Timers
from tasksprint.execution.values import find_too_big, inline_values
from tasksprint.ids import ClientId, Incarnation, JobId, Slot, TaskId
from tasksprint.settings import RULES, Rules, Settings

__all__ = ["LOST_UNREPORTED", "Workbench"]

# The error of an attempt whose values were spoiled before anybody could count on them.
LOST_UNREPORTED = "its result was lost from the client's disk before it was reported"

# The end of a job in words; they go on with "while it ran task 0 'work'".
_ENDED = {"cancelled": "was cancelled", "finished": "has finished"}


class Workbench:
    """The core of a client."""

    def __init__(
        self,
        *,
        cid: ClientId,
        incarnation: Incarnation,
        capacity: int,
        settings: Settings,
        now_ms: int,
        held: Iterable[HeldResult] = (),
        rules: Rules = RULES,
    ) -> None:
        """Begin without assignments.

        Args:
            cid: This client's number, from the reply to its join.
            incarnation: Of this start of the client.
            capacity: Node processes at once.
            held: The results that the store holds.
            rules: They have the limits of a report's values.
        """
        assert capacity > 0
        self.cid = cid
        self.incarnation = incarnation
        self.version = Slot(0)  # of the last view: `since` of the next poll
        self._settings = settings
        self._rules = rules
        self._outbox: list[Effect] = []
        self._timers = Timers()
        self._tasks: dict[Key, ClientTask] = {}
        self._arrivals = 0
        # The last attempt at each task that ended here. A view that was made before its report
        # was applied must not start it again.
        self._ended: dict[JobId, dict[TaskId, int]] = {}
        # Failed attempts among them whose report was applied, in order, each with the number of
        # views by then. (If an attempt succeeded, a drop tells when it may be forgotten.)
        self._told: deque[tuple[int, AttemptFailed]] = deque()
        self._views = 0
        self._programs = Programs(settings, self._timers, self._outbox)
        self._jobs: dict[JobId, Program] = {}
        self._reports = Reports(settings, self._outbox, incarnation)
        self._inputs = Inputs(
            cid=cid,
            settings=settings,
            timers=self._timers,
            outbox=self._outbox,
            tasks=self._tasks,
            held=held,
            lost=self._reports.add_lost,
        )
        self._nodes = Nodes(
            capacity=capacity,
            settings=settings,
            timers=self._timers,
            outbox=self._outbox,
            arguments=self._inputs.arguments,
            again=self._again,
            fail=self._fail_attempt,
        )
        self._now(now_ms)

    # --- what the shell asks ---------------------------------------------------------

    def effects(self, now_us: int) -> list[Effect]:
        """Return the orders to carry out, in this order; call it after each batch of events.

        Args:
            now_us: The time of `now_ms`, in microseconds: run times are measured by it.
        """
        self._now(now_us // 1_000)
        self._nodes.feed(now_us)
        self._inputs.plan()
        self._reports.flush()
        effects = self._outbox[:]
        self._outbox.clear()
        return effects

    @property
    def deadline_ms(self) -> int | None:
        """When `tick` must be called next; None: not before something else happens."""
        return self._timers.deadline_ms

    def next_node(self) -> NodeId:
        """Return a number for a node that is about to attach."""
        return self._nodes.next_node()

    def held_results(self) -> list[tuple[JobId, TaskId, str]]:
        """Return (job, tid, result digest) of the stored results, for `JoinClient`."""
        return self._inputs.held_results()

    # --- events: the coordinator -----------------------------------------------------

    def view_changed(self, view: View, now_ms: int) -> None:
        """Follow a view.

        Raises:
            RemoteProtocolError: It names a job without saying what runs it.
        """
        self._now(now_ms)
        self._forget_told()
        if view.version < self.version and not view.whole:
            return  # It was overtaken: all in it is known already, or no longer true.
        self.version = view.version
        for entry in view.jobs:
            self._jobs[entry.job] = self._programs.get(
                entry.program, entry.node, self._jobs.values()
            )
        ended = {drop_job.job: drop_job.ended for drop_job in view.drop_jobs}
        if view.whole:
            named = {(one.job, one.tid) for one in view.run}
            for task in [task for key, task in self._tasks.items() if key not in named]:
                self._stop(task, ended.get(task.assignment.job, ""))
            described = {entry.job for entry in view.jobs}
            for job in [job for job in self._jobs if job not in described]:
                del self._jobs[job]
                self._ended.pop(job, None)
        for stop in view.stop:
            stopped = self._tasks.get((stop.job, stop.tid))
            if stopped is not None and stopped.assignment.attempt <= stop.attempt:
                self._stop(stopped, ended.get(stop.job, ""))
        for drop in view.drop:
            self._drop(drop.job, drop.tid, drop.digest)
        for drop_job in view.drop_jobs:
            self._drop_job(drop_job.job, drop_job.keep, drop_job.ended)
        for assignment in view.run:
            self._assign(assignment)

    def report_acknowledged(self, incarnation: Incarnation, request: int) -> None:
        """Note that a report was applied; a report that isn't under way is ignored."""
        if incarnation == self.incarnation:
            self._told += [(self._views, one) for one in self._reports.acknowledged(request)]

    def reset(self, cid: ClientId, incarnation: Incarnation, now_ms: int) -> None:
        """Begin anew after the coordinator refused the incarnation.

        All assignments are forgotten, and nodes that run something are killed. Results are kept.
        """
        self._now(now_ms)
        for node in list(self._nodes.nodes.values()):
            if node.pipe:
                self._nodes.kill(node, "the client joined anew")
        for task in list(self._tasks.values()):
            self._stop(task)
        self.cid = self._inputs.cid = cid
        self.incarnation = incarnation
        self.version = Slot(0)
        self._jobs.clear()
        self._ended.clear()
        self._told.clear()
        self._reports.reset(incarnation)
        self._outbox.append(Note(f"cid={cid} incarnation={incarnation} began anew"))

    def forget_program(self, digest: str) -> bool:
        """Forget an archive that nothing here uses; False: something does, keep it."""
        return self._programs.forget(digest, self._jobs.values())

    # --- events: programs and nodes --------------------------------------------------

    def program_ready(self, digest: str) -> None:
        """Note that nodes of this archive can be started."""
        self._programs.prepared(digest)

    def program_failed(self, digest: str, error: str, now_ms: int) -> None:
        """Fail the tasks that wait for this archive; the next one tries again."""
        self._now(now_ms)
        for program in self._programs.not_prepared(digest, now_ms):
            self._nodes.fail_ready(program, f"cannot prepare {program}: {error}", {})

    def node_ready(self, node: NodeId, frames: bool, window: int, now_ms: int) -> None:
        """Note that a started node takes tasks from now on."""
        self._now(now_ms)
        found = self._node(node)
        if found is not None:
            found.frames = frames
            self._nodes.ready(found, window, now_ms)

    def node_attached(
        self, node: NodeId, name: str, frames: bool, window: int, now_ms: int
    ) -> None:
        """Add a node that somebody else started; it has said that it is ready.

        Args:
            node: From `next_node`.
            name: Its name for jobs, without "attached:".
        """
        self._now(now_ms)
        if node in self._nodes.nodes or not self._nodes.is_past(node):
            raise LocalProtocolError(f"node {node} attached with a number not from next_node")
        program = self._programs.get("", f"attached:{name}", self._jobs.values())
        added = self._nodes.attached(node, program, now_ms)
        added.frames = frames
        self._nodes.ready(added, window, now_ms)

    def node_detached(self, node: NodeId, reason: str, now_ms: int) -> None:
        """Note that an attached node is gone."""
        self.node_exited(node, reason, {}, now_ms)

    def node_exited(
        self, node: NodeId, reason: str, detail: Mapping[str, Any], now_ms: int
    ) -> None:
        """Note that a node's process has ended, asked for or not, or answered garbage.

        The running task fails; the tasks behind it run again elsewhere.

        Args:
            reason: For people: "exit code 1", "killed by SIGSEGV", "line 7 is not JSON".
            detail: JSON for the failure: exit code, signal, whether memory ran out, the
                tail of stderr.
        """
        self._now(now_ms)
        found = self._node(node)
        if found is not None:
            self._nodes.exited(found, reason, detail, now_ms)

    def node_replied(self, node: NodeId, replies: Sequence[Reply], now_us: int) -> None:
        """Take answers of a node, all that were read at once.

        The shell must keep their values until it has carried out the next `effects`: a
        `StoreResult` there names each answer that counts.
        """
        self._now(now_us // 1_000)
        found = self._node(node)
        if found is None or found.state is not NodeState.SERVING or not replies:
            return
        nodes = self._nodes
        # The node ran them one after the other. Nobody knows when each of them began.
        run_us = max(1, (now_us - found.head_since_us) // len(replies))
        for reply in replies:
            entry = nodes.take(found, reply.id)
            if entry is None:
                return
            task = entry.task
            # A moved task may still be in the queue: then the first answer counts.
            if task.entry is not entry and task.state is not TaskState.READY:
                continue  # It was stopped, or runs elsewhere.
            outcome = reply.outcome
            nodes.measured(task, run_us)
            if isinstance(outcome, TaskError):
                self._take_error(task, outcome, found, run_us)
            else:
                self._take_values(task, entry, outcome, run_us)
        nodes.answered(found, now_us)

    def run_refused(
        self, node: NodeId, id: int, missing: Mapping[TaskId, Manifest | None], now_ms: int
    ) -> None:
        """Take back a `RunTask` that wasn't written, since values of inputs weren't found.

        Args:
            missing: The pretasks. With None, nothing of the result can be read: a result of
                this client is reported as lost, a copy is fetched again. With a manifest, the
                result is there, and has these values only.
        """
        self._now(now_ms)
        found = self._node(node)
        if found is None or id not in found.pipe:
            return
        entry = self._nodes.take(found, id)
        assert entry is not None
        task = entry.task
        if task.entry is not entry:
            return
        task.entry = None
        affected = {task.key: task}
        for tid, manifest in missing.items():
            held = self._inputs.held(task.assignment.job, tid)
            if manifest is not None and held is not None:
                held.manifest = manifest
                continue
            for other in self._inputs.discredit(task, tid):
                if other.state is not TaskState.RUNNING:
                    affected[other.key] = other
        for other in affected.values():
            self._again(other)

    def run_broken_off(
        self, node: NodeId, id: int, spoiled: Mapping[TaskId, Manifest | None], now_ms: int
    ) -> None:
        """Take back a `RunTask` that was written in part, since an input is spoiled.

        The node would wait for the rest for ever, so it is killed; that fails nothing.

        Args:
            spoiled: As for `run_refused`; with a manifest, the result was made anew meanwhile.
        """
        self.run_refused(node, id, spoiled, now_ms)
        found = self._node(node)
        if found is not None:
            tids = ", ".join(map(str, spoiled))
            self._nodes.kill(found, f"the value of task {tids} for it is spoiled on the disk")

    # --- events: values --------------------------------------------------------------

    def results_stored(self, stored: Iterable[tuple[JobId, TaskId, int]]) -> None:
        """Note that the values of these (job, tid, attempt) survive a crash."""
        for job, tid, attempt in stored:
            held = self._inputs.held(job, tid)
            if held is not None and held.attempt == attempt:
                held.is_stored = True
            self._reports.stored((job, tid), attempt)

    def result_missing(self, job: JobId, tid: TaskId) -> None:
        """Tell the coordinator that this client lacks a result that a peer asked for."""
        if self._inputs.held(job, tid) is None and (job, tid) not in self._tasks:
            self._reports.add_lost((job, tid))

    def stored_result(self, job: JobId, tid: TaskId) -> KeptResult | None:
        """Return the stored result of a task, or None; a later result is another object."""
        held = self._inputs.held(job, tid)
        return held if held is not None and held.is_stored else None

    def result_lost(self, job: JobId, tid: TaskId, digest: str) -> bool:
        """Forget a stored result that can't be read any more, and tell the coordinator.

        Returns:
            False: this client didn't hold it; there is nothing to tell.
        """
        held = self._inputs.held(job, tid)
        if held is None or not held.is_stored or not self._inputs.drop_held(job, tid, digest):
            return False
        self._outbox.append(DropResults(job, (tid,)))
        if self._reports.discard((job, tid)):
            # Nobody counts on it yet; but this attempt must end.
            attempt = held.attempt
            self._reports.add_failure(AttemptFailed(job, tid, attempt, LOST_UNREPORTED, False, {}))
        else:
            self._reports.add_lost((job, tid))
        return True

    def inputs_fetched(
        self, job: JobId, tid: TaskId, manifest: Manifest, digest: str, now_ms: int
    ) -> None:
        """Note that the values asked for of this result are in the shell's cache.

        The shell has verified them: the manifest has this digest, and the values have the
        digests in the manifest.
        """
        self._now(now_ms)
        for task in self._inputs.fetched(job, tid, digest, manifest):
            self._arrived(task)

    def fetch_failed(
        self, job: JobId, tid: TaskId, digest: str, cid: ClientId, reason: str, now_ms: int
    ) -> None:
        """Note that a holder couldn't be reached, or doesn't have these bytes."""
        self._now(now_ms)
        self._inputs.fetch_failed(job, tid, digest, cid, reason)

    # --- events: the machine ---------------------------------------------------------

    def tick(self, now_ms: int) -> None:
        """Do what is due; call it at or after `deadline_ms`."""
        self._now(now_ms)
        self._timers.run_due(now_ms)

    def disk_low(self, is_low: bool) -> None:
        """Start no more tasks while the disk is nearly full; running ones may end."""
        if is_low != self._nodes.is_disk_low:
            self._nodes.is_disk_low = is_low
            self._outbox.append(
                Note(
                    "the disk is nearly full (free_refuse_bytes): no task is started"
                    if is_low
                    else "enough disk is free again: tasks are started"
                )
            )

    # --- for people and tests --------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Return the present work of the client, as JSON for people."""
        counts = {state.value: 0 for state in TaskState if state is not TaskState.GONE}
        for task in self._tasks.values():
            counts[task.state.value] += 1
        return {
            "cid": self.cid,
            "incarnation": self.incarnation,
            "version": self.version,
            "slots": self._nodes.capacity,
            "tasks": counts,
            "unreported": self._reports.waiting,
            "report_under_way": self._reports.under_way,
            "disk_low": self._nodes.is_disk_low,
            "nodes": self._nodes.summary(),
            **self._inputs.summary(),
        }

    def stalls(self) -> list[list[Any]]:
        """Return the jobs whose tasks all wait here, each with the reason.

        As `[job, kind, tasks, [tid of a result that is being fetched, …]]`, see stalls.py.
        """
        return find_stalls(self._tasks.values(), is_disk_low=self._nodes.is_disk_low)

    def long_runs(self, now_ms: int) -> list[list[int]]:
        """Return the longest running task of each job, see stalls.py."""
        return find_long_runs(self._nodes.nodes.values(), now_ms)

    def attached_nodes(self) -> dict[str, int]:
        """Return the number of attached nodes that serve, by name, in order of the names."""
        counts: dict[str, int] = {}
        for node in self._nodes.nodes.values():
            if node.attached and node.state is NodeState.SERVING:
                name = node.program.command.partition(":")[2]
                counts[name] = counts.get(name, 0) + 1
        return dict(sorted(counts.items()))

    @property
    def has_unreported(self) -> bool:
        """Whether there is news that the coordinator hasn't acknowledged."""
        return self._reports.waiting > 0 or self._reports.under_way is not None

    def check(self) -> None:
        """Assert the invariants of all parts."""
        self._inputs.check()
        self._nodes.check()
        self._reports.check()
        tasks_of: dict[Program, int] = {}
        for key, task in self._tasks.items():
            assert task.key == key
            assert self._jobs.get(key[0]) is task.program
            tasks_of[task.program] = tasks_of.get(task.program, 0) + 1
            pretasks = {item.tid for item in task.assignment.inputs}
            match task.state:
                case TaskState.WAITING:
                    assert task.pending, f"{key} waits for nothing"
                case TaskState.READY:
                    assert any(item[2] is task for item in task.program.ready)
                case TaskState.RUNNING:
                    assert task.entry is not None
                    assert task.entry.node.pipe[task.entry.id] is task.entry
                case TaskState.GONE:
                    raise AssertionError(f"{key} is gone and in the table")
            assert (task.entry is not None) == (task.state is TaskState.RUNNING)
            assert bool(task.pending) == (task.state is TaskState.WAITING)
            if task.state is not TaskState.RUNNING:
                assert set(task.pending) | set(task.digests) == pretasks
                assert not set(task.pending) & set(task.digests)
            ended = self._ended.get(key[0], {}).get(key[1], 0)
            assert ended < task.assignment.attempt
        for program in self._programs:
            assert program.tasks == tasks_of.get(program, 0)

    def _forget_told(self) -> None:
        """Forget failed attempts that no view names any more.

        The first view after an acknowledgement may have been made before it. The second was
        asked for after it, so this one and all later ones know of the report.
        """
        self._views += 1
        while self._told and self._told[0][0] + 2 <= self._views:
            _, failure = self._told.popleft()
            ended = self._ended.get(failure.job, {})
            if ended.get(failure.tid) == failure.attempt:
                del ended[failure.tid]

    # --- private: assignments --------------------------------------------------------

    def _now(self, now_ms: int) -> None:
        self._inputs.now_ms = now_ms

    def _assign(self, assignment: Assignment) -> None:
        job, tid = key = assignment.job, assignment.tid
        ended = self._ended.get(job)
        if ended is not None and ended.get(tid, 0) >= assignment.attempt:
            return
        task = self._tasks.get(key)
        if task is not None:
            attempt = task.assignment.attempt
            if assignment.attempt < attempt:
                return
            if assignment.attempt == attempt:
                if assignment.inputs != task.assignment.inputs:
                    task.assignment = assignment
                    # A running task has taken its inputs already; its report names them.
                    if task.state is not TaskState.RUNNING:
                        self._again(task)
                return
            self._stop(task)
        program = self._jobs.get(job)
        if program is None:
            raise RemoteProtocolError(f"view has a task of job {job}, which it doesn't describe")
        self._arrivals += 1
        task = self._tasks[key] = ClientTask(assignment, program, self._arrivals)
        program.tasks += 1
        if program.state is ProgramState.UNKNOWN:
            self._programs.prepare(program)
        if assignment.inputs:
            self._inputs.resolve(task)
            if task.pending:
                return
            self._arrived(task)
        else:
            self._nodes.offer(task)

    def _again(self, task: ClientTask) -> None:
        """Find out anew where an assignment's inputs are, and go on from there."""
        task.enter(AGAIN)
        self._inputs.release(task)
        self._inputs.resolve(task)
        if not task.pending:
            self._arrived(task)

    def _arrived(self, task: ClientTask) -> None:
        """All inputs are here."""
        error = self._inputs.find_missing_key(task)
        if error is None:
            self._nodes.offer(task)
        else:
            self._fail(task, error, fatal=True, detail={})

    def _stop(self, task: ClientTask, ended: str = "") -> None:
        """Forget an assignment in any state; `ended`: how its job ended, if that is why."""
        entry = task.entry
        self._remove(task)
        if entry is not None:
            if ended:
                entry.why = f"job {task.assignment.job} {_ENDED.get(ended, ended)} while it ran"
            self._nodes.abandon(entry, self._inputs.now_ms)

    def _remove(self, task: ClientTask) -> None:
        del self._tasks[task.key]
        task.program.tasks -= 1
        task.enter(OVER)
        task.entry = None
        if task.assignment.inputs:
            self._inputs.release(task)

    def _end(self, task: ClientTask) -> None:
        """Remove an assignment; its attempt has come to its end."""
        job, tid = task.key
        ended = self._ended.get(job)
        if ended is None:
            ended = self._ended[job] = {}
        ended[tid] = task.assignment.attempt
        self._remove(task)

    # --- private: nodes --------------------------------------------------------------

    def _node(self, node_id: NodeId) -> Node | None:
        """Return a node, or None if it has ended: the shell may say things late."""
        node = self._nodes.nodes.get(node_id)
        if node is None and not self._nodes.is_past(node_id):
            raise LocalProtocolError(f"node {node_id} was never started")
        return node

    # --- private: outcomes -----------------------------------------------------------

    def _take_values(
        self, task: ClientTask, entry: Entry, manifest: Manifest, run_us: int
    ) -> None:
        assignment = task.assignment
        inline: tuple[tuple[str, str], ...] = ()
        inline_bytes = 0
        error = find_too_big(task, manifest, self._settings.value_bytes_max)
        if error is None and assignment.spec.keys:
            found = inline_values(task, manifest, self._rules)
            if isinstance(found, str):
                error = found
            else:
                inline, inline_bytes = found
        if error is not None:
            self._fail(task, error, fatal=True, detail=_run_detail(entry.node, run_us))
            return
        size_bytes = sum([item[2] for item in manifest])
        job, tid, attempt = assignment.job, assignment.tid, assignment.attempt
        digest = result_digest(manifest)  # type: ignore[arg-type]
        inputs_digest: str | None = None
        made_here: tuple[Key, ...] = ()
        if entry.digests:
            inputs_digest = hashlib.sha256("".join(entry.digests).encode()).hexdigest()
            made_here = self._inputs.made_here(task)
        self._outbox.append(
            StoreResult(entry.node.id, entry.id, job, tid, attempt, digest, manifest)
        )
        self._reports.add_completion(
            AttemptDone(job, tid, attempt, digest, size_bytes, inputs_digest, run_us, inline),
            inline_bytes,
            made_here,
        )
        self._end(task)
        for other in self._inputs.add_held(
            job, tid, KeptResult(attempt, digest, manifest, is_stored=False)
        ):
            self._arrived(other)

    def _take_error(self, task: ClientTask, outcome: TaskError, node: Node, run_us: int) -> None:
        detail = _run_detail(node, run_us)
        settings = self._settings
        if outcome.traceback is not None:
            bytes_max = settings.failure_traceback_bytes_max
            detail["traceback"] = cut_middle(outcome.traceback, bytes_max)
        if outcome.stderr:
            detail["stderr"] = keep_end(outcome.stderr, settings.failure_stderr_bytes_max)
        self._fail(task, outcome.error, fatal=not outcome.retry, detail=detail)

    def _fail_attempt(self, task: ClientTask, error: str, detail: Mapping[str, Any]) -> None:
        self._fail(task, error, fatal=False, detail=detail)

    def _fail(
        self, task: ClientTask, error: str, *, fatal: bool, detail: Mapping[str, Any]
    ) -> None:
        assignment = task.assignment
        self._end(task)
        self._reports.add_failure(
            AttemptFailed(
                assignment.job, assignment.tid, assignment.attempt, error, fatal, dict(detail)
            )
        )

    # --- private: drops --------------------------------------------------------------

    def _drop(self, job: JobId, tid: TaskId, digest: str | None) -> None:
        ended = self._ended.get(job)
        if self._inputs.drop_held(job, tid, digest):
            self._reports.discard((job, tid))
            self._outbox.append(DropResults(job, (tid,)))
            if ended is not None:
                ended.pop(tid, None)

    def _drop_job(self, job: JobId, keep: tuple[TaskId, ...], ended: str) -> None:
        """The job has ended: only the values of the tasks in `keep` are still wanted."""
        for task in [task for key, task in self._tasks.items() if key[0] == job]:
            self._stop(task, ended)
        self._reports.discard_job(job)
        self._inputs.drop_job(job, keep)
        self._ended.pop(job, None)
        self._jobs.pop(job, None)
        self._outbox.append(DropJobResults(job, keep))


def _run_detail(node: Node, run_us: int) -> dict[str, Any]:
    return {"node": node.id, "run_ms": run_us // 1_000}
