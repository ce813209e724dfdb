"""A real client with real nodes: what they print, answer, break and leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasksprint.coordination.commands import encode_command
from tasksprint.coordination.view import ClientAddress, JobEntry, Stop, View
from tasksprint.encoding import encode_json, result_digest, value_digest
from tasksprint.errors import DiskFull, SettingsError, StoreError
from tasksprint.ids import ClientId, JobId, TaskId
from tasksprint.net.gate import Access, Gate
from tasksprint.net.http_server import HttpServer
from tasksprint.net.router import Request, Response, Router, json_response
from tasksprint.process.attach import socket_path
from tasksprint.roles.client import disk_space
from tasksprint.roles.client.surroundings import REAL_CLIENT
from tasksprint.settings import Settings
from tasksprint.store.result_store import ResultStore
from tests.processes import is_running
from tests.roles.client_world import (
    GOOD,
    KEY,
    Coordinator,
    World,
    assignment,
    consumed,
    run,
    shell_node,
    until,
    view,
    world,
)
from tests.store.helpers import read_value

MIB = 1024 * 1024
FRAMES = '{"ready":{},"frames":true}'


def answer_file(path: Path | str) -> str:
    """Return the body of a node that answers with a file."""
    return f"""echo '{{"id":'$id',"files":{{"result":"{path}"}}}}'"""


def test_tasks_run_and_are_reported_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, slots=2) as here:
            here.program(shell_node(GOOD))
            here.coordinator.give(view(whole=True, run=tuple(map(assignment, range(20)))))
            await here.idle()
            assert sorted(one.tid for one in here.coordinator.completions) == list(range(20))
            here.client.workbench.check()

    run(main)


# --- values from files ---


@pytest.mark.parametrize("what", ["a device", "a pipe", "a directory"])
def test_file_that_has_no_end_is_refused(what: str, tmp_path: Path) -> None:
    path = {"a device": Path("/dev/zero"), "a pipe": tmp_path / "pipe", "a directory": tmp_path}
    os.mkfifo(tmp_path / "pipe")

    async def main() -> None:
        async with world(tmp_path / "client") as here:
            here.program(shell_node(answer_file(path[what])))
            here.coordinator.give(view(whole=True, run=(assignment(0),)))
            await until(lambda: here.coordinator.failures)
            (failure,) = here.coordinator.failures
            assert f"{str(path[what])!r} is no regular file" in failure.error
            assert "'result'" in failure.error
            assert failure.fatal

    run(main)


def test_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(1001))

    async def main() -> None:
        async with world(tmp_path / "client", value_bytes_max=1000) as here:
            here.program(shell_node(answer_file(tmp_path / "file")))
            here.coordinator.give(view(whole=True, run=(assignment(0),)))
            await until(lambda: here.coordinator.failures)
            assert "more than 1000 bytes (value_bytes_max)" in here.coordinator.failures[0].error

    run(main)


def test_file_that_is_missing_fails_the_attempt_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path / "client") as here:
            here.program(shell_node(answer_file(tmp_path / "missing")))
            here.coordinator.give(view(whole=True, run=(assignment(0),)))
            await until(lambda: here.coordinator.failures)
            (failure,) = here.coordinator.failures
            assert "No such file" in failure.error and not failure.fatal

    run(main)


def test_node_that_answers_with_a_file_and_leaves_has_answered(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(9 * MIB))

    async def main() -> None:
        async with world(tmp_path / "client") as here:
            here.program(shell_node(answer_file(tmp_path / "file") + "\nexit 0"))
            here.coordinator.give(view(whole=True, run=(assignment(0),)))
            await until(lambda: here.coordinator.done() or here.coordinator.failures)
            assert here.coordinator.failures == []
            await until(lambda: not here.client.nodes.shells)

    run(main)


def test_file_of_a_task_that_was_stopped_takes_no_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(3 * MIB))
    body = f"""
    while test ! -e {tmp_path}/go; do sleep 0.01; done
    {answer_file(tmp_path / "file")}
    """

    async def main() -> None:
        async with world(tmp_path / "client", node_ahead_us=10**9) as here:
            here.program(shell_node(body))
            (tmp_path / "go").touch()
            here.coordinator.give(view(whole=True, run=(assignment(0),)))
            await here.idle()  # Now a task of this name counts as short: it may end by itself.
            (tmp_path / "go").unlink()
            here.coordinator.give(view(run=(assignment(1),)))
            await until(lambda: here.client.workbench.summary()["tasks"]["running"])
            here.coordinator.give(view(stop=(Stop(JobId(1), TaskId(1), 1),)))
            await here.idle()
            (tmp_path / "go").touch()
            (node,) = here.client.nodes.shells.values()
            await until(lambda: not node._pipe)
            folder = here.data_dir / "values"
            await until(lambda: len(list(folder.iterdir())) == 1)  # That of the first one.

    run(main)


# --- output ---


def test_output_of_nobody_is_bounded(tmp_path: Path) -> None:
    flood = "head -c 30000000 /dev/zero >&2; echo end >&2"

    async def main() -> None:
        async with world(tmp_path) as here:
            here.program(shell_node(GOOD + "\n" + flood + f"\ntouch {tmp_path}/flooded"))
            here.coordinator.give(view(whole=True, run=(assignment(0),)))
            await until(lambda: (tmp_path / "flooded").exists())
            (node,) = here.client.nodes.shells.values()
            await until(lambda: node._output.endswith(b"end\n"))
            assert len(node._output) <= 64 * 1024

    run(main)


def test_output_of_a_task_is_kept_with_it_and_its_middle_left_out(tmp_path: Path) -> None:
    flood = "echo begin >&2; head -c 5000000 /dev/zero >&2; echo end$id >&2\n"

    async def main() -> None:
        async with world(tmp_path) as here:
            here.program(shell_node(flood + GOOD))
            here.coordinator.give(view(whole=True, run=(assignment(0), assignment(1))))
            await here.idle()
            logs = await here.client.writer.run(lambda store: store.reader.read_logs(1))
            assert [one.tid for one in logs] == [0, 1]
            for number, one in enumerate(logs, 1):
                assert len(one.text) < 65 * 1024
                assert one.text.startswith(b"begin\n") and one.text.endswith(b"end%d\n" % number)

    run(main)


def test_what_was_printed_in_the_background_does_not_stop_the_client(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            here.program(shell_node("yes >&2 & yes >&2 &\n" + GOOD))
            here.coordinator.give(view(whole=True, run=tuple(map(assignment, range(3)))))
            await here.idle()
            assert len(here.coordinator.done()) == 3

    run(main)


# --- fetching ---


async def make_on(here: World, node: str) -> str:
    """Run task 0 on a client and return the digest of its result."""
    here.program(node)
    here.coordinator.give(view(whole=True, run=(assignment(0),)))
    await until(lambda: here.coordinator.done())
    return here.coordinator.done()[0].result_digest


def from_first(here: World, *tasks: tuple[int, str]) -> View:
    return view(
        whole=True,
        run=tuple(assignment(tid, inputs=(consumed(0, digest, 1),)) for tid, digest in tasks),
        clients=(ClientAddress(ClientId(1), here.address),),
    )


def test_value_larger_than_any_body_is_fetched(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        file.truncate(9 * MIB)
    count = f"test $(head -c {9 * MIB} | wc -c) = {9 * MIB}\n"

    async def main() -> None:
        async with (
            world(tmp_path / "1", body_bytes_max=MIB) as one,
            world(tmp_path / "2", coordinator=one.coordinator, body_bytes_max=MIB) as two,
        ):
            digest = await make_on(one, shell_node(answer_file(tmp_path / "file")))
            two.program(shell_node(count + GOOD, ready=FRAMES))
            one.coordinator.give(from_first(one, (1, digest)), cid=2)
            await until(lambda: 1 in one.coordinator.done())

    run(main)


def test_fetch_that_breaks_half_way_keeps_what_came(tmp_path: Path) -> None:
    """The peer answers with one good value and one damaged; only the other fails."""

    async def main() -> None:
        async with world(tmp_path) as here:
            failed: list[int] = []
            tell = here.client.workbench.fetch_failed

            def fetch_failed(job: JobId, tid: TaskId, *rest: Any) -> None:
                failed.append(tid)
                tell(job, tid, *rest)

            here.client.workbench.fetch_failed = fetch_failed  # type: ignore[assignment]
            manifests = [[("result", "json", 1, value_digest(data))] for data in (b"0", b"1")]
            digests = list(map(result_digest, manifests))

            def answer(request: Request) -> Response:
                entries = [[manifests[tid], ["result"]] for _, tid, _, _ in request.json()]
                return Response(200, encode_json(entries) + b"\n" + b"0x", covers_line=True)

            peer = Router()
            peer.add("POST", "/v1/values", answer, access=Access.OPEN)
            server = HttpServer(peer, Gate(KEY), here.client.settings)
            address = await server.listen("127.0.0.1:0")
            both = (consumed(0, digests[0], 9), consumed(1, digests[1], 9))
            here.coordinator.give(
                view(
                    whole=True,
                    run=(assignment(2, inputs=both),),
                    clients=(ClientAddress(ClientId(9), address),),
                )
            )
            await until(lambda: failed)
            assert failed == [1]
            here.client.workbench.check()
            await server.close(grace_ms=0)

    run(main)


def test_client_without_an_address_is_asked_again_when_it_has_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            world(tmp_path / "1") as one,
            world(tmp_path / "2", coordinator=one.coordinator) as two,
        ):
            digest = await make_on(one, shell_node(GOOD))
            two.program(shell_node(GOOD))
            wanted = (assignment(1, inputs=(consumed(0, digest, 1),)),)
            one.coordinator.give(view(whole=True, run=wanted), cid=2)
            await until(lambda: two.client.workbench.version == one.coordinator.version)
            # It is armed: the pause before the next try runs.
            await until(lambda: two.client.workbench.deadline_ms is not None)
            address = ClientAddress(ClientId(1), one.address)
            one.coordinator.give(view(run=wanted, clients=(address,)), cid=2)
            await until(lambda: 1 in one.coordinator.done())

    run(main)


@pytest.mark.parametrize("body", [b'[[1,2,"d",5]]', b'[[1,2,3,["k"]]]', b"[5]", b"{}", b"["])
def test_wrong_question_of_a_peer_is_refused(body: bytes, tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            response = await here.client.http.request(
                here.address, "POST", "/v1/values", body=body
            )
            assert response.status == 400

    run(main)


# --- the disk ---


def test_nodes_faster_than_the_disk_have_to_wait(tmp_path: Path) -> None:
    size = 256 * 1024
    body = f"""printf '{{"id":'$id',"values":{{"result":1'; head -c {size} /dev/zero | tr '\\0' 0
    echo '}}}}'"""
    free = threading.Event()

    async def main() -> None:
        async with world(tmp_path, slots=2, value_cache_bytes_max=MIB) as here:
            here.program(shell_node(body))
            await until(lambda: here.client.is_joined)  # That takes the disk.
            stuck = here.client.writer.run(lambda _: free.wait())
            here.coordinator.give(view(whole=True, run=tuple(map(assignment, range(20)))))
            await until(lambda: here.client.values.total_bytes > MIB)
            shells = here.client.nodes.shells.values()
            await until(lambda: len(shells) == 2 and all(shell._holds for shell in shells))
            for shell in shells:
                assert not shell.program._transport.is_reading()
            # One more of each node may have been read.
            assert here.client.values.total_bytes <= MIB + 3 * size
            free.set()
            await stuck
            await here.idle()
            assert len(here.coordinator.done()) == 20

    try:
        run(main)
    finally:
        free.set()


def test_full_disk_ends_the_client_with_a_sentence(tmp_path: Path) -> None:
    reported: list[int] = []

    def fill(store: ResultStore) -> None:
        store._database.connection.execute("PRAGMA max_page_count=1")

    async def main() -> None:
        async with world(tmp_path) as here:
            await here.client.writer.run(fill)
            here.program(shell_node(answer_file(__file__)))
            here.coordinator.give(view(whole=True, run=tuple(map(assignment, range(50)))))
            await until(lambda: here.client.stopped.done())
            reported.extend(here.coordinator.done())

    with pytest.raises(StoreError, match="the disk is full; free some space"):
        run(main)
    with contextlib.closing(sqlite3.connect(tmp_path / "results.db")) as database:
        stored = [tid for (tid,) in database.execute("SELECT tid FROM results")]
    assert set(reported) <= set(stored)
    assert len(stored) < 50


def test_data_directory_of_another_client_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path):
            with pytest.raises(SettingsError, match="in use by process"):
                async with world(tmp_path):
                    pass

    run(main)


@pytest.mark.parametrize("answer", [[], {}, {"cluster": "c"}, {"cluster": 1, "cid": 1}])
def test_client_goes_on_where_nonsense_is_answered_to_a_join(
    tmp_path: Path, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Other(Coordinator):
        is_sane = False

        def _command(self, request: Request) -> Response:
            found = super()._command(request)
            return found if self.is_sane else json_response(answer)

    async def main() -> None:
        other = Other()
        other.address = await other.server.listen("127.0.0.1:0")
        async with world(tmp_path, coordinator=other) as here:
            await until(lambda: len(other.joins) > 3)
            assert not here.client.is_joined
            complaint = here.client.leader.complaint
            assert complaint is not None and complaint.startswith(f"{other.address} answers: ")
            other.is_sane = True
            await until(lambda: here.client.is_joined)
        await other.server.close(grace_ms=0)

    run(main)
    told = [line for line in caplog.messages if "an answer is disregarded" in line]
    assert len(told) == 1


# --- death and return ---


def test_client_that_was_declared_dead_offers_what_it_holds(tmp_path: Path) -> None:
    body = "case $line in *slow*) sleep 999;; esac\n" + GOOD

    async def main() -> None:
        async with world(tmp_path, slots=2) as here:
            here.program(shell_node(body))
            slow = assignment(1, name="slow")
            here.coordinator.give(view(whole=True, run=(assignment(0), slow)))
            await until(lambda: 0 in here.coordinator.done())
            done = here.coordinator.done()[0]
            here.coordinator.declare_dead()
            await until(lambda: len(here.coordinator.joins) == 2)
            first, second = here.coordinator.joins
            assert (first.identity, first.held) == (second.identity, ())
            assert first.incarnation != second.incarnation
            assert [(one.job, one.tid, one.digest) for one in second.held] == [
                (1, 0, done.result_digest)
            ]
            again = assignment(1, attempt=2, name="fast")
            here.coordinator.give(view(whole=True, run=(again, assignment(2))))
            await here.idle()
            found = [(one.tid, one.attempt) for one in here.coordinator.completions]
            assert sorted(found) == [(0, 1), (1, 2), (2, 1)]
            assert here.coordinator.failures == []
            here.client.workbench.check()

    run(main)


def test_reports_wait_while_no_coordinator_is_up(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, slots=2) as here:
            here.program(shell_node(GOOD))
            here.coordinator.give(view(whole=True, run=tuple(map(assignment, range(300)))))
            await until(lambda: here.coordinator.done())
            await here.coordinator.server.close(grace_ms=0)
            await until(lambda: here.client.workbench.summary()["held"] == 300)
            here.coordinator.server = HttpServer(here.coordinator.router, Gate(KEY), Settings())
            await here.coordinator.server.listen(here.coordinator.address)
            await until(lambda: len(here.coordinator.done()) == 300)
            assert len(here.coordinator.completions) == 300
            requests = [report.request for report in here.coordinator.reports]
            assert requests == sorted(set(requests))

    run(main)


def test_end_of_the_client_leaves_no_process(tmp_path: Path) -> None:
    setup = '{"node":["node.sh"],"setup":["sh","setup.sh"]}'

    async def main() -> None:
        async with world(tmp_path / "1", slots=2) as here:
            here.program(shell_node(f"sleep 999 & echo $! >>{tmp_path}/pids; wait"))
            here.coordinator.give(view(whole=True, run=(assignment(0), assignment(1))))
            await until(lambda: count_lines(tmp_path / "pids") == 2)
            async with world(tmp_path / "2", coordinator=here.coordinator) as two:
                two.program(f"sleep 999 & echo $! >{tmp_path}/pid; wait", name="setup.sh")
                here.coordinator.give(view(whole=True, run=(assignment(0),), node=setup), cid=2)
                await until(lambda: count_lines(tmp_path / "pid") == 1)
        files = (tmp_path / "pids", tmp_path / "pid")
        pids = [int(pid) for path in files for pid in path.read_text().split()]
        assert len(pids) == 3
        await until(lambda: not any(is_running(pid) for pid in pids))

    run(main)


def children() -> list[int]:
    return [each.pid for each in psutil.Process().children()]


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


# --- programs ---


def test_setup_that_writes_without_end_takes_no_memory(tmp_path: Path) -> None:
    setup = '{"node":["node.sh"],"setup":["sh","-c","yes setup"]}'
    before = psutil.Process().memory_info().rss

    async def main() -> None:
        async with world(tmp_path, setup_timeout_ms=300) as here:
            here.program(shell_node(GOOD))
            here.coordinator.give(view(whole=True, run=(assignment(0),), node=setup))
            await until(lambda: here.coordinator.failures)
            (failure,) = here.coordinator.failures
            assert "ran longer than 300 ms (setup_timeout_ms)" in failure.error
            assert psutil.Process().memory_info().rss - before < 20 * MIB

    run(main)


def test_stopped_task_takes_its_children_along_and_leaves_the_next_alone(tmp_path: Path) -> None:
    body = f"case $line in *slow*) sleep 999 & echo $! >{tmp_path}/pid; wait;; esac\n" + GOOD

    async def main() -> None:
        async with world(tmp_path) as here:
            here.program(shell_node(body))
            run_both = (assignment(0, name="slow"), assignment(1))
            here.coordinator.give(view(whole=True, run=run_both))
            await until(lambda: count_lines(tmp_path / "pid") == 1)
            here.coordinator.give(view(stop=(Stop(JobId(1), TaskId(0), 1),)))
            await here.idle()
            assert list(here.coordinator.done()) == [1]
            assert here.coordinator.failures == []
            pid = int((tmp_path / "pid").read_text())
            await until(lambda: not is_running(pid))

    run(main)


def test_node_that_is_stopped_by_a_signal_is_killed_when_its_task_is_late(tmp_path: Path) -> None:
    body = "case $line in *stuck*) kill -STOP $$;; esac\n" + GOOD

    async def main() -> None:
        async with world(tmp_path) as here:
            here.program(shell_node(body))
            await until(lambda: here.client.is_joined)  # That takes the disk.
            stuck = assignment(0, name="stuck", timeout_ms=50)
            here.coordinator.give(view(whole=True, run=(stuck, assignment(1))))
            await here.idle()
            (failure,) = here.coordinator.failures
            assert "ran longer than timeout_ms=50" in failure.error
            assert list(here.coordinator.done()) == [1]

    run(main)


def test_two_nodes_that_attach_with_the_same_words(tmp_path: Path) -> None:
    """Two containers may each have a process 1, of the same name and version."""
    hello = b'{"attach":"mine","pid":1,"version":"1"}\n'
    jobs = (JobEntry(JobId(1), "", "attached:mine"),)

    async def main() -> None:
        async with world(tmp_path) as here:
            path = str(socket_path(tmp_path))
            nodes = [await asyncio.open_unix_connection(path) for _ in range(2)]
            for _, writer in nodes:
                writer.write(hello)
            for reader, writer in nodes:
                assert (await reader.readline()).startswith(b'{"attached":')
                writer.write(b'{"ready":{}}\n')
            both = (assignment(0), assignment(1))
            here.coordinator.give(view(whole=True, run=both, jobs=jobs))
            for reader, writer in nodes:
                assert b'"id":1' in await reader.readline()
                writer.write(b'{"id":1}\n')
            await here.idle()
            assert sorted(here.coordinator.done()) == [0, 1]
            for _, writer in nodes:
                writer.close()
            await until(lambda: not here.client.nodes.shells)
            assert not here.client.nodes.attaching

    run(main)


def test_many_deaths_of_nodes_leave_nothing_open(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(
            tmp_path, node_restart_pause_min_ms=0, node_restart_pause_max_ms=0
        ) as here:
            here.program(shell_node(GOOD + "\nexit 3"))
            here.coordinator.give(view(whole=True, run=(assignment(0),)))
            await here.idle()
            await until(lambda: not here.client.nodes.shells)
            open_before = psutil.Process().num_fds()
            here.coordinator.give(view(run=tuple(map(assignment, range(1, 61)))))
            await here.idle()
            await until(lambda: not here.client.nodes.shells)
            ended = len(here.coordinator.completions) + len(here.coordinator.failures)
            assert ended == 61
            # One that was just being started, for nothing, ends a moment later.
            # (Killed schedulers of tests before this one may be zombies of this process still.)
            await until(lambda: not any(map(is_running, children())))
            assert psutil.Process().num_fds() <= open_before + 2

    run(main)


@pytest.mark.parametrize(
    "second", ['"values":{"result":2}', '"values":{"a":2,"b":2}', '"error":"e"']
)
def test_node_that_answers_twice_is_killed_and_its_first_answer_counts(
    second: str, tmp_path: Path
) -> None:
    answer = '"values":{"result":1}'
    body = f"""printf '{{"id":%d,{answer}}}\\n{{"id":%d,{second}}}\\n' $id $id"""

    async def main() -> None:
        async with world(tmp_path) as here:
            here.program(shell_node(body))
            here.coordinator.give(view(whole=True, run=(assignment(0),)))
            await until(lambda: here.coordinator.done() and not here.client.nodes.shells)
            value = await here.client.writer.run(
                lambda store: read_value(store, 1, 0, "result")
            )
            assert value == b"1"

    run(main)


def test_more_results_than_a_command_holds_do_not_keep_a_client_out(tmp_path: Path) -> None:
    async def fill() -> None:
        async with world(tmp_path) as here:
            here.program(shell_node(GOOD))
            here.coordinator.give(view(whole=True, run=tuple(map(assignment, range(20)))))
            await here.idle()

    async def come_back() -> None:
        async with world(tmp_path, command_bytes_max=1_000) as here:
            (join,) = here.coordinator.joins
            assert len(encode_command(join)) < 1_500
            assert [one.tid for one in join.held] == list(range(12, 20))

    run(fill)
    run(come_back)


def test_client_whose_disk_fills_starts_no_task_and_stops_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [200 * MIB]

    async def measure(directory: Path) -> tuple[int, int]:
        return free[0], 1 << 40

    monkeypatch.setattr(disk_space, "CHECK_S", 0.01)
    filling = replace(REAL_CLIENT, measure=measure)

    async def main() -> None:
        marks = {"free_refuse_bytes": 256 * MIB, "free_stop_bytes": 64 * MIB}
        async with world(tmp_path, surroundings=filling, **marks) as here:
            await until(lambda: here.client.workbench.summary()["disk_low"])
            here.program(shell_node(GOOD))
            here.coordinator.give(view(whole=True, run=(assignment(0),)))
            await until(lambda: sum(here.client.workbench.summary()["tasks"].values()) == 1)
            assert not here.coordinator.done()
            free[0] = 400 * MIB
            await until(here.coordinator.done)
            free[0] = 60 * MIB
            await until(here.client.stopped.done)

    with pytest.raises(DiskFull, match=r"client can't go on: 60\.0 MiB are free where"):
        run(main)
