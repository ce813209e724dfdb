"""Results of tasks: which one counts, what a failure does, and how lost results come back.

**Canonical results.** The first completion that counts fixes the digest of a task's result. It
counts on two conditions, whichever attempt it is of. The task is unfinished. And the attempt
consumed the results that are now canonical for its pretasks. Otherwise the attempt is void, and
the task is placed anew. A later completion with the same digest is one more holder. One with
other bytes counts for nothing, and its client is told to drop them.

**Lost results.** If the last holder of a done task is gone and somebody needs the result, the
task is computed again. Inputs that are lost, too, are computed before it. `digest` keeps the old
result meanwhile:

- Its unfinished dependents go back to waiting, wherever they were. This is the simplest rule
  that is right. A client that has the input already may still finish its attempt. The completion
  counts: the digest of its inputs is still canonical.
- A holder of the old bytes may come back. It restores the result.
- If the new digest is the same, nobody notices. If it is another, unfinished dependents use the
  new result, and done ones are computed again likewise (`is_stale`: their old bytes don't come
  back). If the scheduler was told values that would differ now, the job fails with the remedy.

**Failures** count if they are of the current attempt. A task without retries left is failed,
and its scheduler is told. If the task was done before, and can't be computed again, the job fails.
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
from tasksprint.coordination.placement import estimates
from tasksprint.coordination.quoting import quoted
from tasksprint.coordination.state import State
from tasksprint.coordination.task_states import (
    ASSIGNED,
    DONE,
    FAILED,
    KILLED,
    STATES,
)
from tasksprint.coordination.transitions import Transitions
from tasksprint.coordination.view import DropJob

__all__ = ["Results"]

# The length of an error in a line of the log.
_NOTED_CHARACTERS_MAX = 300


def _told(line: bytes) -> str:
    """Return a digest of the task and the values in a task_done line."""
    return hashlib.sha256(line.partition(b',"tid":')[2]).hexdigest()[:32]


class Results:
    """Applies the words of clients about attempts and values."""

    __slots__ = (
        "_inline_task_max", "_inline_value_max", "_lifecycle", "_state", "_transitions"
    )  # fmt: skip

    def __init__(self, state: State, transitions: Transitions, lifecycle: Lifecycle) -> None:
        self._state = state
        self._transitions = transitions
        self._lifecycle = lifecycle
        self.take_limits()

    def take_limits(self) -> None:
        """Take over the limits of the state's rules, at the start and after a change."""
        self._inline_value_max = self._state.rules.inline_value_bytes_max
        self._inline_task_max = self._state.rules.inline_task_bytes_max

    def apply_report(self, client: Client, report: Report) -> None:
        """Apply a report of a living client: completions, failures, then losses."""
        # A completion may stand before the one that makes its input known. A second pass, by
        # tid, puts them right: tasks name earlier ones only.
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
        """Apply a completion; False: an input isn't known yet, so try again (never if final)."""
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
                self._transitions.take_back(task, is_told=False)
            state.tell_drop(client, job.job, task.tid, digest)
            return True
        if task.spec.keys:
            refusal = self._refuse_inline(task, completion)
            if refusal is not None:
                if is_current:
                    self._transitions.take_back(task, is_told=False)
                elif task.state == ASSIGNED:
                    self._transitions.take_back(task, is_told=True)
                state.tell_drop(client, job.job, task.tid, digest)
                task.failures += 1
                detail: dict[str, object] = {"run_ms": completion.run_us // 1_000}
                self._give_up(task, client, refusal, completion.attempt, detail)
                return True

        if task.state == ASSIGNED and not is_current:
            self._transitions.take_back(task, is_told=True)
        estimates.learn(state, job, task.spec.name, completion.run_us)
        if task.digest is None:
            self._raise_done(task, completion)
        elif task.digest != digest:
            self._transitions.set_aside(task)
            if not self._replace_result(task, completion):
                return True
        task.digest = digest
        task.size_bytes = completion.size_bytes
        self._become_done(task, client)
        return True

    def _tell_ended(self, client: Client, completion: Completion) -> None:
        """Tell a client again that a job has ended: it has stored a value of the job since."""
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
        """Return the digest of the inputs that an attempt must have; None: not known now."""
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
                return f"{self._named(task)} returned no value under key {self._quoted(key)}"
            kind, text = value
            size = len(text)
            if kind == "bytes":
                size = size * 3 // 4 - text.count("=", -2)
            elif not text.isascii():
                size = len(text.encode())
            if size > self._inline_value_max:
                return (
                    f"{self._named(task)} returned {size} bytes under key {self._quoted(key)},"
                    f" more than {self._inline_value_max} (inline_value_bytes_max);"
                    " return large values under keys that start_task doesn't list"
                )
            total += size
        if total > self._inline_task_max:
            return (
                f"{self._named(task)} returned {total} bytes under its keys,"
                f" more than {self._inline_task_max} (inline_task_bytes_max);"
                " return large values under keys that start_task doesn't list"
            )
        return None

    def _named(self, task: Task) -> str:
        return f"task {task.tid} {self._quoted(task.spec.name)}"

    def _quoted(self, text: str) -> str:
        return quoted(text, self._state.rules)

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
        """Make an unfinished task done, with a result that the client holds."""
        self._transitions.complete(task, client)
        job = task.job
        if job.finishing is not None and task.is_wanted:
            self._lifecycle.try_finish(job)

    # --- a result that changes ---

    def _replace_result(self, task: Task, completion: Completion) -> bool:
        """Prepare for a result with other bytes than before; False: the job has failed by it."""
        job = task.job
        if task.spec.keys and task.event is not None:
            line = line_task_done(task.event, 0, task.tid, task.spec.keys, completion.inline)
            if _told(line) != task.told:
                self._lifecycle.fail(
                    job,
                    f"{self._named(task)} was computed again, after its result had"
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
        """Let a done task without holders run again, after its lost inputs.

        Returns:
            False: that is impossible, and the job has failed (or ended) by it.
        """
        job = task.job
        tasks = job.tasks
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
            for tid in one.spec.pretasks:
                pretask = tasks[tid]
                if pretask.state == DONE and not pretask.holders:
                    stack.append(pretask)  # It adds itself to our pending inputs then.
            self._transitions.redo(one)
        return True

    def _lifecycle_error(self, task: Task, why: str) -> None:
        """End a job: a result is lost, and can't be computed again."""
        job = task.job
        if job.finishing is not None:
            self._lifecycle.give_up_finish(job)
            return
        self._lifecycle.fail(
            job,
            f"the result of {self._named(task)} was lost and can't be computed"
            f" again: {why}",
        )

    def restore_held(self, task: Task, client: Client) -> None:
        """Take back the old bytes of a result that is being computed again."""
        if task.state == ASSIGNED:
            self._transitions.take_back(task, is_told=True)
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
            return  # An older attempt failed: that changes nothing.
        self._transitions.take_back(task, is_told=False)
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
            f"{self._named(task)} failed after {attempts};"
            f" last on client {client.cid}: {error}"
        )
        if task.digest is not None:
            self._lifecycle_error(task, text)
            return
        self._transitions.give_up(task, text)
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
