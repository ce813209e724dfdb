"""Runs users' programs over a socket, as a client and a coordinator would, without either.

`Program` is one process with a socket as stdin and stdout; `NodeDriver` and
`run_job` speak the protocol through the cluster's own readers. What is checked here is
the program's side; how clients and coordinators behave is checked elsewhere.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasksprint.ids import TaskId, task_seed
from tasksprint.protocol.long_lines import take_values_out
from tasksprint.protocol.node_lines import (
    FilePath,
    InPieces,
    NodeFailure,
    NodeLongLine,
    NodeMessage,
    NodePiece,
    NodeReader,
    NodeReady,
    NodeReply,
    encode_task,
)
from tasksprint.protocol.scheduler_lines import SchedulerAnswer, SchedulerReader, SchedulerReady
from tasksprint.scheduler_commands import FailJob, FinishJob, WriteLog
from tasksprint.task_spec import TaskSpec

ROOT = Path(__file__).resolve().parents[2]
# Nobody waits for so long unless something hangs.
DEADLINE_SECONDS = 30


def write_program(path: Path, text: str) -> list[str]:
    """Write a program and return the argv that runs it."""
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return [sys.executable, str(path)]


class Program:
    """A running user program; stdin and stdout are one socket, stderr goes to a file."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        stderr: Path,
        pipes: bool = False,
        cwd: Path | None = None,
        rules: int | None = None,
    ) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        if rules is not None:
            environment["TASKSPRINT_RULES"] = str(rules)
        environment.pop("PYTHONUNBUFFERED", None)
        self._stderr = stderr
        with open(stderr, "wb") as file:
            if pipes:
                # As a shell would do it: two pipes, and nothing tells that a cluster is behind.
                self.process = subprocess.Popen(
                    argv,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=file,
                    env=environment,
                    cwd=cwd,
                )
                assert self.process.stdin and self.process.stdout
                self._to, self._from = self.process.stdin.fileno(), self.process.stdout.fileno()
                self._socket = None
            else:
                self._socket, theirs = socket.socketpair()
                self.process = subprocess.Popen(
                    argv, stdin=theirs, stdout=theirs, stderr=file, env=environment, cwd=cwd
                )
                theirs.close()
                self._to = self._from = self._socket.fileno()
        self._poll = selectors.DefaultSelector()
        self._poll.register(self._from, selectors.EVENT_READ)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._poll.close()
        for stream in (self._socket, self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

    def send(self, *buffers: bytes) -> None:
        for buffer in buffers:
            view = memoryview(buffer)
            while view:
                view = view[os.write(self._to, view) :]

    def receive(self) -> bytes:
        """Return what comes next; nothing at the end of output."""
        assert self._poll.select(DEADLINE_SECONDS), f"no answer; stderr: {self.stderr()}"
        try:
            return os.read(self._from, 1 << 18)
        except ConnectionResetError:
            return b""

    def end_input(self) -> None:
        if self._socket is not None:
            self._socket.shutdown(socket.SHUT_WR)
        else:
            assert self.process.stdin is not None
            self.process.stdin.close()

    def wait(self) -> int:
        return self.process.wait(DEADLINE_SECONDS)

    def stderr(self) -> str:
        return self._stderr.read_text(encoding="utf-8", errors="replace")


class NodeDriver:
    """Gives one node tasks and reads what it answers."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.reader = NodeReader(who="node 1", line_bytes_max=1 << 28, value_bytes_max=1 << 31)
        self._messages: list[NodeMessage] = []
        self._pieces: dict[int, bytearray] = {}  # of large values
        self._next_id = 0
        ready = self.next()
        assert isinstance(ready, NodeReady)
        self.ready = ready

    def line(
        self,
        name: str,
        *args: Any,
        inputs: Sequence[tuple[str, bytes]] = (),
        seed: int = 1,
        tid: int = 0,
    ) -> list[bytes]:
        """Return the buffers of the next task."""
        base = json.dumps(args, ensure_ascii=False)
        id, self._next_id = self._next_id, self._next_id + 1
        return encode_task(id, 1, tid, 1, TaskSpec(name, base), inputs, seed, self.ready.frames)

    def feed(self, data: bytes) -> None:
        """Take what the node said."""
        messages = self.reader.feed(data)
        while messages and isinstance(long := messages[-1], NodeLongLine):
            line, found = take_values_out(b"".join(long.pieces), who="the node")
            values = [(key, bytes(text)) for key, text in found]
            messages[-1:] = self.reader.take_long(line, values)
        for message in messages:
            if isinstance(message, NodePiece):
                self._pieces.setdefault(message.number, bytearray()).extend(message.data)
            else:
                self._messages.append(message)

    def next(self) -> NodeMessage:
        """Return the next message."""
        while not self._messages:
            data = self.program.receive()
            assert data, f"the node ended; stderr: {self.program.stderr()}"
            self.feed(data)
        message = self._messages.pop(0)
        if isinstance(message, NodeReply):
            values = [
                (key, kind, bytes(self._pieces.pop(data.number)))
                if isinstance(data, InPieces)
                else (key, kind, data)
                for key, kind, data in message.values
            ]
            message = NodeReply(message.id, tuple(values))
        return message

    def run(self, name: str, *args: Any, **more: Any) -> NodeReply | NodeFailure:
        """Run one task and return its answer."""
        self.program.send(*self.line(name, *args, **more))
        message = self.next()
        assert isinstance(message, (NodeReply, NodeFailure))
        return message

    def values(self, name: str, *args: Any, **more: Any) -> dict[str, bytes | FilePath]:
        """Run one task that must succeed and return its values."""
        reply = self.run(name, *args, **more)
        assert isinstance(reply, NodeReply), reply
        return {key: data for key, _, data in reply.values}

    def failure(self, name: str, *args: Any, **more: Any) -> NodeFailure:
        """Run one task that must fail."""
        failure = self.run(name, *args, **more)
        assert isinstance(failure, NodeFailure), failure
        return failure


class SchedulerDriver:
    """Gives one scheduler events and reads what it answers."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.reader = SchedulerReader(who="scheduler", line_bytes_max=1 << 28)
        self._answers: list[SchedulerAnswer] = []
        while self.reader.ready is None:
            data = program.receive()
            assert data, f"the scheduler ended; stderr: {program.stderr()}"
            for message in self.reader.feed(data):
                assert isinstance(message, SchedulerReady)
        self.next_event = 0

    def line(self, kind: str, **members: Any) -> bytes:
        """Return the line of the next event."""
        event = {"event": self.next_event, "kind": kind, "time_ms": 500, **members}
        self.next_event += 1
        return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

    def next(self) -> SchedulerAnswer:
        """Return the next part of an answer."""
        while not self._answers:
            data = self.program.receive()
            assert data, f"the scheduler ended; stderr: {self.program.stderr()}"
            for message in self.reader.feed(data):
                assert isinstance(message, SchedulerAnswer)
                self._answers.append(message)
        return self._answers.pop(0)

    def event(self, kind: str, **members: Any) -> tuple[Any, ...]:
        """Send one event and return the commands of the answer, of all parts."""
        self.program.send(self.line(kind, **members))
        commands: list[Any] = []
        while True:
            answer = self.next()
            commands.extend(answer.commands)
            if answer.last:
                return tuple(commands)

    def init(self, params: Any = None, seed: int = 7) -> tuple[Any, ...]:
        return self.event("init", seed=seed, job=1, params={} if params is None else params)


class JobRun:
    """What a job did: its result, the log lines, and every task's values."""

    def __init__(self) -> None:
        self.finished: FinishJob | None = None
        self.failed: str | None = None
        self.log: list[str] = []
        self.results: dict[int, dict[str, tuple[str, bytes]]] = {}

    @property
    def values(self) -> Any:
        assert self.finished is not None, self.failed
        return json.loads(self.finished.values)


def run_job(scheduler: SchedulerDriver, node: NodeDriver, params: Any, seed: int = 7) -> JobRun:
    """Run a whole job with one node; tasks run in the order of their tids."""
    job = JobRun()
    tasks: list[TaskSpec] = []
    done = 0

    def take(commands: tuple[Any, ...]) -> None:
        for command in commands:
            if isinstance(command, TaskSpec):
                tasks.append(command)
            elif isinstance(command, FinishJob):
                job.finished = command
            elif isinstance(command, FailJob):
                job.failed = command.error
            elif isinstance(command, WriteLog):
                job.log.append(command.text)

    take(scheduler.init(params, seed))
    take(scheduler.event("client_joined", cid=1, num_nodes=1))
    while job.finished is None and job.failed is None:
        assert done < len(tasks), "the scheduler waits for nothing"
        task = tasks[done]
        inputs = [
            job.results[tid][key] for tid, key in zip(task.pretasks, task.prekeys, strict=True)
        ]
        buffers = encode_task(
            done,
            1,
            done,
            1,
            task,
            inputs,
            task_seed(seed, TaskId(done)),
            node.ready.frames,
        )
        node.program.send(*buffers)
        reply = node.next()
        if isinstance(reply, NodeFailure):
            take(scheduler.event("task_failed", tid=done, error=reply.error, detail={}))
        else:
            assert isinstance(reply, NodeReply) and reply.id == done
            values = {}
            for key, kind, data in reply.values:
                assert isinstance(data, bytes)
                values[key] = (kind, data)
            job.results[done] = values
            seen = {key: json.loads(values[key][1]) for key in task.keys}
            take(scheduler.event("task_done", tid=done, values=seen))
        done += 1
    return job
