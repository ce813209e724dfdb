"""What a process finds around it: its streams, its signals, paths that aren't absolute."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tasksprint.cli import run as run_module
from tasksprint.cli.parser import parse_command
from tasksprint.cli.run import PrivateCluster
from tasksprint.cli.run_directory import RunDirectory, sweep_run_directories
from tasksprint.errors import NodeFailed, UsageError
from tasksprint.process import cgroups
from tasksprint.process import orphans as orphans_module
from tasksprint.process import program as program_module
from tasksprint.process import run_to_end as run_to_end_module
from tasksprint.process.cgroups import Cgroups, own_cgroup
from tasksprint.process.directories import state_directory
from tasksprint.process.orphans import own_children
from tasksprint.process.program import ExitReason, programs_in_cgroups, start_program
from tasksprint.process.run_to_end import run_to_end
from tasksprint.process.signals import ending_signals, interrupted_by_signals
from tasksprint.roles.coordinator.process import wait_for_end
from tests.e2e.conftest import wait_until
from tests.e2e.harness import write_job
from tests.packaging.standin import CHECKOUT
from tests.processes import is_running
from tests.roles.client_world import GOOD, assignment, run, shell_node, view
from tests.roles.client_world import until as client_until
from tests.roles.client_world import world as client_world
from tests.roles.members import members

# --- streams ---

# What is opened behind `prepare_streams` must not get a number of the three.
STREAMS = """\
import os, sys
from tasksprint.process.standard_streams import STDOUT_NAME, prepare_streams
prepare_streams()
assert all(map(os.get_inheritable, range(3)))
assert os.open(".", os.O_RDONLY) > 2
try:
    print("said to stdout", flush=True)
except OSError as error:
    assert error.filename == STDOUT_NAME, error
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout.flush()
    sys.exit(74)
print("said to stderr", file=sys.stderr, flush=True)
if sys.argv[1] == "reads":
    assert sys.stdin.read() == ""
"""

STREAM_CASES = [
    ("", 0, "said to stdout\n", "said to stderr\n"),
    ("<&-", 0, "said to stdout\n", "said to stderr\n"),
    (">&-", 0, "", "said to stderr\n"),
    ("2>&-", 0, "said to stdout\n", ""),
    ("<&- 2>&-", 0, "said to stdout\n", ""),
    ("<&- >&- 2>&-", 0, "", ""),
    ("2>/dev/full", 0, "said to stdout\n", ""),
    ("2</dev/null", 0, "said to stdout\n", ""),
    (">/dev/full", 74, "", ""),
    (">/dev/full 2>/dev/full", 74, "", ""),
]


def under_shell(redirections: str, *command: str) -> subprocess.CompletedProcess[str]:
    shell = ["sh", "-c", f'"$@" {redirections}', "sh", *command]
    return subprocess.run(shell, cwd=CHECKOUT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("redirections, code, stdout, stderr", STREAM_CASES)
def test_streams_that_are_missing_or_full(
    redirections: str, code: int, stdout: str, stderr: str
) -> None:
    # -S: nothing of site-packages is needed, and finding it takes the most time.
    stdin = "reads" if "<&-" in redirections else "doesn't read"
    done = under_shell(redirections, sys.executable, "-S", "-c", STREAMS, stdin)
    assert (done.returncode, done.stdout, done.stderr) == (code, stdout, stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    "redirections, code, stderr",
    [
        ("2>/dev/full", 64, ""),
        ("2>&-", 64, ""),
        (">/dev/full", 74, "tasksprint: cannot write to stdout: No space left on device\n"),
    ],
)
def test_command_says_what_it_can(redirections: str, code: int, stderr: str) -> None:
    arguments = ["--help"] if code == 74 else ["no-such-command"]
    done = under_shell(redirections, sys.executable, "tasksprint.py", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", stderr)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["--help", "no-such-command"])
def test_command_whose_reader_has_left_ends_as_by_sigpipe(command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "tasksprint.py", command],
            cwd=CHECKOUT,
            stdout=writer,
            stderr=writer,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert done.returncode == 141


@pytest.mark.long
@pytest.mark.parametrize(
    "redirections, code, has_result",
    [
        (">&-", 0, False),
        ("<&-", 0, True),
        ("2>&-", 0, True),
        ("<&- >&- 2>&-", 0, False),
        ("2>/dev/full", 0, True),
        (">/dev/full", 74, False),
    ],
)
def test_whole_cluster_without_streams(
    redirections: str, code: int, has_result: bool, archive: Path, environment: Path
) -> None:
    job = str(CHECKOUT / "examples" / "montecarlo")
    command = [sys.executable, str(archive), "run", job, "--param", "samples=10"]
    done = under_shell(redirections, *command)
    assert done.returncode == code, done.stderr
    assert done.stdout.startswith('{"result":') == has_result
    if code == 74:
        assert "tasksprint: cannot write to stdout: No space left on device" in done.stderr


# --- signals ---


@pytest.fixture
def hangup() -> Iterator[None]:
    """Leave the handler of SIGHUP as it was."""
    previous = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_role_ends_by_a_signal(number: signal.Signals, hangup: None) -> None:
    async def scenario() -> None:
        stopped = asyncio.get_running_loop().create_future()
        waiting = asyncio.create_task(wait_for_end(stopped))
        await asyncio.sleep(0)
        os.kill(os.getpid(), number)
        await asyncio.wait_for(waiting, 10)

    asyncio.run(scenario())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_command_is_interrupted_by_a_signal(number: signal.Signals, hangup: None) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interrupted_by_signals():
        os.kill(os.getpid(), number)
        time.sleep(10)  # Until the signal arrives.
    assert signal.getsignal(number) is before


def test_hangup_that_was_ignored_stays_so(hangup: None) -> None:
    """As `nohup` starts a process."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert signal.SIGHUP not in ending_signals()
    with interrupted_by_signals():
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGHUP)


# --- paths ---


@pytest.mark.parametrize(
    "arguments, option, expected",
    [
        (["coordinator", "--data-dir", "d/c1"], "data_dir", "d/c1"),
        (["coordinator", "--key-file", "../key"], "key_file", "../key"),
        (["client", "--data-dir", "k1"], "data_dir", "k1"),
        (["node", "--exec", "n.py", "--client", "k1"], "client", "k1"),
        (["run", ".", "--keep", "kept"], "keep", "kept"),
        (["restore", "b", "--data-dir", "d"], "data_dir", "d"),
        (["log", "verify", "--data-dir", "d"], "data_dir", "d"),
        (["recover", "--data-dir", "d"], "data_dir", "d"),
        (["status", "--key-file", "~/key"], "key_file", os.path.expanduser("~/key")),
    ],
)
def test_path_is_absolute_from_the_start(
    arguments: list[str], option: str, expected: str
) -> None:
    found = getattr(parse_command(arguments), option)
    assert found == os.path.abspath(expected)


def test_client_to_attach_to_is_named_by_its_process_id_as_well() -> None:
    assert parse_command(["node", "--exec", "n.py", "--client", "22125"]).client == "22125"
    with pytest.raises(UsageError, match="it is empty, expected a directory"):
        parse_command(["node", "--exec", "n.py", "--client", ""])


def test_state_is_kept_at_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = state_directory({"TMPDIR": "temporary"})
    assert found == tmp_path / "temporary" / f"tasksprint-{os.getuid()}"


# --- what is left behind ---


def test_group_is_killed_while_its_leader_is_a_zombie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the leader is reaped, its id may be that of somebody else's group."""
    states: list[str] = []

    def kill(pid: int, number: signal.Signals) -> None:
        states.append(psutil.Process(pid).status())
        os.killpg(pid, number)

    monkeypatch.setattr(run_to_end_module, "signal_group", kill)
    command = ["sh", "-c", "sleep 999 & echo $!; exit 3"]

    async def scenario() -> int:
        code, said = await run_to_end(command, timeout_s=60, tail_bytes_max=100)
        assert code == 3
        return int(said)

    left = asyncio.run(scenario())
    assert states == [psutil.STATUS_ZOMBIE]
    wait_until(lambda: not is_running(left), "what it started is gone")


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_command_that_takes_too_long_is_ended_with_all_that_it_started(
    is_cancelled: bool, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    command = ["sh", "-c", f"sleep 999 & echo $$ $! > {pids}.new; mv {pids}.new {pids}; wait"]

    async def scenario() -> None:
        timeout_s = 60.0 if is_cancelled else 0.2
        running = asyncio.ensure_future(
            run_to_end(command, timeout_s=timeout_s, tail_bytes_max=100)
        )
        if is_cancelled:
            while not pids.exists():
                await asyncio.sleep(0.002)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        else:
            with pytest.raises(asyncio.TimeoutError):
                await running

    asyncio.run(scenario())
    if pids.exists():
        for pid in map(int, pids.read_text().split()):
            wait_until(lambda pid=pid: not is_running(pid), "it is gone")  # type: ignore[misc]


def unkillable(pid: int) -> str:
    return (
        f"process {pid} doesn't end though it was killed: it waits in the kernel, mostly for a "
        "disk or a network mount; it is left to itself"
    )


def test_command_that_the_kernel_does_not_end_is_left_to_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that reads from a mount whose server is gone; the loop goes on meanwhile."""
    killed: list[int] = []
    monkeypatch.setattr(run_to_end_module, "signal_group", lambda pid, _: killed.append(pid))
    monkeypatch.setattr(run_to_end_module, "KILLED_S", 0.05)
    monkeypatch.setattr(run_to_end_module, "DRAIN_S", 0.01)

    async def scenario() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await run_to_end(["sleep", "999"], timeout_s=0.01, tail_bytes_max=100)
        (pid,) = killed
        assert pid in own_children
        assert [one.getMessage() for one in caplog.records] == [unkillable(pid)]
        os.kill(pid, signal.SIGKILL)  # The server is back.
        while pid in own_children:
            await asyncio.sleep(0.001)
        assert not psutil.pid_exists(pid)

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize("is_asked", [True, False], ids=["stop", "kill"])
def test_program_that_the_kernel_does_not_end_is_left_to_itself(
    is_asked: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its exit is told all the same: its task and its slot wait for that."""
    signals: list[int] = []
    monkeypatch.setattr(
        program_module, "signal_group", lambda pid, number: signals.append(number)
    )
    monkeypatch.setattr(program_module, "KILLED_S", 0.03)
    monkeypatch.setattr(program_module, "DRAIN_S", 0.01)
    exits: list[ExitReason] = []

    async def scenario() -> None:
        program = await start_program(
            ["sleep", "999"], cwd=None, env=None, what="node", failure=NodeFailed,
            on_data=lambda data: None, on_exit=exits.append,
        )  # fmt: skip
        pid = program.pid
        if is_asked:
            reason = await program.stop(grace_s=0.01, terminate_s=0.01, why="too slow")
            assert signals == [signal.SIGTERM, signal.SIGKILL]
        else:
            program.kill("too slow")
            program.kill("for another reason")
            reason = await program.wait()
        assert exits == [reason]
        assert (reason.code, reason.signal) == (None, None)
        assert reason.describe() == "doesn't end though it was killed (too slow)"
        assert [one.getMessage() for one in caplog.records] == [unkillable(pid)]
        assert pid in own_children
        os.kill(pid, signal.SIGKILL)  # The server is back.
        while pid in own_children:
            await asyncio.sleep(0.001)
        assert not psutil.pid_exists(pid)
        assert exits == [reason] and len(caplog.records) == 1

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize("lingers", [False, True])
def test_command_that_is_cancelled_again_while_it_ends_is_waited_for(
    lingers: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As if the kernel took its time; one that has fled its group may hold the pipe as well."""
    cancelled: list[asyncio.Task[object]] = []
    loops: list[asyncio.AbstractEventLoop] = []

    def signal_later(pid: int, number: int) -> None:
        loops[0].call_soon(cancelled[0].cancel)
        loops[0].call_later(0.02, os.kill, pid, number)

    monkeypatch.setattr(run_to_end_module, "signal_group", signal_later)
    monkeypatch.setattr(run_to_end_module, "DRAIN_S", 0.01)
    script = "echo; exec sleep 999"
    if lingers:
        script = f"setsid sleep 5 & {script}"

    async def scenario() -> None:
        loops.append(asyncio.get_running_loop())
        ran = asyncio.ensure_future(
            run_to_end(["sh", "-c", script], timeout_s=0.05, tail_bytes_max=9)
        )
        cancelled.append(ran)
        with pytest.raises(asyncio.CancelledError):
            await ran
        assert ran.cancelled()

    before = set(own_children)
    asyncio.run(asyncio.wait_for(scenario(), 60))
    assert own_children == before
    assert not caplog.records


async def fail_to_start() -> None:
    """Start a program whose stderr can't be listened to."""
    with pytest.raises(OSError, match="Too many open files"):
        await start_program(
            ["sleep", "999"], cwd=None, env=None, what="node", failure=NodeFailed,
            on_data=lambda data: None, on_exit=lambda reason: None,
        )  # fmt: skip


async def no_files(*arguments: object) -> None:
    raise OSError(24, "Too many open files")


def test_program_that_fails_to_start_and_does_not_end_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(program_module, "signal_group", lambda pid, _: killed.append(pid))
    monkeypatch.setattr(program_module, "KILLED_S", 0.05)
    monkeypatch.setattr(program_module.ChildProcess, "watch", no_files)

    async def scenario() -> None:
        await fail_to_start()
        pid = killed[0]
        assert [one.getMessage() for one in caplog.records] == [unkillable(pid)]
        assert pid in own_children
        os.kill(pid, signal.SIGKILL)  # The server is back.
        while pid in own_children:
            await asyncio.sleep(0.001)
        assert not psutil.pid_exists(pid)

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_loop_goes_on_while_a_program_that_fails_to_start_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As if the kernel took its time: the kill counts in a later turn of the loop."""
    killed: list[int] = []

    def signal_later(pid: int, number: int) -> None:
        if not killed:
            asyncio.get_running_loop().call_soon(os.kill, pid, number)
        killed.append(pid)

    monkeypatch.setattr(program_module, "signal_group", signal_later)
    monkeypatch.setattr(program_module, "KILLED_S", 10.0)
    monkeypatch.setattr(program_module.ChildProcess, "watch", no_files)
    asyncio.run(asyncio.wait_for(fail_to_start(), 60))
    assert killed[0] not in own_children and not psutil.pid_exists(killed[0])
    assert not caplog.records


def test_task_whose_node_the_kernel_does_not_end_fails_and_gives_its_slot_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    signal_really = program_module.signal_group

    def signal_others(pid: int, number: signal.Signals) -> None:
        if not killed or pid == killed[0]:
            killed.append(pid)
        else:
            signal_really(pid, number)

    monkeypatch.setattr(program_module, "KILLED_S", 0.05)
    monkeypatch.setattr(program_module, "DRAIN_S", 0.01)
    monkeypatch.setattr(program_module, "signal_group", signal_others)

    async def main() -> None:
        async with client_world(tmp_path, slots=1) as here:
            here.program(shell_node(f"case $line in *hang*) sleep 999 ;; esac; {GOOD}"))
            both = (assignment(0, name="hang", timeout_ms=1), assignment(1))
            here.coordinator.give(view(whole=True, run=both))
            await client_until(lambda: here.coordinator.failures and here.coordinator.completions)
            (failure,) = here.coordinator.failures
            assert failure.error == "task 0 'hang' ran longer than timeout_ms=1"
            assert here.coordinator.done().keys() == {1}
            os.killpg(killed[0], signal.SIGKILL)
            await client_until(lambda: killed[0] not in own_children)

    run(main)


def test_run_ends_though_a_process_of_its_cluster_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "killpg", lambda pid, number: None)
    monkeypatch.setattr(run_module, "_STOP_GRACE_S", 0.01)
    monkeypatch.setattr(run_module, "KILLED_S", 0.01)
    private = PrivateCluster(coordinators=1, clients=1, nodes=1, keep=tmp_path)
    with subprocess.Popen(["sh", "-c", "trap '' TERM; echo; while :; do sleep 9; done"],
                          stdout=subprocess.PIPE, start_new_session=True) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline()
        private._processes["client-1"] = process
        private._stop_in_order()
        assert capsys.readouterr().err == f"tasksprint: {unkillable(process.pid)}\n"
        monkeypatch.undo()
        os.killpg(process.pid, signal.SIGKILL)


def test_coordinator_that_is_closed_leaves_no_task(tmp_path: Path) -> None:
    async def scenario() -> None:
        before = asyncio.all_tasks()
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            coordinator = leader.coordinator
            # Nobody has this archive, and somebody waits for it.
            waiting = asyncio.ensure_future(coordinator.archives.unpacked("f" * 64))
            asked = coordinator.turns.spawn(asyncio.sleep(999))
            while not coordinator.archives._unpacking:
                await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert asked.cancelled()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert asyncio.all_tasks() == before

    asyncio.run(scenario())


# --- children of others ---

ORPHANS = """\
import ctypes, subprocess, sys, time
from tasksprint.process.orphans import Orphans, own_children
assert ctypes.CDLL(None).prctl(36, 1) == 0  # PR_SET_CHILD_SUBREAPER
own = subprocess.Popen(["sh", "-c", "exit 3"])
own_children.add(own.pid)
parent = subprocess.run(["sh", "-c", "sleep 0 & echo $!"], stdout=subprocess.PIPE)
orphan = int(parent.stdout)
def state(pid):
    return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]
while state(orphan) != "Z" or state(own.pid) != "Z":
    time.sleep(0.001)
orphans = Orphans()
assert orphans.look() == []  # Whoever waits for it may be just about to.
assert orphans.look() == [orphan]
assert orphans.look() == []
assert own.wait() == 3
"""


@pytest.mark.skipif(sys.platform != "linux", reason="there are no subreapers")
def test_orphans_are_reaped_and_own_children_are_not() -> None:
    done = under_shell("", sys.executable, "-S", "-c", ORPHANS)
    assert done.returncode == 0, done.stderr


def test_orphans_are_looked_for_again_after_a_look_that_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []

    def children() -> list[int]:
        looks.append(len(looks))
        if len(looks) == 1:
            raise OSError(errno.EMFILE, "Too many open files", "/proc")
        return []

    def sleep(_: float) -> None:
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(orphans_module, "_children", children)
    monkeypatch.setattr(orphans_module, "time", SimpleNamespace(sleep=sleep))
    with pytest.raises(KeyboardInterrupt):
        orphans_module._look_for_ever()


# --- what a `run` that was killed left ---


def left_directory() -> RunDirectory:
    """Return one whose `run` is gone: the kernel has let go of its lock."""
    made = RunDirectory()
    os.close(made._lock)
    return made


def test_directory_of_a_killed_run_is_deleted_with_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    living, left = RunDirectory(), left_directory()
    (left.path / "client-1").mkdir()
    environment = {"PATH": os.environ["PATH"], "PWD": str(left.path / "client-1")}
    started = [
        subprocess.Popen(["sleep", "999"], start_new_session=True, **options)
        for options in (
            {"cwd": left.path / "client-1"},
            {"cwd": "/", "env": environment},
            {"cwd": living.path},
        )
    ]
    try:
        assert sweep_run_directories() == [(left.path, 2)]
        assert [process.wait(10) for process in started[:2]] == [-signal.SIGKILL] * 2
        assert started[2].poll() is None
        assert not left.path.exists() and living.path.exists()
        assert sweep_run_directories() == []
        living.delete()
        assert not living.path.exists()
    finally:
        for process in started:
            process.kill()
            process.wait()


def node_with_child(pid_file: Path) -> str:
    """Return a node whose task starts a process, writes its id, and sleeps as it is told."""
    return (
        "import subprocess, time\n"
        "from TaskSprintNode import *\n"
        "class N(TaskSprintNode):\n"
        "    def work(self, s):\n"
        "        child = subprocess.Popen(['sleep', '999'])\n"
        f"        open({str(pid_file)!r}, 'w').write(f'{{child.pid}} ')\n"
        "        time.sleep(s)\n"
        "        return {'x': 1}\n"
        "N().start()\n"
    )


@pytest.mark.long
def test_run_that_was_killed_is_cleaned_up_by_the_next(
    command: list[str], tmp_path: Path, environment: Path
) -> None:
    node = node_with_child(tmp_path / "pid")
    slow = write_job(tmp_path / "slow", SCHEDULER % 999, node)
    quick = write_job(tmp_path / "quick", SCHEDULER % 0, node)
    temporary = tmp_path / "t"
    temporary.mkdir()
    variables = {**os.environ, "TMPDIR": str(temporary)}
    killed = subprocess.Popen([*command, "run", str(slow)], env=variables)
    wait_until(lambda: (tmp_path / "pid").exists(), "the task runs")
    wait_until(lambda: (tmp_path / "pid").read_text().endswith(" "), "its child is known")
    child = int((tmp_path / "pid").read_text())
    killed.kill()
    killed.wait()
    (left,) = temporary.glob("tasksprint-run-*")
    done = subprocess.run(
        [*command, "run", str(quick)], env=variables, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    said = rf"a former run was killed: deleted '{left}', and ended \d+ of its processes"
    assert re.search(said, done.stderr), done.stderr
    assert not is_running(child)
    assert list(temporary.glob("tasksprint-run-*")) == []


SCHEDULER = """\
from TaskSprintCoordinator import *
class S(TaskSprintCoordinator):
    def init(self, seed): self.start_task("work", base=[%d])
    def task_done(self, tid, values): self.finish()
S().start()
"""


@pytest.mark.long
def test_hangup_of_run_leaves_nothing(
    command: list[str], tmp_path: Path, environment: Path
) -> None:
    """As when its terminal is closed."""
    node = node_with_child(tmp_path / "pid")
    job = write_job(tmp_path / "job", SCHEDULER % 999, node)
    temporary = tmp_path / "t"
    temporary.mkdir()
    variables = {**os.environ, "TMPDIR": str(temporary)}
    running = subprocess.Popen(
        [*command, "run", str(job)], env=variables, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: (tmp_path / "pid").exists(), "the task runs")
    wait_until(lambda: (tmp_path / "pid").read_text().endswith(" "), "its child is known")
    running.send_signal(signal.SIGHUP)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130 and said.endswith("tasksprint: interrupted\n")
    child = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_running(child), "its child is gone")
    assert list(temporary.glob("tasksprint-run-*")) == []


# --- cgroups ---


def can_make_cgroups() -> bool:
    made = Cgroups.try_make()
    if made is not None:
        made.close()
    return made is not None


@pytest.mark.skipif(not can_make_cgroups(), reason="no cgroup here that this process may divide")
def test_program_is_ended_with_whoever_fled_its_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    text = f"setsid sleep 999 & echo $! > {pids}.new; mv {pids}.new {pids}; read line"

    async def scenario() -> None:
        with programs_in_cgroups():
            for ends_itself in (True, False):
                ended = asyncio.get_running_loop().create_future()
                program = await start_program(
                    ["sh", "-c", text],
                    cwd=None,
                    env=None,
                    what="node",
                    failure=NodeFailed,
                    on_data=lambda data: None,
                    on_exit=ended.set_result,
                )
                while not pids.exists():
                    await asyncio.sleep(0.002)
                child = int(pids.read_text())
                pids.unlink()
                # It may have fled before its program was in the cgroup: then it stays out.
                is_inside = "/tasksprint-" in Path(f"/proc/{child}/cgroup").read_text()
                if ends_itself:
                    program.write(b"\n")
                else:
                    program.kill()
                await ended
                if is_inside:
                    assert not is_running(child)
                else:
                    os.kill(child, signal.SIGKILL)

    asyncio.run(scenario())


@pytest.mark.skipif(not can_make_cgroups(), reason="no cgroup here that this process may divide")
def test_what_a_killed_process_left_in_its_cgroup_is_ended(tmp_path: Path) -> None:
    base = own_cgroup()
    assert base is not None
    left = base / f"tasksprint-{2**22 + 1}-1"  # No process has such an id.
    (left / "1").mkdir(parents=True)
    with subprocess.Popen(["sleep", "999"], start_new_session=True) as child:
        (left / "1" / "cgroup.procs").write_text(str(child.pid))
        made = Cgroups.try_make()
        assert made is not None
        assert child.wait(10) == -signal.SIGKILL
        made.close()
    wait_until(lambda: not left.exists(), "it is removed")
    assert not list(base.glob(f"tasksprint-{os.getpid()}-*"))


def test_where_no_cgroup_can_be_made_programs_run_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cgroups, "own_cgroup", lambda: None)
    assert Cgroups.try_make() is None
    monkeypatch.setattr(cgroups, "own_cgroup", lambda: tmp_path / "none")
    assert Cgroups.try_make() is None


@pytest.mark.slow
def test_interrupt_while_a_command_is_loaded_ends_it_without_a_word() -> None:
    # (As a KeyboardInterrupt it ended in tracebacks, and some libraries in C crashed by it.)
    program = (
        "import os, signal, sys\n"
        "from tasksprint.cli import main, parser\n"
        "load = parser.load\n"
        "def interrupted(options):\n"
        "    if options.command == sys.argv[1]:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return load(options)\n"
        "parser.load = interrupted\n"
        "code = main.main(['token'])\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "sys.exit(code)\n"
    )
    ended = []
    for command in ("token", "none"):
        ended.append(
            subprocess.run(
                [sys.executable, "-c", program, command],
                cwd=CHECKOUT,
                env={**os.environ, "TASKSPRINT_KEY_FILE": "/lacking"},
                capture_output=True,
                text=True,
                timeout=60,
            )
        )
    assert (ended[0].returncode, ended[0].stderr) == (-signal.SIGINT, "")
    assert ended[1].returncode == 78, ended[1].stderr
