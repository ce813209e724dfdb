"""People on virtual time: they submit, watch, cancel and forget jobs, and note what they hear.

Each request goes to a coordinator at random, or to the one that was last said to lead, as
commands do it. Every try is an operation of its own in the history; one that may have been
decided without an answer is of unknown outcome. Judges nothing but the form of answers.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from tasksprint.encoding import encode_json
from tasksprint.net.http_messages import MISDIRECTED
from tests.linearizability.checker import Operation
from tests.linearizability.job_store import ABSENT, FORGOTTEN, RUNNING
from tests.simulation import jobs
from tests.simulation.world import Unreachable

if TYPE_CHECKING:
    from tests.simulation.world import SimProcess, World

__all__ = ["JobRequest", "KeptResults", "People", "now_us"]

_UNAVAILABLE = 503
_NOT_FOUND = 404
# Answers to commands that make no sense now: the log says so, and for good.
_REFUSALS = (404, 409)
_TRY_PAUSE_S = 0.1
_TIMEOUT_MS = 3_000.0
# A submit that nobody acknowledges for so long is left alone, until all is healed.
_PATIENCE_MS = 10_000.0


@dataclass(frozen=True, slots=True)
class JobRequest:
    """One job that somebody wants."""

    sender: str
    request: int
    kind: str
    seed: int
    params: str

    @property
    def program(self) -> str:
        """The digest of its archive."""
        return hashlib.sha256(jobs.archive(self.kind)).hexdigest()


# Of a finished job: the values of the tasks that it keeps, as clients gave them.
KeptResults = dict[int, dict[str, bytes]]


def now_us(world: World) -> int:
    """Return true virtual time for a history."""
    return int(world.now * 1_000)


class People:
    """All people of a seed, what they want, and what they know."""

    def __init__(self, world: World) -> None:
        random = world.random
        self.world = world
        self.random = Random(random.random())
        self.history: list[Operation] = []
        self.requests: list[JobRequest] = []
        self.acknowledged: dict[int, JobRequest] = {}  # by job
        self.to_forget: set[int] = set()  # jobs that somebody has asked to forget
        self.results: dict[int, KeptResults] = {}
        self.counts: Counter[str] = Counter()
        # Whether no client has lost what it stored.
        self.must_be_kept: Callable[[], bool] = lambda: True
        self._open: dict[int, Operation] = {}  # tries under way
        self._tries = 0
        self._leader: str | None = None
        self._is_over = False
        self._at_work: list[_Person] = []
        self._is_settling = False  # Somebody will begin to see all to its end.
        self._last_number = 0
        self._job_max = random.choice((4, 8, 8, 16))
        self._pause_ms = random.choice((200.0, 800.0, 2_000.0))
        self._kinds = random.sample(jobs.KINDS, random.randint(1, len(jobs.KINDS)))

    def start(self) -> None:
        """Begin."""
        for number in range(self.random.choice((1, 2, 3))):
            self._person(f"submitter {number}", self._submit_jobs)
        for number in range(self.random.choice((0, 1, 2))):
            self._person(f"watcher {number}", self._watch)
        if self.random.random() < 0.5:
            self._person("canceller", self._cancel_jobs)
        if self.random.random() < 0.4:
            self._person("forgetter", self._forget_jobs)
        self._person("waiter", self._wait_for_results)
        for address in list(self.world.addresses.values()):
            if self.random.random() < 0.5:
                self._person(f"prober of {address}", partial(self._probe, address))

    def stop(self) -> None:
        """Begin nothing more, but wait for somebody to settle what was begun."""
        self._is_over = self._is_settling = True

    def settle(self) -> None:
        """See every job that was ever asked for to its end, now that all is healed."""
        self._is_settling = False
        self._person("settler", self._settle)

    def submit_last(self) -> None:
        """Submit one more job, and see it to its end."""
        self._person("last", self._submit_last)

    @property
    def is_settled(self) -> bool:
        """Whether everybody has done what there was to do."""
        return not self._at_work and not self._is_settling

    def describe(self) -> str:
        """Say what people do now."""
        return "; ".join(sorted(person.doing for person in self._at_work))

    def finished_history(self) -> list[Operation]:
        """Return all operations; those without an answer yet have an unknown outcome."""
        return [*self.history, *self._open.values()]

    # --- what people do ---

    def _person(
        self, who: str, work: Callable[[_Person], Coroutine[Any, Any, None]]
    ) -> None:
        process = self.world.spawn(who)
        person = _Person(self, who, process)
        self._at_work.append(person)

        async def guarded() -> None:
            await work(person)
            self._at_work.remove(person)

        process.start(guarded())

    def _draw(self, who: str, number: int, kind: str | None = None) -> JobRequest:
        random = self.random
        kind = kind or random.choice(self._kinds)
        job = JobRequest(who, number, kind, random.getrandbits(40), jobs.params(kind, random))
        self.requests.append(job)
        return job

    async def _submit_jobs(self, person: _Person) -> None:
        random, number = self.random, 0
        await person.pause(random.uniform(0, 1_500))
        while not self._is_over and len(self.requests) < self._job_max:
            number += 1
            job = self._draw(person.name, number)
            began = self.world.now
            while not self._is_over and self.world.now - began < _PATIENCE_MS:
                if await person.submit(job) is not None:
                    break
                await person.pause(100)
            if random.random() < 0.2:  # Somebody wasn't sure.
                await person.submit(job)
            await person.pause(self._pause_ms * random.uniform(0.1, 2))

    async def _watch(self, person: _Person) -> None:
        random = self.random
        while not self._is_over:
            await person.pause(random.uniform(50, 1_500))
            known = list(self.acknowledged)
            if not known or self._is_over:
                continue
            chance = random.random()
            if chance < 0.05:
                await person.list_jobs()
            elif chance < 0.15:
                # The next job: not there yet, or just made and not acknowledged.
                await person.ask(max(known) + random.choice((1, 1, 2)))
            else:
                await person.ask(random.choice(known[-10:]))

    async def _cancel_jobs(self, person: _Person) -> None:
        random, number = self.random, 0
        while not self._is_over:
            await person.pause(random.uniform(1_000, 6_000))
            known = list(self.acknowledged)
            if not known:
                continue
            number += 1
            job = random.choice(known[-2:])
            while not self._is_over and await person.cancel(number, job) is None:
                await person.pause(100)
            if random.random() < 0.3:
                await person.cancel(number, job)

    async def _forget_jobs(self, person: _Person) -> None:
        random, number = self.random, 0
        while not self._is_over:
            await person.pause(random.uniform(1_000, 6_000))
            known = list(self.acknowledged)
            if not known:
                continue
            number += 1
            job = random.choice(known[:3])
            self.to_forget.add(job)
            while not self._is_over and await person.forget(number, job) is None:
                await person.pause(100)
            if random.random() < 0.3:
                await person.forget(number, job)

    async def _wait_for_results(self, person: _Person) -> None:
        while not self._is_over:
            await person.pause(300)
            known = list(self.acknowledged)
            if known and not self._is_over:
                seen = await person.ask(known[-1], wait_ms=1_000)
                if seen is not None and seen[:2] == ("ended", "finished"):
                    await self._fetch(person, known[-1], tries=1)

    async def _probe(self, address: str, person: _Person) -> None:
        """Ask one coordinator, whoever leads: one that wakes up must not tell what was."""
        while not self._is_over:
            await person.pause(self.random.uniform(300, 2_500))
            known = list(self.acknowledged)
            if known and not self._is_over:
                await person.ask(self.random.choice(known[-3:]), address=address)

    async def _settle(self, person: _Person) -> None:
        for job in self.requests:
            while not any(each == job for each in self.acknowledged.values()):
                if await person.submit(job) is None:
                    await person.pause(200)
        for job_id in list(self.acknowledged):
            await self._see_to_the_end(person, job_id)
        while await person.list_jobs() is None:
            await person.pause(200)

    async def _submit_last(self, person: _Person) -> None:
        self._last_number += 1
        job = self._draw("last", self._last_number, self.random.choice(("chain", "fan", "dice")))
        while (job_id := await person.submit(job)) is None:
            await person.pause(200)
        await self._see_to_the_end(person, job_id)

    async def _see_to_the_end(self, person: _Person, job: int) -> None:
        while True:
            seen = await person.ask(job, wait_ms=1_000)
            if seen == ABSENT and job in self.to_forget:
                return
            if seen == ABSENT:
                self.world.violate("lost-job", f"acknowledged job {job} is not there")
                return
            if seen is not None and seen[0] == "ended":
                break
            if seen is None:
                await person.pause(200)
        if seen[1] == "finished":
            await self._fetch(person, job, tries=200)

    async def _fetch(self, person: _Person, job: int, *, tries: int) -> None:
        """Fetch what a finished job keeps, from the clients that have it."""
        for number in range(tries):
            if number:
                await person.pause(200)
                if not self.must_be_kept():
                    break
            found = await person.results(job)
            if found is not None:
                before = self.results.setdefault(job, found)
                if found != before:
                    self.world.violate(
                        "results", f"job {job} keeps {before!r:.300}, later {found!r:.300}"
                    )
                self.counts["results fetched"] += 1
                return
        if tries > 1 and job not in self.to_forget and self.must_be_kept():
            self.world.violate("results", f"what job {job} keeps can't be fetched")

    # --- the history ---

    def begin(self, who: str, call: tuple[Hashable, ...]) -> int:
        """Note that a try begins; return its number."""
        self._tries += 1
        number = self._tries
        self._open[number] = Operation(who, now_us(self.world), None, call, None)
        self.counts[str(call[0])] += 1
        return number

    def never_was(self, number: int) -> None:
        """Note that nobody can have seen a try, or that nobody saw its answer."""
        del self._open[number]

    def end(self, number: int, reply: Hashable) -> None:
        """Note the answer to a try; None: its outcome is unknown."""
        began = self._open.pop(number)
        returned = None if reply is None else now_us(self.world)
        self.history.append(
            Operation(began.process, began.invoked, returned, began.call, reply)
        )

    @property
    def leader(self) -> str | None:
        """The address that was last said to lead."""
        return self._leader

    @leader.setter
    def leader(self, address: str | None) -> None:
        self._leader = address


class _Person:
    """One of them: how each operation is asked for, and its answer read."""

    def __init__(self, people: People, name: str, process: SimProcess) -> None:
        self.name = name
        self.doing = name
        self._people = people
        self._world = people.world
        self._process = process

    async def pause(self, ms: float) -> None:
        """Do something else for a while."""
        await asyncio.sleep(ms / 1_000)

    # --- operations ---

    async def submit(self, job: JobRequest) -> int | None:
        """Try once to submit a job; return its id if that was acknowledged."""
        archive = jobs.archive(job.kind)
        kept = await self._send("POST", "/v1/programs", archive)
        if kept is None or kept[0] != 200:
            return None
        body = encode_json(
            {
                "sender": job.sender,
                "request": job.request,
                "name": job.kind,
                "seed": job.seed,
                "params": job.params,
                "program": job.program,
                "manifest": json.dumps(jobs.manifest(job.kind)),
            }
        )
        call = ("submit", job.sender, job.request)
        found = await self._try(call, "POST", "/v1/jobs", _read_submit, body)
        if found is None:
            return None
        number = found[1]
        assert isinstance(number, int)
        if self._people.acknowledged.setdefault(number, job) is not job:
            other = self._people.acknowledged[number]
            self._world.violate("job-twice", f"{job} and {other} are both job {number}")
        return number

    async def ask(
        self, job: int, *, wait_ms: int = 0, address: str | None = None
    ) -> tuple[Hashable, ...] | None:
        """Try once to see how a job stands."""
        path = f"/v1/jobs/{job}" + (f"?wait_ms={wait_ms}&seen=nothing" if wait_ms else "")
        return await self._try(
            ("status", job), "GET", path, _status, wait_ms=wait_ms, address=address
        )

    async def list_jobs(self) -> tuple[Hashable, ...] | None:
        """Try once to see how all jobs stand."""
        return await self._try(("list",), "GET", "/v1/jobs", _read_list)

    async def cancel(self, request: int, job: int) -> tuple[Hashable, ...] | None:
        """Try once to cancel a job."""
        body = encode_json({"sender": self.name, "request": request, "reason": "so"})
        call = ("cancel", self.name, request, job)
        return await self._try(call, "POST", f"/v1/jobs/{job}/cancel", _read_cancel, body)

    async def forget(self, request: int, job: int) -> tuple[Hashable, ...] | None:
        """Try once to have a job forgotten."""
        body = encode_json({"sender": self.name, "request": request})
        call = ("forget", self.name, request, job)
        return await self._try(call, "POST", f"/v1/jobs/{job}/forget", _read_forget, body)

    async def results(self, job: int) -> KeptResults | None:
        """Try once to fetch the values of all tasks that a finished job keeps."""
        answer = await self._send("GET", f"/v1/jobs/{job}", b"")
        if answer is None or answer[0] != 200:
            return None
        found: KeptResults = {}
        for tid in json.loads(answer[1])["taskids"]:
            values = await self._values(job, tid)
            if values is None:
                return None
            found[tid] = values
        return found

    async def _values(self, job: int, tid: int) -> dict[str, bytes] | None:
        answer = await self._send("GET", f"/v1/jobs/{job}/tasks/{tid}", b"")
        if answer is None or answer[0] != 200:
            return None
        info = json.loads(answer[1])
        if not info["addresses"]:
            return None
        address = self._people.random.choice(info["addresses"])
        path = f"/v1/values/{job}/{tid}"
        listed = await self._send("GET", path, b"", address=address)
        if listed is None or listed[0] != 200:
            return None
        values: dict[str, bytes] = {}
        for key, _, size, digest in json.loads(listed[1]):
            value = await self._send("GET", f"{path}/{key}", b"", address=address)
            if value is None or value[0] != 200:
                return None
            if len(value[1]) != size or hashlib.sha256(value[1]).hexdigest() != digest:
                self._world.violate("results", f"{path}/{key} of {address} is damaged")
            values[key] = value[1]
        return values

    # --- one try ---

    async def _send(
        self,
        method: str,
        path: str,
        body: bytes,
        *,
        address: str | None = None,
        wait_ms: int = 0,
    ) -> tuple[int, bytes] | None:
        """Ask somebody, or `address`; None: there was no answer."""
        self.doing = f"{self.name}: {method} {path}"
        people, is_named = self._people, address is not None
        if address is None:
            address = people.leader
            if address is None or people.random.random() < 0.15:
                address = people.random.choice(list(self._world.addresses.values()))
        try:
            answer = await self._world.request(
                self._process, address, method, path, body=body, timeout_ms=_TIMEOUT_MS + wait_ms
            )
        except Unreachable:
            if not is_named:
                people.leader = None
            return None
        if not is_named:
            if answer[0] == MISDIRECTED:
                people.leader = json.loads(answer[1]).get("leader")
            else:
                people.leader = address
        return answer

    async def _try(
        self,
        call: tuple[Hashable, ...],
        method: str,
        path: str,
        read: Callable[[Any], tuple[Hashable, ...]],
        body: bytes = b"",
        *,
        wait_ms: int = 0,
        address: str | None = None,
    ) -> tuple[Hashable, ...] | None:
        """Send one request, put what came of it into the history, and return the reply."""
        people = self._people
        number = people.begin(self.name, call)
        answer = await self._send(method, path, body, address=address, wait_ms=wait_ms)
        reply: tuple[Hashable, ...] | None = None
        if answer is not None:
            status, content = answer
            if status == 200 or (status in _REFUSALS and call[0] in ("cancel", "forget")):
                reply = read(json.loads(content))
            elif status == _NOT_FOUND and call[0] == "status":
                reply = ABSENT
            elif status not in (MISDIRECTED, _UNAVAILABLE, _NOT_FOUND):
                self._world.violate(
                    "answer", f"{method} {path} was answered {status} {content!r:.300}"
                )
        if reply is None and call[0] in ("status", "list"):
            people.never_was(number)  # What nobody saw changes nothing.
            return None
        people.end(number, reply)
        return reply


def _read_submit(value: Any) -> tuple[Hashable, ...]:
    return ("job", value["job"])


def _read_list(value: Any) -> tuple[Hashable, ...]:
    return tuple([(each["job"], _status(each)) for each in value])


def _read_cancel(value: Any) -> tuple[Hashable, ...]:
    return ABSENT if "error" in value else ("state", value["state"])


def _read_forget(value: Any) -> tuple[Hashable, ...]:
    if "error" not in value:
        return FORGOTTEN
    return RUNNING if "is running" in value["error"] else ABSENT


def _status(value: Any) -> tuple[Hashable, ...]:
    state = value["state"]
    if state == "running":
        return RUNNING
    return ("ended", state, value["values"] if state == "finished" else value["error"])
