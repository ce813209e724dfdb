"""The answers of `/metrics` and `/readyz` about one process.

The text format of Prometheus (version 0.0.4): for each family a line of help, one with its type,
then its samples. Names begin with `tasksprint_`; units are base units (seconds, bytes). Counters
end in `_total` and count since the process started. Only log time is the cluster's. The process
knows all these figures already: a scrape writes nothing, asks nobody and counts no tasks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

from tasksprint.net.bugs import Bugs
from tasksprint.net.router import Response, error_response
from tasksprint.process.free_space import FreeSpace
from tasksprint.roles.loop_watch import longest_hold_s
from tasksprint.store.writer import WriteTimes

__all__ = [
    "METRICS_TYPE",
    "Exposition",
    "add_database",
    "add_free_space",
    "add_process",
    "not_ready",
    "status_of_files",
]

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Exposition:
    """Families and samples, in the order in which they are added."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._names: set[str] = set()

    def gauge(self, name: str, text: str, *samples: tuple[Mapping[str, str], float]) -> None:
        """Add a value that goes up and down."""
        self._family(name, "gauge", text)
        for labels, value in samples:
            self._sample(name, labels, value)

    def counter(self, name: str, text: str, *samples: tuple[Mapping[str, str], float]) -> None:
        """Add a value that only grows; its name ends in `_total`."""
        assert name.endswith("_total"), name
        self._family(name, "counter", text)
        for labels, value in samples:
            self._sample(name, labels, value)

    def summary(self, name: str, text: str, times: WriteTimes) -> None:
        """Add times: percentiles over the last ones, count and sum since the start."""
        self._family(name, "summary", text)
        for quantile, value in (("0.5", times.p50_s), ("0.99", times.p99_s)):
            self._sample(name, {"quantile": quantile}, float("nan") if value is None else value)
        self._sample(f"{name}_sum", {}, times.sum_s)
        self._sample(f"{name}_count", {}, times.count)

    def encode(self) -> bytes:
        """Return the text."""
        return "".join(self._lines).encode()

    def response(self) -> Response:
        """Return the text as an answer."""
        return Response(200, self.encode(), METRICS_TYPE)

    def _family(self, name: str, kind: str, text: str) -> None:
        assert name.startswith("tasksprint_") and name not in self._names, name
        self._names.add(name)
        text = text.replace("\\", "\\\\").replace("\n", "\\n")
        self._lines.append(f"# HELP {name} {text}\n# TYPE {name} {kind}\n")

    def _sample(self, name: str, labels: Mapping[str, str], value: float) -> None:
        listed = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        braces = f"{{{listed}}}" if listed else ""
        self._lines.append(f"{name}{braces} {_number(value)}\n")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return repr(value) if isinstance(value, float) else str(int(value))


def status_of_files(path: Path) -> dict[str, int]:
    """Return the sizes of a database's file and of its write-ahead log; 0: not there."""
    return {
        "database_bytes": _size(path),
        "wal_bytes": _size(path.with_name(path.name + "-wal")),
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0




def not_ready(reason: str) -> Response:
    return error_response(503, reason)


def add_process(out: Exposition, uptime_ms: int, bugs: Bugs) -> None:
    out.gauge(
        "tasksprint_uptime_seconds",
        "Time since the process started, suspension included.",
        ({}, uptime_ms / 1000),
    )
    out.counter(
        "tasksprint_process_cpu_seconds_total",
        "Processor time of the process.",
        ({}, time.process_time()),
    )
    out.counter(
        "tasksprint_bugs_total",
        "Exceptions that nobody expected, each of which ended one connection or callback.",
        ({}, bugs.count),
    )
    out.gauge(
        "tasksprint_loop_hold_max_seconds",
        "The longest time since the start in which the process did one thing and answered nobody.",
        ({}, longest_hold_s()),
    )


def add_database(out: Exposition, path: Path) -> None:
    sizes = status_of_files(path)
    out.gauge(
        "tasksprint_database_bytes",
        "Size of the database's files: the log and the mirror, or the results.",
        ({"file": "main"}, sizes["database_bytes"]),
        ({"file": "wal"}, sizes["wal_bytes"]),
    )


def add_free_space(out: Exposition, free: FreeSpace) -> None:
    if free.free_bytes is None:
        return  # Nobody has looked yet.
    out.gauge(
        "tasksprint_free_bytes",
        "Free space where the data directory is.",
        ({}, free.free_bytes),
    )
    out.gauge(
        "tasksprint_free_space_level",
        "0: plenty; 1: low; 2: short, nothing new is taken on; 3: spent, the process stops.",
        ({}, free.level),
    )
