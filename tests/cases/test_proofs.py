"""Who may speak: answers that prove themselves, requests that count once, and no clock.

A stranger here has no key, but every port that one of ours has left, and every byte that
was ever on the wire.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest

from tasksprint.asking.cluster import Cluster
from tasksprint.asking.leader import LeaderFinder
from tasksprint.cli import cluster_commands
from tasksprint.cli.run import PrivateCluster
from tasksprint.coordination.commands import JoinClient, encode_command
from tasksprint.encoding import encode_json
from tasksprint.errors import PeerUnreachable, RemoteProtocolError, UnprovenAnswer
from tasksprint.ids import Incarnation, JobId
from tasksprint.net.gate import Access, Gate
from tasksprint.net.http_blocking import request_blocking
from tasksprint.net.http_client import HttpClient
from tasksprint.net.http_messages import HttpResponse
from tasksprint.net.http_server import HttpServer
from tasksprint.net.keys import ClusterKey
from tasksprint.net.router import Request, Response, Router, json_response
from tasksprint.process.job_directory import read_job
from tasksprint.roles.client.client import Client
from tasksprint.roles.client.surroundings import ClientOptions
from tasksprint.settings import Settings
from tasksprint.store.result_store import ResultStore
from tests.cases.between import Change, between
from tests.net.support import OTHER_KEY, client_of, raw_connection, run, serving, until
from tests.roles.client_world import (
    GOOD,
    KEY,
    Coordinator,
    assignment,
    shell_node,
    view,
    world,
)
from tests.roles.members import members
from tests.test_tidy import ROOT

SETTINGS = Settings()

# --- answers that somebody changed on the way ---

_LONG = bytes(range(256)) * 2_400  # goes in three frames
_SHA256 = hashlib.sha256(_LONG).hexdigest()


def _answers() -> Router:
    """The kinds of answers that there are."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(_LONG), 200_000):
            yield _LONG[start : start + 200_000]

    def fail(request: Request) -> Response:
        raise ZeroDivisionError

    router = Router()
    router.add("GET", "/whole", lambda request: json_response({"leader": "h:1"}))
    router.add("GET", "/empty", lambda request: Response(200))
    router.add("GET", "/long", lambda request: Response(200, _LONG))
    router.add("GET", "/pieces", lambda request: Response(200, pieces()))
    router.add("GET", "/sized", lambda request: Response(200, pieces(), body_bytes=len(_LONG)))
    router.add("GET", "/digest", lambda request: Response(200, _LONG, digest=_SHA256))
    router.add("GET", "/streamed", lambda request: Response(200, pieces(), digest=_SHA256))
    router.add(
        "GET", "/line", lambda request: Response(200, b"[1]\n" + _LONG, covers_line=True)
    )
    router.add("GET", "/bug", fail)
    router.add("POST", "/small", lambda request: Response(200), body_bytes_max=10)
    router.add("GET", "/healthz", lambda request: Response(200), access=Access.OPEN)
    return router


def _frames(body: bytes) -> list[bytes]:
    """Cut a body into its frames."""
    frames = []
    while body:
        size = int.from_bytes(body[:4], "big") + 20
        frames.append(body[:size])
        body = body[size:]
    return frames


def _of_frames(change: Callable[[list[bytes]], list[bytes]]) -> Change:
    return lambda head, body: (head, b"".join(change(_frames(body))))


def _replace(old: bytes, new: bytes) -> Change:
    def change(head: bytes, body: bytes) -> tuple[bytes, bytes]:
        assert old in head, head
        return head.replace(old, new, 1), body

    return change


def _flip(at: int) -> Change:
    def change(head: bytes, body: bytes) -> tuple[bytes, bytes]:
        changed = bytearray(body)
        changed[at] ^= 1
        return head, bytes(changed)

    return change


def _without_proof(head: bytes, body: bytes) -> tuple[bytes, bytes]:
    return re.sub(rb"Proof: [^\r]*\r\n", b"", head), body


_OF_ALL: dict[str, Change] = {
    "status": _replace(b" 200 OK", b" 201 Created"),
    "type": _replace(b"Content-Type: application/json", b"Content-Type: application/jso_"),
    "added line": _replace(b"Proof: ", b"Members: h:6\r\nProof: "),
    "no proof": _without_proof,
    "proof of nothing": lambda head, body: (
        re.sub(rb"Proof: (\w+) [^\r]*", rb"Proof: \1 " + b"0" * 64, head),
        body,
    ),
    "unknown kind": lambda head, body: (re.sub(rb"Proof: \w+", b"Proof: none", head), body),
    "later proof": _replace(b"Proof: ", b"Proof: whole \r\nProof: "),
    "not ASCII": lambda head, body: (re.sub(rb"(Proof: \w+ )..", b"\\1\xe9\xe9", head), body),
}
_CHANGES: dict[str, dict[str, Change]] = {
    "/whole": {"body": _flip(0), "as digest": _replace(b"whole", b"digest")},
    "/long": {
        "first byte": _flip(20),
        "last byte": _flip(-21),
        "size": _flip(0),
        "huge size": lambda head, body: (head, b"\xff" + body[1:]),
        "swapped": _of_frames(lambda frames: [frames[1], frames[0], *frames[2:]]),
        "first left out": _of_frames(lambda frames: frames[1:]),
        "one twice": _of_frames(lambda frames: [frames[0], *frames]),
        "cut off": _of_frames(lambda frames: frames[:-1]),
        "cut short": lambda head, body: (head, body[:-1]),
        "nothing": lambda head, body: (head, b""),
        "end first": _of_frames(lambda frames: frames[-1:]),
        "more behind it": lambda head, body: (head, body + b"more than that, and more yet"),
        "another end": _of_frames(lambda frames: [*frames, frames[-1]]),
        "as whole": _replace(b"frames", b"whole"),
    },
    "/pieces": {
        "body": _flip(20),
        "cut off": _of_frames(lambda frames: frames[:-1]),
    },
    "/sized": {
        "body": _flip(20),
        "cut off": _of_frames(lambda frames: frames[:-1]),
    },
    "/digest": {
        "body": _flip(7),
        "digest": _replace(_SHA256.encode(), b"a" * 64),
        "line left out": _replace(b"Body-Sha256", b"Bodi-Sha256"),
    },
    "/streamed": {"body": _flip(-1)},
    "/line": {"line": _flip(1), "no line": lambda head, body: (head, body.replace(b"\n", b"_"))},
}
_CASES = [
    (path, name)
    for path, changes in _CHANGES.items()
    for name in [*(_OF_ALL if path in ("/whole", "/long", "/digest") else ()), *changes]
]


@pytest.mark.parametrize(("path", "name"), _CASES)
def test_changed_answer_is_refused(path: str, name: str) -> None:
    change = {**_OF_ALL, **_CHANGES[path]}[name]

    async def main() -> None:
        async with between(_answers()) as there, client_of(KEY) as client:
            checks_rest = path == "/line"
            right = await client.request(there.address, "GET", path, checks_rest=checks_rest)
            assert right.status == 200 and (path == "/whole" or right.body[-256:] == _LONG[-256:])
            there.change = change
            with pytest.raises(UnprovenAnswer):
                await client.request(there.address, "GET", path, checks_rest=checks_rest)
            with pytest.raises(UnprovenAnswer):
                async with client.stream(there.address, "GET", path) as answer:
                    async for _ in answer.chunks():
                        assert path != "/whole"
            with pytest.raises(UnprovenAnswer):
                await _blocking(there.address, path, checks_rest=checks_rest)

    run(main)


async def _blocking(address: str, path: str, **options: Any) -> HttpResponse:
    return await asyncio.get_running_loop().run_in_executor(
        None,
        lambda: request_blocking(address, "GET", path, key=KEY, settings=SETTINGS, **options),
    )


@pytest.mark.parametrize("path", ["/whole", "/empty", "/long", "/pieces", "/sized", "/digest"])
def test_answer_as_it_was_given_is_taken(path: str) -> None:
    """Also one with lines behind the proof; nobody reads them."""

    async def main() -> None:
        async with between(_answers()) as there, client_of(KEY) as client:
            there.change = _replace(b"\r\n\r\n", b"\r\nMembers: h:6\r\nLife: 0\r\n\r\n")
            first = await client.request(there.address, "GET", path)
            second = await _blocking(there.address, path)
            async with client.stream(there.address, "GET", path) as answer:
                body = b"".join([chunk async for chunk in answer.chunks()])
            assert first.body == second.body == body
            assert "members" not in {**first.headers, **second.headers, **answer.headers}
            assert first.status == second.status == answer.status == 200

    run(main)


def test_answer_to_another_request_is_refused() -> None:
    """What was answered a while ago, to the same question, is given again."""

    async def main() -> None:
        seen: list[tuple[bytes, bytes]] = []

        def again(head: bytes, body: bytes) -> tuple[bytes, bytes]:
            seen.append((head, body))
            return seen[0]

        async with between(_answers()) as there, client_of(KEY) as client:
            await client.request(there.address, "GET", "/whole")  # Learns the life.
            there.change = again
            await client.request(there.address, "GET", "/whole")
            with pytest.raises(UnprovenAnswer):
                await client.request(there.address, "GET", "/whole")

    run(main)


def test_half_proved_answer_is_only_for_who_checks_the_rest() -> None:
    async def main() -> None:
        async with between(_answers()) as there, client_of(KEY) as client:
            for asking in (
                client.request(there.address, "GET", "/line"),
                _blocking(there.address, "/line"),
            ):
                with pytest.raises(UnprovenAnswer):
                    await asking
            right = await client.request(there.address, "GET", "/digest", digest=_SHA256)
            assert right.body == _LONG
            with pytest.raises(RemoteProtocolError, match="sent bytes with the digest"):
                await client.request(there.address, "GET", "/digest", digest="a" * 64)
            with pytest.raises(UnprovenAnswer, match="another digest than it named"):
                async with client.stream(there.address, "GET", "/streamed", digest="a" * 64):
                    pass

    run(main)


def test_refusals_and_heads_are_proved_too() -> None:
    async def main() -> None:
        async with (
            serving(_answers(), gate=Gate(KEY)) as there,
            client_of(KEY) as client,
        ):
            found = [
                (await client.request(there.address, method, path, body=body)).status
                for method, path, body in (
                    ("GET", "/nowhere", b""),
                    ("POST", "/whole", b""),
                    ("POST", "/small", b"x" * 11),
                    ("GET", "/bug", b""),
                )
            ]
            assert found == [404, 405, 413, 500]
            head = await client.request(there.address, "HEAD", "/digest")
            assert (head.status, head.body) == (200, b"")

    run(main)


def test_who_did_not_sign_gets_no_proof() -> None:
    async def main() -> None:
        async with serving(_answers(), gate=Gate(KEY)) as server:
            async with raw_connection(server.address) as raw:
                raw.write(f"GET /healthz HTTP/1.1\r\nHost: {server.address}\r\n\r\n".encode())
                status, headers, _ = await raw.answer()
                assert status == 200 and "proof" not in headers
            async with client_of(KEY) as client:  # Who signs is answered so everywhere.
                assert (await client.request(server.address, "GET", "/healthz")).status == 200

    run(main)


# --- requests that somebody sends elsewhere, or later ---


def _stoppable(stopped: list[str], name: str) -> Router:
    def stop(request: Request) -> Response:
        stopped.append(name)
        return Response(200)

    router = Router()
    router.add("POST", "/v1/stop", stop)
    return router


def _stop_for(key: ClusterKey, address: str) -> bytes:
    text = key.sign("POST", "/v1/stop", address).authorization
    return (
        f"POST /v1/stop HTTP/1.1\r\nHost: {address}\r\nAuthorization: {text}\r\n"
        "Content-Length: 0\r\n\r\n"
    ).encode()


def test_request_to_one_process_does_nothing_at_the_one_beside_it() -> None:
    async def main() -> None:
        stopped: list[str] = []
        key = ClusterKey(bytes(range(32)))
        one, two = Gate(KEY), Gate(KEY)
        async with (
            serving(_stoppable(stopped, "coordinator"), gate=one) as coordinator,
            serving(_stoppable(stopped, "client"), gate=two) as client,
            raw_connection(client.address) as raw,
        ):
            for life in (one.life, two.life):
                key.learn_life(coordinator.address, life, signed_for="")
                raw.write(_stop_for(key, coordinator.address))
                status, headers, body = await raw.answer()
                assert status == 401 and b"which is no address of this process" in body
                assert "life" not in headers
            assert stopped == []

    run(main)


def test_recorded_request_does_nothing_again_nor_after_a_restart() -> None:
    async def main() -> None:
        stopped: list[str] = []
        key = ClusterKey(bytes(range(32)))
        gate = Gate(KEY)
        server = HttpServer(_stoppable(stopped, "1"), gate, SETTINGS)
        address = await server.listen("127.0.0.1:0")
        key.learn_life(address, gate.life, signed_for="")
        recorded = _stop_for(key, address)
        for status in (200, 401):
            async with raw_connection(address) as raw:
                raw.write(recorded)
                assert (await raw.answer())[0] == status
        await server.close(grace_ms=0)
        again = HttpServer(_stoppable(stopped, "2"), Gate(KEY), SETTINGS)
        await again.listen(address)
        async with raw_connection(address) as raw:
            raw.write(recorded)
            status, headers, body = await raw.answer()
            assert (status, len(headers["life"])) == (401, 16)
            assert b"was signed for life" in body
        assert stopped == ["1"]
        await again.close(grace_ms=0)

    run(main)


def test_who_asks_signs_anew_for_a_new_life_and_only_once() -> None:
    async def main() -> None:
        stopped: list[str] = []
        gate = Gate(KEY)
        async with (
            serving(_stoppable(stopped, "it"), gate=gate) as server,
            client_of(ClusterKey(bytes(range(32)))) as client,
        ):
            for number in range(1, 4):
                response = await client.request(server.address, "POST", "/v1/stop")
                assert response.status == 200 and len(stopped) == number
                gate.life = f"{number:016x}"  # As if it was started anew.

    run(main)


def test_server_with_a_new_life_each_time_is_given_up() -> None:
    async def main() -> None:
        async with between(_stoppable([], "it")) as there:
            gate = there.gate

            def renew(head: bytes, body: bytes) -> tuple[bytes, bytes]:
                gate.life = os.urandom(8).hex()
                return head, body

            there.change = renew
            async with client_of(ClusterKey(bytes(range(32)))) as client:
                with pytest.raises(RemoteProtocolError, match="two processes answer there"):
                    await client.request(there.address, "POST", "/v1/stop")
            heads = [head for head in there.sent if head]
            assert len(heads) == 2

    run(main)


def test_long_body_is_sent_once_to_who_was_never_asked_before() -> None:
    async def main() -> None:
        body = bytes(200_000)
        router = Router()
        router.add("POST", "/v1/archives", lambda request: Response(200))
        router.add("GET", "/healthz", lambda request: Response(200), access=Access.OPEN)
        async with between(router) as there, client_of(ClusterKey(bytes(range(32)))) as client:
            found = await client.request(there.address, "POST", "/v1/archives", body=body)
            assert found.status == 200
            assert sum(map(len, there.sent)) < 2 * len(body)
            there.sent.clear()
            loop, key = asyncio.get_running_loop(), ClusterKey(bytes(range(32)))

            def ask() -> HttpResponse:
                return request_blocking(
                    there.address, "POST", "/v1/archives", key=key, settings=SETTINGS, body=body
                )

            assert (await loop.run_in_executor(None, ask)).status == 200
            assert sum(map(len, there.sent)) < 2 * len(body)

    run(main)


# --- a stranger where a coordinator was ---


class Stranger(Coordinator):
    """Has no key, and answers as a coordinator would who orders what the real one didn't."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.asked = 0
        self.server = HttpServer(self.router, None, Settings())
        self._incarnations[client.workbench.cid] = client.workbench.incarnation

    async def _view(self, request: Request) -> Response:
        self.asked += 1
        return await super()._view(request)

    def _command(self, request: Request) -> Response:
        self.asked += 1
        return super()._command(request)


def _free_address() -> str:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{bound.getsockname()[1]}"


def _orders(marker: Path) -> str:
    return shell_node(f"touch {marker}\n{GOOD}")


@pytest.mark.slow
@pytest.mark.parametrize("is_only_one", [True, False])
def test_stranger_on_the_port_of_a_dead_coordinator_is_obeyed_in_nothing(
    is_only_one: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marker = tmp_path / "ran"

    async def main() -> None:
        coordinator = Coordinator()
        coordinator.address = await coordinator.server.listen("127.0.0.1:0")
        others: list[HttpServer] = []
        addresses = [_free_address() for _ in range(2)]
        async with world(tmp_path / "client", coordinator=coordinator) as here:
            here.program(_orders(marker))
            await until(lambda: here.client.is_joined)
            if not is_only_one:
                here.client.leader.learn(addresses)
            await coordinator.server.close(grace_ms=0)
            stranger = Stranger(here.client)
            await stranger.server.listen(coordinator.address)
            stranger.give(view(whole=True, run=(assignment(1),)))
            await until(lambda: stranger.asked >= 4)
            assert here.client.workbench.version == coordinator.version
            assert here.client.leader.complaint == (
                f"what answers at {coordinator.address} doesn't prove the cluster key (status 200)"
            )
            if is_only_one:
                await stranger.server.close(grace_ms=0)
            for address in [coordinator.address] if is_only_one else addresses:
                others.append(HttpServer(coordinator.router, Gate(KEY), Settings()))
                await others[-1].listen(address)
            # The real one is found, with the orders that are its own.
            here.program(shell_node(GOOD), digest="q" * 64)
            mine = view(whole=True, run=(assignment(2, job=2),))
            job = mine.jobs[0]
            coordinator.give(
                view(whole=True, run=mine.run, jobs=(type(job)(job.job, "q" * 64, job.node),))
            )
            await until(lambda: 2 in coordinator.done(2))
            assert not marker.exists() and coordinator.done(1) == {}
            assert stranger.reports == [] and not here.client.stopped.done()
            status = await here.client.http.request(here.address, "GET", "/v1/status")
            assert "doesn't prove the cluster key" in status.json()["complaint"]
            await stranger.server.close(grace_ms=0)
        for other in others:
            await other.close(grace_ms=0)

    run(main)
    told = [line for line in caplog.messages if "an answer is disregarded" in line]
    assert len(told) == 1  # However often it was asked.


def test_stranger_that_gives_values_is_not_believed(tmp_path: Path) -> None:
    """Its digests would fit, for the log doesn't know what is in a manifest's own order."""

    async def main() -> None:
        async with client_of(KEY) as client:
            router = Router()
            answer = lambda request: Response(200, b"[null]\n", covers_line=True)  # noqa: E731
            router.add("POST", "/v1/values", answer)
            async with serving(router) as server:
                with pytest.raises(UnprovenAnswer):
                    await client.request(
                        server.address, "POST", "/v1/values", body=b"[]", checks_rest=True
                    )

    run(main)


# --- answers that are proved, and wrong ---


class Confused(Coordinator):
    """Has the key, and bugs."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[Callable[[], Response]] = []
        self.complaints: list[str | None] = []

    async def _view(self, request: Request) -> Response:
        self.complaints.append(request.query.get("complaint"))
        if self.wrong:
            return self.wrong.pop(0)()
        return await super()._view(request)


def _bug() -> Response:
    raise ZeroDivisionError


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (_bug, "a bug in this process: ZeroDivisionError"),
        (lambda: Response(200, b"]["), "not JSON"),
        (lambda: json_response({"view": 1}), "not a view"),
        (lambda: json_response(["1", True, [], [], [], [], [], []]), "not a view"),
        (lambda: json_response([1, True, [], [], [], [[1, 2, 3]], [], []]), "not a view"),
        (lambda: json_response({"error": "no"}, status=404), "no"),
    ],
)
def test_wrong_answer_of_a_coordinator_ends_no_client(
    answer: Callable[[], Response], words: str, tmp_path: Path
) -> None:
    async def main() -> None:
        confused = Confused()
        confused.address = await confused.server.listen("127.0.0.1:0")
        async with world(tmp_path, coordinator=confused) as here:
            here.program(shell_node(GOOD))
            confused.wrong += [answer] * 3
            confused._changed.set()
            await until(lambda: not confused.wrong or here.client.stopped.done())
            confused.give(view(whole=True, run=(assignment(1),)))
            await until(lambda: 1 in confused.done() or here.client.stopped.done())
            assert not here.client.stopped.done()
            complaint = here.client.leader.complaint
            assert complaint is not None and words in complaint, complaint
            assert complaint in confused.complaints
            assert len(confused.joins) == 1
        await confused.server.close(grace_ms=0)

    run(main)


@pytest.mark.slow
def test_clients_shows_what_a_client_complains_of(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(1, tmp_path) as of:
            member = await of.leader()
            join = JoinClient("ab" * 8, Incarnation("cd" * 8), "h:1", "host", 1, ())
            reply = await member.ask("POST", "/v1/commands", body=encode_command(join))
            cid = reply.json()["cid"]
            for complaint in ("h:6 answers: nonsense", None):
                query = {"cid": cid, "incarnation": "cd" * 8, "since": 0}
                if complaint is not None:
                    query["complaint"] = complaint
                await member.ask("GET", "/v1/view", query=query)
                (listed,) = (await member.ask("GET", "/v1/clients")).json()
                assert listed["complaint"] == complaint

    asyncio.run(main())


def test_clients_prints_complaints(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {
        "cid": 3, "hostname": "lab", "address": None, "state": "alive", "slots": 1,
        "assigned": 0, "attached": {}, "complaint": "h:6 answers: nonsense",
    }  # fmt: skip

    class Cluster:
        def request(self, *_: Any, **__: Any) -> HttpResponse:
            return HttpResponse(200, {}, encode_json([listed]))

    cluster_commands.list_clients(cast(Any, Cluster()), argparse.Namespace(json=False))
    printed = capsys.readouterr().out
    assert printed.endswith("client 3 disregarded an answer: h:6 answers: nonsense\n")


# --- "wrong key", says somebody ---


class Sayers:
    """An HTTP client to whom each address says one thing."""

    settings = Settings()

    def __init__(self, **says: str) -> None:
        self._says = {f"{name}:1": what for name, what in says.items()}
        self.asked: list[str] = []

    async def request(self, address: str, *_: Any, **__: Any) -> HttpResponse:
        self.asked.append(address)
        match self._says[address]:
            case "wrong key":
                raise UnprovenAnswer(f"what answers at {address} has another key", status=401)
            case "nonsense":
                raise UnprovenAnswer(f"what answers at {address} proves nothing", status=200)
            case "silence":
                raise PeerUnreachable(f"cannot reach {address}")
        raise AssertionError


@pytest.mark.parametrize(
    ("says", "is_new", "ends"),
    [
        ({"a": "wrong key"}, True, True),
        ({"a": "wrong key", "b": "wrong key", "c": "wrong key"}, True, True),
        ({"a": "silence", "b": "wrong key", "c": "silence"}, True, True),
        ({"a": "wrong key", "b": "nonsense"}, True, False),
        ({"a": "nonsense"}, True, False),
        ({"a": "silence"}, True, False),
        ({"a": "wrong key"}, False, False),
        ({"a": "wrong key", "b": "wrong key", "c": "wrong key"}, False, False),
    ],
)
def test_wrong_key_ends_only_who_is_new_and_hears_nothing_else(
    says: dict[str, str], is_new: bool, ends: bool
) -> None:
    async def main() -> None:
        now_ms = iter(range(10**9))
        http = Sayers(**says)
        leader = LeaderFinder(
            [f"{name}:1" for name in says],
            cast(HttpClient, http),
            Random(1),
            lambda: next(now_ms),
            ends_by_wrong_key=is_new,
        )
        with pytest.raises(UnprovenAnswer if ends else PeerUnreachable) as caught:
            await leader.request("GET", "/", give_up_ms=60)
        assert ends == isinstance(caught.value, UnprovenAnswer)
        assert {address[0] for address in http.asked} == set(says)

    run(main)


@pytest.mark.slow
def test_client_that_joined_once_outlives_who_says_that_its_key_is_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        coordinator = Coordinator()
        coordinator.address = await coordinator.server.listen("127.0.0.1:0")
        async with world(tmp_path / "old", coordinator=coordinator) as here:
            await until(lambda: here.client.is_joined)
        await coordinator.server.close(grace_ms=0)
        liar = HttpServer(coordinator.router, Gate(OTHER_KEY), Settings())
        await liar.listen(coordinator.address)
        new = _client(tmp_path / "new", coordinator.address)
        await new.start()
        await until(new.stopped.done)
        assert str(new.stopped.exception()) == (
            f"what answers at {coordinator.address} has another cluster key; both sides must use "
            "the same key file (--key-file, TASKSPRINT_KEY_FILE)"
        )
        await new.close()
        caplog.clear()
        old = _client(tmp_path / "old", coordinator.address)
        await old.start()
        await until(lambda: "no coordinator leads at" in caplog.text)
        assert not old.stopped.done()
        await liar.close(grace_ms=0)
        again = HttpServer(coordinator.router, Gate(KEY), Settings())
        await again.listen(coordinator.address)
        await until(lambda: old.is_joined)
        await old.close()
        await again.close(grace_ms=0)

    run(main)


def _client(data_dir: Path, coordinator: str) -> Client:
    data_dir.mkdir(exist_ok=True)
    settings = Settings(free_refuse_bytes=0, free_stop_bytes=0)
    store = ResultStore.open(data_dir, now_ms=0, settings=settings)
    return Client(ClientOptions([coordinator], data_dir, KEY, 1), settings, store)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", b"SSH-2.0\r\n"]
)
def test_command_goes_on_from_a_stranger_to_who_leads(answer: bytes) -> None:
    async def main() -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()

        stranger = await asyncio.start_server(talk, "127.0.0.1", 0)
        address = f"127.0.0.1:{stranger.sockets[0].getsockname()[1]}"
        router = Router()
        router.add("GET", "/v1/jobs", lambda request: json_response([1]))
        loop = asyncio.get_running_loop()
        async with serving(router, gate=Gate(KEY)) as server:
            cluster = Cluster([address, server.address], KEY, SETTINGS)
            found = await loop.run_in_executor(None, cluster.request, "GET", "/v1/jobs")
            assert found.json() == [1]
            alone = Cluster([address], KEY, SETTINGS)
            with pytest.raises(RemoteProtocolError, match=re.escape(address)):
                await loop.run_in_executor(None, alone.request, "GET", "/v1/jobs")
        stranger.close()

    run(main)


# --- clocks ---

# What may know the time of day, and what for.
_KNOWS_WALL_TIME = {
    "tasksprint/net/gate.py",  # the end of a token
    "tasksprint/net/tokens.py",  # the same
    "tasksprint/process/clock.py",  # gives it to display
}


def test_wall_time_is_asked_for_only_by_tokens_and_display() -> None:
    asks = re.compile(r"\btime\.time\(|\btime\.time_ns\(|datetime\.now|CLOCK_REALTIME|\.utcnow")
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tasksprint").rglob("*.py")
        if asks.search(path.read_text(encoding="utf-8"))
    }
    assert found == _KNOWS_WALL_TIME


_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long long *offset;

__attribute__((constructor)) static void begin(void) {
    char line[4096] = "", path[4096];
    const char *directory = getenv("SHIM_DIRECTORY");
    int file = open("/proc/self/cmdline", O_RDONLY);
    ssize_t size = read(file, line, sizeof line - 1), i;
    close(file);
    for (i = 0; i < size; i++)
        if (!line[i]) line[i] = ' ';
    snprintf(path, sizeof path, "%s/%s", directory ? directory : "",
             strstr(line, " coordinator ") ? "coordinator" : "client");
    if ((file = open(path, O_RDONLY)) < 0) return;
    void *found = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (found != MAP_FAILED) offset = found;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, now);
    if (clock == CLOCK_REALTIME && offset) now->tv_sec += *offset;
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}
"""


@pytest.fixture
def clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give all children clocks that run as many seconds ahead as two files say."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no compiler for the shim of clock_gettime")
    source, library = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(_SHIM, encoding="utf-8")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    for role in ("coordinator", "client"):
        (tmp_path / role).write_bytes(bytes(8))
    monkeypatch.setenv("SHIM_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    yield tmp_path
    monkeypatch.undo()


def _jump(clocks: Path, role: str, seconds: int) -> None:
    with open(clocks / role, "r+b") as file:  # In place: it is mapped.
        file.write(seconds.to_bytes(8, sys.byteorder, signed=True))


_SCHEDULER = """\
from TaskSprintCoordinator import *
class S(TaskSprintCoordinator):
    def init(self, seed):
        self.left = {self.start_task("work", base=[n], keys=["x"]) for n in range(14)}
    def task_done(self, tid, values):
        self.left.discard(tid)
        if not self.left:
            self.finish(values={"done": 14})
S().start()
"""
_NODE = """\
import time
from TaskSprintNode import *
class N(TaskSprintNode):
    def work(self, n):
        time.sleep(0.5)
        return {"x": n}
N().start()
"""


@pytest.mark.long
def test_clocks_that_jump_end_and_delay_nothing(clocks: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    job.mkdir()
    (job / "scheduler.py").write_text(_SCHEDULER, encoding="utf-8")
    (job / "node.py").write_text(_NODE, encoding="utf-8")
    folder = tmp_path / "c"
    with PrivateCluster(
        coordinators=1,
        clients=2,
        nodes=1,
        keep=folder,
        command=[sys.executable, "-m", "tasksprint"],
    ) as private:
        cluster = private.connect(SETTINGS)
        _wait(lambda: _alive(cluster) == 2)
        number = cluster.submit(job, read_job(job), seed=1, params="{}")
        began = time.monotonic()
        # The leader is 400 s ahead for three seconds, then its clients 2 h behind for good.
        _jump(clocks, "coordinator", 400)
        before = time.monotonic()
        _wait(lambda: _done(cluster, number) >= 4 and time.monotonic() - before > 3)
        second = cluster.submit(job, read_job(job), seed=2, params="{}")
        told = cluster.request("GET", f"/v1/jobs/{second}").json()["submitted_wall_ms"]
        assert told / 1000 > time.time() + 300  # It does see another time.
        _jump(clocks, "coordinator", 0)
        _jump(clocks, "client", -7200)
        for each in (number, second):
            _wait(partial(_has_ended, cluster, each))
            assert cluster.job(JobId(each))[0].values == '{"done":14}'
        assert time.monotonic() - began < 60
        assert _alive(cluster) == 2
        logs = "".join(path.read_text() for path in folder.glob("*.log"))
        for words in ("declared dead", "joins anew", "disregarded", "refused", "lost"):
            assert words not in logs, logs


def _alive(cluster: Cluster) -> int:
    listed = cluster.request("GET", "/v1/clients").json()
    return sum(one["state"] == "alive" for one in listed)


def _has_ended(cluster: Cluster, job: int) -> bool:
    return cluster.job(JobId(job))[0].state != "running"


def _done(cluster: Cluster, job: int) -> int:
    return cluster.job(JobId(job))[0].tasks["done"]


def _wait(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
