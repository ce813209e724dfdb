"""Values that are large, lost or spoiled: nobody is held up, and nobody ends by them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tasksprint.cli.run import PrivateCluster
from tasksprint.coordination.commands import Lost
from tasksprint.coordination.view import ClientAddress, DropJob, View
from tasksprint.encoding import decode_json, encode_json, result_digest, value_digest
from tasksprint.execution.records import KeptResult
from tasksprint.ids import ClientId, JobId, TaskId
from tasksprint.net.http_messages import HttpResponse
from tasksprint.process.job_directory import read_job
from tasksprint.protocol.node_lines import NodeReply
from tasksprint.roles.client import node_shell
from tasksprint.roles.client.metrics import client_metrics
from tasksprint.roles.loop_watch import longest_hold_s, watch_loop
from tasksprint.settings import Settings
from tasksprint.store.result_records import FileValue
from tasksprint.store.result_store import ResultStore
from tasksprint.store.staging import stage_file
from tests.roles.client_world import (
    World,
    assignment,
    consumed,
    run,
    shell_node,
    until,
    view,
    world,
)
from tests.sdk.programs import NodeDriver, Program, write_program

MIB = 1024 * 1024
FRAMES = '{"ready":{},"frames":true}'


def node_of(size: int) -> str:
    """A node in shell that makes so many bytes, or takes as many, raw, and counts them."""
    return shell_node(
        f"""case $line in
        *frames*) echo '{{"id":'$id',"values":{{"result":'$(head -c {size} | wc -c)'}}}}' ;;
        *) printf '{{"id":%s,"frames":[["result",{size}]]}}\n' $id
           head -c {size} /dev/zero | tr '\0' "$id" ;;
        esac""",
        ready=FRAMES,
    )


async def make(
    here: World, size: int, count: int = 1, node: str | None = None
) -> list[str]:
    """Run tasks on a client, and return the digests of their results."""
    here.program(node or node_of(size))
    here.coordinator.give(view(whole=True, run=tuple(map(assignment, range(count)))))
    await until(lambda: len(here.coordinator.done()) == count)
    return [here.coordinator.done()[tid].result_digest for tid in range(count)]


def taking(here: World, digests: list[str], *, first: int = 100, is_whole: bool = True) -> View:
    """A view in which each of these results is taken by a task of its own."""
    return view(
        whole=is_whole,
        run=tuple(
            assignment(first + tid, inputs=(consumed(tid, digest, 1),))
            for tid, digest in enumerate(digests)
        ),
        clients=(ClientAddress(ClientId(1), here.address),),
    )


# --- nothing long on a loop ---


@pytest.mark.slow
def test_large_value_goes_from_node_to_node_without_a_hold(tmp_path: Path) -> None:
    """Through two clients, and to a second node of the first one; no client has it in memory."""
    size = 48 * MIB

    async def main() -> None:
        async with (
            world(tmp_path / "1") as one,
            world(tmp_path / "2", coordinator=one.coordinator) as two,
        ):
            watch_loop()
            digests = await make(one, size)
            two.program(node_of(size))
            for number in (1, 2):
                one.coordinator.give(taking(one, digests, first=number), cid=number)
            await until(lambda: {1, 2} <= set(one.coordinator.done()))
            assert not one.coordinator.failures
            for here in (one, two):
                assert here.client.values.total_bytes < size + MIB
                assert [path.stat().st_size for path in files_of(here)] == [size]
            assert longest_hold_s() < 0.2
            # Once nobody needs it any more its disk comes back.
            for number in (1, 2):
                one.coordinator.give(view(drop_jobs=(DropJob(JobId(1), ()),)), cid=number)
            await until(lambda: not files_of(one) and not files_of(two))

    run(main)


def files_of(here: World) -> list[Path]:
    return list((here.data_dir / "values").iterdir())


def test_node_without_frames_gets_a_large_value_as_base64(tmp_path: Path) -> None:
    size = 3 * MIB + 2
    # (`read` of a shell takes seconds for such a line.)
    line = tmp_path / "line"
    node = f"""echo '{{"ready":{{}}}}'
    head -n 1 >{line}
    echo '{{"id":1,"values":{{"result":1}}}}'
    cat"""

    async def main() -> None:
        async with (
            world(tmp_path / "1") as one,
            world(tmp_path / "2", coordinator=one.coordinator) as two,
        ):
            digests = await make(one, size)
            two.program(node)
            one.coordinator.give(taking(one, digests), cid=2)
            await until(lambda: 100 in one.coordinator.done())
            (file,) = files_of(one)
            task = decode_json(line.read_bytes())
            assert task["base64"] == [0]
            (text,) = task["args"]
            assert base64.b64decode(text, validate=True) == file.read_bytes()

    run(main)


@pytest.mark.slow
def test_large_json_holds_no_loop_either(tmp_path: Path) -> None:
    """Neither as a line of any node, which is scanned elsewhere, nor as the SDK sends it."""
    text = b"[" + b'[1,2.5,"word"],' * 300_000 + b'"\\"]"]'
    (tmp_path / "text").write_bytes(text)
    line = f"""printf '{{"id":%s,"values":{{"result":' $id; cat {tmp_path}/text; echo '}}}}'"""
    node = shell_node(
        f"""case $line in
        *'"name":"sdk"'*) printf '{{"id":%s,"frames":[["result",{len(text)},"json"]]}}\\n' $id
           cat {tmp_path}/text ;;
        *) {line} ;;
        esac""",
        ready=FRAMES,
    )

    async def main() -> None:
        async with world(tmp_path / "1") as here:
            watch_loop()
            here.program(node)
            run = (assignment(0), assignment(1, name="sdk"))
            here.coordinator.give(view(whole=True, run=run))
            await until(lambda: len(here.coordinator.done()) == 2)
            digests = {one.result_digest for one in here.coordinator.completions}
            assert digests == {result_digest([("result", "json", len(text), value_digest(text))])}
            assert longest_hold_s() < 0.2
            assert {path.read_bytes() for path in files_of(here)} == {text}

    run(main)


def test_sdk_sends_large_json_in_frames(tmp_path: Path) -> None:
    argv = write_program(
        tmp_path / "node.py",
        """
        from TaskSprintNode import *
        class Node(TaskSprintNode):
            def large(self):
                return {"small": [1], "rows": ["é"] * 200_000, "raw": b"x", "one": "y" * 70_000}
            def many(self): return {f"k{i}": "z" * 20_000 for i in range(20)}
        Node().start()
        """,
    )
    with Program(argv, stderr=tmp_path / "stderr") as program:
        node = NodeDriver(program)
        reply = node.run("large")
        assert isinstance(reply, NodeReply)
        rows = "[" + ",".join(['"é"'] * 200_000) + "]"
        assert reply.values == (
            ("one", "json", b'"' + b"y" * 70_000 + b'"'),
            ("raw", "bytes", b"x"),
            ("rows", "json", rows.encode()),
            ("small", "json", b"[1]"),
        )
        assert node.reader.in_pieces == 2
        assert node.values("many") == {f"k{i}": b'"' + b"z" * 20_000 + b'"' for i in range(20)}


def test_small_file_is_a_value_that_a_report_carries(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"small")
    node = shell_node(f"""echo '{{"id":'$id',"files":{{"result":"{tmp_path}/file"}}}}'""")

    async def main() -> None:
        async with world(tmp_path / "1") as here:
            here.program(node)
            here.coordinator.give(view(whole=True, run=(assignment(0, keys=("result",)),)))
            await until(lambda: here.coordinator.done())
            assert here.coordinator.done()[0].inline == {"result": ("bytes", "c21hbGw=")}
            await until(lambda: not files_of(here))

    run(main)


@pytest.mark.parametrize("is_gone", [False, True])
def test_file_that_is_spoiled_while_it_is_taken_costs_an_attempt(
    is_gone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy of a node's file is damaged before it is read back: the client goes on."""
    data = b"more bytes than are left"
    (tmp_path / "file").write_bytes(data)
    node = shell_node(f"""echo '{{"id":'$id',"files":{{"result":"{tmp_path}/file"}}}}'""")

    async def main() -> None:
        async with world(tmp_path / "1") as here:

            async def spoiled(*args: Any, **kwargs: Any) -> FileValue:
                value = await stage_file(*args, **kwargs)
                await (delete_file if is_gone else cut_file)(here)
                return value

            here.program(node)
            with monkeypatch.context() as patch:
                patch.setattr(node_shell, "stage_file", spoiled)
                here.coordinator.give(view(whole=True, run=(assignment(0, keys=("result",)),)))
                await until(lambda: here.coordinator.failures)
            (failure,) = here.coordinator.failures
            what = f"the content of file '{tmp_path}/file', named under key 'result',"
            assert failure.error.startswith(f"{what} was spoiled while it was taken: ")
            assert not failure.fatal
            # The same node answers the next attempt, and nothing of the first one stays.
            here.coordinator.give(view(run=(assignment(0, attempt=2, keys=("result",)),)))
            await until(lambda: here.coordinator.done())
            assert here.coordinator.done()[0].inline == {
                "result": ("bytes", base64.b64encode(data).decode())
            }
            await until(lambda: not files_of(here))

    run(main)


def test_node_that_dies_in_the_middle_of_a_value_leaves_nothing(tmp_path: Path) -> None:
    body = f"""printf '{{"id":%s,"frames":[["a",{9 * MIB}]]}}\\n' $id
    head -c {5 * MIB} /dev/zero; exit 3"""

    async def main() -> None:
        async with world(tmp_path) as here:
            here.program(shell_node(body, ready=FRAMES))
            here.coordinator.give(view(whole=True, run=(assignment(0),)))
            await until(lambda: here.coordinator.failures)
            assert "exit code 3" in here.coordinator.failures[0].error
            await until(lambda: not files_of(here))

    run(main)


def test_hold_of_the_loop_is_told_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    def hold() -> None:
        since = time.monotonic()
        while time.monotonic() - since < 0.2 or not watch_loop()._place:
            time.sleep(0.001)

    async def main() -> None:
        with caplog.at_level(logging.DEBUG, "tasksprint.loop"):
            watch = watch_loop()
            assert watch_loop() is watch
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(hold)
            while not longest_hold_s() >= 0.2:
                await asyncio.sleep(0)

    asyncio.run(main())
    # (A busy machine holds it up as well.)
    (line,) = [each for record in caplog.records if "hold:" in (each := record.getMessage())]
    (held_ms,) = re.findall(rf"^the loop was held for (\d+) ms by {__name__}\.hold:", line)
    assert int(held_ms) >= 200


def test_longest_hold_is_a_metric(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            watch_loop().longest_s = 12.5
            text = bytes(client_metrics(here.client).body).decode()  # type: ignore[arg-type]
            assert "\ntasksprint_loop_hold_max_seconds 12.5\n" in text

    run(main)


@pytest.mark.slow
def test_idle_node_gives_back_the_memory_of_large_values(tmp_path: Path) -> None:
    argv = write_program(
        tmp_path / "node.py",
        """
        from TaskSprintNode import *
        class Node(TaskSprintNode):
            def take(self, data): return {"n": len(data)}
            def make(self, n): return {"data": bytes(n)}
            def small(self, n): return {"parts": [b"x".hex() * 50 for _ in range(n)]}
        Node().start()
        """,
    )

    def resident_mib() -> int:
        text = Path(f"/proc/{program.process.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) // 1024

    with Program(argv, stderr=tmp_path / "stderr") as program:
        node = NodeDriver(program)
        before = resident_mib()
        inputs = [("bytes", bytes(100 * MIB))]
        assert node.values("take", inputs=inputs) == {"n": b"%d" % (100 * MIB)}
        assert len(node.values("make", 100 * MIB)["data"]) == 100 * MIB  # type: ignore[arg-type]
        assert len(node.values("small", 400_000)["parts"]) > 40_000_000  # type: ignore[arg-type]
        deadline = time.monotonic() + 60
        while resident_mib() > before + 30 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert resident_mib() <= before + 30


# --- values that can't be served ---

Spoil = Callable[[World], Awaitable[object]]


def in_store(change: Callable[[ResultStore], object]) -> Spoil:
    return lambda here: here.client.writer.run(change)


def execute(sql: str) -> Spoil:
    return in_store(lambda store: store._database.connection.execute(sql).fetchall())


def change_consistently(store: ResultStore) -> None:
    """Bytes, digest and manifest of task 0 agree with each other, and with nobody else."""
    data = b"otherwise"
    manifest = [("result", "bytes", len(data), value_digest(data))]
    connection = store._database.connection
    connection.execute(
        "UPDATE result_values SET data = ?, file = NULL, size = ?, digest = ? WHERE tid = 0",
        (data, len(data), value_digest(data)),
    )
    connection.execute("UPDATE results SET manifest = ? WHERE tid = 0", (encode_json(manifest),))
    assert result_digest(manifest)


async def spoil_file(here: World) -> None:
    path = min(files_of(here), key=lambda path: int(path.name))
    with open(path, "r+b") as file:
        file.seek(-9, os.SEEK_END)
        file.write(b"x")


async def cut_file(here: World) -> None:
    os.truncate(min(files_of(here), key=lambda path: int(path.name)), 5)


async def delete_file(here: World) -> None:
    min(files_of(here), key=lambda path: int(path.name)).unlink()


SPOILS: dict[str, tuple[int, Spoil]] = {
    "bytes of a row": (20_000, execute("UPDATE result_values SET data=zeroblob(7) WHERE tid=0")),
    "digest of a row": (20_000, execute("UPDATE result_values SET digest='12' WHERE tid=0")),
    "row is gone": (20_000, execute("DELETE FROM result_values WHERE tid=0")),
    "manifest": (20_000, execute("UPDATE results SET manifest=x'5b5b315d5d' WHERE tid=0")),
    "manifest is no JSON": (20_000, execute("UPDATE results SET manifest=x'5b' WHERE tid=0")),
    "result is gone": (20_000, execute("DELETE FROM results WHERE tid=0")),
    "all, consistently": (20_000, in_store(change_consistently)),
    "bytes of a small file": (100_000, spoil_file),
    "bytes of a file": (3 * MIB, spoil_file),
    "a file is short": (3 * MIB, cut_file),
    "a file is gone": (3 * MIB, delete_file),
}


@pytest.mark.parametrize(
    ("what", "reader"),
    [
        *((what, 2) for what in SPOILS),
        *((what, 1) for what in ("bytes of a row", "row is gone", "bytes of a file")),
        ("all, consistently", 1),
    ],
)
def test_spoiled_result_is_reported_lost_and_no_other(
    what: str, reader: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether its own client takes it or another one; the job is told, and goes on."""
    size, spoil = SPOILS[what]

    async def main() -> None:
        async with (
            # (Nothing stays in memory: all is read from the disk.)
            world(tmp_path / "1", value_cache_bytes_max=0) as one,
            world(tmp_path / "2", coordinator=one.coordinator) as two,
        ):
            digests = await make(one, size, count=3)
            await spoil(one)
            two.program(node_of(size))
            one.coordinator.give(taking(one, digests), cid=reader)
            await until(lambda: one.coordinator.lost)
            await until(lambda: {101, 102} <= set(one.coordinator.done()))
            assert set(one.coordinator.lost) == {Lost(JobId(1), TaskId(0))}
            assert 100 not in one.coordinator.done()
            # As the cluster would go on: it is computed again, and then taken.
            one.coordinator.give(view(run=(assignment(0, attempt=2),)), cid=1)
            await until(lambda: one.coordinator.done()[0].attempt == 2)
            one.client.workbench.check()

    run(main)
    assert any("its result is lost: " in one.getMessage() for one in caplog.records) or reader == 1


@pytest.mark.parametrize("is_made_again", [False, True])
@pytest.mark.parametrize("path", ["/v1/values", "/v1/values/check", "/v1/values/1/0/result"])
def test_result_that_is_stored_while_the_store_answers_is_not_dropped(
    path: str, is_made_again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The story of `HeldValues.seen`: the answer is one about what was there before."""

    async def main() -> None:
        async with world(tmp_path) as here:
            (digest,) = await make(here, 1_000)
            bench, answered = here.client.workbench, asyncio.Event()
            held = bench.stored_result(JobId(1), TaskId(0))
            assert held is not None
            held.is_stored = is_made_again

            async def read(*arguments: object) -> None:
                if is_made_again:
                    bench._inputs.drop_held(JobId(1), TaskId(0), None)
                    again = KeptResult(2, digest, held.manifest, is_stored=True)
                    bench._inputs.add_held(JobId(1), TaskId(0), again)
                held.is_stored = True
                answered.set()

            monkeypatch.setattr(here.client.held, "read", read)
            body = {"/v1/values": [[1, 0, digest, ["result"]]], "/v1/values/check": [1, 0, digest]}
            is_post = path in body
            response = await here.client.http.request(
                here.address,
                "POST" if is_post else "GET",
                path,
                query=None if is_post else {"digest": digest},
                body=encode_json(body[path]) if is_post else b"",
                checks_rest=True,
            )
            assert response.status == (200 if is_post else 404)
            await answered.wait()
            await here.idle()
            assert bench.held_results() == [(1, 0, digest)]
            assert not here.coordinator.lost

    run(main)


def test_result_that_is_made_again_while_another_input_is_written_is_not_dropped(
    tmp_path: Path,
) -> None:
    """The node takes its first input for as long as it likes; the file of the second one goes."""
    size, go_on = 4 * MIB, tmp_path / "go on"
    node = node_of(size).replace(
        "*frames*)",
        f"""*'"frames":[[0,'*'],[1,'*)
        while [ ! -e '{go_on}' ]; do sleep 0.005; done
        head -c {2 * size} | wc -c >/dev/null; echo '{{"id":'$id',"values":{{"result":2}}}}' ;;
        *frames*)""",
    )

    async def main() -> None:
        async with world(tmp_path / "1", slots=2, value_cache_bytes_max=0) as here:
            first, second = await make(here, size, count=2, node=node)
            both = (consumed(0, first, 1), consumed(1, second, 1))
            here.coordinator.give(view(run=(assignment(100, inputs=both),)))
            shells = here.client.nodes.shells
            await until(lambda: any(shell._is_writing for shell in shells.values()))
            # Somebody else finds it gone, and the cluster has it made again.
            held, job, tid = here.client.held, JobId(1), TaskId(1)
            before = files_of(here)
            held.spoiled(job, tid, second, "it is gone", seen=held.seen(job, tid))
            here.coordinator.give(view(run=(assignment(1, attempt=2),)))
            await until(lambda: here.coordinator.done()[1].attempt == 2)
            assert here.coordinator.done()[1].result_digest == second
            await until(lambda: len(set(files_of(here)) & set(before)) == 1)
            go_on.touch()
            await until(lambda: 100 in here.coordinator.done() or here.coordinator.lost[1:])
            await here.idle()
            assert here.coordinator.lost == [Lost(job, tid)]
            assert (job, tid, second) in here.client.workbench.held_results()
            here.client.workbench.check()

    run(main)


def test_reader_s_word_alone_drops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            (digest,) = await make(here, 3 * MIB)
            for body in ([1, 0, digest], [1, 0, digest], [1, 0, "0" * 64], [9, 9, digest]):
                response = await here.client.http.request(
                    here.address, "POST", "/v1/values/check", body=encode_json(body)
                )
                assert response.status == 200
            for body in ({}, [], [1, 2], ["a", 2, "b"]):
                response = await here.client.http.request(
                    here.address, "POST", "/v1/values/check", body=encode_json(body)
                )
                assert response.status == 400
            await until(lambda: "are whole" in caplog.text)
            assert (1, 0, digest) in here.client.workbench.held_results()
            await here.idle()
            assert Lost(JobId(1), TaskId(0)) not in here.coordinator.lost

    run(main)
    assert "job=1 tid=0 a peer received other bytes; those that are here are whole" in caplog.text


def test_results_that_wait_to_be_looked_at_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            await make(here, 1)
            go_on = asyncio.Event()

            async def read(*arguments: object) -> None:
                await go_on.wait()

            monkeypatch.setattr(here.client.held, "read", read)

            async def tell(tid: int) -> HttpResponse:
                return await here.client.http.request(
                    here.address, "POST", "/v1/values/check", body=encode_json([1, tid, "0"])
                )

            for tid in (*range(100), *range(50)):
                assert (await tell(tid)).status == 200
            refused = await tell(100)
            assert (refused.status, refused.json()["error"]) == (
                503,
                "100 results here wait to be looked at; this one isn't, unless somebody receives "
                "other bytes of it again",
            )
            go_on.set()
            await until(lambda: not here.client.held._looks)
            assert (await tell(100)).status == 200

    run(main)


def test_reader_that_gets_other_bytes_tells_the_holder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As if the holder's own check had not found it: the wire, or its memory."""
    size = 20_000

    async def main() -> None:
        async with (
            world(tmp_path / "1") as one,
            world(tmp_path / "2", coordinator=one.coordinator) as two,
        ):
            (digest,) = await make(one, size)
            results = one.client.values._results[JobId(1)][TaskId(0)][digest]
            kind, content = results.values["result"]
            assert isinstance(content, bytes)
            results.values["result"] = (kind, content[:-1] + b"x")
            two.program(node_of(size))
            one.coordinator.give(taking(one, [digest]), cid=2)
            await until(lambda: "those that are here are whole" in caplog.text)

    run(main)
    told = "sent other bytes than its digest says, and is told to look"
    assert "job=1 tid=0 127.0.0.1:" in caplog.text and told in caplog.text


def test_damaged_database_of_a_running_client_costs_only_what_was_in_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Pages overwritten beneath it: it makes a new one, says what is lost, and goes on."""
    count, size = 60, 3_000

    def overwrite(store: ResultStore) -> None:
        database = store._database
        database.checkpoint()
        database.connection.release_memory()
        database.connection.execute("PRAGMA shrink_memory").fetchall()
        data = bytearray(database.path.read_bytes())
        for page in range(3, len(data) // 8192, 4):
            data[page * 8192 : page * 8192 + 100] = Random(page).randbytes(100)
        with open(database.path, "r+b") as file:
            file.write(data)

    async def main() -> None:
        async with world(tmp_path, value_cache_bytes_max=0) as here:
            digests = await make(here, size, count=count)
            await here.idle()
            await here.client.writer.run(overwrite)
            here.coordinator.give(taking(here, digests))

            def is_settled() -> bool:
                done = {tid - 100 for tid in here.coordinator.done() if tid >= 100}
                lost = {one.tid for one in here.coordinator.lost}
                assert not done & lost
                return len(done | lost) == count and bool(done) and bool(lost)

            await until(is_settled)
            assert not here.client.stopped.done()
            # It keeps new results as before.
            here.coordinator.give(view(run=(assignment(500),)))
            await until(lambda: 500 in here.coordinator.done())

    run(main)
    assert "is damaged" in caplog.text and "made anew without" in caplog.text


def test_bug_of_the_core_while_losses_are_told_stops_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*arguments: object) -> bool:
        raise AssertionError("a broken invariant")

    async def main() -> None:
        with pytest.raises(AssertionError, match="a broken invariant"):
            async with world(tmp_path) as here:
                await make(here, 1)
                await here.idle()
                monkeypatch.setattr(type(here.client.workbench), "result_lost", break_down)
                # As the store's thread does it.
                asyncio.get_running_loop().call_soon(here.client.held.rebuilt, "it is damaged", [])
                await until(here.client.stopped.done, limit_s=10)

    run(main)


BIG_SCHEDULER = """
from TaskSprintCoordinator import *
class Big(TaskSprintCoordinator):
    def init(self, seed):
        self.told = []
        self.start_task("load", keys=["size"])
    def task_done(self, tid, values):
        if tid == 0:
            for _ in range(2):
                self.start_task(
                    "count", [self.params["folder"]], pretasks=[0], prekeys=["data"], keys=["size"]
                )
        else:
            self.told.append(values["size"])
            if len(self.told) == 2:
                self.finish([1, 2], values=self.told)
Big().start()
"""
BIG_NODE = """
from TaskSprintNode import *
import os, time
class Big(TaskSprintNode):
    def load(self):
        return {"data": os.urandom(1 << 20) * 512, "size": 0}
    def count(self, folder, data):
        # Until the other client runs the other one, so that each takes one.
        open(os.path.join(folder, str(os.getpid())), "w").close()
        end = time.monotonic() + 300
        while len(os.listdir(folder)) < 2:
            assert time.monotonic() < end, "one client takes both"
            time.sleep(0.01)
        return {"size": len(data)}
Big().start()
"""


@pytest.mark.long
def test_large_values_kill_nobody_on_a_busy_machine(tmp_path: Path) -> None:
    """512 MiB between two clients, beside four loops that never rest: each task runs once."""
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "scheduler.py").write_text(BIG_SCHEDULER)
    (folder / "node.py").write_text(BIG_NODE)
    manifest = {"name": "big", "scheduler": "scheduler.py", "node": "node.py"}
    (folder / "tasksprint.json").write_bytes(encode_json(manifest))
    with contextlib.ExitStack() as stack:
        private = stack.enter_context(
            PrivateCluster(coordinators=1, clients=2, nodes=1, keep=tmp_path / "cluster")
        )
        cluster = private.connect(Settings())
        for _ in range(4):
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(busy.wait)
            stack.callback(busy.kill)
        here = tmp_path / "who counts"
        here.mkdir()
        params = encode_json({"folder": str(here)}).decode()
        job = cluster.submit(folder, read_job(folder), seed=1, params=params)
        *_, outcome = cluster.follow(job)
        assert outcome.state == "finished", outcome.error
        for tid in (1, 2):
            assert cluster.request("GET", f"/v1/jobs/{job}/tasks/{tid}").json()["attempts"] == 1
    log = (tmp_path / "cluster" / "coordinator-1.log").read_text()
    assert " dead: silent" not in log
    for number in (1, 2):
        assert not list((tmp_path / "cluster" / f"client-{number}" / "values").iterdir())
