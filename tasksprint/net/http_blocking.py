"""One request without asyncio, for commands that ask once and end.

The same heads, signatures and proofs as `http_client`; a connection for each request. It exists
since asyncio is what takes longest to load: `tasksprint status` uses 184 ms of processor time
with it and 140 ms without, on a busy machine, and needs no loop for anything else.
"""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Mapping

import httptools

from tasksprint.errors import PeerUnreachable, RemoteProtocolError
from tasksprint.net.addresses import cause_of, parse_address
from tasksprint.net.http_messages import HttpResponse, request_head, target_of
from tasksprint.net.keys import NO_BODY, ClusterKey
from tasksprint.net.proofs import (
    FRAMES,
    LINE,
    WHOLE,
    WHOLE_BYTES_MAX,
    AnswerProof,
    SignedRequest,
)
from tasksprint.settings import Settings

__all__ = ["request_blocking"]

_READ_BYTES = 256 * 1024
# Of an answer: bytes of heads and trailers, and pieces of a body that is still to be proved.
_BARREN_BYTES_MAX = 64 * 1024
_PARTS_MAX = 10_000


def request_blocking(
    address: str,
    method: str,
    path: str,
    *,
    key: ClusterKey | None,
    settings: Settings,
    query: Mapping[str, str | int] | None = None,
    body: bytes = b"",
    wait_ms: int = 0,
    checks_rest: bool = False,
    repeatable: bool = True,
) -> HttpResponse:
    """Send one request and return its whole answer, whatever the status.

    Args:
        repeatable: Whether doing it twice is doing it once.
        checks_rest: Whether the caller checks the rest of the answer by the digests in its
            first line.

    Raises:
        PeerUnreachable: There was no connection, no answer in time, or half of one.
        RemoteProtocolError: The answer isn't HTTP, or is too big.
        UnprovenAnswer: It doesn't prove the key.
    """
    target = target_of(path, query)
    digest = hashlib.sha256(body).hexdigest() if body and key is not None else NO_BODY
    if key is not None and key.needs_life(address, len(body)):
        request_blocking(address, "GET", "/healthz", key=key, settings=settings)
    signed: SignedRequest | None = None
    if key is not None:
        signed = SignedRequest(
            key, method, target, address,
            body=digest, repeatable=repeatable, takes_line=checks_rest,
        )  # fmt: skip
    while True:
        connection = _connect(address, settings)
        head = request_head(
            method,
            target,
            address,
            authorization="" if signed is None else signed.sign(),
            body_bytes=len(body),
            headers={"Connection": "close"},
        )
        proof = None if signed is None else signed.proof
        with connection:
            response = _exchange(
                connection, address, method, head + body, wait_ms, settings, proof
            )
        if signed is None or proof is None:
            return response
        if proof.kind != FRAMES:
            proof.check_body(response.body)
        if not signed.must_go_again(response.status, response.headers, response.body):
            return response


def _connect(address: str, settings: Settings) -> socket.socket:
    host, port = parse_address(address)
    try:
        return socket.create_connection((host, port), settings.connect_timeout_ms / 1000)
    except TimeoutError as error:
        raise PeerUnreachable(
            f"cannot reach {address}: no connection within {settings.connect_timeout_ms} ms"
        ) from error
    except OSError as error:
        raise PeerUnreachable(f"cannot reach {address}: {cause_of(error)}") from error


def _exchange(
    connection: socket.socket,
    address: str,
    method: str,
    data: bytes,
    wait_ms: int,
    settings: Settings,
    proof: AnswerProof | None,
) -> HttpResponse:
    answer = _Answer(address, settings.body_bytes_max, proof, is_head_request=method == "HEAD")
    timeout_ms = settings.answer_timeout_ms
    try:
        connection.settimeout(timeout_ms / 1000)
        try:
            view = memoryview(data)
            while view:  # Not sendall: its deadline is for all of it.
                view = view[connection.send(view) :]
        except (BrokenPipeError, ConnectionResetError):
            pass  # A refusal may have come before all was read: look for it.
        connection.settimeout((timeout_ms + wait_ms) / 1000)
        deadline = time.monotonic() + (timeout_ms + wait_ms) / 1000
        while not answer.is_complete:
            chunk = connection.recv(_READ_BYTES)
            if not chunk:
                raise PeerUnreachable(
                    f"cannot reach {address}: it closed the connection "
                    + ("in the middle of the answer" if answer.status else "without an answer")
                )
            answer.feed(chunk)
            # Until the key is proved, a byte now and then earns no more time.
            if not answer.is_proved and time.monotonic() > deadline:
                raise TimeoutError
    except TimeoutError as error:
        raise PeerUnreachable(
            f"cannot reach {address}: no answer within {timeout_ms + wait_ms} ms "
            "(answer_timeout_ms)"
        ) from error
    except OSError as error:
        raise PeerUnreachable(f"cannot reach {address}: {cause_of(error)}") from error
    return HttpResponse(answer.status, answer.headers, b"".join(answer.parts))


class _Answer:
    """Collects the parts that the parser finds."""

    def __init__(
        self,
        address: str,
        body_bytes_max: int,
        proof: AnswerProof | None,
        *,
        is_head_request: bool,
    ) -> None:
        self._address = address
        self._proof = proof
        self._body_bytes_max = body_bytes_max
        self._is_head_request = is_head_request
        self._parser = httptools.HttpResponseParser(self)
        self._bytes = 0
        self._barren_bytes = 0  # since the last piece of the body
        self.is_proved = False  # The other end has proved the key.
        self.status = 0
        self.headers: dict[str, str] = {}
        self.parts: list[bytes] = []
        self.is_complete = False

    def feed(self, data: bytes) -> None:
        self._barren_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            raise RemoteProtocolError(f"{self._address} upgrades unasked") from error
        except httptools.HttpParserCallbackError as error:
            raise error.__context__ or error from None
        except httptools.HttpParserError as error:
            raise RemoteProtocolError(
                f"{self._address} answered what is not HTTP/1.1: {error}"
            ) from error
        if self._bytes > self._body_bytes_max:
            raise RemoteProtocolError(
                f"the answer of {self._address} has more than {self._body_bytes_max} bytes "
                "(body_bytes_max)"
            )
        if self._barren_bytes > _BARREN_BYTES_MAX and not self.is_complete:
            raise RemoteProtocolError(f"{self._address} sends much beside its answer's body")

    def on_header(self, name: bytes, value: bytes) -> None:
        # Lines after the proof belong to the connection, and trailers say nothing to us.
        if self.status:
            return
        if self._proof is None or self._proof.add_line(name, value):
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._barren_bytes = 0
        if self._proof is not None and self.status >= 200:
            self._proof.check_head(self.status, self.headers)
            self.is_proved = self._proof.kind not in (WHOLE, LINE)
            if self._proof.kind == WHOLE:
                self._body_bytes_max = min(self._body_bytes_max, WHOLE_BYTES_MAX)
        elif self.status >= 200:
            self.is_proved = True
        if self._is_head_request and self.status >= 200:
            self.is_complete = True

    def on_body(self, data: bytes) -> None:
        self._barren_bytes = 0
        proof = self._proof
        if proof is not None and proof.kind == FRAMES:
            self.parts += proof.unframe(data)
        else:
            if proof is not None and proof.kind == LINE and not self.is_proved and b"\n" in data:
                proof.check_body(b"".join(self.parts) + data)
                self.is_proved = True
            self.parts.append(data)
        self._bytes += len(data)
        if proof is not None and not self.is_proved and len(self.parts) > _PARTS_MAX:
            raise proof.unproven()  # Each costs many times its bytes.

    def on_message_complete(self) -> None:
        if self.status >= 200:
            if self._proof is not None and self._proof.kind == FRAMES:
                self._proof.check_end()
            self.is_complete = True
        else:  # "100 Continue" comes before the answer.
            self.status, self.headers = 0, {}
            if self._proof is not None:
                self._proof.begin_again()
