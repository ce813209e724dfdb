"""Rules with versions: looked up by the number that the log is at, and raised by an entry."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tasksprint.coordination.commands import RaiseRules, Tick, decode_command, encode_command
from tasksprint.errors import UnknownRules
from tasksprint.ids import Slot
from tasksprint.release import Release
from tasksprint.settings import RULES, RULES_BY_VERSION, Rules
from tests.coordination.world import World, look_inside

OLD = Release("0.2.0", {1: RULES_BY_VERSION[1]})
RAISE = encode_command(RaiseRules(2))
TICK = encode_command(Tick(100, 1))


def _rules_in_rows(world: World) -> int:
    (body,) = world.mirror.rows["facts", ("state",)].columns or ()
    version = json.loads(str(body))["rules"]
    assert isinstance(version, int)
    return version


def test_rules_are_those_of_the_version_that_the_log_is_at() -> None:
    assert [*RULES_BY_VERSION] == [1, 2]
    assert all(rules.version == version for version, rules in RULES_BY_VERSION.items())
    assert RULES_BY_VERSION[RULES.version] is RULES


def test_limits_on_which_queues_rest_are_the_same_in_all_versions() -> None:
    """They are counted when a task comes in, and not again when the rules are raised."""
    assert len({(each.ahead_us, each.task_us_min) for each in RULES_BY_VERSION.values()}) == 1


def test_entry_raises_the_rules_from_the_next_command_on() -> None:
    world = World(rules=Rules(1))
    world.apply(TICK)
    assert (world.schedule.rules.version, _rules_in_rows(world)) == (1, 1)
    applied = world.apply(RAISE)
    assert applied.replies == (b'{"rules":2}',)
    assert applied.notes == ("raised the rules from version 1 to 2",)
    assert (world.schedule.rules.version, _rules_in_rows(world)) == (2, 2)


@pytest.mark.parametrize("commands", [(RAISE,), (TICK, RAISE), (RAISE, TICK)])
def test_command_that_raises_the_rules_in_an_ordinary_entry_changes_nothing(
    commands: tuple[bytes, ...],
) -> None:
    """Release 0.2.0 passes over it, and a leader who has asked nobody may have proposed it."""
    raising, other = World(rules=Rules(1)), World(rules=Rules(1))
    for world, entry in (raising, commands), (other, (TICK,) * commands.count(TICK)):
        applied = world.schedule.apply(Slot(1), entry)
        assert world.schedule.rules.version == 1
        if world is raising:
            assert applied.notes == (
                "ignored a command to raise the rules: it doesn't stand alone",
            )
    assert raising.schedule.digest == other.schedule.digest


def test_raised_rules_are_remembered_by_the_mirror() -> None:
    world = World(rules=Rules(1))
    world.apply(TICK)
    world.apply(RAISE)
    world.restart()
    assert world.schedule.rules.version == 2


def test_limits_change_with_the_rules() -> None:
    """Also those that are kept beside the rules, as each task asks for them."""
    small = replace(Rules(1), inline_value_bytes_max=5, replies_per_sender_max=7)
    world = World(rules=small)
    schedule = world.schedule
    world.apply(RAISE)
    assert schedule._results._inline_value_max == RULES.inline_value_bytes_max
    assert look_inside(schedule).senders.replies_max == RULES.replies_per_sender_max


@pytest.mark.parametrize("version", [0, 1, 2])
def test_rules_are_never_lowered(version: int) -> None:
    world = World(rules=Rules(2))
    world.apply(TICK)
    digest = world.schedule.digest
    applied = world.apply(encode_command(RaiseRules(version)))
    assert applied.replies == (b'{"rules":2}',)
    assert (world.schedule.rules.version, world.schedule.digest) == (2, digest)


def test_release_stops_before_it_applies_rules_that_it_lacks() -> None:
    world = World(rules=Rules(1), release=OLD)
    world.apply(TICK)
    with pytest.raises(UnknownRules) as caught:
        world.schedule.apply(Slot(2), (RAISE,), is_alone=True)
    assert str(caught.value) == (
        "the log, from slot 2 on, is at version 2 of the rules, and this release can apply 1; "
        "start a release that can; see docs/operations.md, 'Upgrading'"
    )
    assert caught.value.exit_code == 78


def test_release_refuses_a_state_of_rules_that_it_lacks() -> None:
    world = World(rules=Rules(2))
    world.apply(TICK)
    with pytest.raises(UnknownRules, match="the state of this replica is at version 2"):
        World(rules=Rules(1), release=OLD).make_schedule(world.mirror.rows.values())


@pytest.mark.parametrize("version", [1, 5])
def test_log_that_began_with_rules_that_a_release_lacks_is_not_applied(version: int) -> None:
    """The state is there all the same: a copy of another one's may take its place."""
    later = Release("0.4.0", {3: Rules(3), 4: Rules(4)})
    schedule = World(rules=Rules(version), release=later).schedule
    with pytest.raises(UnknownRules, match=f"version {version} of .* can apply 3 to 4;"):
        schedule.apply(Slot(1), (TICK,))


def test_state_row_is_that_of_the_last_release_under_its_rules() -> None:
    """Release 0.2.0 wrote these bytes; the digest chains them."""
    world = World(rules=Rules(1))
    world.apply(TICK)
    assert world.mirror.rows["facts", ("state",)].columns == (
        '{"cluster":"c1","rules":1,"log_ms":100,"wall_ms":1,"next_job":1,"next_cid":1,'
        '"placements":0,"last_job":0,"members":[1,2,3]}',
    )


def test_command_that_no_release_knows_yet_is_ignored_with_a_note() -> None:
    world = World()
    applied = world.apply(b'["later",1,2]', TICK)
    assert applied.notes == ("ignored bytes that are not a command: 'later'",)
    assert world.schedule.log_time_ms == 100


def test_command_is_written_as_it_is_read() -> None:
    assert RAISE == b'["rules",2]'
    assert decode_command(RAISE) == RaiseRules(2)


def test_a_job_keeps_the_rules_that_it_was_submitted_under() -> None:
    world = World(rules=Rules(1))
    before = world.submit()
    world.apply(RAISE)
    after = world.submit()
    world.restart()
    found = [world.schedule.scheduler_history(job).rules for job in (before, after)]
    assert found == [1, 2]
    facts = [world.mirror.rows["facts", (f"job {job}",)].columns or () for job in (before, after)]
    assert [len(json.loads(str(body))) for (body,) in facts] == [6, 7]
