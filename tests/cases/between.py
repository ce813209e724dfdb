"""A machine between one of ours and those who ask it."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable

from tasksprint.net.gate import Gate
from tasksprint.net.http_server import HttpServer
from tasksprint.net.router import Router
from tests.net.support import KEY, raw_connection, serving

__all__ = ["Between", "Change", "between"]

Change = Callable[[bytes, bytes], tuple[bytes, bytes]]


class Between:
    """A machine between a server and those who ask it; it may change the answers."""

    def __init__(self, server: HttpServer, gate: Gate) -> None:
        self._server = server
        self.gate = gate
        self.change: Change = lambda head, body: (head, body)
        self.sent: list[bytes] = []  # heads of requests, and their bodies
        self.times = 1  # each request is handed on so often; the last answer goes back
        self.address = ""

    async def listen(self) -> None:
        self._listener = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            async with raw_connection(self._server.address) as there:
                while True:
                    head, body = await _read_message(reader)
                    self.sent += [head, body]
                    for _ in range(self.times - 1):
                        async with raw_connection(self._server.address) as another:
                            another.write(head + body)
                            await _read_message(another.reader)
                    there.write(head + body)
                    head, body = self.change(*await _read_message(there.reader))
                    if b"chunked" in head:
                        chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
                        body = chunk + b"0\r\n\r\n"
                    writer.write(head + body)
        writer.close()

    def close(self) -> None:
        self._listener.close()


async def _read_message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return a head, and a body without the bounds of its chunks."""
    head = await reader.readuntil(b"\r\n\r\n")
    if b"Transfer-Encoding: chunked" in head:
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
        return head, body
    length = re.search(rb"Content-Length: (\d+)", head)
    return head, await reader.readexactly(int(length[1]) if length else 0)


@contextlib.asynccontextmanager
async def between(router: Router, *, is_known: bool = True) -> AsyncIterator[Between]:
    """Serve, with a machine before it.

    Args:
        is_known: Whether the server was told that it is called by that machine's address.
    """
    gate = Gate(KEY)
    async with serving(router, gate=gate) as server:
        made = Between(server, gate)
        await made.listen()
        if is_known:
            gate.allow(made.address)
        try:
            yield made
        finally:
            made.close()
