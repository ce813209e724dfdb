"""Inputs from other clients, verified against the digests that the log holds.

One request fetches many values of a peer. The answer (`POST /v1/values`) is a line of
JSON, an array with an entry for each result asked for, in order:

    [manifest, [key, …]]     the manifest of the result, and the keys whose values follow
    null                     this client doesn't have a result with that digest

and then the values' bytes, one after the other. A value that would make the answer
too long is left out, and is fetched by a request of its own, as a stream into a file.

A holder whose bytes aren't those of their digest is told to look at them
(`POST /v1/values/check`, `[job, tid, digest]`); if it finds the same, it reports them as lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tasksprint.encoding import decode_json, encode_json, result_digest, value_digest
from tasksprint.errors import PeerUnreachable, Refused, RemoteProtocolError
from tasksprint.execution.effects import FetchInputs, FetchRequest, Manifest
from tasksprint.ids import ClientId
from tasksprint.store.result_records import ROW_VALUE_BYTES_MAX, FileValue
from tasksprint.store.staging import Staging, on_thread

if TYPE_CHECKING:
    from tasksprint.roles.client.client import Client

__all__ = ["Fetcher"]

_log = logging.getLogger("tasksprint.client")

_OK = 200


class Fetcher:
    """Fetches for one client, a bounded number of requests at a time."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._all = asyncio.Semaphore(client.settings.fetches_max)

    def fetch(self, effect: FetchInputs) -> None:
        """Carry out an order of the workbench; what is here already is told at once."""
        workbench, values = self._client.workbench, self._client.values
        missing: list[FetchRequest] = []
        for request in effect.requests:
            manifest = values.find_copy(request.job, request.tid, request.digest, request.keys)
            if manifest is None:
                missing.append(request)
            else:
                workbench.inputs_fetched(
                    request.job, request.tid, manifest, request.digest, self._client.now_ms()
                )
        if missing:
            self._client.background(self._fetch(effect.cid, missing))

    async def _fetch(self, cid: ClientId, requests: Sequence[FetchRequest]) -> None:
        # Those that were not answered yet: an answered one may be under way again, by
        # another fetch, when this one fails.
        left = list(requests)
        async with self._all:
            try:
                await self._ask(cid, left)
            except (PeerUnreachable, Refused, RemoteProtocolError) as error:
                self._failed(left, cid, str(error))
        self._client.turn()

    async def _ask(self, cid: ClientId, left: list[FetchRequest]) -> None:
        """Ask a client for all that is in `left`, and take from it what was answered."""
        address = self._client.addresses.get(cid)
        if address is None:
            raise PeerUnreachable(f"client {cid} has no address")
        body = encode_json([[one.job, one.tid, one.digest, list(one.keys)] for one in left])
        # (`_take` checks the rest.)
        response = await self._client.http.request(
            address, "POST", "/v1/values", body=body, checks_rest=True
        )
        entries, rest = _split(response.checked().body, len(left))
        for entry in entries:
            request = left[0]
            if entry is None:
                self._failed((request,), cid, f"client {cid} doesn't have it")
            else:
                rest = await self._take(cid, address, request, entry, rest)
            del left[0]

    async def _take(
        self, cid: ClientId, address: str, request: FetchRequest, entry: Any, rest: memoryview
    ) -> memoryview:
        """Verify and keep the values of one result; return the bytes behind them."""
        client = self._client
        manifest, sent = _entry(entry)
        if result_digest(manifest) != request.digest:  # type: ignore[arg-type]
            self._complain(address, request)
            raise RemoteProtocolError(
                f"client {cid} sent another result of task {request.tid} of job {request.job} "
                "than the one asked for"
            )
        kept: list[tuple[str, str, bytes | FileValue]] = []
        try:
            for key, kind, size, digest in manifest:
                content: bytes | FileValue
                if key in sent:
                    content, rest = bytes(rest[:size]), rest[size:]
                    found = value_digest(content)
                    if size > ROW_VALUE_BYTES_MAX and client.values.is_half_full:
                        content = await on_thread(partial(client.held.files.write, content))
                elif key in request.keys:
                    content = await self._stream(address, request, key, size, digest)
                    found = content.digest
                else:
                    continue
                kept.append((key, kind, content))
                if found != digest:
                    self._complain(address, request)
                    raise RemoteProtocolError(
                        f"the value under key {key!r} of task {request.tid} of job {request.job} "
                        f"arrived damaged from client {cid}"
                    )
        except BaseException:
            for _, _, content in kept:
                if isinstance(content, FileValue):
                    client.held.discard(content)
            raise
        client.values.put_copy(request.job, request.tid, request.digest, manifest, kept)
        client.workbench.inputs_fetched(
            request.job, request.tid, manifest, request.digest, client.now_ms()
        )
        return rest

    async def _stream(
        self, address: str, request: FetchRequest, key: str, size: int, digest: str
    ) -> FileValue:
        """Fetch one value, however large, into a file; `_take` checks its digest."""
        path = f"/v1/values/{request.job}/{request.tid}/{quote(key, safe='')}"
        query = {"digest": request.digest}
        staging = Staging(self._client.held.files)
        try:
            async with self._client.http.stream(
                address, "GET", path, query=query, digest=digest
            ) as response:
                if response.status != _OK:
                    (await response.read()).checked()
                async for chunk in response.chunks():
                    if staging.size + len(chunk) > size:
                        raise RemoteProtocolError(
                            f"{address} sent more than {size} bytes of {path}"
                        )
                    staging.put(chunk)
                    if staging.is_full:
                        await staging.drain()
            return await staging.finish()
        except BaseException:
            staging.abandon()
            raise

    def _complain(self, address: str, request: FetchRequest) -> None:
        """Tell a holder to look at its bytes."""
        _log.warning(
            "job=%d tid=%d %s sent other bytes than its digest says, and is told to look",
            request.job,
            request.tid,
            address,
        )
        self._client.background(self._tell(address, request))

    async def _tell(self, address: str, request: FetchRequest) -> None:
        body = encode_json([request.job, request.tid, request.digest])
        try:
            response = await self._client.http.request(
                address, "POST", "/v1/values/check", body=body
            )
            response.checked()
        except (PeerUnreachable, Refused, RemoteProtocolError) as error:
            _log.warning("%s wasn't told: %s", address, error)

    def _failed(self, requests: Sequence[FetchRequest], cid: ClientId, reason: str) -> None:
        for request in requests:
            self._client.workbench.fetch_failed(
                request.job, request.tid, request.digest, cid, reason, self._client.now_ms()
            )


def _split(answer: bytes, count: int) -> tuple[list[Any], memoryview]:
    end = answer.find(b"\n")
    entries = decode_json(answer[:end]) if end >= 0 else None
    if not isinstance(entries, list) or len(entries) != count:
        raise RemoteProtocolError("the answer has not an entry for each result asked for")
    return entries, memoryview(answer)[end + 1 :]


def _entry(entry: Any) -> tuple[Manifest, set[str]]:
    try:
        items, sent = entry
        manifest = tuple([(str(k), str(kind), int(size), str(d)) for k, kind, size, d in items])
        return manifest, {str(key) for key in sent}
    except (TypeError, ValueError) as error:
        raise RemoteProtocolError(f"not an entry of an answer: {error}") from error
