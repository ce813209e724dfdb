"""Streams between replicas: on real sockets, through wires that cut, hold and change."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from tasksprint.errors import LocalProtocolError, RemoteProtocolError
from tasksprint.ids import ReplicaId
from tasksprint.net import streams as streams_module
from tasksprint.net.addresses import parse_address
from tasksprint.net.gate import Gate
from tasksprint.net.http_server import HttpServer
from tasksprint.net.keys import ClusterKey
from tasksprint.net.router import Router
from tasksprint.net.streams import PROTOCOL_NAME, STREAM_PATH, PeerStreams
from tasksprint.release import SILENT, Speaks
from tasksprint.settings import Settings
from tests.net.support import KEY, OTHER_KEY, SETTINGS, run, until

ONE, TWO, THREE = ReplicaId(1), ReplicaId(2), ReplicaId(3)


class Replica:
    """A server with streams, and what happened to it."""

    def __init__(
        self, me: ReplicaId, *, key: ClusterKey = KEY, settings: Settings = SETTINGS
    ) -> None:
        self.me = me
        self.key = key
        self.settings = settings
        self.events: list[tuple[Any, ...]] = []
        self.frames: list[tuple[ReplicaId, bytes]] = []
        self.batches: list[int] = []  # how many frames had come at each end of some
        self.on_frame: Callable[[ReplicaId, bytes], None] = lambda source, frame: (
            self.frames.append((source, frame))
        )
        self.address = "127.0.0.1:0"
        self.life = 0
        self.speaks = SILENT
        self.refuse: Callable[[int, int | None], str | None] = lambda life, connected: None

    async def listen(self) -> None:
        router = Router()
        self.streams = PeerStreams(
            self.me,
            {},
            self.key,
            self.settings,
            Random(self.me),
            on_frame=lambda source, frame: self.on_frame(source, frame),
            on_frames_end=lambda: self.batches.append(len(self.frames)),
            on_connected=lambda peer: self.events.append(("connected", peer)),
            on_disconnected=lambda peer: self.events.append(("disconnected", peer)),
            life=self.life,
            on_knock=lambda source, life, connected, *_: self.refuse(life, connected),
            on_twin=lambda peer, text: self.events.append(("twin", peer, text)),
            speaks=self.speaks,
        )
        self.streams.add_to(router)
        self.gate = Gate(self.key)
        self.server = HttpServer(router, self.gate, self.settings)
        self.address = await self.server.listen(self.address)

    def connect(self, peers: dict[ReplicaId, str]) -> None:
        self.streams.set_peers(peers)
        self.streams.start()

    async def close(self) -> None:
        await self.streams.close()
        await self.server.close(grace_ms=0)

    def send(self, peer: ReplicaId, *frames: bytes) -> list[bool]:
        return [self.streams.send(peer, frame) for frame in frames]


@contextlib.asynccontextmanager
async def replicas(*all_of_them: Replica) -> AsyncIterator[None]:
    """Let replicas listen, and know each other."""
    for replica in all_of_them:
        await replica.listen()
    addresses = {replica.me: replica.address for replica in all_of_them}
    for replica in all_of_them:
        replica.connect(addresses)
    try:
        yield
    finally:
        for replica in all_of_them:
            await replica.close()


class Wire:
    """Carries bytes to a server, unless told to cut, to hold or to change them."""

    def __init__(self) -> None:
        self.sent = bytearray()  # by the opener, over the present connection
        self.change: Callable[[bytes], bytes] = lambda data: data
        self.step = 1 << 20
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.target = ""

    async def listen(self, target: str) -> str:
        self.target = target
        self._server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sent.clear()
        there = await asyncio.open_connection(*parse_address(self.target))
        self._writers += [writer, there[1]]
        back = asyncio.ensure_future(self._carry(there[0], writer, lambda data: data))
        self._tasks.add(back)

        def passing(data: bytes) -> bytes:
            data = self.change(data)
            self.sent += data
            return data

        await self._carry(reader, there[1], passing)

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        change: Callable[[bytes], bytes],
    ) -> None:
        try:
            while data := await reader.read(65536):
                data = change(data)
                for start in range(0, len(data), self.step):
                    writer.write(data[start : start + self.step])
                    await writer.drain()
                    await asyncio.sleep(0)
        except ConnectionError:
            pass
        writer.transport.abort()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def close(self) -> None:
        self._server.close()
        self.cut()


def test_frames_arrive_in_order_both_ways() -> None:
    async def main() -> None:
        one, two, three = Replica(ONE), Replica(TWO), Replica(THREE)
        async with replicas(one, two, three):
            await until(lambda: all(len(r.events) == 2 for r in (one, two, three)))
            frames = [b"", b"x", b"y" * 100, b"z" * 100_000] + [b"%d" % n for n in range(1000)]
            assert all(one.send(TWO, *frames))
            assert all(two.send(ONE, *frames))
            assert all(three.send(TWO, b"third"))
            await until(lambda: len(one.frames) == len(frames))
            await until(lambda: len(two.frames) == len(frames) + 1)
            assert one.frames == [(TWO, frame) for frame in frames]
            assert [frame for source, frame in two.frames if source == ONE] == frames
            assert (THREE, b"third") in two.frames
            assert sorted(one.events) == [("connected", TWO), ("connected", THREE)]

    run(main)


def test_big_frames_arrive_between_small_ones() -> None:
    async def main() -> None:
        one, two = Replica(ONE), Replica(TWO)
        async with replicas(one, two):
            await until(lambda: one.events)
            big = bytes(range(256)) * (1 << 14)  # 4 MiB
            frames = [b"before", big, b"between", big[1:], b"after"]
            assert all(one.send(TWO, *frames))
            await until(lambda: len(two.frames) == len(frames))
            assert [frame for _, frame in two.frames] == frames

    run(main)


@contextlib.asynccontextmanager
async def wired(
    one: Replica, two: Replica, *, change: Callable[[bytes], bytes] | None = None, step: int = 0
) -> AsyncIterator[Wire]:
    """`one` reaches `two` through a wire; `two` doesn't open a stream of its own."""
    wire = Wire()
    await one.listen()
    await two.listen()
    if change is not None:
        wire.change = change
    wire.step = step or wire.step
    address = await wire.listen(two.address)
    two.gate.allow(address)
    two.streams.set_peers({ONE: "127.0.0.1:1"})
    two.streams._started = True  # It would be told about a loss; it opens nothing itself.
    one.connect({TWO: address})
    try:
        yield wire
    finally:
        wire.close()
        await one.close()
        await two.close()


def test_handshake_and_frames_byte_by_byte() -> None:
    async def main() -> None:
        one, two = Replica(ONE), Replica(TWO)
        async with wired(one, two, step=1):
            await until(lambda: one.events)
            frames = [b"", b"a", b"bcd" * 5]
            one.send(TWO, *frames)
            await until(lambda: len(two.frames) == 3)
            assert [frame for _, frame in two.frames] == frames

    run(main)


@pytest.mark.parametrize("where", ["size", "mac", "body", "replay", "omit"])
def test_tampered_frame_closes_the_connection(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        one, two = Replica(ONE), Replica(TWO)
        seen: list[bytes] = []

        def change(data: bytes) -> bytes:
            if data.startswith(b"POST"):
                return data
            seen.append(data)
            if len(seen) != 2:
                return data
            match where:
                case "replay":
                    return seen[0]
                case "omit":
                    return b""
                case _:
                    at = {"size": 3, "mac": 10, "body": 25}[where]
                    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

        async with wired(one, two, change=change):
            await until(lambda: one.events)
            for n in range(2):
                one.send(TWO, b"frame number %d" % n + b"!" * (n == 1))
                await until(lambda n=n: len(seen) > n)  # type: ignore[misc]
            if where == "omit":  # The next one shows it.
                one.send(TWO, b"frame number 2")
            await until(lambda: ("disconnected", TWO) in one.events)
            await until(lambda: ("disconnected", ONE) in two.events)
            assert two.frames == [(ONE, b"frame number 0")]
            # The connection after it is good again.
            await until(lambda: one.events.count(("connected", TWO)) == 2)
            one.send(TWO, b"again")
            await until(lambda: len(two.frames) == 2)

    run(main)
    assert "replica=2 peer=1 stream closed: frame 1 has a wrong signature" in caplog.text


def test_frame_of_another_connection_does_not_fit() -> None:
    async def main() -> None:
        one, two = Replica(ONE), Replica(TWO)
        kept: list[bytes] = []

        def change(data: bytes) -> bytes:
            if data.startswith(b"POST"):
                return data
            kept.append(data)
            return kept[0]

        async with wired(one, two, change=change) as wire:
            await until(lambda: one.events)
            one.send(TWO, b"first")
            await until(lambda: two.frames)
            wire.cut()
            await until(lambda: one.events.count(("connected", TWO)) == 2)
            one.send(TWO, b"third")  # The wire sends the first frame of the old connection.
            await until(lambda: one.events.count(("connected", TWO)) == 3)
            assert two.frames == [(ONE, b"first")]

    run(main)


def test_frame_that_its_reader_cannot_decode_closes_the_connection() -> None:
    async def main() -> None:
        one, two = Replica(ONE), Replica(TWO)

        def refuse(source: ReplicaId, frame: bytes) -> None:
            raise RemoteProtocolError("unknown message")

        async with wired(one, two):
            two.on_frame = refuse
            await until(lambda: one.events)
            one.send(TWO, b"nonsense")
            await until(lambda: ("disconnected", TWO) in one.events)

    run(main)


def test_reader_is_told_after_all_frames_that_came_at_once() -> None:
    async def main() -> None:
        one, two = Replica(ONE), Replica(TWO)
        async with wired(one, two):
            await until(lambda: one.events)
            one.send(TWO, b"1", b"2", b"3")
            await until(lambda: two.batches)
            assert two.batches == [3]

    run(main)


def test_frames_that_are_too_big() -> None:
    async def main() -> None:
        one = Replica(ONE)
        two = Replica(TWO, settings=replace(SETTINGS, frame_bytes_max=10))
        async with wired(one, two):
            await until(lambda: one.events)
            one.send(TWO, b"0123456789", b"0123456789a")
            await until(lambda: ("disconnected", TWO) in one.events)
            assert [frame for _, frame in two.frames] == [b"0123456789"]
            with pytest.raises(LocalProtocolError, match="a frame of 11 bytes for replica 1"):
                two.send(ONE, b"0123456789a")

    run(main)


# --- breaking and healing ---


def test_death_of_a_peer_is_told_and_its_return_too() -> None:
    async def main() -> None:
        one, two = Replica(ONE), Replica(TWO)
        async with replicas(one, two):
            await until(lambda: one.events and two.events)
            assert one.send(TWO, b"1") == [True]
            await until(lambda: two.frames)
            await two.close()
            # Both directions broke, and each is told.
            await until(lambda: one.events.count(("disconnected", TWO)) == 2)
            assert one.send(TWO, b"lost") == [False]
            assert not one.streams.is_connected(TWO)
            two.events.clear()
            await two.listen()
            two.connect({ONE: one.address})
            await until(lambda: one.events.count(("connected", TWO)) == 2)
            await until(lambda: ("connected", ONE) in two.events)
            assert one.send(TWO, b"2") == [True]
            await until(lambda: len(two.frames) == 2)
            assert [frame for _, frame in two.frames] == [b"1", b"2"]

    run(main)


def test_process_that_is_heard_says_what_its_release_can() -> None:
    """Also the next one of the same replica, which may be of a release that says nothing."""

    async def main() -> None:
        one, two = Replica(ONE), Replica(TWO)
        two.speaks = Speaks("0.3.0", (1, 2), (2, 3), (1, 2))
        async with replicas(one, two):
            await until(lambda: one.streams.said_by(TWO) == two.speaks)
            await until(lambda: two.streams.said_by(ONE) == SILENT)
            await two.close()
            await until(lambda: one.streams.said_by(TWO) is None)
            two.speaks = SILENT
            await two.listen()
            two.connect({ONE: one.address})
            await until(lambda: one.streams.said_by(TWO) == SILENT)

    run(main)


def test_peer_that_calls_ends_the_pause_before_calling_it() -> None:
    async def main() -> None:
        hour = 3_600_000
        slow = replace(SETTINGS, reconnect_pause_min_ms=hour, reconnect_pause_max_ms=hour)
        one, two = Replica(ONE, settings=slow), Replica(TWO)
        await one.listen()
        await two.listen()
        await two.server.close()
        one.connect({TWO: two.address})
        await until(lambda: one.streams.warnings._kinds)  # It was refused, and waits.
        await two.listen()
        two.connect({ONE: one.address})
        await until(lambda: ("connected", TWO) in one.events)
        await one.close()
        await two.close()

    run(main)


def test_pauses_grow_up_to_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        one = Replica(ONE)
        await one.listen()
        pauses: list[float] = []

        async def wait(event: asyncio.Event, seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 12:
                await asyncio.Event().wait()

        monkeypatch.setattr(streams_module, "wait_at_most", wait)
        one.connect({TWO: "127.0.0.1:1"})
        await until(lambda: len(pauses) == 12)
        await one.close()
        for number, pause in enumerate(pauses):
            base = min(0.020 * 2**number, 1.0)
            assert base <= pause <= 1.5 * base
        assert len({pause / min(0.020 * 2**n, 1.0) for n, pause in enumerate(pauses)}) > 1

    run(main)


def test_newer_connection_replaces_an_older_one_without_telling() -> None:
    """A cut network leaves a connection behind that looks alive; the peer comes again."""

    async def main() -> None:
        hour = 3_600_000  # The older one doesn't come back.
        slow = replace(SETTINGS, reconnect_pause_min_ms=hour, reconnect_pause_max_ms=hour)
        one, two = Replica(ONE, settings=slow), Replica(TWO)
        async with wired(one, two):
            await until(lambda: one.events)
            older = two.streams._incoming[ONE]
            again = Replica(ONE)
            await again.listen()
            again.connect({TWO: two.address})
            await until(lambda: two.streams._incoming.get(ONE) not in (None, older))
            await until(lambda: again.events)
            again.send(TWO, b"newer")
            await until(lambda: two.frames)
            assert two.events == []
            await one.close()
            await again.close()

    run(main)


def test_peer_that_does_not_read_gets_no_more_than_the_buffer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        settings = replace(SETTINGS, stream_buffer_bytes_max=1_000_000)
        one, two = Replica(ONE, settings=settings), Replica(TWO)
        async with replicas(one, two):
            await until(lambda: one.events and two.streams._incoming)
            receiver = two.streams._incoming[ONE]
            receiver._transport.pause_reading()
            frame = b"x" * 100_000
            sent = 0
            while one.send(TWO, frame) == [True]:
                sent += 1
                await asyncio.sleep(0)
            assert one.send(TWO, frame) == [False]
            sender = one.streams._openers[TWO].sender
            assert sender is not None
            assert sender._transport.get_write_buffer_size() <= 500_000
            assert sender._parts_bytes <= 1_200_000
            receiver._transport.resume_reading()
            await until(lambda: len(two.frames) == sent)
            assert one.send(TWO, b"again") == [True]
            await until(lambda: two.frames[-1] == (ONE, b"again"))
            assert ("disconnected", TWO) not in one.events

    with caplog.at_level(logging.WARNING):
        run(main)
    (message,) = caplog.messages
    assert message.startswith("replica=1 peer=2 doesn't read: frames are dropped, 1")


def test_peers_can_change() -> None:
    async def main() -> None:
        one, two, three = Replica(ONE), Replica(TWO), Replica(THREE)
        async with replicas(one, two, three):
            await until(lambda: all(len(r.events) == 2 for r in (one, two, three)))
            one.streams.set_peers({ONE: one.address, THREE: three.address})
            assert one.send(TWO, b"x") == [False]
            assert one.send(THREE, b"x") == [True]
            await until(lambda: ("disconnected", ONE) in two.events)
            assert one.events.count(("disconnected", TWO)) == 0  # It was us.
            one.streams.set_peers({TWO: two.address, THREE: three.address})
            await until(lambda: one.events.count(("connected", TWO)) == 2)

    run(main)


def test_bug_in_a_callback_reaches_the_loop() -> None:
    async def main() -> None:
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: problems.append(context)
        )
        one, two = Replica(ONE), Replica(TWO)

        def bug(source: ReplicaId, frame: bytes) -> None:
            raise ZeroDivisionError

        async with replicas(one, two):
            two.on_frame = bug
            await until(lambda: one.events)
            one.send(TWO, b"x")
            await until(lambda: problems)
            assert isinstance(problems[0]["exception"], ZeroDivisionError)

    run(main)


def test_connection_that_is_lost_before_anybody_waits_for_it_is_no_bug() -> None:
    """As when a coordinator stops while it connects."""

    async def main() -> None:
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: problems.append(context)
        )
        one = Replica(ONE)
        await one.listen()
        sender = streams_module._Sender(one.streams, TWO)
        sender.connection_lost(None)
        del sender
        gc.collect()
        assert problems == []
        await one.close()

    run(main)


# --- who may have a stream ---


@pytest.mark.parametrize(
    ("key", "me", "words"),
    [
        (OTHER_KEY, ONE, "has another cluster key"),
        (KEY, ReplicaId(9), "replica 9 is no peer of replica 2; check --peers and --id of both"),
    ],
)
def test_stranger_is_refused_and_told_why(
    key: ClusterKey, me: ReplicaId, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        stranger, two = Replica(me, key=key), Replica(TWO)
        async with wired(stranger, two):
            await until(lambda: any(words in line for line in lines()))
            assert stranger.events == [] and two.events == []
            assert stranger.send(TWO, b"x") == [False]

    def lines() -> list[str]:
        return [line for line in caplog.messages if line.startswith(f"replica={me} peer=2 ")]

    with caplog.at_level(logging.WARNING):
        run(main)
    (line,) = lines()  # Counted, not repeated.
    assert "cannot reach 127.0.0.1:" in line


def test_replica_of_another_cluster_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """Also as a visitor: it is not called back."""

    async def main() -> None:
        one, two = Replica(ONE), Replica(TWO)
        await one.listen()
        await two.listen()
        one.streams.cluster, two.streams.cluster = "former", "new"
        one.streams.address = one.address
        one.connect({TWO: two.address})
        two.connect({})
        words = "replica 2 belongs to cluster 'new', replica 1 to 'former'; start each with"
        await until(lambda: words in caplog.text)
        assert one.events == two.events == []
        one.streams.cluster = "new"
        await until(lambda: one.events and two.frames == [] and one.send(TWO, b"x") == [True])
        await until(lambda: two.frames == [(ONE, b"x")])
        await one.close()
        await two.close()

    with caplog.at_level(logging.WARNING):
        run(main)


def test_mixed_up_addresses_are_told(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        one, two = Replica(ONE), Replica(TWO)
        await one.listen()
        await two.listen()
        one.connect({THREE: two.address})
        await until(lambda: "this is replica 2, not 3" in caplog.text)
        await one.close()
        await two.close()

    with caplog.at_level(logging.WARNING):
        run(main)
    assert "the addresses of the replicas are mixed up: check --peers" in caplog.text


async def _impostor(answer: bytes) -> tuple[asyncio.AbstractServer, str]:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    return server, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


_SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (_SWITCHING + b"\r\n", "doesn't prove the cluster key (status 101)"),
        (
            _SWITCHING + b"Stream-Nonce: " + b"a" * 32 + b"\r\nProof: whole \xe9\r\n\r\n",
            "doesn't prove the cluster key (status 101)",
        ),
        (
            _SWITCHING + b"Proof: digest " + b"a" * 64 + b"\r\n\r\n",
            "doesn't prove the cluster key (status 101)",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "doesn't prove the cluster key (status 200)",
        ),
        (b"SSH-2.0\r\n", "it answered what is not HTTP/1.1"),
        (_SWITCHING + b"\r\nmore", "doesn't prove the cluster key (status 101)"),
    ],
)
def test_impostor_gets_no_frames(
    answer: bytes, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        server, address = await _impostor(answer)
        one = Replica(ONE)
        await one.listen()
        one.connect({TWO: address})
        await until(lambda: words in caplog.text)
        assert one.events == []
        await one.close()
        server.close()

    with caplog.at_level(logging.WARNING):
        run(main)


def test_peer_that_answers_nothing_is_given_up_and_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        server, address = await _impostor(b"")
        one = Replica(ONE, settings=replace(SETTINGS, connect_timeout_ms=30))
        await one.listen()
        one.connect({TWO: address})
        await until(lambda: "no answer within 30 ms" in caplog.text)
        await one.close()
        server.close()

    with caplog.at_level(logging.WARNING):
        run(main)


def _signed(replica: Replica, target: str) -> str:
    KEY.learn_life(replica.address, replica.gate.life, signed_for="")
    return KEY.sign("POST", target, replica.address).authorization


def test_plain_request_to_the_stream_path_is_told_to_upgrade() -> None:
    async def main() -> None:
        two = Replica(TWO)
        await two.listen()
        two.streams.set_peers({ONE: "127.0.0.1:1"})
        target = f"{STREAM_PATH}?source=1&target=2&nonce={'a' * 32}"
        head = (
            f"POST {target} HTTP/1.1\r\nHost: {two.address}\r\nContent-Length: 0\r\n"
            f"Authorization: {_signed(two, target)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(*parse_address(two.address))
        writer.write(head.encode())
        answer = await reader.readuntil(b"}")
        assert answer.startswith(b"HTTP/1.1 426 ")
        assert f"speaks {PROTOCOL_NAME} only".encode() in answer
        writer.close()
        await two.close()

    run(main)
