"""What `/metrics` and `/readyz` say of one coordinator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasksprint.net.router import Response, json_response
from tasksprint.roles.coordinator.unheard import why_not_begun
from tasksprint.roles.metrics import (
    Exposition,
    add_database,
    add_free_space,
    add_process,
    not_ready,
)

if TYPE_CHECKING:
    from tasksprint.roles.coordinator.coordinator import Coordinator

__all__ = ["coordinator_metrics", "coordinator_readiness", "why_not_level"]

# Chosen entries that a replica may have to apply yet and still count as ready: some
# milliseconds of work.
_READY_LAG_MAX = 1_000


def coordinator_metrics(coordinator: Coordinator) -> Response:
    """Return what a coordinator measures."""
    status = coordinator.replica.status()
    schedule = coordinator.schedule
    applied_slot = 0 if schedule is None else schedule.applied_slot
    me = str(coordinator.options.me)
    out = Exposition()
    gauge, counter = out.gauge, out.counter
    gauge("tasksprint_replica_info", "This replica: always 1.", ({"replica": me}, 1))
    add_process(out, coordinator.uptime_ms, coordinator.bugs)

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
    add_database(out, coordinator.database_path)
    add_free_space(out, coordinator.disk_space.free)
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
        return not_ready(reason)
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
