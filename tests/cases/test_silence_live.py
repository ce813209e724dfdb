"""The same as `test_silence.py`, where a process, a socket or a thread has a part in it."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from tasksprint.asking.cluster import Cluster, JobOutcome
from tasksprint.bounded_text import keep_end
from tasksprint.cli import following, job_commands, reaching
from tasksprint.cli.main import main
from tasksprint.cli.parser import parse_command
from tasksprint.coordination.long_runs import LongRun
from tasksprint.coordination.obstacles import Stall
from tasksprint.coordination.view import DropJob
from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import PeerUnreachable, Refused, UnprovenAnswer
from tasksprint.execution.effects import KillNode, TaskError
from tasksprint.ids import ClientId, JobId, Slot, TaskId
from tasksprint.installation import sdk_directory
from tasksprint.net.keys import create_key
from tasksprint.net.own_key import note_own_key, own_key_hint
from tasksprint.next_steps import how_to_come_back, how_to_go_on
from tasksprint.process.attach import LiveClient
from tasksprint.roles import node
from tasksprint.roles.client import process as client_role
from tasksprint.roles.client.joining import StallNews
from tasksprint.roles.client.recent_output import RecentOutput
from tasksprint.roles.coordinator.told import ToldHere
from tasksprint.settings import Settings
from tasksprint.store.result_records import LogText
from tests.execution.helpers import (
    PROGRAM,
    Bench,
    SendReport,
    held_by,
    task,
)
from tests.roles.client_world import assignment, shell_node, until, view, world
from tests.roles.members import members
from tests.roles.test_coordinator import archive_of, decide, run, submission, summary

# --- the cause, from the node to the report ------------------------------------------


def test_failure_takes_along_what_the_attempt_printed_and_where_it_failed(tmp_path: Path) -> None:
    """In bounded pieces, however much a node says."""
    answer = json.dumps({"error": "KeyError: 1", "traceback": "T" * 10_000, "retry": False})
    body = f"echo 'about to fail' >&2; echo '{{\"id\":'\"$id\"',{answer[1:]}'"

    async def main() -> None:
        async with world(tmp_path, failure_traceback_bytes_max=100) as it:
            it.program(shell_node(body))
            it.coordinator.give(view(run=(assignment(0),)))
            await until(lambda: it.coordinator.failures)
            [failure] = it.coordinator.failures
            assert failure.error == "KeyError: 1"
            assert failure.detail["stderr"] == "about to fail\n"
            assert failure.detail["traceback"] == "T" * 50 + " … " + "T" * 50
            assert failure.detail["run_ms"] >= 0
            # The same, for who watches; and the job of others has nothing of it.
            found = it.client.nodes.recent_output.since(1, 0)
            assert found["parts"] == [{"tid": 0, "attempt": 1, "text": "about to fail\n"}]
            path = f"/v1/output/1?first={found['next']}"
            left = (await it.client.http.request(it.address, "GET", path)).json()
            assert left == {"next": found["next"], "parts": []}
            assert it.client.nodes.recent_output.since(2, 0)["parts"] == []

    run(main)


def test_node_that_dies_tells_how_with_the_end_of_its_stderr(tmp_path: Path) -> None:
    body = "for n in 1 2 3 4 5 6 7 8; do echo line $n >&2; done; exit 7"

    async def main() -> None:
        async with world(tmp_path, failure_stderr_bytes_max=20) as it:
            it.program(shell_node(body))
            it.coordinator.give(view(run=(assignment(0),)))
            await until(lambda: it.coordinator.failures)
            detail = it.coordinator.failures[0].detail
            assert (detail["exit_code"], detail["signal"]) == (7, None)
            assert detail["stderr"] == keep_end("line 6\nline 7\nline 8\n", 20)

    run(main)


def test_recent_output_is_bounded_and_numbered() -> None:
    recent = RecentOutput(10)
    for number in range(5):
        recent.add(LogText(1, number, 1, b"1234"))
    found = recent.since(1, 0)
    assert [part["tid"] for part in found["parts"]] == [3, 4]
    recent.add(LogText(1, 9, 1, b"x" * 100))
    assert [part["tid"] for part in recent.since(1, found["next"])["parts"]] == [9]


# --- what clients can't run ----------------------------------------------------------


def test_client_says_which_jobs_it_cannot_go_on_with_and_why() -> None:
    bench = Bench()
    assert bench.workbench.stalls() == []
    bench.view(task(0), task(1))
    bench.effects()
    assert bench.workbench.stalls() == [[1, "preparing", 2, []]]
    bench.workbench.program_ready(PROGRAM)
    bench.effects()
    assert bench.workbench.stalls() == [[1, "starting", 2, []]]
    bench.workbench.disk_low(True)
    assert bench.workbench.stalls() == [[1, "disk", 2, []]]
    bench.workbench.disk_low(False)
    bench.ready(1)
    bench.effects()
    assert bench.workbench.stalls() == [], "one of them runs"


def test_client_says_which_tasks_have_been_running_for_long() -> None:
    bench = Bench(slots=2)
    bench.serving(1, 2)
    bench.view(task(0), task(1, attempt=3))
    bench.effects()
    workbench = bench.workbench
    now_ms = bench.now_ms
    assert workbench.long_runs(now_ms + 1_999) == []
    assert workbench.long_runs(now_ms + 2_000) == [[1, 0, 1, 2_000]], "one for each job"
    assert workbench.stalls() == []


def test_client_says_which_inputs_it_fetches() -> None:
    bench = Bench()
    bench.view(task(7, held_by(2, tid=3), held_by(2, tid=4)))
    bench.effects()
    assert bench.workbench.stalls() == [[1, "fetching", 1, [3, 4]]]


def test_node_that_is_killed_with_its_job_is_told_why() -> None:
    for ended, words in (
        ("cancelled", "job 1 was cancelled while it ran task 5 'work'"),
        ("finished", "job 1 has finished while it ran task 5 'work'"),
        ("failed", "job 1 failed while it ran task 5 'work'"),
        ("", "task 5 'work' was stopped"),
    ):
        bench = Bench()
        bench.serving(1)
        bench.view(task(5))
        bench.effects()
        bench.view(drop_jobs=(DropJob(JobId(1), (), ended),), jobs=())
        [kill] = [effect for effect in bench.effects() if isinstance(effect, KillNode)]
        assert kill.why == words


def test_stderr_of_an_answer_goes_into_the_report() -> None:
    bench = Bench(settings=Settings(failure_stderr_bytes_max=8))
    bench.serving(1)
    bench.view(task(0))
    bench.effects()
    bench.failed(1, 2, TaskError("boom", "trace", retry=False, stderr="12345\n6789\n"))
    [sent] = [effect for effect in bench.effects() if isinstance(effect, SendReport)]
    assert dict(sent.failures[0].detail)["stderr"] == "…\n6789\n"


# --- what coordinators answer --------------------------------------------------------

SILENT = "#!/bin/sh\necho '{\"ready\":{}}'\nsleep 60\n"
LOGS = (
    "#!/bin/sh\necho '{\"ready\":{}}'\nread -r line\n"
    'echo \'{"event":0,"commands":[{"log":"one"},{"log":"two"}]}\'\nexec cat > /dev/null\n'
)


def test_scheduler_that_does_not_answer_is_named_with_its_handler(tmp_path: Path) -> None:
    async def main() -> None:
        settings = Settings(silence_shown_ms=50)
        async with members(1, tmp_path, settings) as of:
            leader = await of.leader()
            digest = await archive_of(leader, tmp_path / "silent", scheduler_sh=SILENT)
            job = (await decide(leader, submission(1, digest)))["job"]
            found: list[Any] = []

            async def is_named() -> bool:
                found[:] = [(await summary(leader, job))["obstacle"]]
                return bool(found[0]) and "init()" in found[0]["text"]

            while not await is_named():
                pass
            assert found[0]["kind"] == "scheduler"
            assert found[0]["text"].startswith("its scheduler hasn't answered event 0 init() for ")
            [listed] = (await leader.ask("GET", "/v1/jobs")).json()
            assert listed["obstacle"]["kind"] == "scheduler"

    run(main)


def told_here() -> tuple[ToldHere, SimpleNamespace]:
    """Return what a coordinator keeps of what clients say, and its clock."""
    clock = SimpleNamespace(now_ms=1_000)
    return ToldHere(lambda: clock.now_ms, cast(Any, {})), clock


def test_what_clients_say_of_long_runs_grows_older_until_they_say_otherwise() -> None:
    told, clock = told_here()
    told.heard(ClientId(3), {"runs": "[[1, 7, 1, 2500]]"})
    clock.now_ms += 1_200
    assert told.of().runs == (LongRun(ClientId(3), JobId(1), TaskId(7), 1, 3_700),)
    told.heard(ClientId(3), {})
    told.heard(ClientId(3), {"runs": "[[1, 7, 1, 2500]]"})
    clock.now_ms += 2_000
    assert told.of().runs == (LongRun(ClientId(3), JobId(1), TaskId(7), 1, 5_700),), (
        "its age counts from when it was said first, and it holds from when it was said last"
    )
    told.heard(ClientId(3), {"runs": "nonsense"})
    assert told.of().runs == ()
    told.heard(ClientId(3), {"runs": "[[1, 7, 1, 2500]]"})
    told.heard(ClientId(3), {"runs": "[]"})
    assert told.of().runs == ()
    told.heard(ClientId(3), {"runs": "[[1, 7, 1, 2500]]"})
    clock.now_ms += 3_001
    assert told.of().runs == (), "it lives no more, perhaps"


def test_what_clients_say_is_read_when_somebody_asks_and_only_of_that_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A busy client polls a thousand times a second, and somebody looks once."""
    read: list[bytes] = []

    def decode(data: bytes) -> Any:
        read.append(data)
        return decode_json(data)

    monkeypatch.setattr("tasksprint.roles.coordinator.told.decode_json", decode)
    told, _ = told_here()
    for cid in range(2, 50):
        said = {"runs": f"[[{cid},7,1,2500]]", "stalls": f'[[{cid},"queued",3,[1]]]'}
        told.heard(ClientId(cid), said)
    both = {"runs": "[[2,8,1,9000],[1,9,1,2500]]", "stalls": '[[2,"disk",1,[]],[1,"disk",1,[]]]'}
    told.heard(ClientId(50), both)
    assert read == []
    found = told.of(JobId(1))
    assert found.runs == (LongRun(ClientId(50), JobId(1), TaskId(9), 1, 2_500),)
    assert found.stalls == (Stall(ClientId(50), JobId(1), "disk", 1),)
    assert len(read) == 2
    assert {run.cid for run in told.of(JobId(2), JobId(3)).runs} == {2, 3, 50}
    assert len(told.of().runs) == len(told.of().stalls) == 50


def test_client_says_what_does_not_go_on_when_it_looked_for_it_and_takes_it_back_once() -> None:
    stalls: list[Any] = [[1, "queued", 3, []]]
    runs: list[Any] = []
    workbench = SimpleNamespace(stalls=lambda: stalls, long_runs=lambda now_ms: runs)
    clock = SimpleNamespace(now_ms=10_000)
    news = StallNews(cast(Any, workbench))

    def said(after_ms: int) -> dict[str, str]:
        clock.now_ms += after_ms
        return news.find(clock.now_ms)

    assert said(0) == {"stalls": '[[1,"queued",3,[]]]', "runs": "[]"}
    assert said(499) == {}, "that would go along with each of a thousand polls"
    runs.append([1, 7, 1, 2_500])
    assert said(1) == {"stalls": '[[1,"queued",3,[]]]', "runs": "[[1,7,1,2500]]"}
    stalls.clear()
    runs.clear()
    assert said(500) == {"stalls": "[]", "runs": "[]"}
    assert said(500) == {}


@pytest.mark.slow
def test_coordinator_without_a_leader_says_which_members_it_hears(tmp_path: Path) -> None:
    settings = Settings(
        heartbeat_interval_ms=20, election_timeout_min_ms=100, election_timeout_max_ms=200
    )

    async def main() -> None:
        async with members(3, tmp_path, settings) as of:
            leader = await of.leader()
            others = [member for member in of.all if member is not leader]
            last, first = others
            for member in (leader, first):
                await member.stop()

            async def said() -> str:
                answer = await last.ask("GET", "/v1/jobs")
                assert answer.status == 421
                return str(answer.json()["error"])

            gone = sorted((leader, first), key=lambda member: member.number)
            named = ", ".join(
                rf"{member.number} \({re.escape(member.address)}(, since [0-9]+ s)?\)"
                for member in gone
            )
            words = (
                f"replica {last.number} hears no leader; it doesn't hear replica {named}; "
                "2 of the 3 that vote must be up"
            )
            while re.fullmatch(words, await said()) is None:
                pass
            for member in (leader, first):
                await member.start()
            await of.leader()

    run(main)


def test_setup_that_a_coordinator_runs_for_long_is_the_obstacle(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(1, tmp_path, Settings(silence_shown_ms=50)) as of:
            leader = await of.leader()
            digest = await archive_of(leader, tmp_path / "setup", node_sh=SILENT)
            manifest = {"scheduler": ["made.sh"], "setup": ["sleep", "60"]}
            job = (await decide(leader, submission(1, digest, **manifest)))["job"]
            obstacle: Any = None
            while obstacle is None or "setup" not in obstacle["text"]:
                obstacle = (await summary(leader, job))["obstacle"]
            assert obstacle["kind"] == "scheduler"
            assert re.fullmatch(
                "its scheduler isn't started yet: coordinator 1 runs setup 'sleep 60' for "
                "[0-9] s; it is ended in [0-9]+ s",
                obstacle["text"],
            )
            status = (await leader.ask("GET", "/v1/status")).json()["schedulers"][str(job)]
            assert status["text"] == "not started yet: this coordinator runs setup 'sleep 60'"
            # Another job's scheduler waits for the same setup: it runs once at a time.
            waits = "waits for setup 'sleep 60', which runs for another scheduler of this program"
            job = (await decide(leader, submission(2, digest, **manifest)))["job"]
            obstacle = None
            while obstacle is None or "setup" not in obstacle["text"]:
                obstacle = (await summary(leader, job))["obstacle"]
            assert obstacle["text"].startswith(
                f"its scheduler isn't started yet: coordinator 1 {waits} for "
            )

    run(main)


def test_program_that_is_not_read_yet_is_the_obstacle(tmp_path: Path) -> None:
    """It may be on this disk, or with another member."""

    async def main() -> None:
        async with members(1, tmp_path, Settings(silence_shown_ms=50)) as of:
            leader = await of.leader()
            leader.coordinator.archives._unpack = (  # type: ignore[method-assign]
                lambda digest: asyncio.sleep(999, Path())
            )
            digest = await archive_of(leader, tmp_path / "slow", scheduler_sh=SILENT)
            job = (await decide(leader, submission(1, digest)))["job"]
            obstacle: Any = None
            while obstacle is None:
                obstacle = (await summary(leader, job))["obstacle"]
            assert obstacle["text"].startswith(
                "its scheduler isn't started yet: coordinator 1 reads the program, or fetches it "
                "from another member for "
            )

    run(main)


def test_leader_that_lacks_what_was_decided_says_so_and_not_that_another_leads(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with members(1, tmp_path) as of:
            coordinator = (await of.leader()).coordinator
            while not coordinator.log.is_current:
                await asyncio.sleep(0)
            error = coordinator.log.not_leader()
            assert (str(error), error.leader) == ("replica 1 leads again", None)
            coordinator.log._current_end = Slot(1_000_000)
            error = coordinator.log.not_leader()
            assert (str(error), error.leader) == (
                "replica 1 leads and doesn't know yet all that was decided before",
                None,
            )

    run(main)


def test_who_has_heard_the_news_waits_for_others_and_gets_lines_by_number(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            digest = await archive_of(leader, tmp_path / "logs", scheduler_sh=LOGS)
            job = (await decide(leader, submission(1, digest)))["job"]
            path = f"/v1/jobs/{job}"
            news = ""
            while True:
                query = {"wait_ms": 1_000, "heard": news}
                found = (await leader.ask("GET", path, query=query, wait_ms=1_000)).json()
                news = found["news"]
                if found["log_lines"] == 2:
                    break
            log = (await leader.ask("GET", f"{path}/log", query={"first_line": 1})).json()
            assert (log["log"], log["failures"]) == (["two"], [])
            query = {"wait_ms": 50, "heard": news}
            found = (await leader.ask("GET", path, query=query, wait_ms=50)).json()
            assert found["news"] == news
            answer = await leader.ask("GET", f"{path}/tasks/0")
            assert answer.status == 404

    run(main)


# --- following -----------------------------------------------------------------------


def outcome(state: str = "running", **changed: Any) -> JobOutcome:
    fields: dict[str, Any] = {
        "job": JobId(1),
        "name": "job",
        "state": state,
        "tasks": {"assigned": 1},
        "values": None,
        "error": None,
        "seconds": 0.5,
        **changed,
    }
    return JobOutcome(**fields)


class Slowly(PeerUnreachable):
    """Nobody answers, and that takes as long as may pass before it is given up."""


class Scripted:
    """A cluster that answers what a test says, one thing after the other."""

    def __init__(
        self, *answers: JobOutcome | Exception, failures: list[Any] | None = None
    ) -> None:
        self.settings = Settings(find_leader_timeout_ms=50)
        self._answers: Iterator[JobOutcome | Exception] = iter(answers)
        self._last: JobOutcome | Exception | None = None
        self._failures = failures or []

    def job_with_news(self, job: JobId, **_: Any) -> JobOutcome:
        self._last = next(self._answers, self._last)
        if isinstance(self._last, Slowly):
            # Real time: whoever follows looks at the clock.
            time.sleep(self.settings.find_leader_timeout_ms / 1000)
        if isinstance(self._last, Exception):
            raise self._last
        assert self._last is not None
        return self._last

    def job_notes(
        self, job: JobId, first_line: int, first_failure: int
    ) -> tuple[list[str], list[Any]]:
        lines = [f"line {number}" for number in range(first_line, 2)]
        return lines, [one for one in self._failures if one["number"] >= first_failure]


def follow(cluster: Scripted, **options: Any) -> tuple[JobOutcome, str]:
    stream = io.StringIO()
    found = following.follow_to_end(cast(Cluster, cluster), JobId(1), stream=stream, **options)
    return found, stream.getvalue()


def given_up(number: int) -> dict[str, Any]:
    return {
        "number": number,
        "tid": 0,
        "name": "work",
        "attempt": number + 1,
        "failures": number + 1,
        "retries": 1,
        "final": True,
        "cid": 1,
        "host": "vm",
        "time_ms": 1,
        "error": "ValueError: no",
        "detail": {"traceback": "Traceback of it\n"},
    }


def test_lines_and_failures_are_shown_as_they_come_and_the_cause_with_the_end() -> None:
    ended = outcome("failed", log_lines=2, failures=2, failure=given_up(1), error="it failed")
    cluster = Scripted(
        outcome(),
        outcome(log_lines=2, failures=2),
        ended,
        failures=[given_up(0), given_up(1)],
    )
    found, text = follow(cluster)
    assert found == ended
    lines = text.splitlines()
    assert lines[:2] == ["log: line 0", "log: line 1"]
    shown = "task 0 'work' failed, attempt 1 of 2 on client 1 (vm): ValueError: no; given up"
    assert lines[2] == shown
    assert text.count("Traceback of it") == 1, "that of the cause stands beneath the end"
    assert lines[-1].startswith("[   0.5 s] 0 of 1 tasks done")
    with pytest.raises(Exception, match="it failed\n  task 0 'work', attempt 2 of 2") as caught:
        job_commands.print_outcome(found, as_json=False)
    assert "Traceback of it" in str(caught.value)
    assert json.loads(ended.encode())["failure"] == given_up(1)


def test_nobody_answering_is_given_up_only_if_nobody_ever_did() -> None:
    with pytest.raises(PeerUnreachable, match="gone"):
        follow(Scripted(PeerUnreachable("gone")))
    # Far beyond the limit: each asking takes as long as that alone.
    gone = [Slowly("gone") for _ in range(3)]
    found, text = follow(Scripted(outcome(), *gone, outcome("finished")))
    assert found.state == "finished"
    assert "gone" not in text.splitlines()[-1]
    found, _ = follow(Scripted(*gone, outcome("finished")), is_known=True)
    assert found.state == "finished"
    found, _ = follow(Scripted(PeerUnreachable("gone"), outcome("finished")))
    assert found.state == "finished"
    with pytest.raises(Refused, match="no job 1"):
        follow(Scripted(Refused("no job 1")))

    def check() -> None:
        raise PeerUnreachable("the client ended with exit code 1")

    with pytest.raises(PeerUnreachable, match="the client ended"):
        follow(Scripted(PeerUnreachable("gone")), check=check)


# --- what next -----------------------------------------------------------------------


@pytest.fixture
def default_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TASKSPRINT_COORDINATORS", "TASKSPRINT_KEY_FILE", "TASKSPRINT_CLUSTER"):
        monkeypatch.delenv(name, raising=False)


class Submitting:
    """A cluster that takes a job; whoever waits for it is interrupted."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.settings = Settings()

    def submit(self, *_: Any, **__: Any) -> JobId:
        return JobId(7)

    def job_with_news(self, *_: Any, **__: Any) -> NoReturn:
        raise KeyboardInterrupt


def submit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *options: str) -> Callable[[], int]:
    job = tmp_path / "job"
    job.mkdir(exist_ok=True)
    for name in ("scheduler.py", "node.py"):
        (job / name).write_text("", encoding="utf-8")
    create_key(tmp_path / "key")
    monkeypatch.setattr(reaching, "Cluster", Submitting)
    arguments = ["submit", str(job), "--key-file", str(tmp_path / "key"), *options]
    return lambda: main(arguments)


@pytest.mark.usefixtures("default_cluster")
def test_submit_says_what_next_on_stderr(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = f"--key-file {tmp_path / 'key'}"
    assert submit(monkeypatch, tmp_path, "--coordinators", "10.0.0.1:7")() == 0
    printed = capsys.readouterr()
    assert printed.out == "submitted 'job' as job 7\n"
    assert printed.err == (
        f"follow it:        tasksprint result 7 --wait --coordinators 10.0.0.1:7 {key}\n"
        f"fetch its result: tasksprint result 7 --coordinators 10.0.0.1:7 {key}\n"
        f"cancel it:        tasksprint cancel 7 --coordinators 10.0.0.1:7 {key}\n"
    )
    monkeypatch.setenv("TASKSPRINT_KEY_FILE", str(tmp_path / "key"))
    assert submit(monkeypatch, tmp_path)() == 0
    assert capsys.readouterr().err.splitlines()[2] == "cancel it:        tasksprint cancel 7"
    assert submit(monkeypatch, tmp_path, "--json")() == 0
    assert capsys.readouterr() == ('{"job":7,"state":"running"}\n', "")


@pytest.mark.usefixtures("default_cluster")
def test_who_interrupts_the_waiting_is_told_that_the_job_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TASKSPRINT_KEY_FILE", str(tmp_path / "key"))
    assert submit(monkeypatch, tmp_path, "--wait")() == 130
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "job 7 goes on without this command; come back with: tasksprint result 7 --wait; "
        "cancel it with: tasksprint cancel 7",
        "tasksprint: interrupted",
    ]


def test_node_says_that_it_is_attached_and_what_a_job_must_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "mine.py"
    program.write_text("", encoding="utf-8")
    notes: list[str] = []
    umask = os.umask(0o22)
    os.umask(umask)

    def attach(argv: Any, **options: Any) -> None:
        notes.append(options["note"])

    monkeypatch.setattr(node, "attach_and_exec", attach)
    monkeypatch.setattr(node, "find_client", lambda *_: LiveClient(42, "/data/c", "/data/c/s"))
    options = argparse.Namespace(program=str(program), arguments=[], name=None, client=None)
    try:
        node.run_role(options)
    finally:
        os.umask(umask)
    assert notes == [
        "tasksprint: attached as 'mine' to client 42 of this machine (data in '/data/c'); it "
        'serves jobs whose tasksprint.json says {"node": "attached:mine"}'
    ]


ATTACHED = """
import os, sys
sys.path.insert(0, sys.argv[1])
os.dup2(int(sys.argv[2]), 0)
os.dup2(0, 1)
os.close(int(sys.argv[2]))
from TaskSprintNode import *
class Mine(TaskSprintNode):
    pass
Mine().start()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "name", "code", "words"),
    [
        (
            "close",
            "mine",
            69,
            "tasksprint: node 'mine' ends: its client has gone without a word (was it killed?); "
            "start a client, and attach the node again\n",
        ),
        ("shutdown", "mine", 69, ""),  # The client has said why.
        ("close", None, 0, ""),  # One that a client started.
    ],
)
def test_attached_node_says_that_its_client_has_gone(
    ending: str, name: str | None, code: int, words: str
) -> None:
    ours, theirs = socket.socketpair()
    environment = {key: value for key, value in os.environ.items() if key != "TASKSPRINT_ATTACHED"}
    if name is not None:
        environment["TASKSPRINT_ATTACHED"] = name
    with ours:
        with theirs:
            node = subprocess.Popen(
                [sys.executable, "-c", ATTACHED, sdk_directory(), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                env=environment,
            )
        assert b'"ready"' in ours.recv(1_000)
        if ending == "close":
            ours.close()
        else:
            ours.shutdown(socket.SHUT_WR)
        _, said = node.communicate(timeout=60)
    assert (node.returncode, said.decode()) == (code, words)


def test_client_with_a_key_of_its_own_making_says_so_when_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = tmp_path / "state" / "tasksprint" / "key"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("TASKSPRINT_KEY_FILE", raising=False)

    async def refused(*_: Any, **__: Any) -> int:
        raise UnprovenAnswer("what answers at h:1 has another cluster key", status=401)

    monkeypatch.setattr(client_role, "_serve", refused)
    options = parse_command(["client", "--nodes", "1", "--data-dir", str(tmp_path / "data")])
    hint = (
        f"this client made its own key at its first start, {str(key)!r}; copy the cluster's key "
        "there from a machine of the cluster, mode 0600, or name it with --key-file"
    )
    for _ in range(2):  # Also when it is started again.
        with pytest.raises(Refused) as caught:
            client_role.run_role(options)
        assert str(caught.value) == f"what answers at h:1 has another cluster key: {hint}"
    key.write_text("ab" * 32 + "\n", encoding="ascii")  # Copied from elsewhere.
    with pytest.raises(UnprovenAnswer) as caught:
        client_role.run_role(options)
    assert str(caught.value) == "what answers at h:1 has another cluster key"


def test_key_without_a_note_is_not_taken_for_one_made_here(tmp_path: Path) -> None:
    create_key(tmp_path / "key")
    assert own_key_hint(tmp_path / "key") == ""
    note_own_key(tmp_path / "key")
    assert "made its own key" in own_key_hint(tmp_path / "key")
    assert own_key_hint(tmp_path / "missing") == ""


COMMANDS = [
    *(["coordinator"], ["client"], ["node"], ["run"], ["submit"], ["status"], ["jobs"]),
    *(["clients"], ["result"], ["logs"], ["cancel"], ["job"], ["backup"], ["restore"]),
    *(["recover"], ["stop"], ["token"], ["log"], ["log", "verify"], ["log", "show"]),
    *(["member"], ["member", "list"], ["member", "add"], ["member", "remove"]),
    *(["member", "replace"], ["upgrade"]),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"example: tasksprint {' '.join(command)}" in text


@pytest.mark.parametrize(
    ("started_as", "words"),
    [
        ("tasksprint.pyz", "python3 tasksprint.pyz"),
        ("/opt/my tools/ts-0.2.pyz", "python3 '/opt/my tools/ts-0.2.pyz'"),
        ("../tasksprint.py", "python3 ../tasksprint.py"),
        ("/src/tasksprint/__main__.py", "python3 -m tasksprint"),
        ("/usr/local/bin/tasksprint", "tasksprint"),
        ("/usr/lib/pytest/__main__.py", "tasksprint"),
    ],
)
def test_what_can_be_done_next_names_the_program_as_it_was_started(
    started_as: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [started_as, "submit", "."])
    options = parse_command(["submit", "."])
    assert f"follow it:        {words} result 5 --wait" in how_to_go_on(options, JobId(5))
    assert f"come back with: {words} result 5 --wait" in how_to_come_back(options, JobId(5))


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    found = {
        line.split()[0]
        for line in listed.splitlines()
        if line.startswith("    ") and line[4] != " "
    }
    assert {command[0] for command in COMMANDS} == found - {"COMMAND"}, encode_json(sorted(found))
