"""The HTTP/1.1 client: signed requests over kept connections, with deadlines.

It speaks to our own servers. It follows no redirects (the caller reads the leader's address in
the answer), decodes no encodings and keeps no cookies. All of our requests may be repeated:
they carry request numbers, or only read. If the server was just closing a kept connection, the
request is sent once more, on a new one.

With a key, only answers that prove it come out of here (proofs.py); any other answer raises
`UnprovenAnswer`. If a request was signed for an earlier life of the server, it was not carried
out. It is signed anew, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Mapping

from tasksprint.errors import PeerUnreachable, RemoteProtocolError
from tasksprint.net.addresses import cause_of, parse_address
from tasksprint.net.deadlines import within
from tasksprint.net.http_client_connection import Connection, NothingReceived
from tasksprint.net.http_messages import JSON_TYPE, HttpResponse, request_head, target_of
from tasksprint.net.keys import NO_BODY, ClusterKey
from tasksprint.net.proofs import DIGEST, FRAMES, WHOLE, AnswerProof, SignedRequest
from tasksprint.net.reading import new_read_buffer
from tasksprint.settings import Settings

__all__ = ["HttpClient", "StreamedResponse"]

# Bodies of this size are hashed on a thread, so that the loop goes on.
_THREAD_HASH_BYTES = 1024 * 1024


class HttpClient:
    """Sends requests to any number of addresses.

    Args:
        key: Signs each request, and proves each answer; None for a server without a gate.
    """

    def __init__(self, key: ClusterKey | None, settings: Settings) -> None:
        self._key = key
        self.settings = settings
        self._read_buffer = new_read_buffer()
        self._pool: dict[str, list[Connection]] = {}  # unused ones; the last used is last
        self._in_use: set[Connection] = set()
        self._closed = False

    async def request(
        self,
        address: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: bytes = b"",
        content_type: str = JSON_TYPE,
        wait_ms: int = 0,
        answer_timeout_ms: int | None = None,
        repeatable: bool = True,
        digest: str | None = None,
        checks_rest: bool = False,
    ) -> HttpResponse:
        """Send one request and return its whole answer, whatever the status.

        Args:
            path: Percent-encoded where it must be.
            wait_ms: How much longer than usual the answer may take (long polls).
            answer_timeout_ms: Instead of the setting of that name.
            repeatable: Whether doing it twice is doing it once.
            digest: SHA-256 that the body of a 2xx answer must have.
            checks_rest: Whether the caller checks the rest of the answer by the digests in
                its first line.

        Raises:
            PeerUnreachable: There was no connection, no answer in time, or half of one.
            RemoteProtocolError: The answer isn't HTTP, is too big, or has another digest.
            UnprovenAnswer: It doesn't prove the key.
        """
        connection = await self._exchange(
            address,
            method,
            target_of(path, query),
            body,
            content_type,
            wait_ms=wait_ms,
            answer_timeout_ms=answer_timeout_ms,
            repeatable=repeatable,
            streams=False,
            checks_rest=checks_rest,
        )
        try:
            response = HttpResponse(connection.status, connection.headers, connection.take_body())
            proof = connection.proof
            if digest is None and proof is not None and proof.kind == WHOLE:
                proof.check_body(response.body)
            else:
                await _check(response, proof, address, digest)
        except BaseException:
            self._drop(connection)
            raise
        self._release(connection)
        return response

    @contextlib.asynccontextmanager
    async def stream(
        self,
        address: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        digest: str | None = None,
    ) -> AsyncIterator[StreamedResponse]:
        """Send one request; the answer's body is read as it comes, while in the context.

        Leaving the context before the end of the body closes the connection. If frames prove
        the body, each piece is proved when it is yielded. If a digest covers the body, the
        pieces are proved only at its end.

        Args:
            digest: SHA-256 that the caller itself checks: then nothing is hashed here.

        Raises:
            PeerUnreachable, RemoteProtocolError: As for `request`; later ones come from
                the answer's methods.
        """
        connection = await self._exchange(
            address,
            method,
            target_of(path, query),
            b"",
            JSON_TYPE,
            wait_ms=0,
            repeatable=True,
            streams=True,
        )
        try:
            if connection.proof is not None and digest is not None:
                connection.proof.trust_caller(digest)
            yield StreamedResponse(connection)
        finally:
            self._release(connection)

    async def close(self) -> None:
        """Close every connection; requests under way fail."""
        self._closed = True
        connections = [*self._in_use, *(c for unused in self._pool.values() for c in unused)]
        for connection in connections:
            connection.abort()
        while any(connection.is_open for connection in connections):
            await asyncio.sleep(0)

    async def _exchange(
        self,
        address: str,
        method: str,
        target: str,
        body: bytes,
        content_type: str,
        *,
        wait_ms: int,
        repeatable: bool,
        streams: bool,
        answer_timeout_ms: int | None = None,
        checks_rest: bool = False,
    ) -> Connection:
        key, digest = self._key, NO_BODY
        if body and key is not None:
            digest = await _digest_of(body)
        if key is not None and key.needs_life(address, len(body)):
            await self._ask_life(address)
        signed: SignedRequest | None = None
        if key is not None:
            signed = SignedRequest(
                key, method, target, address,
                body=digest, repeatable=repeatable, takes_line=checks_rest,
            )  # fmt: skip
        connection = self._take(address) if repeatable else None
        is_kept = connection is not None
        while True:
            if connection is None:
                connection = await self._connect(address)
            self._in_use.add(connection)
            try:
                head = request_head(
                    method,
                    target,
                    address,
                    authorization="" if signed is None else signed.sign(),
                    body_bytes=len(body),
                    content_type=content_type,
                )
                await connection.exchange(
                    head,
                    body,
                    None if signed is None else signed.proof,
                    method=method,
                    wait_ms=wait_ms,
                    answer_timeout_ms=answer_timeout_ms or self.settings.answer_timeout_ms,
                    streams=streams,
                )
                status = connection.status
                if status != 401 or signed is None:
                    return connection
                if not signed.must_go_again(status, connection.headers, connection.peek_body()):
                    return connection
            except NothingReceived:
                self._drop(connection)
                if not is_kept or self._closed:
                    raise
                # The other end had closed the kept connection before it read the request.
                connection, is_kept = None, False
            except BaseException:
                self._drop(connection)
                raise
            else:
                connection.take_body()
                self._release(connection)
                connection = self._take(address) if repeatable else None
                is_kept = connection is not None

    async def _ask_life(self, address: str) -> None:
        """Learn the life of a server by a request without a body."""
        connection = await self._exchange(
            address, "GET", "/healthz", b"", JSON_TYPE, wait_ms=0, repeatable=True, streams=False
        )
        self._release(connection)

    def _take(self, address: str) -> Connection | None:
        unused = self._pool.get(address)
        if not unused:
            return None
        idle_s = self.settings.pooled_connection_idle_ms / 1000
        now = asyncio.get_running_loop().time()
        while unused:
            connection = unused.pop()
            if connection.is_open and now - connection.unused_since < idle_s:
                return connection
            connection.abort()
        return None

    async def _connect(self, address: str) -> Connection:
        if self._closed:
            raise PeerUnreachable(f"cannot reach {address}: this process is closing")
        host, port = parse_address(address)
        loop = asyncio.get_running_loop()
        timeout_ms = self.settings.connect_timeout_ms
        try:
            _, connection = await within(
                timeout_ms / 1000,
                loop.create_connection(
                    lambda: Connection(address, self.settings, self._read_buffer, self._forget),
                    host,
                    port,
                ),
                discard=lambda made: made[0].abort(),
            )
        except asyncio.TimeoutError as error:  # (Another class than TimeoutError in 3.10.)
            raise PeerUnreachable(
                f"cannot reach {address}: no connection within {timeout_ms} ms"
            ) from error
        except OSError as error:
            raise PeerUnreachable(f"cannot reach {address}: {cause_of(error)}") from error
        return connection

    def _release(self, connection: Connection) -> None:
        """Keep a connection for the next request, if its answer was read to the end."""
        self._in_use.discard(connection)
        if not connection.try_finish() or self._closed:
            connection.abort()
            return
        connection.unused_since = asyncio.get_running_loop().time()
        unused = self._pool.setdefault(connection.address, [])
        unused.append(connection)
        if len(unused) > self.settings.pooled_connections_max:
            unused.pop(0).abort()

    def _drop(self, connection: Connection) -> None:
        self._in_use.discard(connection)
        connection.abort()

    def _forget(self, connection: Connection) -> None:
        """Take note that an unused connection was closed by the other end."""
        unused = self._pool.get(connection.address)
        if unused is not None and connection in unused:
            unused.remove(connection)
            if not unused:
                del self._pool[connection.address]


class StreamedResponse:
    """An answer while its body is still coming."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.status = connection.status
        self.headers = connection.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body, piece by piece; reading slowly slows the sender.

        Raises:
            PeerUnreachable: The rest doesn't come.
        """
        while True:
            chunk = await self._connection.read_chunk()
            if chunk is None:
                return
            yield chunk

    async def read(self) -> HttpResponse:
        """Return the whole answer; for the short ones, such as refusals."""
        limit = self._connection.settings.body_bytes_max
        parts: list[bytes] = []
        size = 0
        async for chunk in self.chunks():
            size += len(chunk)
            if size > limit:
                raise self._connection.too_big(limit)
            parts.append(chunk)
        return HttpResponse(self.status, self.headers, b"".join(parts))


async def _check(
    response: HttpResponse,
    proof: AnswerProof | None,
    address: str,
    digest: str | None,
) -> None:
    """Check the proof of a whole answer, and the digest that the caller expects."""
    kind = WHOLE if proof is None else proof.kind
    found: str | None = None
    if kind == DIGEST or (digest is not None and 200 <= response.status < 300):
        found = await _digest_of(response.body)
    if proof is not None and kind != FRAMES:
        proof.check_body(response.body, found)
    if digest is not None and found not in (None, digest):
        raise RemoteProtocolError(
            f"{address} sent bytes with the digest {found}, expected {digest}"
        )


async def _digest_of(body: bytes) -> str:
    if len(body) < _THREAD_HASH_BYTES:
        return hashlib.sha256(body).hexdigest()
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, lambda: hashlib.sha256(body).hexdigest())
