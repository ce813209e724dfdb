"""What the SDK says on stdout, caught as it stands there."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasksprint.protocol.node_lines import encode_task
from tasksprint.task_spec import TaskSpec
from tests.sdk.programs import Program, write_program

__all__ = ["node_says", "scheduler_says", "task_line"]

_NODE = """
    from TaskSprintNode import *
    from tasksprint import TaskFailed

    class Node(TaskSprintNode):
        def nothing(self): pass
        def values(self): return {"a": [1.5, None, "ü\\n"], "b": True}
        def frames(self): return {"bytes": b"\\x00\\xff\\n", "n": 1, "long": "x" * 70_000}
        def vain(self): raise TaskFailed("in vain")
        def bug(self): return 1 / 0

    Node().start()
"""

_SCHEDULER = """
    from TaskSprintCoordinator import *

    class Scheduler(TaskSprintCoordinator):
        def init(self, seed):
            self.start_task("bare")
            self.start_task("full", base=[0.5, "ü"], pretasks=[0], prekeys=["a"], keys=["b"],
                            retries=0, timeout=1.5)
            self.log("half way")
            self.start_timer(0.25)
        def client_joined(self, cid, num_nodes):
            for _ in range(1_001):
                self.kill_task(1)
        def task_done(self, tid, values):
            self.release([tid])
        def task_failed(self, tid, error):
            self.fail(error)
        def timer(self, timer):
            self.finish([0, 1], values={"a": 1.0})

    Scheduler().start()
"""

_EVENTS = (
    b'{"event":0,"kind":"init","time_ms":0,"seed":7,"job":1,"params":{"n":1}}\n',
    b'{"event":1,"kind":"client_joined","time_ms":1,"cid":1,"num_nodes":2}\n',
    b'{"event":2,"kind":"client_dead","time_ms":2,"cid":1}\n',
    b'{"event":3,"kind":"task_done","time_ms":3,"tid":0,"values":{}}\n',
    b'{"event":4,"kind":"task_failed","time_ms":4,"tid":1,"error":"boom","detail":{"cid":1}}\n',
    b'{"event":5,"kind":"a later kind","time_ms":5}\n',
    b'{"event":6,"kind":"timer","time_ms":6,"timer":1}\n',
)


def task_line(*about: Any) -> bytes:
    """Return what `encode_task` writes, in one piece."""
    return b"".join([bytes(piece) for piece in encode_task(*about)])  # type: ignore[arg-type]


def node_says(end: bytes = b"}\n") -> tuple[bytes, ...]:
    """Return the lines of a node for some tasks, whose lines end so."""
    names = ["nothing", "values", "frames", "vain", "bug", "unknown"]
    tasks = [task_line(id, 1, id, 1, TaskSpec(name), [], 7, True) for id, name in enumerate(names)]
    said = _run(_NODE, [line[: -len(b"}\n")] + end for line in tasks])
    said = re.sub(rb"x{70000}", b"<70,000 x>", said)
    return _in_general(re.sub(rb'"(error|traceback)":"(\\.|[^"\\])*"', rb'"\1":"<text>"', said))


def scheduler_says(rules: int | None = None, end: bytes = b"}\n") -> tuple[bytes, ...]:
    """Return the lines of a scheduler, under these rules, for some events, whose lines end so."""
    said = _run(_SCHEDULER, [line[: -len(b"}\n")] + end for line in _EVENTS], rules)
    kill = b'{"kill":1},'
    return _in_general(said.replace(kill * 998, b"<998 times " + kill[:-1] + b">,"))


def _run(program: str, lines: Sequence[bytes], rules: int | None = None) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        argv = write_program(Path(folder) / "program.py", program)
        with Program(argv, stderr=Path(folder) / "stderr", rules=rules) as running:
            running.send(*lines)
            running.end_input()
            said = b""
            while data := running.receive():
                said += data
            assert running.wait() == 0, running.stderr()
            return said


def _in_general(said: bytes) -> tuple[bytes, ...]:
    """Return the lines without what differs from machine to machine."""
    said = re.sub(rb'"runtime":"[^"]*"', b'"runtime":"<text>"', said)
    return tuple(said.splitlines(keepends=True))
