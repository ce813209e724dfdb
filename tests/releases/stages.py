"""The job of `jobs/stages/` on a cluster whose processes are of more than one release."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasksprint.ids import JobId
from tests.e2e.conftest import wait_until
from tests.torture.machines import Machines

__all__ = [
    "JOB",
    "PATIENT",
    "Outcome",
    "Stages",
    "ask",
    "command_of",
    "heard_by",
    "leave_no_trace",
    "replace",
    "slot_of",
    "undisturbed",
    "wait_for_leader",
]

JOB = Path(__file__).parent / "jobs" / "stages"
# For coordinators that raise the rules only when they are asked to.
PATIENT = 'TASKSPRINT_SETTINGS={"rules_settle_ms":3600000}'
_SEED = 5
_DEADLINE_S = 60.0


def command_of(archive: Path) -> list[str]:
    """Return what runs an archive."""
    return [sys.executable, str(archive)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job ended with, to the byte."""

    values: str  # JSON
    noise: bytes  # a value of a task, of more than a MiB


class Stages:
    """A job of stages, each of which waits for a gate; people use the archive `people`."""

    def __init__(
        self,
        machines: Machines,
        people: Path,
        *,
        stages: int,
        width: int,
        ms: int = 20,
        folder: Path = JOB,
    ) -> None:
        """Submit it.

        Args:
            folder: With the job's programs, or the same ones with another SDK.
        """
        self.machines = machines
        self.people = people
        self._per_stage = width + 1
        self._stages = stages
        self._gates = machines.folder / f"gates-{len(list(machines.folder.glob('gates-*')))}"
        self._gates.mkdir()
        params = {"gates": str(self._gates), "stages": stages, "width": width, "ms": ms}
        options = [f"--param={name}={json.dumps(value)}" for name, value in params.items()]
        said = self.ask("submit", str(folder), f"--seed={_SEED}", "--json", *options)
        self.job = JobId(json.loads(said)["job"])

    def ask(self, *arguments: str) -> bytes:
        """Run a command of the people's archive to its end; return what it prints."""
        return ask(self.machines, self.people, *arguments)

    def done(self) -> int:
        """Return how many tasks are done."""
        outcome, _ = self.machines.connect().job(self.job)
        assert outcome.state != "failed", outcome.error
        return int(outcome.tasks["done"])

    def holders(self) -> set[int]:
        """Return which clients have results of the first stage."""
        cluster = self.machines.connect()
        draws = range(2, self._per_stage + 1)  # behind the gate and what hangs
        paths = [f"/v1/jobs/{self.job}/tasks/{tid}" for tid in draws]
        answers = [cluster.request("GET", path).json() for path in paths]
        return {cid for info in answers for cid in info["holders"]}

    def wait_for_middle(self, stage: int) -> None:
        """Wait until some tasks of a stage are done; its gate keeps the job from going on."""
        some = stage * self._per_stage + self._per_stage // 10
        wait_until(lambda: self.done() >= some, f"stage {stage} is under way")

    def open(self, stage: int) -> None:
        """Let the stage behind this one begin once this one is done."""
        (self._gates / str(stage)).touch()

    def end(self) -> Outcome:
        """Open all gates, and return what the job ends with."""
        for stage in range(self._stages):
            self.open(stage)
        said = json.loads(self.ask("result", str(self.job), "--wait", "--json"))
        assert said["state"] == "finished" and "warnings" not in said, said
        final = self._stages * (self._per_stage + 1)
        noise = self.ask("result", str(self.job), "--task", str(final), "--key", "noise")
        return Outcome(json.dumps(said["values"]), noise)


def ask(machines: Machines, people: Path, *arguments: str, code: int | None = 0) -> bytes:
    """Run a command of an archive on a cluster to its end; return what it prints.

    Args:
        code: With which it must end; None: any.
    """
    done = subprocess.run(
        [*command_of(people), *arguments],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=_DEADLINE_S,
        env={
            **machines.environment,
            "TASKSPRINT_KEY_FILE": str(machines.folder / "key"),
            "TASKSPRINT_COORDINATORS": ",".join(machines.member_addresses()),
        },
    )
    assert code in (None, done.returncode), (arguments, done.returncode, done.stdout, done.stderr)
    return done.stdout


def undisturbed(folder: Path, archive: Path, *, stages: int, width: int) -> Outcome:
    """Return what the job ends with on a cluster of one release to which nothing happens."""
    command = command_of(archive)
    with Machines(folder, command=command, coordinators=1, clients=1, nodes=4) as machines:
        machines.start_all()
        outcome = Stages(machines, archive, stages=stages, width=width, ms=0).end()
        leave_no_trace(machines)
    return outcome


def replace(machines: Machines, name: str, command: Sequence[str]) -> None:
    """End a process in good order, and start another release with its files."""
    machines.ask_to_end(name)
    code = machines.restart(name, command=command)
    assert code == 0, machines.log(name)[-2000:]


def heard_by(machines: Machines, name: str) -> None:
    """Wait until a coordinator is level with the leader of a moment ago, and follows it."""
    leader = wait_for_leader(machines)
    end = slot_of(machines, leader)

    def is_level() -> bool:
        status = machines.status(name)
        assert machines.is_up(name), machines.log(name)[-2000:]
        return bool(status and status["leader"] and int(str(status["applied_slot"])) >= end)

    wait_until(is_level, f"{name} has what {leader} had")


def wait_for_leader(machines: Machines) -> str:
    """Wait until a coordinator leads, and return its name."""
    found: list[str] = []

    def leads() -> bool:
        leader = machines.leader()
        found.extend([] if leader is None else [leader])
        return bool(found)

    wait_until(leads, "a coordinator leads")
    return found[-1]


def slot_of(machines: Machines, name: str) -> int:
    """Return the slot that a coordinator has applied; 0: it doesn't say."""
    status = machines.status(name)
    return 0 if status is None else int(str(status["applied_slot"]))


def leave_no_trace(machines: Machines) -> None:
    """End all; assert that nobody differed, complained of a bug, or ended by itself."""
    wait_until(machines.is_level, "all coordinators have applied the same")
    assert machines.ended_wrongly() == []
    codes = machines.end_all()
    assert set(codes.values()) == {0}, codes
    for name in (*machines.coordinators, *machines.clients):
        log = machines.log(name)
        words = ["differ", "can't be understood", "not a command"]
        if "Executor shutdown has been called" not in log:  # As 0.2.0 may say at its end.
            words += ["Traceback", "ERROR"]
        for word in words:
            assert word not in log, f"{name}: {log[-3000:]}"
