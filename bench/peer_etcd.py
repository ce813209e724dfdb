"""Three etcd members on loopback with their defaults, to be measured beside us."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from bench.cluster import free_ports
from tasksprint.process.program import die_with_parent

__all__ = ["MISSING", "Etcd", "etcd_command", "put_body", "put_request"]

MISSING = "etcd is not installed (Debian: etcd-server)"
_PATIENCE_S = 60.0
_VALUE = base64.b64encode(base64.b64encode(os.urandom(192))).decode()  # 256 bytes of value


def etcd_command() -> str | None:
    """Return the program, or None if it isn't installed."""
    return shutil.which("etcd")


def put_body(key: str) -> bytes:
    """Return the body of a put of 256 bytes, for the gateway's JSON API."""
    return json.dumps({"key": base64.b64encode(key.encode()).decode(), "value": _VALUE}).encode()


def put_request(key: str) -> bytes:
    """Return a whole request that puts 256 bytes."""
    body = put_body(key)
    head = (
        "POST /v3/kv/put HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Etcd:
    """The cluster; a context manager."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._directory = Path()
        self._processes: list[subprocess.Popen[bytes]] = []
        self.ports: list[int] = []
        self._peer_ports: list[int] = []

    def __enter__(self) -> Etcd:
        self._directory = Path(tempfile.mkdtemp(prefix="bench-etcd-"))
        ports = free_ports(6)
        self.ports, self._peer_ports = ports[:3], ports[3:]
        try:
            self._processes = [self._start(index) for index in range(3)]
            self.steady_leader()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def pids(self) -> list[int]:
        """The members' processes."""
        return [process.pid for process in self._processes]

    def kill(self, index: int) -> None:
        """Kill a member with SIGKILL."""
        self._processes[index].kill()
        self._processes[index].wait()

    def restart(self, index: int) -> None:
        """Start a killed member again."""
        self._processes[index] = self._start(index)

    def pause(self, index: int) -> None:
        """Stop a member with SIGSTOP."""
        self._processes[index].send_signal(signal.SIGSTOP)

    def resume(self, index: int) -> None:
        """Let a stopped member go on."""
        self._processes[index].send_signal(signal.SIGCONT)

    def steady_leader(self) -> int:
        """Wait until all members agree on a leader and are level; return its index."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError, KeyError):
                found = [self._status(port) for port in self.ports]
                leaders = {one["leader"] for one in found}
                levels = [int(one["raftIndex"]) for one in found]
                if len(leaders) == 1 and max(levels) - min(levels) < 5 and leaders != {"0"}:
                    ids = [one["header"]["member_id"] for one in found]
                    return int(ids.index(leaders.pop()))
            time.sleep(0.05)
        raise SystemExit("etcd's members don't agree on a leader")

    def _status(self, port: int) -> dict[str, Any]:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v3/maintenance/status", b"{}")
        with urllib.request.urlopen(request, timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def _start(self, index: int) -> subprocess.Popen[bytes]:
        members = ",".join(f"m{n}=http://127.0.0.1:{p}" for n, p in enumerate(self._peer_ports))
        client = f"http://127.0.0.1:{self.ports[index]}"
        peer = f"http://127.0.0.1:{self._peer_ports[index]}"
        words = {
            "--name": f"m{index}",
            "--data-dir": str(self._directory / f"m{index}"),
            "--listen-client-urls": client,
            "--advertise-client-urls": client,
            "--listen-peer-urls": peer,
            "--initial-advertise-peer-urls": peer,
            "--initial-cluster": members,
            "--initial-cluster-state": "new",
        }
        with open(self._directory / f"m{index}.log", "ab") as log:
            return subprocess.Popen(
                [self._command, *(word for pair in words.items() for word in pair)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(),
            )

    def _stop(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)
