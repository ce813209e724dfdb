"""The nodes of a client; it starts some, and people attach others.

Carries out `PrepareProgram`, `StartNode`, `RunTask`, `StopNode` and `KillNode`. One node by
itself stands in node_shell.py.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from tasksprint.errors import TaskSprintError
from tasksprint.execution.effects import Manifest, NodeId, RunTask, StartNode
from tasksprint.execution.workbench import Workbench
from tasksprint.ids import TaskId
from tasksprint.process.attach import AttachedProcess, Callbacks, Hello, socket_path
from tasksprint.roles.client.durable import Durable
from tasksprint.roles.client.held import HeldValues
from tasksprint.roles.client.node_shell import NodeShell
from tasksprint.roles.client.ports import Turns
from tasksprint.roles.client.programs import ClientPrograms
from tasksprint.roles.client.recent_output import RecentOutput
from tasksprint.roles.client.reporting import Reporting
from tasksprint.roles.client.surroundings import ClientSurroundings
from tasksprint.roles.client.values import NodeValues
from tasksprint.settings import RULES, Settings
from tasksprint.store.result_records import LogText

__all__ = ["Nodes"]

_ATTACHED_GRACE_S = 1.0
_STOPS = "its client stops"


class Nodes:
    """The nodes of one client."""

    def __init__(
        self,
        turns: Turns,
        workbench: Workbench,
        held: HeldValues,
        durable: Durable,
        reporting: Reporting,
        programs: ClientPrograms,
        settings: Settings,
        surroundings: ClientSurroundings,
        data_dir: Path,
    ) -> None:
        self._turns = turns
        self._workbench = workbench
        self._held = held
        self._durable = durable
        self._programs = programs
        self._settings = settings
        self._start_program = surroundings.start_node
        self.attached_changed = reporting.attached_changed
        self.tell_runtime = reporting.tell_runtime
        self.recent_output = RecentOutput(settings.recent_output_bytes_max)
        self.shells: dict[NodeId, NodeShell] = {}
        # By the identity of the hello: two nodes may say the same.
        self.attaching: dict[int, NodeShell] = {}
        self._attach_server = surroundings.new_attach_server(
            socket_path(data_dir), on_hello=self.take_hello, on_attached=self._attached
        )
        self._lines: dict[NodeId, list[bytes]] = {}
        self._is_holding = False  # nodes aren't read: too much waits for the disk

    async def open(self) -> None:
        """Let people attach nodes."""
        await self._attach_server.start()

    def kill_own(self) -> None:
        """End the nodes that this client started, as it stops."""
        for node in list(self.shells.values()):
            if not isinstance(node.program, AttachedProcess):
                node.kill(_STOPS)

    async def close(self) -> None:
        """End the attached nodes, too."""
        # Somebody started these by hand: they are asked first, and may end their work.
        programs = [node.program for node in self.shells.values()]
        await asyncio.gather(
            *[
                program.stop(
                    grace_s=_ATTACHED_GRACE_S, terminate_s=_ATTACHED_GRACE_S, why=_STOPS
                )
                for program in programs
                if isinstance(program, AttachedProcess)
            ]
        )
        await self._attach_server.close()

    # --- orders of the workbench ---

    def prepare(self, program: str, command: str) -> None:
        """Make a job's program ready to be started."""
        self._turns.background(self._prepare(program, command))

    async def _prepare(self, program: str, command: str) -> None:
        try:
            await self._programs.prepare(program, command)
        except (TaskSprintError, OSError) as error:
            self._workbench.program_failed(program, str(error), self._turns.now_ms())
        else:
            self._workbench.program_ready(program)
        self._turns.turn()

    def start(self, effect: StartNode) -> None:
        """Start a node."""
        self._turns.background(self._start(effect))

    async def _start(self, effect: StartNode) -> None:
        shell = self._new_shell(effect.node)
        self.shells[effect.node] = shell
        try:
            program = await self._start_program(
                self._programs.directory(effect.program),
                effect.command,
                on_data=shell.on_data,
                on_exit=shell.on_exit,
                on_stderr=shell.on_stderr,
            )
            shell.begin(program)
        except (TaskSprintError, OSError) as error:
            self.ended(effect.node)
            self._workbench.node_exited(effect.node, str(error), {}, self._turns.now_ms())
            self._turns.turn()

    def stop(self, node: NodeId) -> None:
        """Ask a node to end."""
        shell = self.shells.get(node)
        if shell is not None and shell.program is not None:
            self._turns.background(shell.program.stop())

    def kill(self, node: NodeId, why: str) -> None:
        """End a node now."""
        if (shell := self.shells.get(node)) is not None:
            shell.kill(why)

    def run(self, effect: RunTask) -> None:
        """Run a task on a node."""
        shell = self.shells[effect.node]
        inputs = self._durable.values.inputs(effect)
        if inputs is None:
            self._turns.background(self._load_and_run(shell, effect))
        else:
            shell.run(effect, inputs)

    async def _load_and_run(self, shell: NodeShell, effect: RunTask) -> None:
        """Read inputs that have left memory, then run the task."""
        job = effect.assignment.job
        seen = self._held.seen_inputs(effect)
        inputs, missing = await self._durable.values.load_inputs(effect)
        if missing:
            digests = {tid: digest for tid, _, digest in effect.inputs}
            refused: dict[TaskId, Manifest | None] = {}
            for tid in missing:
                found = await self._held.manifest(job, tid, digests[tid])
                now = self._held.seen(job, tid)
                is_new = now is not None and now is not seen[tid]  # See `seen`.
                refused[tid] = now.manifest if now is not None and is_new else found
            now_ms = self._turns.now_ms()
            self._workbench.run_refused(effect.node, effect.id, refused, now_ms)
        elif self.shells.get(effect.node) is shell:
            shell.run(effect, inputs, seen)
        self._turns.turn()

    def take_values(self, node: NodeId, task: int) -> NodeValues:
        """Take the values that a node answered a task with."""
        return self.shells[node].values.pop(task)

    # --- for each node ---

    def write_soon(self, node: NodeId, data: bytes) -> None:
        """Write to a node at the end of this turn, everything at once."""
        self._lines.setdefault(node, []).append(data)

    def write(self) -> None:
        """Write the nodes' waiting input."""
        if self._lines:
            lines, self._lines = self._lines, {}
            for node, pieces in lines.items():
                shell = self.shells.get(node)
                if shell is not None and shell.program is not None:
                    shell.program.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def hold(self) -> None:
        """Read nothing more from nodes while they are faster than the disk."""
        is_full = self._durable.is_full
        if is_full or self._is_holding:
            self._is_holding = is_full
            for shell in self.shells.values():
                shell.hold("unstored", is_held=is_full)

    def keep_log(self, text: LogText) -> None:
        """Keep a node's output."""
        self.recent_output.add(text)
        self._durable.keep_log(text)

    def keep_output(self) -> None:
        """Keep all nodes' output so far with the tasks that they run."""
        for shell in list(self.shells.values()):
            shell.keep_output()

    def ended(self, node: NodeId) -> None:
        """Forget a node; its process has ended."""
        self.shells.pop(node, None)
        self._lines.pop(node, None)

    def _new_shell(self, node: NodeId, attached: str | None = None) -> NodeShell:
        return NodeShell(
            self, self._turns, self._workbench, self._held, self._settings, node, attached
        )

    # --- attached nodes ---

    def take_hello(self, hello: Hello) -> Callbacks | str:
        """Return the object that an attaching node is connected to, or the reason to refuse."""
        # Nodes that aren't ready count, too: if many come at once, none serves so far.
        shells = (*self.shells.values(), *self.attaching.values())
        names = {shell.attached for shell in shells if shell.attached is not None}
        if hello.name not in names and len(names) >= RULES.attached_names_max:
            return f"nodes of {len(names)} names are attached to this client, which is the most"
        shell = self._new_shell(self._workbench.next_node(), hello.name)
        self.attaching[id(hello)] = shell

        def left() -> None:
            del self.attaching[id(hello)]

        return Callbacks(on_data=shell.on_data, on_exit=shell.on_exit, on_left=left)

    def _attached(self, program: AttachedProcess) -> None:
        shell = self.attaching.pop(id(program.hello))
        self.shells[shell.node] = shell
        shell.begin(program)
