"""Real small children: fed, listened to, ended."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tasksprint.errors import NodeFailed, SchedulerFailed
from tasksprint.process import program as program_module
from tasksprint.process.program import ChildProcess, ExitReason, start_program
from tests.processes import is_running, wait_gone

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]


class Seen:
    """What a program did, and something to wait on."""

    def __init__(self) -> None:
        self.data = b""
        self.stderr = b""
        self.exits: list[ExitReason] = []
        self._changed = asyncio.Event()

    def on_data(self, data: bytes) -> None:
        assert not self.exits, "data after the exit"
        self.data += data
        self._changed.set()

    def on_stderr(self, data: bytes) -> None:
        assert not self.exits, "stderr after the exit"
        self.stderr += data
        self._changed.set()

    def on_exit(self, reason: ExitReason) -> None:
        self.exits.append(reason)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), 60)


def run(scenario: Callable[[], Awaitable[T]]) -> T:
    async def bounded() -> T:
        return await asyncio.wait_for(scenario(), 100)

    return asyncio.run(bounded())


async def start(
    seen: Seen, *argv: str, cwd: Path | None = None, name: str | None = None
) -> ChildProcess:
    return await start_program(
        argv,
        cwd=cwd,
        env=None,
        what="node",
        failure=NodeFailed,
        on_data=seen.on_data,
        on_exit=seen.on_exit,
        on_stderr=seen.on_stderr,
        name=name,
    )


async def shell(seen: Seen, script: str) -> ChildProcess:
    return await start(seen, "/bin/sh", "-c", script)


def test_child_reads_what_is_written_and_is_heard() -> None:
    async def scenario() -> None:
        seen = Seen()
        program = await shell(seen, 'while read x; do echo "got $x"; done; echo end; exit 3')
        program.write(b"1\n2\n3\n")
        await seen.until(lambda: seen.data.count(b"\n") == 3)
        assert not seen.exits and program.running
        reason = await program.stop(why="enough")
        assert seen.data == b"got 1\ngot 2\ngot 3\nend\n"
        assert seen.exits == [reason]
        assert reason == ExitReason(3, None, False, "", "enough")
        assert reason.describe() == "exit code 3 (enough)"
        assert not program.running

    run(scenario)


def test_stdin_and_stdout_are_one_socket_and_the_session_is_its_own() -> None:
    async def scenario() -> None:
        seen = Seen()
        code = (
            "import os, socket; s = socket.socket(fileno=0);"
            "assert os.fstat(0).st_ino == os.fstat(1).st_ino;"
            "s.sendall(f'{os.getsid(0) == os.getpid()} {os.getpgid(0) == os.getpid()}'.encode())"
        )
        program = await start(seen, sys.executable, "-S", "-c", code)
        await program.wait()
        assert (seen.data, seen.stderr) == (b"True True", b"")

    run(scenario)


def test_nothing_is_delivered_before_the_caller_has_the_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fast program says ready while we still wait for its stderr to be connected."""

    async def scenario() -> None:
        told: list[bool] = []
        programs: list[ChildProcess] = []
        received: list[bytes] = []
        receive = ChildProcess._received
        loop = asyncio.get_running_loop()
        connect = loop.connect_read_pipe

        def noted(self: ChildProcess, data: bytes) -> None:
            received.append(data)
            receive(self, data)

        monkeypatch.setattr(ChildProcess, "_received", noted)

        async def slow_connect(*arguments: object) -> object:
            while b"".join(received) != b"ready\n":
                await asyncio.sleep(0)
            return await connect(*arguments)  # type: ignore[arg-type]

        loop.connect_read_pipe = slow_connect  # type: ignore[assignment, method-assign]
        program = await start_program(
            ["/bin/sh", "-c", "echo ready; read x"],
            cwd=None,
            env=None,
            what="node",
            failure=NodeFailed,
            on_data=lambda data: told.append(bool(programs)),
            on_exit=lambda reason: None,
        )
        programs.append(program)
        await program.stop()
        assert told == [True]

    run(scenario)


def test_program_that_ends_while_the_loop_closes_takes_along_what_fled_its_group() -> None:
    """The loop's threads have ended then; a client that stops kills its nodes and goes."""
    left: list[bool] = []

    async def scenario() -> ExitReason:
        program = await start(Seen(), "sleep", "60")
        program._leave_cgroup = lambda: left.append(True)
        await asyncio.get_running_loop().shutdown_default_executor()
        program.kill()
        return await program.wait()

    assert run(scenario).signal == signal.SIGKILL
    assert left == [True]


def test_last_answer_of_a_child_that_leaves_is_heard_though_writing_to_it_fails() -> None:
    """It answers one task and exits, while more is written that it doesn't read."""

    async def scenario() -> None:
        seen = Seen()
        program = await shell(seen, "read x; echo done")
        program.write(b"1\n")
        deadline = time.monotonic() + 60
        # Without giving the loop a chance to read, until the child is gone.
        while is_running(program.pid) and time.monotonic() < deadline:
            time.sleep(0.005)
        program.write(b"2\n")
        program.write(b"3\n")
        await program.wait()
        assert seen.data == b"done\n"
        program.write(b"4\n")  # Nobody is there; nothing breaks.
        program.write_eof()
        program.pause_reading()
        program.resume_reading()
        program.kill()

    run(scenario)


def test_data_of_a_paused_program_is_delivered_before_its_exit() -> None:
    async def scenario() -> None:
        seen = Seen()
        program = await shell(seen, "echo one; read x; echo two")
        await seen.until(lambda: seen.data == b"one\n")
        program.pause_reading()
        program.write(b"\n")
        await program.wait()
        assert seen.data == b"one\ntwo\n"

    run(scenario)


def test_writes_that_nobody_reads_are_waited_for_until_they_drain() -> None:
    async def scenario() -> None:
        seen = Seen()
        program = await shell(seen, "read go; cat >/dev/null")
        program.write(b"x" * 4_000_000)
        draining = asyncio.ensure_future(program.drain())
        await asyncio.wait([draining], timeout=0.01)
        assert not draining.done()
        program.write(b"\n")
        await draining
        assert (await program.stop()).code == 0

    run(scenario)


def test_tail_of_stderr_is_kept_and_all_of_it_is_handed_on() -> None:
    async def scenario() -> None:
        seen = Seen()
        program = await shell(seen, "head -c 100000 /dev/zero | tr '\\0' e >&2; echo last >&2")
        reason = await program.wait()
        assert len(seen.stderr) == 100_005
        assert reason.stderr_tail == "e" * (8 * 1024 - 5) + "last\n"

    run(scenario)


def test_stderr_in_the_description_and_a_signal_by_name() -> None:
    async def scenario() -> ExitReason:
        return await (await shell(Seen(), "echo oops >&2; kill -SEGV $$")).wait()

    reason = run(scenario)
    assert reason.signal == signal.SIGSEGV
    assert reason.describe() == "signal 11 (SIGSEGV)"
    assert reason.describe_with_stderr() == ("signal 11 (SIGSEGV); its stderr ended with:\noops")


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (ExitReason(0, None, False, ""), "exit code 0"),
        (ExitReason(1, None, True, ""), "exit code 1, out of memory"),
        (ExitReason(None, 9, None, ""), "signal 9 (SIGKILL)"),
        (ExitReason(None, 9, True, ""), "signal 9 (SIGKILL), out of memory"),
        (ExitReason(None, 9, False, "", "timeout"), "signal 9 (SIGKILL) (timeout)"),
        (ExitReason(None, 62, None, ""), "signal 62 (a real-time signal)"),
        (ExitReason(None, None, None, ""), "closed its connection"),
    ],
)
def test_exit_reasons_in_words(reason: ExitReason, words: str) -> None:
    assert reason.describe() == words
    assert reason.describe_with_stderr() == words


def test_memory_error_counts_as_out_of_memory() -> None:
    async def scenario() -> ExitReason:
        script = "printf 'Traceback\\nMemoryError: 5 GiB\\n' >&2; exit 1"
        return await (await shell(Seen(), script)).wait()

    assert run(scenario).out_of_memory is True


def test_kill_by_the_kernel_is_told_from_a_kill_by_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(counts: list[int | None]) -> ExitReason:
        monkeypatch.setattr(program_module, "_out_of_memory_kills", lambda: counts.pop(0))
        return await (await shell(Seen(), "kill -KILL $$")).wait()

    assert run(lambda: scenario([4, 5])).out_of_memory is True
    assert run(lambda: scenario([4, 4])).out_of_memory is False
    assert run(lambda: scenario([None, None])).out_of_memory is None


def test_stop_terminates_a_child_that_ignores_the_end_of_its_input() -> None:
    async def scenario() -> ExitReason:
        program = await shell(Seen(), "sleep 999")
        return await program.stop(grace_s=0.02)

    assert run(scenario).signal == signal.SIGTERM


def test_stop_kills_a_child_that_ignores_sigterm() -> None:
    async def scenario() -> ExitReason:
        seen = Seen()
        program = await shell(seen, "trap '' TERM; echo; while :; do sleep 999; done")
        await seen.until(lambda: seen.data != b"")
        return await program.stop(grace_s=0.02, terminate_s=0.02, why="job ended")

    reason = run(scenario)
    assert reason.signal == signal.SIGKILL
    assert reason.out_of_memory is False
    assert reason.describe() == "signal 9 (SIGKILL) (job ended)"


def test_kill_reaches_grandchildren() -> None:
    async def scenario() -> int:
        seen = Seen()
        program = await shell(seen, "(sleep 999 & echo $!; wait) & wait")
        await seen.until(lambda: seen.data.endswith(b"\n"))
        grandchild = int(seen.data)
        assert is_running(grandchild)
        program.kill("timeout")
        reason = await program.wait()
        assert reason.describe() == "signal 9 (SIGKILL) (timeout)"
        return grandchild

    wait_gone(run(scenario))


def test_grandchildren_of_a_child_that_exits_are_killed() -> None:
    async def scenario() -> int:
        seen = Seen()
        program = await shell(seen, "sleep 999 & echo $!; exit 0")
        assert (await program.wait()).code == 0
        return int(seen.data)

    wait_gone(run(scenario))


@pytest.mark.slow
def test_descendant_that_fled_with_the_socket_delays_the_exit_only_a_little() -> None:
    async def scenario() -> int:
        seen = Seen()
        code = "import os,time; os.setsid(); os.write(1, b'%d' % os.getpid()); time.sleep(999)"
        program = await shell(seen, f'{sys.executable} -S -c "{code}" & sleep 0.3; exit 5')
        assert (await program.wait()).code == 5
        return int(seen.data)

    fled = run(scenario)
    os.kill(fled, signal.SIGKILL)


def test_child_that_closes_its_connection_but_stays_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(program_module, "LINGER_S", 0.02)

    async def scenario() -> ExitReason:
        program = await shell(Seen(), "exec 0<&- 1>&-; exec sleep 999")
        return await program.wait()

    assert run(scenario).describe() == (
        "signal 9 (SIGKILL) (it closed its stdin and stdout but went on running)"
    )


def test_exit_is_seen_by_a_thread_where_there_is_no_pidfd(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(pid: int) -> int:
        raise OSError("not here")

    monkeypatch.setattr(os, "pidfd_open", missing, raising=False)

    async def scenario() -> ExitReason:
        return await (await shell(Seen(), "echo x; exit 4")).wait()

    assert run(scenario).code == 4


def test_programs_can_be_started_from_another_thread() -> None:
    """Without the safeguard that would kill them when that thread ends."""
    found: list[ExitReason] = []

    async def scenario() -> ExitReason:
        return await (await shell(Seen(), "exit 6")).wait()

    thread = threading.Thread(target=lambda: found.append(run(scenario)))
    thread.start()
    thread.join(100)
    assert found[0].code == 6


# --- what can't be started ---


def refused(*argv: str, cwd: Path | None = None, name: str | None = None) -> str:
    async def scenario() -> None:
        await start(Seen(), *argv, cwd=cwd, name=name)

    gc.collect()  # What other tests left must not be closed while this one counts.
    descriptors = len(os.listdir("/dev/fd"))
    with pytest.raises(NodeFailed) as caught:
        run(scenario)
    assert len(os.listdir("/dev/fd")) == descriptors
    return str(caught.value)


def test_missing_program(tmp_path: Path) -> None:
    assert refused("./nothing", cwd=tmp_path) == "node './nothing' wasn't found"
    assert refused("no-such-awk", "-f", "node.awk", cwd=tmp_path, name="node.awk") == (
        "node 'node.awk' is run by 'no-such-awk', which wasn't found"
    )


def test_missing_directory(tmp_path: Path) -> None:
    where = tmp_path / "gone"
    assert refused("/bin/true", cwd=where) == (
        f"node '/bin/true' can't be started in '{where}': no such directory"
    )


def test_program_that_is_not_executable(tmp_path: Path) -> None:
    path = tmp_path / "node"
    path.write_text("#!/bin/sh\n")
    assert refused(str(path), name="node") == (
        "node 'node' isn't executable; chmod +x it (and give it a #! line if it is a script), "
        "or name it *.py, *.sh or *.awk"
    )


def test_program_without_a_first_line_that_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "node"
    path.write_text("echo hello\n")
    path.chmod(0o755)
    assert refused(str(path), name="node") == (
        "node 'node' can't be executed by this machine: it has no #! line and is no binary for "
        "it; let it begin with a line such as #!/bin/sh, or build it for this machine"
    )


def test_program_whose_interpreter_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "node.rb"
    path.write_text("#!/usr/bin/no-such-ruby -w\n")
    path.chmod(0o755)
    assert refused(str(path), name="node.rb") == (
        "node 'node.rb' wants '/usr/bin/no-such-ruby' (its #! line), which isn't on this "
        "machine; install that or change the line"
    )


def test_argument_with_a_nul() -> None:
    assert refused("/bin/echo", "a\0b") == (
        "node '/bin/echo' can't be started: embedded null byte"
    )


def test_failure_is_of_the_class_that_was_asked_for() -> None:
    async def scenario() -> None:
        seen = Seen()
        await start_program(
            ["/nothing"],
            cwd=None,
            env={},
            what="scheduler",
            failure=SchedulerFailed,
            on_data=seen.on_data,
            on_exit=seen.on_exit,
        )

    with pytest.raises(SchedulerFailed, match=r"^scheduler '/nothing' wasn't found$"):
        run(scenario)


# --- our own death ---


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can kill a dead parent's child")
def test_child_dies_with_its_parent_even_by_kill_9() -> None:
    parent_code = """
import asyncio
from tasksprint.errors import NodeFailed
from tasksprint.process.program import start_program

async def main():
    program = await start_program(
        ["/bin/sleep", "60"], cwd=None, env=None, what="node", failure=NodeFailed,
        on_data=print, on_exit=print)
    print(program.pid, flush=True)
    await program.wait()

asyncio.run(main())
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", parent_code], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert is_running(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_gone(child)
