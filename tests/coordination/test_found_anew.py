"""The state of a cluster that goes on as another one: what stays, and who must begin anew."""

from __future__ import annotations

import hashlib

from tasksprint.coordination.commands import SchedulerOut
from tasksprint.coordination.state_rows import wall_ms_of
from tasksprint.encoding import encode_json
from tasksprint.ids import ReplicaId
from tasksprint.settings import RULES
from tasksprint.task_spec import TaskSpec
from tests.coordination.mirror_rows import MirrorRows
from tests.coordination.test_lost import MAP, after
from tests.coordination.world import World, reply_of

THREE = (ReplicaId(1), ReplicaId(2), ReplicaId(3))


def found_anew(world: World, cluster: str = "c2", member: int = 3) -> None:
    """Let the world go on as another cluster, from its rows as a process would."""
    before = world.schedule.digest
    rows = world.schedule.found_anew(cluster, (ReplicaId(member),))
    world.schedule.check()
    chain = hashlib.sha256(before.encode())
    chain.update(encode_json([(row.table, row.key, row.columns) for row in rows[:-1]]))
    assert world.schedule.digest == chain.hexdigest()
    world.mirror.take(rows)
    world.make_schedule = lambda rows: type(world.schedule)(  # type: ignore[method-assign]
        cluster=cluster, members=(), rules=RULES, mirror=MirrorRows(rows)
    )
    world.restart()
    assert world.state.members == (member,)


def test_clients_join_anew_and_their_results_are_used() -> None:
    world = World(members=THREE)
    client = world.join("a")
    job = world.submit()
    world.answer(job, MAP, after(0), after(1), after(2))
    client.work(1)
    assert world.states(job) == "daaa"
    found_anew(world)
    # Its view may be of a future that never came: it isn't told what changed since then.
    assert client.poll() is None
    assert world.schedule.living_clients() == ((client.cid, "former", 0),)
    joined = client.join()
    assert reply_of(joined)["cluster"] == "c2"
    assert world.states(job) == "daaa"
    assert [one.tid for one in client.poll().run] == [1, 2, 3]  # type: ignore[union-attr]
    client.work()
    assert world.states(job) == "dddd"


def test_client_that_does_not_come_back_dies_by_its_silence() -> None:
    world = World(members=THREE)
    world.join("a")
    job = world.submit()
    world.answer(job, MAP)
    found_anew(world)
    ((cid, incarnation, request),) = world.schedule.living_clients()
    silent = world.join("b").silent()
    world.tick(500, type(silent)(cid, incarnation, request))
    assert [one[0] for one in world.schedule.living_clients()] == [2]
    assert world.states(job) == "a"


def test_schedulers_that_were_given_up_are_tried_again() -> None:
    world = World(members=THREE)
    job = world.submit()
    world.apply(SchedulerOut(ReplicaId(3), job, "crashed", "no memory"))
    assert world.schedule.is_out(job, ReplicaId(3))
    found_anew(world)
    assert not world.schedule.is_out(job, ReplicaId(3))
    assert world.schedule.is_running(job)
    world.apply(SchedulerOut(ReplicaId(3), job, "crashed", "no memory"))
    assert not world.schedule.is_running(job)


def test_state_of_two_clusters_has_two_digests() -> None:
    digests = set()
    for cluster in ("c2", "c3"):
        world = World(members=THREE)
        world.tick()
        found_anew(world, cluster)
        digests.add(world.schedule.digest)
    assert len(digests) == 2


def test_wall_time_stands_in_the_row_of_the_clock() -> None:
    world = World()
    applied = world.tick()
    found = [wall for row in applied.rows if (wall := wall_ms_of(row)) is not None]
    assert found == [world.schedule.wall_ms] == [1_000_000]


def test_numbers_go_on() -> None:
    world = World(members=THREE)
    job = world.submit()
    slot = world.schedule.applied_slot
    found_anew(world)
    assert world.schedule.applied_slot == slot
    assert world.submit() == job + 1
    world.answer(job, TaskSpec("map"))
    assert world.states(job) == "r"
