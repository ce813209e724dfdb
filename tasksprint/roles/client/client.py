"""One client: its parts, put together, and their work for each order of the workbench.

The workbench (execution/) decides. Its effects are carried out here, each by its part. When a
part learns of an event, it tells the workbench.
"""

from __future__ import annotations

import logging

from tasksprint.errors import LocalProtocolError
from tasksprint.execution.effects import (
    DropJobResults,
    DropResults,
    FetchInputs,
    HeldResult,
    KillNode,
    Note,
    PrepareProgram,
    ReleaseCopies,
    RunTask,
    SendReport,
    StartNode,
    StopNode,
    StoreResult,
)
from tasksprint.execution.workbench import Workbench
from tasksprint.ids import ClientId, Incarnation, JobId, TaskId
from tasksprint.net.bugs import Bugs
from tasksprint.process.free_space import FreeSpace
from tasksprint.roles.client.disk_space import DiskSpace
from tasksprint.roles.client.durable import Durable
from tasksprint.roles.client.fetching import Fetcher
from tasksprint.roles.client.held import HeldValues
from tasksprint.roles.client.incarnations import Incarnations
from tasksprint.roles.client.joining import Joining, leader_of
from tasksprint.roles.client.nodes import Nodes
from tasksprint.roles.client.paths import ClientPaths
from tasksprint.roles.client.ports import Writer, logger
from tasksprint.roles.client.reporting import Reporting
from tasksprint.roles.client.surroundings import (
    REAL_CLIENT,
    ClientOptions,
    ClientSurroundings,
)
from tasksprint.roles.client.turns import TurnLoop
from tasksprint.settings import Settings
from tasksprint.store.result_store import ResultStore

__all__ = ["Client"]


class Client:
    """The wiring of one client process; `process.py` starts it."""

    def __init__(
        self,
        options: ClientOptions,
        settings: Settings,
        store: ResultStore,
        surroundings: ClientSurroundings = REAL_CLIENT,
    ) -> None:
        self.settings = settings
        # Where other clients reach this one; None: nowhere. Set before `start`.
        self.address: str | None = None
        for text in store.found_at_start:
            logger.warning("%s", text)
        held = [
            HeldResult(JobId(job), TaskId(tid), digest)
            for job, tid, digest in store.ask(lambda store: store.reader.held())
        ]
        self._started_ms = surroundings.now_us() // 1_000
        self.workbench = workbench = Workbench(
            cid=ClientId(0),
            incarnation=Incarnation(""),
            capacity=options.capacity,
            settings=settings,
            now_ms=self._started_ms,
            held=held,
        )
        self.bugs = Bugs()
        self.turns = turns = TurnLoop(
            workbench, surroundings.now_us, self._carry_out, self._end_turn
        )
        self.stopped, self.stop = turns.stopped, turns.stop
        self.http = surroundings.new_http(options.key, settings)
        random = surroundings.new_random()
        self.leader = leader_of(options, store, self.http, random, turns.now_ms)
        self.writer: Writer = surroundings.new_writer(
            store, on_failure=turns.fail, name="results"
        )
        self.database_path = store.path
        self.held = HeldValues(turns, workbench, store, self.writer)
        self.durable = Durable(turns, workbench, self.writer, self.held, settings)
        self.values = self.durable.values
        self._incarnations = Incarnations(options.data_dir, random)
        self.reporting = Reporting(turns, workbench, self.leader, self._incarnations, self.values)
        self._joining = Joining(
            options,
            settings,
            turns,
            workbench,
            self.leader,
            self._incarnations,
            self.writer,
            store.identity,
            surroundings.new_incarnation,
            self.reporting.attached_changed,
        )
        self._fetcher = Fetcher(
            turns, workbench, self.values, self.held, self.http, self._joining.addresses.get
        )
        self._programs = surroundings.new_programs(
            options.data_dir / "programs", workbench, self.leader, settings
        )
        self.nodes = Nodes(
            turns,
            workbench,
            self.held,
            self.durable,
            self.reporting,
            self._programs,
            settings,
            surroundings,
            options.data_dir,
        )
        self.free_space = FreeSpace(settings, options.data_dir)
        self._disk_space = DiskSpace(turns, workbench, self.free_space, surroundings.measure)
        self.router = ClientPaths(self, self.values, self.held, self.nodes, self.stop).router

    @property
    def is_joined(self) -> bool:
        """Whether the cluster counts on this client."""
        return self._incarnations.is_joined.is_set()

    @property
    def uptime_ms(self) -> int:
        """How long this process has run."""
        return self.turns.now_ms() - self._started_ms

    @property
    def complaint(self) -> str | None:
        """A coordinator's latest bad answer, in the words of `status`."""
        return self.leader.complaint

    async def start(self) -> None:
        """Begin: join as soon as a coordinator leads, then poll and report."""
        await self.nodes.open()
        for work in (
            self._joining.follow(self.address),
            self.reporting.send_reports(),
            self.reporting.tell_attached(),
            self._disk_space.watch(),
            self._programs.keep_swept(),
        ):
            self.turns.background(work)

    async def close(self) -> None:
        """Leave the cluster if it still answers, end the nodes, close the files."""
        await self.turns.close()
        self.nodes.kill_own()
        await self._joining.leave()
        await self.nodes.close()
        await self.http.close()
        await self.held.close()

    def _carry_out(self, effect: object) -> None:
        match effect:
            case StoreResult(node=node, id=id):
                self.durable.keep_result(effect, self.nodes.take_values(node, id))
            case RunTask():
                self.nodes.run(effect)
            case SendReport():
                self.reporting.send(effect)
            case FetchInputs():
                self._fetcher.fetch(effect)
            case ReleaseCopies(copies):
                self.values.release_copies(copies)
            case StartNode():
                self.nodes.start(effect)
            case StopNode(node):
                self.nodes.stop(node)
            case KillNode(node, why):
                self.nodes.kill(node, why)
            case PrepareProgram(program, command):
                self.nodes.prepare(program, command)
            case DropResults(job, tids):
                self.durable.drop(job, tids)
            case DropJobResults(job, keep):
                self.durable.drop_job(job, keep)
            case Note(text, is_warning):
                logger.log(logging.WARNING if is_warning else logging.INFO, "%s", text)
            case _:
                raise LocalProtocolError(f"no way to carry out {effect!r}")

    def _end_turn(self) -> None:
        self.nodes.write()
        self.durable.write()
        self.nodes.hold()
