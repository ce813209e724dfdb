"""The coordinator's paths: what clients, commands and other coordinators ask by HTTP.

Each handler turns a request into a command or a question, and the answer back. Only
the leader decides and answers what must be current; any other says 421 and who
leads, if it knows. docs/protocol.md describes every path.
"""

from __future__ import annotations

import hashlib
import logging
from functools import partial
from typing import Any

from tasksprint.asking.leader import MEMBERS_HEADER, MISDIRECTED
from tasksprint.coordination import observations
from tasksprint.coordination.clients import Client
from tasksprint.coordination.commands import (
    CancelJob,
    ForgetJob,
    JobObserved,
    JoinClient,
    LeaveClient,
    NodesAttached,
    Report,
    decode_command,
    encode_command,
)
from tasksprint.coordination.view import encode_view
from tasksprint.encoding import decode_json
from tasksprint.errors import Refused, RemoteProtocolError, SettingsError
from tasksprint.ids import REPLICA_ID_MAX, ClientId, Incarnation, JobId, ReplicaId, Slot, TaskId
from tasksprint.net.addresses import parse_address
from tasksprint.net.gate import Access
from tasksprint.net.router import Handler, Later, Request, Response, Router, json_response
from tasksprint.roles.coordinator.coordinator import Coordinator, NotLeader
from tasksprint.roles.coordinator.job_notes import (
    cause_of_end,
    read_failures,
    read_log_lines,
    task_of_failure,
)
from tasksprint.roles.coordinator.metrics import coordinator_metrics, coordinator_readiness
from tasksprint.roles.coordinator.status import coordinator_status
from tasksprint.roles.coordinator.submitting import read_submit
from tasksprint.roles.coordinator.told import ToldHere
from tasksprint.settings import RULES

__all__ = ["CoordinatorPaths"]

_log = logging.getLogger("tasksprint.coordinator")

_BYTES = "application/octet-stream"


class CoordinatorPaths:
    """The routes of one coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._settings = coordinator.settings
        self._told = ToldHere(coordinator)
        self.router = Router()
        add = self._add
        read = Access.READ
        archive_max = coordinator.settings.archive_bytes_max
        add("GET", "/healthz", self._healthz, access=Access.OPEN)
        add("GET", "/readyz", self._readyz, access=Access.OPEN)
        add("GET", "/metrics", self._metrics, access=read)
        add("POST", "/v1/commands", self._command)
        add("GET", "/v1/view", self._view)
        add("POST", "/v1/archives", self._keep_archive, body_bytes_max=archive_max)
        add("POST", "/v1/archives/lacking", self._lacking)
        add("GET", "/v1/archives/{digest:text}", self._archive)
        add(
            "POST",
            "/v1/programs",
            self._program,
            access=Access.SUBMIT,
            body_bytes_max=archive_max,
        )
        add("POST", "/v1/jobs", self._submit, access=Access.SUBMIT)
        add("GET", "/v1/jobs", self._jobs, access=read)
        add("GET", "/v1/jobs/{job}", self._job, access=read)
        add("GET", "/v1/jobs/{job}/tasks/{tid}", self._task, access=read)
        add("GET", "/v1/jobs/{job}/log", self._job_log, access=read)
        add("POST", "/v1/jobs/{job}/cancel", self._cancel, access=Access.SUBMIT)
        add("POST", "/v1/jobs/{job}/forget", self._forget, access=Access.SUBMIT)
        add("GET", "/v1/clients", self._clients, access=read)
        add("GET", "/v1/members", self._members, access=read)
        add("POST", "/v1/members", self._change_members, access=Access.OPERATE)
        add("GET", "/v1/identity", self._identity)
        add("GET", "/v1/status", self._status, access=read)
        add("POST", "/v1/stop", self._stop, access=Access.OPERATE)
        coordinator.copies.add_to(add)
        coordinator.agreement.add_to(self.router)

    def _add(self, method: str, pattern: str, handler: Handler, **options: Any) -> None:
        """Add a path that refuses who asks for another cluster."""

        def answer(request: Request) -> Any:
            cluster = request.query.get("cluster")
            is_exact = "exact" in request.query
            refused = None if cluster is None else self._refuse(cluster, is_exact=is_exact)
            return refused or handler(request)

        self.router.add(method, pattern, answer, **options)

    def _refuse(self, cluster: str, *, is_exact: bool) -> Response | None:
        """Refuse who belongs to another cluster than this one, or those that it went on from.

        A cluster that lost its majority may be recovered by one member; should the others
        come back, they answer as before, at addresses that the clients know. Clients come along
        from a former cluster; people who name it mean that one, which may run still.
        """
        founding = self._coordinator.replica.founding
        if founding is None or cluster == founding.cluster:
            return None
        if cluster in founding.origins and not is_exact:
            return None
        error = (
            f"replica {self._coordinator.options.me} belongs to cluster {founding.cluster!r}, "
            f"not to {cluster!r}"
        )
        told = {"error": error, "leader": None, "cluster": founding.cluster}
        return json_response(told, status=MISDIRECTED)

    # --- what clients ask ---

    def _command(self, request: Request) -> Response | Later:
        """Have a client's command decided: join, report, leave."""
        command = decode_command(request.body)
        match command:
            case JoinClient() | Report():
                if isinstance(command, JoinClient):
                    _check_join(command)
                # A client may be joining again and again, as no answer reaches it.
                self._coordinator.heard(command.incarnation)
            case LeaveClient() | NodesAttached() | JobObserved(kind=observations.NODE_RUNTIME):
                pass
            case _:
                raise Refused(f"a {type(command).__name__} has a path of its own", status=400)
        later = Later()
        try:
            self._coordinator.decide_then(request.body, command, partial(self._answer, later))
        except NotLeader as error:
            return not_leader_response(error)
        return later

    def _answer(self, later: Later, reply: bytes | None) -> None:
        if reply is None:
            later.answer(not_leader_response(self._coordinator.not_leader()))
        else:
            later.answer(Response(200, reply))

    async def _view(self, request: Request) -> Response:
        coordinator = self._coordinator
        cid = ClientId(request.query_integer("cid", 0))
        since = Slot(request.query_integer("since", 0))
        wait_ms = min(
            request.query_integer("wait_ms", 0),
            self._settings.view_poll_max_ms,
            RULES.liveness_span_ms // 3,
        )
        incarnation = Incarnation(request.query.get("incarnation", ""))
        is_confirmed = False
        while True:
            try:
                schedule = coordinator.require_schedule()
                # A state that lacks what a former leader decided would send living clients
                # to join again, or take back what they know.
                if not coordinator.is_current:
                    raise coordinator.not_leader()
                view = None
                is_ahead = since > schedule.applied_slot
                if is_ahead and is_confirmed:
                    # No state has that version: it was made up, or all disks went back in
                    # time. What the client runs is of a future that never came, and the
                    # numbers of jobs, tasks and attempts are given a second time: it begins
                    # anew, or its results would count for other tasks of the same numbers.
                    return _not_alive(schedule.replacement(cid, incarnation))
                if not is_ahead:
                    view = schedule.view(cid, incarnation, since)
                if view is None and not is_confirmed:
                    # A leader that was stopped for a while may not know that it lost office.
                    await coordinator.confirm_read()
                    is_confirmed = True
                    continue
            except NotLeader as error:
                return not_leader_response(error)
            if view is None:
                return _not_alive(schedule.replacement(cid, incarnation))
            coordinator.heard(incarnation)
            self._told.heard(cid, request.query)
            if wait_ms <= 0 or not view.is_empty:
                members = ",".join(coordinator.members.addresses().values())
                return Response(200, encode_view(view), headers={MEMBERS_HEADER: members})
            await coordinator.wait_view(cid, wait_ms)
            wait_ms = 0

    async def _keep_archive(self, request: Request) -> Response:
        programs = self._coordinator.programs
        if not await programs.has(hashlib.sha256(request.body).hexdigest()):
            self._coordinator.disk_space.require()
        return json_response({"digest": await programs.keep(request.body)})

    async def _lacking(self, request: Request) -> Response:
        """Tell another member which archives it has to bring."""
        digests = _object(request).get("digests")
        if not isinstance(digests, list) or not all(isinstance(each, str) for each in digests):
            raise RemoteProtocolError(f"'digests' is {digests!r:.80}, expected a list of strings")
        return json_response({"lacking": await self._coordinator.programs.lacking(digests)})

    async def _archive(self, request: Request) -> Response:
        digest = request.text("digest")
        programs = self._coordinator.programs
        # Members ask each other only for what they have themselves.
        is_member = "here" in request.query
        archive = await (programs.read(digest) if is_member else programs.obtain(digest))
        if archive is None:
            raise Refused(f"no archive {digest!r} here", status=404)
        return Response(200, archive, _BYTES, digest=digest)

    # --- what people ask ---

    async def _program(self, request: Request) -> Response:
        """Keep a job's archive on a quorum of the members, this one among them.

        The leader does: it hands over if its disk is slow.
        """
        coordinator = self._coordinator
        if coordinator.replica.is_leader:
            coordinator.disk_space.require()
        kept = coordinator.programs.take(request.body)
        try:
            return json_response({"digest": await coordinator.members.while_leading(kept)})
        except NotLeader as error:
            return not_leader_response(error)

    async def _submit(self, request: Request) -> Response:
        command = read_submit(request.body)
        if self._coordinator.disk_space.is_short:
            try:
                schedule = await self._coordinator.confirm_read()
            except NotLeader as error:
                return not_leader_response(error)
            # One that was taken before, and is only repeated, is answered again.
            if (reply := schedule.reply_to(command.sender, command.request)) is not None:
                return _reply(reply, refused=400)
            self._coordinator.disk_space.require()
        self._coordinator.tick_now()
        archive = self._coordinator.programs.obtain_sound(command.program)
        try:
            found = await self._coordinator.members.while_leading(archive)
        except NotLeader as error:
            return not_leader_response(error)
        if found is None:
            raise Refused(
                f"no archive {command.program!r} here",
                status=404,
                hint="POST it to /v1/programs first",
            )
        return await self._decide(encode_command(command), refused=400)

    async def _cancel(self, request: Request) -> Response:
        body = _object(request)
        command = CancelJob(
            sender=_text(body, "sender"),
            request=_integer(body, "request"),
            job=JobId(request.integer("job")),
            reason=_text(body, "reason"),
        )
        self._coordinator.tick_now()
        return await self._decide_about(command)

    async def _forget(self, request: Request) -> Response:
        body = _object(request)
        command = ForgetJob(
            sender=_text(body, "sender"),
            request=_integer(body, "request"),
            job=JobId(request.integer("job")),
        )
        return await self._decide_about(command)

    async def _jobs(self, request: Request) -> Response:
        return await self._read(lambda schedule: json_response(schedule.jobs(self._told.of())))

    async def _job(self, request: Request) -> Response:
        """Describe a job.

        With `wait_ms` and `seen`, as soon as it differs from what was seen; or with `heard`,
        as soon as there are news: that it ended, a line of its scheduler, a failure.
        """
        coordinator = self._coordinator
        job = JobId(request.integer("job"))
        wait_ms = min(request.query_integer("wait_ms", 0), self._settings.view_poll_max_ms)
        seen, heard = request.query.get("seen"), request.query.get("heard")
        try:
            while True:
                schedule = await coordinator.confirm_read()
                summary = schedule.job_summary(job, self._told.of(job))
                if summary is None:
                    raise Refused(f"no job {job}", status=404)
                version, news = _version(summary), schedule.job_news(job)
                is_awaited = version == seen if heard is None else news == heard
                if wait_ms <= 0 or not is_awaited or summary["state"] != "running":
                    more = await self._failure_of(summary)
                    return json_response({**summary, **more, "version": version, "news": news})
                if heard is None:
                    await coordinator.wait_job(job, wait_ms)
                else:
                    await self._wait_news(job, heard, wait_ms)
                wait_ms = 0
        except NotLeader as error:
            return not_leader_response(error)

    async def _wait_news(self, job: JobId, heard: str, wait_ms: int) -> None:
        """Wait until there are news of a job; it may change a thousand times before."""
        coordinator = self._coordinator
        end_ms = coordinator.monotonic_ms() + wait_ms
        while (left_ms := end_ms - coordinator.monotonic_ms()) > 0:
            await coordinator.wait_job(job, left_ms)
            if coordinator.require_schedule().job_news(job) != heard:
                return

    async def _failure_of(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Return the failure that a failed job ended with, if any."""
        if summary["state"] != "failed" or not summary["failures"]:
            return {}
        kept = await read_failures(self._coordinator, summary["job"])
        cause = cause_of_end(summary["error"] or "", kept)
        return {} if cause is None else {"failure": cause}

    async def _task(self, request: Request) -> Response:
        job, tid = JobId(request.integer("job")), TaskId(request.integer("tid"))

        try:
            schedule = await self._coordinator.confirm_read()
        except NotLeader as error:
            return not_leader_response(error)
        info = schedule.task_info(job, tid)
        failures: list[dict[str, Any]] = []
        if schedule.job_news(job) is not None and (info is None or info["failures"]):
            failures = await read_failures(self._coordinator, job, tid=tid)
        if info is None:
            if not failures or not failures[-1]["final"]:
                raise Refused(_no_task(schedule, job, tid), status=404)
            info = task_of_failure(job, failures[-1])
        return json_response({**info, "failure": failures[-1] if failures else None})

    async def _job_log(self, request: Request) -> Response:
        """Return what the scheduler logged, which attempts failed, and what it wrote here.

        With `first_line` and `first_failure` only those from these numbers on, with `tid` only
        failures of that task.
        """
        job = JobId(request.integer("job"))
        first_line = request.query_integer("first_line", 0)
        first_failure = request.query_integer("first_failure", 0)
        tid = request.query_integer("tid", -1)
        coordinator = self._coordinator
        try:
            schedule = coordinator.require_schedule()
        except NotLeader as error:
            return not_leader_response(error)
        summary = schedule.job_summary(job)
        if summary is None:
            raise Refused(f"no job {job}", status=404)
        of_task = None if tid < 0 else TaskId(tid)
        lines = await read_log_lines(coordinator, job, first_line)
        failures = await read_failures(coordinator, job, first_failure, of_task)
        return json_response(
            {
                "job": job,
                "replica": coordinator.options.me,
                "log": lines,
                "log_lines": summary["log_lines"],
                "failures": failures,
                "output": coordinator.runners.output(job),
            }
        )

    async def _clients(self, request: Request) -> Response:
        def answer(schedule: Any) -> Response:
            complaint_of = self._told.complaint_of
            return json_response(
                [
                    {**one, "complaint": complaint_of(one["cid"])}
                    for one in schedule.client_summaries()
                ]
            )

        return await self._read(answer)

    async def _members(self, request: Request) -> Response:
        """List the members, as the leader knows them."""
        return await self._read(
            lambda schedule: json_response(self._coordinator.members.listing())
        )

    async def _change_members(self, request: Request) -> Response:
        """Add, replace or remove a member; answered once the log holds the change."""
        body = _object(request)
        members = self._coordinator.members
        replica = _replica(body, "replica")
        try:
            match body.get("change"):
                case "add":
                    await members.add(replica, _text(body, "address"))
                case "replace":
                    new = _replica(body, "with")
                    await members.add(new, _text(body, "address"), replaces=replica)
                case "remove":
                    await members.remove(replica)
                case other:
                    raise Refused(f"no change {other!r}: add, replace or remove", status=400)
        except NotLeader as error:
            return not_leader_response(error)
        return json_response(members.listing())

    def _identity(self, request: Request) -> Response:
        """Say who this is, for a cluster that is asked to add it."""
        return json_response(self._coordinator.members.identity())

    def _status(self, request: Request) -> Response:
        return json_response(coordinator_status(self._coordinator))

    def _healthz(self, request: Request) -> Response:
        return json_response({"ok": True})

    def _readyz(self, request: Request) -> Response:
        return coordinator_readiness(self._coordinator)

    def _metrics(self, request: Request) -> Response:
        return coordinator_metrics(self._coordinator)

    def _stop(self, request: Request) -> Response:
        coordinator = self._coordinator
        _log.info("replica=%d stops: asked to by %s", coordinator.options.me, request.peer)
        coordinator.loop.call_later(0.05, coordinator.stop)
        return json_response({"stopping": True})

    # --- helpers ---

    async def _decide_about(self, command: CancelJob | ForgetJob) -> Response:
        response = await self._decide(encode_command(command), refused=409)
        if response.status == 409:
            summary = self._coordinator.require_schedule().job_summary(command.job)
            if summary is None:
                return Response(404, response.body)
        return response

    async def _decide(self, command: bytes, *, refused: int) -> Response:
        """Answer with what the log says; with the status `refused` if that is no."""
        try:
            reply = await self._coordinator.decide(command)
        except NotLeader as error:
            return not_leader_response(error)
        return _reply(reply, refused=refused)

    async def _read(self, answer: Any) -> Response:
        try:
            schedule = await self._coordinator.confirm_read()
        except NotLeader as error:
            return not_leader_response(error)
        response: Response = answer(schedule)
        return response


def _reply(reply: bytes, *, refused: int) -> Response:
    """Return the answer to a person's command."""
    return Response(refused if "error" in decode_json(reply) else 200, reply)


def _no_task(schedule: Any, job: JobId, tid: TaskId) -> str:
    """Say why nothing is known of a task."""
    summary = schedule.job_summary(job)
    if summary is None:
        return f"no job {job}"
    started = sum(summary["tasks"].values())
    if tid >= started:
        return f"job {job} has no task {tid}: it started {started} so far, numbered from 0"
    return (
        f"task {tid} of job {job} is forgotten: an ended job keeps the tasks that its "
        "scheduler named in finish(taskids=…), a running one all but those released"
    )


def not_leader_response(error: NotLeader) -> Response:
    """Say who leads, or that nobody is known to."""
    return json_response({"error": str(error), "leader": error.leader}, status=MISDIRECTED)


def _check_join(command: JoinClient) -> None:
    """Refuse a client that nobody could tell from another one, or reach.

    Raises:
        Refused: With status 400.
    """
    if not command.identity or not command.incarnation:
        raise Refused("the client has no name: its identity or incarnation is empty", status=400)
    longest = max(map(len, (command.identity, command.incarnation, command.address or "")))
    if longest > RULES.client_text_length_max:
        raise Refused(
            f"the client's identity, incarnation or address has {longest} characters, expected at "
            f"most {RULES.client_text_length_max}",
            status=400,
        )
    if command.address is not None:
        try:
            parse_address(command.address)
        except SettingsError as error:
            raise Refused(f"the client can't be reached: {error}", status=400) from error


def _version(summary: dict[str, Any]) -> str:
    """Return a short text that differs whenever what people see of a job differs."""
    counts = summary["tasks"]
    state = summary["state"] + (" waits" if summary["obstacle"] else "")
    return f"{state}:" + ",".join(str(counts[state]) for state in sorted(counts))


def _not_alive(replacement: Client | None) -> Response:
    """Send a client away whose incarnation doesn't live, and tell which one does instead."""
    told: dict[str, Any] = {"error": "unknown or dead"}
    if replacement is not None:
        told = {
            "error": "replaced",
            "incarnation": replacement.incarnation,
            "address": replacement.address,
            "hostname": replacement.hostname,
        }
    return json_response(told, status=409)


def _object(request: Request) -> dict[str, Any]:
    body = request.json()
    if not isinstance(body, dict):
        raise RemoteProtocolError("the body is not a JSON object")
    return body


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise RemoteProtocolError(f"{name!r} is {value!r}, expected a string")
    return value


def _replica(body: dict[str, Any], name: str) -> ReplicaId:
    value = _integer(body, name)
    if not 1 <= value <= REPLICA_ID_MAX:
        raise RemoteProtocolError(f"{name!r} is {value!r}, expected 1 to 2**63 - 1")
    return ReplicaId(value)


def _integer(body: dict[str, Any], name: str) -> int:
    value = body.get(name)
    if type(value) is not int:
        raise RemoteProtocolError(f"{name!r} is {value!r}, expected an integer")
    return value
