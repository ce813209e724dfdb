"""Nodes that attach by hand: real sockets, and real programs that become nodes."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import termios
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from tasksprint.errors import (
    NodeFailed,
    PeerUnreachable,
    Refused,
    RemoteProtocolError,
    SettingsError,
    UsageError,
)
from tasksprint.process import attach as attach_module
from tasksprint.process.attach import (
    AttachedProcess,
    AttachServer,
    Callbacks,
    Hello,
    LiveClient,
    attach_and_exec,
    find_client,
    live_clients,
    register_client,
    socket_path,
)
from tasksprint.process.program import ExitReason
from tests.net.support import until
from tests.processes import wait_gone

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]


def run(scenario: Callable[[], Awaitable[T]]) -> T:
    async def bounded() -> T:
        return await asyncio.wait_for(scenario(), 100)

    return asyncio.run(bounded())


class Client:
    """A client's side: a server, and what its nodes did."""

    def __init__(self, path: Path, refusal: str = "") -> None:
        self.hellos: list[Hello] = []
        self.programs: list[AttachedProcess] = []
        self.data = b""
        self.exits: list[ExitReason] = []
        self._refusal = refusal
        self._changed = asyncio.Event()
        self.server = AttachServer(path, on_hello=self.on_hello, on_attached=self.on_attached)

    def on_hello(self, hello: Hello) -> Callbacks | str:
        self.hellos.append(hello)
        return self._refusal or Callbacks(on_data=self.on_data, on_exit=self.on_exit)

    def on_attached(self, program: AttachedProcess) -> None:
        self.programs.append(program)
        self._changed.set()

    def on_data(self, data: bytes) -> None:
        self.data += data
        self._changed.set()

    def on_exit(self, reason: ExitReason) -> None:
        self.exits.append(reason)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), 60)


NODE_CODE = """
import os, sys
from tasksprint.process.attach import attach_and_exec
os.chdir("/")
attach_and_exec(
    ["/bin/sh", "-c", sys.argv[2]], name="gpu", version="1", socket_file=sys.argv[1],
    env={"PATH": "/usr/bin:/bin", "GREETING": "hello"})
"""


def start_node(path: Path, script: str, stderr: int | None = None) -> subprocess.Popen[bytes]:
    # In a group of its own, as an interactive shell starts it.
    return subprocess.Popen(
        [sys.executable, "-c", NODE_CODE, str(path), script],
        cwd=ROOT,
        stderr=stderr,
        start_new_session=True,
    )


@pytest.mark.slow
def test_node_becomes_the_program_on_the_same_socket(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = Client(tmp_path / "s")
        await client.server.start()
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
        node = start_node(
            tmp_path / "s", 'echo "$GREETING $$ $PWD"; while read x; do echo "got $x"; done'
        )
        await client.until(lambda: b"\n" in client.data)
        (program,) = client.programs
        # No process stands between, and the kernel knows who it is.
        assert client.data == b"hello %d /\n" % node.pid
        assert program.pid == node.pid == client.hellos[0].pid
        assert (program.number, client.hellos[0].name) == (1, "gpu")
        program.write(b"task\n")
        await client.until(lambda: client.data.endswith(b"got task\n"))
        assert program.running
        reason = await program.stop()
        assert client.exits == [reason]
        assert reason.describe() == "closed its connection (stopped)"
        assert await asyncio.to_thread(node.wait, 10) == 0
        await client.server.close()
        assert not (tmp_path / "s").exists()

    run(scenario)


@pytest.mark.slow
def test_attached_program_can_be_killed(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = Client(tmp_path / "s")
        await client.server.start()
        script = "trap '' TERM; sleep 999 & echo $!; wait"
        node = start_node(tmp_path / "s", script, stderr=subprocess.PIPE)
        await client.until(lambda: client.data.endswith(b"\n"))
        client.programs[0].kill("timeout\x1b[2J")
        await client.until(lambda: client.exits != [])
        assert client.exits[0].describe() == "closed its connection (timeout\x1b[2J)"
        # Whoever started it is told there, and only once.
        assert node.stderr is not None
        told = await asyncio.to_thread(node.stderr.read)
        assert told == b"tasksprint: node 'gpu' is killed: timeout\\x1b[2J\n"
        assert await asyncio.to_thread(node.wait, 10) == -signal.SIGKILL
        wait_gone(int(client.data))  # and what it had started
        client.programs[0].kill("again")
        await client.server.close()

    run(scenario)


def test_who_does_not_read_holds_nothing_up(tmp_path: Path) -> None:
    """A terminal that was stopped, or a pipe that is full, or whose reader has left."""

    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, bytes(65_536))
        os.set_blocking(writing, True)
        program = AttachedProcess(
            ours,
            Hello("gpu", 0, "1"),
            1,
            on_data=lambda data: None,
            on_exit=lambda reason: None,
            stderr=writing,
        )
        program.tell("is killed: it is")
        os.close(reading)
        program.tell("is killed: it is")
        os.close(writing)
        program.tell("is killed: it is")
        for sock in (ours, theirs):
            sock.close()

    run(scenario)


@pytest.mark.slow
def test_program_gets_a_socket_that_blocks(tmp_path: Path) -> None:
    """The flag would survive exec, and break programs that read with timeouts of none."""

    async def scenario() -> bytes:
        client = Client(tmp_path / "s")
        await client.server.start()
        code = "import os; print(os.get_blocking(0), os.get_blocking(1))"
        node = start_node(tmp_path / "s", f"exec {sys.executable} -S -c '{code}'")
        await client.until(lambda: client.exits != [])
        await asyncio.to_thread(node.wait, 10)
        await client.server.close()
        return client.data

    assert run(scenario) == b"True True\n"


async def converse(path: Path, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(sent)
    answer = await reader.readline()
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (
            b"hello\n",
            'the hello line is b\'hello\\n\', expected {"attach":NAME,"pid":PID,"version":TEXT}',
        ),
        (
            b'{"attach":"x","pid":"1","version":"1"}\n',
            'the hello line is b\'{"attach":"x","pid":"1","version":"1"}\\n\', '
            "expected two texts and a process id",
        ),
        (
            b'{"attach":"","pid":1,"version":"1"}\n',
            "node name '', expected 1 to 200 printable bytes",
        ),
        (
            b"x" * 5_000,
            "the hello line has more than 4096 bytes, expected "
            '{"attach":NAME,"pid":PID,"version":TEXT}',
        ),
    ],
)
def test_wrong_hello_is_answered_with_what_is_wrong(
    tmp_path: Path, sent: bytes, error: str
) -> None:
    async def scenario() -> bytes:
        client = Client(tmp_path / "s")
        await client.server.start()
        answer = await converse(tmp_path / "s", sent)
        await client.server.close()
        assert not client.hellos
        return answer

    assert json.loads(run(scenario)) == {"error": error}


def test_client_may_refuse_a_node(tmp_path: Path) -> None:
    async def scenario() -> bytes:
        client = Client(tmp_path / "s", refusal="no job wants it")
        await client.server.start()
        answer = await converse(tmp_path / "s", b'{"attach":"x","pid":1,"version":"1"}\n')
        await client.server.close()
        return answer

    assert run(scenario) == b'{"error":"no job wants it"}\n'


def test_hello_in_pieces_is_understood_and_silence_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        client = Client(tmp_path / "s")
        await client.server.start()
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        for byte in b'{"attach":"x","pid":1,"version":"1"}\n':
            writer.write(bytes([byte]))
            await writer.drain()
        assert await reader.readline() == b'{"attached":1}\n'
        monkeypatch.setattr(attach_module, "HELLO_TIMEOUT_S", 0.05)
        silent_reader, silent = await asyncio.open_unix_connection(str(tmp_path / "s"))
        assert await silent_reader.read() == b""
        silent.close()
        writer.write(b"data")
        await client.until(lambda: client.data == b"data")
        writer.close()
        await client.until(lambda: client.exits != [])
        await client.server.close()

    run(scenario)


def unread_bytes(sock: socket.socket) -> int:
    """Return what was sent over this socket and isn't read yet: 0 if nothing is left."""
    left = array.array("i", [0])
    fcntl.ioctl(sock, termios.TIOCOUTQ, left)
    return left[0]


def test_descriptors_that_nobody_wants_are_closed_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = Client(tmp_path / "s")
        await client.server.start()
        hello = b'{"attach":"gpu","pid":1,"version":"1"}\n'
        told, stderr = socket.socketpair()
        with socket.socket(socket.AF_UNIX) as node, told, stderr, open(os.devnull) as other:
            node.connect(str(tmp_path / "s"))
            before = psutil.Process().num_fds()
            wanted = [attach_module._with_descriptor(stderr.fileno())]
            unwanted = [attach_module._with_descriptor(other.fileno())]
            for at in range(len(hello) - 1):
                node.sendmsg([hello[at : at + 1]], unwanted if at else wanted)
            await until(lambda: not unread_bytes(node))
            # Its connection, and the first one.
            assert psutil.Process().num_fds() == before + 2
            node.sendall(hello[-1:])
            await client.until(lambda: bool(client.programs))
            client.programs[0].tell("was heard")
            assert told.recv(100) == b"tasksprint: node 'gpu' was heard\n"
            client.programs[0].close()
        await client.server.close()

    run(scenario)


def test_connections_that_say_no_hello_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach_module, "_GREETINGS_MAX", 4)

    async def scenario() -> None:
        client = Client(tmp_path / "s")
        loop = asyncio.get_running_loop()
        accept = loop.sock_accept
        heard: list[int] = []

        async def counted(listener: socket.socket) -> tuple[socket.socket, Any]:
            heard.append(len(client.server._greetings))
            return await accept(listener)

        monkeypatch.setattr(loop, "sock_accept", counted)
        await client.server.start()
        silent = [socket.socket(socket.AF_UNIX) for _ in range(9)]
        for sock in silent:
            sock.connect(str(tmp_path / "s"))
        await until(lambda: len(client.server._greetings) >= 4)
        assert heard == [0, 1, 2, 3], "a fifth is accepted when one of them is gone"
        with socket.socket(socket.AF_UNIX) as node:
            node.connect(str(tmp_path / "s"))
            node.sendall(b'{"attach":"gpu","pid":1,"version":"1"}\n')
            for sock in silent:  # Whose turn it is then comes.
                sock.close()
            await client.until(lambda: bool(client.programs))
            client.programs[0].close()
        assert max(heard) == 3
        await client.server.close()

    run(scenario)


def test_node_that_leaves_at_once_is_attached_before_it_is_gone(tmp_path: Path) -> None:
    async def scenario() -> list[str]:
        told: list[str] = []
        gone = asyncio.Event()

        def on_exit(reason: ExitReason) -> None:
            told.append("exit")
            gone.set()

        server = AttachServer(
            tmp_path / "s",
            on_hello=lambda hello: Callbacks(
                on_data=lambda data: told.append(data.decode()), on_exit=on_exit
            ),
            on_attached=lambda program: told.append("attached"),
        )
        await server.start()
        loop = asyncio.get_running_loop()
        connect = loop.create_unix_connection

        async def slow_connect(*arguments: object, **named: object) -> object:
            result: Any = await connect(*arguments, **named)  # type: ignore[arg-type]
            while not result[1].closed.done():  # It has read what came, and its end.
                await asyncio.sleep(0)
            return result

        loop.create_unix_connection = slow_connect  # type: ignore[assignment, method-assign]
        with socket.socket(socket.AF_UNIX) as node:
            node.connect(str(tmp_path / "s"))
            node.sendall(b'{"attach":"x","pid":1,"version":"1"}\n')
            node.setblocking(False)
            assert await loop.sock_recv(node, 100) == b'{"attached":1}\n'
            node.sendall(b"ready")
        await gone.wait()
        await server.close()
        return told

    assert run(scenario) == ["attached", "ready", "exit"]


def test_second_client_on_the_same_directory_is_refused_and_a_leftover_is_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left:  # as after a kill -9
        left.bind(str(path))

    async def scenario() -> str:
        first = Client(path)
        await first.server.start()
        second = Client(path)
        with pytest.raises(SettingsError) as caught:
            await second.server.start()
        await first.server.close()
        return str(caught.value)

    assert run(scenario) == (
        f"another client already listens on '{path}'; give this one its own --data-dir"
    )


def test_place_where_no_socket_can_be_made(tmp_path: Path) -> None:
    async def scenario() -> None:
        await Client(tmp_path / "gone" / "s").server.start()

    with pytest.raises(SettingsError) as caught:
        run(scenario)
    assert str(caught.value) == (f"can't listen on '{tmp_path}/gone/s': No such file or directory")


# --- the node's side ---


def attach(path: Path, *, answer: bytes | None = None, name: str = "gpu") -> str:
    """Attach where one who only says `answer` listens, and return the error."""
    listener = socket.socket(socket.AF_UNIX)

    def serve() -> None:
        connection, _ = listener.accept()
        connection.recv(4096)
        connection.sendall(answer or b"")
        connection.close()

    thread = threading.Thread(target=serve)
    if answer is not None:
        listener.bind(str(path))
        listener.listen()
        thread.start()
    try:
        with pytest.raises((PeerUnreachable, Refused, NodeFailed, RemoteProtocolError)) as caught:
            attach_and_exec(
                ["/nothing"],
                name=name,
                version="1",
                socket_file=str(path),
                timeout_s=5,
            )
    finally:
        if answer is not None:
            thread.join()
        listener.close()
    return f"{type(caught.value).__name__}: {caught.value}"


def test_client_that_is_not_there(tmp_path: Path) -> None:
    assert attach(tmp_path / "s") == (
        f"PeerUnreachable: the client at '{tmp_path}/s' doesn't answer: "
        "No such file or directory; is it still running?"
    )


def test_client_that_says_no(tmp_path: Path) -> None:
    assert attach(tmp_path / "s", answer=b'{"error":"no job wants it"}\n') == (
        "Refused: the client refuses node 'gpu': no job wants it"
    )


@pytest.mark.parametrize("answer", [b"", b"what?\n", b"[]\n", b'{"x":1}\n'])
def test_client_that_is_none(tmp_path: Path, answer: bytes) -> None:
    assert attach(tmp_path / "s", answer=answer) == (
        f"PeerUnreachable: the client at '{tmp_path}/s' answered {answer!r}, "
        'expected {"attached":N} or {"error":TEXT}'
    )


def test_node_with_an_impossible_name(tmp_path: Path) -> None:
    assert attach(tmp_path / "s", name="a\nb") == (
        "RemoteProtocolError: node name 'a\\nb', expected 1 to 200 printable bytes"
    )


@pytest.mark.slow
def test_program_that_cannot_be_executed_says_so_after_attaching(tmp_path: Path) -> None:
    code = NODE_CODE.replace('["/bin/sh", "-c", sys.argv[2]]', '["/nothing"]')

    async def scenario() -> bytes:
        client = Client(tmp_path / "s")
        await client.server.start()
        node = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", code, str(tmp_path / "s")],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            timeout=10,
            check=False,
        )
        await client.until(lambda: client.exits != [])
        await client.server.close()
        return node.stderr

    assert run(scenario).endswith(b"NodeFailed: node '/nothing' wasn't found\n")


# --- where the socket is, and who has one ---


def test_socket_is_in_the_data_directory_if_its_path_fits(tmp_path: Path) -> None:
    short = Path("/tmp") / "d"
    assert socket_path(short) == short.resolve() / "nodes.sock"
    long = tmp_path / ("x" * 100)
    found = socket_path(long, {"XDG_RUNTIME_DIR": "/not/there", "TMPDIR": "/tmp"})
    assert found.parent == Path(f"/tmp/tasksprint-{os.getuid()}")
    assert len(os.fsencode(found)) <= 100
    assert found == socket_path(long, {"TMPDIR": "/tmp"})
    assert found != socket_path(tmp_path / ("y" * 100), {"TMPDIR": "/tmp"})


class Registry:
    """A state directory in which clients of made-up process ids stand."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.listening: dict[str, int] = {}  # socket -> process id, or 0: not known
        self._listeners: list[socket.socket] = []

    def add(self, monkeypatch: pytest.MonkeyPatch, pid: int, *, is_alive: bool = True) -> Path:
        data = self.directory / f"data{pid}"
        listener = socket.socket(socket.AF_UNIX)
        path = self.directory / f"{pid}.sock"
        listener.bind(str(path))
        if is_alive:
            listener.listen()
            self._listeners.append(listener)
            self.listening[str(path)] = pid
        else:
            listener.close()
        return self.register(monkeypatch, pid, data, path)

    def register(self, monkeypatch: pytest.MonkeyPatch, pid: int, data: Path, path: Path) -> Path:
        with monkeypatch.context() as patched:
            patched.setattr(os, "getpid", lambda: pid)
            return register_client(self.directory, data, path)

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    made = Registry(tmp_path)
    monkeypatch.setattr(
        attach_module, "_peer_pid", lambda sock: made.listening[sock.getpeername()]
    )
    return made


def test_only_live_client_is_found(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = registry.directory
    registry.add(monkeypatch, 22)
    dead = registry.add(monkeypatch, 11, is_alive=False)
    expected = LiveClient(22, str(directory / "data22"), str(directory / "22.sock"))
    assert find_client(directory) == expected
    assert find_client(directory, "22") == expected
    assert find_client(directory, str(directory / "data22")) == expected
    assert not dead.exists()
    with pytest.raises(UsageError) as caught:
        find_client(directory, "33")
    assert str(caught.value) == (
        f"no client '33' runs on this machine: 22 (data in '{directory}/data22')"
    )
    registry.close()


def test_client_that_was_killed_is_none_though_its_socket_answers_again(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next client on its data directory listens on the same socket."""
    directory = registry.directory
    killed = registry.add(monkeypatch, 11)
    left = killed.read_text(encoding="utf-8")
    path, data = directory / "11.sock", directory / "data11"
    registry.listening[str(path)] = 22
    restarted = registry.register(monkeypatch, 22, data, path)
    assert not killed.exists(), "who starts tidies up"
    expected = LiveClient(22, str(data), str(path))
    assert find_client(directory) == expected
    killed.write_text(left, encoding="utf-8")
    assert live_clients(directory) == [expected], "nor if its number came to be another process"
    assert (killed.exists(), restarted.exists()) == (False, True)
    registry.close()


def test_where_nobody_says_who_listens_the_newest_client_of_a_directory_counts(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = registry.directory
    path, data = directory / "s.sock", directory / "data"
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    mine, parent = os.getpid(), os.getppid()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        registry.listening[str(path)] = 0
        files = {
            pid: registry.register(monkeypatch, pid, data, path)
            for pid in (ended.pid, parent, mine)
        }
        texts = {
            pid: file.read_text(encoding="utf-8") for pid, file in files.items() if file.exists()
        }
        assert list(texts) == [mine]
        for newest, other in ((mine, parent), (parent, mine)):
            for pid, seconds in ((newest, 2_000), (other, 1_000), (ended.pid, 3_000)):
                files[pid].write_text(
                    texts[mine].replace(f'"pid": {mine}', f'"pid": {pid}'), encoding="utf-8"
                )
                os.utime(files[pid], (seconds, seconds))
            assert [client.pid for client in live_clients(directory)] == [newest]
            assert [pid for pid, file in files.items() if file.exists()] == [newest]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says who listens")
def test_this_process_is_found_by_its_id_and_directory(tmp_path: Path) -> None:
    path, data = tmp_path / "s.sock", tmp_path / "data"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        register_client(tmp_path, data, path)
        expected = LiveClient(os.getpid(), str(data), str(path))
        for wanted in (None, str(os.getpid()), str(data)):
            assert find_client(tmp_path, wanted) == expected


def test_no_client_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        find_client(tmp_path)
    assert str(caught.value) == (
        "no client runs on this machine (as this user); start one with 'tasksprint client'"
    )


def test_several_clients_are_listed(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = registry.directory
    registry.add(monkeypatch, 22)
    registry.add(monkeypatch, 11)
    with pytest.raises(UsageError) as caught:
        find_client(directory)
    assert str(caught.value) == (
        "2 clients run on this machine: "
        f"11 (data in '{directory}/data11'), 22 (data in '{directory}/data22'); "
        "say which, by its process id or data directory"
    )
    registry.close()


def test_clients_of_other_machines_in_a_shared_home_are_left_alone(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(socket, "gethostname", lambda: "other")
        theirs = registry.add(monkeypatch, 5)
    registry.close()
    (theirs.parent / "nonsense.json").write_text("{")
    (theirs.parent / f"{socket.gethostname()}-7.json").write_text("{}")
    assert live_clients(registry.directory) == []
    assert theirs.exists()
