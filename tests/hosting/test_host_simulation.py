"""Three hosts of one job over one log, in any order of deliveries, leaders and crashes.

Checked: the chosen history is the one that a single undisturbed scheduler gives; each
part is chosen once; deterministic schedulers never differ; a differing one is found
and changes nothing; once the trouble ends, every event gets its answer.
Not checked: time limits of stuck processes (test_host.py), the log itself (consensus).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from tasksprint.coordination.applied import ChosenAnswer, EmptyAnswers
from tasksprint.coordination.commands import Answer, AnswerPart, SchedulerOut, answer_digest
from tasksprint.hosting.host import SchedulerHost
from tasksprint.ids import JobId, ReplicaId, TaskId
from tasksprint.protocol.scheduler_lines import SchedulerAnswer
from tasksprint.scheduler_commands import KillTask, SchedulerCommand
from tasksprint.settings import Settings
from tasksprint.task_spec import TaskSpec

JOB = JobId(1)
SETTINGS = Settings(scheduler_window_events=7)

Part = tuple[int, int, bool, tuple[SchedulerCommand, ...]]
Scheduler = Callable[[int], list[tuple[SchedulerCommand, ...]]]


def deterministic(event: int) -> list[tuple[SchedulerCommand, ...]]:
    """Return the parts of the answer to an event: none, one or three."""
    chance = random.Random(event)
    kind = chance.randrange(6)
    if kind == 0:
        return [tuple(TaskSpec(f"t{event}") for _ in range(chance.randrange(1, 4)))]
    if kind == 1:
        return [(TaskSpec("a"), TaskSpec("b")), (), (KillTask(TaskId(0)),)]
    return [()]


def differing(from_event: int) -> Scheduler:
    """Return a scheduler that goes its own ways, and other ways at each call."""
    calls = [0]

    def answer(event: int) -> list[tuple[SchedulerCommand, ...]]:
        calls[0] += 1
        if event < from_event:
            return deterministic(event)
        return [(TaskSpec(f"chance {calls[0]}"),)]

    return answer


def all_parts(scheduler: Scheduler, event_end: int) -> list[Part]:
    result: list[Part] = []
    for event in range(event_end):
        parts = scheduler(event)
        for number, commands in enumerate(parts):
            result.append((event, number, number == len(parts) - 1, commands))
    return result


class Log:
    """The chosen history, and the rule by which the state machine takes answers."""

    def __init__(self) -> None:
        self.items: list[bytes | ChosenAnswer | EmptyAnswers] = []
        self.event_count = 0
        self.next = (0, 0)
        self.next_tid = 0
        self.chosen: list[Part] = []

    def add_event(self) -> None:
        self.items.append(b'{"event":%d,"kind":"timer","timer":1}' % self.event_count)
        self.event_count += 1

    def apply(self, answer: Answer) -> None:
        """Take exactly the job's next parts, and ignore all others."""
        pieces: list[tuple[int, int, tuple[int, int] | AnswerPart]] = [
            (first, 0, (first, end)) for first, end in answer.empty
        ]
        pieces += [(part.event, part.part, part) for part in answer.parts]
        for _, _, piece in sorted(pieces, key=lambda piece: piece[:2]):
            if isinstance(piece, tuple):
                first, end = max(piece[0], self.next[0]), min(piece[1], self.event_count)
                if self.next == (first, 0) and first < end:
                    self.items.append(EmptyAnswers(first, end))
                    self.chosen += [(event, 0, True, ()) for event in range(first, end)]
                    self.next = (end, 0)
                continue
            if self.next == (piece.event, piece.part) and piece.first_tid == self.next_tid:
                self._choose(piece.event, piece.part, piece.last, piece.commands)

    def _choose(
        self, event: int, part: int, last: bool, commands: tuple[SchedulerCommand, ...]
    ) -> None:
        started = sum(isinstance(command, TaskSpec) for command in commands)
        digest = answer_digest(TaskId(self.next_tid), last, commands)
        self.items.append(ChosenAnswer(event, part, last, digest, started, commands))
        self.chosen.append((event, part, last, commands))
        self.next_tid += started
        self.next = (event + 1, 0) if last else (event, part + 1)


class Process:
    """A scheduler's process: reads lines, answers events in order."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.waiting: list[SchedulerAnswer] = []
        self._next_event = 0
        self._replay_end: int | None = None
        self._is_live = False

    def read(self, data: bytes) -> None:
        for text in data.splitlines():
            line = json.loads(text)
            if line.get("control") == "replay":
                assert self._next_event == 0 and self._replay_end is None
                self._replay_end = line["end_event"]
            elif line.get("control") == "live":
                assert self._next_event == self._replay_end and not self._is_live
                self._is_live = True
            else:
                assert line["event"] == self._next_event
                is_new = self._next_event >= (self._replay_end or 0)
                assert self._is_live == (is_new and self._replay_end is not None)
                self._next_event += 1
                parts = self._scheduler(line["event"])
                for number, commands in enumerate(parts):
                    last = number == len(parts) - 1
                    self.waiting.append(SchedulerAnswer(line["event"], number, last, commands))
        assert len({answer.event for answer in self.waiting}) <= SETTINGS.scheduler_window_events

    def answer(self, count: int) -> list[SchedulerAnswer]:
        answers, self.waiting = self.waiting[:count], self.waiting[count:]
        return answers


class Replica:
    """One host with its process and its own prefix of the log."""

    def __init__(self, world: World, number: int, scheduler: Scheduler) -> None:
        self.world = world
        self.number = number
        self.scheduler = scheduler
        self.applied = 0
        self.restart()

    def restart(self) -> None:
        """The whole replica restarts: what it applied is in its store."""
        events: list[bytes] = []
        digests: dict[tuple[int, int], str] = {}
        self.process: Process | None = None
        self.outs: list[SchedulerOut] = []
        self.notes: list[str] = []
        answered_end, next_tid = (0, 0), 0
        for item in self.world.log.items[: self.applied]:
            if isinstance(item, bytes):
                events.append(item)
            elif isinstance(item, EmptyAnswers):
                answered_end = item.end_event, 0
            else:
                digests[item.event, item.part] = item.digest
                next_tid += item.tasks_started
                answered_end = (item.event + 1, 0) if item.last else (item.event, item.part + 1)
        self.host = SchedulerHost(
            job=JOB,
            replica=ReplicaId(self.number),
            settings=SETTINGS,
            events=events,
            answers=digests,
            answered_end=answered_end,
            next_tid=next_tid,
            now_ms=self.world.now_ms,
        )
        self.do_effects()

    def deliver(self, count: int) -> None:
        """Apply the next items of the log."""
        items = self.world.log.items[self.applied : self.applied + count]
        self.applied += len(items)
        now_ms = self.world.now_ms
        self.host.events_chosen([item for item in items if isinstance(item, bytes)], now_ms)
        self.host.answers_chosen([item for item in items if not isinstance(item, bytes)], now_ms)
        self.do_effects()

    def answer(self, count: int) -> None:
        if self.process is not None:
            self.host.answered(self.process.answer(count), self.world.now_ms)
            self.do_effects()

    def crash(self) -> None:
        if self.process is not None:
            self.process = None
            self.host.exited("signal 9 (SIGKILL)", "", self.world.now_ms)
            self.do_effects()

    def tick(self) -> None:
        self.host.tick(self.world.now_ms)
        self.do_effects()

    def lead(self, *, is_leader: bool) -> None:
        self.host.lead(self.world.now_ms, is_leader=is_leader)
        self.do_effects()

    def do_effects(self) -> None:
        self.host.check()
        effects = self.host.effects()
        if effects is None:
            return
        self.notes += effects.notes
        self.world.proposals += effects.propose
        if effects.out is not None:
            self.outs.append(effects.out)
            self.host.out_chosen()
        if effects.write:
            assert self.process is not None
            self.process.read(effects.write)
        if effects.stop:
            self.process = None
            self.host.exited("signal 9 (SIGKILL)", "", self.world.now_ms)
            self.do_effects()
        if effects.start:
            self.process = Process(self.scheduler)
            self.host.ready(self.world.now_ms)
            self.do_effects()
        self.host.check()


class World:
    """All of it, and the clock."""

    def __init__(self, schedulers: list[Scheduler]) -> None:
        self.now_ms = 0
        self.log = Log()
        self.log.add_event()
        self.proposals: list[Answer] = []
        self.replicas = [
            Replica(self, number, scheduler)
            for number, scheduler in enumerate(schedulers, start=1)
        ]

    def step(self, chance: random.Random) -> None:
        replica = chance.choice(self.replicas)
        match chance.randrange(16):
            case 0 | 1:
                for _ in range(chance.randrange(1, 5)):
                    self.log.add_event()
            case 2 | 3 | 4 | 5:
                replica.deliver(chance.randrange(1, 12))
            case 6 | 7 | 8 | 9:
                replica.answer(chance.randrange(1, 12))
            case 10 | 11 if self.proposals:
                # In any order, some of them twice.
                index = chance.randrange(len(self.proposals))
                self.log.apply(self.proposals[index])
                if chance.random() < 0.8:
                    del self.proposals[index]
            case 12 if self.proposals and chance.random() < 0.3:
                self.proposals.clear()
            case 13:
                replica.lead(is_leader=chance.random() < 0.5)  # Two may believe that they lead.
            case 14:
                self.now_ms += chance.choice([1, 50, 500, 3_000])
                replica.tick()
            case 15 if chance.random() < 0.3:
                if chance.random() < 0.5:
                    replica.crash()
                else:
                    replica.restart()
            case _:
                pass

    def heal(self, leader: Replica) -> None:
        """No more trouble: everything arrives, one leads."""
        for replica in self.replicas:
            replica.lead(is_leader=replica is leader)
        for _ in range(200):
            self.now_ms += 300
            for replica in self.replicas:
                replica.tick()
                replica.answer(1_000)
                replica.deliver(1_000)
            for proposal in self.proposals:
                self.log.apply(proposal)
            self.proposals.clear()
            if self.log.next == (self.log.event_count, 0) and all(
                replica.applied == len(self.log.items)
                and replica.host.status.answered_end == self.log.event_count
                for replica in self.replicas
                if not replica.outs
            ):
                return


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(0, 250))
def test_deterministic_scheduler_gives_one_history_whatever_happens(seed: int, steps: int) -> None:
    chance = random.Random(seed)
    world = World([deterministic] * 3)
    for _ in range(steps):
        world.step(chance)
        assert (
            world.log.chosen
            == all_parts(deterministic, world.log.event_count)[: len(world.log.chosen)]
        )
    for replica in world.replicas:
        assert not any("the log says" in note for note in replica.notes), replica.notes
    alive = [replica for replica in world.replicas if not replica.outs]
    if not alive:
        return  # Each was killed twice at one place.
    world.heal(alive[0])
    assert world.log.chosen == all_parts(deterministic, world.log.event_count)
    assert all(replica.applied == len(world.log.items) for replica in world.replicas)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(0, 250), from_event=st.integers(0, 12))
def test_differing_scheduler_on_a_follower_changes_nothing_and_is_found(
    seed: int, steps: int, from_event: int
) -> None:
    chance = random.Random(seed)
    world = World([deterministic, deterministic, differing(from_event)])
    good = world.replicas[:2]
    good[0].lead(is_leader=True)
    for _ in range(steps):
        replica = chance.choice(world.replicas)
        match chance.randrange(8):
            case 0 | 1:
                world.log.add_event()
            case 2 | 3:
                replica.deliver(chance.randrange(1, 12))
            case 4 | 5:
                replica.answer(chance.randrange(1, 12))
            case 6:
                for proposal in world.proposals:
                    world.log.apply(proposal)
                world.proposals.clear()
            case _:
                world.now_ms += 100  # Within the grace: the follower stands in for nobody.
                if chance.random() < 0.1:
                    replica.tick()
        world.now_ms = min(world.now_ms, 1_500)
    world.heal(good[0])
    assert world.log.chosen == all_parts(deterministic, world.log.event_count)
    assert not good[0].outs and not good[1].outs
    if world.log.event_count > from_event:
        assert [out.kind for out in world.replicas[2].outs] == ["diverged"]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(0, 250))
def test_schedulers_that_all_differ_never_mix_within_one_part(seed: int, steps: int) -> None:
    """What is chosen is still one history: each part once, in order, tids without a gap."""
    chance = random.Random(seed)
    world = World([differing(2), differing(2), differing(2)])
    for _ in range(steps):
        world.step(chance)
    positions = [(event, part) for event, part, _, _ in world.log.chosen]
    assert positions == sorted(set(positions))
    for (event, part, last, _), (next_event, next_part, _, _) in zip(
        world.log.chosen, world.log.chosen[1:], strict=False
    ):
        assert (next_event, next_part) == ((event + 1, 0) if last else (event, part + 1))
