"""The client's nodes as processes: their pipes, their replies, their output.

Carries out `StartNode`, `RunTask`, `StopNode` and `KillNode`, and tells the workbench
what the nodes say. The values of a reply wait here until the workbench has said
whether they count.

What a node prints is kept for the attempt that printed it. A node answers after it
has printed, so what is in the pipe of its stderr when an answer arrives belongs to
that answer; the SDK holds no answer back behind a task that printed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasksprint.bounded_text import keep_end
from tasksprint.encoding import value_digest
from tasksprint.errors import NodeFailed, RemoteProtocolError
from tasksprint.execution.effects import Manifest, NodeId, Reply, RunTask, TaskError
from tasksprint.process.attach import AttachedProgram, Callbacks, Hello
from tasksprint.process.program import ExitReason, Program
from tasksprint.protocol.node_lines import (
    FilePath,
    NodeFailure,
    NodeMessage,
    NodeReader,
    NodeReady,
    NodeReply,
)
from tasksprint.roles.client_values import CachedValue, task_buffers
from tasksprint.store.result_records import LogText, StagedValue
from tasksprint.store.staging import stage_file

if TYPE_CHECKING:
    from tasksprint.roles.client import Client

__all__ = ["NodeShell", "NodeValues", "attach_callbacks"]

_log = logging.getLogger("tasksprint.client")

# Output that waits to be kept with its attempt; more is kept in pieces.
_OUTPUT_BYTES_MAX = 64 * 1024

# (key, kind, content) of each value of one reply.
NodeValues = tuple[tuple[str, str, "bytes | StagedValue"], ...]


class NodeShell:
    """One node: a process that this client started, or one that attached itself."""

    def __init__(self, client: Client, node: NodeId, attached: str | None = None) -> None:
        self.node = node
        self.program: Program | AttachedProgram | None = None
        self.values: dict[int, NodeValues] = {}  # of replies that the workbench judges now
        self._client = client
        self._attached = attached
        self._reader = NodeReader(
            who=f"node {node}",
            line_bytes_max=client.settings.line_bytes_max,
            value_bytes_max=client.settings.value_bytes_max,
        )
        self._frames = False
        self._pipe: dict[int, RunTask] = {}  # written and not answered, in order
        self._garbage = ""  # what it said that no node may say
        self._output = bytearray()
        self._tail = b""  # the end of what the running task printed, of what is kept already
        self._early = bytearray()
        # Messages behind one whose values are still being read from a file.
        self._held_back: list[NodeMessage] | None = None
        self._exit: ExitReason | None = None  # it ended, and files of its are being read

    def begin(self, program: Program | AttachedProgram) -> None:
        """Take the process, and what it has said already."""
        self.program = program
        if self._early:
            early, self._early = bytes(self._early), bytearray()
            self.on_data(early)

    # --- orders ---

    def run(self, effect: RunTask, inputs: Sequence[CachedValue]) -> None:
        """Write a task's line."""
        assert self.program is not None
        self._pipe[effect.id] = effect
        buffers = task_buffers(effect, inputs, frames=self._frames)
        if len(buffers) == 1:
            self._client.write_soon(self, buffers[0])
        else:
            self._client.write_soon(self, b"".join(buffers))

    def kill(self, why: str) -> None:
        """End it now."""
        if self.program is not None:
            self.program.kill(why)

    # --- what it says ---

    def on_data(self, data: bytes) -> None:
        if self._garbage:
            return
        if self.program is None:  # It spoke before whoever started it got to know it.
            self._early += data
            return
        try:
            messages = self._reader.feed(data)
        except RemoteProtocolError as error:
            self._garbage = str(error)
            self.kill(f"it broke the protocol: {error}")
            return
        if messages:
            self._take(messages)

    def _take(self, messages: list[NodeMessage]) -> None:
        if self._held_back is not None:
            self._held_back.extend(messages)
            return
        replies: list[Reply] = []
        for index, message in enumerate(messages):
            if isinstance(message, NodeReply):
                if any(isinstance(content, FilePath) for _, _, content in message.values):
                    self._held_back = messages[index + 1 :]
                    self._client.background(self._read_files(message))
                    break
                replies.append(self._reply(message))
            elif isinstance(message, NodeFailure):
                error = TaskError(message.error, message.traceback, message.retry)
                replies.append(Reply(message.id, error))
            else:
                self._ready(message)
        if replies:
            self._tell(replies)

    def _ready(self, message: NodeReady) -> None:
        self._frames = message.frames
        workbench = self._client.workbench
        now_ms = self._client.now_ms()
        if self._attached is None:
            workbench.node_ready(self.node, message.frames, message.window, now_ms)
        else:
            workbench.node_attached(
                self.node, self._attached, message.frames, message.window, now_ms
            )
            self._client.attached_changed()
        self._client.turn()

    def _reply(self, message: NodeReply) -> Reply:
        manifest: Manifest = tuple(
            [
                (key, kind, len(data), value_digest(data))  # type: ignore[arg-type]
                for key, kind, data in message.values
            ]
        )
        # Of two answers to one task the first counts; the second is the node's end.
        self.values.setdefault(message.id, message.values)  # type: ignore[arg-type]
        return Reply(message.id, manifest)

    def _tell(self, replies: list[Reply]) -> None:
        if isinstance(self.program, Program):
            self.program.drain_stderr()
            last = replies[-1]
            self._keep_output(self._pipe.get(last.id))
            if self._tail:
                if isinstance(last.outcome, TaskError):
                    text = self._tail.decode(errors="replace")
                    replies[-1] = Reply(last.id, replace(last.outcome, stderr=text))
                self._tail = b""
        for reply in replies:
            self._pipe.pop(reply.id, None)
        self._client.workbench.node_replied(self.node, replies, self._client.now_us())
        self._client.turn()
        for values in self.values.values():
            self._abandon(values)  # They didn't count.
        self.values.clear()

    async def _read_files(self, message: NodeReply) -> None:
        """Bring the files that a reply names into the store, then go on."""
        values: list[tuple[str, str, bytes | StagedValue]] = []
        error: TaskError | None = None
        for key, kind, content in message.values:
            if not isinstance(content, FilePath):
                values.append((key, kind, content))
                continue
            try:
                staged = await stage_file(
                    self._client.writer,
                    Path(content.path),
                    bytes_max=self._client.settings.value_bytes_max,
                )
                values.append((key, kind, staged))
            except NodeFailed as cause:
                # What can't be read now may be there at the next attempt.
                may_pass = isinstance(cause.__cause__, OSError)
                error = TaskError(f"{cause}; it was named under key {key!r}", None, may_pass)
                break
        reply: Reply
        if error is not None:
            self._abandon(values)
            reply = Reply(message.id, error)
        else:
            manifest = []
            for key, kind, kept in values:
                if isinstance(kept, StagedValue):
                    manifest.append((key, kind, kept.size, kept.digest))
                else:
                    manifest.append((key, kind, len(kept), value_digest(kept)))
            self.values[message.id] = tuple(values)
            reply = Reply(message.id, tuple(manifest))
        self._tell([reply])
        held_back, self._held_back = self._held_back, None
        if held_back:
            self._take(held_back)
        if self._exit is not None and self._held_back is None:
            self.on_exit(self._exit)

    def _abandon(self, values: Iterable[tuple[str, str, bytes | StagedValue]]) -> None:
        """Give back the disk that values of no result take."""
        for _, _, content in values:
            if isinstance(content, StagedValue):
                self._client.abandon(content)

    # --- its output and its end ---

    def on_stderr(self, data: bytes) -> None:
        self._output += data
        if len(self._output) > _OUTPUT_BYTES_MAX:
            self._keep_output(self._head())
            # It has no task, and may print for ever: the end stays for the next one.
            del self._output[:-_OUTPUT_BYTES_MAX]

    def _head(self) -> RunTask | None:
        return next(iter(self._pipe.values()), None)

    def keep_output(self) -> None:
        """Keep what it has printed by now with the task that it runs."""
        self._keep_output(self._head())

    def _keep_output(self, effect: RunTask | None) -> None:
        if self._output and effect is not None:
            one = effect.assignment
            output = bytes(self._output)
            self._client.keep_log(LogText(one.job, one.tid, one.attempt, output))
            self._tail = (self._tail + output)[-self._client.settings.failure_stderr_bytes_max :]
            self._output.clear()

    def on_exit(self, reason: ExitReason) -> None:
        if self._held_back is not None:
            self._exit = reason  # It has answered: first its files are read.
            return
        self.keep_output()
        self._client.node_ended(self)
        detail: dict[str, Any] = {
            "exit_code": reason.code,
            "signal": reason.signal,
            "out_of_memory": reason.out_of_memory,
            "stderr": keep_end(
                reason.stderr_tail, self._client.settings.failure_stderr_bytes_max
            ),
        }
        text = self._garbage or reason.describe_with_stderr()
        if self._reader.ready is None and not self._garbage:
            if isinstance(self.program, AttachedProgram):
                if not reason.why:  # It wasn't we who ended it.
                    self.program.tell(f"ended {self._reader.why_not_ready()}")
            elif reason.code == 0:
                text = reason.describe_with_stderr(self._reader.why_not_ready())
        workbench = self._client.workbench
        if self._attached is None:
            workbench.node_exited(self.node, text, detail, self._client.now_ms())
        elif self._reader.ready is not None:
            workbench.node_detached(self.node, text, self._client.now_ms())
            self._client.attached_changed()
        self._client.turn()


def attach_callbacks(client: Client, hello: Hello) -> Callbacks:
    """Return what a node that attaches itself is to be connected to."""
    shell = NodeShell(client, client.workbench.next_node(), hello.name)
    client.attaching[id(hello)] = shell
    return Callbacks(on_data=shell.on_data, on_exit=shell.on_exit)
