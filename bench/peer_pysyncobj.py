"""Three PySyncObj members with journals, to be measured beside us."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.cluster import free_ports
from tasksprint.process.program import die_with_parent

__all__ = ["MISSING", "VARIABLE", "PySyncObj", "pysyncobj_python"]

VARIABLE = "BENCH_PYSYNCOBJ_PYTHON"
MISSING = f"no Python with PySyncObj (name one that has it in {VARIABLE})"
_MEMBER = Path(__file__).with_name("pysyncobj_member.py")
_PATIENCE_S = 30.0


def pysyncobj_python() -> str | None:
    """Return a Python that can import PySyncObj, or None."""
    python = os.environ.get(VARIABLE)
    if not python:
        return None
    found = subprocess.run([python, "-c", "import pysyncobj"], capture_output=True, check=False)
    return python if found.returncode == 0 else None


class PySyncObj:
    """The cluster; a context manager.

    Args:
        mode: "batched" (its defaults) or "direct" (entries leave at once).
    """

    def __init__(self, python: str, mode: str) -> None:
        self._python = python
        self._mode = mode
        self._directory = Path()
        self._members: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> PySyncObj:
        self._directory = Path(tempfile.mkdtemp(prefix="bench-pysyncobj-"))
        ports = ",".join(map(str, free_ports(3)))
        with open(self._directory / "log", "ab") as log:
            self._members = [
                subprocess.Popen(
                    [
                        self._python,
                        str(_MEMBER),
                        str(index),
                        str(self._directory),
                        self._mode,
                        ports,
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    preexec_fn=die_with_parent(),
                )
                for index in range(3)
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._members:
            member.kill()
            member.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def closed_loop(self, submitters: int, seconds: float, warm_up_s: float) -> dict[str, Any]:
        """Load the leader from inside; return its figures."""
        leader = self._members[self._leader()]
        return _ask(leader, ["load", submitters, seconds, warm_up_s])

    def _leader(self) -> int:
        deadline_s = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline_s:
            found = [_ask(member, ["leader"]) for member in self._members]
            leaders = {one["leader"] for one in found}
            names = [one["me"] for one in found]
            if len(leaders) == 1 and leaders <= set(names):
                return names.index(leaders.pop())
            time.sleep(0.1)
        raise SystemExit("PySyncObj's members don't agree on a leader")


def _ask(member: subprocess.Popen[bytes], words: list[Any]) -> dict[str, Any]:
    assert member.stdin is not None and member.stdout is not None
    member.stdin.write(json.dumps(words).encode() + b"\n")
    member.stdin.flush()
    line = member.stdout.readline()
    if not line:
        raise SystemExit("a PySyncObj member ended; does its Python have the package?")
    answer: dict[str, Any] = json.loads(line)
    return answer
