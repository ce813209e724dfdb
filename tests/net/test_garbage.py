"""Changed bytes, on every parser that faces the network: an answer or an end, never a bug."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from random import Random

import pytest

from tasksprint.errors import PeerUnreachable, RemoteProtocolError
from tasksprint.net.gate import Gate
from tasksprint.net.router import Router
from tests.fuzz.http import changed
from tests.net.support import (
    KEY,
    SETTINGS,
    client_of,
    echo,
    raw_connection,
    run,
    serving,
)
from tests.net.test_http_client import _says, strange_server

_ROUNDS = 400


@pytest.mark.slow
def test_changed_requests_are_answered_or_cut_and_never_a_bug() -> None:
    async def main() -> None:
        random = Random(7)
        bugs: list[BaseException] = []
        router = Router()
        router.add("POST", "/x", echo)
        router.add("POST", "/jobs/{job}/values/{key:text}", echo)
        gate = Gate(KEY)
        async with serving(router, gate=gate, on_bug=bugs.append) as server:
            address = server.address
            KEY.learn_life(address, gate.life, signed_for="")

            def good(method: str, target: str, framing: str, body: str, sent: str = "") -> bytes:
                digest = hashlib.sha256(body.encode()).hexdigest() if body else ""
                signature = KEY.sign(method, target, address, body=digest).authorization
                return (
                    f"{method} {target} HTTP/1.1\r\nHost: {address}\r\n"
                    f"Authorization: {signature}\r\n{framing}\r\n\r\n{sent or body}"
                ).encode()

            for number in range(_ROUNDS):
                data = random.choice(
                    [
                        good("POST", "/x?a=1", "Content-Length: 0", ""),
                        good("POST", "/jobs/3/values/a%20b", "Content-Length: 4", "body"),
                        good(
                            "POST",
                            "/x",
                            "Transfer-Encoding: chunked",
                            "abc",
                            "3\r\nabc\r\n0\r\n\r\n",
                        ),
                        good("POST", "/x", "Connection: Upgrade\r\nUpgrade: h2c", ""),
                    ]
                )
                async with raw_connection(address) as raw:
                    raw.write(changed(data, random) + data)
                    raw.writer.write_eof()
                    try:
                        answer = await raw.rest()
                    except ConnectionResetError:
                        answer = b""
                    assert not answer or answer.startswith(b"HTTP/1.1 "), (number, data)
            assert bugs == []
            async with client_of(KEY) as client:
                assert (await client.request(address, "POST", "/x", body=b"ok")).body == b"ok"

    run(main)


@pytest.mark.slow
def test_changed_answers_are_answers_or_errors_that_name_the_address() -> None:
    async def main() -> None:
        random = Random(8)
        settings = replace(SETTINGS, answer_timeout_ms=500)
        good = [
            b'HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 7\r\n\r\n{"a":1}',
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ]
        talks = [_says(changed(random.choice(good), random)) for _ in range(_ROUNDS)]
        async with strange_server(*talks) as (address, _):
            for _ in range(_ROUNDS):
                async with client_of(None, settings) as client:
                    try:
                        await client.request(address, "GET", "/", repeatable=False)
                    except (PeerUnreachable, RemoteProtocolError) as error:
                        assert address in str(error)
            await asyncio.sleep(0)

    run(main)
