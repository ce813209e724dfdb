"""The client for the command line, against a server on another thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from tasksprint.errors import PeerUnreachable, RemoteProtocolError, UnprovenAnswer
from tasksprint.net.gate import Gate
from tasksprint.net.http_blocking import request_blocking
from tasksprint.net.http_messages import HttpResponse
from tasksprint.net.keys import ClusterKey
from tasksprint.net.router import Request, Response
from tasksprint.settings import Settings
from tests.net.support import KEY, OTHER_KEY, SETTINGS, echo, routes, run, serving
from tests.net.test_http_client import ANSWER, QUICK, _never, _says, strange_server


async def _in_thread(call: Callable[[], HttpResponse]) -> HttpResponse:
    return await asyncio.get_running_loop().run_in_executor(None, call)


async def _ask(
    address: str,
    method: str = "GET",
    path: str = "/",
    *,
    key: ClusterKey | None = None,
    settings: Settings = SETTINGS,
    body: bytes = b"",
    wait_ms: int = 0,
) -> HttpResponse:
    return await _in_thread(
        lambda: request_blocking(
            address, method, path, key=key, settings=settings, body=body, wait_ms=wait_ms
        )
    )


@pytest.mark.parametrize("size", [0, 2, 100_000, 4_000_000])
def test_signed_request_is_answered(size: int) -> None:
    async def main() -> None:
        async with serving(routes(("POST", "/x", echo)), gate=Gate(KEY)) as server:
            response = await _ask(server.address, "POST", "/x", key=KEY, body=b"x" * size)
            assert response.body == b"x" * size
            with pytest.raises(UnprovenAnswer, match="has another cluster key"):
                await _ask(server.address, "POST", "/x", key=OTHER_KEY, body=b"x" * size)

    run(main)


def test_handler_sees_the_query() -> None:
    async def main() -> None:
        def handler(request: Request) -> Response:
            return Response(200, request.query["key"].encode())

        async with serving(routes(("GET", "/x", handler))) as server:
            response = await _in_thread(
                lambda: request_blocking(
                    server.address,
                    "GET",
                    "/x",
                    key=None,
                    settings=SETTINGS,
                    query={"key": "a&b"},
                )
            )
            assert response.body == b"a&b"

    run(main)


def test_head_and_100_and_bytes_one_by_one() -> None:
    async def main() -> None:
        data = b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWER
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
        pieces = [data[n : n + 1] for n in range(len(data))]
        async with strange_server(_says(*pieces), _says(head)) as (address, _):
            assert (await _ask(address)).body == b"ok"
            assert (await _ask(address, "HEAD")).headers == {"content-length": "2"}

    run(main)


def test_refusal_before_all_was_sent_is_the_answer() -> None:
    async def main() -> None:
        settings = replace(SETTINGS, body_bytes_max=1000)
        async with serving(routes(("PUT", "/x", echo)), settings=settings) as server:
            response = await _ask(server.address, "PUT", "/x", body=b"x" * 10_000_000)
            assert response.status == 413

    run(main)


def test_failures_say_what_happened() -> None:
    async def main() -> None:
        big = b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000
        upgrade = b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nabc"
        async with strange_server(
            _says(), _says(ANSWER[:-1]), _never, _says(b"SSH-2.0\r\n"), _says(big), _says(upgrade)
        ) as (address, _):
            reach = f"cannot reach {address}: "
            for expected, error in [
                (reach + "it closed the connection without an answer", PeerUnreachable),
                (
                    reach + "it closed the connection in the middle of the answer",
                    PeerUnreachable,
                ),
                (reach + "no answer within 65 ms (answer_timeout_ms)", PeerUnreachable),
                (f"{address} answered what is not HTTP/1.1: ", RemoteProtocolError),
                (f"the answer of {address} has more than 1000 bytes", RemoteProtocolError),
                (f"{address} upgrades unasked", RemoteProtocolError),
            ]:
                settings = replace(QUICK, body_bytes_max=1000)
                with pytest.raises(error) as caught:
                    await _ask(address, settings=settings, wait_ms=5)
                assert str(caught.value).startswith(expected)
        with pytest.raises(PeerUnreachable, match=r"cannot reach 127.0.0.1:1: connection refused"):
            await _ask("127.0.0.1:1")

    run(main)
