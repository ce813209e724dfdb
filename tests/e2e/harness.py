"""A cluster and the commands that ask it, for the modules that share one over many tests."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from tasksprint.asking.cluster import Cluster, JobOutcome, parse_params
from tasksprint.cli.run import PrivateCluster
from tasksprint.ids import JobId
from tasksprint.process.job_directory import read_job
from tests.e2e.conftest import bytes_in_this_process, connect, in_this_process

__all__ = ["Commands", "Shared", "processes_of", "shared_cluster", "write_job"]

# Nobody waits for so long unless something hangs.
DEADLINE_S = 30.0

# Commands that ask a cluster something. With the same options as before they get no process
# of their own, as starting it takes most of their time.
QUESTIONS = {
    *("submit", "result", "cancel", "logs", "jobs", "status", "clients", "member"),
    *("job", "token", "stop"),
}


class Commands:
    """The commands of one archive, as one user with a state directory of their own."""

    def __init__(self, archive: Path, folder: Path, **environment: str) -> None:
        self.archive = archive
        self.folder = folder
        self.state = folder / "state"
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("TASKSPRINT_")
        }
        self.environment |= {"XDG_STATE_HOME": str(self.state), **environment}
        self._asked: set[tuple[str, ...]] = set()

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command that isn't waited for."""
        settings: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "cwd": self.folder,
            "env": self.environment,
            **options,
        }
        return subprocess.Popen([sys.executable, str(self.archive), *arguments], **settings)

    def __call__(
        self, *arguments: str, code: int = 0, timeout_s: float = DEADLINE_S
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end, and see that it ended with this exit code."""
        kind = (*arguments[:1], *(word for word in arguments if word.startswith("-")))
        if kind in self._asked:
            with mock.patch.dict(os.environ, self.environment, clear=True):
                done = bytes_in_this_process(*arguments, folder=self.folder)
        else:
            done = subprocess.run(
                [sys.executable, str(self.archive), *arguments],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env=self.environment,
                timeout=timeout_s,
            )
            if arguments and arguments[0] in QUESTIONS:
                self._asked.add(kind)
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        return done

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command in this process, to its end, whatever that is."""
        with mock.patch.dict(os.environ, self.environment, clear=True):
            return in_this_process(*arguments, folder=self.folder)

    def text(self, *arguments: str, code: int = 0) -> str:
        """Return what a command prints."""
        return self(*arguments, code=code).stdout.decode()

    def json(self, *arguments: str, code: int = 0) -> Any:
        """Return the one JSON value that a command prints with --json."""
        return json.loads(self(*arguments, "--json", code=code).stdout)


class Shared:
    """A cluster that is up, its files, and commands that know where it is."""

    def __init__(self, private: PrivateCluster, commands: Commands) -> None:
        self.private = private
        self.commands = commands
        self.cluster: Cluster = connect(private)

    def submit(self, directory: Path, *, seed: int = 1, params: str | None = None) -> int:
        """Hand in a job and return its number."""
        manifest = read_job(directory)
        text = parse_params(manifest, []) if params is None else params
        return self.cluster.submit(directory, manifest, seed=seed, params=text)

    def outcome(self, job: int) -> JobOutcome:
        """Wait for a job's end and return how it ended."""
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            outcome, version = self.cluster.job(JobId(job))
            if outcome.state != "running":
                return outcome
            if time.monotonic() > deadline_s:
                status = self.commands.text("status")
                logs = self.commands.text("logs", str(job))[-4_000:]
                raise AssertionError(f"job {job} doesn't end:\n{status}\n{logs}")
            self.cluster.job(JobId(job), wait_ms=1_000, seen=version)

    def task(self, job: int, tid: int) -> dict[str, Any]:
        """Return what the coordinator knows of a task."""
        info = self.cluster.request("GET", f"/v1/jobs/{job}/tasks/{tid}").json()
        assert isinstance(info, dict)
        return info

    def value(self, job: int, tid: int, key: str) -> bytes:
        """Return the bytes of a task's value, as `result --task TID --key KEY` prints them."""
        return self.commands("result", str(job), "--task", str(tid), "--key", key).stdout


@contextlib.contextmanager
def shared_cluster(
    archive: Path, *, coordinators: int = 1, clients: int = 1, nodes: int = 1
) -> Iterator[Shared]:
    """Start a cluster and stop it at the end; paths are short, as sockets need them."""
    folder = Path(tempfile.mkdtemp(prefix="ts-e2e-"))
    private = PrivateCluster(
        coordinators=coordinators,
        clients=clients,
        nodes=nodes,
        keep=folder / "cluster",
        command=[sys.executable, str(archive)],
    )
    # Clients register in the state directory, so that nodes find them.
    environment = {"XDG_STATE_HOME": str(folder / "state")}
    try:
        with mock.patch.dict(os.environ, environment), private:
            commands = Commands(
                archive,
                folder,
                TASKSPRINT_KEY_FILE=str(folder / "cluster" / "key"),
                TASKSPRINT_COORDINATORS=",".join(private.addresses),
            )
            yield Shared(private, commands)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_job(folder: Path, scheduler: str, node: str, **fields: Any) -> Path:
    """Write a job directory; programs are Python unless they begin with #!/bin/sh."""
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "sh" if node.startswith("#!/bin/sh") else "py"
    (folder / "scheduler.py").write_text(scheduler, encoding="utf-8")
    (folder / f"node.{suffix}").write_text(node, encoding="utf-8")
    if fields:
        text = json.dumps(fields, ensure_ascii=False)
        (folder / "tasksprint.json").write_text(text, encoding="utf-8")
    return folder


def processes_of(text: str) -> list[psutil.Process]:
    """Return the processes whose working directory, command line or files name `text`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            if any(text in word for word in [process.cwd(), *process.cmdline()]):
                found.append(process)
    return found
