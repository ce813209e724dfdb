"""Each state machine's table is the one that was read when it last changed, and is kept to."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tasksprint.coordination.jobs import Job, Task
from tasksprint.coordination.state import State
from tasksprint.coordination.task_states import STATES, TRANSITIONS, WAITING
from tasksprint.coordination.transitions import Transitions
from tasksprint.coordination.view import Assignment
from tasksprint.execution.records import (
    NODE_TRANSITIONS,
    PROGRAM_TRANSITIONS,
    TASK_TRANSITIONS,
    ClientTask,
    NodeState,
    Program,
    ProgramState,
    TaskState,
)
from tasksprint.hosting.host import SchedulerHost
from tasksprint.hosting.states import HOST_STATES, HOST_TRANSITIONS, HostEvent, HostState
from tasksprint.ids import JobId, ReplicaId, TaskId
from tasksprint.settings import RULES, Settings
from tasksprint.task_spec import TaskSpec

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent


def render(states: Sequence[str], table: Mapping[str, Mapping[str, str]]) -> str:
    """Return a table with a column for each state before, a line for each event."""
    lines = [["", *states]]
    lines += [[event, *[row.get(state, "-") for state in states]] for event, row in table.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )


def of_tasks() -> str:
    named = {
        event: {STATES[before]: STATES[after] for before, after in transition.items()}
        for event, transition in TRANSITIONS.items()
    }
    return render(STATES, named)


def of_nodes() -> str:
    named = {
        event: {before.value: after.value for before, after in transition.items()}
        for event, transition in NODE_TRANSITIONS.items()
    }
    return render([state.value for state in NodeState], named)


def of_tasks_on_a_client() -> str:
    named = {
        event: {before.value: after.value for before, after in transition.items()}
        for event, transition in TASK_TRANSITIONS.items()
    }
    return render([state.value for state in TaskState], named)


def of_programs() -> str:
    named = {
        event: {before.value: after.value for before, after in transition.items()}
        for event, transition in PROGRAM_TRANSITIONS.items()
    }
    return render([state.value for state in ProgramState], named)


def of_hosts() -> str:
    named: dict[str, Mapping[str, str]] = {**HOST_TRANSITIONS}
    return render(HOST_STATES, named)


TABLES = {
    "task": of_tasks,
    "task_on_a_client": of_tasks_on_a_client,
    "node": of_nodes,
    "program": of_programs,
    "host": of_hosts,
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_the_one_that_was_read(name: str, request: pytest.FixtureRequest) -> None:
    path = FOLDER / f"{name}.txt"
    printed = TABLES[name]()
    if request.config.getoption("--rewrite"):
        path.write_text(printed, encoding="utf-8")
    was = path.read_text(encoding="utf-8")
    assert printed == was, "if you can explain each line, run this with --rewrite"


# --- tasks of the coordinator ---


def a_task() -> tuple[Transitions, Task]:
    state = State("c1", (ReplicaId(1),), RULES)
    job = Job(JobId(1), "job", 7, "{}", "p" * 64, "{}", 0)
    task = Task(job, TaskId(0), TaskSpec("map"))
    transitions = Transitions(state)
    transitions.add(task)
    return transitions, task


@pytest.mark.parametrize("event", TRANSITIONS)
@pytest.mark.parametrize("before", range(len(STATES)))
def test_counts_follow_each_transition_and_any_other_is_our_bug(event: str, before: int) -> None:
    transitions, task = a_task()
    task.state = before
    counts = task.job.counts
    counts[WAITING], counts[before] = 0, 1
    transition = TRANSITIONS[event]
    if before not in transition:
        with pytest.raises(AssertionError, match=f"can't be {event}: it is {STATES[before]}"):
            transitions._move(task, transition)
        return
    transitions._move(task, transition)
    assert task.state == transition[before]
    assert [state for state, count in enumerate(counts) if count] == [task.state]


def test_every_state_can_be_reached_and_all_is_told_apart() -> None:
    reached = {WAITING}
    for _ in STATES:
        for row in TRANSITIONS.values():
            reached |= {after for before, after in row.items() if before in reached}
    assert reached == set(range(len(STATES)))
    assert len({id(transition) for transition in TRANSITIONS.values()}) == len(TRANSITIONS)


def assigned_in(folder: str) -> set[tuple[str, str, str]]:
    """Return what the sources of a folder assign: file, function and target."""
    found = set()
    for path in sorted((ROOT / "tasksprint" / folder).rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            for node in ast.walk(function):
                targets: list[ast.expr] = []
                if isinstance(node, ast.Assign):
                    targets = node.targets
                elif isinstance(node, ast.AugAssign | ast.AnnAssign):
                    targets = [node.target]
                for target in targets:
                    for one in target.elts if isinstance(target, ast.Tuple) else [target]:
                        found.add((path.name, function.name, ast.unparse(one)))
    return found


def test_tasks_change_their_states_in_one_file() -> None:
    """By what the sources assign: the state of a task, and what counts tasks by state."""
    found = {
        (file, text)
        for file, _, text in assigned_in("coordination")
        if text.endswith((".counts", ".state")) or "counts[" in text
    }
    assert found - {("jobs.py", "self.state"), ("jobs.py", "self.counts")} == {
        ("transitions.py", "task.state"),
        ("transitions.py", "job.counts[before]"),
        ("transitions.py", "job.counts[after]"),
        ("transitions.py", "job.counts[WAITING]"),
        # What a row says; and the states of jobs.
        ("task_rows.py", "task.state"),
        ("job_rows.py", "job.state"),
        ("job_rows.py", "job.counts"),
        ("lifecycle.py", "job.state"),
    }


# --- tasks of a client ---


@pytest.mark.parametrize("event", TASK_TRANSITIONS)
@pytest.mark.parametrize("before", TaskState)
def test_a_clients_task_changes_by_the_table_and_otherwise_it_is_our_bug(
    event: str, before: TaskState
) -> None:
    assignment = Assignment(JobId(1), TaskId(0), 1, TaskSpec("map"), (), seed=7)
    task = ClientTask(assignment, Program("p" * 64, "{}"), 1)
    task.state = before
    transition = TASK_TRANSITIONS[event]
    if before not in transition:
        with pytest.raises(AssertionError, match=f"can't be {event}: it is {before.value}"):
            task.enter(transition)
        assert task.state is before
        return
    task.enter(transition)
    assert task.state is transition[before]


@pytest.mark.parametrize("event", PROGRAM_TRANSITIONS)
@pytest.mark.parametrize("before", ProgramState)
def test_a_program_changes_by_the_table_and_otherwise_it_is_our_bug(
    event: str, before: ProgramState
) -> None:
    program = Program("p" * 64, "{}")
    program.state = before
    transition = PROGRAM_TRANSITIONS[event]
    if before not in transition:
        with pytest.raises(AssertionError, match=f"can't be {event}: it is {before.value}"):
            program.enter(event)
        assert program.state is before
        return
    program.enter(event)
    assert program.state is transition[before]


def test_what_a_client_has_changes_its_state_in_one_place_each() -> None:
    found = {each for each in assigned_in("execution") if each[2].endswith(".state")}
    assert found - {each for each in found if each[1] == "__init__"} == {
        ("records.py", "enter", "self.state"),
        ("nodes.py", "_enter", "node.state"),
    }


# --- the process of a scheduler ---


@pytest.mark.parametrize("event", HOST_TRANSITIONS)
@pytest.mark.parametrize("before", HOST_STATES)
def test_a_host_changes_by_the_table_and_otherwise_it_is_our_bug(
    event: HostEvent, before: HostState
) -> None:
    host = SchedulerHost(
        job=JobId(1),
        replica=ReplicaId(1),
        settings=Settings(),
        events=(),
        answers={},
        answered_end=(0, 0),
        next_tid=0,
        now_ms=0,
    )
    host._state = before
    transition = HOST_TRANSITIONS[event]
    if before not in transition:
        with pytest.raises(AssertionError, match=f"can't be {event}: it is {before}"):
            host._enter(event)
        assert host._state == before
        return
    host._enter(event)
    assert host._state == transition[before]


def test_every_state_of_a_host_can_be_reached() -> None:
    reached: set[HostState] = {"waiting"}
    for _ in HOST_STATES:
        for row in HOST_TRANSITIONS.values():
            reached |= {after for before, after in row.items() if before in reached}
    assert reached == set(HOST_STATES)


def test_a_host_changes_its_state_in_one_place() -> None:
    found = {each for each in assigned_in("hosting") if each[2].endswith("._state")}
    assert found == {
        ("host.py", "__init__", "self._state"),
        ("host.py", "_enter", "self._state"),
    }
