"""What the parts of the simulator know of each other: the world and its processes.

A world is one seed: one generator, one timeline of virtual milliseconds, and processes on
it. A process is real asyncio code on a loop of its own (`virtual_loop.py`): while its
callbacks run, `asyncio.get_running_loop()` is that loop, so `asyncio.sleep`, futures and
tasks work as always. Its clock may run fast or slow; it can be killed, frozen and thawed.

Everything random comes from `World.random` or a generator made of it. Nothing may depend on
the order of a set of texts, on `id()`, on the real clock, or on garbage collection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from tasksprint.errors import TaskSprintError
from tasksprint.ids import ReplicaId
from tasksprint.net.router import Router
from tasksprint.settings import Settings
from tests.simulation.timeline import Timeline
from tests.simulation.wire import Wire
from tests.store.file_directory import FileResults
from tests.store.memory_result_store import MemoryResults

__all__ = ["Outcome", "SimProcess", "Unreachable", "Violation", "World", "violation_of"]


class Unreachable(Exception):
    """No answer: nobody there, a connection that broke, or the time is over.

    The request may have been carried out all the same, or may still be.
    """


class Violation(Exception):
    """A rule was broken."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule
        self.text = text


def violation_of(where: str, error: BaseException) -> Violation:
    """Return the violation that an exception is which nobody caught.

    "core" is what the code asserts or refuses itself; a broken build that merely crashes
    was not caught by it, and is a "crash".
    """
    is_said = isinstance(error, (AssertionError, LookupError, TaskSprintError))
    violation = Violation(
        "core" if is_said else "crash", f"{where}: {type(error).__name__}: {error}"
    )
    violation.__cause__ = error
    return violation


@dataclass
class Outcome:
    """How a seed went."""

    seed: int
    violation: Violation | None
    steps: int
    virtual_ms: float
    counts: dict[str, int] = field(default_factory=dict)


class SimProcess(Protocol):
    """One simulated process, from its start to its end; a restart is a new one."""

    name: str  # such as "client 3"; the same for all lives of one machine
    address: str  # where others reach it, such as "10.0.0.3:7070"; one for each machine
    random: Random  # of this life
    loop: asyncio.AbstractEventLoop
    is_alive: bool
    is_frozen: bool

    def monotonic_ms(self) -> int:
        """Return what this machine's clock shows: it has an offset, and drifts."""
        ...

    def wall_ms(self) -> int:
        """Return this machine's wall time."""
        ...

    def start(self, main: Coroutine[Any, Any, Any]) -> None:
        """Begin a task of this process; from outside, or from its own callbacks.

        An exception that leaves `main` is a violation (`violation_of`), as any that reaches
        the loop's exception handler.
        """
        ...

    def call_soon(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call it on this process's loop."""
        ...

    def listen(self, router: Router) -> None:
        """Answer requests that come to its address, until it dies."""
        ...

    def kill(self) -> None:
        """End it as kill -9 does: none of its callbacks ever runs again."""
        ...

    def freeze(self) -> None:
        """Stop it (SIGSTOP): callbacks and timers that are due wait."""
        ...

    def thaw(self) -> None:
        """Let it go on."""
        ...


class World(Protocol):
    """What clients, people and checkers see of a seed."""

    random: Random
    settings: Settings  # what all processes run with
    addresses: dict[ReplicaId, str]  # of every coordinator that was ever started, by id
    is_healed: bool  # The phase without faults has begun.
    timeline: Timeline
    wire: Wire  # `SimHttp(world.wire, process, world.settings)` asks anybody anything

    @property
    def now(self) -> float:
        """True virtual milliseconds since the seed began; checkers use this clock."""
        ...

    def after(self, delay_ms: float, event: Callable[[], Any]) -> None:
        """Let something happen from outside of all processes (faults, people's wishes)."""
        ...

    def spawn(self, name: str) -> SimProcess:
        """Start a process on the machine of that name (made at its first mention)."""
        ...

    def new_results(self, name: str) -> MemoryResults | FileResults:
        """Return an empty disk for a client, in memory or on real files."""
        ...

    async def request(
        self,
        process: SimProcess,
        address: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: bytes = b"",
        timeout_ms: float = 10_000,
    ) -> tuple[int, bytes]:
        """Send a request from a process of ours; return status and body of the answer.

        To be awaited on the loop of `process`. It reaches the routers' real handlers, by a
        simulated network: late, cut, or never. Who gives up (a cancelled task, too)
        closes the connection, and the other side hears of it as it does in real life.

        Raises:
            Unreachable: See there.
        """
        ...

    def member_addresses(self) -> set[str]:
        """Return the addresses of the members that the log says there are."""
        ...

    def cut(self, pairs: Iterable[tuple[str, str]]) -> Callable[[], None]:
        """Cut links (from, to), named by machines; call what is returned to mend them."""
        ...

    def say(self, text: str) -> None:
        """Write a line of the trace."""
        ...

    def count(self, name: str, number: int = 1) -> None:
        """Add to a figure of the final report."""
        ...

    def violate(self, rule: str, text: str) -> None:
        """End the seed: a rule is broken. Works from any callback of any process."""
        ...


# --- the other contracts -------------------------------------------------------------------
#
# clients.py (clients and people) has
#
#     class Clients:                            what the scenario drives
#         def __init__(self, world: World) -> None: draws how many clients, people, how fast
#         def start(self) -> None               first phase; load goes on until `stop`
#         def fault(self) -> None               let something happen to a random client
#         def heal(self) -> None                restart and thaw everybody; submit no more
#         @property is_settled(self) -> bool    all acknowledged jobs ended; nobody waits
#         def submit_last(self) -> None         one more job, after healing; part of is_settled
#         def check(self, schedules: list[Schedule]) -> None
#                                               at the end: the end-to-end checkers; raises
#                                               Violation. `schedules`: state of each replica
#
#     and is told, by whoever runs the coordinators:
#
#         def applied(self, replica: ReplicaId, schedule: Schedule, slot: Slot,
#                     commands: tuple[bytes, ...], applied: Applied) -> None
#                                               after each `Schedule.apply`, in each life (also
#                                               those that repeat what was applied before a crash)
#         def scheduler_got(self, replica: ReplicaId, run: object, line: bytes) -> None
#                                               each line written to a scheduler's process; `run`
#                                               is another object for each start of one
#
# jobs.py (kinds of jobs, with their schedulers as Python objects) has
#
#     KINDS, manifest(kind), archive(kind), params(kind, random), expected(kind, params, seed)
#     READY: bytes                              the first line of every scheduler
#     class SchedulerProgram: feed(line: bytes) -> bytes
#                                               one run of a scheduler; its kind is in the params
#                                               of init, so any job's is the same class
