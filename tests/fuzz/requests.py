"""What those who have the key, or a token, may ask by mistake: well-signed nonsense.

Real processes, asked by our own client, so each request proves itself. Paths, queries and JSON
bodies are right ones with something changed: another type, a huge number, a missing or an added
member, text of every kind. Checked as for strangers (`http.py`): the roles live and answer, no
answer is 500, and the logs hold sentences.

Left out: what stops a process on purpose, members, and joins of made-up clients (their number
is a matter of the log).
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

from tasksprint.errors import PeerUnreachable, RemoteProtocolError
from tasksprint.net.http_blocking import request_blocking
from tasksprint.net.keys import ClusterKey, create_key
from tasksprint.settings import Settings
from tests.fuzz.http import Target, private_cluster, wrong_with
from tests.fuzz.outcome import Outcome, input_random

__all__ = ["NAME", "request", "run"]

NAME = "requests"

_CHECK_EACH = 100
_DIGEST = "ab" * 32
_MANIFEST = {"scheduler": ["scheduler.py"], "node": ["node.py"]}
_REPORT = [[1, 0, 0, _DIGEST, 10, None, 5, {"x": ["json", "1"]}]]
_BODIES: dict[str, Any] = {
    "/v1/jobs": {
        **{"sender": "s", "request": 1, "name": "n", "seed": 1, "params": "{}"},
        **{"program": _DIGEST, "manifest": json.dumps(_MANIFEST)},
    },
    "/v1/jobs/1/cancel": {"sender": "s", "request": 2, "reason": "r"},
    "/v1/jobs/1/forget": {"sender": "s", "request": 3},
    "/v1/archives/lacking": {"digests": [_DIGEST]},
    "/v1/commands": ["leave", 7, "incarnation"],
    "/v1/commands?": ["report", 7, "incarnation", 1, _REPORT, [], [], []],
    "/v1/commands??": ["nodes", 7, "incarnation", 1, {"n": 1}],
    "/v1/programs": "",
    "/v1/archives": "",
    "/v1/mirror": None,
    "/v1/mirror/none/close": None,
    "/v1/values": [[1, 0, _DIGEST, ["x"]]],
}
_PATHS = (
    *("/healthz", "/readyz", "/metrics", "/v1/status", "/v1/jobs", "/v1/jobs/1", "/v1/clients"),
    *("/v1/jobs/1/tasks/0", "/v1/jobs/1/log", "/v1/members", "/v1/identity", "/v1/logs/1"),
    *("/v1/archives/" + _DIGEST, "/v1/view", "/v1/digest", "/v1/mirror/none/0", "/v1/logs/1/0"),
    *("/v1/values/1/0", "/v1/values/1/0/x", "/v1/replica"),
)
_QUERIES = (
    *("cid", "incarnation", "since", "wait_ms", "seen", "cluster", "exact", "slot", "digest"),
    *("here", "token", "source", "target", "nonce", "address", ""),
)
_ODD: tuple[Any, ...] = (
    *(None, True, 0, 1, -1, 2**31, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 1.5, 1e308, -0.0),
    *(
        "",
        "0",
        "1",
        "x",
        "\0",
        "\x1b[2J",
        "\u202e",
        "é" * 50,
        "x" * 3_000,
        "9" * 5_000,
        "{}",
        "[]",
    ),
    *([], {}, [[]], [None], {"": None}, {"x": 1}, [1, 2, 3], "attached:x", "attached:", "../x"),
)


def run(seconds: float, seed: int) -> Outcome:
    """Ask a coordinator and a client for so long."""
    findings: list[str] = []
    number = 0
    settings = replace(Settings(), answer_timeout_ms=5_000)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ts-fuzz-")))
        targets = stack.enter_context(private_cluster(folder))
        key = create_key(folder / "cluster" / "key")
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s and not findings:
            number += 1
            random = input_random(seed, number)
            target = random.choice(targets)
            method, path, body = request(random)
            try:
                answer = _ask(target, method, path, body, key, settings)
            except (PeerUnreachable, RemoteProtocolError) as error:
                answer = f"{type(error).__name__}: {error}"
            if answer:
                findings.append(f"input {number}: {method} {path} {body[:300]!r}: {answer}")
            if number % _CHECK_EACH == 0:
                findings += wrong_with(targets, number)
        findings += wrong_with(targets, number)
        peak_mib = max(each.peak_mib() for each in targets)
    return Outcome(NAME, number, findings, peak_mib)


def _ask(
    target: Target, method: str, path: str, body: bytes, key: ClusterKey, settings: Settings
) -> str:
    """Send a request; return what is wrong with its answer, if anything."""
    response = request_blocking(
        target.address, method, path, key=key, settings=settings, body=body, checks_rest=True
    )
    if response.status == 500:
        return f"answered 500: {response.body[:300]!r}"
    return ""


def request(random: Random) -> tuple[str, str, bytes]:
    """Make up method, path with its query, and body."""
    if random.randrange(3):
        path = random.choice(list(_BODIES))
        value = _BODIES[path]
        for _ in range(random.randrange(3)):
            value = _changed(value, random)
        body = b"" if value is None else json.dumps(value).encode()
        if random.randrange(8) == 0:
            body = random.choice(
                [b"", b"\xff", body[:-1], body * 2, b"[" * 5_000, b"\x1f\x8b\x08"]
            )
        return random.choice(["POST", "POST", "POST", "PUT"]), path.rstrip("?"), body
    path = random.choice(_PATHS)
    if random.randrange(3) == 0:
        parts = path.split("/")
        parts[random.randrange(1, len(parts))] = quote(_text(random), safe="")
        path = "/".join(parts)
    pairs = [
        f"{quote(random.choice(_QUERIES))}={quote(_text(random))}"
        for _ in range(random.randrange(4))
    ]
    # A poll that is to wait would only take the time of this.
    pairs = [pair for pair in pairs if not pair.startswith("wait_ms") or len(pair) < 10]
    return random.choice(["GET", "GET", "GET", "HEAD", "POST"]), f"{path}?{'&'.join(pairs)}", b""


def _text(random: Random) -> str:
    value = random.choice(_ODD)
    return (value if isinstance(value, str) else json.dumps(value))[:2_000] or "0"


def _changed(value: Any, random: Random) -> Any:
    """Return a JSON value with one thing in it changed."""
    if random.randrange(4) == 0 or not isinstance(value, (list, dict)) or not value:
        return random.choice(_ODD)
    if isinstance(value, dict):
        name = random.choice(list(value))
        match random.randrange(6):
            case 0:
                return {key: each for key, each in value.items() if key != name}
            case 1:
                return {**value, random.choice(["", "x", "exact", "base"]): random.choice(_ODD)}
            case _:
                return {**value, name: _changed(value[name], random)}
    index = random.randrange(len(value))
    match random.randrange(6):
        case 0:
            return value[:index] + value[index + 1 :]
        case 1:
            return [*value, random.choice(_ODD)]
        case _:
            return [*value[:index], _changed(value[index], random), *value[index + 1 :]]
