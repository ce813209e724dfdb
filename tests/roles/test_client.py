"""A real client with real nodes: what they print, answer, break and leave behind."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tasksprint.coordination.view import ClientAddress, Stop
from tasksprint.ids import ClientId, JobId, TaskId
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

MIB = 1024 * 1024
GOOD = """echo '{"id":'$id',"values":{"result":1}}'"""
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
            await until(lambda: not here.client.nodes)

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
            (node,) = here.client.nodes.values()
            await until(lambda: not node._pipe)
            for _ in range(3):
                count = await here.client.writer.run(
                    lambda store: store.reader._database.query("SELECT count(*) FROM chunks")
                )
                if count == [(3,)]:
                    break
                await asyncio.sleep(0.2)
            assert count == [(3,)]  # MiB, of the first one.

    run(main)


# --- output ---


def test_output_of_nobody_is_bounded(tmp_path: Path) -> None:
    flood = "head -c 30000000 /dev/zero >&2; echo end >&2"

    async def main() -> None:
        async with world(tmp_path) as here:
            here.program(shell_node(GOOD + "\n" + flood + f"\ntouch {tmp_path}/flooded"))
            here.coordinator.give(view(whole=True, run=(assignment(0),)))
            await until(lambda: (tmp_path / "flooded").exists())
            (node,) = here.client.nodes.values()
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


def from_first(here: World, *tasks: tuple[int, str]) -> object:
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
            one.coordinator.give(from_first(one, (1, digest)), cid=2)  # type: ignore[arg-type]
            await until(lambda: 1 in one.coordinator.done())

    run(main)
