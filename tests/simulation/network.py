"""A network that loses, duplicates, delays and reorders, and can be cut, also one way.

Carries any payload between numbered places. Knows nothing of what it carries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.simulation.timeline import Timeline

__all__ = ["Network", "NetworkFaults"]


@dataclass(frozen=True)
class NetworkFaults:
    """How bad it is."""

    loss: float = 0.0  # probability
    duplication: float = 0.0
    delay_min: float = 0.2  # milliseconds
    delay_max: float = 1.0
    straggling: float = 0.0  # probability that a message takes up to 100 times as long


class Network:
    """Delivers payloads by `deliver(source, target, payload)`."""

    def __init__(
        self,
        timeline: Timeline,
        random: Random,
        deliver: Callable[[int, int, Any], None],
    ) -> None:
        self._timeline = timeline
        self._random = random
        self._deliver = deliver
        self.faults = NetworkFaults()
        self.cut: set[tuple[int, int]] = set()  # (source, target): nothing gets through
        self.sent = 0
        self.lost = 0
        self.duplicated = 0

    def send(self, source: int, target: int, payload: Any) -> None:
        """Take a payload; what is cut when it arrives is lost as well."""
        random, faults = self._random, self.faults
        self.sent += 1
        copies = 1
        if random.random() < faults.loss:
            self.lost += 1
            copies = 0
        elif random.random() < faults.duplication:
            self.duplicated += 1
            copies = 2
        for _ in range(copies):
            delay = random.uniform(faults.delay_min, faults.delay_max)
            if random.random() < faults.straggling:
                delay *= random.uniform(1, 100)
            self._timeline.after(delay, lambda: self._arrive(source, target, payload))

    def _arrive(self, source: int, target: int, payload: Any) -> None:
        if (source, target) in self.cut:
            self.lost += 1
            return
        self._deliver(source, target, payload)
