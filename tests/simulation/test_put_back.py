"""A coordinator is put back to release 0.2.0 in the moment in which the rules are raised.

That release takes the entry for a membership that it doesn't know. A process of it that leads
must not have the entry chosen: it would lead on, and apply nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any, cast

import pytest

from tasksprint.consensus import Chosen
from tasksprint.consensus.batch import stands_alone
from tasksprint.consensus.learner import Learner
from tasksprint.consensus.lives import Lives
from tasksprint.errors import RemoteProtocolError, UnknownRules
from tasksprint.ids import Slot
from tasksprint.release import SILENT, THIS_RELEASE, Release, Speaks
from tasksprint.store.records import Commit
from tests.simulation import releases as releases_module
from tests.simulation.bites import first_rule
from tests.simulation.coordinators import CoordinatorNode, SimCoordinator
from tests.simulation.machines import Process
from tests.simulation.releases import Releases
from tests.simulation.whole import Whole, run_whole
from tests.simulation.world import Violation

# The seed that is tried first: in it such a process is elected.
_FIRST, _SEEDS_MAX = 12, 20
_STANDS_STILL_MS = 5_000.0


class _LastRelease(Release):
    @property
    def speaks(self) -> Speaks:
        return SILENT


_LAST = _LastRelease("0.2.0", {1: THIS_RELEASE.rules[1]})


class _LastLearner(Learner):
    """As release 0.2.0 has it."""

    def _decode(self, slot: Slot, value: bytes) -> Chosen:
        if stands_alone(value):
            raise RemoteProtocolError("a membership has version 'none: it raises the rules'")
        return super()._decode(slot, value)


class _Node(CoordinatorNode):
    """Its process of the last release ends as release 0.2.0 does behind the entry."""

    # Told when the entry is durable on some member.
    on_raise: Callable[[_Node], None]
    away_until_ms = 0.0

    def start(self) -> None:
        if self.wire.timeline.now >= self.away_until_ms:
            super().start()

    def _wrote(self, commits: Sequence[Commit]) -> None:
        super()._wrote(commits)
        persists = [persist for commit in commits for persist in commit.persists]
        if any(stands_alone(entry.value) for persist in persists for entry in persist.accepted):
            self.on_raise(self)

    def _make(self, process: Process) -> SimCoordinator:
        coordinator = super()._make(process)
        if self.release is _LAST:
            coordinator.replica._learner.__class__ = _LastLearner
            process.refused = lambda text: None  # It closes the stream, and goes on.
        return coordinator

    def _stopped(self, process: Process, stopped: Any) -> None:
        error = stopped.exception()
        is_gap = isinstance(error, AssertionError) and str(error).startswith("slot ")
        if self.release is _LAST and (is_gap or isinstance(error, RemoteProtocolError)):
            process.kill()
            self.lacks_rules(self, cast(UnknownRules, error))
        else:
            super()._stopped(process, stopped)


class _PutBack(Releases):
    """All begin with the last release; a member is put back as soon as it holds the raise."""

    share, put_back_share = 1.0, 0.0
    _has_struck = False

    def __init__(self, world: Whole, random: Random) -> None:
        super().__init__(world, random)
        self._old_share, self._gap_ms = 1.0, 300.0

    def set_up(self, node: CoordinatorNode) -> None:
        super().set_up(node)
        assert isinstance(node, _Node)
        node.on_raise = self._strike_soon

    def start(self) -> None:
        super().start()
        self._world.faults.stop()  # Nothing else goes wrong: the members must come to an end.

    def _step(self) -> None:
        if not self._has_struck:  # Nobody helps who was put back.
            super()._step()

    def _strike_soon(self, node: CoordinatorNode) -> None:
        if not self._has_struck and not self._world.is_healed:
            self._has_struck = True
            self._world.after(0, partial(self._strike, node))

    def _strike(self, holder: CoordinatorNode) -> None:
        """Put a member back that holds the entry, and let it be the first to ask for votes."""
        world, random = self._world, self._random
        holder.was_put_back = True
        holder.release = _LAST
        # Those who find it up when they look again ask later than one who finds them.
        self._take_away(holder, random.uniform(600, 1_200))
        others = [node for node in world.members_left() if node is not holder]
        for number, node in enumerate(others):
            is_needed = number < (len(others) + 1) // 2  # for a quorum with the holder
            away_ms = random.uniform(20, 100) if is_needed else random.uniform(4_000, 6_000)
            self._take_away(node, away_ms)
        world.after(_STANDS_STILL_MS, partial(self._look, holder, holder.life + 1))

    def _take_away(self, node: CoordinatorNode, span_ms: float) -> None:
        assert isinstance(node, _Node)
        self._world.crash(node, power_loss=False)
        node.away_until_ms = self._world.now + span_ms
        self._world.after(span_ms, partial(self._world.start_node, node))

    def _look(self, node: CoordinatorNode, life: int) -> None:
        if node.life == life and node.replica is not None and node.replica.is_leader:
            schedule = node.schedule
            if schedule is not None and schedule.applied_slot + 1 < node.replica.chosen_end:
                raise Violation("stands-still", f"replica {node.me} leads and applies nothing")


@pytest.fixture(autouse=True)
def last_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases_module, "LAST_RELEASE", _LAST)


_run = partial(run_whole, node_class=_Node, releases_class=_PutBack)


@pytest.mark.slow
def test_leader_that_was_put_back_is_deposed() -> None:
    for seed in (_FIRST, *range(_SEEDS_MAX)):
        lines: list[str] = []
        assert _run(seed, trace=lines.append).violation is None
        if any("leads, but can't read what it proposes" in line for line in lines):
            return
    raise AssertionError(f"none was elected in {_SEEDS_MAX} seeds")


@pytest.mark.slow
def test_build_that_believes_it_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lives, "reads_alone", lambda self, source: True)
    assert first_rule(_run, _SEEDS_MAX, first=_FIRST) == "stands-still"
