"""A node's process, imagined: lines and frames in, answers out, after a drawn time.

Speaks the node's side of docs/protocol.md with or without frames, with a window, and
crashes now and then. What it computes is `jobs.work`. It runs on its client's loop, so a client
that is stopped hears nothing of it until it goes on.
"""

from __future__ import annotations

import asyncio
import base64
import json
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from tasksprint.execution.effects import TaskError
from tasksprint.process.program import ExitReason
from tests.simulation.jobs import work

__all__ = ["NodeHabits", "SimNode"]


@dataclass(frozen=True, slots=True)
class NodeHabits:
    """How the nodes of one client are."""

    start_ms: float = 20.0  # until one is ready, at most
    crash_share: float = 0.0  # of tasks in the middle of which it crashes
    garbage_share: float = 0.0  # of tasks that it answers with what is no line
    speed: float = 1.0


class SimNode:
    """One process, with the face of `process.program.ChildProcess`, as far as clients use it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        random: Random,
        habits: NodeHabits,
        *,
        on_data: Callable[[bytes], None],
        on_exit: Callable[[ExitReason], None],
        on_stderr: Callable[[bytes], None],
    ) -> None:
        self._loop = loop
        self._random = random
        self._habits = habits
        self._on_data = on_data
        self._on_exit = on_exit
        self._on_stderr = on_stderr
        self._frames = random.random() < 0.5
        self._window = random.choice((1, 1, 4))
        self._input = bytearray()
        self._tasks: deque[tuple[dict[str, Any], list[Any]]] = deque()
        self._running: asyncio.TimerHandle | None = None
        self._output: list[bytes] = []  # written and not flushed
        self._early: list[bytes] | None = None  # while its client doesn't read
        self._is_over = False
        loop.call_later(random.uniform(0.3, habits.start_ms) / 1000, self._ready)

    # --- what a client does with a program ---

    def write(self, data: bytes) -> None:
        """Send bytes; after the end they are dropped."""
        if not self._is_over:
            self._input += data
            self._read()
            self._next()

    def kill(self, why: str = "killed") -> None:
        """End it now."""
        self._end(ExitReason(None, signal.SIGKILL, None, "", why))

    async def stop(self, **options: float) -> None:
        """Ask it to end."""
        await asyncio.sleep(self._random.uniform(0.1, 5) / 1000)
        self._end(ExitReason(0, None, None, ""))

    def pause_reading(self) -> None:
        """Let what it says wait."""
        if self._early is None:
            self._early = []

    def resume_reading(self) -> None:
        """Hear it again."""
        early, self._early = self._early, None
        for data in early or ():
            self._loop.call_soon(self._say, data)

    # --- the program ---

    def _ready(self) -> None:
        ready = {"ready": {}, "frames": self._frames, "window": self._window}
        self._say(json.dumps(ready).encode() + b"\n")

    def _say(self, data: bytes) -> None:
        if self._is_over:
            return
        if self._early is not None:
            self._early.append(data)
        else:
            self._on_data(data)

    def _end(self, reason: ExitReason) -> None:
        if not self._is_over:
            self._is_over = True
            if self._running is not None:
                self._running.cancel()
            self._loop.call_soon(self._on_exit, reason)

    def _read(self) -> None:
        """Cut complete tasks off the input."""
        while (end := self._input.find(b"\n")) >= 0:
            task = json.loads(self._input[:end])
            args, first = task["args"], end + 1
            frames = task.get("frames", ())
            if first + sum(size for _, size in frames) > len(self._input):
                return
            for index, size in frames:
                args[index] = bytes(self._input[first : first + size])
                first += size
            for index in task.get("base64", ()):
                args[index] = base64.b64decode(args[index])
            del self._input[:first]
            self._tasks.append((task, args))

    def _next(self) -> None:
        if self._running is not None or self._is_over:
            return
        if not self._tasks:
            self._flush()
            return
        task, args = self._tasks.popleft()
        random, habits = self._random, self._habits
        took_ms = random.uniform(0.7, 1.4) * args[0] * habits.speed + random.uniform(0.02, 0.3)
        chance = random.random()
        if chance < habits.crash_share:
            self._running = self._loop.call_later(took_ms / 2000, self._crash)
        elif chance < habits.crash_share + habits.garbage_share:
            self._running = self._loop.call_later(took_ms / 1000, self._say, b"Segmentation\n")
        else:
            self._running = self._loop.call_later(took_ms / 1000, self._answer, task, args)

    def _crash(self) -> None:
        self._on_stderr(b"out of luck\n")
        self._end(ExitReason(None, signal.SIGSEGV, None, "out of luck\n"))

    def _answer(self, task: dict[str, Any], args: list[Any]) -> None:
        self._running = None
        done = work(task["name"], args, task["seed"], task["attempt"], self._random)
        answer: dict[str, Any] = {"id": task["id"]}
        frames: list[bytes] = []
        if isinstance(done, TaskError):
            answer.update(error=done.error, retry=done.retry)
        else:
            raw = {key: value for key, value in done.items() if isinstance(value, bytes)}
            answer["values"] = {key: done[key] for key in done if key not in raw}
            if self._frames:
                answer["frames"] = [[key, len(value)] for key, value in raw.items()]
                frames = list(raw.values())
            else:
                answer["base64"] = {
                    key: base64.b64encode(value).decode() for key, value in raw.items()
                }
        text = json.dumps(answer, separators=(",", ":")).encode()
        self._output.append(b"".join([text, b"\n", *frames]))
        if self._random.random() < 0.5:  # Else it goes with the next one.
            self._flush()
        self._next()

    def _flush(self) -> None:
        if self._output:
            output, self._output = self._output, []
            self._say(b"".join(output))
