"""One connection of the HTTP client, and the request that is under way on it.

Its client knows the questions and judges the answers. This module knows bytes, turns,
deadlines and the end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import cast

import httptools

from tasksprint.errors import PeerUnreachable, RemoteProtocolError, UnprovenAnswer
from tasksprint.net.addresses import cause_of, tune_socket
from tasksprint.net.proofs import FRAMES, LINE, WHOLE, WHOLE_BYTES_MAX, AnswerProof
from tasksprint.net.reading import BufferedReader
from tasksprint.settings import Settings

__all__ = ["Connection", "NothingReceived"]

# Bigger bodies are written in slices, no faster than the other end reads.
_SLICE_BYTES = 256 * 1024
# Pieces of a body that is still to be proved: so many, and more of usual sizes.
_PIECES_MAX = 1_000
_PIECE_BYTES_MIN = 512


class NothingReceived(PeerUnreachable):
    """The connection ended before the first byte of an answer."""


class Connection(BufferedReader):
    """One connection, and the request that is under way on it.

    Args:
        read_buffer: All connections of a client read into it.
        forget: Called when the other end closes it while no request is under way.
    """

    __slots__ = (
        "_answer_bytes",
        "_barren_bytes",
        "_bytes_max",
        "_chunks",
        "_complete",
        "_drained",
        "_due",
        "_error",
        "_forget",
        "_head_complete",
        "_is_head_request",
        "_is_paused",
        "_is_proved",
        "_keep_alive",
        "_loop",
        "_moved",
        "_parser",
        "_pieces",
        "_streams",
        "_timeout_ms",
        "_timer",
        "_transport",
        "_under_way",
        "_wait_ms",
        "_waiter",
        "_written",
        "address",
        "headers",
        "is_open",
        "proof",
        "settings",
        "status",
        "unused_since",
    )

    def __init__(
        self,
        address: str,
        settings: Settings,
        read_buffer: memoryview,
        forget: Callable[[Connection], None],
    ) -> None:
        super().__init__(read_buffer)
        self.address = address
        self.settings = settings
        self._forget = forget
        self.unused_since = 0.0
        self.is_open = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)  # until made
        self._parser = httptools.HttpResponseParser(self)
        self._drained: asyncio.Future[None] | None = None  # set while the peer doesn't read
        self._is_paused = False
        self._under_way = False
        self._timer: asyncio.TimerHandle | None = None
        self._reset(None, streams=False, is_head_request=False)

    def _reset(
        self, proof: AnswerProof | None, *, streams: bool, is_head_request: bool
    ) -> None:
        self.proof = proof  # None: nobody asks for one
        self.status = 0
        self.headers: dict[str, str] = {}
        self._streams = streams
        self._is_head_request = is_head_request
        self._chunks: deque[bytes] = deque()
        self._answer_bytes = 0  # received, head and all
        self._barren_bytes = 0  # since the last piece of the body: trailers and the like
        self._pieces = 0  # of the body
        # Whether the other end has proved the key: then a slow transfer isn't a dead one.
        # Until it has, a byte now and then earns no more time.
        self._is_proved = False
        self._bytes_max = self.settings.body_bytes_max
        self._head_complete = False
        self._complete = False
        self._keep_alive = True
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._due = 0.0  # when the answer must have moved on; 0: nothing is waited for
        self._written = 0  # bytes of the body
        self._moved = 0
        self._wait_ms = 0
        self._timeout_ms = self.settings.answer_timeout_ms

    # --- asyncio's events ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self.settings.write_buffer_bytes_max)
        self.is_open = True
        # The peer may be gone already: the next read tells.
        with contextlib.suppress(OSError):
            tune_socket(
                transport.get_extra_info("socket"),
                unacknowledged_timeout_ms=self.settings.unacknowledged_timeout_ms,
            )

    def data_received(self, data: bytes) -> None:
        if not self._under_way or self._complete:
            self.abort()  # Nobody asked.
            return
        self._answer_bytes += len(data)
        self._barren_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(RemoteProtocolError(f"{self.address} upgrades unasked"))
        except httptools.HttpParserCallbackError as error:
            self._fail(cast(Exception, error.__context__ or error))
        except httptools.HttpParserError as error:
            self._fail(
                RemoteProtocolError(f"{self.address} answered what is not HTTP/1.1: {error}")
            )
        if not self._complete:
            self._bound_what_is_begun()

    def _bound_what_is_begun(self) -> None:
        """Fail if the head is too big, or too many bytes are neither head nor body."""
        limit = self.settings.head_bytes_max
        if not self._head_complete and self._answer_bytes > 2 * limit:
            self._fail(
                RemoteProtocolError(
                    f"the head of {self.address}'s answer has more than {limit} bytes "
                    "(head_bytes_max)"
                )
            )
        elif self._head_complete and self._barren_bytes > 2 * limit:
            self._fail(RemoteProtocolError(f"{self.address} sends much beside its answer's body"))

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        self._stop_timer()
        if not self._under_way:
            self._forget(self)
            return
        cause = f" ({cause_of(error)})" if isinstance(error, OSError) else ""
        if self._answer_bytes == 0:
            self._fail(
                NothingReceived(
                    f"cannot reach {self.address}: it closed the connection without an "
                    f"answer{cause}"
                )
            )
        elif not self._complete:
            self._fail(
                PeerUnreachable(
                    f"cannot reach {self.address}: the connection closed in the middle of the "
                    f"answer{cause}"
                )
            )
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def pause_writing(self) -> None:
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    # --- httptools' events ---

    def on_message_begin(self) -> None:
        if self._complete:
            self._keep_alive = False  # Nobody asked for a second answer.

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._complete or self._head_complete:
            return  # (Trailers say nothing to us.)
        # What stands behind the proof belongs to the connection, and the parser reads it.
        if self.proof is None or self.proof.add_line(name, value):
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        self.status = self._parser.get_status_code()
        if self.status < 200:
            return
        self._head_complete = True
        self._barren_bytes = 0
        self._keep_alive = self._parser.should_keep_alive()
        self._is_proved = self.proof is None
        if self.proof is not None:
            try:
                self.proof.check_head(self.status, self.headers)
            except UnprovenAnswer as error:
                self._fail(error)
                return
            if self.proof.kind == WHOLE:
                self._bytes_max = WHOLE_BYTES_MAX
            else:
                self._is_proved = self.proof.kind != LINE
        if self._is_head_request:
            # The parser would wait for the body that the head announces.
            self._parser = httptools.HttpResponseParser(self)
            self._complete = True
        if self._streams or self._complete:
            self._wake()

    def on_body(self, data: bytes) -> None:
        if self._complete or self._error is not None:
            return
        self._barren_bytes = 0
        if not self._is_proved and not self._may_keep(data):
            return
        if self.proof is not None and self.proof.kind == FRAMES:
            try:
                self._chunks.extend(self.proof.unframe(data))
            except UnprovenAnswer as error:
                self._fail(error)
                return
        else:
            self._chunks.append(data)
        if self._streams and not self._is_read_whole:
            waiting = sum(len(chunk) for chunk in self._chunks)
            if waiting > self.settings.write_buffer_bytes_max and not self._is_paused:
                self._is_paused = True
                self._transport.pause_reading()
            self._wake()
        elif self._answer_bytes > self._bytes_max + self.settings.head_bytes_max:
            self._fail(self.too_big(self._bytes_max))

    def _may_keep(self, data: bytes) -> bool:
        """Whether to keep a piece of a body that isn't proved yet; see whether its line is now."""
        assert self.proof is not None
        self._pieces += 1
        if self._pieces > _PIECES_MAX + self._answer_bytes // _PIECE_BYTES_MIN:
            # Each costs many times its bytes.
            self._fail(self.proof.unproven())
            return False
        if self.proof.kind == LINE and b"\n" in data:
            try:
                self.proof.check_body(b"".join(self._chunks) + data)
            except UnprovenAnswer as error:
                self._fail(error)
                return False
            self._is_proved = True
        return True

    def on_message_complete(self) -> None:
        if self._complete or self._error is not None:
            return
        if self.status < 200:  # "100 Continue" comes before the answer.
            self.headers = {}
            if self.proof is not None:
                self.proof.begin_again()
            return
        if self.proof is not None and self.proof.kind == FRAMES:
            try:
                self.proof.check_end()
            except UnprovenAnswer as error:
                self._fail(error)
                return
        self._complete = True
        self._wake()

    # --- for the client ---

    def try_finish(self) -> bool:
        """End the exchange; return whether another request may follow on this connection."""
        if self._complete and not self._chunks:
            self._end()
        return self.is_open and self._keep_alive and not self._under_way

    async def exchange(
        self,
        head: bytes,
        body: bytes,
        proof: AnswerProof | None,
        *,
        method: str,
        wait_ms: int,
        answer_timeout_ms: int,
        streams: bool,
    ) -> None:
        """Send a request and wait for its answer, or with `streams` for the answer's head.

        An answer that streams, but is proved as a whole, is there as a whole.
        """
        self._reset(proof, streams=streams, is_head_request=method == "HEAD")
        self._under_way = True
        if not self.is_open:
            raise NothingReceived(f"cannot reach {self.address}: it closed the connection")
        self._wait_ms = wait_ms
        self._timeout_ms = answer_timeout_ms
        if len(body) <= _SLICE_BYTES:
            self._transport.write(head + body if body else head)
        else:
            self._arm(answer_timeout_ms)
            self._transport.write(head)
            await self._send_slices(body)
            self._disarm()
        self._arm(wait_ms + answer_timeout_ms)
        while not (
            self._complete or (streams and self._head_complete and not self._is_read_whole)
        ):
            await self._wait()
        if self._complete and not streams:
            self._end()
        elif self._is_read_whole and proof is not None:
            proof.check_body(self.peek_body())

    @property
    def _is_read_whole(self) -> bool:
        """Whether nothing of the body may be read before all of it is there."""
        return self.proof is not None and self.proof.kind in (WHOLE, LINE)

    async def read_chunk(self) -> bytes | None:
        """Return the next piece of the body; None at its end.

        Raises:
            UnprovenAnswer: The body doesn't have the digest that the head names.
        """
        while True:
            if self._chunks:
                chunk = self._chunks.popleft()
                if self.proof is not None:
                    self.proof.count(chunk)
                if self._is_paused and len(self._chunks) < 2:
                    self._is_paused = False
                    self._transport.resume_reading()
                return chunk
            if self._complete:
                if self.proof is not None:
                    self.proof.check_counted()
                self._end()
                return None
            await self._wait()

    def take_body(self) -> bytes:
        """Return the whole body."""
        chunks, self._chunks = self._chunks, deque()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def peek_body(self) -> bytes:
        """Return the whole body, and leave it to be taken."""
        body = self.take_body()
        if body:
            self._chunks.append(body)
        return body

    def too_big(self, limit: int) -> RemoteProtocolError:
        """Return the error for an answer with too many bytes."""
        return RemoteProtocolError(
            f"the answer of {self.address} has more than {limit} bytes (body_bytes_max)"
        )

    def abort(self) -> None:
        """Close at once."""
        self._disarm()
        self._stop_timer()
        if self.is_open:  # (A lost transport of asyncio can't be aborted again.)
            self._transport.abort()

    # --- inside ---

    async def _send_slices(self, body: bytes) -> None:
        view = memoryview(body)
        for start in range(0, len(body), _SLICE_BYTES):
            if self._head_complete:  # Refused before all was sent: the answer counts.
                self._keep_alive = False
                return
            piece = view[start : start + _SLICE_BYTES]
            self._transport.write(piece)
            self._written += len(piece)
            if self._drained is not None:
                await self._drained
            if self._error is not None:
                raise self._error

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        # Bytes received before an error still count.
        error = cast("Exception | None", self._error)
        if error is not None and not self._chunks:
            raise error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._keep_alive = False
        self._wake()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self.abort()

    def _end(self) -> None:
        self._under_way = False
        self._disarm()
        if self._transport.get_write_buffer_size():
            self._keep_alive = False  # Answered before all was sent.

    def _arm(self, timeout_ms: int) -> None:
        self._moved = self._count_moved()
        self._due = due = self._loop.time() + timeout_ms / 1000
        # The timer of an earlier request does as well: it looks how long this one has.
        # So most requests cost no timer at all.
        if self._timer is not None and self._timer.when() > due:
            self._stop_timer()
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._check_progress)

    def _disarm(self) -> None:
        self._due = 0.0

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_progress(self) -> None:
        """Fail if nothing moved since the last look; a slow transfer isn't a dead one."""
        timer, self._timer = self._timer, None
        if not self._due:
            return
        if timer is not None and self._due > timer.when():
            self._timer = self._loop.call_at(self._due, self._check_progress)
            return
        timeout_ms = self._timeout_ms
        if self._is_paused or self._count_moved() > self._moved:
            self._arm(timeout_ms)
            return
        what = "more of the answer" if self._answer_bytes else "answer"
        self._fail(
            PeerUnreachable(
                f"cannot reach {self.address}: no {what} within {timeout_ms + self._wait_ms} ms "
                "(answer_timeout_ms)"
            )
        )

    def _count_moved(self) -> int:
        """Return the bytes that the kernel took or gave; our unread ones don't count.

        The bytes of an answer count only once the other end has proved the key.
        """
        received = self._answer_bytes if self._is_proved else 0
        return received + self._written - self._transport.get_write_buffer_size()
