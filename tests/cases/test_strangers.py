"""What peers without the key may do to a server: nothing that lasts, and little meanwhile."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import socket
import struct
from dataclasses import replace
from typing import Any, cast

import pytest

from tasksprint.errors import (
    LocalProtocolError,
    PeerUnreachable,
    Refused,
    RemoteProtocolError,
)
from tasksprint.net.addresses import parse_address
from tasksprint.net.bugs import Bugs
from tasksprint.net.gate import Access, CountedWarnings, Gate
from tasksprint.net.http_connection import Connection
from tasksprint.net.http_server import HttpServer
from tasksprint.net.listener import Listener
from tasksprint.net.router import Request, Response, Router
from tasksprint.net.tokens import Scope, make_token
from tasksprint.roles.client import paths as client_http
from tasksprint.roles.steps import Step
from tests.cases import crowd
from tests.net.support import (
    KEY,
    SETTINGS,
    Raw,
    answered_later,
    client_of,
    echo,
    raw_connection,
    run,
    serving,
    until,
)

_TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(193))


def _routes(*added: tuple[str, str, Any]) -> Router:
    router = Router()
    router.add("GET", "/healthz", lambda request: Response(200, b"{}"), access=Access.OPEN)
    router.add("GET", "/read", lambda request: Response(200, b"{}"), access=Access.READ)
    router.add("POST", "/echo", echo)
    for method, path, handler in added:
        router.add(method, path, handler)
    return router


def _head(target: str, *headers: str, method: str = "GET", host: str = "localhost") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode()


async def _is_closed(raw: Raw) -> bool:
    try:
        return await raw.reader.read() == b""
    except ConnectionResetError:
        return True


def _connections(server: HttpServer) -> list[Connection]:
    return [cast(Connection, each) for each in server._connections.open]


# --- no connection ends anything but itself ---------------------------------------------


@pytest.mark.parametrize("digits", ["9" * 5_000, "9" * 19, "+1", "1_0", "0x1", "\u0661", "-1"])
def test_length_that_is_no_number_of_bytes_is_refused(digits: str) -> None:
    async def main() -> None:
        bugs: list[BaseException] = []
        async with (
            serving(_routes(), gate=Gate(KEY), on_bug=bugs.append) as server,
            raw_connection(server.address) as raw,
        ):
            raw.write(_head("/healthz", f"Content-Length: {digits}"))
            assert (await raw.answer())[0] == 400
            assert await _is_closed(raw)
        assert bugs == []

    run(main)


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize(
    "sent",
    [
        _head("/echo", "Content-Length: 9", method="POST") + b"x",
        _head("/healthz", "Content-Length: 99999"),
        _head("/healthz", "Transfer-Encoding: chunked") + b"5\r\nab",
        _head("/healthz") * 20 + b"GET /heal",
        _TLS_HELLO,
        b"\0\1\2 garbage\r\n\r\n",
        b"",
    ],
)
def test_peer_that_hangs_up_before_its_answer_ends_only_its_connection(
    sent: bytes, resets: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bugs: list[BaseException] = []
        async with serving(_routes(), gate=Gate(KEY), on_bug=bugs.append) as server:
            asyncio.get_running_loop().set_exception_handler(
                lambda loop, context: bugs.append(context["exception"])
            )
            for _ in range(5):
                peer = socket.create_connection(parse_address(server.address))
                peer.sendall(sent)
                if resets:
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.close()  # Before the server has looked at it.
            async with raw_connection(server.address) as raw:
                raw.write(_head("/healthz"))
                assert (await raw.answer())[0] == 200
            await until(lambda: not server.connection_count)
        assert bugs == []

    run(main)
    assert [each for each in caplog.records if each.levelno > logging.WARNING] == []


def test_head_that_is_too_big_in_two_ways_at_once_is_refused_once() -> None:
    async def main() -> None:
        bugs: list[BaseException] = []
        async with serving(_routes(), gate=Gate(KEY), on_bug=bugs.append) as server:
            asyncio.get_running_loop().set_exception_handler(
                lambda loop, context: bugs.append(context["exception"])
            )
            with socket.create_connection(parse_address(server.address)) as peer:
                # The 101st header ends where the head is too big, in one read of 4 KiB.
                head = _head("/healthz", *(f"A{n:03}:{'x' * 203}" for n in range(150)))
                peer.sendall(head)
                peer.setblocking(False)
                answer = await asyncio.get_running_loop().sock_recv(peer, 4096)
                assert answer.startswith(b"HTTP/1.1 431 ")
        assert bugs == []

    run(main)


def test_bug_is_told_once_with_its_place_and_then_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        def handler(request: Request) -> Response:
            raise ValueError("unforeseen")

        bugs: list[BaseException] = []
        async with (
            serving(_routes(("POST", "/bug", handler)), on_bug=bugs.append) as server,
            raw_connection(server.address) as raw,
        ):
            for _ in range(3):
                raw.write(_head("/bug", "Content-Length: 0", method="POST"))
                assert (await raw.answer())[0] == 500
            raw.write(_head("/healthz"))
            assert (await raw.answer())[0] == 200
            assert len(bugs) == server._service.bugs.count == 3

    run(main)
    assert caplog.text.count("Traceback") == 1
    lines = [each.getMessage() for each in caplog.records if each.name == "tasksprint.net.bugs"]
    assert [line.partition(" of ")[0] for line in lines] == ["POST '/bug'"] * 2
    assert lines[1].endswith("failed again with a ValueError")


def test_bug_in_a_later_answer_is_no_affair_of_who_answers() -> None:
    async def main() -> None:
        laters, handler = answered_later()
        bugs: list[BaseException] = []
        router = _routes(("GET", "/later", handler))
        async with (
            serving(router, on_bug=bugs.append) as server,
            raw_connection(server.address) as raw,
        ):
            raw.write(_head("/later"))
            await until(lambda: laters)
            laters[0].answer(Response(200, b"", headers={"Broken": "a\nb"}))
            assert await _is_closed(raw)
            assert [type(each) for each in bugs] == [LocalProtocolError]

    run(main)


def test_bug_of_a_callback_is_told_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bugs = Bugs()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(bugs.handle)

        def callback() -> None:
            raise ValueError("in a callback")

        for _ in range(2):
            loop.call_soon(callback)
        loop.call_exception_handler({"message": "nothing was raised"})
        await until(lambda: bugs.count == 3)

    run(main)
    assert caplog.text.count("Traceback") == 1
    assert "nothing was raised" in caplog.text


def test_bug_in_the_sweep_of_one_connection_leaves_the_others_swept() -> None:
    async def main() -> None:
        bugs: list[BaseException] = []
        settings = replace(SETTINGS, unproven_deadline_ms=50)
        async with serving(
            _routes(), gate=Gate(KEY), settings=settings, on_bug=bugs.append
        ) as server:

            class Broken:
                peer = "somewhere"
                task = None

                def is_stuck(self, now: float) -> bool:
                    raise ValueError("a bug")

                def close_when_idle(self) -> None: ...

                def abort(self) -> None: ...

            broken = cast(Connection, Broken())
            server._connections.open.add(broken)
            async with raw_connection(server.address) as one:
                assert await _is_closed(one)
            assert bugs
            server._connections.open.discard(broken)

    run(main)


def test_step_of_a_core_that_fails_by_a_bug_stops_the_role() -> None:
    failures: list[BaseException] = []
    step = Step(failures.append)

    def refuse() -> None:
        raise Refused("no")

    def break_down(what: str) -> None:
        raise AssertionError(what)

    assert step(max, 1, 2) == 2
    with pytest.raises(Refused):
        step(refuse)
    assert failures == []
    with pytest.raises(PeerUnreachable, match="this process stops: it met a bug in its core"):
        step(break_down, "a broken invariant")
    assert [str(each) for each in failures] == ["a broken invariant"]


def test_number_that_no_database_takes_is_no_number() -> None:
    router = _routes(("GET", "/jobs/{job}", echo))
    assert router.find("GET", f"/jobs/{2**63 - 1}")[1] == {"job": str(2**63 - 1)}
    with pytest.raises(Refused, match="no such path"):
        router.find("GET", f"/jobs/{2**63}")
    assert client_http._wanted([1, 2**63 - 1, "digest", ["x"]])[1] == 2**63 - 1
    for wrong in ([1, 2**63, "digest", []], [-1, 0, "digest", []], [True, 0, "digest", []]):
        with pytest.raises(RemoteProtocolError, match="not a wanted result"):
            client_http._wanted(wrong)


def test_refusal_of_a_long_path_is_a_short_line(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with (
            serving(_routes(), gate=Gate(KEY)) as server,
            raw_connection(server.address) as raw,
        ):
            raw.write(_head("/" + "x" * 10_000, f"Origin: {'y' * 3_000}"))
            assert (await raw.answer())[0] == 403

    run(main)
    assert [len(each.getMessage()) < 1_000 for each in caplog.records] == [True]


# --- bounded before proven --------------------------------------------------------------


def test_crowd_of_strangers_drops_its_oldest_and_nobody_who_proved_the_key(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        settings = replace(SETTINGS, unproven_connections_max=3)
        gate = Gate(KEY)
        async with (
            serving(_routes(), gate=gate, settings=settings) as server,
            client_of(KEY) as client,
        ):
            assert (await client.request(server.address, "POST", "/echo", body=b"1")).status == 200
            strangers = [socket.create_connection(parse_address(server.address)) for _ in range(8)]
            await until(lambda: server.connection_count == 4)
            for stranger in strangers[:5]:
                stranger.setblocking(False)
                assert await asyncio.get_running_loop().sock_recv(stranger, 1) == b""
            for stranger in strangers[5:]:
                stranger.setblocking(False)
                with pytest.raises(BlockingIOError):
                    stranger.recv(1)
            # Both the one that is there and one that comes now are served.
            assert (await client.request(server.address, "POST", "/echo", body=b"2")).body == b"2"
            async with client_of(KEY) as other:
                assert (await other.request(server.address, "POST", "/echo")).status == 200
            for stranger in strangers:
                stranger.close()

    run(main)
    assert caplog.text.count("dropped: too many connections without a proof") == 1


def test_full_server_drops_a_stranger_first_and_refuses_only_then() -> None:
    async def main() -> None:
        settings = replace(SETTINGS, connections_max=2)
        gate = Gate(KEY)
        token = make_token(KEY, Scope.READ, 100)
        proof = f"Authorization: Bearer {token}"
        async with (
            serving(_routes(), gate=gate, settings=settings) as server,
            raw_connection(server.address) as stranger,
            raw_connection(server.address) as one,
        ):
            one.write(_head("/read", proof))
            assert (await one.answer())[0] == 200
            async with raw_connection(server.address) as two:
                two.write(_head("/read", proof))
                assert (await two.answer())[0] == 200
                assert await _is_closed(stranger)
                async with raw_connection(server.address) as three:
                    assert (await three.answer())[0] == 503
                    assert await _is_closed(three)

    run(main)


@pytest.mark.parametrize(
    "sent", [b"", b"GET /healthz HTTP/1.1\r\nX: ", _head("/echo", "Content-Length: 9")]
)
def test_stranger_has_one_deadline_for_a_whole_request(sent: bytes) -> None:
    async def main() -> None:
        settings = replace(SETTINGS, unproven_deadline_ms=50)
        async with (
            serving(_routes(), gate=Gate(KEY), settings=settings) as server,
            client_of(KEY) as client,
        ):
            await client.request(server.address, "POST", "/echo")
            async with raw_connection(server.address) as raw:
                raw.write(sent)

                async def trickle() -> None:
                    while True:
                        raw.write(b"x")
                        await asyncio.sleep(0.005)

                task = asyncio.get_running_loop().create_task(trickle())
                try:
                    await until(lambda: server.connection_count == 2)
                    await until(lambda: server.connection_count == 1)  # The other proved its key.
                finally:
                    task.cancel()

    run(main)


def test_strangers_body_is_refused_by_its_head() -> None:
    async def main() -> None:
        async with serving(_routes(), gate=Gate(KEY)) as server:
            mac = f"time=1,nonce={'0' * 32},mac={'0' * 64}"
            for head, status in (
                (_head("/healthz", "Content-Length: 83886080"), 413),
                (
                    _head(
                        "/echo",
                        f"Authorization: TaskSprint {mac}",
                        "Content-Length: 9000",
                        method="POST",
                    ),
                    401,
                ),
            ):
                async with raw_connection(server.address) as raw:
                    raw.write(head)
                    assert (await raw.answer())[0] == status
                    assert await raw.rest() == b""

    run(main)


def test_strangers_chunks_are_refused_after_a_few_kib() -> None:
    async def main() -> None:
        async with (
            serving(_routes(), gate=Gate(KEY)) as server,
            raw_connection(server.address) as raw,
        ):
            raw.write(_head("/healthz", "Transfer-Encoding: chunked"))
            for _ in range(9):
                raw.write(b"400\r\n" + bytes(1024) + b"\r\n")
            assert (await raw.answer())[0] == 413

    run(main)


def test_request_of_too_many_headers_is_refused() -> None:
    async def main() -> None:
        async with (
            serving(_routes(), gate=Gate(KEY)) as server,
            raw_connection(server.address) as raw,
        ):
            raw.write(_head("/healthz", *(f"A{n}:" for n in range(100))))
            status, _, body = await raw.answer()
            assert (status, body) == (431, b'{"error":"the request has more than 100 headers"}')
            assert await raw.rest() == b""

    run(main)


def _all_connections() -> list[Connection]:
    return [each for each in gc.get_objects() if isinstance(each, Connection)]


def test_what_a_lost_connection_held_is_given_back_at_once() -> None:
    async def main() -> None:
        async with serving(_routes(), settings=SETTINGS) as server:
            gc.collect()
            gc.disable()  # It would find a cycle, some time.
            # Errors that stand in parameters of other tests hold their frames.
            before = _all_connections()
            try:
                for sent in (
                    _head("/echo", "Content-Length: 1000000", method="POST") + bytes(500_000),
                    _head("/healthz")[:-2],
                    _head("/healthz"),
                    _TLS_HELLO,
                ):
                    async with raw_connection(server.address) as raw:
                        raw.write(sent)
                        await until(lambda: server.connection_count)
                    await until(lambda: not server.connection_count)
                await asyncio.sleep(0)
                assert [each for each in _all_connections() if each not in before] == []
            finally:
                gc.enable()

    run(main)


@pytest.mark.slow
def test_stranger_who_never_reads_is_answered_little() -> None:
    async def main() -> None:
        async with serving(_routes(), gate=Gate(KEY)) as server:
            peer = socket.socket()
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
            peer.connect(parse_address(server.address))
            peer.setblocking(False)
            await until(lambda: server.connection_count)
            (connection,) = _connections(server)
            connection._transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096
            )
            requests = _head("/healthz") * 500

            def is_held() -> bool:
                try:
                    peer.send(requests)
                except BlockingIOError:
                    return connection._reading_paused
                return False

            await until(is_held)
            assert connection._transport.get_write_buffer_size() < 32 * 1024
            peer.close()

    run(main)


@pytest.mark.long
def test_thousands_of_half_open_strangers_are_hardly_felt() -> None:
    # On a machine that does more beside it; by hand it is a second.
    assert crowd.main(["--more", "5"]) == 0


# --- without descriptors ----------------------------------------------------------------


class _Short(socket.socket):
    """A listening socket whose process is short of descriptors for a while."""

    failures = 0

    def accept(self) -> tuple[socket.socket, Any]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_listener_without_descriptors_rests_makes_room_and_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        sock = _Short()
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        sock.setblocking(False)
        sock.failures = 3
        made: list[asyncio.Protocol] = []
        asked: list[int] = []

        def make() -> asyncio.Protocol:
            made.append(asyncio.Protocol())
            return made[-1]

        def make_room() -> bool:
            asked.append(sock.failures)
            return True

        listener = Listener(
            sock,
            make,
            make_room=make_room,
            warnings=CountedWarnings(logging.getLogger("tasksprint.test")),
            bugs=Bugs(),
        )
        peer = socket.create_connection(sock.getsockname())
        await until(lambda: made)
        assert asked == [2, 1, 0]  # One try, one rest.
        peer.close()
        listener.close()
        await asyncio.sleep(0)

    run(main)
    assert [each.getMessage() for each in caplog.records] == [
        "a connection can't be accepted now: Too many open files; raise the limit (ulimit -n)"
    ]


@pytest.mark.parametrize("turns", range(3))
def test_listener_that_is_closed_leaves_no_newcomer_open(turns: int) -> None:
    """Whether it has a connection already, or has only been accepted."""

    async def main() -> None:
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        listener = Listener(
            sock,
            asyncio.Protocol,
            make_room=lambda: False,
            warnings=CountedWarnings(logging.getLogger("tasksprint.test")),
            bugs=Bugs(),
        )
        with socket.create_connection(sock.getsockname()) as peer:
            peer.setblocking(False)
            while not listener._starting:  # Each turn counts here.
                await asyncio.sleep(0)
            for _ in range(turns):
                await asyncio.sleep(0)
            assert not any(task.done() for task in listener._starting)
            listener.close()
            received = asyncio.get_running_loop().sock_recv(peer, 1)
            assert await asyncio.wait_for(received, 5) == b""
            assert not listener._starting

    run(main)
