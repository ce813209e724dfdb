"""One node of a client as a process: its pipes, its replies, its output.

Writes tasks to it, and hands its words to the workbench. The values of a reply wait here until
the workbench has said whether they count.

A node's output is kept for the attempt that printed it. A node answers after it has printed. So
the bytes in the pipe of its stderr at the moment of an answer belong to that answer. (After a
task that printed, the SDK holds no answer back.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasksprint.bounded_text import keep_end
from tasksprint.encoding import value_digest
from tasksprint.errors import NodeFailed, RemoteProtocolError, ValueSpoiled
from tasksprint.execution.effects import Manifest, NodeId, Reply, RunTask, TaskError
from tasksprint.execution.records import KeptResult
from tasksprint.execution.workbench import Workbench
from tasksprint.ids import JobId, TaskId
from tasksprint.process.attach import AttachedProcess
from tasksprint.process.program import ChildProcess, ExitReason
from tasksprint.protocol.long_lines import take_values_out
from tasksprint.protocol.node_lines import (
    Carried,
    InPieces,
    NodeFailure,
    NodeLongLine,
    NodeMessage,
    NodePiece,
    NodeReader,
    NodeReady,
    NodeReply,
)
from tasksprint.roles.client.held import HeldValues, Seen
from tasksprint.roles.client.ports import NodeOwner, Turns
from tasksprint.roles.client.values import CachedValue, NodeValues, base64_pieces, task_buffers
from tasksprint.settings import Settings
from tasksprint.store.result_records import (
    CHUNK_BYTES,
    ROW_VALUE_BYTES_MAX,
    FileValue,
    LogText,
)
from tasksprint.store.staging import Staging, on_thread, stage_file

__all__ = ["NodeShell"]

# Output that waits to be kept with its attempt; more is kept in pieces.
_OUTPUT_BYTES_MAX = 64 * 1024
# Lines with more than this are written piece by piece, as fast as the node reads.
_WRITE_AT_ONCE_MAX = 1024 * 1024


class NodeShell:
    """One node: a process started by this client, or one that attached itself."""

    def __init__(
        self,
        owner: NodeOwner,
        turns: Turns,
        workbench: Workbench,
        held: HeldValues,
        settings: Settings,
        node: NodeId,
        attached: str | None,
    ) -> None:
        self.node = node
        self.attached = attached  # its name, if somebody attached it
        self.program: ChildProcess | AttachedProcess | None = None
        self.values: dict[int, NodeValues] = {}  # of replies that the workbench judges now
        self._owner = owner
        self._turns = turns
        self._workbench = workbench
        self._held = held
        self._settings = settings
        self._reader = NodeReader(
            who=f"node {node}",
            line_bytes_max=settings.line_bytes_max,
            value_bytes_max=settings.value_bytes_max,
        )
        self._frames = False
        self._takes: tuple[str, ...] = ()
        self._told_job: JobId | None = None  # this job's owner knows the node's runtime
        self._pipe: dict[int, RunTask] = {}  # written and not answered, in order
        self._garbage = ""  # words that no node may say
        self._output = bytearray()
        self._tail = b""  # the running task's latest output, as far as it is kept already
        self._early = bytearray()
        # Messages behind one whose values are still being read from a file, or written to one.
        self._held_back: list[NodeMessage] | None = None
        self._stagings: dict[int, Staging] = {}  # of values that come in pieces
        self._holds: set[str] = set()  # why nothing is read from it
        # Tasks with large inputs, and those behind them, that aren't written yet.
        self._outgoing: deque[
            tuple[RunTask, Sequence[CachedValue], list[bytes | Carried], Seen]
        ] = deque()
        self._is_writing = False
        self._exit: ExitReason | None = None  # it ended, and files of its are being read

    def begin(self, program: ChildProcess | AttachedProcess) -> None:
        """Take the process, and the lines that came from it already."""
        self.program = program
        if self._early:
            early, self._early = bytes(self._early), bytearray()
            self.on_data(early)

    # --- orders ---

    def run(
        self, effect: RunTask, inputs: Sequence[CachedValue], seen: Seen | None = None
    ) -> None:
        """Write a task's line.

        Args:
            seen: See `HeldValues.seen`; None: the inputs were found just now.
        """
        assert self.program is not None
        self._pipe[effect.id] = effect
        if effect.assignment.job != self._told_job:
            self._tell_runtime(effect.assignment.job)
        buffers = task_buffers(effect, inputs, frames=self._frames, takes=self._takes)
        if not self._is_writing:
            if len(buffers) == 1 and isinstance(buffers[0], bytes):
                self._owner.write_soon(self.node, buffers[0])
                return
            small = [buffer for buffer in buffers if isinstance(buffer, bytes)]
            if len(small) == len(buffers) and sum(map(len, small)) <= _WRITE_AT_ONCE_MAX:
                self._owner.write_soon(self.node, b"".join(small))
                return
        if seen is None:
            seen = self._held.seen_inputs(effect)
        self._outgoing.append((effect, inputs, buffers, seen))
        if not self._is_writing:
            self._is_writing = True
            self._turns.background(self._write_outgoing())

    async def _write_outgoing(self) -> None:
        """Write large lines piece by piece, each behind all that was written before."""
        try:
            while self._outgoing and self.program is not None and not self.program.closed.done():
                effect, inputs, buffers, seen = self._outgoing.popleft()
                for buffer in buffers:
                    if isinstance(buffer, bytes):
                        view = memoryview(buffer)
                        for first in range(0, len(view), CHUNK_BYTES):
                            self.program.write(view[first : first + CHUNK_BYTES])
                            await self.program.drain()
                        continue
                    index = buffer.content
                    assert isinstance(index, int)
                    value = inputs[index][1]
                    assert isinstance(value, FileValue)
                    tid, _, digest = effect.inputs[index]
                    pieces = self._held.pieces_of(value)
                    try:
                        async for piece in base64_pieces(pieces) if buffer.is_base64 else pieces:
                            self.program.write(piece)
                            await self.program.drain()
                    except ValueSpoiled as error:
                        self._refuse_input(effect, tid, digest, str(error), seen[tid])
                        return
        finally:
            self._is_writing = False

    def _refuse_input(
        self, effect: RunTask, tid: TaskId, digest: str, why: str, seen: KeptResult | None
    ) -> None:
        """An input turned out to be spoiled while it was written: the node waits for the rest."""
        job = effect.assignment.job
        self._held.spoiled(job, tid, digest, why, seen=seen)
        now = self._held.seen(job, tid)
        # One that was made meanwhile is good, and is taken at the next try.
        found = now.manifest if seen is not None and now is not None and now is not seen else None
        now_ms = self._turns.now_ms()
        self._workbench.run_broken_off(self.node, effect.id, {tid: found}, now_ms)
        self._turns.turn()

    def hold(self, why: str, *, is_held: bool) -> None:
        """Read nothing from it for this reason, or not for this one any more."""
        was_held = bool(self._holds)
        (self._holds.add if is_held else self._holds.discard)(why)
        if self.program is not None and was_held != bool(self._holds):
            if self._holds:
                self.program.pause_reading()
            else:
                self.program.resume_reading()

    def _tell_runtime(self, job: JobId) -> None:
        """Tell the cluster the runtime of a job's tasks here, once for each kind of it."""
        self._told_job = job
        if (ready := self._reader.ready) is not None and ready.runtime is not None:
            self._owner.tell_runtime(job, ready.runtime)

    def kill(self, why: str) -> None:
        """End it now."""
        if self.program is not None:
            self.program.kill(why)

    # --- from the node ---

    def on_data(self, data: bytes) -> None:
        if self._garbage:
            return
        if self.program is None:  # It spoke before its starter got to know it.
            self._early += data
            return
        try:
            messages = self._reader.feed(data)
        except RemoteProtocolError as error:
            self._refuse_reply(error)
            return
        if messages:
            self._heard(messages)
        if self._reader.refusal is not None:
            self._refuse_reply(self._reader.refusal)

    def _heard(self, messages: list[NodeMessage]) -> None:
        if isinstance(messages[-1], NodeLongLine):
            self.hold("long line", is_held=True)
            self._turns.background(self._read_long(messages.pop()))
        if self._reader.in_pieces:
            messages = self._take_pieces(messages)
        if messages:
            self._take(messages)

    async def _read_long(self, message: NodeMessage) -> None:
        """Read a long line on a thread; meanwhile nothing more is read from the node."""
        assert isinstance(message, NodeLongLine)
        values: list[tuple[str, bytes | Carried]] = []
        try:
            line, values = await on_thread(lambda: self._cut(b"".join(message.pieces)))
            messages = self._reader.take_long(line, values)
            values = []
            if messages:
                self._heard(messages)
            if self._reader.refusal is not None:
                raise self._reader.refusal
        except RemoteProtocolError as error:
            for _, content in values:
                if isinstance(content, Carried) and isinstance(content.content, FileValue):
                    self._held.discard(content.content)
            self._refuse_reply(error)
        finally:
            self.hold("long line", is_held=False)
            if self._exit is not None and not self._is_busy:
                self.on_exit(self._exit)

    def _cut(self, line: bytes) -> tuple[bytes, list[tuple[str, bytes | Carried]]]:
        """Take the values out of a line; large ones go into files. On a thread."""
        left, found = take_values_out(line, who=f"node {self.node}")
        files = self._held.files
        values: list[tuple[str, bytes | Carried]] = []
        for key, text in found:
            if len(text) > ROW_VALUE_BYTES_MAX:
                kept = files.write(text)
                values.append((key, Carried(kept, kept.size)))
            else:
                values.append((key, bytes(text)))
        return left, values

    @property
    def _is_busy(self) -> bool:
        """Whether some of its words are still being read or written."""
        return self._held_back is not None or "long line" in self._holds

    def _refuse_reply(self, error: RemoteProtocolError) -> None:
        self._garbage = str(error)
        self.kill(f"it broke the protocol: {error}")

    def _take_pieces(self, messages: list[NodeMessage]) -> list[NodeMessage]:
        """Write pieces of large values to their files; return the other messages."""
        others: list[NodeMessage] = []
        for message in messages:
            if not isinstance(message, NodePiece):
                others.append(message)
                continue
            staging = self._stagings.get(message.number)
            if staging is None:
                staging = self._stagings[message.number] = Staging(self._held.files)
            staging.put(message.data)
            if staging.is_full and "disk" not in self._holds:
                self.hold("disk", is_held=True)
                self._turns.background(self._go_on_when_written(staging))
        return others

    async def _go_on_when_written(self, staging: Staging) -> None:
        await staging.drain()
        self.hold("disk", is_held=False)

    def _take(self, messages: list[NodeMessage]) -> None:
        if self._held_back is not None:
            self._held_back.extend(messages)
            return
        replies: list[Reply] = []
        for index, message in enumerate(messages):
            if isinstance(message, NodeReply):
                if any(not isinstance(content, bytes) for _, _, content in message.values):
                    self._held_back = messages[index + 1 :]
                    self._turns.background(self._read_files(message))
                    break
                replies.append(self._reply(message))
            elif isinstance(message, NodeFailure):
                error = TaskError(message.error, message.traceback, message.retry)
                replies.append(Reply(message.id, error))
            else:
                assert isinstance(message, NodeReady), "pieces were taken before"
                self._ready(message)
        if replies:
            self._tell(replies)

    def _ready(self, message: NodeReady) -> None:
        self._frames, self._takes = message.frames, message.takes
        now_ms = self._turns.now_ms()
        if self.attached is None:
            self._workbench.node_ready(self.node, message.frames, message.window, now_ms)
        else:
            self._workbench.node_attached(
                self.node, self.attached, message.frames, message.window, now_ms
            )
            self._owner.attached_changed()
        self._turns.turn()

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
        if isinstance(self.program, ChildProcess):
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
        self._workbench.node_replied(self.node, replies, self._turns.now_us())
        self._turns.turn()
        for values in self.values.values():
            self._abandon(values)  # They didn't count.
        self.values.clear()

    async def _read_files(self, message: NodeReply) -> None:
        """Bring the large values of a reply into files of the store, then go on."""
        values: list[tuple[str, str, bytes | FileValue]] = []
        error: TaskError | None = None
        for key, kind, content in message.values:
            if isinstance(content, bytes):
                values.append((key, kind, content))
            elif isinstance(content, Carried):
                assert isinstance(content.content, FileValue)
                values.append((key, kind, content.content))
            elif isinstance(content, InPieces):
                values.append((key, kind, await self._stagings.pop(content.number).finish()))
            elif error is None:
                try:
                    staged = await stage_file(
                        self._held.files,
                        Path(content.path),
                        bytes_max=self._settings.value_bytes_max,
                    )
                    values.append((key, kind, await self._held.into_memory(staged)))
                except NodeFailed as cause:
                    # A value that can't be read now may be there at the next attempt.
                    may_pass = isinstance(cause.__cause__, OSError)
                    error = TaskError(f"{cause}; it was named under key {key!r}", None, may_pass)
                except ValueSpoiled as cause:
                    what = f"the content of file {content.path!r}, named under key {key!r},"
                    error = TaskError(f"{what} was spoiled while it was taken: {cause}")
        reply: Reply
        if error is not None:
            self._abandon(values)
            reply = Reply(message.id, error)
        else:
            manifest = []
            for key, kind, kept in values:
                if isinstance(kept, FileValue):
                    manifest.append((key, kind, kept.size, kept.digest))
                else:
                    manifest.append((key, kind, len(kept), value_digest(kept)))
            self.values[message.id] = tuple(values)
            reply = Reply(message.id, tuple(manifest))
        self._tell([reply])
        held_back, self._held_back = self._held_back, None
        if held_back:
            self._take(held_back)
        if self._exit is not None and not self._is_busy:
            self.on_exit(self._exit)

    def _abandon(self, values: Iterable[tuple[str, str, bytes | FileValue]]) -> None:
        """Give back the disk space of values without a result."""
        for _, _, content in values:
            if isinstance(content, FileValue):
                self._held.discard(content)

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
        """Keep its output so far with the task that it runs."""
        self._keep_output(self._head())

    def _keep_output(self, effect: RunTask | None) -> None:
        if self._output and effect is not None:
            one = effect.assignment
            output = bytes(self._output)
            self._owner.keep_log(LogText(one.job, one.tid, one.attempt, output))
            self._tail = (self._tail + output)[-self._settings.failure_stderr_bytes_max :]
            self._output.clear()

    def on_exit(self, reason: ExitReason) -> None:
        if self._is_busy:
            self._exit = reason  # It has answered: first that is read.
            return
        self._exit = None
        for staging in self._stagings.values():
            staging.abandon()
        self._stagings.clear()
        self.keep_output()
        self._owner.ended(self.node)
        detail: dict[str, Any] = {
            "exit_code": reason.code,
            "signal": reason.signal,
            "out_of_memory": reason.out_of_memory,
            "stderr": keep_end(
                reason.stderr_tail, self._settings.failure_stderr_bytes_max
            ),
        }
        text = self._garbage or reason.describe_with_stderr()
        if self._reader.ready is None and not self._garbage:
            if isinstance(self.program, AttachedProcess):
                if not reason.why:  # It wasn't we who ended it.
                    self.program.tell(f"ended {self._reader.why_not_ready()}")
            elif reason.code == 0:
                text = reason.describe_with_stderr(self._reader.why_not_ready())
        now_ms = self._turns.now_ms()
        if self.attached is None:
            self._workbench.node_exited(self.node, text, detail, now_ms)
        elif self._reader.ready is not None:
            self._workbench.node_detached(self.node, text, now_ms)
            self._owner.attached_changed()
        self._turns.turn()
