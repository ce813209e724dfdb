"""Requests of clients: commands for the log, their views, jobs' archives.

Other coordinators ask for archives by the same paths.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

from tasksprint.asking.leader import MEMBERS_HEADER
from tasksprint.bounded_text import bounded_repr
from tasksprint.coordination import observations
from tasksprint.coordination.clients import Client
from tasksprint.coordination.commands import (
    JobObserved,
    JoinClient,
    LeaveClient,
    NodesAttached,
    Report,
    decode_command,
)
from tasksprint.coordination.view import encode_view
from tasksprint.errors import Refused, RemoteProtocolError, SettingsError
from tasksprint.ids import ClientId, Incarnation, Slot
from tasksprint.net.addresses import parse_address
from tasksprint.net.router import Later, Request, Response, json_response
from tasksprint.roles.coordinator.archives import Archives
from tasksprint.roles.coordinator.disk_space import DiskSpace
from tasksprint.roles.coordinator.paths import Paths, body_object
from tasksprint.roles.coordinator.ports import Log
from tasksprint.roles.coordinator.roster import Roster
from tasksprint.roles.coordinator.ticks import Ticks
from tasksprint.roles.coordinator.told import ToldHere
from tasksprint.roles.waiters import Waiters
from tasksprint.settings import RULES, Settings

__all__ = ["ClientPaths"]

_BYTES = "application/octet-stream"


class ClientPaths:
    """The paths that clients know.

    Args:
        views: Woken when the view of a client changes.
    """

    def __init__(
        self,
        settings: Settings,
        log: Log,
        ticks: Ticks,
        roster: Roster,
        archives: Archives,
        disk_space: DiskSpace,
        told: ToldHere,
        views: Waiters[ClientId],
    ) -> None:
        self._settings = settings
        self._log = log
        self._ticks = ticks
        self._roster = roster
        self._archives = archives
        self._disk_space = disk_space
        self._told = told
        self._views = views

    def add_to(self, paths: Paths) -> None:
        """Add them."""
        archive_max = self._settings.archive_bytes_max
        paths.add("POST", "/v1/commands", self._command)
        paths.add("GET", "/v1/view", self._view)
        paths.add("POST", "/v1/archives", self._keep_archive, body_bytes_max=archive_max)
        paths.add("POST", "/v1/archives/lacking", self._lacking)
        paths.add("GET", "/v1/archives/{digest:text}", self._archive)

    def _command(self, request: Request) -> Later:
        """Get a client's command decided: join, report, leave."""
        schedule = self._log.schedule
        rules = RULES if schedule is None else schedule.rules
        command = decode_command(request.body, rules.version)
        match command:
            case JoinClient() | Report():
                if isinstance(command, JoinClient):
                    _check_join(command)
                # A client may be joining again and again, as no answer reaches it.
                self._ticks.heard(command.incarnation)
            case LeaveClient() | NodesAttached() | JobObserved(kind=observations.NODE_RUNTIME):
                pass
            case _:
                raise Refused(f"a {type(command).__name__} has a path of its own", status=400)
        later = Later()
        self._log.decide_then(request.body, command, partial(self._answer, later))
        return later

    def _answer(self, later: Later, reply: bytes | None) -> None:
        if reply is None:
            later.answer(self._log.not_leader().response())
        else:
            later.answer(Response(200, reply))

    async def _view(self, request: Request) -> Response:
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
            schedule = self._log.require_schedule()
            # The state must hold all decisions of former leaders. Else it would send living
            # clients to join again, or take back facts that they know.
            if not self._log.is_current:
                raise self._log.not_leader()
            view = None
            is_ahead = since > schedule.applied_slot
            if is_ahead and is_confirmed:
                # No state has that version: it was made up, or all disks went back in
                # time. Then the client's tasks are of a future that never came, and the
                # numbers of jobs, tasks and attempts are given a second time. So it begins
                # anew, or its results would count for other tasks of the same numbers.
                return _not_alive(schedule.replacement(cid, incarnation))
            if not is_ahead:
                view = schedule.view(cid, incarnation, since)
            if view is None and not is_confirmed:
                # A leader that was stopped for a while may not know that it lost office.
                await self._log.confirm_read()
                is_confirmed = True
                continue
            if view is None:
                return _not_alive(schedule.replacement(cid, incarnation))
            self._ticks.heard(incarnation)
            self._told.heard(cid, request.query)
            if wait_ms <= 0 or not view.is_empty:
                members = ",".join(self._roster.addresses().values())
                return Response(200, encode_view(view), headers={MEMBERS_HEADER: members})
            await self._views.wait(cid, wait_ms)
            wait_ms = 0

    async def _keep_archive(self, request: Request) -> Response:
        archives = self._archives
        if not await archives.has(hashlib.sha256(request.body).hexdigest()):
            self._disk_space.require()
        return json_response({"digest": await archives.keep(request.body)})

    async def _lacking(self, request: Request) -> Response:
        """Tell another member which archives it has to bring."""
        digests = body_object(request).get("digests")
        if not isinstance(digests, list) or not all(isinstance(each, str) for each in digests):
            said = bounded_repr(digests, 80)
            raise RemoteProtocolError(f"'digests' is {said}, expected a list of strings")
        return json_response({"lacking": await self._archives.lacking(digests)})

    async def _archive(self, request: Request) -> Response:
        digest, archives = request.text("digest"), self._archives
        # Members ask each other only for what they have themselves.
        is_member = "here" in request.query
        archive = await (archives.read(digest) if is_member else archives.obtain(digest))
        if archive is None:
            raise Refused(f"no archive {digest!r} here", status=404)
        return Response(200, archive, _BYTES, digest=digest)


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


def _not_alive(replacement: Client | None) -> Response:
    """Send a client away if its incarnation doesn't live; name the living one instead."""
    told: dict[str, Any] = {"error": "unknown or dead"}
    if replacement is not None:
        told = {
            "error": "replaced",
            "incarnation": replacement.incarnation,
            "address": replacement.address,
            "hostname": replacement.hostname,
        }
    return json_response(told, status=409)
