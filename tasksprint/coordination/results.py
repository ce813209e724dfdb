"""What counts as a task's result, what becomes of failures, and how lost results come back.

**Canonical results.** The first completion that counts fixes the digest of a task's
result. It counts if the task is unfinished, whichever attempt it is of, and if what it
consumed is what its pretasks' canonical results are now; else the attempt is void and
the task is placed anew. A later completion with the same digest is one more holder; with
other bytes it is nothing, and its client is told to drop them.

**Lost results.** When the last holder of a done task is gone and somebody needs the
result, the task is computed again, and its inputs first where they are lost, too. `digest`
keeps the old result meanwhile:

- Its unfinished dependents go back to waiting, wherever they were. This is the simplest
  rule that is right: a client that has fetched the input already may finish its attempt all
  the same, and the completion counts, for the digest of what it consumed is canonical still.
- A holder of the old bytes that comes back restores the result.
- The same digest again: nobody notices. Another: unfinished dependents use the new one, and
  done ones are computed again likewise (`is_stale`: their old bytes don't come back). If the
  scheduler was told values that would differ now, the job fails with the remedy.

**Failures** count if they are of the current attempt. A task without retries left is failed
and its scheduler told; a task that was done before and can't be computed again fails the job.
"""

from __future__ import annotations

import hashlib

from tasksprint.bounded_text import on_one_line
from tasksprint.coordination.clients import Client
from tasksprint.coordination.commands import Completion, Failure, Lost, Report, inputs_digest
from tasksprint.coordination.event_lines import line_task_done, line_task_failed
from tasksprint.coordination.failures import clean_detail, record_failure
from tasksprint.coordination.jobs import Task
from tasksprint.coordination.lifecycle import Lifecycle, bounded
from tasksprint.coordination.placement.placement import Placement
from tasksprint.coordination.state import State
from tasksprint.coordination.task_rows import deletion_rows
from tasksprint.coordination.task_states import (
    ASSIGNED,
    DONE,
    FAILED,
    KILLED,
    READY,
    STATES,
    WAITING,
)
from tasksprint.coordination.view import DropJob
from tasksprint.ids import TaskId

__all__ = ["Results"]

# Of an error in a line of the log.
_NOTED_CHARACTERS_MAX = 300

# Forgotten dependents that stand in a task's list, if they aren't the most part of it.
GONE_MAX = 16


def _told(line: bytes) -> str:
    """Return a digest of what a task_done line tells: the task and its values."""
    return hashlib.sha256(line.partition(b',"tid":')[2]).hexdigest()[:32]


class Results:
    """Applies what clients say about attempts and values."""

    __slots__ = ("_inline_task_max", "_inline_value_max", "_lifecycle", "_placement", "_state")

    def __init__(self, state: State, placement: Placement, lifecycle: Lifecycle) -> None:
        self._state = state
        self._placement = placement
        self._lifecycle = lifecycle
        self.take_limits()

    def take_limits(self) -> None:
        """Keep to the limits of the state's rules, which are other ones."""
        self._inline_value_max = self._state.rules.inline_value_bytes_max
        self._inline_task_max = self._state.rules.inline_task_bytes_max

    def apply_report(self, client: Client, report: Report) -> None:
        """Apply a report of a living client: completions, failures, then losses."""
        # A completion whose input isn't known yet may stand before the one that makes it
        # known. A second pass by tid puts them right, as tasks name earlier ones only.
        too_early: list[Completion] = []
        for completion in report.completions:
            if not self._complete(client, completion, is_final=False):
                too_early.append(completion)
        if too_early:
            for completion in sorted(too_early, key=lambda one: (one.job, one.tid)):
                self._complete(client, completion, is_final=True)
        for failure in report.failures:
            self._fail_attempt(client, failure)
        for lost in report.lost:
            self._lose(client, lost)

    # --- completions ---

    def _complete(self, client: Client, completion: Completion, *, is_final: bool) -> bool:
        """Apply a completion; False: an input isn't known yet, try again (never if final)."""
        state = self._state
        job = state.running.get(completion.job)
        if job is None:
            self._tell_ended(client, completion)
            return True
        task = job.tasks.get(completion.tid)
        digest = completion.result_digest
        if task is None:
            state.tell_drop(client, job.job, completion.tid, None)
            return True
        if task.state >= DONE:
            if task.state == DONE and digest == task.digest:
                state.add_holder(task, client)
            else:
                state.tell_drop(client, job.job, task.tid, digest)
            return True

        is_current = (
            task.cid == client.cid
            and task.attempt == completion.attempt
            and task.state == ASSIGNED
        )
        if task.spec.pretasks:
            consumed = self._canonical_inputs(task)
            if consumed is None and not is_final:
                return False
        else:
            consumed = ""
        if consumed != (completion.inputs_digest or ""):
            state.note(
                f"job={job.job} tid={task.tid} attempt={completion.attempt} cid={client.cid}"
                " void: it consumed bytes that aren't the inputs' results"
            )
            if is_current:
                self._placement.take_back(task, is_told=False)
            state.tell_drop(client, job.job, task.tid, digest)
            return True
        if task.spec.keys:
            refusal = self._refuse_inline(task, completion)
            if refusal is not None:
                if is_current:
                    self._placement.take_back(task, is_told=False)
                elif task.state == ASSIGNED:
                    self._placement.take_back(task, is_told=True)
                state.tell_drop(client, job.job, task.tid, digest)
                task.failures += 1
                detail: dict[str, object] = {"run_ms": completion.run_us // 1_000}
                self._give_up(task, client, refusal, completion.attempt, detail)
                return True

        if is_current:
            self._placement.take_done(task)
        elif task.state == ASSIGNED:
            self._placement.take_back(task, is_told=True)
        self._placement.ran(job, task.spec.name, completion.run_us)
        if task.digest is None:
            self._raise_done(task, completion)
        elif task.digest != digest:
            self._placement.make_waiting(task)
            if not self._replace_result(task, completion):
                return True
        task.digest = digest
        task.size_bytes = completion.size_bytes
        self._become_done(task, client)
        return True

    def _tell_ended(self, client: Client, completion: Completion) -> None:
        """Tell a client again that a job has ended: it stored a value of it after that."""
        state = self._state
        ended = state.jobs.get(completion.job)
        keep = ended.keep if ended is not None else ()
        told = (state.slot, DropJob(completion.job, keep))
        drop_jobs = client.changes.drop_jobs
        if not drop_jobs or drop_jobs[-1] != told:
            drop_jobs.append(told)
            state.changes.views[client.cid] = None
        if ended is not None and completion.tid in keep:
            task = ended.tasks[completion.tid]
            if task.digest == completion.result_digest:
                state.add_holder(task, client)
            else:
                state.tell_drop(client, ended.job, task.tid, completion.result_digest)

    def _canonical_inputs(self, task: Task) -> str | None:
        """Return what an attempt must have consumed; None: that isn't known now."""
        tasks = task.job.tasks
        digests: list[str] = []
        for tid in task.spec.pretasks:
            pretask = tasks[tid]
            if pretask.digest is None or pretask.is_stale:
                return None
            digests.append(pretask.digest)
        return inputs_digest(digests)

    def _refuse_inline(self, task: Task, completion: Completion) -> str | None:
        """Return why the values for the scheduler can't be taken; None: they can."""
        inline = completion.inline
        total = 0
        for key in task.spec.keys:
            value = inline.get(key)
            if value is None:
                return f"task {task.tid} {task.spec.name!r} returned no value under key {key!r}"
            kind, text = value
            size = len(text)
            if kind == "bytes":
                size = size * 3 // 4 - text.count("=", -2)
            elif not text.isascii():
                size = len(text.encode())
            if size > self._inline_value_max:
                return (
                    f"task {task.tid} {task.spec.name!r} returned {size} bytes under key {key!r},"
                    f" more than {self._inline_value_max} (inline_value_bytes_max);"
                    " return large values under keys that start_task doesn't list"
                )
            total += size
        if total > self._inline_task_max:
            return (
                f"task {task.tid} {task.spec.name!r} returned {total} bytes under its keys,"
                f" more than {self._inline_task_max} (inline_task_bytes_max);"
                " return large values under keys that start_task doesn't list"
            )
        return None

    def _raise_done(self, task: Task, completion: Completion) -> None:
        job = task.job
        if job.finishing is not None:
            return
        number = job.event_count
        state = self._state
        task.event = number
        line = line_task_done(
            number, state.log_ms - job.submitted_ms, task.tid, task.spec.keys, completion.inline
        )
        if task.spec.keys:
            task.told = _told(line)
        state.raise_event(job, line)

    def _become_done(self, task: Task, client: Client) -> None:
        """Make an unassigned, unfinished task done, with a result that the client holds."""
        state = self._state
        job = task.job
        tasks = job.tasks
        job.counts[task.state] -= 1
        job.counts[DONE] += 1
        task.state = DONE
        task.is_stale = False
        task.error = None
        task.ahead = 0  # What was placed ahead can run now.
        changes = state.changes
        changes.tasks[task] = None
        changes.jobs[job] = None
        # As add_holder does; a task that wasn't done has no holders.
        task.holders = client.own
        held = client.holds.get(job.job)
        if held is None:
            held = client.holds[job.job] = {}
        held[task.tid] = task
        if task.dependents:
            placement = self._placement
            for tid in task.dependents:
                dependent = tasks.get(tid)
                if dependent is None or dependent.state >= DONE:
                    continue
                dependent.pending -= 1
                if dependent.pending == 0:
                    if dependent.state == WAITING:
                        placement.make_ready(dependent)
                    else:
                        placement.input_done(dependent)
        if task.spec.pretasks:
            self.let_go_of_inputs(task)
        if task.is_released and not task.users:
            self.forget(task)
        if job.finishing is not None and task.is_wanted:
            self._lifecycle.try_finish(job)

    def let_go_of_inputs(self, task: Task) -> None:
        """Note that a task has finished: it needs its inputs no more."""
        tasks = task.job.tasks
        for tid in task.spec.pretasks:
            pretask = tasks[tid]
            pretask.users -= 1
            if pretask.is_released and not pretask.users and pretask.state >= DONE:
                self.forget(pretask)

    def forget(self, task: Task) -> None:
        """Let a released task go, with its values; nobody uses it any more."""
        state = self._state
        state.drop_everywhere(task)
        tasks = task.job.tasks
        del tasks[task.tid]
        for tid in task.spec.pretasks:
            pretask = tasks.get(tid)
            if pretask is None:
                continue
            # A task that all others use must not keep a list of all that there ever were.
            pretask.gone += 1
            dependents = pretask.dependents or []
            if pretask.gone > GONE_MAX and 2 * pretask.gone > len(dependents):
                pretask.dependents = [other for other in dependents if other in tasks]
                pretask.gone = 0
        state.changes.tasks.pop(task, None)
        for row in deletion_rows(task):
            state.put_row(row)

    # --- a result that changes ---

    def _replace_result(self, task: Task, completion: Completion) -> bool:
        """Prepare for other bytes than a task had before; False: the job has failed by it."""
        job = task.job
        if task.spec.keys and task.event is not None:
            line = line_task_done(task.event, 0, task.tid, task.spec.keys, completion.inline)
            if _told(line) != task.told:
                self._lifecycle.fail(
                    job,
                    f"task {task.tid} {task.spec.name!r} was computed again, after its result had"
                    " been lost, and returned other values than its scheduler was told; let it"
                    " depend on nothing but its arguments and its seed",
                )
                return False
        self._state.note(
            f"job={job.job} tid={task.tid} has another result than before; what used it"
            " is computed again"
        )
        for tid in task.dependents or ():
            dependent = job.tasks.get(tid)
            if dependent is None or dependent.digest is None or dependent.is_stale:
                continue
            if dependent.state == DONE:
                self._state.drop_everywhere(dependent)
                dependent.is_stale = True
                if not self._compute_again(dependent):
                    return False
            elif dependent.state < DONE:
                dependent.is_stale = True
                self._state.changes.tasks[dependent] = None
        return True

    # --- lost results ---

    def lose_holder(self, task: Task, client: Client) -> None:
        """Note that a client has lost a result; compute it again if it was the last."""
        self._state.remove_holder(task, client.cid)
        if not task.job.is_running:
            return
        if task.holders:
            self._state.renew_inputs(task)
        elif task.state == DONE and (task.users or task.is_wanted):
            self.need(task)

    def need(self, task: Task) -> bool:
        """Compute a done task again if nobody holds its result; False: the job has failed."""
        if task.state == DONE and not task.holders:
            return self._compute_again(task)
        return True

    def _lose(self, client: Client, lost: Lost) -> None:
        held = client.holds.get(lost.job)
        task = held.get(lost.tid) if held is not None else None
        if task is not None:
            self._state.note(f"job={lost.job} tid={lost.tid} cid={client.cid} lost its copy")
            self.lose_holder(task, client)

    def _compute_again(self, task: Task) -> bool:
        """Let a done task without holders run again, after those of its inputs that are lost.

        Returns:
            False: that is impossible, and the job has failed (or ended) by it.
        """
        job = task.job
        tasks = job.tasks
        placement = self._placement
        stack = [task]
        while stack:
            one = stack.pop()
            if one.state != DONE:
                continue
            for tid in one.spec.pretasks:
                pretask = tasks.get(tid)
                if pretask is None or pretask.state in (FAILED, KILLED):
                    what = "released" if pretask is None else STATES[pretask.state]
                    self._lifecycle_error(
                        one, f"its pretask {tid} was {what}; release a task only when"
                        " nothing that depends on it is needed any more"
                    )  # fmt: skip
                    return False
            pending = 0
            for tid in one.spec.pretasks:
                pretask = tasks[tid]
                pretask.users += 1
                if pretask.state != DONE:
                    pending += 1
                elif not pretask.holders:
                    stack.append(pretask)  # It adds itself to our pending inputs then.
            one.pending = pending
            dependents = [
                dependent
                for dependent in map(tasks.get, one.dependents or ())
                if dependent is not None and dependent.state < DONE
            ]
            # Before our own state changes: they were placed while we were done.
            for dependent in dependents:
                if dependent.state == ASSIGNED:
                    placement.take_back(dependent, is_told=True)
            placement.make_waiting(one)
            for dependent in dependents:
                dependent.pending += 1
                if dependent.state == READY:
                    placement.make_waiting(dependent)
            if pending == 0:
                placement.make_ready(one)
            again = self._state.changes.again
            again[job.job] = again.get(job.job, 0) + 1
        return True

    def _lifecycle_error(self, task: Task, why: str) -> None:
        """End a job in which a result is lost that can't be computed again."""
        job = task.job
        if job.finishing is not None:
            self._lifecycle.give_up_finish(job)
            return
        self._lifecycle.fail(
            job,
            f"the result of task {task.tid} {task.spec.name!r} was lost and can't be computed"
            f" again: {why}",
        )

    def restore_held(self, task: Task, client: Client) -> None:
        """Take back the old bytes of a result that is being computed again."""
        if task.state == ASSIGNED:
            self._placement.take_back(task, is_told=True)
        restored = self._state.changes.restored
        restored[task.job.job] = restored.get(task.job.job, 0) + 1
        self._become_done(task, client)

    # --- failures ---

    def _fail_attempt(self, client: Client, failure: Failure) -> None:
        job = self._state.running.get(failure.job)
        task = job.tasks.get(failure.tid) if job is not None else None
        if (
            job is None
            or task is None
            or task.state != ASSIGNED
            or task.cid != client.cid
            or task.attempt != failure.attempt
        ):
            return  # Of an older attempt: it changes nothing.
        self._placement.take_back(task, is_told=False)
        task.failures += 1
        task.failed_on = client.cid
        task.error = bounded(failure.error)
        retries = task.spec.retries if task.spec.retries is not None else job.retries
        self._state.note(
            f"job={job.job} tid={task.tid} attempt={failure.attempt} cid={client.cid}"
            f" failed ({task.failures} of {retries + 1}):"
            f" {on_one_line(task.error, _NOTED_CHARACTERS_MAX)}"
        )
        detail = clean_detail(failure.detail, self._state.rules.failure_text_bytes_max)
        if failure.fatal or task.failures > retries:
            self._give_up(task, client, task.error, failure.attempt, detail)
        else:
            self._record(task, client, task.error, failure.attempt, detail, is_final=False)

    def _record(
        self,
        task: Task,
        client: Client,
        error: str,
        attempt: int,
        detail: dict[str, object],
        *,
        is_final: bool,
    ) -> None:
        record_failure(
            self._state,
            task,
            client,
            attempt=attempt,
            retries=task.spec.retries if task.spec.retries is not None else task.job.retries,
            error=error,
            detail=detail,
            is_final=is_final,
        )

    def _give_up(
        self, task: Task, client: Client, error: str, attempt: int, detail: dict[str, object]
    ) -> None:
        """Fail an unassigned task for good."""
        state = self._state
        job = task.job
        self._record(task, client, error, attempt, detail, is_final=True)
        attempts = "1 attempt" if task.failures == 1 else f"{task.failures} attempts"
        text = (
            f"task {task.tid} {task.spec.name!r} failed after {attempts};"
            f" last on client {client.cid}: {error}"
        )
        if task.digest is not None:
            self._lifecycle_error(task, text)
            return
        job.counts[task.state] -= 1
        job.counts[FAILED] += 1
        task.state = FAILED
        task.error = text
        state.changes.tasks[task] = None
        state.changes.jobs[job] = None
        self.let_go_of_inputs(task)
        if job.finishing is None:
            full = {
                **detail,
                "name": task.spec.name,
                "attempt": attempt,
                "attempts": task.failures,
                "cid": client.cid,
                "host": client.hostname,
            }
            line = line_task_failed(job.event_count, state.time_ms(job), task.tid, text, full)
            state.raise_event(job, line)

    # --- killing ---

    def kill(self, task: Task) -> None:
        """Kill a task unless it is done, and whatever depends on it, unless done."""
        placement = self._placement
        tasks = task.job.tasks
        stack = [task]
        seen: dict[TaskId, None] = {task.tid: None}
        while stack:
            one = stack.pop()
            for tid in one.dependents or ():
                if tid not in seen and tid in tasks:
                    seen[tid] = None
                    stack.append(tasks[tid])
            if one.state >= DONE:
                continue
            if one.state == ASSIGNED:
                placement.take_back(one, is_told=True)
            one.job.counts[one.state] -= 1
            one.job.counts[KILLED] += 1
            one.state = KILLED
            one.is_stale = False
            self._state.changes.tasks[one] = None
            self._state.changes.jobs[one.job] = None
            self.let_go_of_inputs(one)
            if one.is_released and not one.users:
                self.forget(one)
