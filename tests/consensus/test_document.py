"""docs/consensus.md shows a program that runs three replicas, and what it really prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tasksprint.consensus import Ready, Replica

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "consensus.md").read_text(encoding="utf-8")


def test_program_of_the_page_prints_what_the_page_says() -> None:
    """The leader dies in its middle, so what it prints shows an election, too."""
    ((program, shown),) = re.findall(
        r"```python\n(.*?)```\n\nIt prints:\n\n```text\n(.*?)```", PAGE, re.S
    )
    assert sum(bool(line.strip()) for line in program.splitlines()) <= 40
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == shown


def test_every_field_of_ready_that_the_page_names_is_one() -> None:
    loop = PAGE.partition("## The loop")[2].partition("\n## ")[0]
    fields = re.findall(r"`(\w+)`", loop)
    methods = re.findall(r"`(\w+)\(", loop)
    assert {"send_now", "persist", "send_after_persist", "chosen"} < set(fields)
    assert {"receive", "propose", "tick", "ready", "persisted"} <= set(methods)
    others = {"deadline_ms", "now_ms", "Ready"}
    assert [each for each in fields if each not in (*Ready._fields, *others)] == []
    assert [each for each in methods if not hasattr(Replica, each)] == []
