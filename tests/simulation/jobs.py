"""Kinds of jobs: their schedulers and the work of their nodes, as Python objects.

A scheduler is a line in, lines out (docs/protocol.md), and its answers follow from its
lines alone; a task's values follow from its name, arguments and seed, but for the tasks of
the kinds of dice. What a job must end with (`expected`) is what it ends with where nothing ever
goes wrong: `ideal` runs it so. So each kind is made such that its result doesn't depend on
the order in which its tasks are done, nor on how often anything ran.

Knows neither clients nor coordinators, nor time: how long a task takes is its first argument.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Any

from tasksprint.execution.effects import TaskError
from tasksprint.ids import TaskId, task_seed

__all__ = [
    "KINDS",
    "READY",
    "Outcome",
    "SchedulerProgram",
    "Values",
    "archive",
    "expected",
    "ideal",
    "is_random",
    "manifest",
    "may_fail",
    "params",
    "work",
]

# A scheduler's first line.
READY = b'{"ready":{}}\n'

# Values of a task by key: bytes, or anything that is JSON.
Values = dict[str, Any]

# Tries of a task that is to succeed in the end: nodes crash as they like.
_RETRIES = 200
# A task that nobody waits for: longer than any seed's phases.
_FOR_EVER_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ends."""

    state: str  # "finished" or "failed"
    text: str  # values as JSON, or the error
    kept: dict[int, Values] = field(default_factory=dict)  # of the tasks that finish names


# --- what nodes do -------------------------------------------------------------------------


def work(
    name: str, args: list[Any], seed: int, attempt: int, random: Random
) -> Values | TaskError:
    """Return what a node answers.

    Args:
        args: `base`, then the inputs in the order of pretasks; bytes values as bytes.
        random: Of the node: for the tasks that aren't deterministic.
    """
    if name == "dice":
        return {"face": random.randrange(10**9), "blob": random.randbytes(24)}
    if name == "stumble" and attempt <= args[1]:
        return TaskError(f"stumbles the {attempt}. time")
    if name == "hopeless":
        return TaskError("is in vain")
    if name == "fatal":
        return TaskError("is wrong", None, False)
    digest = hashlib.sha256(f"{name}:{seed}:".encode())
    # The time it takes is no input.
    for arg in args[1:]:
        digest.update(_text(arg))
    drawn = digest.digest()
    values: Values = {"out": drawn.hex()[:16], "n": drawn[0]}
    if name == "look":
        values["seen"] = [_seen(arg) for arg in args[1:]]
    else:
        values["blob"] = drawn * (1 + drawn[1] % 8)
    return values


def _text(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode() + b";"


def _seen(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


# --- what schedulers do --------------------------------------------------------------------


class Plan:
    """A scheduler: handlers of events, which give commands. One for each kind of job."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params
        self.commands: list[dict[str, Any]] = []
        self.next_tid = 0
        self.is_over = False

    # --- commands ---

    def start(
        self,
        name: str,
        *base: Any,
        after: list[tuple[int, str]] | None = None,
        keys: tuple[str, ...] = (),
        retries: int = _RETRIES,
        ms: int | None = None,
    ) -> int:
        """Start a task; it takes about `ms`, and gets values (tid, key) of others."""
        command: dict[str, Any] = {
            "start": name,
            "base": [self.params["ms"] if ms is None else ms, *base],
            "retries": retries,
        }
        if after:
            command["pretasks"] = [tid for tid, _ in after]
            command["prekeys"] = [key for _, key in after]
        if keys:
            command["keys"] = list(keys)
        self.commands.append(command)
        self.next_tid += 1
        return self.next_tid - 1

    def finish(self, values: Any, taskids: list[int] | None = None) -> None:
        """End the job."""
        self.commands.append({"finish": taskids or [], "values": values})
        self.is_over = True

    # --- events ---

    def init(self) -> None:
        """Begin."""

    def task_done(self, tid: int, values: Values) -> None:
        """A task is done."""

    def task_failed(self, tid: int) -> None:
        """A task failed for good."""
        self.commands.append({"fail": f"task {tid} failed"})
        self.is_over = True

    def timer(self, number: int) -> None:
        """A timer is over."""


class Chain(Plan):
    """One task after the other, each of which takes the value of the one before."""

    def init(self) -> None:
        length, before = self.params["width"], None
        for number in range(length):
            after = None if before is None else [(before, ("out", "blob")[number % 2])]
            keys = ("out",) if number == length - 1 else ()
            before = self.start("step", number, after=after, keys=keys)

    def task_done(self, tid: int, values: Values) -> None:
        if tid == self.params["width"] - 1:
            self.finish({"out": values["out"]}, [tid])


class Fan(Plan):
    """Many tasks, and one that takes all of them; another one takes some of them, too."""

    def init(self) -> None:
        width = self.params["width"]
        tids = [self.start("map", number) for number in range(width)]
        self.some = self.start("some", after=[(tid, "blob") for tid in tids[::2]])
        inputs = [(tid, "out") for tid in tids] + [(self.some, "n")]
        self.last = self.start("join", after=inputs, keys=("out", "blob"))

    def task_done(self, tid: int, values: Values) -> None:
        if tid == self.last:
            text = hashlib.sha256(values["blob"]).hexdigest()[:12]
            self.finish({"out": values["out"], "blob": text}, [self.some, self.last])


class Reduce(Plan):
    """Maps; then reduces, of which number and inputs depend on the maps' values."""

    def init(self) -> None:
        self.told: dict[int, int] = {}
        self.reduced: dict[int, str] = {}
        self.width = self.params["width"]
        for number in range(self.width):
            self.start("map", number, keys=("n",))

    def task_done(self, tid: int, values: Values) -> None:
        if tid < self.width:
            self.told[tid] = values["n"]
            if len(self.told) == self.width:
                self.reduce()
            return
        self.reduced[tid] = values["out"]
        if len(self.reduced) == self.reducers:
            kept = sorted(self.reduced)
            self.finish([self.reduced[each] for each in kept], kept)

    def reduce(self) -> None:
        """Start the second half."""
        self.reducers = 1 + sum(self.told.values()) % 4
        order = sorted(self.told, key=lambda tid: (self.told[tid], tid))
        for number in range(self.reducers):
            after = [(tid, "blob") for tid in order[number :: self.reducers]]
            self.start("reduce", number, after=after, keys=("out",))


class Timers(Plan):
    """Tasks that timers start; some that take for ever, until a timer kills them."""

    def init(self) -> None:
        self.done: dict[int, str] = {}
        self.left = self.params["width"]
        self.endless = [self.start("endless", number, ms=_FOR_EVER_MS) for number in range(2)]
        self.start("never", after=[(self.endless[0], "out")])
        for number in range(self.left):
            after_ms = self.params["pause_ms"] * (1 + number)
            self.commands.append({"timer": number, "after_ms": after_ms})

    def timer(self, number: int) -> None:
        if number == 0:
            self.commands += [{"kill": tid} for tid in self.endless]
        self.start("late", number, keys=("out",))

    def task_done(self, tid: int, values: Values) -> None:
        if "out" in values:
            self.done[tid] = values["out"]
            if len(self.done) == self.left:
                self.finish([self.done[tid] for tid in sorted(self.done)])


class Failing(Plan):
    """Tasks that fail some times, and such that always do."""

    def init(self) -> None:
        self.ends: dict[int, str] = {}
        tries = [self.start("stumble", n % 3, n, keys=("out",)) for n in range(self.width)]
        self.start("join", after=[(tid, "out") for tid in tries], keys=("out",))
        self.start("hopeless", retries=1)
        self.start("fatal")

    @property
    def width(self) -> int:
        """How many fail some times."""
        width: int = self.params["width"]
        return width

    def task_done(self, tid: int, values: Values) -> None:
        self.end(tid, values["out"])

    def task_failed(self, tid: int) -> None:
        self.end(tid, "failed")

    def end(self, tid: int, what: str) -> None:
        """Note how a task ended."""
        self.ends[tid] = what
        if len(self.ends) == self.next_tid:
            self.finish([self.ends[tid] for tid in sorted(self.ends)], [self.width])


class Hopeless(Plan):
    """A job that fails, as its scheduler says so."""

    def init(self) -> None:
        self.start("hopeless", retries=2)


class Released(Plan):
    """A chain whose results are released behind it."""

    def init(self) -> None:
        self.start("step", 0, keys=("out",))

    def task_done(self, tid: int, values: Values) -> None:
        self.commands.append({"log": f"step {tid}: {values['out']}"})
        if tid == self.params["width"]:
            self.finish(values["out"], [tid])
            return
        self.start("step", tid + 1, after=[(tid, "out")], keys=("out",))
        if tid > 0:
            self.commands.append({"release": [tid - 1]})


class Dice(Plan):
    """Tasks that give other bytes each time that they run.

    The scheduler is told some of the values, and not the others; "look" tells what it
    consumed of both.
    """

    is_told = True
    look_ms = 0  # beside what all tasks take

    def init(self) -> None:
        width, ms = self.params["width"], self.params["ms"] + self.look_ms
        shown = width if self.is_told else 0
        self.told: dict[str, int] = {}
        self.open = [self.start("dice", number, keys=("face",)) for number in range(shown)]
        self.hidden = [self.start("dice", number) for number in range(width)]
        between = [
            self.start("look", number, after=[(tid, "blob")], ms=ms)
            for number, tid in enumerate(self.hidden)
        ]
        inputs = [(tid, "face") for tid in self.open]
        inputs += [(tid, "blob") for tid in self.hidden]
        inputs += [(tid, "seen") for tid in between]
        self.last = self.start("look", after=inputs, keys=("seen",))

    def task_done(self, tid: int, values: Values) -> None:
        if "face" in values:
            self.told[str(tid)] = values["face"]
        if tid == self.last:
            # Its inputs were told before: what it consumed was canonical.
            told = {str(each): self.told[str(each)] for each in self.open}
            self.finish({"told": told, "seen": values["seen"]}, [*self.hidden, self.last])


class HiddenDice(Dice):
    """Likewise, but nobody is told what the dice show: they may be thrown again at any time.

    Those who look take long.
    """

    is_told = False
    look_ms = 300


class Many(Plan):
    """Tasks that do nothing, by the hundred; their starts come in several parts."""

    def init(self) -> None:
        self.done = 0
        self.count = 10 * self.params["width"]
        for number in range(self.count):
            self.start("none", number, ms=0)

    def task_done(self, tid: int, values: Values) -> None:
        self.done += 1
        if self.done == self.count:
            self.finish({"done": self.done})


_PLANS: dict[str, type[Plan]] = {
    "chain": Chain,
    "fan": Fan,
    "reduce": Reduce,
    "timers": Timers,
    "failing": Failing,
    "hopeless": Hopeless,
    "released": Released,
    "dice": Dice,
    "hidden dice": HiddenDice,
    "many": Many,
}
KINDS = tuple(_PLANS)


class SchedulerProgram:
    """One run of a scheduler: lines in, lines out. `READY` comes before all of them.

    Args:
        rules: Those of its job; from 2 on, every other kind of cut says what it handles.
    """

    def __init__(self, rules: int = 1) -> None:
        self._rules = rules
        self._plan: Plan | None = None
        self._cut = 1

    def feed(self, line: bytes) -> bytes:
        """Take one line, and return what the program writes."""
        event = json.loads(line)
        if "control" in event:
            return b""
        if event["kind"] == "init":
            made = event["params"]
            self._cut = made["cut"]
            self._plan = _PLANS[made["kind"]](made)
        plan = self._plan
        assert plan is not None, f"no init before {line!r}"
        if not plan.is_over:
            match event["kind"]:
                case "init":
                    if self._rules > 1 and self._cut % 2:
                        plan.commands.append({"handles": ["task_done", "task_failed", "timer"]})
                    plan.init()
                case "task_done":
                    values = dict(event["values"])
                    for key, text in event.get("base64", {}).items():
                        values[key] = base64.b64decode(text)
                    plan.task_done(event["tid"], values)
                case "task_failed":
                    plan.task_failed(event["tid"])
                case "timer":
                    plan.timer(event["timer"])
        commands, plan.commands = plan.commands, []
        return self._answer(event["event"], commands)

    def _answer(self, event: int, commands: list[dict[str, Any]]) -> bytes:
        if not commands:
            return b'{"event":%d}\n' % event
        lines = []
        for part, first in enumerate(range(0, len(commands), self._cut)):
            some = commands[first : first + self._cut]
            last = first + self._cut >= len(commands)
            answer = {"event": event, "part": part, "last": last, "commands": some}
            lines.append(json.dumps(answer, separators=(",", ":")) + "\n")
        return "".join(lines).encode()


# --- what is submitted ---------------------------------------------------------------------


def manifest(kind: str) -> dict[str, Any]:
    """Return what `POST /v1/jobs` names as the manifest, as an object."""
    return {"name": kind, "scheduler": ["scheduler"], "node": ["node"], "params": {}}


@lru_cache
def archive(kind: str) -> bytes:
    """Return what `POST /v1/programs` takes: a real archive, of files that say their kind."""
    file = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name in ("node", "scheduler"):
            content = f"{kind}\n".encode()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def params(kind: str, random: Random) -> str:
    """Draw the parameters of a job, JSON."""
    drawn = {
        "kind": kind,
        "width": random.randrange(1, 7),
        "ms": random.choice((0, 1, 5, 20, 100, 400)),
        "pause_ms": random.choice((10, 100, 700)),
        "cut": random.choice((1, 3, 1_000)),
    }
    return json.dumps(drawn, separators=(",", ":"))


def is_random(kind: str) -> bool:
    """Whether the result depends on chance; then it says itself what must agree."""
    return kind in ("dice", "hidden dice")


def may_fail(kind: str, error: str) -> bool:
    """Whether a job of this kind may end as failed like that, where things go wrong."""
    if error.startswith(("the scheduler", "on ")) and ("it crashed" in error):
        return True  # Its scheduler's process did, on most replicas, too often.
    if is_random(kind):
        return "and returned other values than its scheduler was told" in error
    if kind == "released":
        return "was lost and can't be computed again" in error and "was released" in error
    return False


@lru_cache(maxsize=4096)
def expected(kind: str, params: str, seed: int) -> Outcome | None:
    """Return how a job must end; None: that depends on chance."""
    return None if is_random(kind) else ideal(params, seed, Random(0))


def ideal(params: str, seed: int, random: Random) -> Outcome:
    """Run a job where nothing goes wrong, and return how it ends."""
    return _Ideal(seed, random).run(params)


@dataclass(slots=True)
class _Task:
    start: dict[str, Any]
    attempt: int = 0
    values: Values | None = None
    is_over: bool = False


class _Ideal:
    """A cluster of one, without time."""

    def __init__(self, seed: int, random: Random) -> None:
        self._seed = seed
        self._random = random
        self._tasks: list[_Task] = []
        self._timers: list[tuple[int, int]] = []
        self._program = SchedulerProgram()
        self._events = 0
        self._outcome: Outcome | None = None

    def run(self, params: str) -> Outcome:
        """Raise events until the job has ended."""
        self._raise({"kind": "init", "seed": self._seed, "params": json.loads(params)})
        while self._outcome is None:
            if not self._run_one():
                self._timers.sort()
                assert self._timers, f"job {params} waits for nothing"
                self._raise({"kind": "timer", "timer": self._timers.pop(0)[1]})
        return self._outcome

    def _run_one(self) -> bool:
        for tid, task in enumerate(self._tasks):
            if task.is_over or task.start["base"][0] == _FOR_EVER_MS:
                continue
            pretasks, prekeys = task.start.get("pretasks", ()), task.start.get("prekeys", ())
            inputs = zip(pretasks, prekeys, strict=True)
            found = [(self._tasks[pretid].values, key) for pretid, key in inputs]
            if any(values is None for values, _ in found):
                continue
            task.attempt += 1
            args = task.start["base"] + [values[key] for values, key in found if values]
            seed = task_seed(self._seed, TaskId(tid))
            done = work(task.start["start"], args, seed, task.attempt, self._random)
            if isinstance(done, TaskError):
                if not done.retry or task.attempt > task.start["retries"]:
                    task.is_over = True
                    self._raise({"kind": "task_failed", "tid": tid})
            else:
                task.values, task.is_over = done, True
                told = {key: done[key] for key in task.start.get("keys", ())}
                raw = {
                    key: base64.b64encode(value).decode()
                    for key, value in told.items()
                    if isinstance(value, bytes)
                }
                told = {key: value for key, value in told.items() if key not in raw}
                self._raise({"kind": "task_done", "tid": tid, "values": told, "base64": raw})
            return True
        return False

    def _raise(self, event: dict[str, Any]) -> None:
        line = json.dumps({"event": self._events, **event}).encode()
        self._events += 1
        for answer in self._program.feed(line).splitlines():
            for command in json.loads(answer).get("commands", ()):
                self._apply(command)

    def _apply(self, command: dict[str, Any]) -> None:
        if "start" in command:
            self._tasks.append(_Task(command))
        elif "kill" in command:
            self._tasks[command["kill"]].is_over = True
        elif "timer" in command:
            self._timers.append((command["after_ms"], command["timer"]))
        elif "finish" in command and self._outcome is None:
            text = json.dumps(command["values"], separators=(",", ":"))
            kept = {tid: self._tasks[tid].values or {} for tid in command["finish"]}
            self._outcome = Outcome("finished", text, kept)
        elif "fail" in command and self._outcome is None:
            self._outcome = Outcome("failed", command["fail"])
