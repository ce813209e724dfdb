"""From the loss of the leader, or of all, to the next acknowledged command; three members.

A command is sent each 20 ms, first to the leader, then to the next member on an error
or after 250 ms without an answer. Commands first sent after the loss count: the time ends with
the first acknowledgement of one. The leader is lost in two ways: its process is killed
(SIGKILL), or it falls silent (SIGSTOP; it is continued after the measurement). It is back and
level before the next round.

At last all three are killed and started again. The time goes from the start of their processes
to the first acknowledged command, while each member is asked every 20 ms. They run from
compiled bytecode, like any program that was started before.

Our command is the cancellation of a job that doesn't exist. It is chosen, durable on a majority
and applied like any other, and gets the state machine's answer. etcd's, in the same run if it
is installed, is a put of 256 bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import re
import signal
import statistics
import time
from typing import Any, Protocol

from bench import peer_etcd
from bench.cluster import own_bytecode
from tasksprint.asking.rota import leader_hint
from tasksprint.cli.run import PrivateCluster
from tasksprint.encoding import encode_json
from tasksprint.errors import PeerUnreachable, Refused, RemoteProtocolError
from tasksprint.net.http_client import HttpClient
from tasksprint.net.http_messages import MISDIRECTED
from tasksprint.net.keys import load_key
from tasksprint.settings import Settings

__all__ = ["measure"]

_INTERVAL_S = 0.02
_TRY_S = 0.25
_STEADY_S = 1.0
_GIVE_UP_S = 30.0
_RETRY_S = 0.005
_WAYS = ("killed", "silent")


def measure(kills: int, *, restarts: int = 5, peers: bool = True) -> dict[str, object]:
    """Return the seconds of each fail-over, with median and maximum."""
    return {
        "rounds": kills,
        "restarts": restarts,
        "load_before": round(os.getloadavg()[0], 2),
        **_tasksprint(kills, restarts),
        "etcd": _etcd(kills, restarts) if peers else None,
    }


def _tasksprint(rounds: int, restarts: int) -> dict[str, Any]:
    with own_bytecode(), PrivateCluster(coordinators=3, clients=0, nodes=1) as private:
        private.connect(Settings())
        return asyncio.run(_all_ways(_TaskSprint(private), rounds, restarts))


def _etcd(rounds: int, restarts: int) -> dict[str, Any]:
    command = peer_etcd.etcd_command()
    if command is None:
        nothing = dict.fromkeys(("killed_s", "silent_s", "restarted_s"))
        return {**nothing, "note": peer_etcd.MISSING}
    with peer_etcd.Etcd(command) as cluster:
        return asyncio.run(_all_ways(_EtcdSystem(cluster), rounds, restarts))


class _System(Protocol):
    """Three members that can be asked and hurt."""

    async def steady_leader(self) -> int:
        """Wait until all members agree on a leader and are level; return its index."""

    async def ask(self, member: int, number: int) -> int | bool:
        """Send one command; return whether it was acknowledged, or the member to ask."""

    def lose(self, member: int, way: str) -> None:
        """Kill a member, or silence it."""

    def bring_back(self, member: int, way: str) -> None:
        """Start it again, or let it go on."""

    async def close(self) -> None:
        """Close connections."""


async def _all_ways(system: _System, rounds: int, restarts: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    try:
        for way in _WAYS:
            figures[f"{way}_s"] = _summary([await _one(system, way) for _ in range(rounds)])
        figures["restarted_s"] = _summary([await _restart(system) for _ in range(restarts)])
    finally:
        await system.close()
    return figures


def _summary(times_s: list[float]) -> dict[str, Any] | None:
    if not times_s:
        return None
    return {
        "median": round(statistics.median(times_s), 4),
        "max": round(max(times_s), 4),
        "all": [round(each, 4) for each in sorted(times_s)],
    }


async def _one(system: _System, way: str) -> float:
    leader = await system.steady_leader()
    numbers = itertools.count(1)
    first_ack: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    lost_s = float("inf")
    tasks: set[asyncio.Task[None]] = set()

    async def command(number: int) -> None:
        sent_s = time.perf_counter()
        await _acknowledged(system, leader, number)
        if sent_s > lost_s and not first_ack.done():
            first_ack.set_result(time.perf_counter())

    started_s = time.perf_counter()
    while not first_ack.done():
        now_s = time.perf_counter()
        if lost_s == float("inf") and now_s - started_s > _STEADY_S:
            lost_s = time.perf_counter()
            system.lose(leader, way)  # Returns once a killed process is gone.
        if now_s - started_s > _GIVE_UP_S:
            raise SystemExit(f"no command was acknowledged after the leader was {way}")
        task = asyncio.ensure_future(command(next(numbers)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await asyncio.sleep(_INTERVAL_S)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    system.bring_back(leader, way)
    return first_ack.result() - lost_s


async def _restart(system: _System) -> float:
    """Kill all members and start them again."""
    await system.steady_leader()
    for member in range(3):
        system.lose(member, "killed")
    started_s = time.perf_counter()
    for member in range(3):
        system.bring_back(member, "killed")
    asking = [asyncio.ensure_future(_ask_until_acknowledged(system, each)) for each in range(3)]
    done, others = await asyncio.wait(
        asking, timeout=_GIVE_UP_S, return_when=asyncio.FIRST_COMPLETED
    )
    taken_s = time.perf_counter() - started_s
    for task in others:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    if not done:
        raise SystemExit("no command was acknowledged after all members were killed")
    return taken_s


async def _ask_until_acknowledged(system: _System, member: int) -> None:
    for number in itertools.count(member, 3):
        with contextlib.suppress(asyncio.TimeoutError):
            if await asyncio.wait_for(system.ask(member, number), _TRY_S) is True:
                return
        await asyncio.sleep(_INTERVAL_S)  # Real time: between one try and the next.


async def _acknowledged(system: _System, first: int, number: int) -> None:
    """Send one command until it is acknowledged."""
    member = first
    for turn in itertools.count(first + 1):
        following = turn % 3
        try:
            answer = await asyncio.wait_for(system.ask(member, number), _TRY_S)
            if answer is True:
                return
            if answer is not False:
                following = answer
        except asyncio.TimeoutError:
            pass
        await asyncio.sleep(_RETRY_S)  # Real time: as a client waits before it asks the next.
        member = following if following != member else turn % 3


class _TaskSprint:
    def __init__(self, private: PrivateCluster) -> None:
        self._private = private
        self._http = HttpClient(load_key(private.directory / "key"), Settings())
        self._sender = f"bench-{random.getrandbits(64):016x}"
        self._round = 0

    async def steady_leader(self) -> int:
        self._round += 1
        failure = ""
        for _ in range(300):
            try:
                found = [
                    (await self._http.request(address, "GET", "/v1/status")).checked().json()
                    for address in self._private.addresses
                ]
                failure = ""
            except (PeerUnreachable, Refused, RemoteProtocolError) as error:
                found, failure = [], str(error)
            leaders = {status["leader"] for status in found}
            applied = [status["applied_slot"] for status in found]
            is_level = bool(found) and max(applied) - min(applied) < 3
            if is_level and len(leaders) == 1 and None not in leaders:
                return int(leaders.pop()) - 1
            await asyncio.sleep(0.1)  # Real time: between one look and the next.
        raise SystemExit(f"the members don't agree on a leader: {failure or found}")

    async def ask(self, member: int, number: int) -> int | bool:
        sender = f"{self._sender}-{self._round}"
        body = encode_json({"sender": sender, "request": number, "reason": "x" * 200})
        addresses = self._private.addresses
        try:
            response = await self._http.request(
                addresses[member], "POST", "/v1/jobs/999999999/cancel", body=body
            )
        except (PeerUnreachable, Refused, RemoteProtocolError):
            return False
        if response.status == MISDIRECTED:
            hint = leader_hint(response)
            return addresses.index(hint) if hint in addresses else False
        # There is no such job to cancel: 404, once the log says so.
        return response.status in (200, 404)

    def lose(self, member: int, way: str) -> None:
        name = f"coordinator-{member + 1}"
        if way == "killed":
            self._private.kill(name)
        else:
            os.killpg(self._private.pid(name), signal.SIGSTOP)

    def bring_back(self, member: int, way: str) -> None:
        name = f"coordinator-{member + 1}"
        if way == "killed":
            self._private.restart(name)
        else:
            os.killpg(self._private.pid(name), signal.SIGCONT)

    async def close(self) -> None:
        await self._http.close()


_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_LENGTH = re.compile(rb"[Cc]ontent-[Ll]ength: (\d+)")


class _EtcdSystem:
    def __init__(self, cluster: peer_etcd.Etcd) -> None:
        self._cluster = cluster
        self._unused: list[list[_Stream]] = [[], [], []]

    async def steady_leader(self) -> int:
        for streams in self._unused:
            for _, writer in streams:
                writer.close()
            streams.clear()
        return await asyncio.get_running_loop().run_in_executor(None, self._cluster.steady_leader)

    async def ask(self, member: int, number: int) -> int | bool:
        unused = self._unused[member]
        try:
            stream = unused.pop() if unused else await self._connect(member)
        except OSError:
            return False
        reader, writer = stream
        try:
            writer.write(peer_etcd.put_request(f"f{number}"))
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            await reader.readexactly(int(length[1]) if length else 0)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()
            return False
        except asyncio.CancelledError:
            writer.close()
            raise
        unused.append(stream)
        return head[9:12] == b"200"

    async def _connect(self, member: int) -> _Stream:
        return await asyncio.open_connection("127.0.0.1", self._cluster.ports[member])

    def lose(self, member: int, way: str) -> None:
        if way == "killed":
            self._cluster.kill(member)
        else:
            self._cluster.pause(member)

    def bring_back(self, member: int, way: str) -> None:
        if way == "killed":
            self._cluster.restart(member)
        else:
            self._cluster.resume(member)

    async def close(self) -> None:
        for streams in self._unused:
            for _, writer in streams:
                writer.close()
