"""What the coordinators' mirrors say while they run: the events that were chosen.

The mirrors keep the events of a job until it ends, so they are looked at again and again,
each time at another coordinator, as anybody may with `sqlite3`; all looks together are
compared. An event that no look met is not judged here; how many were is told.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.torture.machines import Machines

__all__ = ["Audit"]

_PAUSE_S = (0.1, 0.5)
_DATABASE_TIMEOUT_S = 1.0


class Audit:
    """All events of all jobs, as far as any coordinator told of them."""

    def __init__(self) -> None:
        # (job, number): the line, and who told it first.
        self._events: dict[tuple[int, int], tuple[str, str]] = {}
        self._told: Counter[tuple[int, int]] = Counter()  # (job, tid)
        self.wrong: list[str] = []
        self.looks = 0

    @property
    def events(self) -> int:
        """How many events were seen."""
        return len(self._events)

    def run(self, machines: Machines, is_over: Callable[[], bool], random: Random) -> None:
        """Look at one coordinator after the other, until it is over."""
        pause = threading.Event()
        while not is_over():
            name = random.choice(machines.coordinators)
            # (A file that is being made, or whose process was just killed, may refuse.)
            self.try_look(name, machines.folder / name)
            pause.wait(random.uniform(*_PAUSE_S))

    def try_look(self, name: str, folder: Path) -> bool:
        """Read all events in a coordinator's mirror; return whether that was possible."""
        try:
            database = sqlite3.connect(
                f"file:{folder / 'replica.db'}?mode=ro", uri=True, timeout=_DATABASE_TIMEOUT_S
            )
            try:
                rows = database.execute("SELECT job, number, line FROM events").fetchall()
            finally:
                database.close()
        except sqlite3.Error:
            return False
        self.looks += 1
        for job, number, line in rows:
            self._event(name, int(job), int(number), str(line))
        return True

    def _event(self, name: str, job: int, number: int, line: str) -> None:
        if (job, number) in self._events:
            known, who = self._events[job, number]
            if known != line:
                self.wrong.append(
                    f"event {number} of job {job} is {known} at {who}, but {line} at {name}"
                )
            return
        self._events[job, number] = (line, name)
        event = json.loads(line)
        if event["kind"] == "task_done":
            task = (job, int(event["tid"]))
            self._told[task] += 1
            if self._told[task] > 1:
                self.wrong.append(f"task {task[1]} of job {job} was told to be done twice")
