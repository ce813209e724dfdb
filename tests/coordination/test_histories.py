"""Random histories: invariants, restored replicas, followed views, and jobs that end.

`Chaos` (chaos.py) says what can happen. These tests don't say what a placement should be,
only that every replica finds the same, that nothing kept incrementally is wrong, that
`task_done` is raised once, and that well-behaved clients bring every job to where only
tasks that failed are in the way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasksprint.coordination.schedule import Schedule
from tasksprint.errors import StoreError
from tasksprint.settings import RULES_BY_VERSION
from tests.coordination.chaos import RULES, Chaos
from tests.coordination.mirror_rows import MirrorRows
from tests.coordination.world import World

steps = st.lists(st.tuples(st.integers(0, 999), st.integers(0, 65_535)), min_size=10, max_size=80)
ROOT = Path(__file__).parent.parent.parent


def numbers(seed: int, count: int) -> list[tuple[int, int]]:
    rng = Random(seed)
    return [(rng.randrange(1_000), rng.randrange(65_536)) for _ in range(count)]


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps, st.booleans(), st.sampled_from([*RULES_BY_VERSION]))
def test_whatever_happens_replicas_agree_and_jobs_end(
    history: list[tuple[int, int]], is_deterministic: bool, version: int
) -> None:
    chaos = Chaos(is_deterministic=is_deterministic, version=version)
    chaos.run(history)
    chaos.settle()


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed", [*range(12), *(pytest.param(n, marks=pytest.mark.long) for n in range(12, 30))]
)
def test_long_histories(seed: int) -> None:
    chaos = Chaos(is_deterministic=seed % 2 == 0, version=1 + seed // 2 % 2)
    chaos.run(numbers(seed, 150))
    chaos.settle()


@pytest.mark.parametrize("seed", [248, 254, 263])
def test_histories_that_once_went_wrong(seed: int) -> None:
    """Restored replicas that counted released dependents; a follower taken back twice."""
    chaos = Chaos(is_deterministic=seed % 2 == 0, version=1)
    chaos.run(numbers(seed, 60))
    chaos.settle()


def replay(log: list[list[str]]) -> str:
    """Apply a log to a new state; return its digest."""
    world = World(rules=replace(RULES, version=2), is_checked=False)
    for entry in log:
        world.apply(*[command.encode() for command in entry])
    return world.schedule.digest


@pytest.mark.slow
def test_the_order_of_hashes_does_not_matter(tmp_path: Path) -> None:
    chaos = Chaos(is_deterministic=False)
    chaos.run(numbers(3, 150))
    chaos.settle()
    log = [[command.decode() for command in entry] for entry in chaos.world.log]
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log), encoding="utf-8")
    program = (
        "import json, sys; from tests.coordination.test_histories import replay;"
        "print(replay(json.load(open(sys.argv[1], encoding='utf-8'))))"
    )
    digests = [
        subprocess.run(
            [sys.executable, "-c", program, str(path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "4242")
    ]
    assert digests == [chaos.world.schedule.digest] * 2


def test_rows_of_another_cluster_are_refused() -> None:
    world = World()
    world.tick()
    mirror = MirrorRows(world.mirror.rows.values())
    with pytest.raises(StoreError, match="the state is of cluster 'c1', expected 'c2'"):
        Schedule(cluster="c2", members=world.members, rules=world.rules, mirror=mirror)


def test_no_rows_at_all_are_the_state_before_the_first_entry() -> None:
    world = World()
    assert world.make_schedule([]).digest == world.make_schedule(None).digest == ""


def test_an_entry_that_changes_nothing_keeps_the_digest_and_moves_the_slot() -> None:
    world = World()
    world.tick()
    digest = world.schedule.digest
    applied = world.apply()
    assert world.schedule.digest == digest
    assert [(row.table, row.key) for row in applied.rows] == [("facts", ("digest",))]
    world.restart()
    assert world.schedule.applied_slot == 2


def test_an_entry_out_of_order_is_our_bug() -> None:
    world = World()
    with pytest.raises(AssertionError, match="slot 2 after 0"):
        world.schedule.apply(2, ())  # type: ignore[arg-type]
