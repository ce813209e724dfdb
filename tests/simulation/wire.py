"""The network between simulated machines: late, cut, one way or both, as TCP sees it.

What is sent on a connection arrives in order, once, or not at all; what a cut holds up is
sent again until the connection is given up. A process that ends closes its
connections; a machine without power says nothing. Knows machines and callbacks, not what is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from tests.simulation.machines import Machine, Process
from tests.simulation.timeline import Timeline

__all__ = ["Connection", "Wire"]

# Pauses before something is sent again, as TCP's: doubled each time.
_RESEND_MIN_MS = 200.0
_RESEND_MAX_MS = 1_600.0


def _ignore(*_: object) -> None:
    pass


class Wire:
    """All links; a link is a pair of machines, one direction."""

    def __init__(self, timeline: Timeline, random: Random) -> None:
        self.timeline = timeline
        self.random = random
        self.machines: dict[str, Machine] = {}  # by address
        self.cut: set[tuple[str, str]] = set()  # (source, target), names of machines
        self.delays = (0.05, 0.5)  # milliseconds
        self.straggling = 0.0  # probability that something takes up to 100 times as long
        # As Settings.unacknowledged_timeout_ms: then a connection is given up.
        self.give_up_ms = 4_000.0
        self.sent = 0
        # Told of each request that has arrived: address, method, target, headers, body.
        self.on_request: Callable[[str, str, str, dict[str, str], bytes], None] = _ignore

    def delay(self) -> float:
        """Draw how long something travels."""
        delay = self.random.uniform(*self.delays)
        if self.straggling and self.random.random() < self.straggling:
            delay *= self.random.uniform(1, 100)
        return delay

    def carry(
        self,
        source: Machine,
        target: Machine,
        arrive: Callable[[], None],
        lost: Callable[[], None],
        *,
        began: float | None = None,
        pause: float = _RESEND_MIN_MS,
    ) -> None:
        """Take something across, by itself; cut, it is tried again for a while.

        Args:
            lost: It never arrived; called when the source gives up.
        """
        self.sent += 1
        start = self.timeline.now if began is None else began

        def across() -> None:
            if (source.name, target.name) not in self.cut and target.has_power:
                arrive()
            elif self.timeline.now - start > self.give_up_ms:
                lost()
            else:
                self.timeline.after(
                    pause,
                    lambda: self.carry(
                        source,
                        target,
                        arrive,
                        lost,
                        began=start,
                        pause=min(2 * pause, _RESEND_MAX_MS),
                    ),
                )

        self.timeline.after(self.delay(), across)


class Connection:
    """One direction of an open connection between two processes, and the news of its end.

    Args:
        take: Gets what was sent, on the target's loop.
        source_lost, target_lost: Told once, on the loop of that side, with the cause.
    """

    def __init__(
        self,
        wire: Wire,
        source: Process,
        target: Process,
        *,
        take: Callable[[Any], None],
        source_lost: Callable[[str], None],
        target_lost: Callable[[str], None],
    ) -> None:
        self._wire = wire
        self._source = source
        self._target = target
        self._take = take
        self._source_lost = source_lost
        self._target_lost = target_lost
        self._source_open = True
        self._target_open = True
        self._sent: list[Any] = []  # on its way, in order
        self._arrival = 0.0  # of the last thing sent
        self._stuck_since: float | None = None
        self._pause = _RESEND_MIN_MS
        source.at_end.append(self._source_died)
        target.at_end.append(self._target_died)

    def send(self, data: Any) -> None:
        """Send something, behind all before it."""
        if not self._source_open:
            return
        wire = self._wire
        wire.sent += 1
        self._sent.append(data)
        self._arrival = max(self._arrival, wire.timeline.now + wire.delay())
        if self._stuck_since is None:
            wire.timeline.after(self._arrival - wire.timeline.now, self._arrive)

    def _arrive(self) -> None:
        """Deliver what was sent first."""
        if self._stuck_since is None and self._sent:
            self._deliver(1)

    def _deliver(self, count: int) -> None:
        wire, source, target = self._wire, self._source.machine, self._target.machine
        there, back = (source.name, target.name), (target.name, source.name)
        if there in wire.cut or not target.has_power:
            self._get_stuck()
            return
        if not self._target_open:
            # The other end is closed: its machine says so to whoever sends.
            self._sent.clear()
            if self._source_open:
                self._tell_source("connection reset", back)
            return
        batch, self._sent = self._sent[:count], self._sent[count:]
        for data in batch:
            self._target.loop.call_soon(self._taken, data)
        if back in wire.cut and self._source_open:
            self._get_stuck()  # It arrives, but the source doesn't hear so.

    def _taken(self, data: Any) -> None:
        if self._target_open:
            self._take(data)

    def _get_stuck(self) -> None:
        now = self._wire.timeline.now
        if self._stuck_since is None:
            self._stuck_since, self._pause = now, _RESEND_MIN_MS
        self._wire.timeline.after(self._pause, self._try_again)
        self._pause = min(2 * self._pause, _RESEND_MAX_MS)

    def _try_again(self) -> None:
        wire, source, target = self._wire, self._source.machine, self._target.machine
        assert self._stuck_since is not None
        if not self._source_open and not self._sent:
            return
        there, back = (source.name, target.name), (target.name, source.name)
        is_open = there not in wire.cut and target.has_power
        if is_open and back not in wire.cut:
            self._stuck_since = None
            self._deliver(len(self._sent))
        elif wire.timeline.now - self._stuck_since > wire.give_up_ms:
            self._sent.clear()
            self._lose_source("no acknowledgement in time")
            self._lose_target_later()
        else:
            if is_open and self._sent and self._target_open:
                batch, self._sent = self._sent, []
                for data in batch:
                    self._target.loop.call_soon(self._taken, data)
            self._get_stuck()

    # --- ends ---

    def close(self) -> None:
        """Close it from the source's side, on its loop; what was sent still arrives."""
        if self._source_open:
            self._source_open = False
            self._tell_target("it closed the connection")

    def close_target(self) -> None:
        """Close it from the target's side, on its loop."""
        if self._target_open:
            self._target_open = False
            machines = self._target.machine.name, self._source.machine.name
            self._tell_source("it closed the connection", machines)

    def _lose_source(self, cause: str) -> None:
        if self._source_open:
            self._source_open = False
            self._source.loop.call_soon(self._source_lost, cause)

    def _lose_target(self, cause: str) -> None:
        if self._target_open:
            self._target_open = False
            self._target.loop.call_soon(self._target_lost, cause)

    def _tell_source(self, cause: str, back: tuple[str, str]) -> None:
        wire = self._wire

        def arrive() -> None:
            if back not in wire.cut:  # Else it learns by sending.
                self._lose_source(cause)

        wire.timeline.after(wire.delay(), arrive)

    def _tell_target(self, cause: str) -> None:
        """Tell the target of the end, behind what was sent."""
        wire = self._wire
        there = self._source.machine.name, self._target.machine.name

        def arrive() -> None:
            if there in wire.cut or self._sent:
                self._lose_target_later()
            else:
                self._lose_target(cause)

        self._arrival = max(self._arrival, wire.timeline.now + wire.delay())
        wire.timeline.after(self._arrival - wire.timeline.now, arrive)

    def _lose_target_later(self) -> None:
        """Let the target find out by itself: its kernel asks whether the other end lives."""
        wire = self._wire
        wire.timeline.after(wire.give_up_ms, lambda: self._lose_target("no sign of life"))

    def _source_died(self) -> None:
        if self._source_open:
            self._source_open = False
            if self._source.machine.has_power:
                self._tell_target("connection reset")
            else:
                self._lose_target_later()

    def _target_died(self) -> None:
        if self._target_open:
            self._target_open = False
            machine = self._target.machine
            if machine.has_power:
                self._tell_source("connection reset", (machine.name, self._source.machine.name))
