"""Somebody without the key who reaches every port: invents requests, forges and repeats them.

It hears what travels (each request that arrived somewhere, with its signature), and sends that
again as it was, without its signature, signed by another key, spoiled, or to somebody else; and
what it makes up. Whatever it asks must be refused: an answer below 400, but from paths that are
open to everybody, breaks the rule "stranger-served".
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from functools import partial
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from tasksprint.encoding import encode_json
from tasksprint.net.gate import Access
from tasksprint.net.http_messages import HttpResponse
from tasksprint.net.keys import ClusterKey
from tasksprint.net.router import Response
from tests.simulation.machines import Machine, Process
from tests.simulation.sim_http import Call

if TYPE_CHECKING:
    from tests.simulation.whole import Whole

__all__ = ["Stranger"]

_LIFE = re.compile(r".*life=([0-9a-f]*),.*")
_HEARD_MAX = 300
_REQUESTS_MAX = 12  # of one visit
_ADDRESS = "10.9.9.9:7070"

# What needs no knowledge, only a port; each would do or tell something.
_KNOWN: tuple[tuple[str, str, object], ...] = (
    ("POST", "/v1/stop", None),
    ("GET", "/v1/jobs", None),
    ("GET", "/v1/clients", None),
    ("GET", "/v1/status", None),
    ("GET", "/metrics", None),
    ("GET", "/v1/results/1/0", None),
    ("GET", "/v1/mirror", None),
    ("GET", "/v1/digest?slot=1&digest=x&cluster=", None),
    ("POST", "/v1/jobs/1/cancel", {"sender": "me", "request": 1, "reason": "no"}),
    ("POST", "/v1/jobs/1/forget", {"sender": "me", "request": 2}),
    ("POST", "/v1/members", {"change": "remove", "replica": 1}),
    ("POST", "/v1/programs", {"not": "an archive"}),
)


class _Heard(NamedTuple):
    """A request that arrived somewhere."""

    address: str
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


class _Visit(Call):
    """One request of the stranger: whatever it is answered, it hears at once."""

    def __init__(self, stranger: Stranger, source: Process, target: Machine, what: str) -> None:
        super().__init__(stranger.world.wire, source, target, lambda answer: None)
        self._stranger = stranger
        self._what = what

    def answer(self, process: Process, response: Response, body: bytes) -> None:
        process.calls.pop(self, None)
        self._stranger.answered(process, self._what, HttpResponse(response.status, {}, body))

    def refuse(self, cause: str) -> None:
        pass


class Stranger:
    """The stranger of one seed, on a machine that nobody knows."""

    def __init__(self, world: Whole, random: Random) -> None:
        self.world = world
        self._random = random
        self._key = ClusterKey(random.randbytes(32))
        self._machine = Machine("stranger", _ADDRESS, Random(random.random()), drift=0.0)
        self._heard: deque[_Heard] = deque(maxlen=_HEARD_MAX)
        self._process: Process | None = None

    def hears(
        self, address: str, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> None:
        """Take a request that has arrived at an address."""
        self._heard.append(_Heard(address, method, target, dict(headers), body))

    def visit(self) -> None:
        """Send some requests to everybody."""
        if self._process is None:
            self._process = self.world.spawn_on(self._machine)
        self.world.say("a stranger comes by")
        self.world.count("visits of strangers")
        for _ in range(self._random.randint(1, _REQUESTS_MAX)):
            self.world.after(self._random.uniform(0, 500), self._ask)

    def _ask(self) -> None:
        random = self._random
        kinds = (self._make_up, self._rave, self._repeat, self._strip, self._forge, self._spoil)
        kind = random.choice(kinds if self._heard else kinds[:2])
        heard = kind()
        machines = list(self.world.machines.values())
        target = next((each for each in machines if each.address == heard.address), machines[0])
        what = f"{kind.__name__.strip('_')} {heard.method} {heard.target[:80]}"
        assert self._process is not None
        call = _Visit(self, self._process, target, what)
        server = target.process
        if server is None or not server.is_alive or server.service is None:
            return
        call.server = server
        server.calls[call] = None
        server.loop.call_soon(
            partial(call.serve, server, heard.method, heard.target, dict(heard.headers)),
            heard.body,
        )

    def answered(self, process: Process, what: str, answer: HttpResponse) -> None:
        """Judge what it was answered."""
        if answer.status >= 400:
            self.world.count("requests of strangers refused")
            return
        method, _, path = what.split(" ", 1)[1].partition(" ")
        assert process.service is not None
        route, _ = process.service.router.find(method, path.partition("?")[0])
        if route.access is not Access.OPEN:
            self.world.violate(
                "stranger-served", f"{process.name} answered {what!r} with {answer.status}"
            )

    # --- what it asks ---

    def _anywhere(self) -> str:
        return self._random.choice(list(self.world.machines.values())).address

    def _make_up(self) -> _Heard:
        """Ask for something in good form, without any proof, or with an invented one."""
        method, target, value = self._random.choice(_KNOWN)
        address = self._anywhere()
        body = b"" if value is None else encode_json(value)
        headers = {"host": address, "content-length": str(len(body))}
        proof = self._random.choice(("", "Bearer operate.9999999999.aa", "TaskSprint life=0"))
        if proof:
            headers["authorization"] = proof
        return _Heard(address, method, target, headers, body)

    def _rave(self) -> _Heard:
        """Send what makes no sense."""
        random = self._random
        body = random.randbytes(random.choice((0, 1, 40, 5_000)))
        length = random.choice((str(len(body)), "-1", "x", "9" * 5_000, ""))
        target = random.choice(("/", "//", "/v1/view?cid=x&since=-1", "v1", "/%00", "/v1/" * 99))
        method = random.choice(("GET", "POST", "BREW", ""))
        host = random.choice((self._anywhere(), "", "x:y:z"))
        headers = {"host": host, "content-length": length}
        return _Heard(self._anywhere(), method, target, headers, body)

    def _repeat(self) -> _Heard:
        """Send again what somebody else has sent, to the same or to another one."""
        heard = self._random.choice(self._heard)
        if self._random.random() < 0.7:
            return heard
        return heard._replace(address=self._anywhere())

    def _strip(self) -> _Heard:
        """Send it as one's own."""
        heard = self._random.choice(self._heard)
        headers = {name: value for name, value in heard.headers.items() if name != "authorization"}
        return heard._replace(headers=headers)

    def _forge(self) -> _Heard:
        """Sign it with another key."""
        heard = self._random.choice(self._heard)
        life = _LIFE.sub(r"\g<1>", heard.headers["authorization"])
        self._key.learn_life(heard.address, life, signed_for="")
        signature = self._key.sign(heard.method, heard.target, heard.address)
        return heard._replace(headers={**heard.headers, "authorization": signature.authorization})

    def _spoil(self) -> _Heard:
        """Change something that is signed."""
        heard = self._random.choice(self._heard)
        choice = self._random.randrange(3)
        if choice == 0 and heard.body:
            return heard._replace(body=heard.body[:-1] + b" ")
        if choice == 1:
            joint = "&" if "?" in heard.target else "?"
            return heard._replace(target=f"{heard.target}{joint}x=1")
        return heard._replace(method="GET" if heard.method == "POST" else "POST")
