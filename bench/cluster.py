"""Jobs on a private cluster, timed from outside: from the submit until a poll sees the end.

Also gives ports and a place for compiled bytecode to other modules that start processes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tasksprint.asking.cluster import Cluster, JobOutcome
from tasksprint.cli.run import PrivateCluster
from tasksprint.process.job_directory import read_job
from tasksprint.settings import Settings

JOBS = Path(__file__).parent / "jobs"


@contextlib.contextmanager
def own_bytecode() -> Iterator[None]:
    """Let processes keep their bytecode, in a folder of their own, whatever is set here."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="tasksprint-bytecode-") as folder:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = folder
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def free_ports(count: int) -> list[int]:
    """Return ports on loopback where nobody listens."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]


@contextlib.contextmanager
def private_cluster(*, coordinators: int, clients: int, nodes: int) -> Iterator[Cluster]:
    """Yield a connection to a cluster of real processes on this machine."""
    with PrivateCluster(coordinators=coordinators, clients=clients, nodes=nodes) as private:
        yield private.connect(Settings())


def run_job(cluster: Cluster, name: str, params: str) -> tuple[JobOutcome, float]:
    """Run a job of bench/jobs, and return how it ended and the seconds that it took."""
    directory = JOBS / name
    started_s = time.perf_counter()
    job = cluster.submit(directory, read_job(directory), seed=1, params=params)
    *_, outcome = cluster.follow(job)
    seconds = time.perf_counter() - started_s
    if outcome.state != "finished":
        raise SystemExit(f"job {name} did not finish: {outcome}")
    return outcome, seconds


def median_of(runs: int, measure: Callable[[], float]) -> float:
    """Return the median of some runs."""
    return statistics.median(measure() for _ in range(runs))
