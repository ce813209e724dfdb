"""The client's paths: values for other clients and for people, logs, status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from tasksprint.arrays import Arrays
from tasksprint.bounded_text import bounded_repr
from tasksprint.encoding import decode_json, encode_json, result_digest
from tasksprint.errors import Refused, RemoteProtocolError, ValueSpoiled
from tasksprint.execution.effects import Manifest
from tasksprint.execution.records import KeptResult
from tasksprint.ids import JobId, TaskId
from tasksprint.net.gate import Access
from tasksprint.net.http_messages import parse_range
from tasksprint.net.router import Request, Response, Router, json_response
from tasksprint.roles.client.held import HeldValues
from tasksprint.roles.client.metrics import client_metrics, client_readiness
from tasksprint.roles.client.nodes import Nodes
from tasksprint.roles.client.ports import Shown, logger
from tasksprint.roles.client.values import ValueCache
from tasksprint.store.result_records import CHUNK_BYTES, FileValue

__all__ = ["ClientPaths"]

_BYTES = "application/octet-stream"
# A batch of values is put together in memory; bigger values are fetched one by one.
_BATCH_BYTES_MAX = 8 * 1024 * 1024
_BATCH_VALUE_BYTES_MAX = CHUNK_BYTES


class ClientPaths:
    """The routes of one client."""

    def __init__(
        self,
        shown: Shown,
        values: ValueCache,
        held: HeldValues,
        nodes: Nodes,
        stop: Callable[[], None],
    ) -> None:
        self._shown = shown
        self._values = values
        self._held = held
        self._nodes = nodes
        self._stop = stop
        self.router = Router()
        add = self.router.add
        read = Access.READ
        add("GET", "/healthz", lambda request: json_response({"ok": True}), access=Access.OPEN)
        add("GET", "/readyz", lambda request: client_readiness(shown), access=Access.OPEN)
        add("GET", "/metrics", lambda request: client_metrics(shown), access=read)
        add("POST", "/v1/values", self._give_values)
        add("POST", "/v1/values/check", self._look)
        add("GET", "/v1/values/{job}/{tid}", self._give_manifest, access=read)
        add("GET", "/v1/values/{job}/{tid}/{key:text}", self._give_value, access=read)
        add("GET", "/v1/logs/{job}", self._give_logs, access=read)
        add("GET", "/v1/logs/{job}/{tid}", self._give_logs, access=read)
        add("GET", "/v1/output/{job}", self._give_output, access=read)
        add("GET", "/v1/status", self._give_status, access=read)
        add("POST", "/v1/stop", self._stop_soon, access=Access.OPERATE)

    async def _give_values(self, request: Request) -> Response:
        """Answer a batch: see fetching.py for its form."""
        wanted = _list(decode_json(request.body))
        entries: list[Any] = []
        parts: list[bytes] = []
        left = _BATCH_BYTES_MAX
        for item in wanted:
            job, tid, digest, keys = _wanted(item)
            seen = self._held.seen(job, tid)
            manifest = await self._held_manifest(job, tid, digest)
            found = None
            if manifest is not None:
                found = await self._batch(job, tid, digest, manifest, keys, left, seen)
            if found is None:
                entries.append(None)
                continue
            entries.append([manifest, list(found)])
            parts += found.values()
            left -= sum(map(len, found.values()))
        # The line has the manifests, and those the digests of the values that follow.
        body = encode_json(entries) + b"\n" + b"".join(parts)
        return Response(200, body, _BYTES, covers_line=True)

    async def _batch(
        self,
        job: JobId,
        tid: TaskId,
        digest: str,
        manifest: Manifest,
        keys: tuple[str, ...],
        left: int,
        seen: KeptResult | None,
    ) -> dict[str, bytes] | None:
        """Return those values of a result that fit into a batch; None: one of them is lost."""
        values: dict[str, bytes] = {}
        for key, _, size, _ in manifest:
            if key not in keys or size > min(left, _BATCH_VALUE_BYTES_MAX):
                continue
            found = await self._values.read(job, tid, digest, key)
            if found is None:
                return None
            content = found[1]
            if isinstance(content, FileValue):
                try:
                    pieces = [piece async for piece in self._held.pieces_of(content)]
                except ValueSpoiled as error:
                    self._held.spoiled(job, tid, digest, str(error), seen=seen)
                    return None
                content = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            values[key] = content
            left -= size
        return values

    def _look(self, request: Request) -> Response:
        """Look at a result: a peer says that it got other bytes (see fetching.py)."""
        job, tid, digest, _ = _wanted([*_list(decode_json(request.body))[:3], []])
        self._held.look(job, tid, digest)
        return json_response({})

    async def _held_manifest(
        self, job: JobId, tid: TaskId, digest: str | None
    ) -> Manifest | None:
        """Return the manifest of a result that is held, or None."""
        held = self._held
        seen = held.seen(job, tid)
        manifest = await held.manifest(job, tid, digest)
        if manifest is None and digest is not None:
            held.missing(job, tid, digest, seen=seen)
        return manifest

    async def _give_manifest(self, request: Request) -> Response:
        job, tid = JobId(request.integer("job")), TaskId(request.integer("tid"))
        manifest = await self._held_manifest(job, tid, request.query.get("digest"))
        if manifest is None:
            raise Refused(f"no result of task {tid} of job {job} here", status=404)
        return json_response(manifest)

    async def _give_value(self, request: Request) -> Response:
        job, tid = JobId(request.integer("job")), TaskId(request.integer("tid"))
        key = request.text("key")
        seen = self._held.seen(job, tid)
        manifest = await self._held_manifest(job, tid, request.query.get("digest"))
        found = next((item for item in manifest or () if item[0] == key), None)
        if found is None:
            raise Refused(
                f"no value under key {key!r} of task {tid} of job {job} here", status=404
            )
        assert manifest is not None
        _, kind, size, value_digest = found
        content_type = "application/json" if kind == "json" else _BYTES
        status, first, end = 200, 0, size
        headers: dict[str, str] = {"Accept-Ranges": "bytes"}
        wanted = parse_range(request.headers.get("range"), size)
        if wanted is not None:
            status, (first, end) = 206, wanted
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
        digest = result_digest(list(manifest))
        loaded = await self._held.load(job, tid, digest, key)
        if loaded is None:
            raise Refused(f"the result of task {tid} of job {job} is lost here", status=404)
        body: bytes | AsyncIterator[bytes]
        if isinstance(loaded[1], bytes):
            body = loaded[1][first:end]
        else:
            whole = (first, end) == (0, size)
            part = None if whole else (first, end)
            body = self._pieces(job, tid, digest, loaded[1], part, seen)
        return Response(
            status,
            body,
            content_type,
            headers,
            body_bytes=end - first,
            digest=value_digest if status == 200 else None,
        )

    async def _pieces(
        self,
        job: JobId,
        tid: TaskId,
        digest: str,
        value: FileValue,
        part: tuple[int, int] | None,
        seen: KeptResult | None,
    ) -> AsyncIterator[bytes]:
        held = self._held
        try:
            async for piece in held.pieces_of(value, part):
                yield piece
        except ValueSpoiled as error:
            held.spoiled(job, tid, digest, str(error), seen=seen)
            raise

    async def _give_logs(self, request: Request) -> Response:
        job = request.integer("job")
        tid = request.integer("tid") if "tid" in request.segments else None
        self._nodes.keep_output()
        await asyncio.sleep(0)
        logs = await self._held.read(lambda store: store.reader.read_logs(job, tid))
        return json_response(
            [
                {"tid": one.tid, "attempt": one.attempt, "text": one.text.decode(errors="replace")}
                for one in logs
            ]
        )

    def _give_output(self, request: Request) -> Response:
        """Return the nodes' latest lines on stderr for a job, from a piece on."""
        job, first = request.integer("job"), request.query_integer("first", 0)
        self._nodes.keep_output()
        return json_response(self._nodes.recent_output.since(job, first))

    def _give_status(self, request: Request) -> Response:
        shown = self._shown
        free_space, complaint = shown.free_space.summary(), shown.complaint
        return json_response(
            {**shown.workbench.summary(), "free_space": free_space, "complaint": complaint}
        )

    def _stop_soon(self, request: Request) -> Response:
        logger.info("stops: asked to by %s", request.peer)
        asyncio.get_running_loop().call_later(0.05, self._stop)
        return json_response({"stopping": True})


def _list(body: Any) -> list[Any]:
    if not isinstance(body, list):
        raise RemoteProtocolError("the body is not a list")
    return body


_Wanted = tuple[JobId, TaskId, str, tuple[str, ...]]
_read_wanted = Arrays().reader(_Wanted)


def _wanted(item: Any) -> _Wanted:
    try:
        wanted: _Wanted = _read_wanted(*item)
    except (TypeError, ValueError) as error:
        raise RemoteProtocolError(f"not a wanted result: {bounded_repr(item, 80)}") from error
    return wanted
