"""What `/metrics` and `/readyz` say of one process.

The text format of Prometheus (version 0.0.4): for each family a line of help, one with its type,
then its samples. Names begin with `tasksprint_`, units are base units (seconds, bytes),
counters end in `_total` and count since the process started, but for log time, which is the
cluster's. Everything here is read from what the process knows already: a scrape writes nothing,
asks nobody and counts no tasks.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tasksprint.net.bugs import Bugs
from tasksprint.net.router import Response, error_response, json_response
from tasksprint.process.free_space import FreeSpace
from tasksprint.roles.loop_watch import longest_hold_s
from tasksprint.roles.unheard import why_not_begun
from tasksprint.store.writer import WriteTimes

if TYPE_CHECKING:
    from tasksprint.roles.client import Client
    from tasksprint.roles.coordinator import Coordinator

__all__ = [
    "METRICS_TYPE",
    "Exposition",
    "client_metrics",
    "client_readiness",
    "coordinator_metrics",
    "coordinator_readiness",
    "status_of_files",
    "why_not_level",
]

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Chosen entries that a replica may have to apply yet and still count as ready: some
# milliseconds of work.
_READY_LAG_MAX = 1_000


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


# --- coordinators ---


def coordinator_metrics(coordinator: Coordinator) -> Response:
    """Return what a coordinator measures."""
    status = coordinator.replica.status()
    schedule = coordinator.schedule
    applied_slot = 0 if schedule is None else schedule.applied_slot
    me = str(coordinator.options.me)
    out = Exposition()
    gauge, counter = out.gauge, out.counter
    gauge("tasksprint_replica_info", "This replica: always 1.", ({"replica": me}, 1))
    _process(out, coordinator.uptime_ms, coordinator.bugs)

    gauge("tasksprint_leader", "Whether this replica leads.", ({}, status.role == "leader"))
    gauge(
        "tasksprint_leader_known",
        "Whether this replica leads or hears a leader.",
        ({}, status.leader is not None),
    )
    gauge(
        "tasksprint_ballot_round",
        "Round of the highest ballot that was promised or heard.",
        ({}, status.ballot.round),
    )
    gauge(
        "tasksprint_chosen_slot",
        "Last slot of the log that this replica knows to be chosen, with all before it.",
        ({}, status.chosen_end - 1),
    )
    gauge("tasksprint_applied_slot", "Last applied slot of the log.", ({}, applied_slot))
    gauge(
        "tasksprint_open_slots",
        "Slots accepted here and not known chosen.",
        ({}, status.open_slots),
    )
    gauge(
        "tasksprint_waiting_commands",
        "Commands that wait for a slot.",
        ({}, status.waiting_commands),
    )
    gauge(
        "tasksprint_peer_lag_slots",
        "Chosen slots that another replica didn't know to be chosen when it was last heard.",
        *(
            ({"peer": str(peer)}, max(status.chosen_end - known.chosen_end, 0))
            for peer, known in status.peers.items()
        ),
    )
    gauge(
        "tasksprint_peer_silence_seconds",
        "Time since another replica was last heard; absent: never.",
        *(
            ({"peer": str(peer)}, known.heard_ms / 1000)
            for peer, known in status.peers.items()
            if known.heard_ms is not None
        ),
    )
    counter(
        "tasksprint_elections_total",
        "Times that this replica stood for leader.",
        ({}, status.elections),
    )
    counter(
        "tasksprint_handovers_total",
        "Times that this replica resigned because its disk was slow or nearly full.",
        ({}, status.handovers),
    )
    counter(
        "tasksprint_leader_changes_total",
        "Changes of the leader as seen from here.",
        ({}, coordinator.leader_changes),
    )
    counter(
        "tasksprint_commands_total",
        "Commands of the log that were applied here.",
        ({}, coordinator.applied_commands),
    )

    out.summary(
        "tasksprint_log_write_seconds",
        "Durable transactions of the log, fsync included.",
        coordinator.writer.write_times(),
    )
    gauge(
        "tasksprint_log_write_age_seconds",
        "Time that the oldest unfinished write of the log has taken so far; 0: there is none.",
        ({}, status.write_ms / 1000),
    )
    _database(out, coordinator.database_path)
    _free_space(out, coordinator.disk_space.free)
    gauge(
        "tasksprint_log_entries",
        "Entries of the log that are kept.",
        ({}, max(status.chosen_end + status.open_slots - status.log_start, 0)),
    )
    if schedule is not None:
        gauge(
            "tasksprint_jobs_running",
            "Jobs that haven't ended.",
            ({}, len(schedule.running_jobs())),
        )
        gauge(
            "tasksprint_clients_alive",
            "Clients that are alive.",
            ({}, len(schedule.living_clients())),
        )
        counter(
            "tasksprint_log_time_seconds_total",
            "Time that ticks of the log have counted.",
            ({}, schedule.log_time_ms / 1000),
        )
    return out.response()


def coordinator_readiness(coordinator: Coordinator) -> Response:
    """Return 200 if this replica takes part and is level, else 503 and why not."""
    if (reason := why_not_level(coordinator)) is not None:
        return _not_ready(reason)
    told = {"ready": True, "leader": coordinator.replica.leader, "lag": _lag(coordinator)}
    return json_response(told)


def why_not_level(coordinator: Coordinator) -> str | None:
    """Say why this replica takes no part, or lacks entries of the log; None: it is level."""
    replica = coordinator.replica
    me = coordinator.options.me
    if coordinator.schedule is None:
        return why_not_begun(coordinator)
    if replica.leader is None:
        return f"replica {me} hears no leader"
    if replica.is_leader and not replica.is_established:
        return f"replica {me} leads, but no entry of its own is chosen yet"
    if (lag := _lag(coordinator)) > _READY_LAG_MAX:
        return f"replica {me} has to apply {lag} entries of the log yet"
    return None


def _lag(coordinator: Coordinator) -> int:
    assert coordinator.schedule is not None
    return coordinator.replica.chosen_end - 1 - coordinator.schedule.applied_slot


# --- clients ---


def client_metrics(client: Client) -> Response:
    """Return what a client measures."""
    # Here, as a coordinator never needs it: it starts sooner without.
    from tasksprint.execution.records import NodeState

    summary = client.workbench.summary()
    out = Exposition()
    _process(out, client.uptime_ms, client.bugs)
    out.gauge("tasksprint_joined", "Whether the client is in a cluster.", ({}, client.is_joined))
    tasks = summary["tasks"]
    out.gauge(
        "tasksprint_tasks",
        "Tasks given to this client, by state.",
        *(({"state": state}, tasks[state]) for state in sorted(tasks)),
    )
    nodes = Counter(node["state"] for node in summary["nodes"])
    out.gauge(
        "tasksprint_nodes",
        "Node processes of this client, by state.",
        *(({"state": state.value}, nodes[state.value]) for state in NodeState),
    )
    out.gauge(
        "tasksprint_disk_low",
        "Whether the client takes no work because its disk is nearly full.",
        ({}, summary["disk_low"]),
    )
    out.summary(
        "tasksprint_results_write_seconds",
        "Transactions that store results.",
        client.writer.write_times(),
    )
    _database(out, client.database_path)
    _free_space(out, client.free_space)
    return out.response()


def client_readiness(client: Client) -> Response:
    """Return 200 if this client is in a cluster, else 503."""
    if not client.is_joined:
        return _not_ready("the client has not joined yet: no coordinator leads, or none answers")
    return json_response({"ready": True})


# --- both ---


def _not_ready(reason: str) -> Response:
    return error_response(503, reason)


def _process(out: Exposition, uptime_ms: int, bugs: Bugs) -> None:
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


def _database(out: Exposition, path: Path) -> None:
    sizes = status_of_files(path)
    out.gauge(
        "tasksprint_database_bytes",
        "Size of the database's files: the log and the mirror, or the results.",
        ({"file": "main"}, sizes["database_bytes"]),
        ({"file": "wal"}, sizes["wal_bytes"]),
    )


def _free_space(out: Exposition, free: FreeSpace) -> None:
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
