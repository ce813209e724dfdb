"""Narrow Protocols for a client's parts: each asks the parts above it for no more than it needs.

A part knows the parts below it by their classes. Its requests to the loop that runs it, or to
its owner, stand here. So no part knows the whole client. Imports no part.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol

from tasksprint.execution.effects import NodeId
from tasksprint.execution.workbench import Workbench
from tasksprint.ids import JobId
from tasksprint.net.bugs import Bugs
from tasksprint.process.free_space import FreeSpace
from tasksprint.store.result_records import LogText, ResultCommit
from tasksprint.store.result_store import ResultStore
from tasksprint.store.writer import WriterThread

__all__ = ["NodeOwner", "Shown", "Turns", "Writer", "logger"]

# All parts log here.
logger = logging.getLogger("tasksprint.client")

# The thread that owns this client's store.
Writer = WriterThread[ResultStore, ResultCommit]


class Turns(Protocol):
    """The loop that steps the workbench (`turns.py`)."""

    def now_us(self) -> int:
        """Return elapsed microseconds."""

    def now_ms(self) -> int:
        """Return elapsed milliseconds, by the same clock."""

    def turn(self) -> None:
        """Carry out the workbench's orders, now that it was told something."""

    def background(self, work: Coroutine[Any, Any, object], /) -> object:
        """Run something for which nobody waits; its failure is the client's."""

    def fail(self, error: BaseException, /) -> None:
        """Stop the client."""


class NodeOwner(Protocol):
    """The nodes' owner (`nodes.py`), as one of them sees it."""

    def write_soon(self, node: NodeId, data: bytes, /) -> None:
        """Write to a node at the end of this turn, everything at once."""

    def keep_log(self, text: LogText, /) -> None:
        """Keep a node's output."""

    def tell_runtime(self, job: JobId, runtime: str, /) -> None:
        """Tell the cluster the runtime of a job's tasks here."""

    def attached_changed(self) -> None:
        """Note that a node was attached, or is gone."""

    def ended(self, node: NodeId, /) -> None:
        """Forget a node; its process has ended."""


class Shown(Protocol):
    """The facts about a client that people are shown (`metrics.py`, `paths.py`)."""

    bugs: Bugs
    workbench: Workbench
    writer: Writer

    @property
    def database_path(self) -> Path:
        """Where the results are."""

    @property
    def free_space(self) -> FreeSpace:
        """How full the disk is."""

    @property
    def uptime_ms(self) -> int:
        """How long the process has run."""

    @property
    def is_joined(self) -> bool:
        """Whether the cluster counts on it."""

    @property
    def complaint(self) -> str | None:
        """The disregarded answer from a coordinator's address; None: there was none."""
