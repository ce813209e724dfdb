"""The built archive and clusters of it, for tests on real processes."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasksprint.__main__ import main
from tasksprint.asking.cluster import Cluster
from tasksprint.cli.run import PrivateCluster
from tasksprint.errors import PeerUnreachable
from tasksprint.settings import Settings
from tests.packaging.conftest import built_archive

JOBS = Path(__file__).parent / "jobs"


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tasksprint.pyz, built from this checkout."""
    return built_archive(tmp_path_factory)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of its own, so that tests neither find nor leave anything."""
    state = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    for name in ("TASKSPRINT_KEY_FILE", "TASKSPRINT_COORDINATORS"):
        monkeypatch.delenv(name, raising=False)
    return state


def as_documented(text: str) -> str:
    """Return text in which commands begin as in documents, however the program was started."""
    return re.sub(r"python3 \S*tasksprint\S*\.pyz?(?=[ '])", "tasksprint", text)


MakeCluster = Callable[..., PrivateCluster]


@pytest.fixture
def make_cluster(archive: Path, tmp_path: Path, environment: Path) -> Iterator[MakeCluster]:
    """Start clusters of the archive's processes; all are stopped at the end."""
    started: list[PrivateCluster] = []

    def make(*, coordinators: int = 1, clients: int = 1, nodes: int = 2) -> PrivateCluster:
        private = PrivateCluster(
            coordinators=coordinators,
            clients=clients,
            nodes=nodes,
            keep=tmp_path / f"cluster-{len(started)}",
            command=[sys.executable, str(archive)],
        )
        started.append(private)
        return private.__enter__()

    yield make
    for private in started:
        private.__exit__(None, None, None)


def bytes_in_this_process(
    *arguments: str, folder: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in this process: starting another one takes most of its time.

    Args:
        folder: Where relative paths begin.
    """
    printed = io.BytesIO()
    stdout = io.TextIOWrapper(printed, encoding="utf-8", write_through=True)
    stderr = io.StringIO()
    former = os.getcwd()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            os.chdir(folder or former)
            exit_code = main(list(arguments))
        finally:
            os.chdir(former)
    said = stderr.getvalue().encode()
    return subprocess.CompletedProcess(arguments, exit_code, printed.getvalue(), said)


def in_this_process(
    *arguments: str, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, and return what it prints as text."""
    done = bytes_in_this_process(*arguments, folder=folder)
    return subprocess.CompletedProcess(
        arguments, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


@pytest.fixture
def run(
    archive: Path, environment: Path, tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command to its end: the first of its name as a process of the archive."""
    names: set[str] = set()

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        if arguments[0] in names:
            return in_this_process(*arguments, folder=tmp_path)
        names.add(arguments[0])
        return subprocess.run(
            [sys.executable, str(archive), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
        )

    return call


def wait_until(
    condition: Callable[[], bool],
    what: str,
    *,
    limit_s: float = 100,
    found: Callable[[], object] = str,
) -> None:
    """Wait for a condition, or fail and say which, and what is found instead."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"still not so after {limit_s} s: {what}{found()}"
        time.sleep(0.02)


def status_of(cluster: Cluster, address: str) -> dict[str, Any]:
    """Return what a coordinator says of itself; nothing if it doesn't answer."""
    try:
        found = cluster.direct(address, "GET", "/v1/status").json()
    except PeerUnreachable:
        return {}
    assert isinstance(found, dict)
    return found


def connect(private: PrivateCluster) -> Cluster:
    """Return a connection to a cluster that is up."""
    return private.connect(Settings())
