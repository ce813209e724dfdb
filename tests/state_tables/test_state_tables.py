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
from tasksprint.execution.records import NODE_TRANSITIONS, NodeState
from tasksprint.ids import JobId, ReplicaId, TaskId
from tasksprint.settings import RULES
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


TABLES = {"task": of_tasks, "node": of_nodes}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_the_one_that_was_read(name: str, request: pytest.FixtureRequest) -> None:
    path = FOLDER / f"{name}.txt"
    printed = TABLES[name]()
    if request.config.getoption("--rewrite"):
        path.write_text(printed, encoding="utf-8")
    assert printed == path.read_text(encoding="utf-8")


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


def test_tasks_change_their_states_in_one_file() -> None:
    """By what the sources assign: the state of a task, and what counts tasks by state."""
    found = set()
    for path in sorted((ROOT / "tasksprint" / "coordination").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            targets: list[ast.expr] = []
            if isinstance(node, ast.Assign):
                targets = node.targets
            elif isinstance(node, ast.AugAssign):
                targets = [node.target]
            for target in targets:
                text = ast.unparse(target)
                if text.endswith((".counts", ".state")) or ".counts[" in text or "counts[" in text:
                    found.add((path.name, text))
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
