"""The commands of README.md that are to be pasted: they are run as they stand there."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.standin import CHECKOUT

pytestmark = pytest.mark.slow

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")


def commands_behind(words: str) -> str:
    """Return the first block of commands behind these words."""
    block = re.search(r"\n\n((?:    .*\n)+)", README.partition(words)[2])
    assert block is not None, words
    return block[1]


def pasted(text: str, archive: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run commands in a folder that has what a user has."""
    shutil.copy(archive, folder / "tasksprint.pyz")
    shutil.copytree(CHECKOUT / "examples", folder / "examples")
    (folder / "bin").mkdir()
    (folder / "bin" / "python3").symlink_to(sys.executable)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("TASKSPRINT_")
    }
    environment["XDG_STATE_HOME"] = str(folder / "state")
    environment["PATH"] = f"{folder / 'bin'}:{environment['PATH']}"
    return subprocess.run(
        ["bash", "-ec", text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def free_ports() -> str:
    """Return the first digits of ports that end with 1, 2 and 3 and are free."""
    for first in range(2_100, 3_200):
        with socket.socket() as one, socket.socket() as two, socket.socket() as three:
            try:
                for number, sock in enumerate((one, two, three), 1):
                    sock.bind(("127.0.0.1", first * 10 + number))
            except OSError:
                continue
            return str(first)
    raise AssertionError("no ports are free")


def test_a_task_can_be_tried_without_a_cluster(archive: Path, tmp_path: Path) -> None:
    done = pasted(commands_behind("can be seen without any cluster"), archive, tmp_path)
    assert done.returncode == 0, done.stderr
    ready, answer = map(json.loads, done.stdout.splitlines())
    assert "ready" in ready
    assert answer["values"]["result"]["total"] == 1_000


def test_programs_are_those_of_the_example() -> None:
    shown = re.findall(r"^\[`(\S+)`\]\(\S+\):\n\n```python\n(.*?)```$", README, re.M | re.S)
    assert [path for path, _ in shown] == [
        "examples/primes/scheduler.py",
        "examples/primes/node.py",
    ]
    for path, text in shown:
        assert text == (CHECKOUT / path).read_text(encoding="utf-8")


def test_output_that_is_shown_says_what_the_job_really_gives() -> None:
    """The number of primes below a million, and no count but of the 21 tasks there are."""
    assert README.count('{"primes":78498}\n') == 2
    assert set(re.findall(r"\d+ of (\d+) tasks done", README)) == {"21"}


@pytest.mark.long
def test_leader_can_be_killed_as_it_is_pasted(archive: Path, tmp_path: Path) -> None:
    cluster = commands_behind("Here are three coordinators and one client")
    text = cluster + commands_behind("Kill the one that leads in mid-job")
    text = text.replace("127.0.0.1:707", f"127.0.0.1:{free_ports()}")
    done = pasted(text, archive, tmp_path)
    assert done.returncode == 0, done.stderr
    before, result, after = done.stdout.partition('{"primes":78498}\n')
    assert result, done.stdout + done.stderr
    assert before.startswith("submitted 'primes' as job 1\n"), before
    assert " leader " in before
    assert "unreachable" not in before
    assert re.search(r"^1 +- +unreachable ", after, re.M), after
    assert " leader " in after
    assert after.endswith("stopped 3 of 3 processes\n"), after
    assert "21 of 21 tasks done" in done.stderr
