"""A private cluster whose processes end before their time, with stand-ins for the processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tasksprint.cli.run import PrivateCluster
from tasksprint.errors import PeerUnreachable
from tasksprint.settings import Settings
from tests.e2e.conftest import wait_until

# What each process does is told by its role, the first argument.
PROGRAM = """\
import sys, time
print("2026 INFO began", file=sys.stderr)
if sys.argv[1] in %r:
    sys.exit("tasksprint: no room left; make some")
time.sleep(60)
"""


def cluster(tmp_path: Path, *ending: str, clients: int = 1) -> PrivateCluster:
    return PrivateCluster(
        coordinators=1,
        clients=clients,
        nodes=1,
        keep=tmp_path / "kept",
        command=[sys.executable, "-c", PROGRAM % (ending,)],
    )


def test_process_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    with cluster(tmp_path, "coordinator") as private, pytest.raises(PeerUnreachable) as caught:
        private.connect(Settings())
    assert str(caught.value) == (
        "coordinator-1 of the private cluster ended with exit code 1: no room left; make some"
    )


def test_job_is_given_up_when_no_client_is_left(tmp_path: Path) -> None:
    def has_failed(private: PrivateCluster) -> bool:
        try:
            private.check()
        except PeerUnreachable as error:
            assert str(error).startswith("client-2 of the private cluster ended with exit code ")
            return True
        return False

    with cluster(tmp_path, clients=2) as private:
        private.check()
        private.kill("client-1")
        private.check()  # The other one may do all of it.
        private.kill("client-2")
        wait_until(lambda: has_failed(private), "the end of both is noticed")
