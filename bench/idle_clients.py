"""Clients that have joined and have nothing to do: `python -m bench.idle_clients ADDRESSES KEY N`.

All are in one process. Each has a connection of its own and a poll of its view under way, like
a real client. Each offers no slots, and one attached node with a name that no job asks for.
Prints a line once all have joined, and goes on until it is stopped.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

from tasksprint.asking.leader import LeaderFinder
from tasksprint.asking.rota import parse_addresses
from tasksprint.coordination.commands import JoinClient, NodesAttached, encode_command
from tasksprint.coordination.view import decode_view
from tasksprint.ids import ClientId, Incarnation, Slot
from tasksprint.net.http_client import HttpClient
from tasksprint.net.keys import load_key
from tasksprint.settings import Settings

# Joins under way at once.
_JOINS_MAX = 50


class _Idlers:
    def __init__(self, addresses: list[str], key: Path, count: int) -> None:
        settings = replace(Settings(), pooled_connections_max=count)
        http = HttpClient(load_key(key), settings)
        self._wait_ms = settings.view_poll_max_ms
        self._leader = LeaderFinder(
            addresses, http, random.Random(), lambda: time.monotonic_ns() // 1_000_000
        )
        self._joins = asyncio.Semaphore(_JOINS_MAX)
        self._to_join = count

    async def idle(self, number: int) -> None:
        """Join, and follow the view for ever."""
        incarnation = Incarnation(os.urandom(8).hex())
        name = f"idle {number} {os.getpid()}"
        async with self._joins:
            join = JoinClient(name, incarnation, None, "idle", 0)
            cid = ClientId((await self._decide(encode_command(join)))["cid"])
            nodes = NodesAttached(cid, incarnation, 1, (("elsewhere", 1),))
            await self._decide(encode_command(nodes))
        self._to_join -= 1
        if not self._to_join:
            print("all have joined", flush=True)
        since = Slot(0)
        while True:
            query: dict[str, str | int] = {"cid": cid, "incarnation": incarnation}
            query |= {"since": since, "wait_ms": self._wait_ms}
            answer = await self._leader.request(
                "GET", "/v1/view", query=query, wait_ms=self._wait_ms
            )
            since = decode_view(answer.checked().body).version

    async def _decide(self, command: bytes) -> dict[str, int]:
        answer = await self._leader.request("POST", "/v1/commands", body=command)
        reply: dict[str, int] = answer.checked().json_object()
        assert "error" not in reply, reply
        return reply


async def main(addresses: str, key: str, count: str) -> None:
    idlers = _Idlers(parse_addresses(addresses), Path(key), int(count))
    await asyncio.gather(*[idlers.idle(number) for number in range(int(count))])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
