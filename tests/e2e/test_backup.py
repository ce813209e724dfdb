"""A cluster at work is backed up, and goes on elsewhere from the file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasksprint.asking.cluster import Cluster
from tasksprint.cli.run import PrivateCluster
from tasksprint.errors import Refused
from tasksprint.ids import JobId
from tasksprint.net.addresses import format_address
from tasksprint.net.keys import create_key
from tasksprint.process.job_directory import read_job
from tasksprint.settings import Settings
from tests.e2e.conftest import JOBS, MakeCluster, connect, wait_until
from tests.e2e.test_kills import WIDTH, result_of, submit

pytestmark = pytest.mark.slow

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def private(make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch) -> PrivateCluster:
    """Three coordinators, which give their state in many small pieces, and the way to them."""
    monkeypatch.setenv("TASKSPRINT_SETTINGS", '{"mirror_piece_rows": 20, "log_tail_slots": 20}')
    private = make_cluster(coordinators=3, clients=1)
    monkeypatch.setenv("TASKSPRINT_KEY_FILE", str(private.directory / "key"))
    monkeypatch.setenv("TASKSPRINT_COORDINATORS", ",".join(private.addresses))
    return private


def backup(run: Run, path: Path, *options: str) -> Any:
    done = run("backup", str(path), "--json", *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def verified(run: Run, *what: str) -> Any:
    done = run("log", "verify", "--json", *what)
    assert done.returncode == 0, (done.stdout, done.stderr)
    found = json.loads(done.stdout)
    assert found["problems"] == []
    return found


def restore(run: Run, private: PrivateCluster, path: Path, name: str) -> tuple[Any, Cluster]:
    """Restore a backup, and start a coordinator and the client on it."""
    sock = private._listen()
    address = format_address(*sock.getsockname()[:2])
    data_dir = private.directory / name
    done = run("restore", str(path), "--data-dir", str(data_dir), "--listen", address, "--json")
    assert done.returncode == 0, done.stderr
    private._spawn(name, ["coordinator", "--listen", address], sock)
    sock.close()
    private._spawn("client-1", ["client", "--coordinators", address, "--nodes", "2"], None)
    return json.loads(done.stdout), Cluster(
        [address], create_key(private.directory / "key"), Settings()
    )


@pytest.mark.long
def test_backup_of_a_busy_cluster_goes_on_elsewhere(
    private: PrivateCluster, run: Run, tmp_path: Path
) -> None:
    cluster = connect(private)
    first = submit(cluster)
    expected = result_of(cluster, first)
    layers = JOBS / "layers"
    manifest = read_job(layers)
    job = cluster.submit(layers, manifest, seed=11, params=f'{{"width":{WIDTH},"ms":300}}')
    wait_until(lambda: cluster.job(job)[0].tasks["done"] >= 5, "some of its tasks are done")
    stop = threading.Event()

    def load() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            body = json.dumps({"sender": f"s{number}", "request": 1, "reason": ""}).encode()
            with pytest.raises(Refused, match="there is no job 999"):
                cluster.request("POST", "/v1/jobs/999/cancel", body=body)

    loader = threading.Thread(target=load)
    loader.start()
    found = []
    try:
        # From whoever is asked: any, then each of them alone.
        found.append(backup(run, tmp_path / "all"))
        for number, address in enumerate(private.addresses, 1):
            found.append(backup(run, tmp_path / f"{number}", "--coordinators", address))
    finally:
        stop.set()
        loader.join()
    assert [each["replica"] for each in found[1:]] == [1, 2, 3]
    assert len({each["cluster"] for each in found}) == 1
    assert all(each["jobs"] == 2 and each["archives"] == 1 for each in found)
    assert oct(os.stat(tmp_path / "all").st_mode) == "0o100600"
    assert found[0]["jobs_running"] == 1

    # All of them are whole, and so is what the coordinators have at the moment.
    for path in sorted(tmp_path.glob("[1-3a]*")):
        assert verified(run, str(path))["slot"] in {each["slot"] for each in found}
    for number in (1, 2, 3):
        data_dir = private.directory / f"coordinator-{number}"
        assert verified(run, "--data-dir", str(data_dir))["replica"] == number
    # While they went on, more was done; it isn't in the backup.
    later = submit(cluster)
    slow = result_of(cluster, job)
    assert result_of(cluster, later) == expected
    private.kill("coordinator-1", "coordinator-2", "coordinator-3", "client-1")

    told, new = restore(run, private, tmp_path / "all", "coordinator-9")
    assert told["from_cluster"] == found[0]["cluster"] != told["cluster"]
    assert told["slot"] == found[0]["slot"]
    assert told["jobs_running"] == 1
    assert result_of(new, first) == expected
    assert result_of(new, job) == slow
    with pytest.raises(Refused, match=f"no job {later}"):
        new.job(later)
    log = (private.directory / "client-1.log").read_text()
    assert f"cluster {told['from_cluster']} went on as cluster {told['cluster']}" in log
    # The number of the lost job is given again, and what the client held of it isn't taken
    # for the new one's.
    again = submit(new)
    assert again == later
    assert result_of(new, again) == expected
    data_dir = private.directory / "coordinator-9"
    assert verified(run, "--data-dir", str(data_dir))["rows"]["jobs"] == 3


def test_former_coordinators_are_no_members_of_the_restored_cluster(
    private: PrivateCluster, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = connect(private)
    expected = result_of(cluster, submit(cluster))
    backup(run, tmp_path / "backup")
    private.kill("client-1")
    told, new = restore(run, private, tmp_path / "backup", "coordinator-9")
    assert result_of(new, JobId(1)) == expected
    # Both go on side by side, and a member of one can't be added to the other.
    monkeypatch.setenv("TASKSPRINT_CLUSTER", told["cluster"])
    monkeypatch.setenv("TASKSPRINT_COORDINATORS", f"{told['address']},{private.addresses[1]}")
    refused = run("member", "add", f"2={private.addresses[1]}")
    assert refused.returncode == 77
    assert f"belongs to cluster '{told['from_cluster']}'" in refused.stderr
    assert result_of(new, submit(new)) == expected
    monkeypatch.delenv("TASKSPRINT_CLUSTER")
    several = run("backup", str(tmp_path / "other"))
    assert several.returncode == 64 and "coordinators of several clusters" in several.stderr
    assert not list(tmp_path.glob("other*"))
    # Who names the former cluster means that one, though the new one has its state, too.
    monkeypatch.setenv("TASKSPRINT_CLUSTER", told["from_cluster"])
    one = run("backup", str(tmp_path / "other"), "--json")
    assert json.loads(one.stdout)["cluster"] == told["from_cluster"]
    misled = run("backup", str(tmp_path / "none"), "--coordinators", told["address"])
    assert misled.returncode == 69
    assert f"belongs to cluster '{told['cluster']}', not to" in misled.stderr


def _asks(process: subprocess.Popen[str]) -> bool:
    """Whether a process has a connection to somebody."""
    return bool(psutil.Process(process.pid).net_connections("tcp"))


def test_interrupted_backup_leaves_no_half_file(
    private: PrivateCluster, run: Run, tmp_path: Path, archive: Path
) -> None:
    cluster = connect(private)
    result_of(cluster, submit(cluster))
    path = tmp_path / "backups" / "monday"
    path.parent.mkdir()
    # Nobody answers, so it is in the middle of it.
    for number in (1, 2, 3):
        os.kill(private.pid(f"coordinator-{number}"), signal.SIGSTOP)
    process = subprocess.Popen(
        [sys.executable, str(archive), "backup", str(path)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: _asks(process), "it asks")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode != 0
        assert list(path.parent.iterdir()) == []
    finally:
        for number in (1, 2, 3):
            os.kill(private.pid(f"coordinator-{number}"), signal.SIGCONT)
    backup(run, path)
    refused = run("backup", str(path))
    assert refused.returncode == 64 and "exists already; --force overwrites it" in refused.stderr
    assert verified(run, str(path))["slot"] <= backup(run, path, "--force")["slot"]
    assert [each.name for each in path.parent.iterdir()] == ["monday"]
