"""The outside of a coordinator: clocks, chance, network, disk, schedulers' processes.

Every process runs with `REAL`. The simulator gives others. Then the same coordinator runs on
virtual time, on a loop without sockets, files or threads.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

from tasksprint.errors import SchedulerFailed
from tasksprint.ids import ReplicaId
from tasksprint.net.http_client import HttpClient
from tasksprint.net.keys import ClusterKey
from tasksprint.net.streams import PeerStreams
from tasksprint.process.archive import check_archive, unpack
from tasksprint.process.clock import monotonic_ms, wall_ms
from tasksprint.process.command_line import child_environment, command_line
from tasksprint.process.program import ExitReason, start_program
from tasksprint.release import THIS_RELEASE, Release
from tasksprint.settings import Settings
from tasksprint.store.writer import WriterThread

__all__ = ["REAL", "CoordinatorOptions", "SchedulerProgram", "Surroundings"]


@dataclass(frozen=True, slots=True)
class CoordinatorOptions:
    """The facts of the command line."""

    me: ReplicaId
    advertise: str
    peers: dict[ReplicaId, str]  # founding members with addresses, this one too
    data_dir: Path
    key: ClusterKey
    join: tuple[str, ...] = ()  # coordinators of the cluster that is to add this one


class SchedulerProgram(Protocol):
    """The process of a scheduler, as its runner sees it."""

    def write(self, data: bytes) -> None:
        """Send bytes; after its end they are dropped."""
        ...

    def kill(self, why: str = "") -> None:
        """End it at once."""
        ...

    async def stop(self) -> object:
        """Ask it to end, and end it if it doesn't."""
        ...


async def start_scheduler(
    directory: Path,
    manifest: dict[str, Any],
    seed: int,
    *,
    rules: int,
    on_data: Callable[[bytes], None],
    on_exit: Callable[[ExitReason], None],
    on_stderr: Callable[[bytes], None],
) -> SchedulerProgram:
    """Start the scheduler that a job's manifest names, in the folder of its program.

    Args:
        rules: The version of the rules of its job. The SDK of any release answers by it: so
            schedulers of two releases answer alike.

    Raises:
        SchedulerFailed: It can't be started.
    """
    words = manifest["scheduler"]
    argv = command_line(
        words,
        directory=directory,
        what="scheduler",
        failure=SchedulerFailed,
        interpreter=manifest.get("interpreter"),
    )
    return await start_program(
        argv,
        cwd=directory,
        env=child_environment(
            hash_seed=seed,
            directory=directory,
            extra=_environment(manifest, rules),
        ),
        what="scheduler",
        failure=SchedulerFailed,
        on_data=on_data,
        on_exit=on_exit,
        on_stderr=on_stderr,
        name=words[0],
    )


def _environment(manifest: dict[str, Any], rules: int) -> dict[str, str]:
    """Return the manifest's variables, but not those that must be equal on all replicas."""
    extra: dict[str, str] = dict(manifest.get("environment", {}))
    extra.pop("PYTHONHASHSEED", None)
    extra["TASKSPRINT_RULES"] = str(rules)
    return extra


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The ways out of a coordinator, each as a function of the real thing's shape."""

    monotonic_ms: Callable[[], int] = monotonic_ms
    wall_ms: Callable[[], int] = wall_ms
    new_random: Callable[[], Random] = lambda: Random(os.urandom(16))
    new_http: Callable[[ClusterKey, Settings], HttpClient] = HttpClient
    new_streams: Callable[..., PeerStreams] = PeerStreams
    new_writer: Callable[..., WriterThread[Any, Any]] = WriterThread
    check_archive: Callable[[bytes], None] = check_archive
    unpack: Callable[[bytes, str, Path], Path] = unpack
    start_scheduler: Callable[..., Awaitable[SchedulerProgram]] = start_scheduler
    release: Release = THIS_RELEASE


REAL = Surroundings()
