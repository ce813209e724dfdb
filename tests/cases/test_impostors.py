"""Who holds the port of one of ours without its key, and answers slowly, endlessly, or oddly."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from tasksprint.errors import PeerUnreachable, RemoteProtocolError, UnprovenAnswer
from tasksprint.net.http_blocking import request_blocking
from tasksprint.net.http_client import HttpClient
from tasksprint.net.proofs import WHOLE, proof_line
from tasksprint.net.router import Request, Router, json_response
from tasksprint.settings import Settings
from tests.net.support import raw_connection, run, serving
from tests.roles.client_world import KEY

SETTINGS = replace(Settings(), answer_timeout_ms=150)
FALSE = b"Proof: %b " + b"0" * 64 + b"\r\n"
HEAD = b"HTTP/1.1 200 OK\r\n"

Ask = Callable[[str], Awaitable[object]]


async def _by_client(address: str) -> object:
    client = HttpClient(KEY, SETTINGS)
    try:
        return await client.request(address, "GET", "/v1/view")
    finally:
        await client.close()


async def _by_command(address: str) -> object:
    def ask() -> object:
        return request_blocking(address, "GET", "/v1/view", key=KEY, settings=SETTINGS)

    return await asyncio.get_running_loop().run_in_executor(None, ask)


@contextlib.asynccontextmanager
async def impostor(
    first: bytes | Callable[[bytes], bytes], again: bytes = b"", pause_s: float = 0.0
) -> AsyncIterator[str]:
    """Answer any request with some bytes, and then with others again and again."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(first if isinstance(first, bytes) else first(head))
            while again:
                writer.write(again)
                await writer.drain()
                await asyncio.sleep(pause_s)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("ask", [_by_client, _by_command])
@pytest.mark.parametrize(
    ("first", "again"),
    [
        pytest.param(HEAD + b"X: ", b"a", id="head"),
        pytest.param(
            HEAD + b"Content-Length: 900000\r\n" + FALSE % b"whole" + b"\r\n", b"a", id="body"
        ),
        pytest.param(HEAD + b"Content-Length: 900000\r\n" + FALSE % b"line" + b"\r\n", b"a"),
        pytest.param(b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 103 E\r\n\r\n", id="interim"),
    ],
)
def test_no_byte_now_and_then_holds_who_asked(ask: Ask, first: bytes, again: bytes) -> None:
    """Nothing was proved, so a slow transfer is as good as none."""

    async def main() -> None:
        async with impostor(first, again, pause_s=0.01) as address:
            with pytest.raises((PeerUnreachable, RemoteProtocolError)):
                await ask(address)

    run(main)


@pytest.mark.parametrize("ask", [_by_client, _by_command])
@pytest.mark.parametrize(
    ("kind", "again"),
    [(b"line", b"2\r\nab\r\n" * 1_000), (b"whole", b"2\r\nab\r\n" * 1_000)],
)
def test_small_pieces_without_end_take_no_memory(ask: Ask, kind: bytes, again: bytes) -> None:
    async def main() -> None:
        head = HEAD + b"Transfer-Encoding: chunked\r\n" + FALSE % kind + b"\r\n"
        async with impostor(head, again) as address:
            with pytest.raises(UnprovenAnswer):
                await ask(address)

    run(main)


@pytest.mark.parametrize("ask", [_by_client, _by_command])
def test_trailers_without_end_take_no_memory(ask: Ask) -> None:
    async def main() -> None:
        head = HEAD + b"Transfer-Encoding: chunked\r\n" + FALSE % b"whole"
        async with impostor(head + b"\r\n0\r\nX: ", b"a" * 10_000) as address:
            with pytest.raises(RemoteProtocolError, match="sends much beside its answer's body"):
                await ask(address)

    run(main)


@pytest.mark.parametrize("ask", [_by_client, _by_command])
def test_proof_of_an_interim_answer_proves_no_other(ask: Ask) -> None:
    """The lines of a good answer were put into one that is thrown away, and so were lost."""
    body, lines = b'{"error":"x"}', b"Content-Type: application/json\r\n"

    def answer(head: bytes) -> bytes:
        found = re.search(rb"mac=([0-9a-f]{64})", head)
        assert found is not None
        _, proof = proof_line(KEY, found[1].decode(), WHOLE, 200, lines, body)
        interim = b"HTTP/1.1 103 Early Hints\r\n" + lines + proof.encode() + b"\r\n"
        return interim + HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body

    async def main() -> None:
        async with impostor(answer) as address:
            with pytest.raises(UnprovenAnswer):
                await ask(address)

    run(main)


def _router() -> Router:
    def answer(request: Request) -> object:
        return json_response(sorted(request.headers))

    router = Router()
    router.add("POST", "/x", answer)  # type: ignore[arg-type]
    return router


@pytest.mark.parametrize(
    ("behind", "status"),
    [
        (b"0\r\n\r\n", 200),
        (b"0\r\nX: y\r\n\r\n", 400),
        (b"0\r\nX: " + b"a" * 100_000, 400),
        (b"1;" + b"a" * 100_000, 400),
    ],
)
def test_what_stands_behind_a_request_is_bounded_and_not_taken(behind: bytes, status: int) -> None:
    async def main() -> None:
        async with serving(_router()) as server, raw_connection(server.address) as raw:
            raw.write(b"POST /x HTTP/1.1\r\nHost: %b\r\n" % server.address.encode())
            raw.write(b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
            for start in range(0, len(behind), 4_096):
                raw.write(behind[start : start + 4_096])
                await asyncio.sleep(0)
            assert (await raw.answer())[0] == status

    run(main)
