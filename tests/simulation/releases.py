"""Who replaces the processes of coordinators by ones of a newer release, one after the other.

In some seeds the cluster begins with the last release, or with both mixed; then the processes
are replaced while everything else goes wrong, and a few are put back before the rules were
raised. The leader raises them by itself; once everything is healed, all members have this
release and the log is at its rules.

The old release is this code without the newest rules: it says that it lacks them, and stops
where the log asks for them. That mustn't happen to a process that was never replaced, nor put
back: then somebody has raised the rules too early.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from tasksprint.errors import UnknownRules
from tasksprint.release import THIS_RELEASE, Release
from tests.simulation.world import Violation

if TYPE_CHECKING:
    from tests.simulation.coordinators import CoordinatorNode
    from tests.simulation.whole import Whole

__all__ = ["LAST_RELEASE", "Releases"]

_NEWEST = max(THIS_RELEASE.rules)
LAST_RELEASE = Release("last", {1: THIS_RELEASE.rules[1]})


class Releases:
    """The releases of a world's coordinators."""

    # Of the seeds, in which there are two releases.
    share = 0.3
    # Of the steps, in which a process is put back.
    put_back_share = 0.15

    def __init__(self, world: Whole, random: Random) -> None:
        self._world = world
        self._random = random
        self.are_mixed = random.random() < self.share
        self._old_share = random.choice((0.5, 1.0, 1.0))
        self._gap_ms = random.choice((300.0, 1_500.0, 4_000.0))

    def set_up(self, node: CoordinatorNode) -> None:
        """Give a new machine its release."""
        if self.are_mixed and not self._world.is_healed:
            if self._random.random() < self._old_share:
                node.release = LAST_RELEASE
            node.lacks_rules = self._lacks_rules

    def start(self) -> None:
        """Begin to replace processes."""
        if self.are_mixed:
            self._step_later()

    def _step_later(self) -> None:
        self._world.after(self._random.uniform(0.3, 2) * self._gap_ms, self._step)

    def _step(self) -> None:
        world, random = self._world, self._random
        if world.is_healed:
            return
        nodes = [node for node in world.nodes.values() if node.machine.is_up]
        old = [node for node in nodes if node.release is LAST_RELEASE]
        new = [node for node in nodes if node.release is not LAST_RELEASE]
        if new and random.random() < self.put_back_share and not self.are_raised:
            node = random.choice(new)
            node.was_put_back = True
            world.count("processes put back")
            self._replace(node, LAST_RELEASE)
        elif old:
            world.count("processes replaced")
            self._replace(random.choice(old), THIS_RELEASE)
        self._step_later()

    def _replace(self, node: CoordinatorNode, release: Release) -> None:
        world = self._world
        world.say(f"replica {node.me} is replaced by one of release {release.name}")
        world.crash(node, power_loss=False)
        node.release = release
        world.after(self._random.uniform(20, 800), lambda: world.start_node(node))

    @property
    def are_raised(self) -> bool:
        """Whether some replica has applied the entry that raises the rules."""
        return any(
            node.schedule is not None and node.schedule.rules.version == _NEWEST
            for node in self._world.nodes.values()
        )

    def heal(self) -> None:
        """Replace those that are left; each is started again soon."""
        for node in self._world.nodes.values():
            if node.release is LAST_RELEASE and not node.has_ended:
                self._world.crash(node, power_loss=False)
                node.release = THIS_RELEASE

    def _lacks_rules(self, node: CoordinatorNode, error: UnknownRules) -> None:
        """Take that a process of the last release ended where the log asks for more."""
        world = self._world
        world.say(f"replica {node.me} ends: {error.args[0]}")
        if not node.was_put_back:
            raise Violation("raised-too-early", f"replica {node.me} can't go on: {error.args[0]}")
        world.count("members that lacked the rules")
        node.release = THIS_RELEASE
        world.after(self._random.uniform(50, 1_000), lambda: world.start_node(node))

    @property
    def are_settled(self) -> bool:
        """Whether all members apply the log by the newest rules."""
        return all(
            node.schedule is not None and node.schedule.rules.version == _NEWEST
            for node in self._world.members_left()
        )

    def check(self) -> None:
        """Count what has happened; at the end."""
        if self.are_mixed:
            self._world.count("rules raised")
