"""How jobs start and end, and why they may end early.

A job that ends keeps only its summary and the results that `finish` named. Its tasks leave
memory; their rows stay in the mirror, as they were last. Clients are told to drop its values.
No event is raised for it any more, and the rows of its events and answers may be deleted. After a
while, or when somebody says so, the job is forgotten: then nothing is left of it.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from tasksprint.bounded_text import bounded_repr
from tasksprint.coordination.commands import CancelJob, ForgetJob, SchedulerOut, SubmitJob
from tasksprint.coordination.event_lines import line_client_joined, line_init, line_timer
from tasksprint.coordination.job_rows import definition_row, timer_name
from tasksprint.coordination.jobs import (
    CANCELLED,
    FAILED_JOB,
    FINISHED,
    Job,
    WrongManifestError,
)
from tasksprint.coordination.obstacles import nothing_left
from tasksprint.coordination.quoting import FIRST_FIXED_RULES
from tasksprint.coordination.rows import ALL_OF_JOB, HISTORY_OF_JOB, Row
from tasksprint.coordination.state import ERROR_BYTES_MAX, State
from tasksprint.coordination.task_states import ASSIGNED
from tasksprint.coordination.transitions import Transitions
from tasksprint.coordination.view import DropJob
from tasksprint.encoding import decode_json
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import JobId, ReplicaId, TaskId
from tasksprint.majority import majority
from tasksprint.scheduler_commands import EVENT_KINDS

__all__ = ["Lifecycle", "bounded"]

_NO_PARAMETERS = "the job's parameters aren't a JSON object"
_NO_MANIFEST = "the job's manifest isn't JSON"


def bounded(error: str) -> str:
    """Return an error text, cut in the middle if it is very long."""
    if len(error) <= ERROR_BYTES_MAX:
        return error
    half = ERROR_BYTES_MAX // 2
    return f"{error[:half]} … {error[-half:]}"


def _sentence(error: str) -> str:
    return error.partition("\n")[0]


class Lifecycle:
    """Starts and ends jobs."""

    __slots__ = ("_state", "_transitions")

    def __init__(self, state: State, transitions: Transitions) -> None:
        self._state = state
        self._transitions = transitions

    # --- start ---

    def submit(self, command: SubmitJob) -> Job | str:
        """Start a job; return it, or the reason of a refusal."""
        state = self._state
        # What a library or an interpreter says of them isn't the same in all versions of it, and
        # the reply is kept in the state. Whoever submits by HTTP was told more before.
        says_found = state.rules.version < FIRST_FIXED_RULES
        try:
            params = decode_json(command.params.encode())
        except RemoteProtocolError as error:
            return f"the job's parameters are {error}" if says_found else _NO_PARAMETERS
        if not isinstance(params, dict):
            found = f"the job's parameters are {command.params!r:.50}, expected a JSON object"
            return found if says_found else _NO_PARAMETERS
        if len(command.name.encode()) > state.rules.name_bytes_max:
            return f"the job's name has more than {state.rules.name_bytes_max} bytes"
        try:
            decode_json(command.manifest.encode())
            job = Job(
                state.next_job,
                command.name,
                command.seed,
                # Line ends in JSON are only white space; events are lines.
                command.params.replace("\n", " ").replace("\r", " "),
                command.program,
                command.manifest,
                state.rules.retries,
                state.rules.version,
            )
        except RemoteProtocolError as error:
            return f"the job's manifest is {error}" if says_found else _NO_MANIFEST
        except WrongManifestError as error:
            return f"{error}, found {bounded_repr(error.found)}" if says_found else str(error)
        state.next_job = JobId(state.next_job + 1)
        job.submitted_ms = state.log_ms
        job.submitted_wall_ms = state.wall_ms
        state.jobs[job.job] = job
        state.running[job.job] = job
        state.put_row(definition_row(job))
        state.raise_event(job, line_init(0, job))
        if job.rules > 1:
            job.handles = ()
        else:
            self._tell_clients(job)
        state.note(f"job={job.job} name={job.name!r} submitted")
        return job

    def begin(self, job: Job, handles: tuple[str, ...] | None) -> None:
        """Note the events that a job's scheduler handles: it has begun to answer the first one.

        Args:
            handles: Kinds of events, as the scheduler says; None: it doesn't say, and is told
                of all.
        """
        if handles is not None:
            handles = tuple([kind for kind in EVENT_KINDS if kind in handles])
        job.handles = handles
        if job.is_told_of("client_joined"):
            self._tell_clients(job)

    def _tell_clients(self, job: Job) -> None:
        """Raise an event for each client that lives."""
        state = self._state
        for client in state.clients.values():
            if client.is_alive:
                line = line_client_joined(
                    job.event_count, state.time_ms(job), client.cid, client.capacity
                )
                state.raise_event(job, line)

    # --- end ---

    def finish(self, job: Job, taskids: tuple[TaskId, ...], values: str) -> None:
        """End the job as finished, as soon as all results that finish names can be read.

        If the last holder of a result is gone, the result is computed again first. Meanwhile
        the job is still running, but its scheduler has nothing to say any more.
        """
        job.finishing = (taskids, values)
        self._state.changes.jobs[job] = None
        self.try_finish(job)

    def try_finish(self, job: Job) -> None:
        """End a job whose scheduler said finish, if all results named in it are there."""
        assert job.finishing is not None
        taskids, values = job.finishing
        for tid in taskids:
            if not job.tasks[tid].holders:
                return
        job.finishing = None
        job.values = values
        self._end(job, FINISHED, taskids)

    def give_up_finish(self, job: Job) -> None:
        """End a job as finished though a result named in finish can't be computed again."""
        assert job.finishing is not None
        taskids, values = job.finishing
        job.finishing = None
        job.values = values
        lost = [tid for tid in taskids if not job.tasks[tid].holders]
        self._state.note(f"job={job.job} finished without the lost results of tasks {lost}")
        self._end(job, FINISHED, taskids)

    def fail(self, job: Job, error: str) -> None:
        """End the job as failed; a job that has ended stays as it is."""
        if job.is_running:
            job.error = bounded(error)
            self._end(job, FAILED_JOB, ())

    def cancel(self, command: CancelJob) -> str | None:
        """End the job as cancelled; return the reason of a refusal, or None.

        Cancelling a job that has ended does nothing and is no error.
        """
        job = self._state.jobs.get(command.job)
        if job is None:
            return f"there is no job {command.job}"
        if job.is_running:
            job.error = bounded(command.reason or "cancelled")
            self._end(job, CANCELLED, ())
        return None

    def _end(self, job: Job, new_state: str, keep: tuple[TaskId, ...]) -> None:
        state = self._state
        kept = {tid: job.tasks[tid] for tid in sorted(dict.fromkeys(keep))}
        for task in job.tasks.values():
            if task.state == ASSIGNED:
                self._transitions.take_back(task, is_told=True)
        told = DropJob(job.job, tuple(kept), new_state)
        state.tell_end(told)
        for client in state.clients.values():
            held = client.holds.pop(job.job, None)
            if held is not None:
                still = {tid: task for tid, task in held.items() if tid in kept}
                if still:
                    client.holds[job.job] = still
                # Other clients hear of it when they ask next. Nothing of theirs waits for it.
                state.changes.views[client.cid] = None
        for task in kept.values():
            task.dependents = None
            task.users = 0
        job.state = new_state
        job.keep = told.keep
        job.ended_ms = state.log_ms
        job.ended_wall_ms = state.wall_ms
        job.tasks = kept
        job.let_go()
        state.timers_changed(job)
        del state.running[job.job]
        insort(state.ended, (state.log_ms, job.job))
        state.put_row(Row("garbage", (job.job,), (HISTORY_OF_JOB,)))
        state.changes.jobs[job] = None
        reason = f": {job.error}" if job.error is not None else ""
        state.note(f"job={job.job} {new_state}{reason}")

    # --- after the end ---

    def forget_now(self, command: ForgetJob) -> str | None:
        """Forget an ended job; return the reason of a refusal, or None."""
        job = self._state.jobs.get(command.job)
        if job is None:
            return f"there is no job {command.job}"
        if job.is_running:
            return f"job {command.job} is running; cancel it first"
        self._forget(job)
        return None

    def forget_old(self) -> None:
        """Forget the jobs that ended long ago, and the oldest if there are too many."""
        state = self._state
        oldest_ms = state.log_ms - state.rules.ended_job_ms
        for _ in range(min(state.rules.forgotten_per_tick_max, len(state.ended))):
            ended_ms, job_id = state.ended[0]
            if ended_ms > oldest_ms and len(state.ended) <= state.rules.ended_jobs_max:
                return
            self._forget(state.jobs[job_id])

    def _forget(self, job: Job) -> None:
        """Forget an ended job; only rows that nobody reads are left, and stores delete them."""
        state = self._state
        assert job.ended_ms is not None
        if job.keep:
            state.tell_end(DropJob(job.job, ()))
            for task in job.tasks.values():
                for cid in task.holders:
                    if state.clients[cid].holds.pop(job.job, None) is not None:
                        state.changes.views[cid] = None
        for task in job.tasks.values():
            state.changes.tasks.pop(task, None)
        del state.jobs[job.job]
        del state.ended[bisect_left(state.ended, (job.ended_ms, job.job))]
        state.changes.jobs.pop(job, None)
        state.changes.forgotten[job] = None
        state.put_row(Row("jobs", (job.job,), None))
        state.put_row(Row("facts", definition_row(job).key, None))
        state.put_row(Row("garbage", (job.job,), (ALL_OF_JOB,)))
        state.note(f"job={job.job} forgotten")

    # --- schedulers, timers and idle jobs ---

    def scheduler_out(self, command: SchedulerOut) -> None:
        """Record that a replica's scheduler is gone; without enough of them the job fails."""
        state = self._state
        job = state.running.get(command.job)
        if job is None or job.finishing is not None or command.replica in job.out:
            state.note(f"replica={command.replica} job={command.job} scheduler out: ignored")
            return
        job.out[command.replica] = (command.kind, bounded(command.error))
        state.changes.jobs[job] = None
        state.note(
            f"replica={command.replica} job={job.job} scheduler {command.kind}: {command.error}"
        )
        self._judge_schedulers(job)

    def members_changed(self, members: tuple[ReplicaId, ...]) -> None:
        """Count the schedulers of these replicas from now on."""
        state = self._state
        state.members = members
        state.note(f"members {', '.join(map(str, members))}")
        for job in list(state.running.values()):
            if job.finishing is None:
                self._judge_schedulers(job)

    def _judge_schedulers(self, job: Job) -> None:
        """Fail a job if too few replicas have a scheduler of it left."""
        members = self._state.members
        crashed = [replica for replica in members if job.out.get(replica, ("",))[0] == "crashed"]
        gone = [replica for replica in members if replica in job.out]
        if len(crashed) >= majority(len(members)):
            what = "crashed"
            named = crashed
        elif len(gone) == len(members):
            what = "crashed or gave answers that differ"
            named = gone
        else:
            return
        first = job.out[named[0]][1]
        if len(members) == 1:
            self.fail(job, first)
            return
        if len({_sentence(job.out[replica][1]) for replica in named}) == 1:
            # Behind the sentence stands the tail of stderr. It differs in paths at least.
            self.fail(job, f"on {len(named)} of {len(members)} replicas: {first}")
            return
        told = "; ".join(f"replica {replica}: {job.out[replica][1]}" for replica in named)
        self.fail(job, f"the scheduler {what} on {len(named)} of {len(members)} replicas; {told}")

    def settle(self) -> None:
        """Note, at the end of an entry, at which time newly idle jobs fail."""
        state = self._state
        for job in state.changes.jobs:
            if job.handles is not None and job.is_idle != (job.idle_end_ms is not None):
                end_ms = state.log_ms + state.rules.idle_job_ms
                job.idle_end_ms = end_ms if job.is_idle else None
                state.timers_changed(job)

    def run_out_timers(self) -> None:
        """Raise the events of all timers that are due, and fail jobs that were idle too long."""
        state = self._state
        while state.due and state.due[0][0] <= state.log_ms:
            job = state.running[state.due[0][1]]
            while job.timers and job.timers[0][0] <= state.log_ms:
                _, number, timer = job.timers.pop(0)
                state.put_row(Row("facts", (timer_name(job, number),), None))
                if job.finishing is None:
                    line = line_timer(job.event_count, state.time_ms(job), timer)
                    state.raise_event(job, line)
            if job.idle_end_ms is not None and job.is_idle:
                self.fail(job, nothing_left(job))
            else:
                job.idle_end_ms = None
                state.timers_changed(job)
