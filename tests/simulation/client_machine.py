"""The machine of one client: its disk, its habits, and the real `Client` on it, life after life.

The client of roles/client/client.py runs as it is, on the loop of a simulated process; here are
only its surroundings: a store that outlives the process, a disk that takes its
time, nodes that are imagined (`sim_node.py`), and programs that needn't be unpacked.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, urlsplit

from tasksprint.asking.leader import LeaderFinder
from tasksprint.coordination.commands import JoinClient, Report, decode_command
from tasksprint.errors import UnprovenAnswer
from tasksprint.net.http_messages import HttpResponse
from tasksprint.net.keys import ClusterKey
from tasksprint.roles.client.client import Client
from tasksprint.roles.client.surroundings import ClientOptions, ClientSurroundings
from tasksprint.settings import GIB
from tests.simulation.machines import KEY_SECRET
from tests.simulation.sim_http import SimHttp
from tests.simulation.sim_node import NodeHabits, SimNode
from tests.simulation.sim_writer import SimDisk, SimWriter

if TYPE_CHECKING:
    from tests.simulation.world import SimProcess, World

__all__ = ["ClientMachine"]

_KEY = ClusterKey(KEY_SECRET)
_OK = 200


class _NoAttachServer:
    """In place of the socket on which people attach nodes: nobody does."""

    async def start(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""


class _Programs:
    """In place of `ClientPrograms`: archives are fetched once, and need no unpacking."""

    def __init__(self, machine: ClientMachine, leader: LeaderFinder) -> None:
        self._machine = machine
        self._leader = leader

    def directory(self, digest: str) -> Path:
        """Return a name."""
        return Path(digest)

    async def prepare(self, digest: str, command: str) -> None:
        """Fetch the archive, unless it is there."""
        if digest not in self._machine.programs:
            response = await self._leader.request("GET", f"/v1/archives/{digest}")
            response.checked()
            self._machine.programs.add(digest)

    async def keep_swept(self) -> None:
        """Keep all."""


class _Http(SimHttp):
    """Notes when a leader answers: it has heard the client by then."""

    def __init__(self, machine: ClientMachine, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._machine = machine

    def answered(self, target: str, body: bytes, answer: HttpResponse) -> None:
        url = urlsplit(target)
        if answer.status != _OK:
            return
        if url.path == "/v1/view":
            self._machine.on_answer(parse_qs(url.query)["incarnation"][0])
        elif url.path == "/v1/commands":
            command = decode_command(body)
            if isinstance(command, JoinClient | Report):
                self._machine.on_answer(command.incarnation)


class ClientMachine:
    """One machine that runs a client, and what happens to it.

    Args:
        name: Of the machine, and of the client's data directory.
        on_answer: Called with the incarnation when a leader answers a client here.
    """

    client_class: type[Client] = Client
    writer_class: type[SimWriter] = SimWriter

    def __init__(self, world: World, name: str, on_answer: Callable[[str], None]) -> None:
        random = world.random
        self.name = name
        self.on_answer = on_answer
        self.world = world
        self.slots = random.choice((1, 2, 2, 3))
        self.disk = SimDisk(world.timeline, random)
        self.disk.latency = random.choice(((0.05, 0.3), (0.1, 2.0), (1.0, 20.0)))
        self.directory = world.new_results(name)
        self.programs: set[str] = set()
        self.disks_lost = 0
        self.habits = NodeHabits(
            start_ms=random.choice((5.0, 30.0, 300.0)),
            crash_share=random.choice((0.0, 0.0, 0.01, 0.1)),
            garbage_share=random.choice((0.0, 0.0, 0.02)),
            speed=random.choice((0.5, 1.0, 1.0, 3.0)),
        )
        self.is_disk_low = False
        self.process: SimProcess | None = None
        self.client: Client | None = None

    @property
    def is_up(self) -> bool:
        """Whether a client runs here."""
        return self.process is not None and self.process.is_alive

    def known_addresses(self) -> list[str]:
        """Return the coordinators that the client would ask."""
        if self.client is None:
            return []
        rota = self.client.leader._rota
        return [*rota._configured, *rota._learned]

    def start(self) -> None:
        """Start the client, from what its disk holds."""
        assert not self.is_up
        self.process = process = self.world.spawn(self.name)
        process.start(self._run(process))

    def kill(self) -> None:
        """End it as kill -9 does; what is stored stays."""
        if self.process is not None and self.process.is_alive:
            self.process.kill()
            self.directory.crash()
            self.client = None

    def lose_disk(self) -> None:
        """End it, and find an empty disk at the next start: it will be another client."""
        self.kill()
        self.disks_lost += 1
        self.directory.close()
        self.directory = self.world.new_results(f"{self.name}, disk {self.disks_lost}")
        self.programs.clear()

    def lose_values(self, share: float, random: Random) -> None:
        """Let the disk of a machine that is down forget so much of its results."""
        assert not self.is_up
        self.disks_lost += 1
        for name in self.directory.names():
            if random.random() < share:
                self.directory.forget(name)

    def stop(self) -> None:
        """Ask it to end in good order."""
        if self.client is not None and self.process is not None:
            self.process.call_soon(self.client.stop)

    async def _run(self, process: SimProcess) -> None:
        store = self.directory.open(
            identity=self.directory.name, settings=self.world.settings
        )
        client = self.client_class(
            ClientOptions(
                list(self.world.addresses.values()), Path(self.name), _KEY, self.slots
            ),
            self.world.settings,
            cast(Any, store),
            self._surroundings(process),
        )
        process.listen(client.router)
        client.address = process.address
        self.client = client
        await client.start()
        try:
            await client.stopped
        except UnprovenAnswer:
            # Only strangers answer, and say that its key is wrong: at its first start that ends
            # it, and never later. Its people see the sentence and start it again.
            if not client.leader.ends_by_wrong_key:
                raise
            self.world.count("clients whose key was refused at their first start")
            self.world.after(2_000, self._start_again)
        await client.close()
        # Its process ends: later, since this is it.
        self.world.after(0.1, partial(self._ended, process))

    def _ended(self, process: SimProcess) -> None:
        if self.process is process and process.is_alive:
            self.kill()

    def _start_again(self) -> None:
        if not self.is_up:
            self.start()

    async def _measure(self, directory: Path) -> tuple[int, int]:
        return (GIB // 8 if self.is_disk_low else 100 * GIB), 200 * GIB

    def _surroundings(self, process: Any) -> ClientSurroundings:
        world = self.world

        async def start_node(directory: Path, command: str, **callbacks: Any) -> Any:
            return SimNode(process.loop, process.random, self.habits, **callbacks)

        def new_http(key: ClusterKey, settings: Any) -> Any:
            return _Http(self, world.wire, process, settings)

        return ClientSurroundings(
            now_us=lambda: int(process.loop.time() * 1e6),
            new_random=lambda: process.random,
            new_incarnation=lambda: f"{process.random.getrandbits(64):016x}",
            measure=self._measure,
            new_http=new_http,
            new_writer=cast(Any, partial(self.writer_class, self.disk, process)),
            new_attach_server=lambda *_, **__: cast(Any, _NoAttachServer()),
            new_programs=lambda root, workbench, leader, settings: _Programs(self, leader),
            start_node=start_node,
        )
