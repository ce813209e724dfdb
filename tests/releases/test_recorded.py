"""Logs of the last releases come to the same states here, and their schedulers say the same.

Checked of each entry: the digest of the state, replies, events, answers that count, whose
view changed. Of each job of the recorded cluster: what its scheduler answers to the
events that it was told, fed by the SDK of this checkout and of that release.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasksprint.coordination.commands import answer_digest
from tasksprint.ids import TaskId
from tasksprint.protocol.scheduler_lines import SchedulerAnswer, SchedulerReader
from tests.packaging.standin import CHECKOUT
from tests.releases.applying import apply_log
from tests.releases.building import (
    Release,
    built_release,
    find_last_release,
    read_releases,
)
from tests.releases.recording import DIGEST_CHARACTERS, apply_elsewhere, read_recorded

pytestmark = pytest.mark.slow

Logs = dict[str, dict[str, Any]]


# The release that upgrades are tested from, and those with this checkout's own rules.
_RECORDED = [one for one in read_releases() if one.rules >= find_last_release().rules]


@pytest.fixture(scope="module", params=_RECORDED, ids=[one.version for one in _RECORDED])
def recorded(request: pytest.FixtureRequest) -> Release:
    """A release whose logs stand here."""
    release: Release = request.param
    return release


@pytest.fixture(scope="module")
def logs(recorded: Release) -> Logs:
    """Its logs, by name."""
    return read_recorded(recorded)


@pytest.fixture(scope="module")
def its_archive(recorded: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tasksprint.pyz."""
    return built_release(recorded, tmp_path_factory)


@pytest.fixture(scope="module")
def applied(logs: Logs) -> Logs:
    """What this checkout makes of them; by way of JSON, as the other release's comes."""
    found: Logs = json.loads(json.dumps({name: apply_log(log) for name, log in logs.items()}))
    return found


def test_each_entry_leads_to_the_state_that_it_led_to(logs: Logs, applied: Logs) -> None:
    for name, log in logs.items():
        digests = [digest[:DIGEST_CHARACTERS] for digest, _ in applied[name]["digests"]]
        pairs = enumerate(zip(digests, log["digests"], strict=True), 1)
        differ = [slot for slot, (found, expected) in pairs if found != expected]
        assert differ == [], f"{name}: first after slot {differ[0]}"


def test_the_recordings_have_every_kind_of_command(applied: Logs) -> None:
    kinds = {kind for found in applied.values() for kind in found["kinds"]}
    assert kinds >= {
        *("Tick", "JoinClient", "LeaveClient", "NodesAttached", "Report", "SubmitJob"),
        *("Answer", "CancelJob", "ForgetJob", "SchedulerOut", "JobObserved"),
    }


@pytest.mark.long
def test_the_release_makes_the_same_of_each_entry(
    its_archive: Path, logs: Logs, applied: Logs
) -> None:
    for name, log in logs.items():
        assert apply_elsewhere(its_archive, log) == applied[name], name


def answers_of(
    text: str, events: list[str], rules: int, sdk: Path, folder: Path
) -> list[list[Any]]:
    """Return what a scheduler answers to all events, as the log would have it."""
    (folder / "scheduler.py").write_text(text, encoding="utf-8")
    seed = json.loads(events[0])["seed"]
    done = subprocess.run(
        [sys.executable, "scheduler.py"],
        input="".join(f"{line}\n" for line in events).encode(),
        capture_output=True,
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(sdk),
            "PYTHONHASHSEED": str(seed),
            "TASKSPRINT_RULES": str(rules),
        },
        timeout=60,
    )
    reader = SchedulerReader(who="the scheduler", line_bytes_max=1 << 24)
    answers: list[list[Any]] = []
    for line in done.stdout.splitlines(keepends=True):
        first_tid = TaskId(reader.next_tid)
        for said in reader.feed(line):
            if isinstance(said, SchedulerAnswer):
                has_news = said.commands or said.part or not said.last
                digest = answer_digest(first_tid, said.last, said.commands) if has_news else None
                answers.append([said.event, said.part, said.last, digest])
    return answers


def check_answers(logs: Logs, applied: Logs, sdk: Path, folder: Path) -> None:
    """See that each scheduler of the recorded cluster answers again what counted then."""
    found, rules = applied["cluster"], logs["cluster"].get("rules", 1)
    for job, text in logs["cluster"]["schedulers"].items():
        counted = found["answers"].get(job, [])
        answers = answers_of(text, found["events"][job], rules, sdk, folder)
        # What it says once its job has ended doesn't count any more.
        assert answers[: len(counted)] == counted, f"job {job}"


def test_schedulers_answer_what_they_answered(logs: Logs, applied: Logs, tmp_path: Path) -> None:
    jobs = logs["cluster"]["schedulers"]
    assert len(jobs) > 10 and all(applied["cluster"]["events"][job] for job in jobs)
    check_answers(logs, applied, CHECKOUT, tmp_path)


@pytest.mark.long
def test_so_they_do_with_the_sdk_of_the_release(
    its_archive: Path, logs: Logs, applied: Logs, tmp_path: Path
) -> None:
    check_answers(logs, applied, its_archive, tmp_path)
