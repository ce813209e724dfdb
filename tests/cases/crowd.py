"""`python -m tests.cases.crowd`: thousands of half-open strangers, and who is served beside them.

A cluster of one coordinator and one client. Strangers connect to both and stay, some silent,
some with half a request, and come again when they are dropped. Meanwhile are measured:
`status`, as a process; the longest pause between two tasks of a job that runs; a client that is
started and joins. Exit code 1 if anything took more than `--more` seconds longer than it took
without the strangers.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tasksprint.asking.cluster import Cluster, parse_params
from tasksprint.cli.run import PrivateCluster
from tasksprint.net.addresses import parse_address
from tasksprint.process.job_directory import read_job
from tasksprint.process.open_files import raise_limit
from tasksprint.settings import Settings
from tests.torture.machines import copy_of_checkout

__all__ = ["Strangers", "main", "measure"]

_SCHEDULER = """
from TaskSprintCoordinator import *
class S(TaskSprintCoordinator):
    def init(self, seed):
        self.start_task("work", base=[0], keys=["x"])
    def task_done(self, tid, values):
        self.log(str(tid))
        self.release([tid])
        self.start_task("work", base=[0], keys=["x"])
S().start()
"""
_NODE = """
from TaskSprintNode import *
class N(TaskSprintNode):
    def work(self, n):
        return {"x": n}
N().start()
"""
_DEADLINE_S = 30.0


class Strangers:
    """So many connections that say nothing or half of something; dropped ones come again.

    Args:
        returns: How many of those come again in a second, at most.
    """

    def __init__(self, addresses: list[str], count: int, returns: int) -> None:
        self._addresses = [parse_address(address) for address in addresses]
        self._count = count
        self._returns = returns
        self._selector = selectors.DefaultSelector()
        self._is_over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.made = 0
        self.dropped = 0
        self._thread.start()

    def close(self) -> None:
        """Go away."""
        self._is_over = True
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]

    def wait(self) -> None:
        """Wait until all have come once."""
        while self.made < self._count:
            time.sleep(0.01)

    def _run(self) -> None:
        while self.made < self._count:
            self._come()
        since = time.monotonic()
        while not self._is_over:
            due = self._count + (time.monotonic() - since) * self._returns
            while self.made < due and len(self._selector.get_map()) < self._count:
                self._come()
            for key, _ in self._selector.select(0.005):
                self._hear(key.fileobj)  # type: ignore[arg-type]

    def _come(self) -> None:
        stranger = socket.socket()
        stranger.setblocking(False)
        stranger.connect_ex(self._addresses[self.made % len(self._addresses)])
        self._selector.register(stranger, selectors.EVENT_WRITE)
        self.made += 1

    def _hear(self, stranger: socket.socket) -> None:
        try:
            if self._selector.get_key(stranger).events == selectors.EVENT_WRITE:
                self._selector.modify(stranger, selectors.EVENT_READ)
                stranger.send(b"GET /healthz HTTP/1.1\r\nHost: "[: self.made % 30])
                return
            if stranger.recv(4096):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.dropped += 1
        self._selector.unregister(stranger)
        stranger.close()


def measure(private: PrivateCluster, command: list[str], job: int) -> dict[str, float]:
    """Return how long each took, in seconds."""
    cluster = private.connect(Settings())
    took: dict[str, float] = {}
    key_file = str(private.directory / "key")
    arguments = ["--coordinators", private.addresses[0], "--key-file", key_file]
    since = time.monotonic()
    subprocess.run([*command, "status", *arguments], check=True, capture_output=True, timeout=60)
    took["status"] = time.monotonic() - since
    took["job"] = _longest_pause(cluster, job)
    before = len(_living(cluster))
    since = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ts-crowd-") as folder:
        client = subprocess.Popen(
            [*command, "client", *arguments, "--nodes", "1", "--data-dir", folder],
            stderr=subprocess.DEVNULL,
        )
        try:
            while len(_living(cluster)) <= before:
                assert time.monotonic() < since + _DEADLINE_S, "the client doesn't join"
                time.sleep(0.01)
            took["join"] = time.monotonic() - since
        finally:
            client.terminate()
            client.wait(10)
    return took


def _living(cluster: Cluster) -> list[int]:
    clients = cluster.request("GET", "/v1/clients").json()
    return [client["cid"] for client in clients if client["state"] == "alive"]


def _longest_pause(cluster: Cluster, job: int, *, for_s: float = 3.0) -> float:
    """Return the longest time in which no task of the job was done."""
    began = moved = time.monotonic()
    longest, last = 0.0, -1
    while moved < began + for_s:
        summary = cluster.request("GET", f"/v1/jobs/{job}").json()
        now = time.monotonic()
        assert now < began + _DEADLINE_S, "the job stands still"
        done = sum(summary["tasks"].values())
        if done > last:
            longest, last, moved = max(longest, now - moved), done, now
        time.sleep(0.005)
    return longest


def main(arguments: list[str] | None = None) -> int:
    """Measure without and with strangers, and print both."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.cases.crowd",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--strangers", type=int, default=4_000)
    parser.add_argument("--returns", type=int, default=400, help="of dropped ones, in a second")
    parser.add_argument("--more", type=float, default=1.0, help="seconds")
    options = parser.parse_args(arguments)
    limit = raise_limit()
    if limit < options.strangers + 100:
        print(f"the limit of open files is {limit}: too few for the strangers", file=sys.stderr)
        return 78
    folder = Path(tempfile.mkdtemp(prefix="ts-crowd-"))
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    try:
        took = _compare(folder, options.strangers, options.returns)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(took, indent=2))
    alone, crowded = took["alone"], took["crowded"]
    return int(any(crowded[name] - alone[name] > options.more for name in alone))


def _compare(folder: Path, count: int, returns: int) -> dict[str, dict[str, float]]:
    command = copy_of_checkout(folder / "code")
    job_folder = folder / "job"
    job_folder.mkdir()
    (job_folder / "scheduler.py").write_text(_SCHEDULER)
    (job_folder / "node.py").write_text(_NODE)
    with PrivateCluster(
        coordinators=1, clients=1, nodes=1, keep=folder / "cluster", command=command
    ) as private:
        cluster = private.connect(Settings())
        manifest = read_job(job_folder)
        params = parse_params(manifest, [])
        job = cluster.submit(job_folder, manifest, seed=1, params=params)
        while not _living(cluster):
            time.sleep(0.01)
        (client,) = cluster.request("GET", "/v1/clients").json()
        alone = measure(private, command, job)
        strangers = Strangers([private.addresses[0], client["address"]], count, returns)
        strangers.wait()
        crowded = measure(private, command, job)
        strangers.close()
        print(f"{strangers.made} strangers came, {strangers.dropped} of them were dropped")
        private.check()
    return {"alone": alone, "crowded": crowded}


if __name__ == "__main__":
    sys.exit(main())
