"""One child process: started, fed, listened to, and surely ended.

Its stdin and stdout are the two directions of one socket. So no pipes are needed, and the same
code serves a program that a person attached by hand (attach.py). The program leads a session of
its own: a signal to its group reaches all that it started. It doesn't outlive us. On Linux the
kernel kills it when this process dies; elsewhere it sees the end of its input.

A program that ended leaves nothing behind. Its group is killed before it is reaped: until then
nobody else can get its process id. A grandchild with a session of its own escapes that, unless
this process may make cgroups (cgroups.py). After a kill -9 of *this* process grandchildren of
any kind stay, until the next process in its cgroup ends them.

This module moves bytes. Lines, ready messages and timeouts of answers are the business of its
callbacks.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from tasksprint.errors import LocalProtocolError, NodeFailed, SchedulerFailed
from tasksprint.process.cgroups import Cgroups
from tasksprint.process.command_line import UMASK, explain_start_error
from tasksprint.process.open_files import with_first_limit
from tasksprint.process.orphans import own_children

__all__ = [
    "ChildProcess",
    "Connection",
    "ExitReason",
    "die_with_parent",
    "doesnt_end",
    "programs_in_cgroups",
    "signal_group",
    "start_program",
    "watch_exit",
]

_log = logging.getLogger(__name__)

_cgroups: Cgroups | None = None  # what `programs_in_cgroups` has made

_DRAIN_BYTES = 64 * 1024
_DRAINS_MAX = 16  # A pipe holds 1 MiB at most (/proc/sys/fs/pipe-max-size), 64 KiB mostly.
STDERR_TAIL_BYTES = 8 * 1024
# The kernel cuts this to what it allows (net.core.wmem_max, often 208 KiB).
SOCKET_BUFFER_BYTES = 1024 * 1024
# Above this much unsent data `drain` waits.
WRITE_HIGH_BYTES = 1024 * 1024
_READ_BYTES = 128 * 1024
# How long after the program's end its sockets may stay open: only a descendant that
# fled its group still holds them, and nothing of it is waited for.
DRAIN_S = 0.5
# A killed process may take so long to end. Some wait in the kernel for a disk or a network
# mount that doesn't answer, and nothing ends them.
KILLED_S = 2.0
# How long a program may go on running after it closed its stdin and stdout.
LINGER_S = 5.0


@dataclass(frozen=True, slots=True)
class ExitReason:
    """How a program ended; exactly one of `code` and `signal` is known, or neither."""

    code: int | None  # exit code
    signal: int | None  # the signal that killed it
    out_of_memory: bool | None  # None: can't be known here
    stderr_tail: str  # the last 8 KiB of its stderr
    why: str = ""  # what else we know: whether we ended it, and the reason
    is_left: bool = False  # it was killed and goes on: the kernel doesn't end it

    def describe(self) -> str:
        """Return e.g. "exit code 3" or "signal 9 (SIGKILL), out of memory", on one line."""
        if self.signal is not None:
            text = f"signal {self.signal} ({_signal_name(self.signal)})"
        elif self.code is not None:
            text = f"exit code {self.code}"
        elif self.is_left:
            text = "doesn't end though it was killed"
        else:
            text = "closed its connection"
        if self.out_of_memory:
            text += ", out of memory"
        return f"{text} ({self.why})" if self.why else text

    def describe_with_stderr(self, more: str = "") -> str:
        """Return `describe()` and, where there is any, the tail of stderr on further lines.

        Args:
            more: Goes on with what `describe()` says.
        """
        text = f"{self.describe()} {more}" if more else self.describe()
        tail = self.stderr_tail.rstrip()
        return f"{text}; its stderr ended with:\n{tail}" if tail else text


class Connection(asyncio.BufferedProtocol):
    """The writing and reading side of a program's socket; anybody may have started the program.

    `ChildProcess` and `attach.AttachedProcess` are the two kinds.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_data: Callable[[bytes], None],
        on_exit: Callable[[ExitReason], None],
    ) -> None:
        self._on_data = on_data
        self._on_exit = on_exit
        self._transport: asyncio.Transport | None = None
        # Without it the loop makes room for 256 KiB before each read: 15 us more.
        self._buffer = memoryview(bytearray(_READ_BYTES))
        # A second handle to the socket. When a write fails because the other side is gone,
        # asyncio closes its handle, even with unread data in it. This may be the last answer
        # of a program that answered and left. `connection_lost` reads it from here.
        self._last_words = sock.dup()
        self._last_words.setblocking(False)
        # Data that comes before the starter holds this object: it couldn't answer yet.
        self._early: list[bytes] | None = []
        # Set while so much waits to be sent that no more should be written.
        self._drained: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        # Done once no more data will come.
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._why = ""  # we ended it
        self._exited: asyncio.Future[ExitReason] = self._loop.create_future()

    def write(self, data: bytes | memoryview) -> None:
        """Send bytes; after the program's end they are dropped, and `on_exit` tells."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the program has read most of its input, or has ended."""
        while self._drained is not None and not self.closed.done():
            await asyncio.wait([self._drained, self.closed], return_when=asyncio.FIRST_COMPLETED)

    def write_eof(self) -> None:
        """Close the program's stdin once everything written has been sent; ask it to end."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        try:
            transport.write_eof()
        except OSError:
            pass  # Nothing is lost: it has ended already, and that is reported.

    def pause_reading(self) -> None:
        """Deliver no more data for now; the program blocks once the socket is full."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Deliver data again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Close the socket at once; unsent data is lost."""
        if self._transport is not None:
            self._transport.abort()

    async def wait(self) -> ExitReason:
        """Wait until the program has ended, or was given up, and `on_exit` has been called."""
        return await asyncio.shield(self._exited)

    async def stop(
        self, *, grace_s: float = 2.0, terminate_s: float = 2.0, why: str = "stopped"
    ) -> ExitReason:
        """End the program: ask, wait, terminate, wait, kill.

        Args:
            grace_s: How long after the end of its input it may go on.
            terminate_s: How long after SIGTERM.
            why: Stands in the `ExitReason`.
        """
        self._why = self._why or why
        self.write_eof()
        for wait_s, then in ((grace_s, signal.SIGTERM), (terminate_s, signal.SIGKILL)):
            done, _ = await asyncio.wait([self._exited], timeout=wait_s)
            if done:
                break
            self._signal(then)
        return await self.wait()

    def _signal(self, number: signal.Signals) -> None:
        raise NotImplementedError

    # --- asyncio.BufferedProtocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._received(bytes(self._buffer[:nbytes]))

    def _received(self, data: bytes) -> None:
        if self._early is None:
            self._on_data(data)
        else:
            self._early.append(data)

    def deliver_early(self) -> None:
        """Deliver the data that has come already, and from now on everything as it comes."""
        early, self._early = self._early, None
        for data in early or ():
            self._on_data(data)

    def pause_writing(self) -> None:
        self._drained = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None

    def connection_lost(self, error: Exception | None) -> None:
        try:
            while error is not None and (data := self._last_words.recv(256 * 1024)):
                self._received(data)
        except OSError:
            pass  # Nothing is lost: BlockingIOError and ECONNRESET say that it is empty.
        finally:
            self._last_words.close()
            if not self.closed.done():
                self.closed.set_result(None)


async def start_program(
    argv: Sequence[str],
    *,
    cwd: Path | str | None,
    env: Mapping[str, str] | None,
    what: str,
    failure: type[NodeFailed | SchedulerFailed],
    on_data: Callable[[bytes], None],
    on_exit: Callable[[ExitReason], None],
    on_stderr: Callable[[bytes], None] | None = None,
    name: str | None = None,
) -> ChildProcess:
    """Start a child with a socket as its stdin and stdout, and a pipe as its stderr.

    Call it in the main thread: on Linux a child is killed when the *thread* that started it
    ends (prctl(2), PR_SET_PDEATHSIG). In another thread this safeguard is left out.

    Args:
        argv: As `command_line` makes it.
        cwd: Working directory; None: ours.
        env: The whole environment; None: ours.
        what: "node" or "scheduler", for messages.
        failure: The exception to raise.
        on_data: Gets the program's stdout, as it comes. If this function is awaited directly,
            nothing comes before it has returned.
        on_exit: Called once, after the program was reaped and all its output was delivered;
            nothing is called after it. If the kernel doesn't end the program, it is called
            soon after the kill all the same.
        on_stderr: Gets all of stderr, as it comes.
        name: The program in messages, as its user knows it; by default argv[0].

    Raises:
        failure: It can't be started; the message says what to do.
    """
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        kills_before = _out_of_memory_kills()
        try:
            # Blocking: a fork takes milliseconds, and must happen in this thread.
            child = subprocess.Popen(
                list(argv),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.PIPE,
                cwd=cwd,
                env=None if env is None else dict(env),
                start_new_session=True,
                preexec_fn=with_first_limit(die_with_parent()),
                umask=UMASK,
            )
        except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
            if isinstance(error, ValueError):
                error = OSError(0, str(error))
            raise explain_start_error(
                error, argv[0], name=name, cwd=cwd, what=what, failure=failure
            ) from error
        except subprocess.SubprocessError as error:
            raise failure(f"{what} {name or argv[0]!r} can't be started: {error}") from error
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    own_children.add(child.pid)
    program = ChildProcess(
        child,
        ours,
        on_data=on_data,
        on_exit=on_exit,
        on_stderr=on_stderr,
        kills_before=kills_before,
    )
    assert child.stderr is not None
    try:
        program.watch_end()  # First: somebody waits for it, even if something fails below.
        await loop.create_unix_connection(lambda: program, sock=ours)
        await program.watch(child.stderr)
        if _cgroups is not None:
            await program.enter_cgroup(_cgroups)
    except BaseException:
        await program.abandon(ours)
        raise
    program.begin()
    return program


class ChildProcess(Connection):
    """A running child process; made by `start_program`."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        sock: socket.socket,
        *,
        on_data: Callable[[bytes], None],
        on_exit: Callable[[ExitReason], None],
        on_stderr: Callable[[bytes], None] | None,
        kills_before: int | None,
    ) -> None:
        super().__init__(sock, on_data=on_data, on_exit=on_exit)
        self._child = child
        self._stderr = _Stderr(on_stderr)
        self._stderr_transport: asyncio.BaseTransport | None = None
        self._kills_before = kills_before
        self._reaped = False
        self._gone: asyncio.Future[None] = self._loop.create_future()  # done: it was reaped
        self._has_begun = False
        self._deadline: asyncio.TimerHandle | None = None  # it was killed: when it is given up
        self._is_left = False  # to itself
        self._leave_cgroup: Callable[[], None] | None = None
        self._signalled = False  # we sent SIGKILL or SIGTERM
        self._finish_task: asyncio.Task[None] | None = None
        self._late_task: asyncio.Task[None] | None = None  # after it was left to itself

    @property
    def pid(self) -> int:
        """The process id, also that of its group and session."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the process has not ended yet."""
        return not self._reaped

    def drain_stderr(self) -> None:
        """Hand on at once the bytes that wait in the pipe of stderr.

        If a program writes to stderr before an answer, the text is in the pipe when the answer
        arrives. The loop may read the two in any order.
        """
        self._stderr.drain()

    def kill(self, why: str = "killed") -> None:
        """Kill the program and its whole group now; `on_exit` follows.

        This holds even if the kernel doesn't end the program. Then it is left to itself, and
        reaped if it ends after all.
        """
        self._why = self._why or why
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._reaped:
            return  # Its process id may belong to somebody else by now.
        self._signalled = True
        if number == signal.SIGKILL and self._deadline is None:
            self._deadline = self._loop.call_later(KILLED_S, self._give_up)
        signal_group(self._child.pid, number)

    # --- its end ---

    def watch_end(self) -> None:
        """Reap it when it ends, whenever that is."""
        watch_exit(self._loop, self._child.pid, self._ended)

    async def watch(self, stderr: IO[bytes]) -> None:
        """Listen to stderr; called once, by `start_program`."""
        self._stderr_transport, _ = await self._loop.connect_read_pipe(
            lambda: self._stderr, stderr
        )
        self.closed.add_done_callback(lambda _: self._linger())

    def begin(self) -> None:
        """Deliver data only from the next turn of the loop on: the caller is ready by then."""
        self._has_begun = True
        self._loop.call_soon(self.deliver_early)
        if self._reaped or self._is_left:
            self._finish_task = self._loop.create_task(self._finish())

    async def abandon(self, sock: socket.socket) -> None:
        """End a program that couldn't be started wholly; nobody hears anything of it."""
        self.kill()
        if self._transport is None:
            sock.close()
        self.close()
        self._last_words.close()
        if self._stderr_transport is not None:
            self._stderr_transport.close()
        elif self._child.stderr is not None:
            self._child.stderr.close()
        await asyncio.wait([self._gone], timeout=KILLED_S)

    def _linger(self) -> None:
        """The program closed its stdin and stdout: it is of no use any more."""
        if not self._reaped:
            self._loop.call_later(LINGER_S, self._kill_lingerer)

    def _kill_lingerer(self) -> None:
        if not self._reaped:
            self.kill("it closed its stdin and stdout but went on running")

    def _ended(self) -> None:
        """The process is a zombie: kill its group, then reap it."""
        # In this order: until it is reaped, its id names no other group.
        signal_group(self._child.pid, signal.SIGKILL)
        self._child.wait()
        self._reaped = True
        own_children.discard(self._child.pid)
        self._gone.set_result(None)
        if self._deadline is not None:
            self._deadline.cancel()
        if self._is_left:
            self._late_task = self._loop.create_task(self._end_cgroup())
        elif self._has_begun:
            self._finish_task = self._loop.create_task(self._finish())

    def _give_up(self) -> None:
        """It was killed and doesn't end: its waiters, and its slot, go on without it."""
        _log.warning("%s", doesnt_end(self._child.pid))
        self._is_left = True
        if self._has_begun:
            self._finish_task = self._loop.create_task(self._finish())

    async def enter_cgroup(self, cgroups: Cgroups) -> None:
        """Let the kernel keep this program together with all that it starts."""
        # In a thread: it takes 10 ms and more, while the program's interpreter starts.
        path = await self._loop.run_in_executor(None, cgroups.enter, self._child.pid)
        if path is not None:
            self._leave_cgroup = partial(cgroups.end, path)

    async def _end_cgroup(self) -> None:
        """End children that fled the program's group, once it has ended itself."""
        if self._leave_cgroup is None:
            return
        try:
            await self._loop.run_in_executor(None, self._leave_cgroup)
        except RuntimeError:  # The loop closes, and has no threads any more: nobody waits for it.
            self._leave_cgroup()

    async def _finish(self) -> None:
        if not self._is_left:
            await self._end_cgroup()
        self.resume_reading()  # Its last output fits the kernel's buffer.
        await asyncio.wait([self.closed, self._stderr.closed], timeout=DRAIN_S)
        self.close()
        if self._stderr_transport is not None:
            self._stderr_transport.close()
        await asyncio.wait([self.closed, self._stderr.closed])
        reason = self._reason()
        self._exited.set_result(reason)
        self._on_exit(reason)

    def _reason(self) -> ExitReason:
        # None: it was left to itself.
        returncode = None if self._is_left else self._child.returncode
        tail = bytes(self._stderr.tail).decode(errors="replace")
        last = tail.rstrip().rpartition("\n")[2]
        out_of_memory: bool | None = False
        if last == "MemoryError" or last.startswith("MemoryError:"):
            out_of_memory = True
        elif returncode == -signal.SIGKILL and not self._signalled:
            kills = _out_of_memory_kills()
            if kills is None or self._kills_before is None:
                out_of_memory = None
            else:
                out_of_memory = kills > self._kills_before
        return ExitReason(
            code=returncode if returncode is not None and returncode >= 0 else None,
            signal=-returncode if returncode is not None and returncode < 0 else None,
            out_of_memory=out_of_memory,
            stderr_tail=tail,
            why=self._why,
            is_left=self._is_left,
        )


class _Stderr(asyncio.Protocol):
    """Hands stderr on and keeps its tail."""

    def __init__(self, on_stderr: Callable[[bytes], None] | None) -> None:
        self._on_stderr = on_stderr
        self.tail = bytearray()
        self._pipe = -1
        self._poll = select.poll()  # Asked for every answer: cheaper than to read nothing.
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._pipe = transport.get_extra_info("pipe").fileno()
        self._poll.register(self._pipe, select.POLLIN)

    def drain(self) -> None:
        """Read all that is there; the pipe doesn't block."""
        if self._pipe < 0 or not self._poll.poll(0):
            return
        try:
            # No more than any pipe holds: a fast writer must not keep us.
            for _ in range(_DRAINS_MAX):
                if self._pipe < 0 or not (data := os.read(self._pipe, _DRAIN_BYTES)):
                    break
                self.data_received(data)
        except OSError:
            pass  # BlockingIOError: it is empty. Nothing is lost.

    def data_received(self, data: bytes) -> None:
        self.tail += data
        if len(self.tail) > STDERR_TAIL_BYTES:
            del self.tail[:-STDERR_TAIL_BYTES]
        if self._on_stderr is not None:
            self._on_stderr(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._pipe = -1
        if not self.closed.done():
            self.closed.set_result(None)


def watch_exit(loop: asyncio.AbstractEventLoop, pid: int, on_exit: Callable[[], None]) -> None:
    """Call `on_exit` in the loop when the child is a zombie; it is not reaped here."""
    pidfd = -1
    if sys.platform == "linux":
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            pass  # An old kernel, or a sandbox that forbids it: a thread does as well.
    if pidfd >= 0:

        def readable() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            on_exit()

        loop.add_reader(pidfd, readable)
        return

    def wait() -> None:
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        else:  # macOS before Python 3.13
            event = select.kevent(  # type: ignore[attr-defined]
                pid,
                select.KQ_FILTER_PROC,  # type: ignore[attr-defined]
                select.KQ_EV_ADD,  # type: ignore[attr-defined]
                select.KQ_NOTE_EXIT,  # type: ignore[attr-defined]
            )
            queue = select.kqueue()  # type: ignore[attr-defined]
            try:
                queue.control([event], 1)
            except OSError:
                pass  # It has ended already, and that is all we waited for.
            finally:
                queue.close()
        try:
            loop.call_soon_threadsafe(on_exit)
        except RuntimeError:
            pass  # The loop was closed: nobody waits any more.

    threading.Thread(target=wait, name=f"wait-{pid}", daemon=True).start()


def doesnt_end(pid: int) -> str:
    """Return a sentence about a process that was killed and goes on."""
    return (
        f"process {pid} doesn't end though it was killed: it waits in the kernel, mostly for a "
        "disk or a network mount; it is left to itself"
    )


def signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        pass  # It has ended, and so has everybody in its group.
    except PermissionError as error:
        if sys.platform == "darwin":
            return  # There a group of zombies answers EPERM.
        raise LocalProtocolError(f"process group {pid} isn't ours to signal") from error


@contextlib.contextmanager
def programs_in_cgroups() -> Iterator[None]:
    """Give each program that is started in the block a cgroup, where this process may.

    At its end whatever is left of them is killed.
    """
    global _cgroups
    _cgroups = Cgroups.try_make()
    try:
        yield
    finally:
        if _cgroups is not None:
            _cgroups.close()
            _cgroups = None


def die_with_parent() -> Callable[[], None] | None:
    """Return a `preexec_fn` by which a child dies with us, or None where there is none.

    The function does nothing but two system calls, prepared here: after a fork in a
    process with threads any lock may be held for ever. `PyDLL` keeps the interpreter's
    own lock during the call instead of letting go of it and taking it again.
    """
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return None
    try:
        prctl = ctypes.PyDLL(None).prctl
    except (OSError, AttributeError):
        return None  # A libc without it: children see the end of their input instead.
    parent = os.getpid()
    pr_set_pdeathsig, sigkill = ctypes.c_int(1), ctypes.c_ulong(signal.SIGKILL)
    getppid, leave = os.getppid, os._exit

    def before_exec() -> None:
        prctl(pr_set_pdeathsig, sigkill)
        if getppid() != parent:  # It died between the fork and the call above.
            leave(127)

    return before_exec


def _out_of_memory_kills() -> int | None:
    """Return how many processes the kernel has killed for want of memory, or None."""
    for path in ("/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        try:
            with open(path, encoding="ascii") as file:
                for line in file:
                    if line.startswith("oom_kill "):
                        return int(line.split()[1])
        except (OSError, ValueError):
            continue  # Not on this system: the next place, or "unknown".
    return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "a real-time signal"
