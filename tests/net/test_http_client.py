"""The HTTP client against our server, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from tasksprint.errors import PeerUnreachable, Refused, RemoteProtocolError, UnprovenAnswer
from tasksprint.net.gate import Gate
from tasksprint.net.router import Request, Response, Router
from tests.net.support import (
    KEY,
    OTHER_KEY,
    SETTINGS,
    client_of,
    echo,
    proven,
    quiet,
    routes,
    run,
    serving,
    until,
)

QUICK = replace(SETTINGS, answer_timeout_ms=60, connect_timeout_ms=60)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def strange_server(*talks: Talk) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that talks with its nth connection as the nth function says.

    Yields its address and the heads that it received, in order.
    """
    heads: list[bytes] = []
    waiting = list(talks)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await waiting.pop(0)(_Recorder(reader, heads), writer)  # type: ignore[arg-type]
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"127.0.0.1:{port}", heads
    finally:
        server.close()
    assert waiting == [], "not every connection was made"


class _Recorder:
    def __init__(self, reader: asyncio.StreamReader, heads: list[bytes]) -> None:
        self._reader = reader
        self._heads = heads

    async def head(self) -> bytes:
        head = await self._reader.readuntil(b"\r\n\r\n")
        self._heads.append(head)
        return head

    async def readexactly(self, size: int) -> bytes:
        return await self._reader.readexactly(size)

    async def read(self) -> bytes:
        return await self._reader.read()


def _says(*pieces: bytes) -> Talk:
    async def talk(reader, writer) -> None:  # type: ignore[no-untyped-def]
        await reader.head()
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    return talk


def test_signed_requests_on_one_kept_connection() -> None:
    async def main() -> None:
        peers = set()

        def handler(request: Request) -> Response:
            peers.add(request.peer)
            return echo(request)

        gate = Gate(KEY)
        async with (
            serving(routes(("POST", "/x", handler)), gate=gate) as server,
            client_of(KEY) as client,
        ):
            for body in (b"", b"{}", b"x" * 100_000):
                response = await client.request(
                    server.address, "POST", "/x", body=body, query={"a b": "c&d"}
                )
                assert (response.status, response.body) == (200, body)
            assert len(peers) == 1

    run(main)


def test_who_has_another_key_proves_nothing_by_refusing() -> None:
    async def main() -> None:
        async with (
            serving(routes(("POST", "/x", echo)), gate=Gate(KEY)) as server,
            client_of(OTHER_KEY) as client,
        ):
            with pytest.raises(UnprovenAnswer) as caught:
                await client.request(server.address, "POST", "/x", body=b"{}")
            assert caught.value.status == 401
            assert str(caught.value) == (
                f"what answers at {server.address} has another cluster key; "
                "both sides must use the same key file (--key-file, TASKSPRINT_KEY_FILE)"
            )

    run(main)


@pytest.mark.slow
def test_big_bodies_both_ways() -> None:
    async def main() -> None:
        data = bytes(range(256)) * (1 << 17)  # 32 MiB
        async with (
            serving(routes(("POST", "/x", echo)), gate=Gate(KEY)) as server,
            client_of(KEY) as client,
        ):
            response = await client.request(server.address, "POST", "/x", body=data)
            assert response.body == data
            assert (await client.request(server.address, "POST", "/x", body=b"1")).body == b"1"

    run(main)


def test_many_requests_at_once_share_the_pool_afterwards() -> None:
    async def main() -> None:
        async def later(request: Request) -> Response:
            await asyncio.sleep(0)
            return echo(request)

        async with (
            serving(routes(("POST", "/x", later))) as server,
            client_of() as client,
        ):

            async def ask(n: int) -> None:
                response = await client.request(server.address, "POST", "/x", body=b"%d" % n)
                assert response.body == b"%d" % n

            await asyncio.gather(*[ask(n) for n in range(50)])
            await until(lambda: server.connection_count <= SETTINGS.pooled_connections_max)
            assert server.connection_count == SETTINGS.pooled_connections_max

    run(main)


def test_redirect_is_handed_to_the_caller() -> None:
    async def main() -> None:
        def follower(request: Request) -> Response:
            headers = {"Location": "http://127.0.0.1:7071/x"}
            return Response(307, b'{"leader":"127.0.0.1:7071"}', headers=headers)

        async with serving(routes(("POST", "/x", follower))) as server, client_of() as client:
            response = await client.request(server.address, "POST", "/x", body=b"{}")
            assert response.status == 307
            assert response.headers["location"] == "http://127.0.0.1:7071/x"
            assert response.json() == {"leader": "127.0.0.1:7071"}

    run(main)


def test_refusal_before_all_was_sent_is_the_answer() -> None:
    async def main() -> None:
        router = Router()
        router.add("PUT", "/value", echo, body_bytes_max=1000)
        async with serving(router) as server, client_of() as client:
            response = await client.request(
                server.address, "PUT", "/value", body=b"x" * 50_000_000
            )
            assert response.status == 413
            small = await client.request(server.address, "PUT", "/value", body=b"fits")
            assert small.body == b"fits"

    run(main)


# --- streamed answers ---


def _blob(size: int, produced: list[int]) -> Router:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(size // 65536):
            produced[0] += 65536
            yield b"x" * 65536

    return routes(
        ("GET", "/blob", lambda request: Response(200, body(), body_bytes=size)),
        ("GET", "/chunked", lambda request: Response(200, body())),
        ("GET", "/empty", lambda request: Response(200)),
    )


@pytest.mark.parametrize("path", ["/blob", "/chunked"])
def test_streamed_answer_is_read_piece_by_piece(path: str) -> None:
    async def main() -> None:
        size = 8 << 20
        async with serving(_blob(size, [0])) as server, client_of() as client:
            for _ in range(2):
                async with client.stream(server.address, "GET", path) as answer:
                    assert answer.status == 200
                    pieces = [piece async for piece in answer.chunks()]
                assert max(map(len, pieces)) < size
                assert b"".join(pieces) == b"x" * size
            async with client.stream(server.address, "GET", "/empty") as answer:
                pass
            assert server.connection_count == 1

    run(main)


@pytest.mark.slow
def test_slow_reader_of_a_stream_slows_the_server() -> None:
    async def main() -> None:
        produced = [0]
        size = 64 << 20
        async with (
            serving(_blob(size, produced)) as server,
            client_of() as client,
            client.stream(server.address, "GET", "/blob") as answer,
        ):
            await until(lambda: produced[0])
            await quiet(lambda: produced[0])
            assert produced[0] < size // 2
            received = 0
            async for chunk in answer.chunks():
                received += len(chunk)
            assert received == size

    run(main)


def test_stream_that_is_left_early_closes_its_connection() -> None:
    async def main() -> None:
        async with serving(_blob(64 << 20, [0])) as server, client_of() as client:
            async with client.stream(server.address, "GET", "/blob") as answer:
                async for _ in answer.chunks():
                    break
            await until(lambda: server.connection_count == 0)

    run(main)


def test_stream_of_a_refusal_is_read_whole() -> None:
    async def main() -> None:
        async with (
            serving(_blob(0, [0])) as server,
            client_of() as client,
            client.stream(server.address, "GET", "/none") as answer,
        ):
            with pytest.raises(Refused, match="no such path '/none'"):
                (await answer.read()).checked()

    run(main)


def test_stream_that_stops_half_way_raises_after_what_came() -> None:
    async def main() -> None:
        talk = _says(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", b"12345")
        async with strange_server(talk) as (address, _), client_of() as client:
            received = b""
            with pytest.raises(PeerUnreachable, match="closed in the middle of the answer"):
                async with client.stream(address, "GET", "/") as answer:
                    async for chunk in answer.chunks():
                        received += chunk
            assert received == b"12345"

    run(main)


# --- stale connections ---


async def _answers_once(reader, writer) -> None:  # type: ignore[no-untyped-def]
    head = await reader.head()
    if b"Content-Length: 2\r\n" in head:
        await reader.readexactly(2)
    writer.write(proven(head) if b"mac=" in head else ANSWER)


async def _answers_once_then_closes(reader, writer) -> None:  # type: ignore[no-untyped-def]
    await _answers_once(reader, writer)
    await reader.head()  # The next request is read, and not answered.


def test_kept_connection_that_was_closed_is_tried_once_more_on_a_new_one() -> None:
    async def main() -> None:
        async with (
            strange_server(_answers_once_then_closes, _answers_once) as (address, heads),
            client_of(KEY) as client,
        ):
            for _ in range(2):
                response = await client.request(address, "POST", "/x", body=b"{}")
                assert response.body == b"ok"
            nonces = {head.split(b"nonce=")[1][:32] for head in heads}
            assert (len(heads), len(nonces)) == (3, 3)  # Each try is signed anew.

    run(main)


def test_new_connection_that_closes_is_not_tried_again() -> None:
    async def main() -> None:
        async with (
            strange_server(_answers_once_then_closes, _says()) as (address, heads),
            client_of() as client,
        ):
            await client.request(address, "POST", "/x")
            with pytest.raises(PeerUnreachable) as caught:
                await client.request(address, "POST", "/x")
            assert str(caught.value) == (
                f"cannot reach {address}: it closed the connection without an answer"
            )
            assert len(heads) == 3

    run(main)


def test_request_that_may_not_be_repeated_takes_a_new_connection() -> None:
    async def main() -> None:
        async with (
            strange_server(_answers_once_then_closes, _answers_once) as (address, heads),
            client_of() as client,
        ):
            await client.request(address, "POST", "/x")
            await client.request(address, "POST", "/x", repeatable=False)
            assert len(heads) == 2

    run(main)


def test_answer_that_began_is_not_asked_for_again() -> None:
    async def main() -> None:
        async def half(reader, writer) -> None:  # type: ignore[no-untyped-def]
            await reader.head()
            writer.write(ANSWER)
            await reader.head()
            writer.write(b"H")

        async with strange_server(half) as (address, heads), client_of() as client:
            await client.request(address, "POST", "/x")
            with pytest.raises(PeerUnreachable, match="closed in the middle of the answer"):
                await client.request(address, "POST", "/x")
            assert len(heads) == 2

    run(main)


def test_connection_that_is_too_long_unused_is_not_used() -> None:
    async def main() -> None:
        settings = replace(SETTINGS, pooled_connection_idle_ms=0)
        peers = set()

        def handler(request: Request) -> Response:
            peers.add(request.peer)
            return Response(200)

        async with (
            serving(routes(("GET", "/", handler))) as server,
            client_of(None, settings) as client,
        ):
            for _ in range(3):
                await client.request(server.address, "GET", "/")
            assert len(peers) == 3

    run(main)


def test_restarted_server_is_reached_without_a_retry() -> None:
    async def main() -> None:
        async with client_of() as client:
            async with serving(routes(("GET", "/", echo))) as server:
                address = server.address
                await client.request(address, "GET", "/")
            await until(lambda: not client._pool)
            with pytest.raises(PeerUnreachable) as caught:
                await client.request(address, "GET", "/")
            assert str(caught.value) == f"cannot reach {address}: connection refused"

    run(main)


# --- deadlines and other failures ---


async def _never(reader, writer) -> None:  # type: ignore[no-untyped-def]
    await reader.head()
    await reader.read()


def test_answer_that_does_not_come_ends_by_its_deadline() -> None:
    async def main() -> None:
        async with strange_server(_never) as (address, _), client_of(None, QUICK) as client:
            with pytest.raises(PeerUnreachable) as caught:
                await client.request(address, "GET", "/", wait_ms=5)
            assert str(caught.value) == (
                f"cannot reach {address}: no answer within 65 ms (answer_timeout_ms)"
            )

    run(main)


def test_long_poll_may_take_as_long_as_it_said() -> None:
    async def main() -> None:
        async def slow(request: Request) -> Response:
            await asyncio.sleep(0.15)  # Real time: more than the usual deadline, of 60 ms.
            return Response(200, b"at last")

        async with (
            serving(routes(("GET", "/", slow))) as server,
            client_of(None, QUICK) as client,
        ):
            response = await client.request(server.address, "GET", "/", wait_ms=10_000)
            assert response.body == b"at last"

    run(main)


def test_answer_that_stops_half_way_ends_by_its_deadline() -> None:
    async def main() -> None:
        async def stops(reader, writer) -> None:  # type: ignore[no-untyped-def]
            await reader.head()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n12")
            await reader.read()

        async with strange_server(stops) as (address, _), client_of(None, QUICK) as client:
            with pytest.raises(PeerUnreachable, match="no more of the answer within 60 ms"):
                await client.request(address, "GET", "/")

    run(main)


@pytest.mark.slow
def test_server_that_does_not_read_ends_by_the_deadline() -> None:
    async def main() -> None:
        async def deaf(reader, writer) -> None:  # type: ignore[no-untyped-def]
            writer.transport.pause_reading()
            await gone.wait()

        gone = asyncio.Event()
        async with strange_server(deaf) as (address, _), client_of(None, QUICK) as client:
            with pytest.raises(PeerUnreachable, match="no answer within 60 ms"):
                await client.request(address, "PUT", "/", body=b"x" * 50_000_000)
            gone.set()

    run(main)


def test_cancelled_request_closes_its_connection() -> None:
    async def main() -> None:
        cancelled = asyncio.Event()

        async def wait(request: Request) -> Response:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            return Response(200)

        async with serving(routes(("GET", "/", wait))) as server, client_of() as client:
            asked = asyncio.ensure_future(client.request(server.address, "GET", "/"))
            await until(lambda: server.connection_count)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            await until(lambda: server.connection_count == 0)

    run(main)


def test_closed_client_ends_what_is_under_way() -> None:
    async def main() -> None:
        async with strange_server(_never) as (address, heads):
            async with client_of() as client:
                asked = asyncio.ensure_future(client.request(address, "GET", "/"))
                await until(lambda: heads)
            with pytest.raises(PeerUnreachable):
                await asked
            with pytest.raises(PeerUnreachable, match="this process is closing"):
                await client.request(address, "GET", "/")

    run(main)


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        ("127.0.0.1:1", "connection refused"),
        ("no.such.host.invalid:80", "name"),
    ],
)
def test_unreachable_address_is_named_with_the_cause(address: str, cause: str) -> None:
    async def main() -> None:
        async with client_of() as client:
            with pytest.raises(PeerUnreachable) as caught:
                await client.request(address, "GET", "/")
            assert str(caught.value).startswith(f"cannot reach {address}: ")
            assert cause in str(caught.value)

    run(main)


def test_connection_that_is_not_accepted_ends_by_its_deadline() -> None:
    async def main() -> None:
        with socket.socket() as full, contextlib.ExitStack() as stack:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            port = full.getsockname()[1]
            for _ in range(4):  # They fill the queue of a listener that accepts nobody.
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
            async with client_of(None, QUICK) as client:
                with pytest.raises(PeerUnreachable) as caught:
                    await client.request(f"127.0.0.1:{port}", "GET", "/")
            assert str(caught.value) == (
                f"cannot reach 127.0.0.1:{port}: no connection within 60 ms"
            )

    run(main)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "answered what is not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "answered what is not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "has more than 16384 bytes"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
            "upgrades unasked",
        ),
    ],
)
def test_answer_that_is_none_is_a_protocol_error(data: bytes, words: str) -> None:
    async def main() -> None:
        async with strange_server(_says(data)) as (address, _), client_of() as client:
            with pytest.raises(RemoteProtocolError) as caught:
                await client.request(address, "GET", "/")
            assert words in str(caught.value) and address in str(caught.value)

    run(main)


def test_answer_that_is_too_big_is_a_protocol_error() -> None:
    async def main() -> None:
        settings = replace(SETTINGS, body_bytes_max=1000)
        router = routes(("GET", "/", lambda request: Response(200, b"x" * 300_000)))
        async with serving(router) as server, client_of(None, settings) as client:
            with pytest.raises(RemoteProtocolError, match="has more than 1000 bytes"):
                await client.request(server.address, "GET", "/")

    run(main)


def test_answers_byte_by_byte_with_a_100_before() -> None:
    async def main() -> None:
        data = b"HTTP/1.1 100 Continue\r\nX-Early: 1\r\n\r\n" + ANSWER
        talk = _says(*[data[n : n + 1] for n in range(len(data))])
        async with strange_server(talk) as (address, _), client_of() as client:
            response = await client.request(address, "GET", "/")
            assert (response.status, response.body) == (200, b"ok")
            assert response.headers == {"content-length": "2"}

    run(main)


def test_head_request_has_headers_and_no_body() -> None:
    async def main() -> None:
        router = routes(("GET", "/", lambda request: Response(200, b"12345")))
        async with serving(router) as server, client_of() as client:
            for method, body in (("HEAD", b""), ("GET", b"12345"), ("HEAD", b"")):
                response = await client.request(server.address, method, "/")
                assert (response.headers["content-length"], response.body) == ("5", body)
            assert server.connection_count == 1

    run(main)


def test_bytes_that_nobody_asked_for_close_a_kept_connection() -> None:
    async def main() -> None:
        async def talks_on(reader, writer) -> None:  # type: ignore[no-untyped-def]
            await reader.head()
            writer.write(ANSWER)
            await asyncio.sleep(0)
            writer.write(ANSWER)
            await reader.read()

        async with (
            strange_server(talks_on, _says(ANSWER)) as (address, _),
            client_of() as client,
        ):
            await client.request(address, "GET", "/")
            await until(lambda: not client._pool)
            await client.request(address, "GET", "/")

    run(main)
