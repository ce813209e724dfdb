"""Pieces of a copied mirror: what is checked of them, and copies between coordinators."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import PeerUnreachable, RemoteProtocolError
from tasksprint.net.http_messages import HttpResponse
from tasksprint.roles.coordinator import copies as mirror_copy
from tasksprint.settings import Settings
from tasksprint.store.copy_pieces import check_piece, piece_body
from tasksprint.store.mirror_snapshot import CopyPiece
from tests.roles.members import Member, Members, members

WHO = "replica 2"
FIRST = CopyPiece("jobs", 1, b'[[1,"n","running","{}"]]', ("jobs", (1,)))
LAST = CopyPiece("garbage", 0, b"[]", None)


def bodies() -> list[bytes]:
    """Return two pieces as they travel, one after the other."""
    hasher = hashlib.sha256()
    found = []
    for number, piece in enumerate((FIRST, LAST)):
        hasher.update(piece.text)
        found.append(piece_body(piece, number, hasher.hexdigest()))
    return found


def test_pieces_are_taken_in_order_up_to_the_last() -> None:
    hasher = hashlib.sha256()
    first, last = bodies()
    assert check_piece(first, 0, hasher, who=WHO) == ("jobs", FIRST.text, False)
    assert check_piece(last, 1, hasher, who=WHO) == ("garbage", b"[]", True)


def change_header(name: str, value: Any) -> Callable[[bytes], bytes]:
    def change(body: bytes) -> bytes:
        line, _, text = body.partition(b"\n")
        return encode_json({**decode_json(line), name: value}) + b"\n" + text

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body[:-2] + b" ]", "piece 0 of the state from replica 2 fails its checksum"),
        (lambda body: body[:-9], "piece 0 of the state from replica 2 fails its checksum"),
        (change_header("number", 1), r"replica 2 sent .*, expected piece 0 of its state"),
        (change_header("whole", "00"), "the state from replica 2 fails its checksum at piece 0"),
        (change_header("table", "wishes"), "rows of a table 'wishes' that this release doesn't"),
        (lambda body: b"[]\n[]", r"replica 2 sent b'\[\]', expected piece 0 of its state"),
        (lambda body: b"", "JSON"),
    ],
)
def test_piece_that_was_changed_on_the_way_is_refused(
    change: Callable[[bytes], bytes], message: str
) -> None:
    with pytest.raises(RemoteProtocolError, match=message):
        check_piece(change(bodies()[0]), 0, hashlib.sha256(), who=WHO)


def test_piece_that_is_missing_or_comes_twice_is_noticed() -> None:
    first, last = bodies()
    renumbered = change_header("number", 0)(last)
    with pytest.raises(RemoteProtocolError, match="fails its checksum at piece 0"):
        check_piece(renumbered, 0, hashlib.sha256(), who=WHO)
    hasher = hashlib.sha256()
    check_piece(first, 0, hasher, who=WHO)
    with pytest.raises(RemoteProtocolError, match="fails its checksum at piece 1"):
        check_piece(change_header("number", 1)(first), 1, hasher, who=WHO)


# --- between coordinators ---

SETTINGS = Settings(
    log_tail_slots=4,
    mirror_piece_rows=1,
    heartbeat_interval_ms=20,
    resend_interval_ms=30,
)


async def command(leader: Member, number: int) -> None:
    """Have a small command chosen that changes a row: a request's record."""
    body = encode_json({"sender": f"s{number}", "request": 1, "reason": ""})
    assert (await leader.ask("POST", "/v1/jobs/999/cancel", body=body)).status == 404


async def behind(of: Members) -> Member:
    """Stop a follower, and let the others truncate all that it has."""
    leader = await of.leader()
    await command(leader, 0)
    away = next(member for member in of.all if member is not leader)
    await away.stop()
    for number in range(1, 30):
        await command(leader, number)
    # Rows of the mirror wait for company; the log is truncated with them.
    away_end = away.coordinator.replica.chosen_end
    await until(lambda: leader.coordinator.replica.status().log_start > away_end)
    return away


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so; the test's own limit is around it."""
    while not condition():
        await asyncio.sleep(0.005)


def level(of: Members) -> bool:
    schedules = [member.coordinator.log.schedule for member in of.all]
    return len({(each.applied_slot, each.digest) for each in schedules if each is not None}) == 1


def failing_requests(member: Member, fails: Callable[[int, bytes], bytes]) -> list[str]:
    """Change what a member gets of pieces; return the paths that it asked for, as they come."""
    asked: list[str] = []
    request = member.coordinator.http.request

    async def changed(address: str, method: str, path: str, **options: Any) -> Any:
        response = await request(address, method, path, **options)
        if path.startswith("/v1/mirror"):
            asked.append(path)
            if method == "GET" and response.status == 200:
                return replace(response, body=fails(len(asked), response.body))
        return response

    member.coordinator.http.request = changed  # type: ignore[method-assign]
    return asked


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))


@pytest.mark.slow
def test_copy_goes_on_where_an_answer_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each third answer is lost on the way back: the giver has given that piece already."""
    monkeypatch.setattr(mirror_copy, "_PIECE_PAUSE_S", 0.01)

    def lose(number: int, body: bytes) -> bytes:
        if number % 3 == 0:
            raise PeerUnreachable("the answer is lost")
        return body

    async def work() -> None:
        async with members(3, tmp_path, SETTINGS) as of:
            away = await behind(of)
            await away.start()
            asked = failing_requests(away, lose)
            await until(lambda: level(of))
            assert asked.count("/v1/mirror") == 1  # one session did it all
            pieces = [int(path.rpartition("/")[2]) for path in asked if path[-1].isdigit()]
            assert sorted(set(pieces)) == list(range(max(pieces) + 1))
            assert len(pieces) > len(set(pieces)) > 30
            assert not [member.failure for member in of.all if member.failure]
            # And it goes on by the log.
            await command(await of.leader(), 100)
            await until(lambda: level(of))
            away.coordinator.log.schedule.check()  # type: ignore[union-attr]

    run(work)


@pytest.mark.slow
def test_copy_that_was_changed_on_the_way_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mirror_copy, "_COPY_PAUSE_S", 0.01)

    def spoil(number: int, body: bytes) -> bytes:
        return body.replace(b"]", b" ", 1) if number == 5 else body

    async def work() -> None:
        async with members(3, tmp_path, SETTINGS) as of:
            away = await behind(of)
            await away.start()
            asked = failing_requests(away, spoil)
            await until(lambda: level(of))
            assert asked.count("/v1/mirror") == 2
            await until(lambda: len([path for path in asked if path.endswith("/close")]) == 2)

    run(work)
    assert "fails its checksum" in caplog.text


@pytest.mark.slow
def test_sessions_are_bounded_in_number_order_and_time(tmp_path: Path) -> None:
    async def work() -> None:
        settings = replace(SETTINGS, mirror_session_idle_ms=150)
        async with members(1, tmp_path, settings) as of:
            member = await of.leader()
            await command(member, 1)
            opened = [(await member.ask("POST", "/v1/mirror")).json() for _ in range(2)]
            assert opened[0]["slot"] >= 1 and opened[0]["cluster"]
            refused = await member.ask("POST", "/v1/mirror")
            assert refused.status == 503
            assert refused.json()["error"] == "this replica gives 2 copies already"
            path = f"/v1/mirror/{opened[0]['session']}"
            first = await member.ask("GET", f"{path}/0")
            assert (await member.ask("GET", f"{path}/0")).body == first.body
            refused = await member.ask("GET", f"{path}/2")
            assert refused.status == 409
            assert refused.json()["error"] == "piece 2 can't be given, expected 1"
            await member.ask("POST", f"{path}/close")
            refused = await member.ask("GET", f"{path}/1")
            assert refused.status == 410
            assert refused.json()["error"].endswith("was closed; begin a new one")
            # The other one is closed by time alone.
            sessions = member.coordinator.copies._sessions
            assert list(sessions) == [opened[1]["session"]]
            await until(lambda: not sessions)

    run(work)


@pytest.mark.slow
def test_piece_that_is_asked_for_while_it_is_read_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever lost an answer to time asks again: it was refused, and the copy was lost."""

    async def work() -> None:
        async with members(1, tmp_path, SETTINGS) as of:
            member = await of.leader()
            await command(member, 1)
            copies = member.coordinator.copies
            go_on, read = threading.Event(), copies._read
            begun: list[int] = []

            def slow(session: Any, place: Any) -> bytes:
                begun.append(session.next_number)
                go_on.wait(10)
                return read(session, place)

            monkeypatch.setattr(copies, "_read", slow)
            opened = (await member.ask("POST", "/v1/mirror")).json()
            path = f"/v1/mirror/{opened['session']}"
            given_up = asyncio.ensure_future(member.ask("GET", f"{path}/0"))
            await until(lambda: begun == [0])
            given_up.cancel()
            await asyncio.wait([given_up])
            second, third = (
                asyncio.ensure_future(member.ask("GET", f"{path}/0")) for _ in range(2)
            )
            refused = await member.ask("GET", f"{path}/1")
            assert refused.json()["error"] == "piece 1 can't be given, expected 0"
            go_on.set()
            bodies = [(await second).checked().body, (await third).checked().body]
            assert bodies[0] == bodies[1] and begun == [0]
            hasher = hashlib.sha256()
            number, is_last = 0, False
            while not is_last:
                response = await member.ask("GET", f"{path}/{number}")
                _, _, is_last = check_piece(response.checked().body, number, hasher, who=WHO)
                number += 1
            assert begun == list(range(number))

    run(work)


@pytest.mark.slow
def test_sessions_that_are_opened_at_once_are_bounded(tmp_path: Path) -> None:
    async def work() -> None:
        async with members(1, tmp_path, SETTINGS) as of:
            member = await of.leader()
            asked = [member.ask("POST", "/v1/mirror", repeatable=False) for _ in range(6)]
            found = sorted([answer.status for answer in await asyncio.gather(*asked)])
            assert found == [200, 200, 503, 503, 503, 503]

    run(work)


def test_copy_is_given_to_nobody_who_means_another_cluster(tmp_path: Path) -> None:
    async def work() -> None:
        async with members(1, tmp_path, SETTINGS) as of:
            member = await of.leader()
            query = {"cluster": "another", "exact": 1}
            refused = await member.ask("POST", "/v1/mirror", query=query)
            assert refused.status == 421
            assert "not to 'another'" in refused.json()["error"]

    run(work)


def test_copy_whose_memberships_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(3, tmp_path, SETTINGS) as of:
            away = await behind(of)
            await away.start()
            coordinator, asked = away.coordinator, []
            take = coordinator.replica.members_copied

            def refuse(told: bytes | None) -> bytes | None:
                asked.append(told)
                if len(asked) < 3:
                    raise RemoteProtocolError("a membership has version 2, expected 1")
                return take(told)

            coordinator.replica.members_copied = refuse  # type: ignore[method-assign]
            await until(lambda: level(of))
            assert len(asked) == 3

    run(main)


@pytest.mark.slow
def test_copy_that_is_opened_by_nonsense_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a giver says, the taker goes on, and asks again."""
    monkeypatch.setattr(mirror_copy, "_COPY_PAUSE_S", 0.01)
    names = ("session", "cluster", "slot", "digest", "memberships", "rules")
    wrong: list[dict[str, Any]] = [{name: "DEEP"} for name in names] + [{"rules": "2"}]

    async def work() -> None:
        async with members(3, tmp_path, SETTINGS) as of:
            away = await behind(of)
            await away.start()
            request = away.coordinator.http.request

            async def changed(address: str, method: str, path: str, **options: Any) -> Any:
                if path != "/v1/mirror" or not wrong:
                    return await request(address, method, path, **options)
                cluster = away.coordinator.roster.cluster
                opened = {"session": "s", "cluster": cluster, "slot": 30, "digest": "d"}
                body = encode_json({**opened, "memberships": None, **wrong.pop()})
                deep = b"[" * 1_000 + b"]" * 1_000  # Python can't write it.
                return HttpResponse(200, {}, body.replace(b'"DEEP"', deep))

            away.coordinator.http.request = changed  # type: ignore[method-assign]
            await until(lambda: level(of) or bool(away.failure))
            assert not away.failure and not wrong

    run(work)
