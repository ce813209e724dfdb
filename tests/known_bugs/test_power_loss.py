"""bakwc/PySyncObj#197: after a loss of power, members waited for each other at start, for ever.

Here: three real coordinators are killed at once and started again, one after the other, in
several orders, without the one that comes last. Each time two of them must be enough.

What a loss of power takes from a disk, kill -9 doesn't: promises and accepted values that
were said before they were durable (bakwc/PySyncObj#84, #202) are the simulator's
(`tests/simulation/test_checkers_bite.py`, `_SpeaksFirst` and `_ForgetsPromises`).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tasksprint.encoding import encode_json
from tasksprint.errors import PeerUnreachable, Refused
from tests.e2e.conftest import wait_until
from tests.torture.machines import Machines

pytestmark = pytest.mark.long

# The third one isn't started, until the end.
ORDERS = ((1, 2, 3), (3, 1, 2), (2, 3, 1), (3, 2, 1))


def decides(machines: Machines, request: int) -> bool:
    """Have a command decided: a cancel of a job that isn't there changes nothing else."""
    body = encode_json({"sender": "test", "request": request, "reason": ""})
    try:
        machines.connect().request("POST", "/v1/jobs/999/cancel", body=body, give_up_ms=100)
    except PeerUnreachable:
        return False
    except Refused as error:
        return str(error) == "there is no job 999"
    return False


def is_up(machines: Machines, name: str) -> bool:
    return machines.status(name) is not None


def test_any_two_of_three_are_enough_to_start_again(tmp_path: Path, command: list[str]) -> None:
    with Machines(tmp_path / "cluster", command=command, coordinators=3, clients=0) as machines:
        machines.start_all()
        wait_until(lambda: decides(machines, 1), "the cluster is founded")
        for number, order in enumerate(ORDERS, 2):
            machines.kill(*machines.coordinators)
            names = [f"coordinator-{each}" for each in order]
            for name in names[:2]:
                machines.start(name)
                wait_until(partial(is_up, machines, name), f"{name} is up")
            wait_until(partial(decides, machines, number), f"{names[:2]} decide")
        machines.start(names[2])
        what = "the one that was away has caught up: "
        wait_until(machines.is_level, what, found=machines.points)
        assert set(machines.end_all().values()) == {0}


def test_one_of_three_alone_says_what_it_waits_for(tmp_path: Path, command: list[str]) -> None:
    with Machines(tmp_path / "cluster", command=command, coordinators=3, clients=0) as machines:
        machines.start_all()
        wait_until(lambda: decides(machines, 1), "the cluster is founded")
        machines.kill(*machines.coordinators)
        machines.start("coordinator-2")
        wait_until(lambda: machines.status("coordinator-2") is not None, "it is up")
        with pytest.raises(PeerUnreachable, match="no coordinator leads at"):
            machines.connect().request("GET", "/v1/jobs", give_up_ms=1_500)
        status = machines.status("coordinator-2")
        assert status is not None and status["leader"] is None
