"""The examples, as a user runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.harness import Commands, write_job
from tests.packaging.standin import CHECKOUT
from tests.sdk.test_published import NODE, SCHEDULER

pytestmark = pytest.mark.slow

EXAMPLES = CHECKOUT / "examples"


@pytest.fixture
def commands(archive: Path, tmp_path: Path) -> Commands:
    return Commands(archive, tmp_path)


def run(commands: Commands, job: Path, *arguments: str) -> dict[str, object]:
    printed = commands.json("run", str(job), *arguments)
    assert isinstance(printed, dict)
    assert printed["state"] == "finished"
    return printed


@pytest.mark.long
def test_montecarlo_is_the_same_on_a_small_and_a_large_cluster(commands: Commands) -> None:
    options = ["--param", "samples=3000", "--seed", "7"]
    small = run(commands, EXAMPLES / "montecarlo", *options)
    large = run(
        commands, EXAMPLES / "montecarlo", *options, "--coordinators", "3", "--clients", "2"
    )
    assert small["values"] == large["values"]
    assert small["tasks"] == large["tasks"]


def test_montecarlo_prints_progress_and_an_estimate(commands: Commands) -> None:
    done = commands("run", str(EXAMPLES / "montecarlo"), "--param", "seconds=0.1")
    estimate = json.loads(done.stdout)["result"]
    assert abs(estimate - 3.14159) < 0.05
    assert "12 of 12 tasks done" in done.stderr.decode()


def test_published_text_runs_as_a_job(commands: Commands, tmp_path: Path) -> None:
    folder = write_job(
        tmp_path / "published", SCHEDULER, NODE.replace("timeout(5)", "timeout(0.1)")
    )
    printed = run(commands, folder)
    assert isinstance(printed["values"], dict)
    assert abs(printed["values"]["result"] - 3.14159) < 0.1


def test_wordcount_runs(commands: Commands) -> None:
    printed = run(commands, EXAMPLES / "wordcount")
    values = printed["values"]
    assert isinstance(values, dict)
    assert values["total"] > 10_000 and 1_000 < values["distinct"] < values["total"]
    assert len(values["top"]) == 20


def test_hello_c_is_compiled_on_the_client(commands: Commands, tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler (cc) on this machine")
    folder = tmp_path / "hello-c"
    shutil.copytree(EXAMPLES / "hello-c", folder)
    printed = run(commands, folder)
    assert printed["values"] == {"greeting": "hello world and hello Ada and hello عالم"}
