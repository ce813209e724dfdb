"""The operator of a simulated cluster: adds, replaces and removes members while things go wrong.

Asks by HTTP, as the commands do, and repeats what got no answer or "not now".
"""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import TYPE_CHECKING, Any

from tasksprint.ids import ReplicaId
from tests.simulation.machines import Process
from tests.simulation.world import Unreachable

if TYPE_CHECKING:
    from tests.simulation.whole import Whole

__all__ = ["Operator"]

_MEMBERS_MAX = 5
_NODES_MAX = 9
_NAME = "operator"


class Operator:
    """Somebody who changes the members now and then; in some seeds nobody does."""

    def __init__(self, world: Whole, random: Random) -> None:
        self._world = world
        self._random = random
        self._gap_ms = random.choice((None, 1_000.0, 4_000.0))
        self._is_over = False
        self._process: Process | None = None

    def start(self) -> None:
        """Begin, if this seed has changes."""
        self._process = process = self._world.spawn(_NAME)
        if self._gap_ms is not None:
            process.start(self._work(process, self._gap_ms))

    @property
    def changes_members(self) -> bool:
        """Whether it changes members as it likes; else it replaces those that are lost only."""
        return self._gap_ms is not None

    def replace(self, lost: ReplicaId) -> None:
        """Have a member replaced whose disk is lost; again and again until it is done."""
        assert self._process is not None
        self._process.start(self._replace(self._process, lost))

    async def _replace(self, process: Process, lost: ReplicaId) -> None:
        while True:
            await asyncio.sleep(self._random.uniform(0.2, 1.5))
            listing = await self._ask(process, "GET", "/v1/members", b"", tries=3)
            if listing is None:
                continue
            members = [ReplicaId(member["replica"]) for member in listing["members"]]
            if lost not in members:
                self._world.count("lost members replaced")
                return
            if any(member["replaces"] == lost for member in listing["members"]):
                continue  # It is under way.
            new = self._joining(members)
            if new is not None:
                change = {"change": "replace", "replica": lost, "with": new,
                          "address": self._world.addresses[new]}
                body = json.dumps(change).encode()
                await self._ask(process, "POST", "/v1/members", body, tries=3)

    def stop(self) -> None:
        """Ask for nothing more; what was asked for goes on."""
        self._is_over = True

    async def _work(self, process: Process, gap_ms: float) -> None:
        random = self._random
        while not self._is_over:
            await asyncio.sleep(random.uniform(0.2, 2) * gap_ms / 1000)
            if self._is_over:
                return
            listing = await self._ask(process, "GET", "/v1/members", b"", tries=3)
            if listing is None:
                continue
            change = self._choose(listing)
            if change is not None:
                self._world.say(f"operator: {change}")
                self._world.count("changes asked for")
                await self._ask(
                    process, "POST", "/v1/members", json.dumps(change).encode(), tries=8
                )

    def _choose(self, listing: dict[str, Any]) -> dict[str, Any] | None:
        world, random = self._world, self._random
        members = [ReplicaId(member["replica"]) for member in listing["members"]]
        choice = random.choice(("add", "replace", "remove"))
        if choice == "remove" and len(members) > 1:
            return {"change": "remove", "replica": random.choice(members)}
        if choice == "add" and len(members) >= _MEMBERS_MAX:
            return None
        new = self._joining(members)
        if new is None or choice == "remove":
            return None
        address = world.addresses[new]
        if choice == "add":
            return {"change": "add", "replica": new, "address": address}
        old = random.choice(members)
        return {"change": "replace", "replica": old, "with": new, "address": address}

    def _joining(self, members: list[ReplicaId]) -> ReplicaId | None:
        """Return a coordinator that waits to be added; start one if there is none."""
        world = self._world
        for node in world.nodes.values():
            if node.is_joining and not node.has_ended and node.me not in members:
                replica = node.replica
                if replica is not None and replica.founding is None:
                    return node.me
        if len(world.nodes) < _NODES_MAX:
            me = ReplicaId(max(world.nodes) + 1)
            join = tuple(world.addresses[each] for each in members)
            node = world.add_node(me, join=join)
            world.after(self._random.uniform(0, 100), lambda: world.start_node(node))
        return None

    async def _ask(
        self, process: Process, method: str, path: str, body: bytes, *, tries: int
    ) -> dict[str, Any] | None:
        """Ask somebody, then whom that one names, until there is an answer."""
        world, random = self._world, self._random
        address = random.choice(list(world.addresses.values()))
        for _ in range(tries):
            try:
                status, answer = await world.request(
                    process, address, method, path, body=body, timeout_ms=3_000
                )
            except Unreachable:
                address = random.choice(list(world.addresses.values()))
                continue
            if status == 200:
                found = json.loads(answer)
                assert isinstance(found, dict)
                return found
            if status == 421:
                leader = json.loads(answer).get("leader")
                address = leader or random.choice(list(world.addresses.values()))
            else:
                world.say(f"operator is refused: {answer!r}")
                if b"under way" not in answer:
                    world.count("changes refused")
                    return None
            await asyncio.sleep(random.uniform(0.05, 0.5))
        return None
