"""Which clients are alive, in log time: joining, leaving, falling silent, coming back.

Time enters only through ticks: each adds the milliseconds since the leader's last one,
at most Rules.tick_elapsed_max_ms. The leader judges which clients fell silent. Its judgement
is ignored for a client that has said something since.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable

from tasksprint.coordination.clients import FORMER, Client, ViewChanges
from tasksprint.coordination.commands import (
    Held,
    JoinClient,
    LeaveClient,
    NodesAttached,
    SilentClient,
    Tick,
)
from tasksprint.coordination.event_lines import line_client_dead, line_client_joined
from tasksprint.coordination.jobs import Job, Task
from tasksprint.coordination.lifecycle import Lifecycle
from tasksprint.coordination.quoting import quoted
from tasksprint.coordination.results import Results
from tasksprint.coordination.rows import Row
from tasksprint.coordination.state import State
from tasksprint.coordination.task_states import DONE
from tasksprint.coordination.transitions import Transitions
from tasksprint.coordination.view import DropJob
from tasksprint.ids import ClientId, Incarnation
from tasksprint.settings import Rules

__all__ = ["Liveness"]

_NAMES_TOLD = 10  # in a line of the log
# How a client dies, for the process's log and for people.
_DEATHS = {"silent": "fell silent", "started again": "was started again", "left": "left"}


class Liveness:
    """Applies the commands about clients as a whole."""

    __slots__ = ("_lifecycle", "_results", "_state", "_transitions")

    def __init__(
        self, state: State, transitions: Transitions, lifecycle: Lifecycle, results: Results
    ) -> None:
        self._state = state
        self._transitions = transitions
        self._lifecycle = lifecycle
        self._results = results

    def tick(self, command: Tick) -> None:
        """Let log time pass: timers run out, silent clients die, old records expire."""
        state = self._state
        state.log_ms += min(command.elapsed_ms, state.rules.tick_elapsed_max_ms)
        state.wall_ms = command.wall_ms  # For display: a clock that was wrong ends with that.
        for silent in command.silent:
            self._die_if_silent(silent)
        self._lifecycle.run_out_timers()
        self._lifecycle.forget_old()
        self._forget_dead()
        state.forget_ends()
        for cid, since in command.followed:
            state.forget_followed(cid, since)
        expired = state.senders.remove_before(
            state.log_ms - state.rules.request_record_ms, state.rules.request_records_max
        )
        for name in expired:
            state.changes.senders[name] = None

    def _die_if_silent(self, silent: SilentClient) -> None:
        state = self._state
        client = state.clients.get(silent.cid)
        if client is None or not client.is_alive or client.incarnation != silent.incarnation:
            return
        record = state.senders.get(client.sender)
        if record is not None and record.highest > silent.request:
            return  # It spoke since, to another leader perhaps.
        self._die(client, "silent").tell(state)

    def join(self, command: JoinClient) -> Client | str:
        """Take up a client; return it, or the reason of a refusal."""
        state = self._state
        slots_max = state.rules.client_slots_max
        if command.slots > slots_max:
            return f"client offers {command.slots} slots, expected at most {slots_max}"
        losses = None
        cid = state.cid_of_identity.get(command.identity)
        if cid is None:
            cid = state.next_cid
            state.next_cid = ClientId(cid + 1)
            client = Client(cid, command.identity)
            state.clients[cid] = client
            state.cid_of_identity[command.identity] = cid
        else:
            client = state.clients[cid]
            if client.is_alive and client.incarnation == command.incarnation:
                return client  # The same request again.
            if client.is_alive:
                losses = self._die(client, "started again")
            self._leave_the_dead(client)
        client.incarnation = command.incarnation
        client.sender = f"{cid} {command.incarnation}"
        client.address = command.address
        client.hostname = command.hostname[: state.rules.hostname_length_max]
        client.capacity = command.slots
        client.attached_request = 0
        client.is_alive = True
        client.joined_ms = state.log_ms
        client.ended_ms = None
        client.changes = ViewChanges(state.slot)
        state.changes.clients[client] = None
        state.changes.views[cid] = None
        state.changes.loosened[client] = None
        self._raise_for_all(
            "client_joined",
            lambda job: line_client_joined(
                job.event_count, state.time_ms(job), client.cid, client.capacity
            ),
        )
        for held in command.held:
            self._take_up(client, held)
        if losses is not None:
            losses.tell(state)  # Only now: the results that it brought back are known.
        state.note(
            f"cid={cid} host={client.hostname} slots={client.capacity} joined,"
            f" holding {len(command.held)} results"
        )
        return client

    def _take_up(self, client: Client, held: Held) -> None:
        """Decide about a result that a joining client has on its disk."""
        state = self._state
        job = state.jobs.get(held.job)
        if job is None or (not job.is_running and not job.keep):
            told = (state.slot, DropJob(held.job, ()))
            if not client.changes.drop_jobs or client.changes.drop_jobs[-1] != told:
                client.changes.drop_jobs.append(told)
            return
        task = job.tasks.get(held.tid)
        if task is not None and task.digest == held.digest and not task.is_stale:
            if task.state == DONE or not job.is_running:
                state.add_holder(task, client)
                return
            if task.state < DONE:
                self._results.restore_held(task, client)
                return
        if task is not None and task.digest is None and task.state < DONE:
            return  # It was made, but not counted yet: the client may report it.
        state.tell_drop(client, held.job, held.tid, held.digest)

    def leave(self, command: LeaveClient) -> str | None:
        """Let a client go at once; return the reason of a refusal, or None."""
        client = self.find(command.cid, command.incarnation)
        if client is None:
            return f"client {command.cid} isn't alive in this incarnation"
        self._die(client, "left").tell(self._state)
        return None

    def attach(self, command: NodesAttached) -> str | None:
        """Note the nodes attached to a client; return the reason of a refusal, or None."""
        client = self.find(command.cid, command.incarnation)
        if client is None:
            return f"client {command.cid} isn't alive in this incarnation"
        refusal = _too_many(command, self._state.rules)
        if refusal is not None:
            return refusal
        if command.request > client.attached_request:
            state = self._state
            client.attached_request = command.request
            client.attached = {name: count for name, count in command.nodes if count}
            state.changes.clients[client] = None
            state.note(f"cid={client.cid} attached nodes: {_listed(client.attached)}")
            state.changes.loosened[client] = None
            for task in sorted(client.changes.run, key=_placed):
                name = task.job.attached
                if name is not None and name not in client.attached and task.cid == client.cid:
                    self._transitions.take_back(task, is_told=True)
        return None

    def find(self, cid: ClientId, incarnation: Incarnation) -> Client | None:
        """Return a living client in this incarnation; None: there is none."""
        client = self._state.clients.get(cid)
        if client is None or not client.is_alive or client.incarnation != incarnation:
            return None
        return client

    def replacement(self, cid: ClientId, incarnation: Incarnation) -> Client | None:
        """Return a client that lives in another incarnation than this one; None: it doesn't."""
        client = self._state.clients.get(cid)
        if client is None or not client.is_alive or client.incarnation in (incarnation, FORMER):
            return None
        return client

    def _leave_the_dead(self, client: Client) -> None:
        dead = self._state.dead
        assert client.ended_ms is not None
        del dead[bisect_left(dead, (client.ended_ms, client.cid))]

    def _forget_dead(self) -> None:
        """Forget the clients that died long ago, and the first dead ones if there are too many.

        Nothing names them any more: their tasks and results were taken from them when they died.
        """
        state = self._state
        dead = state.dead
        oldest_ms = state.log_ms - state.rules.dead_client_ms
        for _ in range(min(state.rules.forgotten_per_tick_max, len(dead))):
            ended_ms, cid = dead[0]
            if ended_ms > oldest_ms and len(dead) <= state.rules.dead_clients_max:
                return
            del dead[0]
            client = state.clients.pop(cid)
            del state.cid_of_identity[client.identity]
            state.changes.clients.pop(client, None)
            state.put_row(Row("clients", (cid,), None))
            state.note(f"cid={cid} host={client.hostname} forgotten: dead for long")

    def _die(self, client: Client, why: str) -> _Losses:
        """Take everything from a client; return the losses of jobs, to be told."""
        state = self._state
        client.is_alive = False
        client.attached = {}
        client.ended_ms = state.log_ms
        insort(state.dead, (client.ended_ms, client.cid))
        state.followed.pop(client.cid, None)
        state.changes.clients[client] = None
        state.changes.views[client.cid] = None
        if state.senders.remove(client.sender):
            state.changes.senders[client.sender] = None
        state.note(f"cid={client.cid} dead: {why}, with {client.assigned} tasks")
        had = [task for task in client.changes.run if task.cid == client.cid]
        holding = [job for job in state.running.values() if job.job in client.holds]
        losses = _Losses(client, why, had, holding)
        for task in sorted(had, key=_placed):
            if task.cid == client.cid:
                self._transitions.take_back(task, is_told=False)
        client.extend.clear()
        client.changes = ViewChanges(state.slot)
        state.changes.loosened[client] = None
        self._raise_for_all(
            "client_dead",
            lambda job: line_client_dead(job.event_count, state.time_ms(job), client.cid),
        )
        for job_id in sorted(client.holds):
            for tid in sorted(client.holds.get(job_id, ())):
                # The loss of an earlier one may have ended the job, or let this one go.
                lost = client.holds.get(job_id, {}).get(tid)
                if lost is not None:
                    self._results.lose_holder(lost, client)
        return losses

    def _raise_for_all(self, kind: str, make_line: Callable[[Job], bytes]) -> None:
        """Raise an event for each running job that still listens, and handles it."""
        for job in list(self._state.running.values()):
            if job.finishing is None and job.is_told_of(kind):
                self._state.raise_event(job, make_line(job))


def _too_many(command: NodesAttached, rules: Rules) -> str | None:
    """Return why these nodes can't be attached (too many, or too long names); None: they can."""
    nodes = command.nodes
    if len(nodes) > rules.attached_names_max:
        return (
            f"client {command.cid} has attached nodes of {len(nodes)} names, expected at most "
            f"{rules.attached_names_max}"
        )
    for name, count in nodes:
        size = len(name.encode())
        if size > rules.attached_name_bytes_max:
            return (
                f"client {command.cid} has attached a node whose name has {size} bytes, expected "
                f"at most {rules.attached_name_bytes_max}"
            )
        if count > rules.client_slots_max:
            return (
                f"client {command.cid} has attached {count} nodes as {quoted(name, rules)}, "
                f"expected at most {rules.client_slots_max}"
            )
    return None


def _listed(nodes: dict[str, int]) -> str:
    """Return the nodes that are attached to a client, in a line of bounded length."""
    names = list(nodes.items())
    listed = [f"{count} {name!r}" for name, count in names[:_NAMES_TOLD]]
    if len(names) > _NAMES_TOLD:
        listed.append(f"{len(names) - _NAMES_TOLD} more names")
    return ", ".join(listed) or "none"


class _Losses:
    """The losses of jobs by the death of a client: told to their owners, in one line each.

    Args:
        why: A key of `_DEATHS`.
        had: Tasks of the client.
        holding: Running jobs with results on the client.
    """

    def __init__(self, client: Client, why: str, had: list[Task], holding: list[Job]) -> None:
        self._who = f"client {client.cid} ({client.hostname}) {_DEATHS[why]}"
        self._is_back = why == "started again"
        self._tasks: dict[Job, int] = {}
        for task in had:
            self._tasks[task.job] = self._tasks.get(task.job, 0) + 1
        self._done = {job: job.counts[DONE] for job in holding}

    def tell(self, state: State) -> None:
        """Write it into the logs of those jobs that still run."""
        for job in sorted({**self._tasks, **self._done}, key=lambda job: job.job):
            parts: list[str] = []
            if tasks := self._tasks.get(job, 0):
                parts.append(f"{_counted(tasks, 'task that it had')} placed anew")
            if (again := self._done.get(job, 0) - job.counts[DONE]) > 0:
                part = f"{_counted(again, 'result that only it had')} computed again"
                if not self._is_back:
                    part += f" unless it comes back with {'it' if again == 1 else 'them'}"
                parts.append(part)
            if parts and job.is_running:
                state.write_loss(job, f"tasksprint: {self._who}: {', '.join(parts)}")


def _counted(number: int, what: str) -> str:
    """Return e.g. "1 task that it had is" or "2 tasks that it had are"."""
    noun, _, rest = what.partition(" ")
    return f"1 {what} is" if number == 1 else f"{number} {noun}s {rest} are"


def _placed(task: Task) -> int:
    return task.placed
