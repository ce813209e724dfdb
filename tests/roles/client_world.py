"""A real client, with its processes and its disk, under a coordinator that a test plays."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from tasksprint.coordination.commands import (
    Completion,
    Failure,
    JobObserved,
    JoinClient,
    LeaveClient,
    Lost,
    Report,
    decode_command,
)
from tasksprint.coordination.view import (
    Assignment,
    ClientAddress,
    Drop,
    DropJob,
    Input,
    JobEntry,
    Stop,
    View,
    encode_view,
)
from tasksprint.ids import ClientId, Incarnation, JobId, Slot, TaskId
from tasksprint.net.gate import Access, Gate
from tasksprint.net.http_server import HttpServer
from tasksprint.net.router import Request, Response, Router, json_response
from tasksprint.roles.client.client import Client
from tasksprint.roles.client.surroundings import (
    REAL_CLIENT,
    ClientOptions,
    ClientSurroundings,
)
from tasksprint.settings import Settings
from tasksprint.store.result_store import ResultStore
from tasksprint.task_spec import TaskSpec
from tests.net.support import DEADLINE_S, KEY, run

__all__ = [
    "DEADLINE_S",
    "GOOD",
    "KEY",
    "PROGRAM",
    "World",
    "assignment",
    "consumed",
    "run",
    "shell_node",
    "until",
    "view",
    "world",
]

# What a node in shell does for its tasks: it answers.
GOOD = """echo '{"id":'$id',"values":{"result":1}}'"""
PROGRAM = "p" * 64


async def until(condition: Callable[[], object], limit_s: float = 60.0) -> None:
    """Wait until a condition holds."""

    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.002)

    await asyncio.wait_for(wait(), limit_s)


class Coordinator:
    """What a client sees of the cluster; a test says what it answers."""

    def __init__(self) -> None:
        self.address = ""
        self.archives: dict[str, bytes] = {}
        self.joins: list[JoinClient] = []
        self.left: list[LeaveClient] = []
        self.reports: list[Report] = []
        self.observed: list[JobObserved] = []
        self.completions: list[Completion] = []
        self.failures: list[Failure] = []
        self.lost: list[Lost] = []
        self.replacement: dict[str, str] = {}  # told to who isn't alive
        self.is_deaf = False  # True: reports are refused as those of a dead client
        self._views: dict[ClientId, list[View]] = {}
        self.version = 0  # of the last view that was given
        self._incarnations: dict[ClientId, Incarnation] = {}
        self._changed = asyncio.Event()
        self.router = router = Router()
        router.add("POST", "/v1/commands", self._command, access=Access.OPEN)
        router.add("GET", "/v1/status", self._status, access=Access.OPEN)
        router.add("GET", "/v1/view", self._view, access=Access.OPEN)
        router.add("GET", "/v1/archives/{digest:text}", self._archive, access=Access.OPEN)
        self.server = HttpServer(router, Gate(KEY), Settings())

    def give(self, made: View, cid: int = 1) -> None:
        """Hand a view to a client with its next poll."""
        self.version += 1
        self._views.setdefault(ClientId(cid), []).append(
            dataclasses.replace(made, version=Slot(self.version))
        )
        self._changed.set()

    def declare_dead(self, cid: int = 1) -> None:
        """Refuse this incarnation from now on."""
        self._incarnations.pop(ClientId(cid), None)
        self._views.pop(ClientId(cid), None)
        self._changed.set()

    def done(self, job: int = 1) -> dict[int, Completion]:
        """Return the completions of a job by task."""
        return {one.tid: one for one in self.completions if one.job == job}

    def _command(self, request: Request) -> Response:
        command = decode_command(request.body)
        if isinstance(command, JoinClient):
            identities = list(dict.fromkeys([*(j.identity for j in self.joins), command.identity]))
            cid = ClientId(identities.index(command.identity) + 1)
            self.joins.append(command)
            self._incarnations[cid] = command.incarnation
            return json_response({"cid": cid, "cluster": "c", "liveness_ms": 5_000})
        if isinstance(command, LeaveClient):
            self.left.append(command)
        elif isinstance(command, JobObserved):
            self.observed.append(command)
        elif isinstance(command, Report):
            if self._incarnations.get(command.cid) != command.incarnation:
                return json_response({"error": "dead", "rejoin": True})
            self.reports.append(command)
            self.completions += command.completions
            self.failures += command.failures
            self.lost += command.lost
        return json_response({})

    async def _view(self, request: Request) -> Response:
        cid = ClientId(int(request.query["cid"]))
        for _ in range(2):
            if self._incarnations.get(cid) != request.query["incarnation"]:
                told = {"error": "unknown or dead", **self.replacement}
                return json_response(told, status=409)
            if self._views.get(cid):
                return Response(200, encode_view(self._views[cid].pop(0)))
            self._changed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.5)
        return Response(200, encode_view(view(version=int(request.query["since"]))))

    def _status(self, request: Request) -> Response:
        return json_response({"cluster": "c"})

    def _archive(self, request: Request) -> Response:
        archive = self.archives.get(request.text("digest"))
        if archive is None:
            return json_response({"error": "no such archive"}, status=404)
        return Response(200, archive)


class World:
    """One client, and the coordinator that it joined."""

    def __init__(self, coordinator: Coordinator, client: Client, data_dir: Path) -> None:
        self.coordinator = coordinator
        self.client = client
        self.data_dir = data_dir
        self.address = client.address or ""

    def program(self, text: str, *, digest: str = PROGRAM, name: str = "node.sh") -> None:
        """Put a node program where the client finds it prepared."""
        folder = self.data_dir / "programs" / digest
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")

    async def idle(self) -> None:
        """Wait until the only client has followed all views, with nothing left to do or tell."""

        def is_idle() -> bool:
            status = self.client.workbench.summary()
            is_level = status["version"] == self.coordinator.version
            return is_level and not any(status["tasks"].values()) and not (
                status["unreported"] or status["report_under_way"]
            )

        await until(is_idle)


@contextlib.asynccontextmanager
async def world(
    data_dir: Path,
    *,
    slots: int = 1,
    coordinator: Coordinator | None = None,
    surroundings: ClientSurroundings = REAL_CLIENT,
    **changed: Any,
) -> AsyncIterator[World]:
    """Run a client; unless one is given, with a coordinator of its own."""
    # The disk of whoever runs this may be nearly full.
    marks = {"free_refuse_bytes": 0, "free_stop_bytes": 0}
    settings = dataclasses.replace(Settings(), **{**marks, **changed})
    own = coordinator is None
    coordinator = coordinator or Coordinator()
    if own:
        coordinator.address = await coordinator.server.listen("127.0.0.1:0")
    data_dir.mkdir(parents=True, exist_ok=True)
    store = ResultStore.open(data_dir, now_ms=0, settings=settings)
    options = ClientOptions([coordinator.address], data_dir, KEY, slots)
    client = Client(options, settings, store, surroundings)
    server = HttpServer(
        client.router, Gate(KEY), settings, bugs=client.bugs
    )
    client.address = await server.listen("127.0.0.1:0")
    joined = len(coordinator.joins)
    try:
        await client.start()
        await until(lambda: len(coordinator.joins) > joined)
        yield World(coordinator, client, data_dir)
        if client.stopped.done():
            client.stopped.result()  # Raises what stopped it.
        assert client.bugs.count == 0
    finally:
        await server.close(grace_ms=0)
        await client.close()
        if own:
            await coordinator.server.close(grace_ms=0)


def view(
    *,
    version: int = 0,
    whole: bool = False,
    jobs: tuple[JobEntry, ...] = (),
    run: tuple[Assignment, ...] = (),
    stop: tuple[Stop, ...] = (),
    drop: tuple[Drop, ...] = (),
    drop_jobs: tuple[DropJob, ...] = (),
    clients: tuple[ClientAddress, ...] = (),
    node: str | None = None,
) -> View:
    """Return a view; jobs that it doesn't describe run `node` ('{"node":["node.sh"]}')."""
    if run and not jobs:
        command = node or '{"node":["node.sh"]}'
        jobs = tuple(JobEntry(job, PROGRAM, command) for job in {one.job for one in run})
    return View(Slot(version), whole, jobs, run, stop, drop, drop_jobs, clients)


def assignment(
    tid: int,
    *,
    job: int = 1,
    attempt: int = 1,
    name: str = "work",
    base: list[Any] | None = None,
    inputs: tuple[Input, ...] = (),
    keys: tuple[str, ...] = (),
    timeout_ms: int | None = None,
) -> Assignment:
    tids, prekeys = tuple(item.tid for item in inputs), tuple(item.key for item in inputs)
    spec = TaskSpec(name, json.dumps(base or []), tids, prekeys, keys, None, timeout_ms)
    return Assignment(JobId(job), TaskId(tid), attempt, spec, inputs, 1)


def consumed(tid: int, digest: str | None, *holders: int, key: str = "result") -> Input:
    return Input(TaskId(tid), key, digest, tuple(ClientId(cid) for cid in holders))


def shell_node(body: str, *, before: str = "", ready: str = '{"ready":{}}') -> str:
    """Return a node in shell; `body` has $id, $line, and answers with `echo`."""
    return f"""{before}
echo '{ready}'
while read -r line; do
id=${{line#*:}}; id=${{id%%,*}}
{body}
done
"""
