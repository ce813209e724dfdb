"""The body of a streaming request, as an iterator; the handler reads it at its own pace."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

__all__ = ["BodyFeeder"]


class BodyFeeder:
    """Takes pieces of a body from a connection and gives them to a handler.

    Args:
        buffer_bytes_max: At more waiting bytes, `hold` is called; at half of it, `go_on`.
        hold: Stops the connection from reading.
        go_on: Lets it read on.
    """

    def __init__(
        self, *, buffer_bytes_max: int, hold: Callable[[], None], go_on: Callable[[], None]
    ) -> None:
        self._buffer_bytes_max = buffer_bytes_max
        self._hold = hold
        self._go_on = go_on
        self._chunks: deque[bytes] = deque()
        self._bytes = 0
        self._error: Exception | None = None
        self._wakeup: asyncio.Future[None] | None = None
        self.is_complete = False

    def feed(self, data: bytes) -> None:
        """Take a part of the body."""
        self._chunks.append(data)
        self._bytes += len(data)
        if self._bytes > self._buffer_bytes_max:
            self._hold()
        self._wake()

    def end(self) -> None:
        """Take the end of the body."""
        self.is_complete = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """Take note that the rest will never come."""
        self._error = error
        self._wake()

    def __aiter__(self) -> BodyFeeder:
        return self

    async def __anext__(self) -> bytes:
        while True:
            if self._chunks:
                chunk = self._chunks.popleft()
                self._bytes -= len(chunk)
                if self._bytes <= self._buffer_bytes_max // 2:
                    self._go_on()
                return chunk
            if self._error is not None:
                raise self._error
            if self.is_complete:
                raise StopAsyncIteration
            self._wakeup = asyncio.get_running_loop().create_future()
            await self._wakeup

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)
