"""How one coordinator stands: the answers of `status`, `/metrics` and `/readyz` about it."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict
from typing import Any

from tasksprint.consensus import Replica
from tasksprint.ids import ReplicaId
from tasksprint.net.bugs import Bugs
from tasksprint.net.router import Response, json_response
from tasksprint.process.free_space import FreeSpace
from tasksprint.roles.coordinator.copies import MirrorFetcher
from tasksprint.roles.coordinator.ports import Log, Writer
from tasksprint.roles.coordinator.roster import Roster
from tasksprint.roles.coordinator.runners import Runners
from tasksprint.roles.coordinator.surroundings import CoordinatorOptions, Surroundings
from tasksprint.roles.coordinator.unheard import lag, why_not_level
from tasksprint.roles.metrics import (
    Exposition,
    add_database,
    add_free_space,
    add_process,
    not_ready,
    status_of_files,
)
from tasksprint.store.vital import DATABASE_FILE

__all__ = ["Standing"]

# Changes of the leader that `status` shows.
_ELECTIONS_KEPT = 10


class Standing:
    """One coordinator's knowledge of itself, and its counts."""

    def __init__(
        self,
        options: CoordinatorOptions,
        surroundings: Surroundings,
        log: Log,
        roster: Roster,
        replica: Replica,
        writer: Writer,
        runners: Runners,
        copying: MirrorFetcher,
        free: FreeSpace,
    ) -> None:
        self._options = options
        self._surroundings = surroundings
        self._log = log
        self._roster = roster
        self._replica = replica
        self._writer = writer
        self._runners = runners
        self._copying = copying
        self._free = free
        self._database_path = options.data_dir / DATABASE_FILE
        self._started_ms = surroundings.monotonic_ms()
        self._leader_seen: ReplicaId | None = None
        self.bugs = Bugs()
        self.applied_commands = 0
        self.leader_changes = 0
        self.elections: deque[dict[str, Any]] = deque(maxlen=_ELECTIONS_KEPT)

    @property
    def _uptime_ms(self) -> int:
        return self._surroundings.monotonic_ms() - self._started_ms

    def turn(self) -> None:
        """Note a change of the leader; called in each turn of the loop."""
        leader = self._replica.leader
        if leader == self._leader_seen:
            return
        self._leader_seen = leader
        if leader is None:
            return
        self.leader_changes += 1
        status = self._replica.status()
        self.elections.append(
            {
                "wall_ms": self._surroundings.wall_ms(),
                "leader": leader,
                "ballot": [status.ballot.round, status.ballot.replica],
                # Only the candidate knows why.
                "cause": status.last_cause if leader == self._options.me else None,
            }
        )

    def status(self) -> dict[str, Any]:
        """Return what this replica knows of itself and of the others."""
        schedule, consensus = self._log.schedule, asdict(self._replica.status())
        consensus["ballot"] = [consensus["ballot"].round, consensus["ballot"].replica]
        consensus["peers"] = {str(peer): known for peer, known in consensus["peers"].items()}
        return {
            "replica": self._options.me,
            "address": self._options.advertise,
            "cluster": self._roster.cluster,
            "leader": self._replica.leader,
            "consensus": consensus,
            "applied_slot": 0 if schedule is None else schedule.applied_slot,
            "digest": None if schedule is None else schedule.digest,
            "rules": None if schedule is None else schedule.rules.version,
            "speaks": asdict(self._surroundings.release.speaks),
            "log_time_ms": 0 if schedule is None else schedule.log_time_ms,
            "uptime_ms": self._uptime_ms,
            "writes": asdict(self._writer.write_times()),
            "files": status_of_files(self._database_path),
            "free_space": self._free.summary(),
            "elections": list(self.elections),
            "members": self._roster.addresses(),
            "copying": self._copying.status,
            "schedulers": {str(job): runner.status() for job, runner in self._runners.items()},
        }

    def why_not_level(self) -> str | None:
        """Say why this replica takes no part, or lacks entries of the log; None: it is level."""
        return why_not_level(self._roster, self._replica, self._log.schedule)

    def readiness(self) -> Response:
        """Return 200 if this replica takes part and is level, else 503 and why not."""
        if (reason := self.why_not_level()) is not None:
            return not_ready(reason)
        schedule = self._log.require_schedule()
        told = {"ready": True, "leader": self._replica.leader, "lag": lag(self._replica, schedule)}
        return json_response(told)

    def metrics(self) -> Response:
        """Return a coordinator's measurements."""
        status = self._replica.status()
        schedule = self._log.schedule
        applied_slot = 0 if schedule is None else schedule.applied_slot
        me = str(self._options.me)
        out = Exposition()
        gauge, counter = out.gauge, out.counter
        gauge("tasksprint_replica_info", "This replica: always 1.", ({"replica": me}, 1))
        add_process(out, self._uptime_ms, self.bugs)

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
            ({}, self.leader_changes),
        )
        counter(
            "tasksprint_commands_total",
            "Commands of the log that were applied here.",
            ({}, self.applied_commands),
        )

        out.summary(
            "tasksprint_log_write_seconds",
            "Durable transactions of the log, fsync included.",
            self._writer.write_times(),
        )
        gauge(
            "tasksprint_log_write_age_seconds",
            "Time that the oldest unfinished write of the log has taken so far; 0: there is none.",
            ({}, status.write_ms / 1000),
        )
        add_database(out, self._database_path)
        add_free_space(out, self._free)
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
