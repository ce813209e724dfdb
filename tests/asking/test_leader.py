"""How a client finds who leads, when coordinators are stopped in their tracks."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tasksprint.asking.leader import LeaderFinder
from tasksprint.asking.rota import Rota, error_words
from tasksprint.encoding import encode_json
from tasksprint.errors import PeerUnreachable, SettingsError
from tasksprint.net.http_messages import HttpResponse
from tasksprint.process.clock import monotonic_ms
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

    monkeypatch.setattr(asyncio, "sleep", no_pause)
    leader = LeaderFinder(
        ["a:1", "b:1", "c:1"],
        http,  # type: ignore[arg-type]
        random.Random(1),
        lambda: http.now_ms,
    )
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


def test_client_asks_members_that_it_learned_of_when_those_it_knew_are_gone() -> None:
    rota = Rota(["a:1", "b:1"])
    rota.learn(["b:1", "c:1", "d:1"])
    asked = []
    for _ in range(4):
        asked.append(rota.address)
        rota.failed()
    assert asked == ["a:1", "b:1", "c:1", "d:1"]
    rota.learn(["d:1", "e:1"])
    asked = []
    for _ in range(4):
        asked.append(rota.address)
        rota.failed()
    assert sorted(asked) == ["a:1", "b:1", "d:1", "e:1"]


# --- coordinators of another cluster ---


class TwoClusters:
    """An HTTP client in a world where addresses belong to clusters; "" is nobody."""

    settings = Settings()

    def __init__(self, **clusters: str) -> None:
        self.clusters = clusters
        self.asked: list[str] = []

    async def request(
        self, address: str, method: str, path: str, **options: Any
    ) -> HttpResponse:
        self.asked.append(address)
        cluster = self.clusters[address[0]]
        if not cluster:
            raise PeerUnreachable(f"cannot reach {address}")
        if cluster == "not leading":
            return HttpResponse(421, {}, b'{"error":"-","leader":null}')
        if (options["query"] or {}).get("cluster", cluster) != cluster:
            body = encode_json({"error": "-", "leader": None, "cluster": cluster})
            return HttpResponse(421, {}, body)
        return HttpResponse(200, {}, cluster.encode())


def ask_of(http: TwoClusters, cluster: str | None, *, give_up_ms: int | None = None) -> bytes:
    named = [f"{name}:1" for name in http.clusters]
    leader = LeaderFinder(named, http, random.Random(1), monotonic_ms)  # type: ignore[arg-type]
    leader.cluster = cluster
    return asyncio.run(leader.request("GET", "/v1/view", give_up_ms=give_up_ms)).body


def test_coordinators_of_another_cluster_are_passed_over() -> None:
    http = TwoClusters(a="old", b="old", c="new")
    assert ask_of(http, "new") == b"new"
    assert http.asked == ["a:1", "b:1", "c:1"]
    assert ask_of(http, None) == b"old"  # Who belongs to none yet takes the first.


def test_client_ends_once_all_coordinators_belong_to_another_cluster() -> None:
    http = TwoClusters(a="old", b="old")
    with pytest.raises(SettingsError, match="named are of cluster 'old'"):
        ask_of(http, "new")


def test_who_looks_in_vain_is_told_what_coordinators_say() -> None:
    http = TwoClusters(a="not leading")
    with pytest.raises(PeerUnreachable, match=r"^no coordinator answers: -$"):
        ask_of(http, None, give_up_ms=0)
    deep = b'{"error":' + b"[" * 1_000 + b"]" * 1_000 + b"}"
    for body, words in (
        (b'{"error":"it waits"}', "it waits"),
        *((nothing, "") for nothing in (b"[]", b"nonsense", deep)),
    ):
        assert error_words(HttpResponse(421, {}, body)) == words


@pytest.mark.parametrize("third", ["", "not leading"])
def test_client_goes_on_looking_while_one_may_be_of_its_cluster(third: str) -> None:
    http = TwoClusters(a="old", b="old", c=third)
    with pytest.raises(PeerUnreachable):
        ask_of(http, "new", give_up_ms=50)
