"""Peers that prove the key and say what can't be: each is told so, and nothing grows."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tasksprint.coordination.commands import (
    JobObserved,
    JoinClient,
    NodesAttached,
    decode_command,
    encode_command,
)
from tasksprint.coordination.observations import DIFFERS
from tasksprint.ids import ClientId, Incarnation
from tasksprint.process.attach import Hello, socket_path
from tasksprint.roles.client.nodes import Nodes
from tests.coordination.world import World, reply_of
from tests.roles.client_world import until as client_until
from tests.roles.client_world import world as client_world
from tests.roles.members import members
from tests.roles.test_coordinator import NO_TICKS, decide, run, until
from tests.store.memory_store import MemoryReplicaStore

ME = Incarnation("bb")
_NAMES_REFUSED = "nodes of 100 names are attached to this client, which is the most"


# --- attached nodes ---


def _named(count: int) -> tuple[tuple[str, int], ...]:
    return tuple((f"n{number:05}", 1) for number in range(count))


@pytest.mark.parametrize(
    ("nodes", "refusal"),
    [
        (
            _named(101),
            "client 1 has attached nodes of 101 names, expected at most 100",
        ),
        (
            (("n" * 201, 1),),
            "client 1 has attached a node whose name has 201 bytes, expected at most 200",
        ),
        (
            (("gpu", 100_001),),
            "client 1 has attached 100001 nodes as 'gpu', expected at most 100000",
        ),
    ],
    ids=["names", "length", "count"],
)
def test_more_attached_nodes_than_a_client_can_have_are_refused(
    nodes: tuple[tuple[str, int], ...], refusal: str
) -> None:
    world = World()
    client = world.join()
    before = world.schedule.digest
    reply = reply_of(world.apply(NodesAttached(client.cid, client.incarnation, 1, nodes)))
    assert reply == {"error": refusal}
    assert world.schedule.digest == before
    # The next one counts, and many are told in a line that ends.
    applied = world.apply(NodesAttached(client.cid, client.incarnation, 1, _named(100)))
    assert reply_of(applied) == {}
    (note,) = applied.notes
    assert note.startswith("cid=1 attached nodes: 1 'n00000', 1 'n00001', ")
    assert note.endswith("1 'n00009', 90 more names")


def test_client_takes_no_node_of_one_name_too_many() -> None:
    nodes = {name: SimpleNamespace(attached=name) for name, _ in _named(100)}
    here = SimpleNamespace(shells=nodes, attaching={})
    assert Nodes.take_hello(cast(Nodes, here), Hello("another", 1, "1")) == _NAMES_REFUSED
    assert not here.attaching


def test_nodes_that_attach_all_at_once_are_taken_up_to_the_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them serves when the last one comes; those that left while they came don't count."""

    def hello(name: str) -> bytes:
        return b'{"attach":"%s","pid":1,"version":"1"}\n' % name.encode()

    async def main() -> None:
        told: list[tuple[tuple[str, int], ...]] = []
        async with client_world(tmp_path) as here:
            before = here.client.leader.ask

            async def ask(*arguments: Any, **options: Any) -> Any:
                if b'"attached"' in options.get("body", b""):
                    command = decode_command(options["body"])
                    assert isinstance(command, NodesAttached)
                    told.append(command.nodes)
                return await before(*arguments, **options)

            monkeypatch.setattr(here.client.leader, "ask", ask)
            path = str(socket_path(tmp_path))
            for number in range(100):
                with socket.socket(socket.AF_UNIX) as left:
                    left.setblocking(False)
                    await asyncio.get_running_loop().sock_connect(left, path)
                    left.sendall(hello(f"left {number}"))
            nodes = [await asyncio.open_unix_connection(path) for _ in range(150)]
            try:
                for (name, _), (_, writer) in zip(_named(150), nodes, strict=True):
                    writer.write(hello(name))
                answers = [await reader.readline() for reader, _ in nodes]
                refused = [json.loads(line)["error"] for line in answers if b"error" in line]
                assert refused == [_NAMES_REFUSED] * 50
                for answer, (_, writer) in zip(answers, nodes, strict=True):
                    writer.write(b'{"ready":{}}\n' if b"error" not in answer else b"")
                await client_until(lambda: told and len(told[-1]) == 100)
                assert not here.client.nodes.attaching
            finally:
                # (What stays attached at its end is killed, and that is this process.)
                for _, writer in nodes:
                    writer.close()
                await client_until(lambda: not here.client.nodes.shells)

    run(main)


def test_client_says_that_its_attached_nodes_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with client_world(tmp_path) as here:
            before = here.client.leader.ask

            async def ask(*arguments: Any, **options: Any) -> Any:
                if b'"attached"' in options.get("body", b""):
                    return {"error": "client 1 has attached …"}
                return await before(*arguments, **options)

            monkeypatch.setattr(here.client.leader, "ask", ask)
            monkeypatch.setattr(here.client.workbench, "attached_nodes", lambda: {"gpu": 1})
            here.client.reporting.attached_changed()
            await client_until(lambda: "aren't taken" in caplog.text)

    run(main)
    assert "cid=1 its attached nodes aren't taken: client 1 has attached …" in caplog.text


# --- joining ---

_LONG = "a" * 5_000
_TOO_LONG = (
    "the client's identity, incarnation or address has 5000 characters, expected at most 300"
)


@pytest.mark.parametrize(
    ("identity", "incarnation", "address", "refusal"),
    [
        ("aa", "bb", "", "the client can't be reached: bad address ''"),
        ("aa", "bb", "h", "the client can't be reached: bad address 'h'"),
        ("aa", "bb", "h:70000", "the client can't be reached: bad address 'h:70000'"),
        ("aa", "bb", "::1:70", "the client can't be reached: bad address '::1:70'"),
        ("aa", "bb", "h:" + "1" * 250, "the client can't be reached: bad address 'h:1111"),
        (_LONG, "bb", None, _TOO_LONG),
        ("aa", _LONG, None, _TOO_LONG),
        ("aa", "bb", _LONG, _TOO_LONG),
        ("", "bb", None, "the client has no name: its identity or incarnation is empty"),
        ("aa", "", None, "the client has no name: its identity or incarnation is empty"),
    ],
)
def test_client_that_nobody_could_reach_or_tell_apart_is_refused(
    tmp_path: Path, identity: str, incarnation: str, address: str | None, refusal: str
) -> None:
    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            join = JoinClient(identity, Incarnation(incarnation), address, "host", 1)
            answer = await leader.ask("POST", "/v1/commands", body=encode_command(join))
            assert answer.status == 400
            assert answer.json()["error"].startswith(refusal)
            assert (await leader.ask("GET", "/v1/clients")).json() == []

    run(main)


def test_warning_of_a_job_is_cut_in_the_log_of_the_process_too() -> None:
    world = World()
    job = world.submit()
    applied = world.apply(JobObserved(job, DIFFERS, "replica 2", "x" * 1_000_000))
    (note,) = applied.notes
    assert note == f"job={job} warning: {'x' * 1_000}…"


# --- views ---


def test_client_that_followed_a_lost_future_joins_anew(tmp_path: Path) -> None:
    """All disks went back in time: what it runs has numbers that are given once more.

    A whole view let it keep what it ran, and report that for the new task of the same numbers.
    """

    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            cid = (await decide(leader, JoinClient("aa", ME, None, "host", 1)))["cid"]
            assert cid == ClientId(1)
            last = leader.coordinator.log.require_schedule().applied_slot
            for since in (last + 1_000_000, 2**63 - 1):
                query = {"cid": cid, "incarnation": ME, "since": since}
                answer = await leader.ask("GET", "/v1/view", query=query)
                assert answer.status == 409
                assert answer.json() == {"error": "unknown or dead"}
            # Nor does who lives no more wait for it for ever.
            query["incarnation"] = "another"
            answer = await leader.ask("GET", "/v1/view", query=query)
            assert answer.status == 409 and answer.json()["error"] == "replaced"

    run(main)


@pytest.mark.parametrize("is_doubtful", [True, False])
def test_first_tick_of_an_only_coordinator_in_doubt_sends_clients_to_join_anew(
    tmp_path: Path, is_doubtful: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log goes on: soon no version that a client followed is one of the future any more."""

    async def main() -> None:
        async with members(1, tmp_path, NO_TICKS) as of:
            leader = await of.leader()
            cid = (await decide(leader, JoinClient("aa", ME, None, "host", 1)))["cid"]
            await leader.stop()
            doubts = "its write-ahead log was removed" if is_doubtful else None
            opened = MemoryReplicaStore.open

            def open_in_doubt(*arguments: Any, **options: Any) -> MemoryReplicaStore:
                store = opened(*arguments, **options)
                store.doubts = doubts
                return store

            monkeypatch.setattr(MemoryReplicaStore, "open", open_in_doubt)
            await leader.start()
            coordinator = leader.coordinator
            await until(lambda: coordinator.log.is_current, "it leads again")
            again = JoinClient("cc", Incarnation("dd"), None, "host", 1)
            living = coordinator.log.require_schedule().living_clients
            if is_doubtful:
                await until(lambda: not living(), "its first tick, which is due at once")
            before = coordinator.log.require_schedule().log_time_ms

            def ticked() -> bool:
                coordinator.ticks.tick_now()
                return coordinator.log.require_schedule().log_time_ms > before

            await until(ticked, "a tick")
            view = {"cid": cid, "incarnation": ME, "since": 0}
            answer = await leader.ask("GET", "/v1/view", query=view)
            assert answer.status == (409 if is_doubtful else 200)
            # Once, and not again.
            view = {"cid": (await decide(leader, again))["cid"], "incarnation": "dd", "since": 0}
            before = coordinator.log.require_schedule().log_time_ms
            await until(ticked, "another tick")
            assert (await leader.ask("GET", "/v1/view", query=view)).status == 200

    run(main)
