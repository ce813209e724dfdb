"""The cost of idle jobs and idle clients for the tasks of others, in processor time.

The processor time of a task is a slope. Two jobs run, a long one and one with a tenth of its
tasks; the difference in processor time is divided by the difference in tasks. This counts the
coordinators and the clients that run nodes, but not the nodes, nor the schedulers. Some time is
used always, tasks or not, and is no cost of a task: it is measured while nothing runs, taken
off, and printed for itself. The cost of a job whatever the number of its tasks is printed for
itself, too (its scheduler is told of each client).
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from bench.cluster import JOBS, run_job
from tasksprint.cli.run import PrivateCluster
from tasksprint.process.job_directory import read_job
from tasksprint.settings import Settings

__all__ = ["measure"]

_REST_S = 6.0  # How long the cluster is watched doing nothing.
_SETTLE_S = 600.0


def measure(
    tasks: int,
    *,
    runs: int,
    coordinators: int,
    clients: int,
    nodes: int,
    idle_jobs: int,
    idle_clients: int,
) -> dict[str, Any]:
    """Measure no-op tasks by turns on a quiet cluster and on one with the idle ones."""
    shape = {"coordinators": coordinators, "clients": clients, "nodes": nodes}
    with PrivateCluster(**shape) as quiet, PrivateCluster(**shape) as busy:
        alone, beside = _Measured(quiet, shape), _Measured(busy, shape)
        with _idle_clients(busy, idle_clients):
            started_s = time.monotonic()
            for _ in range(idle_jobs):
                beside.cluster.submit(
                    JOBS / "idle", read_job(JOBS / "idle"), seed=1, params="{}"
                )
            beside.wait_idle()
            settled_s = time.monotonic() - started_s
            for _ in range(runs):
                for one in (alone, beside):
                    one.rest()
                for count in (tasks // 10, tasks):
                    for one in (alone, beside):
                        one.run(count)
    figures = {"alone": alone.figures(), "beside_idle": beside.figures()}
    return {
        "tasks": tasks,
        "runs": runs,
        **shape,
        "idle_jobs": idle_jobs,
        "idle_clients": idle_clients,
        "idle_jobs_settled_s": round(settled_s, 1),
        **figures,
        "ratio": round(figures["beside_idle"]["task_us"] / figures["alone"]["task_us"], 3),
    }


class _Measured:
    """One cluster, and the processor time of its coordinators and clients."""

    def __init__(self, private: PrivateCluster, shape: dict[str, int]) -> None:
        self.cluster = private.connect(Settings())
        names = [
            f"{role}-{number}"
            for role in ("coordinator", "client")
            for number in range(1, shape[f"{role}s"] + 1)
        ]
        self._processes = [psutil.Process(private.pid(name)) for name in names]
        self._resting: list[float] = []  # processor time a second
        self._used: dict[int, list[float]] = {}  # by tasks: processor time beyond that
        self._wall_s: dict[int, list[float]] = {}
        run_job(self.cluster, "noop", '{"tasks":200}')

    def rest(self) -> None:
        """Watch it doing nothing."""
        # Real time: what doing nothing costs in it is measured.
        cpu_s, wall_s = self._watch(lambda: time.sleep(_REST_S))
        self._resting.append(cpu_s / wall_s)

    def run(self, tasks: int) -> None:
        """Run a job of so many tasks."""
        cpu_s, wall_s = self._watch(
            lambda: run_job(self.cluster, "noop", f'{{"tasks":{tasks}}}')
        )
        self._used.setdefault(tasks, []).append(cpu_s - self._resting[-1] * wall_s)
        self._wall_s.setdefault(tasks, []).append(wall_s)

    def figures(self) -> dict[str, float]:
        """Return the medians: the slope, the constant, and the use without any task."""
        few, many = sorted(self._used)
        used = {count: statistics.median(each) for count, each in self._used.items()}
        slope = (used[many] - used[few]) / (many - few)
        return {
            "task_us": round(1e6 * slope, 2),
            "job_ms": round(1e3 * (used[few] - few * slope), 1),
            "tasks_per_s": round(many / statistics.median(self._wall_s[many]), 1),
            "resting_ms_per_s": round(1e3 * statistics.median(self._resting), 1),
        }

    def wait_idle(self) -> None:
        """Wait until all schedulers have answered all that they were told."""
        deadline_s = time.monotonic() + _SETTLE_S
        while True:
            jobs = self.cluster.request("GET", "/v1/jobs").json()
            running = [job for job in jobs if job["state"] == "running"]
            if all(job["answered_events"] == job["events"] for job in running):
                return
            if time.monotonic() > deadline_s:
                raise SystemExit("the idle jobs don't come to rest")
            time.sleep(1)

    def _watch(self, work: Callable[[], object]) -> tuple[float, float]:
        """Do something; return the processor time used meanwhile, and the time that passed."""
        before_s, started_s = self._cpu_s(), time.monotonic()
        work()
        return self._cpu_s() - before_s, time.monotonic() - started_s

    def _cpu_s(self) -> float:
        return sum(
            times.user + times.system for times in [one.cpu_times() for one in self._processes]
        )


@contextlib.contextmanager
def _idle_clients(private: PrivateCluster, count: int) -> Iterator[None]:
    """Run so many clients that join and do nothing."""
    if not count:
        yield
        return
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "bench.idle_clients", ",".join(private.addresses)),
            *(str(private.directory / "key"), str(count)),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise SystemExit("the idle clients could not join")
        yield
        if process.poll() is not None:
            raise SystemExit("the idle clients have ended")
    finally:
        process.kill()
        process.wait()
