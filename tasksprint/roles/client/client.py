"""One client: follows its view, runs nodes, moves values, reports.

The workbench (execution/) decides; here its effects are carried out and what happens
is told to it. Four things wait on the outside world, each in a task of its own: the
poll of the view, the report under way, fetches, and programs that are being
prepared. Everything else happens in turns of the loop.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tasksprint.asking.leader import MEMBERS_HEADER, Leader
from tasksprint.coordination.commands import (
    Completion,
    Failure,
    Held,
    JoinClient,
    LeaveClient,
    Lost,
    NodesAttached,
    Report,
    encode_command,
)
from tasksprint.coordination.view import View, decode_view
from tasksprint.encoding import encode_json
from tasksprint.errors import (
    LocalProtocolError,
    Refused,
    RemoteProtocolError,
    SettingsError,
    TaskSprintError,
)
from tasksprint.execution.effects import (
    DropJobResults,
    DropResults,
    FetchInputs,
    HeldResult,
    KillNode,
    Manifest,
    NodeId,
    Note,
    PrepareProgram,
    ReleaseCopies,
    RunTask,
    SendReport,
    StartNode,
    StopNode,
    StoreResult,
)
from tasksprint.execution.workbench import LOST_UNREPORTED, Workbench
from tasksprint.ids import ClientId, Incarnation, JobId, TaskId
from tasksprint.net.bugs import Bugs
from tasksprint.net.http_messages import HttpResponse
from tasksprint.net.keys import ClusterKey
from tasksprint.process.attach import AttachedProgram, socket_path
from tasksprint.process.free_space import CHECK_S, FreeSpace, Level
from tasksprint.roles.client.fetching import Fetcher
from tasksprint.roles.client.held import HeldValues, ask
from tasksprint.roles.client.lives import ClientLives
from tasksprint.roles.client.nodes import NodeShell, attach_callbacks
from tasksprint.roles.client.recent_output import RecentOutput
from tasksprint.roles.client.runtimes import Runtimes
from tasksprint.roles.client.surroundings import REAL_CLIENT, ClientSurroundings
from tasksprint.roles.client.values import ValueCache
from tasksprint.roles.own_tasks import OwnTasks
from tasksprint.roles.steps import Step
from tasksprint.roles.waiters import Waiters
from tasksprint.settings import Settings
from tasksprint.store.result_records import FileValue, LogText, Result, ResultCommit, Value
from tasksprint.store.result_store import ResultStore
from tasksprint.store.writer import WriterThread

__all__ = ["Client", "ClientOptions"]

_log = logging.getLogger("tasksprint.client")

ResultT = TypeVar("ResultT")

_SWEEP_S = 5.0  # between two looks for unused programs
_ATTACHED_GRACE_S = 1.0
_REPORTS_PAUSE_S = 0.01
_REPORTS_PAUSES_MAX = 100
_CONFLICT = 409
_STALLS_MS = 500  # between two looks at what doesn't go on
# What a result that is offered when joining takes in the command, at most.
_HELD_BYTES_MAX = 112


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """What the command line says, and what was found out about the machine."""

    coordinators: list[str]
    data_dir: Path
    key: ClusterKey
    slots: int


class Client:
    """The wiring of one client process; `client_role.py` starts it."""

    def __init__(
        self,
        options: ClientOptions,
        settings: Settings,
        store: ResultStore,
        surroundings: ClientSurroundings = REAL_CLIENT,
    ) -> None:
        self.options = options
        self.settings = settings
        self.surroundings = surroundings
        self.now_us = surroundings.now_us
        self.loop = asyncio.get_running_loop()
        # Where other clients reach this one; None: nowhere. Set before `start`.
        self.address: str | None = None
        self.stopped: asyncio.Future[None] = self.loop.create_future()
        self.http = surroundings.new_http(options.key, settings)
        random = surroundings.new_random()
        self.leader = Leader(
            options.coordinators, self.http, random, self.now_ms, refuse=self._other_cluster
        )
        # Once a cluster took this client with this key, whoever says that the key is wrong is
        # no coordinator of it.
        self.leader.ends_by_wrong_key = store.get_fact("key") != options.key.fingerprint
        self._lives = ClientLives(options.data_dir, random)
        self.started_ms = self.now_ms()
        self.database_path = store.path
        self.free_space = FreeSpace(settings, options.data_dir)
        self.identity = store.identity
        self.leader.cluster = store.get_fact("cluster")
        for text in store.found_at_start:
            _log.warning("%s", text)
        held = [
            HeldResult(JobId(job), TaskId(tid), digest)
            for job, tid, digest in store.ask(lambda store: store.reader.held())
        ]
        self.held = HeldValues(self, store)
        self.writer: WriterThread[ResultStore, ResultCommit] = surroundings.new_writer(
            store, on_failure=self.fail, name="results"
        )
        self.workbench = Workbench(
            cid=ClientId(0),
            incarnation=Incarnation(""),
            slots=options.slots,
            settings=settings,
            now_ms=self.started_ms,
            held=held,
        )
        self.bugs = Bugs()
        self.step = Step(self.fail)
        self.values = ValueCache.of(settings, self._load_value, self.held.discard)
        self.programs = surroundings.new_programs(self)
        self.fetcher = Fetcher(self)
        self.addresses: dict[ClientId, str | None] = {}
        self.nodes: dict[NodeId, NodeShell] = {}
        # By the identity of the hello: two nodes may say the same.
        self.attaching: dict[int, NodeShell] = {}
        self._attach_server = surroundings.new_attach_server(
            socket_path(options.data_dir),
            on_hello=lambda hello: attach_callbacks(self, hello),
            on_attached=self._attached,
        )
        self.tasks = OwnTasks(self.fail)
        self.background = self.tasks.background
        self._joined = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms: int | None = None
        self._in_turn = False
        self._report: SendReport | None = None  # the last one that was ordered
        self._report_given = asyncio.Event()
        self._attached_changed = asyncio.Event()
        self.runtimes = Runtimes(self)
        self.recent_output = RecentOutput(settings.recent_output_bytes_max)
        self._stalls_told = {"stalls", "runs"}  # A former process here may have told some.
        self._stalls_due_ms = 0
        self._results: list[tuple[Result, tuple[JobId, TaskId, int]]] = []
        self._logs: list[LogText] = []
        self._lines: dict[NodeShell, list[bytes]] = {}
        self._storing = False
        self._unstored_bytes = 0  # of values in memory that no transaction has kept yet
        self._is_holding = False  # nodes aren't read: too much waits for the disk
        self._write_waiters: Waiters[None] = Waiters()
        self.is_over = False  # The writer takes nothing more.

    @property
    def is_joined(self) -> bool:
        """Whether the cluster counts on this client."""
        return self._joined.is_set()

    @property
    def uptime_ms(self) -> int:
        """How long this process has run."""
        return self.now_ms() - self.started_ms

    # --- starting and stopping ---

    def read(
        self, function: Callable[..., ResultT], *arguments: Any
    ) -> asyncio.Future[ResultT]:
        """Call `function(store, *arguments)` for somebody else, on the writer's thread.

        Raises:
            Refused: This client stops.
        """
        if self.is_over:
            raise Refused(f"client {self.workbench.cid} stops", status=503)
        return self.writer.run(ask, function, *arguments)

    async def start(self) -> None:
        """Begin: join as soon as a coordinator leads, then poll and report."""
        await self._attach_server.start()
        self.background(self._follow())
        self.background(self._send_reports())
        self.background(self._tell_attached())
        self.background(self._watch_disk())
        self.background(self._sweep())

    async def close(self) -> None:
        """Leave the cluster if it still answers, end the nodes, close the files."""
        self._in_turn = True  # No more turns: nodes that end now must not be started anew.
        await self.tasks.close()
        attached = [
            node.program
            for node in self.nodes.values()
            if isinstance(node.program, AttachedProgram)
        ]
        for node in list(self.nodes.values()):
            if node.program not in attached:
                node.kill("its client stops")
        if self._joined.is_set():
            leave = LeaveClient(self.workbench.cid, self.workbench.incarnation)
            try:
                await self.leader.request(
                    "POST", "/v1/commands", body=encode_command(leave), give_up_ms=500
                )
            except TaskSprintError as error:
                _log.warning("cid=%d left without a word: %s", self.workbench.cid, error)
        # Somebody started these by hand: they are asked first, and may end what they do.
        await asyncio.gather(
            *[
                program.stop(
                    grace_s=_ATTACHED_GRACE_S,
                    terminate_s=_ATTACHED_GRACE_S,
                    why="its client stops",
                )
                for program in attached
            ]
        )
        await self._attach_server.close()
        if self._timer is not None:
            self._timer.cancel()
        await self.http.close()
        self.is_over = True
        await self.writer.close()

    def stop(self) -> None:
        """Stop in good order."""
        if not self.stopped.done():
            self.stopped.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Stop this client: its disk or its own code failed."""
        if not self.stopped.done():
            self.stopped.set_exception(error)

    def now_ms(self) -> int:
        """Return elapsed milliseconds; the same clock as microseconds of run times."""
        return self.now_us() // 1_000

    # --- the coordinator ---

    async def _join(self) -> None:
        """Join, or join anew: under a new incarnation, with what the store holds."""
        incarnation = self._lives.begin(Incarnation(self.surroundings.new_incarnation()))
        held = self.workbench.held_results()
        most = self.settings.command_bytes_max // _HELD_BYTES_MAX
        if len(held) > most:
            # The latest: those not offered count as lost, and are made again if needed.
            _log.warning("holds %d results, offers the last %d of them", len(held), most)
            held = held[-most:]
        command = JoinClient(
            identity=self.identity,
            incarnation=incarnation,
            address=self.address,
            hostname=socket.gethostname(),
            slots=self.options.slots,
            held=tuple(Held(job, tid, digest) for job, tid, digest in held),
        )
        body = encode_command(command)
        cluster, cid = await self.leader.ask("POST", "/v1/commands", _read_joined, body=body)
        former, facts = self.leader.cluster, {"cluster": cluster}
        if cluster != former and former is not None:
            # Ours has gone on under this name: others of it aren't listened to any more.
            _log.warning("cluster %s went on as cluster %s", former, cluster)
        if self.leader.ends_by_wrong_key:
            self.leader.ends_by_wrong_key = False
            facts["key"] = self.options.key.fingerprint
        if cluster != former or len(facts) > 1:
            self.leader.cluster = cluster
            await self.writer.run(_set_facts, facts)
        self.workbench.reset(cid, incarnation, self.now_ms())
        self._joined.set()
        self._lives.joined(self.now_ms())
        self.attached_changed()
        _log.info("cid=%d joined cluster %s with %d nodes", cid, cluster, self.options.slots)
        self.turn()

    def _find_stalls(self) -> dict[str, str]:
        """Return what to say of jobs that don't go on here, and of tasks that run for long.

        Looked for, and said, now and then only: a busy client polls a thousand times a second.
        """
        now_ms = self.now_ms()
        if now_ms < self._stalls_due_ms:
            return {}
        self._stalls_due_ms = now_ms + _STALLS_MS
        found = {"stalls": self.workbench.stalls(), "runs": self.workbench.long_runs(now_ms)}
        # What was said the last time and isn't so any more is taken back: `[]`.
        told, self._stalls_told = self._stalls_told, {name for name in found if found[name]}
        return {
            name: encode_json(found[name]).decode()
            for name in found
            if found[name] or name in told
        }

    def _other_cluster(self, cluster: str) -> SettingsError:
        return SettingsError(
            f"data directory {str(self.options.data_dir)!r} belongs to a client of cluster "
            f"{self.leader.cluster!r}, this is cluster {cluster!r}",
            hint="give this client its own --data-dir",
        )

    async def _follow(self) -> None:
        """Poll the view for ever; join first, and anew when this incarnation isn't known."""
        await self._join()
        workbench = self.workbench
        wait_ms = self.settings.view_poll_max_ms
        while True:
            query: dict[str, str | int] = {
                "cid": workbench.cid,
                "incarnation": workbench.incarnation,
                "since": workbench.version,
                "wait_ms": wait_ms,
            }
            query.update(self._find_stalls())
            if (complaint := self.leader.complaint) is not None:
                query["complaint"] = complaint
            view, members = await self.leader.ask(
                "GET", "/v1/view", _read_view, query=query, wait_ms=wait_ms
            )
            if not isinstance(view, View):
                self._joined.clear()
                self._lives.give_way(workbench.cid, view)
                _log.warning("cid=%d was declared dead, joins anew", workbench.cid)
                await self._lives.pause(self.now_ms())
                await self._join()
                continue
            if members:
                self.leader.learn(members)
            for client in view.clients:
                self.addresses[client.cid] = client.address
            workbench.view_changed(view, self.now_ms())
            self.turn()

    async def _send_reports(self) -> None:
        """Bring each report to the coordinator, the same bytes until it is applied."""
        while True:
            await self._report_given.wait()
            self._report_given.clear()
            effect = self._report
            if effect is None:
                continue
            body = await self._encode_report(effect)
            reply = await self.leader.ask("POST", "/v1/commands", _read_object, body=body)
            if "error" in reply:
                # Dead, or of an older incarnation: the poll learns it too, and joins anew.
                _log.warning(
                    "cid=%d report %d refused: %s",
                    self.workbench.cid,
                    effect.request,
                    reply["error"],
                )
                continue
            self.workbench.report_acknowledged(effect.incarnation, effect.request)
            self.turn()

    def attached_changed(self) -> None:
        """Note that nodes were attached, or that some are gone."""
        self._attached_changed.set()

    async def _tell_attached(self) -> None:
        """Tell the coordinator which nodes are attached here, each time that this changes."""
        told: tuple[Incarnation, dict[str, int]] = (Incarnation(""), {})
        request = 0
        while True:
            await self._attached_changed.wait()
            self._attached_changed.clear()
            await self._joined.wait()
            # What ran on a node that is gone has failed: that counts only if it is told first.
            for _ in range(_REPORTS_PAUSES_MAX):
                if not self.workbench.has_unreported:
                    break
                await asyncio.sleep(_REPORTS_PAUSE_S)
            incarnation, nodes = self.workbench.incarnation, self.workbench.attached_nodes()
            if told == (incarnation, nodes) or (told[0] != incarnation and not nodes):
                continue
            request += 1
            command = NodesAttached(
                self.workbench.cid, incarnation, request, tuple(nodes.items())
            )
            body = encode_command(command)
            reply = await self.leader.ask("POST", "/v1/commands", _read_object, body=body)
            if "error" not in reply:
                told = (incarnation, nodes)
            else:  # If it isn't known any more, it joins anew, and tells then.
                _log.warning(
                    "cid=%d its attached nodes aren't taken: %s", command.cid, reply["error"]
                )

    async def _watch_disk(self) -> None:
        free = self.free_space
        while True:
            before = free.level
            has_changed = free.found(*await self.surroundings.measure(free.directory))
            if has_changed and before is Level.PLENTY and free.level is Level.LOW:
                _log.warning("the disk fills: %s", free.describe())  # (The workbench says more.)
            if free.level is Level.SPENT:
                self.fail(free.spent("client"))
            self.workbench.disk_low(free.level >= Level.SHORT)
            self.turn()
            await asyncio.sleep(CHECK_S)

    async def _sweep(self) -> None:
        """Look for unused programs, now and then; deleting one may take long."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            await self.programs.sweep()

    # --- turns ---

    def turn(self) -> None:
        """Carry out what the workbench wants, until it wants nothing more."""
        if self._in_turn:
            return
        self._in_turn = True
        try:
            while effects := self.workbench.effects(self.now_us()):
                for effect in effects:
                    self._carry_out(effect)
            self._flush_lines()
            self._store()
            if self._is_holding and not self._is_full:
                self._hold_nodes(False)
            self._arm_timer()
        except Exception as error:  # whatever it is, this client must stop
            self.fail(error)
        finally:
            self._in_turn = False

    def _arm_timer(self) -> None:
        deadline_ms = self.workbench.deadline_ms
        if deadline_ms == self._timer_ms and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_ms = deadline_ms
        if deadline_ms is not None:
            delay_s = max(deadline_ms - self.now_ms(), 0) / 1000
            self._timer = self.loop.call_later(delay_s, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self.workbench.tick(self.now_ms())
        self.turn()

    def _carry_out(self, effect: object) -> None:
        match effect:
            case StoreResult():
                self._keep_result(effect)
            case RunTask():
                self._run_task(effect)
            case SendReport():
                self._report = effect
                self._report_given.set()
            case FetchInputs():
                self.fetcher.fetch(effect)
            case ReleaseCopies(copies):
                self.values.release_copies(copies)
            case StartNode():
                self.background(self._start_node(effect))
            case StopNode(node):
                self._stop_node(node)
            case KillNode(node, why):
                if (shell := self.nodes.get(node)) is not None:
                    shell.kill(why)
            case PrepareProgram(program, command):
                self.background(self._prepare(program, command))
            case DropResults(job, tids):
                self._drop(job, tids)
            case DropJobResults(job, keep):
                self._drop_job(job, keep)
            case Note(text, is_warning):
                _log.log(logging.WARNING if is_warning else logging.INFO, "%s", text)
            case _:
                raise LocalProtocolError(f"no way to carry out {effect!r}")

    # --- values ---

    def _keep_result(self, effect: StoreResult) -> None:
        shell = self.nodes[effect.node]
        values = shell.values.pop(effect.id)
        kept: list[Value] = []
        for (key, kind, content), (_, _, _, digest) in zip(values, effect.manifest, strict=True):
            kept.append(Value(key, kind, content, digest))
        manifest = encode_json(effect.manifest)
        result = Result(effect.job, effect.tid, effect.digest, manifest, tuple(kept))
        in_memory = [item for item in values if isinstance(item[2], bytes)]
        self.values.put(effect.job, effect.tid, effect.digest, in_memory)  # type: ignore[arg-type]
        self._results.append((result, (effect.job, effect.tid, effect.attempt)))
        self._unstored_bytes += _bytes_in_memory(result)
        if self._is_full:
            self._hold_nodes(True)

    @property
    def _is_full(self) -> bool:
        return self._unstored_bytes > self.settings.value_cache_bytes_max

    def _hold_nodes(self, is_holding: bool) -> None:
        """Read nothing more from nodes that are faster than the disk, or read them again."""
        self._is_holding = is_holding
        for shell in self.nodes.values():
            shell.hold("unstored", is_held=is_holding)

    def keep_log(self, text: LogText) -> None:
        """Keep what a node printed."""
        self.recent_output.add(text)
        self._logs.append(text)
        self._store()

    def _store(self) -> None:
        """Write what waits, in one transaction, unless one is under way."""
        if self._storing or not (self._results or self._logs):
            return
        results, self._results = self._results, []
        logs, self._logs = self._logs, []
        commit = ResultCommit(tuple([result for result, _ in results]), tuple(logs))
        self._storing = True
        self.writer.post(commit, lambda: self._stored(results))

    def _stored(self, results: list[tuple[Result, tuple[JobId, TaskId, int]]]) -> None:
        self._storing = False
        self._write_waiters.wake_all()
        names = [name for _, name in results]
        for result, (job, tid, _) in results:
            self.values.stored(job, tid, result.digest)
            self._unstored_bytes -= _bytes_in_memory(result)
        self.workbench.results_stored(names)
        self.turn()

    def _drop(self, job: JobId, tids: tuple[TaskId, ...]) -> None:
        self.values.drop(job, tids)
        self._discard_unwritten(lambda name: name[0] == job and name[1] in tids)
        future = self.writer.run(lambda store: store.drop_tasks(job, tids))
        future.add_done_callback(self._check_done)

    def _drop_job(self, job: JobId, keep: tuple[TaskId, ...]) -> None:
        self.values.drop_job(job, keep)
        self._discard_unwritten(lambda name: name[0] == job and name[1] not in keep)
        future = self.writer.run(_drop_job, job, keep)
        future.add_done_callback(self._check_done)

    def _discard_unwritten(self, is_dropped: Callable[[tuple[JobId, TaskId, int]], bool]) -> None:
        """Forget results that wait for a transaction."""
        kept = []
        for result, name in self._results:
            if not is_dropped(name):
                kept.append((result, name))
                continue
            self._unstored_bytes -= _bytes_in_memory(result)
            for value in result.values:
                if isinstance(value.content, FileValue):
                    self.held.discard(value.content)
        self._results = kept

    def _check_done(self, future: asyncio.Future[None]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self.fail(error)

    # --- reports ---

    async def _encode_report(self, effect: SendReport) -> bytes:
        completions: list[Completion] = []
        lost = [Lost(job, tid) for job, tid in effect.lost]
        failures = [
            Failure(one.job, one.tid, one.attempt, one.error, one.fatal, dict(one.detail))
            for one in effect.failures
        ]
        for one in effect.completions:
            inline: dict[str, tuple[str, str]] = {}
            if one.inline:
                found = self.values.inline(one)
                if found is None:
                    found = await self.values.load_inline(one)
                if found is None:  # The store lost it since: what can't be shown can't count.
                    failures.append(
                        Failure(one.job, one.tid, one.attempt, LOST_UNREPORTED, False, {})
                    )
                    continue
                inline = found
            completions.append(
                Completion(
                    one.job,
                    one.tid,
                    one.attempt,
                    one.digest,
                    one.size_bytes,
                    one.inputs_digest,
                    one.run_us,
                    inline,
                )
            )
        return encode_command(
            Report(
                cid=self.workbench.cid,
                incarnation=effect.incarnation,
                request=effect.request,
                acknowledged=effect.request,
                completions=tuple(completions),
                failures=tuple(failures),
                lost=tuple(lost),
            )
        )

    # --- nodes ---

    def _run_task(self, effect: RunTask) -> None:
        shell = self.nodes[effect.node]
        inputs = self.values.inputs(effect)
        if inputs is None:
            self.background(self._load_and_run(shell, effect))
        else:
            shell.run(effect, inputs)

    async def _load_and_run(self, shell: NodeShell, effect: RunTask) -> None:
        """Read inputs that have left memory, then run the task."""
        job = effect.assignment.job
        seen = self.held.seen_inputs(effect)
        inputs, missing = await self.values.load_inputs(effect)
        if missing:
            digests = {tid: digest for tid, _, digest in effect.inputs}
            refused: dict[TaskId, Manifest | None] = {}
            for tid in missing:
                found = await self.held.manifest(job, tid, digests[tid])
                now = self.held.seen(job, tid)
                is_new = now is not None and now is not seen[tid]  # See `seen`.
                refused[tid] = now.manifest if now is not None and is_new else found
            self.workbench.run_refused(effect.node, effect.id, refused, self.now_ms())
        elif self.nodes.get(effect.node) is shell:
            shell.run(effect, inputs, seen)
        self.turn()

    async def _load_value(
        self, job: JobId, tid: TaskId, digest: str, key: str
    ) -> tuple[str, bytes | FileValue] | None:
        # A value that came from a file was never in memory, and its result may still wait
        # for the transaction under way: then the one after that has it.
        while any(name[:2] == (job, tid) for _, name in self._results):
            await self._write_waiters.wait(None)
        return await self.held.load(job, tid, digest, key)

    def write_soon(self, shell: NodeShell, data: bytes) -> None:
        """Write to a node at the end of this turn, everything at once."""
        self._lines.setdefault(shell, []).append(data)
        if not self._in_turn:
            self._flush_lines()

    def _flush_lines(self) -> None:
        if self._lines:
            lines, self._lines = self._lines, {}
            for shell, pieces in lines.items():
                if shell.program is not None:
                    shell.program.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    async def _start_node(self, effect: StartNode) -> None:
        shell = NodeShell(self, effect.node)
        self.nodes[effect.node] = shell
        try:
            program = await self.surroundings.start_node(
                self.programs.directory(effect.program),
                effect.command,
                on_data=shell.on_data,
                on_exit=shell.on_exit,
                on_stderr=shell.on_stderr,
            )
            shell.begin(program)
        except (TaskSprintError, OSError) as error:
            self.node_ended(shell)
            self.workbench.node_exited(effect.node, str(error), {}, self.now_ms())
            self.turn()

    def _stop_node(self, node: NodeId) -> None:
        shell = self.nodes.get(node)
        if shell is not None and shell.program is not None:
            self.background(shell.program.stop())

    def node_ended(self, shell: NodeShell) -> None:
        """Forget a node whose process has ended."""
        self.nodes.pop(shell.node, None)
        self._lines.pop(shell, None)

    def _attached(self, program: AttachedProgram) -> None:
        shell = self.attaching.pop(id(program.hello))
        self.nodes[shell.node] = shell
        shell.begin(program)

    async def _prepare(self, program: str, command: str) -> None:
        try:
            await self.programs.prepare(program, command)
        except (TaskSprintError, OSError) as error:
            self.workbench.program_failed(program, str(error), self.now_ms())
        else:
            self.workbench.program_ready(program)
        self.turn()


def _set_facts(store: ResultStore, facts: dict[str, str]) -> None:
    for name, value in facts.items():
        store.set_fact(name, value)


def _read_object(response: HttpResponse) -> dict[str, Any]:
    return response.checked().json_object()


def _read_joined(response: HttpResponse) -> tuple[str, ClientId]:
    """Return the cluster and the number that a join was answered with."""
    reply = _read_object(response)
    if "error" in reply:
        raise SettingsError(f"the cluster refuses this client: {reply['error']}")
    cluster, number = reply.get("cluster"), reply.get("cid")
    if not isinstance(cluster, str) or type(number) is not int:
        raise RemoteProtocolError(f"says {reply!r:.80} to a join")
    return cluster, ClientId(number)


def _read_view(response: HttpResponse) -> tuple[View | dict[str, Any], list[str]]:
    """Return a view, and where the coordinators are; or what is said to who isn't alive."""
    if response.status == _CONFLICT:
        return response.json_object(), []
    members = response.headers.get(MEMBERS_HEADER, "")
    return decode_view(response.checked().body), members.split(",") if members else []


def _bytes_in_memory(result: Result) -> int:
    return sum([len(one.content) for one in result.values if isinstance(one.content, bytes)])


def _drop_job(store: ResultStore, job: JobId, keep: tuple[TaskId, ...]) -> None:
    store.drop_job(job, keep=keep, with_logs=False)
