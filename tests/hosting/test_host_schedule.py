"""Hosts over the real state machine and the real lines: a job driven by timers to its end.

Each of three replicas has a Schedule of its own and applies the same entries; their
processes are functions that read and write the scheduler protocol's lines. Leaders
change, proposals get lost, and replicas restart from their rows.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tasksprint.coordination.commands import Command, SubmitJob, Tick, encode_command
from tasksprint.coordination.rows import Row
from tasksprint.coordination.schedule import Schedule
from tasksprint.hosting.host import SchedulerHost
from tasksprint.ids import JobId, ReplicaId, Slot
from tasksprint.protocol.scheduler_lines import SchedulerAnswer, SchedulerReader, SchedulerReady
from tasksprint.settings import RULES, Settings
from tests.coordination.mirror_rows import MirrorRows

JOB = JobId(1)
MEMBERS = (ReplicaId(1), ReplicaId(2), ReplicaId(3))
SETTINGS = Settings(scheduler_window_events=5)
TIMERS = 12


class Process:
    """A scheduler that starts timers, then tasks at each, and ends after the last one."""

    def __init__(self) -> None:
        self._rung = 0
        self._tid = 0

    def read(self, data: bytes) -> bytes:
        return b"".join(self._answer(json.loads(line)) for line in data.splitlines())

    def _answer(self, event: dict[str, Any]) -> bytes:
        if "control" in event:
            return b""
        parts: list[list[dict[str, object]]] = [[]]
        if event["kind"] == "init":
            parts = [[{"timer": number, "after_ms": 100 * number} for number in range(TIMERS)]]
        elif event["kind"] == "timer":
            self._rung += 1
            if self._rung == TIMERS:
                parts = [[{"finish": [], "values": {"tasks": self._tid}}]]
            elif self._rung % 3 == 0:
                parts = [[self._start(), self._start()], [self._start()]]
            elif self._rung % 3 == 1:
                parts = [[self._start()]]
        if parts == [[]]:
            return b'{"event":%d}\n' % event["event"]
        return b"".join(
            json.dumps(
                {
                    "event": event["event"],
                    "part": number,
                    "last": number == len(parts) - 1,
                    "commands": commands,
                }
            ).encode()
            + b"\n"
            for number, commands in enumerate(parts)
        )

    def _start(self) -> dict[str, object]:
        self._tid += 1
        return {"start": f"task {self._tid}", "tid": self._tid - 1}


class Replica:
    """One replica: its state, its mirror, its host and process."""

    def __init__(self, number: ReplicaId) -> None:
        self.number = number
        self.mirror: dict[tuple[str, tuple[int | str, ...]], Row] = {}
        self.schedule = Schedule(cluster="c", members=MEMBERS, rules=RULES)
        self.host: SchedulerHost | None = None
        self.proposed: list[Command] = []
        self.notes: list[str] = []
        self.is_leader = False
        self._process: Process | None = None

    def apply(self, slot: Slot, commands: tuple[bytes, ...], now_ms: int) -> None:
        applied = self.schedule.apply(slot, commands)
        for row in applied.rows:
            self.mirror[row.table, row.key] = row
        if self.host is None:
            if self.schedule.is_running(JOB):
                self.start_host(now_ms)
            return
        self.host.events_chosen([event.line for _, event in applied.events], now_ms)
        self.host.answers_chosen([answer for _, answer in applied.answers], now_ms)
        if not self.schedule.is_running(JOB):
            self.host.job_ended(now_ms)
        self.do_effects(now_ms)

    def restart(self, now_ms: int) -> None:
        mirror = MirrorRows(row for row in self.mirror.values() if row.columns is not None)
        self.schedule = Schedule(cluster="c", members=MEMBERS, rules=RULES, mirror=mirror)
        self.host = self._process = None
        if self.schedule.is_running(JOB):
            self.start_host(now_ms)

    def start_host(self, now_ms: int) -> None:
        history = self.schedule.scheduler_history(JOB)
        self.host = SchedulerHost(
            job=JOB,
            replica=self.number,
            settings=SETTINGS,
            events=[],
            event_count=history.event_count,
            answers={},
            answered_end=history.answered_end,
            next_tid=history.next_tid,
            now_ms=now_ms,
        )
        self.host.lead(now_ms, is_leader=self.is_leader)
        self.do_effects(now_ms)

    def lead(self, now_ms: int, *, is_leader: bool) -> None:
        self.is_leader = is_leader
        if self.host is not None:
            self.host.lead(now_ms, is_leader=is_leader)
            self.do_effects(now_ms)

    def tick(self, now_ms: int) -> None:
        if self.host is not None:
            self.host.tick(now_ms)
            self.do_effects(now_ms)

    def do_effects(self, now_ms: int) -> None:
        host = self.host
        assert host is not None
        while (effects := host.effects()) is not None:
            self.notes += effects.notes
            self.proposed += effects.propose
            assert effects.out is None
            if effects.stop:
                self._process = None
                host.exited("exit code 0", "", now_ms)
            if effects.start:
                self._process = Process()
                self._reader = SchedulerReader(who="scheduler", line_bytes_max=10_000)
                self._hear(b'{"ready":{}}\n', now_ms)
            if effects.read is not None:
                number, first, end = effects.read
                lines = [self.mirror["events", (JOB, event)] for event in range(first, end)]
                host.history_read(
                    number,
                    [str(row.columns[0]).encode() for row in lines if row.columns],
                    [
                        (int(row.key[1]), int(row.key[2]), str(row.columns[0]))
                        for row in self.mirror.values()
                        if row.table == "answers" and row.columns
                        if first <= int(row.key[1]) < end
                    ],
                    now_ms,
                )
            if effects.write:
                assert self._process is not None
                self._hear(self._process.read(effects.write), now_ms)

    def _hear(self, data: bytes, now_ms: int) -> None:
        assert self.host is not None
        messages = self._reader.feed(data)
        if any(isinstance(message, SchedulerReady) for message in messages):
            self.host.ready(now_ms)
        answers = [message for message in messages if isinstance(message, SchedulerAnswer)]
        self.host.answered(answers, now_ms)
        self.host.check()


@pytest.mark.parametrize("seed", range(12))
def test_job_ends_alike_on_all_replicas_through_changes_and_restarts(seed: int) -> None:
    chance = random.Random(seed)
    replicas = [Replica(number) for number in MEMBERS]
    now_ms = 0
    submit = SubmitJob("me", 1, "timers", 1, "{}", "p", '{"node":"node.py"}')
    waiting: list[Command] = [submit]
    for slot in range(1, 2_000):
        now_ms += chance.choice([1, 100, 1_000])
        if chance.random() < 0.3:
            leader = chance.choice(replicas)
            for replica in replicas:
                replica.lead(now_ms, is_leader=replica is leader)
        if chance.random() < 0.1:
            chance.choice(replicas).restart(now_ms)
        for replica in replicas:
            replica.tick(now_ms)
            if chance.random() < 0.8:  # Else it is lost.
                waiting += replica.proposed
            replica.proposed.clear()
        if chance.random() < 0.5:
            waiting.append(Tick(150, now_ms))
        chance.shuffle(waiting)
        entry = tuple(encode_command(command) for command in waiting)
        waiting.clear()
        for replica in replicas:
            replica.apply(Slot(slot), entry, now_ms)
        assert len({replica.schedule.digest for replica in replicas}) == 1
        summary = replicas[0].schedule.job_summary(JOB)
        if summary is not None and summary["state"] != "running":
            break
    assert summary is not None
    assert summary["state"] == "finished"
    assert summary["values"] == '{"tasks": 13}'
    for replica in replicas:
        assert replica.notes == []
        assert replica.host is None or replica.host.status.state == "ended"
