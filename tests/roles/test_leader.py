"""How a client finds who leads, when coordinators are stopped in their tracks."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tasksprint.errors import PeerUnreachable
from tasksprint.net.http_messages import HttpResponse
from tasksprint.roles import leader as leader_module
from tasksprint.roles.leader import Leader
from tasksprint.settings import RULES, Settings


class StalledCoordinators:
    """An HTTP client in a world where some coordinators accept requests and say nothing."""

    settings = Settings()

    def __init__(self, *silent: str, slow_ms: int = 0) -> None:
        self.silent = silent
        self.slow_ms = slow_ms  # how long the others take
        self.now_ms = 0
        self.asked: list[tuple[str, int]] = []

    async def request(
        self, address: str, method: str, path: str, **options: Any
    ) -> HttpResponse:
        limit_ms = options["wait_ms"] + options["answer_timeout_ms"]
        self.asked.append((address, limit_ms))
        if address in self.silent or self.slow_ms > limit_ms:
            self.now_ms += limit_ms
            raise PeerUnreachable(f"cannot reach {address}: no answer within {limit_ms} ms")
        self.now_ms += self.slow_ms
        return HttpResponse(200, {}, b"{}")


def ask(
    http: StalledCoordinators, monkeypatch: pytest.MonkeyPatch, *, wait_ms: int = 0
) -> HttpResponse:
    async def no_pause(seconds: float) -> None:
        pass

    monkeypatch.setattr(leader_module, "monotonic_ms", lambda: http.now_ms)
    monkeypatch.setattr(asyncio, "sleep", no_pause)
    leader = Leader(["a:1", "b:1", "c:1"], http, random.Random(1))  # type: ignore[arg-type]
    return asyncio.run(leader.request("GET", "/v1/view", wait_ms=wait_ms))


def test_client_of_a_stalled_leader_asks_the_next_one_before_that_takes_it_for_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings()
    http = StalledCoordinators("a:1")
    ask(http, monkeypatch, wait_ms=settings.view_poll_max_ms)
    assert [address for address, _ in http.asked] == ["a:1", "b:1"]
    # A new leader counts from its beginning, so an election of no time at all is the worst.
    assert http.now_ms + 1_000 < RULES.liveness_span_ms


def test_coordinator_that_is_slow_is_given_more_time_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    http = StalledCoordinators(slow_ms=5_000)
    ask(http, monkeypatch)
    assert [limit_ms for _, limit_ms in http.asked] == [1_500, 3_000, 6_000]


def test_coordinators_that_never_answer_get_the_usual_time_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    http = StalledCoordinators(slow_ms=9_000)
    ask(http, monkeypatch)
    assert [limit_ms for _, limit_ms in http.asked] == [1_500, 3_000, 6_000, 10_000]
