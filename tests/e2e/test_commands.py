"""Every command for people, typed against real processes."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import as_documented, wait_until
from tests.e2e.harness import Commands, Shared, shared_cluster, write_job
from tests.packaging.standin import CHECKOUT

pytestmark = pytest.mark.slow

COMMANDS = [
    "coordinator", "client", "node", "run", "submit", "status", "jobs", "clients", "result",
    "logs", "cancel", "member", "job", "stop", "token", "backup", "restore", "recover", "log",
    "upgrade",
]  # fmt: skip

# Tasks that answer at once, that fail once, and that wait until a file exists.
SCHEDULER = """
from TaskSprintCoordinator import *


class Mixed(TaskSprintCoordinator):
    def init(self, seed):
        print("the scheduler begins")
        self.log("two tasks are started")
        self.start_task("greet", base=[self.params.get("name", "world")], keys=["greeting"])
        self.start_task("flaky", retries=1)
        self.left = 2
        if "gate" in self.params:
            self.start_task("wait", base=[self.params["gate"]])
            self.left += 1

    def task_done(self, tid, values):
        self.left -= 1
        if tid == 0:
            self.values = values
        if not self.left:
            self.finish([0, 1], {**self.values, "params": self.params})


Mixed().start()
"""

NODE = """
import os, sys, time
from TaskSprintNode import *


class Node(TaskSprintNode):
    def greet(self, name):
        print("printed to stdout by greet")
        print("printed to stderr by greet", file=sys.stderr)
        return {"greeting": "hello " + name, "raw": b"\\0\\1", "عدد": 7}

    def flaky(self):
        print("attempt", self.task.attempt, "of flaky")
        if self.task.attempt == 1:
            for number in range(5_000):
                print("line", number, "of much output")
            raise ValueError("not at first")

    def wait(self, gate):
        print("waits at its gate")
        with open(gate + ".begun", "w") as file:
            file.write(str(os.getpid()))
        deadline = time.monotonic() + 60
        while not os.path.exists(gate):
            assert time.monotonic() < deadline
            time.sleep(0.01)


Node().start()
"""


@pytest.fixture(scope="module")
def shared(archive: Path) -> Iterator[Shared]:
    """One client with three nodes: one is taken while a job waits at its gate."""
    with shared_cluster(archive, nodes=3) as shared:
        yield shared


@pytest.fixture(scope="module")
def job_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_job(tmp_path_factory.mktemp("jobs") / "mixed", SCHEDULER, NODE)


@pytest.fixture(scope="module")
def finished(shared: Shared, job_folder: Path) -> int:
    """A job that has finished."""
    job = shared.submit(job_folder)
    outcome = shared.outcome(job)
    assert outcome.state == "finished", outcome.error
    return job


def begun(gate: Path) -> int | None:
    """Return the process that waits at a gate, once there is one."""
    path = gate.with_name(gate.name + ".begun")
    text = path.read_text() if path.exists() else ""
    return int(text) if text else None


def wait_at(gate: Path) -> int:
    wait_until(lambda: begun(gate) is not None, "a task waits at its gate")
    found = begun(gate)
    assert found is not None
    return found


# --- help and usage ---


def test_commands_in_this_process_find_relative_paths_where_others_do(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []

    def note(arguments: list[str]) -> int:
        folders.append(Path.cwd())
        return 0

    monkeypatch.setattr("tests.e2e.conftest.main", note)
    commands = Commands(archive, tmp_path)
    commands._asked.add(("status",))  # The first one has a process of its own.
    before = Path.cwd()
    commands("status")
    commands.ask("status")
    assert folders == [tmp_path, tmp_path] and Path.cwd() == before


def test_version_and_help(archive: Path, tmp_path: Path) -> None:
    commands = Commands(archive, tmp_path)
    assert re.fullmatch(r"tasksprint \d+\.\d+\.\d+\S*\n", commands.text("--version"))
    whole = commands.text("--help")
    assert set(re.findall(r"^    (\w+)(?:  .*)?$", whole, re.MULTILINE)) == set(COMMANDS)
    assert "exit codes: 0 done; 1 the job failed" in whole
    assert commands.text(code=64) == whole


def test_help_of_every_command_shows_an_example(archive: Path, tmp_path: Path) -> None:
    commands = Commands(archive, tmp_path)
    started = {
        command: commands.start(command, "--help", stdout=subprocess.PIPE) for command in COMMANDS
    }
    for command, process in started.items():
        text = process.communicate(timeout=30)[0].decode()
        assert process.returncode == 0
        assert f"example: tasksprint {command}" in as_documented(text), text
    assert not commands.state.exists(), "help leaves nothing behind"


# --- run ---


def test_run_prints_one_object(archive: Path, tmp_path: Path, job_folder: Path) -> None:
    commands = Commands(archive, tmp_path, TMPDIR=str(tmp_path))
    done = commands("run", str(job_folder), "--json", "--param", "name=سلام", "--param", "n=1.50")
    printed = json.loads(done.stdout)
    assert set(printed) == {"job", "name", "state", "values", "tasks", "seconds"}
    assert printed["job"] == 1 and printed["name"] == "mixed" and printed["state"] == "finished"
    assert printed["values"] == {
        "greeting": "hello سلام",
        "params": {"name": "سلام", "n": 1.5},
    }
    assert printed["tasks"]["done"] == 2
    assert all(type(count) is int for count in printed["tasks"].values())
    assert 0 < printed["seconds"] < 30
    first, *events, last = [json.loads(line) for line in done.stderr.decode().splitlines()]
    assert set(first) == {"event", "job", "name", "seed"} and first["event"] == "submitted"
    assert {"event": "log", "text": "two tasks are started"} in events
    [failure] = [event for event in events if event["event"] == "failure"]
    assert (failure["error"], failure["final"]) == ("ValueError: not at first", False)
    assert last["event"] == "progress" and last["tasks"] == printed["tasks"]
    assert list(tmp_path.glob("tasksprint-run-*")) == [], "nothing stays behind"


def test_run_of_a_job_that_fails_prints_why(archive: Path, tmp_path: Path) -> None:
    commands = Commands(archive, tmp_path)
    folder = write_job(
        tmp_path / "bad",
        SCHEDULER.replace('"flaky", retries=1', '"missing"'),
        NODE,
    )
    done = commands("run", str(folder), "--json", code=1)
    printed = json.loads(done.stdout)
    assert printed["state"] == "failed" and printed["values"] is None
    assert printed["error"].startswith("task 1 'missing' failed after 1 attempt; last on client 1")
    assert printed["tasks"]["failed"] == 1
    assert printed["failure"]["error"].startswith("node Node has no method 'missing'")
    assert f"tasksprint: job 1 failed: {printed['error']}\n" in done.stderr.decode()


def wait_for_no_process(processes: list[psutil.Process]) -> None:
    def gone() -> bool:
        return not [
            process
            for process in processes
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        ]

    def check() -> bool:
        try:
            return gone()
        except psutil.NoSuchProcess:
            return False  # It ended in between: look again.

    wait_until(check, f"none of {processes} runs any more")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 130, marks=pytest.mark.long),
        (signal.SIGKILL, -9),
    ],
    ids=["ctrl-c", "sigterm", "sigkill"],
)
def test_a_run_that_is_ended_leaves_no_process(
    number: int, code: int, archive: Path, tmp_path: Path, job_folder: Path
) -> None:
    commands = Commands(archive, tmp_path, TMPDIR=str(tmp_path))
    gate = tmp_path / "gate"
    run = commands.start(
        "run", str(job_folder), "--param", f"gate={gate}", "--clients", "2", "--nodes", "1",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    node = wait_at(gate)
    processes = psutil.Process(run.pid).children(recursive=True)
    assert node in [process.pid for process in processes]
    assert len(processes) >= 5, processes  # a coordinator, its scheduler, 2 clients, nodes
    run.send_signal(number)
    stdout, stderr = run.communicate(timeout=30)
    assert run.returncode == code, stderr
    assert stdout == b""
    wait_for_no_process(processes)
    if number != signal.SIGKILL:
        assert stderr.endswith(b"tasksprint: interrupted\n"), stderr
        assert list(tmp_path.glob("tasksprint-run-*")) == []


# --- submit and result ---


def test_submit_and_wait(shared: Shared, job_folder: Path) -> None:
    text = shared.commands.text("submit", str(job_folder))
    found = re.fullmatch(r"submitted 'mixed' as job (\d+)\n", text)
    assert found is not None, text
    first = found[1]
    printed = shared.commands.json("submit", str(job_folder / ".." / "mixed"))
    assert printed["state"] == "running"
    assert printed["job"] == int(first) + 1
    waited = shared.commands.json("submit", "--wait", str(job_folder), "--seed", "5")
    assert set(waited) == {"job", "name", "state", "values", "tasks", "seconds"}
    assert waited["state"] == "finished"
    assert waited["values"]["greeting"] == "hello world"
    done = shared.commands("result", first, "--wait")
    assert json.loads(done.stdout) == waited["values"]
    assert f"job {first} finished in " in done.stderr.decode()


def test_result(shared: Shared, finished: int, job_folder: Path, tmp_path: Path) -> None:
    commands, job = shared.commands, str(finished)
    assert commands.text("result", job) == '{"greeting":"hello world","params":{}}\n'
    whole = commands.json("result", job)
    assert set(whole) == {"job", "name", "state", "values", "tasks", "seconds"}
    task = commands.json("result", job, "--task", "0")
    values = {"greeting": "hello world", "عدد": 7}
    assert task == {
        "job": finished, "task": 0, "state": "done", "values": values, "base64": {"raw": "AAE="}
    }  # fmt: skip
    assert commands("result", job, "--task", "0", "--key", "raw").stdout == b"\0\1"
    assert commands("result", job, "--task", "0", "--key", "عدد").stdout == b"7"
    assert commands.json("result", job, "--task", "1")["values"] == {}
    wrong = commands("result", job, "--task", "0", "--key", "x", code=64).stderr.decode()
    assert "returned no value under key 'x', but 'greeting', 'raw', 'عدد'" in wrong
    wrong = commands("result", "999", code=77).stderr.decode()
    assert wrong == "tasksprint: no job 999\n"


def test_logs_show_what_a_running_task_has_printed(
    shared: Shared, job_folder: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    job = shared.submit(job_folder, params=json.dumps({"gate": str(gate)}))
    wait_at(gate)
    line = "task 2 attempt 1 on client 1: waits at its gate\n"
    assert shared.commands.text("logs", str(job), "2") == line
    gate.touch()
    assert shared.outcome(job).state == "finished"
    assert shared.commands.text("logs", str(job), "2") == line


def test_result_of_a_running_job_says_so(shared: Shared, job_folder: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job = shared.submit(job_folder, params=json.dumps({"gate": str(gate)}))
    wait_at(gate)
    wait_until(lambda: shared.cluster.job(job)[0].tasks["done"] == 2, "the others are done")
    done = shared.commands("result", str(job), code=77)
    assert done.stdout == b"", "a program would take it for the result"
    assert done.stderr.decode() == (
        f"tasksprint: job {job} has no result yet, it is running: 2 of 3 tasks done, 1 running; "
        f"'result {job} --wait' waits for the job's end\n"
    )
    done = shared.commands("result", str(job), "--json", code=77)
    assert json.loads(done.stdout)["state"] == "running"
    why = shared.commands("result", str(job), "--task", "2", code=77).stderr.decode()
    assert why.startswith(f"tasksprint: task 2 of job {job} isn't done, it is running; ")
    status = shared.commands.text("status")
    assert f"job {job} 'mixed': 2 of 3 tasks done, 1 running" in status
    assert re.search(r"^1 +127\.0\.0\.1:\d+ +leader", status, re.MULTILINE)
    assert "1 of 1 client alive, with 3 nodes" in status
    gate.touch()
    assert shared.outcome(job).state == "finished"


def test_status_jobs_and_clients(shared: Shared, finished: int) -> None:
    commands = shared.commands
    jobs = {job["job"]: job for job in commands.json("jobs")}
    assert jobs[finished]["state"] == "finished" and jobs[finished]["name"] == "mixed"
    heads, *rows = commands.text("jobs").splitlines()
    assert heads.split() == ["JOB", "NAME", "STATE", "TIME", "TASKS"]
    row = rows[finished - 1]
    assert re.fullmatch(rf"{finished} +mixed +finished +\d+\.\d s +2 of 2 tasks done", row)
    (client,) = commands.json("clients")
    assert client["cid"] == 1 and client["state"] == "alive" and client["slots"] == 3
    heads, row = commands.text("clients").splitlines()
    assert heads.split() == ["CLIENT", "HOST", "ADDRESS", "STATE", "NODES", "ASSIGNED", "ATTACHED"]
    assert row.split()[:2] == ["1", socket.gethostname()]
    status = commands.json("status")
    assert set(status) == {"coordinators", "clients", "jobs"}
    assert status["coordinators"]["1"]["leader"] == 1


# --- logs ---


def test_logs_hold_what_schedulers_and_nodes_print(shared: Shared, finished: int) -> None:
    commands, job = shared.commands, str(finished)
    lines = commands.text("logs", job).splitlines()
    assert "log: two tasks are started" in lines
    assert "scheduler on replica 1: the scheduler begins" in lines
    greet = "task 0 attempt 1 on client 1: "
    assert greet + "printed to stdout by greet" in lines
    assert greet + "printed to stderr by greet" in lines
    lines = commands.text("logs", job, "1").splitlines()
    first, second = "task 1 attempt 1 on client 1: ", "task 1 attempt 2 on client 1: "
    assert lines[0] == first + "attempt 1 of flaky"
    assert [line for line in lines if line.startswith(second)] == [second + "attempt 2 of flaky"]
    assert all(line.startswith((first, second)) for line in lines)
    # 64 KiB of an attempt are kept, the first and the last half, and it says so.
    kept = "\n".join(line.removeprefix(first) for line in lines if line.startswith(first))
    assert 60_000 < len(kept) < 70_000
    assert "line 0 of much output" in kept and "line 4999 of much output" in kept
    assert "line 2500 of much output" not in kept
    assert re.search(r"\d+ bytes", kept), "what is left out is said"
    parts = commands.json("logs", job, "0")
    assert [part["source"] for part in parts] == ["task 0 attempt 1 on client 1"]
    assert commands("logs", "999", code=77).stderr == b"tasksprint: no job 999\n"


# --- cancel ---


def test_cancel_ends_a_job_and_who_waits_for_it(
    shared: Shared, job_folder: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    waiting = shared.commands.start(
        "submit", "--wait", str(job_folder), "--param", f"gate={gate}", "--json",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    node = psutil.Process(wait_at(gate))
    job = shared.commands.json("jobs")[-1]["job"]
    assert shared.commands.text("cancel", str(job)) == f"cancelled job {job}\n"
    stdout, stderr = waiting.communicate(timeout=30)
    assert waiting.returncode == 1
    printed = json.loads(stdout)
    assert printed["state"] == "cancelled" and printed["error"] == "cancelled by its user"
    assert stderr.decode().endswith(f"tasksprint: job {job} cancelled: cancelled by its user\n")
    wait_for_no_process([node])
    assert shared.commands.text("cancel", str(job)) == f"cancelled job {job}\n"
    assert shared.commands("cancel", "999", code=77).stderr == b"tasksprint: there is no job 999\n"


def test_cancelling_what_has_finished_changes_nothing(shared: Shared, finished: int) -> None:
    text = shared.commands.text("cancel", str(finished))
    assert text == f"job {finished} had finished before\n"
    printed = shared.commands.json("cancel", str(finished))
    assert printed == {"job": finished, "state": "finished"}


# --- token ---


def http_status(
    url: str, *, method: str = "GET", body: bytes = b"{}", **headers: str
) -> tuple[int, str]:
    request = urllib.request.Request(url, method=method, headers=headers)
    if method == "POST":
        request.data = body
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_token_reads_and_does_nothing_else(shared: Shared, finished: int) -> None:
    token = shared.commands.text("token").strip()
    base = f"http://{shared.private.addresses[0]}"
    bearer = {"Authorization": f"Bearer {token}"}
    status, text = http_status(base + "/v1/jobs", **bearer)
    assert status == 200
    assert finished in [job["job"] for job in json.loads(text)]
    assert http_status(f"{base}/v1/jobs?token={token}")[0] == 200
    (client,) = shared.commands.json("clients")
    value = f"http://{client['address']}/v1/values/{finished}/0/greeting"
    assert http_status(value, **bearer) == (200, '"hello world"')
    assert http_status(base + "/v1/jobs", method="POST", **bearer)[0] in (401, 403)
    assert http_status(base + "/v1/stop", method="POST", **bearer)[0] in (401, 403)
    assert http_status(f"{base}/v1/view?cid=1", **bearer)[0] in (401, 403)
    assert shared.commands.json("jobs"), "it still runs"
    wrong = token[:-1] + ("0" if token[-1] != "0" else "1")
    assert http_status(base + "/v1/jobs", Authorization=f"Bearer {wrong}")[0] == 401
    assert shared.commands("token", "--minutes", "0", code=64).stderr


def test_token_of_a_wider_scope_cancels_jobs_and_stops_nothing(
    shared: Shared, finished: int
) -> None:
    token = shared.commands.text("token", "--scope", "submit").strip()
    base = f"http://{shared.private.addresses[0]}"
    bearer = {"Authorization": f"Bearer {token}"}
    status, text = http_status(base + "/v1/stop", method="POST", **bearer)
    assert status == 403 and "tasksprint token --scope operate" in text
    body = b'{"sender": "curl", "request": 1, "reason": "no longer needed"}'
    status, text = http_status(
        f"{base}/v1/jobs/{finished}/cancel", method="POST", body=body, **bearer
    )
    assert (status, json.loads(text)) == (200, {"job": finished, "state": "finished"})


def test_what_is_not_signed_or_foreign_is_refused(shared: Shared) -> None:
    base = f"http://{shared.private.addresses[0]}"
    status, text = http_status(base + "/v1/jobs")
    assert status == 401, text
    assert http_status(base + "/healthz")[0] == 200
    token = shared.commands.text("token").strip()
    url = f"{base}/v1/jobs?token={token}"
    assert http_status(url, Origin="http://evil.example")[0] == 403
    assert http_status(url, Host="evil.example:7070")[0] == 403
    log = (shared.private.directory / "coordinator-1.log").read_text()
    assert "401" in log and "evil.example" in log, "refusals are logged"


def test_another_users_key_is_refused(shared: Shared, archive: Path, tmp_path: Path) -> None:
    other = Commands(archive, tmp_path, TASKSPRINT_COORDINATORS=",".join(shared.private.addresses))
    done = other("jobs", code=78)
    assert "key" in done.stderr.decode(), "there is none, and it says how to get one"
    key = tmp_path / "other.key"
    key.write_text("ab" * 32 + "\n")
    key.chmod(0o600)
    for arguments in (["jobs"], ["stop"], ["submit", str(CHECKOUT / "examples" / "montecarlo")]):
        done = other(*arguments, "--key-file", str(key), code=77)
        assert "key" in done.stderr.decode(), done.stderr
    key.chmod(0o644)
    done = other("jobs", "--key-file", str(key), code=78)
    assert "chmod" in done.stderr.decode()


# --- stop ---


def test_stop_ends_every_process(archive: Path, job_folder: Path, tmp_path: Path) -> None:
    with shared_cluster(archive, coordinators=3, clients=2) as shared:
        gate = tmp_path / "gate"
        shared.submit(job_folder, params=json.dumps({"gate": str(gate)}))
        wait_at(gate)
        ours = psutil.Process().children(recursive=True)
        pids = {process.pid for process in shared.private._processes.values()}
        of_cluster = [
            each
            for each in ours
            if each.pid in pids or pids & {parent.pid for parent in each.parents()}
        ]
        assert len(of_cluster) >= 5 + 3 + 2, of_cluster  # with schedulers and nodes
        assert shared.commands.text("stop") == "stopped 5 of 5 processes\n"
        for process in shared.private._processes.values():
            assert process.wait(30) == 0
        wait_for_no_process(of_cluster)


def test_status_and_stop_without_a_majority_say_so(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasksprint.cli.cluster_commands._GIVE_UP_MS", 200)
    with shared_cluster(archive, coordinators=3) as shared:
        wait_until(lambda: shared.commands.json("clients") != [], "the client has joined")
        leader = next(iter(shared.commands.json("status")["coordinators"].values()))["leader"]
        others = [number for number in (1, 2, 3) if number != leader]
        shared.private.kill(f"coordinator-{leader}", f"coordinator-{others[0]}")
        done = shared.commands.ask("status")
        assert done.returncode == 69
        rows = done.stdout.splitlines()
        states = {row.split()[0]: row.split()[2] for row in rows[1:4]}
        assert [states[str(number)] for number in (leader, others[0])] == ["unreachable"] * 2
        assert states[str(others[1])] in ("follower", "canvassing", "candidate")
        assert "no coordinator leads at" in done.stderr
        done = shared.commands.ask("stop")
        assert done.returncode == 69
        assert done.stdout == "stopped 1 of 1 process\n"
        assert "no coordinator leads, so the clients aren't known" in done.stderr


# --- nodes attached by hand ---


ATTACHED_SCHEDULER = """
from TaskSprintCoordinator import *


class Attached(TaskSprintCoordinator):
    def init(self, seed):
        self.start_task("greet", base=[self.params.get("name", "hand")], keys=["greeting"])
        if "gate" in self.params:
            self.start_task("wait", base=[self.params["gate"]])

    def task_done(self, tid, values):
        if tid == 0 and "gate" in self.params:
            return
        self.finish([tid], values)


Attached().start()
"""


@pytest.fixture
def attached_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "by-hand"
    folder.mkdir()
    (folder / "scheduler.py").write_text(ATTACHED_SCHEDULER)
    (folder / "tasksprint.json").write_text('{"node":"attached:mynode"}')
    (tmp_path / "mynode.py").write_text("#!/usr/bin/env python3\n" + NODE)
    (tmp_path / "mynode.py").chmod(0o755)
    return folder


def test_a_job_waits_for_attached_nodes_and_survives_the_death_of_one(
    shared: Shared, attached_folder: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    job = shared.submit(attached_folder, params=json.dumps({"gate": str(gate)}))
    waits = f"job {job} waits: no node is attached as 'mynode'; start one with: "
    wait_until(lambda: waits in shared.commands.text("status"), "status says what is missing")
    program = str(tmp_path / "mynode.py")
    first = shared.commands.start("node", "--exec", program, stderr=subprocess.PIPE)
    assert wait_at(gate) == first.pid, "the process becomes the program"
    assert waits not in shared.commands.text("status")
    second = shared.commands.start("node", "--exec", program, stderr=subprocess.PIPE)
    try:
        gate.with_name("gate.begun").unlink()
        first.kill()
        assert wait_at(gate) == second.pid
        gate.touch()
        outcome = shared.outcome(job)
        assert outcome.state == "finished", outcome.error
        info = shared.task(job, 1)
        assert info["failures"] == 1 and info["attempts"] > 1
    finally:
        second.kill()
        first.wait()
        second.wait()


def test_attached_nodes_are_found_wherever_they_are_and_keep_no_slot(
    archive: Path, attached_folder: Path, job_folder: Path, tmp_path: Path
) -> None:
    with shared_cluster(archive, clients=2, nodes=1) as shared:
        waiting = [shared.submit(attached_folder) for _ in range(4)]
        wait_until(
            lambda: (
                len(shared.commands.json("clients")) == 2
                and all(job["obstacle"] for job in shared.commands.json("jobs"))
            ),
            "four jobs wait for attached nodes",
        )
        # They leave the clients' own nodes to others.
        other = shared.submit(job_folder)
        assert shared.outcome(other).state == "finished"
        progress = shared.commands.start(
            "result", str(waiting[0]), "--wait", stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert progress.stderr is not None
        assert b"no node is attached as 'mynode'" in progress.stderr.readline()
        missing = shared.commands("node", "--exec", str(tmp_path / "mynode.py"), code=64)
        assert b"2 clients run on this machine" in missing.stderr
        node = shared.commands.start(
            "node", "--exec", str(tmp_path / "mynode.py"),
            "--client", str(shared.private.directory / "client-2"),
        )  # fmt: skip
        try:
            for job in waiting:
                assert shared.outcome(job).values == '{"greeting":"hello hand"}'
            # All of them on the one client that has such a node.
            holders = [shared.task(job, 0)["holders"] for job in waiting]
            assert holders in ([[1]] * 4, [[2]] * 4)
            assert progress.wait(30) == 0
        finally:
            node.kill()
            node.wait()


def test_client_that_was_killed_and_restarted_is_the_only_one_to_attach_to(
    archive: Path, tmp_path: Path
) -> None:
    """By itself, or by its process id; what the killed one left of itself is removed."""
    commands = Commands(archive, tmp_path)
    (tmp_path / "hello.sh").write_text("echo attached >&2; exit 0\n")
    (tmp_path / "key").write_text("0" * 64 + "\n")
    (tmp_path / "key").chmod(0o600)
    records = commands.state / "tasksprint" / "clients"
    client = [
        "client", "--key-file", str(tmp_path / "key"), "--coordinators", "127.0.0.1:1",
        "--data-dir", str(tmp_path / "data"),
    ]  # fmt: skip
    for _ in range(2):
        process = commands.start(*client, stderr=subprocess.DEVNULL)
        name = f"*-{process.pid}.json"
        try:
            wait_until(lambda name=name: list(records.glob(name)), "the client is registered")
            for wanted in ([], ["--client", str(process.pid)], ["--client", "data"]):
                done = commands("node", "--exec", "./hello.sh", *wanted)
                assert f"to client {process.pid} of this machine" in done.stderr.decode()
            assert len(list(records.iterdir())) == 1
        finally:
            process.kill()
            process.wait()


def test_defaults_work_together(archive: Path, attached_folder: Path, tmp_path: Path) -> None:
    """`coordinator`, `client`, `node --exec PROG` and `submit`, with no other argument."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 7070))
        except OSError:
            pytest.skip("port 7070, the default, is in use on this machine")
    commands = Commands(archive, tmp_path)
    log = open(tmp_path / "log", "wb")  # noqa: SIM115 - closed below
    started = [commands.start("coordinator", stderr=log)]
    try:
        key = commands.state / "tasksprint" / "key"
        wait_until(key.exists, "the coordinator makes the key")
        started.append(commands.start("client", stderr=log))
        wait_until(
            lambda: "1 of 1 client alive" in commands.text("status"), "the client has joined"
        )
        assert key.stat().st_mode & 0o777 == 0o600
        assert key.parent.stat().st_mode & 0o777 == 0o700
        node = commands.start("node", "--exec", "./mynode.py", stderr=log)
        started.append(node)
        done = commands("submit", "--wait", str(attached_folder))
        assert json.loads(done.stdout) == {"greeting": "hello hand"}
        # A restart with the same defaults resumes.
        started[0].kill()
        started[0].wait()
        started[0] = commands.start("coordinator", stderr=log)
        assert commands.json("result", "1")["state"] == "finished"
        assert commands.text("stop") == "stopped 2 of 2 processes\n"
        for process in started:
            process.wait(30)
        assert [process.returncode for process in started[:2]] == [0, 0]
        assert started[2].returncode == 69, "a node says that its client has ended"
        assert "node 'mynode' is ended: its client stops" in (tmp_path / "log").read_text()
    finally:
        for process in started:
            process.kill()
            process.wait()
        log.close()


def test_a_node_without_a_client_says_so(archive: Path, tmp_path: Path) -> None:
    program = tmp_path / "mynode.py"
    program.write_text(NODE)
    commands = Commands(archive, tmp_path)
    done = commands("node", "--exec", str(program), code=64)
    text = done.stderr.decode()
    assert as_documented(text) == (
        "tasksprint: no client runs on this machine (as this user); "
        "start one with 'tasksprint client'\n"
    )
