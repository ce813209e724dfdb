"""The coordinator that leads raises the rules: by itself, or asked to, and never too early."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasksprint.consensus import Member, Membership
from tasksprint.errors import Refused, UnknownRules
from tasksprint.ids import Incarnation, ReplicaId
from tasksprint.release import SILENT, THIS_RELEASE, Release, Speaks
from tasksprint.roles.coordinator.ports import NotLeader
from tasksprint.roles.coordinator.raising import RulesRaising
from tasksprint.settings import RULES_BY_VERSION, Settings
from tests.roles.members import Members
from tests.roles.test_coordinator import run

SETTLE_MS = 5_000
NEW = THIS_RELEASE.speaks


class Leader:
    """Replica 1, which leads the voters 1 and 2 and the learner 3, and what it proposes."""

    me = ReplicaId(1)
    leader = me
    is_leader = True

    def __init__(self, **said: Speaks | None) -> None:
        members = tuple(
            Member(ReplicaId(number), Incarnation(f"inc{number}"), f"h{number}:1")
            for number in (1, 2, 3)
        )
        self.membership = Membership(0, members[:2], members[2:])
        self.said = {ReplicaId(2): said.get("two", NEW), ReplicaId(3): said.get("three", NEW)}
        self.schedule = SimpleNamespace(rules=RULES_BY_VERSION[1])
        self.now = 0
        self.is_free = True
        self.proposed: list[bytes] = []
        part: Any = self
        self.raising = RulesRaising(
            Settings(rules_settle_ms=SETTLE_MS), THIS_RELEASE, part, part, part, part
        )

    # The ports that it uses:

    def propose(self, command: bytes, now_ms: int, *, is_alone: bool) -> bool:
        assert is_alone and now_ms == self.now
        if self.is_free:
            self.proposed.append(command)
        return self.is_free

    def said_by(self, peer: ReplicaId) -> Speaks | None:
        return self.said[peer]

    def require_schedule(self) -> Any:
        return self.schedule

    def now_ms(self) -> int:
        return self.now

    def not_leader(self) -> NotLeader:
        return NotLeader("replica 2 leads", "h2:1")

    def step(self, method: Any, *arguments: object) -> Any:
        return method(*arguments)

    def wake(self) -> None:
        pass

    def tick(self, now_ms: int) -> list[bytes]:
        """Let a tick be proposed; return what is proposed with it."""
        self.now = now_ms
        self.raising.ticked()
        proposed, self.proposed = self.proposed, []
        return proposed


def test_leader_raises_the_rules_by_itself_and_again_until_the_log_holds_it() -> None:
    leader = Leader()
    assert leader.tick(0) == []
    assert leader.tick(SETTLE_MS - 1) == []
    assert leader.tick(SETTLE_MS) == [b'["rules",2]']
    assert leader.tick(SETTLE_MS + 500) == [b'["rules",2]']
    leader.schedule.rules = RULES_BY_VERSION[2]
    assert leader.tick(SETTLE_MS + 1_000) == []


def test_what_an_earlier_leadership_saw_says_nothing_of_this_one() -> None:
    """Who leads again waits anew: a member may have been put back and replaced meanwhile."""
    leader = Leader()
    assert leader.tick(0) == []
    leader.raising.begin()
    assert leader.tick(10 * SETTLE_MS) == []
    assert leader.tick(11 * SETTLE_MS) == [b'["rules",2]']


@pytest.mark.parametrize("said", [{"two": SILENT}, {"three": SILENT}, {"three": None}])
def test_voter_or_learner_that_has_not_said_that_it_can_is_waited_for(said: Any) -> None:
    leader = Leader(**said)
    for now_ms in range(0, 10 * SETTLE_MS, SETTLE_MS):
        assert leader.tick(now_ms) == []


def test_who_asks_need_not_wait() -> None:
    leader = Leader()
    leader.raising.raise_now()
    assert leader.proposed == [b'["rules",2]']
    leader.schedule.rules = RULES_BY_VERSION[2]
    leader.raising.raise_now()  # It is so already.
    assert len(leader.proposed) == 1


def test_who_asks_too_early_is_told_who_is_missing() -> None:
    leader = Leader(two=SILENT, three=None)
    with pytest.raises(Refused) as caught:
        leader.raising.raise_now()
    assert str(caught.value) == (
        "the rules can't be raised to version 2: replica 2 runs release 0.2.0 or older, which has "
        "the rules 1 to 1; replica 3 isn't connected with the leader; replace these processes by "
        "ones of this release, or remove the members"
    )
    assert (caught.value.status, leader.proposed) == (409, [])


def test_who_asks_while_the_members_change_is_told_to_ask_again() -> None:
    leader = Leader()
    leader.is_free = False
    with pytest.raises(Refused, match="is under way: try again when it is done"):
        leader.raising.raise_now()


def test_who_asks_one_that_has_lost_office_is_sent_to_the_leader() -> None:
    """Not told that something is under way: between the question and this it was deposed."""
    leader = Leader()
    leader.is_free = leader.is_leader = False
    with pytest.raises(NotLeader, match="replica 2 leads"):
        leader.raising.raise_now()


LAST = Release("last", {1: RULES_BY_VERSION[1]})


def test_cluster_is_upgraded_one_after_the_other_and_not_put_back_after_that(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        of = Members(2, tmp_path, Settings())
        one, two = of.all
        one.release = LAST
        for member in of.all:
            await member.start()
        try:
            asked = await (await of.leader()).ask("GET", "/v1/status")
            assert asked.json()["rules"] == 1
            await one.stop()
            one.release = THIS_RELEASE
            await one.start()

            async def raised() -> bool:
                await (await of.leader()).ask("POST", "/v1/upgrade")
                answers = [(await member.ask("GET", "/v1/status")).json() for member in of.all]
                return [answer["rules"] for answer in answers] == [2, 2]

            while not await raised():
                await asyncio.sleep(0.01)
            # Whoever copies the state is told its rules before. (Then all of it is written.)
            assert (await one.ask("POST", "/v1/mirror")).json()["rules"] == 2
            await one.stop()
            one.release = LAST
            with pytest.raises(UnknownRules, match="the state of this replica is at version 2"):
                await one.start()
        finally:
            await of.http.close()
            await two.stop()

    run(main)


def test_listing_says_what_each_member_can_and_who_is_missing() -> None:
    leader = Leader(two=SILENT, three=None)
    listing = leader.raising.listing()
    assert (listing["rules"], listing["newest"]) == (1, 2)
    assert [member["replica"] for member in listing["members"]] == [1, 2, 3]
    one, two, three = (member["speaks"] for member in listing["members"])
    assert (one["rules"], two["rules"], three) == ((1, 2), (1, 1), None)
    assert [text.split(" ")[1] for text in listing["missing"]] == ["2", "3"]
