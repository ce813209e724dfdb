"""The coordinator's paths: the common part of its families of routes.

A handler turns a request into a command or a question, and the answer back. Only the leader
decides, and only it gives answers that must be current. Any other replica raises `NotLeader`:
this answers 421, and names the leader if it is known. docs/protocol.md describes every path.
"""

from __future__ import annotations

from typing import Any

from tasksprint.bounded_text import bounded_repr
from tasksprint.consensus import Replica
from tasksprint.errors import RemoteProtocolError
from tasksprint.net.router import Handler, Misdirected, Request, Router

__all__ = ["Paths", "body_integer", "body_object", "body_text"]


class Paths:
    """The routes of one coordinator: each refuses requests for another cluster."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.router = Router()

    def add(self, method: str, pattern: str, handler: Handler, **options: Any) -> None:
        """Add a path."""

        def answer(request: Request) -> Any:
            if (cluster := request.query.get("cluster")) is not None:
                self._require(cluster, is_exact="exact" in request.query)
            return handler(request)

        self.router.add(method, pattern, answer, **options)

    def _require(self, cluster: str, *, is_exact: bool) -> None:
        """Refuse askers of other clusters, except those that this cluster went on from.

        A cluster that lost its majority may be recovered by one member. The others may come
        back: they answer as before, at addresses that the clients know. Clients of the former
        cluster come along. People who name the former cluster mean that one: it may still run.
        """
        founding = self._replica.founding
        if founding is None or cluster == founding.cluster:
            return
        if is_exact or cluster not in founding.origins:
            raise Misdirected(
                f"replica {self._replica.me} belongs to cluster {founding.cluster!r}, "
                f"not to {cluster!r}",
                leader=None,
                cluster=founding.cluster,
            )


def body_object(request: Request) -> dict[str, Any]:
    """Return the object that a body is."""
    body = request.json()
    if not isinstance(body, dict):
        raise RemoteProtocolError("the body is not a JSON object")
    return body


def body_text(body: dict[str, Any], name: str) -> str:
    """Return a text of it."""
    value = body.get(name)
    if not isinstance(value, str):
        raise RemoteProtocolError(f"{name!r} is {bounded_repr(value)}, expected a string")
    return value


def body_integer(body: dict[str, Any], name: str) -> int:
    """Return an integer of it."""
    value = body.get(name)
    if type(value) is not int:
        raise RemoteProtocolError(f"{name!r} is {bounded_repr(value)}, expected an integer")
    return value
