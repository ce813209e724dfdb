"""What `status` shows of one coordinator."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tasksprint.roles.metrics import status_of_files

if TYPE_CHECKING:
    from tasksprint.roles.coordinator.coordinator import Coordinator

__all__ = ["coordinator_status"]


def coordinator_status(coordinator: Coordinator) -> dict[str, Any]:
    """Return what this replica knows of itself and of the others."""
    schedule = coordinator.schedule
    founding = coordinator.replica.founding
    runners = coordinator.runners
    return {
        "replica": coordinator.options.me,
        "address": coordinator.options.advertise,
        "cluster": None if founding is None else founding.cluster,
        "leader": coordinator.replica.leader,
        "consensus": _consensus_status(coordinator),
        "applied_slot": 0 if schedule is None else schedule.applied_slot,
        "digest": None if schedule is None else schedule.digest,
        "log_time_ms": coordinator.log_time_ms,
        "uptime_ms": coordinator.uptime_ms,
        "writes": asdict(coordinator.writer.write_times()),
        "files": status_of_files(coordinator.database_path),
        "free_space": coordinator.disk_space.free.summary(),
        "elections": list(coordinator.elections),
        "members": coordinator.members.addresses(),
        "copying": coordinator.copying.status,
        "schedulers": {str(job): runner.status() for job, runner in runners.items()},
    }


def _consensus_status(coordinator: Coordinator) -> dict[str, Any]:
    fields = asdict(coordinator.replica.status())
    fields["ballot"] = [fields["ballot"].round, fields["ballot"].replica]
    fields["peers"] = {str(peer): known for peer, known in fields["peers"].items()}
    return fields
