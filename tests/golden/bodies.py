"""Shapes of the bodies that go by HTTP, asked of a coordinator and of a client that run."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tasksprint.coordination.commands import JoinClient, encode_command
from tasksprint.ids import Incarnation
from tasksprint.net.http_client import HttpClient
from tasksprint.process.job_directory import pack
from tasksprint.settings import Settings
from tests.golden.golden import shape_of_json
from tests.net.support import KEY, until
from tests.roles.client_world import GOOD, assignment, shell_node, view, world
from tests.roles.members import Member, members

__all__ = ["shapes"]


async def shapes() -> list[str]:
    """Return a line for each request: what is sent, and what comes back."""
    with tempfile.TemporaryDirectory() as folder:
        return await _of_coordinator(Path(folder)) + await _of_client(Path(folder) / "client")


async def _of_coordinator(folder: Path) -> list[str]:
    lines: list[str] = []
    settings = Settings(tick_interval_ms=10**9, free_refuse_bytes=0, free_stop_bytes=0)
    async with members(1, folder, settings) as of:
        leader = await of.leader()
        leader.coordinator.options.data_dir.mkdir(exist_ok=True)
        await leader.coordinator.disk_space.check()

        async def ask(method: str, path: str, body: Any = b"", general: str = "") -> Any:
            answer = await _ask(leader, method, path, body)
            lines.append(_line("coordinator", method, general or path, body, answer))
            return answer

        await ask("GET", "/healthz")
        await ask("GET", "/readyz")
        await ask("GET", "/v1/status")
        await ask("GET", "/v1/members")
        await ask("GET", "/v1/identity")
        (folder / "job").mkdir()
        (folder / "job" / "scheduler.sh").write_text("#!/bin/sh\nexec cat > /dev/null\n")
        archive, digest = pack(folder / "job", archive_bytes_max=1_000_000)
        await ask("POST", "/v1/programs", archive)
        await ask("POST", "/v1/archives", archive)
        await ask("POST", "/v1/archives/lacking", {"digests": [digest, "0" * 64]})
        submitted = {
            "sender": "me", "request": 1, "name": "job", "seed": 7, "params": "{}",
            "program": digest,
            "manifest": json.dumps({"scheduler": ["scheduler.sh"], "node": ["attached:x"]}),
        }  # fmt: skip
        await ask("POST", "/v1/jobs", submitted)
        await ask("POST", "/v1/jobs", {**submitted, "request": 2, "params": "[]"})
        await ask("GET", "/v1/jobs/1/log")
        await ask("POST", "/v1/jobs/1/cancel", {"sender": "me", "request": 3, "reason": "why"})
        await ask("GET", "/v1/jobs/1")
        await ask("POST", "/v1/jobs/1/forget", {"sender": "me", "request": 4})
        await ask("GET", "/v1/jobs/1")
        join = JoinClient("aa", Incarnation("bb"), None, "host", 2)
        await leader.ask("POST", "/v1/commands", body=encode_command(join))
        await ask("GET", "/v1/clients")
        await ask("GET", "/v1/view?cid=1&incarnation=xx", general="/v1/view of a dead client")
        await ask("GET", "/v1/jobs?cluster=other")
        await ask("GET", "/v1/digest?slot=1&digest=ab&cluster=other")
        opened = await ask("POST", "/v1/mirror")
        session = opened[1]["session"]
        piece = (await leader.ask("GET", f"/v1/mirror/{session}/0")).checked().body
        line, _, rest = piece.partition(b"\n")
        head = shape_of_json(json.loads(line))
        lines.append(
            f"coordinator: GET /v1/mirror/SESSION/0 -> 200 {head} "
            f"{shape_of_json(json.loads(rest))}"
        )
        await ask("POST", f"/v1/mirror/{session}/close", general="/v1/mirror/SESSION/close")
        await ask("POST", "/v1/members", {"change": "remove", "replica": 1})
    return lines


async def _ask(member: Member, method: str, path: str, body: Any) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await member.ask(method, path, body=data)
    return answer.status, answer.json()


def _line(who: str, method: str, path: str, body: Any, answer: tuple[int, Any]) -> str:
    sent = "" if body == b"" else " bytes"
    if not isinstance(body, bytes):
        sent = f" {shape_of_json(body)}"
    return f"{who}: {method} {path}{sent} -> {answer[0]} {shape_of_json(answer[1])}"


async def _of_client(folder: Path) -> list[str]:
    lines: list[str] = []
    settings = Settings()
    async with world(folder) as of:
        http = HttpClient(KEY, settings)

        async def ask(method: str, path: str, body: Any = b"") -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            answer = await http.request(
                of.address, method, path, body=data, checks_rest=path == "/v1/values"
            )
            line, _, _ = answer.body.partition(b"\n")
            told = (answer.status, json.loads(line))
            lines.append(_line("client", method, path, body, told))

        of.program(shell_node(GOOD, before="echo hello >&2"))
        of.coordinator.give(view(run=(assignment(0),)))
        await until(lambda: of.coordinator.done())
        await of.idle()
        await until(lambda: of.client.free_space.free_bytes is not None)
        digest = of.coordinator.done()[0].result_digest
        await ask("GET", "/healthz")
        await ask("GET", "/readyz")
        await ask("GET", "/v1/status")
        await ask("GET", "/v1/values/1/0")
        await ask("POST", "/v1/values", [[1, 0, digest, ["result"]]])
        await ask("POST", "/v1/values/check", [1, 0, digest])
        await ask("GET", "/v1/logs/1")
        await ask("GET", "/v1/output/1")
        await http.close()
    return lines
