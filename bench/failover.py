"""From kill -9 of the leader to the next acknowledged command; three coordinators, defaults.

A command is sent each 20 ms, first to the leader, then to the next member on an error
or after 250 ms without an answer. What counts is the acknowledgement of the first
command that was first sent after the kill. The member is restarted and has caught up
before the next kill. (Method and figures for etcd: the same.)

The command is the cancellation of a job that doesn't exist: it is chosen, durable on a
majority and applied like any other, and answered with what the state machine says.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time

from tasksprint.encoding import encode_json
from tasksprint.errors import PeerUnreachable, Refused, RemoteProtocolError
from tasksprint.net.http_client import HttpClient
from tasksprint.net.keys import ClusterKey, load_key
from tasksprint.roles.leader import MISDIRECTED, leader_hint
from tasksprint.roles.run import PrivateCluster
from tasksprint.settings import Settings

_INTERVAL_S = 0.02
_TRY_S = 0.25
_STEADY_S = 1.0
_GIVE_UP_S = 30.0


def measure(kills: int) -> dict[str, object]:
    """Return the seconds of each fail-over, with median and maximum."""
    with PrivateCluster(coordinators=3, clients=0, nodes=1) as private:
        key = load_key(private.directory / "key")
        private.connect(Settings())
        times = asyncio.run(_measure(private, key, kills))
    return {
        "kills": kills,
        "killed_s": {
            "median": round(statistics.median(times), 4),
            "max": round(max(times), 4),
            "all": [round(each, 4) for each in sorted(times)],
        },
    }


async def _measure(private: PrivateCluster, key: ClusterKey, kills: int) -> list[float]:
    http = HttpClient(key, Settings())
    try:
        return [await _one(private, http) for _ in range(kills)]
    finally:
        await http.close()


async def _one(private: PrivateCluster, http: HttpClient) -> float:
    leader = await _steady_leader(private, http)
    sender = f"bench-{random.getrandbits(64):016x}"
    numbers = itertools.count(1)
    first_ack: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    killed_s = float("inf")
    tasks: set[asyncio.Task[None]] = set()

    async def command(number: int) -> None:
        sent_s = time.perf_counter()
        await _acknowledged(private.addresses, leader, http, sender, number)
        if sent_s > killed_s and not first_ack.done():
            first_ack.set_result(time.perf_counter())

    started_s = time.perf_counter()
    while not first_ack.done():
        now_s = time.perf_counter()
        if killed_s == float("inf") and now_s - started_s > _STEADY_S:
            private.kill(f"coordinator-{leader + 1}")
            killed_s = time.perf_counter()
        if now_s - started_s > _GIVE_UP_S:
            raise SystemExit("no command was acknowledged after the kill")
        task = asyncio.ensure_future(command(next(numbers)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await asyncio.sleep(_INTERVAL_S)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    private.restart(f"coordinator-{leader + 1}")
    return first_ack.result() - killed_s


async def _acknowledged(
    addresses: list[str], first: int, http: HttpClient, sender: str, number: int
) -> None:
    """Send one command until it is acknowledged."""
    body = encode_json({"sender": sender, "request": number, "reason": "x" * 200})
    address = addresses[first]
    for turn in itertools.count(first + 1):
        following = addresses[turn % len(addresses)]
        try:
            response = await asyncio.wait_for(
                http.request(address, "POST", "/v1/jobs/999999999/cancel", body=body), _TRY_S
            )
            if response.status == 200:
                return
            if response.status == MISDIRECTED:
                following = leader_hint(response) or following
        except (PeerUnreachable, Refused, RemoteProtocolError, asyncio.TimeoutError):
            pass
        if following == address:
            following = addresses[turn % len(addresses)]
        await asyncio.sleep(0.005)
        address = following


async def _steady_leader(private: PrivateCluster, http: HttpClient) -> int:
    """Wait until all members agree on a leader and are level; return its index."""
    failure = ""
    for _ in range(300):
        try:
            found = []
            for address in private.addresses:
                response = await http.request(address, "GET", "/v1/status")
                found.append(response.checked().json())
            failure = ""
        except (PeerUnreachable, Refused, RemoteProtocolError) as error:
            found, failure = [], str(error)
        leaders = {status["leader"] for status in found}
        applied = [status["applied_slot"] for status in found]
        if found and len(leaders) == 1 and None not in leaders and max(applied) - min(applied) < 3:
            return int(leaders.pop()) - 1
        await asyncio.sleep(0.1)
    raise SystemExit(f"the members don't agree on a leader: {failure or found}")
