"""Real coordinators and clients: started, killed, stopped, and all of them ended at last.

Each has an address of its own: a host of a `Network`, or one of the many addresses of
loopback. What they run is a copy of this checkout's package, made at the start: an edit
in the middle of a run would otherwise meet the processes that are started again. Which of
the coordinators are members is told here by whoever changes the members (`join`, `leave`).
"""

from __future__ import annotations

import compileall
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

from tasksprint.asking.cluster import Cluster
from tasksprint.errors import PeerUnreachable, SettingsError, StoreError
from tasksprint.net.keys import create_key
from tasksprint.process.program import die_with_parent
from tasksprint.settings import Settings
from tests.torture.network import Network

__all__ = ["CLIENT_HOST", "Machines", "StatesDiffer", "copy_of_checkout", "number_of"]

_CHECKOUT = Path(__file__).resolve().parents[2]
_PORT = 7070
_STOP_GRACE_S = 20.0
# Client n is host CLIENT_HOST + n, coordinator n is host n.
CLIENT_HOST = 100
# With which a coordinator ends that was removed (`SettingsError`), or that has lost its
# disk (`StoreError`).
_ENDS_OF_LEAVERS = (SettingsError.exit_code, StoreError.exit_code)


def copy_of_checkout(folder: Path) -> list[str]:
    """Copy what is needed to run into a new folder, and return the command that runs it.

    It is compiled, so that no process has to do it, whatever is set here.
    """
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(_CHECKOUT / "tasksprint", folder / "tasksprint", ignore=ignore)
    compileall.compile_dir(folder / "tasksprint", quiet=1)
    for name in ("tasksprint.py", "TaskSprintNode.py", "TaskSprintCoordinator.py"):
        shutil.copy(_CHECKOUT / name, folder / name)
    return [sys.executable, str(folder / "tasksprint.py")]


class StatesDiffer(Exception):
    """Two coordinators have applied the same slot, and have other digests."""


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
        self.founders = tuple(f"coordinator-{n}" for n in range(1, coordinators + 1))
        # The members, and who is about to be one or to be none any more.
        self.coordinators = list(self.founders)
        # Who may end by itself, because it is or will be removed, with or without its disk.
        self.leavers: set[str] = set()
        # Who was asked to end in good order, and is to be started again.
        self.ending: set[str] = set()
        self._killed: set[str] = set()
        self.clients = tuple(f"client-{n}" for n in range(1, clients + 1))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.stopped: set[str] = set()  # by SIGSTOP
        self.command = list(command)
        self._nodes = nodes
        self._hosts = {name: number_of(name) for name in self.founders}
        self._hosts |= {name: CLIENT_HOST + number_of(name) for name in self.clients}
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("TASKSPRINT_")
        }
        self.environment |= {
            "XDG_STATE_HOME": str(folder / "state"),
            **(environment or {}),
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.key = create_key(folder / "key")
        # Of all coordinators that there ever were.
        self.addresses = {name: f"{self._ip_address(name)}:{_PORT}" for name in self.founders}

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

    def member_addresses(self) -> list[str]:
        """Return where the coordinators listen that are members, or about to be."""
        return [self.addresses[name] for name in list(self.coordinators)]

    # --- members ---

    def join(self) -> str:
        """Start a coordinator with a new id, which waits until it is added."""
        number = len(self.addresses) + 1
        name = f"coordinator-{number}"
        if self.network is not None:
            self.network.add(number)
        self._hosts[name] = number
        self.addresses[name] = f"{self._ip_address(name)}:{_PORT}"
        self.start(name)
        self.coordinators.append(name)
        return name

    def lose_disk(self, name: str) -> None:
        """Kill a coordinator, destroy its files, and start it as if nothing had happened."""
        self.kill(name)
        shutil.rmtree(self.folder / name, ignore_errors=True)
        self.leavers.add(name)
        self.start(name)

    def leave(self, name: str) -> None:
        """Take that a coordinator is no member any more, or will never be."""
        self.leavers.add(name)
        if name in self.coordinators:
            self.coordinators.remove(name)

    # --- processes ---

    def start_all(self) -> None:
        """Start every process that isn't up."""
        for name in (*self.coordinators, *self.clients):
            if not self.is_up(name):
                self.start(name)

    def start(self, name: str, *, command: Sequence[str] | None = None) -> None:
        """Start a process, with the files that it has."""
        assert not self.is_up(name), name
        self._killed.discard(name)
        members = ",".join(self.member_addresses())
        if name in self.addresses:
            arguments = ["coordinator", "--id", str(number_of(name))]
            arguments += ["--listen", self.addresses[name]]
            peers = [f"{number_of(each)}={self.addresses[each]}" for each in self.founders]
            arguments += (
                ["--peers", ",".join(peers)] if name in self.founders else ["--join", members]
            )
        else:
            arguments = ["client", "--coordinators", members]
            arguments += ["--nodes", str(self._nodes), "--listen", f"{self._ip_address(name)}:0"]
        arguments += ["--data-dir", str(self.folder / name)]
        arguments += ["--key-file", str(self.folder / "key")]
        before = [] if self.network is None else self.network.command(self._hosts[name])
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                [*before, *(command or self.command), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
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
            self.ending.discard(name)
            if self.is_up(name):
                self._killed.add(name)
                self.processes[name].kill()
        for name in names:
            self.processes[name].wait()

    def ask_to_end(self, name: str) -> None:
        """Send SIGTERM to a process that `restart` starts again."""
        self.resume(name)
        self.ending.add(name)
        self.processes[name].terminate()

    def restart(self, name: str, *, command: Sequence[str] | None = None) -> int:
        """Wait for the end of a process that was asked to; start it; return the exit code."""
        process = self.processes[name]
        self.resume(name)
        try:
            code = process.wait(_STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        self.ending.discard(name)
        self.start(name, command=command)
        return code

    def ended_wrongly(self) -> list[str]:
        """Return who has ended though nobody killed it and it had no reason to."""
        found: list[str] = []
        for name, process in list(self.processes.items()):
            code = process.poll()
            if code is None or name in self._killed:
                continue
            # (One that has hardly begun doesn't know yet how to end in good order.)
            if code in (0, -signal.SIGTERM) and name in self.ending:
                continue
            if code in _ENDS_OF_LEAVERS and name in self.leavers:
                continue
            found.append(f"{name} ended with exit code {code}: {self.log(name)[-1500:]}")
        return found

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
        return Cluster(self.member_addresses(), self.key, settings or Settings())

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
        for name in list(self.coordinators):
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

    def points(self) -> dict[str, tuple[object, object] | None]:
        """Return the slot that each member has applied, and its digest; None: it doesn't say."""
        found = {name: self.status(name) for name in list(self.coordinators)}
        return {
            name: None if status is None else (status["applied_slot"], status["digest"])
            for name, status in found.items()
        }

    def is_level(self) -> bool:
        """Whether all members say that they have applied the same, and something.

        Raises:
            StatesDiffer: Two have applied the same slot, and other commands.
        """
        points = self.points()
        said = {point for point in points.values() if point is not None}
        if len({slot for slot, _ in said}) < len(said):
            raise StatesDiffer(f"replicas differ at the same slot: {points}")
        return len(said) == 1 and None not in points.values() and 0 not in said.pop()

    def client_states(self) -> list[str]:
        """Return the states of all clients, or nothing while nobody leads."""
        try:
            found = self.connect().request("GET", "/v1/clients", give_up_ms=300).json()
        except PeerUnreachable:
            return []
        return [str(client["state"]) for client in found]

    # --- the end ---

    def end_all(self) -> dict[str, int]:
        """End all processes in good order; return the exit codes of those that were up."""
        for name in list(self.stopped):
            self.resume(name)
        codes: dict[str, int] = {}
        # Clients first: they leave while coordinators still answer.
        for group in (self.clients, tuple(self.addresses)):
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
