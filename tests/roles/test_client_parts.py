"""Parts of a client by themselves, with ports that a test plays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

from tasksprint.encoding import result_digest, value_digest
from tasksprint.errors import PeerUnreachable
from tasksprint.execution.effects import NodeId, StoreResult
from tasksprint.ids import ClientId, JobId, TaskId
from tasksprint.net.http_messages import HttpResponse
from tasksprint.roles.client.durable import Durable
from tasksprint.roles.client.nodes import Nodes
from tasksprint.roles.client.reporting import Reporting
from tasksprint.settings import Settings
from tasksprint.store.result_records import FileValue, LogText, ResultCommit

ONE = JobId(1)


class Turns:
    """Counts turns, and runs what is to run beside them at once."""

    def __init__(self) -> None:
        self.turns = 0

    def turn(self) -> None:
        self.turns += 1

    def background(self, work: Coroutine[Any, Any, object]) -> None:
        asyncio.run(work)

    def fail(self, error: BaseException) -> None:
        raise AssertionError from error


class Writer:
    """Takes commits; a test says when each is on the disk."""

    def __init__(self) -> None:
        self.commits: list[ResultCommit] = []
        self.done: list[Callable[[], None]] = []
        self.calls = 0

    def post(self, commit: ResultCommit, done: Callable[[], None]) -> None:
        self.commits.append(commit)
        self.done.append(done)

    def run(self, function: Callable[..., Any]) -> Any:
        self.calls += 1
        return SimpleNamespace(add_done_callback=lambda callback: None)


class World:
    """What waits for the disk, and all that it knows."""

    def __init__(self, bytes_max: int = 1 << 20) -> None:
        self.turns, self.writer = Turns(), Writer()
        self.stored: list[Any] = []
        self.discarded: list[FileValue] = []
        settings = Settings(value_cache_bytes_max=bytes_max)
        workbench = SimpleNamespace(results_stored=self.stored.extend)
        held = SimpleNamespace(discard=self.discarded.append)
        self.durable = Durable(
            cast(Any, self.turns),
            cast(Any, workbench),
            cast(Any, self.writer),
            cast(Any, held),
            settings,
        )

    def keep(self, tid: int, content: bytes | FileValue = b"1") -> None:
        size, digest = (
            (len(content), value_digest(content))
            if isinstance(content, bytes)
            else (content.size, content.digest)
        )
        manifest = (("result", "bytes", size, digest),)
        effect = StoreResult(
            node=NodeId(1),
            id=tid,
            job=ONE,
            tid=TaskId(tid),
            attempt=1,
            digest=result_digest(list(manifest)),
            manifest=manifest,
        )
        self.durable.keep_result(effect, (("result", "bytes", content),))


def tids(commit: ResultCommit) -> list[int]:
    return [result.tid for result in commit.results]


def test_what_gathers_behind_a_write_shares_the_next_one() -> None:
    world = World()
    world.keep(0)
    world.durable.write()
    for tid in (1, 2):
        world.keep(tid)
        world.durable.write()
    world.durable.keep_log(LogText(ONE, TaskId(1), 1, b"printed"))
    assert [tids(commit) for commit in world.writer.commits] == [[0]]
    assert world.stored == [] and world.turns.turns == 0
    world.writer.done[0]()
    world.durable.write()  # As at the end of the turn that this begins.
    assert world.stored == [(1, 0, 1)] and world.turns.turns == 1
    assert [tids(commit) for commit in world.writer.commits] == [[0], [1, 2]]
    assert [log.text for log in world.writer.commits[1].logs] == [b"printed"]
    world.writer.done[1]()
    assert world.stored == [(1, 0, 1), (1, 1, 1), (1, 2, 1)]
    assert world.durable.unstored_bytes == 0


def test_result_that_is_dropped_while_it_waits_is_never_written() -> None:
    world, file = World(), FileValue(7, 100_000, "d" * 64)
    world.keep(0)
    world.durable.write()
    world.keep(1, file)
    world.keep(2)
    world.durable.drop(ONE, (TaskId(1),))
    assert world.discarded == [file], "its file takes no disk"
    world.writer.done[0]()
    world.durable.write()
    assert tids(world.writer.commits[1]) == [2]
    world.keep(3)
    world.keep(4)
    world.durable.drop_job(ONE, (TaskId(4),))
    world.writer.done[1]()
    world.durable.write()
    assert tids(world.writer.commits[2]) == [4]
    assert world.durable.unstored_bytes == 1


def test_nodes_are_not_read_while_too_much_waits_for_the_disk() -> None:
    world = World(bytes_max=10)
    holds: list[bool] = []
    shell = SimpleNamespace(hold=lambda why, *, is_held: holds.append(is_held))
    nodes = cast(
        Any, SimpleNamespace(_durable=world.durable, _is_holding=False, shells={1: shell})
    )
    world.keep(0, b"x" * 10)
    Nodes.hold(nodes)
    assert holds == []
    world.keep(1)
    world.durable.write()
    Nodes.hold(nodes)
    assert holds == [True]
    world.writer.done[0]()
    Nodes.hold(nodes)
    Nodes.hold(nodes)
    assert holds == [True, False]


def test_what_nodes_run_on_is_told_once_and_again_if_nobody_heard_it() -> None:
    answers: list[HttpResponse | PeerUnreachable] = [
        PeerUnreachable("nobody"),
        HttpResponse(200, {}, b"{}"),
        HttpResponse(200, {}, b"{}"),
    ]
    told: list[bytes] = []

    class Leader:
        async def request(self, method: str, path: str, **options: Any) -> HttpResponse:
            told.append(options["body"])
            answer = answers.pop(0)
            if isinstance(answer, PeerUnreachable):
                raise answer
            return answer

    reporting = Reporting(
        cast(Any, Turns()),
        cast(Any, SimpleNamespace(cid=ClientId(5))),
        cast(Any, Leader()),
        cast(Any, None),
        cast(Any, None),
    )
    for _ in range(3):
        reporting.tell_runtime(ONE, "python 3.11")
    assert len(told) == 2 and told[0] == told[1]
    reporting.tell_runtime(ONE, "python 3.12")
    assert len(told) == 3 and b"python 3.12" in told[2] and b"client 5" in told[2]
    assert answers == []
