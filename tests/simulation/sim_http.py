"""HTTP between simulated processes: real routes and handlers, no bytes of HTTP.

`SimHttp` has the face of `net/http_client.py`: deadlines, kept connections and the one
repetition on them are as there. A request that nobody waits for any more is cancelled
where it is handled, as a connection that closes does. Each request is signed, for the life of
whom it finds: a first one that is refused for another life is left out. So are parsing, the
proofs of answers, and slow bodies.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any

from tasksprint.errors import PeerUnreachable, UnprovenAnswer
from tasksprint.net.addresses import parse_address
from tasksprint.net.http_exchange import Exchange
from tasksprint.net.http_messages import JSON_TYPE, HttpResponse, target_of
from tasksprint.net.router import Later, Response, Upgrade
from tasksprint.settings import Settings
from tests.simulation.machines import Machine, Process
from tests.simulation.wire import Wire

__all__ = ["Call", "SimHttp"]

# How often a connection to somebody is still there from the last request.
_KEPT_SHARE = 0.7


class _Broken(PeerUnreachable):
    """The connection ended before an answer."""


class Call:
    """One request on its way, seen from both ends."""

    def __init__(
        self,
        wire: Wire,
        source: Process,
        target: Machine,
        on_answer: Callable[[HttpResponse], None],
    ) -> None:
        self.wire = wire
        self.source = source
        self.target = target
        self.on_answer = on_answer
        self.answered: asyncio.Future[HttpResponse] = source.loop.create_future()
        self.is_given_up = False
        self.server: Process | None = None
        self.task: asyncio.Task[Any] | None = None
        self.handler: Any = None  # what the task awaits

    # --- at the target ---

    def serve(
        self, process: Process, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> None:
        """Hand the request to its handler; on the target's loop."""
        assert process.service is not None
        exchange = Exchange(
            process.service, f"{self.source.address}", version="1.1", keep_alive=True
        )
        exchange.judge(
            method,
            target.encode(),
            headers,
            head_may_be_big=False,
            bound=lambda: parse_address(process.address),
        )
        if exchange.refusal is None:
            if body:
                exchange.take(body)
            exchange.complete()
        answer = exchange.ask(may_upgrade=False)
        if isinstance(answer, Response):
            if isinstance(answer.body, bytes):
                self.answer(process, answer, answer.body)
            else:
                self._run(process, exchange, answer)
        elif isinstance(answer, Later):
            if answer.response is not None:
                self.answer_whole(process, answer.response)
            else:
                answer.wait(lambda response: self.answer_whole(process, response))
        else:
            assert not isinstance(answer, Upgrade)
            self._run(process, exchange, answer)

    def _run(self, process: Process, exchange: Exchange, answer: Any) -> None:
        self.handler = answer

        async def work() -> None:
            try:
                response = answer if isinstance(answer, Response) else await answer
                body = response.body
                if not isinstance(body, bytes):
                    body = b"".join([piece async for piece in body])
            except Exception as error:
                response = exchange.answer_to(error)
                body = response.body
                assert isinstance(body, bytes)
            self.answer(process, response, body)

        self.task = process.loop.create_task(work())

    def answer_whole(self, process: Process, response: Response) -> None:
        """Send an answer back whose body is bytes."""
        assert isinstance(response.body, bytes)
        self.answer(process, response, response.body)

    def answer(self, process: Process, response: Response, body: bytes) -> None:
        """Send an answer back; on the target's loop."""
        process.calls.pop(self, None)
        headers = {"content-type": response.content_type}
        for name, value in (response.headers or {}).items():
            headers[name.lower()] = value
        answer = HttpResponse(response.status, headers, body)
        self.on_answer(answer)
        self.wire.carry(
            process.machine, self.source.machine, lambda: self._tell(answer), lambda: None
        )

    def server_died(self) -> None:
        """Take that the process that handles it is gone."""
        self.server = None
        self._forget_handler()
        if self.target.has_power:
            self.refuse("it closed the connection")

    def hang_up(self) -> None:
        """Take that nobody waits for the answer any more; on the target's loop."""
        process, self.server = self.server, None
        if process is not None:
            process.calls.pop(self, None)
        if self.task is not None:
            self.task.cancel()
            self._forget_handler()

    def _forget_handler(self) -> None:
        handler = self.handler
        if inspect.iscoroutine(handler):
            state = inspect.getcoroutinestate(handler)
            if state == inspect.CORO_CREATED:
                handler.close()  # Nobody is to complain that it never begins.

    def refuse(self, cause: str) -> None:
        """Send back that the connection is closed."""
        self.wire.carry(
            self.target, self.source.machine, lambda: self._tell(_Broken(cause)), lambda: None
        )

    def answer_strangely(self, status: int) -> None:
        """Answer without the key, at the address of somebody who isn't there."""
        text = f"what answers at {self.target.address} is a stranger"
        error = UnprovenAnswer(text, status=status)
        self.wire.carry(
            self.target, self.source.machine, lambda: self._tell(error), lambda: None
        )

    def _tell(self, outcome: HttpResponse | Exception) -> None:
        self.source.loop.call_soon(self._take, outcome)

    # --- at the source ---

    def _take(self, outcome: HttpResponse | Exception) -> None:
        if self.answered.done():
            return
        if isinstance(outcome, Exception):
            self.answered.set_exception(outcome)
            self.answered.exception()  # Whoever asked may have gone.
        else:
            self.answered.set_result(outcome)

    def give_up(self) -> None:
        """Close the connection; on the source's loop, or because it died."""
        if self.is_given_up:
            return
        self.is_given_up = True

        def arrive() -> None:
            if self.server is not None:
                self.server.loop.call_soon(self.hang_up)

        self.wire.carry(self.source.machine, self.target, arrive, lambda: None)


class SimHttp:
    """The HTTP client of one process."""

    def __init__(self, wire: Wire, process: Process, settings: Settings) -> None:
        self._wire = wire
        self._process = process
        self.settings = settings
        self._closed = False
        self._open: dict[Call, None] = {}
        process.at_end.append(self._die)

    def _die(self) -> None:
        for call in list(self._open):
            call.give_up()

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
        """As `HttpClient.request`; nobody here answers in another's name."""
        timeout_ms = wait_ms + (answer_timeout_ms or self.settings.answer_timeout_ms)
        target = target_of(path, query)
        lower = {"content-type": content_type, "content-length": str(len(body))}
        is_kept = repeatable and self._process.random.random() < _KEPT_SHARE
        try:
            return await self._try(address, method, target, lower, body, timeout_ms, is_kept)
        except _Broken:
            if not is_kept or self._closed:
                raise
        return await self._try(address, method, target, lower, body, timeout_ms, False)

    async def _try(
        self,
        address: str,
        method: str,
        target: str,
        headers: dict[str, str],
        body: bytes,
        timeout_ms: float,
        is_kept: bool,
    ) -> HttpResponse:
        wire, process = self._wire, self._process
        if self._closed:
            raise PeerUnreachable(f"cannot reach {address}: this process is closing")
        machine = wire.machines.get(address)
        if machine is None:
            raise PeerUnreachable(f"cannot reach {address}: no such machine")
        call = Call(wire, process, machine, partial(self.answered, target, body))
        self._open[call] = None
        is_there = False

        def arrive() -> None:
            nonlocal is_there
            is_there = True
            server = machine.process
            if call.is_given_up:
                return
            if server is None or not server.is_alive or server.service is None:
                if machine.stranger_status is None or not machine.has_power:
                    call.refuse("connection refused")
                else:
                    call.answer_strangely(machine.stranger_status)
                return
            call.server = server
            server.calls[call] = None
            signed = process.signed(server, method, target, headers, body)
            wire.on_request(address, method, target, signed, body)
            server.loop.call_soon(call.serve, server, method, target, signed, body)

        def lost() -> None:
            if process.is_alive:
                process.loop.call_soon(
                    call._take, _Broken(f"cannot reach {address}: no acknowledgement")
                )

        def time_over() -> None:
            call._take(PeerUnreachable(f"cannot reach {address}: no answer in time"))

        def no_connection() -> None:
            if not is_there and not is_kept:
                call._take(PeerUnreachable(f"cannot reach {address}: no connection"))

        wire.carry(process.machine, machine, arrive, lost)
        timers = [process.loop.call_later(timeout_ms / 1000, time_over)]
        if not is_kept:
            limit_ms = self.settings.connect_timeout_ms
            timers.append(process.loop.call_later(limit_ms / 1000, no_connection))
        try:
            return await call.answered
        except PeerUnreachable as error:
            error.args = (f"{error.args[0]} ({address})",)
            raise
        finally:
            for timer in timers:
                timer.cancel()
            self._open.pop(call, None)
            if not call.answered.done() or call.answered.cancelled() or _failed(call.answered):
                call.give_up()

    def answered(self, target: str, body: bytes, answer: HttpResponse) -> None:
        """Take what a request is answered, when it is; the answer may still be lost."""

    @contextlib.asynccontextmanager
    async def stream(
        self,
        address: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        digest: str | None = None,
    ) -> AsyncIterator[SimStreamed]:
        """As `HttpClient.stream`; but the whole answer is there at once."""
        yield SimStreamed(await self.request(address, method, path, query=query))

    async def close(self) -> None:
        """End all requests under way."""
        self._closed = True
        for call in list(self._open):
            call._take(PeerUnreachable("this process is closing"))


def _failed(future: asyncio.Future[HttpResponse]) -> bool:
    return future.exception() is not None


class SimStreamed:
    """An answer, as `StreamedResponse`."""

    def __init__(self, response: HttpResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = response.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body."""
        yield self._response.body

    async def read(self) -> HttpResponse:
        """Return the whole answer."""
        return self._response
