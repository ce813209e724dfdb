"""What the tests of the network share: a loop with a deadline, servers, raw connections."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

from tasksprint.net.bugs import Bugs
from tasksprint.net.gate import Access, Gate
from tasksprint.net.http_client import HttpClient
from tasksprint.net.http_messages import response_head, response_lines
from tasksprint.net.http_server import HttpServer
from tasksprint.net.keys import ClusterKey
from tasksprint.net.proofs import proof_line
from tasksprint.net.router import Handler, Later, Request, Response, Router
from tasksprint.settings import Settings

KEY = ClusterKey(bytes(range(32)))
OTHER_KEY = ClusterKey(bytes(32))
SETTINGS = Settings()
DEADLINE_S = 100.0


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine function to its end, and fail if it takes too long."""

    async def bounded() -> None:
        await asyncio.wait_for(main(), DEADLINE_S)

    asyncio.run(bounded())


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds; `run` bounds the time."""
    while not condition():
        await asyncio.sleep(0.001)


async def quiet(figure: Callable[[], object]) -> None:
    """Wait until a figure stays as it is, turn after turn of the loop.

    For what only this loop moves, at both ends of a connection.
    """
    seen: object = None
    while seen != figure():
        seen = figure()
        for _ in range(200):
            await asyncio.sleep(0)


def echo(request: Any) -> Response:
    """A handler that gives the body back."""
    return Response(200, request.body, "application/octet-stream")


def answered_later() -> tuple[list[Later], Handler]:
    """Return a handler that answers nothing yet, and the answers that it owes."""
    owed: list[Later] = []

    def handler(request: Request) -> Later:
        owed.append(Later())
        return owed[-1]

    return owed, handler


def routes(*added: tuple[str, str, Handler], access: Access = Access.KEY) -> Router:
    router = Router()
    for method, path, handler in added:
        router.add(method, path, handler, access=access)
    return router


@contextlib.asynccontextmanager
async def serving(
    router: Router,
    *,
    gate: Gate | None = None,
    settings: Settings = SETTINGS,
    on_bug: Callable[[BaseException], None] | None = None,
) -> AsyncIterator[HttpServer]:
    """Serve on a free port while in the context."""
    server = HttpServer(router, gate, settings, bugs=Bugs(on_bug))
    await server.listen("127.0.0.1:0")
    try:
        yield server
    finally:
        await server.close(grace_ms=0)


def proven(
    head: bytes,
    status: int = 200,
    body: bytes = b"ok",
    *,
    headers: Mapping[str, str] | None = None,
    key: ClusterKey = KEY,
    kind: str = "whole",
) -> bytes:
    """Return the answer to a signed request as who knows the key gives it, whatever it says."""
    mac = re.search(rb"mac=([0-9a-f]{64})", head)
    assert mac is not None, head
    lines = response_lines(
        status, content_type="application/json", body_bytes=len(body), headers=headers
    )
    _, proof = proof_line(key, mac[1].decode(), kind, status, lines, body)
    return response_head(status, lines, proof=proof) + body


@contextlib.asynccontextmanager
async def client_of(
    key: ClusterKey | None = None, settings: Settings = SETTINGS
) -> AsyncIterator[HttpClient]:
    client = HttpClient(key, settings)
    try:
        yield client
    finally:
        await client.close()


class Raw:
    """A connection on which a test writes and reads bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read one answer that names its length or comes in chunks."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        status = int(head[0].split()[1])
        headers = {}
        for line in head[1:-2]:
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        body = b""
        if headers.get("transfer-encoding") == "chunked":
            chunks = []
            while not chunks or chunks[-1]:
                size = int((await self.reader.readuntil(b"\r\n"))[:-2], 16)
                chunks.append((await self.reader.readexactly(size + 2))[:-2])
            body = b"".join(chunks)
        elif status >= 200:
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return status, headers, body

    async def rest(self) -> bytes:
        """Read all until the server closes."""
        return await self.reader.read()


@contextlib.asynccontextmanager
async def raw_connection(address: str) -> AsyncIterator[Raw]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()
