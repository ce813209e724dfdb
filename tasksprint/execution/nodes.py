"""The nodes of programs: which node gets which task into its pipe, and when.

Knows ready tasks, capacity, pipes and measured run times. Doesn't know where inputs come
from, nor the further way of an attempt. It only says that a task failed, or must run again.

Slots. A slot is a process that the client started; it is taken until that process has ended.
Nodes are started when a ready task finds none, and are kept. A program without any node takes
a slot from another program. It takes that of an idle node at once. It takes that of a busy one
once its oldest task has waited for a while, and is older than the next task of the other.
Attached nodes are beyond the capacity.

Pipes. A node runs its tasks in order; the head of its pipe is the one that runs. A task may go
behind another if the node takes several, and both are of names that were measured as short. A
task with a time limit never goes behind another. If the head takes long after all, the tasks
behind it are given to other nodes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from tasksprint.bounded_text import on_one_line
from tasksprint.execution.effects import (
    Effect,
    KillNode,
    NodeId,
    Note,
    RunTask,
    StartNode,
    StopNode,
)
from tasksprint.execution.records import (
    INPUTS_HERE,
    NODE_TRANSITIONS,
    SENT,
    ClientTask,
    Entry,
    Node,
    NodeState,
    Program,
    ProgramState,
    TaskState,
)
from tasksprint.execution.timers import Timers
from tasksprint.ids import TaskId
from tasksprint.settings import Settings

__all__ = ["Nodes"]

# Characters of an error about nodes that don't start, for people.
_START_ERROR_MAX = 200
# The run times of so many names are remembered; a program may invent a name for each task.
_ESTIMATES_MAX = 1_000

_READY = TaskState.READY
_RUNNING = TaskState.RUNNING
_SERVING = NodeState.SERVING
_ENDING = (NodeState.STOPPING, NodeState.KILLED)

# Entries of nodes that aren't free any more, beside two for each node.
_STALE_MAX = 16

Arguments = tuple[tuple[TaskId, str, str], ...]


class Nodes:
    """All nodes of this client, by program."""

    def __init__(
        self,
        *,
        capacity: int,
        settings: Settings,
        timers: Timers,
        outbox: list[Effect],
        arguments: Callable[[ClientTask], Arguments | None],
        again: Callable[[ClientTask], None],
        fail: Callable[[ClientTask, str, Mapping[str, Any]], None],
    ) -> None:
        """Begin without nodes.

        Args:
            capacity: Processes at once.
            arguments: Returns the value of `RunTask.inputs`, or None if an input is gone.
            again: Called with a task that must run again; this is no failure.
            fail: Called with a task whose attempt failed, the error, and details.
        """
        self.capacity = capacity
        self.nodes: dict[NodeId, Node] = {}  # until the process has ended
        self.is_disk_low = False
        self._settings = settings
        self._timers = timers
        self._outbox = outbox
        self._arguments = arguments
        self._again = again
        self._fail = fail
        self._last_node = 0
        self._offers = 0
        self._own_count = 0  # Invariant: nodes that aren't attached; at most `capacity`.
        # Nodes that serve and have nothing to do, without the attached ones.
        self._idle: dict[NodeId, Node] = {}
        # Nodes that are being stopped or killed, without the attached ones.
        self._ending: dict[NodeId, None] = {}
        self._hungry: dict[Program, None] = {}  # programs with ready tasks
        # One more than the most work before another task: nothing goes behind such a task.
        self._unknown_us = settings.node_ahead_us + 1

    # --- tasks -----------------------------------------------------------------------

    def offer(self, task: ClientTask) -> None:
        """Take a task whose inputs are all here; it is READY from now on."""
        task.enter(INPUTS_HERE)
        program = task.program
        self._offers += 1
        heapq.heappush(program.ready, (task.arrival, self._offers, task))
        self._hungry[program] = None

    def abandon(self, entry: Entry, now_ms: int) -> None:
        """Give up a running task: its answer isn't wanted any more.

        A node that runs it is killed. A short task may end by itself, so its node isn't killed
        at once. A task that waits in the pipe is always short.
        """
        task, node = entry.task, entry.node
        task.entry = None
        if node.state is not _SERVING or node.head is not entry:
            return
        if entry.estimate_us <= self._settings.node_ahead_us:
            self._expire_head(node, now_ms)
        else:
            self.kill(node, _stopped(entry))

    def feed(self, now_us: int) -> None:
        """Give ready tasks to nodes; start and stop nodes as needed."""
        if not self._hungry or self.is_disk_low:
            return
        programs = list(self._hungry)
        if len(programs) > 1:
            for program in programs:
                self._skip_stale(program)
            programs.sort(key=_age_of_oldest)
        now_ms = now_us // 1_000
        for program in programs:
            self._fill(program, now_us)
            if not program.ready:
                del self._hungry[program]
                program.short_since_ms = None
            elif not self._find_nodes(program, now_ms):
                return  # Programs with younger tasks must leave it a node.

    # --- events of programs ----------------------------------------------------------

    def fail_ready(self, program: Program, error: str, detail: Mapping[str, Any]) -> None:
        """Fail all tasks that wait for a node of this program."""
        ready, program.ready = program.ready, []
        self._hungry.pop(program, None)
        for _, _, task in sorted(ready, key=lambda item: item[:2]):
            if task.state is _READY:
                self._fail(task, error, detail)

    # --- events of nodes -------------------------------------------------------------

    def next_node(self) -> NodeId:
        """Return a number for a new node; never the same twice."""
        self._last_node += 1
        return NodeId(self._last_node)

    def is_past(self, node_id: NodeId) -> bool:
        """Whether this node existed and has ended."""
        return node_id not in self.nodes and node_id <= self._last_node

    def attached(self, node_id: NodeId, program: Program, now_ms: int) -> Node:
        """Add a node that somebody else started."""
        node = Node(node_id, program, now_ms, attached=True)
        self._add(node)
        program.told_absent = False
        return node

    def _add(self, node: Node) -> None:
        self.nodes[node.id] = node.program.nodes[node.id] = node
        states = node.program.node_states
        states[node.state] = states.get(node.state, 0) + 1

    def ready(self, node: Node, window: int, now_ms: int) -> None:
        """Note that a node takes tasks."""
        if node.state is not NodeState.STARTING:
            return  # It was killed meanwhile.
        self._enter(node, "ready")
        self._becomes_free(node)
        node.was_ready = True
        node.window = max(1, window)
        node.program.takes_several |= window > 1
        node.idle_since_ms = now_ms
        self._arm(node, now_ms + self._settings.node_idle_max_ms)
        node.program.start_failures = 0
        node.program.start_error = ""

    def take(self, node: Node, id: int) -> Entry | None:
        """Take the answered entry out of a node's pipe.

        Returns:
            None if no entry has that id: the node was killed for it.
        """
        entry = node.pipe.pop(id, None)
        if entry is None:
            found = f"node answered id {id}, expected {_describe_ids(node)}"
            self.kill(node, found, error=found)
            return None
        node.work_us -= entry.estimate_us
        if not node.pipe and node.state is _SERVING:
            self._becomes_free(node)
        return entry

    def answered(self, node: Node, now_us: int) -> None:
        """Note that a batch of answers was taken: the next head runs from now on."""
        node.head_since_us = now_us
        node.is_stalled = False
        node.program.deaths = 0
        now_ms = now_us // 1_000
        head = node.head
        if head is None:
            node.idle_since_ms = now_ms
            self._arm(node, now_ms + self._settings.node_idle_max_ms)
        elif head.task.entry is not head:
            self._expire_head(node, now_ms)

    def measured(self, task: ClientTask, run_us: int) -> None:
        """Learn from a run time."""
        estimates = task.program.estimates
        name = task.assignment.spec.name
        estimate = estimates.get(name)
        if estimate is None:
            if len(estimates) >= _ESTIMATES_MAX:
                estimates.clear()
            estimates[name] = run_us
        elif run_us > estimate:
            # Up fast, down slowly. A task behind a long one waits. A node that gets one task
            # less ahead costs only a little.
            estimates[name] = (estimate + run_us) // 2
        else:
            estimates[name] = max(1, (7 * estimate + run_us) // 8)

    def kill(self, node: Node, why: str, *, error: str | None = None) -> None:
        """Kill a node; the tasks that wait in its pipe run again.

        Args:
            error: Why the running task fails. None: it doesn't, it runs again (if it
                wasn't stopped).
        """
        if node.state is NodeState.KILLED:
            return
        self._enter(node, "killed")
        node.kill_error = error
        self._outbox.append(KillNode(node.id, why))
        self._empty_pipe(node, keep_head=error is not None)

    def exited(self, node: Node, reason: str, detail: Mapping[str, Any], now_ms: int) -> None:
        """Forget a node whose process has ended."""
        del self.nodes[node.id]
        program = node.program
        del program.nodes[node.id]
        program.node_states[node.state] -= 1
        self._ending.pop(node.id, None)
        self._idle.pop(node.id, None)
        if not node.attached:
            self._own_count -= 1
        state = node.state
        head = node.head
        self._empty_pipe(node, keep_head=True)
        if state is _SERVING or (state is NodeState.KILLED and node.kill_error is not None):
            found = node.kill_error
            if head is not None and head.task.entry is head:
                task = head.task
                run_ms = max(0, now_ms - node.head_since_us // 1_000)
                known = {"node": node.id, "run_ms": run_ms, **detail}
                self._fail(task, found or f"node failed while it ran {task}: {reason}", known)
        if not node.was_ready and state is not NodeState.STOPPING and not node.attached:
            self._failed_start(program, node.kill_error or reason, detail, now_ms)
        elif state is _SERVING and not node.attached:
            program.deaths += 1
            if program.deaths > 1:
                self._pause(program, program.deaths - 2, now_ms)

    # --- for tests and people --------------------------------------------------------

    def summary(self) -> list[dict[str, Any]]:
        """Return the work of each node, for people."""
        return [
            {
                "node": node.id,
                "program": node.program.name,
                "attached": node.attached,
                "state": node.state.value,
                "tasks": len(node.pipe),
                "running": None if node.head is None else str(node.head.task),
            }
            for node in self.nodes.values()
        ]

    def check(self) -> None:
        """Assert the invariants."""
        own = [node for node in self.nodes.values() if not node.attached]
        assert len(own) == self._own_count
        assert self._own_count <= self.capacity
        assert sorted(self._ending) == [node.id for node in own if node.state in _ENDING]
        assert sorted(self._idle) == [
            node.id for node in own if node.state is _SERVING and not node.pipe
        ]
        for node_id, node in self.nodes.items():
            assert node.id == node_id
            program = node.program
            assert program.nodes[node_id] is node
            states = [other.state for other in program.nodes.values()]
            for state, count in program.node_states.items():
                assert count == states.count(state), f"{count} nodes of {program} are {state}"
            if node.state is _SERVING and not node.pipe:
                assert node_id in program.free
                assert not node.is_stalled
            if node.state in (NodeState.STARTING, NodeState.STOPPING):
                assert not node.pipe
            if node.state is NodeState.KILLED:
                assert len(node.pipe) <= 1
            head = node.head if node.state is _SERVING else None
            if head is not None and head.deadline_ms is not None:
                assert node.armed_ms is not None
                assert node.armed_ms <= head.deadline_ms
            for number, (id, entry) in enumerate(node.pipe.items()):
                assert entry.id == id
                assert entry.node is node
                if entry.task.entry is not entry:
                    continue
                assert entry.task.state is _RUNNING
                assert entry.task.program is node.program
                if number:
                    assert entry.task.assignment.spec.timeout_ms is None
        for program in self._hungry:
            for node in program.nodes.values():
                assert program.nodes[node.id] is self.nodes[node.id]

    # --- private: pipes --------------------------------------------------------------

    def _skip_stale(self, program: Program) -> None:
        ready = program.ready
        while ready and ready[0][2].state is not _READY:
            heapq.heappop(ready)

    def _fill(self, program: Program, now_us: int) -> None:
        """Give the program's nodes as many tasks as they can take, the oldest first."""
        ready = program.ready
        piped: list[tuple[int, NodeId, Node]] | None = None
        estimates = program.estimates
        ahead_us = self._settings.node_ahead_us
        while ready:
            task = ready[0][2]
            if task.state is not _READY:
                heapq.heappop(ready)
                continue
            assignment = task.assignment
            estimate = estimates.get(assignment.spec.name, self._unknown_us)
            best = self._first_free(program)
            if best is None:
                # It goes behind another task only if it is short, and has no limit.
                behind_us = -1 if assignment.spec.timeout_ms is not None else ahead_us - estimate
                if behind_us < 0:
                    return
                if piped is None:
                    piped = _piped(program)
                while piped and len(piped[0][2].pipe) >= piped[0][2].window:
                    heapq.heappop(piped)
                if not piped or piped[0][0] > behind_us:
                    return
                best = piped[0][2]
            heapq.heappop(ready)
            inputs = self._arguments(task) if assignment.inputs else ()
            if inputs is None:
                self._again(task)
                ready = program.ready
                continue
            self._send(best, task, inputs, estimate, now_us)
            if piped and piped[0][2] is best:
                heapq.heapreplace(piped, (best.work_us, best.id, best))

    def _first_free(self, program: Program) -> Node | None:
        """Return the node of the lowest number among those with nothing to do, or None."""
        free = program.free
        while free:
            node = program.nodes.get(free[0])
            if node is not None and node.state is _SERVING and not node.pipe:
                return node
            heapq.heappop(free)  # It has a task by now, or has ended.
        return None

    def _becomes_free(self, node: Node) -> None:
        """Note that a node that serves has nothing to do."""
        program = node.program
        free = program.free
        node.is_stalled = False
        if len(free) > 2 * len(program.nodes) + _STALE_MAX:
            free[:] = sorted({number for number in free if number in program.nodes})
        heapq.heappush(free, node.id)
        if not node.attached:
            self._idle[node.id] = node

    def _enter(self, node: Node, event: str) -> None:
        """Change a node's state by an event."""
        state = NODE_TRANSITIONS[event].get(node.state)
        assert state is not None, f"node {node.id} can't be {event}: it is {node.state.value}"
        counts = node.program.node_states
        counts[node.state] -= 1
        counts[state] += 1
        node.state = state
        if state in _ENDING and not node.attached:
            self._ending[node.id] = None
        if state is not _SERVING:
            self._idle.pop(node.id, None)

    def _send(
        self, node: Node, task: ClientTask, inputs: Arguments, estimate_us: int, now_us: int
    ) -> None:
        node.last_id = id = node.last_id + 1
        entry = Entry(id, task, node, estimate_us)
        if inputs:
            entry.digests = tuple([digest for _, _, digest in inputs])
        if not node.pipe:
            node.head_since_us = now_us
            self._idle.pop(node.id, None)
        else:
            self._arm(node, now_us // 1_000 + self._settings.node_stall_ms)
        timeout_ms = task.assignment.spec.timeout_ms
        if timeout_ms is not None:
            # Rounded up: a task gets its time in full.
            entry.deadline_ms = now_us // 1_000 + timeout_ms + 1
            self._arm(node, entry.deadline_ms)
        node.pipe[id] = entry
        node.work_us += estimate_us
        task.entry = entry
        task.enter(SENT)
        self._outbox.append(RunTask(node.id, id, task.assignment, inputs))

    def _empty_pipe(self, node: Node, *, keep_head: bool) -> None:
        """Have the tasks of the pipe run again; its head may stay until the process has ended."""
        pipe = node.pipe
        node.pipe = {}
        node.work_us = 0
        for entry in pipe.values():
            if keep_head:
                keep_head = False
                node.pipe[entry.id] = entry
                node.work_us = entry.estimate_us
            elif entry.task.entry is entry:
                entry.task.entry = None
                self._again(entry.task)

    def _unload(self, node: Node) -> None:
        """Give the tasks behind a slow head to other nodes."""
        node.is_stalled = True
        for entry in list(node.pipe.values())[1:]:
            if entry.task.entry is entry:
                entry.task.entry = None
                self._again(entry.task)

    def _expire_head(self, node: Node, now_ms: int) -> None:
        """Kill the node unless its head ends soon; nobody wants the head's answer."""
        head = node.head
        assert head is not None
        head.deadline_ms = now_ms + self._settings.node_stop_grace_ms
        self._arm(node, head.deadline_ms)

    # --- private: time ---------------------------------------------------------------

    def _arm(self, node: Node, at_ms: int) -> None:
        """Have `_due` called for this node; one timer is enough, the earliest."""
        if node.armed_ms is None or at_ms < node.armed_ms:
            node.armed_ms = at_ms
            self._timers.start(at_ms, partial(self._due, node, at_ms))

    def _due(self, node: Node, at_ms: int, now_ms: int) -> None:
        if node.armed_ms != at_ms or self.nodes.get(node.id) is not node:
            return
        node.armed_ms = None
        settings = self._settings
        if node.state is NodeState.STARTING:
            until_ms = node.started_ms + settings.node_ready_timeout_ms
            if now_ms < until_ms:
                self._arm(node, until_ms)
            else:
                late = (
                    f"it didn't say that it is ready within "
                    f"{settings.node_ready_timeout_ms} ms (node_ready_timeout_ms)"
                )
                self.kill(node, late, error=late)
            return
        if node.state is not _SERVING:
            return
        head = node.head
        if head is None:
            self._due_idle(node, now_ms)
            return
        if head.deadline_ms is not None:
            if now_ms >= head.deadline_ms:
                task = head.task
                if task.entry is head:
                    late = f"{task} ran longer than timeout_ms={task.assignment.spec.timeout_ms}"
                    self.kill(node, late, error=late)
                else:
                    self.kill(node, f"{_stopped(head)} and doesn't end")
                return
            self._arm(node, head.deadline_ms)
        if len(node.pipe) > 1 and not node.is_stalled:
            stalled_ms = node.head_since_us // 1_000 + settings.node_stall_ms
            if now_ms >= stalled_ms:
                self._unload(node)
            else:
                self._arm(node, stalled_ms)

    def _due_idle(self, node: Node, now_ms: int) -> None:
        """Stop a node if its program has had nothing to do for long."""
        if node.attached:
            return
        idle_ms = self._settings.node_idle_max_ms
        until_ms = node.idle_since_ms + idle_ms
        if node.program.tasks:
            self._arm(node, now_ms + idle_ms)
        elif now_ms >= until_ms:
            self._stop(node)
        else:
            self._arm(node, until_ms)

    # --- private: processes ----------------------------------------------------------

    def _find_nodes(self, program: Program, now_ms: int) -> bool:
        """Start nodes for ready tasks that found none.

        Returns:
            False if the program has waited too long without any node. Then programs with
            younger tasks may use no node until one has become idle for it.
        """
        if program.is_attached:
            if not program.nodes and not program.told_absent:
                program.told_absent = True
                name = program.command.partition(":")[2]
                self._outbox.append(
                    Note(
                        f"tasks wait for a node attached as {name!r}; "
                        f"start one with: node --exec PROG --name {name}"
                    )
                )
            return True
        if program.state is not ProgramState.PREPARED:
            return True
        if now_ms < program.paused_until_ms:
            return True
        states = program.node_states
        wanted = len(program.ready) - states[NodeState.STARTING]
        while wanted > 0 and self._own_count < self.capacity:
            self._start(program, now_ms)
            wanted -= 1
        if wanted <= 0:
            return True
        if self._ending:
            return True  # A slot will be free soon. Its next program is chosen then.
        has_nodes = bool(states[_SERVING] or states[NodeState.STARTING])
        switch_ms = self._settings.node_switch_wait_ms
        starves = False
        if not has_nodes:
            if program.short_since_ms is None:
                program.short_since_ms = now_ms
                self._timers.start(now_ms + switch_ms, _do_nothing)
            starves = now_ms - program.short_since_ms >= switch_ms
        idle = self._find_idle(program, starving=starves)
        if idle is not None:
            if not has_nodes or now_ms - idle.idle_since_ms >= switch_ms:
                self._stop(idle)
            else:
                self._arm(idle, idle.idle_since_ms + switch_ms)
            return True
        return not starves

    def _find_idle(self, program: Program, *, starving: bool) -> Node | None:
        """Return the longest idle node of another program, or None."""
        best: Node | None = None
        best_rank = (0, 0)
        for node in self._idle.values():
            other = node.program
            if other is program:
                continue
            if other.ready and not (
                starving and _age_of_oldest(other) > _age_of_oldest(program)
            ):
                continue
            rank = (node.idle_since_ms, node.id)
            if best is None or rank < best_rank:
                best, best_rank = node, rank
        return best

    def _start(self, program: Program, now_ms: int) -> None:
        node = Node(self.next_node(), program, now_ms, attached=False)
        self._add(node)
        self._own_count += 1
        program.short_since_ms = None
        self._outbox.append(StartNode(node.id, program.digest, program.command))
        self._arm(node, now_ms + self._settings.node_ready_timeout_ms)

    def _stop(self, node: Node) -> None:
        assert not node.pipe
        self._enter(node, "stopped")
        self._outbox.append(StopNode(node.id))

    def _failed_start(
        self, program: Program, reason: str, detail: Mapping[str, Any], now_ms: int
    ) -> None:
        program.start_failures += 1
        program.start_error = on_one_line(reason, _START_ERROR_MAX)
        self._outbox.append(
            Note(f"a node of {program} didn't start: {program.start_error}", is_warning=True)
        )
        self._pause(program, program.start_failures - 1, now_ms)
        tries = program.start_failures
        if tries < self._settings.node_start_tries_max:
            return
        if program.node_states[_SERVING]:
            return  # The nodes that did start will run the tasks.
        starts = "1 start" if tries == 1 else f"{tries} starts"
        error = f"no node of {program} got ready in {starts}: {reason}"
        self.fail_ready(program, error, {"starts": tries, **detail})

    def _pause(self, program: Program, doublings: int, now_ms: int) -> None:
        """Start no node of this program for a while."""
        settings = self._settings
        # The exponent is limited: a program that fails for a year would make huge numbers.
        pause_ms = settings.node_restart_pause_min_ms << min(doublings, 16)
        until_ms = now_ms + min(pause_ms, settings.node_restart_pause_max_ms)
        if until_ms > program.paused_until_ms:
            program.paused_until_ms = until_ms
            self._timers.start(until_ms, _do_nothing)


def _age_of_oldest(program: Program) -> int:
    """The arrival of the program's oldest ready task; programs are served in this order."""
    return program.ready[0][0] if program.ready else 0


def _stopped(entry: Entry) -> str:
    """Return why a node is killed: its task isn't wanted any more."""
    return f"{entry.why} {entry.task}" if entry.why else f"{entry.task} was stopped"


def _piped(program: Program) -> list[tuple[int, NodeId, Node]]:
    """Return a heap of the nodes that run a task and may take more, by their work."""
    if not program.takes_several:
        return []
    piped = [
        (node.work_us, node.id, node)
        for node in program.nodes.values()
        if node.pipe and node.state is _SERVING and not node.is_stalled
    ]
    heapq.heapify(piped)
    return piped


def _describe_ids(node: Node) -> str:
    ids = list(node.pipe)
    if not ids:
        return "no answer"
    if len(ids) == 1:
        return str(ids[0])
    return f"one of {ids[0]} to {ids[-1]}"


def _do_nothing(_now_ms: int) -> None:
    """For a timer whose only purpose is that `feed` is called again."""
