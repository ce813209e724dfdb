"""Who has no key, holds a port, and passes requests on: to another process, or twice."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random

import pytest

from tasksprint.asking.cluster import Cluster
from tasksprint.errors import PeerUnreachable, RemoteProtocolError
from tasksprint.ids import ReplicaId
from tasksprint.net.gate import Gate
from tasksprint.net.http_blocking import request_blocking
from tasksprint.net.http_messages import HttpResponse
from tasksprint.net.keys import ClusterKey
from tasksprint.net.router import Request, Response, Router, json_response
from tasksprint.net.streams import PeerStreams
from tasksprint.settings import Settings
from tests.cases.between import between
from tests.net.support import client_of, run, serving, until

SETTINGS = Settings()

Ask = Callable[[ClusterKey, str, bool], Awaitable[HttpResponse]]


def new_key() -> ClusterKey:
    """The same secret, in a process of its own."""
    return ClusterKey(bytes(range(32)))


async def _by_client(key: ClusterKey, address: str, repeatable: bool) -> HttpResponse:
    async with client_of(key) as client:
        return await client.request(address, "POST", "/do", repeatable=repeatable)


async def _by_command(key: ClusterKey, address: str, repeatable: bool) -> HttpResponse:
    ask = partial(request_blocking, key=key, settings=SETTINGS, repeatable=repeatable)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, lambda: ask(address, "POST", "/do"))


both = pytest.mark.parametrize("ask", [_by_client, _by_command])


def counting(done: list[str]) -> Router:
    def do(request: Request) -> Response:
        done.append(request.path)
        return json_response({})

    router = Router()
    router.add("POST", "/do", do)
    return router


@both
def test_refusal_of_another_process_is_no_answer(ask: Ask) -> None:
    async def main() -> None:
        done: list[str] = []
        async with between(counting(done), is_known=False) as there:
            with pytest.raises(RemoteProtocolError) as caught:
                await ask(new_key(), there.address, True)
            assert str(caught.value) == (
                f"what answers at {there.address} isn't called by that address; call it by the "
                "address on which it listens, or name this one to it with --advertise, which may "
                "be given several times"
            )
            assert len(there.sent) == 2  # a head and no body: it isn't signed anew
            assert done == []

    run(main)


def test_command_goes_on_from_who_passes_it_to_another_process() -> None:
    async def main() -> None:
        done: list[str] = []
        async with (
            between(counting(done), is_known=False) as there,
            serving(counting(done), gate=Gate(new_key())) as leader,
        ):
            cluster = Cluster([there.address, leader.address], new_key(), SETTINGS)
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(None, lambda: cluster.request("POST", "/do"))
            assert found.status == 200 and done == ["/do"] and len(there.sent) == 2

    run(main)


def test_peer_called_by_another_address_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    def streams(peers: dict[ReplicaId, str]) -> PeerStreams:
        nothing = [lambda *told: None] * 4
        names = ("on_frame", "on_frames_end", "on_connected", "on_disconnected")
        return PeerStreams(
            ReplicaId(1), peers, new_key(), SETTINGS, Random(1),
            **dict(zip(names, nothing, strict=True)),
        )  # fmt: skip

    async def main() -> None:
        router = Router()
        streams({}).add_to(router)
        async with between(router, is_known=False) as there:
            mine = streams({ReplicaId(2): there.address})
            mine.start()
            await until(lambda: f"{there.address} isn't called by that address" in caplog.text)
            await mine.close()

    run(main)


# --- what was carried out already ---


@both
def test_request_that_was_carried_out_is_not_signed_anew_if_that_matters(ask: Ask) -> None:
    """1. Who is between hands it on twice. 2. It answers with the proved 'received before'."""

    async def main() -> None:
        done: list[str] = []
        async with between(counting(done)) as there:
            key = new_key()
            await ask(key, there.address, False)  # Its life is known from now on.
            assert len(done) == 1
            there.times = 2
            with pytest.raises(PeerUnreachable, match="or has the request already"):
                await ask(key, there.address, False)
            assert len(done) == 2
            # What may be done twice is.
            there.times = 1
            there.gate.life = os.urandom(8).hex()
            await ask(key, there.address, True)
            assert len(done) == 3

    run(main)


@both
def test_request_for_an_earlier_life_is_not_signed_anew_if_that_matters(ask: Ask) -> None:
    """A stop that was obeyed must not stop what was started in its place."""

    async def main() -> None:
        done: list[str] = []
        async with between(counting(done)) as there:
            key = new_key()
            await ask(key, there.address, False)
            there.gate.life = os.urandom(8).hex()
            with pytest.raises(PeerUnreachable, match="it was started anew"):
                await ask(key, there.address, False)
            assert len(done) == 1
            await ask(key, there.address, False)  # Who asks again knows what happened.
            assert len(done) == 2

    run(main)


@both
def test_who_asks_for_the_first_time_is_told_the_life(ask: Ask) -> None:
    async def main() -> None:
        done: list[str] = []
        async with between(counting(done)) as there:
            there.times = 2
            # Told twice; then carried out once, and refused as one that has come before.
            with pytest.raises(RemoteProtocolError) as error:
                await ask(new_key(), there.address, False)
            assert str(error.value) == (
                f"{there.address} has received this request before, and may have carried it out: "
                "something on the way sends requests twice"
            )
            assert len(done) == 1

    run(main)
