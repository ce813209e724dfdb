"""A shell for the workbench that does nothing by itself: it records and compares."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tasksprint.coordination.view import (
    Assignment,
    ClientAddress,
    Drop,
    DropJob,
    Input,
    JobEntry,
    Stop,
    View,
)
from tasksprint.encoding import result_digest
from tasksprint.execution import Workbench
from tasksprint.execution.effects import (
    AttemptDone,
    AttemptFailed,
    Effect,
    FetchInputs,
    FetchRequest,
    HeldResult,
    KillNode,
    Manifest,
    Note,
    PrepareProgram,
    ReleaseCopies,
    Reply,
    RunTask,
    SendReport,
    StartNode,
    StopNode,
    StoreResult,
    TaskError,
)
from tasksprint.settings import RULES, Rules, Settings
from tasksprint.task_spec import TaskSpec

PROGRAM = "p" * 64
COMMAND = "node.py"
JOB = JobEntry(1, PROGRAM, COMMAND)
ME = 1  # the cid of the client under test

# The defaults, with small round times, so that tests can say them.
SETTINGS = replace(
    Settings(),
    node_ready_timeout_ms=1_000,
    node_stall_ms=100,
    node_stop_grace_ms=200,
    node_restart_pause_min_ms=100,
    node_restart_pause_max_ms=400,
    node_switch_wait_ms=500,
    node_idle_max_ms=60_000,
    fetch_pause_min_ms=100,
    fetch_pause_max_ms=400,
)


def manifest(*keys: str, size: int = 4, kind: str = "json", salt: str = "") -> Manifest:
    """A manifest with these keys; `salt` makes other bytes."""
    return tuple(
        (key, kind, size, hashlib.sha256(f"{key}{salt}".encode()).hexdigest())
        for key in sorted(keys)
    )


def digest_of(values: Manifest) -> str:
    return result_digest(list(values))


def inputs_digest(*digests: str) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()


RESULT = manifest("result")
DIGEST = digest_of(RESULT)


def task(
    tid: int,
    *inputs: Input,
    job: int = 1,
    attempt: int = 1,
    name: str = "work",
    keys: tuple[str, ...] = (),
    timeout_ms: int | None = None,
) -> Assignment:
    pretasks, prekeys = tuple(item.tid for item in inputs), tuple(item.key for item in inputs)
    spec = TaskSpec(name, "[]", pretasks, prekeys, keys, None, timeout_ms)
    return Assignment(job, tid, attempt, spec, inputs, 100 + tid)


def made_here(tid: int, key: str = "result") -> Input:
    """An input that another assignment of this client makes, ahead of need."""
    return Input(tid, key, None, (ME,))


def held_by(*cids: int, tid: int, key: str = "result", digest: str = DIGEST) -> Input:
    return Input(tid, key, digest, cids)


def stored(
    tid: int,
    *,
    node: int = 1,
    id: int = 1,
    job: int = 1,
    attempt: int = 1,
    values: Manifest = RESULT,
) -> StoreResult:
    return StoreResult(node, id, job, tid, attempt, digest_of(values), values)


def run(
    assignment: Assignment,
    *,
    node: int = 1,
    id: int = 1,
    digests: tuple[str, ...] = (),
) -> RunTask:
    inputs = tuple(
        (item.tid, item.key, digest)
        for item, digest in zip(assignment.inputs, digests, strict=True)
    )
    return RunTask(node, id, assignment, inputs)


def completion(
    tid: int,
    *,
    run_us: int,
    job: int = 1,
    attempt: int = 1,
    values: Manifest = RESULT,
    inputs: str | None = None,
    inline: tuple[tuple[str, str], ...] = (),
) -> AttemptDone:
    size = sum(item[2] for item in values)
    return AttemptDone(job, tid, attempt, digest_of(values), size, inputs, run_us, inline)


def report(
    request: int,
    *completions: AttemptDone,
    failures: tuple[AttemptFailed, ...] = (),
    lost: tuple[tuple[int, int], ...] = (),
    incarnation: str = "a",
) -> SendReport:
    return SendReport(incarnation, request, completions, failures, lost)


class Bench:
    """Drives a workbench: every event is followed by a check of its invariants.

    `expect` compares all effects since the last time; a test ends with
    `assert_empty`.
    """

    def __init__(
        self,
        *,
        slots: int = 1,
        settings: Settings = SETTINGS,
        held: tuple[HeldResult, ...] = (),
        rules: Rules = RULES,
    ) -> None:
        self.workbench = Workbench(
            cid=ME,
            incarnation="a",
            capacity=slots,
            settings=settings,
            now_ms=0,
            held=held,
            rules=rules,
        )
        self.now_us = 0
        self.version = 0

    @property
    def now_ms(self) -> int:
        return self.now_us // 1_000

    def effects(self) -> list[Effect]:
        effects = self.workbench.effects(self.now_us)
        self.workbench.check()
        return effects

    def expect(self, *effects: Effect) -> None:
        found = self.effects()
        assert found == list(effects)

    def assert_empty(self) -> None:
        self.expect()

    def view(
        self,
        *run: Assignment,
        stop: tuple[Stop, ...] = (),
        drop: tuple[Drop, ...] = (),
        drop_jobs: tuple[DropJob, ...] = (),
        whole: bool = False,
        jobs: tuple[JobEntry, ...] = (JOB,),
        clients: tuple[ClientAddress, ...] = (),
    ) -> None:
        self.version += 1
        self.workbench.view_changed(
            View(self.version, whole, jobs, run, stop, drop, drop_jobs, clients), self.now_ms
        )
        self.workbench.check()

    def ready(self, node: int, window: int = 1) -> None:
        self.workbench.node_ready(node, True, window, self.now_ms)
        self.workbench.check()

    def reply(self, node: int, *replies: Reply, after_us: int = 0) -> None:
        self.now_us += after_us
        self.workbench.node_replied(node, replies, self.now_us)
        self.workbench.check()

    def done(
        self, node: int, *ids: int, values: Manifest = RESULT, after_us: int = 0
    ) -> None:
        self.reply(node, *[Reply(id, values) for id in ids], after_us=after_us)

    def failed(self, node: int, id: int, error: TaskError, after_us: int = 0) -> None:
        self.reply(node, Reply(id, error), after_us=after_us)

    def exited(
        self, node: int, reason: str = "exit code 1", detail: Mapping[str, Any] | None = None
    ) -> None:
        self.workbench.node_exited(node, reason, detail or {}, self.now_ms)
        self.workbench.check()

    def stored(self, *tids: int, job: int = 1, attempt: int = 1) -> None:
        self.workbench.results_stored([(job, tid, attempt) for tid in tids])
        self.workbench.check()

    def acknowledged(self, request: int, incarnation: str = "a") -> None:
        self.workbench.report_acknowledged(incarnation, request)
        self.workbench.check()

    def fetched(self, tid: int, values: Manifest = RESULT, job: int = 1) -> None:
        self.workbench.inputs_fetched(job, tid, values, digest_of(values), self.now_ms)
        self.workbench.check()

    def fetch_failed(
        self, tid: int, cid: int, reason: str = "no answer", digest: str = DIGEST
    ) -> None:
        self.workbench.fetch_failed(1, tid, digest, cid, reason, self.now_ms)
        self.workbench.check()

    def pass_time(self, ms: int) -> None:
        """Let time pass, with a tick at each deadline on the way."""
        end_us = self.now_us + ms * 1_000
        while True:
            deadline_ms = self.workbench.deadline_ms
            if deadline_ms is None or deadline_ms * 1_000 > end_us:
                break
            self.now_us = max(self.now_us, deadline_ms * 1_000)
            self.workbench.tick(self.now_ms)
            self.workbench.check()
        self.now_us = end_us

    def serving(self, *nodes: int, window: int = 1) -> None:
        """Have these nodes of the usual program running, idle, and nothing else to do.

        Needs as many slots; uses the tids from 900 on.
        """
        first = 900 + self.version * 10
        tids = [first + number for number in range(len(nodes))]
        self.view(*[task(tid, name="warm up") for tid in tids])
        self.effects()
        self.workbench.program_ready(PROGRAM)
        self.effects()
        for node in nodes:
            self.ready(node, window)
        ids = {
            effect.node: effect.id for effect in self.effects() if isinstance(effect, RunTask)
        }
        self.now_us += 1_000
        for node in nodes:
            self.done(node, ids[node])
        self.effects()
        self.stored(*tids)
        self.finish_reports()
        for tid in tids:
            self.view(drop=(Drop(1, tid, None),))
        self.effects()

    def finish_reports(self) -> None:
        while True:
            sent = [one for one in self.effects() if isinstance(one, SendReport)]
            if not sent:
                return
            self.acknowledged(sent[-1].request)

    def measure(self, name: str, run_us: int, *, node: int = 1) -> None:
        """Have a run time measured for this name, on a serving node."""
        first = 800 + self.version
        self.view(task(first, name=name))
        (one,) = [effect for effect in self.effects() if isinstance(effect, RunTask)]
        self.done(one.node, one.id, after_us=run_us)
        self.effects()
        self.stored(first)
        self.finish_reports()
        self.view(drop=(Drop(1, first, None),))
        self.effects()


__all__ = [
    "COMMAND",
    "DIGEST",
    "JOB",
    "ME",
    "PROGRAM",
    "RESULT",
    "SETTINGS",
    "AttemptFailed",
    "Bench",
    "Drop",
    "DropJob",
    "FetchInputs",
    "FetchRequest",
    "HeldResult",
    "Input",
    "JobEntry",
    "KillNode",
    "Note",
    "PrepareProgram",
    "ReleaseCopies",
    "Reply",
    "RunTask",
    "SendReport",
    "StartNode",
    "Stop",
    "StopNode",
    "StoreResult",
    "TaskError",
    "completion",
    "digest_of",
    "held_by",
    "inputs_digest",
    "made_here",
    "manifest",
    "report",
    "run",
    "stored",
    "task",
]
