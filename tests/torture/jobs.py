"""What people want of the cluster: jobs of several kinds, and what each must end with.

- fan: draws on chance from the tasks' seeds, joined by one task;
- chain: each draw goes on from the one before, so clients run ahead of the coordinators;
- rounds: the scheduler starts each draw with what it was told of the one before;
- dice: draws that nobody can foresee, each used by two tasks, which must have used the same.

The first three have one right result. Their programs are in `tests/torture/job/`.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from random import Random

from tasksprint.ids import TaskId, task_seed

__all__ = ["KINDS", "JobRequest", "random_job", "what_is_wrong"]

# With how many of each there are.
KINDS = {"fan": 3, "chain": 2, "rounds": 2, "dice": 2}
_MS = {0: 4, 5: 2, 50: 2, 300: 2, 1_500: 0.4}
_THROW = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class JobRequest:
    """One job that somebody wants; its results follow from it."""

    sender: str
    request: int
    kind: str
    seed: int
    token: int
    width: int
    ms: int

    @property
    def params(self) -> str:
        """The job's parameters, JSON."""
        return json.dumps(
            {"kind": self.kind, "token": self.token, "width": self.width, "ms": self.ms}
        )

    @property
    def tasks(self) -> int:
        """How many tasks the job has."""
        per_width = 3 if self.kind == "dice" else 1
        joins = 1 if self.kind in ("fan", "dice") else 0
        return per_width * self.width + joins


def random_job(sender: str, request: int, random: Random) -> JobRequest:
    """Return what somebody wants next."""
    return JobRequest(
        sender=sender,
        request=request,
        kind=random.choices(list(KINDS), list(KINDS.values()))[0],
        seed=random.getrandbits(48),
        token=random.getrandbits(30),
        width=random.randrange(1, 7),
        ms=random.choices(list(_MS), list(_MS.values()))[0],
    )


def what_is_wrong(job: JobRequest, values: object) -> str | None:
    """Return what is wrong with the values that a job finished with; None: nothing."""
    if not isinstance(values, dict) or set(values) != {"drawn", "told"}:
        return f"values {values!r}, expected 'drawn' and 'told'"
    if values["told"] != job.tasks:
        return f"its scheduler was told of {values['told']} tasks, expected {job.tasks}"
    if job.kind == "dice":
        drawn = str(values["drawn"]).split("+")
        firsts, seconds = drawn[::2], drawn[1::2]
        if len(drawn) != 2 * job.width or not all(map(_THROW.fullmatch, drawn)):
            return f"the throws {drawn}, expected each of {job.width} twice"
        if firsts != seconds:
            return f"one throw was used as {firsts} by some and as {seconds} by others"
        return None
    if values["drawn"] != (expected := _drawn(job)):
        return f"{values['drawn']!r}, expected {expected!r}"
    return None


def _drawn(job: JobRequest) -> str:
    drawn: list[str] = []
    for number in range(job.width):
        before = drawn[-1] if drawn and job.kind != "fan" else ""
        text = f"{task_seed(job.seed, TaskId(number))}:{job.token}:{number}:{before}"
        drawn.append(hashlib.sha256(text.encode()).hexdigest()[:16])
    return "+".join(drawn) if job.kind == "fan" else drawn[-1]
