"""The outside of a client: clocks, chance, network, disk, nodes' processes.

Every process runs with `REAL_CLIENT`. The simulator gives others. Then the same client runs on
virtual time, on a loop without sockets, files or threads.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tasksprint.encoding import decode_json
from tasksprint.errors import NodeFailed
from tasksprint.net.http_client import HttpClient
from tasksprint.net.keys import ClusterKey
from tasksprint.process.attach import AttachServer
from tasksprint.process.command_line import child_environment, command_line, hash_seed_of
from tasksprint.process.free_space import measure
from tasksprint.process.program import ChildProcess, ExitReason, start_program
from tasksprint.roles.client.programs import ClientPrograms
from tasksprint.settings import Settings
from tasksprint.store.writer import WriterThread

__all__ = ["REAL_CLIENT", "ClientOptions", "ClientSurroundings"]


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """The facts of the command line, and those found out about the machine."""

    coordinators: list[str]
    data_dir: Path
    key: ClusterKey
    capacity: int


async def start_node(
    directory: Path,
    command: str,
    *,
    on_data: Callable[[bytes], None],
    on_exit: Callable[[ExitReason], None],
    on_stderr: Callable[[bytes], None],
) -> ChildProcess:
    """Start a node's program, in the folder of its archive.

    Args:
        directory: Named after the archive's digest.
        command: The manifest's "node", as views carry it.

    Raises:
        NodeFailed: It can't be started.
    """
    start = decode_json(command.encode())
    argv = command_line(
        start["node"],
        directory=directory,
        what="node",
        failure=NodeFailed,
        interpreter=start.get("interpreter"),
    )
    return await start_program(
        argv,
        cwd=directory,
        env=child_environment(
            hash_seed=hash_seed_of(directory.name),
            directory=directory,
            extra=start.get("environment"),
        ),
        what="node",
        failure=NodeFailed,
        on_data=on_data,
        on_exit=on_exit,
        on_stderr=on_stderr,
        name=start["node"][0],
    )


def _now_us() -> int:
    return time.monotonic_ns() // 1_000


@dataclass(frozen=True, slots=True)
class ClientSurroundings:
    """The ways out of a client, each as a function of the real thing's shape."""

    now_us: Callable[[], int] = _now_us  # monotonic, for run times and all else
    new_random: Callable[[], Random] = lambda: Random(os.urandom(16))
    new_incarnation: Callable[[], str] = lambda: secrets.token_hex(8)
    # Free and all bytes of the file system that holds a directory.
    measure: Callable[[Path], Awaitable[tuple[int, int]]] = measure
    new_http: Callable[[ClusterKey, Settings], HttpClient] = HttpClient
    new_writer: Callable[..., WriterThread[Any, Any]] = WriterThread
    new_attach_server: Callable[..., AttachServer] = AttachServer
    new_programs: Callable[..., ClientPrograms] = ClientPrograms
    start_node: Callable[..., Awaitable[ChildProcess]] = start_node


REAL_CLIENT = ClientSurroundings()
