"""People: threads that submit, watch and cancel jobs, and write down what they were told.

A new job comes when its time has come, whatever became of those before: each has a thread
that tries until it is acknowledged. Those who watch also ask for the members.

Each request goes to a coordinator at random, or to the one that was last said to lead.
Every try of it is an operation of its own in the history, and one that may have been
decided without an answer is of unknown outcome.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from functools import partial
from itertools import pairwise
from random import Random

from tasksprint.asking.rota import leader_hint
from tasksprint.encoding import encode_json
from tasksprint.errors import PeerUnreachable, RemoteProtocolError
from tasksprint.net.http_blocking import request_blocking
from tasksprint.net.http_messages import MISDIRECTED, HttpResponse
from tasksprint.net.keys import ClusterKey
from tasksprint.process.job_directory import Manifest
from tasksprint.settings import Settings
from tests.linearizability.checker import Operation
from tests.linearizability.job_store import ABSENT
from tests.linearizability.member_list import DONE
from tests.torture.jobs import JobRequest, random_job

__all__ = ["Load", "now"]

_UNAVAILABLE = 503
_SETTINGS = Settings(connect_timeout_ms=500, answer_timeout_ms=3_000)
# Who asks one coordinator asks it again soon: what it says when it wakes up answers a
# question that is younger than what the others have decided meanwhile.
_PROBING = Settings(connect_timeout_ms=500, answer_timeout_ms=700)
_TRY_PAUSE_S = 0.05
_SUBMITTERS = 3
_NOT_FOUND = 404
# Answers to commands that make no sense now: the log says so, and for good.
_REFUSALS = (404, 409)
_REFUSED = 409


class Load:
    """All people of one run, and what they know of each other.

    Args:
        addresses: Says where the members listen, at present.
        archive: Of the jobs' programs; somebody else has handed it in.
    """

    def __init__(
        self,
        addresses: Callable[[], list[str]],
        key: ClusterKey,
        manifest: Manifest,
        archive: bytes,
        random: Random,
        *,
        submits_per_s: float,
    ) -> None:
        self._addresses = addresses
        self._key = key
        self._manifest = manifest
        self._archive = archive
        self._program = hashlib.sha256(archive).hexdigest()
        self._pace_s = 1 / submits_per_s
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._leader: str | None = None
        self.history: list[Operation] = []
        self.requests: list[JobRequest] = []
        self.acknowledged: dict[int, JobRequest] = {}  # by job id
        self.counts: Counter[tuple[str, str]] = Counter()  # by kind and outcome
        self.wrong: list[str] = []
        self.began = 0  # microseconds, as in the history
        self.ended = 0
        self._random = random
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin."""
        self.began = now()
        self.run(self._submit_jobs)
        for number in range(2):
            self.run(partial(self._watch, f"watcher-{number}"))
        self.run(partial(self._cancel_jobs, "canceller"))
        self.run(partial(self._wait_for_results, "waiter"))
        for number in range(len(self._addresses())):
            self.run(partial(self._probe, number))

    def run(self, work: Callable[[Random], None]) -> None:
        """Have somebody do something in a thread, which `stop` waits for."""
        random = Random(self._random.random())
        thread = threading.Thread(target=self._guarded, args=(work, random))
        with self._lock:
            self._threads = [each for each in self._threads if each.is_alive()]
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End, after the requests that are under way."""
        if not self._end.is_set():
            self.ended = now()
        self._end.set()
        while left := [each for each in self._threads if each.is_alive()]:
            for thread in left:
                thread.join()

    @property
    def is_over(self) -> bool:
        """Whether everybody is to end."""
        return self._end.is_set()

    def longest_wait_s(self) -> float:
        """Return the longest time in which no submit was acknowledged, so far."""
        with self._lock:
            history = list(self.history)
        times = [
            each.returned
            for each in history
            if each.call[0] == "submit" and each.returned is not None
        ]
        end = self.ended or now()
        times = sorted([self.began, *(each for each in times if each < end), end])
        return max(b - a for a, b in pairwise(times)) / 1_000_000

    def _guarded(self, work: Callable[[Random], None], random: Random) -> None:
        try:
            work(random)
        except Exception as error:  # A thread that ends silently would make the run easier.
            self._complain(f"{type(error).__name__} in a driver: {error}")

    def _complain(self, text: str) -> None:
        with self._lock:
            self.wrong.append(text)

    def pause(self, seconds: float) -> None:
        self._end.wait(seconds)

    # --- what people do ---

    def _submit_jobs(self, random: Random) -> None:
        begin_s, number = time.monotonic(), 0
        while not self._end.is_set():
            who = f"submitter-{number % _SUBMITTERS}"
            number += 1
            job = random_job(who, number, random)
            with self._lock:
                self.requests.append(job)
            self.run(partial(self._submit_one, job))
            self.pause(max(begin_s + number * self._pace_s - time.monotonic(), 0))

    def _submit_one(self, job: JobRequest, random: Random) -> None:
        pause_s = _TRY_PAUSE_S
        while not self._end.is_set() and self.submit(job, random) is None:
            self.pause(pause_s)
            pause_s = min(2 * pause_s, 0.5)
        if random.random() < 0.2:  # Somebody wasn't sure.
            self.submit(job, random)

    def _watch(self, who: str, random: Random) -> None:
        while not self._end.is_set():
            self.pause(random.uniform(0.02, 0.15))
            with self._lock:
                known = list(self.acknowledged)
            if not known:
                continue
            chance = random.random()
            if chance < 0.02:
                self.list_jobs(who, random)
            elif chance < 0.05:
                self.list_members(who, random)
            elif chance < 0.1:
                # The next job: not there yet, or just made and not acknowledged.
                self.ask(who, max(known) + random.choice((1, 1, 2)), random)
            else:
                recent = known[-10:] if chance < 0.9 else known
                self.ask(who, random.choice(recent), random)

    def _cancel_jobs(self, who: str, random: Random) -> None:
        number = 0
        while not self._end.is_set():
            self.pause(random.uniform(1.0, 6.0))
            with self._lock:
                known = list(self.acknowledged)
            if not known:
                continue
            number += 1
            job = random.choice(known[-2:])
            for _ in range(100):
                if self._end.is_set() or self.cancel(who, number, job, random) is not None:
                    break
                self.pause(_TRY_PAUSE_S)
            if random.random() < 0.3:
                self.cancel(who, number, job, random)

    def _wait_for_results(self, who: str, random: Random) -> None:
        while not self._end.is_set():
            self.pause(0.1)
            with self._lock:
                known = list(self.acknowledged)
            if known:
                self.ask(who, known[-1], random, wait_ms=1_000)

    def _probe(self, number: int, random: Random) -> None:
        """Ask one coordinator, whoever leads: one that wakes up must not tell what was."""
        while not self._end.is_set():
            self.pause(random.uniform(0.05, 0.25))
            addresses = self._addresses()
            address = addresses[number % len(addresses)]
            who = f"prober of {address}"
            with self._lock:
                known = list(self.acknowledged)
            if not known or random.random() < 0.2:
                self.list_members(who, random, address=address)
            else:
                # One that doesn't lead any more knows all but the latest.
                job = known[-1] if random.random() < 0.7 else random.choice(known[-3:])
                self._try(
                    who,
                    ("status", job),
                    random,
                    "GET",
                    f"/v1/jobs/{job}",
                    _status,
                    address=address,
                    settings=_PROBING,
                )

    # --- operations ---

    def submit(self, job: JobRequest, random: Random) -> int | None:
        """Try once to submit a job; return its id if that was acknowledged."""
        body = encode_json(
            {
                "sender": job.sender,
                "request": job.request,
                "name": f"{job.sender} {job.request}",
                "seed": job.seed,
                "params": job.params,
                "program": self._program,
                "manifest": self._manifest.encode(),
            }
        )
        call = ("submit", job.sender, job.request)

        def reply(value: object) -> Hashable:
            return ("job", _member(value, "job", int))

        found = self._try(job.sender, call, random, "POST", "/v1/jobs", reply, body=body)
        if not isinstance(found, tuple):
            return None
        number = found[1]
        assert isinstance(number, int)
        with self._lock:
            self.acknowledged.setdefault(number, job)
        return number

    def ask(self, who: str, job: int, random: Random, *, wait_ms: int = 0) -> Hashable:
        """Try once to see how a job stands."""
        path = f"/v1/jobs/{job}" + (f"?wait_ms={wait_ms}&seen=nothing" if wait_ms else "")
        return self._try(who, ("status", job), random, "GET", path, _status, wait_ms=wait_ms)

    def list_jobs(self, who: str, random: Random) -> Hashable:
        """Try once to see how all jobs stand."""

        def reply(value: object) -> Hashable:
            assert isinstance(value, list)
            return tuple([(_member(each, "job", int), _status(each)) for each in value])

        return self._try(who, ("list",), random, "GET", "/v1/jobs", reply)

    def cancel(self, who: str, request: int, job: int, random: Random) -> Hashable:
        """Try once to cancel a job."""
        body = encode_json({"sender": who, "request": request, "reason": "torture"})
        call = ("cancel", who, request, job)

        def reply(value: object) -> Hashable:
            if isinstance(value, dict) and "error" in value:
                return ABSENT
            return ("state", _member(value, "state", str))

        return self._try(who, call, random, "POST", f"/v1/jobs/{job}/cancel", reply, body=body)

    def list_members(
        self, who: str, random: Random, *, address: str | None = None
    ) -> Hashable:
        """Try once to see who the members are."""
        return self._try(
            who,
            ("members",),
            random,
            "GET",
            "/v1/members",
            _membership,
            address=address,
            settings=_SETTINGS if address is None else _PROBING,
        )

    def change_members(
        self, who: str, call: tuple[Hashable, ...], body: bytes, random: Random
    ) -> Hashable:
        """Try once to change the members."""
        return self._try(who, call, random, "POST", "/v1/members", lambda _: DONE, body=body)

    def record(
        self, who: str, invoked: int, returned: int, call: tuple[Hashable, ...], reply: Hashable
    ) -> None:
        """Put an operation into the history; reply None: its outcome is unknown."""
        operation = Operation(who, invoked, None if reply is None else returned, call, reply)
        with self._lock:
            self.history.append(operation)
        self.count(str(call[0]), "of unknown outcome" if reply is None else "done")

    def count(self, kind: str, outcome: str) -> None:
        """Count an operation, or what was none."""
        with self._lock:
            self.counts[kind, outcome] += 1

    # --- one try ---

    def _try(
        self,
        who: str,
        call: tuple[Hashable, ...],
        random: Random,
        method: str,
        path: str,
        read: Callable[[object], Hashable],
        *,
        body: bytes = b"",
        wait_ms: int = 0,
        address: str | None = None,
        settings: Settings = _SETTINGS,
    ) -> Hashable:
        """Send one request, put what came of it into the history, and return the reply."""
        is_probe = address is not None
        if address is None:
            address = self._leader
            # So a new leader gets something to do while the old one may still believe in itself.
            strays = 0.5 if call[0] == "submit" else 0.15
            if address is None or random.random() < strays:
                address = random.choice(self._addresses())
        invoked = now()
        try:
            response: HttpResponse | None = request_blocking(
                address,
                method,
                path,
                key=self._key,
                settings=settings,
                body=body,
                wait_ms=wait_ms,
            )
        except (PeerUnreachable, RemoteProtocolError) as error:
            response = None
            if not is_probe:
                self._leader = None
            if isinstance(error.__cause__, ConnectionRefusedError):
                self.count("connection", "refused")
                return None  # Nobody has seen the request.
        returned = now()
        reply: Hashable = None
        is_read = call[0] in ("status", "list", "members")
        is_told = response is not None and (
            response.status == 200
            or (response.status in _REFUSALS and call[0] in ("cancel", "forget"))
        )
        if response is not None and is_told:
            self._leader = address
            try:
                reply = read(json.loads(response.body))
            except (ValueError, AssertionError) as error:
                self._complain(f"{method} {path} was answered {response.body!r:.300}: {error}")
        elif response is not None and response.status == _NOT_FOUND and call[0] == "status":
            reply = ABSENT
        elif response is not None and response.status == _NOT_FOUND and call[0] == "submit":
            # Those who had the archive were replaced, and no running job needs it.
            self.count("submit", "without the archive")
            upload = ("upload",)
            self._try(who, upload, random, "POST", "/v1/programs", _digest, body=self._archive)
            return None
        elif response is not None and response.status == MISDIRECTED:
            if is_probe:
                self.count(str(call[0]), "asked who doesn't lead")
                return None
            self._leader = leader_hint(response)
        elif response is not None and response.status == _REFUSED and path == "/v1/members":
            self.count(str(call[0]), "refused")
            return None
        elif response is not None and response.status != _UNAVAILABLE:
            self._complain(
                f"{method} {path} was answered {response.status} {response.body!r:.300}"
            )
        if reply is None and is_read:
            self.count(str(call[0]), "without an answer")
            return None  # What nobody saw changes nothing.
        self.record(who, invoked, returned, call, reply)
        return reply


def now() -> int:
    """Return the time of the history, microseconds."""
    return time.monotonic_ns() // 1_000


def _status(value: object) -> Hashable:
    state = _member(value, "state", str)
    if state == "running":
        return ("running",)
    assert isinstance(value, dict)
    return ("ended", state, value["values"] if state == "finished" else value["error"])


def _membership(value: object) -> Hashable:
    assert isinstance(value, dict)
    members = value["members"]
    retired = value["retired"]
    assert isinstance(members, list) and isinstance(retired, list)
    by_role = {
        role: tuple(sorted(each["replica"] for each in members if each["role"] == role))
        for role in ("voter", "learner")
    }
    replaces = sorted(
        (each["replica"], each["replaces"]) for each in members if each["replaces"] is not None
    )
    number = _member(value, "number", int)
    return (number, by_role["voter"], by_role["learner"], tuple(replaces), tuple(retired))


def _digest(value: object) -> Hashable:
    return _member(value, "digest", str)


def _member(value: object, name: str, kind: type) -> Hashable:
    assert isinstance(value, dict), "not an object"
    found = value.get(name)
    assert isinstance(found, kind), f"{name!r} is {found!r}"
    result: Hashable = found
    return result
