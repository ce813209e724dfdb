"""Two clients under a coordinator that changes its mind all the time; nothing may break them."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from tasksprint.coordination.view import (
    Assignment,
    ClientAddress,
    Drop,
    DropJob,
    Input,
    JobEntry,
    Stop,
)
from tasksprint.ids import ClientId, JobId, TaskId
from tests.roles.client_world import PROGRAM, World, assignment, run, until, view, world

COMMAND = '{"node":["node.py"]}'
# Each kind of answer and of end; bytes are larger than what stands in a row of the store.
NODE = """
import json, os, sys, time

out = sys.stdout.buffer
out.write(b'{"ready":{},"frames":true,"window":8}\\n')
out.flush()
while line := sys.stdin.buffer.readline():
    task = json.loads(line)
    for _, size in task.get("frames", ()):
        sys.stdin.buffer.read(size)
    name, number = task["name"], task["id"]
    if name == "die":
        os.kill(os.getpid(), 9)
    if name == "slow":
        time.sleep(0.03)
    if name == "print":
        print("x" * 100_000, file=sys.stderr, flush=True)
    fill = b"%d %d %d " % (task["job"], task["task"], task["attempt"]) * 20_000
    if name == "frames":
        out.write(b'{"id":%d,"frames":[["result",%d]]}\\n' % (number, len(fill)) + fill)
    elif name == "file":
        path = os.path.abspath("%d" % os.getpid())
        with open(path, "wb") as file:
            file.write(fill)
        out.write(b'{"id":%d,"files":{"result":"%s"}}\\n' % (number, path.encode()))
    elif name == "fail":
        out.write(b'{"id":%d,"error":"no"}\\n' % number)
    else:
        out.write(b'{"id":%d,"values":{"result":%d}}\\n' % (number, task["attempt"]))
    out.flush()
    if name == "leave":
        sys.exit(0)
"""
NAMES = ["good"] * 4 + ["frames", "file", "slow", "print", "fail", "leave", "die"]


class Whims:
    """What the coordinator of one scenario does next."""

    def __init__(self, seed: int, worlds: list[World]) -> None:
        self.random = random.Random(seed)
        self.worlds = worlds
        self.coordinator = worlds[0].coordinator
        self.job = 1
        self.next_tid = 0
        self.assigned: dict[int, dict[int, Assignment]] = {1: {}, 2: {}}

    def step(self) -> None:
        whim = self.random.random()
        cid = self.random.choice((1, 2))
        if whim < 0.70:
            self.assign(cid, self.random.randint(1, 12))
        elif whim < 0.82:
            self.stop(cid)
        elif whim < 0.92:
            self.drop(cid)
        elif whim < 0.95:
            self.end_job()
        elif whim < 0.97:
            self.coordinator.declare_dead(cid)
            self.assigned[cid].clear()

    def assign(self, cid: int, count: int) -> None:
        run = []
        for _ in range(count):
            old = list(self.assigned[cid].values())
            if old and self.random.random() < 0.2:
                before = self.random.choice(old)
                tid, attempt = before.tid, before.attempt + 1
            else:
                tid, attempt = TaskId(self.next_tid), 1
                self.next_tid += 1
            one = assignment(
                tid,
                job=self.job,
                attempt=attempt,
                name=self.random.choice(NAMES),
                inputs=self.inputs(cid, tid),
                keys=("result",) if self.random.random() < 0.1 else (),
                timeout_ms=self.random.choice((None, None, None, 20)),
            )
            self.assigned[cid][tid] = one
            run.append(one)
        addresses = tuple(
            ClientAddress(ClientId(n), each.address) for n, each in enumerate(self.worlds, 1)
        )
        jobs = (JobEntry(JobId(self.job), PROGRAM, COMMAND),)
        self.coordinator.give(view(jobs=jobs, run=tuple(run), clients=addresses), cid)

    def inputs(self, cid: int, tid: int) -> tuple[Input, ...]:
        done = self.coordinator.done(self.job)
        found = []
        for pretask in self.random.sample(sorted(done), min(len(done), 3)):
            if pretask < tid and self.random.random() < 0.6:
                # Whoever holds it, or is said to: some are asked in vain.
                holders = self.random.choice(((1,), (2,), (1, 2)))
                found.append(
                    Input(
                        TaskId(pretask),
                        self.random.choice(("result", "result", "result", "other")),
                        done[pretask].result_digest,
                        tuple(map(ClientId, holders)),
                    )
                )
        ahead = [other for other in self.assigned[cid] if other < tid]
        if ahead and self.random.random() < 0.3:
            here = TaskId(self.random.choice(ahead))
            if here not in [one.tid for one in found]:
                found.append(Input(here, "result", None, (ClientId(cid),)))
        return tuple(found)

    def stop(self, cid: int) -> None:
        old = list(self.assigned[cid].values())
        chosen = self.random.sample(old, min(len(old), 3))
        self.coordinator.give(
            view(stop=tuple(Stop(one.job, one.tid, one.attempt) for one in chosen)), cid
        )

    def drop(self, cid: int) -> None:
        tids = [self.random.randrange(self.next_tid + 1) for _ in range(4)]
        done = self.coordinator.done(self.job)
        drops = []
        for tid in tids:
            is_exact = tid in done and self.random.random() < 0.5
            digest = done[tid].result_digest if is_exact else None
            drops.append(Drop(JobId(self.job), TaskId(tid), digest))
        self.coordinator.give(view(drop=tuple(drops)), cid)

    def end_job(self) -> None:
        for cid in (1, 2):
            keep = tuple(TaskId(tid) for tid in range(self.random.choice((0, 3))))
            self.coordinator.give(view(drop_jobs=(DropJob(JobId(self.job), keep),)), cid)
            self.assigned[cid].clear()
        self.job += 1
        self.next_tid = 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))]
)
def test_clients_survive_every_whim(seed: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "slots": 2,
        "value_cache_bytes_max": 300_000,
        "node_restart_pause_min_ms": 1,
        "node_restart_pause_max_ms": 10,
        "fetch_pause_max_ms": 200,
    }

    async def main() -> None:
        async with (
            world(tmp_path / "1", **options) as one,
            world(tmp_path / "2", coordinator=one.coordinator, **options) as two,
        ):
            worlds = [one, two]
            for each in worlds:
                each.program(NODE, name="node.py")
            whims = Whims(seed, worlds)
            steps = 0
            while steps < 120 or len(one.coordinator.completions) <= 20:
                steps += 1
                whims.step()
                await asyncio.sleep(whims.random.choice((0, 0.002, 0.02, 0.03)))
                for each in worlds:
                    assert not each.client.stopped.done() or each.client.stopped.result()
                    each.client.workbench.check()
                    each.client.values.check()
            whims.end_job()
            for each in worlds:
                await until(lambda each=each: is_empty(each))  # type: ignore[misc]
                each.client.values.check()
                each.client.workbench.check()

    run(main)


def is_empty(each: World) -> bool:
    status = each.client.workbench.summary()
    assert not each.client.stopped.done() or each.client.stopped.result()
    is_waiting = any(status["tasks"].values()) or status["copies"] or status["fetches"]
    return not is_waiting and not each.client.durable.unstored_bytes
