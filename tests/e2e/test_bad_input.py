"""Every row of docs/errors.md on real processes: the sentence, the exit code, and nothing lost.

The table in the document is what is expected: a test names its row, and compares the
sentence ("…" stands for whatever is there) and the exit code that the row promises. So a
message can't change without its document, and a row can't stand there without a test.

One cluster serves all rows that need one. The bad jobs are handed in at once, so they
disturb each other as much as they can; at the end a good one must still finish.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tasksprint.asking.cluster import Cluster
from tasksprint.cli.run import PrivateCluster
from tasksprint.coordination.rows import Row as StoredRow
from tasksprint.errors import PeerUnreachable, Refused
from tasksprint.ids import JobId
from tasksprint.net.addresses import parse_address
from tasksprint.process.job_directory import read_job
from tasksprint.settings import RULES, Settings
from tasksprint.store.database import Database
from tasksprint.store.records import Commit
from tasksprint.store.replica_store import ReplicaStore
from tasksprint.store.vital import DATABASE_FILE, REPLICA_KIND, read_header, write_header
from tests.e2e.conftest import as_documented, connect, in_this_process, wait_until
from tests.e2e.harness import write_job
from tests.packaging.standin import CHECKOUT
from tests.rescue.test_recover import make_store
from tests.store.test_backup_file import make_backup
from tests.torture.machines import Machines

pytestmark = pytest.mark.slow

DOCUMENT = CHECKOUT / "docs" / "errors.md"
LINE_BYTES_MAX = 3_000_000
SETTINGS = {
    "scheduler_answer_timeout_ms": 2_000,
    "node_ready_timeout_ms": 3_000,
    "node_start_tries_max": 2,
    "line_bytes_max": LINE_BYTES_MAX,
}
# What is asked for so often here that each gets no process of its own; that these commands
# work as processes is seen in test_commands.py.
QUESTIONS = (
    *("submit", "result", "cancel", "logs", "jobs", "status", "member"),
    *("backup", "restore", "log", "recover"),
)
# Nobody waits for so long unless something hangs.
DEADLINE_S = 120.0

# What is known of the failed attempt, beneath the sentence.
BENEATH = re.compile(r"(?m)^  task \d+ '.*', attempt .*\n(    .*\n)*")

tested: set[str] = set()


# --- the table ---


@dataclass(frozen=True)
class Row:
    """A row of the document."""

    sentence: str
    exit_code: int


@functools.cache
def table() -> dict[str, Row]:
    """Return the rows of the document, by what is wrong."""
    rows: dict[str, Row] = {}
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("|") and len(cells) == 4 and cells[2].isdecimal():
            what, sentence, code, _ = cells
            assert what not in rows, f"{what!r} stands there twice"
            assert sentence.startswith("`") and sentence.endswith("`"), sentence
            rows[what] = Row(sentence.strip("`"), int(code))
    return rows


def check(what: str, exit_code: int, stderr: str) -> None:
    """Compare how a command ended with the document's row."""
    row = table()[what]
    said = said_in(stderr)
    pattern = ".*".join(re.escape(part) for part in row.sentence.split("…"))
    assert re.fullmatch(pattern, said), f"{what}: {said!r}, the document says {row.sentence!r}"
    assert exit_code == row.exit_code, f"{what}: exit code {exit_code}, {said}"
    if "stderr ended with" not in row.sentence:
        assert "Traceback" not in BENEATH.sub("", stderr)


def said_in(stderr: str) -> str:
    """Return the one sentence of ours, without what says who speaks and of which job."""
    parts = re.split(r"(?m)^tasksprint: ", BENEATH.sub("", stderr))
    assert len(parts) == 2, f"expected one sentence, found {stderr!r}"
    text = re.sub(r"\s+", " ", parts[1]).strip()
    return re.sub(r"^job \d+ failed: ", "", as_documented(text))


def row(what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Note which row of the document a test is of; it gets `what` as its argument."""
    tested.add(what)
    return pytest.mark.parametrize("what", [what])


# --- the cluster and its commands ---


@dataclass
class Commands:
    """The archive's commands, with an environment of their own."""

    archive: Path
    folder: Path
    environment: dict[str, str]

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, str(self.archive), *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            cwd=self.folder,
            env={**self.environment, **environment},
            timeout=DEADLINE_S,
        )

    def fails(self, what: str, *arguments: str, **environment: str) -> None:
        """Run a command and compare its end with a row."""
        if arguments[0] in QUESTIONS:
            done = self.ask(*arguments, **environment)
        else:
            done = self(*arguments, **environment)
        check(what, done.returncode, done.stderr)

    def ask(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in this process."""
        with mock.patch.dict(os.environ, {**self.environment, **environment}, clear=True):
            return in_this_process(*arguments)

    def start(self, *arguments: str, until: str) -> subprocess.Popen[str]:
        """Start a role, and wait until its log says `until`."""
        process = subprocess.Popen(
            [sys.executable, str(self.archive), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=self.environment,
        )
        assert process.stderr is not None
        for line in process.stderr:
            if until in line:
                return process
        process.wait()
        raise AssertionError(f"{arguments} ended without saying {until!r}")

    @contextlib.contextmanager
    def running(self, *arguments: str, until: str) -> Iterator[subprocess.Popen[str]]:
        """Start a role, wait until its log says `until`, and stop it at the end."""
        process = self.start(*arguments, until=until)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=DEADLINE_S)


@pytest.fixture(scope="module")
def commands(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """Commands of a user who has no cluster."""
    folder = tmp_path_factory.mktemp("commands")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("TASKSPRINT_")
    }
    environment["XDG_STATE_HOME"] = str(folder / "state")
    environment["TASKSPRINT_SETTINGS"] = json.dumps(SETTINGS)
    return Commands(archive, folder, environment)


@dataclass
class Served:
    """A cluster, and commands that reach it."""

    private: PrivateCluster
    cluster: Cluster
    commands: Commands
    jobs: dict[str, JobId] = field(default_factory=dict)


@pytest.fixture(scope="module")
def served(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A cluster to which all the bad jobs have been handed in."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TASKSPRINT_SETTINGS", json.dumps(SETTINGS))
        with PrivateCluster(
            coordinators=1,
            clients=1,
            nodes=4,
            keep=folder / "cluster",
            command=[sys.executable, str(commands.archive)],
        ) as private:
            cluster = connect(private)
            environment = {
                **commands.environment,
                "TASKSPRINT_KEY_FILE": str(private.directory / "key"),
                "TASKSPRINT_COORDINATORS": private.addresses[0],
            }
            served = Served(private, cluster, Commands(commands.archive, folder, environment))
            for what, job in ALL_JOBS.items():
                directory = job.write(folder / f"job-{len(served.jobs)}")
                manifest = read_job(directory)
                served.jobs[what] = cluster.submit(
                    directory, manifest, seed=1, params=manifest.params
                )
            yield served


# --- jobs ---

SCHEDULER = """\
from TaskSprintCoordinator import *

class Scheduler(TaskSprintCoordinator):
    def init(self, seed):
        self.work = self.start_task(name="work", %s)

    def task_done(self, tid, values):
        self.finish(taskids=[tid], values=values)

Scheduler().start()
"""
NODE = """\
from TaskSprintNode import *

class Node(TaskSprintNode):
    def work(self):
        %s

Node().start()
"""
READY = """echo '{"ready":{}}'\n"""


def scheduler(arguments: str = 'keys=["result"]') -> str:
    """Return a scheduler in Python that starts one task and finishes with it."""
    return SCHEDULER % arguments


def node(statement: str = 'return {"result": 42}') -> str:
    """Return a node in Python whose tasks do this."""
    return NODE % statement


def shell_scheduler(commands: str) -> str:
    """Return a scheduler in shell that answers the first event so, and then waits."""
    return READY + f'read line\necho \'{{"event":0,"commands":[{commands}]}}\'\ncat >/dev/null\n'


def shell_node(answer: str) -> str:
    """Return a node in shell that runs these lines for each task; $id is its number."""
    return (
        READY
        + "while IFS= read -r line; do\n"
        + """  id=${line#'{"id":'} && id=${id%%,*}\n"""
        + f"  {answer}\ndone\n"
    )


@dataclass(frozen=True)
class Job:
    """A job directory."""

    scheduler: str = scheduler()
    node: str = node()
    manifest: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, str] = ("scheduler.py", "node.py")

    def write(self, directory: Path) -> Path:
        directory.mkdir()
        for name, text in zip(self.names, (self.scheduler, self.node), strict=True):
            is_shell = "SDK" not in text and "import" not in text
            path = directory / (name.replace(".py", ".sh") if is_shell else name)
            path.write_text(text)
        if self.manifest:
            (directory / "tasksprint.json").write_text(json.dumps(self.manifest))
        return directory


SLOW = "while :; do sleep 1; done\n"

JOBS_THAT_TAKE_LONG = {
    "scheduler never says that it is ready": Job(SLOW),
    "scheduler never answers": Job(READY + SLOW),
    "node never says that it is ready": Job(node=SLOW, manifest={"retries": 0}),
}
JOBS = {
    "scheduler isn't executable": Job(
        "#!/bin/sh\n", manifest={"scheduler": "scheduler"}, names=("scheduler", "node.py")
    ),
    "scheduler's interpreter isn't on the machine": Job(
        manifest={"interpreter": "python9"},
    ),
    "scheduler crashes at once": Job("echo 'no such file: data.txt' >&2; exit 3\n"),
    "scheduler prints something else first": Job("echo Hello\n" + SLOW),
    "scheduler prints garbage": Job(READY + "echo done\n" + SLOW),
    "scheduler ends before its job": Job(READY + "read line\n"),
    "scheduler answers another event": Job(READY + "read line\necho '{\"event\":5}'\n" + SLOW),
    "handler of a scheduler raises an exception": Job(scheduler('base=[1 // 0]')),
    "command is misspelled": Job(shell_scheduler('{"strat":"work"}')),
    "task names an unknown pretask": Job(
        shell_scheduler('{"start":"work"},{"start":"work","pretasks":[7],"prekeys":["result"]}')
    ),
    "tasks need each other (a cycle)": Job(
        shell_scheduler(
            '{"start":"work","pretasks":[1],"prekeys":["result"]},'
            '{"start":"work","pretasks":[0],"prekeys":["result"]}'
        )
    ),
    "arguments of a task are too large": Job(scheduler('base=["x" * 2_000_000]')),
    "scheduler finishes with NaN": Job(
        scheduler('keys=["result"]').replace("values=values", 'values={"pi": float("nan")}')
    ),
    "node program isn't there": Job(manifest={"node": ["build/node"], "setup": "true"}),
    "node isn't executable": Job(
        node="#!/bin/sh\n", manifest={"node": "node"}, names=("scheduler.py", "node")
    ),
    "setup command fails": Job(manifest={"setup": "echo 'cc: not found' >&2; exit 2"}),
    "setup command isn't there": Job(manifest={"setup": ["nosuchmake"]}),
    "node crashes at once": Job(node="import nosuchmodule\n"),
    "node prints something else first": Job(node="echo Hello\n" + SLOW),
    "node prints garbage": Job(node=shell_node("echo done")),
    "node answers a wrong id": Job(node=shell_node("""echo '{"id":77,"values":{}}'""")),
    "answer of a node is misspelled": Job(node=shell_node('echo "{\\"id\\":$id,\\"resutl\\":1}"')),
    "node dies at every task": Job(node=shell_node("echo 'out of luck' >&2; exit 9")),
    "line of a node is too long": Job(
        node=shell_node(f"head -c {LINE_BYTES_MAX + 1} /dev/zero | tr '\\0' x")
    ),
    "task raises an exception, and there is no `task_failed`": Job(node=node("return 1 / 0")),
    "node has no such method": Job(node=node().replace("work", "wrok")),
    "value is NaN": Job(node=node('return {"result": float("nan")}')),
    "value under `keys` is too large": Job(node=node('return {"result": "x" * 100_000}')),
    "value under `keys` is missing": Job(node=node('return {"reslut": 42}')),
    "task runs longer than its `timeout_ms`": Job(
        scheduler("timeout_ms=300, retries=0"), shell_node("sleep 60")
    ),
    "file that a node names isn't there": Job(
        node=shell_node('echo "{\\"id\\":$id,\\"files\\":{\\"result\\":\\"/no/such/file\\"}}"')
    ),
}  # fmt: skip
# They fail while the others run, and are asked about last.
ALL_JOBS = {**JOBS_THAT_TAKE_LONG, **JOBS}
tested.update(ALL_JOBS)


@pytest.mark.parametrize("what", [*JOBS, *JOBS_THAT_TAKE_LONG])
def test_bad_job_fails_with_one_sentence(what: str, served: Served) -> None:
    served.commands.fails(what, "result", str(served.jobs[what]), "--wait")


def test_submit_that_waits_ends_like_the_job(served: Served, tmp_path: Path) -> None:
    directory = JOBS["node has no such method"].write(tmp_path / "job")
    done = served.commands.ask("submit", "--wait", str(directory))
    check("node has no such method", done.returncode, done.stderr)


def test_json_has_the_error_as_well(served: Served) -> None:
    job = served.jobs["scheduler crashes at once"]
    done = served.commands.ask("result", str(job), "--wait", "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 1
    assert said["state"] == "failed"
    assert said["error"].endswith("no such file: data.txt")


# --- what is handed in ---


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job directory with nothing wrong."""
    return Job().write(tmp_path / "job")


@row("no such job directory")
def test_job_directory_that_is_missing(what: str, served: Served, tmp_path: Path) -> None:
    served.commands.fails(what, "submit", str(tmp_path / "nowhere"))


@row("file in place of a job directory")
def test_file_in_place_of_a_job_directory(what: str, served: Served, job: Path) -> None:
    served.commands.fails(what, "submit", str(job / "scheduler.py"))


@row("no scheduler in the directory")
def test_directory_without_a_scheduler(what: str, served: Served, job: Path) -> None:
    (job / "scheduler.py").unlink()
    served.commands.fails(what, "submit", str(job))


@row("no node in the directory")
def test_directory_without_a_node(what: str, served: Served, job: Path) -> None:
    (job / "node.py").unlink()
    served.commands.fails(what, "submit", str(job))


@row("several schedulers in the directory")
def test_directory_with_two_schedulers(what: str, served: Served, job: Path) -> None:
    (job / "scheduler.sh").write_text(READY)
    served.commands.fails(what, "submit", str(job))


@pytest.mark.parametrize(
    ("what", "manifest"),
    [
        ("unknown field in the manifest", '{"shceduler": "scheduler.py"}'),
        ("field of the manifest of a wrong type", '{"retries": "many"}'),
        ("manifest that isn't JSON", '{"name": "pi",}'),
        ("manifest that names a missing file", '{"node": "nod.py"}'),
        ("manifest that names a file elsewhere", '{"node": "../node.py"}'),
        ("interpreter that doesn't travel", '{"interpreter": ".venv/bin/python"}'),
    ],
)
def test_manifest_that_is_wrong(what: str, manifest: str, served: Served, job: Path) -> None:
    (job / "tasksprint.json").write_text(manifest)
    served.commands.fails(what, "submit", str(job))


tested.update(
    {
        "unknown field in the manifest",
        "field of the manifest of a wrong type",
        "manifest that isn't JSON",
        "manifest that names a missing file",
        "manifest that names a file elsewhere",
        "interpreter that doesn't travel",
    }
)


@row("link out of the job directory")
def test_link_out_of_the_job_directory(what: str, served: Served, job: Path) -> None:
    (job / "data").symlink_to("/etc/passwd")
    served.commands.fails(what, "submit", str(job))


@row("job directory too large")
def test_job_that_is_too_large(what: str, served: Served, job: Path) -> None:
    (job / "data.bin").write_bytes(os.urandom(20_000))
    settings = json.dumps({"archive_bytes_max": 10_000})
    served.commands.fails(what, "submit", str(job), TASKSPRINT_SETTINGS=settings)


@row("names that differ only in case")
def test_names_that_differ_only_in_case(what: str, served: Served, job: Path) -> None:
    (job / "Node.py").write_text("")
    served.commands.fails(what, "submit", str(job))


@row("`--param` without `=`")
def test_param_without_a_value(what: str, served: Served, job: Path) -> None:
    served.commands.fails(what, "submit", str(job), "--param", "seconds")


@row("`--param` that the manifest doesn't declare")
def test_param_that_is_misspelled(what: str, served: Served, job: Path) -> None:
    (job / "tasksprint.json").write_text('{"params": {"seconds": 5}}')
    served.commands.fails(what, "submit", str(job), "--param", "secnods=1")


@row("seed that no seed can be")
def test_seed_below_zero(what: str, served: Served, job: Path) -> None:
    served.commands.fails(what, "submit", str(job), "--seed", "-1")


@row("directory of `--keep` that exists")
def test_kept_directory_that_exists(what: str, commands: Commands, job: Path) -> None:
    commands.fails(what, "run", str(job), "--keep", str(job))


@pytest.mark.parametrize(
    ("manifest", "error"),
    [
        ("[]", "the manifest: found [], expected a JSON object"),
        ('{"node": ["node.py"]}', "the manifest's 'scheduler' is not a list of strings"),
        ('{"scheduler": ["s.py"], "node": [7]}', "the manifest's 'node' is not a list of strings"),
        ('{"scheduler": ["s.py"], "node": []}', "the manifest's 'node' is empty"),
    ],
)
def test_job_that_no_replica_could_run_is_refused(
    manifest: str, error: str, served: Served
) -> None:
    """By whoever talks HTTP without our command line; in the log it would stop every replica."""
    with pytest.raises(Refused, match=re.escape(error)):
        submit_by_hand(served.cluster, manifest, "0" * 64)


def test_job_without_its_archive_is_refused(served: Served) -> None:
    with pytest.raises(Refused, match=r"no archive '0+' here; POST it to /v1/programs"):
        submit_by_hand(served.cluster, '{"scheduler": ["s.py"], "node": ["n.py"]}', "0" * 64)


def submit_by_hand(cluster: Cluster, manifest: str, program: str) -> None:
    fields = {"sender": "me", "request": 1, "name": "x", "seed": 1, "params": "{}"}
    body = json.dumps({**fields, "program": program, "manifest": manifest}).encode()
    cluster.request("POST", "/v1/jobs", body=body)


@row("file in the way of `--keep`")
def test_kept_directory_that_cannot_be_made(what: str, commands: Commands, job: Path) -> None:
    commands.fails(what, "run", str(job), "--keep", str(job / "node.py" / "kept"))


# --- what is asked for ---


@row("unknown job")
def test_result_of_an_unknown_job(what: str, served: Served) -> None:
    served.commands.fails(what, "result", "999")
    served.commands.fails(what, "cancel", "999")
    served.commands.fails(what, "logs", "999")


@row("unknown task")
def test_result_of_an_unknown_task(what: str, served: Served) -> None:
    job = served.jobs["value is NaN"]
    served.commands.fails(what, "result", str(job), "--task", "999")


@row("logs of an unknown task")
def test_logs_of_an_unknown_task(what: str, served: Served) -> None:
    job = served.jobs["value is NaN"]
    served.commands.fails(what, "logs", str(job), "999")


@row("result of a job that runs")
def test_result_of_a_job_that_runs(what: str, served: Served, tmp_path: Path) -> None:
    directory = Job(node=READY + SLOW).write(tmp_path / "job")
    job = served.cluster.submit(directory, read_job(directory), seed=1, params="{}")
    served.commands.fails(what, "result", str(job))
    assert served.commands.ask("cancel", str(job)).returncode == 0


@row("values of a task that isn't done")
def test_result_of_a_task_that_runs(what: str, served: Served, tmp_path: Path) -> None:
    directory = Job(node=READY + SLOW).write(tmp_path / "job")
    job = served.cluster.submit(directory, read_job(directory), seed=1, params="{}")
    path = f"/v1/jobs/{job}"
    wait_until(
        lambda: served.cluster.request("GET", path).json()["tasks"]["assigned"] == 1,
        "the task is under way",
    )
    served.commands.fails(what, "result", str(job), "--task", "0")
    assert served.commands.ask("cancel", str(job)).returncode == 0


@row("job was cancelled")
def test_result_of_a_cancelled_job(what: str, served: Served, tmp_path: Path) -> None:
    directory = Job(READY + "cat >/dev/null\n").write(tmp_path / "job")
    job = served.cluster.submit(directory, read_job(directory), seed=1, params="{}")
    assert served.commands.ask("cancel", str(job)).returncode == 0
    done = served.commands.ask("result", str(job))
    check(what, done.returncode, re.sub(r"job \d+ cancelled: ", "", done.stderr))


# --- who is asked, and with which key ---


def free_port() -> int:
    """Return a port at which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@row("no coordinator answers")
def test_coordinator_that_is_not_there(what: str, served: Served) -> None:
    served.commands.fails(
        what,
        "status",
        "--coordinators",
        f"127.0.0.1:{free_port()}",
        TASKSPRINT_SETTINGS='{"find_leader_timeout_ms": 200}',
    )


@row("no majority of coordinators")
def test_coordinator_that_waits_for_the_others(
    what: str, commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasksprint.cli.cluster_commands._GIVE_UP_MS", 200)
    address = f"127.0.0.1:{free_port()}"
    peers = ["--peers", f"1={address},2=127.0.0.1:{free_port()}"]
    arguments = ["--listen", address, "--data-dir", str(tmp_path / "data"), *peers]
    soon = '{"find_leader_timeout_ms": 200}'
    with commands.running("coordinator", *arguments, until="listens on"):
        commands.fails(what, "jobs", "--coordinators", address, TASKSPRINT_SETTINGS=soon)
        status = commands.ask("status", "--coordinators", address)
        check(what, status.returncode, status.stderr)
        assert re.search(r"^2 .*unreachable", status.stdout, re.MULTILINE)


def test_client_that_finds_nobody_says_so_and_goes_on(commands: Commands, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    arguments = ["--coordinators", address, "--data-dir", str(tmp_path / "data")]
    said = f"no coordinator leads at {address}, still looking: cannot reach {address}: "
    with commands.running("client", *arguments, until=said + "connection refused") as client:
        assert client.poll() is None


def client_of(served: Served) -> str:
    (client,) = served.cluster.request("GET", "/v1/clients").json()
    return str(client["address"])


@row("status of what is no coordinator")
def test_status_of_a_client(what: str, served: Served) -> None:
    served.commands.fails(what, "status", "--coordinators", client_of(served))


@row("backup from what is no coordinator")
def test_backup_from_a_client(what: str, served: Served, tmp_path: Path) -> None:
    path = tmp_path / "backup"
    served.commands.fails(what, "backup", str(path), "--coordinators", client_of(served))
    assert not path.exists()


@row("`member` with an id that no replica can have")
def test_member_with_an_id_that_is_none(what: str, served: Served) -> None:
    served.commands.fails(what, "member", "remove", "0")
    for arguments in (
        ["remove", "99999999999999999999"],
        ["replace", "99999999999999999999", "2=127.0.0.1:1"],
        ["replace", "1", "99999999999999999999=127.0.0.1:1"],
        ["add", "99999999999999999999=127.0.0.1:1"],
    ):
        done = served.commands.ask("member", *arguments)
        sentence = "tasksprint: replica 99999999999999999999 is not from 1 to 2**63 - 1\n"
        assert (done.returncode, done.stderr) == (64, sentence)


@row("stdout that can't be written (any command)")
@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["jobs"], ["status", "--json"]])
def test_stdout_that_is_full(what: str, arguments: list[str], served: Served) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, str(served.commands.archive), *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=served.commands.environment,
            timeout=DEADLINE_S,
        )
    check(what, done.returncode, done.stderr)


@row("backup while all give two copies")
def test_backup_from_who_gives_two_copies(what: str, served: Served, tmp_path: Path) -> None:
    ask = functools.partial(served.cluster.request, "POST")
    sessions = [ask("/v1/mirror").json()["session"] for _ in range(2)]
    served.commands.fails(what, "backup", str(tmp_path / "backup"))
    for session in sessions:
        ask(f"/v1/mirror/{session}/close")


@row("address that is none")
def test_address_without_a_port(what: str, served: Served) -> None:
    served.commands.fails(what, "status", "--coordinators", "localhost")


@row("key of another cluster")
def test_other_key_is_refused(what: str, served: Served, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    served.commands.fails(what, "jobs", "--key-file", str(key))
    client = ["client", "--key-file", str(key), "--data-dir", str(tmp_path / "client")]
    served.commands.fails(what, *client)


@row("coordinator called by an address that it wasn't given")
def test_other_address_is_refused(what: str, served: Served) -> None:
    """As through a tunnel of which the coordinator wasn't told."""
    host, port = parse_address(served.private.addresses[0])
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def carry(source: socket.socket, target: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)

        def forward() -> None:
            with contextlib.suppress(OSError):  # The listener is closed at the end.
                while True:
                    here, there = listener.accept()[0], socket.create_connection((host, port))
                    for pair in ((here, there), (there, here)):
                        threading.Thread(target=carry, args=pair, daemon=True).start()

        threading.Thread(target=forward, daemon=True).start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        served.commands.fails(what, "jobs", "--coordinators", address)
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("what", "content", "mode"),
    [
        ("no key file", None, 0),
        ("key file that others may read", "ab" * 32, 0o644),
        ("key file that holds no key", "secret", 0o600),
        ("key file that can't be read", None, 0),
    ],
)
def test_key_file_that_is_wrong(
    what: str, content: str | None, mode: int, served: Served, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    if "can't be read" in what:
        key.mkdir(mode=0o700)  # Root may read every file.
    if content is not None:
        key.write_text(content)
        key.chmod(mode)
    served.commands.fails(what, "jobs", "--key-file", str(key))


tested.update(
    {
        "no key file",
        "key file that others may read",
        "key file that holds no key",
        "key file that can't be read",
    }
)


# --- how processes are started ---


@pytest.mark.parametrize(
    ("what", "arguments"),
    [
        ("unknown command", ["sumbit"]),
        ("option that is misspelled", ["run", "job", "--parm", "x=1"]),
        ("attached program isn't executable", ["node", "--exec", "./notes.txt"]),
        ("`--peers` malformed", ["coordinator", "--peers", "10.0.0.1:7070,10.0.0.2:7070"]),
        ("`--peers` without this replica", ["coordinator", "--peers", "2=10.0.0.2:7070"]),
        ("`--id` that no replica can have", ["coordinator", "--id", "0"]),
        (
            "`--peers` with an id that no replica can have",
            ["coordinator", "--peers", "99999999999999999999=10.0.0.1:7070"],
        ),
        ("`--data-dir` that is empty", ["coordinator", "--data-dir", ""]),
        ("`--nodes` out of range", ["client", "--nodes", "0"]),
        ("no program to attach", ["node", "--exec", "./nosuchnode.py"]),
        ("no client to attach to", ["node", "--exec", "/bin/cat"]),
    ],
)
def test_command_line_that_is_wrong(what: str, arguments: list[str], commands: Commands) -> None:
    (commands.folder / "notes.txt").touch()
    commands.fails(what, *arguments)


tested.update(
    {
        "unknown command",
        "option that is misspelled",
        "attached program isn't executable",
        "`--peers` malformed",
        "`--peers` without this replica",
        "`--id` that no replica can have",
        "`--peers` with an id that no replica can have",
        "`--data-dir` that is empty",
        "`--nodes` out of range",
        "no program to attach",
        "no client to attach to",
    }
)


NODE_THAT_STAYS = """\
from TaskSprintNode import *

class Node(TaskSprintNode):
    pass

Node().start()
"""


@row("client of an attached node is killed")
def test_attached_node_whose_client_is_killed(what: str, commands: Commands) -> None:
    (commands.folder / "mynode.py").write_text(NODE_THAT_STAYS)
    key = commands.folder / "client.key"
    key.write_text("0" * 64 + "\n")
    key.chmod(0o600)
    client = commands.start(
        *("client", "--key-file", str(key), "--coordinators", "127.0.0.1:1"),
        *("--data-dir", "client"),
        until="still looking",
    )
    node = commands.start("node", "--exec", "./mynode.py", until="attached as 'mynode'")
    client.kill()
    client.communicate(timeout=DEADLINE_S)
    _, stderr = node.communicate(timeout=DEADLINE_S)
    check(what, node.returncode, stderr)


@row("`python -O`")
def test_python_without_assertions(what: str, commands: Commands) -> None:
    commands.fails(what, "clients", PYTHONOPTIMIZE="1")


@pytest.mark.parametrize(
    ("what", "settings"),
    [
        ("`TASKSPRINT_SETTINGS` isn't JSON", "setup_timeout_ms=1"),
        ("unknown setting", '{"setup_timeuot_ms": 1}'),
        ("setting of a wrong type", '{"setup_timeout_ms": "1 s"}'),
    ],
)
def test_settings_that_are_wrong(what: str, settings: str, commands: Commands) -> None:
    command = "coordinator" if what == "unknown setting" else "jobs"
    commands.fails(what, command, TASKSPRINT_SETTINGS=settings)


tested.update({"`TASKSPRINT_SETTINGS` isn't JSON", "unknown setting", "setting of a wrong type"})


@row("log level that is none")
def test_log_level_that_is_none(what: str, commands: Commands) -> None:
    commands.fails(what, "client", TASKSPRINT_LOG="loud")


@row("port in use")
def test_port_that_is_in_use(what: str, served: Served, tmp_path: Path) -> None:
    address = served.private.addresses[0]
    data_dir = str(tmp_path / "data")
    served.commands.fails(what, "coordinator", "--listen", address, "--data-dir", data_dir)
    served.commands.fails(what, "client", "--listen", address, "--data-dir", data_dir)


def fails_with_limit(limit: int, commands: Commands, what: str, *arguments: str) -> None:
    """Run a command with so many descriptors, and compare its end with a row."""
    shell = ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh"]
    done = subprocess.run(
        [*shell, sys.executable, str(commands.archive), *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=commands.folder,
        env=commands.environment,
        timeout=DEADLINE_S,
    )
    check(what, done.returncode, done.stderr)


@row("too few open files for the nodes (`run`, `client`)")
def test_more_nodes_than_the_limit_of_open_files_allows(
    what: str, commands: Commands, tmp_path: Path
) -> None:
    job = str(write_job(tmp_path / "job", "", ""))
    fails_with_limit(128, commands, what, "run", job, "--nodes", "100")
    data_dir = str(tmp_path / "data")
    fails_with_limit(128, commands, what, "client", "--nodes", "100", "--data-dir", data_dir)


@row("too few open files for a coordinator")
def test_coordinator_without_descriptors(what: str, commands: Commands, tmp_path: Path) -> None:
    fails_with_limit(100, commands, what, *coordinator(tmp_path / "data"))


# --- data directories ---


def coordinator(data_dir: Path, *arguments: str) -> list[str]:
    address = f"127.0.0.1:{free_port()}"
    return ["coordinator", "--listen", address, "--data-dir", str(data_dir), *arguments]


@pytest.fixture(scope="module")
def used_dir(commands: Commands) -> Path:
    """The data directory of replica 1 of a cluster of one, which has been stopped."""
    directory = commands.folder / "used"
    with commands.running(*coordinator(directory), until="listens on"):
        wait_until(lambda: is_founded(directory), "the cluster is founded")
    return directory


def is_founded(directory: Path) -> bool:
    with contextlib.closing(sqlite3.connect(directory / "replica.db")) as database:
        (cluster,) = database.execute("SELECT cluster FROM header").fetchone()
        return cluster is not None


@pytest.fixture
def copied_dir(used_dir: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    copy = tmp_path / "data"
    copy.mkdir(mode=0o700)
    (copy / "replica.db").write_bytes((used_dir / "replica.db").read_bytes())
    return copy


@pytest.fixture
def used_member(tmp_path: Path) -> Path:
    """The data directory of one of three members."""
    return make_store(tmp_path / "data", applied=3, chosen=3, accepted=(4,))


@row("data directory in use")
def test_two_processes_with_one_data_directory(what: str, served: Served) -> None:
    directory = served.private.directory
    served.commands.fails(what, *coordinator(directory / "coordinator-1"))
    served.commands.fails(what, "client", "--data-dir", str(directory / "client-1"))


@row("data directory of another replica")
def test_data_directory_of_another_replica(what: str, commands: Commands, used_dir: Path) -> None:
    peers = ["--id", "2", "--peers", "1=127.0.0.1:1,2=127.0.0.1:2"]
    commands.fails(what, *coordinator(used_dir, *peers))


@row("data directory of another cluster (coordinator)")
def test_data_directory_of_a_coordinator_of_another_cluster(
    what: str, commands: Commands, used_dir: Path
) -> None:
    peers = ["--peers", "1=127.0.0.1:1,2=127.0.0.1:2,3=127.0.0.1:3"]
    commands.fails(what, *coordinator(used_dir, *peers))


@row("data directory of another cluster (client)")
def test_data_directory_of_a_client_of_another_cluster(
    what: str, commands: Commands, served: Served, used_dir: Path, tmp_path: Path
) -> None:
    port = free_port()
    address = f"127.0.0.1:{port}"
    mine = ["--coordinators", address, "--data-dir", str(tmp_path / "client")]
    with (
        commands.running(
            "coordinator", "--listen", address, "--data-dir", str(used_dir), until="listens on"
        ),
        commands.running("client", *mine, until="joined cluster"),
    ):
        pass
    served.commands.fails(what, "client", "--data-dir", str(tmp_path / "client"))


@pytest.mark.long
@row("replica that is started twice, from a copied data directory")
def test_replica_that_is_started_twice(what: str, commands: Commands, tmp_path: Path) -> None:
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    peers = ",".join(f"{number}={address}" for number, address in enumerate(addresses, 1))

    def arguments(number: int, folder: str, address: str) -> list[str]:
        started = ["coordinator", "--id", str(number), "--peers", peers, "--listen", address]
        return [*started, "--data-dir", str(tmp_path / folder)]

    with contextlib.ExitStack() as running:
        for number, address in enumerate(addresses, 1):
            role = arguments(number, f"c{number}", address)
            said = "listens on" if number == 1 else "peer=1 connected"
            running.enter_context(commands.running(*role, until=said))
        shutil.copytree(tmp_path / "c2", tmp_path / "copy")
        copy = arguments(2, "copy", f"127.0.0.1:{free_port()}")
        soon = json.dumps({**SETTINGS, "unacknowledged_timeout_ms": 400})
        done = commands(*copy, TASKSPRINT_SETTINGS=soon)
        assert "isn't heard" in done.stderr
        check(what, done.returncode, done.stderr)


@pytest.mark.long
@row("client that is started twice, from a copied data directory")
def test_client_that_is_started_twice(what: str, served: Served, tmp_path: Path) -> None:
    address = served.private.addresses[0]

    def arguments(folder: str) -> list[str]:
        return ["client", "--coordinators", address, "--data-dir", str(tmp_path / folder)]

    commands = served.commands
    first = commands.start(*arguments("k"), until="joined cluster")
    shutil.copytree(tmp_path / "k", tmp_path / "copy", ignore=shutil.ignore_patterns("*.sock"))
    with commands.running(*arguments("copy"), until="joined cluster") as second:
        _, said = first.communicate(timeout=DEADLINE_S)
        check(what, first.returncode, said)
        assert second.poll() is None


@row("data directory of a newer format")
def test_data_directory_of_a_newer_format(what: str, commands: Commands, copied_dir: Path) -> None:
    with contextlib.closing(sqlite3.connect(copied_dir / "replica.db")) as database:
        database.execute("PRAGMA user_version = 99")
    commands.fails(what, *coordinator(copied_dir))


@row("rules that this release lacks")
def test_data_directory_of_newer_rules(what: str, commands: Commands, tmp_path: Path) -> None:
    data_dir = make_store(tmp_path / "data")
    store = ReplicaStore.open(data_dir, 3, now_ms=0)
    ((key, (body,)),) = [
        (each.key, each.columns or ()) for each in store.read_range("facts", ("state",))
    ]
    newer = str(body).replace(f'"rules":{RULES.version}', f'"rules":{RULES.version + 1}')
    store.commit(Commit(rows=(StoredRow("facts", key, (newer,)),), applied=store.applied))
    store.close()
    address = f"127.0.0.1:{free_port()}"
    peers = f"1=127.0.0.1:1,2=127.0.0.1:2,3={address}"
    arguments = ("--id", "3", "--peers", peers, "--data-dir", str(data_dir))
    commands.fails(what, "coordinator", "--listen", address, *arguments)


@row("store that is no database")
def test_store_that_was_overwritten(what: str, commands: Commands, copied_dir: Path) -> None:
    (copied_dir / "replica.db").write_bytes(b"garbage " * 1_000)
    commands.fails(what, *coordinator(copied_dir))


@row("store that is damaged")
def test_store_with_garbage_in_its_middle(what: str, commands: Commands, copied_dir: Path) -> None:
    path = copied_dir / "replica.db"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))
    commands.fails(what, *coordinator(copied_dir))


@row("data directory that is a file")
def test_data_directory_that_is_a_file(what: str, commands: Commands, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    commands.fails(what, *coordinator(path))


# --- coordinators that must not go on ---


@row("state of one replica differs")
def test_replica_with_another_state(what: str, tmp_path: Path, command: list[str]) -> None:
    environment = {"PYTHONPATH": str(Path(command[-1]).parent)}
    folder = tmp_path / "cluster"
    with Machines(
        folder, command=command, coordinators=3, clients=0, environment=environment
    ) as machines:
        script = str(Path(__file__).with_name("wrong_state.py"))
        machines.start("coordinator-2", command=[sys.executable, script, str(tmp_path / "now")])
        machines.start_all()
        wait_until(lambda: machines.leader() is not None, "somebody leads")
        (tmp_path / "now").touch()
        exit_code = machines.processes["coordinator-2"].wait(DEADLINE_S)
        check(what, exit_code, machines.log("coordinator-2"))
        assert machines.connect().request("GET", "/v1/jobs").json() == []
        assert set(machines.end_all().values()) == {0}


@row("disk that went back in time")
def test_replica_with_a_copy_of_its_disk(what: str, tmp_path: Path, command: list[str]) -> None:
    with Machines(tmp_path / "cluster", command=command, coordinators=3, clients=0) as machines:
        machines.start_all()
        wait_until(lambda: machines.leader() is not None, "somebody leads")
        leader = machines.leader()
        name, third = (each for each in machines.coordinators if each != leader)
        folder, copy = machines.folder / name, tmp_path / "copy"
        machines.kill(name)
        shutil.copytree(folder, copy)
        machines.start(name)
        # Else the leader, with nobody to hear, steps down, and what it wrote as the next
        # leader the third one doesn't hear before it leads itself.
        wait_until(machines.is_level, "it is back", limit_s=DEADLINE_S)
        # Without the third one nothing is decided before it has said that it wrote it.
        machines.stop(third)
        for number in range(3):
            submit_to(machines, tmp_path / f"job {number}")
        machines.resume(third)
        machines.kill(name)
        shutil.rmtree(folder)
        shutil.copytree(copy, folder)
        machines.start(name)
        check(what, machines.processes[name].wait(DEADLINE_S), machines.log(name))


@contextlib.contextmanager
def on_a_small_disk(folder: Path, command: list[str]) -> Iterator[tuple[Machines, Path]]:
    """Run a coordinator whose disk is as full as a file says, and a job on it."""
    environment = {"PYTHONPATH": str(Path(command[-1]).parent)}
    with Machines(
        folder / "cluster", command=command, coordinators=1, clients=0, environment=environment
    ) as machines:
        script = str(Path(__file__).with_name("small_disk.py"))
        file = folder / "free"
        machines.start("coordinator-1", command=[sys.executable, script, str(file)])
        wait_until(lambda: machines.leader() is not None, "it leads")
        submit_to(machines, folder / "job")
        yield machines, file


def submit_to(machines: Machines, folder: Path) -> None:
    if not folder.exists():
        Job().write(folder)
    manifest = read_job(folder)
    machines.connect().submit(folder, manifest, seed=1, params="{}")


def states_of_jobs(machines: Machines) -> list[str]:
    return [job["state"] for job in machines.connect().request("GET", "/v1/jobs").json()]


@row("disk nearly full")
def test_disk_is_nearly_full(what: str, tmp_path: Path, command: list[str]) -> None:
    with on_a_small_disk(tmp_path, command) as (machines, file):
        file.write_text("200000000")

        def said() -> str:
            status = machines.status("coordinator-1")
            space = status and status["free_space"]
            return str(space["level"]) if isinstance(space, dict) else ""

        wait_until(lambda: said() == "short", "it has looked")
        with pytest.raises(Refused) as caught:
            submit_to(machines, tmp_path / "job")
        check(what, caught.value.exit_code, f"tasksprint: {caught.value}")
        file.unlink()
        wait_until(lambda: said() == "plenty", "it has looked again")
        submit_to(machines, tmp_path / "job")
        assert states_of_jobs(machines) == ["running", "running"]
        assert machines.end_all() == {"coordinator-1": 0}


@row("disk too full to go on")
def test_disk_is_too_full_to_go_on(what: str, tmp_path: Path, command: list[str]) -> None:
    with on_a_small_disk(tmp_path, command) as (machines, file):
        file.write_text("50000000")
        check_stop(what, machines)
        script = str(Path(__file__).with_name("small_disk.py"))
        machines.start("coordinator-1", command=[sys.executable, script, str(file)])
        check_stop(what, machines)  # Started again, it says the same at once.
        machines.start("coordinator-1")
        wait_until(lambda: machines.leader() is not None, "it leads")
        assert states_of_jobs(machines) == ["running"]


@row("disk full")
def test_disk_is_full(what: str, tmp_path: Path, command: list[str]) -> None:
    with on_a_small_disk(tmp_path, command) as (machines, file):
        file.write_text("full")
        with pytest.raises(PeerUnreachable):
            for request in range(1_000):
                body = json.dumps({"sender": "x" * 1_000, "request": request, "reason": "x"})
                with contextlib.suppress(Refused):  # There is no such job, says the log.
                    machines.connect().request(
                        "POST", "/v1/jobs/9/cancel", body=body.encode(), give_up_ms=500
                    )
        check_stop(what, machines)
        file.unlink()
        machines.start("coordinator-1")
        wait_until(lambda: machines.leader() is not None, "it leads")
        assert states_of_jobs(machines) == ["running"]


def check_stop(what: str, machines: Machines) -> None:
    """See how the coordinator has stopped, and forget what it wrote."""
    exit_code = machines.processes["coordinator-1"].wait(DEADLINE_S)
    check(what, exit_code, machines.log("coordinator-1"))
    (machines.folder / "coordinator-1.log").unlink()


# --- backups ---


@row("backup over a file that exists")
def test_backup_over_a_file(what: str, served: Served, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    served.commands.fails(what, "backup", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"


@row("backup in place of a link, a pipe or a device")
def test_backup_over_a_link(what: str, served: Served, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nothing")
    served.commands.fails(what, "backup", "--force", str(tmp_path / "link"))
    assert [each.name for each in tmp_path.iterdir()] == ["link"]


@row("backup where no coordinator answers")
def test_backup_of_nobody(what: str, served: Served, tmp_path: Path) -> None:
    path = str(tmp_path / "backup")
    served.commands.fails(what, "backup", path, "--coordinators", "127.0.0.1:1")
    assert list(tmp_path.iterdir()) == []


@row("backup that can't be written")
def test_backup_into_no_directory(what: str, served: Served, tmp_path: Path) -> None:
    served.commands.fails(what, "backup", str(tmp_path / "nowhere" / "backup"))


@row("restore into a directory that isn't empty")
def test_restore_over_a_data_directory(what: str, commands: Commands, copied_dir: Path) -> None:
    make_backup(copied_dir.parent / "backup")
    backup = str(copied_dir.parent / "backup")
    commands.fails(what, "restore", backup, "--data-dir", str(copied_dir))


@row("restore of another file")
def test_restore_of_another_file(what: str, commands: Commands, copied_dir: Path) -> None:
    file, data_dir = str(copied_dir / "replica.db"), str(copied_dir / "data")
    commands.fails(what, "restore", file, "--data-dir", data_dir)


@pytest.fixture
def damaged_backup(tmp_path: Path) -> Path:
    """A backup in which a job has another name than when it was made."""
    path = tmp_path / "backup"
    make_backup(path)
    path.write_bytes(path.read_bytes().replace(b"job 1", b"job 7", 1))
    return path


@row("restore of a damaged backup")
def test_restore_of_a_damaged_backup(what: str, commands: Commands, damaged_backup: Path) -> None:
    data_dir = damaged_backup.with_name("data")
    commands.fails(what, "restore", str(damaged_backup), "--data-dir", str(data_dir))
    assert not data_dir.exists()


@row("coordinator on a restore that was interrupted")
def test_coordinator_on_half_a_restore(what: str, commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "data" / "restoring").mkdir(parents=True)
    commands.fails(what, *coordinator(tmp_path / "data"))
    assert [each.name for each in (tmp_path / "data").iterdir()] == ["restoring"]


@row("damage that `log verify` finds in a backup")
def test_damage_in_a_backup(what: str, commands: Commands, damaged_backup: Path) -> None:
    commands.fails(what, "log", "verify", str(damaged_backup))


@row("damage that `log verify` finds in a data directory")
def test_damage_in_a_data_directory(what: str, commands: Commands, used_member: Path) -> None:
    with contextlib.closing(sqlite3.connect(used_member / "replica.db")) as database:
        database.execute("UPDATE log SET value = x'00' WHERE slot = 3")
        database.commit()
    commands.fails(what, "log", "verify", "--data-dir", str(used_member))


@row("`log verify` of nothing")
def test_verification_of_nothing(what: str, commands: Commands) -> None:
    commands.fails(what, "log", "verify")


@row("`--slot` that is no range")
def test_slots_that_are_no_range(what: str, commands: Commands, used_member: Path) -> None:
    commands.fails(what, "log", "show", "--data-dir", str(used_member), "--slot", "all")


# --- recovery ---


@row("recovery that nobody confirms")
def test_recovery_that_nobody_confirms(what: str, commands: Commands, used_member: Path) -> None:
    commands.fails(what, "recover", "--data-dir", str(used_member))


@row("recovery that is confirmed with another name")
def test_recovery_with_another_name(what: str, commands: Commands, used_member: Path) -> None:
    commands.fails(what, "recover", "--data-dir", str(used_member), "--yes-lose", "another")


@row("recovery of a directory without data")
def test_recovery_without_data(what: str, commands: Commands, tmp_path: Path) -> None:
    commands.fails(what, "recover", "--data-dir", str(tmp_path))


@row("recovery of who never belonged to a cluster")
def test_recovery_of_the_unfounded(what: str, commands: Commands, tmp_path: Path) -> None:
    peers = ["--id", "2", "--peers", "1=127.0.0.1:1,2=127.0.0.1:2"]
    with commands.running(*coordinator(tmp_path / "data", *peers), until="listens on"):
        pass
    commands.fails(what, "recover", "--data-dir", str(tmp_path / "data"))


@row("recovery of who isn't a member any more")
def test_recovery_of_who_was_removed(what: str, commands: Commands, used_member: Path) -> None:
    database = Database(used_member / DATABASE_FILE, REPLICA_KIND, Settings())
    header = replace(read_header(database), incarnation="another", replica=2)
    with database.transaction() as cursor:
        write_header(cursor, header)
    database.close()
    commands.fails(what, "recover", "--data-dir", str(used_member))


@row("recovery of a damaged state")
def test_recovery_of_a_damaged_state(what: str, commands: Commands, used_member: Path) -> None:
    database = Database(used_member / DATABASE_FILE, REPLICA_KIND, Settings())
    with database.transaction() as cursor:
        cursor.execute("UPDATE facts SET checksum = checksum + 1")
    database.close()
    commands.fails(what, "recover", "--dry-run", "--data-dir", str(used_member))


@row("recovery of who needs none")
def test_recovery_of_who_needs_none(what: str, commands: Commands, used_dir: Path) -> None:
    commands.fails(what, "recover", "--data-dir", str(used_dir))


@row("coordinators of another cluster than `--cluster` names")
def test_coordinators_of_another_cluster(what: str, served: Served) -> None:
    settings = {**SETTINGS, "find_leader_timeout_ms": 300}
    served.commands.fails(
        what, "jobs", "--cluster", "c0ffee", TASKSPRINT_SETTINGS=json.dumps(settings)
    )


def test_recovery_of_a_running_coordinator(served: Served) -> None:
    directory = served.private.directory / "coordinator-1"
    served.commands.fails("data directory in use", "recover", "--data-dir", str(directory))


# --- afterwards ---


def test_cluster_serves_good_jobs_as_before(served: Served, tmp_path: Path) -> None:
    """Both processes are those from the beginning, and a good job finishes."""
    states = {job["state"] for job in served.cluster.request("GET", "/v1/jobs").json()}
    assert "running" not in states
    (client,) = served.cluster.request("GET", "/v1/clients").json()
    assert (client["cid"], client["state"], client["assigned"]) == (1, "alive", 0)
    directory = Job().write(tmp_path / "job")
    done = served.commands.ask("submit", "--wait", str(directory))
    assert (done.returncode, done.stdout) == (0, '{"result":42}\n'), done.stderr
    for name in ("coordinator-1", "client-1"):
        # Tracebacks of users' programs may stand there, but none of ours.
        assert "tasksprint/roles/" not in (served.private.directory / f"{name}.log").read_text()


def test_each_row_of_the_document_has_a_test() -> None:
    assert set(table()) == tested
