"""Inputs from other clients, verified against the digests that the log holds.

One request fetches many values of a peer. The answer (`POST /v1/values`) is a line of
JSON, an array with an entry for each result asked for, in order:

    [manifest, [key, …]]     the manifest of the result, and the keys whose values follow
    null                     this client doesn't have a result with that digest

and then the values' bytes, one after the other. If a value would make the answer too long, it
is left out. A request of its own fetches it, as a stream into a file.

If a holder's bytes don't have their digest, it is told to look at them
(`POST /v1/values/check`, `[job, tid, digest]`). If it finds the same, it reports them as lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

from tasksprint.encoding import decode_json, encode_json, result_digest, value_digest
from tasksprint.errors import PeerUnreachable, Refused, RemoteProtocolError
from tasksprint.execution.effects import FetchInputs, FetchRequest, Manifest
from tasksprint.execution.workbench import Workbench
from tasksprint.ids import ClientId
from tasksprint.net.http_client import HttpClient
from tasksprint.roles.client.held import HeldValues
from tasksprint.roles.client.ports import Turns, logger
from tasksprint.roles.client.values import ValueCache
from tasksprint.store.result_records import ROW_VALUE_BYTES_MAX, FileValue
from tasksprint.store.staging import Staging, on_thread

__all__ = ["Fetcher"]

_OK = 200


class Fetcher:
    """Fetches for one client, a bounded number of requests at a time.

    Args:
        address_of: Where another client listens; None: nowhere.
    """

    def __init__(
        self,
        turns: Turns,
        workbench: Workbench,
        values: ValueCache,
        held: HeldValues,
        http: HttpClient,
        address_of: Callable[[ClientId], str | None],
    ) -> None:
        self._turns = turns
        self._workbench = workbench
        self._values = values
        self._held = held
        self._http = http
        self._address_of = address_of
        self._all = asyncio.Semaphore(http.settings.fetches_max)

    def fetch(self, effect: FetchInputs) -> None:
        """Carry out an order of the workbench; inputs that are here already are told at once."""
        missing: list[FetchRequest] = []
        for request in effect.requests:
            manifest = self._values.find_copy(
                request.job, request.tid, request.digest, request.keys
            )
            if manifest is None:
                missing.append(request)
            else:
                self._fetched(request, manifest)
        if missing:
            self._turns.background(self._fetch(effect.cid, missing))

    async def _fetch(self, cid: ClientId, requests: Sequence[FetchRequest]) -> None:
        # Requests without an answer so far. When this fetch fails, an answered one may be under
        # way again by another fetch.
        left = list(requests)
        async with self._all:
            try:
                await self._ask(cid, left)
            except (PeerUnreachable, Refused, RemoteProtocolError) as error:
                self._failed(left, cid, str(error))
        self._turns.turn()

    async def _ask(self, cid: ClientId, left: list[FetchRequest]) -> None:
        """Ask a client for everything in `left`; remove from it what the client answered."""
        address = self._address_of(cid)
        if address is None:
            raise PeerUnreachable(f"client {cid} has no address")
        body = encode_json([[one.job, one.tid, one.digest, list(one.keys)] for one in left])
        # (`_take` checks the rest.)
        response = await self._http.request(
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
                    if size > ROW_VALUE_BYTES_MAX and self._values.is_half_full:
                        content = await on_thread(partial(self._held.files.write, content))
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
                    self._held.discard(content)
            raise
        self._values.put_copy(request.job, request.tid, request.digest, manifest, kept)
        self._fetched(request, manifest)
        return rest

    async def _stream(
        self, address: str, request: FetchRequest, key: str, size: int, digest: str
    ) -> FileValue:
        """Fetch one value, however large, into a file; `_take` checks its digest."""
        path = f"/v1/values/{request.job}/{request.tid}/{quote(key, safe='')}"
        query = {"digest": request.digest}
        staging = Staging(self._held.files)
        try:
            async with self._http.stream(
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
        logger.warning(
            "job=%d tid=%d %s sent other bytes than its digest says, and is told to look",
            request.job,
            request.tid,
            address,
        )
        self._turns.background(self._tell(address, request))

    async def _tell(self, address: str, request: FetchRequest) -> None:
        body = encode_json([request.job, request.tid, request.digest])
        try:
            response = await self._http.request(
                address, "POST", "/v1/values/check", body=body
            )
            response.checked()
        except (PeerUnreachable, Refused, RemoteProtocolError) as error:
            logger.warning("%s wasn't told: %s", address, error)

    def _fetched(self, request: FetchRequest, manifest: Manifest) -> None:
        self._workbench.inputs_fetched(
            request.job, request.tid, manifest, request.digest, self._turns.now_ms()
        )

    def _failed(self, requests: Sequence[FetchRequest], cid: ClientId, reason: str) -> None:
        for request in requests:
            self._workbench.fetch_failed(
                request.job, request.tid, request.digest, cid, reason, self._turns.now_ms()
            )


def _split(answer: bytes, count: int) -> tuple[list[Any], memoryview]:
    end = answer.find(b"\n")
    entries = decode_json(answer[:end]) if end >= 0 else None
    if not isinstance(entries, list) or len(entries) != count:
        raise RemoteProtocolError("the answer has not an entry for each result asked for")
    return entries, memoryview(answer)[end + 1 :]


def _entry(entry: Any) -> tuple[Manifest, set[str]]:
    try:
        items, sent, *_ = entry
        manifest = tuple([(str(k), str(kind), int(size), str(d)) for k, kind, size, d in items])
        return manifest, {str(key) for key in sent}
    except (TypeError, ValueError) as error:
        raise RemoteProtocolError(f"not an entry of an answer: {error}") from error
