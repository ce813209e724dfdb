"""Nodes that a person starts by hand: `node --exec PROG --name NAME`.

Three parts. The **registry**: each client of this user writes a file with the place of its
socket. So `node` finds the only client of this machine. The **server**: a client accepts on a
Unix-domain socket, reads one hello line, and answers. The **node side**: connect, say hello,
make that socket stdin and stdout, and become the program. From then on the socket carries the
node's lines, as if the client had started the program itself: no process and no copy stands
between.

    node -> client: {"attach":"NAME","pid":4711,"version":"1.0"}
    client -> node: {"attached":3}            or {"error":"text"}

With its hello the node hands over its stderr (SCM_RIGHTS). The person who started the program
looks only there. So there the client says why it ended the program.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import hashlib
import json
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tasksprint.errors import (
    NodeFailed,
    PeerUnreachable,
    Refused,
    RemoteProtocolError,
    SettingsError,
    UsageError,
)
from tasksprint.plain_text import plain_line
from tasksprint.process.command_line import explain_start_error
from tasksprint.process.directories import private_directory, temporary_directory
from tasksprint.process.program import Connection, ExitReason

__all__ = [
    "AttachServer",
    "AttachedProcess",
    "Hello",
    "LiveClient",
    "attach_and_exec",
    "find_client",
    "live_clients",
    "register_client",
    "socket_path",
]

# sockaddr_un holds 108 bytes on Linux and 104 on macOS, with the final NUL.
SOCKET_PATH_BYTES_MAX = 100
HELLO_BYTES_MAX = 4 * 1024
# A node says hello before anything else; a caller that doesn't is no node.
HELLO_TIMEOUT_S = 5.0
# Connections that may be about to say hello at once; each costs two descriptors.
_GREETINGS_MAX = 32
NAME_BYTES_MAX = 200
# Of a client's words on a node's stderr: few enough to be written at once.
_TOLD_BYTES_MAX = 2_000
_DESCRIPTOR_BYTES = array.array("i").itemsize


# --- where the socket is ---


def socket_path(data_directory: Path, environ: Mapping[str, str] | None = None) -> Path:
    """Return where the client with this data directory listens for nodes.

    In the data directory; if that path is too long for a socket, a name made from it in a
    private temporary directory.
    """
    path = data_directory.resolve() / "nodes.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return temporary_directory(environ) / f"{name}.sock"


# --- the registry of clients ---


@dataclass(frozen=True, slots=True)
class LiveClient:
    """A client of this user on this machine that nodes can attach to."""

    pid: int
    data_directory: str
    socket: str


def register_client(state_directory: Path, data_directory: Path, socket_file: Path) -> Path:
    """Write this client's file into the registry, and return its path; delete it at the end.

    A file that a kill -9 left behind is removed here, and whenever somebody looks.
    """
    folder = private_directory(state_directory / "clients")
    path = folder / f"{_host()}-{os.getpid()}.json"
    text = json.dumps(
        {
            "pid": os.getpid(),
            "data_directory": str(data_directory.resolve()),
            "socket": str(socket_file),
        }
    )
    beside = path.with_suffix(".new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
    live_clients(state_directory)
    return path


def live_clients(state_directory: Path) -> list[LiveClient]:
    """Return the clients of this user on this machine that answer, by process id.

    Only a process that listens on its socket counts as a client. If a client with the same data
    directory was killed, its file is removed. Several machines may share a home directory. So
    the files' names begin with the machine's, and others' files are left alone.
    """
    found: dict[str, tuple[int, Path, LiveClient]] = {}
    for path in sorted((state_directory / "clients").glob("*.json")):
        if path.name.rpartition("-")[0] != _host():
            continue
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            client = LiveClient(
                int(fields["pid"]), str(fields["data_directory"]), str(fields["socket"])
            )
            written_ns = path.stat().st_mtime_ns
        except (OSError, ValueError, KeyError, TypeError):
            continue  # Written or deleted just now, or not ours.
        # Where the system doesn't say who listens, the newest of a directory does.
        known = found.get(client.data_directory)
        stale: Path | None
        if not _is_alive(client):
            stale = path
        elif known is None:
            stale = None
        else:
            stale = path if written_ns < known[0] else known[1]
        if stale is not path:
            found[client.data_directory] = (written_ns, path, client)
        if stale is not None:
            with contextlib.suppress(OSError):
                stale.unlink()
    return sorted((client for _, _, client in found.values()), key=lambda client: client.pid)


def find_client(state_directory: Path, wanted: str | None = None) -> LiveClient:
    """Return the only live client of this machine, or the one that is wanted.

    Args:
        wanted: Its process id or data directory.

    Raises:
        UsageError: There is none, or there are several; the message lists them.
    """
    clients = live_clients(state_directory)
    if wanted is not None:
        directory = str(Path(wanted).resolve())
        clients = [
            client
            for client in clients
            if str(client.pid) == wanted or client.data_directory == directory
        ]
        if not clients:
            raise UsageError(
                f"no client {wanted!r} runs on this machine" + _listed(state_directory)
            )
    if not clients:
        raise UsageError(
            "no client runs on this machine (as this user)",
            hint="start one with 'tasksprint client'",
        )
    if len(clients) > 1:
        raise UsageError(
            f"{len(clients)} clients run on this machine" + _listed(state_directory),
            hint="say which, by its process id or data directory",
        )
    return clients[0]


def _listed(state_directory: Path) -> str:
    clients = live_clients(state_directory)
    if not clients:
        return ""
    return ": " + ", ".join(
        f"{client.pid} (data in {client.data_directory!r})" for client in clients
    )


def _is_alive(client: LiveClient) -> bool:
    """Return whether that very process listens on its socket."""
    listener = _listener_pid(client.socket)
    if listener:
        return listener == client.pid
    if listener is None:
        return False
    try:
        os.kill(client.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # Not ours to ask; it exists.
    return True


def _listener_pid(path: str) -> int | None:
    """Return the id of the process that listens on a socket; 0: unknown; None: none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(path)
        except OSError as error:
            # A full queue of connections is a sign of life.
            is_full = error.errno == errno.EAGAIN or isinstance(error, TimeoutError)
            return 0 if is_full else None
        return _peer_pid(sock) or 0


def _host() -> str:
    return socket.gethostname().replace("/", "_") or "localhost"


# --- the client's side ---


@dataclass(frozen=True, slots=True)
class Hello:
    """A node's words about itself."""

    name: str  # jobs with the node "attached:NAME" are served by it
    pid: int
    version: str  # of the TaskSprint that attached it


class AttachedProcess(Connection):
    """A program that attached itself; made by `AttachServer`.

    It has the same methods as `program.ChildProcess`. It isn't our child, so we don't know how
    it ended. Nor do we get its stderr: that goes to the terminal that it was started from. Its
    own children are reached only if it leads a process group (an interactive shell starts it
    so).

    Args:
        stderr: A descriptor of its stderr, which belongs to this object; None: it has given none.
    """

    def __init__(
        self,
        sock: socket.socket,
        hello: Hello,
        number: int,
        *,
        on_data: Callable[[bytes], None],
        on_exit: Callable[[ExitReason], None],
        stderr: int | None = None,
    ) -> None:
        super().__init__(sock, on_data=on_data, on_exit=on_exit)
        self.hello = hello
        self._stderr = stderr
        self.number = number
        # A handle to the process, so that its id can't come to mean another one.
        self._pidfd = -1
        pid = _peer_pid(sock)
        self._pid = pid or hello.pid
        if pid and sys.platform == "linux":
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(pid)

    def deliver_early(self) -> None:
        """Deliver the data that has come already; only now may `on_exit` follow."""
        super().deliver_early()
        self.closed.add_done_callback(lambda _: self._ended())

    @property
    def pid(self) -> int:
        """The process id, as far as it is known."""
        return self._pid

    @property
    def running(self) -> bool:
        """Whether its connection is open."""
        return not self.closed.done()

    def tell(self, text: str) -> None:
        """Say something where the program was started, if nothing holds that up."""
        if self._stderr is None:
            return
        line = f"tasksprint: node {self.hello.name!r} {plain_line(text)}"
        data = line.encode(errors="replace")[:_TOLD_BYTES_MAX] + b"\n"
        poll = select.poll()
        poll.register(self._stderr, select.POLLOUT)
        with contextlib.suppress(OSError):  # Its terminal is gone: nobody waits for this.
            if poll.poll(0):
                os.write(self._stderr, data)

    async def stop(
        self, *, grace_s: float = 2.0, terminate_s: float = 2.0, why: str = "stopped"
    ) -> ExitReason:
        """As for any program; where it was started, it says so first."""
        self.tell(f"is ended: {why}")
        return await super().stop(grace_s=grace_s, terminate_s=terminate_s, why=why)

    def kill(self, why: str = "killed") -> None:
        """Kill the program now, and close its connection; `on_exit` follows."""
        if not self._why:
            self.tell(f"is killed: {why}")
        self._why = self._why or why
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        try:
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, 0)  # Fails if its id is free again.
            elif not self.running or self._pid <= 0:
                return
            if os.getpgid(self._pid) == self._pid:
                # An interactive shell gives each of its jobs a group; the program's
                # children are in it too.
                os.killpg(self._pid, number)
            else:
                os.kill(self._pid, number)
        except OSError:
            pass  # It has ended, or belongs to another user: its connection is closed anyway.
        finally:
            if number == signal.SIGKILL:
                self.close()

    def _ended(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        reason = ExitReason(
            code=None, signal=None, out_of_memory=None, stderr_tail="", why=self._why
        )
        self._exited.set_result(reason)
        self._on_exit(reason)  # It may have something to tell.
        if self._stderr is not None:
            os.close(self._stderr)
            self._stderr = None


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Callbacks for an attached program: its data and its end."""

    on_data: Callable[[bytes], None]
    on_exit: Callable[[ExitReason], None]
    on_left: Callable[[], None] | None = None  # It left while it was still being attached.


class AttachServer:
    """Accepts nodes on a client's socket; `async with` or `close()` ends it.

    Args:
        path: From `socket_path`.
        on_hello: Decides: returns the callbacks of the new program, or an error text,
            which is sent back.
        on_attached: Gets the program once it is attached and may be written to.
    """

    def __init__(
        self,
        path: Path,
        *,
        on_hello: Callable[[Hello], Callbacks | str],
        on_attached: Callable[[AttachedProcess], None],
    ) -> None:
        self._path = path
        self._on_hello = on_hello
        self._on_attached = on_attached
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._greetings: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None
        self._attached = 0

    async def start(self) -> None:
        """Listen.

        Raises:
            SettingsError: Another client uses this data directory, or the socket can't be made.
        """
        if _listener_pid(str(self._path)) is not None:
            raise SettingsError(
                f"another client already listens on {str(self._path)!r}",
                hint="give this one its own --data-dir",
            )
        try:
            self._path.unlink(missing_ok=True)  # what a killed client left behind
            self._listener.bind(str(self._path))
            os.chmod(self._path, 0o600)
            self._listener.listen(128)
        except OSError as error:
            raise SettingsError(
                f"can't listen on {str(self._path)!r}: {error.strerror or error}"
            ) from error
        self._listener.setblocking(False)
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    async def close(self) -> None:
        """Stop accepting; programs that are attached stay."""
        tasks = [*self._greetings]
        if self._accepting is not None:
            tasks.append(self._accepting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._path.unlink(missing_ok=True)  # Before closing: it is still ours.
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if len(self._greetings) >= _GREETINGS_MAX:
                # The others wait in the kernel's queue.
                await asyncio.wait(self._greetings, return_when=asyncio.FIRST_COMPLETED)
                continue
            try:
                sock, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                if error.errno != errno.ECONNABORTED:
                    await asyncio.sleep(0.5)  # Until something else is closed.
                continue
            task = loop.create_task(self._greet(sock))
            self._greetings.add(task)
            task.add_done_callback(self._greetings.discard)

    async def _greet(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        handed_over = False
        answer: Callbacks | str = ""
        descriptors: list[int] = []
        try:
            sock.setblocking(False)
            line = await asyncio.wait_for(_read_line(loop, sock, descriptors), HELLO_TIMEOUT_S)
            if not line:
                return  # Somebody looked whether we live (`live_clients`).
            try:
                hello = _decode_hello(line)
                answer = self._on_hello(hello)
            except RemoteProtocolError as error:
                answer = str(error)
            if isinstance(answer, str):
                await loop.sock_sendall(sock, _encode({"error": answer}))
                return
            self._attached += 1
            number = self._attached
            await loop.sock_sendall(sock, _encode({"attached": number}))
            program = AttachedProcess(
                sock,
                hello,
                number,
                on_data=answer.on_data,
                on_exit=answer.on_exit,
                stderr=descriptors.pop() if descriptors else None,
            )
            await loop.create_unix_connection(lambda: program, sock=sock)
            handed_over = True
            self._on_attached(program)
            program.deliver_early()
        except (OSError, asyncio.TimeoutError):  # two classes in Python 3.10
            pass  # It left, or said nothing: it has attached to nothing yet.
        except Exception as error:
            loop.call_exception_handler({"message": "attaching a node", "exception": error})
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            if not handed_over:
                sock.close()
                if isinstance(answer, Callbacks) and answer.on_left is not None:
                    answer.on_left()


async def _read_line(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, descriptors: list[int]
) -> bytes:
    """Return the first line, or what there is of it; the first descriptor with it is added.

    With each byte others may come, which nobody wants: they are closed at once.
    """
    line = b""
    while not line.endswith(b"\n") and len(line) <= HELLO_BYTES_MAX:
        try:
            data, ancillary, _, _ = sock.recvmsg(
                HELLO_BYTES_MAX + 1 - len(line), socket.CMSG_SPACE(_DESCRIPTOR_BYTES)
            )
        except BlockingIOError:
            await _readable(loop, sock)
            continue
        for level, kind, received in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = len(received) - len(received) % _DESCRIPTOR_BYTES
                for descriptor in array.array("i", received[:whole]):
                    if descriptors:
                        os.close(descriptor)
                        continue
                    os.set_inheritable(descriptor, False)
                    descriptors.append(descriptor)
        if not data:
            break
        line += data
    return line


async def _readable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    waiter: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    loop.add_reader(sock, wake)
    try:
        await waiter
    finally:
        loop.remove_reader(sock)


def _decode_hello(line: bytes) -> Hello:
    if len(line) > HELLO_BYTES_MAX:
        raise RemoteProtocolError(
            f"the hello line has more than {HELLO_BYTES_MAX} bytes, expected "
            '{"attach":NAME,"pid":PID,"version":TEXT}'
        )
    try:
        fields = json.loads(line)
        name, pid, version = fields["attach"], fields["pid"], fields["version"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RemoteProtocolError(
            f'the hello line is {line[:80]!r}, expected {{"attach":NAME,"pid":PID,"version":TEXT}}'
        ) from error
    is_pid = type(pid) is int and 0 <= pid < 2**31
    if not (isinstance(name, str) and is_pid and isinstance(version, str)):
        raise RemoteProtocolError(
            f"the hello line is {line[:80]!r}, expected two texts and a process id"
        )
    _check_name(name)
    return Hello(name, pid, version)


def _check_name(name: str) -> None:
    if not name.isprintable() or not 1 <= len(name.encode()) <= NAME_BYTES_MAX:
        raise RemoteProtocolError(
            f"node name {name[:80]!r}, expected 1 to {NAME_BYTES_MAX} printable bytes"
        )


def _encode(fields: dict[str, object]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _peer_pid(sock: socket.socket) -> int | None:
    """Return the process id at the other end, as the kernel knows it."""
    if sys.platform == "linux":
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid: int = struct.unpack("iii", credentials)[0]
        return pid or None  # 0: in another PID namespace
    return None


# --- the node's side ---


def attach_and_exec(
    argv: Sequence[str],
    *,
    name: str,
    version: str,
    socket_file: str,
    env: Mapping[str, str] | None = None,
    program: str | None = None,
    note: str = "",
    timeout_s: float = 10.0,
) -> NoReturn:
    """Attach to the client at `socket_file` and become `argv`; doesn't return.

    Args:
        argv: As `command_line` makes it.
        name: Jobs find this node by it.
        program: `argv` in messages, as its user knows it.
        note: A line for stderr once the client has taken the node.

    Raises:
        PeerUnreachable: The client doesn't answer.
        Refused: The client says no; with its reason.
        NodeFailed: `argv` can't be executed.
    """
    _check_name(name)
    sock = _attach(socket_file, name, version, timeout_s)
    environment = dict(os.environ if env is None else env)
    if note:
        with contextlib.suppress(OSError, ValueError):  # stderr may be closed: nobody reads it.
            sys.stderr.write(f"{plain_line(note)}\n")
            sys.stderr.flush()
    try:
        # Blocking, since the program expects it: the flag belongs to the socket, and
        # survives dup2 and exec.
        sock.setblocking(True)
        sys.stdout.flush()
        os.dup2(sock.fileno(), 0)
        os.dup2(sock.fileno(), 1)
        os.execvpe(argv[0], list(argv), environment)
    except OSError as error:
        raise explain_start_error(
            error, argv[0], name=program, cwd=None, what="node", failure=NodeFailed
        ) from error


def _with_descriptor(descriptor: int) -> tuple[int, int, bytes]:
    """Return the part of a message that hands a descriptor over."""
    rights = array.array("i", [descriptor]).tobytes()
    return (socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)


def _attach(socket_file: str, name: str, version: str, timeout_s: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout_s)
    try:
        sock.connect(socket_file)
        hello = _encode({"attach": name, "pid": os.getpid(), "version": version})
        sent = sock.sendmsg([hello], [_with_descriptor(2)])
        if sent < len(hello):
            sock.sendall(hello[sent:])
        # Byte by byte: the first task follows the line, for the program to read.
        line = b""
        while not line.endswith(b"\n") and len(line) < HELLO_BYTES_MAX:
            data = sock.recv(1)
            if not data:
                break
            line += data
    except OSError as error:
        sock.close()
        raise PeerUnreachable(
            f"the client at {socket_file!r} doesn't answer: {error.strerror or error}",
            hint="is it still running?",
        ) from error
    try:
        answer = json.loads(line)
        if "attached" in answer:
            return sock
        text = str(answer["error"])
    except (ValueError, TypeError, KeyError) as error:
        sock.close()
        raise PeerUnreachable(
            f"the client at {socket_file!r} answered {line[:80]!r}, "
            'expected {"attached":N} or {"error":TEXT}'
        ) from error
    sock.close()
    raise Refused(f"the client refuses node {name!r}: {text}")
