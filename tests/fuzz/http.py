"""What strangers send to the ports of a coordinator and a client: anything but a proof.

Real processes. A conversation is some bytes, sent in one piece or in many, and an end: read
the answer, hang up, reset, close one half, or stay. Up to `_OPEN_MAX` that stay are held.

Checked, after every `_CHECK_EACH` conversations: both roles live, `/healthz` is answered
within `_ANSWER_S`, no answer was 500, their logs hold lines of the one form and nothing
else, no line of level ERROR, and their resident memory stays below `PEAK_MIB_MAX`.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from random import Random
from unittest import mock

from tasksprint.cli.run import PrivateCluster
from tasksprint.net.addresses import parse_address
from tasksprint.net.keys import create_key
from tasksprint.net.tokens import Scope, make_token
from tasksprint.settings import Settings
from tests.fuzz.outcome import Outcome, input_random
from tests.torture.machines import copy_of_checkout

__all__ = [
    "NAME",
    "Target",
    "changed",
    "conversation",
    "private_cluster",
    "run",
    "wrong_with",
]

NAME = "http"

_OPEN_MAX = 300
_CHECK_EACH = 100
_ANSWER_S = 5.0
_READ_S = 0.05  # how long a stranger listens
_LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR) [^\x00-\x1f\x7f]{1,2000}"
)
_PATHS = (
    *("/", "/healthz", "/readyz", "/metrics", "/v1/status", "/v1/jobs", "/v1/jobs/1"),
    *("/v1/jobs/1/tasks/0", "/v1/jobs/1/log", "/v1/jobs/1/cancel", "/v1/clients", "/v1/members"),
    *("/v1/view?cid=1&since=0&wait_ms=1000&incarnation=x", "/v1/archives", "/v1/archives/lacking"),
    *("/v1/archives/0", "/v1/programs", "/v1/commands", "/v1/identity", "/v1/stop", "/v1/values"),
    *("/v1/values/1/2", "/v1/values/1/2/%ff", "/v1/logs/1", "/v1/digest?slot=1", "/v1/mirror"),
    *("/v1/replica?source=1&target=1&nonce=0", "*", "http://a/healthz", "//", "/%00", "/\xff"),
)
_METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "CONNECT", "PRI", "get", "")
_NUMBERS = (
    *("0", "1", "9", "65536", "2097152", "83886080", "9" * 19, "9" * 20, "9" * 5_000, "-1", "+1"),
    *("0x10", "1_0", " 1", "1, 1", "\u0661".encode().decode("latin-1"), "\u00b2", "", "1e3"),
)
_TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(193))
_STAYS, _READS, _HANGS_UP, _RESETS, _CLOSES_HALF = range(5)


class Target:
    """One role's port, process and log."""

    def __init__(self, name: str, address: str, pid: int, log: Path) -> None:
        self.name = name
        self.address = address
        self._pid = pid
        self._log = log
        self._seen = 0  # bytes of the log

    def check(self) -> list[str]:
        """Return what is wrong with the role now."""
        wrong = [f"{self.name} logged {line[:300]!r}" for line in self._strange_lines()]
        try:
            with socket.create_connection(parse_address(self.address), _ANSWER_S) as connection:
                request = f"GET /healthz HTTP/1.1\r\nHost: {self.address}\r\n\r\n"
                connection.sendall(request.encode())
                answer = connection.recv(4096)
        except OSError as error:
            return [*wrong, f"{self.name} doesn't answer: {error!r}"]
        if not answer.startswith(b"HTTP/1.1 200 "):
            wrong.append(f"{self.name} answered /healthz with {answer[:200]!r}")
        return wrong

    def peak_mib(self) -> float:
        """Return the most resident memory that the process had; 0 if it is gone."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self._pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
        return 0.0

    def _strange_lines(self) -> list[str]:
        data = self._log.read_bytes()
        end = data.rfind(b"\n") + 1
        lines = data[self._seen : end].decode(errors="surrogateescape").splitlines()
        self._seen = end
        return [line for line in lines if not _LINE.fullmatch(line) or " ERROR " in line]


def run(seconds: float, seed: int) -> Outcome:
    """Talk to a coordinator and a client for so long."""
    findings: list[str] = []
    number = 0
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ts-fuzz-")))
        targets = stack.enter_context(private_cluster(folder))
        token = make_token(create_key(folder / "cluster" / "key"), Scope.READ, 24 * 3600)
        held: deque[socket.socket] = deque()
        stack.callback(lambda: [each.close() for each in held])
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s and not findings:
            number += 1
            random = input_random(seed, number)
            target = random.choice(targets)
            pieces, end = conversation(random, target.address, token)
            answer = _talk(target.address, pieces, end, held)
            if answer.startswith(b"HTTP/1.1 500"):
                findings.append(f"input {number}: {target.name} answered {answer[:300]!r}")
            if number % _CHECK_EACH == 0:
                findings += wrong_with(targets, number)
        findings += wrong_with(targets, number)
        peak_mib = max(each.peak_mib() for each in targets)
    return Outcome(NAME, number, findings, peak_mib)


@contextlib.contextmanager
def private_cluster(folder: Path) -> Iterator[list[Target]]:
    """Run a coordinator and a client, with all of their files in a folder."""
    environment = {"XDG_STATE_HOME": str(folder / "state")}
    private = PrivateCluster(
        coordinators=1,
        clients=1,
        nodes=1,
        keep=folder / "cluster",
        command=copy_of_checkout(folder / "code"),
    )
    with mock.patch.dict("os.environ", environment), private:
        yield _targets(private)


def wrong_with(targets: list[Target], number: int) -> list[str]:
    """Return what is wrong with the roles after so many inputs."""
    return [f"input {number}: {what}" for target in targets for what in target.check()]


def _targets(private: PrivateCluster) -> list[Target]:
    cluster = private.connect(Settings())
    ends_s = time.monotonic() + 30
    clients: list[dict[str, str]] = []
    while not clients:
        assert time.monotonic() < ends_s, "the client doesn't join"
        time.sleep(0.05)
        clients = cluster.request("GET", "/v1/clients").json()
    addresses = {"coordinator-1": private.addresses[0], "client-1": clients[0]["address"]}
    return [
        Target(name, address, private.pid(name), private.directory / f"{name}.log")
        for name, address in addresses.items()
    ]


def conversation(random: Random, address: str, token: str) -> tuple[list[bytes], int]:
    """Make up what a stranger sends, in pieces, and how it ends."""
    kind = random.randrange(10)
    if kind == 0:
        data = random.choice([_TLS_HELLO, b"", b"\0", b"\r\n" * 50, random.randbytes(300)])
    elif kind == 1:
        data = _head(random, address, token) * random.randint(2, 200)  # pipelined
    elif kind == 2:
        filler = random.choice([b"a", b"a: b\r\n", b" ", b"\r\n", b"%00", b"0"])
        data = _head(random, address, token)[:-2] + filler * random.choice([3_000, 100_000])
    else:
        data = _head(random, address, token) + _body(random)
    if random.randrange(3) == 0:
        data = changed(data, random)
    pieces = [data]
    if len(data) < 2_000 and random.randrange(4) == 0:
        cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.randint(1, 8)))
        pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return pieces, random.choice([_STAYS, _READS, _READS, _HANGS_UP, _RESETS, _CLOSES_HALF])


def _head(random: Random, address: str, token: str) -> bytes:
    method = random.choice(_METHODS[:3] if random.randrange(4) else _METHODS)
    version = random.choice(["1.1", "1.1", "1.1", "1.0", "0.9", "2.0", "9" * 30])
    lines = [f"{method} {random.choice(_PATHS)} HTTP/{version}"]
    if random.randrange(8):
        lines.append(f"Host: {random.choice([address, address, address, 'localhost', 'a:b', ''])}")
    if random.randrange(2):
        number = random.choice(_NUMBERS)
        lines.append(random.choice(["Content-Length", "content-length"]) + f": {number}")
    digits = "0123456789abcdef"
    hexes = ["".join(random.choices(digits, k=k)) for k in (32, 64, 64)]
    for line in (
        f"Authorization: TaskSprint life={hexes[0][:16]},nonce={hexes[0]},body=,mac={hexes[1]}",
        f"Authorization: Bearer {token}",
        "Authorization: " + random.choice(["Basic YTpi", "Bearer \xb2.0", "Bearer", "x" * 5_000]),
        "Transfer-Encoding: " + random.choice(["chunked", "gzip", "chunked, chunked", "identity"]),
        f"Body-SHA256: {hexes[2]}",
        "Expect: 100-continue",
        "Connection: " + random.choice(["close", "keep-alive", "upgrade", "Upgrade, close"]),
        "Upgrade: " + random.choice(["tasksprint-replica", "websocket", "h2c", ""]),
        "Range: bytes=" + random.choice(["0-", "-1", f"{'9' * 5_000}-", "\xb2-", "5-2", "a"]),
        "Origin: " + random.choice([f"http://{address}", "http://a", "null", "\xff"]),
    ):
        if random.randrange(5) == 0:
            lines.append(line)
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _body(random: Random) -> bytes:
    match random.randrange(6):
        case 0:
            return b"x"
        case 1:
            return b"x" * random.choice([9, 70_000, 300_000])
        case 2:
            size = random.choice([b"3", b"ffffffffffffffff", b"-1", b"f" * 5_000, b"3;a=b"])
            return size + b"\r\nabc\r\n0\r\n\r\n"
        case 3:
            return b"5\r\nhello\r\n0\r\n" + b"A: b\r\n" * random.choice([0, 1, 10_000]) + b"\r\n"
        case _:
            return b""


def changed(data: bytes, random: Random) -> bytes:
    """Change, drop, double, insert or cut off a few bytes."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(changed) + 1)
        match random.randrange(5):
            case 0:
                changed[at : at + 1] = random.randbytes(1)
            case 1:
                del changed[at : at + random.randint(1, 20)]
            case 2:
                changed[at:at] = changed[at : at + random.randint(1, 20)]
            case 3:
                changed[at:at] = random.choice([b"\r\n", b"\0", b"0", b": ", b"\xff", b"/", b"%"])
            case _:
                del changed[at:]
    return bytes(changed)


def _talk(address: str, pieces: list[bytes], end: int, held: deque[socket.socket]) -> bytes:
    """Send the pieces and end; return what was answered, as far as that was read."""
    connection = socket.socket()
    connection.settimeout(_ANSWER_S)
    answer = b""
    # A port that doesn't take connections is found by `check`.
    with contextlib.suppress(OSError):
        connection.connect(parse_address(address))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
        if end == _CLOSES_HALF:
            connection.shutdown(socket.SHUT_WR)
        if end in (_READS, _CLOSES_HALF):
            connection.settimeout(_READ_S)
            answer = connection.recv(65536)
        elif end == _RESETS:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif end == _STAYS:
            held.append(connection)
            if len(held) > _OPEN_MAX:
                held.popleft().close()
            return answer
    connection.close()
    return answer
