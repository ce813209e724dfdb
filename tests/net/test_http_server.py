"""The HTTP server, seen from raw connections."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tasksprint.errors import (
    PeerUnreachable,
    Refused,
    RemoteProtocolError,
    SettingsError,
    StoreError,
)
from tasksprint.net.gate import Access, Gate
from tasksprint.net.http_server import HttpServer
from tasksprint.net.keys import NO_BODY, UNKNOWN_LIFE
from tasksprint.net.listener import BACKLOG
from tasksprint.net.router import Later, Request, Response, Router, json_response
from tasksprint.net.tokens import Scope, make_token
from tests.net.support import (
    KEY,
    OTHER_KEY,
    SETTINGS,
    answered_later,
    echo,
    quiet,
    raw_connection,
    routes,
    run,
    serving,
    until,
)

BAD = b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n"


def _post(path: str, body: bytes, *headers: str) -> bytes:
    lines = "".join(f"{line}\r\n" for line in headers)
    length = f"Content-Length: {len(body)}\r\n"
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{length}{lines}\r\n".encode() + body


def _chunked(path: str, *chunks: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"


def _get(path: str, *headers: str) -> bytes:
    lines = "".join(f"{line}\r\n" for line in headers)
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode()


async def _async_echo(request: Request) -> Response:
    await asyncio.sleep(0)
    return echo(request)


def _later_echo(request: Request) -> Later:
    later = Later()
    asyncio.get_running_loop().call_soon(later.answer, echo(request))
    return later


def _later_at_once(request: Request) -> Later:
    later = Later()
    later.answer(echo(request))
    return later


ECHO = (
    ("POST", "/sync", echo),
    ("POST", "/async", _async_echo),
    ("POST", "/later", _later_echo),
    ("POST", "/later-at-once", _later_at_once),
)
PATHS = ["/sync", "/async", "/later", "/later-at-once"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("form", [_post, _chunked])
def test_requests_come_whole_byte_by_byte_and_with_the_next_behind(  # type: ignore[no-untyped-def]
    path: str, form
) -> None:
    async def main() -> None:
        async with serving(routes(*ECHO)) as server, raw_connection(server.address) as raw:
            one, two = form(path, b"first"), form(path, b"second")
            raw.write(one)
            assert (await raw.answer())[2] == b"first"
            for index in range(len(one)):
                raw.write(one[index : index + 1])
                await raw.writer.drain()
                await asyncio.sleep(0)
            assert (await raw.answer())[2] == b"first"
            raw.write(one + two + one[:20])
            assert (await raw.answer())[2] == b"first"
            assert (await raw.answer())[2] == b"second"
            raw.write(one[20:])
            assert (await raw.answer())[2] == b"first"

    run(main)


def test_pipelined_requests_are_answered_in_order_one_at_a_time() -> None:
    async def main() -> None:
        release = asyncio.Event()
        began: list[str] = []

        async def slow(request: Request) -> Response:
            began.append(request.query["n"])
            await release.wait()
            return Response(200, request.query["n"].encode())

        def fast(request: Request) -> Response:
            began.append(request.query["n"])
            return Response(200, request.query["n"].encode())

        router = routes(("GET", "/slow", slow), ("GET", "/fast", fast))
        async with serving(router) as server, raw_connection(server.address) as raw:
            raw.write(
                _get("/slow?n=1") + _get("/fast?n=2") + _get("/slow?n=3") + _get("/fast?n=4")
            )
            await until(lambda: began)
            assert began == ["1"]
            release.set()
            answers = [(await raw.answer())[2] for _ in range(4)]
            assert answers == [b"1", b"2", b"3", b"4"]
            assert began == ["1", "2", "3", "4"]
            raw.write(_get("/fast?n=5"))  # Reading goes on after the crowd.
            assert (await raw.answer())[2] == b"5"

    run(main)


@pytest.mark.slow
def test_many_pipelined_requests_stay_in_order() -> None:
    async def main() -> None:
        def number(request: Request) -> Response:
            return Response(200, request.query["n"].encode())

        async def later(request: Request) -> Response:
            await asyncio.sleep(0)
            return number(request)

        router = routes(("GET", "/a", number), ("GET", "/b", later))
        async with serving(router) as server, raw_connection(server.address) as raw:
            count = 2_000
            data = b"".join(_get(f"/{'ab'[n % 3 == 0]}?n={n}") for n in range(count))
            raw.write(data)
            for n in range(count):
                assert (await raw.answer())[2] == b"%d" % n

    run(main)


def test_connection_stays_open_until_asked_to_close() -> None:
    async def main() -> None:
        async with serving(routes(*ECHO)) as server, raw_connection(server.address) as raw:
            raw.write(_post("/sync", b"1"))
            _, headers, _ = await raw.answer()
            assert "connection" not in headers
            raw.write(_post("/sync", b"2", "Connection: close") + _post("/sync", b"3"))
            _, headers, body = await raw.answer()
            assert (headers["connection"], body) == ("close", b"2")
            assert await raw.rest() == b""

    run(main)


def test_http_1_0_is_answered_and_closed() -> None:
    async def streamed(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"with"
            yield b"out length"

        return Response(200, body())

    async def main() -> None:
        router = routes(("GET", "/plain", lambda request: Response(200, b"x")))
        router.add("GET", "/stream", streamed)
        async with serving(router) as server, raw_connection(server.address) as raw:
            raw.write(b"GET /plain HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert (await raw.answer())[1]["connection"] == "keep-alive"
            raw.write(b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            head, _, body = (await raw.rest()).partition(b"\r\n\r\n")
            assert b"Connection: close" in head and b"chunked" not in head
            assert body == b"without length"

    run(main)


@pytest.mark.slow
def test_big_bodies_go_through_unchanged() -> None:
    async def main() -> None:
        data = bytes(range(256)) * (1 << 16)  # 16 MiB
        async with serving(routes(*ECHO)) as server, raw_connection(server.address) as raw:
            for path in PATHS:
                raw.write(_post(path, data))
                status, _, body = await raw.answer()
                assert (status, body == data) == (200, True)

    run(main)


# --- streaming ---


@pytest.mark.slow
@pytest.mark.parametrize("announced", [True, False])
def test_streamed_answer_waits_for_a_slow_reader(announced: bool) -> None:
    async def main() -> None:
        piece = b"x" * 65536
        produced = [0]
        closed = [False]

        async def body() -> AsyncIterator[bytes]:
            try:
                for _ in range(800):
                    produced[0] += 1
                    yield piece
                    yield b""  # must not end the chunks
            finally:
                closed[0] = True

        def handler(request: Request) -> Response:
            return Response(200, body(), body_bytes=800 * len(piece) if announced else None)

        async with (
            serving(routes(("GET", "/", handler))) as server,
            raw_connection(server.address) as raw,
        ):
            raw.writer.transport.pause_reading()
            raw.write(_get("/") + _get("/"))
            await until(lambda: produced[0])
            await quiet(lambda: produced[0])
            assert produced[0] < 400
            raw.writer.transport.resume_reading()
            _, headers, received = await raw.answer()
            assert ("content-length" in headers) is announced
            assert received == piece * 800
            assert closed[0]
            assert (await raw.answer())[0] == 200  # The connection is still good.

    run(main)


def test_reader_that_hangs_up_ends_the_stream_and_its_iterator() -> None:
    async def main() -> None:
        closed = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 65536
            finally:
                closed.set()

        router = routes(("GET", "/", lambda request: Response(200, body())))
        async with serving(router) as server:
            async with raw_connection(server.address) as raw:
                raw.write(_get("/"))
                await raw.reader.readexactly(1000)
            await closed.wait()

    run(main)


@pytest.mark.parametrize("size", [5, 15])
def test_stream_that_breaks_its_announcement_ends_the_connection(size: int) -> None:
    async def main() -> None:
        bugs: list[BaseException] = []

        async def body() -> AsyncIterator[bytes]:
            yield b"0123456789"

        router = routes(("GET", "/", lambda request: Response(200, body(), body_bytes=size)))
        async with (
            serving(router, on_bug=bugs.append) as server,
            raw_connection(server.address) as raw,
        ):
            raw.write(_get("/"))
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await raw.answer()
            assert "announced" in str(bugs[0])

    run(main)


def test_stream_that_fails_half_way_ends_the_connection_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async def body() -> AsyncIterator[bytes]:
            yield b"half"
            raise ValueError("no more")

        router = routes(("GET", "/", lambda request: Response(200, body())))
        async with serving(router) as server, raw_connection(server.address) as raw:
            raw.write(_get("/"))
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await raw.answer()

    run(main)
    assert "answering 127.0.0.1:" in caplog.text and "no more" in caplog.text


def test_head_is_a_get_without_its_body() -> None:
    async def main() -> None:
        async def body() -> AsyncIterator[bytes]:
            raise AssertionError("nobody reads it")
            yield b""

        router = routes(
            ("GET", "/plain", lambda request: Response(200, b"12345")),
            ("GET", "/stream", lambda request: Response(200, body(), body_bytes=7)),
        )
        async with serving(router) as server, raw_connection(server.address) as raw:
            raw.write(
                _get("/plain").replace(b"GET", b"HEAD") + _get("/stream").replace(b"GET", b"HEAD")
            )
            raw.write(_get("/plain", "Connection: close"))
            answers = (await raw.rest()).split(b"\r\n\r\n")
            assert [b"Content-Length: 5" in answers[0], b"Content-Length: 7" in answers[1]] == [
                True,
                True,
            ]
            assert answers[3] == b"12345" and len(answers) == 4

    run(main)


def test_who_expects_100_is_told_to_go_on_or_why_not() -> None:
    async def main() -> None:
        async with serving(routes(*ECHO)) as server:
            async with raw_connection(server.address) as raw:
                data = _post("/sync", b"body", "Expect: 100-continue")
                raw.write(data[:-4])
                assert (await raw.answer())[0] == 100
                raw.write(data[-4:])
                assert (await raw.answer())[2] == b"body"
            async with raw_connection(server.address) as raw:
                raw.write(_post("/none", b"body", "Expect: 100-continue")[:-4])
                assert (await raw.answer())[0] == 404
                assert await raw.rest() == b""

    run(main)


# --- refusals ---


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (Refused("not now", status=409, hint="wait"), 409, b'{"error":"not now","hint":"wait"}'),
        (Refused("no"), 403, b'{"error":"no"}'),
        (RemoteProtocolError("not JSON: x"), 400, b'{"error":"not JSON: x"}'),
        (PeerUnreachable("no leader"), 503, b'{"error":"no leader"}'),
        (StoreError("disk full", hint="look"), 500, b'{"error":"disk full","hint":"look"}'),
        (
            ValueError("inner secret"),
            500,
            b'{"error":"a bug in this process: ValueError","hint":"its log has the details"}',
        ),
    ],
)
@pytest.mark.parametrize("is_async", [True, False])
def test_errors_of_handlers_become_answers(
    error: Exception,
    status: int,
    body: bytes,
    is_async: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bugs: list[BaseException] = []

        def handler(request: Request) -> Response:
            raise error

        async def async_handler(request: Request) -> Response:
            raise error

        router = routes(("POST", "/x", async_handler if is_async else handler), *ECHO)
        async with (
            serving(router, on_bug=bugs.append) as server,
            raw_connection(server.address) as raw,
        ):
            raw.write(_post("/x", b"{}") + _post("/sync", b"still good"))
            found_status, headers, found = await raw.answer()
            assert (found_status, found) == (status, body)
            assert headers["content-type"] == "application/json"
            assert (await raw.answer())[2] == b"still good"
            assert bugs == ([error] if isinstance(error, ValueError) else [])

    run(main)
    assert ("inner secret" in caplog.text) is isinstance(error, ValueError)


def test_handler_that_returns_nothing_is_a_bug() -> None:
    async def main() -> None:
        bugs: list[BaseException] = []

        async def handler(request: Request) -> Response:
            return None  # type: ignore[return-value]

        router = routes(("GET", "/", handler))
        async with (
            serving(router, on_bug=bugs.append) as server,
            raw_connection(server.address) as raw,
        ):
            raw.write(_get("/"))
            assert await raw.rest() == b""
            assert "returned None, expected a Response" in str(bugs[0])

    run(main)


def test_unknown_path_and_method() -> None:
    async def main() -> None:
        async with serving(routes(*ECHO)) as server, raw_connection(server.address) as raw:
            raw.write(_get("/none"))
            assert (await raw.answer())[::2] == (404, b'{"error":"no such path \'/none\'"}')
            raw.write(_get("/sync"))
            status, headers, body = await raw.answer()
            assert (status, headers["allow"]) == (405, "POST")
            assert body == b'{"error":"GET is not possible on \'/sync\'","hint":"possible: POST"}'

    run(main)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        BAD,
        b"POST /sync HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /sync HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /sync\r\n HTTP/1.1\r\n\r\n",
    ],
)
@pytest.mark.parametrize("step", [1, 1000])
def test_garbage_is_answered_once_and_closed(data: bytes, step: int) -> None:
    async def main() -> None:
        async with serving(routes(*ECHO)) as server, raw_connection(server.address) as raw:
            for start in range(0, len(data), step):
                raw.write(data[start : start + step])
                await asyncio.sleep(0)
            status, headers, body = await raw.answer()
            assert status == 400
            assert headers["connection"] == "close"
            assert b"this is not HTTP/1.1" in body
            assert await raw.rest() == b""

    run(main)


def test_garbage_behind_a_request_is_answered_after_it() -> None:
    async def main() -> None:
        async with serving(routes(*ECHO)) as server, raw_connection(server.address) as raw:
            raw.write(_post("/async", b"good") + BAD)
            assert (await raw.answer())[2] == b"good"
            assert (await raw.answer())[0] == 400
            assert await raw.rest() == b""

    run(main)


@pytest.mark.parametrize("target", ["http://x/sync", "*", "/\xff"])
def test_strange_target_is_refused(target: str) -> None:
    async def main() -> None:
        async with serving(routes(*ECHO)) as server, raw_connection(server.address) as raw:
            raw.write(f"POST {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode("latin-1"))
            assert (await raw.answer())[0] == 400

    run(main)


@pytest.mark.parametrize("step", [500, 50_000, 200_000])
def test_head_that_is_too_big_is_refused(step: int) -> None:
    async def main() -> None:
        async with serving(routes(*ECHO)) as server, raw_connection(server.address) as raw:
            data = _get("/sync", f"X-Long: {'x' * 60_000}", f"X-Longer: {'x' * 40_000}")
            for start in range(0, len(data), step):
                raw.write(data[start : start + step])
                await asyncio.sleep(0)
            status, _, body = await raw.answer()
            assert status == 431
            assert b"the head of the request has more than 16384 bytes" in body
            assert await raw.rest() == b""

    run(main)


def test_body_that_is_too_big_is_refused_before_it_is_read() -> None:
    async def main() -> None:
        router = Router()
        router.add("POST", "/small", echo, body_bytes_max=10)
        async with serving(router) as server:
            for data in (
                b"POST /small HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n",
                _chunked("/small", b"123456", b"78901"),
                _post("/small", b"x" * 100_000),
            ):
                async with raw_connection(server.address) as raw:
                    raw.write(data)
                    status, headers, body = await raw.answer()
                    assert (status, headers["connection"]) == (413, "close")
                    assert body == (
                        b'{"error":"the body has more than 10 bytes, the most for \'/small\'"}'
                    )
                    assert await raw.rest() == b""
            async with raw_connection(server.address) as raw:
                raw.write(_post("/small", b"0123456789"))
                assert (await raw.answer())[2] == b"0123456789"

    run(main)


# --- the gate at the server ---


def _signed(
    method: str,
    target: str,
    address: str,
    body: bytes = b"",
    *,
    key=KEY,  # type: ignore[no-untyped-def]
    digest: str | None = None,
    headers: tuple[str, ...] = (),
) -> bytes:
    if digest is None:
        digest = hashlib.sha256(body).hexdigest() if body else NO_BODY
    lines = [
        f"{method} {target} HTTP/1.1",
        f"Host: {address}",
        f"Authorization: {key.sign(method, target, address, body=digest).authorization}",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _gated_router() -> Router:
    router = Router()
    router.add("POST", "/x", echo)
    router.add("GET", "/read", lambda q: json_response(q.identity.value), access=Access.READ)
    router.add("GET", "/healthz", lambda q: json_response(q.identity.value), access=Access.OPEN)
    return router


def test_gate_stands_before_handlers() -> None:
    async def main() -> None:
        gate = Gate(KEY)
        async with (
            serving(_gated_router(), gate=gate) as server,
            raw_connection(server.address) as raw,
        ):
            address = server.address
            _know(gate, address)

            async def ask(data: bytes) -> tuple[int, bytes]:
                raw.write(data)
                status, headers, body = await raw.answer()
                assert ("www-authenticate" in headers) is (status == 401)
                return status, body

            assert await ask(_signed("POST", "/x", address, b"data")) == (200, b"data")
            status, body = await ask(_signed("GET", "/read", address, key=OTHER_KEY))
            assert status == 401 and b"wrong key" in body
            status, body = await ask(_signed("POST", "/x", address, b"data", digest="0" * 64))
            assert status == 401 and b"the body's digest is" in body
            repeated = _signed("POST", "/x", address)
            assert (await ask(repeated))[0] == 200
            status, body = await ask(repeated)
            assert status == 401 and b"received before" in body
            assert await ask(_signed("GET", "/read", address)) == (200, b'"cluster"')
            token = make_token(KEY, Scope.READ, 60)
            by_query = f"GET /read?token={token} HTTP/1.1\r\nHost: {address}\r\n\r\n"
            assert await ask(by_query.encode()) == (200, b'"bearer"')
            by_header = f"GET /read HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}"
            assert await ask(by_header.encode() + b"\r\n\r\n") == (200, b'"bearer"')
            on_post = f"POST /x?token={token} HTTP/1.1\r\nHost: {address}\r\n\r\n"
            assert (await ask(on_post.encode()))[0] == 401
            healthz = f"GET /healthz HTTP/1.1\r\nHost: {address}\r\n\r\n".encode()
            assert await ask(healthz) == (200, b'"anyone"')
            for header in (b"Host: evil.example", b"Origin: http://evil.example"):
                data = healthz.replace(b"\r\n\r\n", b"\r\n" + header + b"\r\n\r\n")
                assert (await ask(data))[0] == 403
            nothing = f"GET /read HTTP/1.1\r\nHost: {address}\r\n\r\n".encode()
            status, body = await ask(nothing)
            assert status == 401 and body.startswith(b'{"error":"no Authorization","hint"')
            secret = f"GET /secret HTTP/1.1\r\nHost: {address}\r\n\r\n".encode()
            assert (await ask(secret))[0] == 401  # Not even which paths there are.
            # But whoever bears a token has mistyped one, and is told so.
            bearer = f"Host: {address}\r\nAuthorization: Bearer {token}\r\n\r\n"
            status, body = await ask(f"GET /secret HTTP/1.1\r\n{bearer}".encode())
            assert (status, body) == (404, b'{"error":"no such path \'/secret\'"}')
            status, body = await ask(f"DELETE /x HTTP/1.1\r\n{bearer}".encode())
            assert status == 405 and b"possible: POST" in body
            forged = bearer.replace(token, token[:-1] + ("0" if token[-1] != "0" else "1"))
            status, body = await ask(f"GET /secret HTTP/1.1\r\n{forged}".encode())
            assert status == 401 and b"wrong token" in body

    run(main)


def test_body_is_read_only_for_who_proves_the_key() -> None:
    async def main() -> None:
        gate = Gate(KEY)
        async with serving(_gated_router(), gate=gate) as server:
            address = server.address
            _know(gate, address)
            body = b"y" * 200_000
            digest = hashlib.sha256(body).hexdigest()
            refused = [
                (_signed("POST", "/x", address, body, digest=NO_BODY), 401, b"says ''"),
                (_signed("POST", "/x", address, b"", digest=digest), 401, b"isn't so"),
                (_signed("POST", "/x", address, body, key=OTHER_KEY), 401, b"wrong key"),
                (
                    f"GET /healthz HTTP/1.1\r\nHost: {address}\r\nContent-Length: 8193\r\n"
                    "\r\n".encode(),
                    413,
                    b"more than 8192 bytes",
                ),
            ]
            # Refused by the head alone:
            for data, status, words in refused:
                async with raw_connection(address) as raw:
                    raw.write(data[: data.index(b"\r\n\r\n") + 4])
                    found = await raw.answer()
                    assert found[0] == status and words in found[2]
            whole = [
                (_signed("POST", "/x", address, body), 200, body),
                (
                    _signed("POST", "/x", address, b"z" * 2_000, digest=digest),
                    401,
                    b"the body's digest is",
                ),
            ]
            for data, status, words in whole:
                async with raw_connection(address) as raw:
                    raw.write(data)
                    found = await raw.answer()
                    assert found[0] == status and words in found[2]

    run(main)


def _know(gate: Gate, address: str) -> None:
    """Let the key know the life of a server, as after a first request."""
    KEY.learn_life(address, gate.life, signed_for=UNKNOWN_LIFE)


def test_refusals_name_the_peer_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with (
            serving(_gated_router(), gate=Gate(KEY)) as server,
            raw_connection(server.address) as raw,
        ):
            for _ in range(3):
                raw.write(_signed("POST", "/x?token=hidden", server.address, key=OTHER_KEY))
                await raw.answer()

    with caplog.at_level(logging.WARNING):
        run(main)
    assert caplog.messages == [
        "peer=127.0.0.1 refused POST '/x' with 401: "
        "wrong key: the signature doesn't fit the request"
    ]


# --- the life of connections ---


@pytest.mark.parametrize("pipelined", [False, True])
def test_handler_is_cancelled_when_its_connection_closes(pipelined: bool) -> None:
    async def main() -> None:
        began, cancelled = asyncio.Event(), asyncio.Event()
        after: list[str] = []

        async def handler(request: Request) -> Response:
            began.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return Response(200)

        def never(request: Request) -> Response:
            after.append("asked")
            return Response(200)

        router = routes(("GET", "/wait", handler), ("GET", "/never", never))
        async with serving(router) as server:
            async with raw_connection(server.address) as raw:
                raw.write(_get("/wait") + (b"" if not pipelined else _get("/wait")[:10]))
                await began.wait()
            await cancelled.wait()
            assert after == []

    run(main)


def test_handler_of_a_connection_that_closes_at_once_is_cancelled_without_a_warning(
    recwarn: pytest.WarningsRecorder,
) -> None:
    async def main() -> None:
        async def handler(request: Request) -> Response:
            await asyncio.Event().wait()
            return Response(200)

        async with serving(routes(("GET", "/", handler))) as server:
            for _ in range(20):
                host, _, port = server.address.rpartition(":")
                with socket.create_connection((host, int(port))) as connection:
                    connection.sendall(_get("/"))
                await asyncio.sleep(0)
            await until(lambda: not server.connection_count)

    run(main)
    assert [str(warning.message) for warning in recwarn.list] == []


def test_idle_and_half_open_connections_are_closed_and_busy_ones_are_not() -> None:
    async def main() -> None:
        settings = replace(SETTINGS, connection_idle_ms=40)
        release = asyncio.Event()

        async def wait(request: Request) -> Response:
            await release.wait()
            return Response(200, b"done")

        router = routes(("GET", "/wait", wait), *ECHO)
        async with (
            serving(router, settings=settings) as server,
            raw_connection(server.address) as idle,
            raw_connection(server.address) as half,
            raw_connection(server.address) as body,
            raw_connection(server.address) as busy,
        ):
            half.write(b"GET /wait HTTP/1.1\r\nHo")
            body.write(_post("/sync", b"body")[:-1])
            busy.write(_get("/wait"))
            for gone in (idle, half, body):
                try:
                    assert await gone.rest() == b""
                except ConnectionResetError:
                    pass
            release.set()
            assert (await busy.answer())[2] == b"done"

    run(main)


def test_reader_that_never_reads_is_closed() -> None:
    async def main() -> None:
        settings = replace(SETTINGS, connection_idle_ms=40)
        ended = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 65536
            finally:
                ended.set()

        router = routes(("GET", "/", lambda request: Response(200, body())))
        async with (
            serving(router, settings=settings) as server,
            raw_connection(server.address) as raw,
        ):
            raw.writer.transport.pause_reading()
            raw.write(_get("/"))
            await ended.wait()

    run(main)


def test_too_many_connections_are_refused() -> None:
    async def main() -> None:
        settings = replace(SETTINGS, connections_max=1)
        async with (
            serving(routes(*ECHO), settings=settings) as server,
            raw_connection(server.address) as first,
        ):
            first.write(_post("/sync", b"1"))
            assert (await first.answer())[2] == b"1"
            async with raw_connection(server.address) as second:
                status, _, body = await second.answer()
                assert status == 503
                assert body == b'{"error":"too many connections","hint":"try again later"}'
            first.write(_post("/sync", b"2"))
            assert (await first.answer())[2] == b"2"

    run(main)


def test_closing_server_lets_running_answers_end() -> None:
    async def main() -> None:
        began, release = asyncio.Event(), asyncio.Event()

        async def wait(request: Request) -> Response:
            began.set()
            await release.wait()
            return Response(200, b"done")

        server = HttpServer(routes(("GET", "/wait", wait)), None, SETTINGS)
        await server.listen("127.0.0.1:0")
        async with raw_connection(server.address) as raw, raw_connection(server.address) as idle:
            raw.write(_get("/wait"))
            await began.wait()
            closing = asyncio.ensure_future(server.close(grace_ms=10_000))
            assert await idle.rest() == b""
            with pytest.raises(ConnectionRefusedError):
                async with raw_connection(server.address):
                    pass
            release.set()
            _, headers, body = await raw.answer()
            assert (headers["connection"], body) == ("close", b"done")
            await closing

    run(main)


def test_closing_server_cancels_what_does_not_end() -> None:
    async def main() -> None:
        began, cancelled = asyncio.Event(), asyncio.Event()

        async def wait(request: Request) -> Response:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            return Response(200)

        server = HttpServer(routes(("GET", "/wait", wait)), None, SETTINGS)
        await server.listen("127.0.0.1:0")
        async with raw_connection(server.address) as raw:
            raw.write(_get("/wait"))
            await began.wait()
            await server.close(grace_ms=1)
            assert cancelled.is_set()
            assert server.connection_count == 0

    run(main)


# --- listening ---


def test_port_in_use_is_told() -> None:
    async def main() -> None:
        async with serving(Router()) as server:
            other = HttpServer(Router(), None, SETTINGS)
            with pytest.raises(SettingsError) as caught:
                await other.listen(server.address)
            assert str(caught.value) == (
                f"cannot listen on {server.address}: the port is in use; stop the process that "
                "uses it, or choose another one with --listen HOST:PORT"
            )

    run(main)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("192.0.2.1:0", "cannot listen on 192.0.2.1:0: this machine has no such address; choose"),
        ("no.such.host.invalid:0", "'no.such.host.invalid' is not a host of this machine"),
        ("here", "bad address 'here': expected host:port"),
    ],
)
def test_address_that_cannot_be_listened_on_is_told(address: str, words: str) -> None:
    async def main() -> None:
        with pytest.raises(SettingsError) as caught:
            await HttpServer(Router(), None, SETTINGS).listen(address)
        assert words in str(caught.value)

    run(main)


def test_port_can_be_used_again_at_once() -> None:
    async def main() -> None:
        async with serving(routes(*ECHO)) as server:
            address = server.address
            async with raw_connection(address) as raw:
                raw.write(_post("/sync", b"1"))
                await raw.answer()
        again = HttpServer(Router(), None, SETTINGS)
        assert await again.listen(address) == address
        await again.close()

    run(main)


@pytest.mark.parametrize("is_inherited", [False, True])
def test_socket_listens_once_with_our_queue(
    is_inherited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        asked: list[int] = []
        sock = socket.create_server(("127.0.0.1", 0)) if is_inherited else None
        monkeypatch.setattr(socket.socket, "listen", lambda self, backlog: asked.append(backlog))
        server = HttpServer(Router(), None, SETTINGS)
        await server.listen("127.0.0.1:0", inherited=sock)
        assert asked == [BACKLOG]
        await server.close(grace_ms=0)

    run(main)


def test_localhost_is_all_its_addresses() -> None:
    async def main() -> None:
        server = HttpServer(routes(*ECHO), None, SETTINGS)
        address = await server.listen("localhost:0")
        assert address.startswith("localhost:") and not address.endswith(":0")
        async with raw_connection(address.replace("localhost", "127.0.0.1")) as raw:
            raw.write(_post("/sync", b"1"))
            assert (await raw.answer())[2] == b"1"
        await server.close()

    run(main)


# --- upgrades that nobody offers ---


@pytest.mark.parametrize("body", [b"", b"x"])
def test_upgrade_that_is_not_offered_is_ignored(body: bytes) -> None:
    """As RFC 9110, section 7.8, allows; a body behind it would be misread, so it is refused."""

    async def main() -> None:
        async with serving(routes(*ECHO)) as server, raw_connection(server.address) as raw:
            raw.write(_post("/async", body, "Connection: Upgrade", "Upgrade: h2c"))
            status, headers, _ = await raw.answer()
            assert (status, headers["connection"]) == (400 if body else 200, "close")
            assert await raw.rest() == b""

    run(main)


def test_a_later_answer_goes_nowhere_when_its_connection_is_gone() -> None:
    async def main() -> None:
        laters, handler = answered_later()
        bugs: list[BaseException] = []
        routed = routes(("GET", "/", handler))
        async with serving(routed, on_bug=bugs.append) as server:
            async with raw_connection(server.address) as raw:
                raw.write(_get("/"))
                await until(lambda: laters)
            await until(lambda: not server.connection_count)
            laters[0].answer(Response(200, b"late"))
        assert bugs == []

    run(main)


def test_requests_behind_a_later_answer_wait_for_their_turn() -> None:
    async def main() -> None:
        laters, handler = answered_later()
        routed = routes(("GET", "/later", handler), *ECHO)
        async with serving(routed) as server, raw_connection(server.address) as raw:
            raw.write(_get("/later") + _post("/sync", b"second") + _get("/later"))
            await until(lambda: laters)
            assert len(laters) == 1
            laters[0].answer(Response(200, b"first"))
            assert (await raw.answer())[2] == b"first"
            assert (await raw.answer())[2] == b"second"
            await until(lambda: len(laters) == 2)
            laters[1].answer(Response(200, b"third"))
            assert (await raw.answer())[2] == b"third"

    run(main)
