"""The limit of open files, raised for us alone, and what is fitted under it."""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasksprint.__main__ import main
from tasksprint.errors import SettingsError
from tasksprint.process import open_files
from tasksprint.process.open_files import fit_client, fit_coordinator, raise_limit
from tasksprint.settings import Settings
from tests.e2e.harness import write_job

SETTINGS = Settings()
_INFINITE = resource.RLIM_INFINITY


class Limits:
    """The kernel's side: what was set, and what it takes."""

    def __init__(self, soft: int, hard: int, most: int = 1 << 40) -> None:
        self.now = (soft, hard)
        self.most = most

    def get(self, which: int) -> tuple[int, int]:
        return self.now

    def set(self, which: int, limits: tuple[int, int]) -> None:
        if limits[0] == _INFINITE or limits[0] > self.most:
            raise ValueError("current limit exceeds maximum limit")
        self.now = limits


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(*limits: int) -> Limits:
        kernel = Limits(*limits)
        monkeypatch.setattr(resource, "getrlimit", kernel.get)
        monkeypatch.setattr(resource, "setrlimit", kernel.set)
        monkeypatch.setattr(open_files, "_first", [])
        return kernel

    return make


@pytest.mark.parametrize(
    ("limits", "limit", "soft"),
    [
        ((1_024, 4_096), 4_096, 4_096),
        ((4_096, 4_096), 4_096, 4_096),
        ((256, _INFINITE, 10_240), 10_240, 10_240),  # macOS
        ((20_000, _INFINITE, 30_000), 20_000, 20_000),
        ((256, _INFINITE, 500), 256, 256),
        ((_INFINITE, _INFINITE), 1 << 20, _INFINITE),
        ((1_024, 1 << 30), 1 << 20, 1 << 30),
    ],
)
def test_soft_limit_is_raised_as_far_as_it_goes(
    kernel: Any, limits: tuple[int, ...], limit: int, soft: int
) -> None:
    of = kernel(*limits)
    assert raise_limit() == limit
    assert of.now == (soft, limits[1])


def test_what_a_client_does_is_fitted_under_its_limit() -> None:
    assert fit_client(SETTINGS, 5_000, nodes=2) == (SETTINGS, None)
    fitted, lowered = fit_client(SETTINGS, 1_024, nodes=100)
    assert fitted == replace(
        SETTINGS, connections_max=544, unproven_connections_max=136, fetches_max=16
    )
    assert lowered == (
        "the limit of open files is 1024: takes at most 544 connections, not 4000 "
        "(connections_max); raise it with ulimit -n"
    )
    fitted, _ = fit_client(SETTINGS, 128, nodes=10)
    assert (fitted.fetches_max, fitted.connections_max) == (4, 32)


@pytest.mark.parametrize(
    ("limit", "nodes", "message"),
    [
        (
            128,
            100,
            "the limit of open files is 128, 100 nodes need 488; raise it (ulimit -n 488), or "
            "start at most 10 (--nodes 10)",
        ),
        (64, 1, "the limit of open files is 64, 1 node needs 92; raise it (ulimit -n 92)"),
    ],
)
def test_limit_that_is_too_small_for_the_nodes_is_said(
    limit: int, nodes: int, message: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        fit_client(SETTINGS, limit, nodes=nodes)
    assert str(caught.value) == message


def test_what_a_coordinator_does_is_fitted_under_its_limit() -> None:
    assert fit_coordinator(SETTINGS, 10_240) == (SETTINGS, None)
    fitted, lowered = fit_coordinator(SETTINGS, 1_024)
    assert (fitted.connections_max, fitted.unproven_connections_max) == (732, 183)
    assert lowered is not None and "takes at most 732 connections, not 4000" in lowered
    with pytest.raises(SettingsError) as caught:
        fit_coordinator(SETTINGS, 100)
    assert str(caught.value) == (
        "the limit of open files is 100, a coordinator needs 112; raise it (ulimit -n 112)"
    )


def test_run_with_more_nodes_than_descriptors_is_refused_before_it_starts_anything(
    kernel: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel(128, 128)
    job = write_job(tmp_path / "job", "", "")
    assert main(["run", str(job), "--nodes", "100", "--keep", str(tmp_path / "kept")]) == 78
    assert capsys.readouterr().err == (
        "tasksprint: the limit of open files is 128, 100 nodes need 488; raise it "
        "(ulimit -n 488), or start at most 10 (--nodes 10)\n"
    )
    assert not (tmp_path / "kept").exists()


_CHILD = """
import asyncio, resource
from tasksprint.errors import NodeFailed
from tasksprint.process.open_files import raise_limit
from tasksprint.process.program import start_program

async def main():
    said = []
    assert raise_limit() == 300
    program = await start_program(
        ["sh", "-c", "ulimit -Sn; ulimit -Hn"], cwd=None, env=None, what="node",
        failure=NodeFailed, on_data=said.append, on_exit=lambda reason: None,
    )
    await program.wait()
    print(b" ".join(b"".join(said).split()).decode(), resource.getrlimit(resource.RLIMIT_NOFILE))

asyncio.run(main())
"""


@pytest.mark.slow
def test_programs_get_the_limit_that_we_were_started_with() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        capture_output=True,
        text=True,
        timeout=30,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300)),
    )
    assert (done.stdout, done.stderr) == ("200 300 (300, 300)\n", "")
