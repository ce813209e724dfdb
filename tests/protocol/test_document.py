"""docs/protocol.md shows lines that TaskSprint really writes and reads, and a node that works."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from tasksprint.encoding import result_digest, value_digest
from tasksprint.protocol.node_lines import NodeReader, encode_task
from tasksprint.protocol.scheduler_lines import SchedulerReader
from tasksprint.settings import RULES, Settings
from tasksprint.task_spec import TaskSpec
from tests.sdk.programs import ROOT, NodeDriver, Program

TEXT = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^(node|client|scheduler|coordinator)(-raw)? +(.+)$", TEXT, re.M)


def lines_of(who: str) -> list[str]:
    return [line for name, raw, line in EXAMPLES if name == who and not raw]


@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "busybox", "ksh"])
def test_node_in_twelve_lines_of_shell_works(tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on this machine")
    (script,) = re.findall(r"```sh\n(#!/bin/sh\n.*?)```", TEXT, re.S)
    assert len(script.splitlines()) == 12
    path = tmp_path / "node.sh"
    path.write_text(script, encoding="utf-8")
    argv = [shell, *(["sh"] if shell == "busybox" else []), str(path)]
    with Program(argv, stderr=tmp_path / "stderr") as program:
        node = NodeDriver(program)
        assert node.values("square", 12) == {"result": b"144"}
        assert node.values("sum", 1, 2, inputs=[("json", b"39")]) == {"result": b"42"}
        failure = node.failure("cube", 3)
        assert (failure.error, failure.retry) == ("no task cube here", False)
        program.end_input()
        assert program.wait() == 0
        assert program.stderr() == ""


def test_lines_of_nodes_are_accepted() -> None:
    reader = NodeReader(who="node 3", line_bytes_max=1 << 20, value_bytes_max=1 << 20)
    lines = lines_of("node")
    assert len(lines) == 6
    assert len(reader.feed(lines[0].encode() + b"\n")) == 1
    for line in lines[1:]:
        reader = NodeReader(who="node 3", line_bytes_max=1 << 20, value_bytes_max=1 << 20)
        reader.feed(b'{"ready":{},"frames":true}\n')
        data = line.encode() + b"\n"
        if '"frames"' in line:
            data += b"\x89PNG\n"
        assert len(reader.feed(data)) == 1
        assert not reader.is_inside_message


def test_lines_to_nodes_are_what_a_client_writes() -> None:
    lines = lines_of("client")
    assert len(lines) == 3
    for line in lines:
        task = json.loads(line)
        frames = "base64" not in task
        inputs = [("bytes", b"\x89PNG\n")] if "frames" in task or not frames else []
        base = task["args"][:1] if inputs else task["args"]
        written = encode_task(
            task["id"], task["job"], task["task"], task["attempt"],
            TaskSpec(task["name"], json.dumps(base, separators=(",", ":"))),
            inputs, task["seed"], frames,
        )  # fmt: skip
        expected = line.encode() + b"\n" + (b"\x89PNG\n" if "frames" in task else b"")
        assert b"".join(written) == expected


def test_lines_of_schedulers_are_accepted() -> None:
    lines = lines_of("scheduler")
    assert len(lines) == 9
    reader = SchedulerReader(who="scheduler", line_bytes_max=1 << 20)
    for line in lines:
        if '"start":"merge"' in line:
            assert reader.next_tid == 2
        assert len(reader.feed(line.encode() + b"\n")) == 1
    assert reader.next_event == 6


def test_lines_to_schedulers_are_json_without_spaces() -> None:
    lines = lines_of("coordinator")
    assert len(lines) == 11
    for line in lines:
        again = json.dumps(json.loads(line), separators=(",", ":"), ensure_ascii=False)
        assert again == line


def test_digest_in_the_text_is_right() -> None:
    digest = value_digest(b"3.14")
    shown = f'[["result","json",4,"{digest}"]]'
    assert shown in TEXT
    assert result_digest([("result", "json", 4, digest)]) == (
        hashlib.sha256(shown.encode()).hexdigest()
    )


def test_limits_in_the_text_are_the_defaults() -> None:
    units = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "": 1}
    found = re.findall(r"\| ([\d,]+) ?([KMG]iB)? \(`(\w+)`\)", TEXT)
    assert len(found) == 7
    settings = Settings()
    for amount, unit, name in found:
        default = getattr(settings, name, None) or getattr(RULES, name)
        assert int(amount.replace(",", "")) * units[unit] == default, name
    assert settings.node_ready_timeout_ms == 30_000
    assert settings.scheduler_answer_timeout_ms == 30_000
    assert settings.log_bytes_per_attempt_max == 64 * 1024
    assert RULES.retries == 2


def test_python_examples_of_the_text_run(tmp_path: Path) -> None:
    """They are compiled; the node also runs its task."""
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "docs/protocol.md", "exec")
    path = tmp_path / "node.py"
    path.write_text(blocks[0], encoding="utf-8")
    with Program([sys.executable, str(path)], stderr=tmp_path / "stderr") as program:
        node = NodeDriver(program)
        values = node.values("shrink", 0.5, inputs=[("bytes", b"x" * 200)], tid=4)
        assert values == {"image": b"x" * 100, "width": b"7", "tid": b"4"}
