"""Machines and the processes on them: clocks that differ, lives that end.

A machine has a name, an address and a clock; a process is one life on it. Knows loops and
requests' handlers, not what a process is for.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from random import Random
from typing import Any

from tasksprint.net.bugs import Bugs
from tasksprint.net.gate import Gate
from tasksprint.net.http_exchange import Service
from tasksprint.net.keys import NO_BODY, ClusterKey
from tasksprint.net.router import Router
from tasksprint.settings import Settings
from tests.simulation.timeline import Timeline
from tests.simulation.virtual_loop import VirtualLoop

__all__ = ["KEY_SECRET", "Machine", "Process"]

KEY_SECRET = bytes(range(32))

# The first wall time of all machines, give or take what theirs is wrong by.
_WALL_MS = 1_700_000_000_000


class Machine:
    """Where processes run, one after the other; its clock goes on between them."""

    def __init__(self, name: str, address: str, random: Random, *, drift: float) -> None:
        self.name = name
        self.address = address
        self.random = random
        self.rate = 1 + random.uniform(-drift, drift)
        self.offset_ms = random.randrange(10_000_000)
        self.wall_offset_ms = _WALL_MS + random.randrange(-3_000, 3_000)
        self.long_share = random.choice((0.0, 0.0, 0.01, 0.05))
        self.slow_ms = 0.0  # what a piece of work may take, now and then
        self.process: Process | None = None  # the last one, dead or alive
        # What a stranger answers at this address while no process of ours does; None: there
        # is none. (By a chance of its own, so that all else goes as it would without. At one
        # address nobody says "wrong key": if all did, a client would rightly end at its start.)
        says = (200,) if name.endswith("1") else (None, 200, 401)
        self.stranger_status = Random(f"{name} {self.offset_ms}").choice(says)
        self.has_power = True  # A machine without it says nothing to who calls.

    @property
    def is_up(self) -> bool:
        """Whether a process lives here."""
        return self.process is not None and self.process.is_alive


def _ignore(text: str) -> None:
    pass


class Process:
    """One life; the simulator's `SimProcess`.

    Args:
        on_exception: Takes what its callbacks raise and nobody catches.
    """

    def __init__(
        self,
        machine: Machine,
        timeline: Timeline,
        settings: Settings,
        on_exception: Callable[[Process, BaseException], None],
    ) -> None:
        self.machine = machine
        self.name = machine.name
        self.address = machine.address
        self.random = Random(machine.random.random())
        self._timeline = timeline
        self._settings = settings
        self._on_exception = partial(on_exception, self)
        self.loop: VirtualLoop = VirtualLoop(
            timeline,
            Random(machine.random.random()),
            rate=machine.rate,
            offset_ms=machine.offset_ms,
            long_share=machine.long_share,
            on_exception=self._on_exception,
        )
        self.is_alive = True
        self.service: Service | None = None  # None: nobody listens
        self._key = ClusterKey(KEY_SECRET)
        # Called when it ends, in order: connections break, disks lose what they hadn't.
        self.at_end: list[Callable[[], None]] = []
        self.calls: dict[Any, None] = {}  # requests that it handles
        self.streams: Any = None  # of a coordinator; for those who call it
        self.refused: Callable[[str], None] = _ignore  # A message that makes no sense came.
        self.left_behind: list[Any] = []  # See VirtualLoop.kill.

    @property
    def is_frozen(self) -> bool:
        """Whether it is stopped (SIGSTOP)."""
        return self.loop.is_frozen

    def monotonic_ms(self) -> int:
        """Return what this machine's clock shows; on a slow machine time passes by asking."""
        machine = self.machine
        if machine.slow_ms and machine.random.random() < 0.1:
            self.loop.spend(machine.random.uniform(0, machine.slow_ms))
        now = max(self._timeline.now, self.loop.busy_until)
        return int(machine.offset_ms + now * machine.rate)

    def wall_ms(self) -> int:
        """Return this machine's wall time."""
        machine = self.machine
        return int(machine.wall_offset_ms + self._timeline.now * machine.rate)

    def start(self, main: Coroutine[Any, Any, Any]) -> None:
        """Begin a task of this process."""
        self.call_soon(self._start, main)

    def _start(self, main: Coroutine[Any, Any, Any]) -> None:
        self.loop.create_task(main).add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_exception(error)

    def call_soon(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call it on this process's loop."""
        self.loop.call_soon(function, *arguments)

    def listen(
        self, router: Router, on_bug: Callable[[BaseException], None] | None = None
    ) -> None:
        """Answer requests that come to its address, until it dies."""

        def bug(error: BaseException) -> None:
            self._on_exception(error)
            if on_bug is not None:
                on_bug(error)

        # (By a chance of its own, as all else goes without.)
        life = Random(f"{self.name} {self.machine.offset_ms} {self._timeline.now}")
        gate = Gate(
            self._key,
            addresses=(self.address,),
            wall_ms=self.wall_ms,
            life=f"{life.getrandbits(64):016x}",
        )
        self.service = Service(router, gate, self._settings, Bugs(bug))

    def signed(
        self, server: Process, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> dict[str, str]:
        """Return the headers of a request to another process, with what proves it."""
        assert server.service is not None and server.service.gate is not None
        address = server.address
        self._key.learn_life(address, server.service.gate.life, signed_for="")
        digest = hashlib.sha256(body).hexdigest() if body else NO_BODY
        signature = self._key.sign(method, target, address, body=digest)
        return {**headers, "host": address, "authorization": signature.authorization}

    def kill(self) -> None:
        """End it as kill -9 does."""
        if self.is_alive:
            self.is_alive = False
            self.left_behind += self.loop.kill()
            at_end, self.at_end = self.at_end, []
            for tell in at_end:
                tell()
            for call in self.calls:
                call.server_died()
            self.calls = {}

    def freeze(self) -> None:
        """Stop it in its tracks."""
        if self.is_alive:
            self.loop.freeze()

    def thaw(self) -> None:
        """Let it go on."""
        self.loop.thaw()
