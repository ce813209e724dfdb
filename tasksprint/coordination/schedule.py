"""The coordinator's replicated state machine: entries of the log in, their outcomes out.

`Schedule` sees a sequence of commands and nothing else: no clock, no network, no
consensus. The same log gives the same state on every replica, to the byte. `digest` proves
it: a chain of SHA-256 over the rows that each entry changed. The rows are the state:
`Schedule(mirror=…)` is the same state again, and goes on in the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

from tasksprint.coordination import reading
from tasksprint.coordination.answers import Answers
from tasksprint.coordination.applied import Applied, ChosenAnswer, EmptyAnswers, Event
from tasksprint.coordination.check import check
from tasksprint.coordination.clients import FORMER, Client, client_row
from tasksprint.coordination.commands import (
    Answer,
    CancelJob,
    Command,
    ForgetJob,
    JobObserved,
    JoinClient,
    LeaveClient,
    NodesAttached,
    RaiseRules,
    Report,
    SchedulerOut,
    SubmitJob,
    Tick,
    decode_command,
)
from tasksprint.coordination.job_rows import job_row
from tasksprint.coordination.lifecycle import Lifecycle
from tasksprint.coordination.liveness import Liveness
from tasksprint.coordination.observations import is_observed, observe
from tasksprint.coordination.obstacles import NOTHING_TOLD, Obstacles, Told
from tasksprint.coordination.placement.placement import Placement
from tasksprint.coordination.requests import TOO_OLD, sender_row
from tasksprint.coordination.results import Results
from tasksprint.coordination.rows import Mirror, Row
from tasksprint.coordination.state import Changes, State
from tasksprint.coordination.state_rows import digest_row, estimate_row, fill_state, state_row
from tasksprint.coordination.task_rows import task_row
from tasksprint.coordination.transitions import Transitions
from tasksprint.coordination.view import View
from tasksprint.encoding import encode_json
from tasksprint.errors import CommandFailed, RemoteProtocolError, UnknownRules
from tasksprint.ids import ClientId, Incarnation, JobId, ReplicaId, Slot, TaskId
from tasksprint.release import THIS_RELEASE, Release
from tasksprint.settings import Rules

__all__ = ["Applied", "ChosenAnswer", "EmptyAnswers", "Event", "Schedule"]

_REPORTED = "{}"


class Schedule:
    """The replicated state, and how entries change it.

    Args:
        cluster: The cluster's name, as its founding says.
        members: The replicas whose schedulers count.
        rules: Every replica applies the log by these rules from its beginning, until the log
            says otherwise (`RaiseRules`). Rows name the rules that they were made by.
        rows: All rows of the mirror, in any order; None: nothing was applied yet.
        mirror: The owner of the rows, in place of `rows`. Only rows that are needed are read,
            however many there are.
        decode: In place of `decode_command`, for a caller that keeps decoded commands.
        skips: Commands that operators have left out: the digest of a command's bytes -> the
            first slot where it is left out.
        release: It knows the rules that can be applied here.

    Raises:
        StoreError: The rows are of another cluster.
        UnknownRules: They were made by rules that can't be applied here.
    """

    def __init__(
        self,
        *,
        cluster: str,
        members: tuple[ReplicaId, ...],
        rules: Rules,
        mirror: Mirror | None = None,
        decode: Callable[[bytes, int], Command] = decode_command,
        skips: Mapping[str, Slot] | None = None,
        release: Release = THIS_RELEASE,
    ) -> None:
        state = State(cluster, members, rules)
        self._digest = fill_state(state, mirror, release) if mirror is not None else ""
        self._state = state
        self._decode = decode
        self._skips = skips or {}
        self._release = release
        self._facts = _facts(state)
        self._is_alone = False  # The command that is applied stands alone in its entry.
        transitions = Transitions(state)
        self._placement = Placement(state, transitions)
        self._lifecycle = Lifecycle(state, transitions)
        self._results = Results(state, transitions, self._lifecycle)
        self._liveness = Liveness(state, transitions, self._lifecycle, self._results)
        self._answers = Answers(state, transitions, self._lifecycle, self._results)

    # --- applying ---

    def apply(
        self,
        slot: Slot,
        commands: tuple[bytes, ...],
        *,
        members: tuple[ReplicaId, ...] | None = None,
        is_alone: bool = False,
    ) -> Applied:
        """Apply one entry of the log, all commands of it, in order.

        A command that makes no sense is answered with {"error": …}, or ignored with a
        note. It never stops the commands after it.

        Args:
            members: The replicas whose schedulers count from here on; None: as before.
            is_alone: The entry has the form in which a command stands alone.

        Raises:
            CommandFailed: Our bug; nothing may be asked of this object any more.
            UnknownRules: This release lacks the rules that the entry is to be applied by, or
                asks for. Here, too, nothing may be asked any more.
        """
        state = self._state
        assert slot == state.applied + 1, f"slot {slot} after {state.applied}"
        if state.rules.version not in self._release.rules:
            raise self._unknown(slot, state.rules.version)
        state.slot = slot
        state.changes = Changes()
        self._is_alone = is_alone
        replies: list[bytes | None] = []
        try:
            for command in commands:
                replies.append(self._apply_bytes(command))
            if members is not None:
                self._lifecycle.members_changed(members)
            self._placement.settle()
            self._lifecycle.settle()
            state.applied = slot
            changes = state.changes
            rows = self._commit(changes)
        except UnknownRules:
            raise
        except Exception as error:
            if not commands:
                raise  # A membership; there is nothing to leave out.
            failed = commands[min(len(replies), len(commands) - 1)]
            digest = hashlib.sha256(failed).hexdigest()
            raise CommandFailed(slot, len(replies), digest, error, of=len(commands)) from error
        return Applied(
            tuple(replies),
            tuple(changes.events),
            tuple(changes.answers),
            rows,
            tuple(changes.views),
            tuple([job.job for job in (*changes.jobs, *changes.forgotten)]),
            changes.all_notes(),
            changes.tick,
        )

    def found_anew(self, cluster: str, members: tuple[ReplicaId, ...]) -> tuple[Row, ...]:
        """Become the state of another cluster, whose log goes on from here.

        For a cluster that lost its majority, and for a backup. Jobs, tasks and results stay. Two
        things belonged to the former cluster's processes, and don't stay:

        - Clients join anew. A client may have followed the former log further than this
          state goes. If it were told only the changes since then, it would miss those that
          happen here instead. So no incarnation is known any more: each client is refused,
          joins again by itself, and names the results that it holds.
        - Schedulers that were given up on former replicas get a new chance.

        Returns:
            The rows that change; the digest goes on from the former one.
        """
        state = self._state
        state.changes = changes = Changes()
        state.cluster, state.members = cluster, members
        if not state.applied:
            return ()
        for client in state.clients.values():
            if client.is_alive:
                client.incarnation = FORMER
                client.sender = f"{client.cid} {client.incarnation}"
                changes.clients[client] = None
        for job in state.running.values():
            if job.out:
                job.out = {}
                changes.jobs[job] = None
        self._facts = ()  # The cluster's name stands in their row.
        return self._commit(changes)

    def _apply_bytes(self, data: bytes) -> bytes | None:
        if self._skips and self._is_skipped(data):
            self._state.note("left out a command, as its operators said")
            return encode_json({"error": "left out, as the cluster's operators said"})
        try:
            command = self._decode(data, self._state.rules.version)
        except RemoteProtocolError as error:
            self._state.note(f"ignored bytes that are {error}")
            return encode_json({"error": str(error)})
        reply = self._apply_command(command)
        return reply.encode() if reply is not None else None

    def _is_skipped(self, data: bytes) -> bool:
        # In later slots, too: its sender may not know its end, and may send it again.
        first_slot = self._skips.get(hashlib.sha256(data).hexdigest())
        return first_slot is not None and first_slot <= self._state.slot

    def _apply_command(self, command: Command) -> str | None:
        """Apply one command; return its reply, JSON."""
        match command:
            case Report():
                return self._apply_report(command)
            case Answer():
                self._answers.apply(command)
                return None
            case Tick():
                self._liveness.tick(command)
                self._state.changes.tick = command
                return None
            case JoinClient():
                joined = self._liveness.join(command)
                if isinstance(joined, str):
                    return _error(joined)
                rules = self._state.rules
                return _json(
                    {
                        "cid": joined.cid,
                        "cluster": self._state.cluster,
                        "liveness_ms": rules.liveness_span_ms,
                    }
                )
            case LeaveClient():
                refusal = self._liveness.leave(command)
                return _REPORTED if refusal is None else _error(refusal)
            case NodesAttached():
                refusal = self._liveness.attach(command)
                return _REPORTED if refusal is None else _error(refusal)
            case SubmitJob() | CancelJob() | ForgetJob():
                return self._apply_once(command)
            case SchedulerOut():
                self._lifecycle.scheduler_out(command)
                return None
            case JobObserved():
                observe(self._state, command)
                return _REPORTED
            case RaiseRules():
                return self._raise_rules(command)
            case _:
                raise AssertionError(f"not a command: {command!r}")

    def _raise_rules(self, command: RaiseRules) -> str:
        """Go on by newer rules; older ones, and the present ones, change nothing.

        A command that stands alone was proposed by a leader who had asked all members. Any other
        one is ignored, as release 0.2.0 does.
        """
        state = self._state
        if not self._is_alone:
            state.note("ignored a command to raise the rules: it doesn't stand alone")
            return _error("the rules are raised by the leader alone")
        before = state.rules.version
        if command.version > before:
            if command.version not in self._release.rules:
                raise self._unknown(state.slot, command.version)
            state.take_rules(self._release.rules[command.version])
            self._results.take_limits()
            state.note(f"raised the rules from version {before} to {command.version}")
        return _json({"rules": state.rules.version})

    def _unknown(self, slot: Slot, version: int) -> UnknownRules:
        return UnknownRules(f"the log, from slot {slot} on,", version, [*self._release.rules])

    def _apply_report(self, report: Report) -> str:
        state = self._state
        client = self._liveness.find(report.cid, report.incarnation)
        if client is None:
            return _json({"error": f"dead: client {report.cid} must join again", "rejoin": True})
        reply = state.senders.find_reply(client.sender, report.request)
        if reply is TOO_OLD:
            return _REPORTED  # A client has one under way at a time: earlier ones were applied.
        if reply is None:
            reply = _REPORTED
            self._results.apply_report(client, report)
            state.changes.senders[client.sender] = state.senders.record(
                client.sender, report.request, report.acknowledged, reply, state.log_ms
            )
        return reply

    def _apply_once(self, command: SubmitJob | CancelJob | ForgetJob) -> str:
        state = self._state
        sender = _person(command.sender)
        reply = state.senders.find_reply(sender, command.request)
        if reply is None:
            if isinstance(command, SubmitJob):
                job = self._lifecycle.submit(command)
                reply = _error(job) if isinstance(job, str) else _json({"job": job.job})
            elif isinstance(command, ForgetJob):
                refusal = self._lifecycle.forget_now(command)
                reply = _error(refusal) if refusal is not None else _json({"job": command.job})
            else:
                refusal = self._lifecycle.cancel(command)
                if refusal is not None:
                    reply = _error(refusal)
                else:
                    reply = _json({"job": command.job, "state": state.jobs[command.job].state})
            state.changes.senders[sender] = state.senders.record(
                sender, command.request, 0, reply, state.log_ms
            )
        return reply

    # --- the mirror ---

    def _commit(self, changes: Changes) -> tuple[Row, ...]:
        """Return the rows of this entry, and chain them to the digest."""
        state = self._state
        rows = [task_row(task) for task in changes.tasks]
        rows += changes.rows
        rows += changes.facts.values()
        rows += [job_row(job) for job in changes.jobs]
        rows += [client_row(client) for client in changes.clients]
        for name, sender in changes.senders.items():
            rows.append(
                sender_row(sender) if sender is not None else Row("senders", (name,), None)
            )
        rows += [estimate_row(job, name) for job, name in changes.estimates if job.is_running]
        facts = _facts(state)
        if facts != self._facts:
            self._facts = facts
            rows.append(state_row(state))
        if rows:
            chain = hashlib.sha256(self._digest.encode())
            chain.update(encode_json([(row.table, row.key, row.columns) for row in rows]))
            self._digest = chain.hexdigest()
        rows.append(digest_row(state.applied, self._digest))
        return tuple(rows)

    # --- reading ---

    @property
    def digest(self) -> str:
        """The chain over all rows of all entries; "" before the first change."""
        return self._digest

    @property
    def applied_slot(self) -> Slot:
        """The last applied slot; 0: none."""
        return self._state.applied

    @property
    def rules(self) -> Rules:
        """The rules by which the next entry is applied."""
        return self._state.rules

    @property
    def log_time_ms(self) -> int:
        """The sum of all ticks."""
        return self._state.log_ms

    @property
    def wall_ms(self) -> int:
        """Wall time of the last tick, for people; 0: there was none."""
        return self._state.wall_ms

    @property
    def next_timer_ms(self) -> int | None:
        """The log time at which the next timer is due, or an idle job fails; None: nothing is."""
        due = self._state.due
        return due[0][0] if due else None

    @property
    def followed(self) -> tuple[tuple[ClientId, Slot], ...]:
        """The versions of their views that clients have followed; for the other replicas.

        The clients told them to this replica alone. A version is listed only if something was
        forgotten by it, and until somebody takes it (`take_followed`).
        """
        return tuple(self._state.followed.items())

    def take_followed(self) -> tuple[tuple[ClientId, Slot], ...]:
        """Return `followed`, and forget it: each version is told once."""
        followed = self.followed
        self._state.followed = {}
        return followed

    def view(self, cid: ClientId, incarnation: Incarnation, since: Slot) -> View | None:
        """Return the changes for a client since a version, or (since 0) its whole view.

        Args:
            since: The version of the view that the client knows. Stops and drops up to it are
                forgotten, so a client never names a version that it hasn't followed.

        Returns:
            None: the client is dead or has another incarnation; it must join again.
        """
        client = self._liveness.find(cid, incarnation)
        return None if client is None else reading.view(self._state, client, since)

    def replacement(self, cid: ClientId, incarnation: Incarnation) -> Client | None:
        """Return the client if it lives in a later incarnation than this one, else None."""
        return self._liveness.replacement(cid, incarnation)

    def reply_to(self, sender: str, request: int) -> bytes | None:
        """Return the reply to a person's request; None: it wasn't applied yet."""
        reply = self._state.senders.find_reply(_person(sender), request)
        return None if reply is None else reply.encode()

    def is_running(self, job: JobId) -> bool:
        """Whether there is such a job and it hasn't ended."""
        return job in self._state.running

    def running_jobs(self) -> tuple[JobId, ...]:
        """Return the jobs that haven't ended, in order."""
        return tuple(self._state.running)

    def programs(self) -> tuple[set[str], set[str]]:
        """Return digests of the archives of all jobs, and of the running ones."""
        state = self._state
        return (
            {job.program for job in state.jobs.values()},
            {job.program for job in state.running.values()},
        )

    def living_clients(self) -> tuple[tuple[ClientId, Incarnation, int], ...]:
        """Return cid, incarnation and last applied request of each living client."""
        return reading.living_clients(self._state)

    def is_out(self, job: JobId, replica: ReplicaId) -> bool:
        """Whether the log says that a replica's scheduler of a running job is gone."""
        found = self._state.running.get(job)
        return found is not None and replica in found.out

    def is_observed(self, command: JobObserved) -> bool:
        """Whether saying this of a job (again) would change nothing."""
        return is_observed(self._state, command)

    def scheduler_history(self, job: JobId) -> reading.SchedulerHistory:
        """Return the history with which a scheduler of a running job is fed and compared."""
        return reading.scheduler_history(self._state.running[job])

    def job_summary(self, job: JobId, told: Told = NOTHING_TOLD) -> dict[str, object] | None:
        """Return how a job stands, for people; None: there is no such job.

        Args:
            told: The knowledge of this process beyond the state.
        """
        state = self._state
        found = state.jobs.get(job)
        if found is None:
            return None
        return reading.job_summary(state, found, Obstacles(state, told))

    def job_news(self, job: JobId) -> str | None:
        """Return a text that changes with each piece of news of a job; None: no such job."""
        found = self._state.jobs.get(job)
        return None if found is None else reading.job_news(found)

    def jobs(self, told: Told = NOTHING_TOLD) -> list[dict[str, object]]:
        """Return how all jobs stand, in order."""
        state = self._state
        obstacles = Obstacles(state, told)
        return [reading.job_summary(state, job, obstacles) for job in state.jobs.values()]

    def client_summaries(self) -> list[dict[str, object]]:
        """Return how all clients stand, in order, dead ones too."""
        return [reading.client_summary(client) for client in self._state.clients.values()]

    def task_info(self, job: JobId, tid: TaskId) -> dict[str, object] | None:
        """Return how a task stands; None: it isn't known (any more)."""
        found = self._state.jobs.get(job)
        return None if found is None else reading.task_info(self._state, found, tid)

    def check(self) -> None:
        """Assert all invariants; takes time in proportion to the whole state."""
        check(self._state)
        self._placement.check()


def _facts(state: State) -> tuple[int, ...]:
    return (
        state.log_ms,
        state.wall_ms,
        state.next_job,
        state.next_cid,
        state.placements,
        state.last_job,
        state.rules.version,
        *state.members,
    )


def _person(sender: str) -> str:
    return f"person {sender}"  # Clients' records begin with their cid.


def _json(value: object) -> str:
    return encode_json(value).decode()


def _error(text: str) -> str:
    return _json({"error": text})
