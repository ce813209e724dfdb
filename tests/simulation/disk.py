"""A disk that keeps what was synced, takes its time, and may be cut off in mid-write.

Transactions are atomic and in order: everything that waits becomes one transaction. At
a crash, the one under way has become durable or not, and what waited is lost. What a
transaction changes is a function of the durable state; the disk knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Generic, TypeVar

from tests.simulation.timeline import Timeline

__all__ = ["Disk"]

State = TypeVar("State")


class Disk(Generic[State]):
    """Durable state behind a queue of writes.

    Args:
        state: What is durable; writes change it in place.
    """

    def __init__(self, timeline: Timeline, random: Random, state: State) -> None:
        self._timeline = timeline
        self._random = random
        self.state = state
        self.latency = (0.1, 1.0)  # milliseconds of one transaction, at least and at most
        self._waiting: list[tuple[Callable[[State], None], Callable[[], None]]] = []
        self._running: list[tuple[Callable[[State], None], Callable[[], None]]] = []
        self._life = 0
        self._hangs = False
        self._held: list[Callable[[], None]] = []

    def hang(self) -> None:
        """Let no write end until `recover`."""
        self._hangs = True

    def recover(self) -> None:
        """End writes again, first of all those that should have ended meanwhile."""
        self._hangs = False
        held, self._held = self._held, []
        for finish in held:
            finish()

    def write(self, change: Callable[[State], None], done: Callable[[], None]) -> None:
        """Queue a change; `done` is called once it is durable, unless a crash comes first."""
        self._waiting.append((change, done))
        if not self._running:
            self._start()

    def _start(self) -> None:
        self._running, self._waiting = self._waiting, []
        life = self._life
        delay = self._random.uniform(*self.latency)
        self._timeline.after(delay, lambda: self._finish(life))

    def _finish(self, life: int) -> None:
        if life != self._life:
            return
        if self._hangs:
            self._held.append(lambda: self._finish(life))
            return
        finished, self._running = self._running, []
        for change, _ in finished:
            change(self.state)
        if self._waiting:
            self._start()
        for _, done in finished:
            if life == self._life:  # A callback may notice something that ends this life.
                done()

    def crash(self) -> tuple[int, int]:
        """Cut the power.

        Returns:
            How many writes were lost, and how many became durable without anyone knowing.
        """
        self._life += 1
        running, waiting = self._running, self._waiting
        self._running, self._waiting = [], []
        if running and self._random.random() < 0.5:
            for change, _ in running:
                change(self.state)
            return len(waiting), len(running)
        return len(waiting) + len(running), 0
