"""`run JOB`: a private cluster on this machine, for one job.

Each coordinator and client is a process of its own, as in any cluster. They share a key that
nobody else has. They listen on loopback, on ports that this process took for them. When the
job has ended they are stopped and their files deleted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from tasksprint.asking.cluster import Cluster, parse_params, read_job_option
from tasksprint.cli.job_commands import end_of_job, print_submitted, seed_of
from tasksprint.cli.progress import counted
from tasksprint.cli.run_directory import RunDirectory, sweep_run_directories
from tasksprint.errors import PeerUnreachable, UsageError
from tasksprint.installation import own_command
from tasksprint.majority import majority
from tasksprint.net.addresses import format_address
from tasksprint.net.keys import create_key
from tasksprint.process.environment import settings_from_environment
from tasksprint.process.open_files import fit_client, reachable_limit
from tasksprint.process.orphans import own_children, reap_orphans
from tasksprint.process.program import KILLED_S, die_with_parent, doesnt_end
from tasksprint.process.resources import measure
from tasksprint.process.signals import interrupted_by_signals
from tasksprint.process.terminal import print_plain
from tasksprint.settings import Settings

__all__ = ["PrivateCluster", "run_job"]

_STOP_GRACE_S = 3.0
_LOG_TAIL_BYTES = 2_000
_COUNT_MAX = 99
_OWN_WORDS = "tasksprint: "


def run_job(options: argparse.Namespace) -> int:
    """Run one job on a private cluster, and print its result."""
    settings = settings_from_environment()
    directory, manifest = read_job_option(options.job, check_determinism=options.check_determinism)
    params = parse_params(manifest, options.param)
    for name in ("coordinators", "clients"):
        if not 1 <= getattr(options, name) <= _COUNT_MAX:
            raise UsageError(f"--{name} {getattr(options, name)} is not from 1 to {_COUNT_MAX}")
    nodes = options.nodes
    if nodes is not None and nodes < 1:
        raise UsageError(f"--nodes {nodes} is not at least 1")
    if nodes is None:
        nodes = max(measure().nodes // options.clients, 1)
    fit_client(settings, reachable_limit(), nodes=nodes)  # Before anything is started.
    reap_orphans()
    for left, ended in sweep_run_directories():
        print_plain(
            f"tasksprint: a former run was killed: deleted {str(left)!r}, and ended "
            f"{ended} of its processes",
            file=sys.stderr,
        )
    with (
        interrupted_by_signals(),
        PrivateCluster(
            coordinators=options.coordinators,
            clients=options.clients,
            nodes=nodes,
            keep=None if options.keep is None else Path(options.keep),
        ) as private,
    ):
        cluster = private.connect(settings)
        seed = seed_of(options.seed, manifest.seed)
        job = cluster.submit(directory, manifest, seed=seed, params=params)
        if options.json:
            print_submitted(job, manifest.name, seed)
        else:
            print_plain(
                f"job {manifest.name!r} (seed {seed}) on "
                f"{counted(options.coordinators, 'coordinator')} and "
                f"{counted(options.clients, 'client')} of {counted(nodes, 'node')}",
                file=sys.stderr,
            )
        return end_of_job(
            cluster,
            job,
            as_json=options.json,
            with_logs=options.logs,
            with_hints=False,  # Other commands don't find this cluster.
            check=private.check,
        )


class PrivateCluster:
    """Coordinators and clients as children of this process; a context manager."""

    def __init__(
        self,
        *,
        coordinators: int,
        clients: int,
        nodes: int,
        keep: Path | None = None,
        command: list[str] | None = None,
    ) -> None:
        """Describe the cluster; entering the context starts it.

        Args:
            nodes: Of each client.
            keep: A new directory for its files, which stay; None: a temporary one.
            command: Starts this program; None: as this process was started.
        """
        self._coordinators = coordinators
        self._clients = clients
        self._nodes = nodes
        self._keep = keep
        self._command = own_command() if command is None else command
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._arguments: dict[str, list[str]] = {}
        self.addresses: list[str] = []
        self.directory = Path()
        self._temporary: RunDirectory | None = None

    def __enter__(self) -> PrivateCluster:
        if self._keep is None:
            self._temporary = RunDirectory()
            self.directory = self._temporary.path
        else:
            try:
                self._keep.mkdir(parents=True, mode=0o700)
            except FileExistsError:
                raise UsageError(f"--keep {str(self._keep)!r} exists already") from None
            except OSError as error:
                raise UsageError(
                    f"--keep {str(self._keep)!r} can't be made: {error.strerror}"
                ) from error
            self.directory = self._keep.resolve()
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def connect(self, settings: Settings) -> Cluster:
        """Return a connection to this cluster, once it answers.

        Raises:
            PeerUnreachable: It doesn't come up; with its processes' words.
        """
        cluster = Cluster(self.addresses, create_key(self.directory / "key"), settings)
        started_s = time.monotonic()
        while True:
            try:
                cluster.request("GET", "/v1/jobs", give_up_ms=300)
                return cluster
            except PeerUnreachable as error:
                for name, process in self._processes.items():
                    if process.poll() is not None:
                        raise self._ended(name) from error
                if time.monotonic() - started_s > settings.find_leader_timeout_ms / 1000:
                    raise PeerUnreachable(
                        f"the private cluster doesn't come up: {error}"
                    ) from error

    def _start(self) -> None:
        create_key(self.directory / "key")
        sockets = [self._listen() for _ in range(self._coordinators)]
        self.addresses = [format_address(*sock.getsockname()[:2]) for sock in sockets]
        peers = ",".join(f"{n}={address}" for n, address in enumerate(self.addresses, 1))
        for number, sock in enumerate(sockets, 1):
            address = self.addresses[number - 1]
            self._spawn(
                f"coordinator-{number}",
                ["coordinator", "--id", str(number), "--listen", address, "--peers", peers],
                sock,
            )
        for number in range(1, self._clients + 1):
            self._spawn(
                f"client-{number}",
                [
                    "client",
                    *("--coordinators", ",".join(self.addresses)),
                    *("--nodes", str(self._nodes)),
                ],
                None,
            )
        for sock in sockets:
            sock.close()  # The children have them.

    @staticmethod
    def _listen() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        # Its accepted connections inherit this, and only then can a coordinator that was
        # killed and started again listen on its port at once.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        sock.listen(1024)
        return sock

    def _spawn(self, name: str, arguments: list[str], listener: socket.socket | None) -> None:
        """Start one process; a listener that it inherits can't lose its port to others."""
        self._arguments[name] = arguments
        descriptors = () if listener is None else (listener.fileno(),)
        inherited = [word for fd in descriptors for word in ("--listen-fd", str(fd))]
        files = ("--data-dir", self.directory / name, "--key-file", self.directory / "key")
        with open(self.directory / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [*self._command, *arguments, *inherited, *map(str, files)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=descriptors,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        own_children.add(process.pid)
        self._processes[name] = process

    def join(self, number: int) -> str:
        """Start one more coordinator, which waits to be added, and return its address."""
        sock = self._listen()
        address = format_address(*sock.getsockname()[:2])
        self._spawn(
            f"coordinator-{number}",
            [
                *("coordinator", "--id", str(number), "--listen", address),
                *("--join", ",".join(self.addresses)),
            ],
            sock,
        )
        sock.close()  # The child has it.
        return address

    def ended(self, name: str) -> int | None:
        """Return the exit code of a process, None while it runs."""
        return self._processes[name].poll()

    def kill(self, *names: str) -> None:
        """Kill processes with SIGKILL (tests and measurements), and wait for their ends."""
        for name in names:
            os.killpg(self._processes[name].pid, signal.SIGKILL)
        for name in names:
            self._processes[name].wait()

    def pid(self, name: str) -> int:
        """Return the process id (and group) of a process."""
        return self._processes[name].pid

    def restart(self, name: str) -> None:
        """Start a process again that was killed, with the same files and address."""
        self._spawn(name, self._arguments[name], None)

    def check(self) -> None:
        """Raise `PeerUnreachable` if so many processes have ended that no job can."""
        for role, count_min in (("coordinator", majority(self._coordinators)), ("client", 1)):
            names = [name for name in self._processes if name.startswith(role)]
            ended = [name for name in names if self._processes[name].poll() is not None]
            if len(names) - len(ended) < count_min:
                raise self._ended(ended[-1])

    def _ended(self, name: str) -> PeerUnreachable:
        log = (self.directory / f"{name}.log").read_bytes()[-_LOG_TAIL_BYTES:]
        text = log.decode(errors="replace").strip()
        said = [line for line in text.splitlines() if line.startswith(_OWN_WORDS)]
        return PeerUnreachable(
            f"{name} of the private cluster ended with exit code "
            f"{self._processes[name].returncode}: "
            + (said[-1].removeprefix(_OWN_WORDS) if said else text)
        )

    def _stop(self) -> None:
        try:
            self._stop_in_order()
        except BaseException:  # Interrupted once more: somebody is in a hurry.
            for process in self._processes.values():
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            if self._temporary is not None:
                self._temporary.delete()

    def _stop_in_order(self) -> None:
        # Clients first: they leave, and end their nodes, while coordinators still answer.
        for role in ("client", "coordinator"):
            group = [each for name, each in self._processes.items() if name.startswith(role)]
            for process in group:
                if process.poll() is None:
                    process.terminate()
            deadline_s = time.monotonic() + _STOP_GRACE_S
            for process in group:
                try:
                    process.wait(max(deadline_s - time.monotonic(), 0))
                except subprocess.TimeoutExpired:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    try:
                        process.wait(KILLED_S)
                    except subprocess.TimeoutExpired:
                        print_plain(f"tasksprint: {doesnt_end(process.pid)}", file=sys.stderr)
