"""What a process finds around it: its streams, its signals, paths that aren't absolute."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tasksprint.process import run_to_end as run_to_end_module
from tasksprint.process.directories import state_directory
from tasksprint.process.run_to_end import run_to_end
from tasksprint.process.signals import ending_signals, interrupted_by_signals
from tasksprint.roles.coordinator_role import wait_for_end
from tasksprint.roles.main import parse_command
from tests.e2e.conftest import wait_until
from tests.packaging.standin import CHECKOUT
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


def is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_coordinator_that_is_closed_leaves_no_task(tmp_path: Path) -> None:
    async def scenario() -> None:
        before = asyncio.all_tasks()
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            coordinator = leader.coordinator
            # Nobody has this archive, and somebody waits for it.
            waiting = asyncio.ensure_future(coordinator.programs.unpacked("f" * 64))
            asked = coordinator.tasks.spawn(asyncio.sleep(999))
            while not coordinator.programs._unpacking:
                await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert asked.cancelled()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert asyncio.all_tasks() == before

    asyncio.run(scenario())
