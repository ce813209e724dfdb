"""Real coordinators and clients: started, killed, stopped, and all of them ended at last.

Each has an address of its own: a host of a `Network`, or one of the many addresses of
loopback. What they run is a copy of this checkout's package, made at the start: an edit
in the middle of a run would otherwise meet the processes that are started again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil

from tasksprint.errors import PeerUnreachable
from tasksprint.net.keys import create_key
from tasksprint.process.program import die_with_parent
from tasksprint.roles.cluster import Cluster
from tasksprint.settings import Settings
from tests.torture.network import Network

__all__ = ["CLIENT_HOST", "Machines", "copy_of_checkout", "number_of"]

_CHECKOUT = Path(__file__).resolve().parents[2]
_PORT = 7070
_STOP_GRACE_S = 10.0
# Client n is host CLIENT_HOST + n, coordinator n is host n.
CLIENT_HOST = 100


def copy_of_checkout(folder: Path) -> list[str]:
    """Copy what is needed to run, and return the command that runs it."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(_CHECKOUT / "tasksprint", folder / "tasksprint", ignore=ignore)
    for name in ("tasksprint.py", "TaskSprintNode.py", "TaskSprintCoordinator.py"):
        shutil.copy(_CHECKOUT / name, folder / name)
    return [sys.executable, str(folder / "tasksprint.py")]


class Machines:
    """The processes of one cluster; a context manager.

    Names are "coordinator-1" … and "client-1" ….
    """

    def __init__(
        self,
        folder: Path,
        *,
        command: Sequence[str],
        coordinators: int,
        clients: int,
        nodes: int = 1,
        network: Network | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Describe the cluster; `start` starts it.

        Args:
            folder: Of its files, which stay.
            nodes: Of each client.
            network: With hosts of these numbers; None: loopback.
        """
        self.folder = folder
        self.network = network
        self.coordinators = tuple(f"coordinator-{n}" for n in range(1, coordinators + 1))
        self.clients = tuple(f"client-{n}" for n in range(1, clients + 1))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.stopped: set[str] = set()  # by SIGSTOP
        self._command = list(command)
        self._nodes = nodes
        self._hosts = {name: number_of(name) for name in self.coordinators}
        self._hosts |= {name: CLIENT_HOST + number_of(name) for name in self.clients}
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("TASKSPRINT_")
        }
        self._environment |= {
            "XDG_STATE_HOME": str(folder / "state"),
            **(environment or {}),
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.key = create_key(folder / "key")
        self.addresses = {
            name: f"{self._ip_address(name)}:{_PORT}" for name in self.coordinators
        }

    def _ip_address(self, name: str) -> str:
        host = self._hosts[name]
        if self.network is not None:
            return self.network.address(host)
        pid = os.getpid()
        return f"127.{1 + (pid >> 8) % 254}.{pid % 256}.{host}"

    def host(self, name: str) -> int:
        """Return the number of the host on which a process runs."""
        return self._hosts[name]

    def __enter__(self) -> Machines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- processes ---

    def start_all(self) -> None:
        """Start every process that isn't up."""
        for name in (*self.coordinators, *self.clients):
            if not self.is_up(name):
                self.start(name)

    def start(self, name: str, *, command: Sequence[str] | None = None) -> None:
        """Start a process, with the files that it has."""
        assert not self.is_up(name), name
        if name in self.coordinators:
            peers = ",".join(
                f"{number_of(each)}={address}" for each, address in self.addresses.items()
            )
            arguments = ["coordinator", "--id", str(number_of(name)), "--peers", peers]
            arguments += ["--listen", self.addresses[name]]
        else:
            arguments = ["client", "--coordinators", ",".join(self.addresses.values())]
            arguments += ["--nodes", str(self._nodes), "--listen", f"{self._ip_address(name)}:0"]
        arguments += ["--data-dir", str(self.folder / name)]
        arguments += ["--key-file", str(self.folder / "key")]
        before = [] if self.network is None else self.network.command(self._hosts[name])
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                [*before, *(command or self._command), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )

    def is_up(self, name: str) -> bool:
        """Whether a process runs, or is stopped."""
        process = self.processes.get(name)
        return process is not None and process.poll() is None

    def kill(self, *names: str) -> None:
        """Kill processes with SIGKILL, all at once."""
        for name in names:
            self.stopped.discard(name)
            if self.is_up(name):
                self.processes[name].kill()
        for name in names:
            self.processes[name].wait()

    def stop(self, name: str) -> None:
        """Stop a process in its tracks (SIGSTOP)."""
        if self.is_up(name):
            self.processes[name].send_signal(signal.SIGSTOP)
            self.stopped.add(name)

    def resume(self, name: str) -> None:
        """Let a stopped process go on, if it is still the one that was stopped."""
        if name in self.stopped:
            self.stopped.discard(name)
            self.processes[name].send_signal(signal.SIGCONT)

    def log(self, name: str) -> str:
        """Return what a process has written to its log."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    # --- questions ---

    def connect(self, settings: Settings | None = None) -> Cluster:
        """Return blocking calls to the leader."""
        return Cluster(list(self.addresses.values()), self.key, settings or Settings())

    def status(self, name: str) -> dict[str, object] | None:
        """Return what a coordinator says of itself; None: it doesn't."""
        try:
            found = self.connect(Settings(connect_timeout_ms=500, answer_timeout_ms=1_000)).direct(
                self.addresses[name], "GET", "/v1/status"
            )
        except PeerUnreachable:
            return None
        status = found.json()
        assert isinstance(status, dict)
        return status

    def leader(self) -> str | None:
        """Return the coordinator that leads in the highest ballot, if one says so."""
        found: tuple[list[int], str] | None = None
        for name in self.coordinators:
            if not self.is_up(name) or name in self.stopped:
                continue
            status = self.status(name)
            if status is None or status["leader"] != number_of(name):
                continue
            consensus = status["consensus"]
            assert isinstance(consensus, dict)
            if found is None or consensus["ballot"] > found[0]:
                found = (consensus["ballot"], name)
        return None if found is None else found[1]

    # --- the end ---

    def end_all(self) -> dict[str, int]:
        """End all processes in good order; return the exit codes of those that were up."""
        for name in list(self.stopped):
            self.resume(name)
        codes: dict[str, int] = {}
        # Clients first: they leave while coordinators still answer.
        for group in (self.clients, self.coordinators):
            up = [name for name in group if self.is_up(name)]
            for name in up:
                self.processes[name].terminate()
            deadline_s = time.monotonic() + _STOP_GRACE_S
            for name in up:
                process = self.processes[name]
                try:
                    codes[name] = process.wait(max(deadline_s - time.monotonic(), 0))
                except subprocess.TimeoutExpired:
                    process.kill()
                    codes[name] = process.wait()
        return codes

    def close(self) -> None:
        """End whatever is left, without asking."""
        for name, process in self.processes.items():
            if process.poll() is None:
                self.kill(name)
        for left in self.left_over():
            with contextlib.suppress(psutil.Error):
                left.kill()

    def left_over(self) -> list[psutil.Process]:
        """Return processes that work in this cluster's files."""
        found: list[psutil.Process] = []
        text = str(self.folder)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if process.cwd().startswith(text):
                    found.append(process)
        return found


def number_of(name: str) -> int:
    """Return the number in a name."""
    return int(name.rpartition("-")[2])
