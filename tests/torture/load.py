"""People: threads that submit, watch and cancel jobs, and write down what they were told.

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
from dataclasses import dataclass
from random import Random

from tasksprint.encoding import encode_json
from tasksprint.errors import PeerUnreachable, RemoteProtocolError
from tasksprint.ids import TaskId, task_seed
from tasksprint.net.http_blocking import request_blocking
from tasksprint.net.http_messages import HttpResponse
from tasksprint.net.keys import ClusterKey
from tasksprint.process.job_directory import Manifest
from tasksprint.roles.leader import MISDIRECTED, leader_hint
from tasksprint.settings import Settings
from tests.linearizability.checker import Operation
from tests.linearizability.job_store import ABSENT

__all__ = ["JobRequest", "Load", "expected_values"]

_UNAVAILABLE = 503
_SETTINGS = Settings(connect_timeout_ms=500, answer_timeout_ms=3_000)
# Who asks one coordinator asks it again soon: what it says when it wakes up answers a
# question that is younger than what the others have decided meanwhile.
_PROBING = Settings(connect_timeout_ms=500, answer_timeout_ms=700)
_TRY_PAUSE_S = 0.05
# A submit that nobody acknowledges for so long is left alone, until the end.
_PATIENCE_S = 15.0


@dataclass(frozen=True, slots=True)
class JobRequest:
    """One job that somebody wants; its results follow from it."""

    sender: str
    request: int
    seed: int
    token: int
    width: int
    ms: int

    @property
    def params(self) -> str:
        """The job's parameters, JSON."""
        return json.dumps({"token": self.token, "width": self.width, "ms": self.ms})

    @property
    def tasks(self) -> int:
        """How many tasks the job has."""
        return self.width + 1


def expected_values(job: JobRequest) -> dict[str, object]:
    """Return what the job must finish with."""
    drawn = [
        hashlib.sha256(
            f"{task_seed(job.seed, TaskId(number))}:{job.token}:{number}".encode()
        ).hexdigest()[:16]
        for number in range(job.width)
    ]
    joined = hashlib.sha256("+".join(drawn).encode()).hexdigest()
    return {"all": joined, "told": job.tasks}


class Load:
    """All people of one run, and what they know of each other.

    Args:
        addresses: Of the coordinators.
        program: Digest of the archive of the job.
    """

    def __init__(
        self,
        addresses: list[str],
        key: ClusterKey,
        manifest: Manifest,
        program: str,
        random: Random,
        *,
        submits_per_s: float,
    ) -> None:
        self._addresses = addresses
        self._key = key
        self._manifest = manifest
        self._program = program
        self._pace_s = 1 / submits_per_s
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._leader: str | None = None
        self.history: list[Operation] = []
        self.requests: list[JobRequest] = []
        self.acknowledged: dict[int, JobRequest] = {}  # by job id
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._threads = [
            threading.Thread(target=self._guarded, args=(work, Random(random.random())))
            for work in (
                *(lambda r, n=n: self._submit_jobs(f"submitter-{n}", r) for n in range(3)),
                *(lambda r, n=n: self._watch(f"watcher-{n}", r) for n in range(2)),
                lambda r: self._cancel_jobs("canceller", r),
                lambda r: self._wait_for_results("waiter", r),
                *(lambda r, a=a: self._probe(f"prober of {a}", a, r) for a in addresses),
            )
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, after the requests that are under way."""
        self._end.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _guarded(self, work: Callable[[Random], None], random: Random) -> None:
        try:
            work(random)
        except Exception as error:  # A thread that ends silently would make the run easier.
            self._complain(f"{type(error).__name__} in a driver: {error}")

    def _complain(self, text: str) -> None:
        with self._lock:
            self.wrong.append(text)

    def _pause(self, seconds: float) -> None:
        self._end.wait(seconds)

    # --- what people do ---

    def _submit_jobs(self, who: str, random: Random) -> None:
        number = 0
        while not self._end.is_set():
            number += 1
            job = JobRequest(
                sender=who,
                request=number,
                seed=random.getrandbits(48),
                token=random.getrandbits(30),
                width=random.randrange(1, 7),
                ms=random.choice((0, 0, 5, 50, 300)),
            )
            with self._lock:
                self.requests.append(job)
            began_s = time.monotonic()
            while not self._end.is_set() and time.monotonic() - began_s < _PATIENCE_S:
                if self.submit(job, random) is not None:
                    break
                self._pause(_TRY_PAUSE_S)
            if random.random() < 0.2:  # Somebody wasn't sure.
                self.submit(job, random)
            left_s = 3 * self._pace_s * random.uniform(0.5, 1.5) - (time.monotonic() - began_s)
            self._pause(max(left_s, 0))

    def _watch(self, who: str, random: Random) -> None:
        while not self._end.is_set():
            self._pause(random.uniform(0.02, 0.15))
            with self._lock:
                known = list(self.acknowledged)
            if not known:
                continue
            chance = random.random()
            if chance < 0.02:
                self.list_jobs(who, random)
            elif chance < 0.1:
                # The next job: not there yet, or just made and not acknowledged.
                self.ask(who, max(known) + random.choice((1, 1, 2)), random)
            else:
                recent = known[-10:] if chance < 0.9 else known
                self.ask(who, random.choice(recent), random)

    def _cancel_jobs(self, who: str, random: Random) -> None:
        number = 0
        while not self._end.is_set():
            self._pause(random.uniform(1.0, 6.0))
            with self._lock:
                known = list(self.acknowledged)
            if not known:
                continue
            number += 1
            job = random.choice(known[-2:])
            for _ in range(100):
                if self._end.is_set() or self.cancel(who, number, job, random) is not None:
                    break
                self._pause(_TRY_PAUSE_S)
            if random.random() < 0.3:
                self.cancel(who, number, job, random)

    def _wait_for_results(self, who: str, random: Random) -> None:
        while not self._end.is_set():
            self._pause(0.1)
            with self._lock:
                known = list(self.acknowledged)
            if known:
                self.ask(who, known[-1], random, wait_ms=1_000)

    def _probe(self, who: str, address: str, random: Random) -> None:
        """Ask one coordinator, whoever leads: one that wakes up must not tell what was."""
        while not self._end.is_set():
            self._pause(random.uniform(0.1, 0.5))
            with self._lock:
                known = list(self.acknowledged)
            if known:
                job = random.choice(known[-3:])
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
            if address is None or random.random() < 0.15:
                address = random.choice(self._addresses)
        invoked = _now()
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
                self.counts["refused connections"] += 1
                return None  # Nobody has seen the request.
        returned = _now()
        reply: Hashable = None
        if response is not None and response.status == 200:
            self._leader = address
            try:
                reply = read(json.loads(response.body))
            except (ValueError, AssertionError) as error:
                self._complain(f"{method} {path} was answered {response.body!r:.300}: {error}")
        elif response is not None and response.status == 404 and call[0] == "status":
            reply = ABSENT
        elif response is not None and response.status == MISDIRECTED:
            if is_probe:
                return None
            self._leader = leader_hint(response)
        elif response is not None and response.status != _UNAVAILABLE:
            self._complain(
                f"{method} {path} was answered {response.status} {response.body!r:.300}"
            )
        if reply is None and call[0] in ("status", "list"):
            self.counts["reads without an answer"] += 1
            return None  # What nobody saw changes nothing.
        operation = Operation(who, invoked, None if reply is None else returned, call, reply)
        with self._lock:
            self.history.append(operation)
            self.counts[f"{call[0]}" + (" of unknown outcome" if reply is None else "")] += 1
        return reply


def _now() -> int:
    return time.monotonic_ns() // 1_000


def _status(value: object) -> Hashable:
    state = _member(value, "state", str)
    if state == "running":
        return ("running",)
    assert isinstance(value, dict)
    return ("ended", state, value["values"] if state == "finished" else value["error"])


def _member(value: object, name: str, kind: type) -> Hashable:
    assert isinstance(value, dict), "not an object"
    found = value.get(name)
    assert isinstance(found, kind), f"{name!r} is {found!r}"
    result: Hashable = found
    return result
