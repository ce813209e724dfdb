"""A command whose application raises: named, left out by operators, and never an end for good.

The bug that all replicas have is put in here: cancelling job 66 raises.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tasksprint.cli.main import main as command_line
from tasksprint.consensus import encode_batch
from tasksprint.consensus.skips import Skip, decode_skips, describe_skips, encode_skips
from tasksprint.coordination.commands import CancelJob, JoinClient, encode_command
from tasksprint.coordination.lifecycle import Lifecycle
from tasksprint.coordination.placement.placement import Placement
from tasksprint.coordination.schedule import Schedule
from tasksprint.errors import (
    CommandFailed,
    SettingsError,
    StateDiffers,
    UsageError,
)
from tasksprint.ids import Incarnation, JobId, ReplicaId, Slot
from tasksprint.net.http_messages import HttpResponse
from tasksprint.rescue.log_skip import explain, find_culprit, mark
from tasksprint.rescue.recover import Survivor
from tasksprint.settings import RULES, Settings
from tasksprint.store.records import AppliedPoint, Commit
from tasksprint.store.replica_store import ReplicaStore
from tests.coordination.world import look_inside
from tests.fuzz import commands as fuzz
from tests.roles.members import Member, Members, members
from tests.roles.test_coordinator import run, until
from tests.store.helpers import founded_store
from tests.store.memory_store import MemoryReplicaStore

POISON = encode_command(CancelJob("me", 1, JobId(66), "enough"))
DIGEST = hashlib.sha256(POISON).hexdigest()
HARMLESS = encode_command(CancelJob("me", 2, JobId(67), "enough"))


def spoil(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the application of the poison raise."""
    before = Lifecycle.cancel

    def cancel(self: Lifecycle, command: CancelJob) -> str | None:
        if command.job == 66:
            raise error
        return before(self, command)

    monkeypatch.setattr(Lifecycle, "cancel", cancel)


def schedule(**options: Any) -> Schedule:
    return Schedule(cluster="c0ffee", members=(ReplicaId(1),), rules=RULES, **options)


# --- the sentence --------------------------------------------------------------------


def test_sentence_names_the_command_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, KeyError("x"))
    with pytest.raises(CommandFailed) as caught:
        schedule().apply(Slot(1), (HARMLESS, POISON, HARMLESS))
    assert str(caught.value) == (
        f"command 1 of slot 1 (SHA-256 {DIGEST}) can't be applied: KeyError: 'x'; this is a bug "
        "of TaskSprint that stops every replica here; to go on without this command, stop all "
        f"coordinators, and for each run: tasksprint log skip 1 1 {DIGEST} --data-dir DIR"
    )
    assert caught.value.exit_code == 70


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("deep"), OSError(5, "I/O error")])
def test_fault_of_one_machine_is_no_reason_to_skip(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, error)
    with pytest.raises(CommandFailed) as caught:
        schedule().apply(Slot(1), (POISON,))
    said = str(caught.value)
    assert f"can't be applied: {type(error).__name__}" in said
    assert said.endswith(
        "; that is this machine's doing, and the others go on; see to its memory and its disk, "
        "and start this replica again"
    )
    assert "skip" not in said
    assert explain(caught.value, Path("nowhere"), Settings()) is caught.value


# --- leaving it out ------------------------------------------------------------------


def test_skipped_command_changes_nothing_in_its_slot_or_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(monkeypatch, KeyError("x"))
    one, other = schedule(skips={DIGEST: Slot(2)}), schedule()
    with pytest.raises(CommandFailed):  # Not before its slot.
        schedule(skips={DIGEST: Slot(2)}).apply(Slot(1), (POISON,))
    for each in (one, other):
        each.apply(Slot(1), (HARMLESS,))
    applied = one.apply(Slot(2), (POISON, HARMLESS))
    assert applied.replies[0] == b'{"error":"left out, as the cluster\'s operators said"}'
    assert applied.notes == ("left out a command, as its operators said",)
    other.apply(Slot(2), (HARMLESS,))
    # Who sent it repeats it.
    one.apply(Slot(3), (POISON,))
    other.apply(Slot(3), ())
    assert one.digest == other.digest
    one.check()


def test_marks_are_one_text_in_any_order() -> None:
    marks = [Skip(Slot(17), 0, "a" * 64), Skip(Slot(4), 12, "b" * 64)]
    data = encode_skips(marks)
    assert data == encode_skips(reversed([*marks, *marks]))
    assert decode_skips(data) == tuple(sorted(marks))
    assert describe_skips(data) == "command 12 of slot 4, command 0 of slot 17"
    assert (encode_skips([]), decode_skips(None), describe_skips(b"")) == (b"", (), "none")


# --- marking it in a store -----------------------------------------------------------


def test_mark_is_durable_and_may_be_taken_back(tmp_path: Path) -> None:
    skip = Skip(Slot(1), 1, DIGEST)
    with founded_store(tmp_path, entries=[encode_batch((HARMLESS, POISON))]) as store:
        assert mark(store, skip) == (
            "replica 1 leaves out command 1 of slot 1; mark it in the data directories of all "
            "other members, too, and then start them"
        )
        later = Skip(Slot(9), 0, DIGEST)
        assert "(its log has no slot 9 yet)" in mark(store, later)
    store = ReplicaStore.open_there(tmp_path)
    try:
        assert decode_skips(store.recover().consensus.skips) == (skip, later)
        assert mark(store, skip) == "replica 1 leaves out command 1 of slot 1 already"
        assert mark(store, later, is_undone=True) == (
            "replica 1 applies command 0 of slot 9 again; so must all members"
        )
        assert decode_skips(store.recover().consensus.skips) == (skip,)
        with pytest.raises(UsageError, match="doesn't leave out command 0 of slot 9"):
            mark(store, later, is_undone=True)
    finally:
        store.close()


def test_mark_for_what_isnt_so_is_refused(tmp_path: Path) -> None:
    with founded_store(tmp_path, entries=[encode_batch((HARMLESS, POISON))]) as store:
        for skip, message in (
            (
                Skip(Slot(1), 2, DIGEST),
                "slot 1 has 2 commands, numbered from 0, and so no command 2; "
                "see 'tasksprint log show --slot 1'",
            ),
            (
                Skip(Slot(1), 0, DIGEST),
                "command 0 of slot 1 has the SHA-256 "
                f"{hashlib.sha256(HARMLESS).hexdigest()}, not {DIGEST}; nothing was changed",
            ),
            (
                Skip(Slot(0), 0, DIGEST),
                f"0 0 {DIGEST} is not SLOT COMMAND DIGEST; take them from the sentence with "
                "which the coordinators stopped",
            ),
        ):
            with pytest.raises(UsageError) as caught:
                mark(store, skip)
            assert str(caught.value) == message
        own = schedule()
        rows = own.apply(Slot(1), (HARMLESS,)).rows
        store.commit(Commit(rows=rows, applied=AppliedPoint(1, own.digest)))
        with pytest.raises(SettingsError) as applied:
            mark(store, Skip(Slot(1), 1, DIGEST))
        assert str(applied.value) == (
            "the state of replica 1 goes up to slot 1, so slot 1 is applied already; "
            "nothing was changed"
        )
        assert not store.recover().consensus.skips


def test_command_line_marks_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with founded_store(tmp_path, entries=[encode_batch((POISON,))]):
        words = ["log", "skip", "1", "0", DIGEST, "--data-dir", str(tmp_path)]
        assert command_line(words) == 78  # It is in use.
        assert "in use" in capsys.readouterr().err
    assert command_line(words) == 0
    assert capsys.readouterr().out.startswith("replica 1 leaves out command 0 of slot 1; mark it")
    assert command_line([*words, "--undo"]) == 0
    assert command_line([*words[:4], "abc", *words[5:]]) == 64


# --- which command it is -------------------------------------------------------------


def test_culprit_is_found_where_all_of_an_entry_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What settles an entry knows nothing of its commands."""
    joins = [
        encode_command(JoinClient(f"a{number}", Incarnation(f"i{number}"), None, "host", 1, ()))
        for number in range(11)
    ]
    before = Placement.settle

    def settle(self: Placement) -> None:
        if any(each.identity == "a6" for each in look_inside(self).clients.values()):
            raise AssertionError("no place for it")
        before(self)

    monkeypatch.setattr(Placement, "settle", settle)
    with pytest.raises(CommandFailed) as caught:
        schedule().apply(Slot(1), tuple(joins))
    assert not caught.value.is_exact
    with founded_store(tmp_path, entries=[encode_batch(joins)]):
        pass
    found = explain(caught.value, tmp_path, Settings())
    assert isinstance(found, CommandFailed)
    digest = hashlib.sha256(joins[6]).hexdigest()
    assert (found.slot, found.command, found.digest) == (1, 6, digest)
    assert "can't be applied: AssertionError: no place for it" in str(found)
    assert f"log skip 1 6 {digest} --data-dir DIR" in str(found)


def test_what_failed_only_once_is_no_bug_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CommandFailed) as caught:
        spoil(patch, KeyError("x"))
        schedule().apply(Slot(1), (POISON,))
    with founded_store(tmp_path, entries=[encode_batch((POISON,))]) as store:
        assert find_culprit(store, Slot(1)) is None
    found = explain(caught.value, tmp_path, Settings())
    assert isinstance(found, StateDiffers)
    assert str(found) == (
        "command 0 of slot 1 couldn't be applied (KeyError: 'x'), and can be now; "
        "check this machine's memory, and start this replica again"
    )
    # A store that can't be opened has a trouble of its own.
    assert explain(caught.value, tmp_path / "nowhere", Settings()) is caught.value


def test_recovery_of_a_cluster_leaves_it_out_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, KeyError("x"))
    entries = [encode_batch((POISON,)), encode_batch((HARMLESS,))]
    with founded_store(tmp_path, entries=entries, others=2) as store:
        with pytest.raises(CommandFailed):
            Survivor(store)
        mark(store, Skip(Slot(1), 0, DIGEST))
        survivor = Survivor(store)
        assert survivor.findings.last_slot == 2
        survivor.recover("beef", Incarnation("new"), "h1")
        # Who sent it may send it to the new cluster.
        assert decode_skips(store.recover().consensus.skips) == (Skip(Slot(1), 0, DIGEST),)


# --- in a cluster --------------------------------------------------------------------


def marked(member: Member, skip: Skip) -> None:
    """Do as `log skip` does, on a stopped member's imagined disk."""
    store = MemoryReplicaStore.open(member.directory, member.number, now_ms=0)
    mark(store, skip)  # type: ignore[arg-type]
    store.close()


async def poisoned(of: Members) -> Skip:
    """Have the poison chosen; return it as the members name it, once all have stopped."""
    leader = await of.leader()
    await until(lambda: leader.coordinator.log.is_current, "it leads")
    leader.coordinator.log.propose(POISON)
    # The last one hears of no majority any more that it was chosen.
    await until(lambda: len([each for each in of.all if each.failure]) >= 2, "they stop")
    named = set()
    for each in of.all:
        error = each.failure
        await each.stop()
        if error is not None:
            assert isinstance(error, CommandFailed)
            named.add(Skip(Slot(error.slot), error.command, error.digest))
    (skip,) = named
    return skip


@pytest.mark.slow
def test_cluster_goes_on_without_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, KeyError("x"))

    async def main() -> None:
        async with members(3, tmp_path) as of:
            skip = await poisoned(of)
            assert skip.digest == DIGEST
            # Just started again, they stop again.
            await of.all[0].start()
            await of.all[1].start()
            await until(lambda: of.all[0].failure or of.all[1].failure, "it stops again")
            for each in of.all[:2]:
                await each.stop()
            for each in of.all:
                marked(each, skip)
            for each in of.all:
                await each.start()
            leader = await of.leader()
            assert (await answer(leader)).status == 200
            for each in of.all:
                await until(partial(has_applied, each, skip.slot), "it goes on")
            assert len({each.coordinator.replica.skips[DIGEST] for each in of.all}) == 1

    run(main)


@pytest.mark.slow
def test_members_that_skip_something_else_refuse_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(monkeypatch, KeyError("x"))
    caplog.set_level("INFO")

    async def main() -> None:
        async with members(3, tmp_path) as of:
            skip = await poisoned(of)
            one, two, other = of.all
            for each in (one, two):
                marked(each, skip)
            # As a release without the bug would.
            monkeypatch.undo()
            caplog.set_level("INFO")
            for each in of.all:
                await each.start()
            leader = await of.leader()
            assert leader is not other
            assert (await answer(leader)).status == 200
            refused = (
                "refuses messages of replica {}: it skips other commands of the log ({}) than "
                "replica {} ({}); stop both, and let 'tasksprint log skip' mark the same ones in "
                "the data directories of all members"
            )
            words = f"command 0 of slot {skip.slot}"
            for expected in (
                refused.format(3, "none", leader.number, words),
                refused.format(leader.number, words, 3, "none"),
            ):
                await until(partial(is_said, expected, caplog), "it is said")
            slot = leader.coordinator.log.require_schedule().applied_slot
            assert other.coordinator.log.require_schedule().applied_slot < skip.slot
            assert not other.coordinator.replica.is_leader
            # Marked as well, it is one of them again.
            await other.stop()
            marked(other, skip)
            await other.start()
            await until(lambda: has_applied(other, slot), "it catches up")

    run(main)


def is_said(text: str, caplog: pytest.LogCaptureFixture) -> bool:
    return text in caplog.text


async def answer(leader: Member) -> HttpResponse:
    """Have something harmless decided."""
    await until(lambda: leader.coordinator.log.is_current, "it leads")
    return await leader.ask("GET", "/v1/jobs")


def has_applied(member: Member, slot: int) -> bool:
    found = member.coordinator.log.schedule
    return found is not None and found.applied_slot >= slot


# --- commands that make no sense -----------------------------------------------------


@pytest.mark.slow
def test_commands_that_make_no_sense_never_raise() -> None:
    """The first histories of the fuzzer; `python -m tests.fuzz --only commands` goes on."""
    for number in range(12):
        assert fuzz.what_is_wrong(fuzz.input_random(1, number)) is None, number


@pytest.mark.long
def test_many_commands_that_make_no_sense_never_raise() -> None:
    for number in range(1_000):
        assert fuzz.what_is_wrong(fuzz.input_random(2, number)) is None, number


def test_fuzzer_finds_a_command_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def cancel(self: Lifecycle, command: CancelJob) -> str | None:
        raise KeyError("bug")

    monkeypatch.setattr(Lifecycle, "cancel", cancel)
    found = [fuzz.what_is_wrong(fuzz.input_random(1, number)) for number in range(3)]
    assert any("KeyError('bug')" in (text or "") for text in found), found
