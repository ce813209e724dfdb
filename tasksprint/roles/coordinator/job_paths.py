"""Requests of people: submitting jobs, and how jobs, their tasks and the clients stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tasksprint.consensus import Replica
from tasksprint.coordination.commands import CancelJob, ForgetJob, encode_command
from tasksprint.coordination.schedule import Schedule
from tasksprint.encoding import decode_json
from tasksprint.errors import Refused
from tasksprint.ids import JobId, TaskId
from tasksprint.net.gate import Access
from tasksprint.net.router import Request, Response, json_response
from tasksprint.roles.coordinator.archives import Archives
from tasksprint.roles.coordinator.disk_space import DiskSpace
from tasksprint.roles.coordinator.job_notes import JobNotes, cause_of_end, task_of_failure
from tasksprint.roles.coordinator.members import MemberChanges
from tasksprint.roles.coordinator.paths import Paths, body_integer, body_object, body_text
from tasksprint.roles.coordinator.ports import Log
from tasksprint.roles.coordinator.runners import Runners
from tasksprint.roles.coordinator.submitting import read_submit
from tasksprint.roles.coordinator.ticks import Ticks
from tasksprint.roles.coordinator.told import ToldHere
from tasksprint.roles.waiters import Waiters
from tasksprint.settings import Settings

__all__ = ["JobPaths"]


class JobPaths:
    """The paths of jobs.

    Args:
        changes: Woken when something about a job changes.
    """

    def __init__(
        self,
        settings: Settings,
        log: Log,
        ticks: Ticks,
        replica: Replica,
        archives: Archives,
        members: MemberChanges,
        disk_space: DiskSpace,
        runners: Runners,
        notes: JobNotes,
        told: ToldHere,
        changes: Waiters[JobId],
        *,
        now_ms: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._log = log
        self._ticks = ticks
        self._replica = replica
        self._archives = archives
        self._members = members
        self._disk_space = disk_space
        self._runners = runners
        self._notes = notes
        self._told = told
        self._changes = changes
        self._now_ms = now_ms

    def add_to(self, paths: Paths) -> None:
        """Add them."""
        add, read, submit = paths.add, Access.READ, Access.SUBMIT
        archive_max = self._settings.archive_bytes_max
        add("POST", "/v1/programs", self._program, access=submit, body_bytes_max=archive_max)
        add("POST", "/v1/jobs", self._submit, access=submit)
        add("GET", "/v1/jobs", self._jobs, access=read)
        add("GET", "/v1/jobs/{job}", self._job, access=read)
        add("GET", "/v1/jobs/{job}/tasks/{tid}", self._task, access=read)
        add("GET", "/v1/jobs/{job}/log", self._job_log, access=read)
        add("POST", "/v1/jobs/{job}/cancel", self._cancel, access=submit)
        add("POST", "/v1/jobs/{job}/forget", self._forget, access=submit)
        add("GET", "/v1/clients", self._clients, access=read)

    async def _program(self, request: Request) -> Response:
        """Keep a job's archive on a quorum of the members, this one among them.

        The leader does: it hands over if its disk is slow.
        """
        if self._replica.is_leader:
            self._disk_space.require()
        kept = self._archives.take(request.body)
        return json_response({"digest": await self._members.while_leading(kept)})

    async def _submit(self, request: Request) -> Response:
        command = read_submit(request.body)
        if self._disk_space.is_short:
            schedule = await self._log.confirm_read()
            # One that was taken before, and is only repeated, is answered again.
            if (reply := schedule.reply_to(command.sender, command.request)) is not None:
                return _reply(reply, refused=400)
            self._disk_space.require()
        self._ticks.tick_now()
        archive = self._archives.obtain_sound(command.program)
        found = await self._members.while_leading(archive)
        if found is None:
            raise Refused(
                f"no archive {command.program!r} here",
                status=404,
                hint="POST it to /v1/programs first",
            )
        return await self._decide(encode_command(command), refused=400)

    async def _cancel(self, request: Request) -> Response:
        body = body_object(request)
        command = CancelJob(
            sender=body_text(body, "sender"),
            request=body_integer(body, "request"),
            job=JobId(request.integer("job")),
            reason=body_text(body, "reason"),
        )
        self._ticks.tick_now()
        return await self._decide_about(command)

    async def _forget(self, request: Request) -> Response:
        body = body_object(request)
        command = ForgetJob(
            sender=body_text(body, "sender"),
            request=body_integer(body, "request"),
            job=JobId(request.integer("job")),
        )
        return await self._decide_about(command)

    async def _jobs(self, request: Request) -> Response:
        return json_response((await self._log.confirm_read()).jobs(self._told.of()))

    async def _job(self, request: Request) -> Response:
        """Describe a job.

        With `wait_ms` and `seen`, answer as soon as it differs from the seen one. With `heard`
        instead, answer as soon as there are news: its end, a line of its scheduler, a failure.
        """
        job = JobId(request.integer("job"))
        wait_ms = min(request.query_integer("wait_ms", 0), self._settings.view_poll_max_ms)
        seen, heard = request.query.get("seen"), request.query.get("heard")
        while True:
            schedule = await self._log.confirm_read()
            summary = schedule.job_summary(job, self._told.of(job))
            if summary is None:
                raise Refused(f"no job {job}", status=404)
            version, news = _version(summary), schedule.job_news(job)
            is_awaited = version == seen if heard is None else news == heard
            if wait_ms <= 0 or not is_awaited or summary["state"] != "running":
                more = await self._failure_of(summary)
                return json_response({**summary, **more, "version": version, "news": news})
            if heard is None:
                await self._changes.wait(job, wait_ms)
            else:
                await self._wait_news(job, heard, wait_ms)
            wait_ms = 0

    async def _wait_news(self, job: JobId, heard: str, wait_ms: int) -> None:
        """Wait until there are news of a job; it may change a thousand times before."""
        end_ms = self._now_ms() + wait_ms
        while (left_ms := end_ms - self._now_ms()) > 0:
            await self._changes.wait(job, left_ms)
            if self._log.require_schedule().job_news(job) != heard:
                return

    async def _failure_of(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Return the failure that a failed job ended with, if any."""
        if summary["state"] != "failed" or not summary["failures"]:
            return {}
        kept = await self._notes.failures(summary["job"])
        cause = cause_of_end(summary["error"] or "", kept)
        return {} if cause is None else {"failure": cause}

    async def _task(self, request: Request) -> Response:
        job, tid = JobId(request.integer("job")), TaskId(request.integer("tid"))
        schedule = await self._log.confirm_read()
        info = schedule.task_info(job, tid)
        failures: list[dict[str, Any]] = []
        if schedule.job_news(job) is not None and (info is None or info["failures"]):
            failures = await self._notes.failures(job, tid=tid)
        if info is None:
            if not failures or not failures[-1]["final"]:
                raise Refused(_no_task(schedule, job, tid), status=404)
            info = task_of_failure(job, failures[-1])
        return json_response({**info, "failure": failures[-1] if failures else None})

    async def _job_log(self, request: Request) -> Response:
        """Return the scheduler's log lines, the failed attempts, and its output here.

        With `first_line` and `first_failure` only those from these numbers on, with `tid` only
        failures of that task.
        """
        job = JobId(request.integer("job"))
        first_line = request.query_integer("first_line", 0)
        first_failure = request.query_integer("first_failure", 0)
        tid = request.query_integer("tid", -1)
        summary = self._log.require_schedule().job_summary(job)
        if summary is None:
            raise Refused(f"no job {job}", status=404)
        of_task = None if tid < 0 else TaskId(tid)
        lines = await self._notes.log_lines(job, first_line)
        failures = await self._notes.failures(job, first_failure, of_task)
        return json_response(
            {
                "job": job,
                "replica": self._replica.me,
                "log": lines,
                "log_lines": summary["log_lines"],
                "failures": failures,
                "output": self._runners.output(job),
            }
        )

    async def _clients(self, request: Request) -> Response:
        clients: list[Any] = (await self._log.confirm_read()).client_summaries()
        complaint_of = self._told.complaint_of
        return json_response([{**one, "complaint": complaint_of(one["cid"])} for one in clients])

    async def _decide_about(self, command: CancelJob | ForgetJob) -> Response:
        response = await self._decide(encode_command(command), refused=409)
        if response.status == 409:
            summary = self._log.require_schedule().job_summary(command.job)
            if summary is None:
                return Response(404, response.body)
        return response

    async def _decide(self, command: bytes, *, refused: int) -> Response:
        """Answer with the log's reply; if that is a no, with the status `refused`."""
        return _reply(await self._log.decide(command), refused=refused)


def _reply(reply: bytes, *, refused: int) -> Response:
    """Return the answer to a person's command."""
    return Response(refused if "error" in decode_json(reply) else 200, reply)


def _no_task(schedule: Schedule, job: JobId, tid: TaskId) -> str:
    """Say why a task isn't known."""
    summary: Any = schedule.job_summary(job)
    if summary is None:
        return f"no job {job}"
    started = sum(summary["tasks"].values())
    if tid >= started:
        return f"job {job} has no task {tid}: it started {started} so far, numbered from 0"
    return (
        f"task {tid} of job {job} is forgotten: an ended job keeps the tasks that its "
        "scheduler named in finish(taskids=…), a running one all but those released"
    )


def _version(summary: dict[str, Any]) -> str:
    """Return a short text that changes when people see the job change."""
    counts = summary["tasks"]
    state = summary["state"] + (" waits" if summary["obstacle"] else "")
    return f"{state}:" + ",".join(str(counts[state]) for state in sorted(counts))
