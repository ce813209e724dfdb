"""Requests of operators and their tools: the members, and how this process stands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tasksprint.bounded_text import bounded_repr
from tasksprint.errors import Refused, RemoteProtocolError
from tasksprint.ids import REPLICA_ID_MAX, ReplicaId
from tasksprint.net.gate import Access
from tasksprint.net.router import Request, Response, json_response
from tasksprint.roles.coordinator.members import MemberChanges
from tasksprint.roles.coordinator.paths import Paths, body_integer, body_object, body_text
from tasksprint.roles.coordinator.ports import Log, logger
from tasksprint.roles.coordinator.raising import RulesRaising
from tasksprint.roles.coordinator.standing import Standing

__all__ = ["OperatorPaths"]


class OperatorPaths:
    """The paths of members, and of this process.

    Args:
        stop: Stops this replica in good order.
    """

    def __init__(
        self,
        me: ReplicaId,
        log: Log,
        members: MemberChanges,
        raising: RulesRaising,
        standing: Standing,
        *,
        stop: Callable[[], None],
    ) -> None:
        self._me = me
        self._log = log
        self._members = members
        self._raising = raising
        self._standing = standing
        self._end = stop

    def add_to(self, paths: Paths) -> None:
        """Add them."""
        add, standing = paths.add, self._standing
        add("GET", "/healthz", lambda _: json_response({"ok": True}), access=Access.OPEN)
        add("GET", "/readyz", lambda _: standing.readiness(), access=Access.OPEN)
        add("GET", "/metrics", lambda _: standing.metrics(), access=Access.READ)
        add("GET", "/v1/status", lambda _: json_response(standing.status()), access=Access.READ)
        add("GET", "/v1/members", self._listing, access=Access.READ)
        add("POST", "/v1/members", self._change_members, access=Access.OPERATE)
        add("GET", "/v1/upgrade", self._upgrade, access=Access.READ)
        add("POST", "/v1/upgrade", self._upgrade, access=Access.OPERATE)
        # For a cluster that is asked to add this one:
        add("GET", "/v1/identity", lambda _: json_response(self._members.identity()))
        add("POST", "/v1/stop", self._stop, access=Access.OPERATE)

    async def _listing(self, request: Request) -> Response:
        """List the members, as the leader knows them."""
        await self._log.confirm_read()
        return json_response(self._members.listing())

    async def _change_members(self, request: Request) -> Response:
        """Add, replace or remove a member; answered once the log holds the change."""
        body = body_object(request)
        members = self._members
        replica = _replica(body, "replica")
        match body.get("change"):
            case "add":
                await members.add(replica, body_text(body, "address"))
            case "replace":
                new = _replica(body, "with")
                await members.add(new, body_text(body, "address"), replaces=replica)
            case "remove":
                await members.remove(replica)
            case other:
                said = bounded_repr(other)
                raise Refused(f"no change {said}: add, replace or remove", status=400)
        return json_response(members.listing())

    async def _upgrade(self, request: Request) -> Response:
        """List each member's abilities; if the request says so, raise the rules."""
        await self._log.confirm_read()
        if request.method == "POST":
            self._raising.raise_now()
        return json_response(self._raising.listing())

    def _stop(self, request: Request) -> Response:
        logger.info("replica=%d stops: asked to by %s", self._me, request.peer)
        asyncio.get_running_loop().call_later(0.05, self._end)
        return json_response({"stopping": True})


def _replica(body: dict[str, Any], name: str) -> ReplicaId:
    value = body_integer(body, name)
    if not 1 <= value <= REPLICA_ID_MAX:
        raise RemoteProtocolError(f"{name!r} is {value!r}, expected 1 to 2**63 - 1")
    return ReplicaId(value)
