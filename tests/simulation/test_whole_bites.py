"""Coordinators that are broken on purpose: each must be caught within a few seeds.

What breaks is the wiring of the role, its mirror, its copies, or the core in it. Broken replicas
alone are in test_checkers_bite.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from tasksprint.consensus import Ready
from tasksprint.consensus.leadership import Leadership
from tasksprint.consensus.voters import Voters
from tasksprint.coordination.commands import Command, Report
from tasksprint.coordination.rows import Key, Mirror, Row
from tasksprint.coordination.schedule import Schedule
from tasksprint.errors import Refused
from tasksprint.ids import Slot
from tasksprint.net import gate as gate_module
from tasksprint.net.gate import Gate, Identity, SignedHead
from tasksprint.roles.coordinator.decisions import Decided
from tasksprint.roles.coordinator.log_tail import LogTail
from tasksprint.roles.coordinator.surroundings import Surroundings
from tests.coordination.world import look_inside
from tests.simulation.bites import confirm_at_once, expects, first_rule, one_member_counts_twice
from tests.simulation.coordinators import CoordinatorNode, SimCoordinator
from tests.simulation.faults import Faults
from tests.simulation.machines import Process
from tests.simulation.releases import Releases
from tests.simulation.sim_writer import SimWriter
from tests.simulation.whole import Whole, run_whole
from tests.store import file_directory
from tests.store.memory_store import MemoryReplicaStore

# Seeds that each broken build gets before it must have been caught.
_SEEDS_MAX = 25


def _rule_broken(
    node_class: type[CoordinatorNode] = CoordinatorNode,
    faults_class: type[Faults] = Faults,
    *,
    first: int = 1,
) -> str | None:
    """Return the rule that the first seed with a violation breaks, from `first` on."""
    # In memory, since what breaks a disk here breaks the twin.
    run = partial(run_whole, node_class=node_class, faults_class=faults_class, on_files=False)
    return first_rule(run, _SEEDS_MAX, first=first)


class _SpeaksFirst(SimCoordinator):
    """Sends what should wait for the disk at once."""

    def _carry_out(self, ready: Ready) -> None:
        everything = (*ready.send_now, *ready.send_after_persist)
        super()._carry_out(ready._replace(send_now=everything, send_after_persist=()))


class _AppliesBackwards(SimCoordinator):
    """Applies what was chosen together in the wrong order."""

    def _carry_out(self, ready: Ready) -> None:
        super()._carry_out(ready._replace(chosen=tuple(reversed(ready.chosen))))


class _AnswersEarly(SimCoordinator):
    """Tells clients that their reports are in the log when they have only come in."""

    def decide_then(self, command: bytes, decoded: Command | None, then: Decided) -> None:
        def late(reply: bytes | None) -> None:
            pass

        if isinstance(decoded, Report) and self.replica.is_leader:
            super().decide_then(command, decoded, late)
            self.node.observer.acknowledged_by(self.node, command)
            then(b"{}")
        else:
            super().decide_then(command, decoded, then)


class _AssertsAtItsEnd(SimCoordinator):
    """Fails when its replica has found out that it is none of the cluster's any more."""

    def _carry_out(self, ready: Ready) -> None:
        assert ready.fatal is None
        super()._carry_out(ready)


class _CrashesAtItsEnd(SimCoordinator):
    """Likewise, in a way that no rule foresees."""

    def _carry_out(self, ready: Ready) -> None:
        if ready.fatal is not None:
            raise TypeError("no such thing")
        super()._carry_out(ready)


class _HasItsOwnRules(SimCoordinator):
    """Places fewer tasks on clients than the others do, on one of the replicas."""

    def _new_schedule(self, mirror: Mirror | None) -> Schedule:
        schedule = super()._new_schedule(mirror)
        if self.options.me == 2:
            state = look_inside(schedule)
            state.rules = replace(state.rules, assigned_max=1)
        return schedule


class _RestoresHalf(SimCoordinator):
    """Passes over some tasks when it restores its state from the mirror."""

    def _new_schedule(self, mirror: Mirror | None) -> Schedule:
        return super()._new_schedule(None if mirror is None else _HalfMirror(mirror))


class _HalfMirror:
    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    def read_range(self, table: str, first: Key = (), end: Key = ()) -> Iterator[Row]:
        for row in self._mirror.read_range(table, first, end):
            if table != "tasks" or row.key[1] != 1:
                yield row


def _role(coordinator_class: type[SimCoordinator]) -> type[CoordinatorNode]:
    return type("Node", (CoordinatorNode,), {"coordinator_class": coordinator_class})


class _ForgetsPromises(CoordinatorNode):
    """Restarts without its promise, but with its log."""

    def _boot(self, process: Process) -> None:
        content: Any = self.directory.content
        if content is not None:
            content.promised = None
        super()._boot(process)


class _ForgetsOpenEntries(CoordinatorNode):
    """Restarts without what it accepted and doesn't know to be chosen."""

    def _boot(self, process: Process) -> None:
        content: Any = self.directory.content
        if content is not None:
            end = max(content.chosen_end, content.applied.slot + 1)
            content.log = {slot: row for slot, row in content.log.items() if slot < end}
        super()._boot(process)


class _LosesRows(SimWriter):
    """Never writes what becomes of task 1 of a job."""

    def post(self, commit: Any, done: Callable[[], None], **options: Any) -> None:
        rows = tuple([row for row in commit.rows if row.table != "tasks" or row.key[1] != 1])
        super().post(commit._replace(rows=rows), done, **options)


class _LosesRowsNode(CoordinatorNode):
    writer_class = _LosesRows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("node_class", "rules"),
    [
        (_role(_SpeaksFirst), expects("not-durable")),
        (_role(_AppliesBackwards), expects("out-of-order", "core")),
        (_role(_AnswersEarly), expects("early-answer")),
        (_role(_AssertsAtItsEnd), expects("core")),
        (_role(_CrashesAtItsEnd), expects("crash")),
        (_role(_HasItsOwnRules), expects("state-differs", "core")),
        (_role(_RestoresHalf), expects("state-differs", "core", "mirrors-differ")),
        (_ForgetsPromises, expects("promise-back", "former-life", "core")),
        (
            _ForgetsOpenEntries,
            expects("two-chosen", "not-chosen", "not-durable", "lost-command", "core"),
        ),
        (_LosesRowsNode, expects("mirrors-differ", "state-differs", "core")),
    ],
    ids=lambda value: "" if isinstance(value, frozenset) else None,
)
def test_broken_coordinator_is_caught(
    node_class: type[CoordinatorNode], rules: frozenset[str]
) -> None:
    assert _rule_broken(node_class) in rules


def _always(self: Leadership, now_ms: int) -> bool:
    return True


def _truncate_too_much(self: LogTail, keep_from: Slot | None = None) -> Slot | None:
    return Slot(self._end + 1) if self._end > 50 else None


def _copy_without_senders(self: MemoryReplicaStore, table: str, text: bytes) -> None:
    _add_copied(self, table, b"[]" if table == "senders" else text)


_add_copied = MemoryReplicaStore.add_copied


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "broken_method", "rules"),
    [
        (
            Voters,
            "is_quorum",
            one_member_counts_twice,
            expects("not-chosen", "two-chosen", "core"),
        ),
        (LogTail, "truncate_below", _truncate_too_much, expects("core")),
        (
            MemoryReplicaStore,
            "add_copied",
            _copy_without_senders,
            expects("core", "state-differs", "mirrors-differ"),
        ),
    ],
)
def test_broken_part_is_caught(
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    broken_method: Any,
    rules: frozenset[str],
) -> None:
    monkeypatch.setattr(owner, name, broken_method)
    assert _rule_broken() in rules


@pytest.mark.slow
def test_disk_that_loses_its_write_ahead_log_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """On real files: a crash leaves what SQLite has copied from there already, and no mark."""
    left_behind = (*file_directory.LEFT_BEHIND, "*-wal", "*.durable")
    monkeypatch.setattr(file_directory, "LEFT_BEHIND", left_behind)
    rules = expects("stale-read", "former-life", "core")
    assert first_rule(partial(run_whole, on_files=True), _SEEDS_MAX, first=2) in rules


class _StrandsLeaders(Faults):
    """Cuts leaders off from their peers, and does nothing else."""

    def __init__(self, world: Whole, random: Random) -> None:
        super().__init__(world, random)
        self._kinds = [(1, self._strand_leader)]
        self._gap_ms = 800.0


@pytest.mark.slow
def test_leader_that_asks_no_quorum_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leadership, "has_quorum", _always)
    monkeypatch.setattr(Leadership, "_confirm_reads", confirm_at_once)
    rules = expects("stale-read", "not-linearizable")
    assert _rule_broken(faults_class=_StrandsLeaders, first=3) in rules


_STRANGER_SERVED = expects("stranger-served")
_LATE = expects("no-progress", "results", "left-over")


class _OnlyStrangers(Faults):
    """Lets strangers come by, and processes be started again."""

    def __init__(self, world: Whole, random: Random) -> None:
        super().__init__(world, random)
        self._kinds = [(4, self._visit), (1, self._crash)]
        self._gap_ms = 400.0


def _new(self: Gate, sender: str, count: int) -> bool:
    """Count each request, however often it comes."""
    return True


def _any_life(self: Gate, signed: SignedHead) -> None:
    """Count what was signed for a former life of this process."""
    if not self._is_new(signed.sender, int(signed.number, 16)):
        raise Refused("this request was received before", status=401)


def _bears_all(self: Gate, *_: Any, **options: Any) -> Identity:
    """Believe everybody."""
    return Identity.BEARER


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        # Takes each signature for good, by whatever key it was made.
        (gate_module, "hmac", SimpleNamespace(compare_digest=lambda one, other: True)),
        (Gate, "_is_new", _new),
        (Gate, "_check_life", _any_life),
        (Gate, "_admit_token", _bears_all),
    ],
)
def test_gate_that_lets_a_stranger_in_is_caught(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, broken: Any
) -> None:
    monkeypatch.setattr(owner, name, broken)
    assert _rule_broken(faults_class=_OnlyStrangers) in _STRANGER_SERVED


class _OnlyClocks(Faults):
    """Lets the time of day jump, and does nothing else."""

    def __init__(self, world: Whole, random: Random) -> None:
        super().__init__(world, random)
        self._kinds = [(1, self._set_clock)]
        self._gap_ms = 400.0


class _ByTheWall(SimCoordinator):
    """Takes the time of day for the time that passes; it sees to it that none goes back."""

    def __init__(self, *arguments: Any, surroundings: Surroundings) -> None:
        last_ms = 0

        def highest_ms() -> int:
            nonlocal last_ms
            last_ms = max(last_ms, surroundings.wall_ms())
            return last_ms

        super().__init__(*arguments, surroundings=replace(surroundings, monotonic_ms=highest_ms))


@pytest.mark.slow
def test_coordinator_that_goes_by_the_wall_clock_is_caught() -> None:
    found = _rule_broken(_role(_ByTheWall), _OnlyClocks)
    assert found in _LATE


_TOO_EARLY = expects("raised-too-early")


class _OneReplaced(Releases):
    """All begin with the last release; until everything is healed, one is replaced."""

    share, put_back_share = 1.0, 0.0

    def __init__(self, world: Whole, random: Random) -> None:
        super().__init__(world, random)
        self._old_share = 1.0

    def start(self) -> None:
        self._world.after(1_500, self._step)

    def _step_later(self) -> None:
        pass


class _RaisesEarly(SimCoordinator):
    """Raises the rules when the leader has newer ones, whatever the others say."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        own = {self.options.me: self.raising._release.speaks}
        self.raising._said = lambda: own  # type: ignore[method-assign]


@pytest.mark.slow
def test_rules_that_are_raised_too_early_are_caught() -> None:
    class Node(CoordinatorNode):
        coordinator_class = _RaisesEarly

    run = partial(run_whole, node_class=Node, releases_class=_OneReplaced)
    assert first_rule(run, _SEEDS_MAX, first=6) in _TOO_EARLY
