"""The schedulers of all running jobs on this replica; finds those with something to do.

A coordinator may run a thousand jobs that wait for something. A turn of its loop looks only at
two kinds: at stirred ones (by the log, their process, or a reading for them), and at those with
a deadline that has come. The others cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from heapq import heapify, heappop, heappush

from tasksprint.coordination.schedule import Applied
from tasksprint.ids import JobId
from tasksprint.roles.coordinator.scheduler_runner import RunnerPorts, SchedulerRunner

__all__ = ["Runners"]

# For so many ended jobs the schedulers' output is kept in memory.
_OUTPUTS_MAX = 100
# Deadlines that don't hold any more and wait in the heap, beside two for each runner.
_STALE_MAX = 64


class Runners:
    """One `SchedulerRunner` for each running job."""

    def __init__(self, ports: RunnerPorts) -> None:
        self._ports = ports
        self._runners: dict[JobId, SchedulerRunner] = {}
        self._stirred: dict[JobId, None] = {}
        # A heap of (ms, job), and each job's valid entry. Invariant: if a runner isn't stirred
        # and has a deadline, it has an entry for that, or an earlier one. Most deadlines are
        # put off again and again, and a look too early costs less.
        self._deadlines: list[tuple[int, JobId]] = []
        self._queued_ms: dict[JobId, int] = {}
        self._outputs: dict[JobId, str] = {}

    def __len__(self) -> int:
        """How many schedulers run, or are about to."""
        return len(self._runners)

    def items(self) -> Iterable[tuple[JobId, SchedulerRunner]]:
        """Return all, by job."""
        return self._runners.items()

    def start(self, job: JobId, events: Sequence[bytes] = ()) -> None:
        """Run the scheduler of a job from now on."""
        self._runners[job] = SchedulerRunner(
            self._ports, job, events, stir=partial(self.stir, job)
        )
        self.stir(job)

    def stir(self, job: JobId) -> None:
        """Look at this runner in the next turn, for which this asks."""
        self._stirred[job] = None
        self._ports.turns.wake()

    def applied(self, applied: Applied) -> None:
        """Hand on an entry's news for schedulers."""
        runners, stirred = self._runners, self._stirred
        for job, event in applied.events:
            if (runner := runners.get(job)) is not None:
                runner.event_chosen(event)
                stirred[job] = None
        for job, answer in applied.answers:
            if (runner := runners.get(job)) is not None:
                runner.answer_chosen(answer)
                stirred[job] = None

    def get(self, job: JobId) -> SchedulerRunner | None:
        """Return the scheduler of this job, if there is one."""
        return self._runners.get(job)

    def job_ended(self, job: JobId) -> None:
        """Let the scheduler of a job that has ended go."""
        if (runner := self._runners.get(job)) is not None:
            runner.job_ended()
            self._stirred[job] = None

    def lead(self, is_leader: bool) -> None:
        """Tell all whether this replica leads."""
        for job, runner in self._runners.items():
            runner.lead(is_leader)
            self._stirred[job] = None

    def stop_all(self) -> None:
        """Kill all processes, and hear nothing more of them."""
        for runner in self._runners.values():
            runner.stop()

    def clear(self) -> None:
        """Kill all, and forget them."""
        self.stop_all()
        self._runners.clear()
        self._stirred.clear()
        self._deadlines.clear()
        self._queued_ms.clear()

    def turn(self, now_ms: int) -> None:
        """Carry out the orders of all hosts that have something to do now."""
        deadlines, stirred = self._deadlines, self._stirred
        while deadlines and deadlines[0][0] <= now_ms:
            due_ms, job = heappop(deadlines)
            if self._queued_ms.get(job) == due_ms:
                del self._queued_ms[job]
                stirred[job] = None
        if not stirred:
            return
        self._stirred = {}
        for job in stirred:
            runner = self._runners.get(job)
            if runner is None:
                continue
            runner.turn(now_ms)
            if runner.is_done:
                del self._runners[job]
                self._queued_ms.pop(job, None)
                self._outputs[job] = runner.output
                if len(self._outputs) > _OUTPUTS_MAX:
                    del self._outputs[next(iter(self._outputs))]
            elif (deadline_ms := runner.deadline_ms) is not None:
                queued_ms = self._queued_ms.get(job)
                if queued_ms is None or deadline_ms < queued_ms:
                    self._queued_ms[job] = deadline_ms
                    heappush(deadlines, (deadline_ms, job))
        if len(deadlines) > 2 * len(self._queued_ms) + _STALE_MAX:
            deadlines[:] = [(queued_ms, job) for job, queued_ms in self._queued_ms.items()]
            heapify(deadlines)

    @property
    def deadline_ms(self) -> int | None:
        """When `turn` has something to do, unless something happens before."""
        return self._deadlines[0][0] if self._deadlines else None

    def output(self, job: JobId) -> str:
        """Return the stderr of a job's scheduler on this replica."""
        if (runner := self._runners.get(job)) is not None:
            return runner.output
        return self._outputs.get(job, "")
