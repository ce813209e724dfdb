"""Random views, deaths, failures and restarts against a model of coordinator and shell.

Verified after each step: the workbench's own invariants; no node has more in its pipe
than it takes; a task runs only at a node of its program that serves; a result is
stored before it is reported, a pretask made here before its dependents; no attempt is
reported twice. At the end everything heals, and every assignment that wasn't
stopped must have been reported.

Not verified: fairness, and how soon anything happens.
"""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tasksprint.coordination.view import Assignment
from tasksprint.execution.effects import (
    DropJobResults,
    DropResults,
    Effect,
    Manifest,
)

from .helpers import (
    COMMAND,
    ME,
    PROGRAM,
    SETTINGS,
    Bench,
    FetchInputs,
    FetchRequest,
    Input,
    JobEntry,
    KillNode,
    Note,
    PrepareProgram,
    ReleaseCopies,
    Reply,
    RunTask,
    SendReport,
    StartNode,
    Stop,
    StopNode,
    StoreResult,
    TaskError,
    digest_of,
    manifest,
    task,
)

JOBS = {
    1: JobEntry(1, PROGRAM, COMMAND),
    2: JobEntry(2, "q" * 64, "other.py"),
    3: JobEntry(3, "r" * 64, "attached:mine"),
}
PEERS = (7, 8)
NAMES = ("short", "long")
WINDOWS = (1, 3, 20)


def foreign(tid: int) -> Manifest:
    return manifest("result", "more", salt=f"foreign {tid}")


class Model(RuleBasedStateMachine):
    """The coordinator's and the shell's side."""

    @initialize(slots=st.integers(1, 3))
    def begin(self, slots: int) -> None:
        small = replace(
            SETTINGS,
            value_cache_bytes_max=40,
            fetches_per_peer_max=1,
            fetch_batch_max=2,
            report_tasks_max=3,
        )
        self.bench = Bench(slots=slots, settings=small)
        self.incarnation = "a"
        self.slots = slots
        self.next_tid = 0
        self.attempts: dict[tuple[int, int], int] = {}
        self.active: dict[tuple[int, int], Assignment] = {}  # neither stopped nor reported
        self.made: dict[tuple[int, int], str] = {}  # results held here, by digest
        self.starting: dict[int, str] = {}  # node -> command
        self.serving: dict[int, tuple[str, int]] = {}  # node -> command, window
        self.ending: set[int] = set()  # told to stop or killed
        self.pipes: dict[int, list[RunTask]] = {}
        self.preparing: list[str] = []
        self.fetches: list[tuple[int, FetchRequest]] = []
        self.unstored: list[StoreResult] = []
        self.durable: set[tuple[int, int, int]] = set()
        self.sent: SendReport | None = None
        self.reported: set[tuple[int, int, int]] = set()
        self.completed: list[tuple[int, int, int]] = []
        self.salt = 0

    # --- the shell carries effects out ---

    def absorb(self) -> None:
        for effect in self.bench.effects():
            self.carry_out(effect)

    def carry_out(self, effect: Effect) -> None:
        match effect:
            case PrepareProgram():
                assert effect.program not in self.preparing
                self.preparing.append(effect.program)
            case StartNode():
                self.starting[effect.node] = effect.command
                alive = len(self.starting) + len(
                    [one for one in (*self.serving, *self.ending) if self.is_own(one)]
                )
                assert alive <= self.slots
            case StopNode():
                assert not self.pipes[effect.node]
                del self.serving[effect.node]
                self.ending.add(effect.node)
            case KillNode():
                self.starting.pop(effect.node, None)
                self.serving.pop(effect.node, None)
                self.ending.add(effect.node)
            case RunTask():
                command, window = self.serving[effect.node]
                assignment = effect.assignment
                assert JOBS[assignment.job].node == command
                pipe = self.pipes[effect.node]
                pipe.append(effect)
                assert len(pipe) <= window
                assert [one[:2] for one in effect.inputs] == [
                    (one.tid, one.key) for one in assignment.inputs
                ]
            case FetchInputs():
                assert effect.cid in PEERS
                self.fetches += [(effect.cid, request) for request in effect.requests]
            case StoreResult():
                self.unstored.append(effect)
            case DropResults():
                for tid in effect.tids:
                    self.made.pop((effect.job, tid), None)
            case SendReport():
                assert self.sent is None
                assert effect.incarnation == self.incarnation
                self.sent = effect
                self.check_report(effect)
            case ReleaseCopies() | Note() | DropJobResults():
                pass
            case _:
                raise AssertionError(effect)

    def is_own(self, node: int) -> bool:
        return node not in self.attached_nodes

    @property
    def attached_nodes(self) -> set[int]:
        return getattr(self, "_attached", set())

    def check_report(self, sent: SendReport) -> None:
        for one in (*sent.completions, *sent.failures):
            attempt = (one.job, one.tid, one.attempt)
            assert attempt not in self.reported, "reported twice"
            self.reported.add(attempt)
        for done in sent.completions:
            assert (done.job, done.tid, done.attempt) in self.durable, "reported and not stored"
            self.completed.append((done.job, done.tid, done.attempt))

    # --- the coordinator ---

    def assign(
        self, job: int, tid: int, inputs: tuple[Input, ...], name: str, limit: bool
    ) -> None:
        attempt = self.attempts.get((job, tid), 0) + 1
        self.attempts[job, tid] = attempt
        one = task(
            tid, *inputs, job=job, attempt=attempt, name=name, timeout_ms=700 if limit else None
        )
        self.active[job, tid] = one
        self.bench.view(one, jobs=(JOBS[job],))
        self.absorb()

    @rule(
        job=st.sampled_from([1, 1, 1, 2, 3]),
        picks=st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=3),
        name=st.sampled_from(NAMES),
        limit=st.booleans(),
        count=st.integers(1, 4),
    )
    def start(
        self, job: int, picks: list[tuple[int, bool]], name: str, limit: bool, count: int
    ) -> None:
        for _ in range(count):
            tid = self.next_tid
            self.next_tid += 1
            inputs = [self.input(job, tid, back, is_foreign) for back, is_foreign in picks]
            self.assign(job, tid, tuple(inputs), name, limit and not inputs)

    def input(self, job: int, tid: int, back: int, is_foreign: bool) -> Input:
        mine = [one for of, one in (*self.active, *self.made) if of == job and one < tid]
        if mine and not is_foreign:
            pretask = sorted(mine)[-1 - back % len(mine)]
            if (job, pretask) in self.active:
                return Input(pretask, "result", None, (ME,))
            return Input(pretask, "result", self.made[job, pretask], (ME,))
        pretask = 10_000 + back
        return Input(pretask, "result", digest_of(foreign(pretask)), PEERS)

    @precondition(lambda self: self.active)
    @rule(data=st.data(), again=st.booleans())
    def stop(self, data: st.DataObject, again: bool) -> None:
        """Stop a task and what depends on it, or replace the attempt by a new one."""
        job, tid = data.draw(st.sampled_from(sorted(self.active)))
        one = self.active[job, tid]
        if again:
            self.assign(job, tid, one.inputs, one.spec.name, False)
            return
        doomed = {tid}
        for of, other in sorted(self.active):
            if of == job and doomed & {item.tid for item in self.active[of, other].inputs}:
                doomed.add(other)
        stops = tuple(
            Stop(job, other, self.active.pop((job, other)).attempt)
            for other in sorted(doomed)
            if (job, other) in self.active
        )
        self.bench.view(stop=stops)
        self.absorb()

    @rule()
    def repeat_view(self) -> None:
        """A whole view says again what is known."""
        jobs = tuple(JOBS.values())
        self.bench.view(*[self.active[key] for key in sorted(self.active)], whole=True, jobs=jobs)
        self.absorb()

    @precondition(lambda self: self.sent is not None)
    @rule()
    def apply_report(self) -> None:
        self.apply()

    def apply(self) -> None:
        sent = self.sent
        assert sent is not None
        self.sent = None
        for done in sent.completions:
            key = (done.job, done.tid)
            one = self.active.get(key)
            if one is not None and one.attempt == done.attempt:
                del self.active[key]
                self.canonical(key, done.digest)
        for failure in sent.failures:
            key = (failure.job, failure.tid)
            one = self.active.get(key)
            if one is not None and one.attempt == failure.attempt:
                self.assign(*key, one.inputs, one.spec.name, False)
        self.bench.acknowledged(sent.request, self.incarnation)
        self.absorb()

    def canonical(self, key: tuple[int, int], digest: str) -> None:
        """Tell those that wait for this result which it is."""
        job, tid = key
        changed = []
        for other_key in sorted(self.active):
            one = self.active[other_key]
            if one.job == job and any(item.tid == tid and not item.digest for item in one.inputs):
                inputs = tuple(
                    Input(tid, item.key, digest, (ME,)) if item.tid == tid else item
                    for item in one.inputs
                )
                self.active[other_key] = replace(one, inputs=inputs)
                changed.append(self.active[other_key])
        if changed:
            self.bench.view(*changed, jobs=(JOBS[job],))

    @rule()
    def join_anew(self) -> None:
        self.incarnation = self.incarnation + "a"
        self.bench.workbench.reset(ME, self.incarnation, self.bench.now_ms)
        self.bench.version = 0
        self.sent = None
        self.reported.clear()
        for effect in self.bench.effects():
            self.carry_out(effect)
        for key in list(self.active):
            one = self.active.pop(key)
            inputs = tuple(
                Input(item.tid, item.key, digest_of(foreign(item.tid)), PEERS)
                for item in one.inputs
            )
            self.assign(*key, inputs, one.spec.name, False)

    # --- what happens to the shell ---

    @precondition(lambda self: self.preparing)
    @rule(works=st.booleans())
    def prepare(self, works: bool) -> None:
        digest = self.preparing.pop(0)
        if works:
            self.bench.workbench.program_ready(digest)
        else:
            self.bench.workbench.program_failed(digest, "no", self.bench.now_ms)
        self.absorb()

    @precondition(lambda self: self.starting)
    @rule(data=st.data(), window=st.sampled_from(WINDOWS))
    def node_ready(self, data: st.DataObject, window: int) -> None:
        node = data.draw(st.sampled_from(sorted(self.starting)))
        self.serving[node] = (self.starting.pop(node), window)
        self.pipes[node] = []
        self.bench.ready(node, window)
        self.absorb()

    @precondition(lambda self: len(self.attached_nodes) < 3)
    @rule(window=st.sampled_from(WINDOWS))
    def attach(self, window: int) -> None:
        self.attach_node(window)

    def attach_node(self, window: int) -> None:
        node = self.bench.workbench.next_node()
        self._attached = self.attached_nodes | {node}
        self.serving[node] = ("attached:mine", window)
        self.pipes[node] = []
        self.bench.workbench.node_attached(node, "mine", False, window, self.bench.now_ms)
        self.absorb()

    @precondition(lambda self: self.starting or self.serving or self.ending)
    @rule(data=st.data())
    def node_exited(self, data: st.DataObject) -> None:
        nodes = sorted({*self.starting, *self.serving, *self.ending})
        self.end(data.draw(st.sampled_from(nodes)))

    def end(self, node: int) -> None:
        self.starting.pop(node, None)
        self.serving.pop(node, None)
        self.ending.discard(node)
        self.pipes.pop(node, None)
        self._attached = self.attached_nodes - {node}
        self.bench.exited(node)
        self.absorb()

    @precondition(lambda self: any(self.pipes[node] for node in self.serving))
    @rule(
        data=st.data(),
        count=st.integers(1, 20),
        kind=st.sampled_from(["ok", "ok", "ok", "other bytes", "error", "wrong id"]),
        after_us=st.sampled_from([50, 500, 20_000]),
    )
    def replied(self, data: st.DataObject, count: int, kind: str, after_us: int) -> None:
        node = data.draw(
            st.sampled_from(sorted(node for node in self.serving if self.pipes[node]))
        )
        self.answer(node, count, kind, after_us)

    def answer(self, node: int, count: int, kind: str, after_us: int) -> None:
        taken, self.pipes[node] = self.pipes[node][:count], self.pipes[node][count:]
        replies = []
        for one in taken:
            match kind:
                case "error":
                    replies.append(Reply(one.id, TaskError("boom")))
                case "wrong id":
                    replies.append(Reply(one.id + 1_000, ()))
                case _:
                    self.salt += kind == "other bytes"
                    salt = f"{one.assignment.tid} {self.salt if kind == 'other bytes' else ''}"
                    replies.append(Reply(one.id, manifest("result", salt=salt)))
        self.bench.reply(node, *replies, after_us=after_us)
        effects = self.bench.effects()
        for effect in effects:
            if isinstance(effect, StoreResult):
                self.made[effect.job, effect.tid] = effect.digest
        for effect in effects:
            self.carry_out(effect)

    @precondition(lambda self: any(self.pipes[node] for node in self.serving))
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        """An input can't be found when the line is to be written."""
        node = data.draw(
            st.sampled_from(sorted(node for node in self.serving if self.pipes[node]))
        )
        one = self.pipes[node][-1]
        missing = {tid: None for tid, _, _ in one.inputs[:1] if tid >= 10_000}
        if one.inputs and not missing:
            return
        self.pipes[node].pop()
        self.bench.workbench.run_refused(node, one.id, missing, self.bench.now_ms)
        self.absorb()

    @precondition(lambda self: self.fetches)
    @rule(data=st.data(), works=st.booleans())
    def fetch_answered(self, data: st.DataObject, works: bool) -> None:
        index = data.draw(st.integers(0, len(self.fetches) - 1))
        self.answer_fetch(index, works)

    def answer_fetch(self, index: int, works: bool) -> None:
        cid, request = self.fetches.pop(index)
        bench = self.bench
        if works:
            values = foreign(request.tid)
            bench.workbench.inputs_fetched(
                request.job, request.tid, values, request.digest, bench.now_ms
            )
        else:
            bench.workbench.fetch_failed(
                request.job, request.tid, request.digest, cid, "no", bench.now_ms
            )
        bench.workbench.check()
        self.absorb()

    @precondition(lambda self: self.unstored)
    @rule(count=st.integers(1, 10))
    def store(self, count: int) -> None:
        batch, self.unstored = self.unstored[:count], self.unstored[count:]
        done = [(one.job, one.tid, one.attempt) for one in batch]
        self.durable.update(done)
        self.bench.workbench.results_stored(done)
        self.absorb()

    @rule(ms=st.sampled_from([1, 50, 120, 800]))
    def pass_time(self, ms: int) -> None:
        self.bench.pass_time(ms)
        self.absorb()

    @rule(is_low=st.booleans())
    def disk(self, is_low: bool) -> None:
        self.bench.workbench.disk_low(is_low)
        self.absorb()

    # --- checks ---

    @invariant()
    def is_sound(self) -> None:
        if hasattr(self, "bench"):
            self.bench.workbench.check()

    def teardown(self) -> None:
        """Everything works from now on: all that is active must be reported."""
        if not hasattr(self, "bench"):
            return
        self.bench.workbench.disk_low(False)
        self.absorb()
        for _ in range(2_000):
            if not self.active:
                break
            self.heal()
        assert not self.active, f"never reported: {sorted(self.active)}"
        assert self.bench.workbench.summary()["tasks"] == {
            "waiting": 0,
            "ready": 0,
            "running": 0,
        }

    def heal(self) -> None:
        for node in sorted(self.ending):
            self.end(node)
        if not self.attached_nodes:
            self.attach_node(20)
        while self.preparing:
            self.prepare_one()
        for node in sorted(self.starting):
            self.serving[node] = (self.starting.pop(node), 3)
            self.pipes[node] = []
            self.bench.ready(node, 3)
            self.absorb()
        while self.fetches:
            self.answer_fetch(0, works=True)
        for node in sorted(self.serving):
            if node in self.serving and self.pipes[node]:
                self.answer(node, 20, "ok", 100)
        if self.unstored:
            done = [(one.job, one.tid, one.attempt) for one in self.unstored]
            self.unstored.clear()
            self.durable.update(done)
            self.bench.workbench.results_stored(done)
            self.absorb()
        if self.sent is not None:
            self.apply()
        self.mend_inputs()
        self.bench.pass_time(150)
        self.absorb()

    def prepare_one(self) -> None:
        self.bench.workbench.program_ready(self.preparing.pop(0))
        self.absorb()

    def mend_inputs(self) -> None:
        """Give inputs that are gone, or were replaced, a holder that has them."""
        changed = []
        for key in sorted(self.active):
            one = self.active[key]
            inputs = []
            for item in one.inputs:
                pretask = (one.job, item.tid)
                if item.tid < 10_000 and pretask not in self.active:
                    held = self.bench.workbench._inputs.held(*pretask)
                    if held is None or item.digest not in (None, held.digest):
                        item = Input(item.tid, item.key, digest_of(foreign(item.tid)), PEERS)
                inputs.append(item)
            if tuple(inputs) != one.inputs:
                self.active[key] = replace(one, inputs=tuple(inputs))
                changed.append(self.active[key])
        for one in changed:
            self.bench.view(one, jobs=(JOBS[one.job],))
        self.absorb()


Model.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestMachine = pytest.mark.slow(Model.TestCase)
