"""What processes say of themselves: `/metrics`, `/readyz` and the fields of `status`.

The text is read by a strict parser of Prometheus's format (version 0.0.4), so
that what a lenient scraper would forgive fails here.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tasksprint.execution.workbench import Workbench
from tasksprint.ids import ClientId, Incarnation
from tasksprint.net.http_client import HttpClient
from tasksprint.net.tokens import Scope, make_token
from tasksprint.process.free_space import FreeSpace
from tasksprint.roles.client.client import Client
from tasksprint.roles.client.metrics import client_metrics, client_readiness
from tasksprint.roles.metrics import METRICS_TYPE, Exposition
from tasksprint.settings import Settings
from tasksprint.store.writer import WriteTimes
from tests.roles.members import KEY, Members, members

_DEADLINE_S = 100.0
_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*"'
_SAMPLE = re.compile(rf"({_NAME})(?:\{{({_LABEL}(?:,{_LABEL})*)\}})? (\S+)")
_VALUE = re.compile(r"[+-]?(\d+(\.\d+)?([eE][+-]?\d+)?|Inf|NaN)")
_SUFFIXES = {"summary": ("", "_sum", "_count"), "gauge": ("",), "counter": ("",)}


@dataclass
class _Family:
    kind: str = ""
    help: str = ""
    samples: dict[tuple[str, str], float] = field(default_factory=dict)


def parse(text: str) -> dict[str, _Family]:
    """Return the families of an exposition, or fail on anything that isn't the format."""
    families: dict[str, _Family] = {}
    assert text.endswith("\n")
    current = ""
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            _, _, name, words = line.split(" ", 3)
            assert re.fullmatch(_NAME, name) and words and name not in families, line
            families[name] = _Family(help=words)
            current = name
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == current and kind in _SUFFIXES and not families[name].kind, line
            families[name].kind = kind
        else:
            match = _SAMPLE.fullmatch(line)
            assert match is not None, line
            name, labels, value = match[1], match[2] or "", match[3]
            family = families[current]
            assert name in [current + suffix for suffix in _SUFFIXES[family.kind]], line
            assert _VALUE.fullmatch(value), line
            assert (name, labels) not in family.samples, line
            family.samples[name, labels] = float(value)
    for name, family in families.items():
        assert family.kind and name.startswith("tasksprint_"), name
        assert name.endswith("_total") == (family.kind == "counter"), name
        if family.kind == "summary":
            assert {f"{name}_sum", f"{name}_count"} <= {sample for sample, _ in family.samples}
        assert not re.search(r"_(ms|us|kib|mib|kb|mb)(_|$)", name), f"{name} is no base unit"
    return families


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main(), _DEADLINE_S)

    asyncio.run(bounded())


async def _until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


async def _scrape(cluster: Members, index: int) -> dict[str, _Family]:
    response = await cluster.all[index].ask("GET", "/metrics")
    assert response.status == 200
    assert response.headers["content-type"] == METRICS_TYPE
    return parse(response.body.decode())


# --- the format ---


def test_every_kind_of_family_parses() -> None:
    out = Exposition()
    out.gauge("tasksprint_a", "A gauge.", ({}, 1), ({"x": "y"}, -0.5))
    out.counter("tasksprint_b_total", "A counter.", ({}, 3))
    out.summary("tasksprint_c_seconds", "Times.", WriteTimes(4, 0.25, 1e-05, 0.1))
    families = parse(out.encode().decode())
    assert families["tasksprint_a"].samples == {
        ("tasksprint_a", ""): 1.0,
        ("tasksprint_a", 'x="y"'): -0.5,
    }
    assert families["tasksprint_b_total"].samples == {("tasksprint_b_total", ""): 3.0}
    assert families["tasksprint_c_seconds"].samples == {
        ("tasksprint_c_seconds", 'quantile="0.5"'): 1e-05,
        ("tasksprint_c_seconds", 'quantile="0.99"'): 0.1,
        ("tasksprint_c_seconds_sum", ""): 0.25,
        ("tasksprint_c_seconds_count", ""): 4.0,
    }


def test_quotes_and_line_ends_are_escaped() -> None:
    out = Exposition()
    out.gauge("tasksprint_a", "One\nline \\ only.", ({"x": 'say "\\"\n'}, 1))
    (family,) = parse(out.encode().decode()).values()
    assert family.help == "One\\nline \\\\ only."
    assert list(family.samples) == [("tasksprint_a", 'x="say \\"\\\\\\"\\n"')]


def test_percentiles_of_no_transactions_are_not_numbers() -> None:
    out = Exposition()
    out.summary("tasksprint_c_seconds", "Times.", WriteTimes(0, 0.0, None, None))
    (family,) = parse(out.encode().decode()).values()
    assert math.isnan(family.samples["tasksprint_c_seconds", 'quantile="0.99"'])


@pytest.mark.parametrize(
    "text",
    [
        "tasksprint_a 1\n",
        "# HELP tasksprint_a A.\n# TYPE tasksprint_a gauge\ntasksprint_a 1",
        "# HELP tasksprint_a A.\n# TYPE tasksprint_a gauge\ntasksprint_a one\n",
        "# HELP tasksprint_a A.\n# TYPE tasksprint_a counter\ntasksprint_a 1\n",
        '# HELP tasksprint_a A.\n# TYPE tasksprint_a gauge\ntasksprint_a{x="a"b"} 1\n',
        "# HELP tasksprint_a A.\n# TYPE tasksprint_a gauge\ntasksprint_a 1\ntasksprint_a 1\n",
    ],
)
def test_the_parser_refuses_what_is_not_the_format(text: str) -> None:
    with pytest.raises((AssertionError, KeyError)):
        parse(text)


# --- coordinators ---


@pytest.mark.slow
def test_a_leader_and_a_follower_say_how_they_stand(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(3, tmp_path) as cluster:
            leader = cluster.all.index(await cluster.leader())
            follower = (leader + 1) % 3
            await _until(lambda: cluster.all[follower].coordinator.replica.leader is not None)
            leads = await _scrape(cluster, leader)
            follows = await _scrape(cluster, follower)

        def value(families: dict[str, _Family], name: str, labels: str = "") -> float:
            return families[name.removesuffix("_count")].samples[name, labels]

        assert value(leads, "tasksprint_leader") == 1
        assert value(follows, "tasksprint_leader") == 0
        assert value(follows, "tasksprint_leader_known") == 1
        assert value(leads, "tasksprint_elections_total") >= 1
        assert value(leads, "tasksprint_leader_changes_total") >= 1
        assert value(leads, "tasksprint_chosen_slot") >= value(leads, "tasksprint_applied_slot")
        assert value(leads, "tasksprint_log_write_seconds_count") > 0
        assert value(leads, "tasksprint_peer_lag_slots", f'peer="{follower + 1}"') >= 0
        assert value(leads, "tasksprint_clients_alive") == 0

    run(main)


@pytest.mark.slow
def test_status_has_what_an_operator_asks_for(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(3, tmp_path) as cluster:
            leader = await cluster.leader()
            status = (await leader.ask("GET", "/v1/status")).json()
        assert status["leader"] == leader.number
        assert status["consensus"]["ballot"][1] == leader.number
        assert status["writes"]["count"] > 0
        assert 0 < status["writes"]["p50_s"] <= status["writes"]["p99_s"]
        assert set(status["files"]) == {"database_bytes", "wal_bytes"}
        last = status["elections"][-1]
        assert last["leader"] == leader.number and last["cause"]
        assert last["ballot"] == status["consensus"]["ballot"]

    run(main)


def test_a_token_is_enough_to_scrape_and_nothing_is_not(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(1, tmp_path) as cluster:
            await cluster.leader()
            unsigned = HttpClient(None, Settings())
            address = cluster.all[0].address
            try:
                token = make_token(KEY, Scope.READ, 60)
                found = await unsigned.request(
                    address, "GET", "/metrics", query={"token": token}
                )
                assert found.status == 200 and parse(found.body.decode())
                assert (await unsigned.request(address, "GET", "/metrics")).status == 401
            finally:
                await unsigned.close()

    run(main)


@pytest.mark.slow
def test_ready_while_a_leader_is_heard_and_not_without_a_quorum(tmp_path: Path) -> None:
    settings = Settings(
        heartbeat_interval_ms=20, election_timeout_min_ms=100, election_timeout_max_ms=200
    )

    async def main() -> None:
        unsigned = HttpClient(None, settings)
        async with members(3, tmp_path, settings) as cluster:
            leader = await cluster.leader()
            others = [member for member in cluster.all if member is not leader]
            await _until(lambda: others[0].coordinator.replica.leader == leader.number)
            for member in (leader, others[0]):
                answer = await unsigned.request(member.address, "GET", "/readyz")
                assert answer.status == 200 and answer.json()["ready"] is True
            await leader.stop()
            await others[1].stop()
            await _until(lambda: others[0].coordinator.replica.leader is None)
            answer = await unsigned.request(others[0].address, "GET", "/readyz")
            assert answer.status == 503
            assert answer.json()["error"] == f"replica {others[0].number} hears no leader"
            for member in (leader, others[1]):
                await member.start()
            await cluster.leader()
        await unsigned.close()

    run(main)


def test_not_ready_before_the_cluster_is_founded(tmp_path: Path) -> None:
    async def main() -> None:
        unsigned = HttpClient(None, Settings())
        cluster = Members(2, tmp_path, Settings())
        await cluster.all[0].start()
        try:
            answer = await unsigned.request(cluster.all[0].address, "GET", "/readyz")
            assert answer.status == 503
            assert answer.json()["error"] == "replica 1 waits for the other members to be up"
            families = await _scrape(cluster, 0)
            assert families["tasksprint_applied_slot"].samples["tasksprint_applied_slot", ""] == 0
        finally:
            await cluster.all[0].stop()
            await cluster.http.close()
            await unsigned.close()

    run(main)


# --- clients ---


def _client(path: Path, *, is_joined: bool) -> Client:
    workbench = Workbench(
        cid=ClientId(1), incarnation=Incarnation("1"), capacity=2, settings=Settings(), now_ms=0
    )
    parts = SimpleNamespace(
        started_ms=0,
        uptime_ms=1_500,
        is_joined=is_joined,
        workbench=workbench,
        writer=SimpleNamespace(write_times=lambda: WriteTimes(2, 0.5, 0.2, 0.3)),
        database_path=path,
        free_space=FreeSpace(Settings(), path.parent),
        bugs=SimpleNamespace(count=3),
    )
    parts.free_space.found(3_000_000_000, 1 << 40)
    return cast(Client, parts)


def test_a_client_says_what_it_does(tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    path.write_bytes(b"x" * 1000)
    response = client_metrics(_client(path, is_joined=True))
    assert isinstance(response.body, bytes)
    families = parse(response.body.decode())
    assert families["tasksprint_uptime_seconds"].samples["tasksprint_uptime_seconds", ""] == 1.5
    assert families["tasksprint_bugs_total"].samples["tasksprint_bugs_total", ""] == 3
    sizes = families["tasksprint_database_bytes"].samples
    assert sizes["tasksprint_database_bytes", 'file="main"'] == 1000
    assert sizes["tasksprint_database_bytes", 'file="wal"'] == 0
    assert 'state="running"' in {labels for _, labels in families["tasksprint_tasks"].samples}


def test_a_client_is_ready_once_it_has_joined(tmp_path: Path) -> None:
    assert client_readiness(_client(tmp_path, is_joined=True)).status == 200
    response = client_readiness(_client(tmp_path, is_joined=False))
    assert response.status == 503 and b"has not joined yet" in cast(bytes, response.body)
