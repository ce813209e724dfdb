"""A closed loop of HTTP/1.1 requests: n submitters, each with one request under way.

One thread over epoll, without asyncio: the loader shares the machine with the system that it
loads, and takes its own time from it. Knows requests and submitters, but not the system; the
same loop loads every system that speaks HTTP.
"""

from __future__ import annotations

import gc
import select
import socket
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Latencies", "closed_loop", "percentiles"]

_CONNECT_S = 10.0
_STUCK_S = 30.0  # without any answer
_READ_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Latencies:
    """The figures of a closed loop's counted seconds."""

    seconds: float
    latencies_ns: Sequence[int]
    loader_cpu_s: float  # of the counted seconds

    def figures(self) -> dict[str, float]:
        """Return rate and percentiles, for people and for JSON."""
        count = len(self.latencies_ns)
        return {
            "per_s": round(count / self.seconds, 1),
            **percentiles(self.latencies_ns),
            "loader_us": round(1e6 * self.loader_cpu_s / max(count, 1), 1),
        }


def percentiles(latencies_ns: Sequence[int]) -> dict[str, float]:
    """Return p50 and p99 in milliseconds."""
    ordered = sorted(latencies_ns)
    if not ordered:
        raise SystemExit("nothing was answered in the counted time")
    return {
        "p50_ms": round(ordered[len(ordered) // 2] / 1e6, 3),
        "p99_ms": round(ordered[len(ordered) * 99 // 100] / 1e6, 3),
    }


class _Submitter:
    """One connection, with one request under way."""

    __slots__ = ("buffer", "connection", "requests", "sent_ns")

    def __init__(self, connection: socket.socket, requests: Iterator[bytes]) -> None:
        self.connection = connection
        self.requests = requests
        self.buffer = b""
        self.sent_ns = 0


def closed_loop(
    address: tuple[str, int],
    submitters: Sequence[Iterator[bytes]],
    *,
    seconds: float,
    warm_up_s: float,
    counted: Callable[[bool], None] = lambda begins: None,
) -> Latencies:
    """Load an address for a while.

    Args:
        submitters: Each yields its requests, whole, for ever.
        counted: Called when the counted time begins (True) and ends (False).

    Raises:
        SystemExit: An answer was not 200, or none came.
    """
    epoll = select.epoll()
    by_fd: dict[int, _Submitter] = {}
    for requests in submitters:
        connection = socket.create_connection(address, timeout=_CONNECT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        by_fd[connection.fileno()] = _Submitter(connection, requests)
        epoll.register(connection.fileno(), select.EPOLLIN)
    gc.collect()
    gc.disable()
    try:
        return _loop(epoll, by_fd, seconds, warm_up_s, counted)
    finally:
        gc.enable()
        epoll.close()
        for submitter in by_fd.values():
            submitter.connection.close()


def _loop(
    epoll: select.epoll,
    by_fd: dict[int, _Submitter],
    seconds: float,
    warm_up_s: float,
    counted: Callable[[bool], None],
) -> Latencies:
    now = time.perf_counter_ns
    latencies = array("q")
    for submitter in by_fd.values():
        submitter.sent_ns = now()
        submitter.connection.send(next(submitter.requests))
    begin_ns = now() + int(warm_up_s * 1e9)
    end_ns = begin_ns + int(seconds * 1e9)
    is_counting = False
    cpu_s = 0.0
    while True:
        ready = epoll.poll(_STUCK_S)
        if not ready:
            raise SystemExit(f"no answer within {_STUCK_S} s")
        for fd, _ in ready:
            submitter = by_fd[fd]
            data = submitter.connection.recv(_READ_BYTES)
            if submitter.buffer:
                data = submitter.buffer + data
            if not _is_whole(data):
                submitter.buffer = data
                continue
            submitter.buffer = b""
            got_ns = now()
            if is_counting:
                latencies.append(got_ns - submitter.sent_ns)
            submitter.sent_ns = got_ns
            submitter.connection.send(next(submitter.requests))
        if is_counting:
            if now() >= end_ns:
                cpu_s = time.process_time() - cpu_s
                counted(False)
                return Latencies((now() - begin_ns) / 1e9, latencies, cpu_s)
        elif now() >= begin_ns:
            is_counting = True
            counted(True)
            begin_ns = now()
            end_ns = begin_ns + int(seconds * 1e9)
            cpu_s = time.process_time()


def _is_whole(data: bytes) -> bool:
    """Return whether an answer is complete.

    Raises:
        SystemExit: It isn't one with status 200.
    """
    if not data:
        raise SystemExit("the server closed a connection under load")
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    if data[9:12] != b"200":
        raise SystemExit(f"a command was answered with {data[:400]!r}")
    at = data.find(b"ontent-Length: ", 0, end)
    length = int(data[at + 15 : data.find(b"\r", at)]) if at >= 0 else 0
    return len(data) >= end + 4 + length
