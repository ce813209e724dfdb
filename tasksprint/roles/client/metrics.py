"""The answers of `/metrics` and `/readyz` about one client."""

from __future__ import annotations

from collections import Counter

from tasksprint.execution.records import NodeState
from tasksprint.net.router import Response, json_response
from tasksprint.roles.client.ports import Shown
from tasksprint.roles.metrics import (
    Exposition,
    add_database,
    add_free_space,
    add_process,
    not_ready,
)

__all__ = ["client_metrics", "client_readiness"]


def client_metrics(client: Shown) -> Response:
    """Return a client's measurements."""
    summary = client.workbench.summary()
    out = Exposition()
    add_process(out, client.uptime_ms, client.bugs)
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
    add_database(out, client.database_path)
    add_free_space(out, client.free_space)
    return out.response()


def client_readiness(client: Shown) -> Response:
    """Return 200 if this client is in a cluster, else 503."""
    if not client.is_joined:
        return not_ready("the client has not joined yet: no coordinator leads, or none answers")
    return json_response({"ready": True})
