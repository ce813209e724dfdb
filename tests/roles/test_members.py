"""Changes of members, where something else than a new coordinator answers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tasksprint.release import Release
from tasksprint.settings import Rules
from tests.roles.members import Member, answering, members
from tests.roles.test_coordinator import run, until

IDENTITY: dict[str, Any] = {
    "replica": 2,
    "address": "127.0.0.1:1",
    "incarnation": "ab",
    "cluster": None,
    "is_joining": True,
    "incarnations": {},
    "retired": [],
}
WRONG = [
    None,
    [],
    "ok",
    {},
    {**IDENTITY, "incarnation": None},
    {**IDENTITY, "incarnation": 7},
    {**IDENTITY, "incarnation": ""},
    {**IDENTITY, "replica": "2"},
    {**IDENTITY, "cluster": 5},
    {**IDENTITY, "incarnations": []},
    {**IDENTITY, "cluster": "c", "incarnations": {"1": 5}},
    {**IDENTITY, "retired": None},
    {**IDENTITY, "retired": [[]]},
]


@pytest.mark.parametrize("found", WRONG, ids=lambda found: json.dumps(found)[:30])
def test_leader_takes_up_nobody_who_is_no_coordinator(tmp_path: Path, found: Any) -> None:
    """Each repetition of the command ended the next leader."""

    async def main() -> None:
        async with members(1, tmp_path) as of, answering(json.dumps(found).encode()) as address:
            leader = await of.leader()
            body = json.dumps({"change": "add", "replica": 2, "address": address}).encode()
            answer = await leader.ask("POST", "/v1/members", body=body)
            assert answer.status == 409, answer.body
            assert answer.json()["error"].startswith(f"replica 2 doesn't answer at {address}: ")
            assert leader.failure is None
            assert (await leader.ask("GET", "/v1/members")).status == 200

    run(main)


def test_leader_takes_up_no_coordinator_without_the_rules_of_the_cluster(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            new = Member(2, of)
            new.join, new.release = (leader.address,), Release("last", {1: Rules(1)})
            await new.start()
            body = json.dumps({"change": "add", "replica": 2, "address": new.address}).encode()
            answer = await leader.ask("POST", "/v1/members", body=body)
            await new.stop()
            assert answer.status == 409
            assert answer.json()["error"] == (
                "replica 2 runs release last, which has the rules 1 to 1, and this cluster is at "
                "version 2"
            )

    run(main)


@pytest.mark.parametrize("found", WRONG, ids=lambda found: json.dumps(found)[:30])
def test_new_coordinator_goes_on_looking_where_none_answers(
    tmp_path: Path, found: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with members(0, tmp_path) as of, answering(json.dumps(found).encode()) as address:
            new = Member(1, of)
            new.join = (address,)
            of.all.append(new)
            await new.start()
            looking = new.coordinator.turns.background(new.coordinator.members.look_for_cluster())
            await until(lambda: "cannot join by" in caplog.text, "it says so")
            await asyncio.sleep(0)
            assert not looking.done() and new.failure is None
            looking.cancel()

    run(main)
