"""Real coordinators on a network of namespaces that is cut, and processes that are stopped.

Each coordinator has a namespace of its own (`tests/torture/network.py`); the people of these
tests stand at the bridge and reach every coordinator, also one that the others can't reach.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tasksprint.process.job_directory import pack, read_job
from tasksprint.settings import Settings
from tests.e2e.conftest import wait_until
from tests.linearizability.job_store import check_history
from tests.torture.findings import settle
from tests.torture.load import Load
from tests.torture.machines import CLIENT_HOST, Machines, number_of
from tests.torture.network import Network, cut, mend, why_not

_WHY_NOT = why_not()
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(_WHY_NOT is not None, reason=_WHY_NOT or ""),
]

JOB = Path(__file__).parents[1] / "torture" / "job"
HOSTS = (1, 2, 3)
# Who has these settings holds no election, however long a busy machine keeps it waiting.
PATIENT = 'TASKSPRINT_SETTINGS={"election_timeout_min_ms":5000,"election_timeout_max_ms":6000}'
# Twelve times what a client may be silent for.
STALL_S = 60.0


@pytest.fixture
def network() -> Iterator[Network]:
    """Hosts for three coordinators and a client."""
    with Network([*HOSTS, CLIENT_HOST + 1]) as made:
        yield made


@pytest.fixture
def machines(network: Network, command: list[str], tmp_path: Path) -> Iterator[Machines]:
    """Three coordinators and a client that has joined."""
    with Machines(
        tmp_path / "cluster", command=command, coordinators=3, clients=1, network=network
    ) as made:
        made.start_all()
        wait_until(lambda: made.client_states() == ["alive"], "the client has joined")
        yield made


@pytest.fixture
def load(machines: Machines) -> Iterator[Load]:
    """People at every coordinator, who begin when the test says so and end at its end."""
    archive, _ = pack(JOB, archive_bytes_max=Settings().archive_bytes_max)
    cluster = machines.connect()
    cluster.request("POST", "/v1/programs", body=archive)
    made = Load(
        machines.member_addresses,
        machines.key,
        read_job(JOB),
        archive,
        Random(5),
        submits_per_s=1.0,
    )
    yield made
    made.stop()


def wait_for_leader(machines: Machines, *, other_than: str | None = None) -> str:
    """Wait until a coordinator leads, and return its name."""
    found: list[str] = []

    def is_found() -> bool:
        leader = machines.leader()
        if leader is not None and leader != other_than:
            found.append(leader)
        return bool(found)

    wait_until(is_found, f"a leader other than {other_than}")
    return found[0]


def leader_seen_by(machines: Machines, name: str) -> object:
    """Return whom a coordinator takes for the leader; None: nobody."""
    status = machines.status(name)
    return None if status is None else status["leader"]


def hosts_but(machines: Machines, name: str) -> list[int]:
    return [host for host in HOSTS if host != machines.host(name)]


def acknowledged_by_now(load: Load) -> int:
    return len(load.acknowledged)


def goes_on(load: Load, count: int = 2) -> None:
    """Wait until some more jobs are acknowledged."""
    before = acknowledged_by_now(load)
    wait_until(
        lambda: acknowledged_by_now(load) >= before + count, f"{count} more jobs are acknowledged"
    )


def end_well(machines: Machines, load: Load) -> None:
    """Let all jobs end, and check what everybody saw."""
    load.stop()
    said: list[str] = []
    assert settle(machines, load, Random(6), said.append, limit_s=40) == []
    assert load.wrong == []
    assert check_history(load.history) == []
    codes = machines.end_all()
    assert set(codes.values()) == {0}, codes


def deaths_told(machines: Machines) -> list[str]:
    """Return what the coordinators' logs say of clients that died."""
    return [
        line
        for name in machines.coordinators
        for line in machines.log(name).splitlines()
        if " dead: " in line and "left" not in line
    ]


def test_leader_that_is_cut_off_steps_down_and_the_majority_goes_on(
    machines: Machines, network: Network, load: Load
) -> None:
    old = wait_for_leader(machines)
    load.start()
    goes_on(load)
    cut(network, [machines.host(old)], hosts_but(machines, old))
    new = wait_for_leader(machines, other_than=old)
    wait_until(lambda: leader_seen_by(machines, old) is None, "the old leader has stepped down")
    goes_on(load)
    mend(network, [machines.host(old)], hosts_but(machines, old))
    wait_until(
        lambda: leader_seen_by(machines, old) == leader_seen_by(machines, new),
        "the old leader follows",
    )
    goes_on(load)
    end_well(machines, load)


@pytest.mark.parametrize("what", ["sends", "hears"])
def test_leader_whose_messages_are_lost_one_way_is_replaced(
    what: str, machines: Machines, network: Network, load: Load
) -> None:
    """It hears the others, who don't hear it, or the other way round."""
    old = wait_for_leader(machines)
    load.start()
    goes_on(load)
    pairs = [(machines.host(old), other) for other in hosts_but(machines, old)]
    if what == "hears":
        pairs = [(target, source) for source, target in pairs]
    for source, target in pairs:
        network.lose(source, target)
    wait_for_leader(machines, other_than=old)
    goes_on(load)
    for source, target in pairs:
        network.pass_on(source, target)
    goes_on(load)
    end_well(machines, load)


def test_follower_whose_link_flaps_does_not_disturb_the_leader(
    machines: Machines, network: Network, load: Load
) -> None:
    """It asks for elections, and the third, who hears the leader, refuses."""
    follower = "coordinator-1"
    machines.kill(*machines.coordinators)
    for name in machines.coordinators:
        if name != follower:
            machines.start(name, command=["env", PATIENT, *machines.command])
    leader = wait_for_leader(machines)
    machines.start(follower)
    wait_until(lambda: leader_seen_by(machines, follower) is not None, "it follows")
    began = len(machines.log(follower))
    status = machines.status(leader)
    assert status is not None
    ballot = status["consensus"]["ballot"]  # type: ignore[index]
    load.start()
    random = Random(9)
    flaps = 0
    while flaps < 8 or "asks for an election" not in machines.log(follower)[began:]:
        flaps += 1
        network.plug(machines.host(follower), is_in=False)
        time.sleep(random.uniform(0.02, 2.0))
        network.plug(machines.host(follower), is_in=True)
        time.sleep(random.uniform(0.02, 0.3))
    goes_on(load)
    status = machines.status(leader)
    assert status is not None
    assert status["consensus"]["ballot"] == ballot  # type: ignore[index]
    end_well(machines, load)


def test_stalled_leader_is_replaced_and_declares_nobody_dead_when_it_wakes(
    machines: Machines, load: Load
) -> None:
    """Silence is counted in ticks of the log: who was stalled has counted none.

    Nor does the next leader take clients for dead that waited for the stalled one.
    """
    old = wait_for_leader(machines)
    load.start()
    goes_on(load)
    machines.stop(old)
    end_s = time.monotonic() + STALL_S
    wait_for_leader(machines, other_than=old)
    while time.monotonic() < end_s:
        goes_on(load, 1)
    machines.resume(old)
    wait_until(
        lambda: leader_seen_by(machines, old) not in (None, number_of(old)),
        "the old leader follows",
    )
    goes_on(load)
    wait_until(lambda: machines.client_states() == ["alive"], "the client is alive")
    assert deaths_told(machines) == []
    end_well(machines, load)


def test_whole_cluster_that_stalls_declares_nobody_dead(machines: Machines, load: Load) -> None:
    """All coordinators are stopped for longer than a client may be silent."""
    load.start()
    goes_on(load)
    for name in machines.coordinators:
        machines.stop(name)
    time.sleep(6)  # Real time: more than a client may be silent for, were it counted.
    for name in machines.coordinators:
        machines.resume(name)
    goes_on(load)
    wait_until(lambda: machines.client_states() == ["alive"], "the client is alive")
    assert deaths_told(machines) == []
    end_well(machines, load)


def test_everything_is_killed_and_starts_again(machines: Machines, load: Load) -> None:
    """In any order, and with two of three: tests/known_bugs/test_power_loss.py."""
    load.start()
    goes_on(load)
    machines.kill(*machines.coordinators, *machines.clients)
    machines.start_all()
    goes_on(load)
    end_well(machines, load)
