"""A replica whose state was tampered with stops, exactly that one, and the others serve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tasksprint.coordination.commands import JoinClient
from tasksprint.errors import StateDiffers
from tasksprint.ids import Incarnation
from tasksprint.roles.coordinator import agreement, durable
from tasksprint.settings import Settings
from tests.coordination.world import look_inside
from tests.roles.members import Member, Members, _listen, members
from tests.roles.test_coordinator import decide, run, until

# Ticks come fast, so that a difference shows soon.
SETTINGS = Settings(tick_interval_ms=20)


def tamper(member: Member, by_ms: int = 1) -> None:
    """Let a replica's memory change: log time is off by so much."""
    look_inside(member.coordinator.log.require_schedule()).log_ms += by_ms


def level(of: Members) -> Callable[[], bool]:
    def is_level() -> bool:
        schedules = [member.coordinator.log.schedule for member in of.all]
        return all(each is not None and each.applied_slot > 4 for each in schedules)

    return is_level


def applied(member: Member) -> int:
    return member.coordinator.log.require_schedule().applied_slot


async def serves(member: Member) -> None:
    reply = await decide(member, JoinClient("aa", Incarnation("bb"), None, "host", 2))
    assert reply["cid"] == 1


async def stopped(member: Member) -> StateDiffers:
    await until(lambda: member.failure is not None, f"replica {member.number} stops")
    assert isinstance(member.failure, StateDiffers), member.failure
    return member.failure


@pytest.mark.slow
def test_follower_with_another_state_stops_and_the_others_serve(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(3, tmp_path, SETTINGS) as of:
            leader = await of.leader()
            await until(level(of), "all have applied some ticks")
            wrong, right = (member for member in of.all if member is not leader)
            tamper(wrong)
            failure = await stopped(wrong)
            assert failure.exit_code == 65
            me, others = wrong.number, sorted((leader.number, right.number))
            text = str(failure)
            assert text.startswith(
                f"replica {me} has another state than a majority of the voters "
                f"({others[0]}, {others[1]}): after slot "
            )
            assert text.endswith(
                "; don't start it again: keep its data directory for the authors, and put a new "
                f"one in its place (tasksprint member replace {me} ID=HOST:PORT)"
            )
            await serves(leader)
            # They go on and compare what they have, and nobody else stops.
            ends = [(member, applied(member) + 10) for member in (leader, right)]
            await until(
                lambda: all(applied(member) >= slot for member, slot in ends), "ten more ticks"
            )
            assert leader.failure is None and right.failure is None

    run(main)


@pytest.mark.slow
def test_leader_with_another_state_stops_and_the_others_elect_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(3, tmp_path, SETTINGS) as of:
            wrong = await of.leader()
            await until(level(of), "all have applied some ticks")
            right = [member for member in of.all if member is not wrong]
            tamper(wrong)
            await stopped(wrong)
            await wrong.stop()
            await until(
                lambda: any(member.coordinator.log.is_current for member in right),
                "another one leads",
            )
            leader = next(member for member in right if member.coordinator.log.is_current)
            await serves(leader)
            assert all(member.failure is None for member in right)
            await wrong.start()  # So that it can be stopped.

    run(main)


@pytest.mark.slow
def test_replica_that_is_started_again_with_another_state_stops_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digests are a chain, so the mirror remembers that something was wrong."""
    # Else it may stop before its rows are written, and be right again from the log.
    monkeypatch.setattr(durable, "_MIRROR_IDLE_MS", 0)

    async def main() -> None:
        async with members(3, tmp_path, SETTINGS) as of:
            leader = await of.leader()
            await until(level(of), "all have applied some ticks")
            wrong = next(member for member in of.all if member is not leader)
            tamper(wrong)
            await stopped(wrong)
            await wrong.stop()
            await wrong.start()
            await stopped(wrong)
            await serves(leader)

    run(main)


@pytest.mark.slow
def test_nobody_can_say_who_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three different states: all stop, rather than answer wrongly."""
    monkeypatch.setattr(agreement, "_ROUND_S", 0.05)

    async def main() -> None:
        async with members(3, tmp_path, SETTINGS) as of:
            await of.leader()
            await until(level(of), "all have applied some ticks")
            for member in of.all:
                tamper(member, member.number)
            failures = [await stopped(member) for member in of.all]
            text = str(failures[0])
            assert "no majority of the voters could be asked who is wrong" in text
            assert text.endswith(
                "; start all of them again, so that a majority decides; "
                "keep all data directories"
            )

    run(main)


def hang(member: Member) -> None:
    """Let a member that was stopped take connections, and answer nothing."""
    member._listener = _listen(int(member.address.rpartition(":")[2]))


@pytest.mark.slow
def test_voter_that_hangs_keeps_nobody_with_a_wrong_state_in_office(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each round waited until the last one had answered or failed: 100 s in all."""
    monkeypatch.setattr(agreement, "_ROUND_S", 0.1)

    async def main() -> None:
        async with members(3, tmp_path, SETTINGS) as of:
            leader = await of.leader()
            await until(level(of), "all have applied some ticks")
            hung, other = (member for member in of.all if member is not leader)
            await hung.stop()
            hang(hung)
            tamper(leader)
            for member in (leader, other):
                await until(lambda member=member: member.failure, "it stops")
                assert isinstance(member.failure, StateDiffers)
                assert "no majority of the voters could be asked" in str(member.failure)
            await hung.start()  # So that it can be stopped.

    run(main)


@pytest.mark.slow
def test_majority_is_enough_whoever_else_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "_ROUND_S", 1_000)

    async def main() -> None:
        async with members(5, tmp_path, SETTINGS) as of:
            wrong = await of.leader()
            await until(level(of), "all have applied some ticks")
            hung = next(member for member in of.all if member is not wrong)
            await hung.stop()
            hang(hung)
            tamper(wrong)
            await until(lambda: wrong.failure, "it stops")
            assert "than a majority of the voters" in str(wrong.failure)
            await hung.start()

    run(main)


@pytest.mark.slow
def test_cluster_goes_on_without_a_word_while_all_agree(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(3, tmp_path, replace(SETTINGS, tick_interval_ms=5)) as of:
            leader = await of.leader()
            await until(
                lambda: leader.coordinator.log.require_schedule().applied_slot > 100, "many ticks"
            )
            assert all(member.coordinator.agreement._asking is None for member in of.all)
            claims = [member.coordinator.agreement.claim for member in of.all]
            assert all(claim is not None for claim in claims)

    run(main)


@pytest.mark.slow
def test_state_of_another_cluster_says_nothing_about_ours(tmp_path: Path) -> None:
    """Its coordinators may know our addresses from before a recovery, and have our key."""

    async def main() -> None:
        async with members(3, tmp_path, SETTINGS) as of:
            leader = await of.leader()
            await until(level(of), "all have applied some ticks")
            coordinator = leader.coordinator
            claim, founding = coordinator.agreement.claim, coordinator.replica.founding
            assert claim is not None and founding is not None
            asked, address = of.all[0], founding.members[leader.number - 1].address
            query: dict[str, str | int] = {"slot": claim.slot, "digest": "theirs"}
            for cluster, told in (("another", None), (founding.cluster, claim.digest)):
                response = await asked.coordinator.http.request(
                    address, "GET", "/v1/digest", query={**query, "cluster": cluster}
                )
                assert response.checked().json()["digest"] == told
                assert (coordinator.agreement._disputed is None) is (told is None)

    run(main)
